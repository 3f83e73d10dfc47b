//! A process that is held by a pidfd: whether it takes a signal, and sending it.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::kill;
use nix::unistd::{Pid, geteuid};
use rustix::process::{Signal as Named, pidfd_send_signal};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::Signal;
use super::clock::age;
use super::find::FindError;
use super::table::{ProcStatus, Process, scan};

/// Why a signal was not sent. Every variant is retried.
#[derive(Debug, thiserror::Error)]
pub enum SignalError {
    /// The signal would kill the process, or be lost on it.
    #[error(
        "PID {pid} ({name}) does not handle {signal}, which would end it or be lost: it may be starting, so it is tried \
         again. If it never handles {signal}, choose another --signal, or use --reload-url or --reload-exec"
    )]
    NotHandling { pid: i32, name: String, signal: Signal },
    /// EPERM.
    #[error(
        "PID {pid} ({name}) runs as user {theirs}, Trimtab as user {ours}, and the kernel refuses {signal} (EPERM): {remedy}"
    )]
    Forbidden { pid: i32, name: String, signal: Signal, theirs: u32, ours: u32, remedy: &'static str },
    /// It has exited since it was found.
    #[error("PID {pid} ({name}) has exited")]
    Gone { pid: i32, name: String },
    #[error("{signal} to PID {pid} ({name}): {source}")]
    Io { pid: i32, name: String, signal: Signal, source: io::Error },
}

/// A process that was found and is held: its pidfd keeps meaning it when the pid is given out again.
#[derive(Debug)]
pub struct Target {
    pub pid: i32,
    /// The base name of its executable, or its comm, fit for printing.
    pub name: String,
    /// When it started: field 22 of `/proc/PID/stat`, in clock ticks since boot.
    pub start_ticks: u64,
    /// Its real user.
    pub uid: u32,
    pub(super) pidfd: OwnedFd,
}

impl Target {
    /// Sends a signal; one that a process must handle (all but TERM, INT, QUIT) only if this one does.
    pub async fn signal(&self, signal: Signal) -> Result<(), SignalError> {
        self.handles(signal).await?;
        let (pid, name) = (self.pid, self.name.clone());
        // A signal to a zombie succeeds, and reaches nobody.
        if !self.is_alive() {
            return Err(SignalError::Gone { pid, name });
        }
        // Every signal that nix names, rustix names, too.
        let sent = Named::from_named_raw(signal.number()).ok_or(Errno::EINVAL).and_then(|named| {
            pidfd_send_signal(&self.pidfd, named).map_err(|errno| Errno::from_raw(errno.raw_os_error()))
        });
        match sent {
            Ok(()) => Ok(()),
            Err(Errno::ESRCH) => Err(SignalError::Gone { pid, name }),
            Err(Errno::EPERM) => Err(self.forbidden(signal)),
            Err(errno) => Err(SignalError::Io { pid, name, signal, source: errno.into() }),
        }
    }

    /// An error if the signal is one that a process must handle (all but TERM, INT, QUIT), and this one does not. One
    /// that blocks the signal handles it, by sigwait(3) or signalfd(2): but forking blocks signals for a moment, too.
    pub async fn handles(&self, signal: Signal) -> Result<(), SignalError> {
        if signal.ends() || handles_by(signal, || self.status(signal)).await? {
            return Ok(());
        }
        Err(SignalError::NotHandling { pid: self.pid, name: self.name.clone(), signal })
    }

    /// Whether its handlers may be those of its runtime alone, as it has just started.
    #[must_use]
    pub fn may_be_starting(&self, signal: Signal) -> bool {
        // A runtime installs its handlers one by one.
        let age = self.age();
        age < INSTALLED_AFTER || (age < STARTED_AFTER && self.status(signal).is_ok_and(|status| status.has_runtime()))
    }

    /// Whether the signal ended it; `None` while it lives, and where that cannot be known.
    #[must_use]
    pub fn was_ended_by(&self, signal: Signal) -> Option<bool> {
        let process = Process::read(self.pid).filter(|process| process.start_ticks == self.start_ticks)?;
        process.was_ended_by(signal)
    }

