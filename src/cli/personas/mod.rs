//! `trimtab as PEER …`, or Trimtab under a peer's name: the peer's settings as Trimtab's own flags. There is no second
//! engine, and nothing that flags could not say: `--print-flags` shows what a peer's settings come to.

mod arguments;
mod configmap_reload;
mod k8s_sidecar;
mod prometheus_config_reloader;
mod web_config;

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::ExitCode;

use clap::{Args, ValueEnum};

use super::exit::Exit;
use super::flags::{Env, Variables};
use super::variables;

/// Asks for the flags instead of a run; the one setting that is none of the peer's.
const PRINT: &str = "--print-flags";

/// A sidecar whose settings are understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Peer {
    /// jimmidyson/configmap-reload
    ConfigmapReload,
    /// kiwigrid/k8s-sidecar
    K8sSidecar,
    /// prometheus-config-reloader of the Prometheus Operator
    PrometheusConfigReloader,
}

/// `trimtab as`.
#[derive(Debug, Args)]
pub struct AsArgs {
    /// Whose settings these are
    pub peer: Peer,
    /// The peer's own arguments, and its variables; --print-flags: print the flags that they come to, and exit
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub settings: Vec<OsString>,
}

/// Settings that cannot be honoured: which, why, and the way out.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refused {
    pub message: String,
    /// The peer's exit code for it.
    pub code: u8,
}

/// Trimtab's flags in the making.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Flags {
    /// Each with its value, and whether that is not to be printed.
    given: Vec<(&'static str, Option<OsString>, bool)>,
    /// What the peer takes and Trimtab has no use for, to be said once.
    pub warnings: Vec<String>,
    /// What flags name as variables.
    pub variables: Variables,
}

impl Flags {
    pub fn switch(&mut self, flag: &'static str) {
        self.given.push((flag, None, false));
    }

    pub fn add(&mut self, flag: &'static str, value: impl Into<OsString>) {
        self.given.push((flag, Some(value.into()), false));
    }

    /// Its value may hold a credential: it is not printed.
    pub fn add_secret(&mut self, flag: &'static str, value: impl Into<OsString>) {
        self.given.push((flag, Some(value.into()), true));
    }

    pub fn warn(&mut self, message: impl Into<String>) {
        self.warnings.push(message.into());
    }

    /// Where one of Trimtab's own variables is set, that is what is meant.
    fn without_variables(mut self, env: Env<'_>) -> Self {
        let is_set = |flag: &str| env(&variables::name_of(flag.trim_start_matches('-'))).is_some();
        self.given.retain(|(flag, ..)| !is_set(flag));
        self
    }

    /// As a command line's words, without the program's name.
    fn words(&self) -> impl Iterator<Item = OsString> {
        self.given.iter().map(|(flag, value, _)| joined(flag, value.as_deref()))
    }

    fn command_line(&self) -> Vec<OsString> {
        std::iter::once(OsString::from("trimtab")).chain(self.words()).collect()
    }

    #[cfg(test)]
    fn line(&self) -> String {
        self.words().map(|word| word.into_string().unwrap()).collect::<Vec<_>>().join(" ")
    }

    /// A line for each flag, quoted for a shell.
    fn printed(&self) -> String {
        let line = |(flag, value, secret): &(&str, Option<OsString>, bool)| {
            let value = if *secret { Some(OsStr::new("…")) } else { value.as_deref() };
            let word = joined(flag, value).to_string_lossy().into_owned();
            // Only a NUL cannot be quoted, and no argument or variable holds one.
            shlex::try_quote(&word).map_or_else(|_| word.clone(), std::borrow::Cow::into_owned)
        };
        self.given.iter().map(|given| line(given) + "\n").collect()
    }
}

pub(super) fn joined(flag: &str, value: Option<&OsStr>) -> OsString {
    let mut word = OsString::from(flag);
    if let Some(value) = value {
        word.push("=");
        word.push(value);
    }
    word
}

impl Peer {
    fn name(self) -> String {
        self.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
    }

    fn named(name: &OsStr) -> Option<Self> {
        Self::value_variants().iter().copied().find(|peer| OsStr::new(&peer.name()) == name)
    }

    /// What the peer would make of its arguments and variables.
    fn translate(self, settings: &[OsString], env: Env<'_>) -> Result<Flags, Refused> {
        match self {
            Self::ConfigmapReload => configmap_reload::translate(settings),
            Self::K8sSidecar => k8s_sidecar::translate(settings, env),
            Self::PrometheusConfigReloader => {
                let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
                let mut names: Vec<_> = names.collect();
                names.sort_unstable();
                prometheus_config_reloader::translate(settings, env, &names)
            }
        }
    }
}

