//! Real main processes under 30 good and bad edits in random order, while a client asks all the time.
//!
//! Each test prints its seed; `TRIMTAB_TEST_SEED` runs that order again.

mod charts;
mod envoy;
mod haproxy;
mod nginx;
mod prometheus;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use nix::sys::signal::{Signal, kill, killpg};
use serde_json::Value;

use super::support::child::pid_of;
use super::support::port::free_port;
use super::support::sidecar::{Sidecar, Volume, eventually};
use super::support::stage::metric;

const EDITS: usize = 30;

/// What is wrong with a bad edit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    /// It does not parse.
    Syntax,
    /// It parses, and holds a word that the program does not know.
    Unknown,
    /// It names a certificate that does not exist.
    Certificate,
    /// It listens on a port that somebody else has.
    Port,
    /// A part of it, in a file of its own, does not parse.
    Part,
    /// The file is empty.
    Empty,
}

/// Who refuses a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    /// The gate, where there is one; otherwise the program, which stays with what it has.
    Both,
    /// The program alone, which stays with what it has: the validator passes it.
    Program,
    /// The gate, where there is one. The program takes a part of it into use, or stops serving for a while, by itself.
    Gate,
    /// The confirmation alone: as [`Refusal::Gate`], and the validator passes it.
    Confirmation,
}

impl Refusal {
    /// Whether it is refused before anything is visible. `gated`: by the validator, and by Trimtab if a file is empty.
    fn early(self, gated: bool) -> bool {
        gated && matches!(self, Self::Both | Self::Gate)
    }

    /// Whether clients may see it: the program's own reload is not a transaction here.
    fn seen(self, gated: bool) -> bool {
        !self.early(gated) && matches!(self, Self::Gate | Self::Confirmation)
    }
}

/// A main process: how it is configured, started, notified, and what it makes of each fault.
trait Program: Send + Sync {
    /// Where it stands.
    fn ground(&self) -> &Ground;
    /// For the report.
    fn name(&self) -> &'static str;
    /// File name to template, over the keys.
    fn templates(&self) -> Vec<(&'static str, &'static str)>;
    /// The volume's content for an edit. A client must see `config EDIT` of it.
    fn keys(&self, edit: usize, fault: Option<Fault>) -> Vec<(&'static str, String)>;
    /// What it is started by.
    fn command(&self) -> Vec<String>;
    /// How it is notified, and how that is confirmed.
    fn flags(&self) -> Vec<String>;
    /// The command for `--validate`.
    fn validator(&self) -> String;
    /// The faults that it can have.
    fn faults(&self) -> [(Fault, Refusal); 5] {
        [
            (Fault::Syntax, Refusal::Both),
            (Fault::Unknown, Refusal::Both),
            (Fault::Certificate, Refusal::Both),
            (Fault::Port, Refusal::Program),
            (Fault::Empty, Refusal::Both),
        ]
    }
    /// What it answers: the number of its configuration.
    fn ask(&self, connection: &mut Connection) -> Result<usize, Failure> {
        marker(&connection.get("/")?)
    }
    /// What it says of itself in the end, when it runs this edit.
    fn examine(&self, _edit: usize) {}
}

/// Where a program stands: a folder, two ports of its own, and one that somebody else has.
struct Ground {
    dir: tempfile::TempDir,
    port: u16,
    admin: u16,
    taken: TcpListener,
}

impl Ground {
    fn new() -> Self {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        Self { dir: tempfile::tempdir().unwrap(), port: free_port(), admin: free_port(), taken }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.at(name).to_str().unwrap().to_owned()
    }

    /// The port in use.
    fn taken(&self) -> u16 {
        self.taken.local_addr().unwrap().port()
    }
}

/// A program's path, which `make test` finds.
#[track_caller]
fn binary(variable: &str) -> String {
    std::env::var(variable).unwrap_or_else(|_| panic!("{variable} is not set: run `make test`, or see its lines there"))
}

fn strings<const N: usize>(texts: [&str; N]) -> Vec<String> {
    texts.map(str::to_owned).into()
}

// --- the process -----------------------------------------------------------------------------------------------------

/// A running program. Ended when dropped, with all that it started; its log is shown when the test fails.
struct Main {
    child: Child,
    log: PathBuf,
}

impl Main {
    fn start(program: &dyn Program) -> Self {
        Self::run(program.ground(), &program.command())
    }

    fn run(ground: &Ground, program: &[String]) -> Self {
        let log = ground.at("program.log");
        let output = fs::OpenOptions::new().create(true).append(true).open(&log).unwrap();
        // Dies with this thread also when the whole test is killed.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "TERM"]).args(program).process_group(0);
        command.stdin(Stdio::null()).stdout(output.try_clone().unwrap()).stderr(output);
        Self { child: command.spawn().unwrap(), log }
    }

    fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }
}

impl Drop for Main {
    fn drop(&mut self) {
        let pid = pid_of(&self.child);
        let _ = kill(pid, Signal::SIGTERM);
        let deadline = Instant::now() + Duration::from_secs(5);
        while self.child.try_wait().is_ok_and(|end| end.is_none()) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = killpg(pid, Signal::SIGKILL);
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = fs::read_to_string(&self.log).unwrap_or_default();
            let lines: Vec<_> = log.lines().collect();
            eprintln!("--- the program's log\n{}", lines[lines.len().saturating_sub(200)..].join("\n"));
        }
    }
}

// --- the client ------------------------------------------------------------------------------------------------------

/// Why there was no good answer.
#[derive(Debug)]
enum Failure {
    /// A kept connection was closed before the answer's first byte, as servers may at any time: not a failed request.
    Closed,
    /// Anything else.
    Failed(String),
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::Failed(error.to_string())
    }
}

/// A connection to a server on loopback that speaks HTTP/1.1.
struct Connection {
    port: u16,
    keep: bool,
    stream: Option<TcpStream>,
}

impl Connection {
    fn new(port: u16, keep: bool) -> Self {
        Self { port, keep, stream: None }
    }

    /// The body of a 200; any other answer is a failure.
    fn get(&mut self, path: &str) -> Result<String, Failure> {
        let kept = self.stream.is_some();
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))?,
        };
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        let close = if self.keep { "" } else { "Connection: close\r\n" };
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n{close}\r\n");
        let sent = stream.write_all(request.as_bytes());
        let mut answer = Vec::new();
        let mut buffer = [0; 16 * 1024];
        loop {
            let (count, error) = match (&sent, stream.read(&mut buffer)) {
                (_, Ok(count)) => (count, None),
                (Err(error), Err(_)) => (0, Some(error.to_string())),
                (Ok(()), Err(error)) => (0, Some(error.to_string())),
            };
            if count == 0 && answer.is_empty() && kept {
                return Err(Failure::Closed);
            }
            answer.extend_from_slice(&buffer[..count]);
            if let Some((head, body)) = whole(&answer) {
                if self.keep && !head.to_ascii_lowercase().contains("\r\nconnection: close") {
                    self.stream = Some(stream);
                }
                let status = head.split(' ').nth(1).unwrap_or_default();
                return if status == "200" { Ok(body) } else { Err(Failure::Failed(format!("{status}: {body}"))) };
            }
            if count == 0 {
                let error = error.unwrap_or_else(|| "closed".to_owned());
                return Err(Failure::Failed(format!("{error} after {} bytes", answer.len())));
            }
        }
    }
}

/// Head and body, when all of it is there.
fn whole(answer: &[u8]) -> Option<(String, String)> {
    let text = std::str::from_utf8(answer).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    let header = |name: &str| {
        let lines = head.lines().filter_map(|line| line.split_once(':'));
        lines.into_iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim().to_owned())
    };
    if header("transfer-encoding").is_some() {
        return body.ends_with("0\r\n\r\n").then(|| (head.to_owned(), body.to_owned()));
    }
    let length: usize = header("content-length")?.parse().ok()?;
    (body.len() >= length).then(|| (head.to_owned(), body.to_owned()))
}

/// The number after `config `.
fn marker(body: &str) -> Result<usize, Failure> {
    let number = body.split_once("config ").map(|(_, rest)| rest.split(|c: char| !c.is_ascii_digit()).next());
    let number = number.flatten().and_then(|digits| digits.parse().ok());
    number.ok_or_else(|| Failure::Failed(format!("no marker in {body:?}")))
}

/// What clients saw.
#[derive(Default)]
struct Seen {
    requests: usize,
    /// Edit to answers by it.
    answers: BTreeMap<usize, usize>,
    /// The same, while a fault is there that clients may see.
    excused: BTreeMap<usize, usize>,
    failed: Vec<String>,
    excused_failures: usize,
}

/// A thread that asks all the time, over a new connection and over a kept one by turns.
struct Client {
    stop: Arc<AtomicBool>,
    /// Whether the program is at present known to do by itself what a client may see.
    excuse: Arc<AtomicBool>,
    thread: Option<JoinHandle<Seen>>,
}

