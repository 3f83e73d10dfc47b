//! What the user typed: the command line, its exit codes, and the subcommands. The only room that knows clap.

mod ask;
mod check;
pub mod exit;
mod file;
pub mod flags;
mod given;
mod help;
mod inject;
pub mod log;
mod own;
mod personas;
mod render;
mod rollout;
mod run;
mod values;
mod variables;

use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand, ValueEnum};
use tokio::runtime::{Builder, Runtime};
use tracing::error;

use self::exit::Exit;
use self::file::FileArgs;
use self::flags::RunArgs;
use self::help::CompletionsArgs;
use self::own::Own;
use self::values::{Listen, duration};
use crate::app::Config;
use crate::source::kube;

/// Carries a configuration change into a running process.
///
/// Watches ConfigMaps, Secrets and mounted files, renders them into a shared volume, notifies the main process, and
/// retries until it has the change.
#[derive(Debug, Parser)]
#[command(
    name = "trimtab",
    version,
    long_version = help::VERSION,
    subcommand_negates_reqs = true,
    args_conflicts_with_subcommands = true,
    max_term_width = 120,
    after_help = "trimtab --help has all flags, by topic, with their variables and defaults.",
    after_long_help = "Every flag has an environment variable, named beside it; lists there are separated by newlines.\n\
                  Every flag is a key of the file of --config. A flag wins over its variable, a variable over the file.\n\
                  Durations: 250ms, 5s, 1m30s, 0. Sizes: 4096, 64Ki, 1Mi.\n\
                  Exit codes: 0 drained, published, rendered, ready, or no problems found; 1 start-up failure that a \
                  restart may cure, or problems found (check); 64 wrong usage; 65 rejected (--once, render, \
                  status --wait); 69 not in time (--once, render, status --wait); 73 output cannot be written; 77 permission (--once, \
                  render, check); 143 ended before the step in flight was done."
)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Option<Command>,
    #[command(flatten)]
    pub run: RunArgs,
    /// The flags that were given, for the log.
    #[arg(skip)]
    pub given: Vec<String>,
}

/// What to do instead of running the sidecar.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show what would be written, as a diff; change nothing
    Render(Box<DryRunArgs>),
    /// Find what would not work here, and the remedy; change nothing
    Check(Box<DryRunArgs>),
    /// Show where the newest change stands, sources and last changes
    Status(StatusArgs),
    /// Make the running sidecar retry now
    ///
    /// What it rejected, or waits to retry.
    Retry(AdminArgs),
    /// Say how far a change is in a fleet, or promote, stop or retry it
    Rollout(rollout::RolloutCommand),
    /// Print a completion script for a shell
    Completions(CompletionsArgs),
    /// Add the sidecar to the manifest on standard input
    ///
    /// kubectl get deploy web -o yaml | trimtab inject -- FLAGS
    Inject(Box<inject::InjectArgs>),
    /// Take out of such a manifest what inject added
    Uninject,
    /// Print the Roles that the sidecar's flags need
    ///
    /// trimtab rbac -- FLAGS
    Rbac(inject::RbacArgs),
    /// Print the policies that inject the sidecar without a webhook
    ///
    /// Into Pods with the annotation trimtab.dev/inject.
    Policy,
    /// Print the ConfigMap that this annotation names
    ///
    /// trimtab profile NAME -- FLAGS
    Profile(Box<inject::ProfileArgs>),
    /// Run with the settings of another sidecar
    ///
    /// trimtab as k8s-sidecar, with that one's variables. A link of that name to this program does the same.
    As(personas::AsArgs),
}

/// The sidecar's flags, of which those that do not matter here are accepted, and how the result is printed.
#[derive(Debug, Args)]
pub struct DryRunArgs {
    #[command(flatten)]
    pub run: RunArgs,
    /// Format of the result
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub format: Format,
}

/// `--format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    Text,
    /// One JSON document
    Json,
}

