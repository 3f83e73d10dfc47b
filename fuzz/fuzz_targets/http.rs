//! Any answer of a server is understood or refused, within bounds, and no credential that it echoes is handed on.
//!
//! The first byte says in pieces of what size the answer comes (0: all of it at once); then the connection ends.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::runtime::Runtime;
use trimtab::net::endpoint::Endpoint;
use trimtab::net::request::{BODY_KEPT, HttpConfig, send_over};

const CANARY: &str = "hunter2-canary";

thread_local! {
    static RUNTIME: Runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
}

/// Reads the request, then answers. The client may have gone before the end.
async fn serve(mut socket: DuplexStream, answer: &[u8], piece: usize) {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        if socket.read_buf(&mut request).await.unwrap_or(0) == 0 {
            return;
        }
    }
    for piece in answer.chunks(piece) {
        if socket.write_all(piece).await.is_err() {
            return;
        }
        tokio::task::yield_now().await;
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((&piece, answer)) = data.split_first() else { return };
    let piece = if piece == 0 { answer.len().max(1) } else { piece.into() };
    let endpoint: Endpoint = format!("http://server/-/reload?token={CANARY}").parse().unwrap();
    let config = HttpConfig { headers: vec![format!("X-Token: {CANARY}").parse().unwrap()], ..HttpConfig::default() };
    let (ours, theirs) = tokio::io::duplex(64 * 1024);
    let (answered, ()) = RUNTIME.with(|runtime| {
        runtime.block_on(async { tokio::join!(send_over(&endpoint, &config, ours), serve(theirs, answer, piece)) })
    });
    match answered {
        Ok(response) => {
            assert!(response.body.len() <= BODY_KEPT, "{response:?}");
            assert!(!response.body.windows(CANARY.len()).any(|window| window == CANARY.as_bytes()), "{response:?}");
        }
        Err(error) => {
            let said = error.to_string();
            assert!(said.len() < 300 && !said.contains(char::is_control) && !said.contains(CANARY), "{said}");
        }
    }
});
