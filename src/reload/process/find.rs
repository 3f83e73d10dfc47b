//! Choosing the one process that is meant, by name, command line or pid file.

use std::fmt;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nix::unistd::{geteuid, getpid};
use regex_lite::Regex;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::clock::{since_boot, since_boot_at};
use super::table::{ProcStatus, Process, is_below, scan};
use super::target::Target;
use crate::os::file::read_regular;

/// Which process is meant. Every part that is given must match.
#[derive(Clone, Debug, Default)]
pub struct Selector {
    /// `--process`: the base name of the executable if `/proc/PID/exe` is readable; else comm (its 15 bytes) or the
    /// base name of `argv[0]`. Another user's `exe` is not readable; some programs rename their comm (node does).
    pub name: Option<String>,
    /// `--process-args`: found anywhere in the command line, its arguments joined by single spaces.
    pub args: Option<Regex>,
    pub pid_file: Option<PathBuf>,
}

impl Selector {
    /// Whether any part is given.
    #[must_use]
    pub fn is_given(&self) -> bool {
        self.name.is_some() || self.args.is_some() || self.pid_file.is_some()
    }
}

impl fmt::Display for Selector {
    /// The flags as they were given, for messages.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut gap = "";
        if let Some(name) = &self.name {
            write!(f, "--process {name}")?;
            gap = " ";
        }
        if let Some(args) = &self.args {
            write!(f, "{gap}--process-args '{args}'")?;
            gap = " ";
        }
        if let Some(path) = &self.pid_file {
            write!(f, "{gap}--pid-file {}", path.display())?;
        }
        Ok(())
    }
}

