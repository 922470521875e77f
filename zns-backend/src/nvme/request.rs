//! The requests of a queue as the commands they take, one after another, whoever carries those out.
//!
//! A request is cut like a synchronous transfer ([`super::namespace`]); the next piece goes out when
//! the one before has ended. A controller carries commands out in any order, so writes at the pointer
//! take turns within a zone; appends need none.

use std::sync::Arc;

use super::command::{Channel, Command, Failure};
use super::namespace::Namespace;
use super::status::Attempt;
use crate::buffer::DmaBuffer;
use crate::device::Request;
use crate::geometry::{Lba, ZoneId};
use crate::lanes::Turn;
use crate::queue::payload;
use crate::ring::{Ended, Refused};
use crate::shared_zones::blocks_in;

/// An accepted request, with its progress and its memory.
pub(crate) struct Work {
    kind: Kind,
    /// Blocks transferred so far.
    done: u64,
    /// Blocks of the command in flight.
    piece: u64,
}

enum Kind {
    Read {
        lba: Lba,
        blocks: u64,
        buffer: DmaBuffer,
    },
    Write {
        lba: Lba,
        blocks: u64,
        data: Arc<DmaBuffer>,
        durable: bool,
    },
    Append {
        zone: ZoneId,
        blocks: u64,
        data: Arc<DmaBuffer>,
    },
    Flush,
}

/// The memory of one command.
#[derive(Clone, Copy)]
pub(crate) struct Span {
    /// It belongs to the request; a command to the controller only reads it.
    pub(crate) address: *mut u8,
    /// From the start of the request's buffer.
    pub(crate) offset: u64,
    /// Bytes.
    pub(crate) len: u64,
    /// The slot of the namespace's pool in which the buffer lies.
    pub(crate) slot: Option<u16>,
}

impl Span {
    /// That of a command without data.
    const NONE: Span = Span {
        address: std::ptr::null_mut(),
        offset: 0,
        len: 0,
        slot: None,
    };
}

impl Work {
    /// When it may run.
    pub(crate) fn turn<C>(&self, namespace: &Namespace<C>) -> Turn {
        match self.kind {
            Kind::Write { lba, .. } => Turn::Exclusive(namespace.geometry.zone_of(lba)),
            Kind::Append { zone, .. } => Turn::Shared(zone),
            Kind::Read { .. } | Kind::Flush => Turn::Now,
        }
    }

    /// The command for what is left of it, as far as one command reaches.
    pub(crate) fn next<C: Channel>(&mut self, namespace: &Namespace<C>) -> (Command, Span) {
        let done = self.done;
        let offset = namespace.bytes(done);
        let slot_of = |buffer: &DmaBuffer| namespace.pool.as_ref()?.index_of(buffer);
        let (command, address, slot) = match &mut self.kind {
            Kind::Read {
                lba,
                blocks,
                buffer,
            } => {
                let at = lba.plus(done);
                self.piece = namespace.piece_blocks(at, *blocks - done);
                let slot = slot_of(buffer);
                let target = buffer[offset as usize..].as_mut_ptr();
                (Command::read(at, self.piece), target, slot)
            }
            Kind::Write {
                lba,
                blocks,
                data,
                durable,
            } => {
                let at = lba.plus(done);
                self.piece = namespace.piece_blocks(at, *blocks - done);
                let source = data[offset as usize..].as_ptr().cast_mut();
                let command = namespace.write_command(at, self.piece, *durable);
                (command, source, slot_of(data))
            }
            Kind::Append { zone, blocks, data } => {
                self.piece = *blocks;
                let start = namespace.geometry.zone_start(*zone);
                let source = data.as_ptr().cast_mut();
                (Command::append(start, *blocks), source, slot_of(data))
            }
            Kind::Flush => return (Command::FLUSH, Span::NONE),
        };
        let span = Span {
            address,
            offset,
            len: namespace.bytes(self.piece),
            slot,
        };
        (command, span)
    }

