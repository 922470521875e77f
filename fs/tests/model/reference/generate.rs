//! A generator of sequences of operations, from a seed.
//!
//! It looks at the reference, so that most operations name what exists.

use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use warren_fs::volume::types::FileKind;

use super::atomic::{End, Piece};
use super::ops::{Op, Path, SLOTS, Target};
use super::{Body, Change, Maker, ROOT, Reference, SIZE_MAX};

/// How often what is generated, and which sizes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mix {
    /// Largest write.
    pub(crate) write_max: usize,
    /// A write of any size up to the largest: one in so many writes; the others are small.
    pub(crate) large_every: u32,
    /// Offsets of terabytes now and then.
    pub(crate) sparse: bool,
    /// Remounts, checkpoints, collections, syncs: one in so many operations each.
    pub(crate) upkeep_every: u32,
    /// A power cut: one in so many operations, 0 for never.
    pub(crate) crash_every: u32,
    /// A comparison of everything: one in so many operations.
    pub(crate) compare_every: u32,
}

/// A source of operations that mostly name what exists.
pub(crate) struct Generator {
    rng: ChaCha8Rng,
    mix: Mix,
}

/// What exists, for the generator to choose from.
struct Scene {
    directories: Vec<Path>,
    files: Vec<Path>,
    all: Vec<Path>,
}

impl Scene {
    fn of(reference: &Reference) -> Scene {
        let mut scene = Scene {
            directories: vec![String::new()],
            files: Vec::new(),
            all: Vec::new(),
        };
        let mut pending = vec![(String::new(), ROOT)];
        while let Some((path, ino)) = pending.pop() {
            let entries = reference.list(ino).expect("a directory");
            for (name, child) in entries {
                let name = String::from_utf8(name).expect("the pool's names are text");
                let below = if path.is_empty() {
                    name
                } else {
                    format!("{path}/{name}")
                };
                match &reference.node(child).expect("a named inode").body {
                    Body::Directory { .. } => {
                        scene.directories.push(below.clone());
                        pending.push((below.clone(), child));
                    }
                    Body::File(_) => scene.files.push(below.clone()),
                    Body::Link(_) | Body::Special(_) => {}
                }
                scene.all.push(below);
            }
        }
        scene
    }
}

impl Generator {
    pub(crate) fn new(seed: u64, mix: Mix) -> Generator {
        let rng = ChaCha8Rng::seed_from_u64(seed);
        Generator { rng, mix }
    }

    fn one_in(&mut self, n: u32) -> bool {
        n > 0 && self.rng.random_range(0..n) == 0
    }

    fn name(&mut self) -> String {
        match self.rng.random_range(0..200) {
            0 => "n".repeat(256),
            1..4 => "m".repeat(255),
            n => char::from(b'a' + (n % 9) as u8).to_string(),
        }
    }

    /// A path for something new (or not so new, names collide).
    fn fresh(&mut self, scene: &Scene) -> Path {
        let dir = if self.one_in(50) {
            scene.all.choose(&mut self.rng).cloned().unwrap_or_default()
        } else {
            self.dir(scene)
        };
        let name = self.name();
        if dir.is_empty() {
            name
        } else {
            format!("{dir}/{name}")
        }
    }

    fn dir(&mut self, scene: &Scene) -> Path {
        let shallow = scene
            .directories
            .iter()
            .filter(|d| d.matches('/').count() < 4);
        let shallow: Vec<&Path> = shallow.collect();
        shallow
            .choose(&mut self.rng)
            .map_or_else(String::new, |d| (*d).clone())
    }

    fn existing(&mut self, scene: &Scene) -> Path {
        match scene.all.choose(&mut self.rng) {
            Some(path) if !self.one_in(20) => path.clone(),
            _ => self.fresh(scene),
        }
    }

    fn file(&mut self, scene: &Scene) -> Target {
        if self.one_in(4) {
            return Target::Slot(self.rng.random_range(0..SLOTS));
        }
        match scene.files.choose(&mut self.rng) {
            Some(path) if !self.one_in(30) => Target::Path(path.clone()),
            _ => Target::Path(self.existing(scene)),
        }
    }

    fn maker(&mut self) -> Maker {
        let (uid, gid) = *[(0, 0), (1000, 1000), (1000, 100)]
            .choose(&mut self.rng)
            .expect("three");
        let umask = *[0, 0o022, 0o077].choose(&mut self.rng).expect("three");
        Maker { uid, gid, umask }
    }

    fn mode(&mut self) -> u32 {
        *[0o644, 0o600, 0o755, 0o777, 0o1777, 0]
            .choose(&mut self.rng)
            .expect("six")
    }

