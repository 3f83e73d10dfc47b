//! The kubelet's layout: generations side by side, and one rename of `..data` from the old one to the new one.
//!
//! Top-level names are links to `..data/NAME`, so that the rename changes all of them at once. What is *ours* in the
//! output directory is decided by form alone: names that start with `..trimtab`, `..data` naming a directory of our
//! pattern, and a link NAME with exactly the target `..data/NAME`. Nothing else is ever replaced or removed.

use std::collections::BTreeMap;
use std::path::PathBuf;

use rustix::fd::OwnedFd;
use rustix::fs::{Advice, AtFlags, FileType, Mode, Stat, fadvise};
use rustix::io::Errno;

use super::dirfd::{Dir, Entry, look, read_to_end};
use super::sys::{fstat, fsync, statat, symlinkat};
use super::{JOURNAL_TEMPORARY, KEY_TEMPORARY, Output, PublishError};
use crate::digest::{Digest, DigestKey, Hasher};
use crate::journal::{Generation, sequence_of};
use crate::machine::Disk;
use crate::process::Reader;
use crate::tree::{File, Tree};

pub(super) const DATA: &str = "..data";
const DATA_TEMPORARY: &str = "..trimtab.data.tmp";

/// What a crash can leave behind, besides generations.
const TEMPORARIES: [&str; 3] = [DATA_TEMPORARY, JOURNAL_TEMPORARY, KEY_TEMPORARY];

/// How many files are held open until they are on the disk.
const BATCH: usize = 128;

/// How much is read back of one generation, names and bytes: far more than `--max-size` is in any use, and an end to
/// what somebody else has put there.
const READ_LIMIT: u64 = 1 << 30;

/// The longest path in a generation, as `TreePath` has it. It bounds how deep is read.
const PATH_LIMIT: usize = 1024;

impl Output {
    /// What lies in the output directory.
    pub fn disk(&self) -> Result<Disk, PublishError> {
        let directories = self.generations()?;
        let link = self.data()?.filter(|link| directories.contains(link));
        Ok(Disk { link, directories })
    }

    /// What a process could not read of the generation: the first such file or directory, with its mode and owners.
    pub fn unreadable_by(&self, reader: &Reader, generation: &Generation) -> Result<Option<String>, PublishError> {
        self.unreadable_below(reader, directory(generation, "read")?)
    }

    /// The same of the directory of this name.
    pub(super) fn unreadable_below(&self, reader: &Reader, name: &str) -> Result<Option<String>, PublishError> {
        let mut open =
            vec![(name.to_owned(), Dir::open(&self.dir, name).map_err(|errno| self.io("open", name, errno))?)];
        while let Some((path, dir)) = open.pop() {
            let failed = |errno| self.io("read", &path, errno);
            let stat = fstat(&dir).map_err(failed)?;
            if !reader.may(1, stat.st_uid, stat.st_gid, stat.st_mode) {
                return Ok(Some(describe(&path, &stat)));
            }
            for name in dir.names().map_err(failed)? {
                let stat = statat(&dir, &*name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
                let path = format!("{path}/{}", name.to_string_lossy());
                if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                    open.push((path, Dir::open(&dir, name).map_err(failed)?));
                } else if !reader.may(4, stat.st_uid, stat.st_gid, stat.st_mode) {
                    return Ok(Some(describe(&path, &stat)));
                }
            }
        }
        Ok(None)
    }

    /// The digest of the generation as it lies on the disk: [`Tree::content`] of the tree that was published, if nobody
    /// has changed it. Modes and owners are not looked at, and neither are directories without files.
    pub fn content(&self, generation: &Generation, key: &DigestKey) -> Result<Digest, PublishError> {
        let name = directory(generation, "read")?;
        let dir = Dir::open(&self.dir, name).map_err(|errno| self.io("open", name, errno))?;
        let mut content = Content { output: self, top: name, hasher: Hasher::keyed(key), left: READ_LIMIT };
        content.add(&dir, &[])?;
        Ok(content.hasher.finish())
    }

