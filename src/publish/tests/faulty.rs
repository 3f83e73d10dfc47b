//! The system calls of the output directory, for tests: counted, made to fail, cut off as by a crash, written down.
//!
//! All of it is per thread, and a thread that asks for nothing gets the calls themselves.

use std::cell::RefCell;
use std::rc::Rc;

use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, Gid, Mode, OFlags, RenameFlags, Stat, Uid};
use rustix::io::{Errno, Result};
use rustix::path::Arg;

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::publish) enum Fault {
    /// This call fails, and nothing has happened.
    Fails(Errno),
    /// This call fails, but has happened: as a rename does whose answer is lost.
    Lies(Errno),
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
            Fault::Lies(_) => call == *at && changes,
            _ => call == *at,
        });
        layer.dead |= matches!(fault, Some((_, Fault::Dies)));
        fault.map(|(_, fault)| fault)
    });
    match fault {
        None => work(),
        Some(Fault::Fails(errno) | Fault::Lasts(errno)) => Err(errno),
        Some(Fault::Lies(errno)) => work().and(Err(errno)),
        // The caller is as good as dead, and nothing that it does reaches the disk.
        Some(Fault::Dies) => Err(Errno::OWNERDEAD),
    }
}

fn inode(fd: impl AsFd) -> u64 {
    rustix::fs::fstat(fd).unwrap().st_ino
}

fn inode_at(at: impl AsFd, name: &str) -> u64 {
    rustix::fs::statat(at, name, AtFlags::SYMLINK_NOFOLLOW).unwrap().st_ino
}

fn text(name: impl Arg) -> String {
    name.into_c_str().unwrap().to_string_lossy().into_owned()
}

pub(in crate::publish) fn openat<Fd: AsFd>(at: Fd, name: impl Arg, flags: OFlags, mode: Mode) -> Result<OwnedFd> {
    let creates = flags.contains(OFlags::CREATE);
    let name = text(name);
    call(creates, || {
        let is_new = creates && rustix::fs::statat(&at, name.as_str(), AtFlags::SYMLINK_NOFOLLOW).is_err();
        let fd = rustix::fs::openat(&at, name.as_str(), flags, mode)?;
        if is_new {
            log(|| Change::Made { at: inode(&at), name, inode: inode(&fd), node: Node::File });
        }
        Ok(fd)
    })
}

pub(in crate::publish) fn mkdirat<Fd: AsFd>(at: Fd, name: impl Arg, mode: Mode) -> Result<()> {
    let name = text(name);
    call(true, || {
        rustix::fs::mkdirat(&at, name.as_str(), mode)?;
        let inode_of = inode_at(&at, &name);
        log(|| Change::Made { at: inode(&at), name, inode: inode_of, node: Node::Directory });
        Ok(())
    })
}

pub(in crate::publish) fn symlinkat<Fd: AsFd>(target: impl Arg, at: Fd, name: impl Arg) -> Result<()> {
    let (target, name) = (text(target), text(name));
    call(true, || {
        rustix::fs::symlinkat(target.as_str(), &at, name.as_str())?;
        let inode_of = inode_at(&at, &name);
        log(|| Change::Made { at: inode(&at), name, inode: inode_of, node: Node::Link(target) });
        Ok(())
    })
}

pub(in crate::publish) fn renameat<Fd: AsFd, To: AsFd>(at: Fd, from: impl Arg, into: To, to: impl Arg) -> Result<()> {
    renameat_with(at, from, into, to, RenameFlags::empty())
}

pub(in crate::publish) fn renameat_with<Fd: AsFd, To: AsFd>(
    at: Fd,
    from: impl Arg,
    into: To,
    to: impl Arg,
    flags: RenameFlags,
) -> Result<()> {
    let (from, to) = (text(from), text(to));
    call(true, || {
        rustix::fs::renameat_with(&at, from.as_str(), &into, to.as_str(), flags)?;
        log(|| Change::Renamed { at: inode(&at), from, into: inode(&into), to });
        Ok(())
    })
}

pub(in crate::publish) fn unlinkat<Fd: AsFd>(at: Fd, name: impl Arg, flags: AtFlags) -> Result<()> {
    let name = text(name);
    call(true, || {
        rustix::fs::unlinkat(&at, name.as_str(), flags)?;
        log(|| Change::Removed { at: inode(&at), name });
        Ok(())
    })
}

pub(in crate::publish) fn write<Fd: AsFd>(fd: Fd, bytes: &[u8]) -> Result<usize> {
    call(true, || {
        let written = rustix::io::write(&fd, bytes)?;
        log(|| Change::Wrote { inode: inode(&fd), bytes: bytes[..written].to_vec() });
        Ok(written)
    })
}

pub(in crate::publish) fn fsync<Fd: AsFd>(fd: Fd) -> Result<()> {
    call(true, || {
        rustix::fs::fsync(&fd)?;
        log(|| Change::Synced { inode: inode(&fd) });
        Ok(())
    })
}

pub(in crate::publish) fn fchmod<Fd: AsFd>(fd: Fd, mode: Mode) -> Result<()> {
    call(true, || rustix::fs::fchmod(fd, mode))
}

pub(in crate::publish) fn fchown<Fd: AsFd>(fd: Fd, owner: Option<Uid>, group: Option<Gid>) -> Result<()> {
    call(true, || rustix::fs::fchown(fd, owner, group))
}

pub(in crate::publish) fn fstat<Fd: AsFd>(fd: Fd) -> Result<Stat> {
    call(false, || rustix::fs::fstat(fd))
}

pub(in crate::publish) fn statat<Fd: AsFd>(at: Fd, name: impl Arg, flags: AtFlags) -> Result<Stat> {
    call(false, || rustix::fs::statat(at, name, flags))
}

pub(in crate::publish) fn readlinkat<Fd: AsFd>(at: Fd, name: impl Arg, buffer: Vec<u8>) -> Result<std::ffi::CString> {
    call(false, || rustix::fs::readlinkat(at, name, buffer))
}

pub(in crate::publish) fn read<Fd: AsFd>(fd: Fd, buffer: &mut [u8]) -> Result<usize> {
    call(false, || rustix::io::read(fd, buffer))
}
