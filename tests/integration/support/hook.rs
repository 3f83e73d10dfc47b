//! An HTTP hook: a server that notes each call, looks at the output as a main process would, and answers as told.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How the hook answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// With this status code.
    Code(u16),
    /// Not at all: the connection stays open.
    Hang,
    /// By a reset.
    Reset,
}

/// One call.
#[derive(Clone, Debug)]
pub struct Call {
    /// When it came.
    pub at: Instant,
    /// The request's head, line by line.
    pub head: Vec<String>,
    /// The request's body.
    pub body: String,
    /// What the watched file held at that moment.
    pub saw: Option<String>,
}

/// The server. Ends when dropped.
pub struct Hook {
    address: SocketAddr,
    state: Arc<State>,
    thread: Option<JoinHandle<()>>,
}

struct State {
    answer: Mutex<Answer>,
    calls: Mutex<Vec<Call>>,
    watched: Option<PathBuf>,
    over: AtomicBool,
    held: Mutex<Vec<TcpStream>>,
}

impl Hook {
    /// A server on a free port that answers 200. `watched`: a file that it reads on each call.
    pub fn start(watched: Option<PathBuf>) -> Self {
        Self::start_on(TcpListener::bind("127.0.0.1:0").unwrap(), watched)
    }

    /// The same on a port that is bound already.
    pub fn start_on(listener: TcpListener, watched: Option<PathBuf>) -> Self {
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State {
            answer: Mutex::new(Answer::Code(200)),
            calls: Mutex::default(),
            watched,
            over: AtomicBool::new(false),
            held: Mutex::default(),
        });
        let thread = std::thread::spawn({
            let state = state.clone();
            move || {
                for stream in listener.incoming() {
                    if state.over.load(Ordering::SeqCst) {
                        break;
                    }
                    // A client that goes away early is part of some tests.
                    let _ = stream.and_then(|stream| state.serve(stream));
                }
            }
        });
        Self { address, state, thread: Some(thread) }
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("http://{}/-/reload", self.address)
    }

    /// From now on it answers so.
    pub fn answer(&self, answer: Answer) {
        *self.state.answer.lock().unwrap() = answer;
    }

    /// The calls so far.
    pub fn calls(&self) -> Vec<Call> {
        self.state.calls.lock().unwrap().clone()
    }

    /// What the watched file held at the last call.
    pub fn last_saw(&self) -> Option<String> {
        self.state.calls.lock().unwrap().last().and_then(|call| call.saw.clone())
    }
}

impl State {
    fn serve(&self, mut stream: TcpStream) -> std::io::Result<()> {
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut head = Vec::new();
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 || line.trim().is_empty() {
                break;
            }
            head.push(line.trim().to_owned());
        }
        let length = head.iter().find_map(|line| {
            line.to_lowercase().strip_prefix("content-length:").and_then(|value| value.trim().parse().ok())
        });
        let mut body = vec![0; length.unwrap_or(0)];
        reader.read_exact(&mut body)?;
        let saw = self.watched.as_ref().and_then(|path| std::fs::read_to_string(path).ok());
        let body = String::from_utf8_lossy(&body).into_owned();
        self.calls.lock().unwrap().push(Call { at: Instant::now(), head, body, saw });
        let answer = *self.answer.lock().unwrap();
        match answer {
            Answer::Code(code) => {
                write!(stream, "HTTP/1.1 {code} X\r\nContent-Length: 3\r\nConnection: close\r\n\r\nok\n")
            }
            Answer::Hang => {
                self.held.lock().unwrap().push(stream);
                Ok(())
            }
            Answer::Reset => {
                rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO))?;
                Ok(())
            }
        }
    }
}

impl Drop for Hook {
    fn drop(&mut self) {
        self.state.over.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
