//! What need not be read again while the disk shows no change: with thousands of files, reading takes longer than all
//! else.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use nix::sys::stat::FileStat;

use super::manifest::Manifest;
use crate::model::tree::Chunk;

/// What changes when a file is written, replaced, or given away, or when a directory's names change.
pub(super) type Stamp = (u64, u64, i64, i64, u32);

/// The inode, size, time of change and owner.
pub(super) fn stamp(stat: &FileStat) -> Stamp {
    // What it is on this platform: signed or not, 32 or 64 bits.
    #[allow(clippy::useless_conversion, clippy::unnecessary_fallible_conversions, reason = "types differ by platform")]
    (
        stat.st_ino.into(),
        stat.st_size.try_into().unwrap_or(u64::MAX),
        stat.st_ctime.into(),
        stat.st_ctime_nsec.into(),
        stat.st_uid,
    )
}

#[derive(Debug, Default)]
pub(in crate::publish) struct Cache {
    /// Manifests, by the generation's directory. Each is believed for as long as the file that it was read from, or
    /// written to, was not touched.
    manifests: Mutex<BTreeMap<String, (Stamp, Arc<Manifest>)>>,
    in_place: Mutex<InPlace>,
}

/// Directories as they were when all files of a generation were in place in them. While one is as it was, no name in it
/// was removed or replaced. What somebody writes into a file of ours does not show there, and matters only when that file
/// is replaced. What happens to a directory during our own renames in it is not noticed until it happens again.
#[derive(Clone, Debug, Default)]
pub(super) struct InPlace {
    pub(super) generation: String,
    pub(super) directories: BTreeMap<String, Stamp>,
    /// Whether these are all in which the generation has files.
    pub(super) all: bool,
    /// The chunks of its tree, as far as somebody still has them: each has one in the manifest.
    pub(super) chunks: Vec<Weak<Chunk>>,
}

impl Cache {
    /// A manifest, if its file is as it was.
    pub(super) fn manifest(&self, name: &str, now: &FileStat) -> Option<Arc<Manifest>> {
        self.manifests().get(name).filter(|(known, _)| *known == stamp(now)).map(|(_, manifest)| manifest.clone())
    }

    pub(super) fn remember(&self, name: &str, stat: &FileStat, manifest: Arc<Manifest>) {
        self.manifests().insert(name.to_owned(), (stamp(stat), manifest));
    }

    pub(super) fn keep_manifests(&self, keep: impl Fn(&str) -> bool) {
        self.manifests().retain(|name, _| keep(name));
    }

    pub(super) fn in_place(&self) -> MutexGuard<'_, InPlace> {
        self.in_place.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn manifests(&self) -> MutexGuard<'_, BTreeMap<String, (Stamp, Arc<Manifest>)>> {
        self.manifests.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
