//! What the user typed: one clap struct for each table of flags, and the grammars of their values.
//!
//! Nothing is cross-checked here; [`crate::cli::config`] does that. Values that may hold a credential (headers, URLs,
//! bodies) stay plain strings until then, because clap quotes a value that it refuses.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::candidate::validate::Syntax;
use crate::publish::Layout;

const SOURCES: &str = "Sources (at least one)";
const OUTPUT: &str = "Output";
const VALIDATE: &str = "Validate (before anything is visible)";
const RELOAD: &str = "Reload (none: publish only)";
const CONFIRM: &str = "Confirm and roll back (none: a reload that succeeds confirms)";
const PACE: &str = "Pace and life";

/// Carries a configuration change into a running process.
///
/// Watches ConfigMaps, Secrets and mounted files, renders them into a shared volume, tells the main process to reload,
/// and goes on until it has.
#[derive(Debug, Parser)]
#[command(
    name = "trimtab",
    version,
    subcommand_negates_reqs = true,
    args_conflicts_with_subcommands = true,
    disable_help_subcommand = true,
    max_term_width = 120,
    after_help = "Every flag has an environment variable, named beside it; lists there are separated by newlines.\n\
                  Durations: 250ms, 5s, 1m30s, 0. Sizes: 4096, 64Ki, 1Mi.\n\
                  Exit codes: 0 drained, published, rendered, ready, or nothing found; 1 start-up failure that a restart \
                  may cure, or something found (check); 64 wrong usage; 65 rejected (--once, render); 69 a source did \
                  not come in time (--once, render); 73 output cannot be written; 77 permission (--once, render, check); \
                  143 ended before the step in flight was done."
)]
pub struct Cli {
    /// What to do instead of running the sidecar.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// The sidecar's flags.
    #[command(flatten)]
    pub run: RunArgs,
}

/// What to do instead of running the sidecar.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show what the sidecar would write with these flags, as a diff; touches nothing
    Render(Box<DryRunArgs>),
    /// Tell what would not work here with these flags, and how to mend it; changes nothing
    Check(Box<DryRunArgs>),
    /// Print the running sidecar's status; exit 0 only when it is ready
    Status(AdminArgs),
    /// Ask the running sidecar to try at once what it rejected or waits with
    Retry(AdminArgs),
}

/// The sidecar's flags, of which those that do not matter here are accepted, and how the result is printed.
#[derive(Debug, Args)]
pub struct DryRunArgs {
    /// The sidecar's flags.
    #[command(flatten)]
    pub run: RunArgs,
    /// How the result is printed
    #[arg(long, value_name = "FORMAT", env = "TRIMTAB_FORMAT", hide_env_values = true, default_value = "text")]
    pub format: Format,
}

/// How the result of a dry run is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    Text,
    /// One JSON document.
    Json,
}

/// Where the running sidecar is asked.
#[derive(Debug, Args)]
pub struct AdminArgs {
    /// The running sidecar's --admin address
    #[arg(long, value_name = "ADDR", env = "TRIMTAB_ADMIN", default_value = "127.0.0.1:9534", hide_env_values = true)]
    pub admin: Listen,
}

/// All flags of the sidecar, table by table.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Where the configuration comes from.
    #[command(flatten)]
    pub sources: SourceArgs,
    /// Where it goes.
    #[command(flatten)]
    pub output: OutputArgs,
    /// What a candidate must pass.
    #[command(flatten)]
    pub validate: ValidateArgs,
    /// How the main process is told.
    #[command(flatten)]
    pub reload: ReloadArgs,
    /// How it is seen that the main process took it.
    #[command(flatten)]
    pub confirm: ConfirmArgs,
    /// When, and how Trimtab itself lives.
    #[command(flatten)]
    pub life: LifeArgs,
}

/// Which resources a selector selects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Resource {
    /// ConfigMaps.
    Configmap,
    /// Secrets.
    Secret,
    /// Both.
    Both,
}

