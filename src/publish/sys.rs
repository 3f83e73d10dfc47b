//! The system calls by which the output directory is read and changed: the tests put theirs in the place of these, and
//! let each fail, die and be forgotten.

#[cfg(not(test))]
pub(super) use rustix::fs::{
    fchmod, fchown, fstat, fsync, mkdirat, openat, readlinkat, renameat, renameat_with, statat, symlinkat, unlinkat,
};
#[cfg(not(test))]
pub(super) use rustix::io::{read, write};

#[cfg(test)]
pub(super) use super::tests::faulty::{
    fchmod, fchown, fstat, fsync, mkdirat, openat, read, readlinkat, renameat, renameat_with, statat, symlinkat,
    unlinkat, write,
};