    /// Writes a candidate to its directory, where no reader sees it, and to the disk.
    ///
    /// Refuses a tree one of whose top-level names is taken by something that is not ours. What a crash left under the
    /// directory's name is removed first; on an error, so is what was written.
    pub fn stage(&self, generation: &Generation, tree: &Tree) -> Result<(), PublishError> {
        let name = directory(generation, "staged")?;
        if self.data()?.as_deref() == Some(name) {
            let reason = "..data names its directory";
            return Err(PublishError::Generation { name: name.to_owned(), doing: "staged", reason });
        }
        self.refuse_foreign(&tree.top_names())?;
        self.dir.remove(name).map_err(|errno| self.io("remove the left-over", name, errno))?;
        let written = self.write(name, tree);
        if written.is_err() {
            // The first error is the one to tell. What cannot be removed now goes with the next stage or prune.
            let _ = self.dir.remove(name);
        }
        written
    }

    /// Where the candidate lies, as an absolute path: for programs that look at it.
    #[must_use]
    pub fn candidate(&self, generation: &Generation) -> PathBuf {
        let path = self.path.join(&generation.directory);
        std::path::absolute(&path).unwrap_or(path)
    }

    /// Whether the candidate is as it was staged. Programs that look at one write into it: nginx makes its temporary
    /// directories below its prefix, also when it only tests.
    pub fn is_intact(&self, generation: &Generation, tree: &Tree) -> Result<bool, PublishError> {
        let name = directory(generation, "read")?;
        let files: BTreeMap<&str, &File> = tree.iter().map(|(path, file)| (path.as_str(), file)).collect();
        let mut missing = files.len();
        let opened = Dir::open(&self.dir, name).map_err(|errno| self.io("open", name, errno))?;
        let mut open = vec![(String::new(), opened)];
        while let Some((below, dir)) = open.pop() {
            let failed = |errno| self.io("read", &format!("{name}/{below}"), errno);
            for entry in dir.names().map_err(failed)? {
                let Ok(entry) = entry.to_str() else { return Ok(false) };
                let path = format!("{below}{entry}");
                if let Some(file) = files.get(path.as_str()) {
                    let mode = if file.secret { self.secret_mode } else { self.file_mode };
                    let read = dir.read(entry, file.bytes.len()).map_err(failed)?;
                    let same = read.filter(|(bytes, _)| *bytes == file.bytes);
                    let Some((_, fd)) = same else { return Ok(false) };
                    if Mode::from_raw_mode(fstat(&fd).map_err(failed)?.st_mode & 0o777) != mode {
                        return Ok(false);
                    }
                    missing -= 1;
                } else {
                    let inside = format!("{path}/");
                    if !files.range(inside.as_str()..).next().is_some_and(|(path, _)| path.starts_with(&inside)) {
                        return Ok(false);
                    }
                    match Dir::open(&dir, entry) {
                        Ok(dir) => open.push((inside, dir)),
                        Err(Errno::NOTDIR | Errno::LOOP) => return Ok(false),
                        Err(errno) => return Err(failed(errno)),
                    }
                }
            }
        }
        Ok(missing == 0)
    }

    /// Removes a candidate that is not to be published.
    pub fn discard(&self, generation: &Generation) -> Result<(), PublishError> {
        let name = directory(generation, "discarded")?;
        if self.data()?.as_deref() == Some(name) {
            let reason = "..data names its directory";
            return Err(PublishError::Generation { name: name.to_owned(), doing: "discarded", reason });
        }
        self.dir.remove(name).map_err(|errno| self.io("remove", name, errno))
    }

