//! Follows the roots: one task, one inotify instance, a read in the blocking pool for each root that may have changed.

use std::collections::{BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::future::pending;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, watch as channel};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep_until};

use super::read::{DATA, reading, subpath, without_trailing_slash};
use super::{Config, FilesError, InotifyError, Root};
use crate::digest::Digest;
use crate::snapshot::{Object, Seen, Update};

/// A failed read is tried again after this long, then twice as long, up to the second.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// Where a root or a directory in it may be replaced. A file's own changes do not wake: the way leads through `/tmp`.
const WAY: WatchFlags = WatchFlags::CREATE
    .union(WatchFlags::DELETE)
    .union(WatchFlags::MOVE)
    .union(WatchFlags::DELETE_SELF)
    .union(WatchFlags::MOVE_SELF)
    .union(WatchFlags::ONLYDIR);

/// What a root consists of. `CLOSE_WRITE`, not `MODIFY`: a file is read when its writer is done with it.
const CONTENT: WatchFlags = WatchFlags::CREATE
    .union(WatchFlags::DELETE)
    .union(WatchFlags::MOVE)
    .union(WatchFlags::DELETE_SELF)
    .union(WatchFlags::MOVE_SELF)
    .union(WatchFlags::CLOSE_WRITE)
    .union(WatchFlags::ATTRIB);

/// The most events kept during one read; with more, the root is read again.
const MAX_UNCLEAR: usize = 1024;

/// How many links are followed on the way to a root, as by the kernel (`path_resolution(7)`).
const MAX_LINKS: usize = 40;

/// Follows every root, and tells what it sees as [`Seen`] documents: `All` after the first read and after each that
/// differs, with no object where the root does not exist; `Trouble` and `Healthy` when they change.
///
/// A new value of `refresh` reads everything again. Returns only when nobody receives `updates` any more. The reads
/// run in tokio's blocking pool and outlive a dropped call by one read each, which a hung disk can make long: end the
/// runtime with `shutdown_background` or `shutdown_timeout`.
pub async fn watch(config: Config, refresh: channel::Receiver<u64>, updates: mpsc::Sender<Update>) {
    watch_by(config, refresh, updates, instance).await;
}

fn instance() -> Result<OwnedFd, Errno> {
    inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)
}

/// [`watch`], with inotify instances from `instance`.
async fn watch_by(
    config: Config,
    mut refresh: channel::Receiver<u64>,
    updates: mpsc::Sender<Update>,
    instance: fn() -> Result<OwnedFd, Errno>,
) {
    let Config { roots, poll_interval, max_size } = config;
    let mut follower = Follower {
        roots: roots.into_iter().map(Followed::new).collect(),
        reads: JoinSet::new(),
        max_size,
        polls: !poll_interval.is_zero(),
        inotify: Err(InotifyError::Instance(Errno::NOSYS)),
        warned: false,
        added: BTreeSet::new(),
        updates,
    };
    follower.open_inotify(instance);
    let mut poll = follower.polls.then(|| {
        let mut poll = interval_at(Instant::now() + poll_interval, poll_interval);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        poll
    });
    let mut refreshes = true;
    loop {
        follower.start_reads();
        let retry = follower.roots.iter().filter_map(|root| root.retry).min();
        tokio::select! {
            Some(done) = follower.reads.join_next() => match done {
                Ok(read) => if follower.tell(read).await.is_err() { return },
                Err(error) => match error.try_into_panic() {
                    Ok(panic) => std::panic::resume_unwind(panic),
                    // The runtime ends.
                    Err(_) => return,
                },
            },
            events = events(&follower.inotify) => follower.wake(events),
            _ = async { match &mut poll { Some(poll) => poll.tick().await, None => pending().await } } => {
                follower.open_inotify(instance);
                follower.wake_all();
            }
            changed = refresh.changed(), if refreshes => {
                refreshes = changed.is_ok();
                if refreshes {
                    follower.open_inotify(instance);
                    follower.wake_all();
                }
            }
            () = async { match retry { Some(at) => sleep_until(at).await, None => pending().await } } => {
                follower.wake_retries();
            }
            () = follower.updates.closed() => return,
        }
    }
}