/// Why no one process was found. Every variant is retried: the main container may not be up yet.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    /// Trimtab sees its own container only.
    #[error(
        "{selector}: no other container's processes are visible here: set shareProcessNamespace: true in the Pod spec, \
         or reload by --reload-url"
    )]
    NotShared { selector: String },
    /// PID 1 matches, and is never signalled.
    #[error(
        "{selector}: PID 1 ({name}) matches, and PID 1 is never taken: with shareProcessNamespace: true in the Pod spec it \
         is the Pod's pause process, and the main process has another number (outside of Kubernetes, an init does the \
         same: docker run --init); or reload by --reload-url"
    )]
    First { selector: String, name: String },
    /// `/proc` does not show other users' processes.
    #[error(
        "{selector}: /proc is mounted with hidepid, which hides other users' processes from user {user}: run both \
         containers as the same user (securityContext.runAsUser), mount /proc without hidepid, or reload by --reload-url"
    )]
    Hidden { selector: String, user: u32 },
    /// Nothing matches.
    #[error("{selector}: no process matches; {hint}")]
    Missing {
        selector: String,
        /// What there is instead.
        hint: String,
    },
    /// More than one matches. None of them gets a signal.
    #[error(
        "{selector}: matches {matches}, none of which is the other's child, so none is signalled: distinguish them by \
         --process-args or --pid-file"
    )]
    Ambiguous {
        selector: String,
        /// `PID 7 (nginx), PID 9 (nginx)`.
        matches: String,
    },
    /// The pid file cannot be believed, or not yet.
    #[error("--pid-file {}: {reason}", path.display())]
    PidFile {
        path: PathBuf,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// The kernel refuses what must not fail.
    #[error("{what}: {source}; pidfds need Linux 5.3 and a seccomp profile that allows them, as RuntimeDefault does")]
    Io { what: &'static str, source: io::Error },
}

impl FindError {
    pub(super) fn table(source: io::Error) -> Self {
        Self::Io { what: "/proc", source }
    }
}

/// Finds the one process that is meant, and holds it.
pub fn find(selector: &Selector) -> Result<Target, FindError> {
    find_as(selector, getpid().as_raw())
}

/// `me`: the pid that is taken for Trimtab's own, so that tests can look for their own children.
pub(super) fn find_as(selector: &Selector, me: i32) -> Result<Target, FindError> {
    let processes = scan().map_err(FindError::table)?;
    let flags = || selector.to_string();
    // Also the sidecar that a `trimtab check` runs beside: its command line holds the regex of --process-args.
    let own = fs::read_link("/proc/self/exe").ok();
    let own = own.as_deref().and_then(Path::file_name).and_then(|name| name.to_str());
    let own = own.filter(|own| selector.name.as_deref() != Some(own));
    let is_own = |process: &Process| own.is_some_and(|own| process.has_name(own));
    let others: Vec<&Process> = processes
        .values()
        .filter(|process| process.pid > 1 && !process.kernel && !is_below(&processes, process.pid, me))
        .filter(|process| !is_own(process))
        .collect();
    let first = processes.get(&1);
    let paused = first.is_some_and(|first| first.comm == b"pause");
    // What exists always is not to be seen.
    let hidden = || FindError::Hidden { selector: flags(), user: geteuid().as_raw() };
    if let Some(first) = first
        && me != 1
        && !paused
        && !is_own(first)
        && (selector.name.is_some() || selector.args.is_some())
        && first.matches(selector)
    {
        return Err(FindError::First { selector: flags(), name: first.name() });
    }
    if first.is_none() && others.is_empty() {
        return Err(hidden());
    }
    if me == 1 || first.is_some_and(is_own) || (others.is_empty() && !paused) {
        return Err(FindError::NotShared { selector: flags() });
    }
    let claimed = selector.pid_file.as_deref().map(read_pid_file).transpose()?;
    let mut matches = others.clone();
    matches.retain(|process| {
        claimed.as_ref().is_none_or(|claim| claim.pid == process.pid) && process.is_alive() && process.matches(selector)
    });
    let pids: Vec<i32> = matches.iter().map(|process| process.pid).collect();
    matches.retain(|process| !pids.iter().any(|&pid| pid != process.pid && is_below(&processes, process.pid, pid)));
    let found = match matches.as_slice() {
        [one] => *one,
        [] if first.is_none() => return Err(hidden()),
        [] => return Err(FindError::Missing { selector: flags(), hint: hint(selector, claimed.as_ref(), &others) }),
        several => {
            let list: Vec<String> = several
                .iter()
                .take(LISTED)
                .map(|process| format!("PID {} ({})", process.pid, process.name()))
                .collect();
            let more = if several.len() > LISTED { " and more" } else { "" };
            return Err(FindError::Ambiguous { selector: flags(), matches: list.join(", ") + more });
        }
    };
    if let Some(claim) = &claimed {
        claim.check_age(found)?;
    }
    let gone = || FindError::Missing { selector: flags(), hint: format!("PID {} has just exited", found.pid) };
    let pidfd = match Pid::from_raw(found.pid).map(|pid| pidfd_open(pid, PidfdFlags::empty())) {
        Some(Ok(pidfd)) => pidfd,
        None | Some(Err(rustix::io::Errno::SRCH)) => return Err(gone()),
        Some(Err(errno)) => return Err(FindError::Io { what: "pidfd_open", source: errno.into() }),
    };
    hold(selector, found, pidfd).ok_or_else(gone)
}

/// Makes a target of a pidfd, if the process that it was opened for is still the one that was chosen.
pub(super) fn hold(selector: &Selector, chosen: &Process, pidfd: OwnedFd) -> Option<Target> {
    let again = Process::read(chosen.pid)?;
    let status = ProcStatus::parse(&fs::read(format!("/proc/{}/status", chosen.pid)).ok()?)?;
    let same = again.start_ticks == chosen.start_ticks && again.is_alive() && again.matches(selector);
    let Process { pid, start_ticks, .. } = again;
    same.then(|| Target { pid, name: again.name(), start_ticks, uid: status.uid, pidfd })
}

/// How many processes a message names at most.
const LISTED: usize = 16;

/// What an operator needs to know when nothing matched: names alone, since arguments may hold secrets.
fn hint(selector: &Selector, claimed: Option<&PidFile>, others: &[&Process]) -> String {
    if let Some(PidFile { pid, path, .. }) = claimed {
        let path = path.display();
        return match others.iter().find(|process| process.pid == *pid) {
            Some(process) if !process.is_alive() => format!("PID {pid} of {path} has exited"),
            Some(process) => format!("PID {pid} of {path} is {}", process.name()),
            None => format!("PID {pid} of {path} does not exist, or is PID 1 or one of Trimtab's own"),
        };
    }
    if let Some(name) = &selector.name {
        if let Some(dead) = others.iter().find(|process| !process.is_alive() && process.has_comm(name)) {
            return format!("PID {} ({}) has exited, and its parent has not noticed yet", dead.pid, dead.name());
        }
        if let Some(other) = others.iter().find(|process| process.has_comm(name) && !process.has_name(name)) {
            let real = other.name();
            return format!("PID {} calls itself {name} but its executable is {real}: use --process {real}", other.pid);
        }
    }
    let mut names: Vec<String> = others.iter().filter(|process| process.is_alive()).map(|other| other.name()).collect();
    names.sort_unstable();
    names.dedup();
    if names.is_empty() {
        return "no other process is running yet".to_owned();
    }
    let more = if names.len() > LISTED { " and more" } else { "" };
    names.truncate(LISTED);
    format!("running are {}{more}", names.join(", "))
}

/// The longest pid file, in bytes.
const PID_FILE: u64 = 4096;

/// What a pid file says.
struct PidFile {
    path: PathBuf,
    pid: i32,
    written: SystemTime,
}

/// A pid in digits alone.
pub(super) fn decimal(text: &[u8]) -> Option<i32> {
    let digits = text.iter().all(u8::is_ascii_digit);
    str::from_utf8(text).ok().filter(|_| digits)?.parse().ok().filter(|&pid| pid > 0)
}

fn read_pid_file(path: &Path) -> Result<PidFile, FindError> {
    let fail = |reason: String| FindError::PidFile { path: path.to_owned(), reason };
    let (text, metadata) = read_regular(path, PID_FILE).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => fail(
            "there is none (yet); the directory must be a volume that both containers mount, at this path here".into(),
        ),
        io::ErrorKind::PermissionDenied => fail(format!("user {} may not read it", geteuid().as_raw())),
        _ => fail(error.to_string()),
    })?;
    // What follows is the program's own affair: postmaster.pid has seven more lines.
    let text = text.trim_ascii_start();
    let text = text.split(|&byte| byte == b'\n').next().unwrap_or_default().trim_ascii_end();
    if text.is_empty() {
        return Err(fail("it is empty (yet)".into()));
    }
    let pid = decimal(text).ok_or_else(|| fail("its first line is not one decimal number, and nothing else".into()))?;
    if pid == 1 {
        return Err(fail(
            "it names PID 1, which is never taken, as it is the Pod's pause process: the file was written without \
             shareProcessNamespace: true, or is another Pod's"
                .into(),
        ));
    }
    let written = metadata.modified().map_err(|error| fail(error.to_string()))?;
    Ok(PidFile { path: path.to_owned(), pid, written })
}

impl PidFile {
    /// A process that started after the file was written is not the one that the file is about: the pid was given out
    /// again. Start times are since boot and file times are on the wall clock, with grains of 10 and 4 ms, and the wall
    /// clock is corrected now and then: hence the second of tolerance. In that second a freshly given out pid can pass;
    /// `--process` beside `--pid-file` rules that out.
    fn check_age(&self, process: &Process) -> Result<(), FindError> {
        let age = since_boot().saturating_sub(since_boot_at(process.start_ticks));
        let limit = self.written + Duration::from_secs(1);
        if SystemTime::now().checked_sub(age).is_some_and(|started| started > limit) {
            let reason = format!(
                "it is stale: PID {} ({}) started after it was written. If the node's clock was set since, restart the \
                 main process or use --process",
                process.pid,
                process.name()
            );
            return Err(FindError::PidFile { path: self.path.clone(), reason });
        }
        Ok(())
    }
}
