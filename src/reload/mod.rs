//! Telling the main process to reload: by a signal, by HTTP requests, or by a program. One attempt at a time; when to
//! try again is the caller's to decide, from the [`Verdict`].

pub mod confirm;
pub mod process;

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

use self::process::{Child, Clock, FindError, Selector, Signal, SignalError, Target};
use crate::model::journal::Moment;
use crate::net::endpoint::{Endpoint, StatusCodes};
use crate::net::request::{self, HttpConfig, Response};
use crate::os::exec::{self, Command};
use crate::os::mask::Said;

/// How the main process is told.
#[derive(Clone, Debug)]
pub enum Driver {
    /// Not at all: it looks for itself.
    None,
    /// A signal to one process.
    Signal {
        /// `--signal`.
        signal: Signal,
        /// `--process`, `--process-args`, `--pid-file`.
        selector: Selector,
    },
    /// A request to each endpoint, in this order; the next one only when the one before took it.
    Http {
        /// `--reload-url`.
        endpoints: Vec<Endpoint>,
        /// What is sent to each.
        http: HttpConfig,
        /// `--reload-status`.
        accept: StatusCodes,
    },
    /// A program in the sidecar's own image.
    Exec(Command),
}

impl Driver {
    /// Whether an attempt may be given up half way. A program may not: it could leave its work half done.
    #[must_use]
    pub fn can_be_abandoned(&self) -> bool {
        !matches!(self, Self::Exec(_))
    }
}

impl fmt::Display for Driver {
    /// What was done, for the log: no URL, argument or header, as these may hold credentials.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("publish only"),
            Self::Signal { signal, .. } => write!(f, "{signal} was sent"),
            Self::Http { endpoints, .. } if endpoints.len() == 1 => f.write_str("the URL was called"),
            Self::Http { endpoints, .. } => write!(f, "all {} URLs were called", endpoints.len()),
            Self::Exec(_) => f.write_str("the program ran"),
        }
    }
}

/// What a reload needs to know.
#[derive(Clone, Debug)]
pub struct Config {
    /// How.
    pub driver: Driver,
    /// `--process`, `--process-args`, `--pid-file` where it is not a signal that tells: the process to confirm by.
    pub target: Option<Selector>,
    /// Whether it matters which children the process had before: to count new workers, and to tell a replacement from
    /// an orphan.
    pub children: bool,
    /// `--reload-timeout`: for each request, from connect to last byte, and for a program.
    pub timeout: Duration,
    /// `--confirm-timeout` where `--confirm-url` is given: how long a server may refuse connections after a request that
    /// it did not answer, before the main process is taken to have died of the reload. `None`: for ever.
    pub mourning: Option<Duration>,
}

/// What came of one attempt. Messages are fit for logs, `/status` and Events; output only through a mask, for the log.
#[derive(Debug)]
pub enum Verdict {
    /// The main process was notified and did not refuse, or it started after the publish.
    Took(Box<Notified>),
    /// It said no. Retried a few times, then the generation is rejected.
    Refused {
        /// Who said what.
        message: String,
        /// What else it said.
        output: Said,
    },
    /// It was told, did not answer, and has not been there for long since. Not retried: the generation is rejected.
    Died {
        /// Who, for how long, by which flag.
        message: String,
    },
    /// Nobody answered, nobody is there, or not now. Retried for ever, and never a rejection.
    Unreachable {
        /// What stands in the way, and the remedy.
        message: String,
        /// What else was said.
        output: Said,
        /// Whether the main process may have acted all the same: the request was sent and not answered, or a program
        /// ran and did not come to its end.
        delivered: bool,
    },
}

/// Whether the process that is to be signalled can be, as `/status` says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum TargetState {
    /// It is there, and takes the signal.
    Found,
    /// It is not there, or not visible.
    Missing,
    /// More than one could be meant.
    Ambiguous,
    /// The kernel does not allow the signal.
    Forbidden,
    /// It does not handle the signal (yet).
    NotHandling,
}

impl TargetState {
    /// The name in `/status`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Found => "found",
            Self::Missing => "missing",
            Self::Ambiguous => "ambiguous",
            Self::Forbidden => "forbidden",
            Self::NotHandling => "notHandling",
        }
    }
}

