//! What was found: figures in rows, and their ways out as text, JSON, a plot, and into the documentation.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs, thread};

use anyhow::{Context, Result};
use serde::Serialize;

use crate::measure::Samples;
use crate::plot;
use crate::programs::{Who, versions};

const UNKNOWN: &str = "–";

/// One cell of the table.
#[derive(Clone, Serialize)]
pub struct Cell {
    /// As people read it.
    pub text: String,
    /// The figure, in the row's unit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<f64>,
    /// Least, tenth, ninetieth and 99th percentile, and greatest, of how many.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spread: Option<Spread>,
}

/// How samples are spread around their median.
#[derive(Clone, Serialize)]
pub struct Spread {
    pub min: f64,
    pub p10: f64,
    pub p90: f64,
    pub p99: f64,
    pub max: f64,
    pub count: usize,
}

impl Cell {
    /// Something that is no number.
    pub fn text(text: impl Into<String>) -> Self {
        Self { text: text.into(), value: None, spread: None }
    }

    /// A number, and how people read it.
    pub fn number(value: f64, text: impl Into<String>) -> Self {
        Self { text: text.into(), value: Some(value), spread: None }
    }

    /// Bytes, in megabytes of a million.
    pub fn bytes(bytes: u64) -> Self {
        Self::number(mega(bytes), format!("{:.1} MB", mega(bytes)))
    }

    /// A median of milliseconds with its spread.
    pub fn times(samples: &Samples) -> Self {
        let Some([min, p10, p50, p90, p99, max]) = ranks(samples) else { return Self::text(UNKNOWN) };
        let spread = Spread { min, p10, p90, p99, max, count: samples.len() };
        Self { text: format!("{p50:.2} ms ({p99:.2})"), value: Some(p50), spread: Some(spread) }
    }

    /// The worst of some milliseconds.
    pub fn worst(samples: &Samples) -> Self {
        let times = Self::times(samples);
        match samples.rank(100) {
            Some(max) => Self { text: format!("{max:.1} ms"), value: Some(max), ..times },
            None => times,
        }
    }
}

fn ranks(samples: &Samples) -> Option<[f64; 6]> {
    let ranks = [0, 10, 50, 90, 99, 100].map(|percent| samples.rank(percent));
    ranks[0].is_some().then(|| ranks.map(Option::unwrap_or_default))
}

