//! kube's client for the API server: built anew when it fails, with answers that are bounded in time and size.
//!
//! Requests are kube's, and go through `Client::send`: `Client::request` reads a body without a bound and logs it where
//! it is not what was expected, and by neither is there a Retry-After or the moment at which a connection stands.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::header::{AUTHORIZATION, HeaderValue, RETRY_AFTER, USER_AGENT};
use hyper::{Request, StatusCode};
use hyper_util::client::legacy::connect::capture_connection;
use kube::api::PostParams;
use kube::client::{Body, RustlsTlsError};
use secrecy::ExposeSecret as _;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::Mutex;
use tokio::time::timeout;

use super::config::{ClientConfig, Deadlines, KubeError, TokenFile, credentials};
use super::connect::client;
use super::failure::{CreateError, Failure};
use super::wire::Status;
use crate::net::proxy::host_and_port;

/// What of an answer that is no list is read, in bytes: what the API server sends is shorter.
const ANSWER_LIMIT: usize = 64 << 10;

/// The way to the API server, shared by all watches, and found anew (the kubeconfig, CA and certificates read again)
/// after it failed to reach the server or was not recognised by it. Cheap to clone.
#[derive(Clone)]
pub struct Clients {
    config: Arc<ClientConfig>,
    current: Arc<Mutex<Option<Arc<Way>>>>,
}

/// One way to an API server.
struct Way {
    /// Where its settings come from, for messages.
    place: PathBuf,
    /// `host:port`, for messages.
    server: String,
    client: kube::Client,
    token: Option<TokenFile>,
    /// When the credentials are no good any more.
    expires: Option<jiff::Timestamp>,
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

    /// Creates an object, by one request, in the namespace that it names.
    pub async fn create<K>(&self, object: &K) -> Result<(), CreateError>
    where
        K: kube::Resource<DynamicType = ()> + Serialize,
    {
        self.post(object).await?;
        Ok(())
    }

    /// Asks what the server says to an object, such as a review.
    pub(super) async fn ask<K>(&self, object: &K) -> Result<K, Failure>
    where
        K: kube::Resource<DynamicType = ()> + Serialize + DeserializeOwned,
    {
        let mut answer = self.post(object).await?;
        let text = answer.text(ANSWER_LIMIT, self.config.deadlines.answer).await?;
        let text = text.ok_or_else(|| Failure::Malformed("an answer that is too long".to_owned()))?;
        serde_json::from_slice(&text).map_err(|error| Failure::json(&error))
    }

    async fn post<K>(&self, object: &K) -> Result<Answer, Failure>
    where
        K: kube::Resource<DynamicType = ()> + Serialize,
    {
        let path = K::url_path(&(), object.meta().namespace.as_deref());
        let body = serde_json::to_vec(object).map_err(|error| Failure::json(&error))?;
        let request = kube::core::Request::new(path).create(&PostParams::default(), body);
        self.send(request, self.config.deadlines.answer).await
    }

