//! The way to the API server: where it is, who we are, and a client that is built anew when it fails.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER, USER_AGENT};
use hyper::{Method, Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use rustix::net::sockopt;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::RootCertStore;

use super::kubeconfig::{Credentials, Exec, ExecCredential, Kubeconfig, Settings, unusable};
use super::trouble::{CreateError, Failure};
use super::wire::Status;
use crate::net::tls;

/// Where the kubelet mounts a service account's token, CA and namespace
/// (pkg/serviceaccount: `DefaultAPITokenMountPath`).
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// What of an error's body is read: a `Status` of the API server is shorter.
const STATUS_LIMIT: usize = 64 << 10;
/// What is read of an answer at once, in bytes, and its longest head. By itself hyper reads 400 kB at once after a large
/// object, and keeps that room as long as the watch lives.
const BUFFER: usize = 64 << 10;

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
        let context = Kubeconfig::read(path)?.context(path, config.context.as_deref())?;
        return Ok(if context.namespace.is_empty() { "default".to_owned() } else { context.namespace });
    }
    let path = config.in_cluster.directory.join("namespace");
    match std::fs::read_to_string(&path) {
        Ok(namespace) => Ok(namespace.trim().to_owned()),
        Err(error) => Err(KubeError::Unreadable { path, error, remedy: NO_SERVICE_ACCOUNT }),
    }
}

const NO_SERVICE_ACCOUNT: &str = "; the Pod needs its service account's token (automountServiceAccountToken: true), \
                                  or give --kubeconfig";

/// The way to the API server, shared by all watches, and found anew (the kubeconfig, CA and certificates read again)
/// after it failed to reach the server or was not recognised by it. Cheap to clone.
#[derive(Clone)]
pub struct Clients {
    config: Arc<ClientConfig>,
    current: Arc<Mutex<Option<Arc<Way>>>>,
}

/// One way to an API server, and the connections that lie idle between two requests.
struct Way {
    /// Where its settings come from, for messages.
    place: PathBuf,
    connector: Option<(TlsConnector, ServerName<'static>)>,
    /// Without the brackets of an IPv6 address.
    host: String,
    port: u16,
    /// What each request's path starts with: empty, or one as proxies have it.
    prefix: String,
    credentials: Credentials,
    headers: HeaderMap,
    /// When the credentials are no good any more.
    expires: Option<jiff::Timestamp>,
    idle: Mutex<Vec<SendRequest<Full<Bytes>>>>,
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
        self.way().await.map(drop)
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
        self.post(path, object).await?;
        Ok(())
    }

    /// Asks for what lies there, path and query; `patience`: how long a connection is waited for, the TLS handshake
    /// included. An answer other than success is a failure.
    pub(super) async fn get(&self, target: &str, patience: Duration) -> Result<Answer, Failure> {
        self.send(Method::GET, target, Vec::new(), patience).await
    }

    /// Sends JSON there. An answer other than success is a failure.
    pub(super) async fn post(&self, target: &str, object: Vec<u8>) -> Result<Answer, Failure> {
        self.send(Method::POST, target, object, self.config.deadlines.answer).await
    }

    /// How long a silent server is waited for.
    pub(super) fn deadlines(&self) -> Deadlines {
        self.config.deadlines
    }

    async fn way(&self) -> Result<Arc<Way>, KubeError> {
        let mut current = self.current.lock().await;
        if let Some(way) = current.as_ref().filter(|way| way.is_good()) {
            return Ok(Arc::clone(way));
        }
        *current = None;
        let config = Arc::clone(&self.config);
        let settings = tokio::task::spawn_blocking(move || settings(&config)).await;
        // It neither panics nor is cancelled but when the runtime ends.
        let settings = settings.map_err(|_| KubeError::Usage("interrupted while reading the credentials"))?;
        let way = Way::new(settings?, &self.config.place()).await?;
        Ok(Arc::clone(current.insert(Arc::new(way))))
    }

    /// Lets the next request find a new way, unless another watch has already seen to that.
    async fn forget(&self, failed: &Arc<Way>) {
        let mut current = self.current.lock().await;
        if current.as_ref().is_some_and(|current| Arc::ptr_eq(current, failed)) {
            *current = None;
        }
    }

