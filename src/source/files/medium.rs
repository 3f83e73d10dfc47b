//! What a file lies on, and so whether it is read quickly: before a thread of the blocking pool would be awake.

use std::os::fd::AsFd;

use rustix::fs::fstatfs;

/// What a file lies on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Medium {
    /// Memory (tmpfs), as Secrets and an emptyDir of medium Memory do.
    Memory,
    /// A disk of the node's own.
    Disk,
    /// Anything else: a network's file system may hang.
    Unknown,
}

/// How much is read quickly, in bytes: most ConfigMaps and Secrets are smaller.
pub const QUICK: u64 = 64 << 10;

/// `statfs(2)`.
const TMPFS: u64 = 0x0102_1994;
/// ext2 to ext4, XFS, Btrfs, and the overlay that a container's own files lie on.
const DISKS: [u64; 4] = [0xef53, 0x5846_5342, 0x9123_683e, 0x794c_7630];

impl Medium {
    /// What an open file or directory lies on.
    pub fn of(file: impl AsFd) -> rustix::io::Result<Self> {
        let kind = u64::try_from(fstatfs(file)?.f_type).ok();
        Ok(match kind {
            Some(TMPFS) => Self::Memory,
            Some(kind) if DISKS.contains(&kind) => Self::Disk,
            _ => Self::Unknown,
        })
    }
}
