//! What a fleet shares, by kube's typed API: read, created, and updated only if nobody else was faster.

use std::time::Duration;

use hyper::StatusCode;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::Resource;
use kube::api::{GetParams, PostParams};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::client::Clients;
use super::failure::{CreateError, Failure};
use super::rbac::Rule;
use crate::model::object::Kind;

/// An object that a fleet shares.
pub trait Stored: Resource<DynamicType = ()> + Serialize + DeserializeOwned {
    /// What of an answer is read, in bytes: the API server holds no larger one.
    const LIMIT: usize;

    /// What it takes to do this.
    fn rule(namespace: &str, name: &str, verb: &'static str) -> Rule;
}

impl Stored for Lease {
    /// 256 KiB of annotations, twice.
    const LIMIT: usize = 512 << 10;

    fn rule(namespace: &str, name: &str, verb: &'static str) -> Rule {
        Rule::to_roll_out(namespace, name, verb)
    }
}

impl Stored for ConfigMap {
    /// 1 MiB of data, in which each byte can take six.
    const LIMIT: usize = 8 << 20;

    fn rule(namespace: &str, name: &str, verb: &'static str) -> Rule {
        Rule::to_keep(Kind::ConfigMap, namespace, name, verb)
    }
}

impl Stored for Secret {
    const LIMIT: usize = 4 << 20;

    fn rule(namespace: &str, name: &str, verb: &'static str) -> Rule {
        Rule::to_keep(Kind::Secret, namespace, name, verb)
    }
}

/// Why an object was not read or not written. Holds none of its content.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoredError {
    /// 403.
    #[error("{} may not {verb} it (403). It needs {rule}", user.as_deref().unwrap_or("this user"))]
    Forbidden {
        /// Whom the server took us for.
        user: Option<String>,
        verb: &'static str,
        rule: Rule,
    },
    /// It was not done.
    #[error("{why}")]
    Refused {
        why: String,
        /// How long the server asks to be left alone.
        after: Duration,
    },
    /// No answer came: it may have been done.
    #[error("{why}")]
    Lost {
        why: String,
        /// How long the server asks to be left alone.
        after: Duration,
    },
}

impl Clients {
    /// The object, `None` where there is none; not `quorum`: as the API server's cache has it.
    pub async fn read_stored<K: Stored>(
        &self,
        namespace: &str,
        name: &str,
        quorum: bool,
    ) -> Result<Option<K>, StoredError> {
        let path = kube::core::Request::new(K::url_path(&(), Some(namespace)));
        let params = GetParams { resource_version: (!quorum).then(|| "0".to_owned()) };
        match self.stored(path.get(name, &params)).await {
            Err(Failure::Refused { code: 404, .. }) => Ok(None),
            answer => answer.map(Some).map_err(|failure| error::<K>(failure, "get", namespace, name)),
        }
    }

    /// Creates the object where it has no `resourceVersion`, else updates that version; `None` where another was faster.
    pub async fn write_stored<K: Stored>(&self, object: &K) -> Result<Option<K>, StoredError> {
        let name = object.meta().name.clone().unwrap_or_default();
        let namespace = object.meta().namespace.clone().unwrap_or_default();
        let path = kube::core::Request::new(K::url_path(&(), Some(&namespace)));
        let (verb, params) =
            (if object.meta().resource_version.is_none() { "create" } else { "update" }, PostParams::default());
        let sent = match serde_json::to_vec(object) {
            Err(problem) => Err(Failure::json(&problem)),
            Ok(body) if verb == "create" => self.stored(path.create(&params, body)).await,
            Ok(body) => self.stored(path.replace(&name, &params, body)).await,
        };
        match sent {
            // Another created or changed it, or it is gone.
            Err(Failure::Refused { code: 404 | 409, .. }) => Ok(None),
            answer => answer.map(Some).map_err(|failure| error::<K>(failure, verb, &namespace, &name)),
        }
    }

    async fn stored<K: Stored>(
        &self,
        request: Result<hyper::Request<Vec<u8>>, kube::core::request::Error>,
    ) -> Result<K, Failure> {
        let patience: Duration = self.deadlines().answer;
        let mut answer = self.send(request, patience).await?;
        let text = answer.text(K::LIMIT, patience).await?;
        let text = text.ok_or_else(|| Failure::Malformed("an object that is too long".to_owned()))?;
        serde_json::from_slice(&text).map_err(|problem| Failure::json(&problem))
    }
}

fn error<K: Stored>(failure: Failure, verb: &'static str, namespace: &str, name: &str) -> StoredError {
    let after = match &failure {
        Failure::Refused { after, .. } => after.unwrap_or_default(),
        _ => Duration::ZERO,
    };
    let refused = |why: String| StoredError::Refused { why, after };
    match failure {
        Failure::Forbidden { user } => StoredError::Forbidden { user, verb, rule: K::rule(namespace, name, verb) },
        Failure::Refused { code: 404, .. } => refused(format!("there is no {name}, or no namespace {namespace}")),
        Failure::Refused { code: 429, .. } => refused("the API server is overloaded or throttles us (429)".to_owned()),
        Failure::Refused { code, .. } if code < StatusCode::INTERNAL_SERVER_ERROR.as_u16() => {
            refused(format!("the API server refused to {verb} it (HTTP {code})"))
        }
        Failure::Setup(problem) => refused(problem.to_string()),
        // What the connection or the server failed at may have been done.
        failure => StoredError::Lost { why: CreateError::from(failure).to_string(), after },
    }
}
