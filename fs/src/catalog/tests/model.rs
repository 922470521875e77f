//! Random operations, checked against a `BTreeMap`.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::super::node::Node;
use super::super::{Key, Kind, MAX_VALUE, NodeCache, NodeInfo, Tree, WriteOut};
use super::{Books, Device, Model, checked, contents};
use crate::Error;
use crate::types::{Ino, Lba};

/// A checkpoint between write-out and adoption.
struct Flight {
    written: WriteOut,
    lbas: HashSet<Lba>,
    model: Model,
}

struct World {
    rng: ChaCha8Rng,
    device: Arc<Device>,
    cache: NodeCache,
    head: Tree,
    model: Model,
    books: Books,
    clones: Vec<(Tree, Model)>,
    flight: Option<Flight>,
    infos: HashMap<Lba, NodeInfo>,
    /// Keys come from this many inodes.
    inodes: u64,
    value_max: usize,
}

impl World {
    fn new(seed: u64) -> World {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let device = Device::new();
        World {
            cache: device.cache([0, 3, 40, 10_000][rng.random_range(0..4)]),
            inodes: [2, 40, 2000][rng.random_range(0..3)],
            value_max: [16, 120, MAX_VALUE][rng.random_range(0..3)],
            rng,
            device,
            head: Tree::empty(),
            model: Model::new(),
            books: Books::default(),
            clones: Vec::new(),
            flight: None,
            infos: HashMap::new(),
        }
    }

    fn key(&mut self) -> Key {
        let kind = Kind::from_u8(self.rng.random_range(1..=6)).unwrap();
        Key::new(
            Ino(self.rng.random_range(0..self.inodes)),
            kind,
            self.rng.random_range(0..60),
        )
    }

    fn value(&mut self) -> Vec<u8> {
        let len = self.rng.random_range(0..=self.value_max);
        let byte: u8 = self.rng.random();
        (0..len).map(|at| byte ^ at as u8).collect()
    }

    fn put(&mut self) {
        let (key, value) = (self.key(), self.value());
        let old = self.head.put(&self.cache, key, &value).unwrap();
        assert_eq!(old, self.model.insert(key, value), "old value of {key}");
    }

    fn put_run(&mut self) {
        let (mut key, value) = (self.key(), self.value());
        for _ in 0..self.rng.random_range(1..300) {
            key.offset += 1;
            let old = self.head.put(&self.cache, key, &value).unwrap();
            assert_eq!(old, self.model.insert(key, value.clone()));
        }
    }

    fn delete(&mut self) {
        let mut key = self.key();
        if self.rng.random_bool(0.9) {
            key = self.model.range(key..).next().map_or(key, |(key, _)| *key);
        }
        assert_eq!(
            self.head.delete(&self.cache, &key).unwrap(),
            self.model.remove(&key)
        );
    }

    fn delete_range(&mut self) {
        let (from, mut to) = (self.key(), self.key());
        if self.rng.random_bool(0.7) {
            let span = self.rng.random_range(0..3);
            to = Key::new(Ino(from.ino.0 + span), to.kind, to.offset);
        }
        let mut deleted = Vec::new();
        let count = self
            .head
            .delete_range(&self.cache, from..=to, &mut |key, value| {
                deleted.push((key, value.to_vec()))
            })
            .unwrap();
        let mut expected = Vec::new();
        if from <= to {
            expected.extend(
                self.model
                    .range(from..=to)
                    .map(|(key, value)| (*key, value.clone())),
            );
        }
        expected
            .iter()
            .for_each(|(key, _)| drop(self.model.remove(key)));
        assert_eq!(count, expected.len() as u64);
        assert_eq!(deleted, expected);
    }

    /// Deletes a run of records, some way or other; now and then something comes between.
    fn shrink(&mut self) {
        let from = self.key();
        let mut doomed = self.model.range(from..).map(|(key, _)| *key);
        let doomed: Vec<Key> = doomed
            .by_ref()
            .take(self.rng.random_range(1..200))
            .collect();
        let Some((first, last)) = doomed.first().zip(doomed.last()) else {
            return;
        };
        if self.rng.random_bool(0.5) {
            let count = self
                .head
                .delete_range(&self.cache, *first..=*last, &mut |_, _| {})
                .unwrap();
            assert_eq!(count, doomed.len() as u64);
        } else {
            for key in &doomed {
                assert!(self.head.delete(&self.cache, key).unwrap().is_some());
            }
        }
        doomed.iter().for_each(|key| drop(self.model.remove(key)));
        match self.rng.random_range(0..8) {
            0 => self.checkpoint(),
            1 => self.collect(),
            2 => self.put_run(),
            3 => self.look(),
            _ => self.put(),
        }
    }

