//! Figures: Trimtab beside one peer and beside a floor, in one run on this machine. `make figures` prints them, and
//! `UPDATE_README=1 make figures` writes them into the README too.
//!
//! The programs run side by side, each on a volume and with a hook of its own, and take turns swap by swap: a busy
//! moment of the machine meets them all. Nothing is asserted.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use std::{env, fs, io, thread};

use anyhow::{Context, Result, bail, ensure};
use rustix::fd::OwnedFd;
use rustix::fs::inotify;
use tempfile::TempDir;

const KEYS: [&str; 4] = ["a", "b", "c", "d"];
const KEY_SIZE: usize = 2000;
const SWAPS: usize = 200;
const SAME_SWAPS: usize = 50;
const STARTS: usize = 50;
/// From the kubelet's files in their new directory to the rename, in the row that has it: a busy node.
const GAP: Duration = Duration::from_millis(5);
/// A swap that has not led to a call by then is lost.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long a call is waited for that need not come.
const PATIENCE_SAME: Duration = Duration::from_millis(200);
/// Before the next swap: what was doubled comes, and what is done after the call (a journal, old files) is over.
const PAUSE: Duration = Duration::from_millis(20);
const AT_REST: Duration = Duration::from_secs(10);
const UNKNOWN: &str = "–";

fn main() -> Result<()> {
    let args: Vec<_> = env::args().skip(1).collect();
    if let [floor, volume, address] = args.as_slice()
        && floor == "floor"
    {
        return run_floor(Path::new(volume), address);
    }
    // What `cargo bench` says; `cargo test --all-targets` does not.
    if !args.iter().any(|arg| arg == "--bench") {
        say("run: make figures");
        return Ok(());
    }
    let text = figures()?;
    print!("\n{text}");
    if env::var_os("UPDATE_README").is_some() {
        update_readme(&text)?;
    }
    Ok(())
}

fn figures() -> Result<String> {
    // With the load of the others, not with our own.
    let heading = heading()?;
    let trimtab = Program::Trimtab(env!("CARGO_BIN_EXE_trimtab").into());
    let peer = build_peer();
    let mut programs = vec![trimtab.clone()];
    programs.extend(peer.as_ref().ok().cloned());
    programs.push(Program::Floor(env::current_exe().context("the path of this program")?));
    let disk = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let memory = Path::new("/dev/shm");

    let mut subjects = start_all(&programs, memory)?;
    say("20 s at rest");
    thread::sleep(AT_REST);
    let resident = each(&subjects, |subject| subject.number("status", "VmRSS:"))?;
    let dirty = each(&subjects, |subject| subject.number("smaps_rollup", "Private_Dirty:"))?;
    let before = each(&subjects, Subject::switches)?;
    thread::sleep(AT_REST);
    let after = each(&subjects, Subject::switches)?;
    say("swaps in memory");
    let in_memory = take_turns(&mut subjects, SWAPS, Swap::default())?;
    let gap = take_turns(&mut subjects, SWAPS, Swap { gap: Some(GAP), ..Swap::default() })?;
    let same = take_turns(&mut subjects, SAME_SWAPS, Swap { same: true, patience: PATIENCE_SAME, ..Swap::default() })?;
    drop(subjects);
    say("swaps on the disk");
    let mut subjects = start_all(&programs, disk)?;
    let on_disk = take_turns(&mut subjects, SWAPS, Swap::default())?;
    drop(subjects);
    say("starts");
    let starts = starts(&trimtab, disk)?;

    let mut table = Table::new(peer.is_ok());
    let file_system = file_system(disk)?;
    for (place, tallies) in [(file_system.as_str(), &on_disk), ("/dev/shm", &in_memory)] {
        table.row(&format!("swap → hook called, {place}"), tallies.iter().map(|tally| times(&tally.delays)));
        table.row("lost / doubled", tallies.iter().map(Tally::faults));
    }
    table.row("5 ms between mkdir and rename: lost / doubled", gap.iter().map(Tally::faults));
    table.row(&format!("{SAME_SWAPS} swaps with the same bytes: hook called"), same.iter().map(Tally::calls));
    let only_trimtab = |cell: String| std::iter::once(cell).chain(programs.iter().skip(1).map(|_| UNKNOWN.into()));
    table.row(&format!("exec → first publish, {file_system}"), only_trimtab(times(&starts)));
    table.row("resident after 10 s at rest", resident.iter().map(|kb| megabytes(kb * 1024)));
    table.row("of that private and dirty", dirty.iter().map(|kb| megabytes(kb * 1024)));
    let switches = after.iter().zip(&before).map(|(after, before)| after.saturating_sub(*before).to_string());
    table.row("context switches in 10 s at rest", switches);
    let sizes = programs.iter().map(|program| match program {
        Program::Floor(_) => Ok(UNKNOWN.to_owned()),
        Program::Trimtab(path) | Program::Peer(path) => Ok(megabytes(fs::metadata(path)?.len())),
    });
    table.row("binary", sizes.collect::<Result<Vec<_>>>()?);
    Ok(format!("{heading}\n{}\n{}", table.markdown(), remarks(peer.err().as_deref())))
}