/// What the deletion of an object means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OnDelete {
    /// Its last content stays.
    Keep,
    /// Its keys are gone.
    Apply,
}

/// What is done with a published generation that is rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OnReject {
    /// The last good one is current again, and reloaded.
    Rollback,
    /// It stays, and is reported.
    Hold,
}

/// How logs are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// How much is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogLevel {
    /// Failures that need somebody.
    Error,
    /// And what is tried again, kept or held back.
    Warn,
    /// And each change on its way.
    Info,
    /// And each step.
    Debug,
}

/// Sources.
#[derive(Debug, Args)]
#[command(next_help_heading = SOURCES)]
pub struct SourceArgs {
    /// A ConfigMap by name; a Role with resourceNames and list, watch suffices. May be repeated
    #[arg(
        long = "configmap",
        value_name = "[NS/]NAME",
        env = "TRIMTAB_CONFIGMAP",
        hide_env_values = true,
        value_delimiter = '\n'
    )]
    pub configmaps: Vec<ObjectName>,
    /// A Secret by name. May be repeated
    #[arg(
        long = "secret",
        value_name = "[NS/]NAME",
        env = "TRIMTAB_SECRET",
        hide_env_values = true,
        value_delimiter = '\n'
    )]
    pub secrets: Vec<ObjectName>,
    /// Every object with these labels
    #[arg(long, value_name = "SELECTOR", env = "TRIMTAB_SELECTOR", hide_env_values = true)]
    pub selector: Option<String>,
    /// What --selector selects [default: configmap]
    #[arg(long, value_name = "KIND", env = "TRIMTAB_RESOURCE", hide_env_values = true)]
    pub resource: Option<Resource>,
    /// Namespace of --configmap, --secret and --selector [default: the Pod's own]. May be repeated for --selector
    #[arg(
        long = "namespace",
        value_name = "NS",
        env = "TRIMTAB_NAMESPACE",
        hide_env_values = true,
        value_delimiter = '\n',
        value_parser = namespace
    )]
    pub namespaces: Vec<String>,
    /// --selector selects in every namespace; needs a ClusterRole
    #[arg(long, env = "TRIMTAB_ALL_NAMESPACES", hide_env_values = true)]
    pub all_namespaces: bool,
    /// A mounted volume or any directory; NAME is how templates call it [default: the last path segment].
    /// Taken for secret on tmpfs. May be repeated
    #[arg(
        long = "watch-dir",
        value_name = "[NAME=]PATH",
        env = "TRIMTAB_WATCH_DIR",
        hide_env_values = true,
        value_delimiter = '\n'
    )]
    pub watch_dirs: Vec<NamedPath>,
    /// This --watch-dir is not secret, though on tmpfs. May be repeated
    #[arg(
        long = "public-dir",
        value_name = "NAME",
        env = "TRIMTAB_PUBLIC_DIR",
        hide_env_values = true,
        value_delimiter = '\n'
    )]
    pub public_dirs: Vec<String>,
    /// This --watch-dir is secret, though not on tmpfs. May be repeated
    #[arg(
        long = "secret-dir",
        value_name = "NAME",
        env = "TRIMTAB_SECRET_DIR",
        hide_env_values = true,
        value_delimiter = '\n'
    )]
    pub secret_dirs: Vec<String>,
    /// Read directories this often beside inotify, and alone when inotify is exhausted; 0: never
    #[arg(long, value_name = "D", env = "TRIMTAB_POLL_INTERVAL", hide_env_values = true, default_value = "60s", value_parser = duration)]
    pub poll_interval: Duration,
    /// Start without sources that do not exist yet, instead of waiting for them
    #[arg(long, env = "TRIMTAB_OPTIONAL", hide_env_values = true)]
    pub optional: bool,
    /// What a deletion means [default: keep for a named object or a directory, apply for a selected one]
    #[arg(long, value_name = "WHAT", env = "TRIMTAB_ON_DELETE", hide_env_values = true)]
    pub on_delete: Option<OnDelete>,
    /// An empty snapshot, or an empty result of a template, is meant
    #[arg(long, env = "TRIMTAB_ALLOW_EMPTY", hide_env_values = true)]
    pub allow_empty: bool,
    /// A kubeconfig file, instead of the Pod's service account
    #[arg(long, value_name = "PATH", env = "TRIMTAB_KUBECONFIG", hide_env_values = true)]
    pub kubeconfig: Option<PathBuf>,
    /// A context of --kubeconfig [default: its current one]
    #[arg(long, value_name = "NAME", env = "TRIMTAB_CONTEXT", hide_env_values = true)]
    pub context: Option<String>,
}

