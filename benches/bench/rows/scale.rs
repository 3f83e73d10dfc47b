//! Rows on what grows: many objects, the binary.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use super::api::Watcher;
use super::{Bench, setting};
use crate::cluster::Cluster;
use crate::elsewhere;
use crate::measure::{milliseconds, now};
use crate::programs::Who;
use crate::report::{Cell, Figure};
use crate::subject::{PATIENCE, Tally};

const SIZE: usize = 20_000;

/// Many labelled ConfigMaps of 20 kB, each a file: first sync, memory, and one edit.
pub fn labels(bench: &Bench) -> Result<Vec<Figure>> {
    let counts = setting("OBJECTS", "1,100,1000,5000".to_owned())?;
    let counts = counts.split(',').map(|count| count.trim().parse()).collect::<Result<Vec<usize>, _>>();
    let counts = counts.context("BENCH_OBJECTS is a list of numbers")?;
    let edits: u32 = setting("LABEL_EDITS", 50)?;
    let help = Command::new(&bench.trimtab).arg("--help").output()?;
    let by_files = String::from_utf8_lossy(&help.stdout).contains("--layout");
    let layout = if by_files { "--layout files" } else { "the atomic layout, as there is no --layout" };
    let mut figures = Vec::new();
    let mut medians = BTreeMap::new();
    let mut resident = BTreeMap::new();
    for count in &counts {
        // A server for each: what it keeps of one must not slow down the next.
        let cluster = Cluster::start()?;
        let names: Vec<_> = (0..*count).map(|index| format!("object-{index}")).collect();
        cluster.create(&names, SIZE, "yes")?;
        let mut flags =
            vec!["--selector", "bench=yes", "--namespace", &cluster.namespace, "--path", "all/{name}-{key}"];
        flags.extend(["--debounce", "0", "--max-size", "256Mi"]);
        if by_files {
            flags.extend(["--layout", "files"]);
        }
        let began = now();
        let trimtab = Watcher::trimtab(bench, &cluster, &flags, "all/object-0-a")?;
        let synced = milliseconds(began, trimtab.first_call()?.at);
        let mut tally = Tally::default();
        for version in 2..edits + 2 {
            let edited = cluster.edit(&names[0], version, SIZE, "yes")?;
            tally.take(&trimtab.hook.calls, version, edited.answered, PATIENCE);
        }
        thread::sleep(Duration::from_secs(5));
        let [memory, _] = trimtab.proc().memory()?;
        let samples = tally.samples();
        medians.extend(samples.rank(50).map(|median| (*count, median)));
        resident.insert(*count, memory);
        let what = format!("{count} labelled ConfigMaps of 20 kB");
        figures.extend([
            Figure::new("labels", format!("{what}: first sync"))
                .cell(Who::Trimtab, Cell::number(synced, format!("{synced:.0} ms"))),
            Figure::new("labels", format!("{what}: one edit → hook")).cell(Who::Trimtab, Cell::times(&samples)),
            Figure::new("labels", format!("{what}: resident")).cell(Who::Trimtab, Cell::bytes(memory)),
        ]);
    }
    if let [Some(first), Some(last)] = [counts.first(), counts.last()] {
        let over = resident[last].saturating_sub(resident[first]);
        figures.push(
            Figure::new("labels", format!("resident at {last} over that at {first}, {layout}"))
                .main()
                .cell(Who::Trimtab, Cell::bytes(over))
                .cell(Who::Elsewhere, Cell::text(elsewhere::LABELLED))
                .at_most(Some(12.0), "12 MB"),
        );
        if let Some((first_median, last_median)) = medians.get(first).zip(medians.get(last)) {
            let ratio = last_median / first_median;
            figures.push(
                Figure::new("labels", format!("one edit's p50 at {last} over that at {first}, {layout}"))
                    .main()
                    .cell(Who::Trimtab, Cell::number(ratio, format!("{ratio:.2} ×")))
                    .at_most(Some(1.3), "1.3 ×"),
            );
        }
    }
    Ok(figures)
}

/// The binary as it is measured, and the image if `TRIMTAB_BENCH_IMAGE` names its archive.
pub fn size(bench: &Bench) -> Result<Vec<Figure>> {
    let peers = bench.programs.iter().filter(|program| !matches!(program.who, Who::Floor | Who::FsyncFloor));
    let cells = peers.map(|program| Ok((program.who, Cell::bytes(fs::metadata(&program.path)?.len()))));
    let mut figures = vec![
        Figure::new("size", "binary, stripped")
            .main()
            .cells(cells.collect::<Result<Vec<_>>>()?)
            .at_most(Some(8.0), "8 MB"),
    ];
    if let Some(image) = env::var_os("TRIMTAB_BENCH_IMAGE") {
        let size = fs::metadata(&image).with_context(|| format!("TRIMTAB_BENCH_IMAGE={}", image.display()))?.len();
        figures
            .push(Figure::new("size", "image").main().cell(Who::Trimtab, Cell::bytes(size)).at_most(Some(9.0), "9 MB"));
    }
    Ok(figures)
}
