//! Stands in for nginx in the demo where that cannot be had: answers with what its configuration says, and reads that
//! again on SIGHUP. It knows just enough of nginx's language: `listen`, `pid` and `return 200 "TEXT"`.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

/// The text between `before` and `after`.
fn between<'a>(text: &'a str, before: &str, after: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(before)?;
    Some(rest.split_once(after)?.0)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let path = std::env::args().nth(1).ok_or_else(|| anyhow::anyhow!("usage: demo-server CONFIG"))?;
    let mut hang_up = signal(SignalKind::hangup())?;
    let mut config = std::fs::read_to_string(&path)?;
    let missing = || anyhow::anyhow!("{path}: listen, pid and return are needed");
    let address: SocketAddr = between(&config, "listen ", ";").ok_or_else(missing)?.parse()?;
    let listener = TcpListener::bind(address).await?;
    std::fs::write(between(&config, "pid ", ";").ok_or_else(missing)?, std::process::id().to_string())?;
    loop {
        tokio::select! {
            _ = hang_up.recv() => config = std::fs::read_to_string(&path)?,
            accepted = listener.accept() => {
                let (mut stream, _) = accepted?;
                let mut request = [0; 1024];
                let _ = stream.read(&mut request).await?;
                let body = between(&config, "return 200 \"", "\"").ok_or_else(missing)?.replace("\\n", "\n");
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
                stream.write_all(format!("{head}{body}").as_bytes()).await?;
            }
        }
    }
}
