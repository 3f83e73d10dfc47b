//! The layout of single files: each is renamed into place, in a directory that others may write to as well.
//!
//! A generation's directory holds its manifest, and below `files/` the bytes of those of its files that are not in
//! place: before the swap, what it changes; after a newer one's, what that has replaced or removed. So each of its
//! files is there or in place, and each move between the two is one rename. `..trimtab.current` says which generation
//! is current, and is written before the first file moves: from then on a swap that is cut off is ended, and never
//! undone half way.
//!
//! What is *ours* is what the current manifest names, and what has the very bytes that another manifest gives it.
//! Nothing else is ever replaced or removed. No hard links: a copy that shares its bytes with a file in place would
//! change with it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, FileType, Mode, RenameFlags, Stat};
use rustix::io::Errno;
use rustix::process::geteuid;
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::dirfd::{Blocked, Dir, Entry as Lies, MAX_DEPTH, Way, digest_of_just, look, read_to_end, write_all};
use super::inspect::Published;
use super::layout::{BATCH, Publisher, describe};
use super::manifest::{Entry, Manifest, above};
use super::sys::{fstat, fsync, renameat, renameat_with, statat, unlinkat};
use super::{Output, PublishError, SETGID};
use crate::model::digest::{Digest, DigestKey, Hasher};
use crate::model::journal::sequence_of;
use crate::model::tree::{Chunk, ContentHasher, File, Tree, TreePath};
use crate::reload::process::Reader;

/// Names the current generation.
pub(super) const CURRENT: &str = "..trimtab.current";
pub(super) const CURRENT_TEMPORARY: &str = "..trimtab.current.tmp";
const CURRENT_LIMIT: usize = 4096;

const MANIFEST: &str = "manifest";
/// Far more than `--max-size` lets there be, and an end to what somebody else has put there.
const MANIFEST_LIMIT: usize = 1 << 28;

/// What is not in place.
const FILES: &str = "files";
/// Copies that are not whole yet.
const PART: &str = "part";

/// What [`CURRENT`] holds.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Pointer {
    /// The current generation's directory.
    current: String,
    /// The one that was current before: what it has in place is ours as well, until the swap is at its end.
    from: Option<String>,
}

/// Whether this layout was published in a directory.
pub(super) fn is_laid_out(dir: &Dir) -> rustix::io::Result<bool> {
    Ok(look(dir, CURRENT)? != Lies::Missing)
}

/// What is known of a place.
struct Books {
    /// What is ours whatever lies there: the current generation's files,
    current: Option<Arc<Manifest>>,
    /// but these, which are not in place yet.
    absent: BTreeSet<String>,
    /// By the generation's directory.
    manifests: BTreeMap<String, Arc<Manifest>>,
}

impl Books {
    fn is_current(&self, path: &str) -> bool {
        self.current.as_ref().is_some_and(|current| current.files.contains_key(path)) && !self.absent.contains(path)
    }
}

/// What need not be read again: with thousands of files, that takes longer than all else.
#[derive(Debug, Default)]
pub(super) struct Memory {
    /// Manifests, by the generation's directory. Each is believed for as long as the file that it was read from, or
    /// written to, was not touched.
    manifests: Mutex<BTreeMap<String, (Stamp, Arc<Manifest>)>>,
    seen: Mutex<Seen>,
}

/// Directories as they were when all files of a generation were in place in them. While one is as it was, no name in it
/// was removed or replaced. What somebody writes into a file of ours does not show there, and matters only when that file
/// is replaced. What happens to a directory during our own renames in it is not noticed until it happens again.
#[derive(Clone, Debug, Default)]
struct Seen {
    generation: String,
    directories: BTreeMap<String, Stamp>,
    /// Whether these are all in which the generation has files.
    all: bool,
    /// The chunks of its tree, as far as somebody still has them: each has one in the manifest.
    chunks: Vec<Weak<Chunk>>,
}

/// Of how many directories that is remembered: a look at a directory costs more than one at a file.
const MOST_SEEN: usize = 64;

/// A tree beside what is in place.
struct Compared<'t> {
    manifest: Manifest,
    /// The files that are to be written.
    changed: Vec<(&'t TreePath, &'t File)>,
    /// What there was before its files were looked at.
    seen: Seen,
}

/// What changes when a file is written, replaced, or given away, or when a directory's names change.
type Stamp = (u64, u64, i64, i64, u32);

fn stamp(stat: &Stat) -> Stamp {
    // What it is on this platform: signed or not, 32 or 64 bits.
    #[allow(clippy::useless_conversion, clippy::unnecessary_fallible_conversions, reason = "types differ by platform")]
    (
        stat.st_ino,
        stat.st_size.try_into().unwrap_or(u64::MAX),
        stat.st_ctime,
        stat.st_ctime_nsec.try_into().unwrap_or(-1),
        stat.st_uid,
    )
}

/// The layout of single files of an output.
pub(super) struct Files<'a>(pub(super) &'a Output);

