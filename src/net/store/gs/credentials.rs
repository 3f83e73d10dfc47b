//! Who asks Google's store: a key, a federated identity, or the Pod's own on GKE. Ours, as reqsign's brings a second library
//! for RSA, and its tokens go past our bounds.

use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use bytes::Bytes;
use hyper::Method;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderName, HeaderValue};
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio_rustls::rustls::SignatureScheme;
use tokio_rustls::rustls::crypto::ring::sign::any_supported_type;

use super::EMULATOR;
use crate::net::credentials::Header;
use crate::net::request::{HttpConfig, SignError};
use crate::net::store::Environment;
use crate::net::store::address::encoded;
use crate::net::store::ask::Ask;
use crate::net::store::token::{Token, Tokens};
use crate::net::tls;
use crate::os::file::read_regular;

/// Where the file is that says who asks, as Google's own libraries have it.
const FILE: &str = "GOOGLE_APPLICATION_CREDENTIALS";
/// Where another metadata server is.
const METADATA: &str = "GCE_METADATA_HOST";
/// By its name, not its address: elsewhere the name is unknown at once, and the address is another cloud's, or silent.
const GOOGLE_METADATA: &str = "metadata.google.internal";
/// The largest file, in bytes.
const LARGEST: u64 = 64 * 1024;
/// What a token is for, and what one is for that only another one is got by.
const SCOPE: &str = "https://www.googleapis.com/auth/devstorage.read_write";
const ANY_SCOPE: &str = "https://www.googleapis.com/auth/cloud-platform";
/// How long a token is asked for.
const LIFE: u64 = 3600;

/// A way to a token.
enum Way {
    File(String),
    /// The host, and its port if it has one.
    Metadata(String),
}

/// Who asks.
pub(in crate::net::store) struct Credentials {
    way: Way,
    http: HttpConfig,
    tokens: Tokens,
}

impl Credentials {
    /// `None`: nobody, as an emulator wants no one unless the environment says who.
    pub(super) fn of(environment: &Environment, http: &HttpConfig) -> Option<Self> {
        let way = match (environment.get(FILE), environment.get(METADATA)) {
            (Some(file), _) => Way::File(file.to_owned()),
            (None, Some(host)) => Way::Metadata(host.to_owned()),
            (None, None) if environment.get(EMULATOR).is_some() => return None,
            (None, None) => Way::Metadata(GOOGLE_METADATA.to_owned()),
        };
        Some(Self { way, http: http.clone(), tokens: Tokens::default() })
    }

    /// As `Authorization` has it.
    pub(super) async fn token(&self) -> Result<HeaderValue, SignError> {
        self.tokens.get(self.fresh()).await
    }

    async fn fresh(&self) -> Result<Token, SignError> {
        match &self.way {
            // Anew each time: a mounted Secret may have been replaced.
            Way::File(path) => {
                let file = Json::read(FILE, path)?;
                match file.text("type")? {
                    "service_account" => self.by_key(&file).await,
                    "external_account" => self.by_federation(&file).await,
                    _ => Err(file.wrong("type", "is neither service_account nor external_account")),
                }
            }
            // For its first seconds a Pod on GKE has no metadata server: so this may pass.
            Way::Metadata(host) => self.by_metadata(host).await.map_err(|error| {
                SignError::passing(format!(
                    "there are no credentials for the object store: {FILE} is not set, and the metadata server, which has them on GKE, \
                     gives none ({error}); give one of these, or --url-anonymous for a public bucket"
                ))
            }),
        }
    }

    /// What the metadata server of the node says, which on GKE is for the Pod's service account.
    async fn by_metadata(&self, host: &str) -> Result<Token, SignError> {
        let headers = vec![Header::sensitive(HeaderName::from_static("metadata-flavor"), b"Google")];
        let url = format!("http://{host}/computeMetadata/v1/instance/service-accounts/default/token");
        let hint = "is Workload Identity Federation on for this node pool, or has the node a service account?";
        self.ask(METADATA, &url, Method::GET, headers, Bytes::new(), hint).await?.token()
    }

    /// A token for a signed statement of who this is (RFC 7523).
    async fn by_key(&self, file: &Json<'_>) -> Result<Token, SignError> {
        let url = file.text("token_uri")?;
        let assertion = assertion(file, url, Timestamp::now().as_second())?;
        let body = format!("grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Ajwt-bearer&assertion={assertion}");
        let hint = "is the service account's key not deleted, and this machine's clock right?";
        self.ask(FILE, url, Method::POST, vec![form()], body.into(), hint).await?.token()
    }

