//! The clock that process start times are in: clock ticks since boot (`proc_pid_stat(5)`, field 22).

use std::fs;
use std::io;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use nix::unistd::{SysconfVar, sysconf};

use crate::model::journal::Moment;

/// The clock of this boot, which no process outlives.
#[derive(Clone, Debug)]
pub struct Clock {
    boot_id: String,
}

impl Clock {
    pub fn new() -> io::Result<Self> {
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned();
        Ok(Self { boot_id })
    }

    /// This moment.
    #[must_use]
    pub fn now(&self) -> Moment {
        Moment { boot_id: self.boot_id.clone(), ticks: ticks() }
    }

    /// Whether a moment belongs to this boot.
    #[must_use]
    pub fn knows(&self, moment: &Moment) -> bool {
        self.boot_id == moment.boot_id
    }
}

/// This moment in clock ticks, as start times are.
#[must_use]
pub fn ticks() -> u64 {
    let since_boot = since_boot();
    let fraction = u64::from(since_boot.subsec_nanos()) * hertz() / 1_000_000_000;
    since_boot.as_secs() * hertz() + fraction
}

/// How long ago a process that started at `start_ticks` did so, at least.
pub(super) fn age(start_ticks: u64) -> Duration {
    // The start time was rounded down, so the process may be younger by one tick.
    since_boot().saturating_sub(since_boot_at(start_ticks.saturating_add(1)))
}

pub(super) fn since_boot_at(ticks: u64) -> Duration {
    Duration::from_millis(ticks.saturating_mul(1000) / hertz())
}

pub(super) fn since_boot() -> Duration {
    // Never negative, and shifted by a time namespace just as the start times in /proc are. It fails on no Linux.
    clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default()
}

/// Clock ticks per second: 100 on each architecture that Linux has today.
fn hertz() -> u64 {
    let known = sysconf(SysconfVar::CLK_TCK).ok().flatten();
    known.and_then(|hertz| u64::try_from(hertz).ok()).filter(|hertz| *hertz > 0).unwrap_or(100)
}
