//! The pool by itself: its bound, its latches, and what it does when the medium refuses.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use vmcache::{
    BufferPool, Error, InPlace, MemoryStorage, PageBuf, PageId, PageRead, PoolOptions, Storage,
};

/// A medium that refuses writes when told to.
#[derive(Default)]
struct Refusing {
    memory: MemoryStorage,
    refuse: AtomicBool,
}

impl Storage for Refusing {
    fn len(&self) -> io::Result<u64> {
        self.memory.len()
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.memory.read_at(offset, into)
    }

    fn write_at(&self, offset: u64, from: &[u8]) -> io::Result<()> {
        match self.refuse.load(Ordering::Relaxed) {
            true => Err(io::ErrorKind::StorageFull.into()),
            false => self.memory.write_at(offset, from),
        }
    }

    fn sync(&self) -> io::Result<()> {
        self.memory.sync()
    }
}

const FRAMES: usize = 32;

fn pool() -> (Arc<InPlace<Refusing>>, BufferPool) {
    pool_of(FRAMES)
}

fn pool_of(frames_max: usize) -> (Arc<InPlace<Refusing>>, BufferPool) {
    let store = Arc::new(InPlace::new(Refusing::default()));
    let options = PoolOptions {
        frames_max,
        pages_max: 1 << 16,
        check: |_, _| Ok(()),
    };
    (Arc::clone(&store), BufferPool::new(store, options).unwrap())
}

/// A page whose words all hold the same number, but for the header.
fn filled(number: u64) -> PageBuf {
    let mut page = PageBuf::zeroed();
    page.bytes_mut()[16..]
        .chunks_exact_mut(8)
        .for_each(|word| word.copy_from_slice(&number.to_le_bytes()));
    page
}

fn number_of(page: &impl PageRead) -> Option<u64> {
    let number = page.u64_at(16);
    (24..4096)
        .step_by(8)
        .all(|at| page.u64_at(at) == number)
        .then_some(number)
}

#[test]
fn frames_never_exceed_their_bound_and_optimistic_reads_are_never_torn() {
    let (_, pool) = pool();
    for page in 0..200 {
        pool.create(PageId(page)).unwrap().write(&filled(0));
    }
    let changes = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for worker in 0..4_u64 {
            let (pool, changes) = (&pool, &changes);
            scope.spawn(move || {
                for step in 0..4000_u64 {
                    let page = PageId((step * 31 + worker * 57) % 200);
                    match step % 4 {
                        0 => {
                            let mut guard = pool.exclusive(page).unwrap();
                            guard.update(|image| *image = filled(number_of(image).unwrap() + 1));
                            changes.fetch_add(1, Ordering::Relaxed);
                        }
                        1 => assert!(number_of(&pool.shared(page).unwrap().view()).is_some()),
                        2 => pool.prefetch(&[page, PageId(page.0 + 1)]),
                        _ => {
                            let guard = pool.optimistic(page).unwrap();
                            if let Ok(number) = guard.read(|view| number_of(view)) {
                                assert!(number.is_some(), "a torn read validated");
                            }
                        }
                    }
                    assert!(pool.stats().frames <= FRAMES);
                }
            });
        }
    });
    let total: u64 = (0..200)
        .map(|page| number_of(&pool.shared(PageId(page)).unwrap().view()).unwrap())
        .sum();
    assert_eq!(total, changes.into_inner());
}

#[test]
fn pages_that_cannot_be_written_stay_in_memory_and_the_refusal_is_reported() {
    let (store, pool) = pool();
    for page in 0..FRAMES as u64 {
        pool.create(PageId(page)).unwrap().write(&filled(page));
    }
    store.storage().refuse.store(true, Ordering::Relaxed);
    assert!(matches!(pool.create(PageId(1000)), Err(Error::Io { .. })));
    assert!(matches!(pool.flush(), Err(Error::Io { .. })));
    for page in 0..FRAMES as u64 {
        assert_eq!(
            number_of(&pool.shared(PageId(page)).unwrap().view()),
            Some(page)
        );
    }
    store.storage().refuse.store(false, Ordering::Relaxed);
    pool.flush().unwrap();
    let mut image = PageBuf::zeroed();
    for page in 0..FRAMES as u64 {
        store
            .storage()
            .read_at(page * 4096, image.bytes_mut())
            .unwrap();
        image.verify(PageId(page)).unwrap();
        assert_eq!(number_of(&image), Some(page));
    }
}

