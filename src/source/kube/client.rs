//! The way to the API server: where it is, who we are, and a client that is built anew when it fails.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ::kube::api::PostParams;
use ::kube::client::{AuthError, Body, ClientBuilder, ConfigExt as _, RustlsTlsError};
use ::kube::config::{Config, KubeConfigOptions, Kubeconfig, KubeconfigError, LoadDataError};
use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::header::{HeaderValue, RETRY_AFTER, USER_AGENT};
use hyper::{Request, Response, StatusCode, Uri};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use secrecy::ExposeSecret;
use tokio::sync::Mutex;
use tokio::time::timeout;
use tower::{BoxError, ServiceExt as _};

use super::trouble::{CreateError, Failure};
use super::wire::Status;

/// Where the kubelet mounts a service account's token, CA and namespace
/// (pkg/serviceaccount: `DefaultAPITokenMountPath`).
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// What of an error's body is read: a `Status` of the API server is shorter.
const STATUS_LIMIT: usize = 64 << 10;

/// How to reach the API server. Never guessed: in-cluster, unless a kubeconfig is named.
#[derive(Clone, Debug, Default)]
pub struct ClientConfig {
    /// `--kubeconfig`.
    pub kubeconfig: Option<PathBuf>,
    /// `--context`; the kubeconfig's current one if `None`.
    pub context: Option<String>,
    /// What stands for a kubeconfig inside a cluster.
    pub in_cluster: InCluster,
    /// How long a silent server is waited for.
    pub deadlines: Deadlines,
}

/// What the kubelet gives a container to reach the API server with. The default is what it gave to this one.
#[derive(Clone, Debug)]
pub struct InCluster {
    /// `KUBERNETES_SERVICE_HOST`.
    pub host: Option<String>,
    /// `KUBERNETES_SERVICE_PORT`.
    pub port: Option<String>,
    /// The folder with `token`, `ca.crt` and `namespace`.
    pub directory: PathBuf,
}

impl Default for InCluster {
    fn default() -> Self {
        Self {
            host: std::env::var("KUBERNETES_SERVICE_HOST").ok(),
            port: std::env::var("KUBERNETES_SERVICE_PORT").ok(),
            directory: SERVICE_ACCOUNT.into(),
        }
    }
}

/// How long the API server may be silent.
#[derive(Clone, Copy, Debug)]
pub struct Deadlines {
    /// From asking (connect and TLS handshake included) to the first line of the answer, and between two pieces of it.
    pub answer: Duration,
    /// Between two pieces of a watch. The server sends a bookmark about every minute
    /// (apiserver/pkg/storage/cacher: `defaultBookmarkFrequency`), but the second one of a watch two minutes after the
    /// first (seen on Kubernetes 1.36), so that silence for longer is a hang.
    pub quiet: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self { answer: Duration::from_secs(30), quiet: Duration::from_secs(150) }
    }
}

/// Why there is no client for the API server.
#[derive(Debug, thiserror::Error)]
pub enum KubeError {
    /// No kubeconfig was named, and this is no Pod. Fatal at start: nothing in a process's life changes it.
    #[error(
        "cannot find the API server: KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not both set, \
         so this is not a Pod; run it in one, or give --kubeconfig"
    )]
    NotInCluster,
    /// A flag or a variable makes no sense. Fatal at start.
    #[error("{0}")]
    Usage(&'static str),
    /// The kubeconfig says nothing usable. Fatal at start, retried later (it may be in the middle of being written).
    #[error("--kubeconfig {path}: {problem}", path = .path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// What is wrong with it and what to do; no word of its content but names of contexts and clusters.
        problem: String,
    },
    /// A file cannot be read: the kubeconfig, or a certificate, key or token. Retried.
    #[error("cannot read {path}: {error}{remedy}", path = .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
        /// What to do, or empty.
        remedy: &'static str,
    },
    /// What the files hold is unusable: a certificate, a key, a token, an exec plugin's answer. Retried.
    #[error("cannot use the credentials: {0}")]
    Credentials(String),
}

/// The namespace that sources without one lie in: the kubeconfig context's, or the Pod's own.
pub fn default_namespace(config: &ClientConfig) -> Result<String, KubeError> {
    if let Some(path) = &config.kubeconfig {
        let kubeconfig = read_kubeconfig(path)?;
        let name = config.context.as_ref().or(kubeconfig.current_context.as_ref());
        let name = name.ok_or_else(|| kubeconfig_error(path, KubeconfigError::CurrentContextNotSet))?;
        let context = kubeconfig.contexts.iter().find(|context| context.name == *name);
        let context = context.ok_or_else(|| kubeconfig_error(path, KubeconfigError::LoadContext(name.clone())))?;
        let namespace = context.context.as_ref().and_then(|context| context.namespace.clone());
        return Ok(namespace.filter(|namespace| !namespace.is_empty()).unwrap_or_else(|| "default".to_owned()));
    }
    let path = config.in_cluster.directory.join("namespace");
    match std::fs::read_to_string(&path) {
        Ok(namespace) => Ok(namespace.trim().to_owned()),
        Err(error) => Err(KubeError::Unreadable { path, error, remedy: NO_SERVICE_ACCOUNT }),
    }
}

