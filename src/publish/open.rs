//! The one checked way into the output directory: opened and created by the sidecar, only looked at by `render` and
//! `check`.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag};
use nix::sys::stat::{FileStat, Mode};
use nix::sys::statfs::{FsType, fstatfs};
use nix::unistd::{AccessFlags, Gid, faccessat, getegid, geteuid, getgroups};
use rustix::fs::{StatxAttributes, StatxFlags, statx};
use rustix::thread::{CapabilitySet, capabilities};

use super::dir::{Dir, is_own, look, permissions};
use super::folder::{Access, Folder};
use super::state::{EARLIER_LOCK, JOURNAL, KEY, LOCK, MOVING, PRIVATE_DIR, STATE, own_in};
use super::sys::{fchmod, fchown, fstat, fstatat, fsync, mkdirat, openat};
use super::{Config, Layout, Output, PublishError, atomic, files};

pub(super) const SETGID: u32 = 0o2000;
const STICKY: u32 = 0o1000;

/// A directory that a flag names, and what is said where it cannot be opened or made.
#[derive(Clone, Copy)]
struct Named {
    flag: &'static str,
    open: &'static str,
    create: &'static str,
}

const OUTPUT: Named = Named { flag: "--output", open: "open --output", create: "create --output" };
const STATE_DIR: Named = Named { flag: "--state-dir", open: "open --state-dir", create: "create --state-dir" };
const FOLDERS: Named = Named { flag: "--folders", open: "open one of --folders,", create: "create one of --folders," };

/// File systems on which a chmod succeeds and has often no effect, by the numbers of statfs(2).
const IGNORE_MODES: [(FsType, &str); 8] = [
    (FsType(0x4d44), "FAT"),
    (FsType(0x2011_bab0), "exFAT"),
    (FsType(0x5346_544e), "NTFS"),
    (FsType(0x7366_746e), "NTFS"),
    (FsType(0x517b), "SMB"),
    (FsType(0xfe53_4d42), "SMB"),
    (FsType(0xff53_4d42), "CIFS"),
    (FsType(0x6573_5546), "FUSE"),
];

impl Output {
    /// Opens the output directory, creating it if need be; the strings are warnings, to be logged once.
    ///
    /// A new directory gets mode 2755 and its parent's group. In one that exists and belongs to this user, a missing
    /// setgid bit is added. Refused are a symlink (who can write to its directory could lead us elsewhere), a sticky
    /// directory, and one whose `..data` is not ours.
    pub fn open(config: &Config) -> Result<(Self, Vec<String>), PublishError> {
        let path = own_path(&config.output);
        let io = |doing| {
            let path = path.clone();
            move |errno| PublishError::Io { doing, path, errno }
        };
        let dir = opened_or_made(OUTPUT, &path)?;
        let state_dir = config.state_dir.as_deref().map(own_path);
        let apart =
            state_dir.map(|path| Ok::<_, PublishError>((opened_or_made(STATE_DIR, &path)?, path))).transpose()?;
        let (mut found, earlier) = found(&dir, &path, apart.as_ref(), config.layout)?;
        if earlier && found.is_none() && apart.is_some() {
            // What the first version left is put together before it is moved.
            found = Some(make_own_dir(&dir).map_err(io("make a directory in"))?);
        }
        let mut stat = checked(&dir, found.as_ref(), &path, config.layout)?;
        if stat.st_mode & SETGID == 0 && is_own(&stat) {
            let mode = Mode::from_bits_truncate(stat.st_mode | SETGID);
            fchmod(&dir, mode).map_err(io("set the setgid bit of --output"))?;
            // The kernel silently clears the bit if we are not in the group.
            stat = fstat(&dir).map_err(io("stat --output"))?;
        }
        let folders = config.folders.iter().map(|path| open_folder(&own_path(path)));
        let folders = folders.collect::<Result<Vec<_>, _>>()?;
        let (home, home_path) = apart.as_ref().map_or((&dir, &path), |(apart, path)| (apart, path));
        let state = found.map_or_else(|| make_own_dir(home), Ok);
        let state = state.and_then(|own| keep_mode(&own, Mode::S_IRWXU).map(|()| own));
        let state = state.map_err(|errno| PublishError::Io { doing: "make", path: own_in(home_path, ""), errno })?;
        Self::of(dir, apart, Some(state), folders, path, &stat, config)
    }