/// The target at the last attempt, in the form of `/status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TargetStatus {
    /// In short.
    pub state: TargetState,
    /// Where one process was found.
    pub pid: Option<i32>,
    /// Its executable's base name, or its comm.
    pub name: Option<String>,
    /// What is wrong, and the remedy.
    pub message: Option<String>,
}

impl Config {
    /// Which process is told, or is to be confirmed by, where one was named.
    #[must_use]
    pub fn selector(&self) -> Option<&Selector> {
        match &self.driver {
            Driver::Signal { selector, .. } => Some(selector),
            _ => self.target.as_ref(),
        }
    }

    /// The signal, if it ends the process instead of making it reload.
    fn ended_by(&self) -> Option<Signal> {
        match self.driver {
            Driver::Signal { signal, .. } if signal.ends() => Some(signal),
            _ => None,
        }
    }
}

/// Who was notified, and what was there just before: what a confirmation goes by.
#[derive(Debug)]
pub struct Notified {
    /// How the process is found again; `None` where none was named.
    pub selector: Option<Selector>,
    /// The process, held since before it was notified; `None` if it could not be found then.
    pub target: Option<Target>,
    /// Whether it started after the publish: then all that it is and does is newer.
    pub started_after: bool,
    /// Whether no signal was sent, as it started after the publish and has read what is published.
    pub skipped: bool,
    /// The children that it had just before.
    pub children: BTreeSet<Child>,
    /// The moment just before, in clock ticks since boot; `None` if not known. What started earlier is not its doing.
    pub ticks: Option<u64>,
    /// The signal, if it ends the process, so that another one will take its place.
    pub ended_by: Option<Signal>,
    /// When the attempt took.
    pub at: Instant,
}

/// What was there before an attempt.
#[derive(Debug)]
struct Held {
    generation: u64,
    target: Target,
    started_after: bool,
    children: BTreeSet<Child>,
    ticks: u64,
    /// Whether an attempt since may have reached it.
    delivered: bool,
}

impl Held {
    fn new(generation: u64, target: Target, published: Option<&Moment>, with_children: bool) -> Self {
        // Without the clock, it is taken to be owed.
        let started_after = published.is_some_and(|published| started_after(&target, published).unwrap_or(false));
        // Before the children, so that one that starts in between is among them and not newer.
        let ticks = process::ticks();
        // Where they cannot be listed, the moment alone tells old from new.
        let listed = (with_children && !started_after).then(|| target.children().unwrap_or_default());
        let children = listed.unwrap_or_default();
        Self { generation, target, started_after, children, ticks, delivered: false }
    }
}

/// Tells the main process to reload.
#[derive(Debug)]
pub struct Reloader {
    config: Config,
    /// The generation last tried and not yet taken by all endpoints, and how many of them took it.
    progress: (u64, usize),
    target: Option<TargetStatus>,
    held: Option<Held>,
    silence: Silence,
}

