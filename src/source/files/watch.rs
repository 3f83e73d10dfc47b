//! Follows the roots: one task, one inotify instance, a read for each root that may have changed.

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

use super::medium::{Medium, QUICK};
use super::read::{DATA, reading, subpath, without_trailing_slash};
use super::{Config, FilesError, InotifyError, Root};
use crate::model::digest::Digest;
use crate::model::object::Object;
use crate::source::{Seen, Update};

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
/// Seen by polling alone: what another machine writes to a network file system, what is replaced in a directory on the
/// way that the container's user cannot list, and what is mounted later.
///
/// A new value of `refresh` reads everything again. Returns only when nobody receives `updates` any more. What is not
/// known to be quick is read in tokio's blocking pool, where a read outlives a dropped call, and a hung disk can make it
/// long: end the runtime with `shutdown_background` or `shutdown_timeout`.
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
    let mut follower = Follower::new(roots, !poll_interval.is_zero(), max_size, updates);
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
#[expect(clippy::struct_excessive_bools, reason = "independent facts: each has its own cause and its own end")]
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
    /// Whether the next read is quick, by the last.
    quick: bool,
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
            quick: false,
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
    fn new(roots: Vec<Root>, polls: bool, max_size: u64, updates: mpsc::Sender<Update>) -> Self {
        Self {
            roots: roots.into_iter().map(Followed::new).collect(),
            reads: JoinSet::new(),
            max_size,
            polls,
            inotify: Err(InotifyError::Instance(Errno::NOSYS)),
            warned: false,
            added: BTreeSet::new(),
            updates,
        }
    }

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
                self.added.clear();
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
            let read = move || Read::new(index, &root, max_size, inotify, healthy);
            if followed.quick {
                self.reads.spawn(async move { read() });
            } else {
                self.reads.spawn_blocking(read);
            }
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
        followed.quick = read.quick;

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
                news.push(Seen::Trouble { message: error.to_string(), forbidden: error.forbidden() });
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
    /// Whether it is small, and lies on the node.
    quick: bool,
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
        let small = matches!(&object, Ok(Some(object)) if object.size() <= QUICK);
        let quick = small && reading.medium != Medium::Unknown;
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
        Self { index, object, watches: watcher.watches, late, refused: watcher.refused, quick, subpath: mount }
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use rustix::event::{EventfdFlags, eventfd};
    use tempfile::TempDir;
    use tokio::task::JoinHandle;
    use tokio::time::timeout;

    use super::super::volume::{Volume, as_nobody};
    use super::*;
    use crate::model::object::ObjectRef;

    const DEADLINE: Duration = Duration::from_secs(10);
    const NEVER: Duration = Duration::ZERO;

    /// A running [`watch`].
    struct Running {
        updates: mpsc::Receiver<Update>,
        refresh: channel::Sender<u64>,
        task: JoinHandle<()>,
    }

    fn root(source: usize, path: impl Into<PathBuf>) -> Root {
        Root { source, name: format!("dir{source}"), path: path.into(), secret: None }
    }

    fn start(path: impl Into<PathBuf>) -> Running {
        start_by(vec![root(0, path)], NEVER, instance)
    }

    fn start_by(roots: Vec<Root>, poll_interval: Duration, instance: fn() -> Result<OwnedFd, Errno>) -> Running {
        let (sender, updates) = mpsc::channel(16);
        let (refresh, refreshes) = channel::channel(0);
        let config = Config { roots, poll_interval, max_size: 1 << 20 };
        Running { updates, refresh, task: tokio::spawn(watch_by(config, refreshes, sender, instance)) }
    }

    impl Running {
        async fn next(&mut self) -> Update {
            timeout(DEADLINE, self.updates.recv()).await.expect("an update in time").expect("it runs")
        }

        /// The next content, as `key=value` lines; what is not there is `-`. Health is passed over.
        async fn content(&mut self) -> String {
            loop {
                match self.next().await.seen {
                    Seen::All(objects) => return text(&objects),
                    Seen::Trouble { .. } | Seen::Healthy => {}
                    other => panic!("a directory does not send {other:?}"),
                }
            }
        }

        async fn expect(&mut self, content: &str) {
            assert_eq!(self.content().await, content);
        }

        /// The content of several writes, of which a read may see only some.
        async fn expect_in_the_end(&mut self, content: &str) {
            while self.content().await != content {}
        }

        /// The next trouble; `None`: that there is none.
        async fn health(&mut self) -> Option<String> {
            loop {
                match self.next().await.seen {
                    Seen::Trouble { message, .. } => return Some(message),
                    Seen::Healthy => return None,
                    _ => {}
                }
            }
        }

        async fn trouble(&mut self, part: &str) {
            let trouble = self.health().await.expect("a trouble");
            assert!(trouble.contains(part), "{trouble}");
        }

        async fn stop(self) {
            drop(self.updates);
            timeout(DEADLINE, self.task).await.expect("it ends with its receiver").unwrap();
        }
    }

    fn text(objects: &BTreeMap<ObjectRef, Arc<Object>>) -> String {
        let Some(object) = objects.values().next() else { return "-".into() };
        let lines =
            object.data.iter().map(|(key, value)| format!("{key}={}", String::from_utf8_lossy(&value.read().unwrap())));
        lines.collect::<Vec<_>>().join(" ")
    }

    fn write(path: PathBuf, text: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// As a careful writer does it: one event, one change.
    fn replace(path: &Path, text: &str) {
        let new = path.with_file_name("..new");
        fs::write(&new, text).unwrap();
        fs::rename(new, path).unwrap();
    }

    #[tokio::test]
    async fn first_read_is_sent_and_then_each_change() {
        let dir = TempDir::new().unwrap();
        let mut volume = Volume::new(dir.path().join("v"), &[("a", "1")]);
        let mut running = start(&volume.path);
        let first = running.next().await;
        assert_eq!(first.source, 0);
        assert!(matches!(&first.seen, Seen::All(objects) if text(objects) == "a=1"), "{first:?}");
        assert!(matches!(running.next().await.seen, Seen::Healthy));
        volume.swap(&[("a", "2"), ("b/c", "3")]);
        running.expect("a=2 b/c=3").await;
        volume.swap(&[("b/c", "4")]);
        running.expect("b/c=4").await;
        volume.swap(&[]);
        running.expect("").await;
        running.stop().await;
    }

    #[tokio::test]
    async fn same_bytes_send_nothing() {
        let dir = TempDir::new().unwrap();
        let mut volume = Volume::new(dir.path().join("v"), &[("a", "1")]);
        let mut running = start(&volume.path);
        running.expect("a=1").await;
        for n in 2..10 {
            volume.swap(&[("a", &(n - 1).to_string())]);
            // Let it read the same bytes before others come.
            tokio::time::sleep(Duration::from_millis(2)).await;
            volume.swap(&[("a", &n.to_string())]);
            running.expect(&format!("a={n}")).await;
        }
    }

    #[tokio::test]
    async fn a_pause_before_the_rename_makes_no_second_update() {
        let dir = TempDir::new().unwrap();
        let mut volume = Volume::new(dir.path().join("v"), &[("a", "0")]);
        let mut running = start(&volume.path);
        running.expect("a=0").await;
        for n in 1..20 {
            let files = [("a", &*n.to_string())];
            volume.prepare(&files);
            tokio::time::sleep(Duration::from_millis(5)).await;
            volume.finish(&files);
            running.expect(&format!("a={n}")).await;
        }
    }

    #[tokio::test]
    async fn every_update_of_500_swaps_is_one_generation_and_the_last_the_newest() {
        let dir = TempDir::new().unwrap();
        let swap = |volume: &mut Volume, n: u32| {
            let value = value(n);
            let own = format!("only-{n}");
            volume.swap(&[("a", &*value), ("b", &value), ("deep/er/c", &value), ("z", &value), (&own, &value)]);
        };
        let mut volume = Volume::new(dir.path().join("v"), &[]);
        swap(&mut volume, 0);
        let mut running = start(&volume.path);
        let swapper = std::thread::spawn(move || (1..=500).for_each(|n| swap(&mut volume, n)));
        let mut last = None;
        let mut updates = 0;
        while last != Some(500) {
            if let Seen::All(objects) = running.next().await.seen {
                let object = objects.values().next().expect("the volume is never gone");
                let n: u32 = String::from_utf8_lossy(&object.data["a"].read().unwrap()[..6]).parse().unwrap();
                let keys: Vec<_> = object.data.keys().cloned().collect();
                assert_eq!(keys, ["a", "b", "deep/er/c", &format!("only-{n}"), "z"]);
                assert!(
                    object.data.values().all(|found| found.read().unwrap() == value(n).as_bytes()),
                    "generation {n} is mixed"
                );
                assert!(last < Some(n), "{n} after {last:?}");
                last = Some(n);
                updates += 1;
            }
        }
        swapper.join().unwrap();
        assert!(updates > 100, "{updates} updates: the reads did not keep up, and the test tests little");
    }

    fn value(n: u32) -> String {
        format!("{n:06}").repeat(500)
    }

    #[tokio::test]
    async fn ordinary_directories_are_followed_however_deep() {
        let dir = TempDir::new().unwrap();
        write(dir.path().join("a/b/x"), "1");
        let mut running = start(dir.path());
        running.expect("a/b/x=1").await;
        replace(&dir.path().join("a/b/x"), "2");
        running.expect("a/b/x=2").await;
        write(dir.path().join("a/b/x"), "in place");
        running.expect_in_the_end("a/b/x=in place").await;
        fs::remove_file(dir.path().join("a/b/x")).unwrap();
        running.expect("").await;
        // Written into directories that nobody could watch before they were there.
        for n in 0..50 {
            write(dir.path().join(format!("new/{n}/deep/x")), "1");
            running.expect_in_the_end(&format!("new/{n}/deep/x=1")).await;
            replace(&dir.path().join(format!("new/{n}/deep/x")), "2");
            running.expect_in_the_end(&format!("new/{n}/deep/x=2")).await;
            fs::remove_dir_all(dir.path().join("new")).unwrap();
            running.expect_in_the_end("").await;
        }
    }

    #[tokio::test]
    async fn volumes_below_an_ordinary_directory_are_followed() {
        let dir = TempDir::new().unwrap();
        let mut volume = Volume::new(dir.path().join("deep/v"), &[("a", "1")]);
        let mut running = start(dir.path());
        running.expect("deep/v/a=1").await;
        volume.swap(&[("a", "2")]);
        running.expect("deep/v/a=2").await;
    }

    #[tokio::test]
    async fn a_file_is_followed_in_a_volume_and_in_place_and_by_rename() {
        let dir = TempDir::new().unwrap();
        let mut volume = Volume::new(dir.path().join("v"), &[("a", "1"), ("b", "1")]);
        let mut running = start(volume.path.join("a"));
        running.expect("a=1").await;
        volume.swap(&[("a", "1"), ("b", "2")]);
        volume.swap(&[("a", "2"), ("b", "2")]);
        running.expect("a=2").await;

        let file = dir.path().join("plain");
        write(file.clone(), "1");
        let mut running = start(&file);
        running.expect("plain=1").await;
        fs::OpenOptions::new()
            .append(true)
            .open(&file)
            .and_then(|mut file| std::io::Write::write_all(&mut file, b"+"))
            .unwrap();
        running.expect("plain=1+").await;
        replace(&file, "2");
        running.expect("plain=2").await;
        fs::remove_file(&file).unwrap();
        running.expect("-").await;
        replace(&file, "3");
        running.expect("plain=3").await;
    }

    #[tokio::test]
    async fn a_directory_deleted_and_made_again_is_followed() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("conf");
        write(path.join("x"), "0");
        // A trailing slash must not matter.
        let mut running = start(format!("{}/", path.display()));
        running.expect("x=0").await;
        for n in 1..20 {
            fs::remove_dir_all(&path).unwrap();
            running.expect_in_the_end("-").await;
            write(path.join("x"), &n.to_string());
            running.expect_in_the_end(&format!("x={n}")).await;
        }
        // Another takes its place in one instant.
        for n in 20..40 {
            write(dir.path().join("next/x"), &n.to_string());
            let (old, next) = (dir.path().join("old"), dir.path().join("next"));
            fs::rename(&path, &old).unwrap();
            fs::rename(next, &path).unwrap();
            fs::remove_dir_all(old).unwrap();
            running.expect_in_the_end(&format!("x={n}")).await;
            replace(&path.join("x"), "then");
            running.expect("x=then").await;
        }
    }

    #[tokio::test]
    async fn a_link_to_the_directory_is_followed_when_it_is_pointed_elsewhere() {
        let dir = TempDir::new().unwrap();
        let point = |target: &str, link: &str| {
            symlink(target, dir.path().join("..new")).unwrap();
            fs::rename(dir.path().join("..new"), dir.path().join(link)).unwrap();
        };
        for n in 0..20 {
            write(dir.path().join(format!("trees/{n}/x")), &n.to_string());
        }
        point("trees/0", "real");
        // By way of a second link, absolute, with a `..` in it.
        point(dir.path().join("trees/../real").to_str().unwrap(), "conf");
        let mut running = start(dir.path().join("conf"));
        running.expect("x=0").await;
        for n in 1..20 {
            point(&format!("trees/{n}"), "real");
            // git-sync removes the old tree at once.
            fs::remove_dir_all(dir.path().join(format!("trees/{}", n - 1))).unwrap();
            running.expect(&format!("x={n}")).await;
            replace(&dir.path().join(format!("trees/{n}/x")), "then");
            running.expect("x=then").await;
        }
        // The directory that the link names is replaced, not the link.
        fs::rename(dir.path().join("trees/19"), dir.path().join("trees/old")).unwrap();
        running.expect("-").await;
        write(dir.path().join("other/x"), "again");
        fs::rename(dir.path().join("other"), dir.path().join("trees/19")).unwrap();
        running.expect("x=again").await;
        // The outer link.
        write(dir.path().join("third/x"), "outer");
        point("third", "conf");
        running.expect("x=outer").await;
    }

    #[tokio::test]
    async fn a_directory_that_appears_with_its_parents_is_found() {
        let dir = TempDir::new().unwrap();
        for n in 0..20 {
            let top = dir.path().join(n.to_string());
            let mut running = start(top.join("b/c/conf"));
            running.expect("-").await;
            assert_eq!(running.health().await, None);
            write(top.join("b/unrelated"), "1");
            write(top.join("b/c/conf/x"), "1");
            running.expect_in_the_end("x=1").await;
            // A parent of a parent is replaced.
            fs::rename(&top, dir.path().join("old")).unwrap();
            running.expect("-").await;
            write(dir.path().join("new/b/c/conf/x"), "2");
            fs::rename(dir.path().join("new"), &top).unwrap();
            running.expect("x=2").await;
            fs::remove_dir_all(dir.path().join("old")).unwrap();
            running.stop().await;
        }
    }

    #[tokio::test]
    async fn trouble_is_told_once_keeps_what_was_known_and_ends() {
        let dir = TempDir::new().unwrap();
        write(dir.path().join("conf/x"), "1");
        let roots = vec![root(0, dir.path().join("conf"))];
        let mut running = start_by(roots, Duration::from_millis(2), instance);
        running.expect("x=1").await;
        assert_eq!(running.health().await, None);
        symlink("/etc/passwd", dir.path().join("conf/evil")).unwrap();
        running.trouble("conf/evil").await;
        // The same trouble, read again and again, with other content.
        replace(&dir.path().join("conf/x"), "2");
        tokio::time::sleep(Duration::from_millis(50)).await;
        // Another trouble, so that we see that nothing came in between.
        fs::write(dir.path().join("big"), vec![b'x'; (1 << 20) + 1]).unwrap();
        fs::remove_file(dir.path().join("conf/x")).unwrap();
        fs::rename(dir.path().join("big"), dir.path().join("conf/x")).unwrap();
        fs::remove_file(dir.path().join("conf/evil")).unwrap();
        let update = running.next().await;
        assert!(matches!(&update.seen, Seen::Trouble { message, .. } if message.contains("--max-size")), "{update:?}");
        replace(&dir.path().join("conf/x"), "2");
        running.expect("x=2").await;
        assert_eq!(running.health().await, None);
    }

    #[test]
    fn unreadable_is_retried_without_events_or_polling() {
        let dir = TempDir::new().unwrap();
        let way = dir.path().join("way");
        write(way.join("conf/x"), "1");
        let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        mode(dir.path(), 0o755);
        mode(&way, 0);
        let (troubled, trouble) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            let (mode, way) = (&mode, &way);
            scope.spawn(move || {
                trouble.recv().unwrap();
                mode(way, 0o755);
            });
            as_nobody(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(async {
                    let mut running = start(way.join("conf"));
                    running.trouble("fsGroup").await;
                    troubled.send(()).unwrap();
                    running.expect("x=1").await;
                    assert_eq!(running.health().await, None);
                });
            });
        });
    }

    /// As if every watch were refused: an event counter is no inotify.
    fn no_watches() -> Result<OwnedFd, Errno> {
        eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)
    }

    fn no_instance() -> Result<OwnedFd, Errno> {
        Err(Errno::MFILE)
    }

    #[tokio::test]
    async fn without_inotify_polling_finds_changes_and_the_log_says_so_once() {
        for (instance, sysctl) in
            [(no_instance as fn() -> _, "fs.inotify.max_user_instances"), (no_watches, "fs.inotify.max_user_watches")]
        {
            let dir = TempDir::new().unwrap();
            let log = fs::File::create(dir.path().join("log")).unwrap();
            let subscriber = tracing_subscriber::fmt().with_writer(Arc::new(log)).finish();
            let _guard = tracing::subscriber::set_default(subscriber);
            let mut volume = Volume::new(dir.path().join("v"), &[("a", "1")]);
            let roots = vec![root(0, &volume.path), root(1, dir.path().join("none"))];
            let mut running = start_by(roots, Duration::from_millis(5), instance);
            running.expect_in_the_end("a=1").await;
            for n in 2..10 {
                volume.swap(&[("a", &n.to_string())]);
                running.expect_in_the_end(&format!("a={n}")).await;
            }
            running.stop().await;
            let log = fs::read_to_string(dir.path().join("log")).unwrap();
            assert_eq!(log.lines().count(), 1, "{log}");
            assert!(log.contains(sysctl) && log.contains("--poll-interval"), "{log}");
        }
    }

    #[tokio::test]
    async fn without_inotify_and_polling_the_source_is_in_trouble() {
        let dir = TempDir::new().unwrap();
        let mut volume = Volume::new(dir.path().join("v"), &[("a", "1")]);
        for (instance, sysctl) in
            [(no_instance as fn() -> _, "fs.inotify.max_user_instances"), (no_watches, "fs.inotify.max_user_watches")]
        {
            volume.swap(&[("a", "1")]);
            let mut running = start_by(vec![root(0, &volume.path)], NEVER, instance);
            running.expect("a=1").await;
            let trouble = running.health().await.expect("trouble");
            assert!(trouble.contains(sysctl) && trouble.contains("--poll-interval"), "{trouble}");
            // Asked to, it reads all the same.
            volume.swap(&[("a", "2")]);
            running.refresh.send(1).unwrap();
            running.expect("a=2").await;
            running.stop().await;
        }
    }

    #[tokio::test]
    async fn a_queue_that_overflows_loses_nothing() {
        let dir = TempDir::new().unwrap();
        let mut volume = Volume::new(dir.path().join("v"), &[("a", "1")]);
        write(dir.path().join("noise/x"), "");
        let mut running = start_by(vec![root(0, &volume.path), root(1, dir.path().join("noise"))], NEVER, instance);
        for _ in 0..2 {
            assert_eq!(running.health().await, None);
        }
        let limit: usize =
            fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap().trim().parse().unwrap();
        // This thread is the watcher's: it takes no event meanwhile.
        for n in 0..=limit / 2 {
            let (a, b) = (dir.path().join("noise/x"), dir.path().join("noise/y"));
            if n % 2 == 0 { fs::rename(a, b) } else { fs::rename(b, a) }.unwrap();
        }
        volume.swap(&[("a", "2")]);
        while running.content().await != "a=2" {}
    }

    #[tokio::test]
    async fn roots_are_told_apart_even_if_they_share_directories() {
        let dir = TempDir::new().unwrap();
        write(dir.path().join("a/x"), "1");
        write(dir.path().join("b/x"), "1");
        let roots = vec![root(0, dir.path().join("a")), root(7, dir.path().join("b")), root(9, dir.path())];
        let mut running = start_by(roots, NEVER, instance);
        for n in 2..20 {
            replace(&dir.path().join("b/x"), &n.to_string());
            running.refresh.send(n).unwrap();
            let mut expected = vec![(7, format!("x={n}")), (9, format!("a/x=1 b/x={n}"))];
            if n == 2 {
                expected.push((0, "x=1".into()));
            }
            while !expected.is_empty() {
                let update = running.next().await;
                if let Seen::All(objects) = update.seen {
                    assert!(n == 2 || update.source != 0, "a has not changed");
                    expected.retain(|wanted| *wanted != (update.source, text(&objects)));
                }
            }
        }
    }

    /// A follower whose steps the test takes itself.
    fn follower(roots: Vec<Root>) -> (Follower, mpsc::Receiver<Update>) {
        let (sender, updates) = mpsc::channel(64);
        let mut follower = Follower::new(roots, false, 1 << 20, sender);
        follower.open_inotify(instance);
        (follower, updates)
    }

    /// Reads until nothing is due.
    async fn settle(follower: &mut Follower) {
        follower.start_reads();
        while let Some(read) = follower.reads.join_next().await {
            follower.tell(read.unwrap()).await.unwrap();
            follower.start_reads();
        }
    }

    /// With a pool of one thread, which somebody else has.
    #[test]
    fn what_is_small_and_on_the_node_is_read_without_the_pool() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(1).build();
        runtime.unwrap().block_on(async {
            let dir = TempDir::new_in("/dev/shm").unwrap();
            let mut volume = Volume::new(dir.path().join("v"), &[("a", "1")]);
            let mut running = start(&volume.path);
            running.expect("a=1").await;
            let (release, held) = std::sync::mpsc::channel::<()>();
            let pool = tokio::task::spawn_blocking(move || held.recv());
            volume.swap(&[("a", "2")]);
            running.expect("a=2").await;
            drop(release);
            pool.await.unwrap().unwrap_err();
            running.stop().await;
        });
    }

    #[tokio::test]
    async fn what_is_large_or_may_be_far_away_is_read_in_the_pool() {
        let dir = TempDir::new_in("/dev/shm").unwrap();
        let most = usize::try_from(QUICK).unwrap() - "x".len();
        write(dir.path().join("small/x"), &"x".repeat(most));
        write(dir.path().join("large/x"), &"x".repeat(most + 1));
        let here = |name: &str| dir.path().join(name);
        for (path, quick) in [
            (here("small"), true),
            (here("large"), false),
            (here("missing"), false),
            ("/proc/sys/kernel/ostype".into(), false),
        ] {
            let (mut follower, _updates) = follower(vec![root(0, &path)]);
            settle(&mut follower).await;
            assert_eq!(follower.roots[0].quick, quick, "{}", path.display());
        }
    }

    #[tokio::test]
    async fn watches_that_are_needed_no_more_are_removed() {
        let dir = TempDir::new().unwrap();
        write(dir.path().join("conf/keep/x"), "1");
        let (mut follower, _updates) = follower(vec![root(0, dir.path().join("conf"))]);
        settle(&mut follower).await;
        let held = |follower: &Follower| {
            let fd = std::os::fd::AsRawFd::as_raw_fd(follower.inotify.as_ref().unwrap().get_ref().as_ref());
            let info = fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).unwrap();
            info.lines().filter(|line| line.starts_with("inotify")).count()
        };
        let before = held(&follower);
        write(dir.path().join("conf/sub/deep/x"), "1");
        follower.wake_all();
        settle(&mut follower).await;
        assert_eq!(held(&follower), before + 2);
        // Moved away, not deleted: the kernel keeps such a watch.
        fs::rename(dir.path().join("conf/sub"), dir.path().join("away")).unwrap();
        follower.wake_all();
        settle(&mut follower).await;
        assert_eq!(held(&follower), before);
        // A failed read may not have come as far as `keep`.
        symlink("/", dir.path().join("conf/evil")).unwrap();
        symlink("/", dir.path().join("conf/keep/evil")).unwrap();
        follower.wake_all();
        settle(&mut follower).await;
        assert!(!follower.roots[0].healthy);
        assert_eq!(held(&follower), before);
    }

    #[tokio::test]
    async fn a_directory_watched_only_after_its_read_is_read_again() {
        let dir = TempDir::new().unwrap();
        write(dir.path().join("sub/x"), "1");
        let (mut follower, _updates) = follower(vec![root(0, dir.path())]);
        follower.start_reads();
        let read = follower.reads.join_next().await.unwrap().unwrap();
        follower.tell(read).await.unwrap();
        assert!(follower.roots[0].due);
        settle(&mut follower).await;
        assert!(!follower.roots[0].due);
    }

    #[tokio::test]
    async fn events_for_what_a_read_in_flight_found_are_not_lost() {
        let dir = TempDir::new().unwrap();
        let at = |name: &str| dir.path().join(name);
        for n in 1..=3 {
            write(at(&format!("tree{n}/x")), &n.to_string());
        }
        symlink("tree1", at("conf")).unwrap();
        let (mut follower, _updates) = follower(vec![root(0, at("conf"))]);
        settle(&mut follower).await;
        symlink("tree2", at("new")).unwrap();
        fs::rename(at("new"), at("conf")).unwrap();
        follower.wake(events(&follower.inotify).await);
        follower.start_reads();
        let read = follower.reads.join_next().await.unwrap().unwrap();
        // It has read, and we do not know yet what it watches.
        fs::rename(at("tree2"), at("old")).unwrap();
        fs::rename(at("tree3"), at("tree2")).unwrap();
        follower.wake(events(&follower.inotify).await);
        follower.tell(read).await.unwrap();
        assert!(follower.roots[0].due);
    }

    #[tokio::test]
    async fn a_root_on_the_way_to_another_stays_watched_as_a_root() {
        let dir = TempDir::new().unwrap();
        write(dir.path().join("x"), "1");
        let (mut follower, _updates) = follower(vec![root(0, dir.path()), root(1, dir.path().join("sub"))]);
        follower.roots[1].due = false;
        settle(&mut follower).await;
        follower.roots[1].due = true;
        settle(&mut follower).await;
        write(dir.path().join("x"), "written in place");
        let events = timeout(DEADLINE, events(&follower.inotify)).await.expect("an event");
        follower.wake(events);
        assert!(follower.roots[0].due && !follower.roots[1].due);
    }

    /// Needs a mount namespace of its own, and so runs itself again in one.
    #[tokio::test]
    async fn a_subpath_mount_that_the_kubelet_left_behind_is_named() {
        const INNER: &str = "TRIMTAB_TEST_MOUNTS";
        if std::env::var_os(INNER).is_none() {
            let run = |command: &str| {
                let mut unshare = std::process::Command::new("unshare");
                unshare.args(["--mount", command]).env(INNER, "1");
                unshare
            };
            let allowed = run("true").status().is_ok_and(|status| status.success());
            assert!(allowed, "this test needs a mount namespace of its own: run it as root, as in a container");
            let exe = std::env::current_exe().unwrap();
            let name = "source::files::watch::tests::a_subpath_mount_that_the_kubelet_left_behind_is_named";
            let output = run(exe.to_str().unwrap()).args(["--exact", name]).output().unwrap();
            let text = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success() && text.contains("1 passed"), "{text}");
            return;
        }
        let dir = TempDir::new().unwrap();
        let files = |value| [("a", value), ("sub/b", value)];
        let mut volume = Volume::new(dir.path().join("v"), &files("1"));
        let data = volume.path.join("..data").canonicalize().unwrap();
        let bind = |from: &str, to: &str| {
            let to = dir.path().join(to);
            match from {
                "a" => fs::write(&to, ""),
                _ => fs::create_dir(&to),
            }
            .unwrap();
            let status = std::process::Command::new("mount").arg("--bind").arg(data.join(from)).arg(&to).status();
            assert!(status.unwrap().success());
            to
        };
        let mut file = start(bind("a", "file mount"));
        let mut directory = start(bind("sub", "directory"));
        file.expect("file mount=1").await;
        directory.expect("b=1").await;
        for running in [&mut file, &mut directory] {
            assert_eq!(running.health().await, None);
        }
        volume.swap(&files("2"));
        let update = file.next().await;
        assert!(matches!(&update.seen, Seen::Trouble { message, .. } if message.contains("subPath")), "{update:?}");
        let update = directory.next().await;
        assert!(matches!(&update.seen, Seen::Trouble { message, .. } if message.contains("subPath")), "{update:?}");
    }
}
