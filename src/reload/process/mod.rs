//! The main process: found by name, command line or pid file, checked, held by a pidfd, and signalled through it.
//!
//! A pid is a number that the kernel gives out again; a pidfd is one process for ever. So the order is: choose among
//! `/proc`, open a pidfd, read the identity (start time, name) again. If it is unchanged, the pidfd is of the process
//! that was chosen, and whatever happens to the number later, the signal reaches that process or nobody.

mod clock;
mod find;
mod mounts;
mod reader;
mod signal;
mod table;
mod target;

#[cfg(test)]
mod tests;

pub use clock::{Clock, ticks};
pub use find::{FindError, Selector, find};
pub use mounts::{Lookout, frozen_mount};
pub use reader::Reader;
pub use signal::{ParseSignalError, Signal};
pub use target::{ChildId, SignalError, Target};

/// What fuzzing reaches: each parser of a text of `/proc` or of a pid file, on the same bytes. Returns the name that
/// messages would show.
#[cfg(fuzzing)]
#[must_use]
pub fn parse_all(bytes: &[u8]) -> Option<String> {
    let handled = |status: table::ProcStatus| {
        Signal::all().filter(|signal| status.catches(*signal) || status.blocks(*signal)).count()
    };
    let _ = table::ProcStatus::parse(bytes).map(handled);
    let _ = str::from_utf8(bytes).ok().and_then(Reader::parse).map(|reader| reader.may(4, 0, 0, 0o640));
    let _ = (crate::os::proc::words(bytes).count(), find::decimal(bytes), crate::os::mounts::parse(bytes).count());
    table::Process::parse(bytes).map(|process| table::printable(&process.comm))
}
