//! One HTTP/1.1 request: over TCP, TLS or a unix socket, bounded in time and size, no redirect followed.
//!
//! Credentials and certificates are read anew for each request, so that a rotated Secret counts at once. What was sent
//! as a credential is masked in the answer: some servers echo a request into their error pages.

use std::fmt;
use std::io;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::header::{self, HeaderName, HeaderValue as Value};
use hyper::{Method, Request, Uri};
use hyper_util::rt::TokioIo;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::net::{connect, tls};
use crate::os::mask::Mask;
use crate::reload::process::read_regular;

/// How much of an answer's body is kept, in bytes.
pub const BODY_KEPT: usize = 64 * 1024;
/// How much of an answer's body is read, in bytes; then the connection is closed and the answer taken as it is.
pub const BODY_READ: usize = 1024 * 1024;
/// The longest status line and header section, in bytes.
const HEAD: usize = 64 * 1024;
/// The largest credential or header value in a file, in bytes.
const CREDENTIAL: u64 = 16 * 1024;
/// The largest file of certificates, in bytes.
const CERTIFICATES: u64 = 1024 * 1024;

/// Where a request goes. Prints without the query, which may hold a token.
#[derive(Clone, PartialEq, Eq)]
pub struct Endpoint {
    route: Route,
    /// Path and query as they stand in the request line.
    target: Uri,
}

#[derive(Clone, PartialEq, Eq)]
enum Route {
    /// `host` without the brackets of an IPv6 address.
    Tcp {
        tls: bool,
        host: String,
        port: u16,
        authority: String,
    },
    Unix(PathBuf),
}

/// Why a text is no [`Endpoint`]. Fatal: it comes from the command line. The text is not repeated, as it may hold a
/// password.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseEndpointError {
    /// `user:password@`.
    #[error("a URL must not hold credentials, as command lines are readable: use --reload-auth-file")]
    Credentials,
    /// Another scheme, or none.
    #[error("a URL starts with http://, https:// or unix:///")]
    Scheme,
    /// No host, or a bad port.
    #[error("the URL's host or port is missing or malformed")]
    Authority,
    /// Not `unix:///path.sock:/uri`.
    #[error("a unix socket's URL is of the form unix:///path/to.sock:/uri")]
    Unix,
    /// Anything else.
    #[error("not a URL; characters beyond ASCII and spaces must be percent-encoded")]
    Malformed,
}

impl FromStr for Endpoint {
    type Err = ParseEndpointError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(rest) = text.strip_prefix("unix://") {
            let (path, target) = rest.split_once(":/").map_or((rest, ""), |(path, uri)| (path, uri));
            if !path.starts_with('/') || path.len() < 2 || path.contains('\0') {
                return Err(ParseEndpointError::Unix);
            }
            let target = format!("/{target}").parse().map_err(|_| ParseEndpointError::Malformed)?;
            return Ok(Self { route: Route::Unix(path.into()), target });
        }
        let (scheme, rest) = text.split_once("://").ok_or(ParseEndpointError::Scheme)?;
        let tls = match scheme.to_ascii_lowercase().as_str() {
            "http" => false,
            "https" => true,
            _ => return Err(ParseEndpointError::Scheme),
        };
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        if rest[..end].contains('@') {
            return Err(ParseEndpointError::Credentials);
        }
        let uri: Uri = text.parse().map_err(|_| ParseEndpointError::Malformed)?;
        let authority = uri.authority().ok_or(ParseEndpointError::Authority)?;
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        let port = match authority.as_str().strip_prefix(authority.host()) {
            Some("") => Some(if tls { 443 } else { 80 }),
            Some(_) => authority.port_u16().filter(|&port| port > 0),
            None => None,
        };
        let port = port.filter(|_| !host.is_empty()).ok_or(ParseEndpointError::Authority)?;
        let target = uri.path_and_query().map_or("/", |target| target.as_str());
        // "http://host?query": a request line's path is never empty.
        let target = if target.starts_with('/') { target.to_owned() } else { format!("/{target}") };
        let target = target.parse().map_err(|_| ParseEndpointError::Malformed)?;
        let route = Route::Tcp { tls, host: host.to_owned(), port, authority: authority.as_str().to_owned() };
        Ok(Self { route, target })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.route {
            Route::Tcp { tls, authority, .. } => write!(f, "http{}://{authority}", if *tls { "s" } else { "" })?,
            Route::Unix(path) => write!(f, "unix://{}:", path.display())?,
        }
        f.write_str(self.target.path())?;
        if self.target.query().is_some() { f.write_str("?…") } else { Ok(()) }
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A header of the request: `K: V`, or `K: @FILE`. `Debug` never shows a value.
#[derive(Clone, Debug)]
pub struct Header {
    name: HeaderName,
    value: HeaderValue,
}

/// Where a header's value comes from.
#[derive(Clone, Debug)]
enum HeaderValue {
    /// From the flag; marked sensitive, so that it is not shown.
    Literal(Value),
    /// Read on each call; line ends at its end are not part of it.
    File(PathBuf),
}

/// Why a text is no [`Header`]. Fatal: it comes from the command line. The value is not repeated.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseHeaderError {
    /// No colon.
    #[error("a header is 'Name: value' or 'Name: @FILE'")]
    NoColon,
    /// The name has characters that it cannot have.
    #[error("the header's name is empty or has characters that a name cannot have")]
    Name,
    /// The value has characters that it cannot have.
    #[error("the value of {0} has characters that a header cannot carry")]
    Value(HeaderName),
    /// A credential in the open.
    #[error("{0} must come from a file ('{0}: @FILE'), as command lines are readable in a shared process namespace")]
    Credential(HeaderName),
    /// It frames the message.
    #[error("{0} is set by Trimtab itself")]
    Framing(HeaderName),
}

