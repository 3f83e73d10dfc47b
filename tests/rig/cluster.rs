//! A real API server, and what is asked of it.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use futures_util::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, ObjectMeta, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

use super::apiserver::{ADMIN, ApiServer};
use super::measure::now;
use super::volume::KEYS;

/// Requests in flight while many objects are made.
const AT_ONCE: usize = 8;

/// The server, on loopback, with an etcd of its own. Ended when dropped.
pub struct Cluster {
    runtime: tokio::runtime::Runtime,
    /// The server itself.
    pub server: ApiServer,
    client: Client,
    /// A namespace for all objects.
    pub namespace: String,
}

/// When the request of an edit began, and when its answer was there.
pub struct Edited {
    /// Before the request.
    pub began: Duration,
    /// After the answer.
    pub answered: Duration,
}

/// A client for a kubeconfig.
pub async fn client(kubeconfig: &Path) -> Result<Client> {
    let kubeconfig = Kubeconfig::read_from(kubeconfig)?;
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    config.default_retry = false;
    Ok(Client::try_from(config)?)
}

/// A value of this size that starts with a version.
pub fn value(version: u32, size: usize) -> String {
    let mut value = format!("{version} ");
    value += &"x".repeat(size.saturating_sub(value.len()));
    value
}

impl Cluster {
    /// Starts one; takes a few seconds.
    pub fn start() -> Result<Self> {
        Self::start_with(Vec::new())
    }

    /// The same, with more flags for the server.
    pub fn start_with(flags: Vec<String>) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (server, client, namespace) = runtime.block_on(async {
            let server = ApiServer::start_with(flags).await;
            let client = server.client(ADMIN).await;
            let namespace = server.namespace().await;
            (server, client, namespace)
        });
        Ok(Self { runtime, server, client, namespace })
    }

    /// Waits for something on this thread.
    pub fn wait<F: Future>(&self, future: F) -> F::Output {
        self.runtime.block_on(future)
    }

    /// Kills the server, starts it again, and does this meanwhile, until it is done.
    pub fn restart_during<T>(&mut self, meanwhile: impl Future<Output = T>) -> T {
        let Self { runtime, server, .. } = self;
        server.kill();
        runtime.block_on(async { tokio::join!(server.start_again(), meanwhile).1 })
    }

    /// Starts the server again after it was killed.
    pub fn start_again(&mut self) {
        let Self { runtime, server, .. } = self;
        runtime.block_on(server.start_again());
    }

    /// A kubeconfig that may do everything.
    pub fn kubeconfig(&self) -> PathBuf {
        self.server.kubeconfig(ADMIN)
    }

    /// A client that may do everything.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    fn objects(&self) -> Api<ConfigMap> {
        Api::namespaced(self.client(), &self.namespace)
    }

    /// Makes ConfigMaps of these names, each with one value of this size, and this label if it is not empty.
    pub fn create(&self, names: &[String], size: usize, label: &str) -> Result<()> {
        let objects = self.objects();
        let (objects, params) = (&objects, &PostParams::default());
        self.wait(async {
            let made = stream::iter(names).map(|name| async move {
                let object = configmap(name, value(1, size), label);
                objects.create(params, &object).await.map(drop)
            });
            made.buffer_unordered(AT_ONCE).try_collect::<()>().await
        })?;
        Ok(())
    }

    /// Replaces the value of one.
    pub fn edit(&self, name: &str, version: u32, size: usize, label: &str) -> Result<Edited> {
        let objects = self.objects();
        self.wait(async {
            let object = configmap(name, value(version, size), label);
            let began = now();
            objects.replace(name, &PostParams::default(), &object).await?;
            Ok(Edited { began, answered: now() })
        })
    }
}

fn configmap(name: &str, value: String, label: &str) -> ConfigMap {
    let labels = (!label.is_empty()).then(|| BTreeMap::from([("bench".to_owned(), label.to_owned())]));
    ConfigMap {
        metadata: ObjectMeta { name: Some(name.to_owned()), labels, ..ObjectMeta::default() },
        data: Some(BTreeMap::from([(KEYS[0].to_owned(), value)])),
        ..ConfigMap::default()
    }
}

/// What the server's own metrics say.
pub struct ServerMetrics(String);

impl ServerMetrics {
    /// Asks for them.
    pub async fn read(client: &Client) -> Result<Self> {
        let request = hyper::Request::get("/metrics").body(Vec::new())?;
        client.request_text(request).await.map(Self).context("the server's /metrics")
    }

    /// The sum of all samples of a name that have each of these labels.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let wanted: Vec<_> = labels.iter().map(|(label, value)| format!("{label}=\"{value}\"")).collect();
        let samples = self.0.lines().filter_map(|line| {
            let (labels, value) = line.strip_prefix(name)?.strip_prefix('{')?.rsplit_once("} ")?;
            let parts: Vec<_> = labels.split(',').collect();
            wanted.iter().all(|label| parts.contains(&label.as_str())).then(|| value.parse::<f64>().ok())?
        });
        samples.sum()
    }
}
