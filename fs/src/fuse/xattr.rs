//! Extended attributes: the size protocol of the kernel, and what it leaves for us to find out.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use fuser::{Errno, INodeNo, ReplyEmpty, ReplyXattr, Request};

use super::ops::answer;
use super::{Adapter, convert};
use crate::error::Error;
use crate::offload::value::{self, Attribute};

/// Setting this one may end the set-group-ID bit.
const ACCESS_ACL: &[u8] = b"system.posix_acl_access";

impl Adapter {
    pub(super) fn set_xattr(
        &self,
        request: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        reply: ReplyEmpty,
    ) {
        let (ino, caller) = (convert::ino(ino), convert::caller(request, 0));
        let name = name.as_bytes();
        if let Some(attribute) = Attribute::from_name(name) {
            let flags = convert::xattr_flags(flags, false);
            return self.register(&caller, ino, attribute, value, flags, reply);
        }
        if value::is_reserved(name) {
            let error = value::unknown_attribute(name);
            tracing::warn!(inode = ino.0, thread = caller.pid, "{error}");
            return reply.error(convert::errno(&error));
        }
        let result = self.core.change("setxattr", ino, |volume| {
            // posix_acl(5) by way of chmod(2): whoever is neither in the file's group nor
            // privileged loses the bit. The kernel's own verdict travels in the extended request
            // (FUSE_SETXATTR_EXT), which fuser does not read.
            let kill_sgid = name == ACCESS_ACL && caller.uid != 0 && {
                let status = std::fs::read_to_string(format!("/proc/{}/status", caller.pid));
                let gid = volume.getattr(ino)?.gid;
                !status.is_ok_and(|status| convert::in_group_or_capable(&status, gid))
            };
            let flags = convert::xattr_flags(flags, kill_sgid);
            volume.setxattr(&caller, ino, name, value, flags)?;
            if self.options.sync {
                volume.fsync(ino)?;
            }
            Ok(())
        });
        answer(reply, result);
    }

    pub(super) fn get_xattr(
        &self,
        request: &Request,
        ino: INodeNo,
        name: &OsStr,
        size: u32,
        reply: ReplyXattr,
    ) {
        let ino = convert::ino(ino);
        let value = self.core.run("getxattr", ino, |volume| {
            match Attribute::from_name(name.as_bytes()) {
                Some(attribute) => self.core.offload.value(ino, request.pid(), attribute),
                None => volume.getxattr(ino, name.as_bytes()),
            }
        });
        answer_sized(reply, size, value);
    }

    pub(super) fn list_xattr(&self, request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let (ino, caller) = (convert::ino(ino), convert::caller(request, 0));
        let names = self.core.run("listxattr", ino, |volume| {
            let mut names = volume.listxattr(&caller, ino)?;
            self.core.offload.list(ino, caller.pid, &mut names);
            Ok(names)
        });
        answer_sized(reply, size, names);
    }

    pub(super) fn remove_xattr(
        &self,
        request: &Request,
        ino: INodeNo,
        name: &OsStr,
    ) -> Result<(), Errno> {
        let (ino, caller) = (convert::ino(ino), convert::caller(request, 0));
        self.core.change("removexattr", ino, |volume| {
            if let Some(attribute) = Attribute::from_name(name.as_bytes()) {
                return self.core.offload.remove(ino, caller.pid, attribute);
            }
            volume.removexattr(&caller, ino, name.as_bytes())?;
            if self.options.sync {
                volume.fsync(ino)?;
            }
            Ok(())
        })
    }
}

/// `size` 0 asks for the length; a value that does not fit is an error.
fn answer_sized(reply: ReplyXattr, size: u32, value: Result<Vec<u8>, Errno>) {
    match value {
        Ok(value) if size == 0 => reply.size(value.len() as u32),
        Ok(value) if value.len() > size as usize => {
            reply.error(convert::errno(&Error::BufferTooSmall));
        }
        Ok(value) => reply.data(&value),
        Err(errno) => reply.error(errno),
    }
}
