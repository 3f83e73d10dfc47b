//! Where the configuration goes, and what rendering depends on beside the sources.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::builder::PossibleValue;
use clap::{Args, ValueEnum};

use super::source::{Parts, real};
use super::{Checked, Env, UsageError, usage};
use crate::cli::values::{TemplateArg, mode, quantity};
use crate::model::tree::TreePath;
use crate::publish::{self, Layout};
use crate::render::{DelimitersError, EnvVar, OnCollision, PathPattern, Pod, Settings};
use crate::source::Role;

/// In a value of `--env`.
const ORDINAL: &str = "{pod.ordinal}";

/// Output.
#[derive(Debug, Args)]
#[command(next_help_heading = "Output")]
pub struct OutputArgs {
    /// Publish into this directory
    ///
    /// Trimtab creates and owns it; its parent is the shared volume.
    #[arg(long, value_name = "DIR")]
    pub output: Option<PathBuf>,
    /// Keep in this directory what is Trimtab's own [default: ..trimtab in --output; without --output, in memory]
    ///
    /// With --layout files, on the same mount as --output. With --observe-dir and without both, a restart means one reload too many.
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Let --path lead into these directories as well, by a label or annotation with an absolute path
    ///
    /// Several have commas between; they may be on other volumes. With --layout files.
    #[arg(long, value_name = "DIR")]
    pub folders: Vec<String>,
    /// Render this file, or each of a directory
    ///
    /// DEST is its place [default: its name without .j2]. May be repeated. Without it, each key is written as a file.
    #[arg(long = "template", value_name = "SRC[:DEST]")]
    pub templates: Vec<TemplateArg>,
    /// Publish this file, or each of a directory, with the values of variables in the place of $(NAME)
    ///
    /// Of those that --env and --secret-env name; another $(NAME) stays as it is, and is logged. DEST as of --template. May be repeated.
    #[arg(long = "envsubst", value_name = "SRC[:DEST]")]
    pub envsubst: Vec<TemplateArg>,
    /// Of a --template directory, render only files whose names end with this, and copy the others [default: render all]
    #[arg(long, value_name = "SUFFIX")]
    pub template_suffix: Option<String>,
    /// The signs around values, blocks and comments of templates [default: {{ }} {% %} {# #}]
    #[arg(long, value_name = "SIGNS")]
    pub template_delimiters: Option<String>,
    /// Without templates: the file of each key, from {namespace}, {name}, {kind} and {key} [default: {key}]
    ///
    /// And from labels and annotations: {label:NAME}, {annotation:NAME|DEFAULT}.
    #[arg(long, value_name = "PATTERN")]
    pub path: Option<String>,
    /// Without templates: which key is published where two objects have one for the same file
    #[arg(long, value_name = "WHICH", default_value = "hold")]
    pub on_collision: OnCollision,
    /// Without templates: hold back keys that end with this
    #[arg(long, value_name = "SUFFIX")]
    pub refuse_keys: Option<String>,
    /// How files are published
    #[arg(long, value_name = "HOW", default_value = "atomic")]
    pub layout: Layout,
    /// Mode of files without a secret in them
    #[arg(long, value_name = "MODE", default_value = "0644", value_parser = mode)]
    pub file_mode: u32,
    /// Mode of files with a secret in them
    #[arg(long, value_name = "MODE", default_value = "0640", value_parser = mode)]
    pub secret_mode: u32,
    /// Reject a source or a result that is larger than this
    #[arg(long, value_name = "SIZE", default_value = "64Mi", value_parser = quantity)]
    pub max_size: u64,
    /// Let templates read this environment variable. May be repeated
    ///
    /// Or one with this VALUE, in which {pod.ordinal} is the number at the end of POD_NAME.
    #[arg(long = "env", value_name = "NAME[=VALUE]")]
    pub envs: Vec<String>,
    /// Let templates read this environment variable, whose value is secret. May be repeated
    #[arg(long = "secret-env", value_name = "NAME")]
    pub secret_envs: Vec<String>,
    /// A downward API volume with the files labels and annotations, for templates
    #[arg(long, value_name = "PATH")]
    pub podinfo_dir: Option<PathBuf>,
    /// Key of the published digest, so that replicas agree on it [default: one made in the output directory]
    #[arg(long, value_name = "PATH")]
    pub digest_key_file: Option<PathBuf>,
}

impl ValueEnum for OnCollision {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::Hold, Self::Last]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(match self {
            Self::Hold => PossibleValue::new("hold").help(
                "That of the oldest object of --selector; the other key is held back, and reported. Objects by name are \
                 rejected",
            ),
            Self::Last => PossibleValue::new("last").help(
                "That of the object which comes last in the merged view: of --selector, the youngest; it is logged",
            ),
        })
    }
}

impl ValueEnum for Layout {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::Atomic, Self::Files]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(match self {
            Self::Atomic => PossibleValue::new("atomic")
                .help("All files change in one rename; the directory belongs to Trimtab alone"),
            Self::Files => PossibleValue::new("files").help(
                "Each file is renamed into place, beside files of others, or thousands of them; content is kept in the \
                 volume a second time, and not in memory",
            ),
        })
    }
}

