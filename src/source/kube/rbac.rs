//! Permissions: what the API server says that we may do, and the rule that is missing, in words.

use std::fmt;

use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec};

use super::Watch;
use super::client::Clients;
use super::failure::{CreateError, Failure};
use crate::model::object::Kind;

/// Whether a source may be listed and watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    Granted,
    /// Not all of it.
    Missing {
        /// `list`, `watch`.
        verbs: Vec<&'static str>,
        rule: Rule,
    },
    /// The API server could not be asked.
    Unknown {
        /// Why, and the remedy.
        message: String,
        /// Whether it did not accept who we are.
        forbidden: bool,
    },
}

/// A rule that a Role has to have. Prints as what to create.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    group: &'static str,
    resource: &'static str,
    /// `resourceNames`; all if `None`.
    name: Option<String>,
    verbs: &'static [&'static str],
    /// Of the Role; a ClusterRole if `None`.
    namespace: Option<String>,
}

impl Rule {
    /// To list and watch a source.
    #[must_use]
    pub fn to_read(watch: &Watch) -> Self {
        let (namespace, name) = watch.scope.place();
        Self {
            group: "",
            resource: resource(watch.kind),
            name: name.map(str::to_owned),
            verbs: &["list", "watch"],
            namespace: namespace.map(str::to_owned),
        }
    }

    /// To create Events in a namespace.
    #[must_use]
    pub fn to_create_events(namespace: &str) -> Self {
        let namespace = Some(namespace.to_owned());
        Self { group: "events.k8s.io", resource: "events", name: None, verbs: &["create"], namespace }
    }

    /// To take part in a rollout, by the Lease of this name.
    #[must_use]
    pub fn to_roll_out(namespace: &str, name: &str, verb: &str) -> Self {
        Self {
            group: "coordination.k8s.io",
            resource: "leases",
            ..Self::to_keep(Kind::ConfigMap, namespace, name, verb)
        }
    }

    /// To keep what new Pods of a fleet start from, in an object of this name. A name cannot restrict `create`.
    #[must_use]
    pub fn to_keep(kind: Kind, namespace: &str, name: &str, verb: &str) -> Self {
        let (name, verbs): (_, &'static [&'static str]) =
            if verb == "create" { (None, &["create"]) } else { (Some(name.to_owned()), &["get", "update"]) };
        Self { group: "", resource: resource(kind), name, verbs, namespace: Some(namespace.to_owned()) }
    }

    /// What a replica of a fleet needs beside its sources. `name`: of all objects that the fleet shares; `history`: whether it
    /// keeps what new Pods start from, and `secret`, whether some of that may be secret.
    #[must_use]
    pub fn of_a_fleet(namespace: &str, name: &str, history: bool, secret: bool) -> Vec<Self> {
        let verbs = ["create", "update"];
        let mut rules: Vec<_> = verbs.map(|verb| Self::to_roll_out(namespace, name, verb)).into();
        for kind in [Some(Kind::ConfigMap), Some(Kind::Secret).filter(|_| secret)].into_iter().flatten() {
            rules.extend(verbs.iter().filter(|_| history).map(|verb| Self::to_keep(kind, namespace, name, verb)));
        }
        rules
    }

    /// `Role` or `ClusterRole`, whose name with `Binding` is what binds it.
    #[must_use]
    pub fn role(&self) -> &'static str {
        if self.namespace.is_some() { "Role" } else { "ClusterRole" }
    }

    /// Where the Role has to be.
    #[must_use]
    pub fn namespace(&self) -> Option<&str> {
        self.namespace.as_deref()
    }

    /// As a Role has it: an item of a list, in lines of YAML.
    #[must_use]
    pub fn yaml(&self) -> String {
        format!("- {}", self.fields().join("\n  "))
    }

    fn fields(&self) -> Vec<String> {
        let mut fields = vec![format!("apiGroups: [{:?}]", self.group), format!("resources: [{:?}]", self.resource)];
        fields.extend(self.name.as_ref().map(|name| format!("resourceNames: [{name:?}]")));
        fields.push(format!("verbs: {:?}", self.verbs));
        fields
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let role = self.role();
        write!(f, "a {role}")?;
        if let Some(namespace) = &self.namespace {
            write!(f, " in namespace {namespace}")?;
        }
        write!(f, " with the rule {{{}}}, and a {role}Binding to it", self.fields().join(", "))
    }
}

/// The plural that stands in URLs and in RBAC rules.
pub(super) fn resource(kind: Kind) -> &'static str {
    match kind {
        Kind::Secret => "secrets",
        Kind::ConfigMap | Kind::Dir | Kind::Url => "configmaps",
    }
}

impl Clients {
    /// Who we are to the API server, if it says so.
    pub async fn who(&self) -> Option<String> {
        self.ask(&SelfSubjectReview::default()).await.ok()?.status?.user_info?.username
    }

    /// Which of a rule's verbs are not ours; an error where the API server does not say.
    pub async fn lacks(&self, rule: &Rule) -> Result<Vec<&'static str>, String> {
        let mut lacking = Vec::new();
        for verb in rule.verbs {
            let attributes = ResourceAttributes {
                group: Some(rule.group.to_owned()),
                resource: Some(rule.resource.to_owned()),
                namespace: rule.namespace.clone(),
                name: rule.name.clone(),
                ..ResourceAttributes::default()
            };
            match is_allowed(self, attributes, verb).await {
                Ok(true) => {}
                Ok(false) => lacking.push(*verb),
                Err(failure) => return Err(CreateError::from(failure).to_string()),
            }
        }
        Ok(lacking)
    }
}

/// Asks whether the source may be listed and watched.
pub async fn access(clients: &Clients, watch: &Watch) -> Access {
    let mut missing = Vec::new();
    for verb in ["list", "watch"] {
        // A list with the field selector metadata.name is authorized as one of that name.
        let (namespace, name) = watch.scope.place();
        let attributes = ResourceAttributes {
            resource: Some(resource(watch.kind).to_owned()),
            namespace: namespace.map(str::to_owned),
            name: name.map(str::to_owned),
            ..ResourceAttributes::default()
        };
        match is_allowed(clients, attributes, verb).await {
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
    if missing.is_empty() { Access::Granted } else { Access::Missing { verbs: missing, rule: Rule::to_read(watch) } }
}

async fn is_allowed(clients: &Clients, of: ResourceAttributes, verb: &str) -> Result<bool, Failure> {
    let attributes = ResourceAttributes { verb: Some(verb.to_owned()), version: Some("v1".to_owned()), ..of };
    let spec = SelfSubjectAccessReviewSpec { resource_attributes: Some(attributes), ..Default::default() };
    let review = clients.ask(&SelfSubjectAccessReview { spec, ..Default::default() }).await?;
    Ok(review.status.is_some_and(|status| status.allowed))
}
