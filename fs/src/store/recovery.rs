//! Making, opening and recovering a store.
//!
//! Recovery starts from the newest durable checkpoint, finds the chunks written since in the zones
//! that could have taken any, and applies the longest run of sequence numbers without a gap whose
//! checksums, payload included, hold. What lies behind the first gap was never acknowledged: its
//! sequence numbers are skipped for good, by a checkpoint that is durable before the first new
//! chunk is written.
//!
//! A torn tail and damage look the same where the log ends. They do not where something durable says
//! how far the log once reached: every chunk names the sequence number before which all was durable
//! when it was sealed, and so does the trailer of a checkpoint record. A log that ends before that
//! has lost acknowledged data: it is not written to, and a read-only store says what is missing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};
use zns_backend::{ZoneInfo, ZoneState, ZonedDevice};

use super::anchor::{Anchors, FoundCheckpoint};
use super::checkpoint::class_of;
use super::commit::Commits;
use super::extent::{Backing, Extent};
use super::scan::{FoundChunk, read_chunk};
use super::staged::Staged;
use super::txn::account;
use super::view::Pins;
use super::writer::Writer;
use super::zones::{ANCHORS, CHUNK_MIN, ZoneTable};
use super::{
    Background, Counters, DeviceNodes, FormatOptions, Head, Limits, Mark, Store, StoreOptions,
};
use crate::catalog::{Key, Kind, NodeCache, NodeRef, Tree};
use crate::error::{Error, Result};
use crate::format::checkpoint::ZoneUse;
use crate::format::chunk::{Class, Op, SEQUENCE_LIMIT, Transaction};
use crate::format::corrupt;
use crate::format::superblock::Superblock;
use crate::types::{Lba, ZoneId};

/// First sequence number of a new filesystem.
const FIRST_SEQUENCE: u64 = 1;

/// What a scan of the zones found behind the checkpoint.
#[derive(Default)]
struct Log {
    chunks: BTreeMap<u64, FoundChunk>,
    /// Other copies of these chunks: writes that failed and stored something nevertheless.
    others: Vec<FoundChunk>,
    /// Where chunks were meant to be, by their first write or a later one that failed: that address,
    /// blocks, address of the copy that counts.
    moved: Vec<(Lba, u64, Lba)>,
    /// Highest sequence number seen.
    newest: u64,
    /// Every chunk before this one was durable once.
    reached: u64,
    /// Zones were found in a state that a checkpoint must settle.
    unsettled: bool,
}

