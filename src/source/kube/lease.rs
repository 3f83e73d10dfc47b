//! A Lease by kube's typed API: read, created, and updated only if nobody else was faster.

use std::time::Duration;

use hyper::StatusCode;
use k8s_openapi::api::coordination::v1::Lease;
use kube::Resource as _;
use kube::api::{GetParams, PostParams};

use super::client::Clients;
use super::failure::{CreateError, Failure};
use super::rbac::Rule;

/// What of an answer is read, in bytes: the API server holds no larger annotations than 256 KiB.
const LEASE_LIMIT: usize = 512 << 10;

/// Why a Lease was not read or not written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LeaseError {
    /// 403.
    #[error("{} may not {verb} it (403). It needs {rule}", user.as_deref().unwrap_or("this user"))]
    Forbidden {
        /// Whom the server took us for.
        user: Option<String>,
        verb: &'static str,
        rule: Rule,
    },
    /// It was not done.
    #[error("{0}")]
    Refused(String),
    /// No answer came: it may have been done.
    #[error("{0}")]
    Lost(String),
}

impl Clients {
    /// The Lease, `None` where there is none; not `quorum`: as the API server's cache has it.
    pub async fn read_lease(&self, namespace: &str, name: &str, quorum: bool) -> Result<Option<Lease>, LeaseError> {
        let path = kube::core::Request::new(Lease::url_path(&(), Some(namespace)));
        let params = GetParams { resource_version: (!quorum).then(|| "0".to_owned()) };
        match self.lease(path.get(name, &params)).await {
            Err(Failure::Refused { code: 404, .. }) => Ok(None),
            answer => answer.map(Some).map_err(|failure| error(failure, "get", namespace, name)),
        }
    }

    /// Creates the Lease where it has no `resourceVersion`, else updates that version; `None` where another was faster.
    pub async fn write_lease(&self, lease: &Lease) -> Result<Option<Lease>, LeaseError> {
        let name = lease.metadata.name.clone().unwrap_or_default();
        let namespace = lease.metadata.namespace.clone().unwrap_or_default();
        let path = kube::core::Request::new(Lease::url_path(&(), Some(&namespace)));
        let (verb, params) =
            (if lease.metadata.resource_version.is_none() { "create" } else { "update" }, PostParams::default());
        let sent = match serde_json::to_vec(lease) {
            Err(problem) => Err(Failure::json(&problem)),
            Ok(body) if verb == "create" => self.lease(path.create(&params, body)).await,
            Ok(body) => self.lease(path.replace(&name, &params, body)).await,
        };
        match sent {
            // Another created or changed it, or it is gone.
            Err(Failure::Refused { code: 404 | 409, .. }) => Ok(None),
            answer => answer.map(Some).map_err(|failure| error(failure, verb, &namespace, &name)),
        }
    }

    async fn lease(
        &self,
        request: Result<hyper::Request<Vec<u8>>, kube::core::request::Error>,
    ) -> Result<Lease, Failure> {
        let patience: Duration = self.deadlines().answer;
        let mut answer = self.send(request, patience).await?;
        let text = answer.text(LEASE_LIMIT, patience).await?;
        let text = text.ok_or_else(|| Failure::Malformed("a Lease that is too long".to_owned()))?;
        serde_json::from_slice(&text).map_err(|problem| Failure::json(&problem))
    }
}

fn error(failure: Failure, verb: &'static str, namespace: &str, name: &str) -> LeaseError {
    match failure {
        Failure::Forbidden { user } => LeaseError::Forbidden { user, verb, rule: Rule::to_roll_out(namespace) },
        Failure::Refused { code: 404, .. } => {
            LeaseError::Refused(format!("there is no Lease {name}, or no namespace {namespace}"))
        }
        Failure::Refused { code, .. } if code < StatusCode::INTERNAL_SERVER_ERROR.as_u16() && code != 429 => {
            LeaseError::Refused(format!("the API server refused to {verb} it (HTTP {code})"))
        }
        Failure::Setup(problem) => LeaseError::Refused(problem.to_string()),
        // What the connection or the server failed at may have been done.
        failure => LeaseError::Lost(CreateError::from(failure).to_string()),
    }
}
