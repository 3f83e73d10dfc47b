//! `/proc`: the processes that are visible, and the form of their command lines (proc(5)).

use std::collections::BTreeSet;
use std::fs;
use std::io;

/// The pids of all processes that are visible.
pub fn pids() -> io::Result<BTreeSet<i32>> {
    let mut pids = BTreeSet::new();
    for entry in fs::read_dir("/proc")? {
        pids.extend(entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok()));
    }
    Ok(pids)
}

/// The arguments of a `proc_pid_cmdline(5)`.
pub fn words(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    line.strip_suffix(b"\0").unwrap_or(line).split(|&byte| byte == 0)
}