impl Store {
    /// Makes an empty store on `device`.
    ///
    /// # Errors
    /// `BadImage` when there is a filesystem already or the geometry is too small; device errors.
    pub fn format(device: &Arc<dyn ZonedDevice>, options: &FormatOptions) -> Result<()> {
        let store_options = StoreOptions {
            background: false,
            ..StoreOptions::default()
        };
        let limits = Limits::new(&**device, store_options.cache_bytes)?;
        let geometry = *device.geometry();
        let created = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |since| since.as_secs() as i64);
        let superblock = Superblock::new(&geometry, rand::random(), &options.label, created)?;
        if !options.force && Anchors::holds_filesystem(&**device)? {
            return Err(Error::BadImage(
                "it holds a WarrenFS filesystem already".into(),
            ));
        }
        let mut zones = ZoneTable::fresh(&geometry);
        for info in device.report(ZoneId(0), geometry.zones)? {
            match info.state {
                ZoneState::Empty => {}
                ZoneState::ReadOnly | ZoneState::Offline if info.zone.0 >= ANCHORS => {
                    zones.retire(info.zone);
                }
                _ => device.reset(info.zone)?,
            }
        }
        zones.rebuild_free();
        let head = Head {
            tree: Tree::empty(),
            zones,
            open: None,
            last_zone: None,
            version: 0,
            next_sequence: FIRST_SEQUENCE,
            reserved: 0,
            durable: Mark::default(),
            log_blocks: 0,
            relocations: 0,
            ghosts: Vec::new(),
            staged: Staged::default(),
            collecting: false,
        };
        let anchors = Anchors::format(Arc::clone(device), superblock)?;
        let store = Store::assemble(
            Arc::clone(device),
            superblock,
            &store_options,
            limits,
            head,
            anchors,
            1,
        )?;
        store.checkpoint_final()
    }

    /// Opens the store on `device` and recovers it to its newest consistent state.
    ///
    /// # Errors
    /// `BadImage`, corruption, device errors.
    pub fn open(device: Arc<dyn ZonedDevice>, options: &StoreOptions) -> Result<Arc<Store>> {
        let limits = Limits::new(&*device, options.cache_bytes)?;
        if !options.read_only {
            // A process that died may have left writes that can be read and are not durable yet.
            device.flush()?;
        }
        let FoundCheckpoint {
            superblock,
            checkpoint,
            anchors,
            reached,
        } = Anchors::find(&device)?;
        let geometry = *device.geometry();
        let mut zones = ZoneTable::new(&geometry, &checkpoint.zones);
        let mut log = find_log(&*device, &superblock, checkpoint.next_sequence, &mut zones)?;
        log.reached = log.reached.max(reached);
        let root = NodeRef {
            lba: Lba(checkpoint.root_lba),
            crc: checkpoint.root_crc,
        };
        let mark = Mark {
            number: checkpoint.number,
            version: 0,
        };
        let head = Head {
            tree: Tree::from_root(root, checkpoint.root_height)?,
            zones,
            open: None,
            last_zone: None,
            version: 0,
            next_sequence: checkpoint.next_sequence,
            reserved: checkpoint.reserved,
            durable: mark,
            log_blocks: 0,
            relocations: 0,
            ghosts: Vec::new(),
            staged: Staged::default(),
            collecting: false,
        };
        let clean = checkpoint.clean && log.newest == 0;
        let mut store = Store::assemble(
            device,
            superblock,
            options,
            limits,
            head,
            anchors,
            checkpoint.next_ino,
        )?;
        store.opened_clean = clean;
        store.damage = store.recover(log)?;
        let store = Arc::new(store);
        if options.background && !options.read_only {
            Store::start_background(&store)?;
        }
        Ok(store)
    }

    fn assemble(
        device: Arc<dyn ZonedDevice>,
        superblock: Superblock,
        options: &StoreOptions,
        limits: Limits,
        head: Head,
        anchors: Anchors,
        next_ino: u64,
    ) -> Result<Store> {
        let writer = Writer::new(
            Arc::clone(&device),
            options.background && !options.read_only,
        )?;
        let store = Store {
            cache: NodeCache::new(DeviceNodes(Arc::clone(&device)), options.cache_bytes),
            commits: Commits::new(head.next_sequence),
            head: RwLock::new(head),
            open_range: (AtomicU64::new(u64::MAX), AtomicU64::new(0)),
            device,
            superblock,
            options: options.clone(),
            limits,
            writer,
            pins: Pins::default(),
            anchors: Mutex::new(anchors),
            maintenance: Mutex::new(()),
            background: Background::default(),
            next_ino: AtomicU64::new(next_ino),
            latched: Mutex::new(None),
            read_only: AtomicBool::new(options.read_only),
            opened_clean: false,
            damage: None,
            counters: Counters::default(),
        };
        store.publish_pressure(&store.head.read());
        Ok(store)
    }

    /// Applies the log and, if the device may be written, settles what was found. Answers what is
    /// missing.
    fn recover(&self, log: Log) -> Result<Option<String>> {
        let mut damage = None;
        let (settle, log_end) = {
            let mut head = self.head.write();
            let first = head.next_sequence;
            let mut parts = Vec::new();
            for chunk in log.chunks.values() {
                if chunk.info.sequence.0 != head.next_sequence {
                    break;
                }
                if !chunk.payload_is_sound(&*self.device)? {
                    tracing::info!(
                        "chunk {}: torn payload, the log ends here",
                        chunk.info.sequence
                    );
                    break;
                }
                for transaction in whole_transactions(chunk, &mut parts) {
                    self.replay(&mut head, transaction, &log.moved)?;
                }
                head.next_sequence += 1;
            }
            let end = head.next_sequence;
            if end < log.reached {
                let missing = format!(
                    "it ends before sequence {end}, everything before {} was durable once",
                    log.reached
                );
                if !self.options.read_only {
                    return Err(corrupt("log", missing));
                }
                tracing::error!("the log is damaged: {missing}");
                damage = Some(format!("the log is damaged: {missing}"));
            }
            let replayed = end - first;
            Counters::add(&self.counters.replayed, replayed);
            if replayed > 0 {
                tracing::info!("replayed {replayed} chunks from sequence {first}");
            }
            head.next_sequence = head.next_sequence.max(log.newest + 1);
            self.publish_pressure(&head);
            (log.unsettled || head.next_sequence > first, end)
        };
        if settle && !self.options.read_only {
            self.settle_zones()?;
            self.checkpoint_recovered(log_end)?;
            let _one_at_a_time = self.maintenance.lock();
            self.reclaim()?;
        }
        Ok(damage)
    }

    fn replay(
        &self,
        head: &mut Head,
        transaction: &Transaction,
        moved: &[(Lba, u64, Lba)],
    ) -> Result<()> {
        for op in &transaction.ops {
            match op {
                Op::Put { key, value } => {
                    let key = key.key()?;
                    let translated = translate(&key, value, moved)?;
                    let value = translated.as_deref().unwrap_or(value);
                    let old = head.tree.put(&self.cache, key, value)?;
                    account(head, &key, old.as_deref(), Some(value))?;
                }
                Op::Delete { key } => {
                    let key = key.key()?;
                    let old = head.tree.delete(&self.cache, &key)?;
                    account(head, &key, old.as_deref(), None)?;
                }
                Op::DeleteRange { from, to } => {
                    let mut removed: Vec<(Key, Vec<u8>)> = Vec::new();
                    let range = from.key()?..=to.key()?;
                    head.tree
                        .delete_range(&self.cache, range, &mut |key, value| {
                            removed.push((key, value.to_vec()));
                        })?;
                    for (key, value) in removed {
                        account(head, &key, Some(&value), None)?;
                    }
                }
            }
        }
        head.version += 1;
        head.settle_retired()?;
        if transaction.next_ino >= SEQUENCE_LIMIT {
            let detail = format!("next inode {}", transaction.next_ino);
            return Err(corrupt("transaction", detail));
        }
        self.next_ino
            .fetch_max(transaction.next_ino, Ordering::Relaxed);
        Ok(())
    }

    /// Finishes zones that are open and cannot or need not be gone on with: those with a torn tail
    /// and those beyond the number that is kept open.
    fn settle_zones(&self) -> Result<()> {
        let mut head = self.head.write();
        let version = head.version;
        for (class, most) in [
            (Class::Hot, self.limits.stripes),
            (Class::Cold, 1),
            (Class::Node, 1),
        ] {
            for zone in head.zones.open_zones(class).into_iter().skip(most) {
                head.zones.seal(zone, version);
            }
        }
        let sealed: Vec<ZoneId> = head
            .zones
            .iter()
            .filter(|(_, z)| matches!(z.usage, ZoneUse::Sealed(_)))
            .map(|(id, _)| id)
            .collect();
        drop(head);
        for zone in sealed {
            let state = self.device.report(zone, 1)?.first().map(|info| info.state);
            if matches!(
                state,
                Some(ZoneState::ImplicitlyOpen | ZoneState::ExplicitlyOpen | ZoneState::Closed)
            ) {
                self.writer.finish_zone(zone);
            }
        }
        Ok(())
    }
}

