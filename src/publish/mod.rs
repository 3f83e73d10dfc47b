//! Publishing: everything that touches the output directory.
//!
//! [`Output`] gives the machine its effects, and the machine gives them their order: stage, journal, link, swap,
//! unlink, journal, prune. Each effect may be cut off by a crash after any system call and be done again from its
//! beginning. All of it is blocking, and made for `spawn_blocking`.
//!
//! This file holds what any layout needs: the directory itself, its lock, the digest key, the journal. What the effects
//! are is in `layout`; the kubelet's layout in `atomic`, and the one of single files in `files`.

mod atomic;
mod dirfd;
mod files;
mod inspect;
mod layout;
mod manifest;
mod sys;
#[cfg(test)]
mod tests;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, CWD, FlockOperation, Gid, Mode, OFlags, Stat, StatxAttributes, StatxFlags, flock, statx};
use rustix::io::Errno;
use rustix::process::{getegid, geteuid, getgroups};
use rustix::rand::{GetRandomFlags, getrandom};
use rustix::thread::{CapabilitySet, capabilities};

use self::dirfd::{Dir, Entry, look};
pub use self::inspect::Published;
pub use self::layout::Layout;
use self::sys::{fchmod, fchown, fstat, fsync, mkdirat, openat, renameat, statat};
use crate::model::digest::DigestKey;
use crate::model::journal::{Journal, JournalError, sequence_of};
use crate::model::spool::{Spool, SpoolError};

const LOCK: &str = "..trimtab.lock";
const KEY: &str = "..trimtab.key";
const KEY_TEMPORARY: &str = "..trimtab.key.tmp";
const JOURNAL: &str = "..trimtab.json";
const JOURNAL_TEMPORARY: &str = "..trimtab.json.tmp";
const JOURNAL_BAD: &str = "..trimtab.json.bad";
/// The spool, for the moment that it has a name.
const SPOOL: &str = "..trimtab.spool";

/// What a crash can leave behind, besides generations.
const TEMPORARIES: [&str; 4] = [atomic::DATA_TEMPORARY, files::CURRENT_TEMPORARY, JOURNAL_TEMPORARY, KEY_TEMPORARY];

/// A journal is about 1 kB. What is longer is none.
const JOURNAL_LIMIT: usize = 1 << 20;

const SETGID: u32 = 0o2000;
const STICKY: u32 = 0o1000;

/// Where to write, and how readable.
#[derive(Clone, Debug)]
pub struct Config {
    /// `--output`. Its parents may be symlinks; it itself may not.
    pub output: PathBuf,
    /// `--layout`.
    pub layout: Layout,
    /// `--file-mode`: permissions of files that no secret went into. Bits beyond 0777 are ignored.
    pub file_mode: u32,
    /// `--secret-mode`: permissions of files that a secret went into. Bits beyond 0777 are ignored.
    pub secret_mode: u32,
}