    fn look(&mut self) {
        let (from, to) = (self.key(), self.key());
        let found = self.head.get(&self.cache, &from).unwrap();
        assert_eq!(found.as_deref(), self.model.get(&from).map(Vec::as_slice));
        let floor = self
            .head
            .floor(&self.cache, &to)
            .unwrap()
            .map(|(key, value)| (key, value.to_vec()));
        let expected = self.model.range(..=to).next_back();
        assert_eq!(floor, expected.map(|(key, value)| (*key, value.clone())));
        if from > to {
            return;
        }
        let keys = |cursor: &mut dyn Iterator<Item = crate::Result<(Key, super::super::Value)>>| {
            cursor
                .map(|record| record.unwrap().0)
                .take(500)
                .collect::<Vec<_>>()
        };
        let expected: Vec<Key> = self
            .model
            .range(from..to)
            .map(|(key, _)| *key)
            .take(500)
            .collect();
        assert_eq!(keys(&mut self.head.range(&self.cache, from..to)), expected);
        let expected: Vec<Key> = self
            .model
            .range(from..=to)
            .rev()
            .map(|(key, _)| *key)
            .take(500)
            .collect();
        assert_eq!(
            keys(&mut self.head.range_back(&self.cache, from..=to).backward()),
            expected
        );
    }

    /// Walks a cursor back and forth.
    fn wander(&mut self) {
        let mut expected: Vec<Key> = self.model.keys().copied().collect();
        let start = self.key();
        expected.retain(|key| *key >= start);
        let mut cursor = self.head.range(&self.cache, start..);
        let mut at = 0;
        for _ in 0..40 {
            let forward = self.rng.random_bool(0.5);
            for _ in 0..self.rng.random_range(0..100) {
                if forward {
                    let found = cursor.next().map(|record| record.unwrap().0);
                    assert_eq!(found.as_ref(), expected.get(at));
                    at += usize::from(found.is_some());
                } else {
                    let found = cursor.prev().map(|record| record.unwrap().0);
                    assert_eq!(found.as_ref(), at.checked_sub(1).map(|at| &expected[at]));
                    at -= usize::from(found.is_some());
                }
            }
        }
    }

    /// With a device that fails, an operation fails and changes nothing, or succeeds.
    fn fail(&mut self) {
        self.books.retire(&mut self.head);
        let (shape, resident) = (checked(&self.head, &self.cache), self.head.dirty_nodes());
        self.device.broken.store(true, Ordering::Relaxed);
        let (key, to, value) = (self.key(), self.key(), self.value());
        let failed = match self.rng.random_range(0..3) {
            0 => self.head.put(&self.cache, key, &value).map(|old| {
                assert_eq!(old, self.model.insert(key, value));
            }),
            1 => self.head.delete(&self.cache, &key).map(|old| {
                assert_eq!(old, self.model.remove(&key));
            }),
            _ => self
                .head
                .delete_range(&self.cache, key..=to, &mut |_, _| {})
                .map(|_| {
                    self.model.retain(|at, _| *at < key || *at > to);
                }),
        };
        self.device.broken.store(false, Ordering::Relaxed);
        if let Err(error) = failed {
            assert!(matches!(error, Error::Invalid("injected")), "{error}");
            assert_eq!(self.head.take_retired(), []);
            assert_eq!(self.head.dirty_nodes(), resident);
            assert_eq!(checked(&self.head, &self.cache), shape);
        }
    }

    fn snapshot(&mut self) {
        if self.clones.len() == 3 {
            let (tree, model) = self.clones.remove(0);
            assert_eq!(contents(&tree, &self.cache), model, "a clone changed");
        }
        self.clones.push((self.head.clone(), self.model.clone()));
    }

    /// Several operations, undone together.
    fn undo(&mut self) {
        self.books.retire(&mut self.head);
        let before = (self.model.clone(), checked(&self.head, &self.cache));
        let savepoint = self.head.savepoint();
        for _ in 0..20 {
            self.put();
            self.delete();
        }
        self.delete_range();
        self.head.roll_back(savepoint);
        assert_eq!(self.head.take_retired(), []);
        assert_eq!(checked(&self.head, &self.cache), before.1);
        self.model = before.0;
        assert_eq!(contents(&self.head, &self.cache), self.model);
    }

