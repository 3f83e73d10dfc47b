//! The main process: found by name, command line or pid file, checked, held by a pidfd, and signalled through it.
//!
//! A pid is a number that the kernel gives out again; a pidfd is one process for ever. So the order is: choose among
//! `/proc`, open a pidfd, read the identity (start time, name) again. If it is unchanged, the pidfd is of the process
//! that was chosen, and whatever happens to the number later, the signal reaches that process or nobody.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::{self, Metadata, OpenOptions};
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use regex_lite::Regex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal as Raw, geteuid, getpid, pidfd_open, pidfd_send_signal, test_kill_process,
};
use rustix::time::{ClockId, clock_gettime};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::model::journal::Moment;

/// A signal that may tell a process to reload. Read from `SIGHUP`, `HUP`, `hup` or `1`; prints as `SIGHUP`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Signal {
    name: &'static str,
    raw: Raw,
}

/// Every signal that can be caught, by signal(7). Real-time signals are not among them: rustix cannot name them safely.
const SIGNALS: &[(&str, Raw)] = &[
    ("SIGHUP", Raw::HUP),
    ("SIGINT", Raw::INT),
    ("SIGQUIT", Raw::QUIT),
    ("SIGILL", Raw::ILL),
    ("SIGTRAP", Raw::TRAP),
    ("SIGABRT", Raw::ABORT),
    ("SIGBUS", Raw::BUS),
    ("SIGFPE", Raw::FPE),
    ("SIGUSR1", Raw::USR1),
    ("SIGSEGV", Raw::SEGV),
    ("SIGUSR2", Raw::USR2),
    ("SIGPIPE", Raw::PIPE),
    ("SIGALRM", Raw::ALARM),
    ("SIGTERM", Raw::TERM),
    ("SIGCHLD", Raw::CHILD),
    ("SIGCONT", Raw::CONT),
    ("SIGTSTP", Raw::TSTP),
    ("SIGTTIN", Raw::TTIN),
    ("SIGTTOU", Raw::TTOU),
    ("SIGURG", Raw::URG),
    ("SIGXCPU", Raw::XCPU),
    ("SIGXFSZ", Raw::XFSZ),
    ("SIGVTALRM", Raw::VTALARM),
    ("SIGPROF", Raw::PROF),
    ("SIGWINCH", Raw::WINCH),
    ("SIGIO", Raw::IO),
    ("SIGPWR", Raw::POWER),
    ("SIGSYS", Raw::SYS),
];

/// Why a text is no [`Signal`]. Fatal: it comes from the command line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseSignalError {
    /// No process can handle it, so it cannot mean 'reload'.
    #[error("{0} cannot be handled by any process, so it never makes one reload; SIGTERM ends a process in good order")]
    Uncatchable(&'static str),
    /// There is none of this name or number.
    #[error(
        "not a signal: give a name such as SIGHUP, HUP or USR1, or its number; real-time signals are not supported"
    )]
    Unknown,
}

impl Signal {
    /// Whether a process that does not handle it is spared: TERM, INT and QUIT are sent to end a process, and do so
    /// with or without a handler. Any other signal that nobody handles kills, stops, or is lost.
    fn needs_handler(self) -> bool {
        !self.ends()
    }

    /// Whether it is sent to end a process: TERM, INT or QUIT. Another one is expected in its place.
    #[must_use]
    pub fn ends(self) -> bool {
        [Raw::TERM, Raw::INT, Raw::QUIT].contains(&self.raw)
    }
}

impl FromStr for Signal {
    type Err = ParseSignalError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let upper = text.trim().to_ascii_uppercase();
        let bare = upper.strip_prefix("SIG").unwrap_or(&upper);
        let number = bare.parse::<i32>().ok();
        let is = |name: &str, raw: Raw| name.strip_prefix("SIG") == Some(bare) || number == Some(raw.as_raw());
        for (name, raw) in [("SIGKILL", Raw::KILL), ("SIGSTOP", Raw::STOP)] {
            if is(name, raw) {
                return Err(ParseSignalError::Uncatchable(name));
            }
        }
        let found = SIGNALS.iter().find(|(name, raw)| is(name, *raw));
        found.map(|&(name, raw)| Self { name, raw }).ok_or(ParseSignalError::Unknown)
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl fmt::Debug for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// Which process is meant. Every part that is given must match.
#[derive(Clone, Debug, Default)]
pub struct Selector {
    /// `--process`: the base name of the executable if `/proc/PID/exe` is readable; else comm (its 15 bytes) or the
    /// base name of `argv[0]`. Another user's `exe` is not readable; some programs rename their comm (node does).
    pub name: Option<String>,
    /// `--process-args`: found anywhere in the command line, its arguments joined by single spaces.
    pub args: Option<Regex>,
    /// `--pid-file`.
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
    NotShared {
        /// The flags.
        selector: String,
    },
    /// Nothing matches.
    #[error("{selector}: no process matches; {hint}")]
    Missing {
        /// The flags.
        selector: String,
        /// What there is instead.
        hint: String,
    },
    /// More than one matches. None of them gets a signal.
    #[error(
        "{selector}: matches {matches}, none of which is the other's child, so none is signalled: tell them apart with \
         --process-args or --pid-file"
    )]
    Ambiguous {
        /// The flags.
        selector: String,
        /// `PID 7 (nginx), PID 9 (nginx)`.
        matches: String,
    },
    /// The pid file cannot be believed, or not yet.
    #[error("--pid-file {}: {reason}", path.display())]
    PidFile {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// The kernel refuses what must not fail.
    #[error("{what}: {source}; pidfds need Linux 5.3 and a seccomp profile that allows them, as RuntimeDefault does")]
    Io {
        /// The call or path.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// Why a signal was not sent. Every variant is retried.
#[derive(Debug, thiserror::Error)]
pub enum SignalError {
    /// The signal would kill the process, or be lost on it.
    #[error(
        "PID {pid} ({name}) does not handle {signal}, which would end it or be lost: it may be starting, so it is asked \
         again. If it never handles {signal}, choose another --signal, or use --reload-url or --reload-exec"
    )]
    NotHandling {
        /// The target.
        pid: i32,
        /// Its name.
        name: String,
        /// The signal.
        signal: Signal,
    },
    /// EPERM.
    #[error(
        "PID {pid} ({name}) runs as user {theirs}, Trimtab as user {ours}, and the kernel refuses {signal} (EPERM): {remedy}"
    )]
    Forbidden {
        /// The target.
        pid: i32,
        /// Its name.
        name: String,
        /// The signal.
        signal: Signal,
        /// Its real user.
        theirs: u32,
        /// Our effective user.
        ours: u32,
        /// What to do.
        remedy: &'static str,
    },
    /// It has exited since it was found.
    #[error("PID {pid} ({name}) has exited")]
    Gone {
        /// The target.
        pid: i32,
        /// Its name.
        name: String,
    },
    /// Anything else.
    #[error("{signal} to PID {pid} ({name}): {source}")]
    Io {
        /// The target.
        pid: i32,
        /// Its name.
        name: String,
        /// The signal.
        signal: Signal,
        /// Why.
        source: io::Error,
    },
}

