//! From what the user typed to what the parts need: defaults, cross-checks, and errors that name the flags.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::app::Config;
use crate::candidate::validate;
use crate::cli::args::{
    ConfirmArgs, LifeArgs, ObjectName, OnDelete, OnReject, OutputArgs, ReloadArgs, Resource, RunArgs, SourceArgs,
    ValidateArgs,
};
use crate::machine;
use crate::model::digest::{Digest, Hasher};
use crate::model::object::Kind;
use crate::net::credentials::Header;
use crate::net::endpoint::{Endpoint, StatusCodes};
use crate::net::request::HttpConfig;
use crate::os::exec::Command;
use crate::publish;
use crate::reload::confirm::{self, Probe};
use crate::reload::process::Selector;
use crate::reload::{self, Driver};
use crate::render::{EnvVar, Pod, Settings};
use crate::source::kube::{ClientConfig, Scope, Watch};
use crate::source::{Role, Spec, files};

/// Wrong usage: exit code 64. The message names the flags.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(String);

type Checked<T> = Result<T, UsageError>;

fn usage<T>(message: impl Into<String>) -> Checked<T> {
    Err(UsageError(message.into()))
}

/// Where variables come from: the process's environment, or a map in tests.
pub type Env<'a> = &'a dyn Fn(&str) -> Option<OsString>;

impl RunArgs {
    /// Checks the arguments. `own_namespace` tells the Pod's own namespace (or that of the kubeconfig's context) where
    /// it is needed.
    pub fn check(
        self,
        env: Env<'_>,
        own_namespace: &dyn Fn(&ClientConfig) -> Result<String, String>,
    ) -> Checked<Config> {
        let Self { sources, output, validate, reload, confirm, life } = self;
        let Some(directory) = output.output.clone() else { return usage("--output is required") };
        let (specs, client, watches, files) = sources_of(&sources, &output, own_namespace)?;
        check_life(&life)?;
        for root in &files.roots {
            check_apart(&directory, &root.path)?;
        }
        let render = render_of(&sources, &output, env)?;
        let gate = gate_of(&validate, &reload, &confirm);
        let validate = validate_of(&validate, &directory)?;
        let retry = (reload.retry_min, reload.retry_max);
        let reload_config = reload_of(&reload, &confirm)?;
        let mut confirm_config = confirm_of(&confirm, &reload, reload_config.selector().is_some())?;
        let once = life.once.then_some(life.once_timeout);
        if once.is_some() {
            confirm_config = confirm::Config { alive: None, workers: false, url: None, ..confirm_config };
        }
        let told = !matches!(reload_config.driver, Driver::None) || confirm_config.is_needed();
        Ok(Config {
            specs,
            client,
            watches,
            files,
            output: publish::Config {
                output: directory,
                layout: output.layout,
                file_mode: output.file_mode,
                secret_mode: output.secret_mode,
            },
            digest_key_file: output.digest_key_file,
            render,
            validate,
            machine: machine::Options {
                confirm: confirm_config.is_needed(),
                rollback: confirm.on_reject == OnReject::Rollback,
                gate,
                debounce: life.debounce,
                debounce_max: life.debounce_max,
                min_interval: reload.reload_min_interval,
                splay: reload.reload_splay,
                attempts: reload.reload_attempts,
                reload: once.is_none() && told,
            },
            reload: reload_config,
            confirm: confirm_config,
            retry,
            once,
            listen: life.listen.0,
            admin: life.admin.0,
            shutdown_grace: life.shutdown_grace,
        })
    }
}

type SourceParts = (Vec<Spec>, Option<ClientConfig>, Vec<Watch>, files::Config);

