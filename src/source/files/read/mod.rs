//! One read of a root: what it holds at this moment, and in which directories that can change.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read as _};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, OpenHow, ResolveFlag, openat2, readlinkat};
use nix::sys::stat::{FileStat, SFlag, fstat, fstatat, stat};
use rustix::fs::{FileType, RawDir};

use super::budget::Budget;
use super::medium::Medium;
use super::stamp::{Known, Stamp};
use super::{FilesError, Root};
use crate::model::content::Content;
use crate::model::object::{Kind, Object, ObjectRef};
use crate::model::stretch::{LARGE, Stretch};

/// The kubelet's link to the directory with the current content.
pub(super) const DATA: &str = "..data";

/// A swap takes the kubelet microseconds and comes at most every few seconds: more than two reads are a surprise.
const ATTEMPTS: u32 = 10;
const MAX_DEPTH: usize = 32;
const MAX_ENTRIES: usize = 65_536;
/// How many large files of a root are left on their disk, each of them open: further ones are held in memory.
const MOST_OPEN: usize = 256;

/// What one read found.
pub(super) struct Reading {
    /// `Ok(None)`: the root does not exist.
    pub object: Result<Option<Object>, FilesError>,
    /// The directories, relative to the root, in which a change can change the object; also after a failure, as far
    /// as the read came. Empty if the root is a file.
    pub directories: Vec<PathBuf>,
    /// What the object is stored on; after a failure `Unknown`.
    pub medium: Medium,
    pub stamps: HashMap<String, Stamp>,
}

/// Reads a root once. `Ok(None)`: it does not exist.
///
/// A directory's keys are paths relative to it, with `/` between segments; a file has one key, its file name.
/// Never holds more bytes than there is room for, and none of a large file that is on this node: such stays open.
/// `known`: what is not read again if its files have not changed; `now`: no later than now.
pub(super) fn reading(root: &Root, budget: &Budget, known: &Known, now: SystemTime) -> Reading {
    let held = budget.held(root);
    let mut directories = Vec::new();
    let mut error = FilesError::Unsettled { path: root.path.clone(), attempts: ATTEMPTS };
    for _ in 0..ATTEMPTS {
        directories.clear();
        match attempt(root, budget, known, now, &mut directories) {
            Ok((object, medium, stamps)) => {
                budget.settle(root, object.as_ref().map_or(0, Object::size));
                return Reading { object: Ok(object), directories, medium, stamps };
            }
            Err(Stop::Failed(failure)) => {
                error = failure;
                break;
            }
            Err(Stop::Changed) => {}
        }
    }
    budget.settle(root, held);
    Reading { object: Err(error), directories, medium: Medium::Unknown, stamps: HashMap::new() }
}

/// Why a read ended early.
enum Stop {
    /// What was being read was replaced meanwhile.
    Changed,
    Failed(FilesError),
}

impl From<FilesError> for Stop {
    fn from(error: FilesError) -> Self {
        Self::Failed(error)
    }
}

type Found = (Option<Object>, Medium, HashMap<String, Stamp>);

fn attempt(
    root: &Root,
    budget: &Budget,
    known: &Known,
    now: SystemTime,
    directories: &mut Vec<PathBuf>,
) -> Result<Found, Stop> {
    let path = without_trailing_slash(&root.path);
    let fd = match open(AT_FDCWD, &path, ResolveFlag::empty()) {
        Ok(fd) => fd,
        Err(Errno::ENOENT) => return Ok((None, Medium::Unknown, HashMap::new())),
        Err(Errno::ENXIO | Errno::ENODEV) => return Err(FilesError::NoFile { path }.into()),
        Err(errno) => return Err(failed(&path, errno).into()),
    };
    let found = fstat(&fd).map_err(|errno| failed(&path, errno))?;
    let mut walk = Walk {
        root: &path,
        fd: &fd,
        budget: Ration { budget, root, used: 0 },
        known,
        now,
        stamps: HashMap::new(),
        entries: 0,
        open: 0,
        above: Vec::new(),
        data: BTreeMap::new(),
        directories,
        devices: Vec::new(),
    };
    match kind(&found) {
        SFlag::S_IFDIR => {
            walk.directory(&fd, Path::new(""), "", true)?;
            // The path may be a link that was re-pointed, and the old directory half removed by now.
            match stat(&path) {
                Ok(now) if (now.st_dev, now.st_ino) == (found.st_dev, found.st_ino) => {}
                Ok(_) | Err(Errno::ENOENT) => return Err(Stop::Changed),
                Err(errno) => return Err(failed(&path, errno).into()),
            }
        }
        SFlag::S_IFREG => {
            let name = path.file_name().unwrap_or_default();
            let key = name.to_str().ok_or_else(|| FilesError::Name { path: path.clone() })?;
            walk.file(&fd, &found, &path, key.to_owned())?;
        }
        _ => return Err(FilesError::NoFile { path }.into()),
    }
    let Walk { data, devices, stamps, .. } = walk;
    let media = || devices.iter().map(|(_, medium)| *medium);
    let secret = root.secret.unwrap_or(media().any(|medium| medium == Medium::Memory));
    let id = ObjectRef { kind: Kind::Dir, namespace: Arc::default(), name: root.name.as_str().into() };
    let object = Object::new(id, String::new(), 0, secret, data);
    Ok((Some(object), media().max().unwrap_or(Medium::Unknown), stamps))
}

