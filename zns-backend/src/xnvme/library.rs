//! libxnvme, as far as this crate needs it, with a safe face: an open device, queues, memory.
//!
//! Commands are built by [`crate::nvme::command`] and passed through; the library's own helpers for
//! zones would say the same in other words. Everything it allocates is freed with the value that
//! stands for it. Deliberately absent: metadata, scattered buffers, enumeration, fabrics.

use std::collections::BTreeSet;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::io;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use xnvme_sys as sys;

use super::outcome;
use crate::nvme::command::{Command, Failure};

/// Deepest queue the library makes.
pub(super) const DEPTH_MAX: u32 = 2048;

const _: () = assert!(size_of::<sys::xnvme_spec_cmd>() == 64);
const _: () = assert!(size_of::<sys::xnvme_spec_cpl>() == 16);

/// The version of the library in use: major, minor, patch.
pub(super) fn version() -> (c_int, c_int, c_int) {
    // SAFETY: plain calls that answer constants.
    unsafe {
        (
            sys::xnvme_ver_major(),
            sys::xnvme_ver_minor(),
            sys::xnvme_ver_patch(),
        )
    }
}

/// The backends this library was built with.
pub(super) fn backends() -> Vec<String> {
    let mut list: *mut sys::xnvme_be_attr_list = ptr::null_mut();
    // SAFETY: the call stores a list it allocated, or answers an error and stores none.
    if unsafe { sys::xnvme_be_attr_list_bundled(&raw mut list) } != 0 || list.is_null() {
        return Vec::new();
    }
    // SAFETY: the list has `count` items, whose names are constants of the library; it is freed once,
    // after its last use.
    unsafe {
        let count = usize::try_from((*list).count).unwrap_or(0);
        let names = (*list)
            .item
            .as_slice(count)
            .iter()
            .filter(|item| item.enabled != 0)
            .filter_map(|item| text(item.name))
            .collect();
        sys::xnvme_buf_virt_free(list.cast());
        names
    }
}

/// A string of the library.
///
/// # Safety
/// `string` is null or leads to a string that ends and stays during the call.
unsafe fn text(string: *const c_char) -> Option<String> {
    if string.is_null() {
        return None;
    }
    // SAFETY: as the caller says.
    let string = unsafe { CStr::from_ptr(string) };
    Some(string.to_string_lossy().into_owned())
}

/// What to open, and how.
pub(super) struct Options<'a> {
    /// Path or PCI address.
    pub(super) device: &'a str,
    pub(super) backend: &'a str,
    pub(super) asynchronous: Option<&'a str>,
    pub(super) synchronous: Option<&'a str>,
    pub(super) admin: Option<&'a str>,
    /// Which namespace, where the device does not say so itself.
    pub(super) namespace: u32,
    pub(super) read_only: bool,
    /// Whether the backend is a driver in user space, which takes one synchronous call at a time and
    /// only memory of its own.
    pub(super) user_space: bool,
}

/// Why a device was not opened.
pub(super) enum Refusal {
    /// The backend does not have the engines asked for.
    NoEngine,
    Host(io::Error),
}

/// PCI addresses in use by this process: the drivers are not made to open one twice.
static ADDRESSES: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// A PCI address that is in use while this lives.
struct Address(String);

impl Address {
    fn claim(address: &str) -> io::Result<Address> {
        if !ADDRESSES.lock().insert(address.to_owned()) {
            return Err(io::Error::from_raw_os_error(libc::EBUSY));
        }
        Ok(Address(address.to_owned()))
    }
}

impl Drop for Address {
    fn drop(&mut self) {
        ADDRESSES.lock().remove(&self.0);
    }
}

/// An open device.
pub(super) struct Handle {
    raw: NonNull<sys::xnvme_dev>,
    namespace: u32,
    asynchronous: String,
    /// Held during synchronous calls to a driver in user space.
    turn: Option<Mutex<()>>,
    /// Given back after the device is closed.
    _address: Option<Address>,
}

// SAFETY: the library's device handle is bound to no thread. What may not be done by two threads at
// once is done under `turn`; Linux takes ioctls of one descriptor from any number of threads.
unsafe impl Send for Handle {}
// SAFETY: as above.
unsafe impl Sync for Handle {}

