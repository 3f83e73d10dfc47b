//! `trimtab inject`, `uninject`, `rbac`, `profile` and `policy`: the sidecar in a manifest or by an annotation, and the Role
//! that its flags need.

use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::ExitCode;

use clap::{Args, CommandFactory as _, FromArgMatches as _};

use super::Cli;
use super::exit::Exit;
use super::flags::{ADMIN, RunArgs};
use super::values::namespace;
use crate::app::Config;
use crate::inject::role::{self, Subject};
use crate::inject::{Mount, Needed, OF_THE_POD, Probes, Settings, inject, policy, profile, uninject};
use crate::reload::Driver;
use crate::rollout::lease_name;
use crate::source::kube::Rule;

/// As `make image` tags it.
const IMAGE: &str = concat!("trimtab:", env!("CARGO_PKG_VERSION"));

/// What `inject` and `profile` have in common.
#[derive(Debug, Args)]
pub struct SidecarArgs {
    /// The main container [default: the only one; of a profile, the first one]
    #[arg(long, value_name = "NAME")]
    pub container: Option<String>,
    /// The sidecar's image
    #[arg(long, value_name = "IMAGE", default_value = IMAGE)]
    pub image: String,
    /// Mount this for the sidecar: configmap/NAME:PATH, secret/NAME:PATH or volume/NAME:PATH. May be repeated
    ///
    /// For `inject`, what the main container mounts needs none: where a flag names a path in it, the sidecar mounts it as
    /// well.
    #[arg(long = "mount", value_name = "KIND/NAME:PATH")]
    pub mounts: Vec<Mount>,
    /// A variable from a field of the Pod, as NODE_NAME=spec.nodeName. May be repeated
    #[arg(long = "field", value_name = "NAME=PATH", value_parser = field)]
    pub fields: Vec<(String, String)>,
    /// The memory that the sidecar may take
    #[arg(long, value_name = "QUANTITY", default_value = "32Mi")]
    pub memory_limit: String,
    /// The sidecar's flags, behind --
    #[arg(last = true, required = true, value_name = "FLAGS")]
    pub flags: Vec<String>,
}

/// `inject`.
#[derive(Debug, Args)]
pub struct InjectArgs {
    /// Add it to this object alone, as deployment/web or web. May be repeated
    #[arg(long = "workload", value_name = "[KIND/]NAME")]
    pub workloads: Vec<String>,
    /// Name of the volume above --output, where the main container mounts none there
    #[arg(long, value_name = "NAME", default_value = "trimtab")]
    pub volume: String,
    /// Put it behind this init container [default: before all of them]
    #[arg(long, value_name = "NAME")]
    pub after: Option<String>,
    #[command(flatten)]
    pub sidecar: SidecarArgs,
}

/// `profile`.
#[derive(Debug, Args)]
pub struct ProfileArgs {
    /// Its name, which Pods have in the annotation trimtab.dev/inject
    #[arg(value_name = "NAME", value_parser = namespace)]
    pub name: String,
    #[command(flatten)]
    pub sidecar: SidecarArgs,
}

/// `rbac`.
#[derive(Debug, Args)]
pub struct RbacArgs {
    /// Name of the Roles and of what binds them
    #[arg(long, value_name = "NAME", default_value = "trimtab")]
    pub name: String,
    /// The Pod's service account
    #[arg(long, value_name = "NAME", default_value = "default")]
    pub service_account: String,
    /// The Pod's namespace [default: where kubectl applies it]
    #[arg(long, value_name = "NS", value_parser = namespace)]
    pub namespace: Option<String>,
    /// The sidecar's flags, behind --
    #[arg(last = true, required = true, value_name = "FLAGS")]
    pub flags: Vec<String>,
}

fn field(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, path)) if !name.is_empty() && !path.is_empty() => Ok((name.to_owned(), path.to_owned())),
        _ => Err("expected NAME=PATH, such as NODE_NAME=spec.nodeName".into()),
    }
}