/// What went wrong with the output directory.
///
/// From [`Output::open`] each is fatal (exit code 73). Later, what [`PublishError::rejected`] says is so is the inputs'
/// fault, and trying them again is of no use; everything else is retried.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// A system call failed. Retried; rejected where the file system refuses a name that the inputs ask for.
    #[error("cannot {doing} {}: {errno}{}", path.display(), remedy(*errno))]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        errno: Errno,
    },
    /// The output's parent cannot be opened. Fatal.
    #[error(
        "cannot create --output {}: its parent directory {} cannot be opened: {errno}; Trimtab creates the last \
         directory of the path alone: is the volume in this container's volumeMounts, and at this path?",
        path.display(), parent.display()
    )]
    Parent {
        /// `--output`.
        path: PathBuf,
        /// Its parent.
        parent: PathBuf,
        /// Why it failed.
        errno: Errno,
    },
    /// The output is a symlink, a file or a device. Fatal.
    #[error("--output {} is {what}, and must be a directory, named by its own path", path.display())]
    NotADirectory {
        /// `--output`.
        path: PathBuf,
        /// What it is.
        what: String,
    },
    /// The output is sticky. Fatal.
    #[error(
        "--output {} is a sticky directory (mode {mode:04o}), as the root of an emptyDir of medium Memory is: other \
         users could not follow its links (fs.protected_symlinks); name a directory in it, such as --output {}",
        path.display(), path.join("conf").display()
    )]
    Sticky {
        /// `--output`.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// `..data` is not ours. Fatal at start, retried later; it is never touched.
    #[error(
        "{} is {what}, which Trimtab did not make: --output must be a directory of its own, and neither a ConfigMap, \
         Secret, projected or downward API volume nor another program's output",
        path.display()
    )]
    ForeignData {
        /// The path of `..data`.
        path: PathBuf,
        /// What it is.
        what: String,
    },
    /// Another layout was published here. Fatal.
    #[error(
        "--output {} holds what --layout {other} has published ({name}), and is not changed to another layout: its \
         readers would see a part of it missing meanwhile; name another directory, or empty this one while nobody \
         reads it",
        path.display()
    )]
    OtherLayout {
        /// `--output`.
        path: PathBuf,
        /// By what that is seen.
        name: &'static str,
        /// That layout.
        other: &'static str,
    },
    /// What says which files are ours cannot be used. Fatal at start, retried later.
    #[error(
        "{} {what}: it says which files here are Trimtab's; if they can be done without, remove it, the directories \
         ..trimtab-* and those files, and start again",
        path.display()
    )]
    Record {
        /// Its path.
        path: PathBuf,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A name that the tree needs in the output is taken. Rejected.
    #[error(
        "{} is {what}, which Trimtab did not make and will not replace{}: move it away, or give the file another place \
         with --template SRC:DEST or --path",
        path.display(), and_more(*more)
    )]
    ForeignName {
        /// The first such name's path.
        path: PathBuf,
        /// What it is.
        what: String,
        /// How many more there are.
        more: usize,
    },
    /// Something in a generation's directory cannot have been published. The generation is not to be trusted.
    #[error("{} is {what}, which Trimtab did not publish", path.display())]
    Spoilt {
        /// Its path.
        path: PathBuf,
        /// What it is.
        what: String,
    },
    /// A generation cannot be what the caller takes it for: a fault of this program. Retried.
    #[error("the generation {name:?} cannot be {doing}: {reason}")]
    Generation {
        /// Its directory.
        name: String,
        /// What was to be done.
        doing: &'static str,
        /// Why it was not.
        reason: &'static str,
    },
    /// What is to be written could not be had. Retried.
    #[error(transparent)]
    Kept(#[from] SpoolError),
}

impl PublishError {
    /// Whether the inputs are at fault and are to be rejected; otherwise the effect is to be retried.
    #[must_use]
    pub fn rejected(&self) -> bool {
        matches!(self, Self::ForeignName { .. } | Self::Io { errno: Errno::NAMETOOLONG | Errno::ILSEQ, .. })
    }
}

/// What to do about an errno, as the end of a sentence.
fn remedy(errno: Errno) -> &'static str {
    match errno {
        Errno::NOSPC | Errno::DQUOT => {
            "; the volume is full: raise its size (emptyDir: sizeLimit; of medium Memory: also the containers' memory \
             limits), or publish less"
        }
        Errno::ROFS => "; it is mounted read-only: remove readOnly from this container's volumeMount",
        Errno::ACCESS | Errno::PERM => {
            "; this container's user may not: set the Pod's securityContext.fsGroup, so that the volume belongs to a \
             group of all containers, or runAsUser to the owner's number; a file system without symlinks needs \
             --layout files"
        }
        Errno::OPNOTSUPP => "; the file system cannot do this: if it has no symlinks, use --layout files",
        Errno::NAMETOOLONG | Errno::ILSEQ => {
            "; the file system refuses the name: choose another with --template SRC:DEST or --path"
        }
        Errno::LOOP => "; it is a symlink, which Trimtab did not make: remove it",
        Errno::NOENT => "; something removed it: if that was the whole output directory, restart this container",
        _ => "",
    }
}

fn and_more(more: usize) -> String {
    let mut text = String::new();
    if more > 0 {
        // Writing to a String cannot fail.
        let _ = write!(text, " (nor {more} more such)");
    }
    text
}

/// The output directory. All work goes by its descriptor, so that renaming or replacing a parent leads nowhere else.
#[derive(Debug)]
pub struct Output {
    dir: Dir,
    /// For messages, and for programs that are told where the candidate lies.
    path: PathBuf,
    layout: Layout,
    file_mode: Mode,
    secret_mode: Mode,
    /// Of generation directories and those below them.
    dir_mode: Mode,
    /// The group that files must have. `None` where this process can neither inherit nor give the output's.
    group: Option<Gid>,
    /// The output's own digest key, once it was needed.
    own_key: OnceLock<DigestKey>,
    /// What the `files` layout need not read again.
    memory: files::Memory,
    /// Where values are kept, once that was asked for.
    spool: OnceLock<Spool>,
}

