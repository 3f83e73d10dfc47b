//! One read of a root: what it holds at this moment, and which directories tell when that changes.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use rustix::buffer::spare_capacity;
use rustix::fs::{self, AtFlags, CWD, FileType, Mode, OFlags, RawDir, ResolveFlags, StatxFlags};
use rustix::io::{Errno, retry_on_intr};

use super::medium::Medium;
use super::{FilesError, Frozen, Root};
use crate::model::content::Content;
use crate::model::object::{Kind, Object, ObjectRef};

/// The kubelet's link to the directory with the current content.
pub(super) const DATA: &str = "..data";

/// A swap takes the kubelet microseconds and comes at most every few seconds: more than two reads are a surprise.
const ATTEMPTS: u32 = 10;
const MAX_DEPTH: usize = 32;
const MAX_ENTRIES: usize = 65_536;

/// What one read found.
pub(super) struct Reading {
    /// As [`read`] gives it.
    pub object: Result<Option<Object>, FilesError>,
    /// The directories, relative to the root, in which a change can change the object; also after a failure, as far
    /// as the read came. Empty if the root is a file.
    pub directories: Vec<PathBuf>,
    /// What the object lies on; after a failure `Unknown`.
    pub medium: Medium,
}

/// Reads a root once. `Ok(None)`: it does not exist.
///
/// A directory's keys are paths relative to it, with `/` between segments; a file has one key, its file name.
/// Never holds more than `max_size` bytes of values.
pub fn read(root: &Root, max_size: u64) -> Result<Option<Object>, FilesError> {
    reading(root, max_size).object
}

pub(super) fn reading(root: &Root, max_size: u64) -> Reading {
    let mut directories = Vec::new();
    for _ in 0..ATTEMPTS {
        directories.clear();
        match attempt(root, max_size, &mut directories) {
            Ok((object, medium)) => return Reading { object: Ok(object), directories, medium },
            Err(Stop::Failed(error)) => return Reading { object: Err(error), directories, medium: Medium::Unknown },
            Err(Stop::Changed) => {}
        }
    }
    let error = FilesError::Unsettled { path: root.path.clone(), attempts: ATTEMPTS };
    Reading { object: Err(error), directories, medium: Medium::Unknown }
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

fn attempt(root: &Root, max_size: u64, directories: &mut Vec<PathBuf>) -> Result<(Option<Object>, Medium), Stop> {
    let path = without_trailing_slash(&root.path);
    let fd = match open(CWD, &path, ResolveFlags::empty()) {
        Ok(fd) => fd,
        Err(Errno::NOENT) => return Ok((None, Medium::Unknown)),
        Err(Errno::NXIO | Errno::NODEV) => return Err(FilesError::NoFile { path }.into()),
        Err(errno) => return Err(failed(&path, errno).into()),
    };
    let stat = fs::fstat(&fd).map_err(|errno| failed(&path, errno))?;
    let mut walk = Walk {
        root: &path,
        fd: &fd,
        limit: max_size,
        left: max_size,
        entries: 0,
        above: Vec::new(),
        data: BTreeMap::new(),
        directories,
        devices: Vec::new(),
    };
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => {
            walk.directory(&fd, Path::new(""), "", true)?;
            // The path may be a link that was re-pointed, and the old directory half removed by now.
            match fs::stat(&path) {
                Ok(now) if (now.st_dev, now.st_ino) == (stat.st_dev, stat.st_ino) => {}
                Ok(_) | Err(Errno::NOENT) => return Err(Stop::Changed),
                Err(errno) => return Err(failed(&path, errno).into()),
            }
        }
        FileType::RegularFile => {
            let name = path.file_name().unwrap_or_default();
            let key = name.to_str().ok_or_else(|| FilesError::Name { path: path.clone() })?;
            walk.file(&fd, &stat, &path, key.to_owned())?;
        }
        _ => return Err(FilesError::NoFile { path }.into()),
    }
    let Walk { data, devices, .. } = walk;
    let media = || devices.iter().map(|(_, medium)| *medium);
    let secret = root.secret.unwrap_or(media().any(|medium| medium == Medium::Memory));
    let id = ObjectRef { kind: Kind::Dir, namespace: Arc::default(), name: root.name.as_str().into() };
    Ok((Some(Object::new(id, String::new(), 0, secret, data)), media().max().unwrap_or(Medium::Unknown)))
}

