//! Opening a file with its logs: reads both, and copies home what they have up to the last commit.
//!
//! The log of the lower generation comes first; it is started afresh first too, since its images alone
//! would take the file back. Interrupted anywhere and done again, the outcome is the same. What follows
//! the last valid commit mark is what a crash cut off.
//!
//! That nothing is missing is checked by the numbers of commits: the first log must follow on the file's
//! meta page (unless that was torn on its way home, in which case the log has it), the second one on the
//! first.

use super::journal::{Journal, JournalOptions, Tail};
use super::log::Log;
use super::record::{Batch, Header};
use crate::error::{Error, Result};
use crate::meta::{META, Meta};
use crate::page::{PAGE_BYTES, PageBuf, PageId, PageRead};
use crate::storage::Storage;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use zerocopy::IntoBytes;

/// What a log holds up to its last commit mark.
struct Scan {
    header: Header,
    index: HashMap<PageId, u64>,
    /// Numbers of the commit before the first and of the last one; none if there is no commit.
    commits: Option<(u64, u64)>,
}

/// A random number that is not zero.
pub(crate) fn random_id() -> u64 {
    RandomState::new().build_hasher().finish() | 1
}

pub(super) fn open(
    file: Arc<dyn Storage>,
    storages: [Arc<dyn Storage>; 2],
    options: JournalOptions,
) -> Result<Journal> {
    let meta = read_meta(&*file)?;
    let mut scans = Vec::new();
    for (which, storage) in storages.iter().enumerate() {
        scans.extend(scan(&**storage)?.map(|scan| (which, scan)));
    }
    scans.sort_by_key(|(_, scan)| scan.header.generation);
    check_together(&*file, meta.as_ref(), &scans)?;

    let known = meta
        .as_ref()
        .map(|meta| meta.file_id)
        .or(scans.first().map(|(_, scan)| scan.header.file_id));
    let commits = scans.iter().filter_map(|(_, scan)| scan.commits);
    let last = commits
        .map(|(_, last)| last)
        .max()
        .max(meta.as_ref().map(|meta| meta.commit));
    // With no header to go on from, what lies in the logs may be of any generation but a random one.
    let newest = scans
        .last()
        .map_or_else(|| random_id() >> 16, |(_, scan)| scan.header.generation);
    // A log without a header counts as empty. It comes first, so that there always is a header.
    let first = match scans.as_slice() {
        [] => 0,
        [(readable, _)] => 1 - readable,
        [(older, _), ..] => *older,
    };
    let mut indexes = [HashMap::new(), HashMap::new()];
    for (which, scan) in scans {
        indexes[which] = scan.index;
    }
    let [a, b] = indexes;
    let [log_a, log_b] = storages;
    let log = |storage, index| Log::new(storage, index).map_err(Error::io("measure the journal"));
    let tail = Tail {
        active: first,
        generation: newest + 1,
        block: 1,
        sequence: 0,
        chain: 0,
        after: last.unwrap_or(0),
        uncommitted: 0,
        spare: Some(newest + 2),
        file_unsynced: false,
    };
    let mut journal = Journal {
        file,
        logs: [log(log_a, a)?, log(log_b, b)?],
        tail: Mutex::new(tail),
        active: AtomicUsize::new(first),
        sealed_durable: AtomicBool::new(false),
        committed_pages: AtomicU64::new(0),
        tidying: Mutex::new(()),
        file_id: known.unwrap_or_else(random_id),
        is_new: last.is_none(),
        log_blocks: (options.log_bytes / PAGE_BYTES as u64).max(2),
    };
    for (which, generation) in [(first, newest + 1), (1 - first, newest + 2)] {
        journal.copy_home(&journal.logs[which])?;
        journal.restart(&journal.logs[which], generation)?;
    }
    if last.is_some() {
        let meta = read_meta(&*journal.file)?.ok_or(Error::Format("page 0 is damaged"))?;
        *journal.committed_pages.get_mut() = meta.page_count;
    }
    Ok(journal)
}