/// A process that was found and is held: its pidfd keeps meaning it when the pid is given out again.
#[derive(Debug)]
pub struct Target {
    /// Its pid, for messages.
    pub pid: i32,
    /// The base name of its executable, or its comm, fit for printing.
    pub name: String,
    /// When it started: field 22 of `/proc/PID/stat`, in clock ticks since boot.
    pub start_ticks: u64,
    /// Its real user.
    pub uid: u32,
    pidfd: OwnedFd,
}

impl Target {
    /// Sends a signal; one that a process must handle (all but TERM, INT, QUIT) only if this one does.
    pub fn signal(&self, signal: Signal) -> Result<(), SignalError> {
        self.handles(signal)?;
        let (pid, name) = (self.pid, self.name.clone());
        // A signal to a zombie succeeds, and reaches nobody.
        if !self.is_alive() {
            return Err(SignalError::Gone { pid, name });
        }
        match pidfd_send_signal(&self.pidfd, signal.raw) {
            Ok(()) => Ok(()),
            Err(Errno::SRCH) => Err(SignalError::Gone { pid, name }),
            Err(Errno::PERM) => Err(self.forbidden(signal)),
            Err(errno) => Err(SignalError::Io { pid, name, signal, source: errno.into() }),
        }
    }

    /// An error if the signal is one that a process must handle (all but TERM, INT, QUIT), and this one does not.
    pub fn handles(&self, signal: Signal) -> Result<(), SignalError> {
        let (pid, name) = (self.pid, self.name.clone());
        if !signal.needs_handler() {
            return Ok(());
        }
        match fs::read(format!("/proc/{pid}/status")).map(|text| Status::parse(&text)) {
            // Should the number mean another process by now, the pidfd's own is dead, and ESRCH follows.
            Ok(Some(status)) if status.handles(signal) => Ok(()),
            Ok(Some(_)) => Err(SignalError::NotHandling { pid, name, signal }),
            Ok(None) => Err(SignalError::Io { pid, name, signal, source: io::ErrorKind::InvalidData.into() }),
            Err(error) if is_gone(&error) => Err(SignalError::Gone { pid, name }),
            Err(source) => Err(SignalError::Io { pid, name, signal, source }),
        }
    }

    /// An error if the kernel would refuse the signal to this process. Nothing is sent.
    pub fn permits(&self, signal: Signal) -> Result<(), SignalError> {
        let (pid, name) = (self.pid, self.name.clone());
        // By number, as signal 0 has no other way in rustix: nobody is hurt should it mean another process by now.
        match Pid::from_raw(pid).map(test_kill_process) {
            Some(Ok(())) => Ok(()),
            Some(Err(Errno::PERM)) => Err(self.forbidden(signal)),
            None | Some(Err(Errno::SRCH)) => Err(SignalError::Gone { pid, name }),
            Some(Err(errno)) => Err(SignalError::Io { pid, name, signal, source: errno.into() }),
        }
    }

    fn forbidden(&self, signal: Signal) -> SignalError {
        let (theirs, ours) = (self.uid, geteuid().as_raw());
        let remedy = remedy(ours, theirs);
        SignalError::Forbidden { pid: self.pid, name: self.name.clone(), signal, theirs, ours, remedy }
    }

    /// Whether it has not exited. A zombie has.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        // pidfd_open(2): a pidfd becomes readable when its process terminates.
        let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
        loop {
            match poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) {
                Err(Errno::INTR) => {}
                Ok(0) => return true,
                _ => return false,
            }
        }
    }
}