impl Handle {
    pub(super) fn open(options: &Options<'_>) -> Result<Handle, Refusal> {
        let c_string = |text: &str| {
            CString::new(text).map_err(|_| Refusal::Host(io::ErrorKind::InvalidInput.into()))
        };
        let optional = |text: Option<&str>| text.map(c_string).transpose();
        let pointer =
            |text: &Option<CString>| text.as_ref().map_or(ptr::null(), |text| text.as_ptr());
        let device = c_string(options.device)?;
        let backend = c_string(options.backend)?;
        let asynchronous = optional(options.asynchronous)?;
        let synchronous = optional(options.synchronous)?;
        let admin = optional(options.admin)?;
        let address = options
            .user_space
            .then(|| Address::claim(options.device))
            .transpose()
            .map_err(Refusal::Host)?;
        // SAFETY: a plain call that answers a structure.
        let mut asked = unsafe { sys::xnvme_opts_default() };
        asked.be = backend.as_ptr();
        asked.async_ = pointer(&asynchronous);
        asked.sync = pointer(&synchronous);
        asked.admin = pointer(&admin);
        asked.nsid = options.namespace;
        asked.rdonly = options.read_only.into();
        asked.rdwr = (!options.read_only).into();
        // SAFETY: the strings end with zero and live until the call returns; in the device that it
        // makes, the library puts constants of its own in their place.
        let raw = unsafe { sys::xnvme_dev_open(device.as_ptr(), &raw mut asked) };
        let Some(raw) = NonNull::new(raw) else {
            let error = io::Error::last_os_error();
            // Where engines are missing the library reports the number of a part, not an errno.
            return Err(match error.raw_os_error() {
                Some(libc::ENOSYS | ..=0) => Refusal::NoEngine,
                _ => Refusal::Host(error),
            });
        };
        // SAFETY: the device is open; the names in its options are constants.
        let (namespace, asynchronous) = unsafe {
            let opened = &*sys::xnvme_dev_get_opts(raw.as_ptr());
            (
                sys::xnvme_dev_get_nsid(raw.as_ptr()),
                text(opened.async_).unwrap_or_default(),
            )
        };
        Ok(Handle {
            raw,
            namespace,
            asynchronous,
            turn: options.user_space.then(Mutex::default),
            _address: address,
        })
    }

    /// The engine of queues.
    pub(super) fn asynchronous(&self) -> &str {
        &self.asynchronous
    }

    /// The namespace's number.
    pub(super) fn namespace(&self) -> u32 {
        self.namespace
    }

    /// Bytes that one command may carry as far as the library knows. To be asked for before the first
    /// request: engines need what the library finds out for it.
    pub(super) fn transfer_bytes_max(&self) -> u64 {
        let _turn = self.turn();
        // SAFETY: the device is open, and what the call answers is a part of it.
        let geometry = unsafe { &*sys::xnvme_dev_get_geo(self.raw.as_ptr()) };
        match geometry.mdts_nbytes {
            0 => u64::MAX,
            bytes => bytes.into(),
        }
    }

    fn turn(&self) -> Option<MutexGuard<'_, ()>> {
        self.turn.as_ref().map(Mutex::lock)
    }

    /// Carries out a command and answers the 64 bits of its result.
    ///
    /// # Safety
    /// `address` is valid for `len` bytes in the direction of the command, and memory of this device
    /// if it is one of a driver in user space.
    pub(super) unsafe fn pass(
        &self,
        command: Command,
        address: *mut u8,
        len: usize,
    ) -> Result<u64, Failure> {
        let _turn = self.turn();
        // SAFETY: the context lives until the calls return; the caller vouches for the memory.
        let (code, context) = unsafe {
            let mut context = sys::xnvme_cmd_ctx_from_dev(self.raw.as_ptr());
            fill(&raw mut context, command, self.namespace);
            let pass = match command.is_admin() {
                true => sys::xnvme_cmd_pass_admin,
                false => sys::xnvme_cmd_pass,
            };
            let data = address.cast::<c_void>();
            let code = pass(&raw mut context, data, len, ptr::null_mut(), 0);
            (code, context)
        };
        let Ended { result, field, .. } = Ended::of(0, &context.cpl);
        outcome::of_call(code, field).map(|()| result)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: opened in `open` and closed only here; queues and memory hold references.
        unsafe { sys::xnvme_dev_close(self.raw.as_ptr()) };
    }
}

