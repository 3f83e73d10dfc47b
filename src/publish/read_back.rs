//! Reading what was published: nothing here creates, locks, writes, or sets a mode.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use bytes::Bytes;
use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sys::stat::FileStat;

use super::dir::{Dir, digest_of_size, is_directory, is_file, look};
use super::sys::{fstat, fstatat};
use super::{Output, PublishError, directory};
use crate::model::content::Content;
use crate::model::digest::{Digest, DigestKey};
use crate::model::journal::Generation;
use crate::model::stretch::{LARGE, Stretch};
use crate::model::tree::ContentHasher;

/// How much is read back of one generation, names and bytes: far more than `--max-size` is in any use, and an end to
/// what somebody else has put there.
const READ_LIMIT: u64 = 1 << 30;

/// The longest path in a generation, as `TreePath` has it. It bounds how deep is read.
const PATH_LIMIT: usize = 1024;

/// Whether a process may read a file (4) or pass through a directory (1): of this bit, with this owner, group and mode.
pub type MayAccess<'a> = &'a dyn Fn(u32, u32, u32, u32) -> bool;

/// Whether a file at this path is to be read.
pub type Among<'a> = &'a dyn Fn(&str) -> bool;

/// Takes a file of a generation: its path, its size, and what it can be read by.
pub type Take<'a> = &'a mut dyn FnMut(&[u8], u64, OwnedFd) -> Result<(), Unread>;

/// Why a file was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unread {
    /// It cannot be read.
    Failed(Errno),
    /// It does not have the size that it had.
    Changing,
}

/// A file of the current generation.
#[derive(Clone, PartialEq, Eq)]
pub struct PublishedFile {
    /// `None` if they cannot be read, or are more than was asked for.
    pub bytes: Option<Content>,
    /// In bytes.
    pub size: u64,
    /// Whether a secret went into it, by its mode; `None` where `--secret-mode` keeps no more from others than
    /// `--file-mode` does, so that the mode says nothing.
    pub secret: Option<bool>,
}

impl Output {
    /// The digest of the generation as it is on the disk: [`crate::model::tree::Tree::content`] of the tree that was
    /// published, if nobody has changed it. Modes and owners are not looked at, and neither are directories without
    /// files.
    pub fn content(&self, generation: &Generation, key: &DigestKey) -> Result<Digest, PublishError> {
        let mut content = ContentHasher::new(key);
        self.each(generation, &mut |path, size, file| {
            content.file(path, digest_of_size(size, file).map_err(Unread::Failed)?.ok_or(Unread::Changing)?);
            Ok(())
        })?;
        Ok(content.finish())
    }

    /// Gives each file of the generation to `take`, as it is on the disk, in the order of paths.
    pub fn each(&self, generation: &Generation, take: Take<'_>) -> Result<(), PublishError> {
        self.layout().each(directory(generation, "read")?, take)
    }

    /// The regular files of the current generation by path, and their contents as long as these are no more than
    /// `limit` bytes together.
    pub fn published(&self, limit: u64) -> Result<BTreeMap<String, PublishedFile>, PublishError> {
        self.published_among(&|_| true, limit)
    }

    /// The same of some of them.
    pub fn published_among(
        &self,
        among: Among<'_>,
        limit: u64,
    ) -> Result<BTreeMap<String, PublishedFile>, PublishError> {
        match self.current()? {
            Some(name) => self.layout().published(&name, among, limit),
            None => Ok(BTreeMap::new()),
        }
    }

    /// What a process could not read of the generation: the first such file or directory, with its mode and owners.
    pub fn unreadable_by(&self, may: MayAccess<'_>, generation: &Generation) -> Result<Option<String>, PublishError> {
        self.layout().unreadable_by(may, directory(generation, "read")?)
    }

    /// What a process could not read of the output as it is: the directory itself, or what is below the current
    /// generation. Described with mode and owners.
    pub fn unreadable(&self, may: MayAccess<'_>) -> Result<Option<String>, PublishError> {
        let stat = fstat(&self.dir).map_err(|errno| self.io("stat", "", errno))?;
        if !may(1, stat.st_uid, stat.st_gid, stat.st_mode) {
            return Ok(Some(describe(&self.path.display().to_string(), &stat)));
        }
        match self.current()? {
            Some(name) => self.layout().unreadable_by(may, &name),
            None => Ok(None),
        }
    }

    /// Gives each file in a generation's directory to `take`.
    pub(super) fn each_of_directory(&self, name: &str, take: Take<'_>) -> Result<(), PublishError> {
        let dir = Dir::open(&self.dir, name).map_err(|errno| self.io("open", name, errno))?;
        ReadBack { output: self, top: name, take, left: READ_LIMIT }.add(&dir, &[])
    }

    /// The regular files below a directory, whose path in the generation is `at`.
    pub(super) fn walk(
        &self,
        dir: &Dir,
        at: &str,
        depth: usize,
        among: Among<'_>,
        left: &mut u64,
        files: &mut BTreeMap<String, PublishedFile>,
    ) -> Result<(), PublishError> {
        for name in dir.names().map_err(|errno| self.io("list", at, errno))? {
            // A name that is not UTF-8 cannot be ours.
            let Ok(text) = name.to_str() else { continue };
            let path = if at.is_empty() { text.to_owned() } else { format!("{at}/{text}") };
            let failed = |errno| self.io("read", &path, errno);
            let stat = fstatat(dir, &*name, AtFlags::AT_SYMLINK_NOFOLLOW).map_err(failed)?;
            if is_directory(&stat) && depth > 0 {
                let below = Dir::open(dir, &*name).map_err(failed)?;
                self.walk(&below, &path, depth - 1, among, left, files)?;
            } else if is_file(&stat) && among(&path) {
                let found = self.published_file(dir, text, &path, &stat, left)?;
                files.insert(path, found);
            }
        }
        Ok(())
    }