    /// Makes the links that the generation needs at the top and that are missing. Before [`Output::swap`], so that no
    /// name is missing after it; a new one leads nowhere until then.
    pub fn link(&self, generation: &Generation) -> Result<(), PublishError> {
        // No fsync here and in unlink: after a crash both are done again.
        let names = self.names_of(generation)?;
        self.refuse_foreign(&names.iter().map(String::as_str).collect::<Vec<_>>())?;
        for name in names {
            match symlinkat(target(&name), &self.dir, name.as_str()) {
                // refuse_foreign saw that it is ours.
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(self.io("make the link", &name, errno)),
            }
        }
        Ok(())
    }

    /// Makes the generation the current one; on return, it is so on the disk.
    pub fn swap(&self, generation: &Generation) -> Result<(), PublishError> {
        let name = directory(generation, "made current")?;
        if self.look(name)? != Entry::Other(FileType::Directory) {
            let reason = "its directory is missing";
            return Err(PublishError::Generation { name: name.to_owned(), doing: "made current", reason });
        }
        let swapped = if self.data()?.as_deref() == Some(name) {
            // Done before a crash or an error: perhaps not yet on the disk.
            self.dir.sync()
        } else {
            self.dir.replace_link(DATA, DATA_TEMPORARY, name)
        };
        swapped.map_err(|errno| self.io("replace the link", DATA, errno))
    }

    /// Removes those of our links whose name the generation does not have. After [`Output::swap`]; they lead nowhere
    /// since then.
    pub fn unlink(&self, generation: &Generation) -> Result<(), PublishError> {
        let wanted = self.names_of(generation)?;
        for name in self.names()? {
            if !wanted.contains(&name) && self.look(&name)? == ours(&name) {
                self.dir.remove(name.as_str()).map_err(|errno| self.io("remove the link", &name, errno))?;
            }
        }
        Ok(())
    }

    /// Removes the generations that are neither in `keep` nor named by `..data`, and what a crash left of temporary
    /// names; nothing else. One that resists does not save the others, and the first error is returned.
    pub fn prune(&self, keep: &[&str]) -> Result<(), PublishError> {
        let current = self.data()?;
        let mut result = Ok(());
        let generations = self.generations()?;
        let stale = generations
            .iter()
            .map(String::as_str)
            .filter(|name| !keep.contains(name) && current.as_deref() != Some(name));
        for name in stale.chain(TEMPORARIES) {
            let removed = self.dir.remove(name).map_err(|errno| self.io("remove", name, errno));
            result = result.and(removed);
        }
        result
    }

    /// The directories of our pattern, by sequence number.
    fn generations(&self) -> Result<Vec<String>, PublishError> {
        let mut generations = Vec::new();
        for name in self.names()? {
            if sequence_of(&name).is_some() && self.look(&name)? == Entry::Other(FileType::Directory) {
                generations.push(name);
            }
        }
        generations.sort_unstable_by_key(|name| (sequence_of(name), name.clone()));
        Ok(generations)
    }

    /// The names in the output directory; those that are not UTF-8 cannot be ours.
    fn names(&self) -> Result<Vec<String>, PublishError> {
        let names = self.dir.names().map_err(|errno| self.io("list", "", errno))?;
        Ok(names.into_iter().filter_map(|name| name.into_string().ok()).collect())
    }

    /// The generation's top-level names. It was checked when it was written, but lies where others may write: nothing
    /// that would collide with our own names comes out of it.
    fn names_of(&self, generation: &Generation) -> Result<Vec<String>, PublishError> {
        let name = directory(generation, "read")?;
        let names = Dir::open(&self.dir, name).and_then(|dir| dir.names());
        let names = names.map_err(|errno| self.io("list", name, errno))?;
        Ok(names
            .into_iter()
            .filter_map(|name| name.into_string().ok())
            .filter(|name| !name.starts_with(".."))
            .collect())
    }

    fn look(&self, name: &str) -> Result<Entry, PublishError> {
        look(&self.dir, name).map_err(|errno| self.io("read", name, errno))
    }

