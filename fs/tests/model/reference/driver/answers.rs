//! When two answers agree, and what it is called when they do not.

use std::fmt::Debug;

use crate::reference::Answer;

/// Why a step did not go as it must.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// Volume and reference disagree.
    Mismatch(String),
    /// The volume answered an error of the device or of what is stored there.
    Device(warren_fs::Error),
}

impl Trouble {
    pub(crate) fn mismatch(text: impl Into<String>) -> Trouble {
        Trouble::Mismatch(text.into())
    }
}

impl From<warren_fs::Error> for Trouble {
    fn from(error: warren_fs::Error) -> Trouble {
        match error.errno() {
            libc::EIO | libc::EROFS => Trouble::Device(error),
            _ => Trouble::Mismatch(format!("unexpected error: {error}")),
        }
    }
}

/// Holds two answers against each other: `Some` when both succeeded, `None` when both refused.
pub(super) fn same<T, U>(
    want: Answer<T>,
    got: warren_fs::Result<U>,
) -> Result<Option<(T, U)>, Trouble> {
    match (want, got) {
        (Ok(want), Ok(got)) => Ok(Some((want, got))),
        (Err(errnos), Err(error)) if errnos.contains(&error.errno()) => Ok(None),
        (_, Err(error)) if matches!(error.errno(), libc::EIO | libc::EROFS) => {
            Err(Trouble::Device(error))
        }
        (Ok(_), Err(error)) => Err(Trouble::mismatch(format!(
            "should succeed, failed: {error}"
        ))),
        (Err(errnos), Ok(_)) => Err(Trouble::mismatch(format!(
            "should fail with {errnos:?}, succeeded"
        ))),
        (Err(errnos), Err(error)) => Err(Trouble::mismatch(format!(
            "should fail with {errnos:?}, failed: {error}"
        ))),
    }
}

pub(super) fn same_value<T: PartialEq + Debug>(
    want: Answer<T>,
    got: warren_fs::Result<T>,
) -> Result<(), Trouble> {
    match same(want, got)? {
        Some((want, got)) if want != got => {
            let (mut want, mut got) = (format!("{want:?}"), format!("{got:?}"));
            want.truncate(200);
            got.truncate(200);
            Err(Trouble::mismatch(format!("want {want}, got {got}")))
        }
        _ => Ok(()),
    }
}
