//! Numbers: the clock that all processes share, ranks, and what the kernel says of a process.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::time::{ClockId, clock_gettime};

/// The monotonic clock, which is one for all processes of the machine.
pub fn now() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default()
}

/// Milliseconds from one moment to another; negative if that came first.
pub fn milliseconds(from: Duration, to: Duration) -> f64 {
    (to.as_secs_f64() - from.as_secs_f64()) * 1000.0
}

/// Samples in rising order.
#[derive(Clone, Default)]
pub struct Samples(Vec<f64>);

impl Samples {
    /// Of these.
    pub fn new(samples: &[f64]) -> Self {
        let mut sorted = samples.to_vec();
        sorted.sort_unstable_by(f64::total_cmp);
        Self(sorted)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The percentile by nearest rank; `None` where there is no sample.
    pub fn rank(&self, percent: usize) -> Option<f64> {
        let at = (self.0.len() * percent).div_ceil(100).max(1) - 1;
        self.0.get(at).copied()
    }
}

/// A process, as proc(5) shows it.
#[derive(Clone, Copy)]
pub struct Proc(pub u32);

impl Proc {
    /// A field of one of its files; kilobytes for those that have a unit.
    pub fn number(self, file: &str, field: &str) -> Result<u64> {
        number(&Path::new("/proc").join(self.0.to_string()).join(file), field)
    }

    /// Resident, private dirty: bytes.
    pub fn memory(self) -> Result<[u64; 2]> {
        Ok([self.number("status", "VmRSS:")? * 1024, self.number("smaps_rollup", "Private_Dirty:")? * 1024])
    }

    /// Context switches of all its threads so far.
    pub fn switches(self) -> Result<u64> {
        let mut sum = 0;
        for task in fs::read_dir(format!("/proc/{}/task", self.0))? {
            let status = task?.path().join("status");
            sum += number(&status, "voluntary_ctxt_switches:")? + number(&status, "nonvoluntary_ctxt_switches:")?;
        }
        Ok(sum)
    }

    /// Whether all its threads are stopped, by a signal or for a tracer.
    pub fn stopped(self) -> Result<bool> {
        for task in fs::read_dir(format!("/proc/{}/task", self.0))? {
            let status = fs::read_to_string(task?.path().join("status")).unwrap_or_default();
            let state = status.lines().find_map(|line| line.strip_prefix("State:")).unwrap_or_default();
            // One that has ended meanwhile has none.
            if !matches!(state.trim_start().chars().next(), None | Some('T' | 't' | 'X' | 'Z')) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// CPU time so far, in ticks of a hundredth of a second.
    pub fn ticks(self) -> Result<u64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.0))?;
        // The name, in parentheses, may hold anything.
        let (_, fields) = stat.rsplit_once(')').context("/proc/PID/stat has no name")?;
        let fields: Vec<_> = fields.split_whitespace().collect();
        let [user, system] = [11, 12].map(|at| fields.get(at).and_then(|field| field.parse::<u64>().ok()));
        user.zip(system).map(|(user, system)| user + system).context("/proc/PID/stat has no times")
    }

    /// Whether it has an inotify watch.
    pub fn watches(self) -> bool {
        let Ok(files) = fs::read_dir(format!("/proc/{}/fdinfo", self.0)) else { return false };
        let mut infos = files.flatten().filter_map(|file| fs::read_to_string(file.path()).ok());
        infos.any(|info| info.contains("inotify wd:"))
    }
}

fn number(file: &Path, field: &str) -> Result<u64> {
    let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
    let value = text.lines().find_map(|line| line.strip_prefix(field)?.split_whitespace().next()?.parse().ok());
    value.with_context(|| format!("{} has no {field}", file.display()))
}
