//! A sidecar at work, with its main process; what it says of itself, and what is in its output.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use std::{fs, thread};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use serde_json::Value as Json;
use tempfile::TempDir;

use super::main_process::{Content, Kind, Mood, OUTPUT, Server, Signalled, Watched};
use super::{DEADLINE, until};
use crate::rig::child::pid_of;
use crate::rig::guard::Running;
use crate::rig::measure::{Proc, now};

/// Beside what is the user's: see the design of the volume.
const OURS: [&str; 2] = ["..data", "..trimtab"];
/// A program that looks at the candidate.
const VALIDATE: &str = r#"grep -qE '"mark": "(good|refused|silent)"' {dir}/site.json"#;
const TEMPLATE: &str = r#"{"version": {{ data.version }}, "mark": "{{ data.mark }}", "token": "{{ secret("tls").token }}",
"digest": "{{ generation.digest }}", "padding": "{{ data.padding }}"}
"#;

/// A main process.
pub enum Main {
    /// Notified by HTTP.
    Server(Server),
    /// Notified by SIGHUP.
    Signalled(Signalled),
}

/// A sidecar. All ends when it is dropped.
pub struct Sidecar {
    /// Which setup.
    pub kind: Kind,
    /// Whether it lives as long as the soak.
    pub is_steady: bool,
    /// What was seen of its output.
    pub watched: Arc<Watched>,
    running: Option<Running>,
    /// Its main process.
    pub main: Main,
    command: Vec<OsString>,
    lines_before: u64,
    dir: TempDir,
}