/// A directory's trailing slash would make a file `ENOTDIR`, and hide its name.
pub(super) fn without_trailing_slash(path: &Path) -> PathBuf {
    path.components().collect()
}

/// `NONBLOCK`: a pipe must not hang us; `NOCTTY`: nor a terminal become ours.
const FLAGS: OFlag = OFlag::O_RDONLY.union(OFlag::O_CLOEXEC).union(OFlag::O_NONBLOCK).union(OFlag::O_NOCTTY);

fn open(at: impl AsFd, path: &Path, resolve: ResolveFlag) -> nix::Result<File> {
    let how = OpenHow::new().flags(FLAGS).resolve(resolve | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let mut missing = 0;
    loop {
        match openat2(&at, path, how) {
            Err(Errno::EINTR) => {}
            // While the kernel follows a link, that can be pointed elsewhere, and what it named be removed: absence is
            // believed when it is seen three times.
            Err(Errno::ENOENT) if missing < 2 => missing += 1,
            result => return result.map(File::from),
        }
    }
}

fn failed(path: &Path, errno: Errno) -> FilesError {
    let path = path.to_owned();
    match errno {
        // Opening for reading has no other reason for EPERM (open(2): O_NOATIME, file seals).
        Errno::ENOSYS | Errno::EPERM => FilesError::Openat2 { path, errno },
        _ => FilesError::Io { path, errno },
    }
}

fn errno_of(error: io::Error) -> Errno {
    error.try_into().unwrap_or(Errno::EIO)
}

fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT
}

/// Where `..data` leads from a directory, if that has one and it is a link.
fn data_link(directory: &File) -> nix::Result<Option<PathBuf>> {
    match readlinkat(directory, DATA) {
        Ok(target) => Ok(Some(target.into())),
        Err(Errno::ENOENT | Errno::EINVAL) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// What one read takes of the room.
struct Ration<'a> {
    budget: &'a Budget,
    root: &'a Root,
    used: u64,
}

impl Ration<'_> {
    fn take(&mut self, bytes: u64) -> Result<(), FilesError> {
        self.budget.grow(self.root, self.used.saturating_add(bytes))?;
        self.used += bytes;
        Ok(())
    }

    fn left(&self) -> u64 {
        self.budget.most(self.root).saturating_sub(self.used)
    }
}

struct Walk<'a> {
    root: &'a Path,
    /// The root's; every path below is opened relative to it, so that no link leads out of it.
    fd: &'a File,
    budget: Ration<'a>,
    known: &'a Known,
    /// No later than any file was looked at.
    now: SystemTime,
    stamps: HashMap<String, Stamp>,
    /// Directory entries so far, keys or not.
    entries: usize,
    /// Files that stay open so far.
    open: usize,
    /// Device and inode of the directories that we are in.
    above: Vec<(u64, u64)>,
    data: BTreeMap<String, Content>,
    directories: &'a mut Vec<PathBuf>,
    /// The devices met, and what they are.
    devices: Vec<(u64, Medium)>,
}