fn say(what: &str) {
    eprintln!("figures: {what}");
}

// === The programs ===

#[derive(Clone)]
enum Program {
    Trimtab(PathBuf),
    Peer(PathBuf),
    /// This program again, as [`run_floor`].
    Floor(PathBuf),
}

impl Program {
    fn command(&self, volume: &Path, output: &Path, hook: SocketAddr) -> Command {
        let url = format!("http://{hook}/-/reload");
        let mut command = match self {
            Self::Trimtab(path) | Self::Peer(path) | Self::Floor(path) => Command::new(path),
        };
        match self {
            Self::Trimtab(_) => {
                command.arg("--watch-dir").arg(volume).arg("--output").arg(output);
                command.args(["--reload-url", &url, "--debounce", "0"]);
                command.args(["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"])
            }
            Self::Peer(_) => {
                command.arg("--watched-dir").arg(volume).args(["--reload-url", &url, "--delay-interval", "1ms"]);
                command.args(["--listen-address", "127.0.0.1:0"])
            }
            Self::Floor(_) => command.arg("floor").arg(volume).arg(hook.to_string()),
        };
        command
    }

    /// Where a main process would read.
    fn published<'a>(&self, volume: &'a Path, output: &'a Path) -> &'a Path {
        match self {
            Self::Trimtab(_) => output,
            Self::Peer(_) | Self::Floor(_) => volume,
        }
    }
}

/// What no program can be faster than: it waits for the rename, and calls the hook; nothing is read.
fn run_floor(volume: &Path, address: &str) -> Result<()> {
    let inotify = watch(volume)?;
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    let mut answer = BufReader::new(stream.try_clone()?);
    loop {
        wait_for_swap(&inotify)?;
        stream.write_all(b"POST /-/reload HTTP/1.1\r\nHost: hook\r\nContent-Length: 0\r\n\r\n")?;
        ensure!(read_message(&mut answer)?, "the hook closed the connection");
    }
}

fn watch(directory: &Path) -> Result<OwnedFd> {
    let inotify = inotify::init(inotify::CreateFlags::CLOEXEC)?;
    inotify::add_watch(&inotify, directory, inotify::WatchFlags::MOVED_TO)?;
    Ok(inotify)
}

/// Returns when `..data` was renamed into place.
fn wait_for_swap(inotify: &OwnedFd) -> Result<()> {
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let mut events = inotify::Reader::new(inotify, &mut buffer);
    while events.next()?.file_name() != Some(c"..data") {}
    Ok(())
}

/// The peer, built from its Go modules; else why it is not there.
fn build_peer() -> Result<Program, String> {
    let build = || -> io::Result<Result<PathBuf, String>> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tools/build");
        let mut child = Command::new(script).arg("peers").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let mut said = String::new();
        for line in child.stderr.take().into_iter().flat_map(|pipe| BufReader::new(pipe).lines()) {
            said = line?;
            eprintln!("{said}");
        }
        let output = child.wait_with_output()?;
        let folder = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
        Ok(if output.status.success() { Ok(folder) } else { Err(said) })
    };
    let folder = build().unwrap_or_else(|error| Err(error.to_string()))?;
    Ok(Program::Peer(folder.join("prometheus-config-reloader")))
}

// === A program at work ===

/// A program that runs on a volume of its own, and its hook.
struct Subject {
    child: Running,
    hook: Hook,
    volume: Volume,
    dir: TempDir,
}