    async fn send(&self, method: Method, target: &str, body: Vec<u8>, patience: Duration) -> Result<Answer, Failure> {
        let deadline = self.config.deadlines.answer;
        let way = timeout(deadline, self.way()).await.map_err(|_| Failure::Silent(deadline))??;
        let answer = match timeout(deadline, way.send(method, target, body, patience)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(failure)) => {
                self.forget(&way).await;
                return Err(failure);
            }
            Err(_) => {
                self.forget(&way).await;
                return Err(Failure::Silent(deadline));
            }
        };
        if answer.status.is_success() {
            return Ok(answer);
        }
        if answer.status == StatusCode::UNAUTHORIZED {
            self.forget(&way).await;
        }
        Err(self.refusal(answer).await)
    }

    /// Reads why the server refused.
    async fn refusal(&self, mut answer: Answer) -> Failure {
        let code = answer.status.as_u16();
        let mut text = Vec::new();
        // A body that breaks off, is too long, or is none of the API server's (a proxy's, say) leaves the code alone.
        while let Ok(Some(chunk)) = answer.chunk(self.config.deadlines.answer).await {
            text.extend_from_slice(&chunk);
            if text.len() > STATUS_LIMIT {
                break;
            }
        }
        let mut status: Status = serde_json::from_slice(&text).unwrap_or_default();
        status.code = code;
        Failure::status(status, answer.retry_after)
    }
}

/// An answer whose body is still to come.
pub(super) struct Answer {
    status: StatusCode,
    /// In seconds.
    retry_after: Option<u64>,
    body: Incoming,
    /// The connection, and where it goes once the body is read.
    sender: Option<(SendRequest<Full<Bytes>>, Arc<Way>)>,
}

impl Answer {
    /// The next piece of the body; `None` at its end.
    pub(super) async fn chunk(&mut self, patience: Duration) -> Result<Option<Bytes>, Failure> {
        loop {
            match timeout(patience, self.body.frame()).await {
                Err(_) => return Err(Failure::Silent(patience)),
                Ok(None) => {
                    if let Some((sender, way)) = self.sender.take() {
                        way.idle.lock().await.push(sender);
                    }
                    return Ok(None);
                }
                Ok(Some(Err(error))) => return Err(Failure::transport(&error, None)),
                Ok(Some(Ok(frame))) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
            }
        }
    }
}

impl Way {
    /// `place`: where the settings come from, for messages.
    async fn new(settings: Settings, place: &Path) -> Result<Self, KubeError> {
        let bad = |problem: &str| KubeError::Credentials(format!("{}: {problem}", place.display()));
        let Settings { server, server_name, authority, insecure, mut credentials, mut identity, .. } = settings;
        let url = server.parse::<Uri>().ok();
        let url = url.as_ref().and_then(|url| Some((url.scheme_str()?, url.host()?, url.port_u16(), url.path())));
        let Some((scheme @ ("http" | "https"), host, port, prefix)) = url else {
            return Err(unusable(place, "its cluster has no valid server URL"));
        };
        let secure = scheme == "https";
        let port = port.unwrap_or(if secure { 443 } else { 80 });

        let mut expires = None;
        if let Some(exec) = &settings.exec {
            let given = run(exec).await.map_err(|problem| bad(&format!("its exec plugin {problem}")))?;
            let status = given.status.ok_or_else(|| bad("its exec plugin gives no credentials"))?;
            expires = status.expiration_timestamp.and_then(|time| time.parse().ok());
            if let Some(token) = status.token {
                credentials = Credentials::Token(token);
            }
            if let (Some(certificate), Some(key)) = (status.client_certificate_data, status.client_key_data) {
                identity = Some((certificate.into_bytes(), key.into_bytes()));
            }
        }

        let mut headers = HeaderMap::new();
        let authority_of_url =
            if host.contains(':') && !host.starts_with('[') { format!("[{host}]") } else { host.to_owned() };
        headers
            .insert(HOST, value(&format!("{authority_of_url}:{port}")).map_err(|()| bad("its server's name is none"))?);
        headers.insert(USER_AGENT, HeaderValue::from_static(concat!("trimtab/", env!("CARGO_PKG_VERSION"))));
        for (name, text) in &settings.impersonate {
            let text = value(text).map_err(|()| bad("whom it acts as does not fit into a header"))?;
            headers.append(HeaderName::from_static(name), text);
        }
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let connector = if secure {
            let trust =
                if insecure { tls::Trust::Anything } else { tls::Trust::System(roots(authority).await.map_err(bad)?) };
            let identity = identity.map(|(certificate, key)| pair(&certificate, &key)).transpose();
            let identity = identity.map_err(|()| bad(NO_PAIR))?;
            let tls = tls::client(trust, identity).map_err(|_| bad(NO_PAIR))?;
            let name = server_name.unwrap_or_else(|| host.clone());
            let name = ServerName::try_from(name).map_err(|_| bad("tls-server-name is not a name"))?;
            Some((TlsConnector::from(Arc::new(tls)), name))
        } else {
            None
        };
        let prefix = prefix.trim_end_matches('/').to_owned();
        let place = place.to_owned();
        let way = Self { place, connector, host, port, prefix, credentials, headers, expires, idle: Mutex::default() };
        // Whether the credentials make sense is known before the first request.
        way.authorization()?;
        Ok(way)
    }