/// Checks the sidecar's flags.
fn settings(args: SidecarArgs) -> Result<(Settings, Config), ExitCode> {
    let (needed, config) = sidecar(&args.flags, "", None)?;
    let SidecarArgs { container, image, mounts, fields, memory_limit, flags } = args;
    let settings =
        Settings { container, image, args: flags, needed, mounts, fields, memory_limit, ..Settings::default() };
    Ok((settings, config))
}

pub(super) fn run_profile(args: ProfileArgs) -> ExitCode {
    let (settings, config) = match settings(args.sidecar) {
        Ok(settings) => settings,
        Err(code) => return code,
    };
    match profile(&args.name, &settings) {
        Ok(text) => {
            if asks(&config) {
                say_rules(&config, "the Pods' service account", "");
            }
            print(&text)
        }
        Err(error) => fail(&error.to_string()),
    }
}

pub(super) fn run_policy() -> ExitCode {
    print(&policy())
}

fn say_rules(config: &Config, whose: &str, namespace: &str) {
    eprintln!("trimtab: {whose} needs these rules; trimtab rbac prints the Role:");
    for rule in rules(config, namespace) {
        eprintln!("{}", rule.yaml());
    }
}

pub(super) fn run_inject(args: InjectArgs) -> ExitCode {
    let (settings, config) = match settings(args.sidecar) {
        Ok(settings) => settings,
        Err(code) => return code,
    };
    let settings = Settings { volume: args.volume, after: args.after, ..settings };
    let injected = read().and_then(|text| inject(&text, &settings, &args.workloads).map_err(|error| error.to_string()));
    let injected = match injected {
        Ok(injected) => injected,
        Err(error) => return fail(&error),
    };
    for line in &injected.advice {
        eprintln!("trimtab: {line}");
    }
    if asks(&config) {
        for (namespace, account) in &injected.service_accounts {
            let account = account.as_deref().unwrap_or("default");
            let place = namespace.as_ref().map(|namespace| format!(" of namespace {namespace}")).unwrap_or_default();
            say_rules(&config, &format!("service account {account}{place}"), namespace.as_deref().unwrap_or_default());
        }
    }
    print(&injected.text)
}

pub(super) fn run_uninject() -> ExitCode {
    match read().and_then(|text| uninject(&text).map_err(|error| error.to_string())) {
        Ok(text) => print(&text),
        Err(error) => fail(&error),
    }
}

pub(super) fn run_rbac(args: &RbacArgs) -> ExitCode {
    let own = args.namespace.as_deref().unwrap_or_default();
    // No permission depends on where files go.
    let (_, config) = match sidecar(&args.flags, own, Some(Path::new("/output"))) {
        Ok(sidecar) => sidecar,
        Err(code) => return code,
    };
    if !asks(&config) {
        eprintln!("trimtab rbac: these flags ask the API server for nothing: no permission is needed");
        return Exit::Done.into();
    }
    let subject = Subject {
        name: args.name.clone(),
        service_account: args.service_account.clone(),
        namespace: args.namespace.clone(),
    };
    match role::manifest(&rules(&config, own), own, &subject) {
        Ok(text) => print(&text),
        Err(error) => {
            eprintln!("trimtab rbac: {error}");
            Exit::Usage.into()
        }
    }
}

/// Whether the flags ask the API server for more than Events.
fn asks(config: &Config) -> bool {
    config.client.is_some() || config.rollout.is_some()
}

/// What the flags ask the API server for.
fn rules(config: &Config, own: &str) -> Vec<Rule> {
    let mut rules: Vec<_> = config.watches.iter().map(Rule::to_read).collect();
    rules.push(Rule::to_create_events(own));
    if let Some(rollout) = &config.rollout {
        let (name, secret) = (lease_name(&rollout.name), config.digest_key_file.is_some());
        rules.extend(Rule::of_a_fleet(own, &name, rollout.history, secret));
    }
    // Several selectors of one namespace need one rule.
    let mut kept: Vec<Rule> = Vec::new();
    for rule in rules {
        if !kept.contains(&rule) {
            kept.push(rule);
        }
    }
    kept
}

