//! A client that asks all the time, from the node, over a new connection and over a kept one by turns.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::{Duration, Instant};

/// What it saw.
#[derive(Default)]
pub struct Seen {
    pub requests: usize,
    /// Each body, and how often it came.
    pub bodies: BTreeMap<String, usize>,
    /// What went wrong, and when since its start.
    pub failed: Vec<String>,
}

/// The client. It stops when dropped.
pub struct Client {
    stop: Arc<AtomicBool>,
    newest: Arc<Mutex<String>>,
    thread: Option<JoinHandle<Seen>>,
}

impl Client {
    /// Asks `http://ADDRESS/PATH`, of which an answer with another status than these is a failed request.
    pub fn start(address: SocketAddr, path: &str, statuses: &'static [u16]) -> Self {
        let (stop, newest) = (Arc::<AtomicBool>::default(), Arc::<Mutex<String>>::default());
        let (stopped, last, path) = (Arc::clone(&stop), Arc::clone(&newest), path.to_owned());
        let thread = spawn(move || {
            let (mut seen, began) = (Seen::default(), Instant::now());
            let mut fresh = Connection { address, keep: false, stream: None };
            let mut kept = Connection { address, keep: true, stream: None };
            while !stopped.load(Ordering::SeqCst) {
                for connection in [&mut fresh, &mut kept] {
                    let answer = connection.get(&path);
                    // A server may close a kept connection at any time: no failed request, but to be sent again.
                    let Some(answer) = answer.transpose() else { continue };
                    seen.requests += 1;
                    match answer {
                        Ok((code, body)) if statuses.contains(&code) => {
                            last.lock().unwrap().clone_from(&body);
                            *seen.bodies.entry(body).or_default() += 1;
                        }
                        Ok((code, body)) => seen.failed.push(format!("{:?}: {code} {body}", began.elapsed())),
                        Err(error) => seen.failed.push(format!("{:?}: {error}", began.elapsed())),
                    }
                }
                // The pace of the requests.
                sleep(Duration::from_millis(5));
            }
            seen
        });
        Self { stop, newest, thread: Some(thread) }
    }

    /// The body of the newest good answer.
    pub fn newest(&self) -> String {
        self.newest.lock().unwrap().clone()
    }

    pub fn stop(mut self) -> Seen {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Connection {
    address: SocketAddr,
    keep: bool,
    stream: Option<TcpStream>,
}

impl Connection {
    /// Status and body; nothing when a kept connection was closed before the answer's first byte.
    fn get(&mut self, path: &str) -> std::io::Result<Option<(u16, String)>> {
        let kept = self.stream.is_some();
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => TcpStream::connect_timeout(&self.address, Duration::from_secs(5))?,
        };
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        let close = if self.keep { "" } else { "Connection: close\r\n" };
        let sent = write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\n{close}\r\n");
        let (mut answer, mut buffer) = (Vec::new(), [0; 4096]);
        loop {
            let read = sent
                .as_ref()
                .map_err(std::io::Error::kind)
                .map_or_else(|kind| Err(kind.into()), |()| stream.read(&mut buffer));
            let count = match read {
                Ok(0) | Err(_) if answer.is_empty() && kept => return Ok(None),
                Ok(0) => return Err(std::io::Error::other(format!("closed after {} bytes", answer.len()))),
                read => read?,
            };
            answer.extend_from_slice(&buffer[..count]);
            let Some((head, body)) = whole(&answer) else { continue };
            if self.keep && !head.contains("\r\nconnection: close") {
                self.stream = Some(stream);
            }
            let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
            return Ok(Some((status, body)));
        }
    }
}

/// The head in small letters and the body, when all of it is there.
fn whole(answer: &[u8]) -> Option<(String, String)> {
    let (head, body) = std::str::from_utf8(answer).ok()?.split_once("\r\n\r\n")?;
    let head = head.to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:"))?.trim().parse().ok()?;
    (body.len() >= length).then(|| (head.clone(), body.to_owned()))
}