    fn is_good(&self) -> bool {
        self.expires.is_none_or(|expires| jiff::Timestamp::now() < expires)
    }

    fn bad(&self, problem: &str) -> KubeError {
        KubeError::Credentials(format!("{}: {problem}", self.place.display()))
    }

    /// `host:port`, for messages.
    fn server(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    /// The header of that name. A file is read for it, small and local.
    fn authorization(&self) -> Result<Option<HeaderValue>, KubeError> {
        let text = match &self.credentials {
            Credentials::None => return Ok(None),
            Credentials::Token(token) => format!("Bearer {token}"),
            Credentials::Basic(pair) => format!("Basic {pair}"),
            Credentials::TokenFile(path) => {
                // Its path is not told: some write the token itself there.
                let token = std::fs::read_to_string(path)
                    .map_err(|error| self.bad(&format!("the file of its token (tokenFile) cannot be read: {error}")))?;
                format!("Bearer {}", token.trim())
            }
        };
        let mut value = value(&text)
            .map_err(|()| self.bad("its token holds characters that a header cannot carry, such as a line break"))?;
        value.set_sensitive(true);
        Ok(Some(value))
    }

    async fn send(
        self: &Arc<Self>,
        method: Method,
        target: &str,
        body: Vec<u8>,
        patience: Duration,
    ) -> Result<Answer, Failure> {
        let transport = |error: hyper::Error| Failure::transport(&error, Some(&self.server()));
        let mut request = Request::new(Full::new(Bytes::from(body)));
        let uri = format!("{}{target}", self.prefix).parse();
        *request.uri_mut() = uri.map_err(|_| Failure::Malformed("it does not fit into a URL".to_owned()))?;
        *request.headers_mut() = self.headers.clone();
        if method == Method::POST {
            request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        *request.method_mut() = method;
        if let Some(authorization) = self.authorization()? {
            request.headers_mut().insert(AUTHORIZATION, authorization);
        }
        let mut sender = self.connection(patience).await?;
        let response = sender.send_request(request).await.map_err(transport)?;
        let retry_after = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        let status = response.status();
        let sender = Some((sender, Arc::clone(self)));
        Ok(Answer { status, retry_after, body: response.into_body(), sender })
    }

    /// One that lies idle, or a new one.
    async fn connection(&self, patience: Duration) -> Result<SendRequest<Full<Bytes>>, Failure> {
        loop {
            let Some(mut sender) = self.idle.lock().await.pop() else { break };
            // The server closes what is idle for long.
            if sender.ready().await.is_ok() {
                return Ok(sender);
            }
        }
        timeout(patience, self.connect()).await.unwrap_or(Err(Failure::Silent(patience)))
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, Failure> {
        let failed = |error: io::Error| Failure::transport(&error, Some(&self.server()));
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await.map_err(failed)?;
        patient(&stream).map_err(|error| failed(error.into()))?;
        match &self.connector {
            Some((connector, name)) => {
                self.handshake(connector.connect(name.clone(), stream).await.map_err(failed)?).await
            }
            None => self.handshake(stream).await,
        }
    }

    async fn handshake<S>(&self, stream: S) -> Result<SendRequest<Full<Bytes>>, Failure>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        shaken(stream).await.map_err(|error| Failure::transport(&error, Some(&self.server())))
    }
}

async fn shaken<S>(stream: S) -> hyper::Result<SendRequest<Full<Bytes>>>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (sender, connection) = http1::Builder::new().max_buf_size(BUFFER).handshake(TokioIo::new(stream)).await?;
    // It ends with its sender, or with the server; what goes wrong, the request hears as well.
    tokio::spawn(async move {
        let _ = connection.await;
    });
    Ok(sender)
}

/// Far more than a token and a certificate take.
const EXEC_LIMIT: u64 = 1 << 20;

const NO_PAIR: &str = "the client certificate and key are not a valid pair in PEM";

fn value(text: &str) -> Result<HeaderValue, ()> {
    HeaderValue::from_str(text).map_err(|_| ())
}

/// A peer that went without a word is noticed within a minute, also while we have nothing to say.
fn patient(stream: &TcpStream) -> rustix::io::Result<()> {
    sockopt::set_tcp_nodelay(stream, true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, Duration::from_secs(30))?;
    sockopt::set_tcp_keepintvl(stream, Duration::from_secs(10))?;
    sockopt::set_tcp_keepcnt(stream, 3)?;
    sockopt::set_tcp_user_timeout(stream, 30_000)
}

/// The CAs in a text of PEM; the system's without one.
async fn roots(authority: Option<Vec<u8>>) -> Result<RootCertStore, &'static str> {
    let Some(authority) = authority else {
        // It fails only when the runtime ends.
        let roots = tokio::task::spawn_blocking(tls::system_roots).await.unwrap_or_else(|_| RootCertStore::empty());
        return if roots.is_empty() {
            Err("it has no certificate-authority, nor has this image any")
        } else {
            Ok(roots)
        };
    };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&authority) {
        let certificate = certificate.map_err(|_| "its certificate-authority is not PEM")?;
        roots.add(certificate).map_err(|_| "the CA is no valid certificate")?;
    }
    if roots.is_empty() { Err("its certificate-authority holds no PEM certificates") } else { Ok(roots) }
}

