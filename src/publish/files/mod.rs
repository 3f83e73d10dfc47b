//! The layout of single files: each is renamed into place, in a directory that others may write to as well.
//!
//! A generation's directory, in Trimtab's own, holds its manifest, and below `files/` the bytes of those of its files that are not in
//! place: before the swap, what it changes; after a newer one's, what that has replaced or removed. So each of its
//! files is there or in place, and each move between the two is one rename. `..trimtab/private/current` says which generation
//! is current, and is written before the first file moves: from then on a swap that is cut off is ended, and never
//! undone half way. All of that is so in each of `--folders`, but for the manifest and `current`: see `folder`.
//!
//! What is ours, and may be replaced or removed, is in `ownership`. No hard links: a copy that shares its bytes with a
//! file in place would change with it.

mod cache;
mod compare;
mod manifest;
mod ownership;
mod records;
mod swap;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::unistd::UnlinkatFlags;
use tracing::warn;

pub(super) use self::cache::Cache;
use self::cache::{Stamp, stamp};
use self::compare::Comparison;
use self::manifest::above;
use self::records::{MANIFEST, Pointer};
use super::cursor::Cursor;
use super::dir::{Dir, MAX_DEPTH, Occupant, PRIVATE, is_directory, is_file, look, read_to_end, write_all};
use super::layout::Publisher;
use super::read_back::{Among, MayAccess, PublishedFile, Take, Unread, describe};
use super::sys::{fstat, fstatat, unlinkat};
use super::{Output, PublishError};
use crate::model::digest::{Digest, DigestKey, Hasher};
use crate::model::tree::Tree;

/// Names the current generation.
pub(super) const CURRENT: &str = "current";
pub(super) const CURRENT_TEMPORARY: &str = "current.tmp";
/// Where versions up to 0.1 have it, in the output itself.
pub(super) const EARLIER_CURRENT: &str = "..trimtab.current";
/// What is not in place.
const FILES: &str = "files";
/// There, for programs: what goes to folders, by its absolute path. No file of the output has such a name.
const ELSEWHERE: &str = "..folders";

/// Whether this layout was published in a directory, with this one of Trimtab's own.
pub(super) fn is_laid_out(dir: &Dir, state: Option<&Dir>) -> nix::Result<bool> {
    let now = state.map_or(Ok(Occupant::Nothing), |state| look(state, CURRENT))?;
    Ok(now != Occupant::Nothing || look(dir, EARLIER_CURRENT)? != Occupant::Nothing)
}

/// The layout of single files of an output.
pub(super) struct Files<'a>(pub(super) &'a Output);

