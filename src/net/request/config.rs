//! What is sent, by what the server is checked, and the files that hold it: read anew for each request.

use std::fmt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{self, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Method, Request, Uri};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use super::HttpError;
use crate::net::credentials::{self, FileError, Header, LiteralOrFile};
use crate::net::endpoint::{Endpoint, Route};
use crate::net::proxy::{Intercept, Proxies, forwards};
use crate::net::store::kind::Kind;
use crate::net::tls::{self, Identity, PemError, Trust};

/// The largest file of certificates, in bytes.
const CERTIFICATES: u64 = 1024 * 1024;

/// Whose flags say what is sent and who is trusted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Owner {
    /// `--reload-…`: hooks and confirmations.
    #[default]
    Reload,
    /// `--url-…`: sources, and the archive.
    Url,
}

impl Owner {
    /// One of them.
    pub(super) fn flag(self, name: &str) -> String {
        let owner = match self {
            Self::Reload => "reload",
            Self::Url => "url",
        };
        format!("--{owner}-{name}")
    }
}

/// What is sent, and who is trusted. Never printed.
#[derive(Clone, Default)]
pub struct HttpConfig {
    pub method: Method,
    /// Whose flags these are; below, they are named as the hooks' are.
    pub owner: Owner,
    /// `--reload-body`.
    pub body: LiteralOrFile,
    /// `--reload-header`.
    pub headers: Vec<Header>,
    /// `--reload-auth-file`: `user:password`.
    pub auth_file: Option<PathBuf>,
    /// `--reload-user` and `--reload-password`.
    pub user: Option<(LiteralOrFile, LiteralOrFile)>,
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
    /// Which servers are reached through a proxy; `None`: no server is, whatever the environment says.
    pub proxies: Option<Proxies>,
    /// What proves to an object store who asks.
    pub signer: Option<Arc<dyn Sign>>,
}

/// Adds to a request what proves who asks, into its headers or its URI's query. Nothing may change the request's method and URI
/// any more.
pub trait Sign: Send + Sync {
    /// Which kind of store it is for.
    fn kind(&self) -> Kind;

    /// The request as it would be sent without a proxy; its headers are those that are to be signed as well.
    fn sign<'a>(&'a self, request: &'a mut Parts) -> Pin<Box<dyn Future<Output = Result<(), SignError>> + Send + 'a>>;
}

/// Why a request cannot say who asks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct SignError {
    reason: String,
    /// Whether it will hardly be otherwise soon.
    pub(super) lasting: bool,
}

impl SignError {
    pub(in crate::net) fn lasting(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), lasting: true }
    }

    pub(in crate::net) fn passing(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), lasting: false }
    }
}

/// Lets the request say who asks, if it is to.
pub(super) async fn sign<B>(
    endpoint: &Endpoint,
    config: &HttpConfig,
    request: &mut Request<B>,
) -> Result<(), HttpError> {
    let Some((signer, url)) = config.signer.as_ref().zip(endpoint.url()) else { return Ok(()) };
    let kind = signer.kind();
    let (mut parts, ()) = Request::new(()).into_parts();
    parts.method = request.method().clone();
    parts.uri = url;
    let own = request.headers().iter().filter(|(name, _)| kind.signs(name.as_str()));
    parts.headers.extend(own.map(|(name, value)| (name.clone(), value.clone())));
    let done = signer.sign(&mut parts).await;
    done.map_err(|error| HttpError::Unsigned { endpoint: endpoint.to_string(), error })?;
    parts.headers.remove(header::HOST);
    request.headers_mut().extend(parts.headers);
    let is_whole = request.uri().authority().is_some();
    *request.uri_mut() = match parts.uri.path_and_query() {
        Some(target) if !is_whole => Uri::from(target.clone()),
        // A proxy is sent the whole URL.
        _ => parts.uri,
    };
    Ok(())
}

impl HttpConfig {
    /// The proxy for this server.
    pub(super) fn proxy(&self, endpoint: &Endpoint) -> Option<Intercept> {
        self.proxies.as_ref()?.of(&endpoint.url()?)
    }

    /// The proxy that is sent the request itself.
    pub(super) fn forwarder(&self, endpoint: &Endpoint) -> Option<Intercept> {
        let plain = matches!(endpoint.route, Route::Tcp { tls: false, .. });
        self.proxy(endpoint).filter(|proxy| plain && forwards(proxy))
    }
}

impl fmt::Debug for HttpConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HttpConfig(…)")
    }
}

