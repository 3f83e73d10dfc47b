//! Follows the roots: one task, one inotify instance, a read for each root that may have changed.

mod inotify;
mod job;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::future::pending;
use std::panic::resume_unwind;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use tokio::sync::{mpsc, watch as channel};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep_until};

use self::inotify::{Happened, Identity, Inotify, Watches, concerns};
use self::job::{Read, Summary, apart, summary};
use super::budget::Budget;
use super::stamp::{Known, Stamp};
use super::{Config, FilesError, InotifyError, Root};
use crate::model::object::{Object, ObjectRef};
use crate::source::{Seen, Update};

/// A failed read is tried again after this long, then twice as long, up to the second.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// A root is read again no sooner than this many times as long as its last read took, or `--debounce`: so a writer that
/// never rests costs a tenth of a core, and what is small is read at once.
const REST: u32 = 9;

/// The most events kept during one read; with more, the root is read again.
const MAX_UNCLEAR: usize = 1024;

/// Follows every root, and sends what it sees as [`Seen`] documents: `All` after the first read and after each that
/// differs, with no object where the root does not exist; `Trouble` and `Healthy` when they change.
///
/// Seen by polling alone: what another machine writes to a network file system, what is replaced in a directory on the
/// way that the container's user cannot list, and what is mounted or unmounted later.
///
/// A new value of `refresh` reads everything again. Returns only when nobody receives `updates` any more. What is not
/// known to be quick is read in a thread of its own, where a read outlives a dropped call, and a hung disk can make it
/// long.
pub async fn watch(config: Config, refresh: channel::Receiver<u64>, updates: mpsc::Sender<Update>) {
    watch_by(config, refresh, updates, Inotify::new).await;
}

/// Where inotify instances come from.
type Instance = fn() -> Result<Inotify, InotifyError>;

/// [`watch`], with inotify instances from `instance`.
async fn watch_by(
    config: Config,
    mut refresh: channel::Receiver<u64>,
    updates: mpsc::Sender<Update>,
    instance: Instance,
) {
    let poll_interval = config.poll_interval;
    let mut follower = Follower::new(config, updates);
    follower.open_inotify(instance);
    let mut poll = follower.polls.then(|| {
        let mut poll = interval_at(Instant::now() + poll_interval, poll_interval);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        poll
    });
    let mut refreshes = true;
    loop {
        follower.start_reads();
        let timer = follower.timer();
        tokio::select! {
            Some(done) = follower.reads.join_next() => match done {
                Ok(read) => if follower.report(read).await.is_err() { return },
                Err(error) => match error.try_into_panic() {
                    Ok(panic) => resume_unwind(panic),
                    // The runtime ends.
                    Err(_) => return,
                },
            },
            happened = happened(&follower.inotify) => follower.wake(happened),
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
            () = async { match timer { Some(at) => sleep_until(at).await, None => pending().await } } => {
                follower.wake_timers();
            }
            () = follower.updates.closed() => return,
        }
    }
}

async fn happened(inotify: &Result<Arc<Inotify>, InotifyError>) -> Happened {
    match inotify {
        Ok(inotify) => inotify.happened().await,
        Err(_) => pending().await,
    }
}