/// `trimtab status`.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit codes: 0 ready (something is published: also while a newer change is rejected or waits); 1 \
                        not ready, or no sidecar answers. With --wait: 0 the newest inputs that the sidecar has seen are \
                        in effect; 65 they were rejected, or are held; 69 neither within the time."
)]
pub struct StatusArgs {
    #[command(flatten)]
    pub admin: AdminArgs,
    /// Format of the status
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub format: Format,
    /// Wait no longer than this until the newest inputs are in effect or rejected, and exit accordingly
    #[arg(long, value_name = "D", value_parser = duration)]
    pub wait: Option<Duration>,
    /// Go on: each second on a terminal, else a line for each new verdict
    #[arg(long, conflicts_with = "wait")]
    pub watch: bool,
}

/// Where the running sidecar is asked.
#[derive(Debug, Args)]
pub struct AdminArgs {
    #[command(flatten)]
    pub file: FileArgs,
    /// The running sidecar's --admin address
    #[arg(long, value_name = "ADDR", default_value = flags::ADMIN)]
    pub admin: Listen,
}

/// The command line, and each flag's variable: `--reload-url` is `TRIMTAB_RELOAD_URL`.
#[must_use]
pub fn command() -> clap::Command {
    variables::derived(Cli::command())
}

/// Parses the command line, the environment and the file of `--config`. Where there is nothing to run, what is to be said
/// is printed.
pub fn parse() -> Result<Cli, ExitCode> {
    let (mut words, mut variables) = personas::announced(std::env::args_os().collect())?;
    let mut command = command();
    // It would be the help's look alone that changed, were it a value.
    if words.iter().any(|word| word == "-h") {
        command = help::on_one_screen(command);
    }
    let (mut own, mut entries) = (Own::Given, Vec::new());
    let mut parsed = command.clone().try_get_matches_from(&words);
    if parsed.as_ref().err().is_none_or(clap::Error::use_stderr) {
        let environment: Vec<_> = std::env::vars_os().collect();
        let environment = environment.iter().map(|(name, value)| (name.as_os_str(), value.as_os_str()));
        // First, as a flag that is missing may be one of them.
        let unknown = variables::unknown(&command, environment);
        if !unknown.is_empty() {
            return Err(refuse(&unknown.join("\n")));
        }
        own = own::flags(&command, &words);
        if let Own::Found { flags, variables: theirs, note } = &mut own {
            eprintln!("trimtab: {}", escaped(note, '\0'));
            words.append(flags);
            variables = std::mem::take(theirs);
            parsed = command.clone().try_get_matches_from(&words);
        }
        let named = parsed.as_ref().map_or_else(|_| file::named(&command, &words), file::named_in);
        if let Some(path) = named {
            entries = file::read(&path).map_err(|message| refuse(&message))?;
            command = file::apply(command, &entries);
            parsed = command.clone().try_get_matches_from(&words);
        }
    }
    let parsed = parsed.and_then(|matches| {
        // To build it takes a millisecond.
        let unchanged = (!entries.is_empty()).then(self::command);
        let given = given::given(unchanged.as_ref().unwrap_or(&command), &matches, &entries);
        Cli::from_arg_matches(&matches).map(|mut cli| {
            let run = match &mut cli.command {
                Some(Command::Check(args) | Command::Render(args)) => &mut args.run,
                _ => &mut cli.run,
            };
            run.variables = variables;
            Cli { given, ..cli }
        })
    });
    let lacks_all = |cli: &Cli| match &cli.command {
        Some(Command::Check(args) | Command::Render(args)) => {
            args.run.output.output.is_none() && args.run.sources.observe_dirs.is_empty()
        }
        _ => false,
    };
    if let (Ok(true), Own::None(why)) = (parsed.as_ref().map(lacks_all), &own) {
        // Which flags are missing is said where they are checked.
        eprintln!("trimtab: {why}");
    }
    parsed.map_err(|error| {
        let exit = if error.use_stderr() { Exit::Usage } else { Exit::Done };
        // Nothing can be done about a closed standard output.
        let _ = error.format(&mut command).print();
        if let Own::None(why) = own {
            eprintln!("\ntrimtab: {why}");
        }
        exit.into()
    })
}

