//! The main processes beside the sidecars, and all that reads an output: what is seen there, and what never may be.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

use crate::rig::notified::{Acceptor, Named, read_message};

/// The name of an output. No other bench has one of this name.
pub const OUTPUT: &str = "soaked";
/// What the templates render to.
pub const SITE: &str = "site.json";
/// What the volume's keys become.
pub const OF_THE_VOLUME: [&str; 2] = ["dir/volume/a.json", "dir/volume/b.json"];

/// What a value is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mark {
    /// It is taken.
    Good,
    /// The main process refuses it.
    Refused,
    /// The main process says that it took it, and goes on with the old one.
    Silent,
    /// The main process dies of it.
    Deadly,
    /// Does not pass the validation: nobody may see it.
    Invalid,
}

/// What a main process reads in a file, its padding left out.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Value {
    /// A newer value has a higher one.
    pub version: u32,
    /// What it is made for.
    pub mark: Mark,
    /// Of the Secret.
    #[serde(default)]
    pub token: String,
    /// The generation's.
    #[serde(default, skip_serializing)]
    pub digest: String,
}

/// Each file of an output.
pub type Content = BTreeMap<String, Value>;

/// Which of the two setups.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A ConfigMap and a Secret, a template, the atomic layout, notified by HTTP.
    Rendered,
    /// A volume and selected objects, as they are, in single files, notified by signal.
    Plain,
}

/// Reads all of an output; says what is no whole value. Nothing where nothing was published yet.
fn read(output: &Path) -> Result<Content, String> {
    let mut content = Content::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(output.join(&folder)) else { continue };
        for entry in entries.flatten() {
            let name = entry.file_name();
            if name.to_string_lossy().starts_with("..") {
                continue;
            }
            let path = folder.join(name);
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                folders.push(path);
                continue;
            }
            // It may have been removed meanwhile.
            let Ok(text) = fs::read(output.join(&path)) else { continue };
            let head = || String::from_utf8_lossy(&text[..text.len().min(60)]).into_owned();
            let value = serde_json::from_slice(&text)
                .map_err(|error| format!("{} is not whole ({error}): {}", path.display(), head()))?;
            content.insert(path.to_string_lossy().into_owned(), value);
        }
    }
    Ok(content)
}

/// An output, and what was seen there.
pub struct Watched {
    kind: Kind,
    output: PathBuf,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    served: Content,
    /// The oldest version of each file that may still be seen.
    floor: BTreeMap<String, u32>,
    faults: Vec<String>,
}

impl Watched {
    /// Nothing seen yet.
    pub fn new(kind: Kind, output: PathBuf) -> Self {
        Self { kind, output, seen: Mutex::default() }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the main process serves, empty at first.
    pub fn served(&self) -> Content {
        self.seen().served.clone()
    }

    /// From now on nothing older than this may be seen.
    pub fn set_floor(&self, content: &Content) {
        self.seen().floor = content.iter().map(|(path, value)| (path.clone(), value.version)).collect();
    }

    /// What was seen and should not have been.
    pub fn faults(&self) -> Vec<String> {
        std::mem::take(&mut self.seen().faults)
    }

    /// What is there, as anybody may read it at any time.
    pub fn look(&self) -> Content {
        self.checked(read(&self.output), "a reader")
    }

    fn checked(&self, content: Result<Content, String>, who: &str) -> Content {
        let mut seen = self.seen();
        let content = content.unwrap_or_else(|fault| {
            seen.faults.push(format!("{who} saw: {fault}"));
            Content::new()
        });
        let wanted: &[&str] = if self.kind == Kind::Rendered { &[SITE] } else { &OF_THE_VOLUME };
        let missing = wanted.iter().find(|path| !seen.served.is_empty() && !content.contains_key(**path));
        let mut faults: Vec<_> = missing.map(|path| format!("no {path}")).into_iter().collect();
        for (path, value) in &content {
            let may_be = match self.kind {
                Kind::Rendered => matches!(value.mark, Mark::Good | Mark::Refused | Mark::Silent),
                Kind::Plain => matches!(value.mark, Mark::Good | Mark::Deadly),
            };
            let is_old = seen.floor.get(path).is_some_and(|floor| value.version < *floor);
            if !may_be || is_old || value.token.is_empty() == (self.kind == Kind::Rendered) {
                faults.push(format!("{path}: {value:?}"));
            }
        }
        seen.faults.extend(faults.into_iter().map(|fault| format!("{who} saw {fault}")));
        content
    }

    /// What the main process read when it was notified; whether it takes it.
    fn take(&self, content: Result<Content, String>) -> Mark {
        let content = self.checked(content, "the main process");
        let bad = content.values().map(|value| value.mark).find(|mark| *mark != Mark::Good);
        if bad.is_none() {
            self.seen().served = content;
        }
        bad.unwrap_or(Mark::Good)
    }
}

/// Somebody who reads all outputs again and again. Ended when dropped.
pub struct Reader {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Reader {
    /// Begins.
    pub fn start(outputs: Vec<Arc<Watched>>) -> Self {
        const EVERY: Duration = Duration::from_millis(20);
        let over = Arc::new(AtomicBool::new(false));
        let stop = over.clone();
        let thread = thread::spawn(move || {
            while !stop.load(Ordering::SeqCst) {
                for output in &outputs {
                    output.look();
                }
                thread::sleep(EVERY);
            }
        });
        Self { over, thread: Some(thread) }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// How a server answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    /// As it should.
    Up,
    /// It closes each connection.
    Deaf,
    /// It answers 503.
    Busy,
}

/// A main process that is notified by HTTP, in this process.
pub struct Server {
    /// Where it listens.
    pub address: SocketAddr,
    mood: Arc<Mutex<Mood>>,
    _acceptor: Acceptor,
}

impl Server {
    /// Starts one for this output.
    pub fn start(output: Arc<Watched>) -> Result<Self> {
        let mood = Arc::new(Mutex::new(Mood::Up));
        let of_all = mood.clone();
        let acceptor = Acceptor::start(move |stream| serve(stream, &output, &of_all))?;
        Ok(Self { address: acceptor.address, mood, _acceptor: acceptor })
    }