    /// Puts what its command has read where it belongs, after memory of another kind took it.
    #[cfg(feature = "xnvme")]
    pub(crate) fn fill<C: Channel>(&mut self, namespace: &Namespace<C>, data: &[u8]) {
        if let Kind::Read { buffer, .. } = &mut self.kind {
            let start = namespace.bytes(self.done) as usize;
            buffer[start..start + data.len()].copy_from_slice(data);
        }
    }

    /// Decides on a request.
    pub(crate) fn accept<C: Channel>(
        namespace: &Namespace<C>,
        request: Request,
    ) -> std::result::Result<Work, Refused> {
        let geometry = &namespace.geometry;
        let refused = |error| Refused {
            error,
            buffer: None,
        };
        let kind = match request {
            Request::Read { lba, buffer } => {
                let accepted = blocks_in(geometry, buffer.len())
                    .and_then(|blocks| namespace.check_read(lba, blocks).map(|()| blocks));
                match accepted {
                    Ok(blocks) => Ok(Kind::Read {
                        lba,
                        blocks,
                        buffer,
                    }),
                    Err(error) => Err(Refused {
                        error,
                        buffer: Some(buffer),
                    }),
                }
            }
            Request::Write {
                lba,
                data,
                blocks,
                durable,
            } => payload(geometry, &data, blocks)
                .and_then(|_| namespace.check_write(lba, blocks))
                .map(|()| Kind::Write {
                    lba,
                    blocks,
                    data,
                    durable,
                })
                .map_err(refused),
            Request::Append { zone, data, blocks } => payload(geometry, &data, blocks)
                .and_then(|_| namespace.check_append(zone, blocks))
                .map(|()| Kind::Append { zone, blocks, data })
                .map_err(refused),
            Request::Flush => Ok(Kind::Flush),
        }?;
        Ok(Work {
            kind,
            done: 0,
            piece: 0,
        })
    }

    /// What a command that ended well has done: more to do, or the end.
    pub(crate) fn succeeded<C: Channel>(
        mut self,
        namespace: &Namespace<C>,
        result: u64,
    ) -> std::result::Result<Work, Ended> {
        let ended = |lba| Ended {
            result: Ok(lba),
            buffer: None,
        };
        match self.kind {
            Kind::Flush => Err(ended(Lba(0))),
            Kind::Append { blocks, .. } => {
                namespace.written(Lba(result), blocks);
                Err(ended(Lba(result)))
            }
            Kind::Write { lba, blocks, .. } => {
                namespace.written(lba.plus(self.done), self.piece);
                self.done += self.piece;
                if self.done < blocks {
                    return Ok(self);
                }
                Err(ended(lba))
            }
            Kind::Read {
                lba,
                blocks,
                buffer,
            } => {
                self.done += self.piece;
                if self.done < blocks {
                    self.kind = Kind::Read {
                        lba,
                        blocks,
                        buffer,
                    };
                    return Ok(self);
                }
                Err(Ended {
                    buffer: Some(buffer),
                    ..ended(lba)
                })
            }
        }
    }

    /// The end of a request whose command did not succeed.
    pub(crate) fn failed<C: Channel>(self, namespace: &Namespace<C>, failure: Failure) -> Ended {
        let (action, lba) = match &self.kind {
            Kind::Read { lba, .. } => ("reading", lba.plus(self.done)),
            Kind::Write { lba, .. } => ("writing", lba.plus(self.done)),
            Kind::Append { zone, .. } => ("appending", namespace.geometry.zone_start(*zone)),
            Kind::Flush => ("flushing", Lba(0)),
        };
        let attempt = Attempt {
            action,
            lba,
            blocks: self.piece,
        };
        Ended {
            result: Err(namespace.error(failure, attempt)),
            buffer: match self.kind {
                Kind::Read { buffer, .. } => Some(buffer),
                Kind::Write { .. } | Kind::Append { .. } | Kind::Flush => None,
            },
        }
    }
}
