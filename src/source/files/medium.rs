//! What a file is stored on, and so whether it is read quickly: before a thread of the blocking pool would be awake.

use std::os::fd::AsFd;

use nix::sys::statfs::{BTRFS_SUPER_MAGIC, EXT4_SUPER_MAGIC, FsType, OVERLAYFS_SUPER_MAGIC, TMPFS_MAGIC, fstatfs};

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

/// statfs(2); nix does not name it for musl.
const XFS_SUPER_MAGIC: FsType = FsType(0x5846_5342);

/// ext2 to ext4, XFS, Btrfs, and the overlay that a container's own files are on.
const DISKS: [FsType; 4] = [EXT4_SUPER_MAGIC, XFS_SUPER_MAGIC, BTRFS_SUPER_MAGIC, OVERLAYFS_SUPER_MAGIC];

impl Medium {
    /// What an open file or directory is stored on.
    pub fn of(file: impl AsFd) -> nix::Result<Self> {
        let kind = fstatfs(file)?.filesystem_type();
        Ok(match kind {
            TMPFS_MAGIC => Self::Memory,
            kind if DISKS.contains(&kind) => Self::Disk,
            _ => Self::Unknown,
        })
    }
}
