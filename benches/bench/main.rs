//! `make bench`: Trimtab beside its peers and beside a floor, in one run on this machine, as text, JSON and a plot.
//!
//! Each row of the table is a function of [`rows`]. The programs of a row run side by side, each with a volume, an object
//! and a hook of its own, and take turns edit by edit: a busy moment of the machine meets them all. Nothing is asserted.
//!
//! `make ratchet` and `make soak` are modes of it, on the same programs: see [`ratchet`], [`soak`].

#[expect(dead_code, reason = "the tests' own server; not all of it is needed here")]
#[path = "../../tests/integration/support/apiserver.rs"]
mod apiserver;
mod audit;
mod cluster;
mod elsewhere;
mod floor;
mod guard;
mod hook;
mod measure;
mod plot;
mod programs;
mod ratchet;
mod report;
mod rows;
mod soak;
mod subject;
mod volume;

use std::env;

use anyhow::Result;

use report::Report;
use rows::Bench;

fn main() -> Result<()> {
    let args: Vec<_> = env::args().skip(1).collect();
    let words: Vec<_> = args.iter().map(String::as_str).collect();
    if let Some(ended) = floor::run(&words) {
        return ended;
    }
    // What `cargo bench` says; `cargo test --all-targets` does not.
    if !words.contains(&"--bench") {
        say("run: make bench, make ratchet or make soak");
        return Ok(());
    }
    if words.contains(&"ratchet") {
        return ratchet::run();
    }
    if words.contains(&"soak") {
        return soak::run();
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
