//! Whether the sources are there, may be read, and render.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::info;

use super::{Finding, Severity};
use crate::app::{self, Config};
use crate::cli::exit::Exit;
use crate::cli::render;
use crate::source::View;
use crate::source::feed::{Feed, Keep};
use crate::source::files::{self, Frozen};
use crate::source::kube::{self, Access};
use crate::source::url::{self, Found};

/// How long sources are waited for that are there and may be read: a container may have a hundredth of a processor.
const LOOK: Duration = Duration::from_secs(30);

/// What to do where a rule is missing.
pub(super) fn to_bind(missing: &kube::Rule) -> String {
    let role = missing.role();
    let place = missing.namespace().map(|namespace| format!(" in namespace {namespace}")).unwrap_or_default();
    format!("add to a {role}{place}, and bind it by a {role}Binding:\n{}", missing.yaml())
}

pub(super) async fn of_api(config: &Config) -> Vec<Finding> {
    let clients = match app::clients(config).await {
        Ok(None) => return Vec::new(),
        Ok(Some(clients)) => clients,
        Err((_, error)) => {
            let remedy = "run it in a Pod with automountServiceAccountToken: true, or give --kubeconfig";
            return vec![Finding::new(Severity::Problem, "API server", error, remedy)];
        }
    };
    let mut findings = Vec::new();
    for watch in &config.watches {
        match kube::access(&clients, watch).await {
            Access::Granted => findings.extend(of_presence(config, &clients, watch).await),
            Access::Missing { verbs, rule } => {
                let message = format!("this user may not {} it", verbs.join(" and "));
                findings.push(Finding::new(Severity::Permission, watch, message, to_bind(&rule)));
            }
            Access::Unknown { message, forbidden } => {
                let severity = if forbidden { Severity::Permission } else { Severity::Problem };
                let remedy = if forbidden {
                    "give the Pod a service account with automountServiceAccountToken: true, or a --kubeconfig with \
                     credentials that the API server accepts"
                } else {
                    "the API server must be reachable from here: see NetworkPolicies, and the server in --kubeconfig"
                };
                findings.push(Finding::new(severity, watch, message, remedy));
            }
        }
    }
    findings
}

/// What is not there is waited for, if the flags do not say otherwise: then it is worth a word.
async fn of_presence(config: &Config, clients: &kube::Clients, watch: &kube::Watch) -> Option<Finding> {
    let message = kube::missing(clients, watch).await?;
    let (severity, remedy) = match &watch.scope {
        kube::Scope::Selected { .. } => {
            (Severity::Advice, "correct --selector or --namespace, or label the objects: until then none is published")
        }
        kube::Scope::Named { .. } if config.specs.get(watch.source).is_some_and(|spec| spec.required) => {
            (Severity::Problem, "create it, or correct its name or --namespace: until then nothing is published")
        }
        kube::Scope::Named { .. } => {
            (Severity::Advice, "create it, or correct its name: with --optional, it is published without")
        }
    };
    Some(Finding::new(severity, watch, message, remedy))
}

/// Reads the directories, as the sidecar does.
pub(super) async fn directories(config: &Config) -> Feed {
    let (mut tasks, nowhere, keep) = (JoinSet::new(), Arc::default(), Keep::default());
    let max_size = config.render.max_size;
    let mut feed = Feed::start(&mut tasks, &config.specs, &config.files, &nowhere, None, max_size, &keep);
    let is_known = |feed: &Feed, root: &files::Root| feed.views().get(root.source).is_none_or(View::is_known);
    let read = async {
        while !config.files.roots.iter().all(|root| is_known(&feed, root)) {
            feed.next().await;
        }
    };
    // One that hangs is one that was not read.
    let _ = timeout(LOOK, read).await;
    feed
}

pub(super) fn of_files(config: &Config, views: &[View]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for root in &config.files.roots {
        let Some(view) = views.get(root.source) else { continue };
        let place = &view.spec.name;
        if let Some(waited) = view.waits_for() {
            let message = waited.strip_prefix(&format!("{place}: ")).unwrap_or(&waited);
            let (severity, remedy) = if view.is_forbidden() {
                (Severity::Permission, "securityContext.fsGroup of the Pod, or defaultMode of the volume".to_owned())
            } else {
                (Severity::Problem, mount_of(&root.path))
            };
            findings.push(Finding::new(severity, place, message, remedy));
        }
        findings.extend(files::frozen(&root.path).map(|frozen| of_mount(view, frozen)));
    }
    findings
}

