//! The identity that a cloud puts into a Pod: reqsign asks for it, over our connections.

use std::collections::HashMap;
use std::fmt;
use std::path::Path;

use bytes::Bytes;
use hyper::{Request, Response, StatusCode, Uri};
use reqsign_aws_v4::{
    AssumeRoleWithWebIdentityCredentialProvider, Credential, ECSCredentialProvider, IMDSv2CredentialProvider,
    StaticCredentialProvider,
};
use reqsign_core::{Context, Env, Error, FileRead, HttpSend, ProvideCredentialDyn};

use crate::net::credentials::Header;
use crate::net::endpoint::Endpoint;
use crate::net::request::{HttpConfig, SignError};
use crate::net::store::ask::Ask;
use crate::net::store::{Access, Environment};
use crate::os::file::read_regular;

/// The largest token, in bytes.
const TOKEN: u64 = 64 * 1024;
/// Another place of AWS' token service, as of an endpoint in the own network.
const STS: &str = "AWS_ENDPOINT_URL_STS";

const NONE: &str = "there are no credentials for the object store: neither AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, nor AWS_ROLE_ARN \
     and AWS_WEB_IDENTITY_TOKEN_FILE (IRSA), nor AWS_CONTAINER_CREDENTIALS_FULL_URI (EKS Pod Identity) are set; give one of these, or \
     --url-anonymous for a public bucket, or --url-instance-identity for the node's own role";

/// A way to an identity.
pub(super) type Provider = std::sync::Arc<dyn ProvideCredentialDyn<Credential = Credential>>;

/// The way that the environment shows: the first of those that AWS' own tools try, of which all is there.
pub(super) fn provider(
    environment: &Environment,
    region: &str,
    access: Access,
    http: &HttpConfig,
) -> Result<(Context, Provider), SignError> {
    let get = |name: &str| environment.get(name);
    let half = |there: &str, missing: &str| {
        Err(SignError::lasting(format!("{there} is set, and {missing} is not: it takes both")))
    };
    let provider: Provider = match (get("AWS_ACCESS_KEY_ID"), get("AWS_SECRET_ACCESS_KEY")) {
        (Some(id), Some(secret)) => match get("AWS_SESSION_TOKEN") {
            Some(token) => std::sync::Arc::new(StaticCredentialProvider::new(id, secret).with_session_token(token)),
            None => std::sync::Arc::new(StaticCredentialProvider::new(id, secret)),
        },
        (Some(_), None) => return half("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
        (None, Some(_)) => return half("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"),
        (None, None) => match (get("AWS_ROLE_ARN"), get("AWS_WEB_IDENTITY_TOKEN_FILE")) {
            (Some(role), Some(file)) => {
                let session = get("AWS_ROLE_SESSION_NAME").unwrap_or("trimtab").to_owned();
                let role = AssumeRoleWithWebIdentityCredentialProvider::with_config(role.to_owned(), file.into());
                let role = role.with_role_session_name(session).with_region(region.to_owned());
                std::sync::Arc::new(role.with_regional_sts_endpoint())
            }
            (Some(_), None) => return half("AWS_ROLE_ARN", "AWS_WEB_IDENTITY_TOKEN_FILE"),
            (None, Some(_)) => return half("AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_ROLE_ARN"),
            (None, None) => {
                let [full, relative] =
                    ["AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"].map(get);
                if full.or(relative).is_some() {
                    std::sync::Arc::new(ECSCredentialProvider::new())
                } else if access.instance_identity {
                    std::sync::Arc::new(IMDSv2CredentialProvider::new())
                } else {
                    return Err(SignError::lasting(NONE));
                }
            }
        },
    };
    let own = Own { environment: environment.clone(), http: http.clone() };
    Ok((Context::new().with_env(own.clone()).with_file_read(own.clone()).with_http_send(own), provider))
}

/// Ours among the causes: the library's texts quote answers, which may hold tokens.
pub(super) fn explain(error: &Error) -> SignError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(own) = error.downcast_ref::<SignError>() {
            return own.clone();
        }
        cause = error.source();
    }
    SignError::passing(
        "who asks for credentials got an answer that makes no sense, or credentials that are past their time; is this machine's \
         clock right?",
    )
}

/// What reqsign asks by.
#[derive(Clone)]
struct Own {
    environment: Environment,
    http: HttpConfig,
}

impl fmt::Debug for Own {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Own(…)")
    }
}

impl Env for Own {
    fn var(&self, name: &str) -> Option<String> {
        self.environment.get(name).map(str::to_owned)
    }

    fn vars(&self) -> HashMap<String, String> {
        self.environment.0.clone().into_iter().collect()
    }

    fn home_dir(&self) -> Option<std::path::PathBuf> {
        None
    }
}

impl FileRead for Own {
    /// A token, anew each time: the kubelet rotates it.
    async fn file_read(&self, path: &str) -> Result<Vec<u8>, Error> {
        read_regular(Path::new(path), TOKEN).map(|(bytes, _)| bytes).map_err(|error| {
            own(SignError::passing(format!(
                "the token to ask for credentials by, {path}: {error}; it is a projected volume that the cloud's webhook adds to the \
                 Pod, and its fsGroup may have to let this user read it"
            )))
        })
    }
}

impl HttpSend for Own {
    async fn http_send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, Error> {
        self.ask(request).await.map_err(own)
    }
}

fn own(error: SignError) -> Error {
    Error::unexpected("the credentials did not come").with_source(error)
}

impl Own {
    async fn ask(&self, request: Request<Bytes>) -> Result<Response<Bytes>, SignError> {
        let (head, body) = request.into_parts();
        let headers = head.headers.iter().map(|(name, value)| Header::sensitive(name.clone(), value.as_bytes()));
        let ask = Ask {
            endpoint: self.endpoint(&head.uri)?,
            // What has no TLS is on this node.
            is_remote: head.uri.scheme_str() == Some("https"),
            method: head.method,
            headers: headers.collect(),
            body,
            hint: "does the role's trust policy name this cluster and this service account, and is there such a role?",
        };
        let answer = ask.send(&self.http).await?;
        let mut response = Response::new(Bytes::from(answer));
        *response.status_mut() = StatusCode::OK;
        Ok(response)
    }

    fn endpoint(&self, uri: &Uri) -> Result<Endpoint, SignError> {
        let is_sts = uri.host().is_some_and(|host| host.starts_with("sts."));
        let (given, name) = match self.environment.get(STS).filter(|_| is_sts) {
            Some(given) => (given.to_owned(), STS),
            None => (uri.to_string(), "AWS_CONTAINER_CREDENTIALS_FULL_URI"),
        };
        given.parse().map_err(|_| SignError::lasting(format!("{name} is no URL")))
    }
}
