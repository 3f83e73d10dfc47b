//! The system calls that read and change the output directory. In tests, `tests/faulty.rs` takes their place: there
//! each can be made to fail, to end the process, or to be forgotten by the disk.

#[cfg(not(test))]
pub(super) use self::real::{copy_file_range, renameat_noreplace};
#[cfg(test)]
pub(super) use super::tests::faulty::{
    copy_file_range, fchmod, fchown, fstat, fstatat, fsync, mkdirat, openat, read, readlinkat, renameat,
    renameat_noreplace, symlinkat, unlinkat, write,
};
#[cfg(not(test))]
pub(super) use nix::fcntl::{openat, readlinkat, renameat};
#[cfg(not(test))]
pub(super) use nix::sys::stat::{fchmod, fstat, fstatat, mkdirat};
#[cfg(not(test))]
pub(super) use nix::unistd::{fchown, fsync, read, symlinkat, unlinkat, write};

pub(super) mod real {
    use std::os::fd::AsFd;

    use nix::errno::Errno;
    use rustix::fs::{RenameFlags, renameat_with};

    /// copy_file_range(2) between places.
    pub(in crate::publish) fn copy_file_range(
        from: impl AsFd,
        at: &mut i64,
        into: impl AsFd,
        to: &mut i64,
        length: usize,
    ) -> nix::Result<usize> {
        nix::fcntl::copy_file_range(from, Some(at), into, Some(to), length)
    }

    /// renameat2(2) with `RENAME_NOREPLACE`. nix has it on glibc only.
    pub(in crate::publish) fn renameat_noreplace(
        from: impl AsFd,
        old: &str,
        into: impl AsFd,
        new: &str,
    ) -> nix::Result<()> {
        let renamed = renameat_with(from, old, into, new, RenameFlags::NOREPLACE);
        renamed.map_err(|errno| Errno::from_raw(errno.raw_os_error()))
    }
}