impl Header {
    /// Its name, in lower case.
    #[must_use]
    pub fn name(&self) -> &str {
        self.name.as_str()
    }
}

impl FromStr for Header {
    type Err = ParseHeaderError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, value) = text.split_once(':').ok_or(ParseHeaderError::NoColon)?;
        let name: HeaderName = name.trim().parse().map_err(|_| ParseHeaderError::Name)?;
        if [header::CONTENT_LENGTH, header::TRANSFER_ENCODING, header::CONNECTION, header::UPGRADE, header::TE]
            .contains(&name)
        {
            return Err(ParseHeaderError::Framing(name));
        }
        let value = value.trim();
        if let Some(path) = value.strip_prefix('@') {
            return Ok(Self { name, value: HeaderValue::File(path.into()) });
        }
        if [header::AUTHORIZATION, header::COOKIE, header::PROXY_AUTHORIZATION].contains(&name) {
            return Err(ParseHeaderError::Credential(name));
        }
        let mut value = Value::from_str(value).map_err(|_| ParseHeaderError::Value(name.clone()))?;
        value.set_sensitive(true);
        Ok(Self { name, value: HeaderValue::Literal(value) })
    }
}

/// What is sent, and who is believed. Never printed.
#[derive(Clone, Default)]
pub struct HttpConfig {
    /// `--reload-method`.
    pub method: Method,
    /// `--reload-body`.
    pub body: Bytes,
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
    /// `--reload-insecure`: any certificate is believed.
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
    /// The status code.
    pub status: u16,
    /// The start of the body: its first 64 KiB with credentials that were sent masked, if by [`request`].
    pub body: Vec<u8>,
}

impl fmt::Debug for Response {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} bytes)", self.status, self.body.len())
    }
}

/// Why there is no answer. Every variant is retried.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// A file that a flag names cannot be used. Nothing was sent.
    #[error("{flag} {}: {reason}", path.display())]
    File {
        /// The flag.
        flag: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// There is nobody to believe. Nothing was sent.
    #[error(
        "{endpoint}: there are no CA certificates in this image to check the server by: give them with --reload-ca-file"
    )]
    NoRoots {
        /// Where to.
        endpoint: String,
    },
    /// No connection, or no handshake. Nothing was sent.
    #[error("{endpoint}: no connection: {reason}")]
    Connect {
        /// Where to.
        endpoint: String,
        /// The errno's text, or what TLS says.
        reason: String,
        /// Whether there was a connection, and the handshake failed.
        accepted: bool,
    },
    /// The connection broke, or what came is not HTTP.
    #[error("{endpoint}: {reason}{}", if *sent { " after the request was sent" } else { "" })]
    Broken {
        /// Where to.
        endpoint: String,
        /// Why.
        reason: String,
        /// Whether the request had been written completely.
        sent: bool,
    },
    /// The time is up.
    #[error("{endpoint}: {} within {timeout:?}", if *sent { "no complete answer" } else { "no connection" })]
    Timeout {
        /// Where to.
        endpoint: String,
        /// How long it was.
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
            Self::File { .. } | Self::NoRoots { .. } => false,
            Self::Broken { .. } => true,
            Self::Connect { accepted, .. } | Self::Timeout { accepted, .. } => *accepted,
        }
    }
}

/// How far a request came; kept outside of it, as it may be dropped.
#[derive(Default)]
struct Progress {
    /// There is a connection.
    accepted: AtomicBool,
    /// The request has been written completely.
    sent: AtomicBool,
}

/// Sends one request over a connection of its own. `timeout`: from the connect to the last byte of the answer.
/// Dropped, it closes the connection.
pub async fn request(endpoint: &Endpoint, config: &HttpConfig, timeout: Duration) -> Result<Response, HttpError> {
    let (mut response, mask) = request_unmasked(endpoint, config, BODY_KEPT, timeout).await?;
    response.body = mask.redact(&response.body);
    Ok(response)
}

/// As [`request`], for an answer that is to be looked into: the first `kept` bytes of its body (at most [`BODY_READ`])
/// as they came, and what masks the credentials that were sent, the values of the URL's query among them.
pub async fn request_unmasked(
    endpoint: &Endpoint,
    config: &HttpConfig,
    kept: usize,
    timeout: Duration,
) -> Result<(Response, Mask), HttpError> {
    let progress = Arc::new(Progress::default());
    let answer = async {
        let (request, credentials) = prepare(endpoint, config)?;
        let socket = connect(endpoint, config, timeout, &progress).await?;
        let response = exchange(endpoint, socket, request, kept, &progress).await?;
        Ok((response, Mask::new(credentials)))
    };
    tokio::time::timeout(timeout, answer).await.unwrap_or_else(|_| {
        let [accepted, sent] = [&progress.accepted, &progress.sent].map(|flag| flag.load(Ordering::Relaxed));
        Err(HttpError::Timeout { endpoint: endpoint.to_string(), timeout, accepted, sent })
    })
}

/// What fuzzing reaches: [`request`] over a connection whose other end is at hand.
#[cfg(fuzzing)]
pub async fn request_over(
    endpoint: &Endpoint,
    config: &HttpConfig,
    socket: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
) -> Result<Response, HttpError> {
    let (request, credentials) = prepare(endpoint, config)?;
    let mut response = exchange(endpoint, Box::new(socket), request, BODY_KEPT, &Arc::default()).await?;
    response.body = Mask::new(credentials).redact(&response.body);
    Ok(response)
}