impl Client {
    fn start(program: Arc<dyn Program>) -> Self {
        let (stop, excuse) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
        let (stopped, excused) = (Arc::clone(&stop), Arc::clone(&excuse));
        let thread = std::thread::spawn(move || {
            let mut seen = Seen::default();
            let began = Instant::now();
            let port = program.ground().port;
            let mut kept = Connection::new(port, true);
            let mut fresh = Connection::new(port, false);
            while !stopped.load(Ordering::SeqCst) {
                for connection in [&mut fresh, &mut kept] {
                    let before = excused.load(Ordering::SeqCst);
                    let answer = program.ask(connection);
                    let excusable = before || excused.load(Ordering::SeqCst);
                    seen.requests += 1;
                    match answer {
                        Ok(edit) if excusable => *seen.excused.entry(edit).or_default() += 1,
                        Ok(edit) => *seen.answers.entry(edit).or_default() += 1,
                        Err(Failure::Closed) => seen.requests -= 1,
                        Err(Failure::Failed(_)) if excusable => seen.excused_failures += 1,
                        Err(Failure::Failed(error)) => seen.failed.push(format!("{:?}: {error}", began.elapsed())),
                    }
                }
                std::thread::sleep(Duration::from_millis(3));
            }
            seen
        });
        Self { stop, excuse, thread: Some(thread) }
    }

    fn excuse(&self, excuse: bool) {
        self.excuse.store(excuse, Ordering::SeqCst);
    }

    fn stop(mut self) -> Seen {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let seen = thread.join();
            if let (Ok(seen), true) = (seen, std::thread::panicking()) {
                eprintln!("--- the client saw {:?}, failed: {:#?}", seen.answers, seen.failed);
            }
        }
    }
}

// --- the edits -------------------------------------------------------------------------------------------------------

/// SplitMix64: an order that the seed alone decides.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((mixed ^ (mixed >> 31)) % bound as u64).unwrap()
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}

fn seed() -> u64 {
    let given = std::env::var("TRIMTAB_TEST_SEED").ok();
    given.map_or_else(
        || u64::try_from(SystemTime::UNIX_EPOCH.elapsed().unwrap().as_micros()).unwrap(),
        |text| text.parse().expect("TRIMTAB_TEST_SEED is a number"),
    )
}

/// What is published, by its marker.
fn published(program: &dyn Program) -> Option<usize> {
    let data = program.ground().at("conf/..data");
    let mut texts = program.templates().into_iter().filter_map(|(name, _)| fs::read_to_string(data.join(name)).ok());
    texts.find_map(|text| marker(&text).ok())
}

/// Whether the newest inputs are refused, other than those refused before, and nothing is due any more.
fn refused(status: &Value, before: &Value) -> bool {
    let digest = &status["quarantine"]["digest"];
    digest.is_string()
        && digest == &status["observed"]["digest"]
        && digest != before
        && status["debt"].is_null()
        && status["phase"] == "idle"
}

/// A program, its sidecar and its client, and what became of the edits so far.
struct Play {
    what: String,
    gated: bool,
    volume: Volume,
    // Dropped in this order: who asks, who notifies, who is notified, and the ground with the logs.
    client: Client,
    sidecar: Sidecar,
    main: Main,
    program: Arc<dyn Program>,
    good: BTreeSet<usize>,
    newest: usize,
    /// Refused before anything was visible.
    early: usize,
    rolled_back: usize,
}

impl Play {
    /// All of them at work, on a first good configuration.
    fn begin(program: Arc<dyn Program>, gated: bool) -> Self {
        let ground = program.ground();
        let what = format!("{}{}", program.name(), if gated { ", validated" } else { "" });
        let volume = Volume::new(ground.at("volume"), &borrow(&program.keys(0, None)));
        let mut flags = strings(["--watch-dir", &ground.text("volume"), "--output", &ground.text("conf")]);
        fs::create_dir(ground.at("templates")).unwrap();
        for (name, template) in program.templates() {
            let path = ground.text(&format!("templates/{name}.j2"));
            fs::write(&path, template).unwrap();
            flags.extend(strings(["--template", &path]));
        }
        flags.extend(strings(["--debounce", "20ms", "--retry-min", "50ms", "--retry-max", "500ms"]));
        flags.extend(strings(["--confirm-timeout", "3s"]));
        flags.extend(program.flags());
        if gated {
            flags.extend(strings(["--validate", &program.validator()]));
        } else {
            flags.push("--allow-empty".to_owned());
        }
        let sidecar = Sidecar::start(&ground.at("log"), &flags);
        eventually("the first configuration is published", || published(&*program));
        let main = Main::start(&*program);
        serves(&*program, 0);
        sidecar.until_idle();
        let client = Client::start(Arc::clone(&program));
        let good = BTreeSet::from([0]);
        Self { what, gated, volume, client, sidecar, main, program, good, newest: 0, early: 0, rolled_back: 0 }
    }

    fn edit(&mut self, edit: usize, fault: Option<Fault>) {
        self.volume.swap(&borrow(&self.program.keys(edit, fault)));
    }

