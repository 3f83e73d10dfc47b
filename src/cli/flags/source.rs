//! Where the configuration comes from.

use std::cell::OnceCell;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::archive::ArchiveArgs;
use super::url::{BehindUrls, UrlArgs};
use super::{Checked, usage};
use crate::cli::values::{NamedPath, ObjectName, duration, namespace};
use crate::model::object::Kind;
use crate::source::kube::{ClientConfig, Scope, Watch};
use crate::source::{Role, Spec, files, url};

/// Sources.
#[derive(Debug, Args)]
#[command(next_help_heading = "Sources (at least one)")]
pub struct SourceArgs {
    /// Watch this ConfigMap. May be repeated
    ///
    /// A Role with this resourceNames and the verbs list and watch is enough.
    #[arg(long = "configmap", value_name = "[NS/]NAME")]
    pub configmaps: Vec<ObjectName>,
    /// Watch this Secret. May be repeated
    #[arg(long = "secret", value_name = "[NS/]NAME")]
    pub secrets: Vec<ObjectName>,
    /// Watch every object with these labels
    ///
    /// As kubectl's -l.
    #[arg(long, value_name = "SELECTOR")]
    pub selector: Option<String>,
    /// What --selector selects [default: configmap]
    #[arg(long, value_name = "KIND")]
    pub resource: Option<Resource>,
    /// Namespace of --configmap, --secret and --selector [default: the Pod's own]. May be repeated for --selector
    #[arg(long = "namespace", value_name = "NS", value_parser = namespace)]
    pub namespaces: Vec<String>,
    /// --selector selects in every namespace; needs a ClusterRole
    #[arg(long)]
    pub all_namespaces: bool,
    /// Watch a mounted volume or other directory
    ///
    /// May be repeated. NAME is what templates call it [default: the path's last segment]. A directory on tmpfs, as Secret volumes are,
    /// is secret.
    #[arg(long = "watch-dir", value_name = "[NAME=]PATH")]
    pub watch_dirs: Vec<NamedPath>,
    /// Watch what the main process reads by itself: a directory, or a file
    ///
    /// Nothing of it is copied. Its changes are validated, make a reload and are confirmed; templates may read it. May be repeated. NAME as
    /// with --watch-dir. Beside nothing else, --output is not needed.
    #[arg(long = "observe-dir", value_name = "[NAME=]PATH")]
    pub observe_dirs: Vec<NamedPath>,
    /// The --watch-dir of this name is not secret, although it is on tmpfs. May be repeated
    #[arg(long = "public-dir", value_name = "NAME")]
    pub public_dirs: Vec<String>,
    /// The --watch-dir of this name is secret, although it is not on tmpfs. May be repeated
    #[arg(long = "secret-dir", value_name = "NAME")]
    pub secret_dirs: Vec<String>,
    /// Also read directories this often, in case inotify misses a change; 0: never
    #[arg(long, value_name = "D", default_value = "60s", value_parser = duration)]
    pub poll_interval: Duration,
    /// Start without sources that do not exist yet, instead of waiting for them
    #[arg(long)]
    pub optional: bool,
    /// What the deletion of an object does [default: keep for a named object or a directory, apply for a selected one]
    #[arg(long, value_name = "WHAT")]
    pub on_delete: Option<OnDelete>,
    /// Publish an empty set of sources, or an empty file of a template, instead of rejecting it
    #[arg(long)]
    pub allow_empty: bool,
    /// Connect to the API server with this kubeconfig, instead of the Pod's service account
    #[arg(long, value_name = "PATH")]
    pub kubeconfig: Option<PathBuf>,
    /// Use this context of --kubeconfig [default: its current one]
    #[arg(long, value_name = "NAME")]
    pub context: Option<String>,
}

/// `--resource`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Resource {
    /// ConfigMaps
    Configmap,
    /// Secrets
    Secret,
    /// ConfigMaps and Secrets
    Both,
}

/// `--on-delete`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OnDelete {
    /// Its last content stays published
    Keep,
    /// Its keys are removed
    Apply,
}

/// Reads the Pod's own namespace, or that of the kubeconfig's context.
pub type OwnNamespace<'a> = &'a dyn Fn(&ClientConfig) -> Result<String, String>;

/// The sources as they are put together: a watch and a root know their spec by its index.
#[derive(Default)]
pub(super) struct Parts {
    pub specs: Vec<Spec>,
    pub client: Option<ClientConfig>,
    pub watches: Vec<Watch>,
    pub roots: Vec<files::Root>,
    pub urls: Vec<url::Source>,
    pub behind_urls: BehindUrls,
}