impl Publisher for Files<'_> {
    fn current(&self) -> Result<Option<String>, PublishError> {
        Ok(self.pointer()?.map(|pointer| pointer.current))
    }

    fn finish(&self) -> Result<Vec<String>, PublishError> {
        let Some(manifest) = self.complete(true)? else { return Ok(Vec::new()) };
        let key = self.key()?;
        let mut changed = Vec::new();
        let mut place = Way::from(&self.0.dir);
        for (path, entry) in manifest.files.iter() {
            let failed = |errno| self.0.io("read", path, errno);
            let found = match reached(place.to(path, None)).map_err(failed)? {
                Some((dir, leaf)) => digest_of(dir, leaf, &key).map_err(failed)?,
                None => None,
            };
            if found != Some(entry.digest) {
                changed.push(path);
            }
        }
        let first = changed.first().map(|path| {
            format!(
                "{} was changed or removed by somebody else since it was published ({} such in all): it stays so until \
                 its source changes, and cannot be gone back to",
                self.0.path.join(&***path).display(),
                changed.len()
            )
        });
        Ok(first.into_iter().collect())
    }

    fn refuse_foreign(&self, tree: &Tree) -> Result<(), PublishError> {
        // Not only what would change: to know that takes a key, which a dry run must not make.
        self.refuse(&self.books()?, tree.iter().map(|(path, _)| path.as_str()))
    }

    fn write(&self, name: &str, tree: &Tree, whole: bool) -> Result<(), PublishError> {
        let output = self.0;
        let failed = |doing, errno| output.io(doing, name, errno);
        let books = self.books()?;
        let Compared { manifest, changed, seen } = self.compare(name, tree, &books)?;
        // What is in place is ours.
        self.refuse(&books, changed.iter().map(|(path, _)| path.as_str()))?;
        let top = output
            .dir
            .make(name, output.group, self.own_mode())
            .map_err(|errno| failed("make the directory", errno))?;
        let path_of_files = format!("{name}/{FILES}");
        if whole {
            return output.write_tree(&top, FILES, &path_of_files, tree.iter());
        }
        output.write_tree(&top, FILES, &path_of_files, changed.into_iter())?;
        let mode = Mode::from_raw_mode(0o600);
        let written = top.create(MANIFEST, &[], None, mode).and_then(|file| {
            manifest.write(|chunk| write_all(&file, chunk))?;
            fsync(&file)?;
            fstat(&file)
        });
        let stat = written.map_err(|errno| output.io("write", &format!("{name}/{MANIFEST}"), errno))?;
        self.remember(name, &stat, Arc::new(manifest));
        *self.seen() = seen;
        top.sync().map_err(|errno| failed("sync", errno))
    }

    fn candidate(&self, name: &str) -> PathBuf {
        PathBuf::from(name).join(FILES)
    }

    /// What programs have looked at holds more than what changes, and is never published.
    fn is_intact(&self, _: &str, _: &Tree) -> Result<bool, PublishError> {
        Ok(false)
    }

    /// Keeps copies of what the swap will replace or remove, and makes the directories that are missing.
    fn link(&self, name: &str) -> Result<(), PublishError> {
        let current = self.current()?;
        if current.as_deref() == Some(name) {
            return self.complete(true).map(drop);
        }
        let linked = self.prepare(name, current.as_deref());
        if linked.is_err() {
            // The first error is the one to tell, and a copy too many does no harm.
            let _ = self.give_back(name);
        }
        linked
    }

    fn swap(&self, name: &str) -> Result<(), PublishError> {
        let from = self.current()?;
        let again = from.as_deref() == Some(name);
        let pointed = if again {
            // Begun before a crash or an error: perhaps not yet on the disk.
            self.0.dir.sync()
        } else {
            let pointer = Pointer { current: name.to_owned(), from: from.clone() };
            // Two names: there is nothing that serde_json could refuse.
            let bytes = serde_json::to_vec(&pointer).unwrap_or_default();
            self.0.dir.replace(CURRENT, CURRENT_TEMPORARY, &bytes)
        };
        if let Err(errno) = pointed {
            // If the error came after the rename, the copies are needed.
            if !again && self.current().is_ok_and(|current| current == from) {
                let _ = self.give_back(name);
            }
            return Err(self.0.io("replace", CURRENT, errno));
        }
        self.complete(again).map(drop)
    }

    /// Removes what other generations have in place and this one has not, and the directories that are empty by that.
    /// A file that somebody has changed meanwhile is not ours any more.
    fn unlink(&self, name: &str) -> Result<(), PublishError> {
        let wanted = self.required(name)?;
        let books = self.books()?;
        let mut stale = BTreeSet::new();
        let mut empty = BTreeSet::new();
        for (_, manifest) in books.manifests.iter().filter(|(other, _)| *other != name) {
            stale.extend(manifest.files.missing_in(&wanted.files).map(|(path, _)| path));
            empty.extend(manifest.directories.iter().filter(|path| !wanted.is_above(path)));
        }
        let mut place = Way::from(&self.0.dir);
        for path in stale {
            let failed = |errno| self.0.io("remove", path, errno);
            let Some((dir, leaf)) = reached(place.to(path, None)).map_err(failed)? else {
                place.changed();
                continue;
            };
            match look(dir, leaf).map_err(failed)? {
                // Perhaps removed by an earlier attempt, and not yet on the disk.
                Lies::Missing => place.changed(),
                Lies::Other(FileType::Directory) => {}
                Lies::Other(FileType::RegularFile) if self.is_claimed(&books, path, dir, leaf)? => {
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
            let Some((dir, leaf)) = reached(place.to(path, None)).map_err(failed)? else {
                place.changed();
                continue;
            };
            match unlinkat(dir, leaf, AtFlags::REMOVEDIR) {
                Ok(()) | Err(Errno::NOENT) => place.changed(),
                // Others have something in it, or have put something in its place.
                Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR) => {}
                Err(errno) => return Err(failed(errno)),
            }
        }
        place.end().map_err(|errno| self.0.io("sync a directory of", "", errno))
    }

    fn content(&self, name: &str, key: &DigestKey) -> Result<Digest, PublishError> {
        let manifest = self.required(name)?;
        let books = self.books()?;
        let files = self.files(name)?;
        let mut kept = files.as_ref().map(Way::from);
        let mut place = Way::from(&self.0.dir);
        let mut hasher = ContentHasher::new(key);
        for (path, entry) in manifest.files.iter() {
            let failed = |errno| self.0.io("read", path, errno);
            let copy = match &mut kept {
                Some(kept) => open_at(kept, path).map_err(failed)?,
                None => None,
            };
            if copy.is_some() {
                self.refuse(&books, [&**path].into_iter())?;
            }
            let found = match copy {
                Some(copy) => Some(copy),
                None => open_at(&mut place, path).map_err(failed)?,
            };
            let Some((file, size)) = found else { return Err(failed(Errno::NOENT)) };
            let spoilt = |what: &str| PublishError::Spoilt { path: self.0.path.join(&**path), what: what.into() };
            if size != entry.size {
                return Err(spoilt("of another size"));
            }
            let Some(bytes) = digest_of_just(size, file).map_err(failed)? else {
                return Err(spoilt("a file that is being changed"));
            };
            hasher.file(path.as_bytes(), bytes);
        }
        Ok(hasher.finish())
    }

    fn unreadable_by(&self, reader: &Reader, name: &str) -> Result<Option<String>, PublishError> {
        let mut place = Way::from(&self.0.dir);
        let mut seen = BTreeSet::new();
        for (path, _) in self.required(name)?.files.iter() {
            let directories = above(path).map(|above| (above, 1)).filter(|(above, _)| seen.insert((*above).to_owned()));
            for (at, access) in directories.chain([(&**path, 4)]) {
                let reached = reached(place.to(at, None)).map_err(|errno| self.0.io("read", at, errno))?;
                let Some((dir, leaf)) = reached else { continue };
                let stat = match statat(dir, leaf, AtFlags::SYMLINK_NOFOLLOW) {
                    Err(Errno::NOENT) => continue,
                    stat => stat.map_err(|errno| self.0.io("stat", at, errno))?,
                };
                if !reader.may(access, stat.st_uid, stat.st_gid, stat.st_mode) {
                    return Ok(Some(describe(at, &stat)));
                }
            }
        }
        Ok(None)
    }

    fn published(&self, name: &str, limit: u64) -> Result<BTreeMap<String, Published>, PublishError> {
        let mut left = limit;
        let mut place = Way::from(&self.0.dir);
        let mut files = BTreeMap::new();
        for (path, _) in self.required(name)?.files.iter() {
            let failed = |errno| self.0.io("read", path, errno);
            let Some((dir, leaf)) = reached(place.to(path, None)).map_err(failed)? else { continue };
            let stat = match statat(dir, leaf, AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NOENT) => continue,
                stat => stat.map_err(failed)?,
            };
            if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile {
                let found = self.0.published_file(dir, leaf, path, &stat, &mut left)?;
                files.insert(path.to_string(), found);
            }
        }
        Ok(files)
    }
}

