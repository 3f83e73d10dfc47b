//! One HTTP/1.1 request: over TCP, TLS or a unix socket, bounded in time and size, no redirect followed.
//!
//! What was sent as a credential is masked in the answer: some servers echo a request into their error pages.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::header::{self, HeaderValue};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::net::connect;
use crate::net::credentials::{self, FileError, Header, LiteralOrFile};
use crate::net::endpoint::{Endpoint, Route};
use crate::net::tls::{self, Identity, PemError, Trust};
use crate::os::mask::Mask;

/// How much of an answer's body is kept, in bytes.
pub const BODY_KEPT: usize = 64 * 1024;
/// How much of an answer's body is read, in bytes; then the connection is closed and the answer taken as it is.
pub const BODY_READ: usize = 1024 * 1024;
/// The longest status line and header section, in bytes.
const HEAD: usize = 64 * 1024;
/// The largest file of certificates, in bytes.
const CERTIFICATES: u64 = 1024 * 1024;

/// What is sent, and who is trusted. Never printed.
#[derive(Clone, Default)]
pub struct HttpConfig {
    pub method: Method,
    /// `--reload-body`.
    pub body: LiteralOrFile,
    /// `--reload-header`.
    pub headers: Vec<Header>,
    /// `--reload-auth-file`: `user:password`.
    pub auth_file: Option<PathBuf>,
    /// `--reload-token-file`.
    pub token_file: Option<PathBuf>,
    /// `--reload-ca-file`: PEM. Without it, the system's bundle (`SSL_CERT_FILE`, `/etc/ssl/certs`, …).
    pub ca_file: Option<PathBuf>,
    /// `--reload-cert-file`: PEM, the leaf first.
    pub cert_file: Option<PathBuf>,
    /// `--reload-key-file`: PEM.
    pub key_file: Option<PathBuf>,
    /// `--reload-insecure`: any certificate is trusted.
    pub insecure: bool,
}

impl fmt::Debug for HttpConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HttpConfig(…)")
    }
}

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
    #[error(
        "{endpoint}: there are no CA certificates in this image to check the server by: give them with --reload-ca-file"
    )]
    NoRoots { endpoint: String },
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
            Self::File(_) | Self::NoRoots { .. } => false,
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

/// The request, and what in it may be a credential.
fn prepare(endpoint: &Endpoint, config: &HttpConfig) -> Result<(Request<Full<Bytes>>, Vec<Bytes>), FileError> {
    let body = config.body.body()?;
    // A query or a body may hold one.
    let query = endpoint.target.query().unwrap_or_default();
    let values = query.split('&').map(|pair| pair.split_once('=').map_or(pair, |(_, value)| value));
    let mut credentials: Vec<_> = values.map(|value| Bytes::copy_from_slice(value.as_bytes())).collect();
    credentials.push(body.clone());
    let length = body.len();
    let mut request = Request::new(Full::new(body));
    *request.method_mut() = config.method.clone();
    *request.uri_mut() = endpoint.target.clone();
    let headers = request.headers_mut();
    for given in &config.headers {
        let (name, value) = given.read()?;
        credentials.push(Bytes::copy_from_slice(value.as_bytes()));
        headers.append(name, value);
    }
    let basic = config.auth_file.as_deref().map(credentials::basic).transpose()?;
    let bearer = config.token_file.as_deref().map(credentials::bearer).transpose()?;
    for (value, secrets) in [basic, bearer].into_iter().flatten() {
        credentials.extend(secrets);
        headers.insert(header::AUTHORIZATION, value);
    }
    let host = match &endpoint.route {
        Route::Tcp { authority, .. } => HeaderValue::from_str(authority).ok(),
        Route::Unix(_) => None,
    };
    headers.entry(header::HOST).or_insert(host.unwrap_or(HeaderValue::from_static("localhost")));
    let agent = HeaderValue::from_static(concat!("trimtab/", env!("CARGO_PKG_VERSION")));
    headers.entry(header::USER_AGENT).or_insert(agent);
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    // Some servers answer 411 to a POST without a length.
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    Ok((request, credentials))
}

