//! Tokens of Microsoft Entra ID: for the Pod's own identity, or the node's.

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use hyper::Method;
use hyper::header::{self, HeaderName, HeaderValue};

use crate::net::credentials::Header;
use crate::net::endpoint::Endpoint;
use crate::net::request::{HttpConfig, SignError};
use crate::net::store::address::encoded;
use crate::net::store::ask::Ask;
use crate::net::store::token::{Token, Tokens};
use crate::net::store::{Access, Environment};
use crate::os::file::read_regular;

/// The largest token, in bytes.
const LONGEST: u64 = 64 * 1024;

/// What AKS' webhook sets.
const FILE: &str = "AZURE_FEDERATED_TOKEN_FILE";
const CLIENT: &str = "AZURE_CLIENT_ID";
const TENANT: &str = "AZURE_TENANT_ID";
const AUTHORITY: &str = "AZURE_AUTHORITY_HOST";
/// Another place of the node's metadata service, by the name that Azure's own libraries have for it.
const INSTANCE: &str = "AZURE_POD_IDENTITY_AUTHORITY_HOST";

/// What tokens are for.
const SCOPE: &str = "https://storage.azure.com/.default";
const RESOURCE: &str = "https://storage.azure.com/";

const NONSENSE: &str = "who was asked for a token gave an answer that makes no sense; is it Microsoft Entra ID, or Azure's metadata service?";

/// Where tokens come from.
pub(in crate::net::store) struct Entra {
    way: Way,
    http: HttpConfig,
    tokens: Tokens,
}

enum Way {
    /// By the Pod's own token.
    Workload { endpoint: Endpoint, client: String, file: PathBuf },
    /// Of the node.
    Instance { endpoint: Endpoint },
}

/// The way that the environment shows; `None`: none.
pub(super) fn entra(environment: &Environment, access: Access, http: &HttpConfig) -> Result<Option<Entra>, SignError> {
    let at = |name: &str, otherwise: &str, rest: &str| {
        let given = environment.get(name).unwrap_or(otherwise).trim_end_matches('/');
        format!("{given}/{rest}").parse().map_err(|_| SignError::lasting(format!("{name} is no URL")))
    };
    let way = match (environment.get(FILE), environment.get(CLIENT), environment.get(TENANT)) {
        (Some(file), Some(client), Some(tenant)) => {
            let rest = format!("{}/oauth2/v2.0/token", encoded(tenant, false));
            let endpoint = at(AUTHORITY, "https://login.microsoftonline.com", &rest)?;
            Way::Workload { endpoint, client: client.to_owned(), file: file.into() }
        }
        (Some(_), client, _) => {
            let missing = if client.is_none() { CLIENT } else { TENANT };
            return Err(SignError::lasting(format!(
                "{FILE} is set, and {missing} is not: has the Pod's service account the annotation azure.workload.identity/client-id?"
            )));
        }
        (None, client, _) if access.instance_identity => {
            // A node may have several.
            let client = client.map(|client| format!("&client_id={}", encoded(client, false))).unwrap_or_default();
            let resource = encoded(RESOURCE, false);
            let rest = format!("metadata/identity/oauth2/token?api-version=2018-02-01&resource={resource}{client}");
            Way::Instance { endpoint: at(INSTANCE, "http://169.254.169.254", &rest)? }
        }
        (None, ..) => return Ok(None),
    };
    Ok(Some(Entra { way, http: http.clone(), tokens: Tokens::default() }))
}

impl Entra {
    /// A token as a request has it.
    pub(super) async fn header(&self) -> Result<HeaderValue, SignError> {
        let fresh = async {
            let answer = self.ask()?.send(&self.http).await?;
            read(&answer).ok_or_else(|| SignError::passing(NONSENSE))
        };
        self.tokens.get(fresh).await
    }

    fn ask(&self) -> Result<Ask, SignError> {
        match &self.way {
            Way::Workload { endpoint, client, file } => {
                // Anew each time: the kubelet rotates it.
                let token = read_regular(file, LONGEST).map_err(|error| {
                    SignError::passing(format!(
                        "the token to ask for credentials by, {}: {error}; it is a projected volume that the cloud's webhook adds to the \
                         Pod, and its fsGroup may have to let this user read it",
                        file.display()
                    ))
                })?;
                let token = String::from_utf8_lossy(&token.0).trim().to_owned();
                let body = format!(
                    "grant_type=client_credentials&client_id={}&scope={}&client_assertion_type={}&client_assertion={}",
                    encoded(client, false),
                    encoded(SCOPE, false),
                    encoded("urn:ietf:params:oauth:client-assertion-type:jwt-bearer", false),
                    encoded(&token, false),
                );
                let form = b"application/x-www-form-urlencoded";
                Ok(Ask {
                    endpoint: endpoint.clone(),
                    is_remote: true,
                    method: Method::POST,
                    headers: vec![Header::sensitive(header::CONTENT_TYPE, form)],
                    body: Bytes::from(body),
                    hint: "has the identity of AZURE_CLIENT_ID a federated credential for this cluster's issuer and this service account?",
                })
            }
            Way::Instance { endpoint } => Ok(Ask {
                endpoint: endpoint.clone(),
                is_remote: false,
                method: Method::GET,
                headers: vec![Header::sensitive(HeaderName::from_static("metadata"), b"true")],
                body: Bytes::new(),
                hint: "has this node a managed identity, and is AZURE_CLIENT_ID one of its own, or not set?",
            }),
        }
    }
}

/// The token of an answer.
fn read(answer: &[u8]) -> Option<Token> {
    let answer: serde_json::Value = serde_json::from_slice(answer).ok()?;
    // A text at the metadata service.
    let life = &answer["expires_in"];
    let life = life.as_u64().or_else(|| life.as_str()?.parse().ok())?;
    Token::bearer(answer["access_token"].as_str()?, Duration::from_secs(life))
}