    #[track_caller]
    fn good(&mut self, edit: usize, patience: Patience) {
        self.edit(edit, None);
        self.good.insert(edit);
        self.newest = edit;
        match patience {
            Patience::None => (),
            Patience::Published => eventually(&format!("config {edit} is published"), || {
                (published(&*self.program) == Some(edit)).then_some(())
            }),
            Patience::Served => serves(&*self.program, edit),
        }
    }

    #[track_caller]
    fn bad(&mut self, edit: usize, fault: Fault, refusal: Refusal) {
        let case = format!("{}: edit {edit}, {fault:?}", self.what);
        let before = self.sidecar.status()["quarantine"]["digest"].clone();
        self.client.excuse(refusal.seen(self.gated));
        self.edit(edit, Some(fault));
        let status = self.sidecar.until(&format!("{case} is refused"), |status| refused(status, &before));
        let early = refusal.early(self.gated);
        let gate = if fault == Fault::Empty { "render" } else { "validate" };
        assert_eq!(status["quarantine"]["stage"] == gate, early, "{case}: {status}");
        *(if early { &mut self.early } else { &mut self.rolled_back }) += 1;
        assert_eq!(status["published"]["digest"], status["lastGood"]["digest"], "{case}: {status}");
        assert_eq!(published(&*self.program), Some(self.newest), "{case}");
        serves(&*self.program, self.newest);
        assert!(!self.main.has_ended(), "{case}: it has ended");
        self.client.excuse(false);
    }

    /// The newest good one is there, and was all that clients saw but what is excused.
    fn end(mut self, last: Option<Fault>) {
        let what = &self.what;
        serves(&*self.program, self.newest);
        let status = self.sidecar.until_idle();
        let saw = self.client.stop();
        assert_eq!(status["quarantine"].is_object(), last.is_some(), "after {last:?}: {status}");
        assert_eq!(published(&*self.program), Some(self.newest));
        assert!(!self.main.has_ended());
        self.program.examine(self.newest);
        let strangers: usize = saw.excused.iter().filter(|(edit, _)| !self.good.contains(edit)).map(|(_, n)| n).sum();
        println!(
            "{what}: {EDITS} edits, {} refused at the gate, {} rolled back, {} requests, {} failed; \
             {} failed and {strangers} saw a bad configuration by the program's own doing",
            self.early,
            self.rolled_back,
            saw.requests,
            saw.failed.len(),
            saw.excused_failures,
        );
        assert_eq!(saw.failed, Vec::<String>::new(), "{what}: requests failed");
        let strangers: Vec<_> = saw.answers.iter().filter(|(edit, _)| !self.good.contains(edit)).collect();
        assert!(strangers.is_empty(), "{what} served bad configurations: {strangers:?}");
        let rollbacks = metric(&self.sidecar, "trimtab_rollbacks_total");
        assert_eq!(rollbacks.map(|count| count.to_string()), Some(self.rolled_back.to_string()), "of bad edits alone");
        assert_eq!(self.early + self.rolled_back, EDITS / 2);
    }
}

/// What is waited for after a good edit.
#[derive(Clone, Copy)]
enum Patience {
    None,
    Published,
    Served,
}

#[track_caller]
fn serves(program: &dyn Program, edit: usize) {
    let ask = || program.ask(&mut Connection::new(program.ground().port, false)).ok();
    eventually(&format!("{} serves config {edit}", program.name()), || (ask()? == edit).then_some(()));
}

/// The whole play for one program.
fn play(program: impl Program + 'static, gated: bool) {
    let program: Arc<dyn Program> = Arc::new(program);
    let seed = seed();
    println!("{}: TRIMTAB_TEST_SEED={seed}", program.name());
    let mut random = Random(seed);
    let faults = program.faults();
    let mut edits: Vec<_> = (0..EDITS).map(|edit| (edit % 2 == 0).then(|| faults[edit / 2 % faults.len()])).collect();
    random.shuffle(&mut edits);
    let mut play = Play::begin(program, gated);
    for (index, fault) in edits.iter().enumerate() {
        let edit = index + 1;
        if let Some((fault, refusal)) = *fault {
            play.bad(edit, fault, refusal);
            continue;
        }
        let next_is_good = edits.get(edit).is_some_and(Option::is_none);
        let patience = match random.below(3) {
            // The next one comes in the middle of its reload. A bad one any sooner would take its place.
            0 => Patience::Published,
            1 if next_is_good => Patience::None,
            _ => Patience::Served,
        };
        play.good(edit, patience);
    }
    play.end(edits.last().unwrap().map(|(fault, _)| fault));
}

fn borrow<'a>(keys: &'a [(&'static str, String)]) -> Vec<(&'static str, &'a str)> {
    keys.iter().map(|(key, value)| (*key, value.as_str())).collect()
}