    fn len(&mut self) -> usize {
        if self.one_in(self.mix.large_every) {
            return self.rng.random_range(0..=self.mix.write_max);
        }
        let len: usize = match self.rng.random_range(0..9) {
            0 => self.rng.random_range(0..64),
            1..4 => self.rng.random_range(0..5000),
            4..6 => 4096 * self.rng.random_range(1..9),
            _ => self.rng.random_range(0..40_000),
        };
        len.min(self.mix.write_max)
    }

    fn offset(&mut self) -> u64 {
        if self.mix.sparse && self.one_in(25) {
            let far = [1 << 32, 15 << 40, SIZE_MAX - 8192, SIZE_MAX - 10];
            return far.choose(&mut self.rng).expect("four") + self.rng.random_range(0..5000);
        }
        match self.rng.random_range(0..4) {
            0 => 0,
            1 => 4096 * self.rng.random_range(0..64),
            _ => self.rng.random_range(0..self.mix.write_max as u64),
        }
    }

    fn xattr(&mut self) -> String {
        let names = [
            "user.a",
            "user.b",
            "user.long.name.with.parts",
            "trusted.t",
            "security.s",
        ];
        (*names.choose(&mut self.rng).expect("five")).to_owned()
    }

    /// The next operation, given what the reference holds.
    pub(crate) fn next(&mut self, reference: &Reference) -> Op {
        if let Some(op) = self.upkeep() {
            return op;
        }
        let scene = Scene::of(reference);
        // A crowded tree is thinned out, an empty one filled.
        let crowded = scene.all.len() > 60;
        match self.rng.random_range(0..100) {
            0..24 if crowded => self.removal(&scene),
            0..14 => self.creation(&scene),
            14..20 => self.removal(&scene),
            20..28 => self.naming(&scene),
            28..36 => self.handle(&scene),
            36..62 => self.writing(&scene),
            62..72 => self.reading(&scene),
            72..84 => self.attributes(&scene),
            84..92 => self.range(&scene),
            _ => self.listing(&scene),
        }
    }

    fn upkeep(&mut self) -> Option<Op> {
        let every = self.mix.upkeep_every;
        if self.one_in(self.mix.compare_every) {
            return Some(Op::Compare);
        }
        if self.one_in(self.mix.crash_every) {
            return Some(Op::Crash {
                seed: self.rng.random(),
            });
        }
        if !self.one_in(every.div_ceil(4)) {
            return None;
        }
        Some(match self.rng.random_range(0..4) {
            0 => Op::Sync,
            1 => Op::Checkpoint,
            2 => Op::Collect {
                zones: self.rng.random_range(1..4),
            },
            _ => Op::Remount,
        })
    }

    fn creation(&mut self, scene: &Scene) -> Op {
        let (path, mode, maker) = (self.fresh(scene), self.mode(), self.maker());
        match self.rng.random_range(0..20) {
            0..11 => Op::Mknod {
                path,
                kind: FileKind::Regular,
                mode,
                rdev: 0,
                maker,
            },
            11..16 => Op::Mkdir { path, mode, maker },
            16 => {
                let to = "t".repeat(self.rng.random_range(1..300));
                Op::Symlink { path, to, maker }
            }
            17 => {
                let slot = self.rng.random_range(0..SLOTS);
                Op::Tmpfile {
                    dir: self.dir(scene),
                    slot,
                    mode,
                    maker,
                }
            }
            _ => {
                let kinds = [
                    FileKind::Fifo,
                    FileKind::Socket,
                    FileKind::CharDevice,
                    FileKind::BlockDevice,
                ];
                let kind = *kinds.choose(&mut self.rng).expect("four");
                Op::Mknod {
                    path,
                    kind,
                    mode,
                    rdev: 0x0103,
                    maker,
                }
            }
        }
    }

    fn removal(&mut self, scene: &Scene) -> Op {
        let path = self.existing(scene);
        if self.rng.random_range(0..4) == 0 {
            Op::Rmdir { path }
        } else {
            Op::Unlink { path }
        }
    }

    fn naming(&mut self, scene: &Scene) -> Op {
        let from = self.existing(scene);
        if self.one_in(4) {
            let target = if self.one_in(3) {
                self.file(scene)
            } else {
                Target::Path(from)
            };
            return Op::Link {
                target,
                path: self.fresh(scene),
            };
        }
        let to = if self.one_in(2) {
            self.fresh(scene)
        } else {
            self.existing(scene)
        };
        let flags = *[0, 0, 0, libc::RENAME_NOREPLACE, libc::RENAME_EXCHANGE]
            .choose(&mut self.rng)
            .expect("five");
        Op::Rename { from, to, flags }
    }