    /// Starts a checkpoint, or ends the one under way.
    fn checkpoint(&mut self) {
        let Some(flight) = self.flight.take() else {
            return self.write_out();
        };
        if self.rng.random_bool(0.2) {
            return; // abandoned after it was written
        }
        flight.written.publish(&self.cache);
        self.books
            .adopt(&mut self.head, &flight.written, &flight.lbas);
        for (tree, _) in &mut self.clones {
            if self.rng.random_bool(0.5) {
                tree.adopt(&flight.written);
            }
        }
        let (root, height) = (flight.written.root(), flight.written.height());
        drop(flight.written);
        let cold = self.device.cache(2);
        let tree = Tree::from_root(root, height).unwrap();
        assert_eq!(contents(&tree, &cold), flight.model, "reload");
        checked(&tree, &cold);
    }

    fn write_out(&mut self) {
        let snapshot = self.head.clone();
        let (model, dirty) = (self.model.clone(), snapshot.dirty_nodes());
        for _ in 0..self.rng.random_range(0..30) {
            self.put();
        }
        let mut left = if self.rng.random_bool(0.2) {
            self.rng.random_range(0..5)
        } else {
            u32::MAX
        };
        let mut lbas = HashSet::new();
        let written = snapshot.write_out(&mut |info, page| {
            left = left.checked_sub(1).ok_or(Error::NoSpace)?;
            let lba = self.device.write(page);
            lbas.insert(lba);
            let node = Node::decode(Box::new(*page)).unwrap();
            assert!(node.level() == info.level && node.lies_within(&info.first_key, None));
            self.infos.insert(lba, info);
            Ok(lba)
        });
        if let Ok(written) = written {
            assert_eq!(written.nodes_written(), dirty);
            self.flight = Some(Flight {
                written,
                lbas,
                model,
            });
        }
    }

    /// What the collector does: asks for some nodes by the name they were written under.
    fn collect(&mut self) {
        self.books.check(&mut self.head, &self.cache);
        let mut written: Vec<Lba> = self.infos.keys().copied().collect();
        written.sort();
        for _ in 0..10.min(written.len()) {
            let lba = written[self.rng.random_range(0..written.len())];
            let NodeInfo { level, first_key } = self.infos[&lba];
            let live = self.books.live.contains(&lba);
            assert_eq!(
                self.head
                    .references(&self.cache, level, &first_key, lba)
                    .unwrap(),
                live
            );
            if self.rng.random_bool(0.3) {
                assert_eq!(
                    self.head
                        .touch(&self.cache, level, &first_key, lba)
                        .unwrap(),
                    live
                );
                self.books.retire(&mut self.head);
                assert!(!self.books.live.contains(&lba));
            }
        }
    }

    fn step(&mut self, growing: bool) {
        let puts = if growing { 450 } else { 200 };
        match self.rng.random_range(0..1000) {
            at @ 0..650 if at < puts => self.put(),
            0..650 => self.delete(),
            650..670 => self.put_run(),
            670..690 => self.delete_range(),
            690..950 => self.look(),
            950..953 => self.wander(),
            953..965 => self.fail(),
            965..970 => self.snapshot(),
            970..975 => self.undo(),
            975..990 => self.checkpoint(),
            _ => self.collect(),
        }
    }
}

/// Trees of three levels, with inner nodes that fill up, run empty and merge.
#[test]
fn a_high_tree_behaves_like_a_map_while_it_is_filled_and_emptied() {
    for seed in 100..106 {
        println!("seed {seed}");
        let mut world = World::new(seed);
        (world.inodes, world.value_max) = (40, MAX_VALUE);
        for round in 0..3 {
            let keys = (0..4000).map(|_| world.key()).collect::<Vec<_>>();
            for key in keys {
                world.head.put(&world.cache, key, &[round; 800]).unwrap();
                world.model.insert(key, vec![round; 800]);
            }
            assert_eq!(world.head.height(), 3);
            while world.model.len() > 300 {
                world.shrink();
            }
            (0..50).for_each(|_| world.step(false));
        }
        world.books.check(&mut world.head, &world.cache);
        assert_eq!(contents(&world.head, &world.cache), world.model);
    }
}

#[test]
fn tree_behaves_like_a_map_and_accounts_exactly() {
    for seed in 0..24 {
        println!("seed {seed}");
        let mut world = World::new(seed);
        for step in 0..3000 {
            world.step(step % 1500 < 1000);
        }
        world.books.check(&mut world.head, &world.cache);
        assert_eq!(contents(&world.head, &world.cache), world.model);
        for (tree, model) in &world.clones {
            assert_eq!(&contents(tree, &world.cache), model, "a clone changed");
        }
    }
}
