//! Whether the main process can be notified, reads what is published, and shows that it took it.

use super::{Finding, Severity};
use crate::app::Config;
use crate::net::endpoint::Endpoint;
use crate::net::request;
use crate::publish::Output;
use crate::reload::process::{self, FindError, Reader, Selector, Signal, SignalError, Target};
use crate::reload::{Driver, confirm};

pub(super) async fn of_urls(config: &Config) -> Vec<Finding> {
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

pub(super) async fn of_target(config: &Config) -> Vec<Finding> {
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
pub(super) fn of_confirmation(config: &Config) -> Option<Finding> {
    let Driver::Signal { signal, .. } = &config.reload.driver else { return None };
    if config.confirm.workers || config.confirm.url.is_some() {
        return None;
    }
    let message = "nothing shows whether the main process took what it was notified of: at most, that it lives on";
    let remedy = "--confirm-workers, if it starts new workers at a reload as nginx does; --confirm-url, if it shows by \
                  HTTP what it runs";
    Some(Finding::new(Severity::Advice, format!("--signal {signal}"), message, remedy))
}