fn sources_of(
    args: &SourceArgs,
    output: &OutputArgs,
    own_namespace: &dyn Fn(&ClientConfig) -> Result<String, String>,
) -> Checked<SourceParts> {
    let from_api = !args.configmaps.is_empty() || !args.secrets.is_empty() || args.selector.is_some();
    if !from_api && args.watch_dirs.is_empty() {
        return usage("no source: give at least one of --configmap, --secret, --selector and --watch-dir");
    }
    check_sources(args, from_api)?;
    if args.selector.as_ref().is_some_and(|selector| selector.trim().is_empty()) {
        return usage("--selector is empty, and would select everything");
    }
    let client = from_api.then(|| ClientConfig {
        kubeconfig: args.kubeconfig.clone(),
        context: args.context.clone(),
        ..ClientConfig::default()
    });
    // Read once, and only where a name comes without its namespace.
    let own = OnceCell::new();
    let namespace_of = |name: &ObjectName, flag: &str| -> Checked<String> {
        match (&name.namespace, &args.namespaces[..], &client) {
            (Some(namespace), _, _) | (None, [namespace], _) => Ok(namespace.clone()),
            (None, [_, _, ..], _) => usage(format!(
                "{flag} {}: several --namespace are given, so its own must be said: {flag} NAMESPACE/{0}",
                name.name
            )),
            (None, [], Some(client)) => own_or_read(&own, client, own_namespace),
            (None, [], None) => usage("--namespace is needed"),
        }
    };
    let mut parts = Parts { specs: Vec::new(), watches: Vec::new(), args };
    for name in &args.configmaps {
        let namespace = namespace_of(name, "--configmap")?;
        parts.named(Kind::ConfigMap, namespace, name.name.clone())?;
    }
    if let Some(selector) = &args.selector {
        let namespaces = match (&args.namespaces[..], &client) {
            (_, _) if args.all_namespaces => vec![None],
            ([], Some(client)) => vec![Some(own_or_read(&own, client, own_namespace)?)],
            (namespaces, _) => namespaces.iter().cloned().map(Some).collect(),
        };
        parts.selected(selector, &namespaces);
    }
    let mut roots = Vec::new();
    for dir in &args.watch_dirs {
        let secret = if args.public_dirs.contains(&dir.name) {
            Some(false)
        } else if args.secret_dirs.contains(&dir.name) {
            Some(true)
        } else {
            None
        };
        roots.push(files::Root { source: parts.specs.len(), name: dir.name.clone(), path: dir.path.clone(), secret });
        parts.specs.push(Spec {
            name: format!("dir/{}", dir.name),
            role: Role::Named,
            apply_deletes: args.on_delete == Some(OnDelete::Apply),
            required: !args.optional,
            may_be_empty: args.allow_empty,
        });
    }
    for name in &args.secrets {
        let namespace = namespace_of(name, "--secret")?;
        parts.named(Kind::Secret, namespace, name.name.clone())?;
    }
    // A template that lies in a watched directory is as secret as that.
    let declared: Vec<_> = roots.iter().map(|root| (real(&root.path), root.secret)).collect();
    let secrecy = |path: &Path| declared.iter().find(|(dir, _)| real(path).starts_with(dir)).and_then(|(_, it)| *it);
    let mut file_source = |name: String, role: Role, path: &Path, secret: Option<bool>| {
        let last = path.file_name().map_or_else(String::new, |last| last.to_string_lossy().into_owned());
        roots.push(files::Root { source: parts.specs.len(), name: last, path: path.to_owned(), secret });
        parts.specs.push(Spec { name, role, apply_deletes: false, required: true, may_be_empty: false });
    };
    for template in &output.templates {
        let name = format!("template/{}", template.source.display());
        file_source(name, Role::Template { dest: template.dest.clone() }, &template.source, secrecy(&template.source));
    }
    if let Some(podinfo) = &output.podinfo_dir {
        // Labels and annotations are no secrets, though the kubelet's downward API volumes lie on tmpfs.
        file_source("podinfo".into(), Role::PodInfo, podinfo, Some(false));
    }
    let files = files::Config { roots, poll_interval: args.poll_interval, max_size: output.max_size };
    Ok((parts.specs, client, parts.watches, files))
}

fn own_or_read(
    own: &OnceCell<String>,
    client: &ClientConfig,
    read: &dyn Fn(&ClientConfig) -> Result<String, String>,
) -> Checked<String> {
    if let Some(own) = own.get() {
        return Ok(own.clone());
    }
    match read(client) {
        Ok(namespace) => Ok(own.get_or_init(|| namespace).clone()),
        Err(error) => usage(format!("--namespace is needed, as the Pod's own is not known: {error}")),
    }
}

/// The specs and watches as they are put together.
struct Parts<'a> {
    specs: Vec<Spec>,
    watches: Vec<Watch>,
    args: &'a SourceArgs,
}