impl<'a> Publisher<'a> for Files<'a> {
    fn home(&self) -> Option<&'a Dir> {
        self.0.state.as_ref()
    }

    fn current(&self) -> Result<Option<String>, PublishError> {
        Ok(self.pointer()?.map(|pointer| pointer.current))
    }

    fn finish(&self) -> Result<Vec<String>, PublishError> {
        let Some(manifest) = self.complete(true)? else { return Ok(Vec::new()) };
        self.settle_copies()?;
        let key = self.key()?;
        let mut changed = Vec::new();
        let mut gone = 0;
        let mut place = self.0.in_place();
        for (path, record) in manifest.files.iter() {
            let failed = |errno| self.0.io("read", path, errno);
            let found = match place.find(path).map_err(failed)? {
                Some((dir, leaf)) => digest_of(dir, leaf, &key).map_err(failed)?,
                None => None,
            };
            if found != Some(record.digest) {
                gone += usize::from(found.is_none());
                changed.push(path);
            }
        }
        if let Some((_, state)) = self.0.apart.as_ref().filter(|_| gone > 0 && gone == manifest.files.len()) {
            // The output is another one, or was made anew, and what is apart has outlived it.
            let own = self.0.state(CURRENT)?;
            own.remove(CURRENT).and_then(|()| own.sync()).map_err(|errno| self.0.own_io("remove", CURRENT, errno))?;
            return Ok(vec![format!(
                "--output {} has none of the {gone} files that were published by what --state-dir {} remembers: it is \
                 published anew",
                self.0.path.display(),
                state.display()
            )]);
        }
        let left = manifest.left_out.iter().map(|folder| {
            format!(
                "what was published into {folder} stays there and is not looked after any more: --folders does not name it"
            )
        });
        let first = changed.first().map(|path| {
            format!(
                "{} was changed or removed by somebody else since it was published ({} such in all): it stays so until \
                 its source changes, and cannot be gone back to",
                self.0.path.join(&***path).display(),
                changed.len()
            )
        });
        Ok(first.into_iter().chain(left).collect())
    }

    fn refuse_foreign(&self, tree: &Tree) -> Result<(), PublishError> {
        // Not only what would change: to know that takes a key, which a dry run must not make.
        self.refuse(&self.ownership()?, tree.iter().map(|(path, _)| path.as_str()))
    }

    fn write(&self, name: &str, tree: &Tree, whole: bool) -> Result<(), PublishError> {
        let output = self.0;
        let failed = |doing, errno| output.io(doing, name, errno);
        let ownership = self.ownership()?;
        let Comparison { manifest, changed, in_place } = self.compare(name, tree, &ownership)?;
        // What is in place is ours.
        self.refuse(&ownership, changed.iter().map(|(path, _)| path.as_str()))?;
        // A swap that cannot move a single file into place is not to begin.
        output.writable()?;
        let access = output.access;
        let top = output
            .state(name)?
            .make(name, access.group, access.own_mode())
            .map_err(|errno| failed("make the directory", errno))?;
        let path_of_files = format!("{name}/{FILES}");
        if whole {
            let (within, elsewhere): (Vec<_>, Vec<_>) =
                tree.iter().map(|(path, file)| (path.as_str(), file)).partition(|(path, _)| !path.starts_with('/'));
            output.write_tree(&top, FILES, &path_of_files, access, within.into_iter())?;
            if elsewhere.is_empty() {
                return Ok(());
            }
            let files = Dir::open(&top, FILES).map_err(|errno| failed("open the files in", errno))?;
            let path = format!("{path_of_files}/{ELSEWHERE}");
            return output.write_tree(&files, ELSEWHERE, &path, access, elsewhere.into_iter());
        }
        for root in output.roots() {
            let changed = || {
                let changed = changed.iter().map(|(path, file)| (path.as_str(), *file));
                changed.filter_map(|(path, file)| Some((root.below(path)?, file)))
            };
            if root.path.is_empty() {
                output.write_tree(&top, FILES, &path_of_files, access, changed())?;
            } else if changed().next().is_some() {
                let root_path = root.place(name);
                let made = root.own.make(name, root.access.group, root.access.own_mode());
                let made = made.map_err(|errno| output.io("make the directory", &root_path, errno))?;
                output.write_tree(&made, FILES, &root.place(&path_of_files), root.access, changed())?;
                output.later([(made.into(), root_path.clone())])?;
                output.later_names(root.own, &root_path)?;
            }
        }
        let written = top.create(MANIFEST, &[], None, PRIVATE).and_then(|file| {
            manifest.write(|chunk| write_all(&file, chunk))?;
            Ok((fstat(&file)?, file))
        });
        let path_of_manifest = format!("{name}/{MANIFEST}");
        let (stat, file) = written.map_err(|errno| output.io("write", &path_of_manifest, errno))?;
        output.cache.remember(name, &stat, Arc::new(manifest));
        *output.cache.in_place() = in_place;
        output.later([(file, path_of_manifest), (top.into(), name.to_owned())])?;
        output.later_names(output.state(name)?, name)
    }

    fn candidate(&self, name: &str) -> PathBuf {
        self.0.own(name).join(FILES)
    }

    /// What programs have looked at holds more than what changes, and is never published.
    fn is_intact(&self, _: &str, _: &Tree) -> Result<bool, PublishError> {
        Ok(false)
    }

    /// Keeps copies of what the swap will replace or remove, makes the directories that are missing, and waits until all
    /// that the swap needs is on the disk.
    fn link(&self, name: &str) -> Result<(), PublishError> {
        let current = self.current()?;
        if current.as_deref() == Some(name) {
            return self.complete(true).map(drop);
        }
        let linked = self.prepare(name, current.as_deref()).and_then(|()| self.0.flush());
        if linked.is_err() {
            // The first error is the one to report, and a copy too many does no harm.
            let _ = self.give_back(name);
        }
        linked
    }

    fn swap(&self, name: &str) -> Result<(), PublishError> {
        let from = self.current()?;
        let again = from.as_deref() == Some(name);
        let pointed = if again {
            // Begun before a crash or an error: perhaps not yet on the disk.
            self.0.state(CURRENT)?.sync()
        } else {
            let pointer = Pointer { current: name.to_owned(), from: from.clone() };
            // Two names: there is nothing that serde_json could refuse.
            let bytes = serde_json::to_vec(&pointer).unwrap_or_default();
            self.0.state(CURRENT)?.replace(CURRENT, CURRENT_TEMPORARY, &bytes)
        };
        if let Err(errno) = pointed {
            // If the error came after the rename, the copies are needed.
            if !again && self.current().is_ok_and(|current| current == from) {
                let _ = self.give_back(name);
            }
            return Err(self.0.own_io("replace", CURRENT, errno));
        }
        self.complete(again).map(drop)
    }

    /// Removes what other generations have in place and this one has not, and the directories that are empty by that.
    /// A file that somebody has changed meanwhile is not ours any more.
    fn unlink(&self, name: &str) -> Result<(), PublishError> {
        let wanted = self.required(name)?;
        let ownership = self.ownership()?;
        let mut stale = BTreeSet::new();
        let mut empty = BTreeSet::new();
        for (_, manifest) in ownership.manifests.iter().filter(|(other, _)| *other != name) {
            stale.extend(manifest.files.missing_in(&wanted.files).map(|(path, _)| path));
            empty.extend(manifest.directories.iter().filter(|path| !wanted.is_above(path)));
        }
        let mut place = self.0.in_place();
        for path in stale {
            let failed = |errno| self.0.io("remove", path, errno);
            let Some((dir, leaf)) = place.find(path).map_err(failed)? else {
                place.changed();
                continue;
            };
            match look(dir, leaf).map_err(failed)? {
                // Perhaps removed by an earlier attempt, and not yet on the disk.
                Occupant::Nothing => place.changed(),
                Occupant::Directory => {}
                Occupant::File if self.is_claimed(&ownership, path, dir, leaf)? => {
                    dir.remove(leaf).map_err(failed)?;
                    place.changed();
                }
                _ => warn!(
                    "{} is not needed any more, and left: it is not what Trimtab published there",
                    self.0.path.join(&**path).display()
                ),
            }
        }
        // Those below come after those above, and are removed before them.
        for path in empty.into_iter().rev() {
            let failed = |errno| self.0.io("remove the directory", path, errno);
            let Some((dir, leaf)) = place.find(path).map_err(failed)? else {
                place.changed();
                continue;
            };
            match unlinkat(dir, leaf, UnlinkatFlags::RemoveDir) {
                Ok(()) | Err(Errno::ENOENT) => place.changed(),
                // Others have something in it, or have put something in its place.
                Err(Errno::ENOTEMPTY | Errno::EEXIST | Errno::ENOTDIR) => {}
                Err(errno) => return Err(failed(errno)),
            }
        }
        self.end_later(place)
    }

    fn each(&self, name: &str, take: Take<'_>) -> Result<(), PublishError> {
        let manifest = self.required(name)?;
        let ownership = self.ownership()?;
        let files = self.files(name)?;
        let mut kept = over(&files);
        let mut place = self.0.in_place();
        for (path, record) in manifest.files.iter() {
            let failed = |errno| self.0.io("read", path, errno);
            let copy = kept.open_file(path).map_err(failed)?;
            if copy.is_some() {
                self.refuse(&ownership, [&**path].into_iter())?;
            }
            let found = match copy {
                Some(copy) => Some(copy),
                None => place.open_file(path).map_err(failed)?,
            };
            let Some((file, size)) = found else { return Err(failed(Errno::ENOENT)) };
            let spoilt = |what: &str| PublishError::Spoilt { path: self.0.path.join(&**path), what: what.into() };
            if size != record.size {
                return Err(spoilt("of another size"));
            }
            match take(path.as_bytes(), size, file) {
                Ok(()) => {}
                Err(Unread::Failed(errno)) => return Err(failed(errno)),
                Err(Unread::Changing) => return Err(spoilt("a file that is being changed")),
            }
        }
        Ok(())
    }

    fn unreadable_by(&self, may: MayAccess<'_>, name: &str) -> Result<Option<String>, PublishError> {
        let mut place = self.0.in_place();
        let mut seen = BTreeSet::new();
        for (path, _) in self.required(name)?.files.iter() {
            let directories = above(path).map(|above| (above, 1)).filter(|(above, _)| seen.insert((*above).to_owned()));
            for (at, access) in directories.chain([(&**path, 4)]) {
                let found = place.find(at).map_err(|errno| self.0.io("read", at, errno))?;
                let Some((dir, leaf)) = found else { continue };
                let Some(stat) = dir.stat(leaf).map_err(|errno| self.0.io("stat", at, errno))? else { continue };
                if !may(access, stat.st_uid, stat.st_gid, stat.st_mode) {
                    return Ok(Some(describe(at, &stat)));
                }
            }
        }
        Ok(None)
    }

    fn published(
        &self,
        name: &str,
        among: Among<'_>,
        limit: u64,
    ) -> Result<BTreeMap<String, PublishedFile>, PublishError> {
        let mut left = limit;
        let mut place = self.0.in_place();
        let mut files = BTreeMap::new();
        for (path, _) in self.required(name)?.files.iter().filter(|(path, _)| among(path)) {
            let failed = |errno| self.0.io("read", path, errno);
            let Some((dir, leaf)) = place.find(path).map_err(failed)? else { continue };
            let Some(stat) = dir.stat(leaf).map_err(failed)? else { continue };
            if is_file(&stat) {
                let found = self.0.published_file(dir, leaf, path, &stat, &mut left)?;
                files.insert(path.to_string(), found);
            }
        }
        Ok(files)
    }
}