/// Wrong usage.
fn refuse(message: &str) -> ExitCode {
    eprintln!("trimtab: {message}\nSee trimtab --help.");
    Exit::Usage.into()
}

/// The candidate that is most like `word`, if one is like it: what somebody who mistyped it meant.
fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // The measure of clap's own suggestions, and a higher threshold: a letter is like many names.
    let near = candidates.into_iter().map(|candidate| (strsim::jaro(word, candidate), candidate));
    near.filter(|(likeness, _)| *likeness > 0.75).max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, candidate)| candidate)
}

/// Runs the subcommand, or the sidecar where there is none.
#[must_use]
pub fn dispatch(cli: Cli) -> ExitCode {
    match cli.command {
        None => run::run(cli.run, &cli.given),
        Some(Command::Render(args)) => render::render(*args),
        Some(Command::Check(args)) => check::check(*args),
        Some(Command::Status(args)) => ask::status(&args),
        Some(Command::Retry(args)) => ask::retry(&args),
        Some(Command::Rollout(command)) => rollout::rollout(command),
        Some(Command::Completions(args)) => help::completions(&args),
        Some(Command::Inject(args)) => inject::run_inject(*args),
        Some(Command::Uninject) => inject::run_uninject(),
        Some(Command::Rbac(args)) => inject::run_rbac(&args),
        Some(Command::Policy) => inject::run_policy(),
        Some(Command::Profile(args)) => inject::run_profile(*args),
        // It was taken before clap saw it, unless something stands before it.
        Some(Command::As(_)) => refuse("as comes first: trimtab as PEER …"),
    }
}

/// Checks the flags and starts logging.
fn configure(args: RunArgs) -> Result<Config, ExitCode> {
    let (format, level) = (args.life.log_format, args.life.log_level);
    let file = args.file.config.clone();
    let own_namespace =
        |client: &kube::ClientConfig| kube::default_namespace(client).map_err(|error| error.to_string());
    let variables = args.variables.clone();
    match args.check(&|name| variables.get(name), &own_namespace) {
        Ok(config) => {
            log::init(format, level);
            Ok(config)
        }
        Err(error) => Err(refuse(&match file {
            Some(file) => format!("{error}\nFlags are read from --config {}, too.", file.display()),
            None => error.to_string(),
        })),
    }
}

/// What each subcommand that takes the sidecar's flags begins with; an exit code where it goes no further.
fn prepare(args: RunArgs) -> Result<(Config, Runtime), ExitCode> {
    Ok((configure(args)?, runtime()?))
}

/// For a terminal, which names must not be able to steer: control characters but `kept` are shown, not sent.
fn escaped(text: &str, kept: char) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() && c != kept {
            escaped.extend(c.escape_debug());
        } else {
            escaped.push(c);
        }
    }
    escaped
}

/// One thread is enough for what waits; blocking work has threads that end when they are idle.
fn runtime() -> Result<Runtime, ExitCode> {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .thread_keep_alive(Duration::from_secs(1))
        // Started only where all others wait. A read of a hung network mount holds one for good, and local work must not
        // wait behind it.
        .max_blocking_threads(32)
        .build();
    runtime.map_err(|error| {
        error!("the runtime does not start: {error}");
        Exit::StartUp.into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clap_finds_no_fault_with_the_flags() {
        command().debug_assert();
    }

    #[test]
    fn every_flag_has_help_a_heading_and_its_variable() {
        let command = command();
        for arg in command.get_arguments() {
            let Some(long) = arg.get_long().filter(|long| !matches!(*long, "help" | "version")) else { continue };
            let variable = variables::name_of(long);
            assert_eq!(arg.get_env().and_then(|env| env.to_str()), Some(variable.as_str()), "--{long}");
            assert!(arg.get_help().is_some(), "--{long} has no help");
            assert!(arg.get_help_heading().is_some(), "--{long} has no heading");
            assert!(arg.is_hide_env_values_set(), "--help would print the value of {variable}");
        }
    }
}