/// A pool of 256 frames over a thousand pages on the medium.
fn pool_of_256() -> BufferPool {
    let (_, pool) = pool_of(256);
    for page in 0..1000 {
        pool.create(PageId(page)).unwrap().write(&filled(page));
    }
    pool.flush().unwrap();
    pool
}

/// Reads a page; whether it was in memory.
fn hits(pool: &BufferPool, page: u64) -> bool {
    let before = pool.stats().reads;
    let guard = pool.optimistic(PageId(page)).unwrap();
    assert_eq!(guard.read(|view| number_of(view)), Ok(Some(page)));
    pool.stats().reads == before
}

#[test]
fn of_a_skewed_load_the_pool_misses_less_than_if_it_evicted_what_was_used_longest_ago() {
    let pool = pool_of_256();
    let mut rng = StdRng::seed_from_u64(1);
    let (mut misses, mut misses_lru) = (0, 0);
    let (mut last_used, mut by_age) = (vec![0; 1000], BTreeMap::new());
    for step in 1..60_000_u64 {
        let page = (1000.0 * rng.random::<f64>().powi(3)) as u64;
        misses += u64::from(!hits(&pool, page));
        if by_age.remove(&last_used[page as usize]).is_none() {
            misses_lru += 1;
            if by_age.len() == 256 {
                let (_, oldest): (u64, u64) = by_age.pop_first().unwrap();
                last_used[oldest as usize] = 0;
            }
        }
        last_used[page as usize] = step;
        by_age.insert(step, page);
    }
    assert!(misses * 20 < misses_lru * 19, "{misses} of {misses_lru}");
}

#[test]
fn pages_in_use_stay_while_a_scan_passes_and_others_take_their_place_when_they_are_in_use_no_more()
{
    let pool = pool_of_256();
    let missed = |pages: std::ops::Range<u64>| pages.filter(|&page| !hits(&pool, page)).count();
    (0..8).for_each(|_| _ = missed(0..150));
    let mut misses = 0;
    for scanned in (300..900).step_by(40) {
        missed(scanned..scanned + 40);
        misses += missed(0..150);
    }
    assert!(misses < 50, "{misses} of 2250");
    let rounds = (0..30).take_while(|_| missed(500..700) > 0).count();
    assert!(rounds < 20, "in memory after {rounds} rounds");
}

#[test]
fn damaged_pages_and_pages_out_of_range_are_errors() {
    let (store, pool) = pool();
    store
        .storage()
        .memory
        .write_at(0, filled(1).bytes())
        .unwrap();
    assert!(matches!(
        pool.shared(PageId(0)),
        Err(Error::Damaged {
            page: PageId(0),
            ..
        })
    ));
    assert!(matches!(pool.shared(PageId(9)), Err(Error::Io { .. })));
    assert!(matches!(
        pool.shared(PageId(1 << 16)),
        Err(Error::OutOfRange(_))
    ));
    assert_eq!(pool.stats().frames, 0);
}

#[test]
fn an_optimistic_guard_notices_change_and_upgrades_only_without_one() {
    let (_, pool) = pool();
    pool.create(PageId(3)).unwrap().write(&filled(1));
    let before = pool.optimistic(PageId(3)).unwrap();
    assert_eq!(before.read(|view| number_of(view)), Ok(Some(1)));
    let shared = pool.shared(PageId(3)).unwrap();
    assert!(before.check().is_ok() && before.upgrade().is_err());
    drop(shared);
    before.upgrade().unwrap().write(&filled(2));
    assert!(before.check().is_err() && before.upgrade().is_err());
}