/// Connects as [`request`] does, TLS handshake and files included, and closes the connection without a request.
pub async fn reach(endpoint: &Endpoint, config: &HttpConfig, timeout: Duration) -> Result<(), HttpError> {
    let connected = async {
        prepare(endpoint, config)?;
        connect(endpoint, config, timeout, &Progress::default()).await.map(drop)
    };
    let silent = |_| Err(HttpError::Timeout { endpoint: endpoint.to_string(), timeout, sent: false, accepted: false });
    tokio::time::timeout(timeout, connected).await.unwrap_or_else(silent)
}

/// The request, and what in it may be a credential.
fn prepare(endpoint: &Endpoint, config: &HttpConfig) -> Result<(Request<Full<Bytes>>, Vec<Bytes>), HttpError> {
    let mut request = Request::new(Full::new(config.body.clone()));
    *request.method_mut() = config.method.clone();
    *request.uri_mut() = endpoint.target.clone();
    let headers = request.headers_mut();
    // A query or a body may hold one.
    let query = endpoint.target.query().unwrap_or_default();
    let values = query.split('&').map(|pair| pair.split_once('=').map_or(pair, |(_, value)| value));
    let mut credentials: Vec<_> = values.map(|value| Bytes::copy_from_slice(value.as_bytes())).collect();
    credentials.push(config.body.clone());
    for Header { name, value } in &config.headers {
        let value = match value {
            HeaderValue::Literal(value) => {
                credentials.push(Bytes::copy_from_slice(value.as_bytes()));
                value.clone()
            }
            HeaderValue::File(path) => {
                let flag = "--reload-header";
                let bytes = read(flag, path, CREDENTIAL)?;
                let bytes = bytes.trim_ascii_end();
                credentials.push(Bytes::copy_from_slice(bytes));
                sensitive(flag, path, bytes)?
            }
        };
        headers.append(name, value);
    }
    if let Some(path) = &config.auth_file {
        let flag = "--reload-auth-file";
        let bytes = read(flag, path, CREDENTIAL)?;
        let pair = bytes.trim_ascii_end();
        let colon = pair.iter().position(|&byte| byte == b':').filter(|_| !pair.iter().any(u8::is_ascii_control));
        let colon = colon.ok_or_else(|| unusable(flag, path, "it does not hold user:password on one line"))?;
        credentials.extend([Bytes::copy_from_slice(pair), Bytes::copy_from_slice(&pair[colon + 1..])]);
        let value = format!("Basic {}", STANDARD.encode(pair));
        headers.insert(header::AUTHORIZATION, sensitive(flag, path, value.as_bytes())?);
    }
    if let Some(path) = &config.token_file {
        let flag = "--reload-token-file";
        let bytes = read(flag, path, CREDENTIAL)?;
        let token = bytes.trim_ascii();
        if token.is_empty() || !token.iter().all(u8::is_ascii_graphic) {
            return Err(unusable(flag, path, "it does not hold one token on one line"));
        }
        credentials.push(Bytes::copy_from_slice(token));
        headers.insert(header::AUTHORIZATION, sensitive(flag, path, &[b"Bearer ", token].concat())?);
    }
    let host = match &endpoint.route {
        Route::Tcp { authority, .. } => Value::from_str(authority).ok(),
        Route::Unix(_) => None,
    };
    headers.entry(header::HOST).or_insert(host.unwrap_or(Value::from_static("localhost")));
    headers.entry(header::USER_AGENT).or_insert(Value::from_static(concat!("trimtab/", env!("CARGO_PKG_VERSION"))));
    headers.insert(header::CONNECTION, Value::from_static("close"));
    // Some servers answer 411 to a POST without a length.
    headers.insert(header::CONTENT_LENGTH, Value::from(config.body.len()));
    Ok((request, credentials))
}

fn sensitive(flag: &'static str, path: &Path, bytes: &[u8]) -> Result<Value, HttpError> {
    let value = Value::from_bytes(bytes);
    let mut value = value.map_err(|_| unusable(flag, path, "it holds characters that a header cannot carry"))?;
    value.set_sensitive(true);
    Ok(value)
}

fn unusable(flag: &'static str, path: &Path, reason: impl Into<String>) -> HttpError {
    HttpError::File { flag, path: path.to_owned(), reason: reason.into() }
}

fn read(flag: &'static str, path: &Path, limit: u64) -> Result<Vec<u8>, HttpError> {
    read_regular(path, limit).map(|(bytes, _)| bytes).map_err(|error| unusable(flag, path, error.to_string()))
}

async fn tls_config(endpoint: &Endpoint, config: &HttpConfig) -> Result<ClientConfig, HttpError> {
    let roots = if config.insecure { None } else { Some(roots(endpoint, config).await?) };
    let Some(path) = &config.cert_file else {
        if let Some(path) = &config.key_file {
            return Err(unusable("--reload-key-file", path, "it needs --reload-cert-file beside it"));
        }
        return tls::client(roots, None).map_err(|error| HttpError::Connect {
            endpoint: endpoint.to_string(),
            reason: error.to_string(),
            accepted: false,
        });
    };
    let chain = certificates("--reload-cert-file", path)?;
    // Many a file holds both.
    let (flag, key) = config.key_file.as_ref().map_or(("--reload-cert-file", path), |key| ("--reload-key-file", key));
    let pem = read(flag, key, CERTIFICATES)?;
    let pem = PrivateKeyDer::from_pem_slice(&pem);
    let pem = pem.map_err(|_| unusable(flag, key, "it holds no unencrypted private key in PEM"))?;
    tls::client(roots, Some((chain, pem))).map_err(|_| {
        let path = path.display();
        unusable(
            flag,
            key,
            format!("its key does not belong to the certificate in {path}, or is of a kind not supported"),
        )
    })
}

