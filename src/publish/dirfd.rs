//! A directory held open. All work below it goes by descriptor, one name at a time, and follows no symlink.

use std::ffi::{CStr, CString};

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags};
use rustix::io::{Errno, Result, retry_on_intr};
use rustix::path::Arg;

use super::sys::{
    fchmod, fchown, fstat, fsync, mkdirat, openat, read, readlinkat, renameat, statat, symlinkat, unlinkat, write,
};
use crate::model::digest::{Digest, Hasher};

/// How deep a directory may nest that is to be removed or read: twice what the longest `TreePath` needs. It bounds open files
/// and stack, whatever somebody else has put there.
pub(super) const MAX_DEPTH: usize = 1024;

/// The lower twelve bits of a mode: permissions, setuid, setgid, sticky.
const PERMISSIONS: u32 = 0o7777;

/// An open directory, readable: one opened with `O_PATH` could not be fsynced.
///
/// Names given to its methods are single segments, checked by the caller.
#[derive(Debug)]
pub(super) struct Dir(OwnedFd);

/// What lies at a name.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Entry {
    Missing,
    /// A symlink, with its target.
    Link(CString),
    Other(FileType),
}

impl Entry {
    /// For messages.
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Missing => "nothing".into(),
            Self::Link(target) => format!("a symlink to {:?}", target.to_string_lossy()),
            Self::Other(FileType::Directory) => "a directory".into(),
            Self::Other(FileType::RegularFile) => "a regular file".into(),
            Self::Other(_) => "a device, pipe or socket".into(),
        }
    }
}

impl AsFd for Dir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<Dir> for OwnedFd {
    fn from(dir: Dir) -> Self {
        dir.0
    }
}