impl Reloader {
    /// One that has told nobody yet.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self { config, progress: (0, 0), target: None, held: None, silence: Silence::default() }
    }

    /// The signal's target as the last attempt saw it; `None` before the first, and for the other drivers.
    #[must_use]
    pub fn target(&self) -> Option<&TargetStatus> {
        self.target.as_ref()
    }

    fn notified(&mut self) -> Notified {
        let selector = self.config.selector().cloned();
        let at = Instant::now();
        let Some(held) = self.held.take() else {
            return Notified {
                selector,
                target: None,
                started_after: false,
                skipped: false,
                children: BTreeSet::new(),
                ticks: None,
                ended_by: None,
                at,
            };
        };
        let Held { target, started_after, children, ticks, .. } = held;
        Notified {
            selector,
            target: Some(target),
            started_after,
            skipped: started_after && matches!(self.config.driver, Driver::Signal { .. }),
            children,
            ticks: Some(ticks),
            ended_by: self.config.ended_by().filter(|_| !started_after),
            at,
        }
    }

    /// Tries once. `generation`: the sequence number of what is published; a retry with the same number does not repeat
    /// the requests that succeeded. `published`: a moment after it was, if known. It may be dropped at any time: a
    /// request is cut off, a program's group is killed.
    pub async fn attempt(&mut self, generation: u64, published: Option<&Moment>) -> Verdict {
        if !matches!(self.config.driver, Driver::Signal { .. }) {
            self.hold(generation, published);
        }
        let failure = match self.notify(generation, published).await {
            Ok(()) => return Verdict::Took(Box::new(self.notified())),
            Err(failure) => failure,
        };
        // Or one of several endpoints took it.
        let reached = matches!(failure, Verdict::Unreachable { delivered: true, .. }) || self.progress.1 > 0;
        if let Some(held) = &mut self.held {
            held.delivered |= reached;
        }
        failure
    }

    /// Holds the process to confirm by. After an attempt that may have reached it, what is newer than that one counts.
    fn hold(&mut self, generation: u64, published: Option<&Moment>) {
        let Some(selector) = &self.config.target else { return };
        let reached = |held: &Held| held.delivered && held.generation == generation && held.target.is_alive();
        if !self.held.as_ref().is_some_and(reached) {
            // One that is not there is waited for when it is time to confirm, and said then.
            let target = process::find(selector).ok();
            self.held = target.map(|target| Held::new(generation, target, published, self.config.children));
        }
    }

    /// An error is any verdict but `Took`.
    async fn notify(&mut self, generation: u64, published: Option<&Moment>) -> Result<(), Verdict> {
        let Config { driver, children, timeout, mourning, .. } = &self.config;
        match driver {
            Driver::None => Ok(()),
            Driver::Signal { signal, selector } => {
                let (result, status, held) = send(*signal, selector, generation, published, *children);
                self.target = Some(status);
                self.held = held;
                result
            }
            Driver::Http { endpoints, http, accept } => {
                if self.progress.0 != generation {
                    self.progress = (generation, 0);
                }
                while let Some(endpoint) = endpoints.get(self.progress.1) {
                    let answer = call(endpoint, http, accept, *timeout).await;
                    let died = self.silence.after(generation, &answer, *mourning);
                    if let Err(NotTold { verdict, .. }) = answer {
                        return Err(died.unwrap_or(verdict));
                    }
                    self.progress.1 += 1;
                }
                // Whoever asks again for the same generation wants all of them told again.
                self.progress.1 = 0;
                Ok(())
            }
            Driver::Exec(command) => execute(command, *timeout).await,
        }
    }
}

fn send(
    signal: Signal,
    selector: &Selector,
    generation: u64,
    published: Option<&Moment>,
    with_children: bool,
) -> (Result<(), Verdict>, TargetStatus, Option<Held>) {
    let blocked = |state, target: Option<&Target>, message: String| {
        let (pid, name) = target.map(|target| (target.pid, target.name.clone())).unzip();
        let status = TargetStatus { state, pid, name, message: Some(message.clone()) };
        (Err(Verdict::Unreachable { message, output: Said::default(), delivered: false }), status, None)
    };
    let target = match process::find(selector) {
        Ok(target) => target,
        Err(error @ FindError::Ambiguous { .. }) => return blocked(TargetState::Ambiguous, None, error.to_string()),
        Err(error) => return blocked(TargetState::Missing, None, error.to_string()),
    };
    let held = Held::new(generation, target, published, with_children);
    let target = &held.target;
    if !held.started_after
        && let Err(error) = target.signal(signal)
    {
        let state = match error {
            SignalError::NotHandling { .. } => TargetState::NotHandling,
            SignalError::Forbidden { .. } => TargetState::Forbidden,
            SignalError::Gone { .. } | SignalError::Io { .. } => TargetState::Missing,
        };
        return blocked(state, Some(target), error.to_string());
    }
    let (pid, name) = (Some(target.pid), Some(target.name.clone()));
    (Ok(()), TargetStatus { state: TargetState::Found, pid, name, message: None }, Some(held))
}

/// Start times have a grain of 10 ms, so a tie is no proof. Under another boot id, every process started later.
fn started_after(target: &Target, published: &Moment) -> std::io::Result<bool> {
    Ok(!Clock::new()?.knows(published) || target.start_ticks > published.ticks)
}

/// Why an endpoint was not told.
#[derive(Debug)]
struct NotTold {
    verdict: Verdict,
    /// Whether anybody was there.
    accepted: bool,
}