async fn roots(endpoint: &Endpoint, config: &HttpConfig) -> Result<RootCertStore, HttpError> {
    let roots = if let Some(path) = &config.ca_file {
        let flag = "--reload-ca-file";
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(certificates(flag, path)?);
        if roots.is_empty() {
            return Err(unusable(flag, path, "its certificates cannot be used"));
        }
        roots
    } else {
        // It fails only when the runtime ends.
        tokio::task::spawn_blocking(tls::system_roots).await.unwrap_or_else(|_| RootCertStore::empty())
    };
    if roots.is_empty() {
        return Err(HttpError::NoRoots { endpoint: endpoint.to_string() });
    }
    Ok(roots)
}

fn certificates(flag: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, HttpError> {
    let pem = read(flag, path, CERTIFICATES)?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    // The error's text may quote the file.
    let certificates = certificates.map_err(|_| unusable(flag, path, "it is not PEM"))?;
    if certificates.is_empty() { Err(unusable(flag, path, "it holds no certificate in PEM")) } else { Ok(certificates) }
}

/// A connection of any kind.
trait Socket: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Socket for S {}

async fn connect(
    endpoint: &Endpoint,
    config: &HttpConfig,
    timeout: Duration,
    progress: &Progress,
) -> Result<Box<dyn Socket>, HttpError> {
    let fail = |reason: String| {
        let accepted = progress.accepted.load(Ordering::Relaxed);
        HttpError::Connect { endpoint: endpoint.to_string(), reason, accepted }
    };
    let (secure, host, port) = match &endpoint.route {
        Route::Unix(path) => {
            let stream = UnixStream::connect(path).await.map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => fail(format!(
                    "{error}; the server may be starting, or the socket's directory is not a volume that both containers \
                     mount, at this path here"
                )),
                io::ErrorKind::PermissionDenied => {
                    let user = rustix::process::geteuid().as_raw();
                    fail(format!("{error}; user {user} needs to write the socket and to search its directory"))
                }
                _ => fail(error.to_string()),
            })?;
            progress.accepted.store(true, Ordering::Relaxed);
            return Ok(Box::new(stream));
        }
        Route::Tcp { tls, host, port, .. } => (*tls, host.as_str(), *port),
    };
    let connector = if secure { Some(TlsConnector::from(Arc::new(tls_config(endpoint, config).await?))) } else { None };
    let stream = connect::tcp(host, port, timeout).await.map_err(|error| fail(error.to_string()))?;
    progress.accepted.store(true, Ordering::Relaxed);
    let Some(connector) = connector else { return Ok(Box::new(stream)) };
    let name = ServerName::try_from(host.to_owned()).map_err(|_| fail("TLS needs a DNS name or an address".into()))?;
    let checked = "the server is checked by --reload-ca-file, or by the CAs in this image without it";
    let stream = connector.connect(name, stream).await.map_err(|error| fail(format!("{error}; {checked}")))?;
    Ok(Box::new(stream))
}