    /// Sends a request. `patience`: how long a connection is waited for, the TLS handshake included. An answer other than
    /// success is a failure.
    pub(super) async fn send(
        &self,
        request: Result<Request<Vec<u8>>, kube::core::request::Error>,
        patience: Duration,
    ) -> Result<Answer, Failure> {
        let request = request.map_err(|_| Failure::Malformed("it does not fit into a URL".to_owned()))?;
        let deadline = self.config.deadlines.answer;
        // A plugin may take all of its time, and this watch wait for another one's before.
        let way = timeout(3 * deadline, self.way()).await.map_err(|_| Failure::Silent(deadline))??;
        let answer = timeout(deadline, way.send(request, patience)).await;
        let answer = match answer.unwrap_or(Err(Failure::Silent(deadline))) {
            Ok(answer) => answer,
            Err(failure) => {
                self.forget(&way).await;
                return Err(failure);
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
        let way = Way::new(&self.config).await?;
        Ok(Arc::clone(current.insert(Arc::new(way))))
    }

    /// Lets the next request find a new way, unless another watch has already done so.
    async fn forget(&self, failed: &Arc<Way>) {
        let mut current = self.current.lock().await;
        if current.as_ref().is_some_and(|current| Arc::ptr_eq(current, failed)) {
            *current = None;
        }
    }

    /// Reads why the server refused.
    async fn refusal(&self, mut answer: Answer) -> Failure {
        // A body that breaks off, is too long, or is none of the API server's (a proxy's, say) leaves the code alone.
        let text = answer.text(ANSWER_LIMIT, self.config.deadlines.answer).await.ok().flatten();
        let mut status: Status = text.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
        status.code = answer.status.as_u16();
        Failure::status(status, answer.retry_after)
    }
}

/// An answer whose body is still to come.
pub(super) struct Answer {
    status: StatusCode,
    /// In seconds.
    retry_after: Option<u64>,
    body: Body,
}

impl Answer {
    /// The next piece of the body; `None` at its end.
    pub(super) async fn chunk(&mut self, patience: Duration) -> Result<Option<Bytes>, Failure> {
        loop {
            match timeout(patience, self.body.frame()).await {
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

    /// The whole body; `None` if it is longer than `limit`, in bytes.
    pub(super) async fn text(&mut self, limit: usize, patience: Duration) -> Result<Option<Vec<u8>>, Failure> {
        let mut text = Vec::new();
        while let Some(chunk) = self.chunk(patience).await? {
            if text.len() + chunk.len() > limit {
                return Ok(None);
            }
            text.extend_from_slice(&chunk);
        }
        Ok(Some(text))
    }
}

impl Way {
    async fn new(config: &Arc<ClientConfig>) -> Result<Self, KubeError> {
        // It neither panics nor is cancelled but when the runtime ends.
        let interrupted = |_| KubeError::Usage("interrupted while reading the credentials");
        let reader = Arc::clone(config);
        let mut settings = tokio::task::spawn_blocking(move || reader.settings()).await.map_err(interrupted)??;
        let place = config.place();
        let mut expires = None;
        if let Some(plugin) = settings.plugin.take() {
            let given = plugin.identify(&mut settings.config.auth_info, config.deadlines.answer).await;
            expires = given.map_err(|problem| credentials(&place, format!("its exec plugin {problem}")))?;
            if settings.config.auth_info.token.is_some() {
                settings.token = None;
            }
        }
        // kube panics at one that does not.
        if let Some(token) = &settings.config.auth_info.token
            && HeaderValue::from_str(token.expose_secret()).is_err()
        {
            return Err(credentials(&place, NO_HEADER));
        }
        let agent = HeaderValue::from_static(concat!("trimtab/", env!("CARGO_PKG_VERSION")));
        settings.config.headers.push((USER_AGENT, agent));
        let (host, port) = host_and_port(&settings.config.cluster_url);
        let server = format!("{host}:{port}");
        let patience = config.deadlines.answer;
        let (config, proxy) = (settings.config, settings.proxy);
        let has_authority = config.root_cert.is_some();
        let built = tokio::task::spawn_blocking(move || client(&config, proxy.as_ref(), patience)).await;
        let client =
            built.map_err(interrupted)?.map_err(|error| credentials(&place, unbuilt(&error, has_authority)))?;
        let way = Self { place, server, client, token: settings.token, expires };
        // Whether the credentials make sense is known before the first request.
        way.authorization()?;
        Ok(way)
    }

    fn is_good(&self) -> bool {
        self.expires.is_none_or(|expires| jiff::Timestamp::now() < expires)
    }

    /// The header of that name, where it is not kube's to send. A file is read for it, small and local.
    fn authorization(&self) -> Result<Option<HeaderValue>, KubeError> {
        let Some(token) = &self.token else { return Ok(None) };
        // Its path is not shown: some write the token itself there.
        let token = token.read().map_err(|error| {
            credentials(&self.place, format!("the file of its token (tokenFile) cannot be read: {error}"))
        })?;
        let mut value =
            HeaderValue::from_str(&format!("Bearer {token}")).map_err(|_| credentials(&self.place, NO_HEADER))?;
        value.set_sensitive(true);
        Ok(Some(value))
    }

    async fn send(&self, mut request: Request<Vec<u8>>, patience: Duration) -> Result<Answer, Failure> {
        if let Some(authorization) = self.authorization()? {
            request.headers_mut().insert(AUTHORIZATION, authorization);
        }
        let mut request = request.map(Body::from);
        let mut connection = capture_connection(&mut request);
        let too_late = async {
            if timeout(patience, connection.wait_for_connection_metadata()).await.is_ok() {
                std::future::pending::<()>().await;
            }
        };
        let answer = tokio::select! {
            biased;
            answer = self.client.send(request) => answer.map_err(|error| Failure::transport(&error, Some(&self.server)))?,
            () = too_late => return Err(Failure::Silent(patience)),
        };
        let retry_after = answer.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        Ok(Answer { status: answer.status(), retry_after, body: answer.into_body() })
    }
}

const NO_HEADER: &str = "its token holds characters that a header cannot carry, such as a line break";

/// Why kube builds no client, without a word of what the credentials are. `has_authority`: a CA was given.
fn unbuilt(error: &kube::Error, has_authority: bool) -> &'static str {
    match error {
        kube::Error::RustlsTls(RustlsTlsError::AddRootCertificate(_) | RustlsTlsError::NoValidNativeRootCA(_)) => {
            if has_authority {
                "the CA is no valid certificate"
            } else {
                "it has no certificate-authority, nor has this image any"
            }
        }
        kube::Error::RustlsTls(RustlsTlsError::InvalidServerName(_)) => "tls-server-name is not a name",
        kube::Error::RustlsTls(_) => "the client certificate and key are not a valid pair in PEM",
        kube::Error::Auth(_) => NO_HEADER,
        _ => "whom it acts as does not fit into a header",
    }
}
