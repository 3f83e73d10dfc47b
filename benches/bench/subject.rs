//! A program at work, on a volume and with an observer of its own.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::mpsc::Receiver;
use std::time::Duration;
use std::{fs, thread};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use crate::guard::{Cgroup, Running};
use crate::hook::{Call, Hook, Target};
use crate::measure::{Proc, Samples, milliseconds, now};
use crate::programs::{Observer, Pace, Program, Who};
use crate::volume::{Swap, Volume};

/// Before the next edit: what was doubled comes, and what is done after the call (a journal, old files) is over.
const PAUSE: Duration = Duration::from_millis(20);
/// An edit that has not led to a call by then is lost.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// How often a program that polls is edited, of the others' hundreds.
const EDITS_OF_POLLING: usize = 20;

/// What came of the edits.
#[derive(Default)]
pub struct Tally {
    /// Milliseconds from the edit to the first call that found the new content.
    pub delays: Vec<f64>,
    /// Edits without one.
    pub lost: usize,
    /// All other calls.
    pub doubled: usize,
}

impl Tally {
    /// The delays in order.
    pub fn samples(&self) -> Samples {
        Samples::new(&self.delays)
    }

    /// Notes what comes within `patience` of an edit that began at `from` and wrote `version`. A call that found older
    /// content counts as doubled: it serves nobody.
    pub fn take(&mut self, calls: &Receiver<Call>, version: u32, from: Duration, patience: Duration) {
        let deadline = from + patience;
        let mut delay = None;
        while delay.is_none() {
            let Ok(call) = calls.recv_timeout(deadline.saturating_sub(now())) else { break };
            if call.saw == Some(version) {
                delay = Some(milliseconds(from, call.at));
            } else {
                self.doubled += 1;
            }
        }
        match delay {
            Some(delay) => self.delays.push(delay),
            None => self.lost += 1,
        }
        thread::sleep(PAUSE);
        self.doubled += calls.try_iter().count();
    }
}

/// The program. Ended when dropped.
pub struct Subject {
    /// Which it is.
    pub program: Program,
    /// Its volume.
    pub volume: Volume,
    observer: Observer,
    child: Running,
    // After the child: it must be empty.
    limit: Option<Cgroup>,
    dir: TempDir,
}

impl Subject {
    /// Starts it in a folder below this one, and waits until it watches.
    pub fn start(program: &Program, below: &Path, pace: Pace, by_signal: bool) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("bench-").tempdir_in(below)?;
        let volume = Volume::new(dir.path().join("volume"))?;
        let file = program.published(dir.path());
        let hook = Hook::start(file.clone())?;
        let observer =
            if by_signal { Observer::Target(Target::start(&file, dir.path())?, hook) } else { Observer::Hook(hook) };
        let child = Running::start(program.command(dir.path(), &observer, pace)?, dir.path())?;
        let mut subject = Self { program: program.clone(), volume, observer, child, limit: None, dir };
        subject.warm_up(pace)?;
        Ok(subject)
    }

    fn warm_up(&mut self, pace: Pace) -> Result<()> {
        let deadline = now() + Duration::from_mins(1);
        let mut tally = Tally::default();
        while tally.delays.len() < 3 {
            ensure!(now() < deadline, "{} notifies nobody; its log:\n{}", self.program.who.title(), self.log());
            // A default may be to wait for three seconds.
            let slow = self.program.polls() || pace == Pace::Default;
            let patience = if slow { PATIENCE } else { Duration::from_millis(500) };
            self.swap(Swap::default(), patience, &mut tally)?;
        }
        Ok(())
    }

    /// The calls of its observer.
    pub fn calls(&self) -> &Receiver<Call> {
        match &self.observer {
            Observer::Hook(hook) => &hook.calls,
            Observer::Target(target, _) => &target.calls,
        }
    }

    /// One swap, and what came of it.
    pub fn swap(&mut self, swap: Swap, patience: Duration, tally: &mut Tally) -> Result<()> {
        let renamed = self.volume.swap(swap)?;
        tally.take(self.calls(), self.volume.version, renamed, patience);
        if self.child.process.try_wait()?.is_some() {
            bail!("{} has ended; its log:\n{}", self.program.who.title(), self.log());
        }
        Ok(())
    }

    /// Puts it under the limit of CPU.
    pub fn limit(&mut self) -> Result<()> {
        let name = self.dir.path().file_name().and_then(|name| name.to_str()).context("a folder without a name")?;
        let cgroup = Cgroup::limited(name)?;
        cgroup.add(self.child.process.id())?;
        self.limit = Some(cgroup);
        Ok(())
    }

    /// Its process.
    pub fn proc(&self) -> Proc {
        Proc(self.child.process.id())
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        self.dir.path()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}

/// All of these at work.
pub fn start_all(programs: &[Program], below: &Path, pace: Pace) -> Result<Vec<Subject>> {
    programs.iter().map(|program| Subject::start(program, below, pace, false)).collect()
}

/// Swap by swap, each program once; those that poll take part in the first few rounds.
pub fn take_turns(
    subjects: &mut [Subject],
    rounds: usize,
    swap: Swap,
    patience: Duration,
) -> Result<BTreeMap<Who, Tally>> {
    let mut tallies = BTreeMap::new();
    for round in 0..rounds {
        for subject in subjects.iter_mut() {
            if subject.program.polls() && round >= EDITS_OF_POLLING {
                continue;
            }
            let patience = if subject.program.polls() { patience.max(PATIENCE) } else { patience };
            let tally = tallies.entry(subject.program.who).or_insert_with(Tally::default);
            subject.swap(swap, patience, tally)?;
        }
    }
    Ok(tallies)
}

/// The file system that a path is on, by its kind.
pub fn file_system(path: &Path) -> Result<String> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let path: PathBuf = path.canonicalize()?;
    let mounts = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        Some((Path::new(fields.next()?), fields.next()?)).filter(|(point, _)| path.starts_with(point))
    });
    let nearest = mounts.max_by_key(|(point, _)| point.components().count());
    Ok(nearest.map_or("disk", |(_, kind)| kind).to_owned())
}