/// Output.
#[derive(Debug, Args)]
#[command(next_help_heading = OUTPUT)]
pub struct OutputArgs {
    /// A directory that Trimtab creates and owns; its parent is the shared volume
    #[arg(long, value_name = "DIR", env = "TRIMTAB_OUTPUT", hide_env_values = true, required = true)]
    pub output: Option<PathBuf>,
    /// A template, or every file below a directory, rendered to DEST [default: its name without .j2].
    /// Without it, each key is written as a file. May be repeated
    #[arg(
        long = "template",
        value_name = "SRC[:DEST]",
        env = "TRIMTAB_TEMPLATE",
        hide_env_values = true,
        value_delimiter = '\n'
    )]
    pub templates: Vec<TemplateArg>,
    /// Without templates: where a key goes, of {namespace}, {name}, {kind} and {key} [default: {key}]
    #[arg(long, value_name = "PATTERN", env = "TRIMTAB_PATH", hide_env_values = true)]
    pub path: Option<String>,
    /// How files are published: all by one rename, in a directory that is Trimtab's alone, or each by its own, in one
    /// that others write to as well or that holds thousands; their content is then kept in the volume a second time,
    /// and not in memory
    #[arg(long, value_name = "HOW", env = "TRIMTAB_LAYOUT", hide_env_values = true, default_value = "atomic")]
    pub layout: Layout,
    /// Mode of files that no secret went into
    #[arg(long, value_name = "MODE", env = "TRIMTAB_FILE_MODE", hide_env_values = true, default_value = "0644", value_parser = mode)]
    pub file_mode: u32,
    /// Mode of files that a secret went into
    #[arg(long, value_name = "MODE", env = "TRIMTAB_SECRET_MODE", hide_env_values = true, default_value = "0640", value_parser = mode)]
    pub secret_mode: u32,
    /// The largest source, and the largest result
    #[arg(long, value_name = "SIZE", env = "TRIMTAB_MAX_SIZE", hide_env_values = true, default_value = "64Mi", value_parser = quantity)]
    pub max_size: u64,
    /// An environment variable that templates may read. May be repeated
    #[arg(long = "env", value_name = "NAME", env = "TRIMTAB_ENV", hide_env_values = true, value_delimiter = '\n')]
    pub envs: Vec<String>,
    /// The same for one that is secret. May be repeated
    #[arg(
        long = "secret-env",
        value_name = "NAME",
        env = "TRIMTAB_SECRET_ENV",
        hide_env_values = true,
        value_delimiter = '\n'
    )]
    pub secret_envs: Vec<String>,
    /// A downward API volume with the files labels and annotations
    #[arg(long, value_name = "PATH", env = "TRIMTAB_PODINFO_DIR", hide_env_values = true)]
    pub podinfo_dir: Option<PathBuf>,
    /// Key of the published digest, for replicas to agree on it [default: one made in the output directory]
    #[arg(long, value_name = "PATH", env = "TRIMTAB_DIGEST_KEY_FILE", hide_env_values = true)]
    pub digest_key_file: Option<PathBuf>,
}