/// Watch descriptors, and which names in each directory matter.
type Watches = HashMap<i32, Vec<Interest>>;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Interest {
    /// What a read looks at: every name but those that start with `..`, and `..data`. So the kubelet's preparations
    /// and its cleaning up do not wake.
    Content,
    /// The next name on the way to the root.
    Name(OsString),
}

impl Interest {
    /// Events of a watched file or directory itself have no name.
    fn covers(&self, name: Option<&OsStr>) -> bool {
        match (self, name) {
            (_, None) => true,
            (Self::Content, Some(name)) => !name.as_bytes().starts_with(b"..") || name == DATA,
            (Self::Name(wanted), Some(name)) => wanted == name,
        }
    }
}

/// What was last sent of a root: the digest and secrecy of its object, if there was one.
type Sent = Option<(Digest, bool)>;

/// A root as this task knows it.
struct Followed {
    root: Arc<Root>,
    watches: Watches,
    sent: Option<Sent>,
    /// The trouble that was told.
    trouble: Option<FilesError>,
    /// That there is none was told.
    healthy: bool,
    /// It may have changed since the last read began.
    due: bool,
    reading: bool,
    /// Events that came during the read and concern nothing that was watched before it: perhaps what it has found.
    unclear: Vec<(i32, Option<OsString>)>,
    retry: Option<Instant>,
    backoff: Duration,
    /// What inotify refused at the last read.
    refused: Option<InotifyError>,
}

impl Followed {
    fn new(root: Root) -> Self {
        Self {
            root: Arc::new(root),
            watches: Watches::new(),
            sent: None,
            trouble: None,
            healthy: false,
            due: true,
            reading: false,
            unclear: Vec::new(),
            retry: None,
            backoff: RETRY.0,
            refused: None,
        }
    }

    fn covers(&self, wd: i32, name: Option<&OsStr>) -> bool {
        self.watches.get(&wd).is_some_and(|interests| interests.iter().any(|interest| interest.covers(name)))
    }
}

struct Follower {
    roots: Vec<Followed>,
    reads: JoinSet<Read>,
    max_size: u64,
    polls: bool,
    inotify: Result<AsyncFd<Arc<OwnedFd>>, InotifyError>,
    /// Whether the log says already that inotify does not serve.
    warned: bool,
    /// Every watch that the kernel holds for us.
    added: BTreeSet<i32>,
    updates: mpsc::Sender<Update>,
}

