//! An HTTP hook: a server that notes each call, looks at the output as a main process would, and answers as it was
//! asked to.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::libc::linger;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, bind, getsockname, listen, setsockopt, socket, sockopt,
};

/// How the hook answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// With this status code.
    Code(u16),
    /// With this status code; the body is the request's head and what the watched file holds.
    Echo(u16),
    /// With 302, to this server.
    Redirect(SocketAddr),
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

/// Answers a call by a status code and a body.
type Respond = Box<dyn Fn(&Call) -> (u16, String) + Send + Sync>;

struct State {
    answer: Mutex<Answer>,
    respond: Option<Respond>,
    calls: Mutex<Vec<Call>>,
    watched: Option<PathBuf>,
    over: AtomicBool,
    held: Mutex<Vec<TcpStream>>,
}

impl Hook {
    /// A server on a free port that answers 200. `watched`: a file that it reads on each call.
    pub fn start(watched: Option<PathBuf>) -> Self {
        Self::start_on(TcpListener::bind("127.0.0.1:0").unwrap(), watched, Answer::Code(200))
    }

    /// The same on a port that is bound already, with this answer.
    pub fn start_on(listener: TcpListener, watched: Option<PathBuf>, answer: Answer) -> Self {
        Self::launch(listener, watched, answer, None)
    }

    /// One on a free port that answers as the function says.
    pub fn responding(
        watched: Option<PathBuf>,
        respond: impl Fn(&Call) -> (u16, String) + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        Self::launch(listener, watched, Answer::Code(200), Some(Box::new(respond)))
    }

    fn launch(listener: TcpListener, watched: Option<PathBuf>, answer: Answer, respond: Option<Respond>) -> Self {
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State {
            answer: Mutex::new(answer),
            respond,
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

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
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

/// A port that is taken, and at which nobody listens yet: connections are refused.
pub struct Port(OwnedFd);

impl Port {
    /// A free one.
    pub fn take() -> Self {
        // Else other tests' sidecars would inherit it.
        let flags = SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Inet, SockType::Stream, flags, None).unwrap();
        bind(socket.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 0)).unwrap();
        Self(socket)
    }

    /// The URL of the hook that will be there.
    pub fn url(&self) -> String {
        format!("http://{}/-/reload", getsockname::<SockaddrIn>(self.0.as_raw_fd()).unwrap())
    }

    /// The hook comes up.
    pub fn listen(self, watched: Option<PathBuf>, answer: Answer) -> Hook {
        listen(&self.0, Backlog::new(64).unwrap()).unwrap();
        Hook::start_on(TcpListener::from(self.0), watched, answer)
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
        let call = Call { at: Instant::now(), head, body, saw };
        self.calls.lock().unwrap().push(call.clone());
        let answer = *self.answer.lock().unwrap();
        let mut say = |code: u16, more: &str, body: &str| {
            let length = body.len();
            write!(stream, "HTTP/1.1 {code} X\r\nContent-Length: {length}\r\n{more}Connection: close\r\n\r\n{body}")
        };
        if let Some(respond) = &self.respond {
            let (code, body) = respond(&call);
            return say(code, "", &body);
        }
        match answer {
            Answer::Code(code) => say(code, "", "ok\n"),
            Answer::Echo(code) => say(code, "", &(call.head.join("\n") + "\n" + &call.saw.unwrap_or_default())),
            Answer::Redirect(to) => say(302, &format!("Location: http://{to}/-/reload\r\n"), ""),
            Answer::Hang => {
                self.held.lock().unwrap().push(stream);
                Ok(())
            }
            Answer::Reset => {
                setsockopt(&stream, sockopt::Linger, &linger { l_onoff: 1, l_linger: 0 })?;
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
