//! Programs of the sidecar's own image: run without a shell, bounded in time, ended by process group.
//!
//! A program gets Trimtab's environment as it is and no standard input. Its group (itself and what it started, unless
//! that left the group) is killed when the time is up, or when nobody waits any longer; what it leaves behind in the
//! background when it exits by itself is left to run.

use std::fmt;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::{ExitStatus, Stdio};
use std::str::FromStr;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, geteuid};
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe::Receiver;
use tokio::process::{Child, ChildStdout};
use tokio::runtime::Handle;
use tokio::signal::unix::{SignalKind, signal};

use crate::os::mask::Said;

/// A program and its arguments. Prints as the program alone: arguments may hold what is nobody's business.
#[derive(Clone, PartialEq, Eq)]
pub struct Command {
    program: String,
    arguments: Vec<String>,
}

/// Why a text is no [`Command`]. Fatal: it comes from the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseCommandError {
    /// No word in it.
    #[error("there is no program in it")]
    Empty,
    /// A quote is not closed, or it ends in a backslash.
    #[error(
        "a quote is not closed, or a backslash stands at its end; it is split as a shell would, and run without one"
    )]
    Unbalanced,
    /// No argument can hold a NUL.
    #[error("it holds a NUL byte")]
    Nul,
}

impl Command {
    /// The same command with `value` for each `placeholder` in its arguments.
    #[must_use]
    pub fn replace(&self, placeholder: &str, value: &str) -> Self {
        let arguments = self.arguments.iter().map(|argument| argument.replace(placeholder, value)).collect();
        Self { program: self.program.clone(), arguments }
    }
}

impl FromStr for Command {
    type Err = ParseCommandError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.contains('\0') {
            return Err(ParseCommandError::Nul);
        }
        let mut words = shlex::split(text).ok_or(ParseCommandError::Unbalanced)?.into_iter();
        let program = words.next().filter(|program| !program.is_empty()).ok_or(ParseCommandError::Empty)?;
        Ok(Self { program, arguments: words.collect() })
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.program)
    }
}

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} and {} arguments", self.program, self.arguments.len())
    }
}

/// How a program ended, and what it said.
#[derive(Debug)]
pub struct Outcome {
    /// `None`: it was killed when its time was up.
    pub status: Option<ExitStatus>,
    /// Standard output and error, as they came.
    pub output: Said,
}

/// Why a program did not run.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// It could not be started. Retried by a reload: an image does not change, but a volume with programs may.
    #[error("{program} cannot be started: {source}; {remedy}")]
    Spawn { program: String, source: io::Error, remedy: String },
    /// It cannot be waited for or listened to. Retried.
    #[error("{program}: {source}")]
    Io { program: String, source: io::Error },
}

/// Runs a program to its end, or to the end of `timeout`. Dropped before that, it kills the program's group.
pub async fn run(command: &Command, timeout: Duration) -> Result<Outcome, ExecError> {
    let io = |source| ExecError::Io { program: command.program.clone(), source };
    // One pipe for both, so that what was said stays in order.
    let (reader, writer) = io::pipe().map_err(io)?;
    let mut reader = Receiver::from_owned_fd(OwnedFd::from(reader)).map_err(io)?;
    let mut group = Group::new(spawn(command, writer)?);
    let mut output = Said::default();
    let ended = tokio::time::timeout(timeout, async {
        let mut open = true;
        let mut buffer = [0; 8192];
        loop {
            tokio::select! {
                status = group.wait() => return status,
                read = reader.read(&mut buffer), if open => match read? {
                    0 => open = false,
                    len => output.push(&buffer[..len]),
                },
            }
        }
    });
    let status = if let Ok(status) = ended.await {
        Some(status.map_err(io)?)
    } else {
        group.kill();
        // A process that sleeps in the kernel dies when it wakes.
        let _ = tokio::time::timeout(Duration::from_secs(1), group.wait()).await;
        None
    };
    drain(&reader, &mut output);
    Ok(Outcome { status, output })
}

fn spawn(command: &Command, writer: io::PipeWriter) -> Result<Child, ExecError> {
    let fail = |source: io::Error| {
        let remedy = match source.kind() {
            io::ErrorKind::NotFound => {
                "it, or the interpreter or loader that it names, is not in Trimtab's image: bring \
                                        it there with COPY --from, statically linked or with its libraries"
                    .to_owned()
            }
            io::ErrorKind::PermissionDenied => {
                format!("user {} needs the permission to execute it (chmod a+x in the image)", geteuid())
            }
            _ => "see execve(2)".to_owned(),
        };
        ExecError::Spawn { program: command.program.clone(), source, remedy }
    };
    // The writer's copies go with this value: from then on the pipe ends when the program and its children do.
    tokio::process::Command::new(&command.program)
        .args(&command.arguments)
        .stdin(Stdio::null())
        .stdout(writer.try_clone().map_err(fail)?)
        .stderr(writer)
        .process_group(0)
        .spawn()
        .map_err(fail)
}

