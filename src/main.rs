//! The `trimtab` binary: parses, and hands over to a subcommand.

use std::process::ExitCode;

use nix::sys::resource::{Resource, setrlimit};
use nix::sys::stat::{Mode, umask};
use trimtab::cli;

fn main() -> ExitCode {
    forbid_core_dumps();
    // Before any thread: a tighter one would need a chmod of each directory, which loses its setgid bit.
    umask(Mode::S_IWGRP | Mode::S_IWOTH);
    match cli::parse() {
        Ok(cli) => cli::dispatch(cli),
        Err(code) => code,
    }
}

/// A core dump would hold every secret. One byte, not zero: that alone also keeps the kernel from piping it to a
/// program, as `core_pattern` may say (core(5), fs/coredump.c).
fn forbid_core_dumps() {
    // Lowering a limit needs no privilege; where it fails all the same, there is nothing to fall back to.
    let _ = setrlimit(Resource::RLIMIT_CORE, 1, 1);
}