impl Target {
    /// Completes when it has exited, whether or not its parent has noticed. May be dropped at any time.
    pub async fn exited(&self) {
        while self.is_alive() {
            // Where no pidfd can be waited for, it is asked again.
            if self.readable().await.is_err() || self.is_alive() {
                tokio::time::sleep(ASKED_AGAIN).await;
            }
        }
    }

    async fn readable(&self) -> io::Result<()> {
        #[expect(deprecated, reason = "its successor is unsafe; the borrowed pidfd outlives it, which is all it asks")]
        let pidfd = AsyncFd::with_interest(self.pidfd.as_fd(), Interest::READABLE)?;
        pidfd.readable().await.map(drop)
    }

    /// How long ago it started, at least: start times have a grain of 10 ms.
    #[must_use]
    pub fn age(&self) -> Duration {
        age(self.start_ticks)
    }

    /// Its children now, without those that have exited.
    pub fn children(&self) -> Result<BTreeSet<Child>, FindError> {
        let children = scan()?.into_values().filter(|process| process.parent == self.pid && process.is_alive());
        let children = children.map(|Process { pid, start_ticks, .. }| Child { pid, start_ticks }).collect();
        // Should the number mean another process by now, they are not its children.
        if self.is_alive() { Ok(children) } else { Ok(BTreeSet::new()) }
    }
}

/// Where a pidfd cannot be waited for.
const ASKED_AGAIN: Duration = Duration::from_millis(50);

/// A child of a [`Target`]: its pid, and when it started, which together are not given out again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Child {
    /// Its pid.
    pub pid: i32,
    /// When it started, in clock ticks since boot.
    pub start_ticks: u64,
}

impl Child {
    /// How long ago it started, at least: start times have a grain of 10 ms.
    #[must_use]
    pub fn age(&self) -> Duration {
        age(self.start_ticks)
    }
}

fn age(start_ticks: u64) -> Duration {
    // The start time was rounded down, so the process may be younger by one tick.
    since_boot().saturating_sub(since_boot_at(start_ticks.saturating_add(1)))
}

fn since_boot_at(ticks: u64) -> Duration {
    Duration::from_millis(ticks.saturating_mul(1000) / rustix::param::clock_ticks_per_second())
}

/// kill(2): the sender's real or effective user must be the target's real or saved one, or it needs `CAP_KILL`.
fn remedy(ours: u32, theirs: u32) -> &'static str {
    if ours == theirs {
        "the users are the same, so a security module (AppArmor, SELinux) or a user namespace stands between them"
    } else if ours == 0 {
        "give this container securityContext.capabilities.add: [KILL], or the target's securityContext.runAsUser"
    } else {
        "give both containers the same securityContext.runAsUser, or run this one as user 0 with \
         capabilities.add: [KILL] (for another user than 0 that does nothing)"
    }
}

/// The clock that process start times are in.
#[derive(Clone, Debug)]
pub struct Clock {
    boot_id: String,
}

impl Clock {
    /// Of this boot, which no process outlives.
    pub fn new() -> io::Result<Self> {
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned();
        Ok(Self { boot_id })
    }

    /// This moment.
    #[must_use]
    pub fn now(&self) -> Moment {
        Moment { boot_id: self.boot_id.clone(), ticks: ticks() }
    }

    /// Whether a moment belongs to this boot.
    #[must_use]
    pub fn knows(&self, moment: &Moment) -> bool {
        self.boot_id == moment.boot_id
    }
}

/// This moment in clock ticks, as start times are.
#[must_use]
pub fn ticks() -> u64 {
    let since_boot = since_boot();
    let hertz = rustix::param::clock_ticks_per_second();
    let fraction = u64::from(since_boot.subsec_nanos()) * hertz / 1_000_000_000;
    since_boot.as_secs() * hertz + fraction
}

fn since_boot() -> Duration {
    // Never negative, and shifted by a time namespace just as the start times in /proc are.
    Duration::try_from(clock_gettime(ClockId::Boottime)).unwrap_or_default()
}

/// Finds the one process that is meant, and holds it.
pub fn find(selector: &Selector) -> Result<Target, FindError> {
    find_as(selector, getpid().as_raw_pid())
}

/// `me`: the pid that is taken for Trimtab's own, so that tests can look for their own children.
fn find_as(selector: &Selector, me: i32) -> Result<Target, FindError> {
    let processes = scan()?;
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
        None | Some(Err(Errno::SRCH)) => return Err(gone()),
        Some(Err(errno)) => return Err(FindError::Io { what: "pidfd_open", source: errno.into() }),
    };
    hold(selector, found, pidfd).ok_or_else(gone)
}

/// Makes a target of a pidfd, if the process that it was opened for is still the one that was chosen.
fn hold(selector: &Selector, chosen: &Process, pidfd: OwnedFd) -> Option<Target> {
    let again = Process::read(chosen.pid)?;
    let status = Status::parse(&fs::read(format!("/proc/{}/status", chosen.pid)).ok()?)?;
    let same = again.start_ticks == chosen.start_ticks && again.is_alive() && again.matches(selector);
    let Process { pid, start_ticks, .. } = again;
    same.then(|| Target { pid, name: again.name(), start_ticks, uid: status.uid, pidfd })
}

/// How many processes a message names at most.
const LISTED: usize = 16;