/// Validate.
#[derive(Debug, Args)]
#[command(next_help_heading = VALIDATE)]
pub struct ValidateArgs {
    /// Parse files by their ending (json, yaml, yml, toml): reject what is malformed, only tell it, or do not look
    #[arg(long, value_name = "HOW", env = "TRIMTAB_SYNTAX", hide_env_values = true, default_value = "warn")]
    pub syntax: Syntax,
    /// Run this program on the candidate, whose directory is {dir}: any exit code but 0 rejects. Split as a shell
    /// would, run without one. May be repeated, in the order given
    #[arg(
        long = "validate",
        value_name = "CMD",
        env = "TRIMTAB_VALIDATE",
        hide_env_values = true,
        value_delimiter = '\n'
    )]
    pub validate: Vec<String>,
    /// How long one program may take; then its process group is killed, and the candidate is rejected
    #[arg(long, value_name = "D", env = "TRIMTAB_VALIDATE_TIMEOUT", hide_env_values = true, default_value = "30s", value_parser = duration)]
    pub validate_timeout: Duration,
}

/// Reload.
#[derive(Debug, Args)]
#[command(next_help_heading = RELOAD)]
pub struct ReloadArgs {
    /// Send this signal, as SIGHUP, HUP or 1; needs shareProcessNamespace: true and --process, --process-args or
    /// --pid-file
    #[arg(long, value_name = "SIG", env = "TRIMTAB_SIGNAL", hide_env_values = true)]
    pub signal: Option<String>,
    /// The target's name: that of its executable if readable, else its comm (15 bytes), else argv[0]
    #[arg(long, value_name = "NAME", env = "TRIMTAB_PROCESS", hide_env_values = true)]
    pub process: Option<String>,
    /// The target's command line matches this
    #[arg(long, value_name = "REGEX", env = "TRIMTAB_PROCESS_ARGS", hide_env_values = true)]
    pub process_args: Option<String>,
    /// The target's pid stands in this file
    #[arg(long, value_name = "PATH", env = "TRIMTAB_PID_FILE", hide_env_values = true)]
    pub pid_file: Option<PathBuf>,
    /// Call this URL: http, https, or unix:/path.sock:/uri. May be repeated, in the order given
    #[arg(
        long = "reload-url",
        value_name = "URL",
        env = "TRIMTAB_RELOAD_URL",
        hide_env_values = true,
        value_delimiter = '\n'
    )]
    pub reload_urls: Vec<String>,
    /// Method of the call [default: POST]
    #[arg(long, value_name = "METHOD", env = "TRIMTAB_RELOAD_METHOD", hide_env_values = true)]
    pub reload_method: Option<String>,
    /// Body of the call; @FILE reads it on each call
    #[arg(long, value_name = "TEXT", env = "TRIMTAB_RELOAD_BODY", hide_env_values = true)]
    pub reload_body: Option<String>,
    /// Answers that mean success [default: 2xx]
    #[arg(long, value_name = "CODES", env = "TRIMTAB_RELOAD_STATUS", hide_env_values = true)]
    pub reload_status: Option<String>,
    /// Header of the call; 'K: @FILE' reads the value on each call. May be repeated
    #[arg(
        long = "reload-header",
        value_name = "K: V",
        env = "TRIMTAB_RELOAD_HEADER",
        hide_env_values = true,
        value_delimiter = '\n'
    )]
    pub reload_headers: Vec<String>,
    /// A file with user:password, read on each call
    #[arg(long, value_name = "PATH", env = "TRIMTAB_RELOAD_AUTH_FILE", hide_env_values = true)]
    pub reload_auth_file: Option<PathBuf>,
    /// A file with a bearer token, read on each call
    #[arg(long, value_name = "PATH", env = "TRIMTAB_RELOAD_TOKEN_FILE", hide_env_values = true)]
    pub reload_token_file: Option<PathBuf>,
    /// A file with the certificates that the server's must be signed by; for --confirm-url as well
    #[arg(long, value_name = "PATH", env = "TRIMTAB_RELOAD_CA_FILE", hide_env_values = true)]
    pub reload_ca_file: Option<PathBuf>,
    /// A file with a client certificate; for --confirm-url as well
    #[arg(long, value_name = "PATH", env = "TRIMTAB_RELOAD_CERT_FILE", hide_env_values = true)]
    pub reload_cert_file: Option<PathBuf>,
    /// A file with the client certificate's key
    #[arg(long, value_name = "PATH", env = "TRIMTAB_RELOAD_KEY_FILE", hide_env_values = true)]
    pub reload_key_file: Option<PathBuf>,
    /// Do not verify the server's certificate; for --confirm-url as well
    #[arg(long, env = "TRIMTAB_RELOAD_INSECURE", hide_env_values = true)]
    pub reload_insecure: bool,
    /// Run this program of the sidecar's own image; split as a shell would, run without one
    #[arg(long, value_name = "CMD", env = "TRIMTAB_RELOAD_EXEC", hide_env_values = true)]
    pub reload_exec: Option<String>,
    /// How long one attempt may take, connect to last byte
    #[arg(long, value_name = "D", env = "TRIMTAB_RELOAD_TIMEOUT", hide_env_values = true, default_value = "30s", value_parser = duration)]
    pub reload_timeout: Duration,
    /// Refusals before the generation is reported as held; attempts go on
    #[arg(long, value_name = "N", env = "TRIMTAB_RELOAD_ATTEMPTS", hide_env_values = true, default_value = "3", value_parser = clap::value_parser!(u32).range(1..))]
    pub reload_attempts: u32,
    /// The backoff's first step
    #[arg(long, value_name = "D", env = "TRIMTAB_RETRY_MIN", hide_env_values = true, default_value = "250ms", value_parser = duration)]
    pub retry_min: Duration,
    /// The backoff's last step
    #[arg(long, value_name = "D", env = "TRIMTAB_RETRY_MAX", hide_env_values = true, default_value = "30s", value_parser = duration)]
    pub retry_max: Duration,
    /// Never publish more often than this; what comes sooner is joined
    #[arg(long, value_name = "D", env = "TRIMTAB_RELOAD_MIN_INTERVAL", hide_env_values = true, default_value = "0s", value_parser = duration)]
    pub reload_min_interval: Duration,
    /// Wait a random part of this before a publish, so that a fleet does not reload at one instant
    #[arg(long, value_name = "D", env = "TRIMTAB_RELOAD_SPLAY", hide_env_values = true, default_value = "0s", value_parser = duration)]
    pub reload_splay: Duration,
}

