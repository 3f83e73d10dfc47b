//! Rows on mounted files.

use std::collections::BTreeMap;
use std::os::fd::AsFd as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use std::{fs, thread};

use anyhow::{Context, Result, anyhow, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{Bench, setting};
use crate::cluster::Cluster;
use crate::elsewhere;
use crate::floor::{wait_for, watch};
use crate::guard::Running;
use crate::hook::Hook;
use crate::measure::{Proc, Samples, milliseconds, now};
use crate::programs::{Observer, Pace, Program, Who};
use crate::report::{Cell, Figure};
use crate::subject::{PATIENCE, Subject, Tally, file_system, start_all, take_turns};
use crate::volume::{Swap, Volume};

/// How long a call is waited for that need not come.
const PATIENCE_SAME: Duration = Duration::from_millis(200);
/// Between the kubelet's mkdir and its rename on a busy node.
const BUSY: Duration = Duration::from_millis(5);

fn delays(tallies: &BTreeMap<Who, Tally>) -> impl Iterator<Item = (Who, Cell)> + '_ {
    tallies.iter().map(|(who, tally)| (*who, Cell::times(&tally.samples())))
}

fn faults(tallies: &BTreeMap<Who, Tally>) -> impl Iterator<Item = (Who, Cell)> + '_ {
    tallies.iter().map(|(who, tally)| (*who, Cell::text(format!("{} / {}", tally.lost, tally.doubled))))
}

fn flawless(tallies: &BTreeMap<Who, Tally>) -> Option<bool> {
    tallies.get(&Who::Trimtab).map(|tally| tally.lost + tally.doubled == 0)
}

/// As a share of the peer's, which syncs nothing.
fn delays_and_faults(row: &'static str, name: &str, disk: bool, tallies: &BTreeMap<Who, Tally>) -> Vec<Figure> {
    let figure = Figure::new(row, name).main().cells(delays(tallies));
    let (share, goal) = if disk {
        (0.6, "p50 at most 0.6 × prometheus-config-reloader's")
    } else {
        (0.5, "p50 at most 0.5 × prometheus-config-reloader's")
    };
    let limit = figure.value(Who::PrometheusConfigReloader).map(|peer| peer * share);
    let figure = figure.at_most(limit, goal);
    let faults = Figure::new(row, format!("{name}: lost / doubled")).cells(faults(tallies));
    vec![figure, faults.goal(flawless(tallies), "0 / 0")]
}

/// A mounted volume is swapped → the hook is called.
pub fn swap(bench: &Bench) -> Result<Vec<Figure>> {
    let rounds = setting("SWAPS", 200)?;
    let mut figures = Vec::new();
    for place in [&bench.disk, &bench.memory] {
        let mut subjects = start_all(&bench.programs, place, Pace::Eager)?;
        let tallies = take_turns(&mut subjects, rounds, Swap::default(), PATIENCE)?;
        let disk = place == &bench.disk;
        let name = format!("swap → hook, {}", file_system(place)?);
        let mut lines = delays_and_faults("swap", &name, disk, &tallies);
        if disk {
            lines[0].cells.insert(Who::Elsewhere, Cell::text(elsewhere::SWAP));
            lines[1].cells.insert(Who::Elsewhere, Cell::text(elsewhere::FAULTS));
        }
        figures.extend(lines);
    }
    Ok(figures)
}

/// A mounted volume is swapped → the signal arrives.
pub fn signal(bench: &Bench) -> Result<Vec<Figure>> {
    let rounds = setting("SWAPS", 200)?;
    let programs = bench.only(&[Who::Trimtab, Who::Floor, Who::FsyncFloor, Who::PrometheusConfigReloader]);
    let mut figures = Vec::new();
    for place in [&bench.disk, &bench.memory] {
        let start = |program| Subject::start(program, place, Pace::Eager, true);
        let mut subjects = programs.iter().map(start).collect::<Result<Vec<_>>>()?;
        let tallies = take_turns(&mut subjects, rounds, Swap::default(), PATIENCE)?;
        let name = format!("swap → signal, {}", file_system(place)?);
        figures.extend(delays_and_faults("signal", &name, place == &bench.disk, &tallies));
    }
    Ok(figures)
}

