//! `--max-size` is one limit for all roots together: who holds how much.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{FilesError, Root};

/// The room that all roots share.
#[derive(Debug)]
pub struct Budget {
    /// In bytes.
    limit: u64,
    /// By [`Root::source`].
    held: Mutex<BTreeMap<usize, (PathBuf, u64)>>,
}

impl Budget {
    /// An empty one of this many bytes.
    #[must_use]
    pub fn new(limit: u64) -> Self {
        Self { limit, held: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<usize, (PathBuf, u64)>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a root holds.
    pub(super) fn held(&self, root: &Root) -> u64 {
        self.lock().get(&root.source).map_or(0, |(_, bytes)| *bytes)
    }

    /// The most that a root could hold beside the others.
    pub(super) fn most(&self, root: &Root) -> u64 {
        let held = self.lock();
        let others = held.iter().filter(|(source, _)| **source != root.source);
        self.limit.saturating_sub(others.map(|(_, (_, bytes))| bytes).sum())
    }

    /// Lets a root that is being read hold at least so much.
    pub(super) fn grow(&self, root: &Root, bytes: u64) -> Result<(), FilesError> {
        let mut held = self.lock();
        let others = held.iter().filter(|(source, (_, bytes))| **source != root.source && *bytes > 0);
        let (paths, sizes): (Vec<_>, Vec<_>) = others.map(|(_, (path, bytes))| (path.clone(), *bytes)).unzip();
        if bytes > self.limit {
            return Err(FilesError::TooLarge { path: root.path.clone(), limit: self.limit });
        }
        if bytes.saturating_add(sizes.iter().sum()) > self.limit {
            let paths = paths.into_iter().chain([root.path.clone()]).collect();
            return Err(FilesError::TooLargeTogether { paths, limit: self.limit });
        }
        let own = &mut held.entry(root.source).or_insert_with(|| (root.path.clone(), 0)).1;
        *own = bytes.max(*own);
        Ok(())
    }

    /// Says what a root holds when its read is over.
    pub(super) fn settle(&self, root: &Root, bytes: u64) {
        self.lock().insert(root.source, (root.path.clone(), bytes));
    }
}
