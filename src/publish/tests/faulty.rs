//! The system calls of the output directory, for tests: counted, made to fail, cut off as by a crash, written down.
//!
//! All of it is per thread, and a thread that asks for nothing gets the calls themselves.

use std::cell::RefCell;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::rc::Rc;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::{FileStat, Mode};
use nix::unistd::{Gid, Uid, UnlinkatFlags};
use nix::{NixPath, Result};

use crate::publish::dir::is_file;
use crate::publish::sys::real;

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::publish) enum Fault {
    /// This call fails, and nothing has happened.
    Fails(Errno),
    /// This call fails, but has happened: as a rename does whose answer is lost.
    LosesAnswer(Errno),
    /// From this call on, all that would change something fail.
    Lasts(Errno),
    /// The process dies before this call.
    Dies,
}

/// A change of the file system. Directories and files go by their inode number.
#[derive(Clone, Debug)]
pub(in crate::publish) enum Change {
    Made {
        at: u64,
        name: String,
        inode: u64,
        node: Node,
    },
    Wrote {
        inode: u64,
        bytes: Vec<u8>,
    },
    Renamed {
        at: u64,
        from: String,
        into: u64,
        to: String,
    },
    Removed {
        at: u64,
        name: String,
    },
    Synced {
        inode: u64,
    },
    /// Not a change: what the test notes in between.
    Noted(String),
}

/// What was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::publish) enum Node {
    File,
    Directory,
    Link(String),
}

#[derive(Default)]
struct Layer {
    calls: usize,
    /// Which of the calls would change something.
    changes: Vec<bool>,
    fault: Option<(usize, Fault)>,
    dead: bool,
    /// Called before each change.
    watch: Option<Rc<dyn Fn()>>,
    log: Option<Vec<Change>>,
    /// How much the kernel copies from file to file before it refuses to, and by what.
    copies: Option<(usize, Errno)>,
    /// The permissions that all files have, whatever mode they are given.
    modes: Option<u32>,
}

thread_local! {
    static LAYER: RefCell<Layer> = RefCell::default();
}

fn with<T>(work: impl FnOnce(&mut Layer) -> T) -> T {
    LAYER.with_borrow_mut(work)
}

/// Begins to count from 0, with a fault at one of the calls.
pub(in crate::publish) fn arm(fault: Option<(usize, Fault)>) {
    with(|layer| {
        (layer.calls, layer.dead, layer.fault) = (0, false, fault);
        layer.changes.clear();
    });
}

/// Ends all faults, and brings the dead to life; the calls since the beginning, and whether each would change something.
pub(in crate::publish) fn disarm() -> Vec<bool> {
    with(|layer| {
        (layer.dead, layer.fault) = (false, None);
        std::mem::take(&mut layer.changes)
    })
}

pub(in crate::publish) fn is_dead() -> bool {
    with(|layer| layer.dead)
}

/// Has `watch` called before each change, once there was a fault, or if there will be none.
pub(in crate::publish) fn watch(watch: Option<Rc<dyn Fn()>>) {
    with(|layer| layer.watch = watch);
}

/// From now on the file system keeps no modes of files.
pub(in crate::publish) fn keep_no_modes(permissions: Option<u32>) {
    with(|layer| layer.modes = permissions);
}

/// From now on the kernel copies so many bytes from file to file, and refuses then.
pub(in crate::publish) fn refuse_copies(copies: Option<(usize, Errno)>) {
    with(|layer| layer.copies = copies);
}

fn shown(mut stat: FileStat) -> FileStat {
    let modes = with(|layer| layer.modes).filter(|_| is_file(&stat));
    stat.st_mode = modes.map_or(stat.st_mode, |modes| stat.st_mode & !0o777 | modes);
    stat
}

/// Begins to write down.
pub(in crate::publish) fn record() {
    with(|layer| layer.log = Some(Vec::new()));
}

/// Ends to write down.
pub(in crate::publish) fn recorded() -> Vec<Change> {
    with(|layer| layer.log.take().unwrap_or_default())
}

pub(in crate::publish) fn note(text: impl Into<String>) {
    log(|| Change::Noted(text.into()));
}

fn log(change: impl FnOnce() -> Change) {
    with(|layer| {
        if let Some(log) = &mut layer.log {
            log.push(change());
        }
    });
}

fn call<T>(changes: bool, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let watch = with(|layer| {
        // Until the fault, all is as it is without one.
        let now = changes && !layer.dead && layer.fault.is_none_or(|(at, _)| layer.calls > at);
        layer.watch.clone().filter(|_| now)
    });
    if let Some(watch) = watch {
        watch();
    }
    let fault = with(|layer| {
        if layer.dead {
            return Some(Fault::Dies);
        }
        let call = layer.calls;
        layer.calls += 1;
        layer.changes.push(changes);
        let fault = layer.fault.filter(|(at, fault)| match fault {
            Fault::Lasts(_) => call >= *at && (changes || call == *at),
            Fault::LosesAnswer(_) => call == *at && changes,
            _ => call == *at,
        });
        layer.dead |= matches!(fault, Some((_, Fault::Dies)));
        fault.map(|(_, fault)| fault)
    });
    match fault {
        None => work(),
        Some(Fault::Fails(errno) | Fault::Lasts(errno)) => Err(errno),
        Some(Fault::LosesAnswer(errno)) => work().and(Err(errno)),
        // The caller is as good as dead, and nothing that it does reaches the disk.
        Some(Fault::Dies) => Err(Errno::EOWNERDEAD),
    }
}

fn inode(fd: impl AsFd) -> u64 {
    nix::sys::stat::fstat(fd).unwrap().st_ino
}

fn inode_at(at: impl AsFd, name: &str) -> u64 {
    nix::sys::stat::fstatat(at, name, AtFlags::AT_SYMLINK_NOFOLLOW).unwrap().st_ino
}

