//! The row of large files in a directory.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, ensure};

use super::api::Watcher;
use super::url::REST;
use super::{Bench, setting};
use crate::measure::{Samples, milliseconds, now};
use crate::programs::Who;
use crate::report::{Cell, Figure};

/// How many, and how long each is, in bytes.
const FILES: usize = 10;
const LENGTH: usize = 60_000_000;
/// The file that has the version.
const VERSION: &str = "version";

/// One version of a volume in the kubelet's layout, and the rename to it: when that was.
fn put(volume: &Path, version: u32, length: usize) -> Result<std::time::Duration> {
    let name = format!("..{version}");
    let below = volume.join(&name);
    fs::create_dir_all(&below)?;
    fs::write(below.join(VERSION), version.to_string())?;
    for file in 0..FILES {
        let mut bytes = format!("{version} {file} ").into_bytes();
        bytes.resize(length, b'x');
        fs::write(below.join(format!("list{file}")), bytes)?;
    }
    symlink(&name, volume.join("..new"))?;
    // What is written back while it is measured would be measured as well.
    nix::unistd::sync();
    let at = now();
    fs::rename(volume.join("..new"), volume.join("..data"))?;
    Ok(at)
}

/// Milliseconds of a copy by hand, which nobody waits for to be on the disk.
fn copied_by_hand(volume: &Path, version: u32, below: &Path) -> Result<f64> {
    let copy = below.join("copy");
    let began = now();
    let mut command = Command::new("cp");
    command.args(["--reflink=auto", "-r"]).arg(volume.join(format!("..{version}"))).arg(&copy);
    ensure!(command.status().context("no cp")?.success(), "cp failed");
    let took = milliseconds(began, now());
    fs::remove_dir_all(copy)?;
    Ok(took)
}

/// Ten files of 60 MB: a change, and memory at rest beside that of ten small ones.
pub fn large(bench: &Bench) -> Result<Vec<Figure>> {
    let rounds: u32 = setting("LARGE", 5)?;
    let dir = tempfile::Builder::new().prefix("bench-").tempdir_in(&bench.disk)?;
    let mut rest = [0; 2];
    let (mut by_trimtab, mut by_cp) = (Vec::new(), Vec::new());
    for (length, rest) in [100, LENGTH].into_iter().zip(&mut rest) {
        let volume = dir.path().join(length.to_string());
        put(&volume, 1, length)?;
        let source = volume.to_string_lossy();
        let flags = ["--watch-dir", &source, "--max-size", "1Gi", "--debounce", "0"];
        let watcher = Watcher::start(&bench.trimtab, &bench.disk, &flags, VERSION)?;
        watcher.first_call()?;
        for version in 2..rounds + 2 {
            let began = put(&volume, version, length)?;
            let call = watcher.first_call()?;
            ensure!(call.saw == Some(version), "another version was published");
            fs::remove_dir_all(volume.join(format!("..{}", version - 1)))?;
            if length == LENGTH {
                by_trimtab.push(milliseconds(began, call.at));
                by_cp.push(copied_by_hand(&volume, version, dir.path())?);
            }
        }
        thread::sleep(REST);
        [*rest, _] = watcher.proc().memory()?;
    }
    let by_cp = Cell::times(&Samples::new(&by_cp));
    let floor =
        Figure::new("large", "the same files by cp --reflink=auto, into the page cache").cell(Who::Floor, by_cp);
    let limit = floor.value(Who::Floor).map(|floor| floor * 2.0);
    let change = Figure::new("large", format!("{FILES} files of {} MB change → hook, on a disk", LENGTH / 1_000_000));
    let change = change.main().cell(Who::Trimtab, Cell::times(&Samples::new(&by_trimtab)));
    let [small, large] = rest;
    let more = large.saturating_sub(small);
    Ok(vec![
        change.at_most(limit, "at most twice cp's"),
        floor,
        Figure::new("large", "resident at rest with them over that with small ones")
            .cell(Who::Trimtab, Cell::bytes(more))
            .at_most(Some(2.0), "2 MB"),
    ])
}