#[expect(clippy::cast_precision_loss, reason = "shown with three digits")]
fn mega(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

/// A line of the table.
#[derive(Serialize)]
pub struct Figure {
    /// The row that it is a part of.
    pub row: &'static str,
    /// What it shows.
    pub name: String,
    /// A cell for each program that was measured.
    pub cells: BTreeMap<Who, Cell>,
    /// What was to be reached.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub goal: Option<Goal>,
    /// Whether the plot has it.
    pub main: bool,
}

/// What was to be reached.
#[derive(Serialize)]
pub struct Goal {
    /// In words.
    pub text: String,
    /// Whether it was; `None` where the figure is missing that it is held against.
    pub met: Option<bool>,
}

impl Figure {
    /// A line without cells.
    pub fn new(row: &'static str, name: impl Into<String>) -> Self {
        Self { row, name: name.into(), cells: BTreeMap::new(), goal: None, main: false }
    }

    /// One for the plot as well.
    pub fn main(mut self) -> Self {
        self.main = true;
        self
    }

    /// With a cell.
    pub fn cell(mut self, who: Who, cell: Cell) -> Self {
        self.cells.insert(who, cell);
        self
    }

    /// With cells.
    pub fn cells(mut self, cells: impl IntoIterator<Item = (Who, Cell)>) -> Self {
        self.cells.extend(cells);
        self
    }

    /// The figure of a program.
    pub fn value(&self, who: Who) -> Option<f64> {
        self.cells.get(&who)?.value
    }

    /// With a goal: Trimtab's figure is at most this.
    pub fn at_most(self, limit: Option<f64>, text: impl Into<String>) -> Self {
        let met = self.value(Who::Trimtab).zip(limit).map(|(value, limit)| value <= limit);
        self.goal(met, text)
    }

    /// With a goal.
    pub fn goal(mut self, met: Option<bool>, text: impl Into<String>) -> Self {
        self.goal = Some(Goal { text: text.into(), met });
        self
    }
}

/// All that was found.
#[derive(Serialize)]
pub struct Report {
    heading: String,
    figures: Vec<Figure>,
    remarks: Vec<String>,
}

impl Report {
    /// Without figures yet.
    pub fn new() -> Result<Self> {
        let remarks = vec![
            "p50 (p99), the programs side by side, taking turns edit by edit. From the rename of `..data` (4 keys of \
             2 kB), or from the API server's answer to the edit, to the first call or signal that finds the new \
             content; any other call is doubled. Trimtab copies with `--debounce 0` and has published before it notifies, \
             what the others leave where it is; prometheus-config-reloader and VictoriaMetrics' \
             have a delay of 1 ms; consul-template polls every 2 s, and takes 20 turns. The floor waits and notifies; \
             with fsync it also reads the keys and writes one file, fsync and rename included."
                .to_owned(),
            format!("Peers: {}.", versions()),
            "¹ These programs cannot be had as modules or packages: measured before, in the same way, on another \
             machine of this kind."
                .to_owned(),
        ];
        Ok(Self { heading: heading()?, figures: Vec::new(), remarks })
    }

    /// Adds lines.
    pub fn add(&mut self, figures: Vec<Figure>) {
        for figure in &figures {
            let cells = figure.cells.iter().map(|(who, cell)| format!("{} {}", who.title(), cell.text));
            crate::say(&format!("  {}: {}{}", figure.name, cells.collect::<Vec<_>>().join(" | "), verdict(figure)));
        }
        self.figures.extend(figures);
    }

    /// Adds what should be known beside the table.
    pub fn remark(&mut self, remark: String) {
        self.remarks.push(remark);
    }

    /// A row that could not be measured.
    pub fn missing(&mut self, row: &'static str, why: &str) {
        crate::say(&format!("  not measured: {why}"));
        let why = why.lines().next().unwrap_or_default().trim_end_matches([':', '.']);
        self.remarks.push(format!("Not measured: `{row}`: {why}."));
    }

    /// Prints the table, and writes all files; with `UPDATE_DOCS`, and all rows, the documentation too.
    pub fn write(&self, all_rows: bool) -> Result<()> {
        let text = self.text();
        let json = serde_json::to_string_pretty(self)? + "\n";
        let svg = plot::svg(&self.figures);
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("bench");
        fs::create_dir_all(&folder)?;
        for (name, content) in [("figures.md", &text), ("figures.json", &json), ("figures.svg", &svg)] {
            fs::write(folder.join(name), content)?;
        }
        print!("\n{text}");
        crate::say(&format!("written to {}", folder.display()));
        if env::var_os("UPDATE_DOCS").is_none() {
            return Ok(());
        }
        if !all_rows {
            crate::say("the documentation is written from a run of all rows only: leave ROWS away");
            return Ok(());
        }
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        fs::write(root.join("docs/figures.json"), json)?;
        fs::write(root.join("docs/figures.svg"), svg)?;
        replace(&root.join("docs/performance.md"), &text)
    }

    fn text(&self) -> String {
        let figures = &self.figures;
        let columns: Vec<_> =
            Who::ALL.into_iter().filter(|who| figures.iter().any(|figure| figure.cells.contains_key(who))).collect();
        let mut rows = vec![vec![String::new()]];
        rows[0].extend(columns.iter().map(|who| who.title().to_owned()));
        rows[0].push("goal".to_owned());
        for figure in figures {
            let mut row = vec![figure.name.clone()];
            row.extend(
                columns.iter().map(|who| figure.cells.get(who).map_or(UNKNOWN.into(), |cell| cell.text.clone())),
            );
            row.push(figure.goal.as_ref().map_or(UNKNOWN.into(), |goal| format!("{}{}", goal.text, verdict(figure))));
            rows.push(row);
        }
        let mut text = format!("{}\n\n{}\n", self.heading, table(&rows));
        for remark in &self.remarks {
            // Only a String is written to.
            let _ = writeln!(text, "{}\n", wrap(remark));
        }
        text.trim_end().to_owned() + "\n"
    }
}

fn verdict(figure: &Figure) -> &'static str {
    match figure.goal.as_ref().map(|goal| goal.met) {
        Some(Some(true)) => ": met",
        Some(Some(false)) => ": **not met**",
        Some(None) => ": nothing to hold it against",
        None => "",
    }
}

fn table(rows: &[Vec<String>]) -> String {
    let mut widths = vec![0; rows[0].len()];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut text = String::new();
    for (index, row) in rows.iter().enumerate() {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!(" {cell:<width$} |"));
        // Only a String is written to.
        let _ = writeln!(text, "|{}", cells.collect::<String>());
        if index == 0 {
            let rules = widths.iter().map(|width| format!(" {} |", "-".repeat(*width)));
            let _ = writeln!(text, "|{}", rules.collect::<String>());
        }
    }
    text
}

/// Lines of at most 120 columns.
fn wrap(text: &str) -> String {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let Some(line) = lines.last_mut() else { break };
        if line.is_empty() {
            word.clone_into(line);
        } else if line.chars().count() + 1 + word.chars().count() <= 120 {
            line.extend([" ", word]);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines.join("\n")
}

/// Puts a text between the marks of a file.
fn replace(path: &PathBuf, text: &str) -> Result<()> {
    const BEGIN: &str = "<!-- figures -->\n";
    const END: &str = "<!-- /figures -->";
    let old = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let parts = old.split_once(BEGIN).and_then(|(before, rest)| Some((before, rest.split_once(END)?.1)));
    let (before, after) = parts.with_context(|| format!("{} has no <!-- figures --> block", path.display()))?;
    fs::write(path, format!("{before}{BEGIN}{text}{END}{after}"))?;
    Ok(())
}

/// Where.
fn heading() -> Result<String> {
    let cpu = fs::read_to_string("/proc/cpuinfo")?;
    let cpu = cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map(|(_, name)| name);
    let load = fs::read_to_string("/proc/loadavg")?;
    let system = nix::sys::utsname::uname()?;
    Ok(format!(
        "`make bench` on {} cores of {}, {} {}, load average {}:",
        thread::available_parallelism()?,
        cpu.unwrap_or("an unknown processor"),
        system.sysname().to_string_lossy(),
        system.release().to_string_lossy(),
        load.split(' ').next().unwrap_or(UNKNOWN),
    ))
}