fn text<P: NixPath + ?Sized>(name: &P) -> String {
    name.with_nix_path(|name| name.to_string_lossy().into_owned()).unwrap()
}

pub(in crate::publish) fn openat<P: NixPath + ?Sized>(
    at: impl AsFd,
    name: &P,
    flags: OFlag,
    mode: Mode,
) -> Result<OwnedFd> {
    let creates = flags.contains(OFlag::O_CREAT);
    let name = text(name);
    call(creates, || {
        let is_new = creates && nix::sys::stat::fstatat(&at, name.as_str(), AtFlags::AT_SYMLINK_NOFOLLOW).is_err();
        let fd = nix::fcntl::openat(&at, name.as_str(), flags, mode)?;
        if is_new {
            log(|| Change::Made { at: inode(&at), name, inode: inode(&fd), node: Node::File });
        }
        Ok(fd)
    })
}

pub(in crate::publish) fn mkdirat<P: NixPath + ?Sized>(at: impl AsFd, name: &P, mode: Mode) -> Result<()> {
    let name = text(name);
    call(true, || {
        nix::sys::stat::mkdirat(&at, name.as_str(), mode)?;
        let inode_of = inode_at(&at, &name);
        log(|| Change::Made { at: inode(&at), name, inode: inode_of, node: Node::Directory });
        Ok(())
    })
}

pub(in crate::publish) fn symlinkat(target: &str, at: impl AsFd, name: &str) -> Result<()> {
    call(true, || {
        nix::unistd::symlinkat(target, &at, name)?;
        let inode_of = inode_at(&at, name);
        let node = Node::Link(target.to_owned());
        log(|| Change::Made { at: inode(&at), name: name.to_owned(), inode: inode_of, node });
        Ok(())
    })
}

pub(in crate::publish) fn renameat(at: impl AsFd, from: &str, into: impl AsFd, to: &str) -> Result<()> {
    renamed(&at, from, &into, to, || nix::fcntl::renameat(&at, from, &into, to))
}

pub(in crate::publish) fn renameat_noreplace(at: impl AsFd, from: &str, into: impl AsFd, to: &str) -> Result<()> {
    renamed(&at, from, &into, to, || real::renameat_noreplace(&at, from, &into, to))
}

fn renamed(at: impl AsFd, from: &str, into: impl AsFd, to: &str, rename: impl FnOnce() -> Result<()>) -> Result<()> {
    call(true, || {
        rename()?;
        let (from, to) = (from.to_owned(), to.to_owned());
        log(|| Change::Renamed { at: inode(&at), from, into: inode(&into), to });
        Ok(())
    })
}

pub(in crate::publish) fn unlinkat<P: NixPath + ?Sized>(at: impl AsFd, name: &P, flag: UnlinkatFlags) -> Result<()> {
    let name = text(name);
    call(true, || {
        nix::unistd::unlinkat(&at, name.as_str(), flag)?;
        log(|| Change::Removed { at: inode(&at), name });
        Ok(())
    })
}

pub(in crate::publish) fn write(fd: impl AsFd, bytes: &[u8]) -> Result<usize> {
    call(true, || {
        let written = nix::unistd::write(&fd, bytes)?;
        log(|| Change::Wrote { inode: inode(&fd), bytes: bytes[..written].to_vec() });
        Ok(written)
    })
}

pub(in crate::publish) fn copy_file_range(
    from: impl AsFd,
    at: &mut i64,
    into: impl AsFd,
    to: &mut i64,
    length: usize,
) -> Result<usize> {
    call(true, || {
        let begin = *to;
        let length = with(|layer| match &mut layer.copies {
            None => Ok(length),
            Some((0, errno)) => Err(*errno),
            Some((left, _)) => {
                let most = length.min(*left);
                *left -= most;
                Ok(most)
            }
        })?;
        let copied = real::copy_file_range(from, at, &into, to, length)?;
        log(|| {
            let mut bytes = vec![0; copied];
            let file = std::fs::File::from(into.as_fd().try_clone_to_owned().unwrap());
            file.read_exact_at(&mut bytes, begin.try_into().unwrap()).unwrap();
            Change::Wrote { inode: inode(&into), bytes }
        });
        Ok(copied)
    })
}

pub(in crate::publish) fn fsync(fd: impl AsFd) -> Result<()> {
    call(true, || {
        nix::unistd::fsync(&fd)?;
        log(|| Change::Synced { inode: inode(&fd) });
        Ok(())
    })
}

pub(in crate::publish) fn fchmod(fd: impl AsFd, mode: Mode) -> Result<()> {
    call(true, || nix::sys::stat::fchmod(fd, mode))
}

pub(in crate::publish) fn fchown(fd: impl AsFd, owner: Option<Uid>, group: Option<Gid>) -> Result<()> {
    call(true, || nix::unistd::fchown(fd, owner, group))
}

pub(in crate::publish) fn fstat(fd: impl AsFd) -> Result<FileStat> {
    call(false, || nix::sys::stat::fstat(fd).map(shown))
}

pub(in crate::publish) fn fstatat<P: NixPath + ?Sized>(at: impl AsFd, name: &P, flags: AtFlags) -> Result<FileStat> {
    call(false, || nix::sys::stat::fstatat(at, name, flags).map(shown))
}

pub(in crate::publish) fn readlinkat<P: NixPath + ?Sized>(at: impl AsFd, name: &P) -> Result<std::ffi::OsString> {
    call(false, || nix::fcntl::readlinkat(at, name))
}

pub(in crate::publish) fn read(fd: impl AsFd, buffer: &mut [u8]) -> Result<usize> {
    call(false, || nix::unistd::read(fd, buffer))
}