/// Fetches each: what answers may be of no use.
pub(super) async fn of_sources_behind_urls(config: &Config) -> Vec<Finding> {
    let mut findings = Vec::new();
    for source in &config.urls.sources {
        let place = format!("url/{}", source.name);
        let found = url::look(&config.urls, source, None, &url::Known::default()).await;
        let (severity, message, remedy) = match found {
            Ok(Found::Object(object, _)) => {
                let (keys, size) = (object.data.len(), object.size());
                info!(source = place, "{} has {size} bytes in {keys} keys", source.endpoint);
                continue;
            }
            Ok(Found::NotModified) => continue,
            Ok(Found::Absent(code)) => {
                let required = config.specs.get(source.source).is_some_and(|spec| spec.required);
                let severity = if required { Severity::Problem } else { Severity::Advice };
                let why = if code == 200 { "nothing, and empty counts as absent" } else { "that nothing is there" };
                (severity, format!("{} answers {code}: {why}", source.endpoint), "put it there, or correct the URL")
            }
            Err(error) if error.forbidden() => {
                let header = "--url-header 'NAME=Authorization: @FILE', from a mounted Secret";
                let remedy = source.http.signer.as_ref().map_or(header, |signer| signer.kind().remedy());
                (Severity::Permission, error.to_string(), remedy)
            }
            Err(error) if error.unsigned() => (
                Severity::Problem,
                error.to_string(),
                "minisign -S makes the signature, and --url-key NAME=FILE has the public key",
            ),
            Err(error) => {
                let remedy =
                    "the server must be reachable from this Pod: see NetworkPolicies; and send the file as it is";
                (Severity::Problem, error.to_string(), remedy)
            }
        };
        findings.push(Finding::new(severity, place, message, remedy));
    }
    findings
}

pub(super) fn mount_of(path: &Path) -> String {
    format!("it must be in this container's volumeMounts:\n- {{name: VOLUME, mountPath: {}}}", path.display())
}

fn of_mount(view: &View, frozen: Frozen) -> Finding {
    let (point, message) = match frozen {
        Frozen::SubPath(point) => (point, "is a subPath volumeMount, which the kubelet never updates"),
        Frozen::File(point) => (
            point,
            "is a single mounted file: what replaces it by a rename, as the kubelet and editors do, is never seen",
        ),
    };
    let above = point.parent().unwrap_or(&point).display();
    let remedy = format!(
        "mount the whole volume, in a directory of its own, and watch that:\n- {{name: VOLUME, mountPath: {above}}}  # \
         without subPath"
    );
    Finding::new(Severity::Problem, &view.spec.name, format!("{} {message}", point.display()), remedy)
}

/// What the sources hold, rendered and parsed as the sidecar does.
pub(super) async fn of_content(config: &Config) -> Vec<Finding> {
    let place = "what would be published";
    match render::rehearse(config, LOOK).await {
        Ok(rehearsed) => {
            for (source, fetched) in rehearsed.fetched {
                info!(source = source.to_string(), "{fetched}");
            }
            let remedy = "fix it; --syntax strict would reject it";
            let odd = rehearsed.warnings.iter().map(|warning| Finding::new(Severity::Advice, place, warning, remedy));
            let remedy = "fix what it names: until then it is held back, and all else is published";
            let held_back = rehearsed.rendered.held_back.iter();
            odd.chain(held_back.map(|held| Finding::new(Severity::Problem, &held.source, &held.reason, remedy)))
                .collect()
        }
        // The output is looked at by itself.
        Err((Exit::CannotWrite, _)) => Vec::new(),
        Err((Exit::Rejected, error)) => {
            let remedy = "fix what it names: a template, a key or a value; `trimtab render` shows what comes of it";
            vec![Finding::new(Severity::Problem, place, error, remedy)]
        }
        Err((exit, error)) => {
            let severity = if exit == Exit::Forbidden { Severity::Permission } else { Severity::Problem };
            vec![Finding::new(severity, place, error, "until then nothing is published")]
        }
    }
}