impl Parts<'_> {
    fn named(&mut self, kind: Kind, namespace: String, name: String) -> Checked<()> {
        let watch = Watch { source: self.specs.len(), kind, scope: Scope::Named { namespace, name } };
        if self.specs.iter().any(|spec| spec.name == watch.to_string()) {
            return usage(format!("--{watch} is given twice").replacen('/', " ", 1));
        }
        self.specs.push(Spec {
            name: watch.to_string(),
            role: Role::Named,
            apply_deletes: self.args.on_delete == Some(OnDelete::Apply),
            required: !self.args.optional,
            may_be_empty: self.args.allow_empty,
        });
        self.watches.push(watch);
        Ok(())
    }

    fn selected(&mut self, selector: &str, namespaces: &[Option<String>]) {
        let kinds: &[Kind] = match self.args.resource.unwrap_or(Resource::Configmap) {
            Resource::Configmap => &[Kind::ConfigMap],
            Resource::Secret => &[Kind::Secret],
            Resource::Both => &[Kind::ConfigMap, Kind::Secret],
        };
        for namespace in namespaces {
            for kind in kinds {
                let scope = Scope::Selected { selector: selector.to_owned(), namespace: namespace.clone() };
                let watch = Watch { source: self.specs.len(), kind: *kind, scope };
                self.specs.push(Spec {
                    name: watch.to_string(),
                    role: Role::Selected,
                    apply_deletes: self.args.on_delete != Some(OnDelete::Keep),
                    required: true,
                    may_be_empty: true,
                });
                self.watches.push(watch);
            }
        }
    }
}

fn check_sources(args: &SourceArgs, from_api: bool) -> Checked<()> {
    if args.selector.is_none() {
        if args.resource.is_some() {
            return usage("--resource says what --selector selects, and there is no --selector");
        }
        if args.all_namespaces {
            return usage("--all-namespaces says where --selector selects, and there is no --selector");
        }
    }
    if args.all_namespaces && !args.namespaces.is_empty() {
        return usage("--all-namespaces and --namespace contradict each other: give one of them");
    }
    if args.context.is_some() && args.kubeconfig.is_none() {
        return usage("--context names a context of --kubeconfig, and there is no --kubeconfig");
    }
    if !from_api {
        if args.kubeconfig.is_some() {
            return usage("--kubeconfig is for --configmap, --secret and --selector, and none is given");
        }
        if !args.namespaces.is_empty() {
            return usage("--namespace is for --configmap, --secret and --selector, and none is given");
        }
    }
    for (index, dir) in args.watch_dirs.iter().enumerate() {
        if args.watch_dirs[..index].iter().any(|other| other.name == dir.name) {
            return usage(format!(
                "two --watch-dir are called {:?}: name one otherwise, as --watch-dir NAME=PATH",
                dir.name
            ));
        }
    }
    for (flag, names) in [("--public-dir", &args.public_dirs), ("--secret-dir", &args.secret_dirs)] {
        if let Some(name) = names.iter().find(|name| !args.watch_dirs.iter().any(|dir| dir.name == **name)) {
            return usage(format!("{flag} {name}: no --watch-dir is called so"));
        }
    }
    if let Some(name) = args.public_dirs.iter().find(|name| args.secret_dirs.contains(name)) {
        return usage(format!("--public-dir {name} and --secret-dir {name} contradict each other"));
    }
    Ok(())
}

/// The path without links. What does not exist yet is judged by its nearest ancestor that does.
fn real(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let mut ancestors = absolute.ancestors();
    ancestors
        .find_map(|ancestor| {
            let rest = absolute.strip_prefix(ancestor).ok()?;
            Some(ancestor.canonicalize().ok()?.join(rest))
        })
        .unwrap_or(absolute)
}

/// A watched directory in the output, or the output in a watched one, would make each publish a change.
fn check_apart(output: &Path, watched: &Path) -> Checked<()> {
    let (output_real, watched_real) = (real(output), real(watched));
    if output_real.starts_with(&watched_real) || watched_real.starts_with(&output_real) {
        return usage(format!(
            "--output {} and the watched {} lie in one another: each publish would be a change; keep them apart",
            output.display(),
            watched.display()
        ));
    }
    Ok(())
}

fn check_life(life: &LifeArgs) -> Checked<()> {
    if life.debounce > life.debounce_max {
        return usage("--debounce is longer than --debounce-max");
    }
    if life.once && life.once_timeout.is_zero() {
        return usage("--once-timeout must not be 0");
    }
    match (life.listen.0, life.admin.0) {
        (Some(listen), Some(admin)) if !life.once && listen.port() == admin.port() && listen.port() != 0 => {
            usage(format!("--listen {listen} and --admin {admin} have one port: give one of them another"))
        }
        _ => Ok(()),
    }
}