/// Confirm and roll back.
#[derive(Debug, Args)]
#[command(next_help_heading = CONFIRM)]
pub struct ConfirmArgs {
    /// The target must live this long after the reload; after TERM, INT or QUIT, the one that takes its place, after its
    /// start; 0: not looked at [default: 2s with a target]
    #[arg(long, value_name = "D", env = "TRIMTAB_CONFIRM_ALIVE", hide_env_values = true, value_parser = duration)]
    pub confirm_alive: Option<Duration>,
    /// A child of the target that is newer than the reload must live for --confirm-alive
    #[arg(long, env = "TRIMTAB_CONFIRM_WORKERS", hide_env_values = true)]
    pub confirm_workers: bool,
    /// Ask this URL until it answers as expected: http, https, or unix:///path.sock:/uri
    #[arg(long, value_name = "URL", env = "TRIMTAB_CONFIRM_URL", hide_env_values = true)]
    pub confirm_url: Option<String>,
    /// Its answers that confirm [default: 2xx]
    #[arg(long, value_name = "CODES", env = "TRIMTAB_CONFIRM_STATUS", hide_env_values = true)]
    pub confirm_status: Option<String>,
    /// Its body matches this; {digest} stands for the generation's
    #[arg(long, value_name = "REGEX", env = "TRIMTAB_CONFIRM_MATCH", hide_env_values = true)]
    pub confirm_match: Option<String>,
    /// What this captures of its body (the first group, or all) differs from before the reload
    #[arg(long, value_name = "REGEX", env = "TRIMTAB_CONFIRM_CHANGED", hide_env_values = true)]
    pub confirm_changed: Option<String>,
    /// How long all this may take; runs only while the target exists or the URL accepts connections
    #[arg(long, value_name = "D", env = "TRIMTAB_CONFIRM_TIMEOUT", hide_env_values = true, default_value = "30s", value_parser = duration)]
    pub confirm_timeout: Duration,
    /// Go back to the last good generation, or hold the rejected one and report it
    #[arg(long, value_name = "WHAT", env = "TRIMTAB_ON_REJECT", hide_env_values = true, default_value = "rollback")]
    pub on_reject: OnReject,
}