/// While it lives, no other Trimtab works on the output. The kernel releases it with the process.
#[derive(Debug)]
#[must_use]
pub struct Lock {
    _file: OwnedFd,
}

/// What lay where the journal is expected.
#[derive(Debug, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "there is one, at start")]
pub enum Found {
    /// No journal.
    Nothing,
    /// A journal, to be believed.
    Journal(Journal),
    /// Something unreadable, renamed and not followed.
    SetAside {
        /// Why.
        reason: JournalError,
        /// Its new name in the output directory.
        name: String,
    },
}

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
        let dir = match existing(&path)? {
            Some(dir) => dir,
            None => create(&path)?,
        };
        let mut stat = checked(&dir, &path, config.layout)?;
        if stat.st_mode & SETGID == 0 && stat.st_uid == geteuid().as_raw() {
            let mode = Mode::from_raw_mode(stat.st_mode & 0o7777 | SETGID);
            fchmod(&dir, mode).map_err(io("set the setgid bit of --output"))?;
            // The kernel clears the bit without a word if we are not in the group.
            stat = fstat(&dir).map_err(io("stat --output"))?;
        }
        Self::of(dir, path, stat, config)
    }

    /// The output of a directory that was checked, and warnings.
    fn of(dir: Dir, path: PathBuf, stat: Stat, config: &Config) -> Result<(Self, Vec<String>), PublishError> {
        let io = |doing| {
            let path = path.clone();
            move |errno| PublishError::Io { doing, path, errno }
        };
        let mut warnings = Vec::new();
        let shown = path.display();
        let group = Gid::from_raw(stat.st_gid);
        let groups = getgroups().map_err(io("list this process's groups for"))?;
        let setgid = stat.st_mode & SETGID != 0;
        // Root in a container has often no capabilities at all.
        let may_give = capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::CHOWN));
        let group = (setgid || may_give || group == getegid() || groups.contains(&group)).then_some(group);
        if group.is_none() {
            warnings.push(format!(
                "--output {shown} has group {} and no setgid bit, and this process is not in that group: files that \
                 hold secrets will be readable by group {} alone; set the Pod's securityContext.fsGroup",
                stat.st_gid,
                getegid().as_raw()
            ));
        }
        if stat.st_mode & 0o050 != 0o050 {
            warnings
                .push(format!("--output {shown} has mode {:04o}: no other user can read it", stat.st_mode & 0o7777));
        }
        if config.layout == Layout::Atomic && is_mount_point(&dir).map_err(io("stat --output"))? {
            warnings.push(format!(
                "--output {shown} is the root of a volume, where other things may lie and whose mode and group are not \
                 Trimtab's; better name a directory in it, such as {}",
                path.join("conf").display()
            ));
        }

        let output = Self {
            dir,
            path,
            layout: config.layout,
            file_mode: Mode::from_raw_mode(config.file_mode & 0o777),
            secret_mode: Mode::from_raw_mode(config.secret_mode & 0o777),
            dir_mode: Mode::from_raw_mode(0o755 | stat.st_mode & SETGID),
            group,
            own_key: OnceLock::new(),
            memory: files::Memory::default(),
            spool: OnceLock::new(),
        };
        Ok((output, warnings))
    }

    /// Takes the lock; `None` if another process holds it.
    pub fn try_lock(&self) -> Result<Option<Lock>, PublishError> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(0o600);
        let file = openat(&self.dir, LOCK, flags, mode).map_err(|errno| self.io("open", LOCK, errno))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Lock { _file: file })),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(errno) => Err(self.io("lock", LOCK, errno)),
        }
    }

    /// The key of published digests, made on first use.
    ///
    /// One that is not 32 bytes in a regular file of this user is replaced: digests change, and a reload too many is
    /// all that follows. One that is merely too readable is kept, and its mode narrowed: the kubelet makes every file
    /// of a persistent volume readable and writable by fsGroup at each mount (`pkg/volume/volume_linux.go`).
    pub fn digest_key(&self) -> Result<DigestKey, PublishError> {
        if let Some((bytes, file)) = self.found_key()? {
            let mode = Mode::from_raw_mode(0o600);
            dirfd::settle(&file, None, mode).map_err(|errno| self.io("set the mode of", KEY, errno))?;
            return Ok(DigestKey::new(bytes));
        }
        let mut bytes = [0; 32];
        // Up to 256 bytes are never cut short (getrandom(2)).
        getrandom(&mut bytes, GetRandomFlags::empty()).map_err(|errno| self.io("get random bytes for", KEY, errno))?;
        self.dir.replace(KEY, KEY_TEMPORARY, &bytes).map_err(|errno| self.io("write", KEY, errno))?;
        Ok(DigestKey::new(bytes))
    }

    /// The key that is there, if it is one of this user's.
    fn found_key(&self) -> Result<Option<([u8; 32], OwnedFd)>, PublishError> {
        let found = match self.dir.read(KEY, 32) {
            Err(Errno::NOENT) => None,
            other => other.map_err(|errno| self.io("read", KEY, errno))?,
        };
        let Some((bytes, file)) = found else { return Ok(None) };
        let ours = fstat(&file).map_err(|errno| self.io("stat", KEY, errno))?.st_uid == geteuid().as_raw();
        Ok(<[u8; 32]>::try_from(bytes).ok().filter(|_| ours).map(|bytes| (bytes, file)))
    }

    /// A spool on the output's volume: 0600, and without a name from the start, where the file system can do that. From
    /// then on it also keeps what [`Output::published`] reads.
    pub fn spool(&self) -> Result<Spool, PublishError> {
        if let Some(spool) = self.spool.get() {
            return Ok(spool.clone());
        }
        let mode = Mode::from_raw_mode(0o600);
        // With O_EXCL nobody can give it a name later.
        let nameless = OFlags::RDWR | OFlags::TMPFILE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = match openat(&self.dir, ".", nameless, mode) {
            // The last two come from kernels and file systems that do not know the flag, and see a directory.
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::NOENT) => {
                let named = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                // One that a kill has left.
                let removed = self.dir.remove(SPOOL);
                let opened = removed.and_then(|()| openat(&self.dir, SPOOL, named, mode));
                opened.and_then(|file| self.dir.remove(SPOOL).map(|()| file))
            }
            opened => opened,
        };
        let file = file.map_err(|errno| self.io("make the file that keeps values, without a name, in", "", errno))?;
        Ok(self.spool.get_or_init(|| Spool::new(file.into())).clone())
    }

    /// Reads the journal. One that cannot be believed is renamed, in the place of an older such one.
    pub fn read_journal(&self) -> Result<Found, PublishError> {
        let read = match self.dir.read(JOURNAL, JOURNAL_LIMIT) {
            Err(Errno::NOENT) => return Ok(Found::Nothing),
            other => other.map_err(|errno| self.io("read", JOURNAL, errno))?,
        };
        let parsed = match read {
            Some((bytes, _)) => Journal::parse(&bytes),
            None => Err(JournalError::Malformed { line: 0, column: 0 }),
        };
        match parsed {
            Ok(journal) => Ok(Found::Journal(journal)),
            Err(reason) => {
                let aside = self.dir.remove(JOURNAL_BAD).and_then(|()| {
                    renameat(&self.dir, JOURNAL, &self.dir, JOURNAL_BAD)?;
                    self.dir.sync()
                });
                aside.map_err(|errno| self.io("set aside", JOURNAL, errno))?;
                Ok(Found::SetAside { reason, name: JOURNAL_BAD.to_owned() })
            }
        }
    }

    /// Replaces the journal; on return it is on the disk.
    pub fn write_journal(&self, journal: &Journal) -> Result<(), PublishError> {
        self.dir
            .replace(JOURNAL, JOURNAL_TEMPORARY, &journal.to_bytes())
            .map_err(|errno| self.io("write", JOURNAL, errno))
    }

    fn data(&self) -> Result<Option<String>, PublishError> {
        data(&self.dir, &self.path)
    }

    fn io(&self, doing: &'static str, name: &str, errno: Errno) -> PublishError {
        PublishError::Io { doing, path: self.path.join(name), errno }
    }
}