fn render_of(sources: &SourceArgs, args: &OutputArgs, env: Env<'_>) -> Checked<Settings> {
    let templated = !args.templates.is_empty();
    if templated && args.path.is_some() {
        return usage("--path is for plain copies, and --template renders instead: give one of them");
    }
    let pattern = args.path.as_deref().unwrap_or("{key}");
    let path = pattern.parse().map_err(|error| UsageError(format!("--path {pattern}: {error}")))?;
    let mut variables = BTreeMap::new();
    for (flag, names, secret) in [("--env", &args.envs, false), ("--secret-env", &args.secret_envs, true)] {
        for name in names {
            if secret && args.envs.contains(name) {
                return usage(format!("--env {name} and --secret-env {name} contradict each other"));
            }
            if let Some(value) = env(name) {
                let Ok(value) = value.into_string() else {
                    return usage(format!("{flag} {name}: its value is not UTF-8"));
                };
                variables.insert(name.clone(), EnvVar { value, secret });
            }
        }
    }
    if !(templated || args.envs.is_empty() && args.secret_envs.is_empty()) {
        return usage("--env and --secret-env are for templates, and there is no --template");
    }
    let text = |name: &str| env(name).and_then(|value| value.into_string().ok());
    let pod = Pod {
        name: text("POD_NAME").unwrap_or_default(),
        namespace: text("POD_NAMESPACE").unwrap_or_default(),
        uid: text("POD_UID").unwrap_or_default(),
        ip: text("POD_IP").unwrap_or_default(),
        node: text("NODE_NAME"),
        ..Pod::default()
    };
    Ok(Settings {
        templated,
        path,
        env: variables,
        pod,
        max_size: args.max_size,
        allow_empty: sources.allow_empty,
        flags: format!(
            "{pattern} {:o} {:o} {} {}",
            args.file_mode, args.secret_mode, args.max_size, sources.allow_empty
        ),
    })
}

/// The identity of the flags that inputs can be rejected by.
fn gate_of(validate: &ValidateArgs, reload: &ReloadArgs, confirm: &ConfirmArgs) -> Digest {
    let mut hasher = Hasher::plain();
    hasher.field(format!("{validate:?} {reload:?} {confirm:?}").as_bytes());
    hasher.finish()
}

fn validate_of(args: &ValidateArgs, output: &Path) -> Checked<validate::Config> {
    if args.validate_timeout.is_zero() {
        return usage("--validate-timeout must not be 0");
    }
    let mut commands = Vec::new();
    for (index, text) in args.validate.iter().enumerate() {
        // The text is not quoted: a command line may hold a credential.
        let number = index + 1;
        let command: Command =
            text.parse().map_err(|error| UsageError(format!("--validate (number {number}): {error}")))?;
        if command.replace(validate::PLACEHOLDER, "") == command {
            return usage(format!(
                "--validate {command} (number {number}) has no {{dir}}, and would not look at the candidate: give it \
                 the path there, as in --validate 'nginx -t -p {{dir}} -c {{dir}}/nginx.conf'"
            ));
        }
        commands.push(command);
    }
    if !commands.is_empty() && output.to_str().is_none() {
        return usage("--validate tells programs the path of --output, which is not UTF-8: give another");
    }
    Ok(validate::Config { syntax: args.syntax, commands, timeout: args.validate_timeout })
}

