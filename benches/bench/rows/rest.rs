//! Rows on memory and rest.

use std::collections::BTreeMap;
use std::thread;
use std::time::Duration;

use anyhow::Result;

use super::api::Watcher;
use super::{Bench, setting};
use crate::cluster::Cluster;
use crate::elsewhere;
use crate::measure::Proc;
use crate::programs::{Pace, Who};
use crate::report::{Cell, Figure};
use crate::subject::start_all;
use crate::volume::KEYS;

/// What a process at rest takes.
struct Rest {
    resident: u64,
    dirty: u64,
    switches: u64,
    ticks: u64,
}

/// After the first pause, and during the second.
fn at_rest(processes: &BTreeMap<Who, Proc>, pause: Duration) -> Result<BTreeMap<Who, Rest>> {
    thread::sleep(pause);
    let before = each(processes, |process| Ok((process.memory()?, process.switches()?, process.ticks()?)))?;
    thread::sleep(pause);
    let after = each(processes, |process| Ok((process.switches()?, process.ticks()?)))?;
    let rests = before.into_iter().zip(after.into_values()).map(|((who, before), after)| {
        let ([resident, dirty], switches, ticks) = before;
        (who, Rest { resident, dirty, switches: after.0 - switches, ticks: after.1 - ticks })
    });
    Ok(rests.collect())
}

fn each<T>(processes: &BTreeMap<Who, Proc>, of: impl Fn(&Proc) -> Result<T>) -> Result<BTreeMap<Who, T>> {
    processes.iter().map(|(who, process)| Ok((*who, of(process)?))).collect()
}

/// Memory, wake-ups and CPU at rest: on mounted files, and on a watch of the API server.
pub fn rest(bench: &Bench) -> Result<Vec<Figure>> {
    let seconds = setting("REST", 60)?;
    let pause = Duration::from_secs(seconds);
    let subjects = start_all(&bench.programs, &bench.memory, Pace::Default)?;
    let cluster = Cluster::start()?;
    cluster.create(&["web".to_owned()], 8000, "")?;
    let name = format!("{}/web", cluster.namespace);
    let trimtab = Watcher::trimtab(bench, &cluster, &["--configmap", &name], KEYS[0])?;
    let floor = Watcher::floor(bench, &cluster, "web")?;
    for watcher in [&trimtab, &floor] {
        watcher.first_call()?;
    }
    let files = subjects.iter().map(|subject| (subject.program.who, subject.proc())).collect();
    let api = BTreeMap::from([(Who::Trimtab, trimtab.proc()), (Who::Floor, floor.proc())]);
    let (files, api) = thread::scope(|scope| {
        let files = scope.spawn(|| at_rest(&files, pause));
        let api = at_rest(&api, pause);
        (files.join(), api)
    });
    let files = files.map_err(|_| anyhow::anyhow!("the measurement of the files' side broke off"))??;
    let mut figures = lines("mounted files", seconds, &files, [5.0, 1.0]);
    figures[0].cells.insert(Who::Elsewhere, Cell::text(elsewhere::RESIDENT_FILES));
    let mut served = lines("API watch", seconds, &api?, [6.0, 1.0]);
    served[0].cells.insert(Who::Elsewhere, Cell::text(elsewhere::RESIDENT_API));
    figures.extend(served);
    Ok(figures)
}

#[expect(clippy::cast_precision_loss, reason = "seconds and counts are small")]
fn lines(what: &str, seconds: u64, rests: &BTreeMap<Who, Rest>, [resident, dirty]: [f64; 2]) -> Vec<Figure> {
    let cells = |of: fn(&Rest) -> Cell| rests.iter().map(move |(who, rest)| (*who, of(rest)));
    vec![
        Figure::new("rest", format!("resident after {seconds} s at rest, {what}"))
            .main()
            .cells(cells(|rest| Cell::bytes(rest.resident)))
            .at_most(Some(resident), format!("{resident} MB")),
        Figure::new("rest", format!("of that private and dirty, {what}"))
            .main()
            .cells(cells(|rest| Cell::bytes(rest.dirty)))
            .at_most(Some(dirty), format!("{dirty} MB")),
        Figure::new("rest", format!("context switches in {seconds} s at rest, {what}"))
            .cells(cells(|rest| Cell::number(rest.switches as f64, rest.switches.to_string())))
            .at_most(Some(2.0), "2 for the one watch"),
        Figure::new("rest", format!("CPU ticks of 10 ms in {seconds} s at rest, {what}"))
            .cells(cells(|rest| Cell::number(rest.ticks as f64, rest.ticks.to_string())))
            .at_most(Some(0.0), "none"),
    ]
}

/// Memory while a ConfigMap of 1 MB, the largest that the API server takes, is edited again and again.
pub fn peak(bench: &Bench) -> Result<Vec<Figure>> {
    // Names and the JSON around it are a part of the limit of 1 MiB.
    const SIZE: usize = 1_000_000;
    let edits: u32 = setting("PEAK", 1000)?;
    let cluster = Cluster::start()?;
    cluster.create(&["web".to_owned()], 100, "")?;
    let name = format!("{}/web", cluster.namespace);
    let trimtab = Watcher::trimtab(bench, &cluster, &["--configmap", &name, "--debounce", "0"], KEYS[0])?;
    trimtab.first_call()?;
    thread::sleep(Duration::from_secs(5));
    let [rest, _] = trimtab.proc().memory()?;
    for version in 2..edits + 2 {
        cluster.edit("web", version, SIZE, "")?;
    }
    // The last one is in effect; those between may have been joined.
    while trimtab.first_call()?.saw != Some(edits + 1) {}
    let peak = trimtab.proc().number("status", "VmHWM:")? * 1024;
    thread::sleep(Duration::from_secs(10));
    let [after, _] = trimtab.proc().memory()?;
    let over = peak.saturating_sub(rest);
    Ok(vec![
        Figure::new("peak", format!("{edits} edits of a ConfigMap of 1 MB: peak over rest"))
            .main()
            .cell(Who::Trimtab, Cell::bytes(over))
            .at_most(Some(4.0), "4 × the object"),
        Figure::new("peak", "before → peak → 10 s after")
            .cell(Who::Trimtab, Cell::text([rest, peak, after].map(|bytes| Cell::bytes(bytes).text).join(" → "))),
    ])
}
