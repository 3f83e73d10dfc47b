//! `make bench`: Trimtab beside its peers and beside a floor, in one run on this machine, as text, JSON and a plot.
//!
//! Each row of the table is a function of [`rows`]. The programs of a row run side by side, each with a volume, an object
//! and a hook of its own, and take turns edit by edit: a busy moment of the machine meets them all. Nothing is asserted.
//!
//! `make ratchet` is a mode of it, on the same programs: see [`ratchet`].

mod audit;
mod elsewhere;
mod floor;
mod hook;
mod plot;
mod programs;
mod ratchet;
mod report;
#[allow(dead_code, reason = "the soak stands on it, too")]
#[path = "../../tests/rig/mod.rs"]
mod rig;
mod rows;
mod subject;

use std::env;
use std::process::ExitCode;

use anyhow::Result;

use report::Report;
use rig::{cluster, guard, measure, notified, volume};
use rows::Bench;

fn main() -> ExitCode {
    let Err(error) = run() else { return ExitCode::SUCCESS };
    // Without a backtrace, which would stand below it.
    say(&format!("{error:#}"));
    ExitCode::FAILURE
}

fn run() -> Result<()> {
    let args: Vec<_> = env::args().skip(1).collect();
    let words: Vec<_> = args.iter().map(String::as_str).collect();
    if let Some(ended) = floor::run(&words) {
        return ended;
    }
    // What `cargo bench` says; `cargo test --all-targets` does not.
    if !words.contains(&"--bench") {
        say("run: make bench or make ratchet");
        return Ok(());
    }
    if words.contains(&"ratchet") {
        return ratchet::run();
    }
    let wanted = env::var("ROWS").unwrap_or_default();
    let wanted: Vec<_> = wanted.split([',', ' ']).filter(|name| !name.is_empty()).collect();
    let rows = rows::chosen(&wanted)?;
    // With the load of the others, not with our own.
    let mut report = Report::new()?;
    let bench = Bench::new(&mut report)?;
    for row in rows {
        say(&format!("{}: {}", row.name, row.about));
        match (row.run)(&bench) {
            Ok(figures) => report.add(figures),
            Err(error) => report.missing(row.name, &format!("{error:#}")),
        }
    }
    report.write(wanted.is_empty())
}

fn say(what: &str) {
    eprintln!("bench: {what}");
}