impl OutputArgs {
    /// Those of `--folders`, absolute and without a slash at the end.
    pub fn all_folders(&self) -> Vec<PathBuf> {
        let all = self.folders.iter().flat_map(|several| several.split(',')).map(str::trim);
        let absolute = |folder| std::path::absolute(folder).unwrap_or_else(|_| PathBuf::from(folder));
        all.map(|folder| absolute(folder).components().collect()).collect()
    }

    /// Adds the templates and the Pod's labels, which are watched like sources.
    pub(super) fn add_sources(&self, parts: &mut Parts) -> Checked<()> {
        // A template in a watched directory is as secret as that.
        let declared: Vec<_> = parts.roots.iter().map(|root| (real(&root.path), root.secret)).collect();
        let templates = self.templates.iter().map(|arg| ("template", arg));
        for (kind, TemplateArg { source, dest }) in templates.chain(self.envsubst.iter().map(|arg| ("envsubst", arg))) {
            if let Some(dest) = dest {
                // With a slash at its end it is a directory.
                TreePath::parse(dest.strip_suffix('/').unwrap_or(dest))
                    .map_err(|error| UsageError(format!("--{kind} {}:{dest}: {error}", source.display())))?;
            }
            let path = real(source);
            let secret = declared.iter().find(|(dir, _)| path.starts_with(dir)).and_then(|(_, secret)| *secret);
            let dest = dest.clone();
            let role = if kind == "template" { Role::Template { dest } } else { Role::Envsubst { dest } };
            parts.file(format!("{kind}/{}", source.display()), role, source, secret);
        }
        if let Some(podinfo) = &self.podinfo_dir {
            // Labels and annotations are no secrets, though the kubelet's downward API volumes are on tmpfs.
            parts.file("podinfo".into(), Role::PodInfo, podinfo, Some(false));
        }
        Ok(())
    }

    /// Where to write: `None`, if there is nothing to write. `copied`: whether some source is.
    pub(super) fn directory(&self, copied: bool) -> Checked<Option<&Path>> {
        let written = copied || !self.templates.is_empty() || !self.envsubst.is_empty();
        match (&self.output, &self.state_dir) {
            (Some(output), Some(state)) if real(state).starts_with(real(output)) => usage(format!(
                "--state-dir {} is in --output {}, whose readers would find it there: name a directory beside it",
                state.display(),
                output.display()
            )),
            (Some(_), _) if !written => usage(
                "nothing would be written into --output: what --observe-dir names is not copied; leave --output away, \
                 or give something to write, as --template",
            ),
            (None, _) if written => usage(
                "--output is required: the directory to write, such as /shared/conf (--observe-dir alone needs none)",
            ),
            (output, _) => Ok(output.as_deref()),
        }
    }

    /// A watched directory in the output, or the output in a watched one, would make each publish a change.
    pub(super) fn check_apart(&self, watched: &Path) -> Checked<()> {
        let one = [("--output", &self.output), ("--state-dir", &self.state_dir)];
        let one = one.into_iter().filter_map(|(flag, path)| Some((flag, path.as_ref()?)));
        let folders = self.all_folders();
        for (flag, written) in one.chain(folders.iter().map(|folder| ("--folders", folder))) {
            let (written_real, watched_real) = (real(written), real(watched));
            if written_real.starts_with(&watched_real) || watched_real.starts_with(&written_real) {
                return usage(format!(
                    "{flag} {} and the watched {} are in one another: each publish would be a change; keep them apart",
                    written.display(),
                    watched.display()
                ));
            }
        }
        Ok(())
    }

    /// Folders are written into beside the output, and each path is in one of them alone.
    fn check_folders(&self, path: &PathPattern) -> Checked<()> {
        let folders = self.all_folders();
        let Some(first) = folders.first() else { return Ok(()) };
        if self.layout != Layout::Files {
            return usage("--folders goes with --layout files: one rename cannot change all files of several volumes");
        }
        if path.marks().is_empty() {
            return usage(format!(
                "--folders goes with a --path in which a label or an annotation says where a key goes; else nothing leads \
                 into {}",
                first.display()
            ));
        }
        for (number, folder) in folders.iter().enumerate() {
            if folder.as_os_str().is_empty() {
                return usage("--folders has an empty name");
            }
            let within = |one: &Path, other: &Path| real(one).starts_with(real(other));
            let mut others = self.output.iter().chain(&self.state_dir).chain(folders.iter().take(number));
            if let Some(other) = others.find(|other| within(folder, other) || within(other, folder)) {
                return usage(format!(
                    "--folders {} and {} are in one another: what is in both has two names",
                    folder.display(),
                    other.display()
                ));
            }
        }
        Ok(())
    }

    pub(super) fn config(&self) -> Option<publish::Config> {
        let (output, state_dir) = match (&self.output, &self.state_dir) {
            (Some(output), state) => (output, state.clone()),
            (None, state) => (state.as_ref()?, None),
        };
        Some(publish::Config {
            output: output.clone(),
            state_dir,
            folders: self.all_folders(),
            // With nothing in it, this layout leaves nothing at the top but Trimtab's own directory.
            layout: if self.output.is_some() { self.layout } else { Layout::Files },
            file_mode: self.file_mode,
            secret_mode: self.secret_mode,
        })
    }