    /// A regular file, and its content as long as that is no more than `left` bytes, which it is taken from.
    pub(super) fn published_file(
        &self,
        dir: &Dir,
        name: &str,
        path: &str,
        stat: &FileStat,
        left: &mut u64,
    ) -> Result<PublishedFile, PublishError> {
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let secret = self.was_secret(stat.st_mode);
        if size > LARGE && size <= *left {
            let bytes = left_in_place(dir, name).map_err(|errno| self.io("read", path, errno))?;
            *left -= bytes.as_ref().map_or(0, |bytes| (bytes.len() as u64).min(*left));
            return Ok(PublishedFile { bytes, size, secret });
        }
        let most = usize::try_from(*left).unwrap_or(usize::MAX);
        let bytes = match dir.read(name, most) {
            Ok(read) => read.map(|(bytes, _)| Bytes::from(bytes)),
            Err(Errno::EACCES | Errno::EPERM) => None,
            Err(errno) => return Err(self.io("read", path, errno)),
        };
        *left = left.saturating_sub(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64));
        let bytes = match (bytes, self.spool.get()) {
            (Some(bytes), Some(spool)) => Some(Content::keep(bytes, spool)?),
            (bytes, _) => bytes.map(Content::from),
        };
        Ok(PublishedFile { bytes, size, secret })
    }

    /// Whether a file of this mode is one that a secret went into: others may do less with it than with other files.
    /// What the group may do says nothing: on a persistent volume with an fsGroup, the kubelet gives it to the group at
    /// each mount (`pkg/volume/volume_linux.go`).
    fn was_secret(&self, mode: u32) -> Option<bool> {
        let others = self.file_mode.bits() & 0o007;
        (others & !self.secret_mode.bits() != 0).then_some(others & !mode != 0)
    }
}

/// The content of a large file, which stays open; `None`: it cannot be read.
fn left_in_place(dir: &Dir, name: &str) -> nix::Result<Option<Content>> {
    match dir.open_file(name) {
        Ok(Some((file, _))) => Ok(Some(Stretch::of(file.into(), |_| Ok(()), |errno| errno)?.into())),
        Ok(None) | Err(Errno::EACCES | Errno::EPERM) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// A file or directory, for messages.
pub(super) fn describe(path: &str, stat: &FileStat) -> String {
    format!("{path} (mode {:04o}, user {}, group {})", stat.st_mode & 0o7777, stat.st_uid, stat.st_gid)
}

/// A generation being read back.
struct ReadBack<'a> {
    output: &'a Output,
    top: &'a str,
    take: Take<'a>,
    /// What may still be read.
    left: u64,
}

impl ReadBack<'_> {
    /// Adds what is in a directory, whose path in the generation is `above`, and empty or with a slash at its end.
    fn add(&mut self, dir: &Dir, above: &[u8]) -> Result<(), PublishError> {
        let failed = |at: &Self, errno| at.output.io("read", &at.place(above), errno);
        let mut entries = Vec::new();
        for name in dir.names().map_err(|errno| failed(self, errno))? {
            let stat = fstatat(dir, &*name, AtFlags::AT_SYMLINK_NOFOLLOW).map_err(|errno| failed(self, errno))?;
            let mut path = [above, name.as_bytes()].concat();
            if path.len() > PATH_LIMIT {
                return Err(self.spoilt(above, "a directory with names that are too long".into()));
            }
            if is_directory(&stat) {
                path.push(b'/');
            }
            entries.push((path, name, stat));
        }
        // With the slash, names are in the order of the whole paths: "a-b" comes before "a/b".
        entries.sort_unstable_by(|(one, ..), (two, ..)| one.cmp(two));
        for (path, name, stat) in entries {
            let failed = |at: &Self, errno| at.output.io("read", &at.place(&path), errno);
            self.count(&path, path.len() as u64)?;
            if is_directory(&stat) {
                let below = Dir::open(dir, &*name).map_err(|errno| failed(self, errno))?;
                self.add(&below, &path)?;
                continue;
            }
            if !is_file(&stat) {
                let what = look(dir, &*name).map_err(|errno| failed(self, errno))?.describe();
                return Err(self.spoilt(&path, what));
            }
            let Some((file, size)) = dir.open_file(&*name).map_err(|errno| failed(self, errno))? else {
                return Err(self.spoilt(&path, "not the file that it was just now".into()));
            };
            self.count(&path, size)?;
            match (self.take)(&path, size, file) {
                Ok(()) => {}
                Err(Unread::Failed(errno)) => return Err(failed(self, errno)),
                Err(Unread::Changing) => return Err(self.spoilt(&path, "a file that is being changed".into())),
            }
        }
        Ok(())
    }

    fn count(&mut self, path: &[u8], size: u64) -> Result<(), PublishError> {
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