/// Swaps on a disk, in peace and then beside a program that writes and syncs 64 kB two hundred times a second.
pub fn busy(bench: &Bench) -> Result<Vec<Figure>> {
    let rounds = setting("SWAPS", 200)?;
    let programs = bench.only(&[Who::Trimtab, Who::Floor, Who::FsyncFloor, Who::PrometheusConfigReloader]);
    let mut subjects = start_all(&programs, &bench.disk, Pace::Eager)?;
    let quiet = take_turns(&mut subjects, rounds, Swap::default(), PATIENCE)?;
    let writer = Writer::start(&bench.disk)?;
    let busy = take_turns(&mut subjects, rounds, Swap::default(), PATIENCE)?;
    let written = writer.end()?;
    let name = format!("swap → hook, {}, beside {written:.0} fsyncs a second", file_system(&bench.disk)?);
    let last = |tally: &Tally| tally.samples().rank(99).unwrap_or_default();
    let over = |who: &Who, tally: &Tally| quiet.get(who).map_or(0.0, |quiet| last(tally) / last(quiet));
    let times = busy.iter().map(|(who, tally)| (*who, over(who, tally)));
    let cells = times.map(|(who, over)| (who, Cell::number(over, format!("{over:.1} ×"))));
    Ok(vec![
        Figure::new("busy", name.clone()).main().cells(delays(&busy)),
        Figure::new("busy", "the same: p99 over that in peace").cells(cells).at_most(Some(3.0), "at most 3 ×"),
        Figure::new("busy", format!("{name}: lost / doubled")).cells(faults(&busy)).goal(flawless(&busy), "0 / 0"),
    ])
}

/// Writes and syncs until it is ended.
struct Writer {
    go: Arc<AtomicBool>,
    /// Gives how often it has synced in a second.
    thread: JoinHandle<Result<f64>>,
}

impl Writer {
    fn start(below: &Path) -> Result<Self> {
        let file = tempfile::tempfile_in(below)?;
        let go = Arc::new(AtomicBool::new(true));
        let goes = Arc::clone(&go);
        let thread = thread::spawn(move || {
            let (began, block, mut synced) = (now(), vec![7; 64 << 10], 0_u32);
            while goes.load(Ordering::Relaxed) {
                file.write_all_at(&block, u64::from(synced % 1024) * block.len() as u64)?;
                file.sync_all()?;
                synced += 1;
                thread::sleep((began + Duration::from_millis(5) * synced).saturating_sub(now()));
            }
            Ok(f64::from(synced) / now().saturating_sub(began).as_secs_f64())
        });
        Ok(Self { go, thread })
    }

    fn end(self) -> Result<f64> {
        self.go.store(false, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("the writer has panicked"))?
    }
}

/// Swaps with a pause between the kubelet's mkdir and its rename, and swaps that change no byte.
pub fn twice(bench: &Bench) -> Result<Vec<Figure>> {
    let rounds = setting("SWAPS", 200)?;
    let mut subjects = start_all(&bench.programs, &bench.memory, Pace::Eager)?;
    let busy = take_turns(&mut subjects, rounds, Swap { gap: Some(BUSY), same: false }, PATIENCE)?;
    let same = take_turns(&mut subjects, rounds, Swap { gap: None, same: true }, PATIENCE_SAME)?;
    let calls = |tally: &Tally| tally.delays.len() + tally.doubled;
    let called = same.iter().map(|(who, tally)| (*who, Cell::text(calls(tally).to_string())));
    Ok(vec![
        Figure::new("twice", "5 ms between mkdir and rename: lost / doubled")
            .main()
            .cells(faults(&busy))
            .goal(flawless(&busy), "0 / 0"),
        Figure::new("twice", format!("{rounds} swaps with the same bytes: calls"))
            .main()
            .cells(called)
            .goal(same.get(&Who::Trimtab).map(|tally| calls(tally) == 0), "none"),
    ])
}