impl Dir {
    /// Opens the directory at `name`; a symlink there is `ENOTDIR`.
    pub(super) fn open(at: impl AsFd, name: impl Arg) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        openat(at, name, flags, Mode::empty()).map(Self)
    }

    /// Makes a directory that must not exist, and opens it.
    ///
    /// In a setgid directory it inherits the group and the bit. They are left alone if they are right already: a chmod
    /// by a process that is not in the group and lacks `CAP_FSETID` clears the bit without a word (chmod(2)).
    pub(super) fn make(&self, name: &str, group: Option<Gid>, mode: Mode) -> Result<Self> {
        mkdirat(self, name, mode)?;
        let dir = Self::open(self, name)?;
        settle(&dir, group, mode)?;
        Ok(dir)
    }

    /// Makes a file that must not exist, holding `bytes`. At no moment is it more readable than `mode`: it begins with
    /// the owner's part of it, and gets the rest when content and group are in place, whatever the umask.
    pub(super) fn create(&self, name: &str, bytes: &[u8], group: Option<Gid>, mode: Mode) -> Result<OwnedFd> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(self, name, flags, mode & Mode::from_raw_mode(0o600))?;
        write_all(&file, bytes)?;
        settle(&file, group, mode)?;
        Ok(file)
    }

    /// The same, of another file's bytes, which `seen` is shown.
    pub(super) fn copy(
        &self,
        name: &str,
        from: impl AsFd,
        group: Option<Gid>,
        mode: Mode,
        mut seen: impl FnMut(&[u8]),
    ) -> Result<OwnedFd> {
        let file = self.create(name, &[], None, mode & Mode::from_raw_mode(0o600))?;
        let mut written = Ok(());
        read_to_end(from, |chunk| {
            seen(chunk);
            written = write_all(&file, chunk);
            written.is_ok()
        })?;
        written?;
        settle(&file, group, mode)?;
        Ok(file)
    }

    /// Puts a file of mode 0600 in the place of whatever lies at `name`. Before a crash or after it, `name` is the old
    /// file or the new one; on return it is the new one, on the disk.
    pub(super) fn replace(&self, name: &str, temporary: &str, bytes: &[u8]) -> Result<()> {
        // A left-over of a crash must not be in the way for ever.
        self.remove(temporary)?;
        fsync(self.create(temporary, bytes, None, Mode::from_raw_mode(0o600))?)?;
        match renameat(self, temporary, self, name) {
            // Only a directory resists.
            Err(Errno::ISDIR) => {
                self.remove(name)?;
                renameat(self, temporary, self, name)?;
            }
            other => other?,
        }
        self.sync()
    }

    /// Puts a symlink in the place of the symlink or file at `name`, in one rename, and on the disk.
    pub(super) fn replace_link(&self, name: &str, temporary: &str, target: &str) -> Result<()> {
        self.remove(temporary)?;
        symlinkat(target, self, temporary)?;
        renameat(self, temporary, self, name)?;
        self.sync()
    }

    /// The bytes of the regular file at `name`, and the file; `None` if something else lies there, or if it holds more
    /// than `limit` bytes.
    pub(super) fn read(&self, name: &str, limit: usize) -> Result<Option<(Vec<u8>, OwnedFd)>> {
        let Some((file, _)) = self.open_file(name)? else { return Ok(None) };
        let mut bytes = Vec::new();
        let fits = read_to_end(&file, |chunk| {
            bytes.extend_from_slice(chunk);
            bytes.len() <= limit
        });
        Ok(fits?.then_some((bytes, file)))
    }

    /// The regular file at `name` with its size, to be read; `None` if something else lies there.
    pub(super) fn open_file(&self, name: impl Arg) -> Result<Option<(OwnedFd, u64)>> {
        // O_NONBLOCK: a pipe that somebody put there must not hold us up.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match openat(self, name, flags, Mode::empty()) {
            Err(Errno::LOOP | Errno::NXIO) => return Ok(None),
            other => other?,
        };
        let stat = fstat(&file)?;
        let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        Ok(is_file.then(|| (file, u64::try_from(stat.st_size).unwrap_or_default())))
    }

    /// All names but `.` and `..`.
    pub(super) fn names(&self) -> Result<Vec<CString>> {
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(self)? {
            let entry = entry?;
            if entry.file_name() != c"." && entry.file_name() != c".." {
                names.push(entry.file_name().to_owned());
            }
        }
        Ok(names)
    }

    /// Removes what lies at `name`, with all below it if it is a directory. Nothing there is well.
    pub(super) fn remove(&self, name: impl Arg) -> Result<()> {
        self.remove_within(name.into_c_str()?.as_ref(), MAX_DEPTH)
    }

    fn remove_within(&self, name: &CStr, depth: usize) -> Result<()> {
        match unlinkat(self, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(Errno::ISDIR) if depth > 0 => {}
            Err(errno) => return Err(errno),
        }
        let below = Self::open(self, name)?;
        for name in below.names()? {
            below.remove_within(&name, depth - 1)?;
        }
        match unlinkat(self, name, AtFlags::REMOVEDIR) {
            Err(Errno::NOENT) => Ok(()),
            other => other,
        }
    }

    /// Waits until the names in it are on the disk.
    pub(super) fn sync(&self) -> Result<()> {
        fsync(self)
    }
}

pub(super) fn write_all(file: impl AsFd, bytes: &[u8]) -> Result<()> {
    let mut rest = bytes;
    while !rest.is_empty() {
        let written = retry_on_intr(|| write(&file, rest))?;
        rest = rest.get(written..).filter(|_| written > 0).ok_or(Errno::IO)?;
    }
    Ok(())
}

/// Gives the file's bytes to `take` as they come, and whether it wanted all of them: it says when it has enough.
pub(super) fn read_to_end(file: impl AsFd, mut take: impl FnMut(&[u8]) -> bool) -> Result<bool> {
    let mut buffer = [0; 8192];
    loop {
        let count = retry_on_intr(|| read(&file, &mut buffer))?;
        if count == 0 {
            return Ok(true);
        }
        if !take(buffer.get(..count).unwrap_or_default()) {
            return Ok(false);
        }
    }
}

/// SHA-256 of a file's bytes, if there are just so many; `None`: it is being changed.
pub(super) fn digest_of_just(size: u64, file: impl AsFd) -> Result<Option<Digest>> {
    let mut hasher = Hasher::plain();
    let mut left = Some(size);
    read_to_end(file, |chunk| {
        left = left.and_then(|left| left.checked_sub(chunk.len() as u64));
        hasher.more(chunk);
        left.is_some()
    })?;
    Ok((left == Some(0)).then(|| hasher.finish()))
}

