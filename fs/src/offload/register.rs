//! Registering kernels: checks, permissions, and how registrations end.
//!
//! Every refusal is one line in the log and changes nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use csd_vm::request::Operation;
use csd_vm::{Device, LoadError, LoadedProgram, Tenant};

use super::Offload;
use super::process::{self, ProcessId};
use super::registry::{Attachment, Registration};
use super::snapshot::Map;
use super::value::{Attribute, KernelFile, Value, attribute_name, operation_name};
use crate::error::{Error, Result};
use crate::types::Ino;
use crate::volume::snapshot::{Access, FileSnapshot, Version};
use crate::volume::types::{Credentials, XattrFlags};

/// Largest object that is looked at, in bytes.
const OBJECT_LEN_MAX: u64 = 16 << 20;
/// Most registrations at once: each pins a version of the filesystem.
const REGISTRATIONS_MAX: usize = 16384;

/// A request to set an attribute.
pub struct SetRequest<'a> {
    /// The thread that makes it.
    pub thread: u32,
    /// Its user.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// The file.
    pub ino: Ino,
    /// What the attribute is about.
    pub attribute: Attribute,
    /// The value.
    pub value: &'a [u8],
    /// Whether it must or must not be there.
    pub flags: XattrFlags,
}

/// A registration whose value makes sense.
pub struct Prepared {
    thread: u32,
    operation: Operation,
    who: Credentials,
    /// Checked again, by its start time, when it is first watched.
    owner: ProcessId,
    target: Ino,
    kernel: Ino,
    text: Vec<u8>,
    value: Value,
    flags: XattrFlags,
}

impl Prepared {
    /// The files whose contents matter: the kernel and the target.
    #[must_use]
    pub fn files(&self) -> [Ino; 2] {
        [self.kernel, self.target]
    }
}

/// The error of the filesystem that an object that does not load is.
#[must_use]
pub fn load_error(error: LoadError) -> Error {
    match error {
        LoadError::NotBpf(why) => Error::NotExecutable(format!("not a BPF object: {why}")),
        LoadError::Refused(why) => Error::KernelRefused(why),
        LoadError::Device(why) => Error::KernelFailed(format!("the device failed: {why}")),
    }
}

fn wanted(operation: Operation) -> Access {
    match operation {
        Operation::ReadStream | Operation::ReadEvent => Access::Read,
        Operation::WriteStream | Operation::WriteEvent => Access::Write,
    }
}

fn find_kernel(version: &Version, who: &Credentials, value: &Value) -> Result<Ino> {
    match &value.kernel {
        KernelFile::Inode(ino) => Ok(*ino),
        KernelFile::Path(path) => version.resolve(who, path),
    }
}

/// The process a registration is for.
fn find_owner(requester: ProcessId, who: &Credentials, value: &Value) -> Result<ProcessId> {
    let Some(pid) = value.owner else {
        return Ok(requester);
    };
    let owner = ProcessId::of(pid)?;
    if owner.pid != pid {
        // A thread that is not the first one is no process.
        return Err(Error::NoProcess(pid));
    }
    if who.uid != 0 && !owner.belongs_to(who.uid) {
        return Err(Error::NotPermitted);
    }
    Ok(owner)
}

impl Offload {
    /// Takes a request to set an attribute apart, and finds the kernel.
    ///
    /// # Errors
    /// `BadRegistration` for the value; `NotPermitted` for the statistics; those of finding the
    /// kernel; `NoProcess`, `NotPermitted` for the owner.
    pub fn prepare(&self, request: &SetRequest<'_>) -> Result<Prepared> {
        let prepared = self.try_prepare(request);
        self.log_refusal(request.ino, request.attribute, request.thread, &prepared);
        prepared
    }

    fn try_prepare(&self, request: &SetRequest<'_>) -> Result<Prepared> {
        let Attribute::Kernel(operation) = request.attribute else {
            return Err(Error::NotPermitted);
        };
        let value = Value::parse(request.value, operation)?;
        let ids = (request.uid, request.gid);
        let known = |pid| self.registry.changes().living(pid);
        let (process, who) = process::requester(request.thread, ids, known)?;
        let owner = find_owner(process, &who, &value)?;
        let kernel = find_kernel(&self.volume.version(), &who, &value)?;
        Ok(Prepared {
            thread: request.thread,
            operation,
            who,
            owner,
            target: request.ino,
            kernel,
            text: request.value.to_vec(),
            value,
            flags: request.flags,
        })
    }