    /// What [`Output::open`] would open, left as it is: nothing is created, and no mode is set. `None`: it does not
    /// exist yet. The errors are those of `open`, except that a missing parent is no error here.
    pub fn inspect(config: &Config) -> Result<Option<(Self, Vec<String>)>, PublishError> {
        let path = own_path(&config.output);
        let Some(dir) = existing(OUTPUT, &path)? else { return Ok(None) };
        let state_dir = config.state_dir.as_deref().map(own_path);
        let apart = state_dir.map(|path| existing(STATE_DIR, &path).map(|dir| Some((dir?, path))));
        let apart = apart.transpose()?.flatten();
        let (state, _) = found(&dir, &path, apart.as_ref(), config.layout)?;
        let mut stat = checked(&dir, state.as_ref(), &path, config.layout)?;
        if is_own(&stat) {
            // `open` sets it.
            stat.st_mode |= SETGID;
        }
        let folders = config.folders.iter().map(|path| look_at_folder(&own_path(path)));
        let folders = folders.filter_map(Result::transpose).collect::<Result<Vec<_>, _>>()?;
        Self::of(dir, apart, state, folders, path, &stat, config).map(Some)
    }

    /// Whether [`Output::open`] could create the directory, and who it would belong to: user and group.
    pub fn creatable(config: &Config) -> Result<(u32, u32), PublishError> {
        let path = own_path(&config.output);
        let above = above(OUTPUT, &path)?;
        let failed = |errno| PublishError::Io { doing: "create --output", path: path.clone(), errno };
        may_write(&above).map_err(failed)?;
        Ok((geteuid().as_raw(), fstat(&above).map_err(failed)?.st_gid))
    }

    /// An error if this process may not write into the directory, or if its file system is read-only.
    pub fn writable(&self) -> Result<(), PublishError> {
        may_write(&self.dir).map_err(|errno| self.io("write into --output", "", errno))?;
        for folder in &self.folders {
            may_write(&folder.dir).map_err(|errno| self.io("write into one of --folders,", &folder.path, errno))?;
        }
        let Some((apart, path)) = &self.apart else { return Ok(()) };
        may_write(apart).map_err(|errno| PublishError::Io {
            doing: "write into --state-dir",
            path: path.clone(),
            errno,
        })
    }

    /// An error once the output directory was removed: what is written goes nowhere from then on, and a start makes it
    /// anew.
    pub fn still_there(&self) -> Result<(), PublishError> {
        let removed = |dir: &Dir| match fstat(dir) {
            Ok(stat) => stat.st_nlink == 0,
            // What a network's file system says of it.
            Err(errno) => errno == Errno::ESTALE,
        };
        let gone = |folder: &&Folder| removed(&folder.dir) || folder.own.as_ref().is_some_and(removed);
        if removed(&self.dir) {
            Err(PublishError::Removed { path: self.path.clone() })
        } else if let Some(folder) = self.folders.iter().find(gone) {
            Err(PublishError::Removed { path: PathBuf::from(&folder.path) })
        } else if self.state.as_ref().is_some_and(removed) {
            Err(PublishError::Removed { path: self.own("") })
        } else {
            Ok(())
        }
    }

    /// What suggests that files in the output do not keep their modes, without writing one. Of an output that is not
    /// there yet its volume alone says so.
    #[must_use]
    pub fn would_ignore_modes(config: &Config) -> Option<String> {
        often_ignored(above(OUTPUT, &own_path(&config.output)).ok()?, &config.output)
    }