    pub(super) fn settings(&self, env: Env<'_>, allow_empty: bool, selects: bool) -> Checked<Settings> {
        let rendered = !self.templates.is_empty();
        let templated = rendered || !self.envsubst.is_empty();
        let renders = if rendered { "--template" } else { "--envsubst" };
        let plain = [
            ("--path", self.path.is_some()),
            ("--on-collision", self.on_collision != OnCollision::Hold),
            ("--refuse-keys", self.refuse_keys.is_some()),
            ("--folders", !self.folders.is_empty()),
        ];
        if self.refuse_keys.as_deref() == Some("") {
            return usage("--refuse-keys is empty, and would hold back every key");
        }
        if let Some((flag, _)) = plain.iter().find(|(_, given)| templated && *given) {
            return usage(format!("{flag} is for plain copies, and {renders} renders instead: give one of them"));
        }
        let pattern = self.path.as_deref().unwrap_or("{key}");
        let path: PathPattern = pattern.parse().map_err(|error| UsageError(format!("--path {pattern}: {error}")))?;
        self.check_folders(&path)?;
        let folders = self.all_folders();
        let path = path.with_folders(&folders);
        let output = self.output.as_ref().and_then(|output| std::path::absolute(output).ok());
        let path = output.map_or(path.clone(), |output| path.below(&output));
        let (suffix, signs) = (&self.template_suffix, &self.template_delimiters);
        for (flag, given) in [("--template-suffix", suffix.is_some()), ("--template-delimiters", signs.is_some())] {
            if given && !rendered {
                return usage(format!("{flag} goes with --template, and there is no --template"));
            }
        }
        if suffix.as_deref().is_some_and(|suffix| suffix.is_empty() || suffix.contains('/')) {
            return usage("--template-suffix is the end of a file's name, such as .j2");
        }
        let delimiters = signs.as_deref().map(str::parse).transpose();
        let delimiters =
            delimiters.map_err(|error: DelimitersError| UsageError(format!("--template-delimiters: {error}")))?;
        let text = |name: &str| env(name).and_then(|value| value.into_string().ok());
        let pod = Pod {
            name: text("POD_NAME").unwrap_or_default(),
            namespace: text("POD_NAMESPACE").unwrap_or_default(),
            uid: text("POD_UID").unwrap_or_default(),
            ip: text("POD_IP").unwrap_or_default(),
            node: text("NODE_NAME"),
            ..Pod::default()
        };
        let Self { file_mode, secret_mode, max_size, on_collision, refuse_keys, .. } = self;
        Ok(Settings {
            templated,
            path,
            on_collision: self.on_collision,
            refuse_keys: self.refuse_keys.clone(),
            suffix: suffix.clone(),
            delimiters: delimiters.unwrap_or_default(),
            env: self.variables(env, &pod)?,
            pod,
            max_size: self.max_size,
            allow_empty,
            selects,
            flags: format!(
                "{pattern} {file_mode:o} {secret_mode:o} {max_size} {allow_empty} {suffix:?} {signs:?} {on_collision:?} {refuse_keys:?}{}",
                if folders.is_empty() { String::new() } else { format!(" {folders:?}") }
            ),
        })
    }

    /// Those of `--env` and `--secret-env` that are set.
    fn variables(&self, env: Env<'_>, pod: &Pod) -> Checked<BTreeMap<String, EnvVar>> {
        let plain = self.templates.is_empty() && self.envsubst.is_empty();
        if plain && !(self.envs.is_empty() && self.secret_envs.is_empty()) {
            return usage("--env and --secret-env are for templates, and there is no --template and no --envsubst");
        }
        let mut variables = BTreeMap::new();
        for (flag, names, secret) in [("--env", &self.envs, false), ("--secret-env", &self.secret_envs, true)] {
            for name in names {
                if secret && self.envs.iter().any(|other| other.split('=').next() == Some(name)) {
                    return usage(format!("--env {name} and --secret-env {name} contradict each other"));
                }
                if let Some((name, value)) = name.split_once('=').filter(|_| !secret) {
                    let ordinal = pod.ordinal().map(|ordinal| ordinal.to_string());
                    let value = match ordinal {
                        _ if !value.contains(ORDINAL) => value.to_owned(),
                        Some(ordinal) => value.replace(ORDINAL, &ordinal),
                        None => {
                            return usage(format!(
                                "--env {name} has {ORDINAL}, and the variable POD_NAME does not end with one, as in web-0: set \
                                 it by the downward API, in a Pod of a StatefulSet"
                            ));
                        }
                    };
                    variables.insert(name.to_owned(), EnvVar { value, secret });
                    continue;
                }
                match env(name).map(std::ffi::OsString::into_string) {
                    Some(Ok(value)) => {
                        variables.insert(name.clone(), EnvVar { value, secret });
                    }
                    Some(Err(_)) => return usage(format!("{flag} {name}: its value is not UTF-8")),
                    None => {}
                }
            }
        }
        Ok(variables)
    }
}
