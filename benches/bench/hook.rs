//! Who is notified: an HTTP server in this process, or a process of its own that takes SIGHUP. Both note the moment,
//! and the version that a main process would have read then.

use std::io::{BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;
use std::{fs, io, thread};

use anyhow::Result;

use crate::measure::now;
use crate::notified::{Acceptor, Named, read_message};

/// One call.
pub struct Call {
    /// When it came, on [`now`]'s clock.
    pub at: Duration,
    /// The version that was in the file then, or that the path `/v/N` says.
    pub saw: Option<u32>,
    /// The path of the request.
    pub path: String,
}

/// An HTTP server that answers 200 and reports its calls. Connections stay open as long as the caller wants.
pub struct Hook {
    /// Where it listens.
    pub address: SocketAddr,
    /// The calls in their order.
    pub calls: Receiver<Call>,
    _acceptor: Acceptor,
}

impl Hook {
    /// `file`: the first key, as the main process reads it.
    pub fn start(file: PathBuf) -> Result<Self> {
        let (sender, calls) = channel();
        let acceptor = Acceptor::start(move |stream| serve(stream, &file, &sender))?;
        Ok(Self { address: acceptor.address, calls, _acceptor: acceptor })
    }
}

/// Serves one connection. An error is the caller's end.
fn serve(mut stream: &TcpStream, file: &Path, sender: &Sender<Call>) -> io::Result<()> {
    let mut reader = BufReader::new(stream);
    while let Some(path) = read_message(&mut reader)? {
        let at = now();
        if path == RUNTIME_INFO {
            stream.write_all(&runtime_info())?;
            continue;
        }
        let saw = path.strip_prefix("/v/").map_or_else(|| version_in(file), |version| version.parse().ok());
        // Nobody listens any more at the end.
        let _ = sender.send(Call { at, saw, path });
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")?;
    }
    Ok(())
}

fn version_in(file: &Path) -> Option<u32> {
    fs::read_to_string(file).ok()?.split_whitespace().next()?.parse().ok()
}

/// What prometheus-config-reloader asks before and after a signal; each answer is of a newer reload.
pub const RUNTIME_INFO: &str = "/api/v1/status/runtimeinfo";

fn runtime_info() -> Vec<u8> {
    static SECONDS: AtomicI64 = AtomicI64::new(1_000_000_000);
    let at = jiff::Timestamp::from_second(SECONDS.fetch_add(1, Ordering::Relaxed)).unwrap_or_default();
    let data = serde_json::json!({"reloadConfigSuccess": true, "lastConfigTime": at.to_string()});
    let body = serde_json::json!({"status": "success", "data": data}).to_string();
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

/// A process that takes SIGHUP.
pub struct Target {
    /// Its name, of at most 15 bytes.
    pub name: String,
    /// Its process.
    pub pid: u32,
    /// The signals as they came.
    pub calls: Receiver<Call>,
    _process: Named,
}

impl Target {
    /// `file`: the first key, as it reads it; `dir`: for its log.
    pub fn start(file: &Path, dir: &Path) -> Result<Self> {
        let (process, lines) = Named::start(file.as_os_str(), dir)?;
        let (sender, calls) = channel();
        thread::spawn(move || {
            for line in lines.map_while(io::Result::ok) {
                let mut words = line.split(' ');
                let nanoseconds = words.next().and_then(|word| word.parse().ok()).unwrap_or_default();
                let saw = words.next().and_then(|word| word.parse().ok());
                let _ = sender.send(Call { at: Duration::from_nanos(nanoseconds), saw, path: String::new() });
            }
        });
        Ok(Self { name: process.name.clone(), pid: process.running.process.id(), calls, _process: process })
    }
}

/// What the process does.
pub fn run_target(file: &Path) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut signals = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::hangup())?;
        let mut stdout = io::stdout().lock();
        writeln!(stdout, "ready")?;
        while signals.recv().await.is_some() {
            let at = now().as_nanos();
            let saw = version_in(file).map(|version| version.to_string()).unwrap_or_default();
            writeln!(stdout, "{at} {saw}")?;
        }
        Ok(())
    })
}
