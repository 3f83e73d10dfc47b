//! The signals that may make a process reload.

use std::fmt;
use std::str::FromStr;

use nix::sys::signal::Signal as Raw;

/// A signal that may make a process reload. Read from `SIGHUP`, `HUP`, `hup` or `1`; prints as `SIGHUP`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Signal(Raw);

/// Why a text is no [`Signal`]. Fatal: it comes from the command line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseSignalError {
    #[error("{0} cannot be handled by any process, so it never makes one reload; SIGTERM ends a process in good order")]
    Uncatchable(&'static str),
    #[error(
        "not a signal: give a name such as SIGHUP, HUP or USR1, or its number; real-time signals are not supported"
    )]
    Unknown,
}

impl Signal {
    /// Whether it is sent to end a process: TERM, INT or QUIT do so with or without a handler, and another process is
    /// expected in its place. Any other signal that nobody handles kills, stops, or is lost.
    #[must_use]
    pub fn ends(self) -> bool {
        [Raw::SIGTERM, Raw::SIGINT, Raw::SIGQUIT].contains(&self.0)
    }

    pub(super) fn number(self) -> i32 {
        self.0 as i32
    }

    /// Its bit in the masks of `proc_pid_status(5)`.
    pub(super) fn bit(self) -> u64 {
        1 << (self.number() - 1)
    }

    #[cfg(any(test, fuzzing))]
    pub(super) fn all() -> impl Iterator<Item = Self> {
        Raw::iterator().filter(|raw| ![Raw::SIGKILL, Raw::SIGSTOP].contains(raw)).map(Self)
    }
}

impl FromStr for Signal {
    type Err = ParseSignalError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let upper = text.trim().to_ascii_uppercase();
        let bare = upper.strip_prefix("SIG").unwrap_or(&upper);
        let named = || format!("SIG{bare}").parse().ok();
        let numbered = || Raw::try_from(bare.parse::<i32>().ok()?).ok();
        match named().or_else(numbered) {
            Some(raw @ (Raw::SIGKILL | Raw::SIGSTOP)) => Err(ParseSignalError::Uncatchable(raw.as_str())),
            Some(raw) => Ok(Self(raw)),
            None => Err(ParseSignalError::Unknown),
        }
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_str())
    }
}

impl fmt::Debug for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn signal(name: &str) -> Signal {
        name.parse().unwrap()
    }

    #[test]
    fn signals_are_read_by_name_and_number() {
        for text in ["SIGHUP", "HUP", "hup", "sighup", " 1 "] {
            assert_eq!(signal(text).to_string(), "SIGHUP", "{text}");
        }
        for each in Signal::all() {
            assert_eq!(signal(&each.to_string()), each);
            assert_eq!(signal(&each.number().to_string()), each);
        }
        for text in ["KILL", "SIGKILL", "9", "STOP", "sigstop", &(Raw::SIGSTOP as i32).to_string()] {
            let error = text.parse::<Signal>().unwrap_err();
            assert!(matches!(error, ParseSignalError::Uncatchable(_)), "{text}");
        }
        for text in ["", "0", "-1", "SIG", "SIGSIGHUP", "HUPPY", "64", "99999999999", "RTMIN", "+1x"] {
            assert_eq!(text.parse::<Signal>(), Err(ParseSignalError::Unknown), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_signal_or_refused(text in ".{0,12}") {
            if let Ok(signal) = text.parse::<Signal>() {
                prop_assert_eq!(signal.to_string().parse::<Signal>(), Ok(signal));
            }
        }
    }
}