impl SourceArgs {
    /// `others`: whether something else is read that is published.
    pub(super) fn parts(
        &self,
        own_namespace: OwnNamespace<'_>,
        urls: &UrlArgs,
        archive: &ArchiveArgs,
        others: bool,
    ) -> Checked<Parts> {
        let from_api = !self.configmaps.is_empty() || !self.secrets.is_empty() || self.selector.is_some();
        let any = from_api || urls.is_given() || !self.watch_dirs.is_empty() || !self.observe_dirs.is_empty() || others;
        if !any {
            return usage(
                "no source: give at least one of --configmap, --secret, --selector, --watch-dir, --watch-url and --envsubst, and \
                 --output; or --observe-dir alone",
            );
        }
        self.check_api(from_api)?;
        self.check_dirs()?;
        let client = from_api.then(|| ClientConfig {
            kubeconfig: self.kubeconfig.clone(),
            context: self.context.clone(),
            ..ClientConfig::default()
        });
        let namespaces = Namespaces { args: self, client: client.as_ref(), own: OnceCell::new(), read: own_namespace };
        let mut parts = Parts::default();
        // In the order of the merge: what comes later wins.
        for name in &self.configmaps {
            self.named(&mut parts, Kind::ConfigMap, namespaces.of("--configmap", name)?, name)?;
        }
        if let Some(selector) = &self.selector {
            self.selected(&mut parts, selector, &namespaces.selected()?);
        }
        for dir in &self.watch_dirs {
            self.dir(&mut parts, dir, Role::Named);
        }
        let (sources, behind_urls) = urls.sources(self.allow_empty, archive)?;
        parts.behind_urls = behind_urls;
        for url in sources {
            let spec = self.named_spec(format!("url/{}", url.name));
            parts.urls.push(url::Source { source: parts.specs.len(), ..url });
            parts.specs.push(spec);
        }
        for name in &self.secrets {
            self.named(&mut parts, Kind::Secret, namespaces.of("--secret", name)?, name)?;
        }
        for dir in &self.observe_dirs {
            self.dir(&mut parts, dir, Role::Observed { path: dir.path.as_path().into() });
        }
        Ok(Parts { client, ..parts })
    }

    /// Whether there is something to write.
    pub(super) fn is_copied(&self) -> bool {
        !self.configmaps.is_empty()
            || !self.secrets.is_empty()
            || self.selector.is_some()
            || !self.watch_dirs.is_empty()
    }

    fn check_api(&self, from_api: bool) -> Checked<()> {
        match &self.selector {
            None if self.resource.is_some() => {
                return usage("--resource says what --selector selects, and there is no --selector");
            }
            None if self.all_namespaces => {
                return usage("--all-namespaces says where --selector selects, and there is no --selector");
            }
            Some(selector) if selector.trim().is_empty() => {
                return usage("--selector is empty, and would select everything");
            }
            _ => {}
        }
        if self.all_namespaces && !self.namespaces.is_empty() {
            return usage("--all-namespaces and --namespace contradict each other: give one of them");
        }
        if self.context.is_some() && self.kubeconfig.is_none() {
            return usage("--context names a context of --kubeconfig, and there is no --kubeconfig");
        }
        for (flag, given) in [("--kubeconfig", self.kubeconfig.is_some()), ("--namespace", !self.namespaces.is_empty())]
        {
            if given && !from_api {
                return usage(format!("{flag} is for --configmap, --secret and --selector, and none is given"));
            }
        }
        Ok(())
    }

    fn check_dirs(&self) -> Checked<()> {
        let mut names = BTreeSet::new();
        if let Some(dir) = self.watch_dirs.iter().chain(&self.observe_dirs).find(|dir| !names.insert(&dir.name)) {
            return usage(format!(
                "two --watch-dir or --observe-dir have the name {:?}: give one another name, as --watch-dir NAME=PATH",
                dir.name
            ));
        }
        for (flag, names) in [("--public-dir", &self.public_dirs), ("--secret-dir", &self.secret_dirs)] {
            let has = |name: &str| self.watch_dirs.iter().chain(&self.observe_dirs).any(|dir| dir.name == name);
            if let Some(name) = names.iter().find(|name| !has(name)) {
                return usage(format!("{flag} {name}: no --watch-dir or --observe-dir has this name"));
            }
        }
        if let Some(name) = self.public_dirs.iter().find(|name| self.secret_dirs.contains(name)) {
            return usage(format!("--public-dir {name} and --secret-dir {name} contradict each other"));
        }
        Ok(())
    }