/// Pace and life.
#[derive(Debug, Args)]
#[command(next_help_heading = PACE)]
pub struct LifeArgs {
    /// Wait until the sources have been quiet for this long
    #[arg(long, value_name = "D", env = "TRIMTAB_DEBOUNCE", hide_env_values = true, default_value = "200ms", value_parser = duration)]
    pub debounce: Duration,
    /// But never longer than this
    #[arg(long, value_name = "D", env = "TRIMTAB_DEBOUNCE_MAX", hide_env_values = true, default_value = "2s", value_parser = duration)]
    pub debounce_max: Duration,
    /// Render and publish once, without a reload, and exit: for an init container
    #[arg(long, env = "TRIMTAB_ONCE", hide_env_values = true)]
    pub once: bool,
    /// How long --once waits for its sources
    #[arg(long, value_name = "D", env = "TRIMTAB_ONCE_TIMEOUT", hide_env_values = true, default_value = "2m", value_parser = duration)]
    pub once_timeout: Duration,
    /// Serve /livez, /readyz and /metrics here, IPv6 and IPv4; off: nowhere
    #[arg(long, value_name = "ADDR", env = "TRIMTAB_LISTEN", hide_env_values = true, default_value = ":9533")]
    pub listen: Listen,
    /// Serve /status, POST /retry and a page for people here; off: nowhere
    #[arg(long, value_name = "ADDR", env = "TRIMTAB_ADMIN", hide_env_values = true, default_value = "127.0.0.1:9534")]
    pub admin: Listen,
    /// How logs are written
    #[arg(long, value_name = "FORMAT", env = "TRIMTAB_LOG_FORMAT", hide_env_values = true, default_value = "text")]
    pub log_format: LogFormat,
    /// How much is logged
    #[arg(long, value_name = "LEVEL", env = "TRIMTAB_LOG_LEVEL", hide_env_values = true, default_value = "info")]
    pub log_level: LogLevel,
    /// How long SIGTERM waits for the step in flight
    #[arg(long, value_name = "D", env = "TRIMTAB_SHUTDOWN_GRACE", hide_env_values = true, default_value = "5s", value_parser = duration)]
    pub shutdown_grace: Duration,
}

/// `[NS/]NAME`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectName {
    /// The namespace, if one was given.
    pub namespace: Option<String>,
    /// The name.
    pub name: String,
}

impl FromStr for ObjectName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (namespace, name) = match text.split_once('/') {
            Some((namespace, name)) => (Some(namespace), name),
            None => (None, text),
        };
        if !is_dns_name(name) || namespace.is_some_and(|namespace| !is_dns_name(namespace)) {
            return Err("expected NAME or NAMESPACE/NAME, of lower-case letters, digits, '-' and '.'".into());
        }
        Ok(Self { namespace: namespace.map(str::to_owned), name: name.to_owned() })
    }
}

