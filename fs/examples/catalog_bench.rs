//! Micro-benchmark of the catalog in memory: `cargo run --release --example catalog_bench [RECORDS]`.
//!
//! One thread, extent-like records (36-byte values), nanoseconds per operation. "Held clone": a
//! snapshot taken every 10,000 operations is kept, so that each node is copied once per interval.

use std::collections::HashMap;
use std::hint::black_box;
use std::sync::{Arc, RwLock};
use std::time::Instant;

use rand::seq::SliceRandom;
use rand::{SeedableRng, rngs::StdRng};
use warren_fs::catalog::{Key, Kind, NodeCache, NodeSource, Page, Tree};
use warren_fs::types::{Ino, Lba};
use warren_fs::{Error, Result};

const VALUE: [u8; 36] = [7; 36];
const CLONE_EVERY: usize = 10_000;

#[derive(Default)]
struct Blocks(RwLock<HashMap<Lba, Box<Page>>>);

impl NodeSource for Blocks {
    fn read_block(&self, lba: Lba, page: &mut Page) -> Result<()> {
        let blocks = self.0.read().map_err(|_| Error::ReadOnly)?;
        page.copy_from_slice(&blocks.get(&lba).ok_or(Error::NotFound)?[..]);
        Ok(())
    }
}

fn key(number: u64) -> Key {
    Key::new(Ino(number >> 6), Kind::Extent, (number & 63) << 8)
}

fn measure<T>(
    name: &str,
    items: &[T],
    mut operation: impl FnMut(usize, &T) -> Result<()>,
) -> Result<()> {
    let start = Instant::now();
    for (at, item) in items.iter().enumerate() {
        operation(at, item)?;
    }
    let seconds = start.elapsed().as_secs_f64();
    let count = items.len() as f64;
    println!(
        "{name:<36} {:>8.0} ns/op {:>8.2} M op/s",
        seconds * 1e9 / count,
        count / seconds / 1e6
    );
    Ok(())
}

fn main() -> Result<()> {
    let count = std::env::args()
        .nth(1)
        .and_then(|text| text.parse().ok())
        .unwrap_or(1_000_000);
    let ordered: Vec<Key> = (0..count).map(key).collect();
    let mut shuffled = ordered.clone();
    shuffled.shuffle(&mut StdRng::seed_from_u64(1));

    let blocks = Arc::new(Blocks::default());
    let cache = NodeCache::new(Arc::clone(&blocks), 1 << 30);

    for (name, keys) in [("sequential", &ordered), ("random", &shuffled)] {
        let mut tree = Tree::empty();
        measure(&format!("put, {name}"), keys, |_, key| {
            tree.put(&cache, *key, &VALUE).map(drop)
        })?;
        println!("  {} nodes, height {}", tree.dirty_nodes(), tree.height());
    }
    for (name, keys) in [("sequential", &ordered), ("random", &shuffled)] {
        let mut tree = Tree::empty();
        let mut held = tree.clone();
        measure(&format!("put, {name}, held clone"), keys, |at, key| {
            if at % CLONE_EVERY == 0 {
                held = tree.clone();
            }
            tree.put(&cache, *key, &VALUE).map(drop)
        })?;
        black_box(&held);
    }

    let mut tree = Tree::empty();
    for key in &shuffled {
        tree.put(&cache, *key, &VALUE)?;
    }
    measure("overwrite, random", &shuffled, |_, key| {
        tree.put(&cache, *key, &VALUE).map(drop)
    })?;
    let get = |tree: &Tree, key: &Key| tree.get(&cache, key).map(|value| drop(black_box(value)));
    measure("get, sequential, resident", &ordered, |_, key| {
        get(&tree, key)
    })?;
    measure("get, random, resident", &shuffled, |_, key| get(&tree, key))?;
    measure("floor, random, resident", &shuffled, |_, key| {
        tree.floor(&cache, key).map(drop)
    })?;

    let start = Instant::now();
    let written = tree.clone().write_out(&mut |_, page| {
        let mut blocks = blocks.0.write().map_err(|_| Error::ReadOnly)?;
        let lba = Lba(blocks.len() as u64);
        blocks.insert(lba, Box::new(*page));
        Ok(lba)
    })?;
    let wrote = start.elapsed();
    written.publish(&cache);
    let published = start.elapsed() - wrote;
    let adopting = Instant::now();
    let adopted = tree.adopt(&written).adopted.len();
    println!(
        "write-out of {adopted} nodes {wrote:.1?}, publish {published:.1?}, adopt {:.1?}",
        adopting.elapsed()
    );
    drop(written);

    measure("get, random, cached", &shuffled, |_, key| get(&tree, key))?;
    let records: Vec<_> = tree.range(&cache, ..).collect::<Result<_>>()?;
    drop(records);
    let mut cursor = tree.range(&cache, ..);
    measure("scan, cached", &ordered, |_, _| {
        cursor.next().transpose().map(drop)
    })?;
    drop(cursor);
    measure("overwrite, random, from clean", &shuffled, |_, key| {
        tree.put(&cache, *key, &VALUE).map(drop)
    })?;
    measure("delete, random", &shuffled, |_, key| {
        tree.delete(&cache, key).map(drop)
    })?;
    Ok(())
}