    fn handle(&mut self, scene: &Scene) -> Op {
        let slot = self.rng.random_range(0..SLOTS);
        if self.one_in(3) {
            return Op::Close { slot };
        }
        let path = scene.files.choose(&mut self.rng).cloned();
        let path = path.unwrap_or_else(|| self.existing(scene));
        let truncate = self.one_in(10);
        Op::Open {
            path,
            slot,
            truncate,
        }
    }

    fn writing(&mut self, scene: &Scene) -> Op {
        let target = self.file(scene);
        if self.one_in(8) {
            return self.session(target);
        }
        if self.one_in(6) {
            let size = self.offset();
            return Op::Change {
                target,
                change: Change::Size(size),
            };
        }
        let (offset, len) = (self.offset(), self.len());
        let (seed, kill) = (self.rng.random(), self.one_in(2));
        Op::Write {
            target,
            offset,
            len,
            seed,
            kill,
        }
    }

    fn session(&mut self, target: Target) -> Op {
        let mut pieces = Vec::new();
        for _ in 0..self.rng.random_range(0..9) {
            pieces.push(match self.rng.random_range(0..16) {
                0 => Piece::Checkpoint,
                1 => Piece::Collect,
                2 => Piece::Sync,
                3 => Piece::Resize(self.offset().min(SIZE_MAX)),
                _ => Piece::Write {
                    offset: self.offset().min(SIZE_MAX - (1 << 20)),
                    len: self.len(),
                    seed: self.rng.random(),
                },
            });
        }
        let end = match self.one_in(4) {
            true => End::Abort,
            false => End::Commit,
        };
        Op::Session {
            target,
            pieces,
            end,
        }
    }

    fn reading(&mut self, scene: &Scene) -> Op {
        let (target, offset) = (self.file(scene), self.offset());
        if self.one_in(4) {
            return Op::Seek { target, offset };
        }
        if self.one_in(10) {
            return Op::Fsync { target };
        }
        let len = self.len();
        Op::Read {
            target,
            offset,
            len,
        }
    }

    fn attributes(&mut self, scene: &Scene) -> Op {
        let target = if self.one_in(2) {
            self.file(scene)
        } else {
            Target::Path(self.existing(scene))
        };
        match self.rng.random_range(0..8) {
            0 | 1 => {
                let bits = *[0o644, 0o4755, 0o2755, 0o6777, 0o2644, 0]
                    .choose(&mut self.rng)
                    .expect("six");
                Op::Change {
                    target,
                    change: Change::Permissions(bits),
                }
            }
            2 => {
                let (uid, gid) = (self.rng.random_range(0..3), self.rng.random_range(0..3));
                Op::Change {
                    target,
                    change: Change::Owner { uid, gid },
                }
            }
            3..6 => {
                let len = *[0, 1, 20, 300, 2000, 5000, 60_000]
                    .choose(&mut self.rng)
                    .expect("seven");
                let (name, seed) = (self.xattr(), self.rng.random());
                let create = self.one_in(4);
                let replace = !create && self.one_in(4);
                Op::SetXattr {
                    target,
                    name,
                    len,
                    seed,
                    create,
                    replace,
                }
            }
            6 => Op::GetXattr {
                target,
                name: self.xattr(),
            },
            _ => Op::RemoveXattr {
                target,
                name: self.xattr(),
            },
        }
    }

    fn range(&mut self, scene: &Scene) -> Op {
        let (target, offset, len) = (self.file(scene), self.offset(), self.len() as u64);
        if self.one_in(3) {
            let (to, to_offset) = (self.file(scene), self.offset());
            return Op::CopyRange {
                from: target,
                from_offset: offset,
                to,
                to_offset,
                len,
            };
        }
        let modes = [
            0,
            libc::FALLOC_FL_KEEP_SIZE,
            libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
            libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
            libc::FALLOC_FL_ZERO_RANGE,
            libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE,
        ];
        let mode = *modes.choose(&mut self.rng).expect("six");
        Op::Fallocate {
            target,
            offset,
            len,
            mode,
        }
    }

    fn listing(&mut self, scene: &Scene) -> Op {
        let path = if self.one_in(20) {
            self.existing(scene)
        } else {
            self.dir(scene)
        };
        let step = *[1, 2, 3, 100].choose(&mut self.rng).expect("four");
        let mut meanwhile = Vec::new();
        for _ in 0..self.rng.random_range(0..3) {
            let name = self.name();
            let below = if path.is_empty() {
                name
            } else {
                format!("{path}/{name}")
            };
            meanwhile.push(if self.one_in(2) {
                Op::Unlink { path: below }
            } else {
                let (mode, maker) = (self.mode(), self.maker());
                Op::Mknod {
                    path: below,
                    kind: FileKind::Regular,
                    mode,
                    rdev: 0,
                    maker,
                }
            });
        }
        Op::List {
            path,
            step,
            meanwhile,
        }
    }
}
