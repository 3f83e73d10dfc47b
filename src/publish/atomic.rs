//! The kubelet's layout: generations side by side, and one rename of `..data` from the old one to the new one.
//!
//! Top-level names are links to `..data/NAME`, so that the rename changes all of them at once. What is *ours* in the
//! output directory is decided by form alone: names that start with `..trimtab`, `..data` naming a directory of our
//! pattern, and a link NAME with exactly the target `..data/NAME`. Nothing else is ever replaced or removed.

use std::collections::BTreeMap;
use std::path::PathBuf;

use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, FileType, Mode};
use rustix::io::Errno;

use super::dirfd::{Dir, Entry, MAX_DEPTH, digest_of_just, look};
use super::inspect::Published;
use super::layout::{BATCH, Publisher, describe};
use super::sys::{fstat, statat, symlinkat};
use super::{Output, PublishError};
use crate::model::digest::{Digest, DigestKey};
use crate::model::tree::{ContentHasher, File, Tree, TreePath};
use crate::reload::process::Reader;

pub(super) const DATA: &str = "..data";
pub(super) const DATA_TEMPORARY: &str = "..trimtab.data.tmp";

/// How much is read back of one generation, names and bytes: far more than `--max-size` is in any use, and an end to
/// what somebody else has put there.
const READ_LIMIT: u64 = 1 << 30;

/// The longest path in a generation, as `TreePath` has it. It bounds how deep is read.
const PATH_LIMIT: usize = 1024;

/// The kubelet's layout of an output.
pub(super) struct Atomic<'a>(pub(super) &'a Output);

