//! A directory held open. All work below it goes by descriptor, one name at a time, and follows no symlink.

use std::ffi::{CStr, CString, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::NixPath;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::{FileStat, Mode, SFlag};
use nix::unistd::{Gid, UnlinkatFlags, geteuid};

use super::sys::{
    copy_file_range, fchmod, fchown, fstat, fstatat, fsync, mkdirat, openat, read, readlinkat, renameat, symlinkat,
    unlinkat, write,
};
use crate::model::digest::{Digest, Hasher};

/// How deep a directory may nest that is to be removed or read: twice what the longest `TreePath` needs. It bounds open files
/// and stack, whatever somebody else has put there.
pub(super) const MAX_DEPTH: usize = 1024;

/// Of what nobody but Trimtab needs.
pub(super) const PRIVATE: Mode = Mode::from_bits_truncate(0o600);

/// The lower twelve bits of a mode: permissions, setuid, setgid, sticky.
const PERMISSIONS: u32 = 0o7777;

/// An open directory, readable: one opened with `O_PATH` could not be fsynced.
///
/// Names given to its methods are single segments, checked by the caller.
#[derive(Debug)]
pub(super) struct Dir(OwnedFd);

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Occupant {
    Nothing,
    /// With its target.
    Symlink(OsString),
    Directory,
    File,
    /// A device, pipe or socket.
    Special,
}

impl Occupant {
    /// For messages.
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Nothing => "nothing".into(),
            Self::Symlink(target) => format!("a symlink to {:?}", target.to_string_lossy()),
            Self::Directory => "a directory".into(),
            Self::File => "a regular file".into(),
            Self::Special => "a device, pipe or socket".into(),
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
    pub(super) fn open<P: NixPath + ?Sized>(at: impl AsFd, name: &P) -> nix::Result<Self> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        openat(at, name, flags, Mode::empty()).map(Self)
    }

    /// Makes a directory that must not exist, and opens it.
    ///
    /// In a setgid directory it inherits the group and the bit. They are left alone if they are right already: a chmod
    /// by a process that is not in the group and lacks `CAP_FSETID` silently clears the bit (chmod(2)).
    pub(super) fn make(&self, name: &str, group: Option<Gid>, mode: Mode) -> nix::Result<Self> {
        mkdirat(self, name, mode)?;
        let dir = Self::open(self, name)?;
        settle(&dir, group, mode)?;
        Ok(dir)
    }

    /// Makes a file that must not exist, holding `bytes`. At no moment is it more readable than `mode`: it begins with
    /// the owner's part of it, and gets the rest when content and group are in place, whatever the umask.
    pub(super) fn create(&self, name: &str, bytes: &[u8], group: Option<Gid>, mode: Mode) -> nix::Result<OwnedFd> {
        let file = self.create_new(name, mode)?;
        write_all(&file, bytes)?;
        settle(&file, group, mode)?;
        Ok(file)
    }

    /// Makes an empty file that must not exist, with the owner's part of `mode`.
    pub(super) fn create_new(&self, name: &str, mode: Mode) -> nix::Result<OwnedFd> {
        // What a kernel copied is read again.
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        openat(self, name, flags, mode & PRIVATE)
    }

    /// The same, of another file's bytes, which are also given to `seen`.
    pub(super) fn copy(
        &self,
        name: &str,
        from: impl AsFd,
        group: Option<Gid>,
        mode: Mode,
        mut seen: impl FnMut(&[u8]),
    ) -> nix::Result<OwnedFd> {
        let file = self.create(name, &[], None, mode & PRIVATE)?;
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

    /// Puts a file of mode 0600 in the place of whatever is at `name`. Before a crash or after it, `name` is the old
    /// file or the new one; on return it is the new one, on the disk.
    pub(super) fn replace(&self, name: &str, temporary: &str, bytes: &[u8]) -> nix::Result<()> {
        self.rename_over(name, temporary, bytes)?;
        self.sync()
    }

    /// The same, where a power loss may leave the old file or the new one.
    pub(super) fn rename_over(&self, name: &str, temporary: &str, bytes: &[u8]) -> nix::Result<()> {
        fsync(self.begin(temporary, bytes)?)?;
        self.end(name, temporary)
    }

    /// The same without waiting for the disk: a power loss may leave anything, a kill the old file or the new one.
    pub(super) fn put(&self, name: &str, temporary: &str, bytes: &[u8]) -> nix::Result<()> {
        self.begin(temporary, bytes)?;
        self.end(name, temporary)
    }

    fn begin(&self, temporary: &str, bytes: &[u8]) -> nix::Result<OwnedFd> {
        // A left-over of a crash must not be in the way for ever.
        self.remove(temporary)?;
        self.create(temporary, bytes, None, PRIVATE)
    }

    fn end(&self, name: &str, temporary: &str) -> nix::Result<()> {
        match renameat(self, temporary, self, name) {
            // Only a directory resists.
            Err(Errno::EISDIR) => {
                self.remove(name)?;
                renameat(self, temporary, self, name)
            }
            renamed => renamed,
        }
    }

    /// Puts a symlink in the place of the symlink or file at `name`, in one rename.
    pub(super) fn replace_link(&self, name: &str, temporary: &str, target: &str) -> nix::Result<()> {
        self.remove(temporary)?;
        symlinkat(target, self, temporary)?;
        renameat(self, temporary, self, name)
    }

    /// The bytes of the regular file at `name`, and the file; `None` if something else is there, or if it holds more
    /// than `limit` bytes.
    pub(super) fn read(&self, name: &str, limit: usize) -> nix::Result<Option<(Vec<u8>, OwnedFd)>> {
        let Some((file, _)) = self.open_file(name)? else { return Ok(None) };
        let mut bytes = Vec::new();
        let fits = read_to_end(&file, |chunk| {
            bytes.extend_from_slice(chunk);
            bytes.len() <= limit
        });
        Ok(fits?.then_some((bytes, file)))
    }

    /// The regular file at `name` with its size, to be read; `None` if something else is there.
    pub(super) fn open_file<P: NixPath + ?Sized>(&self, name: &P) -> nix::Result<Option<(OwnedFd, u64)>> {
        // O_NONBLOCK: a pipe that somebody put there must not hold us up.
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let file = match openat(self, name, flags, Mode::empty()) {
            Err(Errno::ELOOP | Errno::ENXIO) => return Ok(None),
            other => other?,
        };
        let stat = fstat(&file)?;
        Ok(is_file(&stat).then(|| (file, u64::try_from(stat.st_size).unwrap_or_default())))
    }

    /// The stat of what is at `name`; `None` if nothing does.
    pub(super) fn stat(&self, name: &str) -> nix::Result<Option<FileStat>> {
        match fstatat(self, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Err(Errno::ENOENT) => Ok(None),
            stat => stat.map(Some),
        }
    }

    /// All names but `.` and `..`.
    pub(super) fn names(&self) -> nix::Result<Vec<CString>> {
        let mut names = Vec::new();
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        for entry in nix::dir::Dir::openat(self, ".", flags, Mode::empty())?.iter() {
            let entry = entry?;
            if entry.file_name() != c"." && entry.file_name() != c".." {
                names.push(entry.file_name().to_owned());
            }
        }
        Ok(names)
    }

    /// Removes what is at `name`, with all below it if it is a directory. Nothing there is well.
    pub(super) fn remove<P: NixPath + ?Sized>(&self, name: &P) -> nix::Result<()> {
        name.with_nix_path(|name| self.remove_within(name, MAX_DEPTH))?
    }

    fn remove_within(&self, name: &CStr, depth: usize) -> nix::Result<()> {
        match unlinkat(self, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => return Ok(()),
            Err(Errno::EISDIR) if depth > 0 => {}
            Err(errno) => return Err(errno),
        }
        let below = Self::open(self, name)?;
        for name in below.names()? {
            below.remove_within(&name, depth - 1)?;
        }
        match unlinkat(self, name, UnlinkatFlags::RemoveDir) {
            Err(Errno::ENOENT) => Ok(()),
            other => other,
        }
    }

    /// Waits until the names in it are on the disk.
    pub(super) fn sync(&self) -> nix::Result<()> {
        fsync(self)
    }
}

pub(super) fn write_all(file: impl AsFd, bytes: &[u8]) -> nix::Result<()> {
    let mut rest = bytes;
    while !rest.is_empty() {
        let written = match write(&file, rest) {
            Err(Errno::EINTR) => continue,
            written => written?,
        };
        rest = rest.get(written..).filter(|_| written > 0).ok_or(Errno::EIO)?;
    }
    Ok(())
}

/// Has the kernel copy so many bytes from a place in one file to the beginning of another, empty one: on file systems that
/// can, both share them. `false`: somebody has to write them, from the beginning. Whatever a file system or a sandbox
/// refuses a copy with, a write that is refused as well says it better.
pub(super) fn copy_range(from: impl AsFd, at: u64, into: impl AsFd, length: usize) -> bool {
    let Ok(mut source) = i64::try_from(at) else { return false };
    let (mut target, mut left) = (0, length);
    while left > 0 {
        match copy_file_range(&from, &mut source, &into, &mut target, left) {
            Err(Errno::EINTR) => {}
            // At the end of the file, and on file systems that are wrong about it.
            Ok(0) | Err(_) => return false,
            Ok(copied) => left = left.saturating_sub(copied),
        }
    }
    true
}

/// Gives the file's bytes to `take` as they come, until it says that it has enough; whether it wanted all of them.
pub(super) fn read_to_end(file: impl AsFd, mut take: impl FnMut(&[u8]) -> bool) -> nix::Result<bool> {
    let mut buffer = [0; 8192];
    loop {
        let count = match read(&file, &mut buffer) {
            Err(Errno::EINTR) => continue,
            count => count?,
        };
        if count == 0 {
            return Ok(true);
        }
        if !take(buffer.get(..count).unwrap_or_default()) {
            return Ok(false);
        }
    }
}

/// SHA-256 of a file's bytes, if there are exactly so many; `None`: it is being changed.
pub(super) fn digest_of_size(size: u64, file: impl AsFd) -> nix::Result<Option<Digest>> {
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
/// mode must not be in force for the wrong group. The permissions that it has then: some file systems take a mode and
/// do not keep it.
pub(super) fn settle(fd: impl AsFd, group: Option<Gid>, mode: Mode) -> nix::Result<Mode> {
    let stat = fstat(&fd)?;
    if let Some(group) = group.filter(|group| group.as_raw() != stat.st_gid) {
        fchown(&fd, None, Some(group))?;
    }
    if stat.st_mode & PERMISSIONS == mode.bits() {
        return Ok(permissions(&stat));
    }
    fchmod(&fd, mode)?;
    Ok(permissions(&fstat(&fd)?))
}

/// What the owner, the group and others may do.
pub(super) fn permissions(stat: &FileStat) -> Mode {
    Mode::from_bits_truncate(stat.st_mode & 0o777)
}

/// What is at `name` in the directory `at`.
pub(super) fn look<P: NixPath + ?Sized>(at: impl AsFd, name: &P) -> nix::Result<Occupant> {
    match readlinkat(&at, name) {
        Ok(target) => Ok(Occupant::Symlink(target)),
        Err(Errno::ENOENT) => Ok(Occupant::Nothing),
        Err(Errno::EINVAL) => {
            let stat = fstatat(&at, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
            Ok(if is_directory(&stat) {
                Occupant::Directory
            } else if is_file(&stat) {
                Occupant::File
            } else {
                Occupant::Special
            })
        }
        Err(errno) => Err(errno),
    }
}

pub(super) fn is_directory(stat: &FileStat) -> bool {
    stat.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFDIR.bits()
}

pub(super) fn is_file(stat: &FileStat) -> bool {
    stat.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFREG.bits()
}

/// Whether a file is this user's: others may write to the output, and put there what looks like ours.
pub(super) fn is_own(stat: &FileStat) -> bool {
    stat.st_uid == geteuid().as_raw()
}