/// The transactions that are complete with this chunk. `parts` has those of one that the chunks
/// before have begun, and gets those of one that goes on. What the next chunk does not continue was
/// undone before it was committed.
fn whole_transactions<'a>(
    chunk: &'a FoundChunk,
    parts: &mut Vec<&'a Transaction>,
) -> Vec<&'a Transaction> {
    let span = chunk.info.span;
    if !span.continues {
        parts.clear();
    }
    let mut whole = std::mem::take(parts);
    whole.extend(&chunk.body.transactions);
    if span.goes_on {
        let begun = match span.continues && chunk.body.transactions.len() == 1 {
            true => 0,
            false => whole.len().saturating_sub(1),
        };
        *parts = whole.split_off(begun);
    }
    whole
}

/// The value with a moved address, if it is an extent that has one.
fn translate(key: &Key, value: &[u8], moved: &[(Lba, u64, Lba)]) -> Result<Option<Vec<u8>>> {
    if moved.is_empty() || key.kind != Kind::Extent {
        return Ok(None);
    }
    let mut extent = Extent::decode(key, value)?;
    if let Backing::Mapped { lba, .. } = &mut extent.backing {
        for (origin, blocks, new) in moved {
            if let Some(offset) = lba.0.checked_sub(origin.0)
                && offset < *blocks
            {
                *lba = new.plus(offset);
                return Ok(Some(extent.encode()));
            }
        }
    }
    Ok(None)
}