impl Subject {
    fn start(program: &Program, below: &Path) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("figures-").tempdir_in(below)?;
        let volume = Volume::new(dir.path().join("volume"))?;
        let output = dir.path().join("conf");
        let hook = Hook::start(program.published(&volume.path, &output).join(KEYS[0]))?;
        let child = Running::start(program.command(&volume.path, &output, hook.address), dir.path())?;
        Ok(Self { child, hook, volume, dir })
    }

    /// Swaps until a call shows that the program watches.
    fn warm_up(&mut self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(10);
        let mut tally = Tally::default();
        while tally.delays.len() < 3 {
            ensure!(Instant::now() < deadline, "it calls no hook; its log:\n{}", self.log());
            self.swap(Swap { patience: Duration::from_millis(200), ..Swap::default() }, &mut tally)?;
        }
        Ok(())
    }

    /// One swap, and what came of it.
    fn swap(&mut self, swap: Swap, tally: &mut Tally) -> Result<()> {
        let renamed = self.volume.swap(swap)?;
        let mut delay = None;
        while delay.is_none() {
            let left = swap.patience.saturating_sub(renamed.elapsed());
            let Ok(call) = self.hook.calls.recv_timeout(left) else { break };
            // One that a main process would have followed to the old content serves nobody.
            if call.at >= renamed && call.saw == Some(self.volume.version) {
                delay = Some(call.at - renamed);
            } else {
                tally.doubled += 1;
            }
        }
        match delay {
            Some(delay) => tally.delays.push(delay),
            None if self.child.process.try_wait()?.is_some() => bail!("it has ended; its log:\n{}", self.log()),
            None => tally.lost += 1,
        }
        thread::sleep(PAUSE);
        tally.doubled += self.hook.calls.try_iter().count();
        Ok(())
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// A field of a file in `/proc/PID` (proc(5)), kilobytes for those that have a unit.
    fn number(&self, file: &str, field: &str) -> Result<u64> {
        number(&Path::new("/proc").join(self.child.process.id().to_string()).join(file), field)
    }

    /// Context switches of all its threads so far.
    fn switches(&self) -> Result<u64> {
        let mut sum = 0;
        for task in fs::read_dir(format!("/proc/{}/task", self.child.process.id()))? {
            let status = task?.path().join("status");
            sum += number(&status, "voluntary_ctxt_switches:")? + number(&status, "nonvoluntary_ctxt_switches:")?;
        }
        Ok(sum)
    }
}

fn number(file: &Path, field: &str) -> Result<u64> {
    let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
    let value = text.lines().find_map(|line| line.strip_prefix(field)?.split_whitespace().next()?.parse().ok());
    value.with_context(|| format!("{} has no {field}", file.display()))
}

fn start_all(programs: &[Program], below: &Path) -> Result<Vec<Subject>> {
    let mut subjects = programs.iter().map(|program| Subject::start(program, below)).collect::<Result<Vec<_>>>()?;
    for subject in &mut subjects {
        subject.warm_up()?;
    }
    Ok(subjects)
}

fn each<T>(subjects: &[Subject], of: impl Fn(&Subject) -> Result<T>) -> Result<Vec<T>> {
    subjects.iter().map(of).collect()
}

fn take_turns(subjects: &mut [Subject], swaps: usize, swap: Swap) -> Result<Vec<Tally>> {
    let mut tallies: Vec<_> = subjects.iter().map(|_| Tally::default()).collect();
    for _ in 0..swaps {
        for (subject, tally) in subjects.iter_mut().zip(&mut tallies) {
            subject.swap(swap, tally)?;
        }
    }
    Ok(tallies)
}

/// From exec to the rename that publishes the first generation.
fn starts(trimtab: &Program, below: &Path) -> Result<Vec<Duration>> {
    let mut took = Vec::new();
    for _ in 0..STARTS {
        let dir = tempfile::Builder::new().prefix("figures-").tempdir_in(below)?;
        let volume = Volume::new(dir.path().join("volume"))?;
        let output = dir.path().join("conf");
        fs::create_dir(&output)?;
        let published = watch(&output)?;
        let hook = Hook::start(output.join(KEYS[0]))?;
        let command = trimtab.command(&volume.path, &output, hook.address);
        let began = Instant::now();
        let _running = Running::start(command, dir.path())?;
        wait_for_swap(&published)?;
        took.push(began.elapsed());
    }
    Ok(took)
}

/// A child process. Killed when dropped; by its guard, and its directory removed, when this process is gone.
struct Running {
    process: Child,
    guard: Child,
}