/// The meta page in its place, if it is intact.
pub(super) fn read_meta(file: &(impl Storage + ?Sized)) -> Result<Option<Meta>> {
    let mut page = PageBuf::zeroed();
    match file.read_at(META.offset(), page.bytes_mut()) {
        Ok(()) if page.verify(META).is_ok() => Meta::decode(&page).map(Some),
        Ok(()) => Ok(None),
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(Error::io("read page 0")(error)),
    }
}

/// Checks that file and logs are of one piece and complete.
fn check_together(file: &dyn Storage, meta: Option<&Meta>, scans: &[(usize, Scan)]) -> Result<()> {
    let ids = meta
        .map(|meta| meta.file_id)
        .into_iter()
        .chain(scans.iter().map(|(_, scan)| scan.header.file_id));
    let ids: Vec<_> = ids.collect();
    if ids.windows(2).any(|pair| pair[0] != pair[1]) {
        return Err(Error::Format("the journal belongs to another file"));
    }
    let mut commits = scans.iter().filter_map(|(_, scan)| scan.commits);
    let first = commits.next();
    let is_empty = file.is_empty().map_err(Error::io("measure the file"))?;
    let has_meta_page = scans.iter().any(|(_, scan)| scan.index.contains_key(&META));
    match (meta, first) {
        (None, _) if !is_empty && !has_meta_page => return Err(Error::Format("page 0 is damaged")),
        (None, Some((after, _))) if is_empty && after > 0 => {
            return Err(Error::Format(
                "the file is empty but its journal goes on from earlier commits",
            ));
        }
        (Some(meta), Some((after, _))) if meta.commit < after => {
            return Err(Error::Format(
                "commits between the file and its journal are missing",
            ));
        }
        _ => {}
    }
    match (first, commits.next()) {
        (Some((_, last)), Some((after, _))) if last != after => Err(Error::Format(
            "commits between the two logs of the journal are missing",
        )),
        _ => Ok(()),
    }
}

/// Reads a log; none if it has no valid header.
fn scan(storage: &dyn Storage) -> Result<Option<Scan>> {
    let Some(mut block) = read_blocks(storage, 0, 1)? else {
        return Ok(None);
    };
    let Some(header) = Header::decode(&block.remove(0)) else {
        return Ok(None);
    };
    let mut scan = Scan {
        header,
        index: HashMap::new(),
        commits: None,
    };
    let mut pending = Vec::new();
    let (mut at, mut sequence, mut chain, mut after) = (1, 0, 0, None);
    while let Some(descriptor) = read_blocks(storage, at, 1)? {
        let Some((batch, entries)) = Batch::decode(&descriptor[0]) else {
            break;
        };
        let follows = batch.generation == header.generation
            && batch.sequence == sequence
            && batch.chain == chain
            && after.is_none_or(|after| after == batch.after);
        let images = if follows {
            read_blocks(storage, at + 1, entries.len())?
        } else {
            None
        };
        let Some(images) = images else { break };
        let intact = |((page, crc), image): (&(PageId, u32), &PageBuf)| {
            image.u32_at(0) == *crc && image.verify(*page).is_ok()
        };
        if !entries.iter().zip(&images).all(intact) {
            break;
        }
        pending.extend(
            (at + 1..)
                .zip(&entries)
                .map(|(block, &(page, _))| (page, block)),
        );
        if batch.commit.is_some() {
            scan.index.extend(pending.drain(..));
            let before = scan.commits.map_or(batch.after, |(before, _)| before);
            scan.commits = Some((before, batch.after + 1));
        }
        at += 1 + entries.len() as u64;
        sequence += 1;
        chain = descriptor[0].u32_at(0);
        after = Some(batch.after + u64::from(batch.commit.is_some()));
    }
    Ok(Some(scan))
}

/// Reads blocks of a log; none where it ends before.
fn read_blocks(storage: &dyn Storage, block: u64, count: usize) -> Result<Option<Vec<PageBuf>>> {
    let mut blocks = PageBuf::zeroed_vec(count);
    match storage.read_at(block * PAGE_BYTES as u64, blocks.as_mut_bytes()) {
        Ok(()) => Ok(Some(blocks)),
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(Error::io("read the journal")(error)),
    }
}
