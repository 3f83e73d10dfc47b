//! `ConfigMaps` and Secrets from the API server: list, then watch from there, for ever.
//!
//! Configuration, authentication, TLS and requests are kube's. The loop is ours, as `kube_runtime::watcher` 5 hides
//! bookmarks, ends and the moment at which a watch stands, which are the signs of life of a quiet one; it holds pages of
//! 500 objects; and its backoff starts afresh with each list, also one that fails.

mod client;
mod config;
mod connect;
mod failure;
mod holdings;
mod lines;
mod plugin;
mod presence;
mod rbac;
mod stored;
mod watch;
mod wire;

use std::fmt;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::Resource as _;
use kube::api::{ListParams, WatchParams};

pub use self::client::Clients;
pub use self::config::{ClientConfig, Deadlines, InCluster, KubeError, default_namespace};
pub use self::failure::CreateError;
pub use self::presence::missing;
pub use self::rbac::{Access, Rule, access};
pub use self::stored::{Stored, StoredError};
pub use self::watch::watch;
use crate::model::object::Kind;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// One, which need not exist.
    Named { namespace: String, name: String },
    /// All with these labels.
    Selected {
        /// A label selector, as `kubectl --selector` takes it.
        selector: String,
        /// `None`: all.
        namespace: Option<String>,
    },
}

impl Scope {
    /// The namespace and the name that a Role for it has to have; all if `None`.
    fn place(&self) -> (Option<&str>, Option<&str>) {
        match self {
            Self::Named { namespace, name } => (Some(namespace), Some(name)),
            Self::Selected { namespace, .. } => (namespace.as_deref(), None),
        }
    }
}

/// What one source watches. Prints as `configmap/NS/NAME`, `configmap/NS/[SELECTOR]` or `configmap/*/[SELECTOR]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watch {
    /// The index that its updates carry.
    pub source: usize,
    /// `ConfigMap` or `Secret`.
    pub kind: Kind,
    pub scope: Scope,
    /// Which labels and annotations are kept of each object, as [`crate::model::object::Marks`] names them.
    pub marks: Arc<[String]>,
}

impl fmt::Display for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.scope {
            Scope::Named { namespace, name } => write!(f, "{}/{namespace}/{name}", self.kind),
            Scope::Selected { selector, namespace } => {
                write!(f, "{}/{}/[{selector}]", self.kind, namespace.as_deref().unwrap_or("*"))
            }
        }
    }
}

impl Watch {
    fn resource(&self) -> kube::core::Request {
        let (namespace, _) = self.scope.place();
        kube::core::Request::new(match self.kind {
            Kind::Secret => Secret::url_path(&(), namespace),
            Kind::ConfigMap | Kind::Dir | Kind::Url => ConfigMap::url_path(&(), namespace),
        })
    }

    /// With `metadata.name` as the field, a Role with `resourceNames` suffices.
    fn list(&self) -> ListParams {
        match &self.scope {
            Scope::Named { name, .. } => ListParams::default().fields(&format!("metadata.name={name}")),
            Scope::Selected { selector, .. } => ListParams::default().labels(selector),
        }
    }

    fn follow(&self) -> WatchParams {
        let ListParams { field_selector, label_selector, .. } = self.list();
        WatchParams { field_selector, label_selector, ..WatchParams::default() }
    }
}
