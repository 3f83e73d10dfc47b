//! `make ratchet`: the budgets are kept. Only what is the same on any machine, however busy: counts and sizes, no time.
//! The limits stand in `benches/ratchet.toml`, each with the commit that it keeps, if there is one.
//!
//! Instructions are counted by callgrind, whose processor is the same on any machine: counters of the real one are not
//! there on shared machines.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{self, Child, Command, Stdio};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Deserialize;

use crate::cluster::Cluster;
use crate::measure::{Proc, now};
use crate::programs::{Pace, Program, Who};
use crate::rig::child::pid_of;
use crate::rig::trimtab;
use crate::rows::Bench;
use crate::rows::api::Watcher;
use crate::say;
use crate::subject::{PATIENCE, Subject, Tally};
use crate::volume::{KEYS, Swap, Volume};

/// Edits whose system calls are counted, and whose instructions.
const EDITS: u32 = 20;
/// Edits before those whose instructions are counted.
const WARM: u32 = 3;
/// The last line of what callgrind writes.
const TOTALS: &str = "\ntotals: ";
/// System calls by name.
type Calls = BTreeMap<String, u64>;

/// A thread that is still there after this long at rest stays: those of tokio's pool end after ten seconds.
const REST: Duration = Duration::from_secs(12);

#[derive(Deserialize)]
struct Limits {
    limit: Vec<Limit>,
}

/// A table of `ratchet.toml`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Limit {
    what: String,
    at_most: u64,
    keeps: Option<String>,
}

/// Measures all, prints the table, and fails where a limit is passed.
pub fn run() -> Result<()> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/ratchet.toml");
    let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    let limits: Limits = toml::from_str(&text).with_context(|| file.display().to_string())?;
    let figures = measured()?;
    let mut lost = Vec::new();
    println!("{:<36} {:>9} {:>9}", "", "figure", "at most");
    for (what, figure) in &figures {
        let Some(limit) = limits.limit.iter().find(|limit| limit.what == *what) else {
            lost.push(format!("{what}: {figure}, and there is no limit"));
            continue;
        };
        println!("{what:<36} {figure:>9} {:>9}", limit.at_most);
        if *figure > limit.at_most {
            let gain =
                limit.keeps.as_ref().map_or(String::new(), |commit| format!("; is it lost what came by “{commit}”?"));
            lost.push(format!("{what}: {figure}, at most {} are allowed{gain}", limit.at_most));
        }
    }
    for limit in &limits.limit {
        ensure!(figures.contains_key(limit.what.as_str()), "nothing measures {} of {}", limit.what, file.display());
    }
    if !lost.is_empty() {
        bail!("{}\nFind out by what, or raise the limit in {} and say why.", lost.join("\n"), file.display());
    }
    Ok(())
}

/// Trimtab without its peers.
fn bench(trimtab: &Path) -> Bench {
    Bench {
        programs: Vec::new(),
        disk: env!("CARGO_TARGET_TMPDIR").into(),
        memory: "/dev/shm".into(),
        trimtab: trimtab.to_owned(),
    }
}