    /// The same of one that is there.
    #[must_use]
    pub fn may_ignore_modes(&self) -> Option<String> {
        for name in [LOCK, KEY, JOURNAL] {
            // The group's part says nothing: the kubelet gives that to fsGroup.
            if let Some(state) = &self.state
                && let Ok(Some(stat)) = state.stat(name)
                && is_own(&stat)
                && stat.st_mode & 0o007 != 0
            {
                let path = self.own(name);
                return Some(format!(
                    "{} was made with mode 0600, and has {:04o}",
                    path.display(),
                    stat.st_mode & 0o777
                ));
            }
        }
        often_ignored(&self.dir, &self.path)
    }

    /// The output of a directory that was checked, and warnings.
    fn of(
        dir: Dir,
        apart: Option<(Dir, PathBuf)>,
        state: Option<Dir>,
        folders: Vec<Folder>,
        path: PathBuf,
        stat: &FileStat,
        config: &Config,
    ) -> Result<(Self, Vec<String>), PublishError> {
        let io = |doing| {
            let path = path.clone();
            move |errno| PublishError::Io { doing, path, errno }
        };
        let mut warnings = Vec::new();
        let shown = path.display();
        let group = Gid::from_raw(stat.st_gid);
        let mut setgid = stat.st_mode & SETGID != 0;
        if let Some(state) = state.as_ref().filter(|_| apart.is_some() && config.layout == Layout::Files) {
            // There the files are made that are renamed into the output.
            let made_in = fstat(state).map_err(io("stat --state-dir for"))?;
            setgid &= made_in.st_mode & SETGID != 0 && made_in.st_gid == stat.st_gid;
        }
        let group = given(group, setgid).map_err(io("list this process's groups for"))?;
        if group.is_none() {
            warnings.push(format!(
                "--output {shown} has group {} and no setgid bit, and this process is not in that group: files that \
                 hold secrets will be readable by group {} alone; set the Pod's securityContext.fsGroup",
                stat.st_gid,
                getegid()
            ));
        }
        if stat.st_mode & 0o050 != 0o050 {
            warnings
                .push(format!("--output {shown} has mode {:04o}: no other user can read it", stat.st_mode & 0o7777));
        }
        if config.layout == Layout::Atomic && is_mount_point(&dir).map_err(io("stat --output"))? {
            warnings.push(format!(
                "--output {shown} is the root of a volume, where other things may be, and whose mode and group are not \
                 Trimtab's; better name a directory in it, such as {}",
                path.join("conf").display()
            ));
        }

        let output = Self {
            dir,
            apart,
            state,
            folders,
            path,
            layout: config.layout,
            file_mode: Mode::from_bits_truncate(config.file_mode & 0o777),
            secret_mode: Mode::from_bits_truncate(config.secret_mode & 0o777),
            access: Access { group, dir_mode: dir_mode(stat) },
            own_key: OnceLock::new(),
            cache: files::Cache::default(),
            spool: OnceLock::new(),
            unsynced: Mutex::default(),
            pending: Mutex::default(),
            syncing: Mutex::default(),
            keeps_no_modes: OnceLock::new(),
        };
        Ok((output, warnings))
    }
}

/// The group that files get: `None` where this process can neither inherit nor give it.
fn given(group: Gid, setgid: bool) -> nix::Result<Option<Gid>> {
    // Root in a container has often no capabilities at all.
    let may_give = capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::CHOWN));
    Ok((setgid || may_give || group == getegid() || getgroups()?.contains(&group)).then_some(group))
}

/// Of directories made in this one.
fn dir_mode(stat: &FileStat) -> Mode {
    Mode::from_bits_truncate(0o755 | stat.st_mode & SETGID)
}

