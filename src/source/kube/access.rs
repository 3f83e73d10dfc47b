//! What we may do at the API server, by its own word (SelfSubjectAccessReview).

use serde::Deserialize;
use serde_json::json;

use super::client::Clients;
use super::trouble::{Failure, resource};
use super::{Scope, Watch};

const REVIEWS: &str = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";

/// The largest answer that is read, in bytes.
const ANSWER_LIMIT: usize = 64 << 10;

/// Whether a source may be listed and watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// It may.
    Granted,
    /// Not all of it.
    Missing {
        /// `list`, `watch`.
        verbs: Vec<&'static str>,
        /// `Role` or `ClusterRole`.
        role: &'static str,
        /// Where the Role has to be.
        namespace: Option<String>,
        /// The rule that is missing, as lines of YAML.
        rule: String,
    },
    /// The API server could not be asked.
    Unknown {
        /// Why, and the remedy.
        message: String,
        /// Whether it did not accept who we are.
        forbidden: bool,
    },
}

#[derive(Deserialize)]
struct Review {
    status: ReviewStatus,
}

#[derive(Deserialize)]
struct ReviewStatus {
    allowed: bool,
}

/// Asks whether the source may be listed and watched.
pub async fn access(clients: &Clients, watch: &Watch) -> Access {
    let mut missing = Vec::new();
    for verb in ["list", "watch"] {
        match is_allowed(clients, watch, verb).await {
            Ok(true) => {}
            Ok(false) => missing.push(verb),
            Err(Failure::Forbidden { .. }) => {
                let message = format!("{watch}: the API server does not say whether we may read it (403)");
                return Access::Unknown { message, forbidden: true };
            }
            Err(failure) => {
                let forbidden = matches!(failure, Failure::Unauthorized);
                return Access::Unknown { message: failure.message(watch, verb), forbidden };
            }
        }
    }
    if missing.is_empty() {
        return Access::Granted;
    }
    let (kind, namespace) = match &watch.scope {
        Scope::Named { namespace, .. } | Scope::Selected { namespace: Some(namespace), .. } => {
            ("Role", Some(namespace.clone()))
        }
        Scope::Selected { namespace: None, .. } => ("ClusterRole", None),
    };
    let names = match &watch.scope {
        Scope::Named { name, .. } => format!("\n  resourceNames: [{name:?}]"),
        Scope::Selected { .. } => String::new(),
    };
    let resource = resource(watch.kind);
    let rule = format!("- apiGroups: [\"\"]\n  resources: [{resource:?}]{names}\n  verbs: [\"list\", \"watch\"]");
    Access::Missing { verbs: missing, role: kind, namespace, rule }
}

async fn is_allowed(clients: &Clients, watch: &Watch, verb: &str) -> Result<bool, Failure> {
    // A list with the field selector metadata.name is authorized as one of that name.
    let (namespace, name) = match &watch.scope {
        Scope::Named { namespace, name } => (Some(namespace), Some(name)),
        Scope::Selected { namespace, .. } => (namespace.as_ref(), None),
    };
    let attributes = json!({
        "verb": verb, "group": "", "version": "v1", "resource": resource(watch.kind),
        "namespace": namespace, "name": name,
    });
    let review = json!({
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": attributes},
    });
    let mut answer = clients.post(REVIEWS, review.to_string().into_bytes()).await?;
    let mut text = Vec::new();
    while let Some(chunk) = answer.chunk(clients.deadlines().answer).await? {
        text.extend_from_slice(&chunk);
        if text.len() > ANSWER_LIMIT {
            return Err(Failure::Malformed("an access review that is too long".to_owned()));
        }
    }
    let review: Review = serde_json::from_slice(&text).map_err(|error| Failure::json(&error))?;
    Ok(review.status.allowed)
}