fn read() -> Result<String, String> {
    let mut text = String::new();
    let read = std::io::stdin().lock().read_to_string(&mut text);
    read.map(|_| text).map_err(|error| format!("standard input cannot be read: {error}"))
}

fn print(text: &str) -> ExitCode {
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Ok(()) => Exit::Done.into(),
        Err(error) => fail(&format!("standard output cannot be written: {error}")),
    }
}

fn fail(error: &str) -> ExitCode {
    eprintln!("trimtab: {error}");
    Exit::Rejected.into()
}

/// Parses the sidecar's flags as the sidecar will, with the variables that it will have and none of this environment.
/// `output`: for files that would be written, where the flags do not say it.
fn sidecar(flags: &[String], own: &str, output: Option<&Path>) -> Result<(Needed, Config), ExitCode> {
    let name = std::iter::once("trimtab".to_owned());
    let parsed = Cli::command()
        .try_get_matches_from(name.chain(flags.iter().cloned()))
        .and_then(|matches| Cli::from_arg_matches(&matches));
    let mut cli = parsed.map_err(|error| {
        // Nothing can be done about a closed standard output.
        let _ = error.print();
        ExitCode::from(if error.use_stderr() { Exit::Usage } else { Exit::Done })
    })?;
    let refuse = |error: &dyn std::fmt::Display| {
        eprintln!("trimtab: behind --: {error}\nSee trimtab --help.");
        ExitCode::from(Exit::Usage)
    };
    if cli.command.is_some() {
        return Err(refuse(&"the sidecar's flags are expected, and no subcommand"));
    }
    if cli.run.output.output.is_none() && cli.run.writes() {
        cli.run.output.output = output.map(Path::to_owned);
    }
    let mut needed = needed(&cli.run);
    let own = own.to_owned();
    // What the Pod will be called does not matter here.
    let variable =
        |name: &str| OF_THE_POD.iter().find(|(of_the_pod, _)| *of_the_pod == name).map(|(_, path)| (*path).into());
    let config = cli.run.check(&variable, &|_| Ok(own.clone())).map_err(|error| refuse(&error))?;
    needed.token = asks(&config) && config.client.as_ref().is_none_or(|client| client.kubeconfig.is_none());
    needed.signals = matches!(config.reload.driver, Driver::Signal { .. });
    needed.once = config.once.is_some();
    needed.port = config.listen.map(|address| address.port());
    needed.probes = probes(&config);
    Ok((needed, config))
}

/// The kubelet shows no certificate, and a password would have to stand in the manifest.
fn probes(config: &Config) -> Probes {
    let guard = config.guard.as_ref();
    let wants_more = guard.is_some_and(|guard| {
        guard.users_file.is_some() || guard.tls.as_ref().is_some_and(|tls| tls.client_ca_file.is_some())
    });
    match config.admin {
        _ if config.listen.is_some_and(|address| !address.ip().is_loopback()) && !wants_more => {
            if guard.is_some() {
                Probes::Https
            } else {
                Probes::Http
            }
        }
        Some(admin) if admin.port() != 0 => {
            let given = (admin.to_string() != ADMIN).then(|| format!("--admin={admin}"));
            Probes::Exec(["/trimtab", "status"].map(str::to_owned).into_iter().chain(given).collect())
        }
        _ => Probes::None,
    }
}