    /// An error if something that is not ours lies at one of these names.
    pub(super) fn refuse_foreign(&self, names: &[&str]) -> Result<(), PublishError> {
        let mut foreign = Vec::new();
        for name in names {
            let entry = self.look(name)?;
            if entry != Entry::Missing && entry != ours(name) {
                foreign.push((name, entry));
            }
        }
        match foreign.first() {
            None => Ok(()),
            Some((name, entry)) => Err(PublishError::ForeignName {
                path: self.path.join(name),
                what: entry.describe(),
                more: foreign.len() - 1,
            }),
        }
    }

    /// Writes the tree to a fresh directory, and waits until it is on the disk.
    ///
    /// All files are written before the first is waited for. Each fsync of a new file makes ext4 commit its journal,
    /// unless an earlier commit took the file along; that is so once the file has its blocks, which it gets when its
    /// writeback begins and not when it is written (delayed allocation). Hence the advice on all of them first: seen
    /// to save a fifth of the time for 4 files of 2 kB, and two thirds for 64, where without it the second pass is no
    /// faster than an fsync after each write. It is a hint: the order rests on the fsyncs alone, of the content, then
    /// of its names, then (in `swap`) of the link to it.
    fn write(&self, top: &str, tree: &Tree) -> Result<(), PublishError> {
        let mut written: Vec<(OwnedFd, String)> = Vec::new();
        let make = |above: &Dir, name: &str, path: &str| {
            above.make(name, self.group, self.dir_mode).map_err(|errno| self.io("make the directory", path, errno))
        };
        let root = make(&self.dir, top, top)?;
        // The directories between the root and the file at hand. Paths come in the order of their bytes, so that all
        // below one directory comes in one piece: each directory is made once, and is complete when it is left.
        let mut open: Vec<(&str, String, Dir)> = Vec::new();
        for (path, file) in tree.iter() {
            let path_text = format!("{top}/{path}");
            let mut segments: Vec<&str> = path.segments().collect();
            let Some(name) = segments.pop() else { continue };
            let common = open.iter().zip(&segments).take_while(|((at, ..), segment)| at == *segment).count();
            written.extend(open.drain(common..).rev().map(|(_, path, dir)| (dir.into(), path)));
            for segment in segments.into_iter().skip(common) {
                let (above, path) = match open.last() {
                    Some((_, path, dir)) => (dir, format!("{path}/{segment}")),
                    None => (&root, format!("{top}/{segment}")),
                };
                let dir = make(above, segment, &path)?;
                open.push((segment, path, dir));
            }
            let dir = open.last().map_or(&root, |(.., dir)| dir);
            let mode = if file.secret { self.secret_mode } else { self.file_mode };
            let fd =
                dir.create(name, &file.bytes, self.group, mode).map_err(|errno| self.io("write", &path_text, errno))?;
            written.push((fd, path_text));
            if written.len() >= BATCH {
                self.flush(&mut written)?;
            }
        }
        written.extend(open.into_iter().rev().map(|(_, path, dir)| (dir.into(), path)));
        written.push((root.into(), top.to_owned()));
        self.flush(&mut written)?;
        self.dir.sync().map_err(|errno| self.io("sync", "", errno))
    }

    fn flush(&self, written: &mut Vec<(OwnedFd, String)>) -> Result<(), PublishError> {
        for (fd, _) in &*written {
            // A hint, as said above: where it fails, the fsync is slower.
            let _ = fadvise(fd, 0, None, Advice::DontNeed);
        }
        for (fd, path) in written.drain(..) {
            fsync(&fd).map_err(|errno| self.io("sync", &path, errno))?;
        }
        Ok(())
    }
}

/// A generation being read back.
struct Content<'a> {
    output: &'a Output,
    top: &'a str,
    hasher: Hasher,
    /// What may still be read.
    left: u64,
}