impl Running {
    fn start(mut command: Command, dir: &Path) -> Result<Self> {
        let log = fs::File::create(dir.join("log"))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let process = command.spawn().with_context(|| format!("{}", command.get_program().display()))?;
        // Its standard input ends with this process. In a group of its own, so that Ctrl-C leaves it.
        let guard = Command::new("sh")
            .args(["-c", r#"read -r _; kill -KILL "$0"; rm -rf "$1""#, &process.id().to_string()])
            .arg(dir)
            .stdin(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()?;
        Ok(Self { process, guard })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        for child in [&mut self.guard, &mut self.process] {
            // It may have ended.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

// === The volume ===

#[derive(Clone, Copy)]
struct Swap {
    /// A wait between mkdir and rename.
    gap: Option<Duration>,
    /// The bytes stay as they are.
    same: bool,
    patience: Duration,
}

impl Default for Swap {
    fn default() -> Self {
        Self { gap: None, same: false, patience: PATIENCE }
    }
}

/// A volume as the kubelet writes it (pkg/volume/util/atomic_writer.go). Every value starts with the version.
struct Volume {
    path: PathBuf,
    version: u32,
    directories: u32,
}

impl Volume {
    fn new(path: PathBuf) -> Result<Self> {
        fs::create_dir(&path)?;
        let mut volume = Self { path, version: 0, directories: 0 };
        volume.swap(Swap::default())?;
        for key in KEYS {
            symlink(Path::new("..data").join(key), volume.path.join(key))?;
        }
        Ok(volume)
    }

    /// Replaces the content; the moment before the rename.
    fn swap(&mut self, swap: Swap) -> Result<Instant> {
        self.version += u32::from(!swap.same);
        self.directories += 1;
        let name = format!("..2026_11_24_07_00_00.{}", self.directories);
        let directory = self.path.join(&name);
        let old = fs::read_link(self.path.join("..data")).ok();
        fs::create_dir(&directory)?;
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o755))?;
        for key in KEYS {
            fs::write(directory.join(key), format!("{:<KEY_SIZE$}", format!("{} {key}", self.version)))?;
        }
        if let Some(gap) = swap.gap {
            thread::sleep(gap);
        }
        let temporary = self.path.join("..data_tmp");
        symlink(&name, &temporary)?;
        let renamed = Instant::now();
        fs::rename(&temporary, self.path.join("..data"))?;
        if let Some(old) = old {
            fs::remove_dir_all(self.path.join(old))?;
        }
        Ok(renamed)
    }
}

// === The hook ===

/// One call: when it came, and the version that a main process would have read then.
struct Call {
    at: Instant,
    saw: Option<u32>,
}

/// An HTTP server that answers 200 and tells of its calls. Connections stay open as long as the caller wants.
struct Hook {
    address: SocketAddr,
    calls: Receiver<Call>,
    over: Arc<AtomicBool>,
    acceptor: Option<JoinHandle<()>>,
}

impl Hook {
    /// `file`: the first key, as the main process reads it.
    fn start(file: PathBuf) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let (tell, calls) = channel();
        let over = Arc::new(AtomicBool::new(false));
        let stop = over.clone();
        let acceptor = thread::spawn(move || {
            for stream in listener.incoming().map_while(io::Result::ok) {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                let (file, tell) = (file.clone(), tell.clone());
                // Ends with the connection, and that with the program at its other end.
                thread::spawn(move || serve(&stream, &file, &tell));
            }
        });
        Ok(Self { address, calls, over, acceptor: Some(acceptor) })
    }
}

impl Drop for Hook {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        // Wakes the acceptor.
        let _ = TcpStream::connect(self.address);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

/// Serves one connection. An error is the caller's end.
fn serve(mut stream: &TcpStream, file: &Path, tell: &Sender<Call>) -> io::Result<()> {
    let mut reader = BufReader::new(stream);
    while read_message(&mut reader)? {
        let at = Instant::now();
        let text = fs::read_to_string(file).unwrap_or_default();
        let saw = text.split(' ').next().and_then(|version| version.parse().ok());
        // Nobody listens any more at the end.
        let _ = tell.send(Call { at, saw });
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")?;
    }
    Ok(())
}

/// Reads a request or an answer with its body, and forgets it; `false` at the end of the connection.
fn read_message(reader: &mut impl BufRead) -> io::Result<bool> {
    let mut length = 0;
    let mut line = String::new();
    loop {
        line.clear();
        if reader.read_line(&mut line)? == 0 {
            return Ok(false);
        }
        if line.trim().is_empty() {
            break;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().map_err(io::Error::other)?;
        }
    }
    io::copy(&mut reader.take(length), &mut io::sink())?;
    Ok(true)
}

// === The table ===

/// What came of the swaps of one volume.
#[derive(Default)]
struct Tally {
    /// From the rename to the first call that found the new content.
    delays: Vec<Duration>,
    /// Swaps without one.
    lost: usize,
    /// All other calls.
    doubled: usize,
}

impl Tally {
    fn faults(&self) -> String {
        format!("{} / {}", self.lost, self.doubled)
    }

    fn calls(&self) -> String {
        (self.delays.len() + self.doubled).to_string()
    }
}

/// Median and 99th percentile, by nearest rank.
fn times(durations: &[Duration]) -> String {
    let mut sorted = durations.to_vec();
    sorted.sort_unstable();
    let rank = |percent: usize| {
        let at = (sorted.len() * percent).div_ceil(100).checked_sub(1)?;
        Some(sorted.get(at)?.as_secs_f64() * 1000.0)
    };
    match (rank(50), rank(99)) {
        (Some(median), Some(high)) => format!("{median:.2} ms ({high:.2})"),
        _ => UNKNOWN.into(),
    }
}

fn megabytes(bytes: u64) -> String {
    let tenths = (bytes + 50_000) / 100_000;
    format!("{}.{} MB", tenths / 10, tenths % 10)
}

struct Table {
    peer_is_there: bool,
    rows: Vec<[String; 4]>,
}

impl Table {
    fn new(peer_is_there: bool) -> Self {
        let head = ["p50 (p99)".into(), "Trimtab".into(), peer_name(), "floor".into()];
        Self { peer_is_there, rows: vec![head] }
    }

    /// A cell for each program that ran.
    fn row(&mut self, name: &str, cells: impl IntoIterator<Item = String>) {
        let mut cells = cells.into_iter();
        let mut next = || cells.next().unwrap_or_default();
        let trimtab = next();
        let peer = if self.peer_is_there { next() } else { "not built".into() };
        self.rows.push([name.into(), trimtab, peer, next()]);
    }

    fn markdown(&self) -> String {
        let mut widths = [0; 4];
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = cell.chars().count().max(*width);
            }
        }
        let line = |cells: &[String; 4]| {
            let cells = cells.iter().zip(widths).map(|(cell, width)| format!(" {cell:<width$} |"));
            format!("|{}\n", cells.collect::<String>())
        };
        let mut text = String::new();
        for (index, row) in self.rows.iter().enumerate() {
            text += &line(row);
            if index == 0 {
                text += &line(&widths.map(|width| "-".repeat(width)));
            }
        }
        text
    }
}

/// The peer's name and version, from what it is built from.
fn peer_name() -> String {
    let module = include_str!("../tests/tools/peers/prometheus-config-reloader/go.mod");
    let version = module.lines().find_map(|line| {
        line.trim().strip_prefix("github.com/prometheus-operator/prometheus-operator v")?.split_whitespace().next()
    });
    format!("prometheus-config-reloader {}", version.unwrap_or_default())
}

/// Where and how.
fn heading() -> Result<String> {
    let cpu = fs::read_to_string("/proc/cpuinfo")?;
    let cpu = cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map(|(_, name)| name);
    let load = fs::read_to_string("/proc/loadavg")?;
    let system = rustix::system::uname();
    Ok(format!(
        "`make figures` on {} cores of {}, {} {}, load average {}:\n",
        thread::available_parallelism()?,
        cpu.unwrap_or("an unknown processor"),
        system.sysname().to_string_lossy(),
        system.release().to_string_lossy(),
        load.split(' ').next().unwrap_or(UNKNOWN),
    ))
}

fn file_system(path: &Path) -> Result<String> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let path = path.canonicalize()?;
    let mounts = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        Some((Path::new(fields.next()?), fields.next()?)).filter(|(point, _)| path.starts_with(point))
    });
    let nearest = mounts.max_by_key(|(point, _)| point.components().count());
    Ok(nearest.map_or("disk", |(_, kind)| kind).to_owned())
}

fn remarks(no_peer: Option<&str>) -> String {
    let mut text = format!(
        "{SWAPS} swaps of a volume in the kubelet's layout, {} keys of 2 kB; the programs take turns. The time is from \
         the\nrename of `..data` to the first call that finds the new content; any other call is *doubled*. Trimtab: \
         plain copies,\n`--debounce 0`; before it calls, it has published, with every fsync, what the others leave \
         where it is. The peer:\n`--watched-dir`, `--delay-interval=1ms`. The floor: inotify and a call on an open \
         connection, nothing read.\n",
        KEYS.len()
    );
    if let Some(reason) = no_peer {
        // Only a String is written to.
        let _ = writeln!(text, "The peer was not built: {reason}.");
    }
    text
}

fn update_readme(text: &str) -> Result<()> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let readme = fs::read_to_string(&path)?;
    let parts = readme.split_once("<!-- figures -->\n").and_then(|(before, rest)| {
        let (_, after) = rest.split_once("<!-- /figures -->")?;
        Some((before, after))
    });
    let (before, after) = parts.context("README.md has no <!-- figures --> and <!-- /figures -->")?;
    fs::write(&path, format!("{before}<!-- figures -->\n{text}<!-- /figures -->{after}"))?;
    Ok(())
}