    /// A token for another one's, by which that of a service account is asked for where the file names one (RFC 8693).
    async fn by_federation(&self, file: &Json<'_>) -> Result<Token, SignError> {
        let subject = subject(file)?;
        let account = file.value["service_account_impersonation_url"].as_str();
        let scope = if account.is_some() { ANY_SCOPE } else { SCOPE };
        let body = [
            ("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange"),
            ("requested_token_type", "urn:ietf:params:oauth:token-type:access_token"),
            ("audience", file.text("audience")?),
            ("scope", scope),
            ("subject_token_type", file.text("subject_token_type")?),
            ("subject_token", &subject),
        ];
        let body: Vec<_> = body.iter().map(|(name, value)| format!("{name}={}", encoded(value, false))).collect();
        let hint = "does the workload identity pool's provider take tokens of this issuer and audience?";
        let url = file.text("token_url")?;
        let answer = self.ask(FILE, url, Method::POST, vec![form()], body.join("&").into(), hint).await?;
        let Some(url) = account else { return answer.token() };
        let life = &file.value["service_account_impersonation"]["token_lifetime_seconds"];
        let life = format!("{}s", life.as_u64().unwrap_or(LIFE));
        let bearer = format!("Bearer {}", answer.text("access_token")?);
        let headers = vec![
            Header::sensitive(AUTHORIZATION, bearer.as_bytes()),
            Header::sensitive(CONTENT_TYPE, b"application/json"),
        ];
        let body = json!({ "scope": [SCOPE], "lifetime": life }).to_string();
        let hint = "does the service account give this identity roles/iam.workloadIdentityUser?";
        let answer = self.ask(FILE, url, Method::POST, headers, body.into(), hint).await?;
        let end: Timestamp =
            answer.text("expireTime")?.parse().map_err(|_| answer.wrong("expireTime", "is no time"))?;
        let life = end.duration_since(Timestamp::now()).try_into().unwrap_or_default();
        Token::bearer(answer.text("accessToken")?, life).ok_or_else(|| answer.wrong("accessToken", "is no token"))
    }

    async fn ask(
        &self,
        from: &str,
        url: &str,
        method: Method,
        headers: Vec<Header>,
        body: Bytes,
        hint: &'static str,
    ) -> Result<Json<'static>, SignError> {
        let endpoint =
            url.parse().map_err(|_| SignError::lasting(format!("{from} names a service by what is no URL")))?;
        // The metadata server is on this node.
        let is_remote = from != METADATA;
        let answer = Ask { endpoint, is_remote, method, headers, body, hint }.send(&self.http).await?;
        Json::of("what the service that hands out credentials answered", &answer)
    }
}

fn form() -> Header {
    Header::sensitive(CONTENT_TYPE, b"application/x-www-form-urlencoded")
}

/// Of which no value is ever shown.
struct Json<'a> {
    /// What it is.
    at: std::borrow::Cow<'a, str>,
    value: Value,
}

impl<'a> Json<'a> {
    fn of(at: impl Into<std::borrow::Cow<'a, str>>, bytes: &[u8]) -> Result<Self, SignError> {
        let at = at.into();
        match serde_json::from_slice(bytes) {
            Ok(value) => Ok(Self { at, value }),
            Err(_) => Err(SignError::passing(format!("{at} is no JSON"))),
        }
    }

    fn read(from: &str, path: &str) -> Result<Self, SignError> {
        let read = read_regular(Path::new(path), LARGEST);
        let read =
            read.map_err(|error| SignError::passing(format!("the credentials that {from} names, {path}: {error}")));
        Self::of(path.to_owned(), &read?.0)
    }

    fn wrong(&self, name: &str, how: &str) -> SignError {
        SignError::passing(format!("{}: its {name} {how}", self.at))
    }

    fn text(&self, name: &str) -> Result<&str, SignError> {
        self.value[name].as_str().ok_or_else(|| self.wrong(name, "is missing"))
    }

    /// As OAuth has it (RFC 6749, section 5.1).
    fn token(&self) -> Result<Token, SignError> {
        let life = Duration::from_secs(self.value["expires_in"].as_u64().unwrap_or(LIFE));
        Token::bearer(self.text("access_token")?, life).ok_or_else(|| self.wrong("access_token", "is no token"))
    }
}

/// The token to be exchanged: read anew each time, as the kubelet rotates it.
fn subject(file: &Json) -> Result<String, SignError> {
    let source = &file.value["credential_source"];
    let path = source["file"].as_str();
    let path =
        path.ok_or_else(|| file.wrong("credential_source", "has no file: a token from elsewhere is not supported"))?;
    let read = read_regular(Path::new(path), LARGEST).map_err(|error| {
        SignError::passing(format!(
            "the token to ask for credentials by, {path}: {error}; it is a projected volume of the Pod, whose fsGroup may have to let \
             this user read it"
        ))
    })?;
    let text = match source["format"]["subject_token_field_name"].as_str() {
        Some(name) => Json::of(path, &read.0)?.text(name)?.to_owned(),
        None => String::from_utf8_lossy(&read.0).into_owned(),
    };
    Ok(text.trim().to_owned())
}

/// That this is the service account, signed by its key (RFC 7519).
fn assertion(file: &Json, audience: &str, now: i64) -> Result<String, SignError> {
    let bad = || file.wrong("private_key", "is no RSA key in PEM");
    let key = tls::private_key(file.text("private_key")?.as_bytes()).map_err(|_| bad())?;
    let key = any_supported_type(&key).map_err(|_| bad())?;
    let signer = key.choose_scheme(&[SignatureScheme::RSA_PKCS1_SHA256]).ok_or_else(bad)?;
    let header = json!({ "alg": "RS256", "typ": "JWT", "kid": file.value["private_key_id"] });
    let claims = json!({
        "iss": file.text("client_email")?,
        "scope": SCOPE,
        "aud": audience,
        "iat": now,
        "exp": now + i64::try_from(LIFE).unwrap_or(i64::MAX),
    });
    let [header, claims] = [header, claims].map(|part| BASE64_URL_SAFE_NO_PAD.encode(part.to_string()));
    let said = format!("{header}.{claims}");
    let signature = signer.sign(said.as_bytes()).map_err(|_| bad())?;
    Ok(format!("{said}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature)))
}