/// What is left in the pipe, without waiting: someone in the background may hold it open for ever, and even write on.
fn drain(reader: &Receiver, output: &mut Said) {
    let mut buffer = [0; 8192];
    // A pipe holds at most 1 MiB (/proc/sys/fs/pipe-max-size).
    for _ in 0..128 {
        match nix::unistd::read(reader.as_fd(), &mut buffer) {
            Ok(len) if len > 0 => output.push(&buffer[..len]),
            Err(Errno::EINTR) => {}
            // The end, nothing more at the moment, or an error: the exit status counts, not the talk.
            _ => return,
        }
    }
}

/// A child that leads a process group of its own; dropped while it runs, the whole group is killed.
pub(crate) struct Group {
    /// `None` once it was dropped.
    leader: Option<Child>,
    /// `None` for one that has been waited for.
    id: Option<Pid>,
}

impl Group {
    /// `leader` was started with a process group of its own.
    pub(crate) fn new(leader: Child) -> Self {
        let id = leader.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw);
        Self { leader: Some(leader), id }
    }

    /// What the program prints, if that is piped.
    pub(crate) fn stdout(&mut self) -> Option<ChildStdout> {
        self.leader.as_mut()?.stdout.take()
    }

    pub(crate) async fn wait(&mut self) -> io::Result<ExitStatus> {
        match &mut self.leader {
            Some(leader) => leader.wait().await,
            None => std::future::pending().await,
        }
    }

    fn kill(&self) {
        // `None` once it has been waited for. Until then the pid, and so the group's number, is not given out again.
        if let Some(id) = self.id.filter(|_| self.leader.as_ref().is_some_and(|leader| leader.id().is_some())) {
            // ESRCH: all have gone. EPERM: one has changed its user, and is out of our reach.
            let _ = killpg(id, Signal::SIGKILL);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
        // Without a runtime the process ends, and its children are somebody else's.
        if let (Some(leader), Some(id), Ok(runtime)) = (self.leader.take(), self.id, Handle::try_current()) {
            runtime.spawn(reap(leader, id));
        }
    }
}

