//! A server for tests that sends what it is given, and is not bound to HTTP.

use std::collections::VecDeque;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// What is sent to a connection; then it is closed, or held.
#[derive(Clone, Debug)]
pub struct Answer {
    pub bytes: Vec<u8>,
    pub held: bool,
}

#[derive(Default)]
struct State {
    answer: Mutex<Option<Answer>>,
    first: Mutex<VecDeque<Answer>>,
    heads: Mutex<Vec<String>>,
    held: Mutex<Vec<TcpStream>>,
}

pub struct Server {
    pub address: SocketAddr,
    state: Arc<State>,
}

impl Server {
    pub fn start(answer: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = Self { address: listener.local_addr().unwrap(), state: Arc::default() };
        server.answer(answer);
        let state = server.state.clone();
        // It ends with the test's process.
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut head = Vec::new();
                let mut byte = [0];
                while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|read| read > 0) {
                    head.push(byte[0]);
                }
                state.heads.lock().unwrap().push(String::from_utf8(head).unwrap());
                let first = state.first.lock().unwrap().pop_front();
                let Answer { bytes, held } = first.unwrap_or_else(|| state.answer.lock().unwrap().clone().unwrap());
                // Whoever has seen enough may be gone.
                let _ = stream.write_all(&bytes);
                if held {
                    state.held.lock().unwrap().push(stream);
                }
            }
        });
        server
    }

    /// From now on it sends this.
    pub fn answer(&self, bytes: impl AsRef<[u8]>) {
        *self.state.answer.lock().unwrap() = Some(Answer { bytes: bytes.as_ref().to_owned(), held: false });
    }

    /// It sends these first, one to each connection.
    pub fn answer_first<'a>(&self, answers: impl IntoIterator<Item = &'a str>) {
        let answers = answers.into_iter().map(|bytes| Answer { bytes: bytes.into(), held: false });
        self.state.first.lock().unwrap().extend(answers);
    }

    /// The same, and stays connected.
    pub fn hold(&self, bytes: &str) {
        *self.state.answer.lock().unwrap() = Some(Answer { bytes: bytes.as_bytes().to_owned(), held: true });
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// The requests so far.
    pub fn heads(&self) -> Vec<String> {
        self.state.heads.lock().unwrap().clone()
    }
}

/// A whole answer with these header lines.
pub fn ok(headers: &str, body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\n{headers}Content-Length: {}\r\n\r\n{body}", body.len())
}
