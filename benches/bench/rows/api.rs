//! The row of an edit on a real API server.

use std::path::Path;
use std::process::Command;

use anyhow::Result;
use tempfile::TempDir;

use super::{Bench, setting};
use crate::cluster::Cluster;
use crate::elsewhere;
use crate::guard::Running;
use crate::hook::Hook;
use crate::measure::{Proc, Samples, milliseconds};
use crate::programs::Who;
use crate::report::{Cell, Figure};
use crate::subject::{PATIENCE, Tally};
use crate::volume::KEYS;

/// A program that watches objects of the API server.
pub struct Watcher {
    /// Its calls.
    pub hook: Hook,
    running: Running,
    dir: TempDir,
}

impl Watcher {
    /// Trimtab, with these flags for its sources; `file`: what is published of the value that is edited.
    pub fn trimtab(bench: &Bench, cluster: &Cluster, flags: &[&str], file: &str) -> Result<Self> {
        let kubeconfig = cluster.kubeconfig().to_string_lossy().into_owned();
        let flags = [flags, &["--kubeconfig", &kubeconfig]].concat();
        Self::start(&bench.trimtab, &bench.memory, &flags, file)
    }

    /// The same by the path of the program, in a folder below this one, without an API server unless the flags name one.
    pub fn start(trimtab: &Path, below: &Path, flags: &[&str], file: &str) -> Result<Self> {
        Self::start_with(trimtab, below, &[], flags, file)
    }

    /// The same with more of an environment.
    pub fn start_with(
        trimtab: &Path,
        below: &Path,
        environment: &[(&str, &str)],
        flags: &[&str],
        file: &str,
    ) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("bench-").tempdir_in(below)?;
        let hook = Hook::start(dir.path().join("conf").join(file))?;
        let mut command = Command::new(trimtab);
        command.envs(environment.iter().copied()).args(flags).arg("--output").arg(dir.path().join("conf"));
        command.args(["--reload-url", &format!("http://{}/-/reload", hook.address)]);
        command.args(["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]);
        Self::run(command, hook, dir)
    }

    /// The bare watch.
    pub fn floor(bench: &Bench, cluster: &Cluster, name: &str) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("bench-").tempdir_in(&bench.memory)?;
        let hook = Hook::start(dir.path().join("none"))?;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("watch").arg(cluster.kubeconfig()).args([&cluster.namespace, name, &hook.address.to_string()]);
        Self::run(command, hook, dir)
    }

    fn run(command: Command, hook: Hook, dir: TempDir) -> Result<Self> {
        let running = Running::start(command, dir.path())?;
        Ok(Self { hook, running, dir })
    }

    /// Its process.
    pub fn proc(&self) -> Proc {
        Proc(self.running.process.id())
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        self.dir.path()
    }

    /// Waits for its next call.
    pub fn first_call(&self) -> Result<crate::hook::Call> {
        let patience = PATIENCE * 12;
        self.hook.calls.recv_timeout(patience).map_err(|_| {
            let log = std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
            anyhow::anyhow!("no call within {patience:?}; the log:\n{log}")
        })
    }
}

/// A ConfigMap is edited on a real API server → the hook is called.
pub fn edit(bench: &Bench) -> Result<Vec<Figure>> {
    const SIZE: usize = 8000;
    let rounds: u32 = setting("EDITS", 200)?;
    let cluster = Cluster::start()?;
    let names = ["trimtab".to_owned(), "floor".to_owned()];
    cluster.create(&names, SIZE, "")?;
    let name = format!("{}/{}", cluster.namespace, names[0]);
    let watchers = [
        Watcher::trimtab(bench, &cluster, &["--configmap", &name, "--debounce", "0"], KEYS[0])?,
        Watcher::floor(bench, &cluster, &names[1])?,
    ];
    for watcher in &watchers {
        watcher.first_call()?;
    }
    let mut tallies = [Tally::default(), Tally::default()];
    let mut requests = [Vec::new(), Vec::new()];
    for version in 2..rounds + 2 {
        for (index, watcher) in watchers.iter().enumerate() {
            let edited = cluster.edit(&names[index], version, SIZE, "")?;
            let known = tallies[index].delays.len();
            tallies[index].take(&watcher.hook.calls, version, edited.answered, PATIENCE);
            let request = milliseconds(edited.began, edited.answered);
            requests[index].extend(tallies[index].delays.get(known).map(|delay| delay + request));
        }
    }
    let both = [Who::Trimtab, Who::Floor];
    let samples = both.into_iter().zip(tallies.iter().map(|tally| Cell::times(&tally.samples())));
    let figure = Figure::new("edit", "edit's answer → hook, API server, tmpfs").main().cells(samples);
    let limit = figure.value(Who::Floor).map(|floor| floor + 2.0);
    let since_request = both.into_iter().zip(requests.iter().map(|delays| Cell::times(&Samples::new(delays))));
    let faults = both.into_iter().zip(&tallies);
    let faults = faults.map(|(who, tally)| (who, Cell::text(format!("{} / {}", tally.lost, tally.doubled))));
    Ok(vec![
        figure.at_most(limit, "p50 at most 2 ms over the bare watch's"),
        Figure::new("edit", "the same from the start of the request")
            .main()
            .cells(since_request)
            .cell(Who::Elsewhere, Cell::text(elsewhere::EDIT)),
        Figure::new("edit", "the same: lost / doubled")
            .cells(faults)
            .goal(Some(tallies[0].lost + tallies[0].doubled == 0), "0 / 0"),
    ])
}
