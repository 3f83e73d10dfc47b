//! Confirmation of real processes and real servers.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use nix::sys::signal::{Signal as Raw, killpg};
use nix::unistd::Pid;
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::*;
use crate::net::request::{BODY_KEPT, BODY_READ};
use crate::reload::process::{self, Selector};
use crate::reload::{self, Driver, Reloader};

/// No test waits longer than this.
const LONG: Duration = Duration::from_secs(20);
/// How long life must last here.
const ALIVE: Duration = Duration::from_millis(200);
/// A `--confirm-timeout` that runs out in the test.
const SHORT: Duration = Duration::from_millis(500);

/// Does nothing until it is killed.
const IDLE: &str = "while :; do read -r line <&9; done";

/// A main process that is no child of the tests', as it is none of Trimtab's: a copy of the shell that leads a process
/// group, with a script of its own; killed when dropped.
struct Main {
    name: String,
    group: Pid,
    dir: TempDir,
}

impl Main {
    fn start(name: &str, script: &str) -> Self {
        Self::launch(name, script, "setsid \"$DIR/$NAME\" -c \"$SCRIPT\"")
    }

    fn launch(name: &str, script: &str, launch: &str) -> Self {
        let name = unique(name);
        let dir = tempfile::tempdir().unwrap();
        let script = format!("exec 9<> $DIR/fifo; {script}");
        let shell = format!("cp /bin/sh \"$DIR/$NAME\" && mkfifo \"$DIR/fifo\" && {launch} > /dev/null 2>&1 &");
        let mut command = Command::new("sh");
        command.args(["-c", &shell]).env("DIR", dir.path()).env("NAME", &name).env("SCRIPT", script);
        assert!(command.status().unwrap().success());
        let path = dir.path().join("ready");
        let pid = || fs::read_to_string(&path).ok()?.strip_suffix('\n')?.parse().ok().map(Pid::from_raw);
        until("it runs", || pid().is_some());
        Self { name, group: pid().unwrap(), dir }
    }

    /// One that does this on HUP, once it is ready.
    fn on_hup(name: &str, action: &str) -> Self {
        Self::start(name, &format!("trap '{action}' HUP; echo $$ > $DIR/ready; {IDLE}"))
    }

    fn selector(&self) -> Selector {
        named(&self.name)
    }

    /// As messages call it.
    fn who(&self) -> String {
        format!("PID {} ({})", self.pid(), self.name)
    }

    fn pid(&self) -> i32 {
        self.group.as_raw()
    }

    fn has(&self, file: &str) -> bool {
        self.dir.path().join(file).exists()
    }

    /// Sends the signal, as a reload.
    async fn notified(&self, signal: &str) -> Notified {
        notified(Driver::Signal { signal: signal.parse().unwrap(), selector: self.selector() }, None).await
    }

    fn is_gone(&self) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid()));
        killpg(self.group, None).is_err() || stat.is_ok_and(|stat| stat.contains(") Z "))
    }
}

impl Drop for Main {
    fn drop(&mut self) {
        // Some have ended by themselves.
        let _ = killpg(self.group, Raw::SIGKILL);
        until("it has ended", || self.is_gone());
    }
}