/// What a command line comes to.
enum Meant {
    /// Words of Trimtab's own.
    Words(Vec<OsString>),
    /// A peer's settings.
    Settings {
        peer: Peer,
        flags: Result<Flags, Refused>,
        /// Whether the flags are asked for instead of a run.
        print: bool,
    },
}

impl Meant {
    fn of(words: Vec<OsString>) -> Self {
        let called = words.first().and_then(|program| Path::new(program).file_name()).and_then(Peer::named);
        let (peer, settings) = match (called, &words[..]) {
            (Some(peer), [_, settings @ ..]) => (Some(peer), settings),
            (_, [_, subcommand, peer, settings @ ..]) if subcommand == "as" => (Peer::named(peer), settings),
            _ => (None, &[][..]),
        };
        // Whoever names no peer is helped by clap.
        let Some(peer) = peer else { return Self::Words(words) };
        let own = |words: &[&str]| Self::Words(std::iter::once(&"trimtab").chain(words).map(OsString::from).collect());
        match settings {
            [word] if word == "--version" || word == "-version" => return own(&["--version"]),
            [word] if word == "--help" || word == "-h" => return own(&["as", "--help"]),
            _ => {}
        }
        let (asked, settings): (Vec<_>, Vec<_>) = settings.iter().cloned().partition(|word| word == PRINT);
        let env: Env<'_> = &|name| std::env::var_os(name);
        let flags = peer.translate(&settings, env).map(|flags| flags.without_variables(env));
        Self::Settings { peer, flags, print: !asked.is_empty() }
    }
}

/// The command line that another one means, with its variables, if that is one that runs.
pub(super) fn translated(words: Vec<OsString>) -> Option<(Vec<OsString>, Variables)> {
    match Meant::of(words) {
        Meant::Words(words) => Some((words, Variables::default())),
        Meant::Settings { flags: Ok(flags), print: false, .. } => Some((flags.command_line(), flags.variables)),
        Meant::Settings { .. } => None,
    }
}

/// The same of this process, which says what has no use and what is refused. An exit code where there is nothing to run.
pub(super) fn announced(words: Vec<OsString>) -> Result<(Vec<OsString>, Variables), ExitCode> {
    let (peer, flags, print) = match Meant::of(words) {
        Meant::Words(words) => return Ok((words, Variables::default())),
        Meant::Settings { peer, flags, print } => (peer.name(), flags, print),
    };
    let flags = flags.map_err(|Refused { message, code }| {
        eprintln!("trimtab as {peer}: {message}");
        ExitCode::from(code)
    })?;
    for warning in &flags.warnings {
        eprintln!("trimtab as {peer}: {warning}");
    }
    if !print {
        return Ok((flags.command_line(), flags.variables));
    }
    print!("{}", flags.printed());
    Err(Exit::Done.into())
}

/// A command line's words.
#[cfg(test)]
fn split(line: &str) -> Vec<OsString> {
    line.split(' ').map(OsString::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_peer_has_an_image() {
        let dockerfile = include_str!("../../../Dockerfile");
        for peer in Peer::value_variants() {
            let name = peer.name();
            let stage = format!("FROM plain AS {name}\nENTRYPOINT [\"/trimtab\", \"as\", \"{name}\"]\n");
            assert!(dockerfile.contains(&stage), "{name}");
        }
    }

    #[test]
    fn flags_are_words_and_lines_for_a_shell() {
        let mut flags = Flags::default();
        flags.add("--output", "/a b");
        flags.switch("--optional");
        flags.add_secret("--reload-body", "c4n4ry");
        let words: Vec<_> = flags.words().collect();
        assert_eq!(words, ["--output=/a b", "--optional", "--reload-body=c4n4ry"]);
        assert_eq!(flags.printed(), "'--output=/a b'\n--optional\n'--reload-body=…'\n");
        let env = |name: &str| (name == "TRIMTAB_RELOAD_BODY").then(OsString::new);
        assert_eq!(flags.without_variables(&env).printed(), "'--output=/a b'\n--optional\n");
    }

    #[test]
    fn a_peer_is_named_by_the_subcommand_or_by_the_program() {
        for line in ["trimtab --watch-dir=/x", "trimtab as", "trimtab as nobody", "/bin/as k8s-sidecar"] {
            assert_eq!(translated(split(line)), Some((split(line), Variables::default())), "{line}");
        }
        assert_eq!(Peer::named(OsStr::new("k8s-sidecar")), Some(Peer::K8sSidecar));
        let line = "configmap-reload --volume-dir=/x --webhook-url=http://x/";
        let (meant, _) = translated(split(line)).unwrap();
        assert!(meant.contains(&"--observe-dir=x=/x".into()), "{meant:?}");
        assert_eq!(translated(split(&format!("{line} {PRINT}"))), None, "it runs nothing");
        assert_eq!(translated(split("configmap-reload --what")), None, "it is refused");
    }
}