    /// Registers a kernel with the files as they are now.
    ///
    /// # Errors
    /// `NotFound`, `NotDirectory`, `IsDirectory`, `Invalid`, `Access` for the files;
    /// `NotExecutable`, `KernelRefused`; `NoProcess`, `NotPermitted` for the owner; `Busy` if it
    /// has the file open through the page cache alone; `Exists`, `NoAttribute` by the flags;
    /// `NoMemory`, `NoSpace` for too many registrations; device errors.
    pub fn register(self: &Arc<Offload>, prepared: Prepared) -> Result<()> {
        let attribute = Attribute::Kernel(prepared.operation);
        let (target, thread) = (prepared.target, prepared.thread);
        let outcome = self.try_register(prepared);
        self.log_refusal(target, attribute, thread, &outcome);
        outcome
    }

    fn try_register(self: &Arc<Offload>, prepared: Prepared) -> Result<()> {
        let Prepared { who, value, .. } = &prepared;
        let version = self.volume.version();
        let kernel = find_kernel(&version, who, value)?;
        let kernel = version.file(who, kernel, Access::Read)?;
        let target = version.file(who, prepared.target, wanted(prepared.operation))?;
        // Who may only write must not learn what is there, not even what a kernel makes of it.
        let target = match version.file(who, prepared.target, Access::Read) {
            Err(Error::Access) => target.without_contents(),
            _ => target,
        };
        let device = self.device()?;
        let program = device
            .load(&self.read_object(&kernel)?)
            .map_err(load_error)?;
        self.options.verify.check(&program)?;
        let held = self.check_handles(prepared.target, prepared.owner)?;
        self.insert(&device, prepared, held, &program, target)
    }

    /// The bytes of an object. Where the device is a file they are taken from the host's cache of
    /// it, if they are there unharmed: the same kernels are attached again and again.
    fn read_object(&self, file: &FileSnapshot) -> Result<Vec<u8>> {
        if file.size() > OBJECT_LEN_MAX {
            return Err(Error::KernelRefused(format!(
                "the object has {} bytes, and {OBJECT_LEN_MAX} are possible",
                file.size()
            )));
        }
        match file.read_cached(&**self.volume.store().device()) {
            Some(bytes) => Ok(bytes),
            None => file.read(),
        }
    }

    fn insert(
        &self,
        device: &Device,
        prepared: Prepared,
        ends_with_handles: bool,
        program: &Arc<LoadedProgram>,
        target: FileSnapshot,
    ) -> Result<()> {
        let (ino, owner) = (prepared.target, prepared.owner);
        let registration = Arc::new(Registration {
            number: self.next_registration.fetch_add(1, Ordering::Relaxed),
            ino,
            owner,
            operation: prepared.operation,
            value: prepared.text,
            activation: device.activate_for(program, Tenant(u64::from(prepared.who.uid))),
            snapshot: Arc::new(Map(target)),
            arguments: prepared.value.arguments.into(),
            timeout: prepared.value.timeout,
            processor: prepared.value.processor,
            view: prepared.value.view,
            inherited: prepared.value.owner.is_some(),
            ends_with_handles,
            in_flight: AtomicUsize::new(0),
            failures: AtomicU64::new(0),
        });
        let mut owners = self.registry.changes();
        if self.stopped.load(Ordering::Acquire) {
            return Err(Error::Busy("the filesystem is being unmounted"));
        }
        if self.registry.count() >= REGISTRATIONS_MAX {
            return Err(Error::NoSpace);
        }
        let attachment = self.registry.attach(&mut owners, ino, owner)?;
        let exists = attachment.get(prepared.operation).is_some();
        let allowed = match exists {
            true if prepared.flags.create => Err(Error::Exists),
            false if prepared.flags.replace => Err(Error::NoAttribute),
            _ => Ok(()),
        };
        if let Err(error) = allowed {
            self.registry.drop_if_empty(&mut owners, &attachment);
            return Err(error);
        }
        let replaced = self.registry.insert(&mut owners, &attachment, registration);
        drop(owners);
        drop(replaced);
        tracing::info!(
            inode = ino.0,
            pid = owner.pid,
            "{} registered",
            operation_name(prepared.operation)
        );
        Ok(())
    }

    /// Whether the owner has the file open.
    ///
    /// # Errors
    /// `Busy` if it has, and no handle is one that a kernel can answer.
    fn check_handles(&self, ino: Ino, owner: ProcessId) -> Result<bool> {
        if !self.volume.is_open(ino) {
            return Ok(false);
        }
        let flags = self.handles_of(ino, owner);
        let direct = |flags: &i32| flags & libc::O_DIRECT != 0;
        let bound = || {
            let attachments = self.registry.of_inode(ino);
            attachments
                .iter()
                .any(|a| a.owner == owner && a.has_handles())
        };
        if flags.is_empty() || self.options.direct_io || flags.iter().any(direct) || bound() {
            return Ok(!flags.is_empty());
        }
        Err(Error::Busy(
            "the process has the file open through the page cache: open it after setting the \
             attribute, or with O_DIRECT, or mount with -o direct_io",
        ))
    }

