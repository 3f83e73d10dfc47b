//! A relay before a server: a test sees each request's head before the server does, and may hold its body.

use std::io::{self, BufReader, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use super::head::head;

/// What becomes of a request.
pub enum Way {
    Through,
    /// So many bytes of its body reach the server, then none: this is called, and the connection stays as it is until whoever
    /// asks is gone.
    Held(u64, Box<dyn FnOnce() + Send>),
}

/// Starts one before a port of this machine; its own port. One head after the other is given to `seen`.
pub fn start(to: u16, seen: impl FnMut(&str) -> Way + Send + 'static) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let seen = Arc::new(Mutex::new(seen));
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let seen = Arc::clone(&seen);
            // An error is the end of one of both.
            std::thread::spawn(move || relay(&stream, to, &*seen));
        }
    });
    port
}

fn relay(stream: &TcpStream, to: u16, seen: &Mutex<impl FnMut(&str) -> Way>) -> io::Result<()> {
    let server = TcpStream::connect(("127.0.0.1", to))?;
    let (mut answers, mut back) = (server.try_clone()?, stream.try_clone()?);
    std::thread::spawn(move || {
        let _ = io::copy(&mut answers, &mut back);
        back.shutdown(Shutdown::Both)
    });
    let mut requests = BufReader::new(stream);
    loop {
        let Some((head, length)) = head(&mut requests)? else { return server.shutdown(Shutdown::Both) };
        let way = seen.lock().unwrap()(&head);
        (&server).write_all(head.as_bytes())?;
        match way {
            Way::Through => drop(io::copy(&mut requests.by_ref().take(length.unwrap_or(0)), &mut &server)?),
            Way::Held(part, note) => {
                io::copy(&mut requests.by_ref().take(part), &mut &server)?;
                note();
                let ended = io::copy(&mut requests, &mut io::sink());
                server.shutdown(Shutdown::Both)?;
                return ended.map(drop);
            }
        }
    }
}
