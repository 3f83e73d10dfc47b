//! A child process as nix names processes.

use std::process::Child;

use nix::unistd::Pid;

/// Its number, which is its own until it is reaped.
pub fn pid_of(child: &Child) -> Pid {
    Pid::from_raw(child.id().cast_signed())
}
