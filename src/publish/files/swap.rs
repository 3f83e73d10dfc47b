//! The swap of the `files` layout: copies of what it replaces, the moves into place, and the way back out of one that
//! comes to nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::stat::Mode;
use tracing::warn;

use super::cache::InPlace;
use super::manifest::{FileRecord, Manifest};
use super::ownership::Ownership;
use super::{FILES, Files, Pointer, digest_of, keyed, over};
use crate::model::digest::{DigestKey, Hasher};
use crate::model::journal::sequence_of;
use crate::publish::PublishError;
use crate::publish::cursor::{Blocked, Cursor};
use crate::publish::dir::{Dir, Occupant, is_file, look};
use crate::publish::folder::{Access, Root};
use crate::publish::sys::{renameat, renameat_noreplace};
use crate::publish::write::BATCH;

/// Copies that are not whole yet.
const PART: &str = "part";

impl Files<'_> {
    /// What [`Publisher::link`](super::Publisher::link) does when the generation is not current yet.
    pub(super) fn prepare(&self, name: &str, current: Option<&str>) -> Result<(), PublishError> {
        let manifest = self.required(name)?;
        let staged = self.staged(name)?;
        let ownership = self.ownership()?;
        let places = || staged.iter().map(String::as_str).filter(|path| manifest.files.contains_key(path));
        self.refuse(&ownership, places())?;
        // On the way back all copies are there: they were made on the way forth.
        if current.and_then(sequence_of) < sequence_of(name) {
            self.keep_leaving(name, &manifest, &staged, &ownership)?;
        }
        // Nobody would know whose a directory is, if the manifest that has it were lost.
        self.0.flush()?;
        if current.is_none() {
            // The swap makes them: a candidate that comes to nothing would leave them behind.
            return Ok(());
        }
        let mut place = self.0.in_place();
        for path in places() {
            let access = self.0.access_of(path);
            match place.make(path, access.group, access.dir_mode) {
                // Perhaps made by an earlier attempt, and not yet on the disk. A file of ours that becomes a directory is
                // replaced by the swap.
                Ok(_) | Err(Blocked { errno: Errno::ENOTDIR, .. }) => place.all_changed(),
                Err(Blocked { at, errno }) => return Err(self.0.io("make the directory", &at, errno)),
            }
        }
        self.end_later(place)
    }

    /// Copies what a swap to this generation will replace or remove, for each generation that has it.
    fn keep_leaving(
        &self,
        name: &str,
        next: &Manifest,
        changed: &BTreeSet<String>,
        ownership: &Ownership,
    ) -> Result<(), PublishError> {
        let Some(in_place) = &ownership.current else { return Ok(()) };
        let replaced = changed.iter().filter_map(|path| in_place.files.get_key_value(path.as_str()));
        let leaving: BTreeMap<_, _> = replaced.chain(in_place.files.missing_in(&next.files)).collect();
        for (other, manifest) in ownership.manifests.iter().filter(|(other, _)| *other != name) {
            let kept = self.staged(other)?;
            let of = |(path, placed): (&&Arc<str>, &&FileRecord)| {
                let (path, record) = manifest.files.get_key_value(path)?;
                (!kept.contains(&**path) && placed.digest == record.digest).then_some((path, record))
            };
            let leaving_here: Vec<_> = leaving.iter().filter_map(of).collect();
            if !leaving_here.is_empty() {
                self.keep_copies(other, &leaving_here)?;
            }
        }
        Ok(())
    }

    /// Copies files that a generation has in place to its own directories.
    fn keep_copies(&self, name: &str, leaving: &[(&Arc<str>, &FileRecord)]) -> Result<(), PublishError> {
        for root in self.0.roots() {
            let here: Vec<_> = leaving.iter().filter(|(path, _)| root.below(path).is_some()).copied().collect();
            if !here.is_empty() {
                self.keep_copies_in(&root, name, &here)?;
            }
        }
        Ok(())
    }

    fn keep_copies_in(
        &self,
        root: &Root<'_>,
        name: &str,
        leaving: &[(&Arc<str>, &FileRecord)],
    ) -> Result<(), PublishError> {
        let output = self.0;
        let key = self.key()?;
        let (group, own_mode) = (root.access.group, root.access.own_mode());
        let failed = |doing, errno| output.io(doing, &root.place(name), errno);
        let top = match Dir::open(root.own, name) {
            // It had nothing there yet that was not in place.
            Err(Errno::ENOENT) if !root.path.is_empty() => {
                let made = root.own.make(name, group, own_mode);
                output.later_names(root.own, &root.place(name))?;
                made
            }
            opened => opened,
        };
        let top = top.map_err(|errno| failed("open", errno))?;
        top.remove(PART).map_err(|errno| failed("remove a left-over in", errno))?;
        let part = top.make(PART, group, own_mode).map_err(|errno| failed("make a directory in", errno))?;
        let files = match Dir::open(&top, FILES) {
            Err(Errno::ENOENT) => top.make(FILES, group, own_mode),
            opened => opened,
        };
        let files = files.map_err(|errno| failed("open the files in", errno))?;
        let mut place = output.in_place();
        let mut kept = Cursor::over([(root.path, &files)]);
        for batch in leaving.chunks(BATCH) {
            let (mut written, mut copies) = (Vec::new(), Vec::new());
            for (number, (path, record)) in batch.iter().enumerate() {
                let copy = number.to_string();
                let written_copy = self.copy_one(&part, &copy, path, record, &key, &mut place)?;
                let Some((fd, same)) = written_copy else { continue };
                written.push((fd, root.place(&format!("{name}/{PART}/{copy}"))));
                if same {
                    copies.push((copy, &***path));
                }
            }
            output.later(written)?;
            for (copy, path) in copies {
                let failed = |errno| output.io("keep a copy of", path, errno);
                let (dir, leaf) = kept.make(path, group, own_mode).map_err(|blocked| failed(blocked.errno))?;
                renameat(&part, copy.as_str(), dir, leaf).map_err(failed)?;
                kept.changed();
            }
            // Those that were changed by others are in the way of the next batch.
            for name in part.names().map_err(|errno| failed("list a directory in", errno))? {
                part.remove(&*name).map_err(|errno| failed("remove a copy in", errno))?;
            }
        }
        top.remove(PART).map_err(|errno| failed("remove a directory in", errno))?;
        let changed = kept.end_later().map_err(|errno| failed("open a directory in", errno))?;
        output.later(changed.into_iter().chain([files.into(), top.into()]).map(|dir| (dir, root.place(name))))
    }

    /// Copies one file that is in place, and says whether it is as it was published; `None`: there is none. Logs what
    /// cannot be gone back to.
    fn copy_one(
        &self,
        part: &Dir,
        copy: &str,
        path: &str,
        record: &FileRecord,
        key: &DigestKey,
        place: &mut Cursor<'_>,
    ) -> Result<Option<(OwnedFd, bool)>, PublishError> {
        let failed = |errno| self.0.io("keep a copy of", path, errno);
        let mut copied = None;
        if let Some((file, _)) = place.open_file(path).map_err(failed)? {
            let mut hasher = Hasher::plain();
            let mode = Mode::from_bits_truncate(record.mode);
            let fd = part
                .copy(copy, file, self.0.access_of(path).group, mode, |chunk| hasher.more(chunk))
                .map_err(failed)?;
            copied = Some((fd, keyed(key, hasher.finish()) == record.digest));
        }
        if !copied.as_ref().is_some_and(|(_, same)| *same) {
            warn!(
                "{} was changed or removed by somebody else since it was published: it is replaced, and cannot be gone \
                 back to",
                self.0.path.join(path).display()
            );
        }
        Ok(copied)
    }

    /// Removes the copies that a power loss has torn, and waits until the others are on the disk: what made them may have
    /// been killed before it did.
    pub(super) fn settle_copies(&self) -> Result<(), PublishError> {
        let Some(Pointer { current, .. }) = self.pointer()? else { return Ok(()) };
        let (ownership, key) = (self.ownership()?, self.key()?);
        for (name, manifest) in ownership.manifests.iter().filter(|(name, _)| **name != current) {
            let failed = |errno| self.0.io("look at the copies in", name, errno);
            let files = self.files(name)?;
            let mut kept = over(&files);
            for path in self.staged(name)? {
                let Some((dir, leaf)) = kept.find(&path).map_err(failed)? else { continue };
                let known = manifest.files.get(path.as_str()).map(|record| record.digest);
                if digest_of(dir, leaf, &key).map_err(failed)? != known {
                    dir.remove(leaf).map_err(failed)?;
                }
            }
            for root in self.0.roots() {
                self.0.sync_directory(root.own, name, &root.place(name))?;
            }
        }
        Ok(())
    }

    /// Removes the copies of what is in place all the same. A swap that comes to nothing must give back the room that it
    /// took: the journal needs some to say so.
    pub(super) fn give_back(&self, name: &str) -> Result<(), PublishError> {
        let ownership = self.ownership()?;
        let key = self.key()?;
        let mut place = self.0.in_place();
        for (other, manifest) in ownership.manifests.iter().filter(|(other, _)| *other != name) {
            let failed = |errno| self.0.io("remove a copy in", other, errno);
            for root in self.0.roots() {
                match Dir::open(root.own, other.as_str()) {
                    Err(Errno::ENOENT) => {}
                    opened => opened.and_then(|top| top.remove(PART)).map_err(failed)?,
                }
            }
            let files = self.files(other)?;
            let mut kept = over(&files);
            for path in self.staged(other)? {
                let Some(record) = manifest.files.get(&path) else { continue };
                let in_place = match place.find(&path).map_err(failed)? {
                    Some((dir, leaf)) => is_as_recorded(dir, leaf, record, &key).map_err(failed)?,
                    None => false,
                };
                if in_place && let Some((dir, leaf)) = kept.find(&path).map_err(failed)? {
                    dir.remove(leaf).map_err(failed)?;
                }
            }
        }
        self.0.forget_removed();
        Ok(())
    }

    /// Moves into place what the current generation has not in place yet; its manifest. `again`, if that may have been
    /// begun before: what was moved then is perhaps not on the disk.
    pub(super) fn complete(&self, again: bool) -> Result<Option<Arc<Manifest>>, PublishError> {
        let Some(Pointer { current, from }) = self.pointer()? else { return Ok(None) };
        if self.0.look(&current)? != Occupant::Directory {
            return Ok(None);
        }
        let manifest = self.required(&current)?;
        let staged = self.staged(&current)?;
        let files = self.files(&current)?;
        let mut ownership = self.ownership()?;
        let first = from.is_none();
        ownership.current = from.and_then(|from| ownership.manifests.get(&from)).cloned();
        ownership.absent.clear();
        let key = self.key()?;
        let synced = |errno| self.0.io("sync a directory of", "", errno);
        let mut in_place = self.still_in_place(&current, again)?;
        // A file must not be moved into a directory that a power loss could take: it is neither here nor there then.
        let mut place = self.0.in_place();
        for path in staged.iter().filter(|path| manifest.files.contains_key(path.as_str())) {
            self.make_room(&ownership, path, &mut place)?;
            if again || first {
                place.all_changed();
            }
        }
        place.end().map_err(synced)?;
        let mut source = over(&files);
        let mut place = self.0.in_place();
        let moves = staged.iter().filter_map(|path| manifest.files.get_key_value(path.as_str()));
        let all: Box<dyn Iterator<Item = _>> = if again { Box::new(manifest.files.iter()) } else { Box::new(moves) };
        for (path, record) in all {
            if staged.contains(&**path) {
                self.put(&ownership, &key, (path, record), again, &mut source, &mut place)?;
            } else if again && place.to(path).is_ok() {
                place.all_changed();
            }
        }
        self.end_later(place)?;
        let mut place = self.0.in_place();
        for (directory, stamp) in &mut in_place.directories {
            // One that is gone is not as it was.
            *stamp = self.stamp_of(&mut place, directory)?.unwrap_or_default();
        }
        *self.0.cache.in_place() = in_place;
        Ok(Some(manifest))
    }

    /// What the comparison found in place of a generation, without the directories that were changed since; it is
    /// forgotten until the swap is done.
    fn still_in_place(&self, generation: &str, again: bool) -> Result<InPlace, PublishError> {
        let compared = std::mem::take(&mut *self.0.cache.in_place());
        let mut still = if compared.generation == generation && !again { compared } else { InPlace::default() };
        let mut place = self.0.in_place();
        for (directory, before) in std::mem::take(&mut still.directories) {
            if self.stamp_of(&mut place, &directory)? == Some(before) {
                still.directories.insert(directory, before);
            } else {
                still.all = false;
            }
        }
        Ok(still)
    }

    /// Makes the directories above a path, also where a file of ours is.
    fn make_room(&self, ownership: &Ownership, path: &str, place: &mut Cursor<'_>) -> Result<(), PublishError> {
        let Access { group, dir_mode: mode } = self.0.access_of(path);
        if let Err(Blocked { at, errno: Errno::ENOTDIR }) = place.make(path, group, mode) {
            self.clear(ownership, &at, place)?;
        }
        place.make(path, group, mode).map_err(|Blocked { at, errno }| self.0.io("make the directory", &at, errno))?;
        Ok(())
    }

    /// Moves one file into place.
    fn put(
        &self,
        ownership: &Ownership,
        key: &DigestKey,
        (path, record): (&str, &FileRecord),
        again: bool,
        source: &mut Cursor<'_>,
        place: &mut Cursor<'_>,
    ) -> Result<(), PublishError> {
        let failed = |errno| self.0.io("move into place", path, errno);
        let (dir, leaf) = place.to(path).map_err(|Blocked { at, errno }| self.0.io("open", &at, errno))?;
        let (staged, staged_leaf) = source.to(path).map_err(|blocked| failed(blocked.errno))?;
        let is_torn = || Ok(digest_of(staged, staged_leaf, key)? != Some(record.digest));
        if is_as_recorded(dir, leaf, record, key).map_err(failed)? || (again && is_torn().map_err(failed)?) {
            // A copy that was kept for a swap that did not come to be; a power loss may have torn it.
            return staged.remove(staged_leaf).map_err(failed);
        }
        let moved = if ownership.is_current(path) {
            renameat(staged, staged_leaf, dir, leaf)
        } else {
            match renameat_noreplace(staged, staged_leaf, dir, leaf) {
                Err(Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP)
                    if look(dir, leaf).map_err(failed)? == Occupant::Nothing =>
                {
                    renameat(staged, staged_leaf, dir, leaf)
                }
                moved => moved,
            }
        };
        match moved {
            Err(Errno::EISDIR | Errno::EEXIST | Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP) => {
                self.clear(ownership, path, place)?;
                let (dir, leaf) = place.to(path).map_err(|blocked| failed(blocked.errno))?;
                renameat(staged, staged_leaf, dir, leaf).map_err(failed)?;
            }
            moved => moved.map_err(failed)?,
        }
        place.changed();
        Ok(())
    }

    /// Makes room where a file or a directory of ours found in the way; a file stays, if a rename can replace it.
    fn clear(&self, ownership: &Ownership, path: &str, place: &mut Cursor<'_>) -> Result<(), PublishError> {
        let failed = |errno| self.0.io("replace", path, errno);
        let (dir, leaf) = place.to(path).map_err(|blocked| failed(blocked.errno))?;
        let found = look(dir, leaf).map_err(failed)?;
        if !self.is_ours(ownership, path, &found)? {
            return self.0.refuse(&[(path.to_owned(), found.describe())]);
        }
        dir.remove(leaf).map_err(failed)?;
        place.changed();
        Ok(())
    }
}

/// Whether the file is as a manifest has it.
fn is_as_recorded(dir: &Dir, leaf: &str, record: &FileRecord, key: &DigestKey) -> nix::Result<bool> {
    let Some(stat) = dir.stat(leaf)? else { return Ok(false) };
    let alike = is_file(&stat) && stat.st_mode & 0o777 == record.mode && u64::try_from(stat.st_size) == Ok(record.size);
    Ok(alike && digest_of(dir, leaf, key)? == Some(record.digest))
}
