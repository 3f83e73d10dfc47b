//! Looking at the output without changing it: nothing here creates, locks, writes, or sets a mode.

use std::collections::BTreeMap;

use bytes::Bytes;
use rustix::fs::{Access, AtFlags, FileType, Stat, accessat, fstat, statat};
use rustix::io::Errno;
use rustix::process::{getegid, geteuid};

use super::dirfd::Dir;
use super::layout::describe;
use super::{Config, Output, PublishError, SETGID, checked, existing, own_path};
use crate::model::content::Content;
use crate::model::digest::DigestKey;
use crate::model::tree::Tree;
use crate::reload::process::Reader;

/// A file of the current generation.
#[derive(Clone, PartialEq, Eq)]
pub struct Published {
    /// What lies in it; `None` if that cannot be read, or is more than was asked for.
    pub bytes: Option<Content>,
    /// Its size in bytes.
    pub size: u64,
    /// Whether a secret went into it, as its mode tells; `None` where `--secret-mode` keeps no more from others than
    /// `--file-mode` does, so that it tells nothing.
    pub secret: Option<bool>,
}

impl Output {
    /// What [`Output::open`] would open, left as it is: nothing is created, and no mode is set. `None`: it does not
    /// exist yet. The errors are those of `open`, except that a missing parent is no error here.
    pub fn inspect(config: &Config) -> Result<Option<(Self, Vec<String>)>, PublishError> {
        let path = own_path(&config.output);
        let Some(dir) = existing(&path)? else { return Ok(None) };
        let mut stat = checked(&dir, &path, config.layout)?;
        if stat.st_uid == geteuid().as_raw() {
            // `open` sets it.
            stat.st_mode |= SETGID;
        }
        Self::of(dir, path, stat, config).map(Some)
    }

    /// Whether [`Output::open`] could create the directory, and who it would belong to: user and group.
    pub fn creatable(config: &Config) -> Result<(u32, u32), PublishError> {
        let path = own_path(&config.output);
        let above = super::above(&path)?;
        let failed = |errno| PublishError::Io { doing: "create --output", path: path.clone(), errno };
        accessat(&above, ".", Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS).map_err(failed)?;
        Ok((geteuid().as_raw(), fstat(&above).map_err(failed)?.st_gid))
    }

    /// An error if this process may not write into the directory, or if its file system is read-only.
    pub fn writable(&self) -> Result<(), PublishError> {
        accessat(&self.dir, ".", Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS)
            .map_err(|errno| self.io("write into --output", "", errno))
    }

    /// An error if something that is not ours lies where the tree needs to be, as [`Output::stage`] has it.
    pub fn has_room_for(&self, tree: &Tree) -> Result<(), PublishError> {
        self.layout().refuse_foreign(tree)
    }

    /// The digest key, if one is there that [`Output::digest_key`] would take.
    #[must_use]
    pub fn existing_digest_key(&self) -> Option<DigestKey> {
        self.found_key().ok()?.map(|(bytes, _)| DigestKey::new(bytes))
    }

    /// The regular files of the current generation by path, and their contents as long as these are no more than
    /// `limit` bytes together.
    pub fn published(&self, limit: u64) -> Result<BTreeMap<String, Published>, PublishError> {
        match self.current()? {
            Some(name) => self.layout().published(&name, limit),
            None => Ok(BTreeMap::new()),
        }
    }

    pub(super) fn walk(
        &self,
        dir: &Dir,
        at: &str,
        depth: usize,
        left: &mut u64,
        files: &mut BTreeMap<String, Published>,
    ) -> Result<(), PublishError> {
        for name in dir.names().map_err(|errno| self.io("list", at, errno))? {
            // A name that is not UTF-8 cannot be ours.
            let Ok(text) = name.to_str() else { continue };
            let path = if at.is_empty() { text.to_owned() } else { format!("{at}/{text}") };
            let failed = |errno| self.io("read", &path, errno);
            let stat = statat(dir, &*name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory if depth > 0 => {
                    let below = Dir::open(dir, &*name).map_err(failed)?;
                    self.walk(&below, &path, depth - 1, left, files)?;
                }
                FileType::RegularFile => {
                    let found = self.published_file(dir, text, &path, &stat, left)?;
                    files.insert(path, found);
                }
                _ => {}
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
        stat: &Stat,
        left: &mut u64,
    ) -> Result<Published, PublishError> {
        let most = usize::try_from(*left).unwrap_or(usize::MAX);
        let bytes = match dir.read(name, most) {
            Ok(read) => read.map(|(bytes, _)| Bytes::from(bytes)),
            Err(Errno::ACCESS | Errno::PERM) => None,
            Err(errno) => return Err(self.io("read", path, errno)),
        };
        *left = left.saturating_sub(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64));
        let bytes = match (bytes, self.spool.get()) {
            (Some(bytes), Some(spool)) => Some(Content::keep(bytes, spool)?),
            (bytes, _) => bytes.map(Content::from),
        };
        let (size, secret) = (u64::try_from(stat.st_size).unwrap_or(0), self.was_secret(stat.st_mode));
        Ok(Published { bytes, size, secret })
    }

    /// Whether a file of this mode is one that a secret went into: others may do less with it than with other files.
    /// What the group may do tells nothing: on a persistent volume with an fsGroup, the kubelet gives it to the group at
    /// each mount (`pkg/volume/volume_linux.go`).
    pub(super) fn was_secret(&self, mode: u32) -> Option<bool> {
        let others = self.file_mode.as_raw_mode() & 0o007;
        (others & !self.secret_mode.as_raw_mode() != 0).then_some(others & !mode != 0)
    }

    /// What a process could not read of the output as it is: the directory itself, or what is below the current
    /// generation. Described with mode and owners.
    pub fn unreadable(&self, reader: &Reader) -> Result<Option<String>, PublishError> {
        let stat = fstat(&self.dir).map_err(|errno| self.io("stat", "", errno))?;
        if !reader.may(1, stat.st_uid, stat.st_gid, stat.st_mode) {
            return Ok(Some(describe(&self.path.display().to_string(), &stat)));
        }
        match self.current()? {
            Some(name) => self.layout().unreadable_by(reader, &name),
            None => Ok(None),
        }
    }

    /// Who new files would belong to: user and group.
    #[must_use]
    pub fn owners(&self) -> (u32, u32) {
        (geteuid().as_raw(), self.group.unwrap_or_else(getegid).as_raw())
    }
}