impl Sidecar {
    /// Starts one in a folder below this one. `flags`: its sources.
    pub fn start(binary: &Path, below: &Path, kind: Kind, is_steady: bool, flags: &[OsString]) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("soak-").tempdir_in(below)?;
        let output = dir.path().join(OUTPUT);
        let watched = Arc::new(Watched::new(kind, output.clone()));
        let mut command = vec![binary.as_os_str().to_owned()];
        command.extend_from_slice(flags);
        command.extend(["--output".into(), output.into()]);
        let mut add = |flags: &[&str]| command.extend(flags.iter().map(OsString::from));
        add(&["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--retry-min", "50ms", "--retry-max", "2s"]);
        let main = match kind {
            Kind::Rendered => {
                let template = dir.path().join("site.json.j2");
                fs::write(&template, TEMPLATE)?;
                let server = Server::start(watched.clone())?;
                add(&["--template", &template.to_string_lossy(), "--validate", VALIDATE]);
                add(&["--reload-url", &format!("http://{}/-/reload", server.address)]);
                add(&["--confirm-url", &format!("http://{}/config", server.address)]);
                add(&["--confirm-match", "digest={digest}$", "--confirm-timeout", "1s"]);
                Main::Server(server)
            }
            Kind::Plain => {
                let process = Signalled::start(watched.clone(), dir.path())?;
                add(&["--layout", "files", "--path", "{kind}/{name}/{key}", "--syntax", "strict"]);
                add(&["--signal", "HUP", "--process", process.name().context("it has ended")?]);
                add(&["--confirm-alive", "200ms"]);
                Main::Signalled(process)
            }
        };
        let mut sidecar = Self { kind, is_steady, watched, running: None, main, command, lines_before: 0, dir };
        sidecar.run()?;
        Ok(sidecar)
    }

    /// How the table calls it.
    pub fn name(&self) -> &'static str {
        match (self.kind, self.is_steady) {
            (Kind::Rendered, true) => "rendered",
            (Kind::Rendered, false) => "rendered, killed",
            (Kind::Plain, true) => "plain",
            (Kind::Plain, false) => "plain, killed",
        }
    }

    /// Its output.
    pub fn output(&self) -> PathBuf {
        self.dir.path().join(OUTPUT)
    }

    /// Starts it if it does not run.
    pub fn run(&mut self) -> Result<()> {
        if self.running.is_none() {
            let mut command = Command::new(&self.command[0]);
            command.args(&self.command[1..]);
            self.running = Some(Running::start(command, self.dir.path())?);
        }
        Ok(())
    }

    /// Whether it was started.
    pub fn runs(&self) -> bool {
        self.running.is_some()
    }

    /// Kills it, without a chance to end what it does.
    pub fn kill(&mut self) -> Result<()> {
        if self.running.is_some() {
            self.close_log()?;
            self.running = None;
        }
        Ok(())
    }

    /// Asks it to end.
    pub fn end(&mut self) -> Result<()> {
        if let Some(mut running) = self.running.take() {
            kill(pid_of(&running.process), Signal::SIGTERM)?;
            let mut status = None;
            until("SIGTERM to end it", || {
                status = running.process.try_wait()?;
                Ok(status.is_some().then_some(()).ok_or_else(String::new))
            })?;
            // 143: the grace was over before a step that hangs.
            let code = status.and_then(|status| status.code());
            ensure!(matches!(code, Some(0 | 143)), "{} ended with {code:?}:\n{}", self.name(), self.tail());
            self.close_log()?;
        }
        Ok(())
    }

    /// Makes it read everything again.
    pub fn hang_up(&self) -> Result<()> {
        if let Some(running) = &self.running {
            kill(pid_of(&running.process), Signal::SIGHUP)?;
        }
        Ok(())
    }

    /// Says `trimtab retry` to it.
    pub fn retry(&self) -> Result<()> {
        let Some(admin) = self.admin() else { return Ok(()) };
        let mut command = Command::new(&self.command[0]);
        command.args(["retry", "--admin", &admin.to_string()]).stdin(Stdio::null());
        let output = command.output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success() || !self.is_steady, "trimtab retry: {said}");
        Ok(())
    }

    /// Notes what ended by itself: a sidecar never does, a main process is started again.
    pub fn tend(&mut self) -> Result<()> {
        if let Some(running) = &mut self.running
            && let Some(status) = running.process.try_wait()?
        {
            bail!("{} has ended ({status}):\n{}", self.name(), self.tail());
        }
        if let Main::Signalled(process) = &mut self.main
            && process.name().is_some()
        {
            process.tend()?;
        }
        let faults = self.watched.faults();
        ensure!(faults.is_empty(), "{}: {}\n{}", self.name(), faults.join("; "), self.tail());
        Ok(())
    }

    /// Puts right what was broken around it.
    pub fn put_right(&mut self) -> Result<()> {
        match &mut self.main {
            Main::Server(server) => server.set_mood(Mood::Up),
            Main::Signalled(process) => process.tend()?,
        }
        self.run()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// The log's last lines, and the main process's last words.
    pub fn tail(&self) -> String {
        let log = self.log();
        let lines: Vec<_> = log.lines().collect();
        let last = lines[lines.len().saturating_sub(40)..].join("\n");
        match &self.main {
            Main::Signalled(process) => format!("{last}\nits main process: {}", process.last_words),
            Main::Server(_) => last,
        }
    }

    /// The next life begins a new log.
    fn close_log(&mut self) -> Result<()> {
        self.lines_before = self.lines()?;
        Ok(())
    }

    /// Lines of its log, of all its lives. No secret is in them.
    pub fn lines(&self) -> Result<u64> {
        let log = self.log();
        if let Some(line) = log.lines().find(|line| line.contains(super::sources::CANARY)) {
            bail!("{}: a secret is in its log: {line}", self.name());
        }
        Ok(self.lines_before + u64::try_from(log.lines().count())?)
    }

    fn admin(&self) -> Option<SocketAddr> {
        self.log().lines().find_map(|line| line.rsplit_once("--admin serves on ")?.1.trim().parse().ok())
    }

    /// Its `/status`; null where it does not answer.
    fn status(&self) -> Json {
        let ask = || -> Option<Json> {
            let mut stream = TcpStream::connect(self.admin()?).ok()?;
            stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
            stream.write_all(b"GET /status HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").ok()?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).ok()?;
            serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()
        };
        ask().unwrap_or_default()
    }

    /// Whether it has nothing to do; else what it has.
    pub fn is_idle(&self) -> Result<(), String> {
        let status = self.status();
        // One that was started while an object is missing waits for it.
        let idle = ["idle", "syncing"].iter().any(|phase| status["phase"] == **phase) && status["debt"].is_null();
        if idle { Ok(()) } else { Err(format!("not idle: {status}")) }
    }

    /// Whether the newest content was published, taken and confirmed, and nothing is left of older ones; else why not.
    pub fn has_delivered(&self, expected: &Content) -> Result<(), String> {
        self.is_idle()?;
        let status = self.status();
        let healthy = |source: &Json| source["healthy"] == true;
        let digest = &status["observed"]["digest"];
        let clean = status["published"]["digest"] == *digest
            && status["confirmed"]["digest"] == *digest
            && status["quarantine"].is_null()
            && status["heldBack"].as_array().is_some_and(Vec::is_empty)
            && status["errors"].as_object().is_some_and(serde_json::Map::is_empty)
            && status["sources"].as_array().is_some_and(|sources| sources.iter().all(healthy));
        if !clean {
            return Err(format!("not at ease: {status}"));
        }
        let strip = |mut content: Content| {
            for value in content.values_mut() {
                value.digest.clear();
            }
            content
        };
        for (who, content) in [("served", self.watched.served()), ("published", self.watched.look())] {
            let content = strip(content);
            if content != *expected {
                return Err(format!("{who} is {content:?},\nand should be {expected:?}"));
            }
        }
        self.nothing_left(&status).map_err(|error| format!("{error:#}"))
    }

    /// In the output are the current generation, the last good one, and what they need.
    fn nothing_left(&self, status: &Json) -> Result<()> {
        let output = self.output();
        let journal: Json = serde_json::from_slice(&fs::read(output.join("..trimtab/private/journal.json"))?)?;
        let kept: Vec<_> = ["current", "from", "lastGood"].iter().map(|part| &journal[part]["directory"]).collect();
        ensure!(journal["current"]["sequence"] == status["published"]["sequence"], "the journal is of another one");
        let own: &[&str] = &["current", "journal.json", "key", "lock"];
        for entry in fs::read_dir(output.join("..trimtab/private"))? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            let allowed = own.contains(&&*name) || kept.iter().any(|kept| **kept == name);
            ensure!(allowed, "{name} was left in ..trimtab/private/; the journal: {journal}");
        }
        for entry in fs::read_dir(&output)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            let allowed =
                !name.starts_with("..") || OURS.contains(&name.as_str()) || kept.iter().any(|kept| **kept == name);
            ensure!(allowed, "{name} was left in the output; the journal: {journal}");
        }
        Ok(())
    }

    /// What it holds, once that has not changed for a moment, or after all patience.
    pub fn sample(&self, actions: u64) -> Result<Sample> {
        let running = self.running.as_ref().context("it does not run")?;
        let process = Proc(running.process.id());
        let deadline = now() + DEADLINE / 6;
        let mut before: Option<Sample> = None;
        loop {
            let sample = Sample {
                private: process.number("smaps_rollup", "Private_Dirty:")?,
                resident: process.number("smaps_rollup", "Rss:")?,
                heap: process.number("smaps_rollup", "Anonymous:")?,
                threads: process.number("status", "Threads:")?,
                files: u64::try_from(fs::read_dir(format!("/proc/{}/fd", process.0))?.count())?,
                children: children(process)?,
                disk: disk(&self.output())?,
                sequence: self.status()["published"]["sequence"].as_u64().context("no sequence")?,
                lines: self.lines()?,
                actions,
            };
            // A connection and a thread take a second to be closed.
            let at_rest = sample.threads <= 1 && sample.children == 0;
            if at_rest && before.as_ref().is_some_and(|before| before.is_like(&sample)) || now() > deadline {
                return Ok(sample);
            }
            before = Some(sample);
            thread::sleep(Duration::from_secs(1));
        }
    }
}