/// An edit every 200 ms at default flags: how far behind is the main process at worst?
pub fn burst(bench: &Bench) -> Result<Vec<Figure>> {
    const EVERY: Duration = Duration::from_millis(200);
    let seconds = setting("BURST", 60)?;
    let peers = [Who::Trimtab, Who::PrometheusConfigReloader, Who::VictoriaConfigReloader, Who::ConsulTemplate];
    let mut subjects = start_all(&bench.only(&peers), &bench.memory, Pace::Default)?;
    let began = now();
    let mut edits = vec![Vec::new(); subjects.len()];
    while now().saturating_sub(began) < Duration::from_secs(seconds) {
        for (subject, edits) in subjects.iter_mut().zip(&mut edits) {
            let renamed = subject.volume.swap(Swap::default())?;
            edits.push((subject.volume.version, renamed));
        }
        let next = EVERY * u32::try_from(edits[0].len())?;
        thread::sleep((began + next).saturating_sub(now()));
    }
    // Whoever waits for quiet has it now.
    thread::sleep(Duration::from_secs(6));
    let mut worst =
        Figure::new("burst", format!("an edit each 200 ms for {seconds} s, default flags: worst delay")).main();
    let mut calls = Figure::new("burst", format!("the same: reloads for {} edits", edits[0].len()));
    for (subject, edits) in subjects.iter().zip(edits) {
        let seen: Vec<_> = subject.calls().try_iter().collect();
        let delays: Vec<_> = edits
            .iter()
            .map(|(version, renamed)| {
                let call = seen.iter().find(|call| call.saw.is_some_and(|saw| saw >= *version));
                // One that never came is as late as this measurement is long.
                milliseconds(*renamed, call.map_or_else(now, |call| call.at))
            })
            .collect();
        let late = Samples::new(&delays).rank(100).unwrap_or_default() / 1000.0;
        worst = worst.cell(subject.program.who, Cell::number(late, format!("{late:.2} s")));
        calls = calls.cell(subject.program.who, Cell::text(seen.len().to_string()));
    }
    Ok(vec![worst.at_most(Some(2.0), "at most 2 s"), calls])
}

/// Swaps, one a second, while each program has a hundredth of a core.
pub fn cpu(bench: &Bench) -> Result<Vec<Figure>> {
    let rounds = setting("CPU", 60)?;
    let mut programs = bench.programs.clone();
    programs.retain(|program| !program.polls());
    let mut subjects = start_all(&programs, &bench.memory, Pace::Eager)?;
    for subject in &mut subjects {
        subject.limit()?;
    }
    let mut tallies = BTreeMap::new();
    for _ in 0..rounds {
        let began = now();
        for subject in &mut subjects {
            let tally = tallies.entry(subject.program.who).or_insert_with(Tally::default);
            subject.swap(Swap::default(), PATIENCE, tally)?;
        }
        thread::sleep((began + Duration::from_secs(1)).saturating_sub(now()));
    }
    let worst = tallies.iter().map(|(who, tally)| (*who, Cell::worst(&tally.samples())));
    Ok(vec![
        Figure::new("cpu", "CPU limit 10m, a swap each second: worst delay")
            .main()
            .cells(worst)
            .cell(Who::Elsewhere, Cell::text(elsewhere::LIMITED))
            .at_most(Some(50.0), "at most 50 ms"),
        Figure::new("cpu", "CPU limit 10m: p50 (p99)").cells(delays(&tallies)),
        Figure::new("cpu", "CPU limit 10m: lost / doubled").cells(faults(&tallies)).goal(flawless(&tallies), "0 / 0"),
    ])
}