/// What an operator needs to know when nothing matched: names alone, since arguments may hold secrets.
fn hint(selector: &Selector, claimed: Option<&Claim>, others: &[&Process]) -> String {
    if let Some(Claim { pid, path, .. }) = claimed {
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

/// Whether `pid` is `above` or one of its descendants.
fn is_below(processes: &BTreeMap<i32, Process>, pid: i32, above: i32) -> bool {
    let mut at = pid;
    // The table is not of one instant, so a circle cannot be ruled out.
    for _ in 0..=processes.len() {
        if at == above {
            return true;
        }
        match processes.get(&at) {
            Some(process) => at = process.parent,
            None => return false,
        }
    }
    false
}

fn scan() -> Result<BTreeMap<i32, Process>, FindError> {
    let fail = |source| FindError::Io { what: "/proc", source };
    let mut processes = BTreeMap::new();
    for entry in fs::read_dir("/proc").map_err(fail)? {
        let name = entry.map_err(fail)?.file_name();
        let pid = name.to_str().and_then(|name| name.parse::<i32>().ok());
        // One that has exited since, or that hidepid hides, is not there.
        if let Some(process) = pid.and_then(Process::read) {
            processes.insert(process.pid, process);
        }
    }
    Ok(processes)
}

/// One line of the process table: `proc_pid_stat(5)`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Process {
    pid: i32,
    /// At most 15 bytes, chosen by the process itself.
    comm: Vec<u8>,
    state: u8,
    parent: i32,
    kernel: bool,
    start_ticks: u64,
    /// As [`Process::executable`] has read it.
    executable: OnceCell<Option<Vec<u8>>>,
}

impl Process {
    fn read(pid: i32) -> Option<Self> {
        Self::parse(&fs::read(format!("/proc/{pid}/stat")).ok()?)
    }

    /// `7 (a) b) S 1 …`: comm may hold anything, so the last parenthesis closes it.
    fn parse(stat: &[u8]) -> Option<Self> {
        const PF_KTHREAD: u64 = 0x0020_0000;
        let open = stat.iter().position(|&byte| byte == b'(')?;
        let close = stat.iter().rposition(|&byte| byte == b')')?;
        let comm = stat.get(open + 1..close)?.to_vec();
        let pid = str::from_utf8(stat.get(..open)?).ok()?.trim().parse().ok()?;
        let rest = str::from_utf8(stat.get(close + 1..)?).ok()?;
        let field = |number: usize| rest.split_ascii_whitespace().nth(number - 3);
        Some(Self {
            pid,
            comm,
            state: *field(3)?.as_bytes().first()?,
            parent: field(4)?.parse().ok()?,
            kernel: field(9)?.parse::<u64>().ok()? & PF_KTHREAD != 0,
            start_ticks: field(22)?.parse().ok()?,
            executable: OnceCell::new(),
        })
    }

    /// Neither a zombie nor dead.
    fn is_alive(&self) -> bool {
        !matches!(self.state, b'Z' | b'X' | b'x')
    }

    fn matches(&self, selector: &Selector) -> bool {
        let Selector { name, args, .. } = selector;
        name.as_ref().is_none_or(|name| self.has_name(name))
            && args.as_ref().is_none_or(|args| args.is_match(&self.command_line().join(" ")))
    }

    fn has_name(&self, name: &str) -> bool {
        if let Some(executable) = self.executable() {
            return executable == name.as_bytes();
        }
        let is_base = |argument: &String| argument.rsplit('/').next() == Some(name);
        self.has_comm(name) || self.command_line().first().is_some_and(is_base)
    }

    fn has_comm(&self, name: &str) -> bool {
        // TASK_COMM_LEN is 16, with the NUL.
        let name = name.as_bytes();
        self.comm == name.get(..15).unwrap_or(name)
    }

    /// The executable's base name, as it was when it was first asked for; `None` for another user's process and for a
    /// zombie.
    fn executable(&self) -> Option<&[u8]> {
        let read = || {
            let path = fs::read_link(format!("/proc/{}/exe", self.pid)).ok()?.into_os_string().into_vec();
            let path = path.strip_suffix(b" (deleted)").unwrap_or(&path);
            path.rsplit(|&byte| byte == b'/').next().map(<[u8]>::to_vec)
        };
        self.executable.get_or_init(read).as_deref()
    }

    /// Empty for a zombie. Never printed.
    fn command_line(&self) -> Vec<String> {
        words(&fs::read(format!("/proc/{}/cmdline", self.pid)).unwrap_or_default())
    }

    /// For messages.
    fn name(&self) -> String {
        printable(self.executable().unwrap_or(&self.comm))
    }
}

/// The arguments of a `proc_pid_cmdline(5)`.
fn words(bytes: &[u8]) -> Vec<String> {
    let bytes = bytes.strip_suffix(b"\0").unwrap_or(bytes);
    bytes.split(|&byte| byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect()
}

/// Short, and without control characters.
fn printable(name: &[u8]) -> String {
    String::from_utf8_lossy(name).chars().take(64).flat_map(char::escape_debug).collect()
}

/// What fuzzing reaches: each parser of a text of `/proc` or of a pid file, on the same bytes. Returns the name that
/// messages would show.
#[cfg(fuzzing)]
#[must_use]
pub fn parse_all(bytes: &[u8]) -> Option<String> {
    let handled = |status: Status| SIGNALS.iter().filter(|&&(name, raw)| status.handles(Signal { name, raw })).count();
    let _ = Status::parse(bytes).map(handled);
    let _ = str::from_utf8(bytes).ok().and_then(Reader::parse).map(|reader| reader.may(4, 0, 0, 0o640));
    let _ = (words(bytes), decimal(bytes));
    Process::parse(bytes).map(|process| printable(&process.comm))
}

/// Who a process is, as far as reading files goes (credentials(7), path_resolution(7)).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reader {
    uid: u32,
    groups: Vec<u32>,
    /// CAP_DAC_OVERRIDE or CAP_DAC_READ_SEARCH. Being user 0 is not enough: `drop: [ALL]` takes them away.
    reads_all: bool,
}

impl Reader {
    /// That of a process, from `/proc/PID/status`; `None` if it has gone.
    #[must_use]
    pub fn of(pid: i32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/status")).ok()?)
    }

    fn parse(status: &str) -> Option<Self> {
        const DAC_OVERRIDE_OR_READ_SEARCH: u64 = 0b110;
        let values = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key))?;
            Some(line.split_ascii_whitespace())
        };
        // Real, effective, saved, and last the file system's, which is the one that counts.
        let last = |key| values(key)?.next_back()?.parse().ok();
        let mut groups: Vec<u32> = values("Groups:")?.filter_map(|group| group.parse().ok()).collect();
        groups.push(last("Gid:")?);
        let capabilities = u64::from_str_radix(values("CapEff:")?.next()?, 16).ok()?;
        Some(Self { uid: last("Uid:")?, groups, reads_all: capabilities & DAC_OVERRIDE_OR_READ_SEARCH != 0 })
    }

    /// Whether it may do what `bit` says (4: read a file, 1: pass through a directory). The first class that fits
    /// decides, as in the kernel; access control lists are not looked at.
    #[must_use]
    pub fn may(&self, bit: u32, owner: u32, group: u32, mode: u32) -> bool {
        let class = if self.uid == owner {
            6
        } else if self.groups.contains(&group) {
            3
        } else {
            0
        };
        self.reads_all || mode >> class & bit != 0
    }
}