/// Without trailing slashes, which would make open(2) follow a symlink after all.
fn own_path(output: &Path) -> PathBuf {
    output.components().collect()
}

/// Opens the output directory, if it is there.
fn existing(path: &Path) -> Result<Option<Dir>, PublishError> {
    let io = |errno| PublishError::Io { doing: "open --output", path: path.to_owned(), errno };
    match Dir::open(CWD, path) {
        Ok(dir) => Ok(Some(dir)),
        Err(Errno::NOENT) => Ok(None),
        Err(Errno::NOTDIR | Errno::LOOP) => {
            let what = look(CWD, path).map_err(io)?.describe();
            Err(PublishError::NotADirectory { path: path.to_owned(), what })
        }
        Err(errno) => Err(io(errno)),
    }
}

/// Refuses an output that is not ours, has another layout, or is sticky: in the `files` layout there are no links that
/// others would have to follow.
fn checked(dir: &Dir, path: &Path, layout: Layout) -> Result<Stat, PublishError> {
    // First of all, since a volume of the kubelet's may also be read-only or sticky.
    let atomic = data(dir, path)?.is_some();
    let files = files::is_laid_out(dir).map_err(|errno| PublishError::Io {
        doing: "read",
        path: path.join(files::CURRENT),
        errno,
    })?;
    if (atomic && layout == Layout::Files) || (files && layout == Layout::Atomic) {
        let (name, other) = if atomic { (atomic::DATA, "atomic") } else { (files::CURRENT, "files") };
        return Err(PublishError::OtherLayout { path: path.to_owned(), name, other });
    }
    let stat = fstat(dir).map_err(|errno| PublishError::Io { doing: "stat --output", path: path.to_owned(), errno })?;
    if stat.st_mode & STICKY != 0 && layout == Layout::Atomic {
        return Err(PublishError::Sticky { path: path.to_owned(), mode: stat.st_mode & 0o7777 });
    }
    Ok(stat)
}