/// A directory's trailing slash would make a file `ENOTDIR`, and hide its name.
pub(super) fn without_trailing_slash(path: &Path) -> PathBuf {
    path.components().collect()
}

/// `NONBLOCK`: a pipe must not hang us; `NOCTTY`: nor a terminal become ours.
const FLAGS: OFlags = OFlags::RDONLY.union(OFlags::CLOEXEC).union(OFlags::NONBLOCK).union(OFlags::NOCTTY);

fn open(at: impl AsFd, path: &Path, resolve: ResolveFlags) -> Result<OwnedFd, Errno> {
    let resolve = resolve | ResolveFlags::NO_MAGICLINKS;
    let open = || retry_on_intr(|| fs::openat2(&at, path, FLAGS, Mode::empty(), resolve));
    // While the kernel follows a link, that can be pointed elsewhere, and what it named be removed: absence is believed
    // when it is seen three times.
    let mut result = open();
    for _ in 0..2 {
        if let Err(Errno::NOENT) = result {
            result = open();
        }
    }
    result
}

fn failed(path: &Path, errno: Errno) -> FilesError {
    let path = path.to_owned();
    match errno {
        // Opening for reading has no other reason for EPERM (open(2): O_NOATIME, file seals).
        Errno::NOSYS | Errno::PERM => FilesError::Openat2 { path, errno },
        _ => FilesError::Io { path, errno },
    }
}

/// Where `..data` leads from a directory, if that has one and it is a link.
fn data_link(directory: &OwnedFd) -> Result<Option<PathBuf>, Errno> {
    match fs::readlinkat(directory, DATA, Vec::new()) {
        Ok(target) => Ok(Some(OsString::from_vec(target.into_bytes()).into())),
        Err(Errno::NOENT | Errno::INVAL) => Ok(None),
        Err(errno) => Err(errno),
    }
}

struct Walk<'a> {
    root: &'a Path,
    /// The root's; every path below is opened relative to it, so that no link leads out of it.
    fd: &'a OwnedFd,
    limit: u64,
    /// Bytes that may still come.
    left: u64,
    /// Directory entries so far, keys or not.
    entries: usize,
    /// Device and inode of the directories that we are in.
    above: Vec<(u64, u64)>,
    data: BTreeMap<String, Content>,
    directories: &'a mut Vec<PathBuf>,
    /// The devices met, and what they are.
    devices: Vec<(u64, Medium)>,
}

