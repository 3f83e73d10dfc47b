//! The subcommands. None: the sidecar itself.

mod ask;
mod run;

pub use ask::{retry, status};
pub use run::run;

/// The exit code of wrong usage, `EX_USAGE` of `sysexits.h`.
pub const EX_USAGE: u8 = 64;