/// Since when an endpoint is silent that was told.
#[derive(Debug, Default)]
struct Silence {
    /// The generation of which an endpoint was told, without an answer since.
    told: Option<u64>,
    refused_since: Option<Instant>,
}

impl Silence {
    /// Takes in what came of a request; the verdict, if nobody will come back.
    fn after(&mut self, generation: u64, answer: &Result<(), NotTold>, patience: Option<Duration>) -> Option<Verdict> {
        if self.told != Some(generation) {
            *self = Self::default();
        }
        match answer {
            Err(NotTold { verdict: Verdict::Unreachable { delivered: true, .. }, .. }) => {
                (self.told, self.refused_since) = (Some(generation), None);
            }
            Err(NotTold { verdict: Verdict::Unreachable { message, .. }, accepted: false }) if self.told.is_some() => {
                let since = *self.refused_since.get_or_insert_with(Instant::now);
                let patience = patience.filter(|patience| since.elapsed() >= *patience)?;
                *self = Self::default();
                let message = format!(
                    "a request of reload was sent and not answered, and no connection was accepted for {patience:?} \
                     (--confirm-timeout) since, so the main process is taken to have died of the reload: {message}"
                );
                return Some(Verdict::Died { message });
            }
            // Somebody is there, and will be told again.
            _ => *self = Self::default(),
        }
        None
    }
}

async fn call(endpoint: &Endpoint, http: &HttpConfig, accept: &StatusCodes, timeout: Duration) -> Result<(), NotTold> {
    let Response { status, body, .. } = match request::send(endpoint, http, timeout).await {
        Ok(response) => response,
        Err(error) => {
            let (message, delivered) = (error.to_string(), error.sent());
            let verdict = Verdict::Unreachable { message, output: Said::default(), delivered };
            return Err(NotTold { verdict, accepted: error.accepted() });
        }
    };
    if accept.contains(status) {
        return Ok(());
    }
    let mut output = Said::default();
    output.push(&body);
    let verdict = match status {
        429 | 502..=504 => {
            let message = format!("{endpoint} answered {status}: not now");
            Verdict::Unreachable { message, output, delivered: false }
        }
        300..=399 => {
            let message = format!(
                "{endpoint} answered {status}, and redirects are not followed: give --reload-url the final URL"
            );
            Verdict::Refused { message, output }
        }
        _ => {
            let message = format!("{endpoint} answered {status}, which --reload-status does not accept");
            Verdict::Refused { message, output }
        }
    };
    Err(NotTold { verdict, accepted: true })
}