impl Publisher for Atomic<'_> {
    fn current(&self) -> Result<Option<String>, PublishError> {
        self.0.data()
    }

    fn finish(&self) -> Result<Vec<String>, PublishError> {
        // A rename is done or not.
        Ok(Vec::new())
    }

    fn refuse_foreign(&self, tree: &Tree) -> Result<(), PublishError> {
        self.missing(tree.top_names().into_iter()).map(drop)
    }

    fn write(&self, top: &str, tree: &Tree, _: bool) -> Result<(), PublishError> {
        self.refuse_foreign(tree)?;
        self.0.write_tree(&self.0.dir, top, top, tree.iter())
    }

    fn candidate(&self, name: &str) -> PathBuf {
        name.into()
    }

    fn is_intact(&self, name: &str, tree: &Tree) -> Result<bool, PublishError> {
        let files: BTreeMap<&str, &File> = tree.iter().map(|(path, file)| (path.as_str(), file)).collect();
        let mut missing = files.len();
        let opened = Dir::open(&self.0.dir, name).map_err(|errno| self.0.io("open", name, errno))?;
        let mut open = vec![(String::new(), opened)];
        while let Some((below, dir)) = open.pop() {
            let failed = |errno| self.0.io("read", &format!("{name}/{below}"), errno);
            for entry in dir.names().map_err(failed)? {
                let Ok(entry) = entry.to_str() else { return Ok(false) };
                let path = format!("{below}{entry}");
                if let Some(file) = files.get(path.as_str()) {
                    let mode = if file.secret { self.0.secret_mode } else { self.0.file_mode };
                    let read = dir.read(entry, file.bytes.len()).map_err(failed)?;
                    let same = read.filter(|(bytes, _)| Digest::of(bytes) == file.bytes.digest());
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

    /// Makes the links that the generation needs and that are missing. Before the swap, so that no name is missing after
    /// it; a new one leads nowhere until then.
    fn link(&self, name: &str) -> Result<(), PublishError> {
        // No fsync here and in unlink: after a crash both are done again.
        let names = self.names_of(name)?;
        for name in self.missing(names.iter().map(String::as_str))? {
            symlinkat(target(name), &self.0.dir, name).map_err(|errno| self.0.io("make the link", name, errno))?;
        }
        Ok(())
    }

    fn swap(&self, name: &str) -> Result<(), PublishError> {
        let swapped = if self.0.data()?.as_deref() == Some(name) {
            // Done before a crash or an error: perhaps not yet on the disk.
            self.0.dir.sync()
        } else {
            self.0.dir.replace_link(DATA, DATA_TEMPORARY, name)
        };
        swapped.map_err(|errno| self.0.io("replace the link", DATA, errno))
    }

    /// Removes those of our links whose name the generation does not have. After the swap they lead nowhere.
    fn unlink(&self, name: &str) -> Result<(), PublishError> {
        let wanted = self.names_of(name)?;
        for name in self.0.names()? {
            // What begins so is no link of ours, and need not be looked at.
            if !name.starts_with("..") && !wanted.contains(&name) && self.0.look(&name)? == ours(&name) {
                self.0.dir.remove(name.as_str()).map_err(|errno| self.0.io("remove the link", &name, errno))?;
            }
        }
        Ok(())
    }

    fn content(&self, name: &str, key: &DigestKey) -> Result<Digest, PublishError> {
        let dir = Dir::open(&self.0.dir, name).map_err(|errno| self.0.io("open", name, errno))?;
        let mut content = ReadBack { output: self.0, top: name, hasher: ContentHasher::new(key), left: READ_LIMIT };
        content.add(&dir, &[])?;
        Ok(content.hasher.finish())
    }

    fn unreadable_by(&self, reader: &Reader, name: &str) -> Result<Option<String>, PublishError> {
        let mut open =
            vec![(name.to_owned(), Dir::open(&self.0.dir, name).map_err(|errno| self.0.io("open", name, errno))?)];
        while let Some((path, dir)) = open.pop() {
            let failed = |errno| self.0.io("read", &path, errno);
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

    fn published(&self, name: &str, limit: u64) -> Result<BTreeMap<String, Published>, PublishError> {
        let mut files = BTreeMap::new();
        let dir = Dir::open(&self.0.dir, name).map_err(|errno| self.0.io("open", name, errno))?;
        self.0.walk(&dir, "", MAX_DEPTH, &mut limit.clone(), &mut files)?;
        Ok(files)
    }
}

impl Atomic<'_> {
    /// The generation's top-level names. It was checked when it was written, but lies where others may write: nothing
    /// that would collide with our own names comes out of it.
    fn names_of(&self, name: &str) -> Result<Vec<String>, PublishError> {
        let names = Dir::open(&self.0.dir, name).and_then(|dir| dir.names());
        let names = names.map_err(|errno| self.0.io("list", name, errno))?;
        Ok(names
            .into_iter()
            .filter_map(|name| name.into_string().ok())
            .filter(|name| !name.starts_with(".."))
            .collect())
    }

    /// Those of the names at which there is no link of ours yet; an error if something that is not ours lies at one.
    fn missing<'n>(&self, names: impl Iterator<Item = &'n str>) -> Result<Vec<&'n str>, PublishError> {
        let (mut missing, mut foreign) = (Vec::new(), Vec::new());
        for name in names {
            match self.0.look(name)? {
                Entry::Missing => missing.push(name),
                entry if entry == ours(name) => {}
                entry => foreign.push((name.to_owned(), entry.describe())),
            }
        }
        self.0.refuse(&foreign).map(|()| missing)
    }
}

impl Output {
    /// Writes files to a fresh directory at `name` in `at`, whose path is `top`, and waits until all but the name of
    /// that directory is on the disk.
    pub(super) fn write_tree<'a>(
        &self,
        at: &Dir,
        name: &str,
        top: &str,
        files: impl Iterator<Item = (&'a TreePath, &'a File)>,
    ) -> Result<(), PublishError> {
        let mut written: Vec<(OwnedFd, String)> = Vec::new();
        let make = |above: &Dir, name: &str, path: &str| {
            above.make(name, self.group, self.dir_mode).map_err(|errno| self.io("make the directory", path, errno))
        };
        let root = make(at, name, top)?;
        // The directories between the root and the file at hand. Paths come in the order of their bytes, so that all
        // below one directory comes in one piece: each directory is made once, and is complete when it is left.
        let mut open: Vec<(&str, String, Dir)> = Vec::new();
        for (path, file) in files {
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
            let bytes = file.bytes.read()?;
            let fd = dir.create(name, &bytes, self.group, mode).map_err(|errno| self.io("write", &path_text, errno))?;
            written.push((fd, path_text));
            if written.len() >= BATCH {
                self.flush(&mut written)?;
            }
        }
        written.extend(open.into_iter().rev().map(|(_, path, dir)| (dir.into(), path)));
        written.push((root.into(), top.to_owned()));
        self.flush(&mut written)
    }
}

/// A generation being read back.
struct ReadBack<'a> {
    output: &'a Output,
    top: &'a str,
    hasher: ContentHasher,
    /// What may still be read.
    left: u64,
}

impl ReadBack<'_> {
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
            let Some(bytes) = digest_of_just(size, file).map_err(|errno| failed(self, errno))? else {
                return Err(self.spoilt(&path, "a file that is being changed".into()));
            };
            self.hasher.file(&path, bytes);
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

/// The target of our link NAME.
fn target(name: &str) -> String {
    format!("{DATA}/{name}")
}

/// What lies at NAME if it is ours.
fn ours(name: &str) -> Entry {
    // A name from a directory or a TreePath holds no NUL.
    Entry::Link(std::ffi::CString::new(target(name)).unwrap_or_default())
}