impl Walk<'_> {
    /// Reads the open directory that lies `at` this path below the root, under this key (empty for the root).
    /// `follow`: its changes matter.
    fn directory(&mut self, directory: &OwnedFd, at: &Path, key: &str, follow: bool) -> Result<(), Stop> {
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
            Err(Errno::NOENT) => Err(FilesError::NoData { link: link.clone(), target: target.clone() }.into()),
            Err(errno) => Err(self.refused(&at.join(DATA), errno)),
        };
        // Also after a failure: the kubelet removes the old directory while we read it.
        if readlink()? == Some(target) { result } else { Err(Stop::Changed) }
    }

    fn list(&mut self, directory: &OwnedFd, at: &Path, key: &str, follow: bool) -> Result<(), Stop> {
        let path = self.root.join(at);
        let stat = fs::fstat(directory).map_err(|errno| failed(&path, errno))?;
        let identity = (stat.st_dev, stat.st_ino);
        if self.above.contains(&identity) {
            return Ok(());
        }
        if self.above.len() > MAX_DEPTH {
            return Err(FilesError::TooDeep { path, limit: MAX_DEPTH }.into());
        }
        self.note_device(directory, stat.st_dev, &path)?;
        self.above.push(identity);
        for name in self.names(directory, &path)? {
            let below = at.join(&name);
            let name = name.to_str().ok_or_else(|| FilesError::Name { path: self.root.join(&below) })?;
            let key = if key.is_empty() { name.to_owned() } else { format!("{key}/{name}") };
            self.entry(&below, key, follow)?;
        }
        self.above.pop();
        Ok(())
    }

    /// The names that may be keys or directories.
    fn names(&mut self, directory: &OwnedFd, path: &Path) -> Result<Vec<OsString>, Stop> {
        let mut names = Vec::new();
        let mut buffer = [MaybeUninit::uninit(); 8192];
        let mut entries = RawDir::new(directory, &mut buffer);
        while let Some(entry) = entries.next() {
            let entry = match entry {
                Ok(entry) => entry,
                // The directory itself was removed (getdents(2)).
                Err(Errno::NOENT) => break,
                Err(errno) => return Err(failed(path, errno).into()),
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
                names.push(OsStr::from_bytes(name).to_owned());
            }
        }
        Ok(names)
    }

    fn entry(&mut self, at: &Path, key: String, follow: bool) -> Result<(), Stop> {
        let fd = match self.open(at) {
            Ok(fd) => fd,
            // A link to nothing, or gone since it was listed; or a link to a socket, a pipe, a device without driver.
            Err(Errno::NOENT | Errno::NXIO | Errno::NODEV) => return Ok(()),
            Err(errno) => return Err(self.refused(at, errno)),
        };
        let path = self.root.join(at);
        let stat = fs::fstat(&fd).map_err(|errno| failed(&path, errno))?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => self.directory(&fd, at, &key, follow),
            FileType::RegularFile => self.file(&fd, &stat, &path, key),
            _ => Ok(()),
        }
    }

    fn file(&mut self, fd: &OwnedFd, stat: &fs::Stat, path: &Path, key: String) -> Result<(), Stop> {
        let too_large = || FilesError::TooLarge { path: self.root.to_owned(), limit: self.limit };
        let left = self.left.checked_sub(key.len() as u64).ok_or_else(too_large)?;
        let mut bytes: Vec<u8> = Vec::new();
        loop {
            if bytes.len() == bytes.capacity() {
                // The size is a hint only: files of /proc have none, others grow. One byte beyond what is left tells
                // a file that is too large from one that just fits.
                let size = u64::try_from(stat.st_size).unwrap_or(0);
                let wanted = if bytes.is_empty() && size > 0 { size } else { 4095.max(bytes.len() as u64) };
                let room = left.saturating_add(1).saturating_sub(bytes.len() as u64);
                let more = wanted.saturating_add(1).min(room);
                if more == 0 {
                    return Err(too_large().into());
                }
                bytes.reserve_exact(usize::try_from(more).map_err(|_| too_large())?);
            }
            let read = retry_on_intr(|| rustix::io::read(fd, spare_capacity(&mut bytes)));
            if read.map_err(|errno| failed(path, errno))? == 0 {
                break;
            }
        }
        self.left = left.checked_sub(bytes.len() as u64).ok_or_else(too_large)?;
        self.note_device(fd, stat.st_dev, path)?;
        self.data.insert(key, Bytes::from(bytes.into_boxed_slice()).into());
        Ok(())
    }

    fn note_device(&mut self, fd: &OwnedFd, device: u64, path: &Path) -> Result<(), FilesError> {
        if !self.devices.iter().any(|(known, _)| *known == device) {
            self.devices.push((device, Medium::of(fd).map_err(|errno| failed(path, errno))?));
        }
        Ok(())
    }

    fn open(&self, at: &Path) -> Result<OwnedFd, Errno> {
        open(self.fd, at, ResolveFlags::BENEATH)
    }

    fn refused(&self, at: &Path, errno: Errno) -> Stop {
        match errno {
            // openat2(2): a `..` raced with a rename.
            Errno::AGAIN => Stop::Changed,
            Errno::XDEV => FilesError::Escapes { root: self.root.to_owned(), link: self.root.join(at) }.into(),
            _ => failed(&self.root.join(at), errno).into(),
        }
    }
}