/// The request, and what in it may be a credential.
pub(super) fn prepare(
    endpoint: &Endpoint,
    config: &HttpConfig,
) -> Result<(Request<Full<Bytes>>, Vec<Bytes>), FileError> {
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
        let (name, value) = given.read(&config.owner.flag("header"))?;
        credentials.push(Bytes::copy_from_slice(value.as_bytes()));
        headers.append(name, value);
    }
    let basic = config.auth_file.as_deref().map(credentials::basic).transpose()?;
    let user = config.user.as_ref().map(|(user, password)| credentials::user(user, password)).transpose()?;
    let bearer = config.token_file.as_deref().map(credentials::bearer).transpose()?;
    for (value, secrets) in [basic, user, bearer].into_iter().flatten() {
        credentials.extend(secrets);
        headers.insert(header::AUTHORIZATION, value);
    }
    let host = match &endpoint.route {
        Route::Tcp { authority, .. } => HeaderValue::from_str(authority).ok(),
        Route::Unix(_) => None,
    };
    headers.entry(header::HOST).or_insert(host.unwrap_or(HeaderValue::from_static("localhost")));
    if let Some((proxy, url)) = config.forwarder(endpoint).zip(endpoint.url()) {
        if let Some(user) = proxy.basic_auth() {
            credentials.push(Bytes::copy_from_slice(user.as_bytes()));
            headers.insert(header::PROXY_AUTHORIZATION, user.clone());
        }
        *request.uri_mut() = url;
    }
    let headers = request.headers_mut();
    let agent = HeaderValue::from_static(concat!("trimtab/", env!("CARGO_PKG_VERSION")));
    headers.entry(header::USER_AGENT).or_insert(agent);
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    // Some servers answer 411 to a POST without a length.
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    Ok((request, credentials))
}

/// By what the server is checked, and what it checks.
pub(super) async fn tls_config(endpoint: &Endpoint, config: &HttpConfig) -> Result<ClientConfig, HttpError> {
    let trust = if config.insecure { Trust::Anything } else { trust(endpoint, config).await? };
    let identity = identity(config)?;
    let (flag, path) = match (&config.key_file, &config.cert_file, &config.ca_file) {
        (Some(path), ..) => ("key-file", path),
        (None, Some(path), _) => ("cert-file", path),
        (None, None, Some(path)) => ("ca-file", path),
        // Nothing of ours is left to be wrong.
        (None, None, None) => return tls::client(trust, None).map_err(|_| no_roots(endpoint, config)),
    };
    let reason = if identity.is_some() {
        "its key does not belong to the certificate, or is of a kind not supported"
    } else {
        "its certificates cannot be used"
    };
    Ok(tls::client(trust, identity).map_err(|_| FileError::new(&config.owner.flag(flag), path, reason))?)
}

async fn trust(endpoint: &Endpoint, config: &HttpConfig) -> Result<Trust, HttpError> {
    if let Some(path) = &config.ca_file {
        return Ok(Trust::Given(pem(&config.owner.flag("ca-file"), path, tls::certificates)?));
    }
    // It fails only when the runtime ends.
    let roots = tokio::task::spawn_blocking(tls::system_roots).await.unwrap_or_else(|_| RootCertStore::empty());
    if roots.is_empty() { Err(no_roots(endpoint, config)) } else { Ok(Trust::System(roots)) }
}

fn no_roots(endpoint: &Endpoint, config: &HttpConfig) -> HttpError {
    HttpError::NoRoots { endpoint: endpoint.to_string(), flag: config.owner.flag("ca-file") }
}

fn identity(config: &HttpConfig) -> Result<Option<Identity>, FileError> {
    let [certificate, key_file] = ["cert-file", "key-file"].map(|name| config.owner.flag(name));
    let Some(path) = &config.cert_file else {
        let alone = |path: &PathBuf| Err(FileError::new(&key_file, path, format!("it needs {certificate} beside it")));
        return config.key_file.as_ref().map_or(Ok(None), alone);
    };
    let chain = pem(&certificate, path, tls::certificates)?;
    // Many a file holds both.
    let (flag, key) = config.key_file.as_ref().map_or((&certificate, path), |key| (&key_file, key));
    Ok(Some((chain, pem(flag, key, tls::private_key)?)))
}

fn pem<T>(flag: &str, path: &Path, parse: impl Fn(&[u8]) -> Result<T, PemError>) -> Result<T, FileError> {
    parse(&credentials::read(flag, path, CERTIFICATES)?).map_err(|error| FileError::new(flag, path, error.to_string()))
}
