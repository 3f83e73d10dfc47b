//! What the sidecars watch, and what they should make of it: objects of a real API server, and a volume.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Debug;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::{Api, DeleteParams, ObjectMeta, PostParams};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::DEADLINE;
use super::main_process::{Content, Kind, Mark, OF_THE_VOLUME, SITE, Value};
use crate::rig::cluster::Cluster;
use crate::rig::guard::Guard;
use crate::rig::measure::now;
use crate::rig::volume::Volume;

/// How each secret value begins.
pub const CANARY: &str = "canary-of-the-soak-";
/// The ConfigMap and the Secret of the template.
const SITE_OBJECT: &str = "site";
const TLS_OBJECT: &str = "tls";
const KEYS: [&str; 2] = ["a.json", "b.json"];
const LABEL: (&str, &str) = ("soak", "yes");
/// How many are selected.
pub const OBJECTS: usize = 6;
const SMALL: usize = 2_000;
const LARGE: usize = 400_000;

/// A value as it was last written.
#[derive(Clone, Copy)]
struct Written {
    version: u32,
    mark: Mark,
    size: usize,
}

impl Written {
    fn is_settled(self) -> bool {
        self.mark == Mark::Good && self.size == SMALL
    }

    fn padding(self) -> String {
        // By its length the version would change the size.
        "x".repeat(self.size - self.version.to_string().len())
    }

    /// Itself a file; one that is invalid is cut off.
    fn text(self) -> String {
        let end = if self.mark == Mark::Invalid { "" } else { "}" };
        let mark = serde_json::to_string(&self.mark).unwrap_or_default();
        format!(r#"{{"version": {}, "mark": {mark}, "padding": "{}"{end}"#, self.version, self.padding())
    }

    fn value(self, token: String) -> Value {
        Value { version: self.version, mark: self.mark, token, digest: String::new() }
    }
}

/// The sources.
pub struct Sources {
    /// The server.
    pub cluster: Cluster,
    volume: Volume,
    /// Each write has a higher one than any before.
    version: u32,
    site: Option<Written>,
    token: Option<u32>,
    keys: Option<Written>,
    objects: [Option<Written>; OBJECTS],
    _guard: Guard,
    _dir: tempfile::TempDir,
}

impl Sources {
    /// A server, and the first content; the volume in a folder below this one.
    pub fn start(below: &Path) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("soak-").tempdir_in(below)?;
        let guard = Guard::removing(dir.path())?;
        let volume = Volume::empty(dir.path().join("volume"))?;
        let cluster = Cluster::start()?;
        let mut sources = Self {
            cluster,
            volume,
            version: 0,
            site: None,
            token: None,
            keys: None,
            objects: [None; OBJECTS],
            _guard: guard,
            _dir: dir,
        };
        sources.settle()?;
        Ok(sources)
    }

    /// The flags by which a sidecar watches them.
    pub fn flags(&self, kind: Kind) -> Vec<OsString> {
        let namespace = &self.cluster.namespace;
        let mut flags: Vec<OsString> = match kind {
            Kind::Rendered => vec![
                "--configmap".into(),
                format!("{namespace}/{SITE_OBJECT}").into(),
                "--secret".into(),
                format!("{namespace}/{TLS_OBJECT}").into(),
            ],
            Kind::Plain => vec![
                "--watch-dir".into(),
                self.volume.path.clone().into(),
                "--selector".into(),
                format!("{}={}", LABEL.0, LABEL.1).into(),
                "--namespace".into(),
                namespace.into(),
            ],
        };
        flags.extend(["--kubeconfig".into(), self.cluster.kubeconfig().into()]);
        flags
    }

    /// What a main process should serve, if the last of each was good.
    pub fn expected(&self, kind: Kind) -> Content {
        match kind {
            Kind::Rendered => {
                let token = self.token.map(token).unwrap_or_default();
                self.site.iter().map(|site| (SITE.to_owned(), site.value(token.clone()))).collect()
            }
            Kind::Plain => {
                let keys = self.keys.iter().flat_map(|keys| OF_THE_VOLUME.map(|path| (path.to_owned(), *keys)));
                let objects = self.objects.iter().enumerate();
                let objects =
                    objects.filter_map(|(at, object)| Some((format!("configmap/{}/x.json", name(at)), (*object)?)));
                keys.chain(objects).map(|(path, written)| (path, written.value(String::new()))).collect()
            }
        }
    }

    /// Makes all good and small that is not, and one thing of each kind new.
    pub fn settle(&mut self) -> Result<()> {
        if self.token.is_none() {
            self.edit_secret()?;
        }
        self.edit_site(Mark::Good, false)?;
        self.swap(Mark::Good, false)?;
        for at in 0..OBJECTS {
            if at == 0 || !self.objects[at].is_some_and(Written::is_settled) {
                self.edit_object(at, Mark::Good)?;
            }
        }
        Ok(())
    }

    fn next(&mut self, mark: Mark, is_large: bool) -> Written {
        self.version += 1;
        Written { version: self.version, mark, size: if is_large { LARGE } else { SMALL } }
    }

    /// Edits the template's ConfigMap.
    pub fn edit_site(&mut self, mark: Mark, is_large: bool) -> Result<()> {
        let site = self.next(mark, is_large);
        self.site = Some(site);
        self.put_site(site, true)
    }