/// Whether the kubelet has replaced the directory behind a `subPath` mount of this path, or of a file below it.
///
/// Such a mount holds the directory that the volume had when the container started; once that is removed,
/// `/proc/self/mountinfo` (proc(5)) shows its root as deleted. Not knowing (no `/proc`) is `None`.
pub(super) fn subpath(path: &Path) -> Option<PathBuf> {
    mounted(path, |root, _| root.ends_with(DELETED))
}

/// What a mount of this path, or of a file or directory below it, cannot follow; `None` if it shows every change, or if
/// that is not known.
#[must_use]
pub fn frozen(path: &Path) -> Option<Frozen> {
    let subpath = |root: &[u8], _: &Path| root.ends_with(DELETED) || root.split(|c| *c == b'/').any(is_of_kubelet);
    let file = |_: &[u8], point: &Path| point.is_file();
    mounted(path, subpath).map(Frozen::SubPath).or_else(|| mounted(path, file).map(Frozen::File))
}

/// proc(5) on a mount's root does not say so, but fs/d_path.c appends it.
const DELETED: &[u8] = b"//deleted";

/// Whether a segment is the name of a directory that holds one version of a volume, as `..2026_11_24_07_00_00.123`
/// (`pkg/volume/util/atomic_writer.go`: `newTimestampDir`).
fn is_of_kubelet(segment: &[u8]) -> bool {
    let Some(rest) = segment.strip_prefix(b"..") else { return false };
    rest.len() > 5 && rest[..4].iter().all(u8::is_ascii_digit) && rest[4] == b'_'
}

/// The first mount point with such a root that is this path's mount or lies below it.
fn mounted(path: &Path, wanted: impl Fn(&[u8], &Path) -> bool) -> Option<PathBuf> {
    let stat = fs::statx(CWD, path, AtFlags::empty(), StatxFlags::MNT_ID).ok()?;
    let mount = (stat.stx_mask & StatxFlags::MNT_ID.bits() != 0).then_some(stat.stx_mnt_id);
    let real = std::fs::canonicalize(path).ok()?;
    mount_with(&std::fs::read("/proc/self/mountinfo").ok()?, mount, &real, wanted)
}

/// The same, in this text.
fn mount_with(
    mountinfo: &[u8],
    mount: Option<u64>,
    real: &Path,
    wanted: impl Fn(&[u8], &Path) -> bool,
) -> Option<PathBuf> {
    mountinfo.split(|c| *c == b'\n').find_map(|line| {
        let mut fields = line.split(|c| *c == b' ');
        let id = fields.next().and_then(|id| std::str::from_utf8(id).ok()?.parse().ok());
        let root = fields.nth(2)?;
        let point = PathBuf::from(OsString::from_vec(unescape(fields.next()?)));
        let here = (id.is_some() && id == mount) || (point != real && point.starts_with(real));
        (here && wanted(root, &point)).then_some(point)
    })
}

