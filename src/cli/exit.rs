//! The exit codes, of `sysexits.h` where there is one.

use std::process::ExitCode;

use crate::app::End;

/// An exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Done = 0,
    StartUp = 1,
    /// `EX_USAGE`.
    Usage = 64,
    /// `EX_DATAERR`.
    Rejected = 65,
    /// `EX_UNAVAILABLE`.
    Unavailable = 69,
    /// `EX_CANTCREAT`.
    CannotWrite = 73,
    /// `EX_NOPERM`.
    Forbidden = 77,
    /// As a shell reports an end by SIGTERM.
    Interrupted = 143,
}

impl From<End> for Exit {
    fn from(end: End) -> Self {
        match end {
            End::Done => Self::Done,
            End::StartUp => Self::StartUp,
            End::Usage => Self::Usage,
            End::Rejected => Self::Rejected,
            End::Unavailable => Self::Unavailable,
            End::CannotWrite => Self::CannotWrite,
            End::Forbidden => Self::Forbidden,
            End::Interrupted => Self::Interrupted,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        (exit as u8).into()
    }
}
