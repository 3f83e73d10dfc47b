//! Wake-ups by notify: one inotify instance for all roots, a watch for each directory in which something matters.
//!
//! notify keys watches by path and drops one when its path is removed or renamed, whichever directory has the path by
//! then. Each such event reaches us as well and leads to a read, and a read sets again what does not stand: so no watch is
//! missing for long. The mask is fixed and has OPEN in it, so what we read ourselves comes back as events: [`matters`]
//! drops them before anybody is woken.

use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use nix::errno::Errno;
use nix::fcntl::readlink;
use nix::sys::stat::{SFlag, stat};
use notify::event::{AccessKind, AccessMode, Event, EventKind, ModifyKind};
use notify::{ErrorKind, INotifyWatcher, RecursiveMode, Watcher};
use tokio::sync::Notify;

use super::super::InotifyError;
use super::super::read::DATA;

/// The most paths kept until the task takes them; with more, every root is read.
const MAX_PATHS: usize = 1024;

/// How many links are followed on the way to a root, as by the kernel (`path_resolution(7)`).
const MAX_LINKS: usize = 40;

/// Device and inode: a directory by whatever path. By two bind mounts it has two, and notify reports the last.
pub(super) type Identity = (u64, u64);

/// Which names in each watched directory matter.
pub(super) type Watches = HashMap<Identity, Vec<Interest>>;

/// What a watch is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Interest {
    /// What a read looks at: every name but those that start with `..`, and `..data`. So the kubelet's preparations
    /// and its cleaning up do not wake.
    Content,
    /// The next name on the way to the root.
    Name(OsString),
}

impl Interest {
    fn covers(&self, name: &OsStr) -> bool {
        match self {
            Self::Content => !name.as_bytes().starts_with(b"..") || name == DATA,
            Self::Name(wanted) => wanted == name,
        }
    }
}

/// Whether an event at this path concerns these watches. `paths`: all that is watched.
pub(super) fn concerns(watches: &Watches, paths: &HashMap<PathBuf, Identity>, path: &Path) -> bool {
    let interests = |path: &Path| paths.get(path).and_then(|identity| watches.get(identity));
    let in_directory = || {
        let (directory, name) = (interests(path.parent()?)?, path.file_name()?);
        Some(directory.iter().any(|interest| interest.covers(name)))
    };
    interests(path).is_some() || in_directory().unwrap_or(false)
}

/// What happened since it was last taken.
#[derive(Debug, Default)]
pub(super) struct Happened {
    pub paths: HashSet<PathBuf>,
    /// More than that, and nobody knows where: the kernel's queue had no room.
    pub overflow: bool,
    /// There were too many paths to keep them.
    pub anywhere: bool,
}

#[derive(Default)]
struct Inbox {
    happened: Mutex<Happened>,
    /// The watches that no event has put in doubt: to set one is a round trip to notify's thread.
    standing: Mutex<HashMap<PathBuf, Identity>>,
    woken: Notify,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Inbox {
    /// Runs on notify's thread, before it drops the watches of what was removed or renamed.
    fn put(&self, event: notify::Result<Event>) {
        self.doubt(&event);
        let mut happened = lock(&self.happened);
        match event {
            Ok(event) if event.need_rescan() => happened.overflow = true,
            Ok(event) if !matters(event.kind) => return,
            Ok(event) if happened.paths.len() < MAX_PATHS => happened.paths.extend(event.paths),
            Ok(_) => happened.anywhere = true,
            // Events could not be read: which, nobody knows.
            Err(_) => happened.overflow = true,
        }
        drop(happened);
        self.woken.notify_one();
    }

    fn doubt(&self, event: &notify::Result<Event>) {
        let mut standing = lock(&self.standing);
        match event {
            Ok(event) if !event.need_rescan() => {
                if let EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(_)) = event.kind {
                    event.paths.iter().for_each(|path| fall(&mut standing, path));
                }
            }
            _ => standing.clear(),
        }
    }
}

/// A directory has one watch, by however many paths.
fn fall(standing: &mut HashMap<PathBuf, Identity>, path: &Path) {
    if let Some(identity) = standing.remove(path) {
        standing.retain(|_, other| *other != identity);
    }
}

/// A file is read when its writer is done with it, and a read does not lead to another: neither MODIFY nor OPEN.
fn matters(kind: EventKind) -> bool {
    match kind {
        EventKind::Access(access) => access == AccessKind::Close(AccessMode::Write),
        EventKind::Modify(ModifyKind::Data(_)) => false,
        _ => true,
    }
}

/// An inotify instance, with the thread of notify's that reads it.
pub(super) struct Inotify {
    watcher: Mutex<Box<dyn Watcher + Send>>,
    inbox: Arc<Inbox>,
}

impl Inotify {
    pub fn new() -> Result<Self, InotifyError> {
        let inbox = Arc::new(Inbox::default());
        let put = Arc::clone(&inbox);
        let config = notify::Config::default();
        let instance = |error: notify::Error| InotifyError::Instance(errno(error));
        let mut watcher = INotifyWatcher::new(move |event| put.put(event), config).map_err(instance)?;
        // Without its thread every other call panics, `drop` among them (notify 8.2, inotify.rs:105, 580, 641).
        if watcher.configure(config).is_err() {
            std::mem::forget(watcher);
            return Err(InotifyError::Instance(Errno::EAGAIN));
        }
        Ok(Self { watcher: Mutex::new(Box::new(watcher)), inbox })
    }