/// A root as this task knows it.
#[expect(clippy::struct_excessive_bools, reason = "independent facts: each has its own cause and its own end")]
struct Followed {
    root: Arc<Root>,
    watches: Watches,
    /// The directories that the last read found, relative to the root.
    directories: Vec<PathBuf>,
    /// What was last sent: one object, or none.
    sent: Option<BTreeMap<ObjectRef, Arc<Object>>>,
    /// Of the files of that object.
    stamps: Arc<HashMap<String, Stamp>>,
    /// Whether its mount was looked at.
    looked: bool,
    /// The trouble that was reported.
    trouble: Option<FilesError>,
    /// That there is none was reported.
    healthy: bool,
    /// It may have changed since the last read began.
    due: bool,
    /// The next read reads files whose stamps show no change, too.
    anew: bool,
    not_before: Option<Instant>,
    /// The others left it no room at the last read.
    crowded: bool,
    /// Its next read waits until no other is in flight, or for the poll.
    alone: bool,
    reading: bool,
    /// Events that came during the read and concern nothing that was watched before it: perhaps what it has found.
    unclear: Vec<PathBuf>,
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
            directories: Vec::new(),
            sent: None,
            stamps: Arc::default(),
            looked: false,
            trouble: None,
            healthy: false,
            due: true,
            anew: true,
            not_before: None,
            crowded: false,
            alone: false,
            reading: false,
            unclear: Vec::new(),
            retry: None,
            backoff: RETRY.0,
            refused: None,
            quick: false,
        }
    }

    fn read_anew(&mut self) {
        self.due = true;
        self.anew = true;
        // A read that never ends, of a hung mount, does not keep it waiting.
        self.alone = false;
    }

    fn object(&self) -> Option<&Arc<Object>> {
        self.sent.as_ref()?.values().next()
    }

    /// Of what was last sent.
    fn summary(&self) -> Option<Summary> {
        self.sent.as_ref().map(|_| summary(self.object().map(Arc::as_ref)))
    }
}

struct Follower {
    roots: Vec<Followed>,
    reads: JoinSet<Read>,
    budget: Arc<Budget>,
    debounce: Duration,
    polls: bool,
    inotify: Result<Arc<Inotify>, InotifyError>,
    /// Whether the log says already that inotify does not serve.
    warned: bool,
    /// Every path that is watched.
    watched: HashMap<PathBuf, Identity>,
    overflow: Overflow,
    updates: mpsc::Sender<Update>,
}

/// When to read everything for the events that the kernel had no room for. A read opens files, each of which is an
/// event: one of very many files can fill the queue itself, and must not lead to the next for ever.
#[derive(Default)]
struct Overflow {
    due: Option<Instant>,
    last: Option<Instant>,
    pause: Duration,
}

impl Overflow {
    fn happened(&mut self) {
        if self.due.is_none() {
            let recent = self.last.is_some_and(|last| last.elapsed() < 2 * RETRY.1);
            self.pause = if recent { (self.pause * 2).clamp(RETRY.0, RETRY.1) } else { Duration::ZERO };
            self.due = Some(Instant::now() + self.pause);
        }
    }
}

impl Follower {
    fn new(config: Config, updates: mpsc::Sender<Update>) -> Self {
        Self {
            roots: config.roots.into_iter().map(Followed::new).collect(),
            reads: JoinSet::new(),
            budget: Arc::new(Budget::new(config.max_size)),
            debounce: config.debounce,
            polls: !config.poll_interval.is_zero(),
            inotify: Err(InotifyError::Instance(Errno::ENOSYS)),
            warned: false,
            watched: HashMap::new(),
            overflow: Overflow::default(),
            updates,
        }
    }

    fn open_inotify(&mut self, instance: Instance) {
        if self.inotify.is_err() {
            self.inotify = instance().map(Arc::new);
        }
    }

    fn wake(&mut self, happened: Happened) {
        if happened.overflow {
            self.overflow.happened();
        }
        if happened.anywhere {
            return self.wake_all();
        }
        for path in happened.paths {
            for root in &mut self.roots {
                if concerns(&root.watches, &self.watched, &path) || root.unclear.len() >= MAX_UNCLEAR {
                    root.due = true;
                } else if root.reading {
                    root.unclear.push(path.clone());
                }
            }
        }
    }

    fn wake_all(&mut self) {
        self.roots.iter_mut().for_each(Followed::read_anew);
    }

    /// When something is due without an event.
    fn timer(&self) -> Option<Instant> {
        let now = Instant::now();
        let resting = self.roots.iter().filter(|root| root.due && !root.reading).filter_map(|root| root.not_before);
        let retries = self.roots.iter().filter_map(|root| root.retry);
        retries.chain(resting.filter(|at| *at > now)).chain(self.overflow.due).min()
    }

    fn wake_timers(&mut self) {
        let now = Instant::now();
        if self.overflow.due.take_if(|at| *at <= now).is_some() {
            self.overflow.last = Some(now);
            self.wake_all();
        }
        for root in &mut self.roots {
            if root.retry.take_if(|at| *at <= now).is_some() {
                root.read_anew();
            }
        }
    }