/// One of `--folders`, and Trimtab's own directory in it, both made if need be.
fn open_folder(path: &Path) -> Result<Folder, PublishError> {
    let io = |errno| PublishError::Io { doing: "make a directory in --folders", path: path.to_owned(), errno };
    let mut folder = folder(path, opened_or_made(FOLDERS, path)?)?;
    let own = folder.own.take().map_or_else(|| make_own_dir(&folder.dir), Ok).map_err(io)?;
    keep_mode(&own, Mode::S_IRWXU).map_err(io)?;
    // Files are made there, and take its group along.
    let (here, made) = (fstat(&folder.dir).map_err(io)?, fstat(&own).map_err(io)?);
    let setgid = here.st_mode & made.st_mode & SETGID != 0 && here.st_gid == made.st_gid;
    folder.access.group = given(Gid::from_raw(here.st_gid), setgid).map_err(io)?;
    folder.own = Some(own);
    Ok(folder)
}

/// The same as it is; `None`: it does not exist yet.
fn look_at_folder(path: &Path) -> Result<Option<Folder>, PublishError> {
    existing(FOLDERS, path)?.map(|dir| folder(path, dir)).transpose()
}

fn folder(path: &Path, dir: Dir) -> Result<Folder, PublishError> {
    let io = |errno| PublishError::Io { doing: "read", path: path.to_owned(), errno };
    let own = own_dir(&dir, path)?;
    let is_output = [atomic::DATA, EARLIER_LOCK].iter().any(|name| !matches!(dir.stat(name), Ok(None)));
    let has = |name| own.as_ref().is_some_and(|own| !matches!(own.stat(name), Ok(None)));
    if is_output || has(JOURNAL) || has(files::CURRENT) {
        return Err(PublishError::OtherOutput { path: path.to_owned() });
    }
    let stat = fstat(&dir).map_err(io)?;
    let access = Access { group: None, dir_mode: dir_mode(&stat) };
    Ok(Folder { path: path.to_string_lossy().into_owned(), dir, own, access })
}

/// Without trailing slashes, which would make open(2) follow a symlink after all.
fn own_path(output: &Path) -> PathBuf {
    output.components().collect()
}

fn opened_or_made(named: Named, path: &Path) -> Result<Dir, PublishError> {
    match existing(named, path)? {
        Some(dir) => Ok(dir),
        None => create(named, path),
    }
}

/// Opens a directory, if it is there.
fn existing(named: Named, path: &Path) -> Result<Option<Dir>, PublishError> {
    let io = |errno| PublishError::Io { doing: named.open, path: path.to_owned(), errno };
    match Dir::open(AT_FDCWD, path) {
        Ok(dir) => Ok(Some(dir)),
        Err(Errno::ENOENT) => Ok(None),
        Err(Errno::ENOTDIR | Errno::ELOOP) => {
            let what = look(AT_FDCWD, path).map_err(io)?.describe();
            Err(PublishError::NotADirectory { flag: named.flag, path: path.to_owned(), what })
        }
        Err(errno) => Err(io(errno)),
    }
}

/// Trimtab's own directory, if it is there, and whether the first version has left something in the output. What was
/// used in the output counts before what is in `--state-dir`: see `Output::take_apart`. An error if what would have to be renamed
/// from one to the other is on two mounts.
fn found(
    dir: &Dir,
    path: &Path,
    apart: Option<&(Dir, PathBuf)>,
    layout: Layout,
) -> Result<(Option<Dir>, bool), PublishError> {
    let io = |path: &Path| {
        let path = path.to_owned();
        move |errno| PublishError::Io { doing: "read", path, errno }
    };
    let mut inside = own_dir(dir, path)?;
    let Some((state, state_path)) = apart else { return Ok((inside, false)) };
    inside = inside.map(|own| was_used(&own).map(|used| used.then_some(own))).transpose().map_err(io(path))?.flatten();
    let earlier = dir.stat(EARLIER_LOCK).map_err(io(path))?.is_some();
    let two_mounts = mount(dir).map_err(io(path))? != mount(state).map_err(io(state_path))?;
    if two_mounts && layout == Layout::Files {
        return Err(PublishError::OtherMount { state: state_path.clone(), output: path.to_owned() });
    }
    if two_mounts && (inside.is_some() || earlier) {
        return Err(PublishError::CannotMove { state: state_path.clone(), own: path.join(STATE) });
    }
    match inside {
        None if !earlier => Ok((own_dir(state, state_path)?, earlier)),
        inside => Ok((inside, earlier)),
    }
}

