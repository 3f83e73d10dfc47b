//! Other processes of this program in the same container.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::MetadataExt as _;

use super::proc::{pids, words};

/// The pids and command lines of those that run this very file, as this user, in this mount namespace: that is a container's
/// own, where a process namespace may be a Pod's.
pub fn command_lines() -> io::Result<Vec<(i32, Vec<OsString>)>> {
    let me = nix::unistd::getpid().as_raw();
    let ours = identity("self").ok_or_else(|| io::Error::other("/proc/self cannot be read"))?;
    let mut found = Vec::new();
    for pid in pids()? {
        // Another user's cannot be looked at, and what has ended is not there.
        if pid == me || identity(&pid.to_string()).as_ref() != Some(&ours) {
            continue;
        }
        let Ok(line) = fs::read(format!("/proc/{pid}/cmdline")) else { continue };
        found.push((pid, words(&line).map(|word| OsString::from_vec(word.to_vec())).collect()));
    }
    Ok(found)
}

/// The program's file, the mount namespace, the user.
fn identity(pid: &str) -> Option<(u64, u64, OsString, u32)> {
    let program = fs::metadata(format!("/proc/{pid}/exe")).ok()?;
    let namespace = fs::read_link(format!("/proc/{pid}/ns/mnt")).ok()?;
    let user = fs::metadata(format!("/proc/{pid}")).ok()?.uid();
    Some((program.dev(), program.ino(), namespace.into_os_string(), user))
}
