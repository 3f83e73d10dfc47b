//! The two servers: `--listen` for probes and scrapes, `--admin` for people and scripts of the Pod itself.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{
    AUTHORIZATION, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HOST, HeaderValue, LOCATION, ORIGIN,
    REFERRER_POLICY, REFRESH, WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS,
};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use jiff::Timestamp;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{AbortHandle, JoinSet};

use crate::net::server::Guard;
use crate::observe::metrics::Metrics;
use crate::observe::status::Status;
use crate::observe::verdict::Verdict;
use crate::observe::{page, text};

/// Connections that one server serves at a time: for a new one, the oldest has to go that waits for nothing.
const CONNECTIONS: usize = 32;
/// How many wait to be accepted, as in tokio.
const BACKLOG: u32 = 1024;
/// How long a connection may live, and how long the loop may take to turn.
const CONNECTION_LIFE: Duration = Duration::from_mins(1);
const TURN: Duration = Duration::from_secs(5);
const PLAIN: &str = "text/plain; charset=utf-8";
const STUCK: &str = "the loop does not turn\n";

/// What the app is asked.
#[derive(Debug)]
pub enum Ask {
    /// Does the loop turn?
    Ping(oneshot::Sender<()>),
    /// Forget the rejection, try at once; answered with what that means now.
    Retry(oneshot::Sender<&'static str>),
}

/// What the servers know, and whom they ask.
#[derive(Clone, Debug)]
pub struct Shared {
    /// Written by the app.
    pub status: Arc<Mutex<Status>>,
    /// Counted by the app.
    pub metrics: Arc<Metrics>,
    /// To the app's loop.
    pub asks: mpsc::Sender<Ask>,
}

impl Shared {
    /// Changes the status.
    pub fn update<T>(&self, change: impl FnOnce(&mut Status) -> T) -> T {
        change(&mut self.status.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Brings the verdict up to date with the rest of the status; the verdict, and whether its word is another one now.
    #[must_use]
    pub fn judge(&self) -> (Verdict, bool) {
        let (verdict, changed) = self.update(|status| {
            let mut verdict = Verdict::of(status);
            let changed = verdict.state != status.verdict.state;
            if !changed {
                verdict.since = status.verdict.since;
            }
            status.verdict = verdict.clone();
            (verdict, changed)
        });
        if changed {
            self.metrics.verdict(verdict.state);
        }
        (verdict, changed)
    }

    /// The status as it is now.
    #[must_use]
    pub fn status(&self) -> Status {
        self.status.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Server {
    /// `/livez`, `/readyz` (`/healthz` for charts that probe it), `/metrics`.
    Listen,
    /// `/status`, `POST /retry`, and `/`, a page for people.
    Admin,
}

/// Takes the address, within a runtime; a failure names the flag and what to do.
pub fn bind(flag: &'static str, address: SocketAddr) -> anyhow::Result<TcpListener> {
    let mut result = listen(address);
    if address.ip().is_unspecified()
        && address.is_ipv6()
        && result.as_ref().is_err_and(|error| error.kind() != std::io::ErrorKind::AddrInUse)
    {
        // A node without IPv6.
        result = listen((std::net::Ipv4Addr::UNSPECIFIED, address.port()).into());
    }
    result.map_err(|error| {
        anyhow::anyhow!("{flag} {address}: {error}; choose another address with {flag}, or {flag}=off for none")
    })
}

fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv6() { TcpSocket::new_v6() } else { TcpSocket::new_v4() }?;
    if address.is_ipv6() {
        // The kubelet may probe by IPv4 where net.ipv6.bindv6only is set.
        setsockopt(&socket, sockopt::Ipv6V6Only, &false)?;
    }
    // After a restart, connections of the life before may still linger.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Serves until it is dropped; whom `guard` admits, if there is one.
pub async fn serve(server: Server, listener: TcpListener, shared: Shared, guard: Option<Arc<Guard>>) -> Infallible {
    let mut connections = JoinSet::new();
    // And whether an answer is being made.
    let mut oldest_first: VecDeque<(AbortHandle, Arc<AtomicBool>)> = VecDeque::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Out of file descriptors, or the peer has gone already: accept(2) says to try again.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        while connections.try_join_next().is_some() {}
        oldest_first.retain(|(connection, _)| !connection.is_finished());
        if oldest_first.len() >= CONNECTIONS {
            let idle = oldest_first.iter().position(|(_, busy)| !busy.load(Ordering::Relaxed)).unwrap_or_default();
            if let Some((connection, _)) = oldest_first.remove(idle) {
                connection.abort();
            }
        }
        let (shared, guard, busy) = (shared.clone(), guard.clone(), Arc::new(AtomicBool::new(false)));
        let answering = Arc::clone(&busy);
        let connection = connections.spawn(async move {
            let by_tls = guard.clone().filter(|guard| guard.speaks_tls());
            let service = service_fn(move |request: Request<Incoming>| {
                let (shared, guard, busy) = (shared.clone(), guard.clone(), Arc::clone(&answering));
                async move {
                    busy.store(true, Ordering::Relaxed);
                    let admitted = match guard {
                        Some(guard) => guard.admits(request.headers().get(AUTHORIZATION)).await,
                        None => true,
                    };
                    let answer = if admitted { answer(server, &request, &shared).await } else { unauthorized() };
                    busy.store(false, Ordering::Relaxed);
                    Ok::<_, Infallible>(answer)
                }
            });
            let mut http = hyper::server::conn::http1::Builder::new();
            http.timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(10)).max_buf_size(16 * 1024);
            // A client that goes away early is none of our trouble.
            let Some(guard) = by_tls else {
                let connection = http.serve_connection(TokioIo::new(stream), service);
                let _ = tokio::time::timeout(CONNECTION_LIFE, connection).await;
                return;
            };
            // Apart, as it is large and rare.
            let connection = Box::pin(async move {
                if let Some(stream) = guard.handshake(stream).await {
                    let _ = http.serve_connection(TokioIo::new(stream), service).await;
                }
            });
            let _ = tokio::time::timeout(CONNECTION_LIFE, connection).await;
        });
        oldest_first.push_back((connection, busy));
    }
}

async fn answer(server: Server, request: &Request<Incoming>, shared: &Shared) -> Response<Full<Bytes>> {
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    match (server, request.uri().path()) {
        (Server::Listen, "/livez") if reads => livez(shared).await,
        (Server::Listen, "/readyz" | "/healthz") if reads => {
            if shared.status().ready {
                plain(StatusCode::OK, "ok\n")
            } else {
                plain(StatusCode::SERVICE_UNAVAILABLE, "no generation is published yet; see /status on --admin\n")
            }
        }
        (Server::Listen, "/metrics") if reads => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            response(StatusCode::OK, kind, shared.metrics.encode().into())
        }
        (Server::Admin, "/status") if reads && request.uri().query() == Some("format=text") => {
            response(StatusCode::OK, PLAIN, text::text(&shared.status(), Timestamp::now()).into())
        }
        (Server::Admin, "/status") if reads => match serde_json::to_vec_pretty(&shared.status()) {
            Ok(json) => response(StatusCode::OK, "application/json", json.into()),
            Err(_) => plain(StatusCode::INTERNAL_SERVER_ERROR, "the status cannot be written as JSON\n"),
        },
        (Server::Admin, "/") if reads => people(request, shared),
        (Server::Admin, "/retry") if *request.method() == Method::POST && is_foreign(request) => {
            plain(StatusCode::FORBIDDEN, "another site's page asks for this\n")
        }
        (Server::Admin, "/retry") if *request.method() == Method::POST => retry(request, shared).await,
        (Server::Admin, "/retry") => plain(StatusCode::METHOD_NOT_ALLOWED, "POST it\n"),
        (Server::Listen, _) => plain(StatusCode::NOT_FOUND, "here are /livez, /readyz, /healthz and /metrics\n"),
        (Server::Admin, _) => plain(StatusCode::NOT_FOUND, "here are /, /status and POST /retry\n"),
    }
}

/// The loop answers itself: a server that only shared its thread would stay alive when the loop is stuck.
async fn livez(shared: &Shared) -> Response<Full<Bytes>> {
    match ask(shared, Ask::Ping).await {
        Some(()) => plain(StatusCode::OK, "ok\n"),
        None => plain(StatusCode::SERVICE_UNAVAILABLE, STUCK),
    }
}

/// The page.
fn people(request: &Request<Incoming>, shared: &Shared) -> Response<Full<Bytes>> {
    let fresh = request.uri().query() == Some("refresh");
    let page = page::page(&shared.status(), Timestamp::now(), fresh);
    let mut response = response(StatusCode::OK, "text/html; charset=utf-8", page.into());
    let headers = response.headers_mut();
    if let Ok(policy) = page::policy().try_into() {
        headers.insert(CONTENT_SECURITY_POLICY, policy);
    }
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("same-origin"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if fresh {
        headers.insert(REFRESH, HeaderValue::from_static("5"));
    }
    response
}

/// Whether a browser asks on behalf of another site's page: all browsers say so in a POST.
fn is_foreign(request: &Request<Incoming>) -> bool {
    let header = |name| request.headers().get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    header(ORIGIN).is_some_and(|origin| {
        let host = origin.split_once("://").map(|(_, host)| host);
        host.is_none() || host != header(HOST)
    })
}

async fn retry(request: &Request<Incoming>, shared: &Shared) -> Response<Full<Bytes>> {
    let from_page = request.headers().contains_key(ORIGIN);
    match ask(shared, Ask::Retry).await {
        Some(_) if from_page => {
            let mut response = plain(StatusCode::SEE_OTHER, "see the page\n");
            response.headers_mut().insert(LOCATION, HeaderValue::from_static("/"));
            response
        }
        Some(said) => plain(StatusCode::ACCEPTED, said),
        None => plain(StatusCode::SERVICE_UNAVAILABLE, STUCK),
    }
}

/// Asks the loop; `None` when it does not answer in time.
async fn ask<T>(shared: &Shared, question: impl FnOnce(oneshot::Sender<T>) -> Ask) -> Option<T> {
    let (answer, answered) = oneshot::channel();
    let asked = async {
        shared.asks.send(question(answer)).await.ok()?;
        answered.await.ok()
    };
    tokio::time::timeout(TURN, asked).await.ok().flatten()
}

/// As Prometheus's own servers answer.
fn unauthorized() -> Response<Full<Bytes>> {
    let mut response = plain(StatusCode::UNAUTHORIZED, "Unauthorized\n");
    response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Basic"));
    response
}

fn plain(status: StatusCode, body: &'static str) -> Response<Full<Bytes>> {
    response(status, PLAIN, Bytes::from_static(body.as_bytes()))
}

fn response(status: StatusCode, kind: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use nix::sched::{CloneFlags, unshare};
    use nix::sys::socket::getsockopt;

    use super::*;

    #[test]
    fn both_families_are_served_where_sockets_of_the_newer_are_for_it_alone() {
        // Needs root. The setting is the thread's network's own.
        let thread = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            std::fs::write("/proc/sys/net/ipv6/bindv6only", "1").unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let listener = runtime.block_on(async { bind("--listen", "[::]:0".parse().unwrap()) }).unwrap();
            (listener.local_addr().unwrap(), getsockopt(&listener, sockopt::Ipv6V6Only).unwrap())
        });
        let (address, alone) = thread.join().unwrap();
        assert!(address.is_ipv6() && !alone, "{address}");
    }
}