/// What is needed of `proc_pid_status(5)`.
#[derive(Debug, PartialEq, Eq)]
struct Status {
    /// The real user.
    uid: u32,
    /// The mask of signals that have a handler.
    caught: u64,
}

impl Status {
    fn parse(status: &[u8]) -> Option<Self> {
        let value = |key: &[u8]| {
            let line = status.split(|&byte| byte == b'\n').find_map(|line| line.strip_prefix(key))?;
            str::from_utf8(line).ok()?.split_ascii_whitespace().next()
        };
        Some(Self { uid: value(b"Uid:")?.parse().ok()?, caught: u64::from_str_radix(value(b"SigCgt:")?, 16).ok()? })
    }

    fn handles(&self, signal: Signal) -> bool {
        self.caught >> (signal.raw.as_raw() - 1) & 1 == 1
    }
}

/// What a pid file says.
struct Claim {
    path: PathBuf,
    pid: i32,
    written: SystemTime,
}

/// A pid in digits alone.
fn decimal(text: &[u8]) -> Option<i32> {
    let digits = text.iter().all(u8::is_ascii_digit);
    str::from_utf8(text).ok().filter(|_| digits)?.parse().ok().filter(|&pid| pid > 0)
}

fn read_pid_file(path: &Path) -> Result<Claim, FindError> {
    let fail = |reason: String| FindError::PidFile { path: path.to_owned(), reason };
    let (text, metadata) = read_regular(path, 64).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => fail(
            "there is none (yet); the directory must be a volume that both containers mount, at this path here".into(),
        ),
        io::ErrorKind::PermissionDenied => fail(format!("user {} may not read it", geteuid().as_raw())),
        _ => fail(error.to_string()),
    })?;
    let text = text.trim_ascii();
    if text.is_empty() {
        return Err(fail("it is empty (yet)".into()));
    }
    let pid = decimal(text).ok_or_else(|| fail("it does not hold one decimal number, and nothing else".into()))?;
    if pid == 1 {
        return Err(fail(
            "it names PID 1, which is the Pod's pause process: it was written before shareProcessNamespace: true, or is \
             another Pod's"
                .into(),
        ));
    }
    let written = metadata.modified().map_err(|error| fail(error.to_string()))?;
    Ok(Claim { path: path.to_owned(), pid, written })
}