const NO_SERVICE_ACCOUNT: &str = "; the Pod needs its service account's token (automountServiceAccountToken: true), \
                                  or give --kubeconfig";

/// Clients for the API server: one, shared by all watches, and built anew (the kubeconfig, CA and token read again)
/// after it failed to reach the server or was not recognised by it. Cheap to clone.
#[derive(Clone)]
pub struct Clients {
    config: Arc<ClientConfig>,
    current: Arc<Mutex<Option<Arc<Connection>>>>,
}

/// One client, and where it connects to.
struct Connection {
    client: ::kube::Client,
    /// `host:port`, for messages: the URL itself may hold a password.
    server: String,
}

impl fmt::Debug for Clients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Clients").field(&self.config).finish()
    }
}

impl Clients {
    /// Reads nothing yet.
    #[must_use]
    pub fn new(config: ClientConfig) -> Self {
        Self { config: Arc::new(config), current: Arc::default() }
    }

    /// Builds the client, without a word to the server: whether the flags and files make sense, for a start-up error.
    pub async fn check(&self) -> Result<(), KubeError> {
        self.connection().await.map(drop)
    }

    /// Clients for the cluster of this very Pod; `None` outside of one, and in a Pod without a service account's token.
    #[must_use]
    pub fn of_this_pod() -> Option<Self> {
        let config = ClientConfig::default();
        let pod = &config.in_cluster;
        let present = pod.host.is_some() && pod.port.is_some() && pod.directory.join("token").exists();
        present.then(|| Self::new(config))
    }

    /// Creates an object, by one request. `path`: of the collection. `object`: JSON.
    pub async fn create(&self, path: &str, object: Vec<u8>) -> Result<(), CreateError> {
        let request = ::kube::core::Request::new(path).create(&PostParams::default(), object);
        let request = request.map_err(|_| Failure::Malformed("it does not fit into a URL".to_owned()))?;
        self.send(request).await.map(drop)?;
        Ok(())
    }

    /// How long a silent server is waited for.
    pub(super) fn deadlines(&self) -> Deadlines {
        self.config.deadlines
    }

    async fn connection(&self) -> Result<Arc<Connection>, KubeError> {
        let mut current = self.current.lock().await;
        if let Some(connection) = &*current {
            return Ok(Arc::clone(connection));
        }
        let config = Arc::clone(&self.config);
        // Files, and with an exec plugin a program, that block.
        let built = tokio::task::spawn_blocking(move || tokio::runtime::Handle::current().block_on(connect(&config)));
        // It neither panics nor is cancelled but when the runtime ends.
        let built = built.await.map_err(|_| KubeError::Usage("interrupted while reading the credentials"))?;
        Ok(Arc::clone(current.insert(Arc::new(built?))))
    }

    /// Lets the next request build a new client, unless another watch has already seen to that.
    async fn forget(&self, failed: &Arc<Connection>) {
        let mut current = self.current.lock().await;
        if current.as_ref().is_some_and(|current| Arc::ptr_eq(current, failed)) {
            *current = None;
        }
    }

    /// Sends a request, once; an answer other than success is a failure.
    pub(super) async fn send(&self, request: Request<Vec<u8>>) -> Result<Response<Body>, Failure> {
        let connection = match timeout(self.config.deadlines.answer, self.connection()).await {
            Ok(connection) => connection?,
            Err(_) => return Err(Failure::Silent(self.config.deadlines.answer)),
        };
        let sent = connection.client.send(request.map(Body::from));
        let response = match timeout(self.config.deadlines.answer, sent).await {
            Ok(Ok(response)) => response,
            Ok(Err(error)) => {
                self.forget(&connection).await;
                return Err(Failure::transport(&error, Some(&connection.server)));
            }
            Err(_) => {
                self.forget(&connection).await;
                return Err(Failure::Silent(self.config.deadlines.answer));
            }
        };
        if response.status().is_success() {
            return Ok(response);
        }
        if response.status() == StatusCode::UNAUTHORIZED {
            self.forget(&connection).await;
        }
        Err(self.refusal(response).await)
    }