/// Gives a file or directory its group, then its mode, where they are not right already. In this order, since the wider
/// mode must not be in force for the wrong group.
pub(super) fn settle(fd: impl AsFd, group: Option<Gid>, mode: Mode) -> Result<()> {
    let stat = fstat(&fd)?;
    if let Some(group) = group.filter(|group| group.as_raw() != stat.st_gid) {
        fchown(&fd, None, Some(group))?;
    }
    if stat.st_mode & PERMISSIONS != mode.as_raw_mode() {
        fchmod(&fd, mode)?;
    }
    Ok(())
}

/// What lies at `name` in the directory `at`.
pub(super) fn look(at: impl AsFd, name: impl Arg + Copy) -> Result<Entry> {
    match readlinkat(&at, name, Vec::new()) {
        Ok(target) => Ok(Entry::Link(target)),
        Err(Errno::NOENT) => Ok(Entry::Missing),
        Err(Errno::INVAL) => {
            let stat = statat(&at, name, AtFlags::SYMLINK_NOFOLLOW)?;
            Ok(Entry::Other(FileType::from_raw_mode(stat.st_mode)))
        }
        Err(errno) => Err(errno),
    }
}

/// The way down from a directory to one path after another. In the order of paths, each directory is opened once, and
/// is on the disk, if it was changed, when it is left.
#[derive(Debug)]
pub(super) struct Way<'a> {
    root: &'a Dir,
    root_changed: bool,
    open: Vec<Level>,
}

#[derive(Debug)]
struct Level {
    name: String,
    dir: Dir,
    changed: bool,
}

/// Where a way ends before its end, and why: `NOENT`, or `NOTDIR` for a symlink or a file.
#[derive(Debug)]
pub(super) struct Blocked {
    pub(super) at: String,
    pub(super) errno: Errno,
}

impl<'a> Way<'a> {
    pub(super) fn from(root: &'a Dir) -> Self {
        Self { root, root_changed: false, open: Vec::new() }
    }

    /// The directory of the path's last segment, and that segment. Directories that are missing are made, with this
    /// group and mode, if that is wanted.
    pub(super) fn to<'p>(
        &mut self,
        path: &'p str,
        make: Option<(Option<Gid>, Mode)>,
    ) -> std::result::Result<(&Dir, &'p str), Blocked> {
        let (above, leaf) = path.rsplit_once('/').unwrap_or(("", path));
        let segments: Vec<&str> = above.split('/').filter(|segment| !segment.is_empty()).collect();
        let common = self.open.iter().zip(&segments).take_while(|(level, segment)| level.name == **segment).count();
        let blocked = |depth: usize, errno| Blocked { at: segments.get(..depth).unwrap_or_default().join("/"), errno };
        self.leave(common).map_err(|errno| blocked(common, errno))?;
        for (depth, segment) in segments.iter().enumerate().skip(common) {
            let failed = |errno| blocked(depth + 1, errno);
            let dir = match (Dir::open(self.last(), *segment), make) {
                (Err(Errno::NOENT), Some((group, mode))) => {
                    let fresh = match self.last().make(segment, group, mode) {
                        // Somebody was quicker.
                        Err(Errno::EXIST) => Dir::open(self.last(), *segment),
                        other => other,
                    };
                    self.changed();
                    fresh.map_err(failed)?
                }
                (Err(Errno::LOOP), _) => return Err(failed(Errno::NOTDIR)),
                (opened, _) => opened.map_err(failed)?,
            };
            self.open.push(Level { name: (*segment).to_owned(), dir, changed: false });
        }
        Ok((self.last(), leaf))
    }

    /// Notes that names have changed in the directory that was asked for last.
    pub(super) fn changed(&mut self) {
        match self.open.last_mut() {
            Some(level) => level.changed = true,
            None => self.root_changed = true,
        }
    }

    /// Notes the same of all directories above it.
    pub(super) fn all_changed(&mut self) {
        self.root_changed = true;
        self.open.iter_mut().for_each(|level| level.changed = true);
    }

    /// Waits until all that was changed is on the disk.
    pub(super) fn end(mut self) -> Result<()> {
        self.leave(0)?;
        if self.root_changed { self.root.sync() } else { Ok(()) }
    }

    fn last(&self) -> &Dir {
        self.open.last().map_or(self.root, |level| &level.dir)
    }

    fn leave(&mut self, depth: usize) -> Result<()> {
        for level in self.open.drain(depth..).rev() {
            if level.changed {
                level.dir.sync()?;
            }
        }
        Ok(())
    }
}