impl Claim {
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

/// Reads a regular file of at most `limit` bytes: whatever lies at the path, this neither hangs nor fills the memory.
pub(crate) fn read_regular(path: &Path, limit: u64) -> io::Result<(Vec<u8>, Metadata)> {
    // Opening a FIFO for reading blocks without O_NONBLOCK.
    let flags = i32::try_from((OFlags::NONBLOCK | OFlags::NOCTTY).bits()).unwrap_or_default();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::other(format!("longer than {limit} bytes")));
    }
    Ok((bytes, metadata))
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(Errno::SRCH.raw_os_error())
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt as _;
    use std::process::{Child, Command, Stdio};
    use std::time::Instant;

    use proptest::prelude::*;
    use rustix::process::Uid;
    use tempfile::TempDir;

    use super::*;

    /// No process has this pid, so that the tests' children are not Trimtab's own.
    const NOBODY: i32 = i32::MAX;

    /// Sleeps until it is killed. A signal with a trap interrupts the read.
    const IDLE: &str = "while :; do read -r line <&9; done";

    /// A copy of the shell under a name of its own, running a script; killed with its children when dropped.
    struct Script {
        child: Child,
        dir: TempDir,
    }

    impl Script {
        fn start(name: &str, script: &str) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let program = dir.path().join(name);
            // By another process: if we held it open for writing, a test that forks just then would keep it busy.
            run(Command::new("cp").arg("/bin/sh").arg(&program));
            run(Command::new("mkfifo").arg(dir.path().join("fifo")));
            let script = format!("exec 9<> $DIR/fifo; {script}");
            let mut command = Command::new(program);
            command.args(["-c", &script, "secret-canary"]).env("DIR", dir.path());
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            let child = command.process_group(0).spawn().unwrap();
            Self { child, dir }
        }

        fn pid(&self) -> i32 {
            i32::try_from(self.child.id()).unwrap()
        }

        fn say(&self, line: &str) {
            fs::write(self.dir.path().join("fifo"), format!("{line}\n")).unwrap();
        }

        fn has(&self, file: &str) -> bool {
            self.dir.path().join(file).exists()
        }

        fn zombify(&self) {
            rustix::process::kill_process(Pid::from_raw(self.pid()).unwrap(), Raw::KILL).unwrap();
            until("it is a zombie", || Process::read(self.pid()).is_some_and(|process| !process.is_alive()));
        }
    }

    impl Drop for Script {
        fn drop(&mut self) {
            rustix::process::kill_process_group(Pid::from_raw(self.pid()).unwrap(), Raw::KILL).unwrap();
            self.child.wait().unwrap();
        }
    }

    fn run(command: &mut Command) {
        assert!(command.status().unwrap().success());
    }

    fn until(what: &str, condition: impl Fn() -> bool) {
        let start = Instant::now();
        while !condition() {
            assert!(start.elapsed() < Duration::from_secs(10), "still not so after 10 s: {what}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn named(name: &str) -> Selector {
        Selector { name: Some(name.into()), ..Selector::default() }
    }

    fn by_file(path: &Path) -> Selector {
        Selector { pid_file: Some(path.to_owned()), ..Selector::default() }
    }

    fn signal(name: &str) -> Signal {
        name.parse().unwrap()
    }

    fn message(result: Result<Target, FindError>) -> String {
        result.map(|target| target.pid).unwrap_err().to_string()
    }

    /// Runs `test` on a thread of this user; the rest of the process stays as it is.
    fn as_user<T: Send + 'static>(user: u32, test: impl FnOnce() -> T + Send + 'static) -> T {
        let thread = std::thread::spawn(move || {
            let user = Uid::from_raw(user);
            rustix::thread::set_thread_res_uid(user, user, user).unwrap();
            test()
        });
        thread.join().unwrap()
    }

    #[test]
    fn signals_are_read_by_name_and_number() {
        for text in ["SIGHUP", "HUP", "hup", "sighup", " 1 "] {
            assert_eq!(signal(text).to_string(), "SIGHUP", "{text}");
        }
        for &(name, raw) in SIGNALS {
            assert_eq!(signal(name).raw, raw);
            assert_eq!(signal(&raw.as_raw().to_string()).to_string(), name);
        }
        for text in ["KILL", "SIGKILL", "9", "STOP", "sigstop", &Raw::STOP.as_raw().to_string()] {
            let error = text.parse::<Signal>().unwrap_err();
            assert!(matches!(error, ParseSignalError::Uncatchable(_)), "{text}");
        }
        for text in ["", "0", "-1", "SIG", "SIGSIGHUP", "HUPPY", "64", "99999999999", "RTMIN", "+1x"] {
            assert_eq!(text.parse::<Signal>(), Err(ParseSignalError::Unknown), "{text}");
        }
    }

    #[test]
    fn a_process_is_found_by_its_executable_and_arguments() {
        let script = Script::start("tt-found-by-executable", IDLE);
        let target = find_as(&named("tt-found-by-executable"), NOBODY).unwrap();
        assert_eq!((target.pid, target.name.as_str()), (script.pid(), "tt-found-by-executable"));
        assert_eq!(target.uid, geteuid().as_raw());
        assert!(target.is_alive());
        let args = |args| Selector { args: Some(Regex::new(args).unwrap()), ..named("tt-found-by-executable") };
        assert_eq!(find_as(&args(" -c exec .* secret-canary$"), NOBODY).unwrap().pid, script.pid());
        let error = message(find_as(&args("--other"), NOBODY));
        assert!(error.contains("tt-found-by-executable") && error.contains("running are"), "{error}");
        assert!(!error.contains("canary"), "{error}");
        let alone = Selector { name: None, ..args("tt-found-by-executable -c") };
        assert_eq!(find_as(&alone, NOBODY).unwrap().pid, script.pid());
        // As after an upgrade in place: the link ends in ' (deleted)'.
        fs::remove_file(script.dir.path().join("tt-found-by-executable")).unwrap();
        assert_eq!(find_as(&named("tt-found-by-executable"), NOBODY).unwrap().pid, script.pid());
    }

    #[test]
    fn trimtab_its_children_and_pid_1_never_match() {
        let script = Script::start("tt-own-child", IDLE);
        assert!(matches!(find(&named("tt-own-child")), Err(FindError::Missing { .. })));
        let first = Process::read(1).unwrap().name();
        if let Ok(target) = find_as(&named(&first), NOBODY) {
            assert_ne!(target.pid, 1);
        }
        let error = message(find_as(&named("tt-own-child"), 1));
        assert!(error.contains("shareProcessNamespace: true") && error.contains("--reload-url"), "{error}");
        drop(script);
    }

    #[test]
    fn of_parent_and_child_the_parent_is_meant() {
        let script = Script::start("tt-parent", &format!("( {IDLE} ) & touch $DIR/ready; {IDLE}"));
        until("it has a child", || script.has("ready"));
        let same = scan().unwrap();
        let same = same.values().filter(|process| process.is_alive() && process.has_name("tt-parent"));
        assert_eq!(same.count(), 2);
        assert_eq!(find_as(&named("tt-parent"), NOBODY).unwrap().pid, script.pid());
    }

    #[test]
    fn twins_are_ambiguous_and_neither_is_signalled() {
        let scripts = [Script::start("tt-twin", IDLE), Script::start("tt-twin", &format!(": second; {IDLE}"))];
        let error = message(find_as(&named("tt-twin"), NOBODY));
        for script in &scripts {
            assert!(error.contains(&format!("PID {} (tt-twin)", script.pid())), "{error}");
        }
        assert!(error.contains("--process-args") && error.contains("--pid-file"), "{error}");
        let second = Selector { args: Some(Regex::new(": second").unwrap()), ..named("tt-twin") };
        assert_eq!(find_as(&second, NOBODY).unwrap().pid, scripts[1].pid());
    }

    #[test]
    fn a_signal_waits_until_the_process_handles_it() {
        let script = Script::start("tt-late-trap", &format!("read -r line <&9; trap 'touch $DIR/got' HUP; {IDLE}"));
        let target = find_as(&named("tt-late-trap"), NOBODY).unwrap();
        for name in ["HUP", "USR1", "USR2", "WINCH"] {
            let error = target.signal(signal(name)).unwrap_err();
            assert!(matches!(error, SignalError::NotHandling { .. }), "{error}");
        }
        script.say("go");
        until("the signal is taken", || target.signal(signal("HUP")).is_ok());
        until("the signal has arrived", || script.has("got"));
        assert!(target.is_alive());
        assert!(matches!(target.signal(signal("USR1")), Err(SignalError::NotHandling { .. })));
        target.signal(signal("TERM")).unwrap();
        until("it has ended", || !target.is_alive());
    }

    #[test]
    fn a_zombie_is_no_target_and_is_said_to_be_one() {
        let script = Script::start("tt-zombie-with-a-long-name", IDLE);
        let target = find_as(&named("tt-zombie-with-a-long-name"), NOBODY).unwrap();
        script.zombify();
        assert!(!target.is_alive());
        assert!(matches!(target.signal(signal("TERM")), Err(SignalError::Gone { .. })));
        let error = message(find_as(&named("tt-zombie-with-a-long-name"), NOBODY));
        assert!(error.contains(&format!("PID {}", script.pid())) && error.contains("has exited"), "{error}");
    }

    #[test]
    fn a_pid_that_was_given_out_again_is_not_held() {
        let script = Script::start("tt-reused", IDLE);
        let pidfd = || pidfd_open(Pid::from_raw(script.pid()).unwrap(), PidfdFlags::empty()).unwrap();
        let chosen = Process::read(script.pid()).unwrap();
        assert!(hold(&named("tt-reused"), &chosen, pidfd()).is_some());
        let other = Process { start_ticks: chosen.start_ticks - 1, ..chosen.clone() };
        assert!(hold(&named("tt-reused"), &other, pidfd()).is_none());
        assert!(hold(&named("tt-before-exec"), &chosen, pidfd()).is_none());
    }

    #[test]
    fn another_users_process_is_found_by_comm_and_refused_with_both_users() {
        assert!(geteuid().is_root(), "this test becomes another user: run it as root, as in a container");
        let script = Script::start("tt-of-another-user", &format!("trap 'touch $DIR/got' HUP; {IDLE}"));
        let target = find_as(&named("tt-of-another-user"), NOBODY).unwrap();
        until("it handles HUP", || target.signal(signal("HUP")).is_ok());
        let (target, error) = as_user(65534, || {
            let target = find_as(&named("tt-of-another-user"), NOBODY).unwrap();
            let error = target.signal(signal("HUP")).unwrap_err();
            (target, error)
        });
        assert_eq!((target.pid, target.name.as_str()), (script.pid(), "tt-of-another-u"));
        assert!(matches!(error, SignalError::Forbidden { .. }), "{error}");
        let error = error.to_string();
        for part in ["as user 0", "Trimtab as user 65534", "runAsUser", "KILL", "EPERM"] {
            assert!(error.contains(part), "{part} is not in: {error}");
        }
        assert!(remedy(0, 101).contains("add: [KILL]") && !remedy(0, 101).contains("user 0 "));
        assert!(remedy(101, 101).contains("security module"));
    }

    #[test]
    fn a_process_that_renames_itself_is_found_by_its_executable() {
        let script = Script::start("tt-renamer", &format!("read -r name <&9; printf $name > /proc/$$/comm; {IDLE}"));
        script.say("MainThread");
        until("it is renamed", || Process::read(script.pid()).is_some_and(|process| process.comm == b"MainThread"));
        assert_eq!(find_as(&named("tt-renamer"), NOBODY).unwrap().pid, script.pid());
        if geteuid().is_root() {
            let pid = as_user(65534, || find_as(&named("tt-renamer"), NOBODY).map(|target| target.pid));
            assert_eq!(pid.unwrap(), script.pid());
        }
        let error = message(find_as(&named("MainThread"), NOBODY));
        assert!(error.contains("calls itself MainThread") && error.contains("--process tt-renamer"), "{error}");
    }

    #[test]
    fn a_pid_file_is_believed_only_when_it_fits() {
        let script = Script::start("tt-pid-file", IDLE);
        let path = script.dir.path().join("pid");
        let refused = |text: &str, part: &str| {
            fs::write(&path, text).unwrap();
            let error = message(find_as(&by_file(&path), NOBODY));
            assert!(error.contains(part) && error.contains("--pid-file"), "{text:?}: {error}");
        };
        assert!(message(find_as(&by_file(&path), NOBODY)).contains("there is none (yet)"));
        refused("", "empty (yet)");
        refused(" \n", "empty (yet)");
        refused("1\n", "pause process");
        refused(&std::process::id().to_string().repeat(20), "longer than 64 bytes");
        for garbage in ["0", "-5", "+5", "12 13", "canary", "99999999999", "5\0", "0x10"] {
            refused(garbage, "one decimal number");
        }
        refused("2147483646", "does not exist");
        fs::write(&path, format!(" {}\n", script.pid())).unwrap();
        assert_eq!(find_as(&by_file(&path), NOBODY).unwrap().pid, script.pid());
        let both = |name| Selector { pid_file: Some(path.clone()), ..named(name) };
        assert_eq!(find_as(&both("tt-pid-file"), NOBODY).unwrap().pid, script.pid());
        assert!(message(find_as(&both("nginx"), NOBODY)).contains("is tt-pid-file"));
        let ours = find_as(&by_file(&path), i32::try_from(std::process::id()).unwrap());
        assert!(message(ours).contains("one of Trimtab's own"));
        let written = fs::File::options().write(true).open(&path).unwrap();
        written.set_modified(SystemTime::now() - Duration::from_hours(1)).unwrap();
        assert!(message(find_as(&by_file(&path), NOBODY)).contains("stale"));
        script.zombify();
        assert!(message(find_as(&by_file(&path), NOBODY)).contains("has exited"));
        // Neither hangs.
        assert!(message(find_as(&by_file(&script.dir.path().join("fifo")), NOBODY)).contains("not a regular file"));
        assert!(message(find_as(&by_file(script.dir.path()), NOBODY)).contains("not a regular file"));
    }

    #[test]
    fn who_may_read_a_file_is_decided_as_the_kernel_does() {
        let status = "Uid:\t9\t9\t9\t101\nGid:\t9\t9\t9\t102\nGroups:\t7 8 \nCapEff:\t0000000000000000\n";
        let reader = Reader::parse(status).unwrap();
        assert_eq!(reader, Reader { uid: 101, groups: vec![7, 8, 102], reads_all: false });
        assert!(reader.may(4, 0, 0, 0o644), "others");
        assert!(!reader.may(4, 0, 0, 0o640));
        assert!(reader.may(4, 0, 8, 0o640), "a supplementary group");
        assert!(!reader.may(4, 0, 8, 0o604), "the group's class decides, though others might");
        assert!(!reader.may(4, 101, 8, 0o044), "the owner's class decides");
        assert!(reader.may(1, 0, 102, 0o710));
        let root = Reader::parse(&status.replace("CapEff:\t0000000000000000", "CapEff:\t00000000a80425fb")).unwrap();
        assert!(root.may(4, 0, 0, 0o600));
        assert_eq!(Reader::parse("Uid:\t0\n"), None);
    }

    #[test]
    fn moments_and_start_times_share_a_clock() {
        let before = ticks();
        let script = Script::start("tt-clock", IDLE);
        let started = Process::read(script.pid()).unwrap().start_ticks;
        let after = ticks();
        assert!(before <= started && started <= after, "{before} {started} {after}");
        let moment = Clock::new().unwrap().now();
        assert!(Clock::new().unwrap().knows(&moment));
        assert_eq!(moment.boot_id.len(), 36);
    }

    proptest! {
        #[test]
        fn stat_is_read_whatever_the_comm(comm in "[ -~\u{e9}()\n]{0,15}", start in any::<u64>()) {
            let line = format!("7 ({comm}) S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 {start} 9 10\n");
            let process = Process::parse(line.as_bytes()).unwrap();
            prop_assert_eq!(&process.comm, comm.as_bytes());
            prop_assert_eq!((process.pid, process.state, process.parent, process.start_ticks), (7, b'S', 1, start));
            prop_assert!(!process.kernel);
        }

        #[test]
        fn any_bytes_are_parsed_or_refused(bytes in any::<Vec<u8>>(), cut in 0_usize..120) {
            let _ = Process::parse(&bytes);
            let _ = Status::parse(&bytes);
            let line = b"7 (nginx) S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 99 9 10\nUid:\t1\t2\nSigCgt:\tff\n";
            let _ = Process::parse(&line[..cut.min(line.len())]);
            let _ = Status::parse(&line[..cut.min(line.len())]);
        }

        #[test]
        fn any_text_is_a_signal_or_refused(text in ".{0,12}") {
            if let Ok(signal) = text.parse::<Signal>() {
                prop_assert_eq!(signal.to_string().parse::<Signal>(), Ok(signal));
            }
        }
    }
}