fn measured() -> Result<BTreeMap<&'static str, u64>> {
    let path = trimtab()?;
    // Of a file on a disk, more or less is resident as its pages came into the cache one by one or in large folios: by a
    // build, by readahead, from whatever file system.
    let mut copy = fs::File::from(memfd_create("trimtab", MFdFlags::MFD_CLOEXEC)?);
    io::copy(&mut fs::File::open(&path)?, &mut copy)?;
    let bench =
        bench(&Path::new("/proc").join(process::id().to_string()).join("fd").join(copy.as_raw_fd().to_string()));
    let mut figures =
        BTreeMap::from([("binary, kB", fs::metadata(&path)?.len() / 1000), ("dependencies", dependencies()?)]);

    let program = Program { who: Who::Trimtab, path: bench.trimtab.clone() };
    let mut subject = Subject::start(&program, &bench.memory, Pace::Eager, false)?;
    let output = subject.folder().join("conf");
    let process = subject.proc();
    settled(&output)?;
    let mut tally = Tally::default();
    let calls = traced(process.0, || {
        let renamed = held(process, || subject.volume.swap(Swap::default()))?;
        tally.take(subject.calls(), subject.volume.version, renamed, PATIENCE);
        settled(&output)
    })?;
    count(&mut figures, &calls, "swap", ["syscalls of a swap", "fsyncs of a swap"]);
    let [threads, resident, private] = at_rest(process)?;
    figures.insert("threads at rest, files", threads);
    figures.insert("resident at rest, files, kB", resident);
    figures.insert("private memory at rest, files, kB", private);
    drop(subject);

    let cluster = Cluster::start()?;
    cluster.create(&["web".to_owned()], 8000, "")?;
    let name = format!("{}/web", cluster.namespace);
    let watcher = Watcher::trimtab(&bench, &cluster, &["--configmap", &name, "--debounce", "0"], KEYS[0])?;
    watcher.first_call()?;
    let (process, output) = (watcher.proc(), watcher.folder().join("conf"));
    settled(&output)?;
    let mut version = 1;
    let calls = traced(process.0, || {
        version += 1;
        cluster.edit("web", version, 8000, "")?;
        while watcher.first_call()?.saw != Some(version) {}
        settled(&output)
    })?;
    count(&mut figures, &calls, "edit", ["syscalls of an edit", "fsyncs of an edit"]);
    let [threads, resident, private] = at_rest(process)?;
    figures.insert("threads at rest, API", threads);
    figures.insert("resident at rest, API, kB", resident);
    figures.insert("private memory at rest, API, kB", private);
    drop(watcher);

    let [swap, edit] = edited(&cluster, |source, edit| instructions(&self::bench(&path), source, edit))?;
    figures.insert("instructions of a swap, thousands", swap);
    figures.insert("instructions of an edit, thousands", edit);
    Ok(figures)
}

/// Does something with a volume and the function that edits it, and then with a ConfigMap and the one that edits that:
/// the flags of the source come first, and the function gives the version that it has written.
fn edited<T>(
    cluster: &Cluster,
    with: impl Fn(&[&str], &mut dyn FnMut() -> Result<u32>) -> Result<T>,
) -> Result<[T; 2]> {
    let dir = tempfile::tempdir()?;
    let mut volume = Volume::new(dir.path().join("volume"))?;
    let path = volume.path.to_string_lossy().into_owned();
    let swapped = with(&["--watch-dir", &path], &mut || {
        volume.swap(Swap::default())?;
        Ok(volume.version)
    })?;
    cluster.create(&["edited".to_owned()], 8000, "")?;
    let name = format!("{}/edited", cluster.namespace);
    let mut version = 1;
    let kubeconfig = cluster.kubeconfig().to_string_lossy().into_owned();
    let edited = with(&["--configmap", &name, "--kubeconfig", &kubeconfig], &mut || {
        version += 1;
        cluster.edit("edited", version, 8000, "")?;
        Ok(version)
    })?;
    Ok([swapped, edited])
}

/// The packages that a Linux binary is built from, this one not among them.
fn dependencies() -> Result<u64> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args([
        "tree",
        "--locked",
        "--edges",
        "normal",
        "--prefix",
        "none",
        "--target",
        "x86_64-unknown-linux-musl",
    ]);
    let output = command.current_dir(env!("CARGO_MANIFEST_DIR")).stderr(Stdio::inherit()).output()?;
    ensure!(output.status.success(), "cargo tree failed");
    let text = String::from_utf8_lossy(&output.stdout);
    // A package that was listed before has a mark behind it.
    let packages: std::collections::BTreeSet<_> =
        text.lines().filter_map(|line| line.split(' ').next().zip(line.split(' ').nth(1))).collect();
    Ok(u64::try_from(packages.len())?.saturating_sub(1))
}

