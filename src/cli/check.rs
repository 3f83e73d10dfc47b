//! `trimtab check`: what would not work here with these flags, and how to fix it. It changes nothing and notifies
//! nobody: no signal is sent, and no request that the sidecar does not make while it only looks.

mod rollout;

use std::fmt;
use std::fmt::Write as _;
use std::io::{IsTerminal as _, Write as _};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use nix::errno::Errno;
use serde::Serialize;
use tracing::{error, info};

use super::{escaped, prepare, render};
use crate::app::{self, Config};
use crate::cli::exit::Exit;
use crate::cli::{DryRunArgs, Format};
use crate::net::endpoint::Endpoint;
use crate::net::request;
use crate::publish::{Output, PublishError};
use crate::reload::Driver;
use crate::reload::confirm;
use crate::reload::process::{self, FindError, Reader, Selector, Signal, SignalError, Target};
use crate::source::files::{self, Frozen};
use crate::source::kube::{self, Access};
use crate::source::url::{self, Found};
use crate::source::{Seen, Sources, Update, View};

/// How long sources are waited for that are there and may be read: a container may have a hundredth of a processor.
const LOOK: Duration = Duration::from_secs(30);

/// How much a finding weighs; the exit code follows the heaviest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Severity {
    /// It works, and could work better. Exit code 0.
    Advice,
    /// It does not work. Exit code 1.
    Problem,
    /// It does not work for lack of a permission. Exit code 77.
    Permission,
}

/// One thing that would not work.
#[derive(Debug, Serialize)]
struct Finding {
    severity: Severity,
    /// Where: a source, or flags with their values.
    place: String,
    /// What is wrong.
    message: String,
    /// What to change; lines of a Pod spec or of RBAC among it.
    remedy: String,
}

impl Finding {
    fn new(
        severity: Severity,
        place: impl fmt::Display,
        message: impl fmt::Display,
        remedy: impl fmt::Display,
    ) -> Self {
        Self { severity, place: place.to_string(), message: message.to_string(), remedy: remedy.to_string() }
    }
}

/// Prints what is found. Exit code 0: nothing but advice; 77: permissions are missing; 1: anything else.
pub(super) fn check(args: DryRunArgs) -> ExitCode {
    let (config, runtime) = match prepare(args.run) {
        Ok(prepared) => prepared,
        Err(code) => return code,
    };
    let config = Arc::new(config);
    let mut findings = runtime.block_on(of_api(&config));
    findings.extend(of_files(&config));
    findings.extend(runtime.block_on(of_sources_behind_urls(&config)));
    findings.extend(runtime.block_on(rollout::of_rollout(&config)));
    if findings.is_empty() {
        findings.extend(runtime.block_on(of_content(&config)));
    }
    findings.extend(of_output(&config));
    findings.extend(runtime.block_on(of_urls(&config)));
    findings.extend(runtime.block_on(of_target(&config)));
    findings.extend(of_confirmation(&config));
    runtime.shutdown_background();
    let written = match args.format {
        Format::Text => Ok(text(&findings, std::io::stdout().is_terminal())),
        Format::Json => serde_json::to_string_pretty(&serde_json::json!({ "findings": findings })).context("JSON"),
    };
    let written =
        written.and_then(|text| std::io::stdout().write_all((text + "\n").as_bytes()).context("standard output"));
    if let Err(failure) = written {
        error!("{failure:#}");
        return Exit::StartUp.into();
    }
    let exit = match findings.iter().map(|finding| finding.severity).max() {
        None | Some(Severity::Advice) => Exit::Done,
        Some(Severity::Problem) => Exit::StartUp,
        Some(Severity::Permission) => Exit::Forbidden,
    };
    exit.into()
}

/// For people. `terminal`: what is found is shown on one, which names must not be able to steer.
fn text(findings: &[Finding], terminal: bool) -> String {
    let mut text = String::new();
    for Finding { severity, place, message, remedy } in findings {
        let word = match severity {
            Severity::Advice => "advice",
            Severity::Problem => "problem",
            Severity::Permission => "permission",
        };
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{word}: {place}\n  {message}");
        for line in remedy.lines() {
            let _ = writeln!(text, "    {line}");
        }
    }
    let weighty = findings.iter().filter(|finding| finding.severity > Severity::Advice).count();
    let _ = match weighty {
        0 => write!(text, "no problems found"),
        1 => write!(text, "1 problem"),
        count => write!(text, "{count} problems"),
    };
    if terminal { escaped(&text, '\n') } else { text }
}

// --- sources ---------------------------------------------------------------------------------------------------------

/// What to do where a rule is missing.
fn to_bind(missing: &kube::Rule) -> String {
    let role = missing.role();
    let place = missing.namespace().map(|namespace| format!(" in namespace {namespace}")).unwrap_or_default();
    format!("add to a {role}{place}, and bind it by a {role}Binding:\n{}", missing.yaml())
}