impl Walk<'_> {
    /// Reads the open directory `at` this path below the root, under this key (empty for the root).
    /// `follow`: its changes matter.
    fn directory(&mut self, directory: &File, at: &Path, key: &str, follow: bool) -> Result<(), Stop> {
        if follow {
            self.directories.push(at.to_owned());
        }
        let link = self.root.join(at).join(DATA);
        let readlink = || data_link(directory).map_err(|errno| failed(&link, errno));
        let Some(target) = readlink()? else {
            return self.list(directory, at, key, follow);
        };
        let at_data = at.join(&target);
        let result = match self.open(&at_data) {
            // Nothing below changes in place: the kubelet writes a new directory and renames the link.
            Ok(data) => self.list(&data, &at_data, key, false),
            Err(Errno::ENOENT) => Err(FilesError::NoData { link: link.clone(), target: target.clone() }.into()),
            Err(errno) => Err(self.refused(&at.join(DATA), errno)),
        };
        // Also after a failure: the kubelet removes the old directory while we read it.
        if readlink()? == Some(target) { result } else { Err(Stop::Changed) }
    }

    fn list(&mut self, directory: &File, at: &Path, key: &str, follow: bool) -> Result<(), Stop> {
        let path = self.root.join(at);
        let stat = fstat(directory).map_err(|errno| failed(&path, errno))?;
        let identity = (stat.st_dev, stat.st_ino);
        if self.above.contains(&identity) {
            return Ok(());
        }
        if self.above.len() > MAX_DEPTH {
            return Err(FilesError::TooDeep { path, limit: MAX_DEPTH }.into());
        }
        self.note_device(directory, stat.st_dev, &path)?;
        self.above.push(identity);
        for (name, kind) in self.names(directory, &path)? {
            let below = at.join(&name);
            let name = name.to_str().ok_or_else(|| FilesError::Name { path: self.root.join(&below) })?;
            let key = if key.is_empty() { name.to_owned() } else { format!("{key}/{name}") };
            if kind != FileType::RegularFile || !self.is_unchanged(directory, name, &key)? {
                self.entry(&below, key, follow)?;
            }
        }
        self.above.pop();
        Ok(())
    }

    /// The names that may be keys or directories.
    fn names(&mut self, directory: &File, path: &Path) -> Result<Vec<(OsString, FileType)>, Stop> {
        let mut names = Vec::new();
        let mut buffer = [MaybeUninit::uninit(); 8192];
        let mut entries = RawDir::new(directory, &mut buffer);
        while let Some(entry) = entries.next() {
            let entry = match entry {
                Ok(entry) => entry,
                // The directory itself was removed (getdents(2)).
                Err(rustix::io::Errno::NOENT) => break,
                Err(errno) => return Err(failed(path, Errno::from_raw(errno.raw_os_error())).into()),
            };
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            self.entries += 1;
            if self.entries > MAX_ENTRIES {
                return Err(FilesError::TooMany { path: self.root.to_owned(), limit: MAX_ENTRIES }.into());
            }
            // A volume's root belongs to mkfs too: its lost+found is root's alone.
            let skip = name.starts_with(b"..") || name == b"lost+found";
            let kind = entry.file_type();
            if !skip
                && matches!(kind, FileType::RegularFile | FileType::Directory | FileType::Symlink | FileType::Unknown)
            {
                names.push((OsStr::from_bytes(name).to_owned(), kind));
            }
        }
        Ok(names)
    }

    fn entry(&mut self, at: &Path, key: String, follow: bool) -> Result<(), Stop> {
        let fd = match self.open(at) {
            Ok(fd) => fd,
            // A link to nothing, or gone since it was listed; or a link to a socket, a pipe, a device without driver.
            Err(Errno::ENOENT | Errno::ENXIO | Errno::ENODEV) => return Ok(()),
            Err(errno) => return Err(self.refused(at, errno)),
        };
        let path = self.root.join(at);
        let stat = fstat(&fd).map_err(|errno| failed(&path, errno))?;
        match kind(&stat) {
            SFlag::S_IFDIR => self.directory(&fd, at, &key, follow),
            SFlag::S_IFREG => self.file(&fd, &stat, &path, key),
            _ => Ok(()),
        }
    }

    /// Takes over the value of a plain file that is as it was, without opening it.
    fn is_unchanged(&mut self, directory: &File, name: &str, key: &str) -> Result<bool, Stop> {
        if !self.known.stamps.contains_key(key) {
            return Ok(false);
        }
        // Whatever is wrong shows when it is opened.
        let Ok(found) = fstatat(directory, name, AtFlags::AT_SYMLINK_NOFOLLOW) else { return Ok(false) };
        let is_on_known_device = self.devices.iter().any(|(device, _)| *device == found.st_dev);
        if kind(&found) != SFlag::S_IFREG || !is_on_known_device {
            return Ok(false);
        }
        self.take_known(key, Stamp::of(&found))
    }

    fn take_known(&mut self, key: &str, stamp: Stamp) -> Result<bool, Stop> {
        let Some(value) = self.known.value(key, stamp) else { return Ok(false) };
        self.budget.take((key.len() + value.len()) as u64)?;
        self.data.insert(key.to_owned(), value.clone());
        self.stamps.insert(key.to_owned(), stamp);
        Ok(true)
    }

    fn file(&mut self, file: &File, found: &FileStat, path: &Path, key: String) -> Result<(), Stop> {
        let medium = self.note_device(file, found.st_dev, path)?;
        let stamp = Stamp::of(found);
        if self.take_known(&key, stamp)? {
            return Ok(());
        }
        self.budget.take(key.len() as u64)?;
        let is_large = u64::try_from(found.st_size).is_ok_and(|size| size > LARGE);
        let content = if is_large && medium != Medium::Unknown && self.open < MOST_OPEN {
            self.open += 1;
            self.leave(file, path)?
        } else {
            self.hold(file, found, path)?
        };
        // Another machine's clock is not ours.
        if medium != Medium::Unknown && stamp.is_settled(self.now) {
            self.stamps.insert(key.clone(), stamp);
        }
        self.data.insert(key, content);
        Ok(())
    }

    /// Leaves a large file's bytes where they are, and keeps it open.
    fn leave(&mut self, file: &File, path: &Path) -> Result<Content, Stop> {
        let own = file.try_clone().map_err(|error| failed(path, errno_of(error)))?;
        let mut taken = 0;
        let seen = |length: u64| self.budget.take(length - std::mem::replace(&mut taken, length));
        Ok(Stretch::of(own, seen, |errno| failed(path, errno))?.into())
    }

    fn hold(&mut self, mut file: &File, found: &FileStat, path: &Path) -> Result<Content, Stop> {
        let mut bytes = Vec::new();
        // The size is a hint only: files of /proc have none, others grow.
        let mut granted = u64::try_from(found.st_size).unwrap_or(0).min(self.budget.left());
        self.budget.take(granted)?;
        loop {
            // One byte beyond the room distinguishes a file that is too large from one that just fits.
            let more = (granted + 1).saturating_sub(bytes.len() as u64);
            bytes.reserve_exact(usize::try_from(more).unwrap_or(usize::MAX));
            let read = file.by_ref().take(more).read_to_end(&mut bytes);
            read.map_err(|error| failed(path, errno_of(error)))?;
            if bytes.len() as u64 <= granted {
                break;
            }
            let more = granted.max(4096).min(self.budget.left()).max(1);
            self.budget.take(more)?;
            granted += more;
        }
        self.budget.used -= granted - bytes.len() as u64;
        Ok(Bytes::from(bytes.into_boxed_slice()).into())
    }

    fn note_device(&mut self, file: &File, device: u64, path: &Path) -> Result<Medium, FilesError> {
        if let Some((_, medium)) = self.devices.iter().find(|(known, _)| *known == device) {
            return Ok(*medium);
        }
        let medium = Medium::of(file).map_err(|errno| failed(path, errno))?;
        self.devices.push((device, medium));
        Ok(medium)
    }

    fn open(&self, at: &Path) -> nix::Result<File> {
        open(self.fd, at, ResolveFlag::RESOLVE_BENEATH)
    }

    fn refused(&self, at: &Path, errno: Errno) -> Stop {
        match errno {
            // openat2(2): a `..` raced with a rename.
            Errno::EAGAIN => Stop::Changed,
            Errno::EXDEV => FilesError::Escapes { root: self.root.to_owned(), link: self.root.join(at) }.into(),
            _ => failed(&self.root.join(at), errno).into(),
        }
    }
}

#[cfg(test)]
mod tests;