/// The number of its mount, or where the kernel does not say that (before Linux 5.8), of its device.
fn mount(dir: &Dir) -> nix::Result<u64> {
    let flags = StatxFlags::BASIC_STATS | StatxFlags::MNT_ID;
    if let Ok(found) = statx(dir, "", rustix::fs::AtFlags::EMPTY_PATH, flags)
        && found.stx_mask & StatxFlags::MNT_ID.bits() != 0
    {
        return Ok(found.stx_mnt_id);
    }
    Ok(fstat(dir)?.st_dev)
}

/// Whether more was done there than to ask for the lock.
pub(super) fn was_used(own: &Dir) -> nix::Result<bool> {
    Ok(own.names()?.iter().any(|name| name.as_bytes() != LOCK.as_bytes()))
}

/// Opens Trimtab's own directory in the output or in what is kept apart, if it is there: where it is now, or where an
/// earlier version or a move that was cut off has it.
pub(super) fn own_dir(dir: &Dir, path: &Path) -> Result<Option<Dir>, PublishError> {
    let Some(shown) = opened(dir, STATE, path)? else {
        let moving = opened(dir, MOVING, path)?;
        return moving.map_or(Ok(None), |moving| opened(&moving, PRIVATE_DIR, &path.join(MOVING)));
    };
    if is_earlier(&shown).map_err(|errno| PublishError::Io { doing: "read", path: path.join(STATE), errno })? {
        return Ok(Some(shown));
    }
    opened(&shown, PRIVATE_DIR, &path.join(STATE))
}

/// Whether versions up to 0.2 have worked in this directory, which they had for themselves.
pub(super) fn is_earlier(shown: &Dir) -> nix::Result<bool> {
    Ok(shown.stat(LOCK)?.is_some())
}

fn opened(dir: &Dir, name: &str, path: &Path) -> Result<Option<Dir>, PublishError> {
    let path = path.join(name);
    match Dir::open(dir, name) {
        Ok(own) => Ok(Some(own)),
        Err(Errno::ENOENT) => Ok(None),
        Err(Errno::ENOTDIR | Errno::ELOOP) => match look(dir, name) {
            Ok(found) => Err(PublishError::ForeignState { path, what: found.describe() }),
            Err(errno) => Err(PublishError::Io { doing: "read", path, errno }),
        },
        Err(errno) => Err(PublishError::Io { doing: "open", path, errno }),
    }
}

/// Makes it; on return its name is on the disk.
fn make_own_dir(dir: &Dir) -> nix::Result<Dir> {
    let shown = make_shown_dir(dir, STATE)?;
    let own = make_dir(&shown, PRIVATE_DIR, Mode::S_IRWXU)?;
    shown.sync()?;
    dir.sync()?;
    Ok(own)
}

/// Makes the directory that other users see, and in which they find no file.
pub(super) fn make_shown_dir(dir: &Dir, name: &str) -> nix::Result<Dir> {
    let mode = Mode::from_bits_truncate(0o755);
    let shown = make_dir(dir, name, mode)?;
    keep_mode(&shown, mode)?;
    Ok(shown)
}

fn make_dir(dir: &Dir, name: &str, mode: Mode) -> nix::Result<Dir> {
    match mkdirat(dir, name, mode) {
        // Another Trimtab was quicker, and the lock decides who works here.
        Ok(()) | Err(Errno::EEXIST) => {}
        Err(errno) => return Err(errno),
    }
    Dir::open(dir, name)
}

/// The kubelet makes every directory of a persistent volume readable and writable by fsGroup at each mount
/// (`pkg/volume/volume_linux.go`); a umask may take from what was asked for.
fn keep_mode(dir: &Dir, mode: Mode) -> nix::Result<()> {
    let stat = fstat(dir)?;
    if !is_own(&stat) || permissions(&stat) == mode {
        return Ok(());
    }
    fchmod(dir, mode | Mode::from_bits_truncate(stat.st_mode & SETGID))
}

