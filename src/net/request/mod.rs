//! One HTTP/1.1 request: over TCP, TLS or a unix socket, bounded in time and size, no redirect followed.
//!
//! What was sent as a credential is masked in the answer: some servers echo a request into their error pages.

mod config;
pub mod fetch;
pub mod put;
pub mod refused;

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::Request;
use hyper::body::{Body, Incoming};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;
use tower::ServiceExt as _;

pub use self::config::{HttpConfig, Owner, Sign, SignError};
use self::config::{prepare, sign, tls_config};
use crate::net::connect;
use crate::net::credentials::FileError;
use crate::net::endpoint::{Endpoint, Route};
use crate::net::proxy::{self, Dialer, Intercept, Tcp};
use crate::net::tls;
use crate::os::mask::Mask;

/// How much of an answer's body is kept, in bytes.
pub const BODY_KEPT: usize = 64 * 1024;
/// How much of an answer's body is read, in bytes; then the connection is closed and the answer taken as it is.
pub const BODY_READ: usize = 1024 * 1024;
/// The longest status line and header section, in bytes.
const HEAD: usize = 64 * 1024;

/// An answer. `Debug` shows the status and the body's length.
#[derive(Clone, PartialEq, Eq)]
pub struct Response {
    pub status: u16,
    /// The start of the body: its first 64 KiB with credentials that were sent masked, if by [`send`].
    pub body: Vec<u8>,
    /// Why the rest of the body never came. The status is the answer all the same.
    pub incomplete: Option<String>,
}

impl fmt::Debug for Response {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} bytes)", self.status, self.body.len())
    }
}

/// Why there is no answer. Every variant is retried.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    #[error(transparent)]
    File(#[from] FileError),
    /// There is nothing to check the server by. Nothing was sent.
    #[error("{endpoint}: there are no CA certificates in this image to check the server by: give them with {flag}")]
    NoRoots { endpoint: String, flag: String },
    /// It cannot be said who asks. Nothing was sent.
    #[error("{endpoint}: {error}")]
    Unsigned { endpoint: String, error: SignError },
    /// No connection, or no handshake. Nothing was sent.
    #[error("{endpoint}: no connection: {reason}")]
    Connect {
        endpoint: String,
        reason: String,
        /// Whether there was a connection, and the handshake failed.
        accepted: bool,
    },
    /// The connection broke before the answer's status, or what came is not HTTP.
    #[error("{endpoint}: {reason}{}", if *sent { " after the request was sent" } else { "" })]
    Broken {
        endpoint: String,
        reason: String,
        /// Whether the request had been written completely.
        sent: bool,
    },
    /// The time is up, and no status has come.
    #[error("{endpoint}: {} within {timeout:?}", if *sent { "no complete answer" } else { "no connection" })]
    Timeout {
        endpoint: String,
        timeout: Duration,
        /// Whether there was a connection.
        accepted: bool,
        /// Whether the request had been written completely.
        sent: bool,
    },
}

impl HttpError {
    /// Whether the request had been written completely, so that the server may have acted on it.
    #[must_use]
    pub fn sent(&self) -> bool {
        matches!(self, Self::Broken { sent: true, .. } | Self::Timeout { sent: true, .. })
    }

    /// Whether the server accepted the connection, so that somebody is there.
    #[must_use]
    pub fn accepted(&self) -> bool {
        match self {
            Self::File(_) | Self::NoRoots { .. } | Self::Unsigned { .. } => false,
            Self::Broken { .. } => true,
            Self::Connect { accepted, .. } | Self::Timeout { accepted, .. } => *accepted,
        }
    }
}

/// Sends one request over a connection of its own. `timeout`: from the connect to the last byte of the answer.
/// Dropped, it closes the connection.
pub async fn send(endpoint: &Endpoint, config: &HttpConfig, timeout: Duration) -> Result<Response, HttpError> {
    let (mut response, mask) = send_unmasked(endpoint, config, BODY_KEPT, timeout).await?;
    response.body = mask.redact(&response.body);
    Ok(response)
}