/// mountinfo writes space, tab, newline and backslash as three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        let octal = if *first == b'\\' { after.get(..3) } else { None };
        let byte = octal.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        plain.push(byte.unwrap_or(*first));
        rest = if byte.is_some() { after.get(3..).unwrap_or_default() } else { after };
    }
    plain
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::os::unix::net::UnixListener;
    use std::sync::atomic::AtomicBool;
    use std::sync::atomic::Ordering::Relaxed;

    use rustix::fs::mknodat;
    use tempfile::TempDir;

    use super::super::volume::{Volume, as_nobody};
    use super::*;

    fn root(path: impl Into<PathBuf>) -> Root {
        Root { source: 0, name: "conf".into(), path: path.into(), secret: Some(false) }
    }

    fn get(path: impl Into<PathBuf>) -> Result<Option<Object>, FilesError> {
        read(&root(path), 1 << 20)
    }

    /// Keys and values of what must be there.
    fn content(path: impl Into<PathBuf>) -> Vec<(String, String)> {
        let object = get(path).unwrap().expect("it exists");
        object
            .data
            .into_iter()
            .map(|(key, value)| (key, String::from_utf8(value.read().unwrap().to_vec()).unwrap()))
            .collect()
    }

    fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
        expected.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect()
    }

    fn write(path: PathBuf, text: &str) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    #[test]
    fn kubelet_volume_gives_its_keys_alone() {
        let dir = TempDir::new().unwrap();
        let volume = Volume::new(dir.path().join("v"), &[("a", "1"), ("sub/deep/b", "2"), (".hidden", "3")]);
        let object = get(&volume.path).unwrap().unwrap();
        assert_eq!(object.id, ObjectRef { kind: Kind::Dir, namespace: Arc::default(), name: "conf".into() });
        assert_eq!(content(&volume.path), pairs(&[(".hidden", "3"), ("a", "1"), ("sub/deep/b", "2")]));
    }

    /// Reads without a pause until `done`; each read must give one whole generation of `keys` keys.
    fn reads_are_whole(path: &Path, keys: usize, done: &AtomicBool) {
        let mut reads = 0;
        let deadline = std::time::Instant::now() + std::time::Duration::from_mins(1);
        while !done.load(Relaxed) && std::time::Instant::now() < deadline {
            match get(path) {
                Ok(Some(object)) => {
                    assert_eq!(object.data.len(), keys);
                    let first = object.data.values().next().unwrap();
                    assert!(!first.is_empty() && object.data.values().all(|value| value == first), "mixed");
                    reads += 1;
                }
                // As often as it was replaced under a reader who never pauses.
                Err(FilesError::Unsettled { .. }) => {}
                other => panic!("{other:?}"),
            }
        }
        assert!(reads > 20, "only {reads} reads");
    }

    #[test]
    fn a_read_during_the_kubelets_swap_is_whole() {
        fn files<'a>(keys: &'a [String], value: &'a str) -> Vec<(&'a str, &'a str)> {
            keys.iter().map(|key| (key.as_str(), value)).collect()
        }
        let dir = TempDir::new().unwrap();
        let keys: Vec<_> = (0..20).map(|n| if n % 2 == 0 { format!("k{n}") } else { format!("sub/k{n}") }).collect();
        let mut volume = Volume::new(dir.path().join("v"), &files(&keys, "0"));
        let path = volume.path.clone();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| reads_are_whole(&path, keys.len(), &done));
            scope.spawn(|| reads_are_whole(&path.join("k0"), 1, &done));
            for n in 1..200 {
                volume.swap(&files(&keys, &n.to_string()));
            }
            done.store(true, Relaxed);
        });
    }

    #[test]
    fn a_read_while_a_link_to_the_root_is_pointed_elsewhere_is_whole() {
        let dir = TempDir::new().unwrap();
        let conf = dir.path().join("conf");
        let point = |n: u32| {
            for key in 0..20 {
                write(dir.path().join(format!("tree{n}/{key}")), &n.to_string());
            }
            symlink(format!("tree{n}"), dir.path().join("new")).unwrap();
            std::fs::rename(dir.path().join("new"), &conf).unwrap();
            // git-sync removes the old tree at once.
            n.checked_sub(1).map_or(Ok(()), |n| std::fs::remove_dir_all(dir.path().join(format!("tree{n}")))).unwrap();
        };
        point(0);
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| reads_are_whole(&conf, 20, &done));
            (1..200).for_each(point);
            done.store(true, Relaxed);
        });
    }

    #[test]
    fn kubelet_volumes_below_an_ordinary_directory_are_read_whole_too() {
        let dir = TempDir::new().unwrap();
        Volume::new(dir.path().join("one"), &[("a", "1")]);
        Volume::new(dir.path().join("two/deep"), &[("b", "2")]);
        write(dir.path().join("plain"), "3");
        assert_eq!(content(dir.path()), pairs(&[("one/a", "1"), ("plain", "3"), ("two/deep/b", "2")]));
    }

    #[test]
    fn a_file_is_one_key_and_links_and_slashes_do_not_matter() {
        let dir = TempDir::new().unwrap();
        let volume = Volume::new(dir.path().join("v"), &[("app.conf", "1")]);
        symlink("v", dir.path().join("link")).unwrap();
        assert_eq!(content(volume.path.join("app.conf")), pairs(&[("app.conf", "1")]));
        assert_eq!(content(format!("{}/", volume.path.join("app.conf").display())), pairs(&[("app.conf", "1")]));
        assert_eq!(content(format!("{}/link/", dir.path().display())), pairs(&[("app.conf", "1")]));
    }

    #[test]
    fn what_is_missing_is_none_and_what_is_empty_is_empty() {
        let dir = TempDir::new().unwrap();
        assert_eq!(get(dir.path().join("no/such")), Ok(None));
        symlink("nowhere", dir.path().join("dangling")).unwrap();
        assert_eq!(get(dir.path().join("dangling")), Ok(None));
        std::fs::create_dir(dir.path().join("empty")).unwrap();
        assert_eq!(content(dir.path().join("empty")), pairs(&[]));
    }

    #[test]
    fn links_inside_are_followed_and_those_out_of_it_named() {
        let dir = TempDir::new().unwrap();
        write(dir.path().join("outside/secret"), "do not read");
        let inside = dir.path().join("inside");
        write(inside.join("real/x"), "1");
        symlink("real/x", inside.join("y")).unwrap();
        symlink("../real", inside.join("real/again")).unwrap();
        symlink("../inside2/../real", inside.join("real/z")).unwrap();
        std::fs::create_dir(inside.join("inside2")).unwrap();
        assert_eq!(content(&inside), pairs(&[("real/x", "1"), ("y", "1")]));

        let absolute = dir.path().join("outside/secret").into_os_string().into_string().unwrap();
        let cases = [
            (absolute.as_str(), "bad"),
            ("../outside/secret", "bad"),
            ("../outside", "bad"),
            ("..", "bad"),
            ("/", "bad"),
            ("/proc/self/cwd", "bad"),
            ("../../outside/secret", "real/bad"),
        ];
        for (target, link) in cases {
            let link = inside.join(link);
            symlink(target, &link).unwrap();
            let error = get(&inside).unwrap_err();
            assert_eq!(error, FilesError::Escapes { root: inside.clone(), link: link.clone() }, "{target}");
            assert!(error.to_string().contains(link.to_str().unwrap()));
            std::fs::remove_file(link).unwrap();
        }
        // By way of a link that stays inside.
        symlink("evil", inside.join("bad")).unwrap();
        symlink("../outside", inside.join("evil")).unwrap();
        assert!(matches!(get(&inside), Err(FilesError::Escapes { .. })));
    }

    #[test]
    fn a_data_link_out_of_the_directory_is_not_followed() {
        let dir = TempDir::new().unwrap();
        write(dir.path().join("outside/secret"), "do not read");
        for target in ["../outside", dir.path().join("outside").to_str().unwrap()] {
            let inside = TempDir::new_in(dir.path()).unwrap();
            symlink(target, inside.path().join("..data")).unwrap();
            let link = inside.path().join("..data");
            assert_eq!(get(inside.path()), Err(FilesError::Escapes { root: inside.path().into(), link }));
        }
    }

    #[test]
    fn loops_of_directories_end() {
        let dir = TempDir::new().unwrap();
        write(dir.path().join("a/x"), "1");
        symlink(".", dir.path().join("self")).unwrap();
        symlink("..", dir.path().join("a/up")).unwrap();
        symlink("../b", dir.path().join("a/b")).unwrap();
        std::fs::create_dir(dir.path().join("b")).unwrap();
        symlink("../a", dir.path().join("b/a")).unwrap();
        assert_eq!(content(dir.path()), pairs(&[("a/x", "1"), ("b/a/x", "1")]));
    }

    #[test]
    fn a_link_to_itself_is_trouble_and_a_link_to_nothing_is_none() {
        let dir = TempDir::new().unwrap();
        write(dir.path().join("x"), "1");
        symlink("user@host.1234", dir.path().join(".#x")).unwrap();
        assert_eq!(content(dir.path()), pairs(&[("x", "1")]));
        symlink("me", dir.path().join("me")).unwrap();
        assert_eq!(get(dir.path()), Err(FilesError::Io { path: dir.path().join("me"), errno: Errno::LOOP }));
    }

    #[test]
    fn pipes_sockets_and_devices_neither_hang_nor_count() {
        let dir = TempDir::new().unwrap();
        write(dir.path().join("x"), "1");
        let pipe = dir.path().join("pipe");
        mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR, 0).unwrap();
        symlink("pipe", dir.path().join("to-pipe")).unwrap();
        let _socket = UnixListener::bind(dir.path().join("socket")).unwrap();
        symlink("socket", dir.path().join("to-socket")).unwrap();
        assert_eq!(content(dir.path()), pairs(&[("x", "1")]));
        for path in [pipe, dir.path().join("socket"), "/dev/null".into()] {
            assert_eq!(get(&path), Err(FilesError::NoFile { path }));
        }
    }

    #[test]
    fn lost_and_found_and_names_with_two_dots_are_no_keys() {
        let dir = TempDir::new().unwrap();
        write(dir.path().join("lost+found/x"), "1");
        write(dir.path().join("..old/x"), "2");
        write(dir.path().join("sub/..x"), "3");
        write(dir.path().join("sub/x"), "4");
        assert_eq!(content(dir.path()), pairs(&[("sub/x", "4")]));
    }

    #[test]
    fn size_is_limited_to_the_byte() {
        let dir = TempDir::new().unwrap();
        write(dir.path().join("abc"), "1234567");
        write(dir.path().join("d"), &"x".repeat(9_000));
        let at = |limit| read(&root(dir.path()), limit);
        assert_eq!(at(9_011).unwrap().unwrap().size(), 9_011);
        for limit in [0, 2, 3, 9, 10, 9_010] {
            let error = at(limit).unwrap_err();
            assert_eq!(error, FilesError::TooLarge { path: dir.path().into(), limit });
            assert!(error.to_string().contains("--max-size"), "{error}");
        }
        // No size to go by, and no end.
        assert!(matches!(read(&root("/proc/kallsyms"), 100_000), Err(FilesError::TooLarge { .. })));
    }

    #[test]
    fn a_sparse_file_beyond_the_limit_is_refused_without_its_memory() {
        let dir = TempDir::new().unwrap();
        std::fs::File::create(dir.path().join("huge")).unwrap().set_len(1 << 40).unwrap();
        assert_eq!(get(dir.path()), Err(FilesError::TooLarge { path: dir.path().into(), limit: 1 << 20 }));
    }

    #[test]
    fn depth_and_entries_are_limited() {
        let dir = TempDir::new().unwrap();
        let deep: PathBuf = std::iter::repeat_n("d", MAX_DEPTH).collect();
        write(dir.path().join(&deep).join("x"), "1");
        assert_eq!(content(dir.path()).len(), 1);
        write(dir.path().join(&deep).join("d/x"), "1");
        assert!(matches!(get(dir.path()), Err(FilesError::TooDeep { .. })));

        let many = TempDir::new().unwrap();
        for n in 0..1_000 {
            write(many.path().join(format!("d/{n}")), "");
        }
        for n in 0..64 {
            symlink("d", many.path().join(n.to_string())).unwrap();
        }
        assert_eq!(content(many.path()).len(), 65_000);
        symlink("d", many.path().join("more")).unwrap();
        assert!(matches!(get(many.path()), Err(FilesError::TooMany { .. })));
    }

    #[test]
    fn a_name_that_is_not_utf8_is_named() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join(OsStr::from_bytes(b"b\xffd"));
        write(path.clone(), "1");
        let error = get(dir.path()).unwrap_err();
        assert_eq!(error, FilesError::Name { path });
        assert!(error.to_string().contains(r"b\xFFd"), "{error}");
    }

    #[test]
    fn no_error_quotes_a_value() {
        let dir = TempDir::new().unwrap();
        write(dir.path().join("x"), "hunter2");
        let object = get(dir.path()).unwrap();
        assert!(!format!("{object:?} {:?}", read(&root(dir.path()), 3)).contains("hunter2"));
    }

    #[test]
    fn unreadable_is_told_with_a_remedy() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("x");
        write(path.clone(), "1");
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o0)).unwrap();
        let result = as_nobody(|| get(dir.path()));
        assert_eq!(result, Err(FilesError::Io { path, errno: Errno::ACCESS }));
        let text = result.unwrap_err().to_string();
        assert!(text.contains("Permission denied") && text.contains("fsGroup"), "{text}");
    }

    #[test]
    fn a_data_link_to_nothing_is_no_empty_volume() {
        let dir = TempDir::new().unwrap();
        symlink("..gone", dir.path().join("..data")).unwrap();
        let link = dir.path().join("..data");
        assert_eq!(get(dir.path()), Err(FilesError::NoData { link, target: "..gone".into() }));
    }

    #[test]
    fn tmpfs_makes_a_secret_unless_told_otherwise() {
        let is_secret =
            |path: &Path, secret| read(&Root { secret, ..root(path) }, 1 << 20).unwrap().expect("it exists").secret;
        let memory = TempDir::new_in("/dev/shm").unwrap();
        let disk = TempDir::new().unwrap();
        write(memory.path().join("x"), "1");
        assert!(is_secret(memory.path(), None) && is_secret(&memory.path().join("x"), None));
        assert!(!is_secret(memory.path(), Some(false)) && is_secret(disk.path(), Some(true)));
        let on_disk = fs::statfs(disk.path()).unwrap().f_type != 0x0102_1994;
        assert_eq!(is_secret(disk.path(), None), !on_disk);
    }

    #[test]
    fn a_version_of_a_volume_is_told_from_other_directories() {
        for (name, is) in [
            ("..2026_11_24_07_00_00.1234", true),
            ("..data", false),
            ("..2026", false),
            ("..2026-11", false),
            ("2026_11_24_07_00_00.1234", false),
            ("..", false),
            ("", false),
        ] {
            assert_eq!(is_of_kubelet(name.as_bytes()), is, "{name}");
        }
    }

    #[test]
    fn a_deleted_mount_is_found_here_and_below() {
        let mountinfo = b"\
24 1 254:0 / / rw - ext4 /dev/root rw
31 24 254:0 /pods/1/..2026_1/app.conf//deleted /etc/app\\040conf rw - ext4 /dev/root rw
32 24 254:0 /pods/1/..2026_1/other//deleted /etc/sub/other rw - ext4 /dev/root rw
short
";
        let found =
            |mount, real: &str| mount_with(mountinfo, mount, Path::new(real), |root, _| root.ends_with(DELETED));
        assert_eq!(found(Some(31), "/etc/app conf"), Some("/etc/app conf".into()));
        assert_eq!(found(Some(24), "/etc/sub"), Some("/etc/sub/other".into()));
        assert_eq!(found(Some(24), "/etc/su"), None);
        assert_eq!(found(None, "/etc/app conf"), None);
        assert_eq!(unescape(br"a\040b\134c\9"), b"a b\\c\\9");
    }
}