/// Refuses an output that is not ours, has another layout, or is sticky: in the `files` layout there are no links that
/// others would have to follow.
fn checked(dir: &Dir, state: Option<&Dir>, path: &Path, layout: Layout) -> Result<FileStat, PublishError> {
    // First of all, since a volume of the kubelet's may also be read-only or sticky.
    let atomic = atomic::data(dir, path)?.is_some();
    let current = || path.join(STATE).join(PRIVATE_DIR).join(files::CURRENT);
    let files = files::is_laid_out(dir, state);
    let files = files.map_err(|errno| PublishError::Io { doing: "read", path: current(), errno })?;
    if (atomic && layout == Layout::Files) || (files && layout == Layout::Atomic) {
        let (shows, other) = if atomic { (path.join(atomic::DATA), "atomic") } else { (current(), "files") };
        return Err(PublishError::OtherLayout { path: path.to_owned(), shows, other });
    }
    let stat = fstat(dir).map_err(|errno| PublishError::Io { doing: "stat --output", path: path.to_owned(), errno })?;
    if stat.st_mode & STICKY != 0 && layout == Layout::Atomic {
        return Err(PublishError::Sticky { path: path.to_owned(), mode: stat.st_mode & 0o7777 });
    }
    Ok(stat)
}

/// Opens the directory in which the output directory is, or is to be.
fn above(named: Named, path: &Path) -> Result<OwnedFd, PublishError> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    openat(AT_FDCWD, parent, flags, Mode::empty()).map_err(|errno| PublishError::Parent {
        flag: named.flag,
        path: path.to_owned(),
        parent: parent.to_owned(),
        errno,
    })
}

/// Makes a directory with its parent's group.
fn create(named: Named, path: &Path) -> Result<Dir, PublishError> {
    let above = above(named, path)?;
    let create = || {
        let name = path.file_name().unwrap_or_default();
        match mkdirat(&above, name, Mode::from_bits_truncate(0o755)) {
            // Another Trimtab was quicker, and the lock decides who works here.
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(errno) => return Err(errno),
        }
        let dir = Dir::open(&above, name)?;
        let group = Gid::from_raw(fstat(&above)?.st_gid);
        if fstat(&dir)?.st_gid != group.as_raw() {
            match fchown(&dir, None, Some(group)) {
                // Only a member of the group may; our own has to do.
                Ok(()) | Err(Errno::EPERM) => {}
                Err(errno) => return Err(errno),
            }
        }
        let mode = fstat(&dir)?.st_mode;
        if mode & 0o777 != 0o755 {
            // The umask was in the way.
            fchmod(&dir, Mode::from_bits_truncate(0o755 | SETGID))?;
        }
        fsync(&above)?;
        Ok(dir)
    };
    create().map_err(|errno| PublishError::Io { doing: named.create, path: path.to_owned(), errno })
}

fn often_ignored(dir: impl AsFd, path: &Path) -> Option<String> {
    let kind = fstatfs(dir).ok()?.filesystem_type();
    let (_, name) = IGNORE_MODES.iter().find(|(magic, _)| *magic == kind)?;
    Some(format!("{} is on a file system ({name}) that often does not", path.display()))
}

fn may_write(dir: impl AsFd) -> nix::Result<()> {
    faccessat(dir, ".", AccessFlags::W_OK | AccessFlags::X_OK, AtFlags::AT_EACCESS)
}

pub(super) fn is_mount_point(dir: &Dir) -> nix::Result<bool> {
    // The attribute (Linux 5.8) also shows a bind mount within one file system, which device numbers do not.
    if let Ok(found) = statx(dir, "", rustix::fs::AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS)
        && found.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT)
    {
        return Ok(found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT));
    }
    let (here, above) = (fstat(dir)?, fstatat(dir, "..", AtFlags::empty())?);
    Ok(here.st_dev != above.st_dev || here.st_ino == above.st_ino)
}
