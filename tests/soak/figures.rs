//! What the sidecars held at the start and at the end, and whether that is growth.

use anyhow::{Result, bail};

use super::sidecar::{Sample, Sidecar};

/// A sample of each sidecar, in their order.
pub type Round = Vec<Sample>;

/// kB that memory may vary by. The allocator returns what it can, and a page that one small value holds stays: a few
/// dozen pages come and go with the order in which values were freed; each watch may keep room for a read of 64 kB, until
/// it is opened again. What grows by a hundred bytes for each action
/// passes this in an hour.
const MEMORY: u64 = 256;
/// kB of the binary's own pages, which come in when code runs for the first time, and go when the machine needs room.
const CODE: u64 = 1024;
/// Bytes that the output may vary by: a journal's numbers grow by a digit now and then.
const DIGITS: u64 = 64;
/// Lines of the log for a hundred actions. Trouble is as frequent as the dice will have it; a loop says far more.
const LINES: u64 = 300;

/// One line of the table: what, in which unit, how to read it of a sample, and by how much it may grow.
type Figure = (&'static str, fn(&Sample) -> u64, u64);

const FIGURES: [Figure; 8] = [
    ("private memory, kB", |sample| sample.private, MEMORY),
    ("memory without a file, kB", |sample| sample.heap, MEMORY),
    ("resident memory, kB", |sample| sample.resident, CODE),
    ("open files", |sample| sample.files, 0),
    ("threads", |sample| sample.threads, 0),
    ("child processes", |sample| sample.children, 0),
    ("output, bytes", |sample| sample.disk[0], DIGITS),
    ("output, files and folders", |sample| sample.disk[1], 0),
];

/// A line while it runs: private memory and open files of each.
pub fn brief(round: &Round) -> String {
    let each = round.iter().map(|sample| {
        format!("{} kB {} files {} on disk, sequence {}", sample.private, sample.files, sample.disk[1], sample.sequence)
    });
    each.collect::<Vec<_>>().join("; ")
}

fn median(samples: &[&Sample], of: fn(&Sample) -> u64) -> u64 {
    let mut values: Vec<_> = samples.iter().map(|sample| of(sample)).collect();
    values.sort_unstable();
    values[values.len() / 2]
}

/// Prints the table, medians of the first third and of the last third of the rounds; fails where something grew.
pub fn judge(sidecars: &[Sidecar], rounds: &[Round]) -> Result<()> {
    let third = rounds.len() / 3;
    let mut grown = Vec::new();
    println!("{:<18} {:<28} {:>9} {:>9} {:>9}  verdict", "sidecar", "", "start", "end", "may grow");
    let mut line = |who: &str, what: &str, [start, end]: [u64; 2], slack: u64| {
        let grew = end > start + slack;
        println!("{who:<18} {what:<28} {start:>9} {end:>9} {slack:>9}  {}", if grew { "GREW" } else { "kept" });
        if grew {
            grown.push(format!("{who}: {what}: {start} → {end}"));
        }
    };
    for (at, sidecar) in sidecars.iter().enumerate() {
        let samples: Vec<_> = rounds.iter().map(|round| &round[at]).collect();
        let (start, end) = (&samples[..third], &samples[samples.len() - third..]);
        for (what, of, slack) in FIGURES {
            line(sidecar.name(), what, [start, end].map(|samples| median(samples, of)), slack);
        }
        let rate = |samples: &[&Sample]| {
            let (first, last) = (samples[0], samples[samples.len() - 1]);
            (last.lines - first.lines) * 100 / (last.actions - first.actions).max(1)
        };
        line(sidecar.name(), "log lines, 100 actions", [start, end].map(rate), LINES);
    }
    println!("{} rounds counted, {third} at the start, {third} at the end: medians", rounds.len());
    if !grown.is_empty() {
        bail!("grown:\n{}", grown.join("\n"));
    }
    Ok(())
}
