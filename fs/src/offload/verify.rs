//! Verifying kernels before they are registered, where the mount asks for it.

use csd_vm::LoadedProgram;
use csd_vm::program::{LinkLimits, Program};
use csd_vm::verify::{VerifyLimits, verify};

use super::register::load_error;
use crate::error::{Error, Result};

/// Whether kernels are verified before they are registered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Verify {
    /// They are not: the cage holds them.
    #[default]
    Off,
    /// What the verifier says goes to the log.
    Report,
    /// What it does not accept is refused.
    Require,
}

/// Whether the verifier accepts a program.
///
/// # Errors
/// `KernelRefused` with its first reasons, or with why it has no verdict.
pub fn verdict(program: &LoadedProgram) -> Result<()> {
    let refused = |why: String| Err(Error::KernelRefused(format!("not verified: {why}")));
    let linked = Program::link(program.object(), &LinkLimits::default())
        .map_err(|error| load_error(csd_vm::LoadError::Refused(error.to_string())))?;
    match verify(&linked, &VerifyLimits::default()) {
        Ok(report) if report.accepted() => Ok(()),
        Ok(report) => {
            let reasons: Vec<String> = report.reasons.iter().map(ToString::to_string).collect();
            refused(reasons.join("; "))
        }
        Err(error) => refused(error.to_string()),
    }
}

impl Verify {
    /// Applies it to a program.
    pub(super) fn check(self, program: &LoadedProgram) -> Result<()> {
        if self == Verify::Off {
            return Ok(());
        }
        match verdict(program) {
            Err(error) if self == Verify::Report => {
                tracing::warn!("{error}");
                Ok(())
            }
            verdict => verdict,
        }
    }
}