/// Reads the chunks behind the checkpoint and brings the zone table up to what the device holds.
fn find_log(
    device: &dyn ZonedDevice,
    superblock: &Superblock,
    next_sequence: u64,
    zones: &mut ZoneTable,
) -> Result<Log> {
    let mut log = Log::default();
    let mut unwritable = Vec::new();
    for info in device.report(ZoneId(0), device.geometry().zones)? {
        let zone = *zones.get(info.zone);
        if zone.usage == ZoneUse::Anchor {
            continue;
        }
        if info.state == ZoneState::Offline {
            if zone.live > 0 {
                tracing::error!(
                    "zone {} is offline with {} live blocks",
                    info.zone,
                    zone.live
                );
            }
            zones.retire(info.zone);
            continue;
        }
        if info.state == ZoneState::ReadOnly {
            // It may have taken chunks before it became so.
            unwritable.push(info.zone);
        }
        // An emptied zone may have been reset, and used again, since the checkpoint.
        let from = match zone.usage {
            ZoneUse::Free => 0,
            ZoneUse::Open(_) => zone.pointer,
            ZoneUse::Sealed(_) if zone.live == 0 => 0,
            // Its pointer counts chunks that were never written there.
            ZoneUse::Retired => continue,
            ZoneUse::Sealed(_) | ZoneUse::Anchor => {
                if info.write_pointer < zone.pointer {
                    return Err(lost_data(&info, zone.pointer));
                }
                continue;
            }
        };
        if zone.live > 0 && info.write_pointer < from {
            return Err(lost_data(&info, from));
        }
        scan_zone(
            device,
            superblock,
            next_sequence,
            &info,
            from,
            zones,
            &mut log,
        )?;
    }
    for zone in unwritable {
        zones.retire(zone);
    }
    choose_copies(device, &mut log)?;
    for (origin, _, _) in &log.moved {
        let zone = zones.of(*origin);
        if !(ANCHORS..device.geometry().zones).contains(&zone.0) {
            return Err(corrupt("chunk", format!("its origin is LBA {origin}")));
        }
        zones.retire(zone);
    }
    zones.rebuild_free();
    Ok(log)
}

fn lost_data(info: &ZoneInfo, pointer: u64) -> Error {
    Error::BadImage(format!(
        "zone {}: the write pointer is at block {}, the checkpoint knows {pointer} blocks",
        info.zone, info.write_pointer
    ))
}