impl Content<'_> {
    /// Adds what lies in a directory, whose path in the generation is `above`, and empty or with a slash at its end.
    fn add(&mut self, dir: &Dir, above: &[u8]) -> Result<(), PublishError> {
        let failed = |at: &Self, errno| at.output.io("read", &at.place(above), errno);
        let mut entries = Vec::new();
        for name in dir.names().map_err(|errno| failed(self, errno))? {
            let stat = statat(dir, &*name, AtFlags::SYMLINK_NOFOLLOW).map_err(|errno| failed(self, errno))?;
            let kind = FileType::from_raw_mode(stat.st_mode);
            let mut path = [above, name.as_bytes()].concat();
            if path.len() > PATH_LIMIT {
                return Err(self.spoilt(above, "a directory with names that are too long".into()));
            }
            if kind == FileType::Directory {
                path.push(b'/');
            }
            entries.push((path, name, kind));
        }
        // With the slash, names are in the order of the whole paths: "a-b" comes before "a/b".
        entries.sort_unstable_by(|(one, ..), (two, ..)| one.cmp(two));
        for (path, name, kind) in entries {
            let failed = |at: &Self, errno| at.output.io("read", &at.place(&path), errno);
            self.take(&path, path.len() as u64)?;
            if kind == FileType::Directory {
                let below = Dir::open(dir, name).map_err(|errno| failed(self, errno))?;
                self.add(&below, &path)?;
                continue;
            }
            if kind != FileType::RegularFile {
                let what = look(dir, &*name).map_err(|errno| failed(self, errno))?.describe();
                return Err(self.spoilt(&path, what));
            }
            let Some((file, size)) = dir.open_file(name).map_err(|errno| failed(self, errno))? else {
                return Err(self.spoilt(&path, "not the file that it was just now".into()));
            };
            self.take(&path, size)?;
            self.hasher.field(&path);
            self.hasher.begin(size);
            let mut left = Some(size);
            let read = read_to_end(file, |chunk| {
                left = left.and_then(|left| left.checked_sub(chunk.len() as u64));
                self.hasher.more(chunk);
                left.is_some()
            });
            read.map_err(|errno| failed(self, errno))?;
            if left != Some(0) {
                return Err(self.spoilt(&path, "a file that is being changed".into()));
            }
        }
        Ok(())
    }

    fn take(&mut self, path: &[u8], size: u64) -> Result<(), PublishError> {
        let left = self.left.checked_sub(size);
        self.left = left.ok_or_else(|| self.spoilt(path, "more than a generation can hold".into()))?;
        Ok(())
    }

    fn place(&self, path: &[u8]) -> String {
        format!("{}/{}", self.top, String::from_utf8_lossy(path))
    }

    fn spoilt(&self, path: &[u8], what: String) -> PublishError {
        PublishError::Spoilt { path: self.output.path.join(self.place(path)), what }
    }
}

pub(super) fn describe(path: &str, stat: &Stat) -> String {
    format!("{path} (mode {:04o}, user {}, group {})", stat.st_mode & 0o7777, stat.st_uid, stat.st_gid)
}

/// The target of our link NAME.
fn target(name: &str) -> String {
    format!("{DATA}/{name}")
}

/// What lies at NAME if it is ours.
fn ours(name: &str) -> Entry {
    // A name from a directory or a TreePath holds no NUL.
    Entry::Link(std::ffi::CString::new(target(name)).unwrap_or_default())
}

/// The generation's directory, if it is one that we would make: the journal is checked when it is read, but what is
/// removed and written here must not depend on that.
fn directory<'a>(generation: &'a Generation, doing: &'static str) -> Result<&'a str, PublishError> {
    let name = generation.directory.as_str();
    if sequence_of(name).is_some() {
        return Ok(name);
    }
    Err(PublishError::Generation { name: name.to_owned(), doing, reason: "its directory is not of our pattern" })
}
