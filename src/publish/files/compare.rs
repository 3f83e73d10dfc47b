//! Which files of a tree are not in place yet, and its manifest.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};

use nix::errno::Errno;

use super::cache::InPlace;
use super::manifest::{FileRecord, Manifest, above};
use super::ownership::Ownership;
use super::{Files, keyed};
use crate::model::digest::DigestKey;
use crate::model::tree::{Chunk, File, Tree, TreePath};
use crate::publish::PublishError;
use crate::publish::cursor::{Blocked, Cursor};
use crate::publish::dir::is_file;

/// For how many directories it is remembered what was in place: a look at a directory costs more than one at a file.
const MOST_DIRECTORIES: usize = 64;

/// A tree beside what is in place.
pub(super) struct Comparison<'t> {
    pub(super) manifest: Manifest,
    /// The files that are to be written.
    pub(super) changed: Vec<(&'t TreePath, &'t File)>,
    /// What there was before its files were looked at.
    pub(super) in_place: InPlace,
}

impl Files<'_> {
    /// Compares a tree, as the generation `name`, with what is in place.
    pub(super) fn compare<'t>(
        &self,
        name: &str,
        tree: &'t Tree,
        ownership: &Ownership,
    ) -> Result<Comparison<'t>, PublishError> {
        let none = Manifest::default();
        let current = ownership.current.as_deref().unwrap_or(&none);
        let current_name = self.pointer()?.map(|pointer| pointer.current);
        let before = Some(self.0.cache.in_place()).filter(|before| current_name.as_ref() == Some(&before.generation));
        let before = before.map(|before| before.clone()).unwrap_or_default();
        let mut place = self.0.in_place();
        let mut directories = BTreeMap::new();
        for directory in before.directories.keys() {
            if let Some(now) = self.stamp_of(&mut place, directory)? {
                directories.insert(directory.clone(), now);
            }
        }
        // Then a chunk that is in both trees is in place.
        let untouched = before.all && directories == before.directories && ownership.absent.is_empty();
        let chunks = tree.chunks().iter().map(Arc::downgrade).collect();
        let in_place = InPlace { generation: name.to_owned(), directories, all: true, chunks };
        let folders = self.0.folders.iter().map(|folder| folder.path.clone()).collect();
        let comparison =
            Comparison { manifest: Manifest { folders, ..Manifest::default() }, changed: Vec::new(), in_place };
        let mut comparing = Comparing {
            files: self,
            key: self.key()?,
            current,
            absent: &ownership.absent,
            before: &before,
            place,
            directory: None,
            untouched: false,
            comparison,
        };
        let mut known = before.chunks.iter().zip(current.files.chunks()).filter(|_| untouched).peekable();
        for chunk in tree.chunks() {
            while known.next_if(|(its, records)| !is(its, chunk) && records.first() < chunk.first()).is_some() {}
            if let Some((_, records)) = known.next_if(|(its, _)| is(its, chunk)) {
                comparing.comparison.manifest.files.push(records.clone());
                continue;
            }
            for (path, file) in chunk.iter() {
                comparing.file(path, file)?;
            }
        }
        Ok(comparing.end())
    }
}

fn is(known: &Weak<Chunk>, chunk: &Arc<Chunk>) -> bool {
    known.as_ptr() == Arc::as_ptr(chunk)
}

/// A comparison under way, file by file in the order of paths.
struct Comparing<'a, 't> {
    files: &'a Files<'a>,
    key: DigestKey,
    current: &'a Manifest,
    absent: &'a BTreeSet<String>,
    before: &'a InPlace,
    place: Cursor<'a>,
    /// The directory of the file before, and whether it is as it was.
    directory: Option<&'t str>,
    untouched: bool,
    comparison: Comparison<'t>,
}

impl<'t> Comparing<'_, 't> {
    fn file(&mut self, path: &'t TreePath, file: &'t File) -> Result<(), PublishError> {
        let text = path.as_str();
        let known = self.current.files.get(text);
        let record = self.record(known, file);
        self.comparison.manifest.files.insert(path.shared(), record);
        self.enter(text.rsplit_once('/').map_or("", |(above, _)| above))?;
        let same = known == Some(&record) && !self.absent.contains(text);
        if same && self.untouched {
            return Ok(());
        }
        // Also for a file that has changed: it shows which directories are missing.
        let is_there = self.is_there(text, record.size)?;
        if !(same && is_there) {
            self.comparison.changed.push((path, file));
        }
        Ok(())
    }

    fn record(&self, known: Option<&FileRecord>, file: &File) -> FileRecord {
        let plain = file.bytes.digest();
        let digest = match known {
            Some(known) if known.plain == Some(plain) => known.digest,
            _ => keyed(&self.key, plain),
        };
        let mode = self.files.0.mode_of(file).bits();
        FileRecord { digest, plain: Some(plain), size: file.bytes.len() as u64, mode }
    }

    /// Goes on to the files of a directory.
    fn enter(&mut self, directory: &'t str) -> Result<(), PublishError> {
        if self.directory == Some(directory) {
            return Ok(());
        }
        self.directory = Some(directory);
        let InPlace { directories, all, .. } = &mut self.comparison.in_place;
        if directories.len() < MOST_DIRECTORIES
            && !directories.contains_key(directory)
            && let Some(now) = self.files.stamp_of(&mut self.place, directory)?
        {
            directories.insert(directory.to_owned(), now);
        }
        let now = directories.get(directory);
        *all &= now.is_some();
        self.untouched = now.is_some() && now == self.before.directories.get(directory);
        Ok(())
    }

    /// Whether a file of this size is at the path. The directories that are missing on the way to it will be ours.
    fn is_there(&mut self, path: &str, size: u64) -> Result<bool, PublishError> {
        let io = |doing, at: &str, errno| self.files.0.io(doing, at, errno);
        match self.place.to(path) {
            Ok((dir, leaf)) => {
                let stat = dir.stat(leaf).map_err(|errno| io("stat", path, errno))?;
                Ok(stat.is_some_and(|stat| is_file(&stat) && u64::try_from(stat.st_size) == Ok(size)))
            }
            Err(Blocked { at, errno: Errno::ENOENT | Errno::ENOTDIR }) => {
                let missing = above(path).filter(|above| above.len() >= at.len());
                self.comparison.manifest.directories.extend(missing.map(str::to_owned));
                Ok(false)
            }
            Err(Blocked { at, errno }) => Err(io("open", &at, errno)),
        }
    }

    fn end(self) -> Comparison<'t> {
        let Self { current, mut comparison, .. } = self;
        let manifest = &mut comparison.manifest;
        let still: Vec<_> = current.directories.iter().filter(|path| manifest.is_above(path)).cloned().collect();
        manifest.directories.extend(still);
        comparison
    }
}
