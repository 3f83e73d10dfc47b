//! What can go wrong with the output directory, and what to do about it.

use std::io;
use std::path::PathBuf;

use nix::errno::Errno;
use nix::sys::stat::Mode;

use crate::model::spool::SpoolError;

/// What went wrong with the output directory.
///
/// From [`super::Output::open`] each is fatal (exit code 73). Later, [`PublishError::rejected`] says which are the
/// inputs' fault, so that trying them again is of no use; all others are retried.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// A system call failed. Retried; rejected where the file system refuses a name that the inputs ask for.
    #[error("cannot {doing} {}: {}{}", path.display(), io::Error::from(*errno), remedy(*errno))]
    Io { doing: &'static str, path: PathBuf, errno: Errno },
    /// Fatal.
    #[error(
        "cannot create {flag} {}: its parent directory {} cannot be opened: {}; Trimtab creates the last \
         directory of the path alone: is the volume in this container's volumeMounts, and at this path?",
        path.display(), parent.display(), io::Error::from(*errno)
    )]
    Parent { flag: &'static str, path: PathBuf, parent: PathBuf, errno: Errno },
    /// The output directory, or what is Trimtab's own, is gone. Fatal: the next start makes it anew.
    #[error("{} was removed while Trimtab was running; a start makes it anew", path.display())]
    Removed { path: PathBuf },
    /// It is a symlink, a file or a device. Fatal.
    #[error("{flag} {} is {what}, and must be a directory, named by its own path", path.display())]
    NotADirectory { flag: &'static str, path: PathBuf, what: String },
    /// What is kept apart is on another mount, and single files cannot be renamed from there. Fatal.
    #[error(
        "--state-dir {} is not on the mount of --output {}, and --layout files renames each file from the one to the \
         other: give this container one volumeMount of the volume, without subPath, and name two directories in it",
        state.display(), output.display()
    )]
    OtherMount { state: PathBuf, output: PathBuf },
    /// Fatal.
    #[error(
        "--output {} is a sticky directory (mode {mode:04o}), as the root of an emptyDir of medium Memory is: other \
         users could not follow its links (fs.protected_symlinks); name a directory in it, such as --output {}",
        path.display(), path.join("conf").display()
    )]
    Sticky { path: PathBuf, mode: u32 },
    /// Fatal.
    #[error(
        "{}, one of --folders, is or was the --output of a Trimtab: name another directory, or remove ..trimtab and ..data \
         in it if no other Trimtab needs them",
        path.display()
    )]
    OtherOutput { path: PathBuf },
    /// What is in the output cannot be moved to where it is to be. Fatal.
    #[error(
        "{} holds what Trimtab remembers of this output, and --state-dir {} is on another mount, where it cannot be moved \
         to: remove it (the main process is notified once more than it needs to be), or leave --state-dir away",
        own.display(), state.display()
    )]
    CannotMove { state: PathBuf, own: PathBuf },
    /// `..data` is not ours. Fatal at start, retried later; it is never touched.
    #[error(
        "{} is {what}, which Trimtab did not make: --output must be a directory of its own, and neither a ConfigMap, \
         Secret, projected or downward API volume nor another program's output",
        path.display()
    )]
    ForeignData { path: PathBuf, what: String },
    /// What is at the place of Trimtab's own directory is none. Fatal; it is never touched.
    #[error("{} is {what}, where Trimtab keeps its journal in a directory: move it away, or name another --output",
        path.display())]
    ForeignState { path: PathBuf, what: String },
    /// Another layout was published here, as `shows` shows. Fatal.
    #[error(
        "--output {} holds what --layout {other} has published ({}), and is not changed to another layout: its \
         readers would see a part of it missing meanwhile; name another directory, or empty this one while nobody \
         reads it",
        path.display(), shows.display()
    )]
    OtherLayout { path: PathBuf, shows: PathBuf, other: &'static str },
    /// What says which files are ours cannot be used. Fatal at start, retried later.
    #[error(
        "{} {what}: it says which files here are Trimtab's; if they can be done without, remove it, the directories \
         ..trimtab-* beside it and those files, and start again",
        path.display()
    )]
    Record { path: PathBuf, what: &'static str },
    /// A name that the tree needs in the output is taken, and `more` others. Rejected.
    #[error(
        "{} is {what}, which Trimtab did not make and will not replace{}: move it away, or give the file another place \
         with --template SRC:DEST or --path{}",
        path.display(), and_more(*more), without_state(*first)
    )]
    ForeignName {
        path: PathBuf,
        what: String,
        more: usize,
        /// Whether it is not known that anything was published here.
        first: bool,
    },
    /// A generation's directory holds what cannot have been published. The generation is not to be trusted.
    #[error("{} is {what}, which Trimtab did not publish", path.display())]
    Spoilt { path: PathBuf, what: String },
    /// A generation cannot be what the caller takes it for: a fault of this program. Retried.
    #[error("the generation {name:?} cannot be {doing}: {reason}")]
    Generation { name: String, doing: &'static str, reason: &'static str },
    /// The file system would show a secret to more users than its mode says. Nothing of it was written. Retried.
    #[error(
        "{} holds a secret and is not written: its file system keeps no modes, as SMB, FAT and some CSI drivers, and \
         gives it {:04o} instead of --secret-mode {:04o}; use an emptyDir, set the mode in the volume's mountOptions \
         (file_mode, umask), or take what there is with --secret-mode {:04o}",
        path.display(), found.bits(), mode.bits(), found.bits()
    )]
    Exposed { path: PathBuf, mode: Mode, found: Mode },
    /// What is to be written cannot be read, or is not what it was. Retried.
    #[error("{origin}: {error}")]
    Source { origin: String, error: SpoolError },
    /// What was kept cannot be read. Retried.
    #[error(transparent)]
    Kept(#[from] SpoolError),
}