fn until(what: &str, condition: impl Fn() -> bool) {
    let start = std::time::Instant::now();
    while !condition() {
        assert!(start.elapsed() < LONG, "still not so after {LONG:?}: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// A name that no other run of these tests uses at the same time.
fn unique(name: &str) -> String {
    format!("{name}-{}", std::process::id())
}

fn named(name: &str) -> Selector {
    Selector { name: Some(name.into()), ..Selector::default() }
}

fn took(result: Result<Notified, NotTaken>) -> Option<Notified> {
    result.ok()
}

/// What a reload by this driver leaves.
async fn notified(driver: Driver, target: Option<Selector>) -> Notified {
    let mut reloader = Reloader::new(reload::Config {
        driver,
        target,
        children: true,
        timeout: LONG,
        presumed_dead_after: None,
        ready: None,
    });
    took(reloader.attempt(1, None).await).expect("it took")
}

async fn notified_nobody() -> Notified {
    notified(Driver::None, None).await
}

fn alive() -> Config {
    Config { alive: Some(ALIVE), workers: false, url: None, timeout: LONG }
}

/// For those that exit: long enough for a busy machine.
fn alive_long() -> Config {
    Config { alive: Some(LONG / 2), ..alive() }
}

fn workers() -> Config {
    Config { workers: true, ..alive() }
}

fn url(url: &str) -> Config {
    let probe = Probe {
        endpoint: url.parse().unwrap(),
        http: HttpConfig::default(),
        accept: "2xx".parse().unwrap(),
        matches: None,
        changed: None,
    };
    Config { alive: None, workers: false, url: Some(probe), timeout: LONG }
}

fn matching(mut config: Config, pattern: &str) -> Config {
    config.url.as_mut().unwrap().matches = Some(pattern.parse().unwrap());
    config
}

fn changing(mut config: Config, pattern: &str) -> Config {
    config.url.as_mut().unwrap().changed = Some(Regex::new(pattern).unwrap());
    config
}

fn key() -> DigestKey {
    DigestKey::new([7; 32])
}

fn generation() -> Digest {
    Digest::from_bytes([0xab; 32])
}

/// A confirmation under way.
struct Running {
    task: JoinHandle<Result<(), NotTaken>>,
    impatient: watch::Sender<bool>,
}

impl Running {
    fn start(config: &Config, notified: Notified, baseline: Option<Baseline>) -> Self {
        let (config, (impatient, hurry)) = (config.clone(), watch::channel(false));
        let task =
            tokio::spawn(
                async move { confirm(&config, notified, baseline.as_ref(), generation(), &key(), hurry).await },
            );
        Self { task, impatient }
    }

    async fn verdict(self) -> Result<(), NotTaken> {
        tokio::time::timeout(LONG, self.task).await.expect("no verdict").unwrap()
    }

    async fn rejection(self) -> String {
        match self.verdict().await {
            Err(NotTaken::Refused { message, .. }) => message,
            other => panic!("{other:?}"),
        }
    }

    async fn absence(self) -> String {
        match self.verdict().await {
            Err(NotTaken::Unreachable { message, .. }) => message,
            other => panic!("{other:?}"),
        }
    }

    /// Runs for longer than the time that would bring a verdict, if the clock ran.
    async fn goes_on(&self) {
        sleep(2 * SHORT).await;
        assert!(!self.task.is_finished());
    }
}

fn assert_has(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "{part} is not in: {message}");
    }
}

/// A server of answers; `None` is a connection that nobody answers. Stops listening when dropped.
struct Server {
    url: String,
    address: std::net::SocketAddr,
    count: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Server {
    fn start(answer: impl Fn(usize) -> Option<(u16, String)> + Send + 'static) -> Self {
        Self::listen(TcpListener::bind("127.0.0.1:0").unwrap(), answer)
    }

    fn listen(listener: TcpListener, answer: impl Fn(usize) -> Option<(u16, String)> + Send + 'static) -> Self {
        let address = listener.local_addr().unwrap();
        let (count, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let (counted, stopped) = (count.clone(), stop.clone());
        let thread = thread::spawn(move || {
            let mut kept = Vec::new();
            for peer in listener.incoming() {
                let mut peer = peer.unwrap();
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                let head = BufReader::new(&peer).lines().map_while(Result::ok);
                head.take_while(|line| !line.is_empty()).for_each(drop);
                let Some((status, body)) = answer(counted.fetch_add(1, Ordering::SeqCst)) else {
                    kept.push(peer);
                    continue;
                };
                // The other side may have gone away.
                let _ = write!(peer, "HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n{body}", body.len());
            }
        });
        Self { url: format!("http://{address}/"), address, count, stop, thread: Some(thread) }
    }

    fn says(body: impl Into<String>) -> Self {
        let body = body.into();
        Self::start(move |_| Some((200, body.clone())))
    }

    fn count(&self) -> usize {
        self.count.load(Ordering::SeqCst)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = std::net::TcpStream::connect(self.address);
        self.thread.take().unwrap().join().unwrap();
    }
}

/// An address where nobody listens: not the servers' one, or its port could be one's that comes.
fn nobody() -> std::net::SocketAddr {
    TcpListener::bind("127.0.0.2:0").unwrap().local_addr().unwrap()
}

const REACHABLE: Option<Baseline> = Some(Baseline { reachable: true, captured: None });
const UNREACHABLE: Option<Baseline> = Some(Baseline { reachable: false, captured: None });

#[tokio::test]
async fn one_that_lives_on_took_it() {
    let main = Main::on_hup("tt-cf-lives", "touch $DIR/got");
    let started = Instant::now();
    let running = Running::start(&alive(), main.notified("HUP").await, None);
    assert_eq!(running.verdict().await, Ok(()));
    assert!(started.elapsed() >= ALIVE && main.has("got"));
}

#[tokio::test]
async fn one_that_exits_is_rejected_at_once_or_later() {
    for action in ["exit 1", "sleep 0.1; exit 1"] {
        let main = Main::on_hup("tt-cf-exits", action);
        let message = Running::start(&alive_long(), main.notified("HUP").await, None).rejection().await;
        assert_has(&message, &[&main.who(), "exited", "--confirm-alive 10s"]);
    }
}

#[tokio::test]
async fn one_that_exits_while_the_url_is_still_asked_is_rejected() {
    let server = Server::start(|_| Some((500, String::new())));
    let main = Main::on_hup("tt-cf-exits-later", "sleep 0.5; exit 1");
    let config = Config { alive: Some(ALIVE), ..url(&server.url) };
    let message = Running::start(&config, main.notified("HUP").await, REACHABLE).rejection().await;
    assert_has(&message, &[&main.who(), "exited"]);
}

#[tokio::test]
async fn a_zombie_is_dead() {
    // Its parent has become another program, which does not reap it.
    let launch = "setsid sh -c '\"$DIR/$NAME\" -c \"$SCRIPT\" & exec sleep 1000'";
    let script = format!("trap 'exit 1' HUP; ps -o pgid= -p $$ | tr -d ' ' > $DIR/ready; {IDLE}");
    let main = Main::launch("tt-cf-zombie", &script, launch);
    let message = Running::start(&alive_long(), main.notified("HUP").await, None).rejection().await;
    assert_has(&message, &["tt-cf-zombie", "exited"]);
}

/// A process whose parent does not reap it, so that how it ended can be read for certain.
fn unreaped(name: &str, script: &str) -> Main {
    let launch = "setsid sh -c '\"$DIR/$NAME\" -c \"$SCRIPT\" & exec sleep 1000'";
    Main::launch(name, &format!("{script}; ps -o pgid= -p $$ | tr -d ' ' > $DIR/ready; {IDLE}"), launch)
}

#[tokio::test]
async fn one_that_the_signal_itself_ends_is_no_fault_of_the_configuration() {
    for (name, dies) in [("tt-cf-killed", "trap - HUP; kill -HUP $$"), ("tt-cf-as-a-jvm", "exit 129")] {
        let main = unreaped(name, &format!("trap '{dies}' HUP"));
        let running = Running::start(&Config { timeout: SHORT, ..alive() }, main.notified("HUP").await, None);
        running.goes_on().await;
        running.impatient.send(true).unwrap();
        assert_has(&running.absence().await, &["was ended by SIGHUP: does it handle it?", name]);
    }
    let main = unreaped("tt-cf-replaced", "trap 'exit 129' HUP");
    let running = Running::start(&alive(), main.notified("HUP").await, None);
    let _next = Main::on_hup("tt-cf-replaced", ":");
    assert_eq!(running.verdict().await, Ok(()));
}

#[tokio::test]
async fn one_that_may_have_died_of_the_signal_is_rejected_by_that_name() {
    let main = Main::on_hup("tt-cf-maybe", "exit 1");
    let message = Running::start(&alive_long(), main.notified("HUP").await, None).rejection().await;
    assert_has(&message, &["exited after", "unless SIGHUP itself ended it"]);
}

#[tokio::test]
async fn one_that_ends_on_term_is_followed_by_another_however_late() {
    let main = Main::start("tt-cf-term", &format!("echo $$ > $DIR/ready; {IDLE}"));
    let config = Config { timeout: SHORT, ..alive() };
    let running = Running::start(&config, main.notified("TERM").await, None);
    until("it has ended", || main.is_gone());
    running.goes_on().await;
    let _next = Main::on_hup("tt-cf-term", ":");
    assert_eq!(running.verdict().await, Ok(()));
}

#[tokio::test]
async fn a_replacement_that_exits_is_rejected() {
    let main = Main::start("tt-cf-crash", &format!("echo $$ > $DIR/ready; {IDLE}"));
    let running = Running::start(&alive_long(), main.notified("TERM").await, None);
    until("it has ended", || main.is_gone());
    let next = Main::start("tt-cf-crash", "echo $$ > $DIR/ready; sleep 0.1; exit 1");
    let message = running.rejection().await;
    assert_has(&message, &[&format!("{}, which started after", next.who()), "--confirm-alive"]);
}

#[tokio::test]
async fn without_a_replacement_it_waits_until_there_is_no_time() {
    let main = Main::start("tt-cf-never", &format!("echo $$ > $DIR/ready; {IDLE}"));
    let config = Config { timeout: SHORT, ..alive() };
    let running = Running::start(&config, main.notified("TERM").await, None);
    until("it has ended", || main.is_gone());
    running.goes_on().await;
    running.impatient.send(true).unwrap();
    let message = running.absence().await;
    assert_has(&message, &[&format!("{} has ended on SIGTERM", main.who()), "--process tt-cf-never"]);
}

#[tokio::test]
async fn one_that_does_not_end_on_term_is_rejected_in_time() {
    let main = Main::start("tt-cf-stubborn", &format!("trap : TERM; echo $$ > $DIR/ready; {IDLE}"));
    let config = Config { timeout: SHORT, ..alive() };
    let running = Running::start(&config, main.notified("TERM").await, None);
    // Whoever is there gets the time.
    running.impatient.send(true).unwrap();
    assert_has(&running.rejection().await, &["has not ended on SIGTERM", "--confirm-timeout"]);
}

#[tokio::test]
async fn what_an_ended_one_leaves_behind_is_no_replacement() {
    let script = format!("( {IDLE} ) & echo $$ > $DIR/ready; {IDLE}");
    let main = Main::start("tt-cf-orphan", &script);
    let running = Running::start(&Config { timeout: SHORT, ..alive() }, main.notified("TERM").await, None);
    running.goes_on().await;
    running.impatient.send(true).unwrap();
    assert_has(&running.absence().await, &["was there before the reload"]);
}

#[tokio::test]
async fn haste_does_not_cut_short_who_is_there() {
    let main = Main::on_hup("tt-cf-haste", "sleep 0.1; exit 1");
    let running = Running::start(&alive_long(), main.notified("HUP").await, None);
    running.impatient.send(true).unwrap();
    assert_has(&running.rejection().await, &["exited"]);
}

#[tokio::test]
async fn one_that_was_not_there_is_waited_for() {
    let target = named(&unique("tt-cf-missing"));
    let running = Running::start(&alive(), notified(Driver::None, Some(target.clone())).await, None);
    sleep(ALIVE).await;
    let _main = Main::on_hup("tt-cf-missing", ":");
    assert_eq!(running.verdict().await, Ok(()));
    let running = Running::start(&alive(), notified(Driver::None, Some(named("tt-cf-nobody"))).await, None);
    running.impatient.send(true).unwrap();
    assert_has(&running.absence().await, &["--process tt-cf-nobody"]);
}

#[tokio::test]
async fn a_target_is_held_before_another_driver_notifies() {
    let main = Main::on_hup("tt-cf-exec", "exit 1");
    let command = format!("sh -c 'kill -HUP {0}; while kill -0 {0}; do sleep 0.01; done'", main.pid());
    let notified = notified(Driver::Exec(command.parse().unwrap()), Some(main.selector())).await;
    assert_has(&Running::start(&alive_long(), notified, None).rejection().await, &[&main.who(), "exited"]);
}

#[tokio::test]
async fn old_workers_do_not_count() {
    let script = format!("( {IDLE} ) & trap : HUP; echo $$ > $DIR/ready; {IDLE}");
    let main = Main::start("tt-cf-old-worker", &script);
    let config = Config { timeout: SHORT, ..workers() };
    let message = Running::start(&config, main.notified("HUP").await, None).rejection().await;
    assert_has(&message, &["--confirm-workers", "--confirm-timeout", "started no new worker within"]);
}

#[tokio::test]
async fn a_new_worker_that_lives_counts_also_after_one_that_does_not() {
    for action in [format!("( {IDLE} ) &"), format!("sh -c : & sleep 0.1; ( {IDLE} ) &")] {
        let main = Main::on_hup("tt-cf-worker", &action);
        let running = Running::start(&workers(), main.notified("HUP").await, None);
        assert_eq!(running.verdict().await, Ok(()), "{action}");
    }
}

#[tokio::test]
async fn workers_that_do_not_live_are_rejected() {
    // As a master that starts another one whenever one exits.
    let script = "trap 'while :; do sleep 0.05; done' HUP; echo $$ > $DIR/ready; while :; do read -r line <&9; done";
    let main = Main::start("tt-cf-dying-workers", script);
    let config = Config { timeout: SHORT, ..workers() };
    let message = Running::start(&config, main.notified("HUP").await, None).rejection().await;
    assert_has(&message, &["new workers, and none of them lived for", "--confirm-workers"]);
}

#[tokio::test]
async fn all_workers_of_a_process_that_is_newer_than_the_publish_are_new() {
    let before = process::Clock::new().unwrap().now();
    later_tick();
    let main = Main::start("tt-cf-not-due", &format!("( {IDLE} ) & trap : HUP; echo $$ > $DIR/ready; {IDLE}"));
    later_tick();
    let running = Running::start(&workers(), not_due(&main, &before).await, None);
    assert_eq!(running.verdict().await, Ok(()));
}

fn later_tick() {
    let before = process::ticks();
    until("a later tick", || process::ticks() > before + 1);
}

/// What a signal that is not due leaves.
async fn not_due(main: &Main, before: &crate::model::journal::Moment) -> Notified {
    let driver = Driver::Signal { signal: "TERM".parse().unwrap(), selector: main.selector() };
    let mut reloader = Reloader::new(reload::Config {
        driver,
        target: None,
        children: true,
        timeout: LONG,
        presumed_dead_after: None,
        ready: None,
    });
    took(reloader.attempt(1, Some(before)).await).filter(|notified| notified.skipped).expect("none is sent")
}

#[tokio::test]
async fn one_that_is_newer_than_the_publish_and_exits_is_rejected() {
    let before = process::Clock::new().unwrap().now();
    later_tick();
    let main = Main::on_hup("tt-cf-newer", "exit 1");
    let running = Running::start(&alive_long(), not_due(&main, &before).await, None);
    killpg(main.group, Raw::SIGHUP).unwrap();
    assert_has(&running.rejection().await, &[&format!("{}, which started after the publish, exited", main.who())]);
}

#[tokio::test]
async fn the_time_that_the_old_one_takes_to_end_is_not_its_replacements() {
    let script = format!("trap 'sleep 1.2; exit 0' TERM; echo $$ > $DIR/ready; {IDLE}");
    let main = Main::start("tt-cf-slow-end", &script);
    let config = Config { alive: Some(Duration::from_millis(1200)), timeout: Duration::from_secs(2), ..alive() };
    let running = Running::start(&config, main.notified("TERM").await, None);
    while !main.is_gone() {
        sleep(Duration::from_millis(5)).await;
    }
    let _next = Main::on_hup("tt-cf-slow-end", ":");
    assert_eq!(running.verdict().await, Ok(()));
}

/// The children that the reload in the second of two attempts leaves as old, where one came between them.
async fn old_children_after(name: &str, first: Option<u16>) -> usize {
    let server =
        Server::start(move |count| if count == 0 { Some((first?, String::new())) } else { Some((200, String::new())) });
    let main = Main::on_hup(name, &format!("( {IDLE} ) &"));
    let http = HttpConfig::default();
    let driver = Driver::Http {
        program: None,
        endpoints: vec![server.url.parse().unwrap()],
        http: Box::new(http),
        accept: "2xx".parse().unwrap(),
    };
    let target = Some(main.selector());
    let mut reloader = Reloader::new(reload::Config {
        driver,
        target,
        children: true,
        timeout: SHORT,
        presumed_dead_after: None,
        ready: None,
    });
    assert!(took(reloader.attempt(1, None).await).is_none());
    let target = process::find(&main.selector()).unwrap();
    target.signal("HUP".parse().unwrap()).await.unwrap();
    until("it has a child", || target.children().unwrap().len() == 1);
    took(reloader.attempt(1, None).await).expect("it took").children.len()
}

#[tokio::test]
async fn a_worker_after_an_attempt_that_may_have_arrived_is_new() {
    assert_eq!(old_children_after("tt-cf-delivered", None).await, 0);
    assert_eq!(old_children_after("tt-cf-refused", Some(500)).await, 1);
}

#[tokio::test]
async fn workers_of_a_replacement_count() {
    let main = Main::start("tt-cf-next-worker", &format!("( {IDLE} ) & echo $$ > $DIR/ready; wait"));
    let running = Running::start(&workers(), main.notified("TERM").await, None);
    killpg(main.group, Raw::SIGKILL).unwrap();
    until("it has ended", || main.is_gone());
    let _next = Main::start("tt-cf-next-worker", &format!("( {IDLE} ) & echo $$ > $DIR/ready; {IDLE}"));
    assert_eq!(running.verdict().await, Ok(()));
}

#[tokio::test]
async fn an_answer_of_the_right_status_confirms() {
    let server = Server::start(|count| Some((if count < 2 { 503 } else { 204 }, String::new())));
    let running = Running::start(&url(&server.url), notified_nobody().await, None);
    assert_eq!(running.verdict().await, Ok(()));
    assert_eq!(server.count(), 3);
    let server = Server::start(|_| Some((500, "canary".into())));
    let config = Config { timeout: SHORT, ..url(&server.url) };
    let verdict = Running::start(&config, notified_nobody().await, None).verdict().await;
    assert!(!format!("{verdict:?}").contains("canary"), "{verdict:?}");
    let Err(NotTaken::Refused { message, output }) = verdict else { panic!() };
    assert_has(&message, &["answered 500", "--confirm-status", "--confirm-timeout"]);
    assert!(!output.is_empty());
}

#[tokio::test]
async fn the_body_must_show_the_generation() {
    let pattern = r"running=\{?{digest}\b";
    for (body, took) in [(format!("running={}", generation()), true), (format!("running={:064}", 1), false)] {
        let server = Server::says(body);
        let config = Config { timeout: SHORT, ..matching(url(&server.url), pattern) };
        let verdict = Running::start(&config, notified_nobody().await, None).verdict().await;
        if took {
            assert_eq!(verdict, Ok(()));
        } else {
            let Err(NotTaken::Refused { message, .. }) = verdict else { panic!() };
            assert_has(&message, &["does not match --confirm-match"]);
        }
    }
    let unknown: Pattern = pattern.parse().unwrap();
    assert!(unknown.of(Digest::UNKNOWN).unwrap().is_match(&format!("running={}", generation())));
    assert!("({digest}".parse::<Pattern>().is_err());
}

#[tokio::test]
async fn a_large_body_is_looked_through_and_what_is_beyond_is_said() {
    let server = Server::says(format!("{}canary=1\n", "x".repeat(BODY_KEPT)));
    let config = matching(url(&server.url), "canary=1");
    assert_eq!(Running::start(&config, notified_nobody().await, None).verdict().await, Ok(()));
    let server = Server::says(format!("{}canary=1\n", "x".repeat(BODY_READ)));
    let config = Config { timeout: SHORT, ..matching(url(&server.url), "canary=1") };
    let message = Running::start(&config, notified_nobody().await, None).rejection().await;
    assert_has(&message, &["--confirm-match", "only the first MiB"]);
}

#[tokio::test]
async fn the_query_is_masked_in_what_is_said_and_not_in_what_is_matched() {
    let server = Server::start(|_| Some((200, "metric-canary 17".into())));
    let asked = format!("{}?query=metric-canary", server.url);
    let config = matching(url(&asked), "metric-canary 17");
    assert_eq!(Running::start(&config, notified_nobody().await, None).verdict().await, Ok(()));
    let config = Config { timeout: SHORT, ..matching(url(&asked), "metric-canary 18") };
    let Err(NotTaken::Refused { message, output }) =
        Running::start(&config, notified_nobody().await, None).verdict().await
    else {
        panic!()
    };
    let said = crate::os::mask::Mask::new([]).apply(&output);
    assert_eq!(said, "*** 17");
    assert!(!message.contains("canary"), "{message}");
}

#[tokio::test]
async fn what_is_captured_must_differ_from_before() {
    let counter = Arc::new(AtomicUsize::new(1));
    let shown = counter.clone();
    let server =
        Server::start(move |count| Some((200, format!("noise {count}\nloaded {}\n", shown.load(Ordering::SeqCst)))));
    let config = changing(url(&server.url), r"loaded (\d+)");
    let before = baseline(&config, &key()).await;
    assert!(before.as_ref().is_some_and(|before| before.reachable && before.captured.is_some()));
    let other = baseline(&config, &DigestKey::new([8; 32])).await;
    assert_ne!(before, other, "what was captured is kept keyed alone");
    let short = Config { timeout: SHORT, ..config.clone() };
    let message = Running::start(&short, notified_nobody().await, before.clone()).rejection().await;
    assert_has(&message, &["--confirm-changed", "as it was before"]);
    let running = Running::start(&config, notified_nobody().await, before);
    let asked = server.count();
    while server.count() < asked + 2 {
        sleep(Duration::from_millis(5)).await;
    }
    assert!(!running.task.is_finished());
    counter.store(2, Ordering::SeqCst);
    assert_eq!(running.verdict().await, Ok(()));
    // A capture where there was none is a change; no capture is none.
    assert_eq!(Running::start(&config, notified_nobody().await, None).verdict().await, Ok(()));
    let nothing = Config { timeout: SHORT, ..changing(url(&server.url), "not there") };
    let message = Running::start(&nothing, notified_nobody().await, None).rejection().await;
    assert_has(&message, &["--confirm-changed captures nothing"]);
}

#[tokio::test]
async fn a_baseline_is_bounded_and_says_who_is_there() {
    assert_eq!(baseline(&alive(), &key()).await, None);
    assert_eq!(baseline(&url(&format!("http://{}/", nobody())), &key()).await, UNREACHABLE);
    let server = Server::start(|_| Some((500, "loaded 1".into())));
    let config = changing(url(&server.url), "loaded (.)");
    assert_eq!(baseline(&config, &key()).await, REACHABLE, "an error's body is not looked at");
}

#[tokio::test]
async fn one_that_accepts_and_never_answers_is_rejected_in_time() {
    let server = Server::start(|_| None);
    let config = Config { timeout: SHORT, ..url(&server.url) };
    let mut asked = 0;
    for baseline in [None, UNREACHABLE, REACHABLE] {
        let message = Running::start(&config, notified_nobody().await, baseline).rejection().await;
        assert_has(&message, &["no complete answer", "--confirm-timeout"]);
        assert_eq!(
            server.count(),
            std::mem::replace(&mut asked, server.count()) + 1,
            "its silence counts from the start"
        );
    }
}

#[tokio::test]
async fn one_that_was_reachable_and_then_refuses_has_died() {
    let address = nobody();
    let config = Config { timeout: SHORT, ..url(&format!("http://{address}/")) };
    let running = Running::start(&config, notified_nobody().await, REACHABLE);
    // Its death is known in bounded time.
    running.impatient.send(true).unwrap();
    let message = running.rejection().await;
    assert_has(&message, &["accepted connections before", "died", "--confirm-timeout"]);
    // Reachable since the reload.
    let server = Server::start(|_| Some((500, String::new())));
    let config = Config { timeout: 3 * SHORT, ..url(&server.url) };
    let running = Running::start(&config, notified_nobody().await, UNREACHABLE);
    while server.count() < 2 {
        sleep(Duration::from_millis(5)).await;
    }
    drop(server);
    assert_has(&running.rejection().await, &["accepted connections before"]);
}

#[tokio::test]
async fn one_that_refuses_for_a_while_has_not_died() {
    let address = nobody();
    let running = Running::start(&url(&format!("http://{address}/")), notified_nobody().await, REACHABLE);
    sleep(SHORT).await;
    let _server = Server::listen(TcpListener::bind(address).unwrap(), |_| Some((200, String::new())));
    assert_eq!(running.verdict().await, Ok(()));
}

#[tokio::test]
async fn one_that_never_was_reachable_is_waited_for() {
    let address = nobody();
    let config = Config { timeout: SHORT, ..url(&format!("http://{address}/")) };
    let running = Running::start(&config, notified_nobody().await, UNREACHABLE);
    running.goes_on().await;
    running.impatient.send(true).unwrap();
    assert_has(&running.absence().await, &["no connection", &address.to_string()]);
    let running = Running::start(&config, notified_nobody().await, None);
    running.goes_on().await;
    let _server = Server::listen(TcpListener::bind(address).unwrap(), |_| Some((200, String::new())));
    assert_eq!(running.verdict().await, Ok(()));
}

#[tokio::test]
async fn a_target_that_lives_and_does_not_listen_is_rejected_in_time() {
    let main = Main::on_hup("tt-cf-deaf", ":");
    let config = Config { alive: Some(ALIVE), timeout: SHORT, ..url(&format!("http://{}/", nobody())) };
    let message = Running::start(&config, main.notified("HUP").await, UNREACHABLE).rejection().await;
    assert_has(&message, &["no connection", "--confirm-timeout"]);
}

#[tokio::test]
async fn an_answer_of_the_old_process_does_not_count() {
    let server = Server::says("");
    let main = Main::start("tt-cf-old-answer", &format!("trap : TERM; echo $$ > $DIR/ready; {IDLE}"));
    let config = Config { alive: Some(ALIVE), timeout: SHORT, ..url(&server.url) };
    let message = Running::start(&config, main.notified("TERM").await, REACHABLE).rejection().await;
    assert_has(&message, &["has not ended on SIGTERM"]);
    assert_eq!(server.count(), 0);
}

#[tokio::test]
async fn the_url_must_answer_when_all_else_is_as_expected() {
    let settled = Arc::new(AtomicBool::new(false));
    let flag = settled.clone();
    let server = Server::start(move |_| Some((if flag.load(Ordering::SeqCst) { 500 } else { 200 }, String::new())));
    let main = Main::on_hup("tt-cf-early-answer", ":");
    let config = Config { alive: Some(SHORT), timeout: 3 * SHORT, ..url(&server.url) };
    let running = Running::start(&config, main.notified("HUP").await, REACHABLE);
    while server.count() == 0 {
        sleep(Duration::from_millis(5)).await;
    }
    settled.store(true, Ordering::SeqCst);
    assert_has(&running.rejection().await, &["answered 500"]);
}

#[tokio::test]
async fn an_answer_from_before_the_target_lived_long_enough_does_not_count() {
    let server = Server::start(|count| (count == 0).then(|| (200, String::new())));
    let main = Main::on_hup("tt-cf-one-answer", ":");
    let config = Config { alive: Some(SHORT), timeout: 3 * SHORT, ..url(&server.url) };
    let message = Running::start(&config, main.notified("HUP").await, REACHABLE).rejection().await;
    assert_has(&message, &["--confirm-timeout"]);
}

#[tokio::test]
async fn a_refusing_url_is_no_death_while_a_replacement_is_awaited() {
    let address = nobody();
    let main = Main::start("tt-cf-backoff", &format!("echo $$ > $DIR/ready; {IDLE}"));
    let config = Config { alive: Some(ALIVE), timeout: SHORT, ..url(&format!("http://{address}/")) };
    let running = Running::start(&config, main.notified("TERM").await, REACHABLE);
    until("it has ended", || main.is_gone());
    running.goes_on().await;
    let _server = Server::listen(TcpListener::bind(address).unwrap(), |_| Some((200, String::new())));
    let _next = Main::on_hup("tt-cf-backoff", ":");
    assert_eq!(running.verdict().await, Ok(()));
}
