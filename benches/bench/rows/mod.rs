//! The rows of the table, in the order of their worth.

pub mod api;
mod files;
mod fleet;
mod large;
mod rest;
mod scale;
mod url;

use std::env;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result, bail};

use crate::programs::{self, Program, Who};
use crate::report::{Figure, Report};
use crate::rig;

/// A row: one measurement that gives one or more lines.
pub struct Row {
    /// As `ROWS` names it.
    pub name: &'static str,
    /// What is done.
    pub about: &'static str,
    /// Measures it.
    pub run: fn(&Bench) -> Result<Vec<Figure>>,
}

/// All of them.
pub const ROWS: [Row; 17] = [
    Row { name: "swap", about: "a mounted volume is swapped → the hook is called", run: files::swap },
    Row { name: "signal", about: "the same → the signal arrives", run: files::signal },
    Row { name: "busy", about: "swaps on a disk that another program keeps busy", run: files::busy },
    Row { name: "edit", about: "a ConfigMap is edited on a real API server → the hook is called", run: api::edit },
    Row { name: "start", about: "exec → first publish", run: files::start },
    Row { name: "twice", about: "swaps with a pause in them, and with the same bytes", run: files::twice },
    Row { name: "burst", about: "an edit every 200 ms at default flags", run: files::burst },
    Row { name: "cpu", about: "swaps under a CPU limit of 10m", run: files::cpu },
    Row { name: "rest", about: "memory, wake-ups and CPU at rest", run: rest::rest },
    Row { name: "peak", about: "memory while a ConfigMap of 1 MB is edited", run: rest::peak },
    Row { name: "labels", about: "many labelled ConfigMaps of 20 kB", run: scale::labels },
    Row { name: "url", about: "a bundle of 50 MB behind a URL", run: url::url },
    Row { name: "large", about: "ten files of 60 MB in a directory", run: large::large },
    Row { name: "size", about: "binary and image", run: scale::size },
    Row { name: "server", about: "what one sidecar costs the API server", run: fleet::server },
    Row { name: "fleet", about: "many sidecars, one edit, a restart of the API server", run: fleet::fleet },
    Row { name: "rollout", about: "many sidecars, one edit, one replica first", run: fleet::rollout },
];

/// Those of these names; all, if there are none.
pub fn chosen(names: &[&str]) -> Result<Vec<&'static Row>> {
    const ALL: &[Row] = &ROWS;
    if let Some(unknown) = names.iter().find(|name| ALL.iter().all(|row| row.name != **name)) {
        let known: Vec<_> = ALL.iter().map(|row| row.name).collect();
        bail!("ROWS: there is no {unknown}; there are {}", known.join(", "));
    }
    Ok(ALL.iter().filter(|row| names.is_empty() || names.contains(&row.name)).collect())
}

/// What all rows need.
pub struct Bench {
    /// Trimtab's binary.
    pub trimtab: PathBuf,
    /// All that run on mounted files, Trimtab first.
    pub programs: Vec<Program>,
    /// A folder on a disk.
    pub disk: PathBuf,
    /// A folder in memory.
    pub memory: PathBuf,
}

impl Bench {
    /// Finds and builds the programs.
    pub fn new(report: &mut Report) -> Result<Self> {
        let trimtab = rig::trimtab()?;
        let exe = env::current_exe().context("the path of this program")?;
        let mut programs = vec![
            Program { who: Who::Trimtab, path: trimtab.clone() },
            Program { who: Who::Floor, path: exe.clone() },
            Program { who: Who::FsyncFloor, path: exe },
        ];
        match programs::peers() {
            Ok(peers) => programs.extend(peers),
            Err(reason) => report.remark(format!("The peers were not built: {reason}.")),
        }
        // For a quick look at one of them.
        if let Ok(only) = env::var("BENCH_PROGRAMS") {
            programs.retain(|program| only.split(',').any(|name| program.who.title().starts_with(name)));
        }
        let disk = Path::new(env!("CARGO_TARGET_TMPDIR")).to_owned();
        Ok(Self { trimtab, programs, disk, memory: "/dev/shm".into() })
    }

    /// The programs of these columns.
    pub fn only(&self, who: &[Who]) -> Vec<Program> {
        self.programs.iter().filter(|program| who.contains(&program.who)).cloned().collect()
    }
}

/// A count, or seconds: `BENCH_NAME` of the environment, else what makes a good table.
pub fn setting<T: FromStr>(name: &str, default: T) -> Result<T> {
    let name = format!("BENCH_{name}");
    match env::var(&name) {
        Ok(text) => text.parse().ok().with_context(|| format!("{name}={text} is no number")),
        Err(_) => Ok(default),
    }
}
