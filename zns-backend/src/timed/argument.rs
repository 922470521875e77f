//! The part of a device argument that asks for timing: `PATH?timing=zn540&clock=virtual`.

use std::fmt;
use std::sync::Arc;

use super::{Clock, Profile, TimedDevice};
use crate::device::ZonedDevice;
use crate::error::{Error, Result};

const BEGIN: &str = "?timing=";

/// How a device is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// What it is like.
    pub profile: Profile,
    /// Which time passes; `real` unless given.
    pub clock: Clock,
}

impl Timing {
    /// Splits a device argument into the device and its timing.
    ///
    /// # Errors
    /// [`Error::BadImage`] naming what is unknown.
    pub fn split(argument: &str) -> Result<(&str, Option<Timing>)> {
        let Some((device, timing)) = argument.split_once(BEGIN) else {
            return Ok((argument, None));
        };
        let bad = |problem: String| Error::BadImage(format!("{argument}: {problem}"));
        let mut options = timing.split('&');
        let profile = Profile::named(options.next().unwrap_or_default())?;
        let mut clock = Clock::Real;
        for option in options {
            clock = match option {
                "clock=real" => Clock::Real,
                "clock=virtual" => Clock::Virtual,
                _ => {
                    return Err(bad(format!(
                        "'{option}' is neither clock=real nor clock=virtual"
                    )));
                }
            };
        }
        Ok((device, Some(Timing { profile, clock })))
    }

    /// Gives `device` this timing.
    #[must_use]
    pub fn apply(self, device: Arc<dyn ZonedDevice>) -> Arc<dyn ZonedDevice> {
        Arc::new(TimedDevice::new(device, self.profile, self.clock))
    }
}

impl fmt::Display for Timing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let clock = match self.clock {
            Clock::Real => "",
            Clock::Virtual => "&clock=virtual",
        };
        write!(f, "{BEGIN}{}{clock}", self.profile.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timing_is_told_from_the_device_and_written_as_it_was_read() {
        for argument in ["a.img?timing=zn540", "mem:1G?timing=zn540&clock=virtual"] {
            let (device, timing) = Timing::split(argument).expect(argument);
            let timing = timing.expect("there is one");
            assert_eq!(format!("{device}{timing}"), argument);
        }
        assert_eq!(Timing::split("a?b").expect("a path"), ("a?b", None));
    }

    #[test]
    fn unknown_profiles_and_clocks_are_named() {
        for (argument, named) in [
            ("a?timing=floppy", "floppy"),
            ("a?timing=zn540&clock=sun", "clock=sun"),
            ("a?timing=zn540&speed=9", "speed=9"),
        ] {
            let error = Timing::split(argument).expect_err(argument).to_string();
            assert!(error.contains(named), "{error}");
        }
    }
}