impl PublishError {
    /// Whether the inputs are at fault and are to be rejected; otherwise the effect is to be retried.
    #[must_use]
    pub fn rejected(&self) -> bool {
        matches!(self, Self::ForeignName { .. } | Self::Io { errno: Errno::ENAMETOOLONG | Errno::EILSEQ, .. })
    }

    /// Whether the inputs are the reason, and not the volume.
    #[must_use]
    pub fn is_of_the_inputs(&self) -> bool {
        self.rejected() || matches!(self, Self::Source { error: SpoolError::Changed, .. })
    }
}

/// What to do about an errno, as the end of a sentence.
fn remedy(errno: Errno) -> &'static str {
    match errno {
        Errno::ENOSPC | Errno::EDQUOT => {
            "; the volume is full: raise its size (emptyDir: sizeLimit; of medium Memory: also the containers' memory \
             limits), or publish less"
        }
        Errno::EROFS => "; it is mounted read-only: remove readOnly from this container's volumeMount",
        Errno::EACCES | Errno::EPERM => {
            "; this container's user may not: set the Pod's securityContext.fsGroup, so that the volume belongs to a \
             group of all containers, or runAsUser to the owner's number; a file system without symlinks needs \
             --layout files"
        }
        Errno::EOPNOTSUPP => "; the file system cannot do this: if it has no symlinks, use --layout files",
        Errno::ENAMETOOLONG | Errno::EILSEQ => {
            "; the file system refuses the name: choose another with --template SRC:DEST or --path"
        }
        Errno::EXDEV => {
            "; the two are on different mounts: a volume that is mounted twice, or by subPath, is two mounts"
        }
        Errno::ELOOP => "; it is a symlink, which Trimtab did not make: remove it",
        Errno::ENOENT => "; something removed it",
        _ => "",
    }
}

fn without_state(first: bool) -> &'static str {
    if first { "; if it was published with --state-dir, give that again" } else { "" }
}

fn and_more(more: usize) -> String {
    if more == 0 { String::new() } else { format!(" (nor {more} more such)") }
}