/// Whether the API server could accept this as a name: an RFC 1123 subdomain
/// (`k8s.io/apimachinery/pkg/util/validation`, `IsDNS1123Subdomain`), its ends not looked at.
fn is_dns_name(text: &str) -> bool {
    let allowed = |c| matches!(c, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.');
    !text.is_empty() && text.len() <= 253 && text.bytes().all(allowed) && text != "." && text != ".."
}

/// The name of a namespace. It becomes a segment of a URL's path.
fn namespace(text: &str) -> Result<String, String> {
    if is_dns_name(text) {
        Ok(text.to_owned())
    } else {
        Err("expected a namespace's name, of lower-case letters, digits and '-'".into())
    }
}

/// `[NAME=]PATH`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedPath {
    /// How templates call the directory.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
}

impl FromStr for NamedPath {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, path) = match text.split_once('=') {
            // An `=` behind a slash belongs to the path.
            Some((name, path)) if !name.contains('/') => (Some(name), path),
            _ => (None, text),
        };
        if path.is_empty() {
            return Err("the path is empty".into());
        }
        let path = PathBuf::from(path);
        let last = path.file_name().and_then(|name| name.to_str());
        let Some(name) = name.or(last).filter(|name| !name.is_empty()) else {
            return Err("the path has no last segment to be called by: give a name, as NAME=PATH".into());
        };
        Ok(Self { name: name.to_owned(), path })
    }
}

/// `SRC[:DEST]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TemplateArg {
    /// A file or a directory.
    pub source: PathBuf,
    /// Where it is rendered to; for a directory, the directory that its files go below.
    pub dest: Option<String>,
}

impl FromStr for TemplateArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (source, dest) = match text.rsplit_once(':') {
            Some((source, dest)) => (source, Some(dest)),
            None => (text, None),
        };
        if source.is_empty() || dest.is_some_and(str::is_empty) {
            return Err("expected SRC or SRC:DEST, neither of them empty".into());
        }
        Ok(Self { source: source.into(), dest: dest.map(str::to_owned) })
    }
}

/// `HOST:PORT`, `:PORT` for all addresses, or `off`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listen(pub Option<SocketAddr>);

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "off" {
            return Ok(Self(None));
        }
        let all = text.strip_prefix(':').and_then(|port| port.parse().ok());
        let local = text.strip_prefix("localhost:").and_then(|port| port.parse().ok());
        let address = match (all, local) {
            // On Linux an IPv6 socket takes IPv4 connections as well (ipv6(7), IPV6_V6ONLY).
            (Some(port), _) => SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port),
            (_, Some(port)) => SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port),
            _ => text.parse().map_err(|_| "expected IP:PORT, [IPV6]:PORT, :PORT or off")?,
        };
        Ok(Self(Some(address)))
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(address) => write!(f, "{address}"),
            None => f.write_str("off"),
        }
    }
}

/// A duration: numbers with the units `h`, `m`, `s`, `ms`, one after the other, or a bare `0`.
fn duration(text: &str) -> Result<Duration, String> {
    const YEAR: Duration = Duration::from_hours(8760);
    const EXPECTED: &str = "expected a duration such as 250ms, 5s, 1m30s or 0";
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() || text.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, behind) = rest.split_at(digits);
        let letters = behind.bytes().take_while(u8::is_ascii_alphabetic).count();
        let (unit, behind) = behind.split_at(letters);
        let millis: u64 = match unit {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return Err(EXPECTED.into()),
        };
        let number: u64 = number.parse().map_err(|_| EXPECTED)?;
        let part = number.checked_mul(millis).ok_or("the duration is too long")?;
        total = total.checked_add(Duration::from_millis(part)).ok_or("the duration is too long")?;
        rest = behind;
    }
    if total > YEAR {
        return Err("the duration is longer than a year".into());
    }
    Ok(total)
}