impl Files<'_> {
    fn pointer(&self) -> Result<Option<Pointer>, PublishError> {
        let read = match self.0.dir.read(CURRENT, CURRENT_LIMIT) {
            Err(Errno::NOENT) => return Ok(None),
            other => other.map_err(|errno| self.0.io("read", CURRENT, errno))?,
        };
        let ours = match &read {
            Some((_, file)) => is_own(&fstat(file).map_err(|errno| self.0.io("stat", CURRENT, errno))?),
            None => false,
        };
        let pointer = read.filter(|_| ours).and_then(|(bytes, _)| serde_json::from_slice::<Pointer>(&bytes).ok());
        let is_ours = |name: &str| sequence_of(name).is_some();
        let pointer = pointer.filter(|p| is_ours(&p.current) && p.from.as_deref().is_none_or(is_ours));
        match pointer {
            Some(pointer) => Ok(Some(pointer)),
            None => Err(self.record(CURRENT, "is not what Trimtab wrote")),
        }
    }

    /// Of directories that nobody else needs to enter; with the output's setgid bit, since files are made in them.
    fn own_mode(&self) -> Mode {
        Mode::from_raw_mode(0o700 | self.0.dir_mode.as_raw_mode() & SETGID)
    }

    fn record(&self, name: &str, what: &'static str) -> PublishError {
        PublishError::Record { path: self.0.path.join(name), what }
    }

    /// The output's own key, which is made if there is none: `--digest-key-file` may change between two starts, and the
    /// manifests would tell nothing any more.
    fn key(&self) -> Result<DigestKey, PublishError> {
        if let Some(key) = self.0.own_key.get() {
            return Ok(key.clone());
        }
        let key = self.0.digest_key()?;
        Ok(self.0.own_key.get_or_init(|| key).clone())
    }

    /// The manifest of a generation; `None` if it has none, or one that a power loss has torn before it was published.
    fn manifest(&self, name: &str) -> Result<Option<Arc<Manifest>>, PublishError> {
        let failed = |errno| self.0.io("read", &format!("{name}/{MANIFEST}"), errno);
        let dir = match Dir::open(&self.0.dir, name) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
            opened => opened.map_err(failed)?,
        };
        let stat = match statat(&dir, MANIFEST, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(None),
            stat => stat.map_err(failed)?,
        };
        let known = self.remembered().get(name).filter(|(known, _)| *known == stamp(&stat)).cloned();
        if let Some((_, manifest)) = known {
            return Ok(Some(manifest));
        }
        let read = match dir.read(MANIFEST, MANIFEST_LIMIT) {
            Err(Errno::NOENT) => None,
            read => read.map_err(failed)?,
        };
        let Some((bytes, file)) = read else { return Ok(None) };
        let stat = fstat(&file).map_err(failed)?;
        let manifest = if is_own(&stat) { Manifest::parse(&bytes).map(Arc::new) } else { None };
        if let Some(manifest) = &manifest {
            self.remember(name, &stat, manifest.clone());
        }
        Ok(manifest)
    }

    fn remembered(&self) -> MutexGuard<'_, BTreeMap<String, (Stamp, Arc<Manifest>)>> {
        self.0.memory.manifests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.0.memory.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A directory's stamp; `None` if there is no such directory.
    fn stamp_of(&self, way: &mut Way<'_>, directory: &str) -> Result<Option<Stamp>, PublishError> {
        let inside = if directory.is_empty() { "x".to_owned() } else { format!("{directory}/x") };
        let failed = |errno| self.0.io("stat", directory, errno);
        let Some((dir, _)) = reached(way.to(&inside, None)).map_err(failed)? else { return Ok(None) };
        fstat(dir).map(|stat| Some(stamp(&stat))).map_err(failed)
    }

    fn remember(&self, name: &str, stat: &Stat, manifest: Arc<Manifest>) {
        self.remembered().insert(name.to_owned(), (stamp(stat), manifest));
    }

    fn required(&self, name: &str) -> Result<Arc<Manifest>, PublishError> {
        let manifest = self.manifest(name)?;
        manifest.ok_or_else(|| self.record(&format!("{name}/{MANIFEST}"), "is missing or not what Trimtab wrote"))
    }

    fn books(&self) -> Result<Books, PublishError> {
        let mut manifests = BTreeMap::new();
        for name in self.0.generations()? {
            if let Some(manifest) = self.manifest(&name)? {
                manifests.insert(name, manifest);
            }
        }
        self.remembered().retain(|name, _| manifests.contains_key(name));
        let name = self.current()?;
        let current = name.as_ref().and_then(|name| manifests.get(name)).cloned();
        let absent = match &name {
            Some(name) if current.is_some() => self.staged(name)?,
            _ => BTreeSet::new(),
        };
        Ok(Books { current, absent, manifests })
    }

    /// Where a generation has what is not in place.
    fn files(&self, name: &str) -> Result<Option<Dir>, PublishError> {
        let opened = Dir::open(&self.0.dir, name).and_then(|dir| Dir::open(&dir, FILES));
        match opened {
            Err(Errno::NOENT) => Ok(None),
            opened => opened.map(Some).map_err(|errno| self.0.io("open", &format!("{name}/{FILES}"), errno)),
        }
    }

    /// The paths of the generation's files that lie in its own directory.
    fn staged(&self, name: &str) -> Result<BTreeSet<String>, PublishError> {
        let mut staged = BTreeSet::new();
        let mut open: Vec<_> = self.files(name)?.map(|dir| (String::new(), dir, 0)).into_iter().collect();
        while let Some((below, dir, depth)) = open.pop() {
            let failed = |errno| self.0.io("read", &format!("{name}/{FILES}/{below}"), errno);
            for entry in dir.names().map_err(failed)? {
                let stat = statat(&dir, &*entry, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
                let Ok(entry) = entry.into_string() else { continue };
                match FileType::from_raw_mode(stat.st_mode) {
                    FileType::Directory if depth < MAX_DEPTH => {
                        let inside = Dir::open(&dir, &*entry).map_err(failed)?;
                        open.push((format!("{below}{entry}/"), inside, depth + 1));
                    }
                    FileType::RegularFile => {
                        staged.insert(format!("{below}{entry}"));
                    }
                    _ => {}
                }
            }
        }
        Ok(staged)
    }

    /// The manifest of a tree, and which of its files are to be written: the others are in place.
    fn compare<'t>(&self, name: &str, tree: &'t Tree, books: &Books) -> Result<Compared<'t>, PublishError> {
        let key = self.key()?;
        let none = Manifest::default();
        let current = books.current.as_deref().unwrap_or(&none);
        let current_name = self.current()?;
        let seen = Some(self.seen()).filter(|seen| current_name.as_ref() == Some(&seen.generation));
        let seen = seen.map(|seen| seen.clone()).unwrap_or_default();
        let mut place = Way::from(&self.0.dir);
        let chunks = tree.chunks().iter().map(Arc::downgrade).collect();
        let mut next = Seen { generation: name.to_owned(), directories: BTreeMap::new(), all: true, chunks };
        for directory in seen.directories.keys() {
            if let Some(now) = self.stamp_of(&mut place, directory)? {
                next.directories.insert(directory.clone(), now);
            }
        }
        // Then a chunk that is in both trees is in place.
        let all_untouched = seen.all && next.directories == seen.directories && books.absent.is_empty();
        // The directory of the file before, and whether it is as it was seen.
        let (mut directory, mut untouched) = (None, false);
        let (mut manifest, mut changed) = (Manifest::default(), Vec::new());
        let mut known = seen.chunks.iter().zip(current.files.chunks()).peekable();
        for chunk in tree.chunks() {
            let is_same = |(before, _): &(&Weak<Chunk>, _)| before.as_ptr() == Arc::as_ptr(chunk);
            while known.next_if(|known| !is_same(known) && known.1.first() < chunk.first()).is_some() {}
            if let Some((_, entries)) = known.next_if(|known| all_untouched && is_same(known)) {
                manifest.files.push(entries.clone());
                continue;
            }
            for (shared, file) in chunk.iter() {
                let path = shared.as_str();
                let mode = if file.secret { self.0.secret_mode } else { self.0.file_mode };
                let known = current.files.get(path);
                let plain = file.bytes.digest();
                let digest = match known {
                    Some(known) if known.plain == Some(plain) => known.digest,
                    _ => keyed(&key, plain),
                };
                let size = file.bytes.len() as u64;
                let entry = Entry { digest, plain: Some(plain), size, mode: mode.as_raw_mode() };
                manifest.files.insert(shared.shared(), entry);
                let its = path.rsplit_once('/').map_or("", |(above, _)| above);
                if directory != Some(its) {
                    directory = Some(its);
                    let room = next.directories.len() < MOST_SEEN && !next.directories.contains_key(its);
                    if let Some(now) = if room { self.stamp_of(&mut place, its)? } else { None } {
                        next.directories.insert(its.to_owned(), now);
                    }
                    let now = next.directories.get(its);
                    next.all &= now.is_some();
                    untouched = now.is_some() && now == seen.directories.get(its);
                }
                if untouched && known == Some(&entry) && !books.absent.contains(path) {
                    continue;
                }
                let in_place = match place.to(path, None) {
                    Ok((dir, leaf)) => match statat(dir, leaf, AtFlags::SYMLINK_NOFOLLOW) {
                        Err(Errno::NOENT) => false,
                        stat => {
                            let stat = stat.map_err(|errno| self.0.io("stat", path, errno))?;
                            FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
                                && u64::try_from(stat.st_size) == Ok(entry.size)
                        }
                    },
                    Err(Blocked { at, errno: Errno::NOENT | Errno::NOTDIR }) => {
                        let missing = above(path).filter(|above| above.len() >= at.len());
                        manifest.directories.extend(missing.map(str::to_owned));
                        false
                    }
                    Err(Blocked { at, errno }) => return Err(self.0.io("open", &at, errno)),
                };
                if !(in_place && known == Some(&entry) && !books.absent.contains(path)) {
                    changed.push((shared, file));
                }
            }
        }
        let ours = current.directories.iter().filter(|directory| manifest.is_above(directory)).cloned();
        let ours: Vec<_> = ours.collect();
        manifest.directories.extend(ours);
        Ok(Compared { manifest, changed, seen: next })
    }

    /// An error if something that is not ours lies at one of these paths, or above it.
    fn refuse<'p>(&self, books: &Books, paths: impl Iterator<Item = &'p str>) -> Result<(), PublishError> {
        let mut foreign = Vec::new();
        let mut place = Way::from(&self.0.dir);
        for path in paths {
            let (at, lies) = match place.to(path, None) {
                Ok((dir, leaf)) => (path.to_owned(), look(dir, leaf).map_err(|errno| self.0.io("read", path, errno))?),
                Err(Blocked { errno: Errno::NOENT, .. }) => continue,
                Err(Blocked { at, errno: Errno::NOTDIR }) => {
                    let failed = |errno| self.0.io("read", &at, errno);
                    // If it has changed meanwhile, the next look will tell.
                    let Some((dir, leaf)) = reached(place.to(&at, None)).map_err(failed)? else { continue };
                    let lies = look(dir, leaf).map_err(failed)?;
                    (at, lies)
                }
                Err(Blocked { at, errno }) => return Err(self.0.io("open", &at, errno)),
            };
            if !self.is_ours(books, &at, &lies)? {
                foreign.push((at, lies.describe()));
            }
        }
        foreign.dedup();
        self.0.refuse(&foreign)
    }

    /// Whether what lies at a path may be replaced.
    fn is_ours(&self, books: &Books, path: &str, lies: &Lies) -> Result<bool, PublishError> {
        match lies {
            Lies::Missing => Ok(true),
            Lies::Other(FileType::Directory) => self.is_all_ours(books, path),
            _ if books.is_current(path) => Ok(true),
            Lies::Other(FileType::RegularFile) => {
                let mut way = Way::from(&self.0.dir);
                match reached(way.to(path, None)).map_err(|errno| self.0.io("read", path, errno))? {
                    Some((dir, leaf)) => self.is_claimed(books, path, dir, leaf),
                    None => Ok(false),
                }
            }
            _ => Ok(false),
        }
    }

    /// Whether nothing in a directory is another's, so that a file may take its place.
    fn is_all_ours(&self, books: &Books, path: &str) -> Result<bool, PublishError> {
        let mut open = vec![path.to_owned()];
        while let Some(at) = open.pop() {
            let failed = |errno| self.0.io("read", &at, errno);
            let mut way = Way::from(&self.0.dir);
            let inside = format!("{at}/x");
            let Some((dir, _)) = reached(way.to(&inside, None)).map_err(failed)? else { return Ok(false) };
            for name in dir.names().map_err(failed)? {
                let Ok(name) = name.into_string() else { return Ok(false) };
                let below = format!("{at}/{name}");
                match look(dir, name.as_str()).map_err(failed)? {
                    Lies::Other(FileType::Directory) if above(&below).count() < MAX_DEPTH => open.push(below),
                    _ if books.is_current(&below) => {}
                    Lies::Other(FileType::RegularFile) if self.is_claimed(books, &below, dir, &name)? => {}
                    _ => return Ok(false),
                }
            }
        }
        Ok(true)
    }

    /// Whether the file has the very bytes that a generation has there. No key, no claim: a dry run makes none.
    fn is_claimed(&self, books: &Books, path: &str, dir: &Dir, leaf: &str) -> Result<bool, PublishError> {
        let mut claims = books.manifests.values().filter_map(|manifest| manifest.files.get(path)).peekable();
        if claims.peek().is_none() {
            return Ok(false);
        }
        let Some((key, _)) = self.0.found_key()? else { return Ok(false) };
        let found = digest_of(dir, leaf, &DigestKey::new(key)).map_err(|errno| self.0.io("read", path, errno))?;
        Ok(claims.any(|entry| found == Some(entry.digest)))
    }

    fn prepare(&self, name: &str, current: Option<&str>) -> Result<(), PublishError> {
        let manifest = self.required(name)?;
        let staged = self.staged(name)?;
        let books = self.books()?;
        let places = || staged.iter().map(String::as_str).filter(|path| manifest.files.contains_key(path));
        self.refuse(&books, places())?;
        // On the way back all copies are there: they were made on the way forth.
        if current.and_then(sequence_of) < sequence_of(name) {
            self.keep(name, &manifest, &staged, &books)?;
        }
        if current.is_none() {
            // The swap makes them: a candidate that comes to nothing would leave them behind.
            return Ok(());
        }
        let mut place = Way::from(&self.0.dir);
        for path in places() {
            match place.to(path, Some((self.0.group, self.0.dir_mode))) {
                // Perhaps made by an earlier attempt, and not yet on the disk. A file of ours that becomes a directory is
                // replaced by the swap.
                Ok(_) | Err(Blocked { errno: Errno::NOTDIR, .. }) => place.all_changed(),
                Err(Blocked { at, errno }) => return Err(self.0.io("make the directory", &at, errno)),
            }
        }
        place.end().map_err(|errno| self.0.io("sync a directory of", "", errno))
    }

    /// Copies what a swap to this generation will replace or remove, for each generation that has it: on return the
    /// copies are on the disk.
    fn keep(&self, name: &str, next: &Manifest, changed: &BTreeSet<String>, books: &Books) -> Result<(), PublishError> {
        let Some(in_place) = &books.current else { return Ok(()) };
        let replaced = changed.iter().filter_map(|path| in_place.files.get_key_value(path.as_str()));
        let leaving: BTreeMap<_, _> = replaced.chain(in_place.files.missing_in(&next.files)).collect();
        for (other, manifest) in books.manifests.iter().filter(|(other, _)| *other != name) {
            let kept = self.staged(other)?;
            let of = |(path, placed): (&&Arc<str>, &&Entry)| {
                let (path, entry) = manifest.files.get_key_value(path)?;
                (!kept.contains(&**path) && placed.digest == entry.digest).then_some((path, entry))
            };
            let goes: Vec<_> = leaving.iter().filter_map(of).collect();
            if !goes.is_empty() {
                self.keep_of(other, &goes)?;
            }
        }
        Ok(())
    }

    /// Removes the copies of what is in place all the same. A swap that comes to nothing must give back the room that it
    /// took: the journal needs some to say so.
    fn give_back(&self, name: &str) -> Result<(), PublishError> {
        let books = self.books()?;
        let key = self.key()?;
        let mut place = Way::from(&self.0.dir);
        for (other, manifest) in books.manifests.iter().filter(|(other, _)| *other != name) {
            let failed = |errno| self.0.io("remove a copy in", other, errno);
            Dir::open(&self.0.dir, other.as_str()).and_then(|top| top.remove(PART)).map_err(failed)?;
            let Some(files) = self.files(other)? else { continue };
            let mut kept = Way::from(&files);
            for path in self.staged(other)? {
                let Some(entry) = manifest.files.get(&path) else { continue };
                let in_place = match reached(place.to(&path, None)).map_err(failed)? {
                    Some((dir, leaf)) => is_entry(dir, leaf, entry, &key).map_err(failed)?,
                    None => false,
                };
                if in_place && let Some((dir, leaf)) = reached(kept.to(&path, None)).map_err(failed)? {
                    dir.remove(leaf).map_err(failed)?;
                }
            }
        }
        Ok(())
    }

    fn keep_of(&self, name: &str, goes: &[(&Arc<str>, &Entry)]) -> Result<(), PublishError> {
        let output = self.0;
        let key = self.key()?;
        let failed = |doing, errno| output.io(doing, name, errno);
        let top = Dir::open(&output.dir, name).map_err(|errno| failed("open", errno))?;
        top.remove(PART).map_err(|errno| failed("remove a left-over in", errno))?;
        let part =
            top.make(PART, output.group, self.own_mode()).map_err(|errno| failed("make a directory in", errno))?;
        let files = match Dir::open(&top, FILES) {
            Err(Errno::NOENT) => top.make(FILES, output.group, self.own_mode()),
            opened => opened,
        };
        let files = files.map_err(|errno| failed("open the files in", errno))?;
        let mut place = Way::from(&output.dir);
        let mut kept = Way::from(&files);
        for batch in goes.chunks(BATCH) {
            let (mut written, mut copies) = (Vec::new(), Vec::new());
            for (number, (path, entry)) in batch.iter().enumerate() {
                let failed = |errno| output.io("keep a copy of", path, errno);
                let copy = number.to_string();
                let mut digest = None;
                if let Some((file, _)) = open_at(&mut place, path).map_err(failed)? {
                    let mut hasher = Hasher::plain();
                    let mode = Mode::from_raw_mode(entry.mode);
                    let result = part.copy(&copy, file, output.group, mode, |chunk| hasher.more(chunk));
                    written.push((result.map_err(failed)?, format!("{name}/{PART}/{copy}")));
                    digest = Some(keyed(&key, hasher.finish()));
                }
                if digest == Some(entry.digest) {
                    copies.push((copy, &***path));
                } else {
                    warn!(
                        "{} was changed or removed by somebody else since it was published: it is replaced, and cannot \
                         be gone back to",
                        output.path.join(&***path).display()
                    );
                }
            }
            output.flush(&mut written)?;
            for (copy, path) in copies {
                let failed = |errno| output.io("keep a copy of", path, errno);
                let made =
                    kept.to(path, Some((output.group, self.own_mode()))).map_err(|blocked| failed(blocked.errno))?;
                renameat(&part, copy.as_str(), made.0, made.1).map_err(failed)?;
                kept.changed();
            }
            // Those that were changed by others are in the way of the next batch.
            for name in part.names().map_err(|errno| failed("list a directory in", errno))? {
                part.remove(&*name).map_err(|errno| failed("remove a copy in", errno))?;
            }
        }
        kept.end().and_then(|()| files.sync()).map_err(|errno| failed("sync the files in", errno))?;
        top.remove(PART).and_then(|()| top.sync()).map_err(|errno| failed("sync", errno))
    }

    /// Moves into place what the current generation has not in place yet; its manifest. `again`, if that may have been
    /// begun before: what was moved then is perhaps not on the disk.
    fn complete(&self, again: bool) -> Result<Option<Arc<Manifest>>, PublishError> {
        let Some(Pointer { current, from }) = self.pointer()? else { return Ok(None) };
        if self.0.look(&current)? != Lies::Other(FileType::Directory) {
            return Ok(None);
        }
        let manifest = self.required(&current)?;
        let staged = self.staged(&current)?;
        let files = self.files(&current)?;
        let mut books = self.books()?;
        let first = from.is_none();
        books.current = from.and_then(|from| books.manifests.get(&from)).cloned();
        books.absent.clear();
        let key = self.key()?;
        let seen = std::mem::take(&mut *self.seen());
        let mut seen = if seen.generation == current && !again { seen } else { Seen::default() };
        let mut place = Way::from(&self.0.dir);
        for (directory, before) in std::mem::take(&mut seen.directories) {
            if self.stamp_of(&mut place, &directory)? == Some(before) {
                seen.directories.insert(directory, before);
            } else {
                seen.all = false;
            }
        }
        // A file must not be moved into a directory that a power loss could take: it is neither here nor there then.
        let mut place = Way::from(&self.0.dir);
        for path in staged.iter().filter(|path| manifest.files.contains_key(path.as_str())) {
            self.make_room(&books, path, &mut place)?;
            if again || first {
                place.all_changed();
            }
        }
        place.end().map_err(|errno| self.0.io("sync a directory of", "", errno))?;
        let mut source = files.as_ref().map(Way::from);
        let mut place = Way::from(&self.0.dir);
        let moves = staged.iter().filter_map(|path| manifest.files.get_key_value(path.as_str()));
        let all: Box<dyn Iterator<Item = _>> = if again { Box::new(manifest.files.iter()) } else { Box::new(moves) };
        for (path, entry) in all {
            match &mut source {
                Some(source) if staged.contains(&**path) => self.put(&books, &key, path, entry, source, &mut place)?,
                _ if again && place.to(path, None).is_ok() => place.all_changed(),
                _ => {}
            }
        }
        place.end().map_err(|errno| self.0.io("sync a directory of", "", errno))?;
        let mut place = Way::from(&self.0.dir);
        for (directory, stamp) in &mut seen.directories {
            // One that is gone is not as it was.
            *stamp = self.stamp_of(&mut place, directory)?.unwrap_or_default();
        }
        *self.seen() = seen;
        Ok(Some(manifest))
    }

    /// Makes the directories above a path, also where a file of ours lies.
    fn make_room(&self, books: &Books, path: &str, place: &mut Way<'_>) -> Result<(), PublishError> {
        let make = Some((self.0.group, self.0.dir_mode));
        if let Err(Blocked { at, errno: Errno::NOTDIR }) = place.to(path, make) {
            self.clear(books, &at, place)?;
        }
        place.to(path, make).map_err(|Blocked { at, errno }| self.0.io("make the directory", &at, errno))?;
        Ok(())
    }

    /// Moves one file into place.
    fn put(
        &self,
        books: &Books,
        key: &DigestKey,
        path: &str,
        entry: &Entry,
        source: &mut Way<'_>,
        place: &mut Way<'_>,
    ) -> Result<(), PublishError> {
        let failed = |errno| self.0.io("move into place", path, errno);
        let (dir, leaf) = place.to(path, None).map_err(|Blocked { at, errno }| self.0.io("open", &at, errno))?;
        let (staged, staged_leaf) = source.to(path, None).map_err(|blocked| failed(blocked.errno))?;
        if is_entry(dir, leaf, entry, key).map_err(failed)? {
            // A copy that was kept for a swap that did not come to be.
            return staged.remove(staged_leaf).map_err(failed);
        }
        let moved = if books.is_current(path) {
            renameat(staged, staged_leaf, dir, leaf)
        } else {
            match renameat_with(staged, staged_leaf, dir, leaf, RenameFlags::NOREPLACE) {
                Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP)
                    if look(dir, leaf).map_err(failed)? == Lies::Missing =>
                {
                    renameat(staged, staged_leaf, dir, leaf)
                }
                moved => moved,
            }
        };
        match moved {
            Err(Errno::ISDIR | Errno::EXIST | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                self.clear(books, path, place)?;
                let (dir, leaf) = place.to(path, None).map_err(|blocked| failed(blocked.errno))?;
                renameat(staged, staged_leaf, dir, leaf).map_err(failed)?;
            }
            moved => moved.map_err(failed)?,
        }
        place.changed();
        Ok(())
    }

    /// Makes room where a file or a directory of ours lies in the way; a file stays, if a rename can replace it.
    fn clear(&self, books: &Books, path: &str, place: &mut Way<'_>) -> Result<(), PublishError> {
        let failed = |errno| self.0.io("replace", path, errno);
        let (dir, leaf) = place.to(path, None).map_err(|blocked| failed(blocked.errno))?;
        let lies = look(dir, leaf).map_err(failed)?;
        if !self.is_ours(books, path, &lies)? {
            return self.0.refuse(&[(path.to_owned(), lies.describe())]);
        }
        dir.remove(leaf).map_err(failed)?;
        place.changed();
        Ok(())
    }
}