fn scan_zone(
    device: &dyn ZonedDevice,
    superblock: &Superblock,
    next_sequence: u64,
    info: &ZoneInfo,
    from: u64,
    zones: &mut ZoneTable,
    log: &mut Log,
) -> Result<()> {
    let before = *zones.get(info.zone);
    let start = device.geometry().zone_start(info.zone);
    let end = info.write_pointer;
    let mut at = from;
    let mut class = class_of(before.usage).filter(|_| from > 0);
    let mut age = before.age;
    while at < end {
        let found = read_chunk(device, &superblock.fsid, start.plus(at), end - at)?;
        let Some(chunk) = found else {
            look_behind(device, superblock, start.plus(at), end - at, log)?;
            break;
        };
        if chunk.info.sequence.0 < next_sequence {
            break;
        }
        at += chunk.info.blocks;
        age = chunk.info.sequence.0;
        class = class.or(Some(chunk.info.class));
        log.reached = log.reached.max(chunk.info.durable.0);
        if chunk.info.class == Class::Hot {
            log.newest = log.newest.max(age);
            keep_chunk(chunk, log);
        }
    }
    let zone = zones.get_mut(info.zone);
    if end == 0 {
        // Never used, or reset since: nothing in it is live.
        zone.pointer = 0;
        zone.usage = ZoneUse::Free;
    } else if at == 0 && matches!(before.usage, ZoneUse::Sealed(_)) {
        // As the checkpoint knows it: used up and waiting for its reset.
    } else {
        let class = class.unwrap_or(Class::Hot);
        let used_up = info.state == ZoneState::Full || end + CHUNK_MIN > info.capacity;
        let sealed = at < end || used_up;
        log.unsettled |= sealed || at > from;
        zone.usage = if sealed {
            ZoneUse::Sealed(class)
        } else {
            ZoneUse::Open(class)
        };
        zone.pointer = end;
        zone.age = age;
        zone.emptied = (zone.live == 0).then_some(0);
    }
    Ok(())
}

/// Looks for chunks behind a place where none can be read. They are not applied, but they tell
/// how far the log reached, and their sequence numbers are used up.
fn look_behind(
    device: &dyn ZonedDevice,
    superblock: &Superblock,
    lba: Lba,
    blocks: u64,
    log: &mut Log,
) -> Result<()> {
    let mut at = 1;
    while at < blocks {
        match read_chunk(device, &superblock.fsid, lba.plus(at), blocks - at)? {
            Some(FoundChunk { info, .. }) => {
                log.reached = log.reached.max(info.durable.0);
                if info.class == Class::Hot {
                    log.newest = log.newest.max(info.sequence.0);
                }
                at += info.blocks;
            }
            None => at += 1,
        }
    }
    Ok(())
}

fn keep_chunk(chunk: FoundChunk, log: &mut Log) {
    use std::collections::btree_map::Entry;
    match log.chunks.entry(chunk.info.sequence.0) {
        Entry::Vacant(place) => {
            place.insert(chunk);
        }
        Entry::Occupied(_) => log.others.push(chunk),
    }
}

/// Decides which copy of a chunk counts, if a write failed and was repeated elsewhere, perhaps more
/// than once. A write that failed may have stored the header and not the payload; the catalog may
/// have had addresses in any copy. So a sound one that was moved counts, and addresses in all others
/// are moved to it. The first place alone says nothing: what came later has new addresses.
fn choose_copies(device: &dyn ZonedDevice, log: &mut Log) -> Result<()> {
    let mut displaced = Vec::new();
    for other in std::mem::take(&mut log.others) {
        let Some(held) = log.chunks.get_mut(&other.info.sequence.0) else {
            continue;
        };
        let better = other.is_moved() && !(held.is_moved() && held.payload_is_sound(device)?);
        let loser = if better {
            std::mem::replace(held, other)
        } else {
            other
        };
        displaced.push(loser.info);
    }
    let moved = log.chunks.values().filter(|chunk| chunk.is_moved());
    log.moved = moved
        .map(|FoundChunk { info, .. }| (info.origin, info.blocks, info.lba))
        .collect();
    for info in displaced {
        let counts = log.chunks.get(&info.sequence.0).map(|held| held.info.lba);
        if let Some(lba) = counts.filter(|_| info.origin != info.lba) {
            log.moved.push((info.lba, info.blocks, lba));
        }
    }
    Ok(())
}