fn reload_of(args: &ReloadArgs, confirm: &ConfirmArgs) -> Checked<reload::Config> {
    if args.retry_min > args.retry_max {
        return usage("--retry-min is longer than --retry-max");
    }
    if args.retry_min < Duration::from_millis(10) {
        return usage("--retry-min must be at least 10ms, or a failing reload would be tried in a busy loop");
    }
    if args.reload_timeout.is_zero() {
        return usage("--reload-timeout must not be 0");
    }
    let ways = [
        ("--signal", args.signal.is_some()),
        ("--reload-url", !args.reload_urls.is_empty()),
        ("--reload-exec", args.reload_exec.is_some()),
    ];
    let given: Vec<_> = ways.iter().filter(|(_, given)| *given).map(|(flag, _)| *flag).collect();
    if let [first, second, ..] = given[..] {
        return usage(format!("{first} and {second} both tell the main process to reload: give one of them"));
    }
    check_goes_with(
        "--reload-url",
        !args.reload_urls.is_empty(),
        &[
            ("--reload-method", args.reload_method.is_some()),
            ("--reload-body", args.reload_body.is_some()),
            ("--reload-status", args.reload_status.is_some()),
            ("--reload-header", !args.reload_headers.is_empty()),
            ("--reload-auth-file", args.reload_auth_file.is_some()),
            ("--reload-token-file", args.reload_token_file.is_some()),
        ],
    )?;
    check_goes_with(
        "--reload-url or --confirm-url",
        !args.reload_urls.is_empty() || confirm.confirm_url.is_some(),
        &[
            ("--reload-ca-file", args.reload_ca_file.is_some()),
            ("--reload-cert-file", args.reload_cert_file.is_some()),
            ("--reload-key-file", args.reload_key_file.is_some()),
            ("--reload-insecure", args.reload_insecure),
        ],
    )?;
    let trust = trust_of(args)?;
    let selector = selector_of(args)?;
    let driver = if let Some(signal) = &args.signal {
        signal_of(signal, selector.clone())?
    } else if let Some(command) = &args.reload_exec {
        // The text is not quoted: a command line may hold a credential.
        let command: Command = command.parse().map_err(|error| UsageError(format!("--reload-exec: {error}")))?;
        Driver::Exec(command)
    } else if args.reload_urls.is_empty() {
        Driver::None
    } else {
        http_of(args, trust)?
    };
    let target = if matches!(driver, Driver::Signal { .. }) { None } else { selector };
    let replaced = matches!(&driver, Driver::Signal { signal, .. } if signal.ends());
    let children = confirm.confirm_workers || replaced;
    let presumed_dead_after = confirm.confirm_url.is_some().then_some(confirm.confirm_timeout);
    Ok(reload::Config { driver, target, children, timeout: args.reload_timeout, presumed_dead_after })
}

/// The flags that say which process is meant.
const TARGET: &str = "--process, --process-args or --pid-file";

fn selector_of(args: &ReloadArgs) -> Checked<Option<Selector>> {
    let regex = args.process_args.as_deref().map(regex_lite::Regex::new).transpose();
    let regex = regex.map_err(|error| UsageError(format!("--process-args: {error}")))?;
    if args.process.as_deref().is_some_and(|name| name.is_empty() || name.contains('/')) {
        return usage("--process is the base name of an executable, without a path");
    }
    let selector = Selector { name: args.process.clone(), args: regex, pid_file: args.pid_file.clone() };
    Ok(Some(selector).filter(Selector::is_given))
}

/// Who is believed, and the certificate that Trimtab shows.
fn trust_of(args: &ReloadArgs) -> Checked<HttpConfig> {
    match (&args.reload_cert_file, &args.reload_key_file) {
        (Some(_), None) => return usage("--reload-cert-file needs --reload-key-file"),
        (None, Some(_)) => return usage("--reload-key-file needs --reload-cert-file"),
        _ => {}
    }
    if args.reload_insecure && args.reload_ca_file.is_some() {
        return usage("--reload-insecure and --reload-ca-file contradict each other: give one of them");
    }
    Ok(HttpConfig {
        ca_file: args.reload_ca_file.clone(),
        cert_file: args.reload_cert_file.clone(),
        key_file: args.reload_key_file.clone(),
        insecure: args.reload_insecure,
        ..HttpConfig::default()
    })
}

fn confirm_of(args: &ConfirmArgs, reload: &ReloadArgs, has_target: bool) -> Checked<confirm::Config> {
    check_goes_with(
        "--confirm-url",
        args.confirm_url.is_some(),
        &[
            ("--confirm-status", args.confirm_status.is_some()),
            ("--confirm-match", args.confirm_match.is_some()),
            ("--confirm-changed", args.confirm_changed.is_some()),
        ],
    )?;
    let alive = args.confirm_alive.or_else(|| has_target.then_some(confirm::DEFAULT_ALIVE)).filter(|d| !d.is_zero());
    for (flag, given) in [("--confirm-alive", alive.is_some()), ("--confirm-workers", args.confirm_workers)] {
        if given && !has_target {
            return usage(format!("{flag} needs a target: give {TARGET}"));
        }
    }
    if args.confirm_timeout.is_zero() {
        return usage("--confirm-timeout must not be 0");
    }
    let config = confirm::Config {
        alive,
        workers: args.confirm_workers,
        url: args.confirm_url.as_deref().map(|url| probe_of(args, url, reload)).transpose()?,
        timeout: args.confirm_timeout,
    };
    let life = if config.workers { Some(config.worker_life()) } else { alive };
    if let Some(life) = life.filter(|life| *life >= config.timeout) {
        let timeout = config.timeout;
        return usage(format!("--confirm-alive ({life:?}) is not shorter than --confirm-timeout ({timeout:?})"));
    }
    if has_target && reload.signal.is_none() && !config.needs_target() {
        return usage(format!(
            "--confirm-alive 0 leaves nothing to do with {TARGET}: it is for --signal, --confirm-alive and \
             --confirm-workers"
        ));
    }
    Ok(config)
}