    fn named(&self, parts: &mut Parts, kind: Kind, namespace: String, name: &ObjectName) -> Checked<()> {
        let scope = Scope::Named { namespace, name: name.name.clone() };
        let watch = Watch { source: parts.specs.len(), kind, scope, marks: [].into() };
        if parts.specs.iter().any(|spec| spec.name == watch.to_string()) {
            return usage(format!("--{watch} is given twice").replacen('/', " ", 1));
        }
        parts.specs.push(self.named_spec(watch.to_string()));
        parts.watches.push(watch);
        Ok(())
    }

    fn named_spec(&self, name: String) -> Spec {
        Spec {
            name,
            role: Role::Named,
            apply_deletes: self.on_delete == Some(OnDelete::Apply),
            required: !self.optional,
            may_be_empty: self.allow_empty,
        }
    }

    fn selected(&self, parts: &mut Parts, selector: &str, namespaces: &[Option<String>]) {
        let kinds: &[Kind] = match self.resource.unwrap_or(Resource::Configmap) {
            Resource::Configmap => &[Kind::ConfigMap],
            Resource::Secret => &[Kind::Secret],
            Resource::Both => &[Kind::ConfigMap, Kind::Secret],
        };
        for namespace in namespaces {
            for kind in kinds {
                let scope = Scope::Selected { selector: selector.to_owned(), namespace: namespace.clone() };
                let watch = Watch { source: parts.specs.len(), kind: *kind, scope, marks: [].into() };
                parts.specs.push(Spec {
                    name: watch.to_string(),
                    role: Role::Selected,
                    apply_deletes: self.on_delete != Some(OnDelete::Keep),
                    required: true,
                    may_be_empty: true,
                });
                parts.watches.push(watch);
            }
        }
    }

    fn dir(&self, parts: &mut Parts, dir: &NamedPath, role: Role) {
        let secret = if self.public_dirs.contains(&dir.name) {
            Some(false)
        } else if self.secret_dirs.contains(&dir.name) {
            Some(true)
        } else {
            None
        };
        let source = parts.specs.len();
        parts.roots.push(files::Root { source, name: dir.name.clone(), path: dir.path.clone(), secret });
        parts.specs.push(Spec { role, ..self.named_spec(format!("dir/{}", dir.name)) });
    }
}

/// The namespaces that the flags mean. The Pod's own is read once, and only where a name comes without its namespace.
struct Namespaces<'a> {
    args: &'a SourceArgs,
    client: Option<&'a ClientConfig>,
    own: OnceCell<String>,
    read: OwnNamespace<'a>,
}

impl Namespaces<'_> {
    fn of(&self, flag: &str, name: &ObjectName) -> Checked<String> {
        match (&name.namespace, &self.args.namespaces[..]) {
            (Some(namespace), _) | (None, [namespace]) => Ok(namespace.clone()),
            (None, [_, _, ..]) => usage(format!(
                "{flag} {}: with several --namespace it is not clear in which: write {flag} NAMESPACE/{0}",
                name.name
            )),
            (None, []) => self.own(),
        }
    }

    fn selected(&self) -> Checked<Vec<Option<String>>> {
        Ok(match &self.args.namespaces[..] {
            _ if self.args.all_namespaces => vec![None],
            [] => vec![Some(self.own()?)],
            namespaces => namespaces.iter().cloned().map(Some).collect(),
        })
    }

    fn own(&self) -> Checked<String> {
        let Some(client) = self.client else { return usage("--namespace is needed") };
        if let Some(own) = self.own.get() {
            return Ok(own.clone());
        }
        match (self.read)(client) {
            Ok(namespace) => Ok(self.own.get_or_init(|| namespace).clone()),
            Err(error) => usage(format!("--namespace is needed, as the Pod's own is not known: {error}")),
        }
    }
}

impl Parts {
    /// A source that is a file or directory of Trimtab's own use, not of the configuration.
    pub fn file(&mut self, name: String, role: Role, path: &Path, secret: Option<bool>) {
        let last = path.file_name().map_or_else(String::new, |last| last.to_string_lossy().into_owned());
        self.roots.push(files::Root { source: self.specs.len(), name: last, path: path.to_owned(), secret });
        self.specs.push(Spec { name, role, apply_deletes: false, required: true, may_be_empty: false });
    }
}

/// The path without links. What does not exist yet is judged by its nearest ancestor that does.
pub(super) fn real(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let mut ancestors = absolute.ancestors();
    ancestors
        .find_map(|ancestor| {
            let rest = absolute.strip_prefix(ancestor).ok()?;
            Some(ancestor.canonicalize().ok()?.join(rest))
        })
        .unwrap_or(absolute)
}
