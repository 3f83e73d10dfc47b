//! What a main process is made of: a server in this process, or this program again under a name of its own.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Lines, Read};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::{env, fs, io, thread};

use anyhow::{Context, Result};

use super::guard::{Guard, Running};

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