    /// From now on it answers so.
    pub fn set_mood(&self, mood: Mood) {
        *self.mood.lock().unwrap_or_else(PoisonError::into_inner) = mood;
    }
}

/// Serves one connection. An error is the caller's end.
fn serve(mut stream: &TcpStream, output: &Watched, mood: &Mutex<Mood>) -> io::Result<()> {
    let mut reader = BufReader::new(stream);
    while let Some(path) = read_message(&mut reader)? {
        let mood = *mood.lock().unwrap_or_else(PoisonError::into_inner);
        let (status, body) = match (mood, path.as_str()) {
            (Mood::Deaf, _) => return Ok(()),
            (Mood::Busy, _) => ("503 Service Unavailable", String::new()),
            (Mood::Up, "/-/reload") => match output.take(read(&output.output)) {
                Mark::Refused => ("500 Internal Server Error", "refused".to_owned()),
                _ => ("200 OK", String::new()),
            },
            (Mood::Up, _) => {
                let served = output.served();
                ("200 OK", format!("digest={}", served.get(SITE).map_or("none", |site| &site.digest)))
            }
        };
        write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len())?;
    }
    Ok(())
}

/// A main process that is notified by SIGHUP, and dies of what is deadly. Ended when dropped.
pub struct Signalled {
    output: Arc<Watched>,
    dir: PathBuf,
    process: Option<Named>,
    /// How the one before it ended.
    pub last_words: String,
}

impl Signalled {
    /// Starts it for this output; `dir`: for its log.
    pub fn start(output: Arc<Watched>, dir: &Path) -> Result<Self> {
        let mut process = Self { output, dir: dir.to_owned(), process: None, last_words: String::new() };
        process.tend()?;
        Ok(process)
    }

    /// The name that it is found by.
    pub fn name(&self) -> Option<&str> {
        self.process.as_ref().map(|process| process.name.as_str())
    }

    /// Kills it.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Starts it again if it is gone.
    pub fn tend(&mut self) -> Result<()> {
        if let Some(process) = &mut self.process {
            let Some(status) = process.running.process.try_wait()? else { return Ok(()) };
            let log = fs::read_to_string(self.dir.join("target/log")).unwrap_or_default();
            self.last_words = format!("PID {}: {status}: {log}", process.running.process.id());
        }
        self.process = None;
        let (process, lines) = Named::start(self.output.output.as_os_str(), &self.dir)?;
        let output = self.output.clone();
        // Ends with the process.
        thread::spawn(move || {
            for line in lines.map_while(io::Result::ok) {
                let said = serde_json::from_str(&line);
                output.take(said.unwrap_or_else(|error| Err(format!("{error} in {line}"))));
            }
        });
        self.process = Some(process);
        Ok(())
    }
}

/// What that process does: it reads when it starts, and at each signal.
pub fn run(output: &Path) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut signals = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::hangup())?;
        let mut stdout = io::stdout().lock();
        writeln!(stdout, "ready")?;
        loop {
            let content = read(output);
            writeln!(stdout, "{}", serde_json::to_string(&content)?)?;
            if content.is_ok_and(|content| content.values().any(|value| value.mark == Mark::Deadly)) {
                bail!("the configuration is deadly");
            }
            if signals.recv().await.is_none() {
                return Ok(());
            }
        }
    })
}