fn pair(certificate: &[u8], key: &[u8]) -> Result<tls::Identity, ()> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(certificate).collect();
    Ok((chain.map_err(|_| ())?, PrivateKeyDer::from_pem_slice(key).map_err(|_| ())?))
}

/// Runs an exec plugin. What it prints is kept from everyone; what went wrong is told without it.
async fn run(exec: &Exec) -> Result<ExecCredential, String> {
    let mut command = tokio::process::Command::new(&exec.command);
    command.args(exec.args.iter().flatten()).env("KUBERNETES_EXEC_INFO", &exec.info);
    for variable in exec.env.iter().flatten() {
        command.env(&variable.name, &variable.value);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
    let mut child = command.spawn().map_err(|error| format!("cannot be started: {error}"))?;
    let mut printed = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        let read = stdout.take(EXEC_LIMIT + 1).read_to_end(&mut printed).await;
        read.map_err(|error| format!("cannot be listened to: {error}"))?;
    }
    if printed.len() as u64 > EXEC_LIMIT {
        return Err(format!("prints more than {EXEC_LIMIT} bytes"));
    }
    let status = child.wait().await.map_err(|error| format!("cannot be waited for: {error}"))?;
    if !status.success() {
        return Err(format!("failed: {status}"));
    }
    serde_json::from_slice(&printed).map_err(|_| "prints no ExecCredential".to_owned())
}

impl ClientConfig {
    /// The file or the folder that says who we are.
    fn place(&self) -> PathBuf {
        self.kubeconfig.clone().unwrap_or_else(|| self.in_cluster.directory.clone())
    }
}

fn settings(config: &ClientConfig) -> Result<Settings, KubeError> {
    match &config.kubeconfig {
        Some(path) => Kubeconfig::read(path)?.settings(path, config.context.as_deref()),
        None if config.context.is_some() => {
            Err(KubeError::Usage("--context names a context of a kubeconfig: give --kubeconfig as well"))
        }
        None => from_service_account(&config.in_cluster),
    }
}

fn from_service_account(pod: &InCluster) -> Result<Settings, KubeError> {
    let (Some(host), Some(port)) = (&pod.host, &pod.port) else { return Err(KubeError::NotInCluster) };
    let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
    let server = format!("https://{host}:{port}");
    if server.parse::<Uri>().is_err() {
        return Err(KubeError::Usage(
            "KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT do not name a host and a port",
        ));
    }
    let authority = Some(read(pod.directory.join("ca.crt"))?);
    let token = pod.directory.join("token");
    read(token.clone())?;
    Ok(Settings { server, authority, credentials: Credentials::TokenFile(token), ..Settings::default() })
}

fn read(path: PathBuf) -> Result<Vec<u8>, KubeError> {
    std::fs::read(&path).map_err(|error| KubeError::Unreadable { path, error, remedy: NO_SERVICE_ACCOUNT })
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Context, Poll};

    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadBuf, duplex};

    use super::*;

    /// A stream that notes the room of the largest read.
    struct Roomy(DuplexStream, Arc<AtomicUsize>);

    impl AsyncRead for Roomy {
        fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            self.1.fetch_max(buf.remaining(), Ordering::SeqCst);
            Pin::new(&mut self.0).poll_read(cx, buf)
        }
    }

    impl AsyncWrite for Roomy {
        fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            Pin::new(&mut self.0).poll_write(cx, buf)
        }

        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_flush(cx)
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_shutdown(cx)
        }
    }

    #[tokio::test]
    async fn large_answer_leaves_no_large_buffer_to_its_connection() {
        const SIZE: usize = 4 << 20;
        let (ours, mut theirs) = duplex(1 << 20);
        let most = Arc::new(AtomicUsize::new(0));
        let server = tokio::spawn(async move {
            theirs.read_u8().await.unwrap();
            theirs.write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n").as_bytes()).await.unwrap();
            theirs.write_all(&vec![b'x'; SIZE]).await.unwrap();
        });
        let mut sender = shaken(Roomy(ours, most.clone())).await.unwrap();
        let answer = sender.send_request(Request::new(Full::default())).await.unwrap();
        assert_eq!(answer.into_body().collect().await.unwrap().to_bytes().len(), SIZE);
        server.await.unwrap();
        let most = most.load(Ordering::SeqCst);
        assert!(most <= 2 * BUFFER, "room for {most} bytes");
    }
}