/// Waits for events, and takes them all, so that a burst costs one read. Watch descriptor, flags, name.
async fn events(
    inotify: &Result<AsyncFd<Arc<OwnedFd>>, InotifyError>,
) -> Result<Vec<(i32, ReadFlags, Option<OsString>)>, Errno> {
    let Ok(inotify) = inotify else { return pending().await };
    let Ok(mut ready) = inotify.readable().await else { return Err(Errno::BADF) };
    let mut events = Vec::new();
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut reader = inotify::Reader::new(inotify.get_ref(), &mut buffer);
    loop {
        match reader.next() {
            Ok(event) => {
                let name = event.file_name().map(|name| OsString::from_vec(name.to_bytes().to_vec()));
                events.push((event.wd(), event.events(), name));
            }
            Err(Errno::AGAIN) => {
                ready.clear_ready();
                return Ok(events);
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

impl Follower {
    fn open_inotify(&mut self, instance: fn() -> Result<OwnedFd, Errno>) {
        #[expect(deprecated, reason = "its successor is unsafe; an OwnedFd keeps its descriptor, which is all it asks")]
        let register = |fd| AsyncFd::new(Arc::new(fd));
        if self.inotify.is_err() {
            self.inotify = instance()
                .and_then(|fd| register(fd).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO)))
                .map_err(InotifyError::Instance);
        }
    }

    fn wake(&mut self, events: Result<Vec<(i32, ReadFlags, Option<OsString>)>, Errno>) {
        let events = match events {
            Ok(events) => events,
            Err(errno) => {
                // The next poll tries a new instance.
                self.inotify = Err(InotifyError::Instance(errno));
                self.roots.iter_mut().for_each(|root| root.watches.clear());
                return self.wake_all();
            }
        };
        for (wd, flags, name) in events {
            if flags.contains(ReadFlags::QUEUE_OVERFLOW) {
                return self.wake_all();
            }
            for root in &mut self.roots {
                if root.covers(wd, name.as_deref()) {
                    root.due = true;
                } else if root.reading && root.unclear.len() < MAX_UNCLEAR {
                    root.unclear.push((wd, name.clone()));
                } else if root.reading {
                    root.due = true;
                }
                if flags.contains(ReadFlags::IGNORED) {
                    root.watches.remove(&wd);
                }
            }
            // The kernel has forgotten it: the directory was removed or unmounted, or we asked for it.
            if flags.contains(ReadFlags::IGNORED) {
                self.added.remove(&wd);
            }
        }
    }

    fn wake_all(&mut self) {
        self.roots.iter_mut().for_each(|root| root.due = true);
    }

    fn wake_retries(&mut self) {
        let now = Instant::now();
        for root in self.roots.iter_mut().filter(|root| root.retry.is_some_and(|at| at <= now)) {
            root.retry = None;
            root.due = true;
        }
    }

    fn start_reads(&mut self) {
        for (index, followed) in self.roots.iter_mut().enumerate().filter(|(_, root)| root.due && !root.reading) {
            followed.due = false;
            followed.reading = true;
            let root = Arc::clone(&followed.root);
            let inotify = self.inotify.as_ref().map(|inotify| Arc::clone(inotify.get_ref())).map_err(|error| *error);
            // A content that changes is looked at no further: it is on its way.
            let healthy = followed.sent.filter(|_| followed.healthy);
            let max_size = self.max_size;
            self.reads.spawn_blocking(move || Read::new(index, &root, max_size, inotify, healthy));
        }
        if self.reads.is_empty() {
            self.forget_watches();
        }
    }

    /// Removes the watches that no root needs any more. Not while a read is in flight: it may be adding the same.
    fn forget_watches(&mut self) {
        let Ok(inotify) = &self.inotify else { return self.added.clear() };
        let roots = &self.roots;
        self.added.retain(|wd| {
            let needed = roots.iter().any(|root| root.watches.contains_key(wd));
            if !needed {
                // EINVAL: the directory is gone, and its IN_IGNORED not read yet.
                let _ = inotify::remove_watch(inotify.get_ref(), *wd);
            }
            needed
        });
    }

    /// Sends what a read found. The error: nobody receives it.
    async fn tell(&mut self, read: Read) -> Result<(), mpsc::error::SendError<Update>> {
        let polls = self.polls;
        let Some(followed) = self.roots.get_mut(read.index) else { return Ok(()) };
        followed.reading = false;
        followed.due |= read.late.iter().any(|wd| !followed.watches.contains_key(wd));
        self.added.extend(read.watches.keys());
        if read.object.is_ok() {
            followed.watches = read.watches;
        } else {
            followed.watches.extend(read.watches);
        }
        let unclear = std::mem::take(&mut followed.unclear);
        followed.due |= unclear.iter().any(|(wd, name)| followed.covers(*wd, name.as_deref()));
        followed.refused = read.refused;

        let source = followed.root.source;
        let mut news = Vec::new();
        let trouble = match read.object {
            Ok(object) => {
                let sent = summary(object.as_ref());
                if followed.sent != Some(sent) {
                    followed.sent = Some(sent);
                    news.push(Seen::All(
                        object.into_iter().map(|object| (object.id.clone(), Arc::new(object))).collect(),
                    ));
                }
                followed.retry = None;
                followed.backoff = RETRY.0;
                let blind = read.refused.filter(|_| !polls);
                let path = || followed.root.path.clone();
                read.subpath
                    .map(|path| FilesError::SubPath { path })
                    .or_else(|| blind.map(|cause| FilesError::Blind { path: path(), cause }))
            }
            Err(error) => {
                followed.retry = Some(Instant::now() + followed.backoff);
                followed.backoff = (followed.backoff * 2).min(RETRY.1);
                Some(error)
            }
        };
        match &trouble {
            Some(error) if followed.trouble != trouble => {
                news.push(Seen::Trouble { message: error.to_string(), forbidden: error.forbidden() })
            }
            None if !followed.healthy => news.push(Seen::Healthy),
            _ => {}
        }
        followed.healthy = trouble.is_none();
        followed.trouble = trouble;
        for seen in news {
            self.updates.send(Update { source, seen }).await?;
        }
        self.warn_once();
        Ok(())
    }

    /// Says that inotify does not serve, once until it serves again. Without polling it is a trouble instead.
    fn warn_once(&mut self) {
        let refused = self.roots.iter().find_map(|root| root.refused);
        if let Some(error) = refused.filter(|_| self.polls && !self.warned) {
            tracing::warn!("{error}; changes of directories are found by --poll-interval alone");
        }
        self.warned = refused.is_some();
    }
}

fn summary(object: Option<&Object>) -> Sent {
    object.map(|object| (object.content(), object.secret))
}

/// What one read found, and the watches that were set for it.
struct Read {
    /// Which of the roots.
    index: usize,
    object: Result<Option<Object>, FilesError>,
    watches: Watches,
    /// The watches that were set only after the read: what changed in between may be missing in it.
    late: Vec<i32>,
    refused: Option<InotifyError>,
    /// A mount of which the kubelet will never update the content.
    subpath: Option<PathBuf>,
}

impl Read {
    /// Watches, then reads. Blocks. `healthy`: what is known, unless the root is in trouble.
    fn new(
        index: usize,
        root: &Root,
        max_size: u64,
        inotify: Result<Arc<OwnedFd>, InotifyError>,
        healthy: Option<Sent>,
    ) -> Self {
        let mut watcher = Watcher { inotify, watches: Watches::new(), refused: None };
        watcher.refused = watcher.inotify.as_ref().err().copied();
        let real = watcher.follow(&without_trailing_slash(&root.path));
        if let Some(real) = &real {
            watcher.add(real, CONTENT, Interest::Content);
        }
        let before = watcher.watches.clone();
        let reading = reading(root, max_size);
        if let Some(real) = &real {
            for directory in reading.directories {
                watcher.add(&real.join(directory), CONTENT | WatchFlags::ONLYDIR, Interest::Content);
            }
        }
        let late = watcher.watches.keys().filter(|wd| !before.contains_key(wd)).copied().collect();
        let mut object = reading.object;
        let mut mount = None;
        if let Ok(Some(read)) = &object
            && (read.data.is_empty() || healthy.is_none_or(|known| known == summary(Some(read))))
        {
            mount = subpath(&root.path);
            // The kubelet's cleaning up empties it: that is no news.
            if let Some(path) = mount.take_if(|_| read.data.is_empty()) {
                object = Err(FilesError::SubPath { path });
            }
        }
        Self { index, object, watches: watcher.watches, late, refused: watcher.refused, subpath: mount }
    }
}

/// Sets watches.
struct Watcher {
    inotify: Result<Arc<OwnedFd>, InotifyError>,
    watches: Watches,
    refused: Option<InotifyError>,
}

impl Watcher {
    fn add(&mut self, path: &Path, flags: WatchFlags, interest: Interest) {
        let Ok(inotify) = &self.inotify else { return };
        match inotify::add_watch(inotify, path, flags | WatchFlags::MASK_ADD) {
            Ok(wd) => {
                let interests = self.watches.entry(wd).or_default();
                if !interests.contains(&interest) {
                    interests.push(interest);
                }
            }
            // Gone again: the directory above tells. Unreadable: the read says so, unless it lies only on the way.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::ACCESS) => {}
            Err(errno) => self.refused = Some(InotifyError::Watch(errno)),
        }
    }

    /// Walks to where the path leads, link by link, and watches each directory on the way for the name that is looked
    /// up in it, before it is looked up. `None`: it leads to nothing yet.
    fn follow(&mut self, path: &Path) -> Option<PathBuf> {
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
                    self.add(&at, WAY, Interest::Name(name.clone()));
                    let next = at.join(&name);
                    match rustix::fs::readlink(&next, Vec::new()) {
                        Ok(target) if links < MAX_LINKS => {
                            links += 1;
                            ahead.extend(names(Path::new(OsStr::from_bytes(target.as_bytes()))));
                        }
                        // It is no link.
                        Err(Errno::INVAL) => at = next,
                        Ok(_) | Err(_) => return None,
                    }
                }
                _ => {}
            }
        }
        Some(at)
    }
}