fn probe_of(args: &ConfirmArgs, url: &str, reload: &ReloadArgs) -> Checked<Probe> {
    // Neither URL nor pattern is quoted: each may hold what is secret.
    let endpoint = url.parse().map_err(|error| UsageError(format!("--confirm-url: {error}")))?;
    let status = args.confirm_status.as_deref().unwrap_or("2xx");
    let accept = status.parse().map_err(|error| UsageError(format!("--confirm-status {status}: {error}")))?;
    let matches = args.confirm_match.as_deref().map(str::parse).transpose();
    let changed = args.confirm_changed.as_deref().map(regex_lite::Regex::new).transpose();
    Ok(Probe {
        endpoint,
        http: trust_of(reload)?,
        accept,
        matches: matches.map_err(|error: regex_lite::Error| UsageError(format!("--confirm-match: {error}")))?,
        changed: changed.map_err(|error| UsageError(format!("--confirm-changed: {error}")))?,
    })
}

/// Refuses flags that do nothing without another one.
fn check_goes_with(flag: &str, given: bool, others: &[(&str, bool)]) -> Checked<()> {
    match others.iter().find(|(_, other_given)| *other_given) {
        Some((other, _)) if !given => usage(format!("{other} goes with {flag}, and there is no {flag}")),
        _ => Ok(()),
    }
}

fn signal_of(signal: &str, selector: Option<Selector>) -> Checked<Driver> {
    let signal = signal.parse().map_err(|error| UsageError(format!("--signal {signal}: {error}")))?;
    let Some(selector) = selector else { return usage(format!("--signal needs a target: give {TARGET}")) };
    Ok(Driver::Signal { signal, selector })
}

fn http_of(args: &ReloadArgs, trust: HttpConfig) -> Checked<Driver> {
    // Neither a URL nor a header is quoted: each may hold a credential. Their place in the order tells which is meant.
    let mut endpoints = Vec::new();
    for (index, url) in args.reload_urls.iter().enumerate() {
        let endpoint: Endpoint =
            url.parse().map_err(|error| UsageError(format!("--reload-url (number {}): {error}", index + 1)))?;
        endpoints.push(endpoint);
    }
    let mut headers = Vec::new();
    for (index, header) in args.reload_headers.iter().enumerate() {
        let header: Header =
            header.parse().map_err(|error| UsageError(format!("--reload-header (number {}): {error}", index + 1)))?;
        headers.push(header);
    }
    if args.reload_auth_file.is_some() && args.reload_token_file.is_some() {
        return usage("--reload-auth-file and --reload-token-file both set Authorization: give one of them");
    }
    let authorized = args.reload_auth_file.is_some() || args.reload_token_file.is_some();
    if authorized && headers.iter().any(|header| header.name() == "authorization") {
        return usage(
            "--reload-header Authorization contradicts --reload-auth-file and --reload-token-file: give one of them",
        );
    }
    let method = args.reload_method.as_deref().unwrap_or("POST");
    let status = args.reload_status.as_deref().unwrap_or("2xx");
    let accept: StatusCodes =
        status.parse().map_err(|error| UsageError(format!("--reload-status {status}: {error}")))?;
    let http = HttpConfig {
        method: method
            .parse()
            .map_err(|_| UsageError(format!("--reload-method {method}: expected a method such as POST")))?,
        body: args.reload_body.clone().unwrap_or_default().into(),
        headers,
        auth_file: args.reload_auth_file.clone(),
        token_file: args.reload_token_file.clone(),
        ..trust
    };
    Ok(Driver::Http { endpoints, http, accept })
}