/// From exec to the first publish, on mounted files and with the API server; beside the peers' first watch.
pub fn start(bench: &Bench) -> Result<Vec<Figure>> {
    let rounds: usize = setting("STARTS", 50)?;
    let mut mounted: BTreeMap<Who, Vec<f64>> = BTreeMap::new();
    let mut watching: BTreeMap<Who, Vec<f64>> = BTreeMap::new();
    let mut served = Vec::new();
    let cluster = Cluster::start()?;
    cluster.create(&["web".to_owned()], 2000, "")?;
    for _ in 0..rounds {
        for program in &bench.programs {
            let (published, watched) = one_start(program, &bench.disk)?;
            mounted.entry(program.who).or_default().extend(published);
            watching.entry(program.who).or_default().extend(watched);
        }
        let mut command = Command::new(&bench.trimtab);
        command
            .args(["--configmap", &format!("{}/web", cluster.namespace)])
            .arg("--kubeconfig")
            .arg(cluster.kubeconfig());
        served.push(first_publish(command, &bench.disk)?);
    }
    let cells = |times: BTreeMap<Who, Vec<f64>>| {
        let some = times.into_iter().filter(|(_, times)| !times.is_empty());
        some.map(|(who, times)| (who, Cell::times(&Samples::new(&times)))).collect::<Vec<_>>()
    };
    let on_disk = file_system(&bench.disk)?;
    Ok(vec![
        Figure::new("start", format!("exec → first publish, {on_disk}"))
            .main()
            .cells(cells(mounted))
            .at_most(Some(5.0), "5 ms"),
        Figure::new("start", "exec → its first watch")
            .cells(cells(watching))
            .cell(Who::Elsewhere, Cell::text(elsewhere::START)),
        Figure::new("start", format!("exec → first publish, API server, {on_disk}"))
            .main()
            .cell(Who::Trimtab, Cell::times(&Samples::new(&served)))
            .at_most(Some(50.0), "50 ms"),
    ])
}

/// Trimtab's first publish, any program's first watch: milliseconds.
fn one_start(program: &Program, below: &Path) -> Result<(Option<f64>, Option<f64>)> {
    let dir = tempfile::Builder::new().prefix("bench-").tempdir_in(below)?;
    Volume::new(dir.path().join("volume"))?;
    if program.who == Who::Trimtab {
        let mut command = Command::new(&program.path);
        command.arg("--watch-dir").arg(dir.path().join("volume"));
        return Ok((Some(first_publish(command, below)?), None));
    }
    let observer = Observer::Hook(Hook::start(program.published(dir.path()))?);
    let command = program.command(dir.path(), &observer, Pace::Eager)?;
    if program.polls() {
        // It has no watch, and notifies when it has written.
        let Observer::Hook(hook) = &observer else { return Ok((None, None)) };
        let began = now();
        let _running = Running::start(command, dir.path())?;
        let call = hook.calls.recv_timeout(PATIENCE).context("consul-template notifies nobody")?;
        return Ok((Some(milliseconds(began, call.at)), None));
    }
    let began = now();
    let running = Running::start(command, dir.path())?;
    let process = Proc(running.process.id());
    while !process.watches() {
        ensure!(now() < began + PATIENCE, "{} does not watch", program.who.title());
        thread::sleep(Duration::from_micros(50));
    }
    Ok((None, Some(milliseconds(began, now()))))
}

/// From exec to the rename that publishes the first generation: milliseconds.
fn first_publish(mut command: Command, below: &Path) -> Result<f64> {
    let dir = tempfile::Builder::new().prefix("bench-").tempdir_in(below)?;
    let output = dir.path().join("conf");
    fs::create_dir(&output)?;
    let published = watch(&output)?;
    let hook = Hook::start(output.join("a"))?;
    command.arg("--output").arg(&output).args(["--reload-url", &format!("http://{}/", hook.address)]);
    command.args(["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]);
    let began = now();
    let _running = Running::start(command, dir.path())?;
    let readable = PollFd::new(published.as_fd(), PollFlags::POLLIN);
    let patience = PollTimeout::try_from(PATIENCE)?;
    ensure!(poll(&mut [readable], patience)? > 0, "nothing is published; its log:\n{}", log(dir.path()));
    wait_for(&published, "..data")?;
    let took = milliseconds(began, now());
    Ok(took)
}

fn log(dir: &Path) -> String {
    fs::read_to_string(dir.join("log")).unwrap_or_default()
}