    /// Reads why the server refused.
    async fn refusal(&self, response: Response<Body>) -> Failure {
        let code = response.status().as_u16();
        let header = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        let mut body = response.into_body();
        let mut text = Vec::new();
        // A body that breaks off, is too long, or is none of the API server's (a proxy's, say) leaves the code alone.
        while let Ok(Some(chunk)) = next_chunk(&mut body, self.config.deadlines.answer).await {
            text.extend_from_slice(&chunk);
            if text.len() > STATUS_LIMIT {
                break;
            }
        }
        let mut status: Status = serde_json::from_slice(&text).unwrap_or_default();
        status.code = code;
        Failure::status(status, header)
    }
}

/// The next piece of a body; `None` at its end.
pub(super) async fn next_chunk(body: &mut Body, patience: Duration) -> Result<Option<Bytes>, Failure> {
    loop {
        match timeout(patience, body.frame()).await {
            Err(_) => return Err(Failure::Silent(patience)),
            Ok(None) => return Ok(None),
            Ok(Some(Err(error))) => return Err(Failure::transport(&error, None)),
            Ok(Some(Ok(frame))) => {
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(data));
                }
            }
        }
    }
}

async fn connect(config: &ClientConfig) -> Result<Connection, KubeError> {
    let mut settings = match &config.kubeconfig {
        Some(path) => from_kubeconfig(path, config.context.clone()).await?,
        None if config.context.is_some() => {
            return Err(KubeError::Usage("--context names a context of a kubeconfig: give --kubeconfig as well"));
        }
        None => from_service_account(&config.in_cluster)?,
    };
    let agent = HeaderValue::from_static(concat!("trimtab/", env!("CARGO_PKG_VERSION")));
    settings.headers.push((USER_AGENT, agent));

    let mut http = HttpConnector::new();
    http.enforce_http(false);
    http.set_nodelay(true);
    // A peer that went without a word is noticed within a minute, also while we have nothing to say.
    http.set_keepalive(Some(Duration::from_secs(30)));
    http.set_keepalive_interval(Some(Duration::from_secs(10)));
    http.set_keepalive_retries(Some(3));
    http.set_tcp_user_timeout(Some(Duration::from_secs(30)));
    let https = settings.rustls_https_connector_with_connector(http).map_err(|error| unusable(config, error))?;
    let http = hyper_util::client::legacy::Client::builder(TokioExecutor::new())
        .build::<_, Body>(https)
        .map_err(BoxError::from);

    // kube's own stack, without its retries, which are silent, and its tracing.
    let headers = settings.extra_headers_layer().map_err(|error| unusable(config, error))?;
    let auth = settings.auth_layer().map_err(|error| unusable(config, error))?;
    let base = settings.base_uri_layer();
    let builder = ClientBuilder::new(http, settings.default_namespace.clone()).with_layer(&headers);
    let client = match auth {
        Some(auth) => builder.with_layer(&auth).with_layer(&base).build(),
        None => builder.with_layer(&base).build(),
    };
    Ok(Connection { client, server: server(&settings.cluster_url) })
}

fn server(url: &Uri) -> String {
    let host = url.host().unwrap_or_default();
    let port = url.port_u16().unwrap_or(if url.scheme_str() == Some("http") { 80 } else { 443 });
    format!("{host}:{port}")
}

fn from_service_account(pod: &InCluster) -> Result<Config, KubeError> {
    let (Some(host), Some(port)) = (&pod.host, &pod.port) else { return Err(KubeError::NotInCluster) };
    let host = match host.parse::<IpAddr>() {
        Ok(IpAddr::V6(address)) => format!("[{address}]"),
        _ => host.clone(),
    };
    let url = Uri::builder().scheme("https").authority(format!("{host}:{port}")).path_and_query("/").build();
    let url = url.map_err(|_| {
        KubeError::Usage("KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT do not name a host and a port")
    })?;
    let mut config = Config::new(url);
    // Kept by path: the kubelet replaces both, and they are read again about once a minute. Without the empty list kube
    // would first load the system's certificates, and fail in an image that has none.
    config.root_cert = Some(Vec::new());
    config.root_cert_file = Some(readable(pod.directory.join("ca.crt"))?);
    config.auth_info.token_file = Some(readable(pod.directory.join("token"))?.to_string_lossy().into_owned());
    Ok(config)
}

/// Says which file is missing before kube says that something is.
fn readable(path: PathBuf) -> Result<PathBuf, KubeError> {
    match std::fs::File::open(&path) {
        Ok(_) => Ok(path),
        Err(error) => Err(KubeError::Unreadable { path, error, remedy: NO_SERVICE_ACCOUNT }),
    }
}

fn read_kubeconfig(path: &Path) -> Result<Kubeconfig, KubeError> {
    Kubeconfig::read_from(path).map_err(|error| kubeconfig_error(path, error))
}

