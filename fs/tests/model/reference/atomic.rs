//! Atomic writes in generated sequences: one operation is a whole session, with upkeep inside of it.
//!
//! In the reference nothing happens until the commit. Meanwhile the owner must read what it wrote,
//! everybody else what is committed, and nobody else may write.

use warren_fs::volume::atomic::Owner;
use warren_fs::volume::types::{SetAttributes, Time};

use super::driver::{Both, Pair, ROOT_CALLER, Trouble};
use super::ops::noise;
use super::{Body, Change};

/// What an owner does in a session.
#[derive(Clone, Debug)]
pub(crate) enum Piece {
    Write { offset: u64, len: usize, seed: u64 },
    Resize(u64),
    Checkpoint,
    Collect,
    Sync,
}

/// How a session ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Commit,
    Abort,
}

const OWNER: Owner = Owner(7);

fn expect(holds: bool, what: &str) -> Result<(), Trouble> {
    match holds {
        true => Ok(()),
        false => Err(Trouble::mismatch(format!("in a session: {what}"))),
    }
}

/// Memory for a read that holds something else.
fn room(memory: &mut Vec<u8>, len: usize) -> &mut [u8] {
    *memory = vec![0xa5; len];
    memory
}

impl Pair {
    /// A session from its start to its end.
    pub(crate) fn session(
        &mut self,
        both: Both,
        pieces: &[Piece],
        end: End,
    ) -> Result<(), Trouble> {
        if !matches!(
            self.reference.node(both.0).map(|n| &n.body),
            Ok(Body::File(_))
        ) {
            return Ok(());
        }
        let before = self.reference.clone();
        let ino = both.1;
        self.volume.start_atomic(ino, OWNER)?;
        for piece in pieces {
            let done = self
                .piece(both, piece)
                .and_then(|()| self.see_session(both, &before));
            if let Err(trouble) = done {
                self.volume.abort_atomic(ino, OWNER);
                self.reference = before;
                return match trouble {
                    Trouble::Device(error) if self.is_full(&error) => Ok(()),
                    trouble => Err(trouble),
                };
            }
        }
        match end {
            End::Abort => {
                expect(
                    self.volume.abort_atomic(ino, OWNER).is_some(),
                    "there is one to abort",
                )?;
                self.reference = before;
            }
            End::Commit => match self.volume.commit_atomic(ino, OWNER) {
                Ok(_) => {}
                Err(error) => {
                    self.reference = before;
                    if !self.is_full(&error) {
                        return Err(error.into());
                    }
                }
            },
        }
        expect(self.volume.atomic_owner(ino).is_none(), "it has ended")
    }

    fn is_full(&self, error: &warren_fs::Error) -> bool {
        self.may_be_full && matches!(error, warren_fs::Error::NoSpace)
    }

    fn trouble(&self, error: warren_fs::Error) -> Trouble {
        match self.is_full(&error) {
            true => Trouble::Device(error),
            false => error.into(),
        }
    }

    fn piece(&mut self, both: Both, piece: &Piece) -> Result<(), Trouble> {
        let ino = both.1;
        match *piece {
            Piece::Write { offset, len, seed } => {
                let data = noise(seed, len);
                let want = self.reference.write(both.0, offset, &data, false);
                match self.volume.write_atomic(ino, OWNER, offset, &data, false) {
                    Ok(there) => expect(there && want.is_ok(), "a write goes to it"),
                    Err(error) => Err(self.trouble(error)),
                }
            }
            Piece::Resize(size) => {
                let want = self.reference.setattr(both.0, Change::Size(size), false);
                match self.volume.truncate_atomic(ino, OWNER, size) {
                    Ok(there) => expect(there && want.is_ok(), "a truncation goes to it"),
                    Err(error) => Err(self.trouble(error)),
                }
            }
            Piece::Checkpoint => Ok(self.volume.store().checkpoint()?),
            Piece::Collect => Ok(self.volume.store().collect(1).map(drop)?),
            Piece::Sync => Ok(self.volume.sync()?),
        }
    }

    /// The owner sees what is pending, everybody else what is committed and cannot change it.
    fn see_session(&self, both: Both, before: &super::Reference) -> Result<(), Trouble> {
        let ino = both.1;
        let (mut memory, mut others) = (Vec::new(), Vec::new());
        let (offset, len) = (1000, 150_000);
        let mine = self
            .volume
            .read_atomic(ino, OWNER, offset, len, |len| room(&mut memory, len))?
            .map(|range| memory[range].to_vec());
        self.volume.read(ino, offset, len, &mut others)?;
        let want = self.reference.read(both.0, offset, len);
        expect(want.ok() == mine, "the owner reads what it wrote")?;
        let want = before.read(both.0, offset, len);
        expect(want == Ok(others), "others read what is committed")?;
        let refused = |outcome: warren_fs::Result<()>| {
            outcome.is_err_and(|error| error.errno() == libc::EBUSY)
        };
        let now = Some(Time::now());
        let write = self.volume.write(ino, 0, b"x", false, now);
        expect(refused(write), "others cannot write")?;
        let set = SetAttributes {
            size: Some(0),
            ..SetAttributes::default()
        };
        let cut = self.volume.setattr(&ROOT_CALLER, ino, &set).map(drop);
        expect(refused(cut), "others cannot truncate")
    }
}