    /// The same without what the template reads.
    pub fn strip_site(&mut self) -> Result<()> {
        let site = self.next(Mark::Invalid, false);
        self.site = Some(site);
        self.put_site(site, false)
    }

    /// Writes the same bytes again, and changes the object beside them.
    pub fn touch_site(&mut self) -> Result<()> {
        self.version += 1;
        match self.site {
            Some(site) if site.mark != Mark::Invalid => self.put_site(site, true),
            _ => Ok(()),
        }
    }

    fn put_site(&self, site: Written, is_whole: bool) -> Result<()> {
        let mark = serde_json::to_value(site.mark)?.as_str().unwrap_or_default().to_owned();
        let mut data = BTreeMap::from([("version".to_owned(), site.version.to_string())]);
        if is_whole {
            data.extend([("mark".to_owned(), mark), ("padding".to_owned(), site.padding())]);
        }
        let object = ConfigMap { metadata: self.meta(SITE_OBJECT), data: Some(data), ..ConfigMap::default() };
        self.put(SITE_OBJECT, &object)
    }

    /// Deletes the template's ConfigMap.
    pub fn delete_site(&mut self) -> Result<()> {
        self.site = None;
        self.delete::<ConfigMap>(SITE_OBJECT)
    }

    /// Edits the Secret.
    pub fn edit_secret(&mut self) -> Result<()> {
        self.version += 1;
        self.token = Some(self.version);
        let data = BTreeMap::from([("token".to_owned(), token(self.version))]);
        let object = Secret { metadata: self.meta(TLS_OBJECT), string_data: Some(data), ..Secret::default() };
        self.put(TLS_OBJECT, &object)
    }

    /// Deletes it.
    pub fn delete_secret(&mut self) -> Result<()> {
        self.token = None;
        self.delete::<Secret>(TLS_OBJECT)
    }

    /// Edits a selected object.
    pub fn edit_object(&mut self, at: usize, mark: Mark) -> Result<()> {
        let written = self.next(mark, false);
        self.objects[at] = Some(written);
        let data = BTreeMap::from([("x.json".to_owned(), written.text())]);
        let mut metadata = self.meta(&name(at));
        metadata.labels = Some(BTreeMap::from([(LABEL.0.to_owned(), LABEL.1.to_owned())]));
        self.put(&name(at), &ConfigMap { metadata, data: Some(data), ..ConfigMap::default() })
    }

    /// Deletes one.
    pub fn delete_object(&mut self, at: usize) -> Result<()> {
        self.objects[at] = None;
        self.delete::<ConfigMap>(&name(at))
    }

    /// Swaps the volume.
    pub fn swap(&mut self, mark: Mark, is_large: bool) -> Result<()> {
        let keys = self.next(mark, is_large);
        self.keys = Some(keys);
        self.write_keys()
    }

    /// Swaps it for the same bytes.
    pub fn swap_same(&mut self) -> Result<()> {
        self.write_keys()
    }

    fn write_keys(&mut self) -> Result<()> {
        let text = self.keys.map(Written::text);
        let files = KEYS.map(|key| text.clone().map(|text| (key, text)));
        let files: Vec<_> = files.into_iter().flatten().collect();
        self.volume.write(&files, None)?;
        self.volume.link(&files.iter().map(|(key, _)| *key).collect::<Vec<_>>())
    }

    /// Takes all keys out of the volume.
    pub fn empty_volume(&mut self) -> Result<()> {
        self.keys = None;
        self.write_keys()
    }

    fn meta(&self, name: &str) -> ObjectMeta {
        let annotations = BTreeMap::from([("soak".to_owned(), self.version.to_string())]);
        ObjectMeta { name: Some(name.to_owned()), annotations: Some(annotations), ..ObjectMeta::default() }
    }

    fn objects<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.cluster.client(), &self.cluster.namespace)
    }

    /// Replaces or makes an object; again where the server was just started, and its answer may be lost.
    fn put<K>(&self, name: &str, object: &K) -> Result<()>
    where
        K: kube::Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Clone
            + DeserializeOwned
            + Serialize
            + Debug,
    {
        let objects = self.objects::<K>();
        let params = PostParams::default();
        Self::again(name, || {
            self.cluster.wait(async {
                match objects.replace(name, &params, object).await {
                    Err(kube::Error::Api(status)) if status.code == 404 => {
                        objects.create(&params, object).await.map(drop)
                    }
                    other => other.map(drop),
                }
            })
        })
    }

    fn delete<K>(&self, name: &str) -> Result<()>
    where
        K: kube::Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + DeserializeOwned + Debug,
    {
        let objects = self.objects::<K>();
        Self::again(name, || {
            self.cluster.wait(async {
                match objects.delete(name, &DeleteParams::default()).await {
                    Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
                    other => other.map(drop),
                }
            })
        })
    }

    fn again(name: &str, mut request: impl FnMut() -> kube::Result<()>) -> Result<()> {
        let deadline = now() + DEADLINE;
        loop {
            match request() {
                Ok(()) => return Ok(()),
                Err(error) if now() > deadline => return Err(error).with_context(|| name.to_owned()),
                Err(kube::Error::Api(status)) if matches!(status.code, 400 | 403 | 422) => {
                    bail!("{name}: {}", status.message)
                }
                Err(_) => thread::sleep(Duration::from_millis(100)),
            }
        }
    }
}

fn token(version: u32) -> String {
    format!("{CANARY}{version}")
}

fn name(at: usize) -> String {
    format!("selected-{at}")
}