    /// One whose watches are all refused.
    #[cfg(test)]
    pub fn of(watcher: Box<dyn Watcher + Send>) -> Self {
        Self { watcher: Mutex::new(watcher), inbox: Arc::default() }
    }

    #[cfg(test)]
    pub fn put(&self, event: notify::Result<Event>) {
        self.inbox.put(event);
    }

    /// Waits until something happened, and takes it all, so that a burst costs one read. May take nothing.
    pub async fn happened(&self) -> Happened {
        self.inbox.woken.notified().await;
        std::mem::take(&mut *lock(&self.inbox.happened))
    }

    /// Whether a call would have to wait for another, which may be held up by a file system.
    pub fn is_busy(&self) -> bool {
        matches!(self.watcher.try_lock(), Err(TryLockError::WouldBlock))
    }

    fn stands(&self, path: &Path, identity: Identity) -> bool {
        lock(&self.inbox.standing).get(path) == Some(&identity)
    }

    fn watch(&self, path: &Path, identity: Identity) -> Result<(), Errno> {
        // Before it is set: an event right after that puts it in doubt again.
        lock(&self.inbox.standing).insert(path.to_owned(), identity);
        let set = lock(&self.watcher).watch(path, RecursiveMode::NonRecursive).map_err(errno);
        if set.is_err() {
            fall(&mut lock(&self.inbox.standing), path);
        }
        set
    }

    /// It may be gone already, and its watch with it.
    pub fn unwatch(&self, path: &Path) {
        fall(&mut lock(&self.inbox.standing), path);
        let _ = lock(&self.watcher).unwatch(path);
    }
}

/// notify has its own words for two errors.
fn errno(error: notify::Error) -> Errno {
    match error.kind {
        ErrorKind::Io(error) => error.raw_os_error().map_or(Errno::EIO, Errno::from_raw),
        ErrorKind::PathNotFound => Errno::ENOENT,
        ErrorKind::MaxFilesWatch => Errno::ENOSPC,
        ErrorKind::Generic(_) | ErrorKind::WatchNotFound | ErrorKind::InvalidConfig(_) => Errno::EIO,
    }
}

/// Sets the watches of one read.
pub(super) struct Setter {
    pub inotify: Result<Arc<Inotify>, InotifyError>,
    /// Sets all of them, even those that stand: of one that ends by an unmount nobody says so.
    anew: bool,
    /// Every path watched so far.
    pub watched: HashMap<PathBuf, Identity>,
    pub watches: Watches,
    pub refused: Option<InotifyError>,
}

impl Setter {
    pub fn new(inotify: Result<Arc<Inotify>, InotifyError>, anew: bool) -> Self {
        let refused = inotify.as_ref().err().copied();
        Self { inotify, anew, watched: HashMap::new(), watches: Watches::new(), refused }
    }

    /// Watches a path, and says whether it was not watched before. `directory`: only if it is one.
    pub fn watch(&mut self, path: &Path, directory: bool) -> bool {
        let Ok(inotify) = &self.inotify else { return false };
        if self.watched.contains_key(path) {
            return false;
        }
        // First, so that a file system that hangs holds up this thread, and not notify's.
        let result = stat(path).and_then(|found| {
            if directory && SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT != SFlag::S_IFDIR {
                return Err(Errno::ENOTDIR);
            }
            let identity = (found.st_dev, found.st_ino);
            if self.anew || !inotify.stands(path, identity) {
                inotify.watch(path, identity)?;
            }
            Ok(identity)
        });
        match result {
            Ok(identity) => self.watched.insert(path.to_owned(), identity).is_none(),
            // Gone again: the directory above reports it. Unreadable: the read does, unless it is only on the way.
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::EACCES) => false,
            Err(errno) => {
                self.refused = Some(InotifyError::Watch(errno));
                false
            }
        }
    }

    /// Says what a watched path is watched for.
    pub fn want(&mut self, path: &Path, interest: Interest) {
        let Some(identity) = self.watched.get(path) else { return };
        let interests = self.watches.entry(*identity).or_default();
        if !interests.contains(&interest) {
            interests.push(interest);
        }
    }

    /// Walks to where the path leads, link by link, and watches each directory on the way for the name that is looked
    /// up in it, before it is looked up. `None`: it leads to nothing yet.
    pub fn follow(&mut self, path: &Path) -> Option<PathBuf> {
        let path = std::path::absolute(path).ok()?;
        let names = |path: &Path| path.components().rev().map(|part| part.as_os_str().to_owned()).collect::<Vec<_>>();
        let mut ahead = names(&path);
        let mut at = PathBuf::from("/");
        let mut links = 0;
        while let Some(name) = ahead.pop() {
            match Path::new(&name).components().next() {
                Some(Component::RootDir) => at = PathBuf::from("/"),
                Some(Component::ParentDir) => _ = at.pop(),
                Some(Component::Normal(_)) => {
                    self.watch(&at, true);
                    self.want(&at, Interest::Name(name.clone()));
                    let next = at.join(&name);
                    match readlink(&next) {
                        Ok(target) if links < MAX_LINKS => {
                            links += 1;
                            ahead.extend(names(Path::new(&target)));
                        }
                        // It is no link.
                        Err(Errno::EINVAL) => at = next,
                        Ok(_) | Err(_) => return None,
                    }
                }
                _ => {}
            }
        }
        Some(at)
    }
}