    fn start_reads(&mut self) {
        let now = Instant::now();
        // One after the other: together they could keep the room from each other for ever.
        let mut crowded = self.roots.iter().any(|root| root.reading && root.crowded);
        let mut reading = self.roots.iter().any(|root| root.reading);
        let due = |root: &Followed| root.due && !root.reading && root.not_before.is_none_or(|at| at <= now);
        for (index, followed) in self.roots.iter_mut().enumerate().filter(|(_, root)| due(root)) {
            if (followed.alone && reading) || (followed.crowded && std::mem::replace(&mut crowded, true)) {
                continue;
            }
            reading = true;
            followed.alone = false;
            followed.due = false;
            followed.reading = true;
            let root = Arc::clone(&followed.root);
            // Calls of a blocked instance would block the runtime.
            let quick = followed.quick && !self.inotify.as_ref().is_ok_and(|inotify| inotify.is_busy());
            let inotify = self.inotify.clone();
            let directories = std::mem::take(&mut followed.directories);
            let anew = std::mem::take(&mut followed.anew);
            let known = if anew {
                Known::default()
            } else {
                Known { object: followed.object().cloned(), stamps: Arc::clone(&followed.stamps) }
            };
            // A content that changes is looked at no further: it is on its way.
            let healthy = followed.summary().filter(|_| followed.healthy);
            let budget = Arc::clone(&self.budget);
            let look = !followed.looked;
            let read = move || Read::new(index, &root, &budget, inotify, directories, &known, healthy, anew, look);
            if quick {
                self.reads.spawn(async move { read() });
            } else {
                self.reads.spawn(apart(read));
            }
        }
        if self.reads.is_empty() {
            self.forget_watches();
        }
    }

    /// Removes the watches that no root needs any more. Not while a read is in flight: it may be adding the same.
    fn forget_watches(&mut self) {
        let Ok(inotify) = &self.inotify else { return };
        let needed: HashSet<_> = self.roots.iter().flat_map(|root| root.watches.keys()).collect();
        self.watched.retain(|path, identity| {
            let is_needed = needed.contains(identity);
            if !is_needed {
                inotify.unwatch(path);
            }
            is_needed
        });
    }

    /// Sends what a read found. The error: nobody receives it.
    async fn report(&mut self, read: Read) -> Result<(), mpsc::error::SendError<Update>> {
        let polls = self.polls;
        let Some(followed) = self.roots.get_mut(read.index) else { return Ok(()) };
        followed.reading = false;
        followed.not_before = Some(Instant::now() + (read.took * REST).min(self.debounce));
        followed.due |= read.late;
        followed.directories = read.directories;
        self.watched.extend(read.watched);
        if read.object.is_ok() {
            followed.watches = read.watches;
        } else {
            followed.watches.extend(read.watches);
        }
        let unclear = std::mem::take(&mut followed.unclear);
        followed.due |= unclear.iter().any(|path| concerns(&followed.watches, &self.watched, path));
        followed.refused = read.refused;
        followed.quick = read.quick;

        let crowded = matches!(&read.object, Err(FilesError::TooLargeTogether { .. }));
        let was_crowded = std::mem::replace(&mut followed.crowded, crowded);
        if crowded && !was_crowded {
            // Perhaps by what another read did not keep in the end: it is read again, alone.
            (followed.due, followed.alone) = (true, true);
            return Ok(());
        }

        let source = followed.root.source;
        let mut news = Vec::new();
        let trouble = match read.object {
            Ok(object) => {
                followed.stamps = Arc::new(read.stamps);
                if followed.summary() != Some(summary(object.as_ref())) {
                    let objects = object.into_iter().map(|object| (object.id.clone(), Arc::new(object)));
                    let objects = followed.sent.insert(objects.collect());
                    news.push(Seen::All(objects.clone()));
                }
                if let Some(point) = read.frozen {
                    news.push(Seen::Warning(FilesError::Frozen { path: point }.to_string()));
                }
                followed.looked |= read.looked;
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
                news.push(Seen::Trouble {
                    message: error.to_string(),
                    forbidden: error.forbidden(),
                    held_back: Vec::new(),
                });
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

#[cfg(test)]
mod tests;