    /// The flags of the descriptors that a process has of a file.
    fn handles_of(&self, ino: Ino, owner: ProcessId) -> Vec<i32> {
        let Some(mount) = self.mount.get() else {
            return Vec::new();
        };
        owner
            .open_flags(mount.device, ino.0)
            .unwrap_or_else(|error| {
                tracing::debug!("descriptors of process {}: {error}", owner.pid);
                Vec::new()
            })
    }

    /// The value of an attribute, for a thread that may see it.
    ///
    /// # Errors
    /// `NoAttribute`; device errors.
    pub fn value(&self, ino: Ino, thread: u32, attribute: Attribute) -> Result<Vec<u8>> {
        if self.registry.is_idle() {
            return Err(Error::NoAttribute);
        }
        match attribute {
            Attribute::Statistics => self.statistics_of(ino, thread),
            Attribute::Kernel(operation) => self
                .find(ino, thread, operation)
                .map(|(_, registration)| registration.value.clone())
                .ok_or(Error::NoAttribute),
        }
    }

    /// Appends the names of the attributes that a thread sees, each ended by a NUL.
    pub fn list(&self, ino: Ino, thread: u32, names: &mut Vec<u8>) {
        if self.registry.is_idle() {
            return;
        }
        for registration in self.seen_by(ino, thread) {
            names.extend_from_slice(&attribute_name(registration.operation));
            names.push(0);
        }
    }

    /// Ends a registration that a thread sees.
    ///
    /// # Errors
    /// `NoAttribute`.
    pub fn remove(&self, ino: Ino, thread: u32, attribute: Attribute) -> Result<()> {
        let Attribute::Kernel(operation) = attribute else {
            return Err(Error::NotPermitted);
        };
        let found = match self.registry.is_idle() {
            true => None,
            false => self.find(ino, thread, operation),
        };
        let (attachment, registration) = found.ok_or(Error::NoAttribute)?;
        self.end(&attachment, |r| r.number == registration.number);
        Ok(())
    }

    /// The registrations that a thread sees, one of each operation at most.
    pub(super) fn seen_by(&self, ino: Ino, thread: u32) -> Vec<Arc<Registration>> {
        let visible = self.registry.visible(ino, thread);
        super::value::OPERATIONS
            .iter()
            .filter_map(|(operation, _)| visible.iter().find_map(|bound| bound.get(*operation)))
            .collect()
    }

    fn find(
        &self,
        ino: Ino,
        thread: u32,
        operation: Operation,
    ) -> Option<(Arc<Attachment>, Arc<Registration>)> {
        let visible = self.registry.visible(ino, thread);
        visible
            .into_iter()
            .find_map(|bound| Some((Arc::clone(&bound.attachment), bound.get(operation)?)))
    }

    /// Ends the registrations of an attachment that `which` names.
    fn end(&self, attachment: &Arc<Attachment>, which: impl Fn(&Registration) -> bool) {
        let mut owners = self.registry.changes();
        let ended = self.registry.remove(&mut owners, attachment, which);
        drop(owners);
        for registration in &ended {
            tracing::info!(
                inode = registration.ino.0,
                pid = registration.owner.pid,
                "{} ended",
                operation_name(registration.operation)
            );
        }
    }

    /// Ends what was to end with its owner's last handle of a file.
    pub(super) fn end_with_handles(&self, ino: Ino) {
        for attachment in self.registry.left_without_handles(ino) {
            if self.handles_of(ino, attachment.owner).is_empty() {
                self.end(&attachment, |registration| registration.ends_with_handles);
            }
        }
    }

    /// Ends what belongs to owners that have ended.
    pub(super) fn owners_ended(&self, tokens: &[u64]) {
        let mut ended = Vec::new();
        let mut owners = self.registry.changes();
        for owner in tokens
            .iter()
            .filter_map(|token| owners.of_token(*token))
            .collect::<Vec<_>>()
        {
            for attachment in self.registry.all() {
                if attachment.owner == owner {
                    ended.extend(self.registry.remove(&mut owners, &attachment, |_| true));
                }
            }
            owners.forget(owner);
        }
        drop(owners);
        // Dropping a snapshot lets go of a version of the filesystem: not under the lock.
        drop(ended);
    }

    pub(super) fn end_all(&self) {
        for attachment in self.registry.all() {
            self.end(&attachment, |_| true);
        }
    }

    fn log_refusal<T>(&self, ino: Ino, attribute: Attribute, thread: u32, outcome: &Result<T>) {
        if let Err(error) = outcome {
            let name = match attribute {
                Attribute::Kernel(operation) => operation_name(operation),
                Attribute::Statistics => "stats",
            };
            tracing::warn!(inode = ino.0, thread, "csd_{name} refused: {error}");
        }
    }
}