/// What a sidecar holds at a quiet moment.
#[derive(Clone)]
pub struct Sample {
    /// Private dirty memory, kB.
    pub private: u64,
    /// Resident memory, kB.
    pub resident: u64,
    /// Memory without a file behind it, kB.
    pub heap: u64,
    /// Threads.
    pub threads: u64,
    /// Open files.
    pub files: u64,
    /// Child processes.
    pub children: u64,
    /// Bytes, and files, folders and links, of the output.
    pub disk: [u64; 2],
    /// Of the published generation.
    pub sequence: u64,
    /// Lines of the log so far.
    pub lines: u64,
    /// Actions so far.
    pub actions: u64,
}

impl Sample {
    fn is_like(&self, other: &Self) -> bool {
        self.files == other.files && self.private == other.private && self.disk == other.disk
    }
}

fn children(process: Proc) -> Result<u64> {
    let mut sum = 0;
    for task in fs::read_dir(format!("/proc/{}/task", process.0))?.flatten() {
        // The thread may have ended.
        let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
        sum += u64::try_from(children.split_whitespace().count())?;
    }
    Ok(sum)
}

fn disk(output: &Path) -> Result<[u64; 2]> {
    let (mut bytes, mut files) = (0, 0);
    let mut folders = vec![output.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            let meta = entry.metadata()?;
            files += 1;
            if meta.is_dir() {
                folders.push(entry.path());
            } else {
                bytes += meta.len();
            }
        }
    }
    Ok([bytes, files])
}