async fn execute(command: &Command, timeout: Duration) -> Result<(), Verdict> {
    let exec::Outcome { status, output } = match exec::run(command, timeout).await {
        Ok(outcome) => outcome,
        Err(error) => {
            let message = format!("--reload-exec: {error}");
            return Err(Verdict::Unreachable { message, output: Said::default(), delivered: false });
        }
    };
    let failure = match status {
        Some(status) if status.success() => return Ok(()),
        Some(status) => match status.code() {
            Some(code) => Verdict::Refused { message: format!("{command} exited with code {code}"), output },
            // Killed by somebody, for want of memory perhaps: that is not the main process's no. Prints 'signal: 9 …'.
            None => {
                Verdict::Unreachable { message: format!("{command} was ended by a {status}"), output, delivered: true }
            }
        },
        None => {
            let message = format!("{command} was killed after {timeout:?} (--reload-timeout)");
            Verdict::Unreachable { message, output, delivered: true }
        }
    };
    Err(failure)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::{BufRead as _, BufReader, Write as _};
    use std::net::TcpListener;
    use std::process::Command as Process;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Instant;

    use hyper::Method;
    use rustix::process::{Pid, Signal as Raw, kill_process_group, test_kill_process_group};
    use tempfile::TempDir;

    use super::*;

    const LONG: Duration = Duration::from_secs(10);

    /// A main process that is no child of the tests', as it is none of Trimtab's: a copy of the shell that leads a
    /// process group, counts its HUPs in a file once it is told to, and is killed when dropped.
    struct Main {
        name: &'static str,
        group: Pid,
        dir: TempDir,
    }

    impl Main {
        fn start(name: &'static str) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let script = r#"
                cp /bin/sh "$DIR/$NAME" && mkfifo "$DIR/fifo" && exec 9<> "$DIR/fifo" &&
                setsid "$DIR/$NAME" -c 'echo $$ > $DIR/pid.new; mv $DIR/pid.new $DIR/pid; read -r line <&9
                    trap "echo hup >> $DIR/got" HUP; while :; do read -r line <&9; done' > /dev/null 2>&1 &"#;
            let mut shell = Process::new("sh");
            assert!(shell.args(["-c", script]).env("DIR", dir.path()).env("NAME", name).status().unwrap().success());
            let pid = || fs::read_to_string(dir.path().join("pid")).ok()?.trim().parse().ok().and_then(Pid::from_raw);
            until("it runs", || pid().is_some());
            Self { name, group: pid().unwrap(), dir }
        }

        fn trap(&self) {
            fs::write(self.dir.path().join("fifo"), "go\n").unwrap();
        }

        fn hups(&self) -> usize {
            fs::read_to_string(self.dir.path().join("got")).map_or(0, |got| got.lines().count())
        }

        fn reloader(&self) -> Reloader {
            let selector = Selector { name: Some(self.name.into()), ..Selector::default() };
            reloader(Driver::Signal { signal: "HUP".parse().unwrap(), selector })
        }
    }

    impl Drop for Main {
        fn drop(&mut self) {
            kill_process_group(self.group, Raw::KILL).unwrap();
            // A zombie's group can be signalled, too; process 1 reaps it when it comes to it.
            let stat = || fs::read_to_string(format!("/proc/{}/stat", self.group.as_raw_nonzero()));
            until("it has ended", || {
                test_kill_process_group(self.group).is_err() || stat().is_ok_and(|stat| stat.contains(") Z "))
            });
        }
    }

    fn until(what: &str, condition: impl Fn() -> bool) {
        let start = Instant::now();
        while !condition() {
            assert!(start.elapsed() < LONG, "still not so after 10 s: {what}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn took(verdict: &Verdict) -> bool {
        matches!(verdict, Verdict::Took(notified) if !notified.skipped)
    }

    fn was_skipped(verdict: &Verdict) -> bool {
        matches!(verdict, Verdict::Took(notified) if notified.skipped)
    }

    fn reloader(driver: Driver) -> Reloader {
        Reloader::new(Config { driver, target: None, children: true, timeout: LONG, mourning: None })
    }

    fn exec(command: &str) -> Reloader {
        reloader(Driver::Exec(command.parse().unwrap()))
    }

    fn http(endpoints: &[&str]) -> Reloader {
        reloader(Driver::Http {
            endpoints: endpoints.iter().map(|endpoint| endpoint.parse().unwrap()).collect(),
            http: HttpConfig { method: Method::POST, ..HttpConfig::default() },
            accept: "2xx".parse().unwrap(),
        })
    }

    /// A server that answers each request with the next of these, the last one again and again; and its count.
    fn serve(statuses: &'static [u16]) -> (String, Arc<AtomicUsize>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let count = Arc::new(AtomicUsize::new(0));
        let counted = count.clone();
        std::thread::spawn(move || {
            for peer in listener.incoming() {
                let mut peer = peer.unwrap();
                let head = BufReader::new(&peer).lines().map(Result::unwrap);
                head.take_while(|line| !line.is_empty()).for_each(drop);
                let status = statuses[counted.fetch_add(1, Ordering::SeqCst).min(statuses.len() - 1)];
                write!(peer, "HTTP/1.1 {status} X\r\nContent-Length: 6\r\n\r\ncanary").unwrap();
            }
        });
        (url, count)
    }

    #[tokio::test]
    async fn without_a_driver_there_is_nothing_to_tell() {
        assert!(took(&reloader(Driver::None).attempt(1, None).await));
    }

    #[tokio::test]
    async fn a_signal_is_held_back_until_it_is_handled_and_then_arrives_once() {
        let main = Main::start("tt-reload-main");
        let mut reloader = main.reloader();
        let Verdict::Unreachable { message, delivered: false, .. } = reloader.attempt(1, None).await else { panic!() };
        assert!(message.contains("does not handle SIGHUP"), "{message}");
        let status = reloader.target().unwrap();
        assert_eq!((status.state, status.pid), (TargetState::NotHandling, Some(main.group.as_raw_nonzero().get())));
        main.trap();
        let start = Instant::now();
        while !took(&reloader.attempt(1, None).await) {
            assert!(start.elapsed() < LONG);
        }
        until("the signal has arrived", || main.hups() == 1);
        let status = serde_json::to_value(reloader.target().unwrap()).unwrap();
        let pid = main.group.as_raw_nonzero().get();
        let expected = serde_json::json!({"state": "found", "pid": pid, "name": main.name, "message": null});
        assert_eq!(status, expected);
    }

    #[tokio::test]
    async fn a_signal_is_not_owed_to_a_process_that_started_after_the_publish() {
        let before = Clock::new().unwrap().now();
        let main = Main::start("tt-reload-newer");
        main.trap();
        let mut reloader = main.reloader();
        until("it started in a later tick", || process::ticks() > before.ticks + 1);
        let target = process::find(&Selector { name: Some(main.name.into()), ..Selector::default() }).unwrap();
        let at = |ticks| Moment { ticks, ..before.clone() };
        assert!(was_skipped(&reloader.attempt(1, Some(&at(target.start_ticks - 1))).await));
        let rebooted = Moment { boot_id: "another".into(), ticks: u64::MAX };
        assert!(was_skipped(&reloader.attempt(1, Some(&rebooted)).await));
        assert_eq!(reloader.target().unwrap().state, TargetState::Found);
        assert_eq!(main.hups(), 0);
        // A tie is owed.
        let start = Instant::now();
        while !took(&reloader.attempt(1, Some(&at(target.start_ticks))).await) {
            assert!(start.elapsed() < LONG);
        }
        until("the signal has arrived", || main.hups() == 1);
    }

    #[tokio::test]
    async fn a_missing_and_an_ambiguous_target_are_retried_and_reported() {
        let mains = [Main::start("tt-reload-twin"), Main::start("tt-reload-twin")];
        let mut reloader = mains[0].reloader();
        assert!(matches!(reloader.attempt(1, None).await, Verdict::Unreachable { .. }));
        assert_eq!(reloader.target().unwrap().state, TargetState::Ambiguous);
        drop(mains);
        assert!(matches!(reloader.attempt(1, None).await, Verdict::Unreachable { .. }));
        let status = reloader.target().unwrap();
        assert_eq!((status.state, status.pid), (TargetState::Missing, None));
        assert!(status.message.as_ref().unwrap().contains("--process tt-reload-twin"));
    }

    #[tokio::test]
    async fn answers_are_taken_refused_or_tried_again() {
        for (statuses, expected) in [
            (&[200][..], "took"),
            (&[204], "took"),
            (&[400], "refused"),
            (&[404], "refused"),
            (&[500], "refused"),
            (&[302], "refused"),
            (&[429], "unreachable"),
            (&[502], "unreachable"),
            (&[503], "unreachable"),
            (&[504], "unreachable"),
        ] {
            let (url, _) = serve(statuses);
            let verdict = http(&[&url]).attempt(1, None).await;
            assert!(!format!("{verdict:?}").contains("canary"), "{verdict:?}");
            let (found, message) = match verdict {
                Verdict::Took(_) => ("took", String::new()),
                Verdict::Refused { message, output } => {
                    assert!(!output.is_empty());
                    ("refused", message)
                }
                Verdict::Unreachable { message, output, delivered } => {
                    assert!(!output.is_empty() && !delivered);
                    ("unreachable", message)
                }
                Verdict::Died { .. } => panic!(),
            };
            assert_eq!(found, expected, "{statuses:?}");
            assert!(found == "took" || message.contains(&format!("{url} answered {}", statuses[0])), "{message}");
            assert!(statuses != [302] || message.contains("final URL"), "{message}");
        }
        let (url, _) = serve(&[503]);
        let mut listed = http(&[&url]);
        if let Driver::Http { accept, .. } = &mut listed.config.driver {
            *accept = "2xx,503".parse().unwrap();
        }
        assert!(took(&listed.attempt(1, None).await));
    }

    #[tokio::test]
    async fn silence_is_unreachable_and_counts_as_delivered() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let mut reloader = http(&[&url]);
        reloader.config.timeout = Duration::from_millis(200);
        // The kernel accepts the connection and the request; nobody answers.
        assert!(matches!(reloader.attempt(1, None).await, Verdict::Unreachable { delivered: true, .. }));
        drop(listener);
        assert!(matches!(reloader.attempt(1, None).await, Verdict::Unreachable { delivered: false, .. }));
    }

    #[tokio::test]
    async fn who_is_told_does_not_answer_and_stays_away_has_died_of_it() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let mut reloader = http(&[&format!("http://{address}/")]);
        (reloader.config.timeout, reloader.config.mourning) = (Duration::from_millis(200), Some(Duration::ZERO));
        assert!(matches!(reloader.attempt(1, None).await, Verdict::Unreachable { delivered: true, .. }));
        drop(listener);
        // Of another generation nobody was told.
        assert!(matches!(reloader.attempt(2, None).await, Verdict::Unreachable { delivered: false, .. }));
        assert!(matches!(reloader.attempt(2, None).await, Verdict::Unreachable { delivered: false, .. }));

        let listener = TcpListener::bind(address).unwrap();
        assert!(matches!(reloader.attempt(3, None).await, Verdict::Unreachable { delivered: true, .. }));
        drop(listener);
        reloader.config.mourning = Some(LONG);
        assert!(matches!(reloader.attempt(3, None).await, Verdict::Unreachable { .. }), "not yet");
        reloader.config.mourning = None;
        assert!(matches!(reloader.attempt(3, None).await, Verdict::Unreachable { .. }), "nobody looks");
        reloader.config.mourning = Some(Duration::ZERO);
        let Verdict::Died { message } = reloader.attempt(3, None).await else { panic!() };
        assert!(message.contains("--confirm-timeout"), "{message}");
        assert!(matches!(reloader.attempt(3, None).await, Verdict::Unreachable { .. }), "once");
    }

    #[tokio::test]
    async fn a_retry_does_not_repeat_what_succeeded() {
        let (first, first_count) = serve(&[200]);
        let (second, second_count) = serve(&[500, 200]);
        let (third, third_count) = serve(&[200]);
        let counts = || [&first_count, &second_count, &third_count].map(|count| count.load(Ordering::SeqCst));
        let mut reloader = http(&[&first, &second, &third]);
        assert!(matches!(reloader.attempt(7, None).await, Verdict::Refused { .. }));
        assert_eq!(counts(), [1, 1, 0]);
        assert!(took(&reloader.attempt(7, None).await));
        assert_eq!(counts(), [1, 2, 1]);
        // Done with: asking again tells all of them.
        assert!(took(&reloader.attempt(7, None).await));
        assert_eq!(counts(), [2, 3, 2]);
    }

    #[tokio::test]
    async fn another_generation_is_told_to_all() {
        let (first, first_count) = serve(&[200]);
        let (second, _) = serve(&[500, 200]);
        let mut reloader = http(&[&first, &second]);
        assert!(matches!(reloader.attempt(7, None).await, Verdict::Refused { .. }));
        assert!(took(&reloader.attempt(6, None).await));
        assert_eq!(first_count.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn a_program_decides_by_its_exit() {
        assert!(took(&exec("true").attempt(1, None).await));
        let verdict = exec("sh -c 'echo canary; exit 3'").attempt(1, None).await;
        assert!(!format!("{verdict:?}").contains("canary"), "{verdict:?}");
        let Verdict::Refused { message, output } = verdict else { panic!() };
        assert_eq!(message, "sh exited with code 3");
        assert!(!output.is_empty());
        let Verdict::Unreachable { message, delivered: true, .. } = exec("sh -c 'kill -9 $$'").attempt(1, None).await
        else {
            panic!()
        };
        assert!(message.contains("signal: 9"), "{message}");
        let mut slow = exec("sleep 31.4154");
        slow.config.timeout = Duration::from_millis(100);
        let Verdict::Unreachable { message, delivered: true, .. } = slow.attempt(1, None).await else { panic!() };
        assert!(message.contains("--reload-timeout"), "{message}");
        let Verdict::Unreachable { message, delivered: false, .. } = exec("/no/such").attempt(1, None).await else {
            panic!()
        };
        assert!(message.contains("--reload-exec") && message.contains("COPY --from"), "{message}");
    }
}