/// As [`send`], for an answer that is to be looked into: the first `kept` bytes of its body (at most [`BODY_READ`])
/// as they came, and what masks the credentials that were sent, the values of the URL's query among them.
pub async fn send_unmasked(
    endpoint: &Endpoint,
    config: &HttpConfig,
    kept: usize,
    timeout: Duration,
) -> Result<(Response, Mask), HttpError> {
    let attempt = Attempt::new(endpoint, timeout);
    let (request, credentials) = prepare(endpoint, config)?;
    let socket = attempt.connect(config).await?;
    let response = attempt.exchange(socket, request, kept).await?;
    Ok((response, Mask::new(credentials)))
}

/// What fuzzing reaches: [`send`] over a connection whose other end is at hand.
#[cfg(fuzzing)]
pub async fn send_over(
    endpoint: &Endpoint,
    config: &HttpConfig,
    socket: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
) -> Result<Response, HttpError> {
    let attempt = Attempt::new(endpoint, Duration::MAX);
    let (request, credentials) = prepare(endpoint, config)?;
    let mut response = attempt.exchange(Box::new(socket), request, BODY_KEPT).await?;
    response.body = Mask::new(credentials).redact(&response.body);
    Ok(response)
}

/// Connects as [`send`] does, TLS handshake and files included, and closes the connection without a request.
pub async fn reach(endpoint: &Endpoint, config: &HttpConfig, timeout: Duration) -> Result<(), HttpError> {
    prepare(endpoint, config)?;
    Attempt::new(endpoint, timeout).connect(config).await.map(drop)
}

/// A connection of any kind.
trait Socket: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Socket for S {}

/// How far a request came.
#[derive(Default)]
struct Progress {
    /// There is a connection.
    accepted: AtomicBool,
    /// The request has been written completely.
    sent: AtomicBool,
}

/// One request on its way.
struct Attempt<'a> {
    endpoint: &'a Endpoint,
    timeout: Duration,
    deadline: Instant,
    progress: Arc<Progress>,
}

impl<'a> Attempt<'a> {
    fn new(endpoint: &'a Endpoint, timeout: Duration) -> Self {
        let now = Instant::now();
        // Thirty years stand for ever, as in tokio.
        let deadline = now.checked_add(timeout).unwrap_or(now + Duration::from_hours(24 * 365 * 30));
        Self { endpoint, timeout, deadline, progress: Arc::default() }
    }

    async fn in_time<T>(&self, work: impl Future<Output = Result<T, HttpError>>) -> Result<T, HttpError> {
        timeout_at(self.deadline, work).await.unwrap_or_else(|_| {
            let [accepted, sent] =
                [&self.progress.accepted, &self.progress.sent].map(|flag| flag.load(Ordering::Relaxed));
            Err(HttpError::Timeout { endpoint: self.endpoint.to_string(), timeout: self.timeout, accepted, sent })
        })
    }

    fn broken(&self, error: &hyper::Error) -> HttpError {
        let sent = self.progress.sent.load(Ordering::Relaxed);
        HttpError::Broken { endpoint: self.endpoint.to_string(), reason: reason(error), sent }
    }

    async fn connect(&self, config: &HttpConfig) -> Result<Box<dyn Socket>, HttpError> {
        let fail = |reason: String| HttpError::Connect {
            endpoint: self.endpoint.to_string(),
            reason,
            accepted: self.progress.accepted.load(Ordering::Relaxed),
        };
        let open = async {
            let (tls, host, port) = match &self.endpoint.route {
                Route::Unix(path) => {
                    let stream = connect::unix(path).await.map_err(fail)?;
                    self.progress.accepted.store(true, Ordering::Relaxed);
                    return Ok(Box::new(stream) as Box<dyn Socket>);
                }
                Route::Tcp { tls, host, port, .. } => (*tls, host, *port),
            };
            let proxy = config.proxy(self.endpoint);
            let secured = |proxy: &Intercept| proxy.uri().scheme_str() == Some("https");
            let files = if tls || proxy.as_ref().is_some_and(secured) {
                Some(Arc::new(tls_config(self.endpoint, config).await?))
            } else {
                None
            };
            let stream: Box<dyn Socket> = match (&proxy, self.endpoint.url()) {
                (Some(proxy), Some(url)) => {
                    let direct = Tcp(self.timeout);
                    let dialer = match &files {
                        Some(files) if tls => Dialer::through(proxy, direct, files),
                        files => Dialer::towards(proxy, direct, files.as_ref()),
                    };
                    let stream = dialer.oneshot(url).await;
                    Box::new(TokioIo::new(stream.map_err(|error| fail(proxy::explain(&error)))?))
                }
                _ => Box::new(connect::tcp(host, port, self.timeout).await.map_err(|error| fail(error.to_string()))?),
            };
            self.progress.accepted.store(true, Ordering::Relaxed);
            let Some(tls) = files.filter(|_| tls) else { return Ok(stream) };
            let name = ServerName::try_from(host.clone());
            let name = name.map_err(|_| fail("TLS needs a DNS name or an address".to_owned()))?;
            let flag = config.owner.flag("ca-file");
            let checked = format!("the server is checked by {flag}, or by the CAs in this image without it");
            let stream = TlsConnector::from(tls).connect(name, stream).await;
            let stream = stream.map_err(|error| fail(format!("{}; {checked}", tls::explain(&error))))?;
            Ok(Box::new(stream) as _)
        };
        self.in_time(open).await
    }