/// Whether a file is this user's: others may write to the output, and put there what looks like ours.
fn is_own(stat: &Stat) -> bool {
    stat.st_uid == geteuid().as_raw()
}

/// Whether the file is as a manifest has it.
fn is_entry(dir: &Dir, leaf: &str, entry: &Entry, key: &DigestKey) -> rustix::io::Result<bool> {
    let stat = match statat(dir, leaf, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => return Ok(false),
        stat => stat?,
    };
    let alike = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
        && stat.st_mode & 0o777 == entry.mode
        && u64::try_from(stat.st_size) == Ok(entry.size);
    Ok(alike && digest_of(dir, leaf, key)? == Some(entry.digest))
}

/// The digest of a file's bytes, as a manifest has it; `None` if there is no such file.
fn digest_of(dir: &Dir, leaf: &str, key: &DigestKey) -> rustix::io::Result<Option<Digest>> {
    let Some((file, _)) = opened(dir.open_file(leaf))? else { return Ok(None) };
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

/// Opens the file at a path, with its size; `None` if there is no such file.
fn open_at(way: &mut Way<'_>, path: &str) -> rustix::io::Result<Option<(OwnedFd, u64)>> {
    match reached(way.to(path, None))? {
        Some((dir, leaf)) => opened(dir.open_file(leaf)),
        None => Ok(None),
    }
}

/// What a way led to; `None` if a directory is missing on it, or is none.
fn reached<T>(went: Result<T, Blocked>) -> rustix::io::Result<Option<T>> {
    match went {
        Ok(found) => Ok(Some(found)),
        Err(Blocked { errno: Errno::NOENT | Errno::NOTDIR, .. }) => Ok(None),
        Err(Blocked { errno, .. }) => Err(errno),
    }
}

fn opened(file: rustix::io::Result<Option<(OwnedFd, u64)>>) -> rustix::io::Result<Option<(OwnedFd, u64)>> {
    if file.as_ref().err() == Some(&Errno::NOENT) { Ok(None) } else { file }
}