impl Files<'_> {
    /// Leaves the directories in place, which need not be on the disk yet.
    fn end_later(&self, place: Cursor<'_>) -> Result<(), PublishError> {
        let changed = place.end_later().map_err(|errno| self.0.io("open a directory of", "", errno))?;
        self.0.later(changed.into_iter().map(|dir| (dir, String::new())))
    }

    /// A directory's stamp; `None` if there is no such directory.
    fn stamp_of(&self, place: &mut Cursor<'_>, directory: &str) -> Result<Option<Stamp>, PublishError> {
        let failed = |errno| self.0.io("stat", directory, errno);
        let Some(dir) = place.directory(directory).map_err(failed)? else { return Ok(None) };
        fstat(dir).map(|stat| Some(stamp(&stat))).map_err(failed)
    }

    /// Where a generation has what is not in place, by roots.
    fn files(&self, name: &str) -> Result<Vec<(&str, Dir)>, PublishError> {
        let mut files = Vec::new();
        for root in self.0.roots() {
            match Dir::open(root.own, name).and_then(|dir| Dir::open(&dir, FILES)) {
                Err(Errno::ENOENT) => {}
                opened => {
                    let failed = |errno| self.0.io("open", &root.place(&format!("{name}/{FILES}")), errno);
                    files.push((root.path, opened.map_err(failed)?));
                }
            }
        }
        Ok(files)
    }

    /// The paths of the generation's files in its own directory.
    fn staged(&self, name: &str) -> Result<BTreeSet<String>, PublishError> {
        let mut staged = BTreeSet::new();
        let prefix = |root: &str| if root.is_empty() { String::new() } else { format!("{root}/") };
        let mut open: Vec<_> = self.files(name)?.into_iter().map(|(root, dir)| (prefix(root), dir, 0)).collect();
        while let Some((below, dir, depth)) = open.pop() {
            let failed = |errno| self.0.io("read", &format!("{name}/{FILES}/{below}"), errno);
            for leaf in dir.names().map_err(failed)? {
                let stat = fstatat(&dir, &*leaf, AtFlags::AT_SYMLINK_NOFOLLOW).map_err(failed)?;
                let Ok(leaf) = leaf.into_string() else { continue };
                if is_directory(&stat) && depth < MAX_DEPTH {
                    let inside = Dir::open(&dir, leaf.as_str()).map_err(failed)?;
                    open.push((format!("{below}{leaf}/"), inside, depth + 1));
                } else if is_file(&stat) {
                    staged.insert(format!("{below}{leaf}"));
                }
            }
        }
        Ok(staged)
    }
}

fn over<'a>(files: &'a [(&str, Dir)]) -> Cursor<'a> {
    Cursor::over(files.iter().map(|(root, dir)| (*root, dir)))
}

/// The digest of a file's bytes, as a manifest has it; `None` if there is no such file.
fn digest_of(dir: &Dir, leaf: &str, key: &DigestKey) -> nix::Result<Option<Digest>> {
    let file = match dir.open_file(leaf) {
        Err(Errno::ENOENT) => return Ok(None),
        opened => opened?,
    };
    let Some((file, _)) = file else { return Ok(None) };
    let mut hasher = Hasher::plain();
    read_to_end(file, |chunk| {
        hasher.more(chunk);
        true
    })?;
    Ok(Some(keyed(key, hasher.finish())))
}

/// What a manifest has of bytes with this digest.
fn keyed(key: &DigestKey, bytes: Digest) -> Digest {
    let mut hasher = Hasher::keyed(key);
    hasher.field(bytes.as_bytes());
    hasher.finish()
}