async fn exchange(
    endpoint: &Endpoint,
    socket: Box<dyn Socket>,
    request: Request<Full<Bytes>>,
    kept: usize,
    progress: &Arc<Progress>,
) -> Result<Response, HttpError> {
    let broken = |error: hyper::Error| HttpError::Broken {
        endpoint: endpoint.to_string(),
        reason: reason(&error),
        sent: progress.sent.load(Ordering::Relaxed),
    };
    let watched = TokioIo::new(Watched { socket, written: false, progress: progress.clone() });
    let builder = hyper::client::conn::http1::Builder::new().max_buf_size(HEAD).handshake(watched).await;
    let (mut sender, connection) = builder.map_err(broken)?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(broken)?;
        let status = response.status().as_u16();
        let mut body = Vec::new();
        let mut read = 0;
        let mut rest = response.into_body();
        while let Some(frame) = rest.frame().await {
            let frame = frame.map_err(broken)?;
            let data = frame.data_ref().map_or(&[][..], |data| data);
            body.extend_from_slice(&data[..data.len().min(kept.saturating_sub(body.len()))]);
            read += data.len();
            if read > BODY_READ {
                break;
            }
        }
        Ok(Response { status, body })
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

/// Without the server's words: hyper's own description, or the errno's or TLS's text below it.
fn reason(error: &hyper::Error) -> String {
    let mut source: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = source {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return error.to_string();
        }
        source = error.source();
    }
    if error.is_parse() {
        format!("the answer is not HTTP/1.1 ({error})")
    } else if error.is_incomplete_message() {
        "the server closed the connection before its answer was complete".to_owned()
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

/// Which status codes are meant: `2xx`, `200,204`, `200-299`, `2xx,304`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatusCodes(Vec<RangeInclusive<u16>>);

/// Why a text is no [`StatusCodes`]. Fatal: it comes from the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("status codes are given as 2xx, 200, 200-299, or several of these with commas between, from 100 to 599")]
pub struct ParseStatusCodesError;

impl StatusCodes {
    /// Whether `status` is among them.
    #[must_use]
    pub fn contains(&self, status: u16) -> bool {
        self.0.iter().any(|range| range.contains(&status))
    }
}

impl FromStr for StatusCodes {
    type Err = ParseStatusCodesError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let code = |text: &str| match text.trim().parse::<u16>() {
            Ok(code @ 100..=599) => Ok(code),
            _ => Err(ParseStatusCodesError),
        };
        let range = |part: &str| {
            let lower = part.trim().to_ascii_lowercase();
            let (first, last) = match (lower.strip_suffix("xx"), lower.split_once('-')) {
                (Some(hundreds), _) => (code(&format!("{hundreds}00"))?, code(&format!("{hundreds}99"))?),
                (None, Some((first, last))) => (code(first)?, code(last)?),
                (None, None) => (code(&lower)?, code(&lower)?),
            };
            if first <= last { Ok(first..=last) } else { Err(ParseStatusCodesError) }
        };
        text.split(',').map(range).collect::<Result<_, _>>().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write as _;
    use std::net::{TcpListener, TcpStream as Peer};
    use std::os::unix::net::{UnixListener, UnixStream as UnixPeer};
    use std::sync::mpsc::{Receiver, channel};
    use std::time::Instant;

    use proptest::prelude::*;
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
    use tempfile::TempDir;
    use tokio_rustls::TlsAcceptor;
    use tokio_rustls::rustls::ServerConfig;
    use tokio_rustls::rustls::server::WebPkiClientVerifier;

    use super::*;

    const LONG: Duration = Duration::from_secs(10);
    const SHORT: Duration = Duration::from_millis(300);
    const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";

    /// Head and body of a request with a Content-Length.
    fn read_request(peer: &mut impl io::Read) -> String {
        let mut bytes = Vec::new();
        let mut byte = [0];
        while !bytes.ends_with(b"\r\n\r\n") {
            if peer.read(&mut byte).unwrap() == 0 {
                break;
            }
            bytes.push(byte[0]);
        }
        let head = String::from_utf8(bytes).unwrap();
        let length =
            head.lines().find_map(|line| line.strip_prefix("content-length: ")).map_or(0, |n| n.parse().unwrap());
        let mut body = vec![0; length];
        peer.read_exact(&mut body).unwrap();
        head + &String::from_utf8(body).unwrap()
    }

    /// A server for one connection: reads a request, hands it to the test, lets `answer` do the rest.
    fn serve(answer: impl FnOnce(Peer) + Send + 'static) -> (Endpoint, Receiver<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}/-/reload?token=canary", listener.local_addr().unwrap());
        let (send, requests) = channel();
        std::thread::spawn(move || {
            let (mut peer, _) = listener.accept().unwrap();
            send.send(read_request(&mut peer)).unwrap();
            answer(peer);
        });
        (endpoint.parse().unwrap(), requests)
    }

    fn post() -> HttpConfig {
        HttpConfig { method: Method::POST, ..HttpConfig::default() }
    }

    /// Stays until the client has gone.
    fn hang(mut peer: impl io::Read) {
        let _ = io::copy(&mut peer, &mut io::sink());
    }

    #[test]
    fn endpoints_are_read_and_printed_without_the_query() {
        for (text, shown) in [
            ("http://localhost", "http://localhost/"),
            ("http://localhost:9090/-/reload", "http://localhost:9090/-/reload"),
            ("HTTPS://[::1]:8443/x?token=canary#part", "https://[::1]:8443/x?…"),
            ("http://host?token=canary", "http://host/?…"),
            ("unix:///run/a.sock:/reload?x=canary", "unix:///run/a.sock:/reload?…"),
            ("unix:///run/a.sock", "unix:///run/a.sock:/"),
        ] {
            let endpoint: Endpoint = text.parse().unwrap();
            assert_eq!(endpoint.to_string(), shown);
            assert!(!format!("{endpoint:?}").contains("canary"));
        }
        let Route::Tcp { tls, host, port, .. } = "https://[::1]/".parse::<Endpoint>().unwrap().route else { panic!() };
        assert_eq!((tls, host.as_str(), port), (true, "::1", 443));
        for (text, error) in [
            ("http://user:canary@host/", ParseEndpointError::Credentials),
            ("https://canary@host", ParseEndpointError::Credentials),
            ("localhost:9090/-/reload", ParseEndpointError::Scheme),
            ("ftp://host/", ParseEndpointError::Scheme),
            ("unix://run/a.sock:/x", ParseEndpointError::Unix),
            ("unix:///", ParseEndpointError::Unix),
            ("http://host:0/", ParseEndpointError::Authority),
            ("http://host:99999/", ParseEndpointError::Authority),
            ("http://host/a b", ParseEndpointError::Malformed),
            ("http:///path", ParseEndpointError::Malformed),
        ] {
            assert_eq!(text.parse::<Endpoint>(), Err(error), "{text}");
        }
        assert!(ParseEndpointError::Credentials.to_string().contains("--reload-auth-file"));
    }

    #[test]
    fn headers_with_credentials_come_from_files_only() {
        for name in ["Authorization", "cookie", "PROXY-AUTHORIZATION"] {
            let error = format!("{name}: canary").parse::<Header>().unwrap_err();
            assert!(matches!(error, ParseHeaderError::Credential(_)));
            assert!(error.to_string().contains(": @FILE") && !error.to_string().contains("canary"), "{error}");
            assert!(format!("{name}: @/etc/token").parse::<Header>().is_ok());
        }
        assert_eq!("canary".parse::<Header>().unwrap_err(), ParseHeaderError::NoColon);
        for bad in ["a b: canary", ": canary", "X-A: can\nary", "Content-Length: 5", "Transfer-Encoding: chunked"] {
            let error = bad.parse::<Header>().unwrap_err();
            assert!(!format!("{error} {error:?}").contains("canary"), "{error:?}");
        }
        assert!(!format!("{:?}", "X-Key: canary".parse::<Header>()).contains("canary"));
    }

    #[test]
    fn status_codes_are_read_as_classes_codes_and_ranges() {
        let accepted = |text: &str| {
            let codes: StatusCodes = text.parse().unwrap();
            (100..=599).filter(move |&code| codes.contains(code))
        };
        assert!(accepted("2xx").eq(200..=299));
        assert!(accepted("2XX, 304").eq((200..=299).chain([304])));
        assert!(accepted("200,204").eq([200, 204]));
        assert!(accepted("200-204").eq(200..=204));
        for bad in
            ["", ",", "2xx,", "xx", "2x", "6xx", "0xx", "99", "600", "204-200", "200-", "-200", "200 204", "22xx"]
        {
            assert_eq!(bad.parse::<StatusCodes>(), Err(ParseStatusCodesError), "{bad:?}");
        }
    }

    #[tokio::test]
    async fn a_request_carries_method_body_headers_and_credentials() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = dir.path().join(name);
            fs::write(&path, text).unwrap();
            path
        };
        let key = file("key", "key-canary\n");
        let config = HttpConfig {
            method: Method::PUT,
            body: Bytes::from_static(b"all of it"),
            headers: vec!["X-A: one".parse().unwrap(), format!("X-Key: @{}", key.display()).parse().unwrap()],
            auth_file: Some(file("auth", "user:pass-canary\n")),
            ..HttpConfig::default()
        };
        let (endpoint, requests) = serve(|mut peer| peer.write_all(OK).unwrap());
        let response = request(&endpoint, &config, LONG).await.unwrap();
        assert_eq!(response, Response { status: 200, body: b"hello".to_vec() });
        let request_text = requests.recv().unwrap();
        assert!(request_text.starts_with("PUT /-/reload?token=canary HTTP/1.1\r\n"), "{request_text}");
        for line in
            ["x-a: one", "x-key: key-canary", "authorization: Basic dXNlcjpwYXNzLWNhbmFyeQ==", "connection: close"]
        {
            assert!(request_text.contains(&format!("\r\n{line}\r\n")), "{line}: {request_text}");
        }
        assert!(request_text.ends_with("all of it"));
        // The file is read on each call.
        file("key", "rotated\n");
        let token = HttpConfig { auth_file: None, token_file: Some(file("token", " tok-canary\n")), ..config };
        let (endpoint, requests) = serve(|mut peer| peer.write_all(OK).unwrap());
        request(&endpoint, &token, LONG).await.unwrap();
        let request_text = requests.recv().unwrap();
        assert!(request_text.contains("\r\nx-key: rotated\r\n"), "{request_text}");
        assert!(request_text.contains("\r\nauthorization: Bearer tok-canary\r\n"), "{request_text}");
    }

    #[tokio::test]
    async fn credentials_that_a_server_echoes_are_masked() {
        let dir = tempfile::tempdir().unwrap();
        let auth = dir.path().join("auth");
        fs::write(&auth, "user:pass-canary\n").unwrap();
        let config = HttpConfig { auth_file: Some(auth), ..post() };
        let (endpoint, _requests) = serve(|mut peer| {
            let body = "you sent Basic dXNlcjpwYXNzLWNhbmFyeQ== that is pass-canary";
            write!(peer, "HTTP/1.1 500 No\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
        });
        let response = request(&endpoint, &config, LONG).await.unwrap();
        assert_eq!(String::from_utf8(response.body).unwrap(), "you sent Basic ***== that is ***");
    }

    #[tokio::test]
    async fn a_post_without_a_body_has_a_length_and_errors_are_answers() {
        for status in [200, 302, 429, 500, 503] {
            let (endpoint, requests) = serve(move |mut peer| {
                write!(peer, "HTTP/1.1 {status} X\r\nLocation: http://elsewhere/\r\nContent-Length: 0\r\n\r\n")
                    .unwrap();
            });
            assert_eq!(request(&endpoint, &post(), LONG).await.unwrap().status, status);
            assert!(requests.recv().unwrap().contains("\r\ncontent-length: 0\r\n"));
        }
    }

    #[tokio::test]
    async fn a_missing_file_is_named_with_its_flag_and_nothing_is_sent() {
        let dir = tempfile::tempdir().unwrap();
        let endpoint: Endpoint = "http://127.0.0.1:1/".parse().unwrap();
        let missing = Some(dir.path().join("missing"));
        let header = format!("X: @{}", dir.path().join("missing").display()).parse().unwrap();
        for (flag, config) in [
            ("--reload-header", HttpConfig { headers: vec![header], ..post() }),
            ("--reload-auth-file", HttpConfig { auth_file: missing.clone(), ..post() }),
            ("--reload-token-file", HttpConfig { token_file: missing.clone(), ..post() }),
        ] {
            let error = request(&endpoint, &config, LONG).await.unwrap_err();
            assert!(matches!(error, HttpError::File { .. }) && !error.sent());
            let error = error.to_string();
            assert!(error.contains(flag) && error.contains("/missing: No such file"), "{error}");
        }
        for content in ["no-colon-canary", "user:can\u{1}ary", ""] {
            let auth = dir.path().join("auth");
            fs::write(&auth, content).unwrap();
            let config = HttpConfig { auth_file: Some(auth), ..post() };
            let error = request(&endpoint, &config, LONG).await.unwrap_err();
            assert!(error.to_string().contains("user:password"), "{error}");
            assert!(!format!("{error} {error:?}").contains("canary"));
        }
    }

    #[tokio::test]
    async fn it_is_known_whether_the_request_was_sent() {
        // Nobody listens.
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint: Endpoint = format!("http://{}/", listener.local_addr().unwrap()).parse().unwrap();
        drop(listener);
        let error = request(&endpoint, &post(), LONG).await.unwrap_err();
        assert!(matches!(error, HttpError::Connect { .. }) && !error.sent(), "{error}");
        assert!(error.to_string().contains("Connection refused"), "{error}");
        // No answer.
        let (endpoint, requests) = serve(hang);
        let error = request(&endpoint, &post(), SHORT).await.unwrap_err();
        assert!(matches!(error, HttpError::Timeout { .. }) && error.sent(), "{error}");
        assert!(!error.to_string().contains("canary"), "{error}");
        requests.recv().unwrap();
        // Half an answer.
        let (endpoint, _requests) = serve(|mut peer| {
            peer.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhalf").unwrap();
            hang(peer);
        });
        let start = Instant::now();
        let error = request(&endpoint, &post(), SHORT).await.unwrap_err();
        assert!(matches!(error, HttpError::Timeout { .. }) && error.sent() && start.elapsed() < LONG, "{error}");
        // Closed, and reset, instead of an answer.
        let (endpoint, _requests) = serve(drop);
        let error = request(&endpoint, &post(), LONG).await.unwrap_err();
        assert!(matches!(error, HttpError::Broken { .. }) && error.sent(), "{error}");
        let (endpoint, _requests) = serve(|peer| {
            rustix::net::sockopt::set_socket_linger(&peer, Some(Duration::ZERO)).unwrap();
        });
        let error = request(&endpoint, &post(), LONG).await.unwrap_err();
        assert!(matches!(error, HttpError::Broken { .. }) && error.sent(), "{error}");
        // A request that the server does not read to its end.
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint: Endpoint = format!("http://{}/", listener.local_addr().unwrap()).parse().unwrap();
        let large = HttpConfig { body: vec![b'x'; 32 << 20].into(), ..post() };
        let error = request(&endpoint, &large, SHORT).await.unwrap_err();
        assert!(matches!(error, HttpError::Timeout { .. }) && !error.sent(), "{error}");
        // Not HTTP.
        let (endpoint, _requests) = serve(|mut peer| peer.write_all(b"canary\r\n\r\n").unwrap());
        let error = request(&endpoint, &post(), LONG).await.unwrap_err();
        assert!(error.to_string().contains("not HTTP"), "{error}");
        assert!(!format!("{error} {error:?}").contains("canary"), "{error:?}");
    }

    #[tokio::test]
    async fn large_answers_are_bounded() {
        let (endpoint, _requests) = serve(|mut peer| {
            let body = vec![b'x'; BODY_READ / 2];
            write!(peer, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()).unwrap();
            peer.write_all(&body).unwrap();
        });
        let response = request(&endpoint, &post(), LONG).await.unwrap();
        assert_eq!((response.status, response.body.len()), (200, BODY_KEPT));
        // Endless.
        let (endpoint, _requests) = serve(|mut peer| {
            peer.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
            while peer.write_all(&[b'x'; 4096]).is_ok() {}
        });
        let response = request(&endpoint, &post(), LONG).await.unwrap();
        assert_eq!((response.status, response.body.len()), (200, BODY_KEPT));
        let (endpoint, _requests) = serve(|mut peer| {
            peer.write_all(b"HTTP/1.1 200 OK\r\n").unwrap();
            while peer.write_all(b"X-Canary: canary\r\n").is_ok() {}
        });
        let error = request(&endpoint, &post(), LONG).await.unwrap_err();
        assert!(matches!(error, HttpError::Broken { .. }), "{error}");
        assert!(!format!("{error} {error:?}").to_lowercase().contains("canary"), "{error:?}");
    }

    #[tokio::test]
    async fn dropping_the_future_closes_the_connection() {
        let (closed, hears) = channel();
        let (endpoint, requests) = serve(move |peer| {
            hang(peer);
            closed.send(()).unwrap();
        });
        assert!(tokio::time::timeout(SHORT, request(&endpoint, &post(), LONG)).await.is_err());
        requests.recv_timeout(LONG).unwrap();
        hears.recv_timeout(LONG).unwrap();
    }

    #[tokio::test]
    async fn unix_sockets_are_spoken_to() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        let endpoint: Endpoint = format!("unix://{}:/reload", path.display()).parse().unwrap();
        let error = request(&endpoint, &post(), LONG).await.unwrap_err().to_string();
        assert!(error.contains("a volume that both containers mount"), "{error}");
        let listener = UnixListener::bind(&path).unwrap();
        let server = std::thread::spawn(move || {
            let (mut peer, _): (UnixPeer, _) = listener.accept().unwrap();
            let request = read_request(&mut peer);
            peer.write_all(OK).unwrap();
            request
        });
        assert_eq!(request(&endpoint, &post(), LONG).await.unwrap().status, 200);
        let request = server.join().unwrap();
        assert!(
            request.starts_with("POST /reload HTTP/1.1\r\n") && request.contains("\r\nhost: localhost\r\n"),
            "{request}"
        );
    }

    /// A CA, and a server's and a client's certificate and key from it, all in one directory.
    struct Pki {
        dir: TempDir,
        server: ServerConfig,
    }

    impl Pki {
        fn new(name: &str, ask_for_client: bool) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let mut params = CertificateParams::new([]).unwrap();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
            fs::write(dir.path().join("ca.pem"), ca.pem()).unwrap();
            let issue = |name: &str| {
                let key = KeyPair::generate().unwrap();
                let certificate = CertificateParams::new([name.to_owned()]).unwrap().signed_by(&key, &ca).unwrap();
                (certificate, key)
            };
            let (client, client_key) = issue("client");
            fs::write(dir.path().join("client.pem"), client.pem()).unwrap();
            fs::write(dir.path().join("client.key"), client_key.serialize_pem()).unwrap();
            let (server, server_key) = issue(name);
            let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
            let builder = ServerConfig::builder_with_provider(provider.clone());
            let builder = builder.with_safe_default_protocol_versions().unwrap();
            let builder = if ask_for_client {
                let mut roots = RootCertStore::empty();
                roots.add(ca.der().clone()).unwrap();
                let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider).build().unwrap();
                builder.with_client_cert_verifier(verifier)
            } else {
                builder.with_no_client_auth()
            };
            let key = PrivateKeyDer::try_from(server_key.serialize_der()).unwrap();
            let server = builder.with_single_cert(vec![server.der().clone()], key).unwrap();
            Self { dir, server }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.dir.path().join(name)
        }

        /// Answers 200 to whoever gets through, until the test ends.
        async fn serve(&self) -> Endpoint {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let endpoint = format!("https://{}/", listener.local_addr().unwrap()).parse().unwrap();
            let acceptor = TlsAcceptor::from(Arc::new(self.server.clone()));
            tokio::spawn(async move {
                loop {
                    let (peer, _) = listener.accept().await.unwrap();
                    let Ok(peer) = acceptor.accept(peer).await else { continue };
                    let answer = hyper::service::service_fn(async |_| {
                        Ok::<_, std::convert::Infallible>(hyper::Response::new(Full::new(Bytes::from_static(b"hello"))))
                    });
                    let _ =
                        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(peer), answer).await;
                }
            });
            endpoint
        }
    }

    #[tokio::test]
    async fn a_server_is_believed_by_its_ca_alone() {
        let pki = Pki::new("127.0.0.1", false);
        let endpoint = pki.serve().await;
        let config = HttpConfig { ca_file: Some(pki.path("ca.pem")), ..post() };
        assert_eq!(request(&endpoint, &config, LONG).await.unwrap().body, b"hello");
        let insecure = HttpConfig { insecure: true, ..post() };
        assert_eq!(request(&endpoint, &insecure, LONG).await.unwrap().status, 200);
        let other = Pki::new("127.0.0.1", false);
        let config = HttpConfig { ca_file: Some(other.path("ca.pem")), ..post() };
        let error = request(&endpoint, &config, LONG).await.unwrap_err();
        assert!(!error.sent() && error.to_string().contains("certificate"), "{error}");
        // The system's own CAs, or none at all, in the case of an image from scratch.
        let error = request(&endpoint, &post(), LONG).await.unwrap_err();
        assert!(!error.sent(), "{error}");
        assert!(matches!(error, HttpError::Connect { .. } | HttpError::NoRoots { .. }), "{error}");
        assert!(HttpError::NoRoots { endpoint: String::new() }.to_string().contains("--reload-ca-file"));
        let misnamed = Pki::new("elsewhere.example", false);
        let endpoint = misnamed.serve().await;
        let config = HttpConfig { ca_file: Some(misnamed.path("ca.pem")), ..post() };
        let error = request(&endpoint, &config, LONG).await.unwrap_err();
        assert!(!error.sent() && error.to_string().contains("certificate not valid for name"), "{error}");
    }

    #[tokio::test]
    async fn a_client_certificate_is_shown_when_given() {
        let pki = Pki::new("127.0.0.1", true);
        let endpoint = pki.serve().await;
        let with = |cert: Option<PathBuf>, key: Option<PathBuf>| HttpConfig {
            ca_file: Some(pki.path("ca.pem")),
            cert_file: cert,
            key_file: key,
            ..post()
        };
        let config = with(Some(pki.path("client.pem")), Some(pki.path("client.key")));
        assert_eq!(request(&endpoint, &config, LONG).await.unwrap().status, 200);
        let both = [fs::read(pki.path("client.key")), fs::read(pki.path("client.pem"))];
        fs::write(pki.path("both.pem"), both.map(Result::unwrap).concat()).unwrap();
        assert_eq!(request(&endpoint, &with(Some(pki.path("both.pem")), None), LONG).await.unwrap().status, 200);
        assert!(request(&endpoint, &with(None, None), LONG).await.is_err());
        fs::write(pki.path("bad.pem"), "-----BEGIN CERTIFICATE-----\ncanary!\n-----END CERTIFICATE-----").unwrap();
        fs::write(pki.path("none.pem"), "canary").unwrap();
        for (flag, config) in [
            ("--reload-key-file", with(None, Some(pki.path("client.key")))),
            ("--reload-key-file", with(Some(pki.path("client.pem")), Some(pki.path("ca.pem")))),
            ("--reload-cert-file", with(Some(pki.path("bad.pem")), Some(pki.path("client.key")))),
            ("--reload-cert-file", with(Some(pki.path("none.pem")), Some(pki.path("client.key")))),
            ("--reload-cert-file", with(Some(pki.path("client.pem")), None)),
            ("--reload-ca-file", HttpConfig { ca_file: Some(pki.path("none.pem")), ..post() }),
            ("--reload-ca-file", HttpConfig { ca_file: Some(pki.path("bad.pem")), ..post() }),
        ] {
            let error = request(&endpoint, &config, LONG).await.unwrap_err();
            assert!(error.to_string().starts_with(flag), "{error}");
            assert!(!format!("{error} {error:?}").contains("canary"), "{error:?}");
        }
        fs::write(pki.path("client.key"), KeyPair::generate().unwrap().serialize_pem()).unwrap();
        let error = request(&endpoint, &config, LONG).await.unwrap_err();
        assert!(error.to_string().contains("does not belong"), "{error}");
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_or_refused(text in ".{0,40}", tail in "[/:@?#\\[\\]a-z0-9.% -]{0,30}") {
            for text in [&text, &format!("http://{tail}"), &format!("https://{text}"), &format!("unix:///{tail}")] {
                if let Ok(endpoint) = text.parse::<Endpoint>() {
                    prop_assert!(!endpoint.target.path().is_empty());
                    let _ = endpoint.to_string();
                }
                let _ = text.parse::<Header>();
                let _ = text.parse::<StatusCodes>();
            }
        }

        #[test]
        fn a_password_in_a_url_is_never_accepted(user in "[a-z]{0,5}", password in "[a-z0-9:%]{0,9}", host in "[a-z]{1,9}") {
            let text = format!("http://{user}:{password}@{host}/");
            prop_assert_eq!(text.parse::<Endpoint>(), Err(ParseEndpointError::Credentials));
        }
    }
}