async fn from_kubeconfig(path: &Path, context: Option<String>) -> Result<Config, KubeError> {
    let options = KubeConfigOptions { context, ..KubeConfigOptions::default() };
    let config = Config::from_custom_kubeconfig(read_kubeconfig(path)?, &options).await;
    let config = config.map_err(|error| kubeconfig_error(path, error))?;
    if config.proxy_url.is_some() {
        let problem = "proxies (proxy-url, or HTTPS_PROXY in the environment) are not supported".to_owned();
        return Err(KubeError::Kubeconfig { path: path.to_owned(), problem });
    }
    // What makes the layer of it panics on such a one.
    let token = config.auth_info.token.as_ref().map(ExposeSecret::expose_secret);
    if token.is_some_and(|token| HeaderValue::from_str(token).is_err()) {
        let problem = "its token holds characters that a header cannot carry, such as a line break";
        return Err(KubeError::Credentials(format!("{}: {problem}", path.display())));
    }
    Ok(config)
}

/// Says what is wrong with a kubeconfig, in words that quote no value of it.
fn kubeconfig_error(path: &Path, error: KubeconfigError) -> KubeError {
    use KubeconfigError as E;
    // Credentials come and go while the kubeconfig stays: they are waited for.
    let credentials = |problem| KubeError::Credentials(format!("{}: {problem}", path.display()));
    let load = |what: &str, error| {
        credentials(match error {
            LoadDataError::ReadFile(error, _) => named_by(what, &error),
            LoadDataError::DecodeBase64(_) => format!("its {what}-data is not base64"),
            LoadDataError::NoBase64DataOrFile => format!("it has no {what}"),
        })
    };
    let problem = match error {
        E::ReadConfig(error, path) => return KubeError::Unreadable { path, error, remedy: "" },
        E::CurrentContextNotSet => "it has no current-context; give --context".to_owned(),
        E::LoadContext(name) => format!("it has no context {name:?}; --context or current-context names one"),
        E::LoadClusterOfContext(name) => format!("it has no cluster {name:?}, which the context names"),
        E::Parse(error) => match error.location() {
            Some(at) => format!("not a kubeconfig, at line {}, column {}", at.line(), at.column()),
            None => "not a kubeconfig".to_owned(),
        },
        E::MissingClusterUrl | E::ParseClusterUrl(_) => "its cluster has no valid server URL".to_owned(),
        E::ParseProxyUrl(_) => "its proxy-url, or HTTPS_PROXY, is not a URL".to_owned(),
        E::LoadCertificateAuthority(error) => return load("certificate-authority", error),
        E::LoadClientCertificate(error) => return load("client-certificate", error),
        E::LoadClientKey(error) => return load("client-key", error),
        E::ParseCertificates(_) => {
            return credentials("its certificate-authority holds no PEM certificates".to_owned());
        }
        E::KindMismatch | E::ApiVersionMismatch => "its documents differ in kind or apiVersion".to_owned(),
        E::FindPath => "no such file".to_owned(),
    };
    KubeError::Kubeconfig { path: path.to_owned(), problem }
}

/// A file that a field of the kubeconfig names. Its path is not told: some write the key or token itself there.
fn named_by(field: &str, error: &io::Error) -> String {
    format!("the file that its {field} names cannot be read: {error}")
}

/// Says what is wrong with certificates, keys, tokens or an exec plugin, in words that quote none of them.
fn unusable(config: &ClientConfig, error: ::kube::Error) -> KubeError {
    let place = match &config.kubeconfig {
        Some(path) => path.display().to_string(),
        None => config.in_cluster.directory.display().to_string(),
    };
    let problem = match error {
        ::kube::Error::InferKubeconfig(error) => {
            return kubeconfig_error(config.kubeconfig.as_deref().unwrap_or(Path::new("")), error);
        }
        ::kube::Error::Auth(AuthError::ReadTokenFile(error, path)) => match &config.kubeconfig {
            Some(_) => named_by("tokenFile", &error),
            None => return KubeError::Unreadable { path, error, remedy: "" },
        },
        ::kube::Error::Auth(AuthError::AuthExecStart(error)) => format!("its exec plugin cannot be started: {error}"),
        ::kube::Error::Auth(AuthError::AuthExecRun { out, .. }) => format!("its exec plugin failed: {}", out.status),
        ::kube::Error::Auth(_) => "its token, password or exec plugin gives none".to_owned(),
        ::kube::Error::RustlsTls(RustlsTlsError::InvalidServerName(_)) => "tls-server-name is not a name".to_owned(),
        ::kube::Error::RustlsTls(RustlsTlsError::AddRootCertificate(_)) => {
            "the CA is no valid certificate, or none is named and this image has none of its own".to_owned()
        }
        ::kube::Error::RustlsTls(_) => "the client certificate and key are not a valid pair in PEM".to_owned(),
        _ => "they do not fit into a request".to_owned(),
    };
    KubeError::Credentials(format!("{place}: {problem}"))
}