    async fn exchange<B>(
        &self,
        socket: Box<dyn Socket>,
        request: Request<B>,
        kept: usize,
    ) -> Result<Response, HttpError>
    where
        B: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send + Unpin + 'static,
    {
        let watched = TokioIo::new(Watched { socket, written: false, progress: self.progress.clone() });
        let builder = hyper::client::conn::http1::Builder::new().max_buf_size(HEAD).handshake(watched).await;
        let (mut sender, connection) = builder.map_err(|error| self.broken(&error))?;
        let answer = async {
            let head = async { sender.send_request(request).await.map_err(|error| self.broken(&error)) };
            let head = self.in_time(head).await?;
            let status = head.status().as_u16();
            // The server has answered: what becomes of the rest, be it endless, does not change that.
            let mut body = Vec::new();
            let incomplete = match timeout_at(self.deadline, read(head.into_body(), kept, &mut body)).await {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(reason(&error)),
                Err(_) => Some(format!("its body had no end within {:?}", self.timeout)),
            };
            Ok(Response { status, body, incomplete })
        };
        beside(connection, answer).await
    }
}

/// Lets a connection move its bytes while an answer is waited for, which hears as well what goes wrong with it.
async fn beside<T, C>(connection: impl Future<Output = C>, answer: impl Future<Output = T>) -> T {
    let connection = async {
        connection.await;
        std::future::pending::<std::convert::Infallible>().await
    };
    tokio::select! {
        answer = answer => answer,
        never = connection => match never {},
    }
}

/// Reads at most [`BODY_READ`] bytes, and keeps the first ones.
async fn read(mut rest: Incoming, kept: usize, body: &mut Vec<u8>) -> hyper::Result<()> {
    let mut read = 0;
    while let Some(frame) = rest.frame().await {
        let frame = frame?;
        let data = frame.data_ref().map_or(&[][..], |data| data);
        body.extend_from_slice(&data[..data.len().min(kept.saturating_sub(body.len()))]);
        read += data.len();
        if read > BODY_READ {
            break;
        }
    }
    Ok(())
}

const CLOSED: &str = "the server closed the connection before its answer was complete";

/// Without the server's words: hyper's own description, or the errno's or TLS's text below it.
fn reason(error: &hyper::Error) -> String {
    let mut source: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = source {
        match error.downcast_ref::<io::Error>() {
            Some(error) if error.kind() == io::ErrorKind::UnexpectedEof => return CLOSED.to_owned(),
            Some(error) => return tls::explain(error),
            None => source = error.source(),
        }
    }
    if error.is_parse() {
        format!("the answer is not HTTP/1.1 ({error})")
    } else if error.is_incomplete_message() {
        CLOSED.to_owned()
    } else {
        error.to_string()
    }
}

/// A connection that notes when the request has been handed to the kernel. Hyper puts the head and a body of one piece
/// into its buffer before it flushes for the first time.
struct Watched {
    socket: Box<dyn Socket>,
    written: bool,
    progress: Arc<Progress>,
}

impl AsyncRead for Watched {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(cx, buf)
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.written = true;
        Pin::new(&mut self.socket).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.socket).poll_flush(cx))?;
        self.progress.sent.fetch_or(self.written, Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests;