/// Waits for the program, and then for what it left behind, which is our child when we are PID 1: it would stay a zombie.
/// Tokio's own children lead other groups, so that nothing is taken from it.
async fn reap(mut leader: Child, group: Pid) {
    if leader.wait().await.is_err() {
        return;
    }
    let Ok(mut children) = signal(SignalKind::child()) else { return };
    loop {
        match waitpid(Pid::from_raw(-group.as_raw()), Some(WaitPidFlag::WNOHANG)) {
            // None of the group is ours. A process's children are given to us before it can be waited for.
            Err(Errno::ECHILD) => return,
            Ok(WaitStatus::StillAlive) => {
                children.recv().await;
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;
    use crate::os::mask::Mask;

    const LONG: Duration = Duration::from_secs(10);

    fn shell(script: &str) -> Command {
        "sh -c {script}".parse::<Command>().unwrap().replace("{script}", script)
    }

    fn text(output: &Said) -> String {
        Mask::new(std::iter::empty::<Bytes>()).apply(output)
    }

    /// How many processes have `marker` in their command line; a zombie has none.
    fn alive(marker: &str) -> usize {
        let holds = |entry: io::Result<std::fs::DirEntry>| {
            let path = entry.ok()?.path().join("cmdline");
            Some(String::from_utf8_lossy(&std::fs::read(path).ok()?).contains(marker))
        };
        std::fs::read_dir("/proc").unwrap().filter_map(holds).filter(|found| *found).count()
    }

    /// How many of our children are zombies.
    fn zombies() -> usize {
        let me = std::process::id().to_string();
        let is_zombie = |entry: io::Result<std::fs::DirEntry>| {
            let stat = std::fs::read_to_string(entry.ok()?.path().join("stat")).ok()?;
            let (_, rest) = stat.rsplit_once(')')?;
            let mut fields = rest.split_whitespace();
            Some(fields.next() == Some("Z") && fields.next() == Some(&me))
        };
        std::fs::read_dir("/proc").unwrap().filter_map(is_zombie).filter(|found| *found).count()
    }

    async fn until(what: &str, condition: impl Fn() -> bool) {
        let start = Instant::now();
        while !condition() {
            assert!(start.elapsed() < LONG, "still not so after 10 s: {what}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[test]
    fn commands_are_split_as_a_shell_would() {
        let command: Command = r#"nginx -c '{dir}/a b.conf' "x y" z\ w"#.parse().unwrap();
        assert_eq!(command.arguments, ["-c", "{dir}/a b.conf", "x y", "z w"]);
        assert_eq!(command.replace("{dir}", "/tmp/$x").arguments[1], "/tmp/$x/a b.conf");
        assert_eq!("a 'b".parse::<Command>(), Err(ParseCommandError::Unbalanced));
        for empty in ["", "  ", "''", "# comment"] {
            assert_eq!(empty.parse::<Command>(), Err(ParseCommandError::Empty), "{empty:?}");
        }
        assert_eq!("a\0b".parse::<Command>(), Err(ParseCommandError::Nul));
    }

    #[tokio::test]
    async fn exit_status_and_both_streams_are_reported_in_order() {
        let outcome = run(&shell("echo one; echo two >&2; echo three; cat; exit 3"), LONG).await.unwrap();
        assert_eq!(outcome.status.unwrap().code(), Some(3));
        assert_eq!(text(&outcome.output), "one\\ntwo\\nthree\\n");
    }

    #[tokio::test]
    async fn a_flood_of_output_neither_blocks_the_program_nor_is_kept() {
        let outcome = run(&shell("head -c 3000000 /dev/zero | tr '\\0' x; echo; echo end"), LONG).await.unwrap();
        assert!(outcome.status.unwrap().success());
        let text = text(&outcome.output);
        assert!(text.ends_with("x\\nend\\n") && text.len() < Said::LIMIT + 8, "{}", text.len());
    }

    #[tokio::test]
    async fn a_program_that_hangs_is_killed_with_its_children() {
        let marker = "31.4151";
        let start = Instant::now();
        let script = format!("echo said; sleep {marker} & sleep {marker}");
        let outcome = run(&shell(&script), Duration::from_millis(300)).await.unwrap();
        assert!(outcome.status.is_none());
        assert_eq!(text(&outcome.output), "said\\n");
        assert!(start.elapsed() < Duration::from_secs(5));
        until("children are gone", || alive(marker) == 0).await;
    }

    #[tokio::test]
    async fn dropping_the_future_kills_the_group_and_leaves_no_zombie() {
        let marker = "31.4152";
        let command = shell(&format!("sleep {marker} & sleep {marker}"));
        {
            let running = run(&command, LONG);
            tokio::select! {
                _ = running => panic!("it ended"),
                () = until("children run", || alive(marker) >= 2) => {}
            }
        }
        until("children are gone", || alive(marker) == 0).await;
        // Tokio reaps orphans when the next SIGCHLD comes in; another child's will do.
        let start = Instant::now();
        while zombies() > 0 {
            assert!(start.elapsed() < LONG, "a zombie stays");
            run(&shell("exit"), LONG).await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_child_in_the_background_that_keeps_the_pipe_does_not_hang_us() {
        let marker = "31.4153";
        let start = Instant::now();
        let outcome = run(&shell(&format!("sleep {marker} & echo $!")), LONG).await.unwrap();
        assert!(outcome.status.unwrap().success());
        assert!(start.elapsed() < Duration::from_secs(5));
        let pid = Pid::from_raw(text(&outcome.output).trim_end_matches("\\n").parse().unwrap());
        nix::sys::signal::kill(pid, Signal::SIGKILL).unwrap();
        until("it is gone", || alive(marker) == 0).await;
    }

    #[tokio::test]
    async fn a_program_that_cannot_start_is_named_with_the_remedy() {
        let error = run(&"/no/such/program secret-canary".parse().unwrap(), LONG).await.unwrap_err().to_string();
        assert!(error.contains("/no/such/program") && error.contains("COPY --from"), "{error}");
        assert!(!error.contains("canary"), "{error}");
        let error = run(&"/etc/passwd".parse().unwrap(), LONG).await.unwrap_err().to_string();
        assert!(error.contains("permission to execute"), "{error}");
        assert!(!format!("{:?}", "a secret-canary".parse::<Command>()).contains("canary"));
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_or_refused(text in ".{0,40}") {
            if let Ok(command) = text.parse::<Command>() {
                prop_assert!(!command.program.is_empty());
            }
        }
    }
}