/// A size in bytes, as a Kubernetes quantity of whole bytes (`k8s.io/apimachinery/pkg/api/resource`).
fn quantity(text: &str) -> Result<u64, String> {
    const EXPECTED: &str = "expected a size such as 4096, 64Ki, 1Mi or 1M";
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let factor: u64 = match unit {
        "" => 1,
        "k" => 1000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        _ => return Err(EXPECTED.into()),
    };
    let number: u64 = number.parse().map_err(|_| EXPECTED)?;
    match number.checked_mul(factor) {
        Some(0) => Err("the size is zero".into()),
        Some(size) => Ok(size),
        None => Err("the size is too large".into()),
    }
}

/// A file mode in octal; the owner must be able to read.
fn mode(text: &str) -> Result<u32, String> {
    let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777);
    match mode {
        Some(mode) if mode & 0o400 != 0 => Ok(mode),
        Some(_) => Err("its owner could not read such a file".into()),
        None => Err("expected an octal mode such as 0644".into()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn clap_finds_no_fault_with_the_flags() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_flag_has_help_a_heading_and_its_variable() {
        let command = Cli::command();
        for arg in command.get_arguments() {
            let Some(long) = arg.get_long().filter(|long| !matches!(*long, "help" | "version")) else { continue };
            let variable = format!("TRIMTAB_{}", long.to_uppercase().replace('-', "_"));
            assert_eq!(arg.get_env().and_then(|env| env.to_str()), Some(variable.as_str()), "--{long}");
            assert!(arg.get_help().is_some(), "--{long} has no help");
            assert!(arg.get_help_heading().is_some(), "--{long} has no heading");
            assert!(arg.is_hide_env_values_set(), "--help would print the value of {variable}");
        }
    }

    #[test]
    fn durations_are_read_as_kubernetes_users_write_them() {
        for (text, millis) in [("250ms", 250), ("5s", 5000), ("1m30s", 90_000), ("0", 0), ("0s", 0), ("2h", 7_200_000)]
        {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for bad in [
            "",
            "5",
            "s",
            "-5s",
            "1.5s",
            "5 s",
            "5d",
            "99999999999999999999s",
            "18446744073709551615h",
            "9000h9000h",
            "1µs",
        ] {
            assert!(duration(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn quantities_and_modes_are_read() {
        assert_eq!(quantity("64Mi"), Ok(64 << 20));
        assert_eq!(quantity("1M"), Ok(1_000_000));
        for bad in ["", "Mi", "0", "-1", "1.5Gi", "1mi", "99999999999Gi"] {
            assert!(quantity(bad).is_err(), "{bad:?}");
        }
        assert_eq!(mode("0640"), Ok(0o640));
        for bad in ["", "0240", "8", "4755", "-1", "rw"] {
            assert!(mode(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn addresses_are_read() {
        let address = |text: &str| text.parse::<Listen>().map(|listen| listen.to_string());
        assert_eq!(address(":9533"), Ok("[::]:9533".into()));
        assert_eq!(address("localhost:1"), Ok("127.0.0.1:1".into()));
        assert_eq!(address("[::1]:1"), Ok("[::1]:1".into()));
        assert_eq!(address("off"), Ok("off".into()));
        for bad in ["", ":", "9533", "example.com:1", ":99999"] {
            assert!(address(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn directories_are_called_by_their_last_segment_or_as_said() {
        let named = |text: &str| text.parse::<NamedPath>().map(|named| (named.name, named.path));
        assert_eq!(named("/etc/app/"), Ok(("app".into(), "/etc/app/".into())));
        assert_eq!(named("x=/etc/app"), Ok(("x".into(), "/etc/app".into())));
        assert_eq!(named("/a=b"), Ok(("a=b".into(), "/a=b".into())));
        for bad in ["", "x=", "/", "=/etc", ".."] {
            assert!(named(bad).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_a_grammar_panic(text in "\\PC{0,12}|[0-9a-zA-Z:=/.\\[\\]-]{0,24}") {
            let _ = (duration(&text), quantity(&text), mode(&text));
            let _ = (text.parse::<Listen>(), text.parse::<NamedPath>(), text.parse::<ObjectName>(), text.parse::<TemplateArg>());
        }
    }
}