/// Writes a command into a context.
///
/// The completion is cleared: engines do not all write it, and on Linux its first bytes are a
/// timeout on the way in, which a context used before would set to its last result.
///
/// # Safety
/// `context` can be written.
unsafe fn fill(context: *mut sys::xnvme_cmd_ctx, command: Command, namespace: u32) {
    let entry = command.entry(namespace);
    // SAFETY: both structures are plain bytes of the lengths asserted above.
    unsafe {
        (&raw mut (*context).cmd)
            .cast::<[u32; 16]>()
            .write_unaligned(entry);
        (&raw mut (*context).cpl)
            .cast::<[u32; 4]>()
            .write_unaligned([0; 4]);
    }
}

/// The completion of a queued command.
#[derive(Clone, Copy)]
pub(super) struct Ended {
    pub(super) slot: u32,
    pub(super) result: u64,
    /// The status field with its phase bit.
    pub(super) field: u16,
}

impl Ended {
    fn of(slot: u32, completion: &sys::xnvme_spec_cpl) -> Ended {
        // SAFETY: the structure is sixteen bytes without padding.
        let words: [u32; 4] = unsafe {
            ptr::from_ref(completion)
                .cast::<[u32; 4]>()
                .read_unaligned()
        };
        Ended {
            slot,
            result: u64::from(words[1]) << 32 | u64::from(words[0]),
            field: (words[3] >> 16) as u16,
        }
    }
}

/// What a callback needs to know.
struct Slot {
    number: u32,
    ended: NonNull<Vec<Ended>>,
}

/// Notes the end of a command and gives its context back.
///
/// # Safety
/// `argument` leads to the [`Slot`] given with the command, whose queue is being polled by the
/// calling thread.
unsafe extern "C" fn note(context: *mut sys::xnvme_cmd_ctx, argument: *mut c_void) {
    // SAFETY: slots live as long as their queue; while it is polled nobody else reaches the list,
    // which has room for all of them, so that nothing is allocated here.
    unsafe {
        let slot = &*argument.cast::<Slot>();
        let ended = Ended::of(slot.number, &(*context).cpl);
        (*slot.ended.as_ptr()).push(ended);
        sys::xnvme_queue_put_cmd_ctx((*context).async_.queue, context);
    }
}

/// A queue to a device, for one thread at a time.
pub(super) struct Queue {
    raw: NonNull<sys::xnvme_queue>,
    slots: Box<[Slot]>,
    /// Made from a box; filled by callbacks.
    ended: NonNull<Vec<Ended>>,
    /// Whether the library may still use memory of requests, so that nothing must be freed.
    abandoned: bool,
    handle: Arc<Handle>,
}

// SAFETY: a queue is bound to no thread, only to one at a time, which exclusive access sees to.
unsafe impl Send for Queue {}

impl Queue {
    /// A queue for `depth` commands at once, 1 to [`DEPTH_MAX`].
    pub(super) fn new(handle: Arc<Handle>, depth: u32) -> io::Result<Queue> {
        let depth = depth.clamp(1, DEPTH_MAX);
        // At least two: a ring of one entry is an odd case in drivers.
        let capacity = depth.next_power_of_two().max(2) as u16;
        let mut raw: *mut sys::xnvme_queue = ptr::null_mut();
        let turn = handle.turn();
        // SAFETY: the device is open; the call stores a queue or answers an error.
        let code = unsafe { sys::xnvme_queue_init(handle.raw.as_ptr(), capacity, 0, &raw mut raw) };
        drop(turn);
        let Some(raw) = NonNull::new(raw).filter(|_| code == 0) else {
            return Err(io::Error::from_raw_os_error(code.saturating_abs()));
        };
        let ended = Box::new(Vec::with_capacity(depth as usize));
        let ended = NonNull::from(Box::leak(ended));
        Ok(Queue {
            raw,
            slots: (0..depth).map(|number| Slot { number, ended }).collect(),
            ended,
            abandoned: false,
            handle,
        })
    }

