//! Who is told: an HTTP server in this process, or a process of its own that takes SIGHUP. Both note the moment, and the
//! version that a main process would have read then.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Lines, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;
use std::{env, fs, io, thread};

use anyhow::{Context, Result};

use crate::guard::{Guard, Running};
use crate::measure::now;

/// One call.
pub struct Call {
    /// When it came, on [`now`]'s clock.
    pub at: Duration,
    /// The version that lay in the file then, or that the path `/v/N` says.
    pub saw: Option<u32>,
    /// The path of the request.
    pub path: String,
}

/// An HTTP server that answers 200 and tells of its calls. Connections stay open as long as the caller wants.
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
        let (tell, calls) = channel();
        let acceptor = Acceptor::start(move |stream| serve(stream, &file, &tell))?;
        Ok(Self { address: acceptor.address, calls, _acceptor: acceptor })
    }
}

/// Accepts connections on a port of its own until it is dropped, and serves each in a thread.
pub struct Acceptor {
    /// Where it listens.
    pub address: SocketAddr,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Acceptor {
    /// An error of `serve` is the end of the connection.
    pub fn start(serve: impl Fn(&TcpStream) -> io::Result<()> + Send + Sync + 'static) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let over = Arc::new(AtomicBool::new(false));
        let (stop, serve) = (over.clone(), Arc::new(serve));
        let thread = thread::spawn(move || {
            for stream in listener.incoming().map_while(io::Result::ok) {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                let serve = serve.clone();
                // Ends with the connection, and that with the program at its other end.
                thread::spawn(move || serve(&stream));
            }
        });
        Ok(Self { address, over, thread: Some(thread) })
    }
}

impl Drop for Acceptor {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
        // Wakes the thread.
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Serves one connection. An error is the caller's end.
fn serve(mut stream: &TcpStream, file: &Path, tell: &Sender<Call>) -> io::Result<()> {
    let mut reader = BufReader::new(stream);
    while let Some(path) = read_message(&mut reader)? {
        let at = now();
        if path == RUNTIME_INFO {
            stream.write_all(&runtime_info())?;
            continue;
        }
        let saw = path.strip_prefix("/v/").map_or_else(|| version_in(file), |version| version.parse().ok());
        // Nobody listens any more at the end.
        let _ = tell.send(Call { at, saw, path });
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

/// Reads a request or an answer with its body; the second word of its first line, `None` at the end of the connection.
pub fn read_message(reader: &mut impl BufRead) -> io::Result<Option<String>> {
    let mut length = 0;
    let mut line = String::new();
    let mut second = None;
    loop {
        line.clear();
        if reader.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        if line.trim().is_empty() {
            break;
        }
        second = second.or_else(|| line.split(' ').nth(1).map(str::to_owned));
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().map_err(io::Error::other)?;
        }
    }
    io::copy(&mut reader.take(length), &mut io::sink())?;
    Ok(Some(second.unwrap_or_default()))
}

/// This program again as a process that takes signals, under a name of its own.
pub struct Named {
    /// Its name, of at most 15 bytes: the same for the same folder.
    pub name: String,
    /// Its process.
    pub running: Running,
    _link: tempfile::TempDir,
    _guard: Guard,
}

impl Named {
    /// Runs `target` with this argument, and gives the lines that it writes once it takes signals; `dir`: for its log.
    pub fn start(argument: &OsStr, dir: &Path) -> Result<(Self, Lines<BufReader<ChildStdout>>)> {
        // A name for it alone: peers go by the name only. Beside the program, as a hard link must be.
        let exe = env::current_exe()?;
        let link = tempfile::Builder::new().prefix("target-").tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
        let guard = Guard::removing(link.path())?;
        let unique = dir.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let name = format!("t-{}", &unique[unique.len().saturating_sub(10)..]);
        let path = link.path().join(&name);
        fs::hard_link(&exe, &path).with_context(|| format!("{} cannot be linked", exe.display()))?;
        let mut command = Command::new(&path);
        command.arg("target").arg(argument).stdout(Stdio::piped());
        let target = dir.join("target");
        fs::create_dir_all(&target)?;
        let mut running = Running::start(command, &target)?;
        let mut lines = BufReader::new(running.process.stdout.take().context("no pipe")?).lines();
        // It says so when it takes signals.
        lines.next().context("the target does not start")??;
        Ok((Self { name, running, _link: link, _guard: guard }, lines))
    }
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
        let (tell, calls) = channel();
        thread::spawn(move || {
            for line in lines.map_while(io::Result::ok) {
                let mut words = line.split(' ');
                let nanoseconds = words.next().and_then(|word| word.parse().ok()).unwrap_or_default();
                let saw = words.next().and_then(|word| word.parse().ok());
                let _ = tell.send(Call { at: Duration::from_nanos(nanoseconds), saw, path: String::new() });
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
