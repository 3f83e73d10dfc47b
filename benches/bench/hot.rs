//! `make hot`: the functions that a sidecar calls, from its start over some edits to its end, for the linker to lay them
//! together (`.cargo/hot.ld`).
//!
//! Where the kernel maps a page of a program it maps those around it as well (`fault_around_bytes`, 64 kB). What is
//! called is a sixth of the binary; scattered over all of it, it made all of it resident.
//!
//! Names are written without what changes with each compiler and crate version. What is missing there, or there no more,
//! does no harm: it lies elsewhere, and costs its page.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use regex_lite::Regex;

use crate::cluster::Cluster;
use crate::programs::trimtab;
use crate::ratchet::{bench, edited, executed};
use crate::say;

/// How many edits: what is done after one, such as a prune, is done as well.
const EDITS: u32 = 4;

/// What callgrind does not see: its processor has no instructions for SHA-256, nor has it a vDSO, and a thread of the pool
/// that has nothing to do ends after ten seconds. And what has no section of its own: C's.
const UNSEEN: &str = "        *(.text.*x86_sha* .text.*aarch64_sha* .text.*rustix*vdso* .text.*worker_timed_out*)
        *crt1.o(.text) *libc.a:*(.text .text.*)
";

const HEAD: &str = "\
/* By `make hot`: what a sidecar calls lies together, and the rest of the binary need not be resident (benches/bench/hot.rs).
   A name that is missing here, or is here in vain, does no harm. */
SECTIONS {
    .text.hot : {
";

/// Writes the file anew, from a static binary that has its symbols.
pub fn run() -> Result<()> {
    let bench = bench(&trimtab()?);
    let symbols = Symbols::of(&bench.trimtab)?;
    let cluster = Cluster::start()?;
    let counts = edited(&cluster, |source, edit| executed(&bench, source, EDITS, edit))?;
    let mut script = HEAD.to_owned() + UNSEEN;
    let mut known = BTreeSet::new();
    for (what, counts) in ["mounted files", "an object at the API server"].iter().zip(counts) {
        writeln!(script, "        /* Edits of {what}. */")?;
        let called: BTreeSet<_> = called(&counts).into_iter().flat_map(|name| symbols.sharing(name)).collect();
        let patterns: BTreeSet<_> = called.into_iter().filter_map(|name| symbols.pattern(name)).collect();
        for pattern in patterns.difference(&known) {
            // Those that the compiler thinks are called seldom are in .text.unlikely.NAME.
            writeln!(script, "        *(.text*.{pattern})")?;
        }
        say(&format!("edits of {what}: {} functions", patterns.len()));
        known.extend(patterns);
    }
    script += "    }\n} INSERT BEFORE .text;\n";
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(".cargo/hot.ld");
    fs::write(&file, script).with_context(|| file.display().to_string())
}

/// The names of callgrind's `fn=(ID) NAME` and `cfn=(ID) NAME`; a function that calls itself has a number behind it.
fn called(counts: &str) -> BTreeSet<&str> {
    let lines = counts.lines().filter_map(|line| line.strip_prefix("fn=(").or_else(|| line.strip_prefix("cfn=(")));
    let names = lines.filter_map(|line| line.split_once(") ")).map(|(_, name)| name.split('\'').next().unwrap_or(name));
    names.collect()
}

/// The binary's functions.
struct Symbols {
    places: BTreeMap<String, String>,
    names: BTreeMap<String, Vec<String>>,
    hash: Regex,
    version: Regex,
}

impl Symbols {
    fn of(binary: &Path) -> Result<Self> {
        let output = Command::new("nm").arg(binary).output().context("no nm: apt-get install binutils")?;
        let (mut places, mut names) = (BTreeMap::new(), BTreeMap::<_, Vec<_>>::new());
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            let mut fields = line.split(' ');
            let (Some(place), Some("t" | "T" | "w" | "W"), Some(name)) = (fields.next(), fields.next(), fields.next())
            else {
                continue;
            };
            places.insert(name.to_owned(), place.to_owned());
            names.entry(place.to_owned()).or_default().push(name.to_owned());
        }
        ensure!(!places.is_empty(), "{} has no symbols: run `make hot`", binary.display());
        Ok(Self { places, names, hash: Regex::new("17h[0-9a-f]{16}E.*")?, version: Regex::new("Cs[0-9A-Za-z]+_")? })
    }

    /// The functions that are one with this one, as they have the same code: any of their names may be the section's.
    fn sharing(&self, name: &str) -> &[String] {
        let same = self.places.get(name).and_then(|place| self.names.get(place));
        same.map_or(&[], Vec::as_slice)
    }

    /// The name as the linker is to look for it; none that it could not read.
    fn pattern(&self, name: &str) -> Option<String> {
        let readable = name.chars().all(|letter| letter.is_ascii_alphanumeric() || "_$.".contains(letter));
        readable.then(|| self.version.replace_all(&self.hash.replace(name, "17h*"), "Cs*_").into_owned())
    }
}