    /// Starts a command, whose end [`Queue::poll`] will tell under the number `slot`.
    ///
    /// # Safety
    /// `address` is valid for `len` bytes in the direction of the command until it has ended (or the
    /// queue has been [abandoned](Queue::abandon) and for ever), and memory of the device if that is
    /// one of a driver in user space. `slot` is below the depth and has no command in flight.
    pub(super) unsafe fn submit(
        &mut self,
        slot: u32,
        command: Command,
        address: *mut u8,
        len: usize,
    ) -> io::Result<()> {
        // SAFETY: the queue is ours alone; a context it hands out can be written until it is given
        // back, here or by the callback, which gets its slot. The caller vouches for the memory.
        unsafe {
            let context = sys::xnvme_queue_get_cmd_ctx(self.raw.as_ptr());
            if context.is_null() {
                return Err(io::Error::from_raw_os_error(libc::EBUSY));
            }
            fill(context, command, self.handle.namespace);
            (*context).async_.cb = Some(note);
            (*context).async_.cb_arg = ptr::from_ref(&self.slots[slot as usize]).cast_mut().cast();
            let code = sys::xnvme_cmd_pass(context, address.cast(), len, ptr::null_mut(), 0);
            if code == 0 {
                return Ok(());
            }
            sys::xnvme_queue_put_cmd_ctx(self.raw.as_ptr(), context);
            Err(io::Error::from_raw_os_error(code.saturating_abs()))
        }
    }

    /// Hands over what was submitted and appends what has ended to `out`, without waiting.
    pub(super) fn poll(&mut self, out: &mut Vec<Ended>) -> io::Result<()> {
        // SAFETY: the queue is ours alone. Callbacks reach the list by its pointer only, and nothing
        // else refers to it during the call.
        let code = unsafe { sys::xnvme_queue_poke(self.raw.as_ptr(), 0) };
        // SAFETY: the call has returned, no callback runs.
        out.append(unsafe { self.ended.as_mut() });
        if code < 0 {
            let error = io::Error::from_raw_os_error(code.saturating_abs());
            // Handed over with the next attempt.
            if !outcome::is_passing(&error) {
                return Err(error);
            }
        }
        Ok(())
    }

    /// Gives up on commands in flight: the queue and what they name is never freed.
    pub(super) fn abandon(&mut self) {
        self.abandoned = true;
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        if self.abandoned {
            // The callbacks' slots, and the device the queue belongs to.
            std::mem::forget(std::mem::take(&mut self.slots));
            std::mem::forget(Arc::clone(&self.handle));
            return;
        }
        let _turn = self.handle.turn();
        // SAFETY: made in `new` and taken down only here, with nothing in flight: no callback will
        // come, so that the list, which was a box, is freed too.
        unsafe {
            sys::xnvme_queue_term(self.raw.as_ptr());
            drop(Box::from_raw(self.ended.as_ptr()));
        }
    }
}

/// Memory that a driver in user space can give to its device.
pub(super) struct Block {
    base: NonNull<u8>,
    handle: Arc<Handle>,
}

// SAFETY: an address; who may use what it leads to is for the owner to say.
unsafe impl Send for Block {}
// SAFETY: as above.
unsafe impl Sync for Block {}

impl Block {
    /// `len` bytes of zeroes, page-aligned.
    pub(super) fn new(handle: &Arc<Handle>, len: usize) -> io::Result<Block> {
        let turn = handle.turn();
        // SAFETY: the device is open.
        let base = unsafe { sys::xnvme_buf_alloc(handle.raw.as_ptr(), len) };
        drop(turn);
        let base = NonNull::new(base.cast::<u8>()).ok_or_else(io::Error::last_os_error)?;
        // SAFETY: fresh memory of this length.
        unsafe { base.as_ptr().write_bytes(0, len) };
        Ok(Block {
            base,
            handle: Arc::clone(handle),
        })
    }

    /// Where it starts.
    pub(super) fn base(&self) -> NonNull<u8> {
        self.base
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        let _turn = self.handle.turn();
        // SAFETY: allocated in `new` from this device and freed only here.
        unsafe { sys::xnvme_buf_free(self.handle.raw.as_ptr(), self.base.as_ptr().cast()) };
    }
}