    fn status(&self, signal: Signal) -> Result<ProcStatus, SignalError> {
        let (pid, name) = (self.pid, self.name.clone());
        match fs::read(format!("/proc/{pid}/status")).map(|text| ProcStatus::parse(&text)) {
            // Should the number mean another process by now, the pidfd's own is dead, and ESRCH follows.
            Ok(Some(status)) => Ok(status.with_what_it_waits_for(pid)),
            Ok(None) => Err(SignalError::Io { pid, name, signal, source: io::ErrorKind::InvalidData.into() }),
            Err(error) if is_gone(&error) => Err(SignalError::Gone { pid, name }),
            Err(source) => Err(SignalError::Io { pid, name, signal, source }),
        }
    }

    /// An error if the kernel would refuse the signal to this process. Nothing is sent.
    pub fn permits(&self, signal: Signal) -> Result<(), SignalError> {
        let (pid, name) = (self.pid, self.name.clone());
        // By number, as rustix has no signal 0 for a pidfd: it does no harm should the number mean another process by now.
        match kill(Pid::from_raw(pid), None) {
            Ok(()) => Ok(()),
            Err(Errno::EPERM) => Err(self.forbidden(signal)),
            Err(Errno::ESRCH) => Err(SignalError::Gone { pid, name }),
            Err(errno) => Err(SignalError::Io { pid, name, signal, source: errno.into() }),
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
        let mut fds = [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)];
        loop {
            match poll(&mut fds, PollTimeout::ZERO) {
                Err(Errno::EINTR) => {}
                Ok(0) => return true,
                _ => return false,
            }
        }
    }

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
    pub fn children(&self) -> Result<BTreeSet<ChildId>, FindError> {
        let children = scan()
            .map_err(FindError::table)?
            .into_values()
            .filter(|process| process.parent == self.pid && process.is_alive());
        let children = children.map(|Process { pid, start_ticks, .. }| ChildId { pid, start_ticks }).collect();
        // Should the number mean another process by now, they are not its children.
        if self.is_alive() { Ok(children) } else { Ok(BTreeSet::new()) }
    }
}

/// Whether the process handles the signal, by looking at its status again and again while it blocks it.
pub(super) async fn handles_by<E>(signal: Signal, mut look: impl FnMut() -> Result<ProcStatus, E>) -> Result<bool, E> {
    for _ in 0..BLOCKED_LOOKS {
        let status = look()?;
        if status.catches(signal) || !status.blocks(signal) {
            return Ok(status.catches(signal));
        }
        tokio::time::sleep(BLOCKED_PAUSE).await;
    }
    Ok(true)
}

/// How often a signal must be found blocked, so that it is no moment of a fork.
const BLOCKED_LOOKS: u32 = 25;
const BLOCKED_PAUSE: Duration = Duration::from_millis(10);
/// The age at which a runtime has installed its handlers, and that at which a program has installed its own.
const INSTALLED_AFTER: Duration = Duration::from_millis(100);
const STARTED_AFTER: Duration = Duration::from_secs(5);
/// Where a pidfd cannot be waited for.
const ASKED_AGAIN: Duration = Duration::from_millis(50);

/// A child of a [`Target`]: its pid, and when it started, which together are not given out again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ChildId {
    pub pid: i32,
    /// In clock ticks since boot.
    pub start_ticks: u64,
}

impl ChildId {
    /// How long ago it started, at least: start times have a grain of 10 ms.
    #[must_use]
    pub fn age(&self) -> Duration {
        age(self.start_ticks)
    }
}

/// kill(2): the sender's real or effective user must be the target's real or saved one, or it needs `CAP_KILL`.
pub(super) fn remedy(ours: u32, theirs: u32) -> &'static str {
    if ours == theirs {
        "the users are the same, so a security module (AppArmor, SELinux) or a user namespace stands between them"
    } else if ours == 0 {
        "give this container securityContext.capabilities.add: [KILL], or the target's securityContext.runAsUser"
    } else {
        "give both containers the same securityContext.runAsUser, or run this one as user 0 with \
         capabilities.add: [KILL] (for another user than 0 that does nothing)"
    }
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(Errno::ESRCH as i32)
}