async fn of_api(config: &Config) -> Vec<Finding> {
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

fn of_files(config: &Config) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut sources = Sources::new(config.specs.iter().cloned());
    let budget = files::Budget::new(config.files.max_size);
    for root in &config.files.roots {
        let seen = match files::read(root, &budget) {
            Ok(object) => Seen::All(object.into_iter().map(|object| (object.id.clone(), Arc::new(object))).collect()),
            Err(error) => {
                Seen::Trouble { message: error.to_string(), forbidden: error.forbidden(), held_back: Vec::new() }
            }
        };
        sources.take(Update { source: root.source, seen });
        let Some(view) = sources.views().get(root.source) else { continue };
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
async fn of_sources_behind_urls(config: &Config) -> Vec<Finding> {
    let mut findings = Vec::new();
    for source in &config.urls.sources {
        let place = format!("url/{}", source.name);
        let found = url::look(&config.urls, source, None, &url::Conditions::default()).await;
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
            Err(error) if error.forbidden() => (
                Severity::Permission,
                error.to_string(),
                "--url-header 'NAME=Authorization: @FILE', from a mounted Secret",
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

fn mount_of(path: &Path) -> String {
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
async fn of_content(config: &Config) -> Vec<Finding> {
    let place = "what would be published";
    match render::rehearse(config, LOOK).await {
        Ok(rehearsed) => {
            let remedy = "fix it; --syntax strict would reject it";
            rehearsed.warnings.iter().map(|warning| Finding::new(Severity::Advice, place, warning, remedy)).collect()
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

// --- output ----------------------------------------------------------------------------------------------------------

fn of_output(config: &Config) -> Vec<Finding> {
    let mut findings = Vec::new();
    let Some(config) = &config.output else { return findings };
    let place = format!("--output {}", config.output.display());
    let result = match Output::inspect(config) {
        Ok(Some((output, warnings))) => {
            let remedy = "a directory of its own below the volume, and securityContext.fsGroup of the Pod";
            findings.extend(warnings.iter().map(|warning| Finding::new(Severity::Advice, &place, warning, remedy)));
            findings.extend(output.may_ignore_modes().map(|why| {
                let message = format!(
                    "files may not keep the mode of --file-mode and --secret-mode: {why}; a secret is not written where \
                     others could read it"
                );
                let remedy = "an emptyDir; or the mode in the volume's mountOptions (file_mode, umask), and the same as \
                              --secret-mode";
                Finding::new(Severity::Advice, &place, message, remedy)
            }));
            output.writable()
        }
        Ok(None) => Output::creatable(config).map(drop),
        Err(error) => Err(error),
    };
    if let Err(error) = result {
        findings.push(of_publish_error(&place, &error));
    }
    findings
}

fn of_publish_error(place: &str, error: &PublishError) -> Finding {
    let errno = match error {
        PublishError::Io { errno, .. } | PublishError::Parent { errno, .. } => Some(*errno),
        _ => None,
    };
    let severity = match errno {
        Some(Errno::EACCES | Errno::EPERM) => Severity::Permission,
        _ => Severity::Problem,
    };
    let remedy = match error {
        _ if severity == Severity::Permission => "the Pod's spec:\nsecurityContext: {fsGroup: GROUP}".to_owned(),
        PublishError::Io { errno: Errno::EROFS, path, .. } => {
            let above = path.parent().unwrap_or(path).display();
            format!("this container's volumeMounts:\n- {{name: VOLUME, mountPath: {above}}}  # without readOnly")
        }
        PublishError::Parent { parent, .. } => mount_of(parent),
        PublishError::Sticky { path, .. } => format!("--output {}", path.join("conf").display()),
        _ => "name a directory that nothing else writes to".to_owned(),
    };
    Finding::new(severity, place, error, remedy)
}

// --- reload ----------------------------------------------------------------------------------------------------------

async fn of_urls(config: &Config) -> Vec<Finding> {
    let mut urls = Vec::new();
    if let Driver::Http { endpoints, http, .. } = &config.reload.driver {
        urls.extend(endpoints.iter().map(|endpoint| ("--reload-url", endpoint, &**http)));
    }
    let mut findings = Vec::new();
    let mut find = |flag: &str, endpoint: &Endpoint, message: &str| {
        let message = message.strip_prefix(&format!("{endpoint}: ")).unwrap_or(message);
        let remedy = "the main process must listen there; containers of one Pod reach one another at 127.0.0.1, \
                      or by a unix socket on a volume that both mount";
        findings.push(Finding::new(Severity::Problem, format!("{flag} {endpoint}"), message, remedy));
    };
    for (flag, endpoint, http) in urls {
        if let Err(error) = request::reach(endpoint, http, config.reload.timeout).await {
            find(flag, endpoint, &error.to_string());
        }
    }
    if let Some(probe) = &config.confirm.url
        && let Some(problem) = confirm::problem(&config.confirm, probe).await
    {
        find("--confirm-url", &probe.endpoint, &problem);
    }
    findings
}

async fn of_target(config: &Config) -> Vec<Finding> {
    let Driver::Signal { signal, selector } = &config.reload.driver else { return Vec::new() };
    match process::find(selector) {
        Ok(target) => of_found_target(config, *signal, selector, &target).await,
        Err(error) => vec![of_find_error(selector, &error)],
    }
}

fn of_find_error(selector: &Selector, error: &FindError) -> Finding {
    let message = error.to_string();
    let message = message.strip_prefix(&format!("{selector}: ")).unwrap_or(&message);
    let remedy = match error {
        FindError::NotShared { .. } | FindError::First { .. } => "the Pod's spec:\nshareProcessNamespace: true",
        FindError::Hidden { .. } => {
            "the Pod's spec, so that both containers have one user:\nsecurityContext: {runAsUser: USER}"
        }
        FindError::Missing { .. } => "start the main process first, or name it as it is called here",
        FindError::Ambiguous { .. } => "--process-args REGEX that only one command line matches, or --pid-file PATH",
        FindError::PidFile { .. } => "a --pid-file on a volume that both containers mount, written by the main process",
        FindError::Io { .. } => "the container's spec:\nsecurityContext: {seccompProfile: {type: RuntimeDefault}}",
    };
    Finding::new(Severity::Problem, selector, message, remedy)
}

async fn of_found_target(config: &Config, signal: Signal, selector: &Selector, target: &Target) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Err(error) = target.permits(signal) {
        let (severity, remedy) = match &error {
            SignalError::Forbidden { theirs, .. } => (
                Severity::Permission,
                format!(
                    "this container's spec:\nsecurityContext: {{runAsUser: {theirs}}}\nor, with which it may signal any \
                     user:\nsecurityContext: {{runAsUser: 0, capabilities: {{add: [KILL]}}}}"
                ),
            ),
            _ => (Severity::Problem, "start the main process first".to_owned()),
        };
        findings.push(Finding::new(severity, selector, error, remedy));
    }
    if let Err(error) = target.handles(signal).await {
        let remedy = "another --signal, or --reload-url or --reload-exec";
        findings.push(Finding::new(Severity::Problem, selector, error, remedy));
    }
    let frozen = config.output.as_ref().and_then(|output| process::frozen_mount(target.pid, &output.output));
    findings.extend(frozen.map(|point| {
        let message = format!(
            "{} (pid {}) has mounted {} by subPath, which stays what it was when its container started",
            target.name,
            target.pid,
            point.display()
        );
        let remedy = "mount the whole volume in the main container, without subPath";
        Finding::new(Severity::Problem, selector, message, remedy)
    }));
    findings.extend(Reader::of(target.pid).and_then(|reader| of_reader(config, target, &reader)));
    findings
}

/// Whether the main process can read the output: what is there, or what would, as modes and owners are.
fn of_reader(config: &Config, target: &Target, reader: &Reader) -> Option<Finding> {
    // What is wrong with the output itself is reported already.
    let config = config.output.as_ref()?;
    let output = Output::inspect(config).ok()?.map(|(output, _)| output);
    let found = match &output {
        Some(output) => output.unreadable(&|bit, user, group, mode| reader.may(bit, user, group, mode)).ok()?,
        None => None,
    };
    let published = output.as_ref().is_some_and(|output| output.current().is_ok_and(|name| name.is_some()));
    let would = || {
        let (user, group) = match &output {
            Some(output) => output.owners(),
            None => Output::creatable(config).ok()?,
        };
        let mode = config.file_mode;
        let what = format!("files of --file-mode {mode:04o}, which will belong to user {user} and group {group}");
        (!published && !reader.may(4, user, group, mode)).then_some(what)
    };
    let what = found.or_else(would)?;
    let message = format!("{} (pid {}, user {}) cannot read {what}", target.name, target.pid, target.uid);
    let remedy = "the Pod's spec, so that both containers have one group:\nsecurityContext: {fsGroup: GROUP}\nor one \
                  runAsUser for both, or a wider --file-mode or --secret-mode";
    let place = format!("--output {}", config.output.display());
    Some(Finding::new(Severity::Permission, place, message, remedy))
}

/// Nobody answers a signal: without a flag that looks further, all that is seen is that the main process lives on.
fn of_confirmation(config: &Config) -> Option<Finding> {
    let Driver::Signal { signal, .. } = &config.reload.driver else { return None };
    if config.confirm.workers || config.confirm.url.is_some() {
        return None;
    }
    let message = "nothing shows whether the main process took what it was notified of: at most, that it lives on";
    let remedy = "--confirm-workers, if it starts new workers at a reload as nginx does; --confirm-url, if it shows by \
                  HTTP what it runs";
    Some(Finding::new(Severity::Advice, format!("--signal {signal}"), message, remedy))
}
