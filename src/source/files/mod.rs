//! Directories and files as sources: mounted volumes, templates, the downward API.
//!
//! inotify only wakes; what decides is a fresh read ([`read::reading`]) and its digest. So no event can be misread, and a lost
//! one costs until the next `--poll-interval`, never a wrong state. After an event, files whose stamps show no change
//! are not read again ([`stamp`]); a poll reads everything. One task and one inotify instance serve all roots
//! ([`watch`]): instances are few on a node (`fs.inotify.max_user_instances`, 128 for each user by default).
//!
//! **Whole volumes.** In the kubelet's layout (`pkg/volume/util/atomic_writer.go`) `..data` names the directory that
//! holds the content. It is opened once, everything is read below it, and `..data` is looked at again afterwards: if
//! it changed, the read starts anew. This holds for the root and for every directory below it that has a `..data`.
//! A directory without `..data` is read recursively, file by file; only a writer that renames its files into place
//! is never seen half way.
//!
//! **What is a key.** Regular files, by their path below the root, links followed. Not keys, and no trouble: names
//! that start with `..`, `lost+found`, pipes, sockets and devices, links to nothing (as editors' locks are), and links
//! to a directory above themselves.

mod budget;
mod medium;
mod mount;
mod read;
mod stamp;
#[cfg(test)]
mod volume;
mod watch;

use std::path::PathBuf;
use std::time::Duration;

use nix::errno::Errno;

pub use mount::{Frozen, frozen};
pub use watch::watch;

/// A directory, or a single file, that is read and followed.
#[derive(Clone, Debug)]
pub struct Root {
    /// The index that its updates carry.
    pub source: usize,
    /// NAME of `--watch-dir NAME=PATH`: the object's name.
    pub name: String,
    /// Where it is. Links on the way to it are followed wherever they lead.
    pub path: PathBuf,
    /// Whether its values are secret. `None`: if anything of it is on tmpfs, found out at each read.
    pub secret: Option<bool>,
}

/// What [`watch`] does.
#[derive(Clone, Debug)]
pub struct Config {
    pub roots: Vec<Root>,
    /// `--poll-interval`: every root is read again this often, whatever inotify says. Zero: never.
    pub poll_interval: Duration,
    /// `--max-size`: the largest sum of keys and values of all roots together, in bytes.
    pub max_size: u64,
    /// `--debounce`: the longest pause after a read.
    pub debounce: Duration,
}

/// Why a root cannot be read, or its changes cannot be seen. Each is retried: what was known stays.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FilesError {
    /// A system call failed.
    #[error("cannot read {path:?}: {errno}{}", remedy(*errno))]
    Io { path: PathBuf, errno: Errno },
    /// The kernel or the seccomp profile has no openat2, without which links cannot be held inside the directory.
    #[error(
        "cannot open {path:?}: {errno}; the openat2 system call is needed: Linux 5.6 or newer, and a seccomp profile \
         that allows it (a container runtime's default from 2021 or later, seccompProfile RuntimeDefault)"
    )]
    Openat2 {
        path: PathBuf,
        /// `ENOSYS`, or `EPERM` as older profiles answer.
        errno: Errno,
    },
    /// A link inside the directory leads out of it.
    #[error(
        "{link:?} is absolute or leads out of the watched directory {root:?}, and is not followed; let it be relative \
         and stay inside, or watch the directory that holds both"
    )]
    Escapes { root: PathBuf, link: PathBuf },
    /// `..data` names nothing.
    #[error("{link:?} names {target:?}, which does not exist: the volume is not written to the end")]
    NoData { link: PathBuf, target: PathBuf },
    /// The content changed during each of several reads.
    #[error("{path:?} changed during each of {attempts} reads; it is read again later")]
    Unsettled { path: PathBuf, attempts: u32 },
    /// The root is a pipe, a socket or a device.
    #[error("{path:?} is neither a directory nor a regular file")]
    NoFile { path: PathBuf },
    /// A name is not UTF-8, and cannot be a key. (`path` shows what is not with `\x`.)
    #[error("the name of {path:?} is not UTF-8 and cannot be a key; rename it")]
    Name { path: PathBuf },
    /// The keys and values are larger than allowed.
    #[error("{path:?} holds more than {limit} bytes; raise --max-size, or watch a smaller directory")]
    TooLarge { path: PathBuf, limit: u64 },
    /// It alone would fit, but not beside what the others hold.
    #[error("{} together hold more than {limit} bytes; raise --max-size, or watch smaller directories", list(paths))]
    TooLargeTogether { paths: Vec<PathBuf>, limit: u64 },
    /// There are too many entries.
    #[error("{path:?} holds more than {limit} files and directories; watch a smaller directory")]
    TooMany { path: PathBuf, limit: usize },
    /// Directories are nested too deeply.
    #[error("{path:?} is more than {limit} directories deep; watch a directory further down")]
    TooDeep { path: PathBuf, limit: usize },
    /// What is mounted here can be read, but will never change.
    #[error(
        "{path:?} is a subPath volumeMount, which the kubelet never updates: changes will be seen after a restart of the \
         Pod alone; mount the whole volume (a volumeMount without subPath) and watch that directory"
    )]
    Frozen { path: PathBuf },
    /// The kubelet has replaced what is mounted here, and this mount will never show it.
    #[error(
        "{path:?} is a subPath volumeMount, and the volume behind it has changed: the kubelet never updates such a \
         mount; mount the whole volume (a volumeMount without subPath) and watch that directory"
    )]
    SubPath { path: PathBuf },
    /// Neither inotify nor polling reports changes.
    #[error(
        "changes of {path:?} will not be seen: {cause}, and --poll-interval is 0; set --poll-interval, or raise the \
         limit"
    )]
    Blind { path: PathBuf, cause: InotifyError },
}

impl FilesError {
    /// Whether a permission is missing.
    #[must_use]
    pub fn forbidden(&self) -> bool {
        matches!(self, Self::Io { errno: Errno::EACCES | Errno::EPERM, .. })
    }
}

/// Why inotify cannot report changes. Tried again at each read; meanwhile `--poll-interval` finds them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InotifyError {
    /// No instance could be made.
    #[error("no inotify instance: {0} (a node's limit: sysctl fs.inotify.max_user_instances)")]
    Instance(Errno),
    /// A directory could not be watched.
    #[error("no inotify watch: {0} (a node's limit: sysctl fs.inotify.max_user_watches)")]
    Watch(Errno),
}

#[expect(clippy::unnecessary_debug_formatting, reason = "quoted and escaped, as in the other messages")]
fn list(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| format!("{path:?}")).collect::<Vec<_>>().join(", ")
}

/// What may be done about a failed system call.
fn remedy(errno: Errno) -> &'static str {
    match errno {
        Errno::EACCES => {
            "; the container's user must be able to read it: see the volume's defaultMode, the Pod's fsGroup and the \
             container's runAsUser"
        }
        Errno::ELOOP => "; a link leads back to itself, or through /proc: fix or remove it",
        Errno::ENOTDIR => "; a file stands where the path needs a directory",
        Errno::EMFILE | Errno::ENFILE => "; too many files are open",
        _ => "",
    }
}