/// What the flags themselves say.
fn needed(args: &RunArgs) -> Needed {
    let RunArgs { sources, urls, output, reload, confirm, rollout, validate, listener, .. } = args;
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let mut paths: Vec<(String, String)> = Vec::new();
    let mut add = |flag: &str, path: &Path| paths.push((flag.to_owned(), text(path)));
    for template in &output.templates {
        add("--template", &template.source);
    }
    for file in &output.envsubst {
        add("--envsubst", &file.source);
    }
    for dir in &sources.watch_dirs {
        add("--watch-dir", &dir.path);
    }
    for dir in &sources.observe_dirs {
        add("--observe-dir", &dir.path);
    }
    for path in output.all_folders() {
        add("--folders", &path);
    }
    for path in urls.key_files() {
        add("--url-key", path);
    }
    for (flag, path) in [
        ("--state-dir", &output.state_dir),
        ("--kubeconfig", &sources.kubeconfig),
        ("--digest-key-file", &output.digest_key_file),
        ("--url-ca-file", &urls.url_ca_file),
        ("--url-cert-file", &urls.url_cert_file),
        ("--url-key-file", &urls.url_key_file),
        ("--listen-cert-file", &listener.listen_cert_file),
        ("--listen-key-file", &listener.listen_key_file),
        ("--listen-client-ca-file", &listener.listen_client_ca_file),
        ("--listen-users-file", &listener.listen_users_file),
        ("--pid-file", &reload.pid_file),
        ("--reload-auth-file", &reload.reload_auth_file),
        ("--reload-token-file", &reload.reload_token_file),
        ("--reload-ca-file", &reload.reload_ca_file),
        ("--reload-cert-file", &reload.reload_cert_file),
        ("--reload-key-file", &reload.reload_key_file),
    ] {
        if let Some(path) = path {
            add(flag, path);
        }
    }
    for (flag, value) in [
        ("--reload-body", &reload.reload_body),
        ("--reload-user", &reload.reload_user),
        ("--reload-password", &reload.reload_password),
    ] {
        if let Some(path) = value.as_deref().and_then(|value| value.strip_prefix('@')) {
            add(flag, Path::new(path));
        }
    }
    let headers = reload.reload_headers.iter().map(|header| ("--reload-header", header));
    for (flag, header) in headers.chain(urls.url_headers.iter().map(|header| ("--url-header", header))) {
        if let Some(path) = header.split_once(':').and_then(|(_, value)| value.trim_start().strip_prefix('@')) {
            add(flag, Path::new(path));
        }
    }
    let hooks = reload.reload_urls.iter().map(|url| ("--reload-url", url));
    let hooks = hooks.chain(confirm.confirm_url.iter().map(|url| ("--confirm-url", url)));
    for (flag, url) in hooks.chain(rollout.rollout_gate_url.iter().map(|url| ("--rollout-gate-url", url))) {
        // unix:///path.sock:/uri. The socket is made by the main process: its directory is what is mounted.
        let socket = url.strip_prefix("unix://").map(|rest| rest.split(':').next().unwrap_or(rest));
        if let Some(directory) = socket.and_then(|socket| Path::new(socket).parent()) {
            add(flag, directory);
        }
    }
    let targets = [
        ("--signal", reload.signal.is_some()),
        ("--process", reload.process.is_some()),
        ("--process-args", reload.process_args.is_some()),
        ("--pid-file", reload.pid_file.is_some()),
    ];
    let secret_source = !sources.secrets.is_empty()
        || !output.secret_envs.is_empty()
        || !sources.secret_dirs.is_empty()
        || matches!(sources.resource, Some(super::flags::Resource::Secret | super::flags::Resource::Both));
    // One with a value of its own is in the flags.
    let named = output.envs.iter().filter(|name| !name.contains('='));
    Needed {
        output: output.output.as_deref().map(text).unwrap_or_default(),
        paths,
        podinfo: output.podinfo_dir.as_deref().map(text),
        variables: named.chain(&output.secret_envs).cloned().collect(),
        target: targets.iter().find(|(_, given)| *given).map(|(flag, _)| *flag),
        secrets: secret_source && output.secret_mode & 0o004 == 0,
        program: if reload.reload_exec.is_some() {
            Some("--reload-exec")
        } else {
            (!validate.validate.is_empty()).then_some("--validate")
        },
        ..Needed::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// It needs the Pod's name and UID, which the sidecar will have.
    #[test]
    fn a_rollout_is_taken_and_its_rule_is_there() {
        let flags = ["--configmap=web", "--output=/shared/conf", "--reload-url=http://127.0.0.1:1/", "--rollout=web"];
        let Ok((_, config)) = sidecar(&flags.map(str::to_owned), "shop", None) else { panic!("the flags are refused") };
        let rules = rules(&config, "shop");
        let text: Vec<_> = rules[2..].iter().map(|rule| rule.yaml().replace("\n  ", " ")).collect();
        let leases = r#"- apiGroups: ["coordination.k8s.io"] resources: ["leases"]"#;
        let maps = r#"- apiGroups: [""] resources: ["configmaps"]"#;
        let [named, create] = [r#"resourceNames: ["trimtab-web"] verbs: ["get", "update"]"#, r#"verbs: ["create"]"#];
        let expected = [leases, maps].map(|what| [format!("{what} {create}"), format!("{what} {named}")]).concat();
        assert_eq!(text, expected);
    }

    /// Files alone need the API server then, for the Lease.
    #[test]
    fn a_rollout_of_files_needs_the_pods_token() {
        let flags =
            ["--watch-dir=/etc/web", "--output=/shared/conf", "--reload-url=http://127.0.0.1:1/", "--rollout=web"];
        let Ok((needed, config)) = sidecar(&flags.map(str::to_owned), "shop", None) else {
            panic!("the flags are refused")
        };
        assert!(needed.token && asks(&config));
        let Ok((needed, config)) =
            sidecar(&flags[..3].iter().map(|flag| (*flag).to_owned()).collect::<Vec<_>>(), "shop", None)
        else {
            panic!("the flags are refused")
        };
        assert!(!needed.token && !asks(&config));
    }

    #[test]
    fn probes_are_such_as_the_kubelet_can_make() {
        let exec = |more: &[&str]| {
            Probes::Exec(["/trimtab", "status"].iter().chain(more).map(|&word| word.to_owned()).collect())
        };
        let (tls, users) = ("--listen-cert-file=/tls/tls.crt", "--listen-users-file=/users");
        let other = "--admin=127.0.0.1:99";
        for (more, expected) in [
            (&[][..], Probes::Http),
            (&[tls], Probes::Https),
            (&[tls, "--listen-client-ca-file=/ca"], exec(&[])),
            (&[users], exec(&[])),
            (&["--listen=off"], exec(&[])),
            (&["--listen=127.0.0.1:9533", other], exec(&[other])),
            (&["--listen=off", "--admin=off"], Probes::None),
        ] {
            let flags = ["--watch-dir=/etc/web", "--output=/shared/conf"];
            let flags: Vec<_> = flags.iter().chain(more).map(|&flag| flag.to_owned()).collect();
            let Ok((needed, _)) = sidecar(&flags, "shop", None) else { panic!("{more:?} is refused") };
            assert_eq!(needed.probes, expected, "{more:?}");
        }
    }

    /// A path that a flag names must be in a volume of the sidecar: a new such flag has to be thought of here.
    #[test]
    fn every_flag_with_a_path_is_known_to_inject() {
        let of_a_path = ["PATH", "DIR", "[NAME=]PATH", "SRC[:DEST]"];
        let command = Cli::command();
        for arg in command.get_arguments() {
            let is_path =
                arg.get_value_names().is_some_and(|names| names.iter().any(|name| of_a_path.contains(&name.as_str())));
            let Some(long) = arg.get_long().filter(|_| is_path) else { continue };
            let flags =
                ["trimtab", "--watch-dir=/w", "--output=/shared/conf", "--template=/t", "--confirm-url=http://a/"];
            let given = format!("--{long}=/the/path");
            let flags =
                flags.into_iter().filter(|flag| !flag.starts_with(&format!("--{long}="))).chain([given.as_str()]);
            let matches = Cli::command().try_get_matches_from(flags).unwrap();
            let cli = Cli::from_arg_matches(&matches).unwrap();
            let Needed { output, paths, podinfo, .. } = needed(&cli.run);
            let places = paths.iter().map(|(_, path)| path).chain([&output]).chain(&podinfo);
            assert!(places.into_iter().any(|path| path == "/the/path"), "--{long}");
        }
    }
}
