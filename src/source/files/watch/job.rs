//! One read of one root, with the watches that are set for it: in a thread of its own where it may hang.

use std::collections::{HashMap, HashSet};
use std::future::pending;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::oneshot;
use tokio::task::{JoinError, spawn_blocking};

use super::inotify::{Identity, Inotify, Interest, Setter, Watches};
use crate::model::digest::Digest;
use crate::model::object::Object;
use crate::source::files::budget::Budget;
use crate::source::files::medium::{Medium, QUICK};
use crate::source::files::mount::{Frozen, frozen, replaced};
use crate::source::files::read::{reading, without_trailing_slash};
use crate::source::files::stamp::{Known, Stamp};
use crate::source::files::{FilesError, InotifyError, Root};

/// The digest and secrecy of a root's object, if there is one.
pub(super) type Summary = Option<(Digest, bool)>;

pub(super) fn summary(object: Option<&Object>) -> Summary {
    object.map(|object| (object.content(), object.secret))
}

/// What one read found, and the watches that were set for it.
pub(super) struct Read {
    pub index: usize,
    pub object: Result<Option<Object>, FilesError>,
    /// The directories that it found, relative to the root; after a failure also those known before.
    pub directories: Vec<PathBuf>,
    pub watched: HashMap<PathBuf, Identity>,
    pub watches: Watches,
    /// Whether a watch was set only after the read: what changed in between may be missing in it.
    pub late: bool,
    pub refused: Option<InotifyError>,
    /// Whether it is small, and stored on the node.
    pub quick: bool,
    pub stamps: HashMap<String, Stamp>,
    pub took: Duration,
    /// A mount behind which the kubelet has replaced the content.
    pub subpath: Option<PathBuf>,
    /// Whether the mount was looked at, and if it is one that the kubelet will never update.
    pub looked: bool,
    pub frozen: Option<PathBuf>,
}

impl Read {
    /// Watches, then reads. Blocks. `directories`: those that the last read found; `healthy`: what is known, unless
    /// the root is in trouble; `anew`: all watches are set again; `look`: at its mount.
    #[expect(clippy::too_many_arguments, reason = "what the follower knows of one root")]
    pub fn new(
        index: usize,
        root: &Root,
        budget: &Budget,
        inotify: Result<Arc<Inotify>, InotifyError>,
        mut directories: Vec<PathBuf>,
        known: &Known,
        healthy: Option<Summary>,
        anew: bool,
        look: bool,
    ) -> Self {
        let start = std::time::Instant::now();
        let mut setter = Setter::new(inotify, anew);
        let real = setter.follow(&without_trailing_slash(&root.path));
        if let Some(real) = &real {
            setter.watch(real, false);
            setter.want(real, Interest::Content);
            for directory in &directories {
                setter.watch(&real.join(directory), true);
            }
        }
        let reading = reading(root, budget, known, SystemTime::now());
        let before = std::mem::replace(&mut directories, reading.directories);
        if reading.object.is_err() {
            let new: HashSet<_> = directories.iter().cloned().collect();
            directories.extend(before.into_iter().filter(|directory| !new.contains(directory)));
        }
        let mut late = false;
        if let Some(real) = &real {
            for directory in &directories {
                let path = real.join(directory);
                late |= setter.watch(&path, true);
                setter.want(&path, Interest::Content);
            }
        }
        let mut object = reading.object;
        let small = matches!(&object, Ok(Some(object)) if object.size() <= QUICK);
        let quick = small && reading.medium != Medium::Unknown;
        let mut mount = None;
        if let Ok(Some(read)) = &object
            && (read.data.is_empty() || healthy.is_none_or(|known| known == summary(Some(read))))
        {
            mount = replaced(&root.path);
            // The kubelet's cleaning up empties it: that is no news.
            if let Some(path) = mount.take_if(|_| read.data.is_empty()) {
                object = Err(FilesError::SubPath { path });
            }
        }
        let looked = look && matches!(object, Ok(Some(_)));
        let frozen = looked.then(|| frozen(&root.path)).flatten().and_then(|frozen| match frozen {
            Frozen::SubPath(point) if mount.is_none() => Some(point),
            Frozen::SubPath(_) | Frozen::File(_) => None,
        });
        let Setter { watched, watches, refused, .. } = setter;
        let (stamps, took) = (reading.stamps, start.elapsed());
        Self {
            index,
            object,
            directories,
            watched,
            watches,
            late,
            refused,
            quick,
            stamps,
            took,
            subpath: mount,
            looked,
            frozen,
        }
    }
}

/// Reads in a thread of its own. A hung mount holds it for as long as it hangs, and must not hold a thread of the pool,
/// in which others' edits are published. There are no more of them than roots.
pub(super) async fn apart(read: impl FnOnce() -> Read + Send + 'static) -> Read {
    let (job, jobs) = std::sync::mpsc::channel();
    let (answer, answered) = oneshot::channel();
    let work = move || {
        if let Ok(read) = jobs.recv() {
            // Nobody waits for it once the follower has ended.
            drop(answer.send(catch_unwind(AssertUnwindSafe(read))));
        }
    };
    let ended = match std::thread::Builder::new().name("read".to_owned()).spawn(work) {
        Ok(_) => {
            // The thread waits for it.
            let _ = job.send(read);
            answered.await.ok()
        }
        // There may be no more threads; the pool may have one.
        Err(_) => Some(spawn_blocking(read).await.map_err(JoinError::into_panic)),
    };
    match ended {
        Some(Ok(read)) => read,
        Some(Err(panic)) => resume_unwind(panic),
        // It answers before it ends.
        None => pending().await,
    }
}