async fn tls_config(endpoint: &Endpoint, config: &HttpConfig) -> Result<ClientConfig, HttpError> {
    let trust = if config.insecure { Trust::Anything } else { trust(endpoint, config).await? };
    let identity = identity(config)?;
    let (flag, path) = match (&config.key_file, &config.cert_file, &config.ca_file) {
        (Some(path), ..) => ("--reload-key-file", path),
        (None, Some(path), _) => ("--reload-cert-file", path),
        (None, None, Some(path)) => ("--reload-ca-file", path),
        // Nothing of ours is left to be wrong.
        (None, None, None) => return tls::client(trust, None).map_err(|_| no_roots(endpoint)),
    };
    let reason = if identity.is_some() {
        "its key does not belong to the certificate, or is of a kind not supported"
    } else {
        "its certificates cannot be used"
    };
    Ok(tls::client(trust, identity).map_err(|_| FileError::new(flag, path, reason))?)
}

async fn trust(endpoint: &Endpoint, config: &HttpConfig) -> Result<Trust, HttpError> {
    if let Some(path) = &config.ca_file {
        return Ok(Trust::Given(pem("--reload-ca-file", path, tls::certificates)?));
    }
    // It fails only when the runtime ends.
    let roots = tokio::task::spawn_blocking(tls::system_roots).await.unwrap_or_else(|_| RootCertStore::empty());
    if roots.is_empty() { Err(no_roots(endpoint)) } else { Ok(Trust::System(roots)) }
}

fn no_roots(endpoint: &Endpoint) -> HttpError {
    HttpError::NoRoots { endpoint: endpoint.to_string() }
}

fn identity(config: &HttpConfig) -> Result<Option<Identity>, FileError> {
    let Some(path) = &config.cert_file else {
        let alone =
            |path: &PathBuf| Err(FileError::new("--reload-key-file", path, "it needs --reload-cert-file beside it"));
        return config.key_file.as_ref().map_or(Ok(None), alone);
    };
    let chain = pem("--reload-cert-file", path, tls::certificates)?;
    // Many a file holds both.
    let (flag, key) = config.key_file.as_ref().map_or(("--reload-cert-file", path), |key| ("--reload-key-file", key));
    Ok(Some((chain, pem(flag, key, tls::private_key)?)))
}

fn pem<T>(flag: &'static str, path: &Path, parse: impl Fn(&[u8]) -> Result<T, PemError>) -> Result<T, FileError> {
    parse(&credentials::read(flag, path, CERTIFICATES)?).map_err(|error| FileError::new(flag, path, error.to_string()))
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
            let tls = if tls { Some(tls_config(self.endpoint, config).await?) } else { None };
            let stream = connect::tcp(host, port, self.timeout).await.map_err(|error| fail(error.to_string()))?;
            self.progress.accepted.store(true, Ordering::Relaxed);
            let Some(tls) = tls else { return Ok(Box::new(stream) as _) };
            let name = ServerName::try_from(host.clone());
            let name = name.map_err(|_| fail("TLS needs a DNS name or an address".to_owned()))?;
            let checked = "the server is checked by --reload-ca-file, or by the CAs in this image without it";
            let stream = TlsConnector::from(Arc::new(tls)).connect(name, stream).await;
            let stream = stream.map_err(|error| fail(format!("{}; {checked}", tls::explain(&error))))?;
            Ok(Box::new(stream) as _)
        };
        self.in_time(open).await
    }

    async fn exchange(
        &self,
        socket: Box<dyn Socket>,
        request: Request<Full<Bytes>>,
        kept: usize,
    ) -> Result<Response, HttpError> {
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
        // This moves the bytes; what goes wrong with it, `answer` hears as well.
        let connection = async {
            let _ = connection.await;
            std::future::pending::<std::convert::Infallible>().await
        };
        tokio::select! {
            answer = answer => answer,
            never = connection => match never {},
        }
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
