//! One connection: by TCP to whichever address of a host answers, or to a unix socket.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::Path;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};

/// How long an address is tried before the next one is tried beside it (RFC 8305, section 5).
const HEAD_START: Duration = Duration::from_millis(250);

/// Connects to the first address of `host` that accepts. `host`: a name, or an address without brackets. `patience`
/// bounds all of it, the name's resolution included; past it, the error is of the kind `TimedOut`.
pub async fn tcp(host: &str, port: u16, patience: Duration) -> io::Result<TcpStream> {
    let stream = timeout(patience, async { first(resolve(host, port).await?).await });
    let silent = |_| Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {patience:?}")));
    let stream = stream.await.unwrap_or_else(silent)?;
    notice_silence(&stream)?;
    Ok(stream)
}

/// Connects to a socket in a volume. The error says what to do.
pub async fn unix(path: &Path) -> Result<UnixStream, String> {
    UnixStream::connect(path).await.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => format!(
            "{error}; the server may be starting, or the socket's directory is not a volume that both containers \
             mount, at this path here"
        ),
        io::ErrorKind::PermissionDenied => {
            let user = nix::unistd::geteuid();
            format!("{error}; user {user} needs to write the socket and to search its directory")
        }
        _ => error.to_string(),
    })
}

/// In a thread of its own: a resolver that does not answer would hold a thread of the runtime, which local work needs.
/// The resolver's own timeout ends it (resolv.conf(5)).
async fn resolve(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    if let Ok(address) = host.parse() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    let (send, resolved) = oneshot::channel();
    let name = host.to_owned();
    std::thread::Builder::new().name("resolve".to_owned()).spawn(move || {
        // Nobody may wait any more.
        let _ = send.send((name.as_str(), port).to_socket_addrs().map(Iterator::collect));
    })?;
    resolved.await.unwrap_or_else(|_| Err(io::Error::other("the resolver panicked")))
}

/// The first of these to accept. Each has a head start before the next, so that a dead one costs a moment and not the
/// whole time; hyper-util's connector tries those of one family one after the other.
async fn first(addresses: Vec<SocketAddr>) -> io::Result<TcpStream> {
    let mut waiting = addresses.into_iter();
    let mut attempts = FuturesUnordered::new();
    let mut error = None;
    loop {
        attempts.extend(waiting.next().map(TcpStream::connect));
        tokio::select! {
            ended = attempts.next() => match ended {
                Some(Ok(stream)) => return Ok(stream),
                Some(Err(refused)) => error = error.or(Some(refused)),
                None => return Err(error.unwrap_or_else(|| io::Error::other("the host has no address"))),
            },
            () = sleep(HEAD_START), if waiting.len() > 0 => {}
        }
    }
}

/// A peer that went without a word is noticed within a minute, also while we have nothing to say.
fn notice_silence(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    setsockopt(stream, sockopt::KeepAlive, &true)?;
    setsockopt(stream, sockopt::TcpKeepIdle, &30)?;
    setsockopt(stream, sockopt::TcpKeepInterval, &10)?;
    setsockopt(stream, sockopt::TcpKeepCount, &3)?;
    setsockopt(stream, sockopt::TcpUserTimeout, &30_000)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::sync::mpsc::channel;

    use tokio::net::TcpSocket;

    use super::*;

    const LONG: Duration = Duration::from_secs(10);

    /// An address that drops each SYN, as long as the sockets live: its backlog of none is full.
    async fn dead() -> (SocketAddr, impl Sized) {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(0).unwrap();
        let address = listener.local_addr().unwrap();
        let waits = TcpStream::connect(address).await.unwrap();
        (address, (listener, waits))
    }

    fn alive() -> (SocketAddr, TcpListener) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        (listener.local_addr().unwrap(), listener)
    }

    fn refusing() -> SocketAddr {
        alive().0
    }

    #[tokio::test]
    async fn dead_address_is_passed_over() {
        let ((dead, _keep), (alive, _listener)) = (dead().await, alive());
        for addresses in [vec![dead, alive], vec![dead, dead, alive], vec![refusing(), dead, alive]] {
            let stream = timeout(LONG, first(addresses)).await.expect("the second address is not tried").unwrap();
            assert_eq!(stream.peer_addr().unwrap(), alive);
        }
    }

    #[tokio::test]
    async fn failure_is_the_first_address_own() {
        let error = first(vec![refusing(), refusing()]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        assert!(first(Vec::new()).await.unwrap_err().to_string().contains("no address"));
        let (dead, _keep) = dead().await;
        let error = tcp("127.0.0.1", dead.port(), Duration::from_millis(50)).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(error.to_string().contains("50ms"), "{error}");
    }

    #[tokio::test]
    async fn silent_peer_is_noticed() {
        let (address, _listener) = alive();
        let stream = tcp("127.0.0.1", address.port(), LONG).await.unwrap();
        let option = nix::sys::socket::getsockopt(&stream, sockopt::KeepAlive).unwrap();
        assert!(option && stream.nodelay().unwrap());
        let after = nix::sys::socket::getsockopt(&stream, sockopt::TcpKeepIdle).unwrap()
            + nix::sys::socket::getsockopt(&stream, sockopt::TcpKeepInterval).unwrap()
                * nix::sys::socket::getsockopt(&stream, sockopt::TcpKeepCount).unwrap();
        assert!(after <= 60, "after {after} s");
    }

    #[test]
    fn names_are_resolved_while_all_threads_of_the_runtime_are_busy() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(1).build();
        let (release, held) = channel::<()>();
        runtime.unwrap().block_on(async {
            let busy = tokio::task::spawn_blocking(move || held.recv());
            let (address, _listener) = alive();
            let stream = tcp("localhost", address.port(), LONG).await.unwrap();
            assert_eq!(stream.peer_addr().unwrap(), address);
            drop(release);
            assert!(busy.await.unwrap().is_err());
        });
    }
}