/// Waits until the journal has no debt and only what is kept is there.
fn settled(output: &Path) -> Result<()> {
    let deadline = now() + PATIENCE;
    loop {
        let journal = fs::read(output.join("..trimtab/private/journal.json")).unwrap_or_default();
        let journal: serde_json::Value = serde_json::from_slice(&journal).unwrap_or_default();
        let trees = fs::read_dir(output)?
            .flatten()
            .filter(|entry| entry.path().is_dir() && entry.file_name().to_string_lossy().starts_with("..trimtab-"));
        if journal["current"].is_object() && journal["debt"].is_null() && trees.count() <= 2 {
            return Ok(());
        }
        ensure!(now() < deadline, "it does not come to rest: {journal}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// The system calls of a process and all its threads in an edit, by name: of [`EDITS`] the one in the middle, as a tick or
/// an event that comes late is more work in some of them.
fn traced(pid: u32, mut edit: impl FnMut() -> Result<()>) -> Result<Calls> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("calls");
    let mut command = Command::new("strace");
    command.args(["-f", "-qq", "-y", "-ttt", "-e", "signal=none", "-p", &pid.to_string(), "-o"]).arg(&file);
    let mut strace = Tracer(command.stdin(Stdio::null()).spawn().context("no strace: apt-get install strace")?);
    let deadline = now() + PATIENCE;
    while Proc(pid).number("status", "TracerPid:")? == 0 {
        ensure!(strace.0.try_wait()?.is_none() && now() < deadline, "strace does not attach");
        thread::sleep(Duration::from_millis(5));
    }
    let mut ends = Vec::new();
    for _ in 0..EDITS {
        edit()?;
        ends.push(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64());
    }
    kill(pid_of(&strace.0), Signal::SIGINT)?;
    strace.0.wait()?;
    let mut edits = vec![Calls::new(); ends.len()];
    for line in fs::read_to_string(&file)?.lines() {
        // "1234  1700000000.123456 openat2(…", and not "1234  1700000000.123456 <... epoll_wait resumed>".
        let Some((time, call)) = line.split_once(' ').and_then(|(_, rest)| rest.trim_start().split_once(' ')) else {
            continue;
        };
        let Some((name, args)) = call.split_once('(') else { continue };
        let time: f64 = time.parse().with_context(|| format!("strace wrote {line}"))?;
        let Some(calls) = edits.get_mut(ends.partition_point(|end| *end < time)) else { continue };
        // How many events come by one read of inotify is chance, as are the wake-ups by eventfd.
        let by_chance =
            ["read", "write"].contains(&name) && args.split(',').next().unwrap_or_default().contains("<anon_inode:");
        if !by_chance && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
            *calls.entry(name.to_owned()).or_default() += 1;
        }
    }
    edits.sort_by_key(counted);
    say(&format!("system calls, edit by edit: {:?}", edits.iter().map(counted).collect::<Vec<_>>()));
    Ok(edits.swap_remove(edits.len() / 2))
}

/// Does something while a process is stopped: it sees all of it at once, however slowly it is done.
fn held<T>(process: Proc, done: impl FnOnce() -> Result<T>) -> Result<T> {
    signal(process, Signal::SIGSTOP)?;
    let deadline = now() + PATIENCE;
    while !process.stopped()? {
        ensure!(now() < deadline, "it does not stop");
        thread::sleep(Duration::from_millis(1));
    }
    let value = done()?;
    signal(process, Signal::SIGCONT)?;
    Ok(value)
}

fn signal(process: Proc, signal: Signal) -> Result<()> {
    Ok(kill(Pid::from_raw(process.0.cast_signed()), signal)?)
}

/// The instructions of one edit, in thousands: how many more it takes to do [`EDITS`] more of them.
fn instructions(bench: &Bench, source: &[&str], edit: &mut dyn FnMut() -> Result<u32>) -> Result<u64> {
    let mut all = |edits| {
        let counts = executed(bench, &[source, &["--debounce", "0"]].concat(), edits, edit)?;
        let (_, total) = counts.split_once(TOTALS).context("callgrind gives no total")?;
        total.trim().parse::<u64>().with_context(|| format!("callgrind says {total}"))
    };
    // What happens once is over after a few.
    let (few, more) = (all(WARM)?, all(WARM + EDITS)?);
    Ok(more.saturating_sub(few).div_ceil(u64::from(EDITS) * 1000))
}

/// What callgrind has counted from the start by these flags over so many edits, each of which gives its version.
fn executed(bench: &Bench, flags: &[&str], edits: u32, edit: &mut dyn FnMut() -> Result<u32>) -> Result<String> {
    let dir = tempfile::tempdir_in(&bench.disk)?;
    let counts = dir.path().join("counts");
    let program = counting(&bench.trimtab, dir.path(), &counts)?;
    let watcher = Watcher::start(&program, &bench.memory, flags, KEYS[0])?;
    let output = watcher.folder().join("conf");
    watcher.first_call()?;
    settled(&output)?;
    for _ in 0..edits {
        let version = held(watcher.proc(), &mut *edit)?;
        while watcher.first_call()?.saw != Some(version) {}
        settled(&output)?;
    }
    signal(watcher.proc(), Signal::SIGTERM)?;
    let deadline = now() + PATIENCE * 12;
    loop {
        let text = fs::read_to_string(&counts).unwrap_or_default();
        if text.split_once(TOTALS).is_some_and(|(_, total)| total.ends_with('\n')) {
            return Ok(text);
        }
        ensure!(now() < deadline, "callgrind has not counted");
        thread::sleep(Duration::from_millis(20));
    }
}

/// A program that is Trimtab under callgrind. PR_GET_AUXV has to fail, as on older kernels: callgrind lets it report
/// the kernel's vDSO, which is not there.
fn counting(trimtab: &Path, dir: &Path, counts: &Path) -> Result<PathBuf> {
    let tool = std::env::var_os("TRIMTAB_BENCH_CALLGRIND").context("no TRIMTAB_BENCH_CALLGRIND: run `make ratchet`")?;
    let tool = Path::new(&tool);
    let quoted = |path: &Path| shlex::try_quote(&path.to_string_lossy()).map(std::borrow::Cow::into_owned);
    let script = format!(
        "#!/bin/sh\nVALGRIND_LIB={} VALGRIND_LAUNCHER=/bin/true exec strace -D -f -qq --seccomp-bpf -o /dev/null \
         -e trace=prctl -e inject=prctl:error=EINVAL {} --tool=callgrind --demangle=no --callgrind-out-file={} {} \"$@\"\n",
        quoted(tool.parent().context("callgrind is nowhere")?)?,
        quoted(tool)?,
        quoted(counts)?,
        quoted(trimtab)?,
    );
    let program = dir.join("counting");
    fs::write(&program, script)?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o700))?;
    Ok(program)
}

