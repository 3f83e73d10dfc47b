//! A service that hands out credentials, by the words that a test gives it.

use std::io::{BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};

use super::head::head;

/// Who hands out credentials: with one answer to all, and what it was asked.
pub struct Cloud {
    pub address: SocketAddr,
    pub asked: Arc<Mutex<Vec<String>>>,
    pub answer: Arc<Mutex<(u16, String)>>,
}

impl Cloud {
    pub fn start(answer: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let answer = Arc::new(Mutex::new((200, answer.to_owned())));
        let cloud = Self { address: listener.local_addr().unwrap(), asked: Arc::default(), answer };
        let (asked, answer) = (cloud.asked.clone(), cloud.answer.clone());
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                let Ok(Some((head, length))) = head(&mut reader) else { continue };
                let mut body = Vec::new();
                let _ = reader.take(length.unwrap_or(0)).read_to_end(&mut body);
                asked.lock().unwrap().push(head + &String::from_utf8_lossy(&body));
                let (code, text) = answer.lock().unwrap().clone();
                let _ = write!(stream, "HTTP/1.1 {code} X\r\nContent-Length: {}\r\n\r\n{text}", text.len());
            }
        });
        cloud
    }

    pub fn url(&self) -> String {
        format!("http://{}/credentials", self.address)
    }

    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }
}