/// Opens the directory in which the output directory is, or is to be.
fn above(path: &Path) -> Result<OwnedFd, PublishError> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    openat(CWD, parent, flags, Mode::empty()).map_err(|errno| PublishError::Parent {
        path: path.to_owned(),
        parent: parent.to_owned(),
        errno,
    })
}

/// Makes the output directory with its parent's group.
fn create(path: &Path) -> Result<Dir, PublishError> {
    let above = above(path)?;
    let create = || {
        let name = path.file_name().unwrap_or_default();
        match mkdirat(&above, name, Mode::from_raw_mode(0o755)) {
            // Another Trimtab was quicker, and the lock will tell who works here.
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno),
        }
        let dir = Dir::open(&above, name)?;
        let group = Gid::from_raw(fstat(&above)?.st_gid);
        if fstat(&dir)?.st_gid != group.as_raw() {
            match fchown(&dir, None, Some(group)) {
                // Only a member of the group may; our own has to do.
                Ok(()) | Err(Errno::PERM) => {}
                Err(errno) => return Err(errno),
            }
        }
        let mode = fstat(&dir)?.st_mode;
        if mode & 0o777 != 0o755 {
            // The umask was in the way.
            fchmod(&dir, Mode::from_raw_mode(0o755 | SETGID))?;
        }
        fsync(&above)?;
        Ok(dir)
    };
    create().map_err(|errno| PublishError::Io { doing: "create --output", path: path.to_owned(), errno })
}

/// What `..data` names: a directory of our pattern, which may be missing. Anything else is an error.
fn data(dir: &Dir, path: &Path) -> Result<Option<String>, PublishError> {
    let path = path.join(atomic::DATA);
    let entry = match look(dir, atomic::DATA) {
        Ok(entry) => entry,
        Err(errno) => return Err(PublishError::Io { doing: "read", path, errno }),
    };
    if let Entry::Link(target) = &entry
        && let Ok(name) = target.to_str()
        && sequence_of(name).is_some()
    {
        return Ok(Some(name.to_owned()));
    }
    if entry == Entry::Missing { Ok(None) } else { Err(PublishError::ForeignData { path, what: entry.describe() }) }
}

fn is_mount_point(dir: &Dir) -> Result<bool, Errno> {
    // The attribute (Linux 5.8) also sees a bind mount within one file system, which device numbers do not.
    if let Ok(found) = statx(dir, "", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS)
        && found.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT)
    {
        return Ok(found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT));
    }
    let (here, above) = (fstat(dir)?, statat(dir, "..", AtFlags::empty())?);
    Ok(here.st_dev != above.st_dev || here.st_ino == above.st_ino)
}