/// Ended when dropped, which lets go of the process.
struct Tracer(Child);

impl Drop for Tracer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Calls whose number depends on which thread comes first, the allocator's among them, or on how an answer is cut up.
const BY_CHANCE: [&str; 15] = [
    "brk",
    "clone",
    "clone3",
    "epoll_pwait",
    "epoll_wait",
    "futex",
    "getrandom",
    "madvise",
    "mmap",
    "mremap",
    "munmap",
    "recvfrom",
    "restart_syscall",
    "rt_sigprocmask",
    "sched_yield",
];
const OF_THE_DISK: [&str; 3] = ["fdatasync", "fsync", "syncfs"];

/// Those whose number is not chance.
fn counted(calls: &Calls) -> u64 {
    calls.iter().filter(|(name, _)| !BY_CHANCE.contains(&name.as_str())).map(|(_, number)| number).sum()
}

/// Notes the calls of one edit, and shows which they are.
fn count(figures: &mut BTreeMap<&'static str, u64>, calls: &Calls, edit: &str, [all, syncs]: [&'static str; 2]) {
    let named: Vec<_> = calls.iter().map(|(name, number)| format!("{name} {number}")).collect();
    say(&format!("system calls of one {edit}: {}", named.join(", ")));
    figures.insert(all, counted(calls));
    figures.insert(syncs, OF_THE_DISK.iter().filter_map(|name| calls.get(*name)).sum());
}

/// Threads, and resident and private memory in kilobytes, once no thread has ended for [`REST`].
fn at_rest(process: Proc) -> Result<[u64; 3]> {
    let mut threads = process.number("status", "Threads:")?;
    let mut since = now();
    while now() < since + REST {
        thread::sleep(Duration::from_millis(100));
        let left = process.number("status", "Threads:")?;
        if left < threads {
            since = now();
        }
        threads = left;
    }
    Ok([threads, process.number("status", "VmRSS:")?, process.number("smaps_rollup", "Anonymous:")?])
}
