//! The programs: their names, where they come from, and their command lines.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, fs, io};

use anyhow::{Result, ensure};
use serde::Serialize;

use crate::hook::{Hook, RUNTIME_INFO, Target};
use crate::volume::KEYS;

/// A column of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Who {
    /// What this is about.
    Trimtab,
    /// Waits and notifies; nothing is read.
    Floor,
    /// Waits, reads, writes one file, fsync, rename, notifies.
    FsyncFloor,
    /// The Prometheus operator's.
    PrometheusConfigReloader,
    /// VictoriaMetrics'.
    VictoriaConfigReloader,
    /// HashiCorp's.
    ConsulTemplate,
    /// Programs that are not built here.
    Elsewhere,
}

impl Who {
    /// All of them, as the columns stand.
    pub const ALL: [Self; 7] = [
        Self::Trimtab,
        Self::Floor,
        Self::FsyncFloor,
        Self::PrometheusConfigReloader,
        Self::VictoriaConfigReloader,
        Self::ConsulTemplate,
        Self::Elsewhere,
    ];

    /// The head of the column.
    pub fn title(self) -> &'static str {
        match self {
            Self::Trimtab => "Trimtab",
            Self::Floor => "floor",
            Self::FsyncFloor => "floor with fsync",
            Self::PrometheusConfigReloader => "prometheus-config-reloader",
            Self::VictoriaConfigReloader => "VictoriaMetrics config-reloader",
            Self::ConsulTemplate => "consul-template",
            Self::Elsewhere => "measured elsewhere ¹",
        }
    }
}

/// How eager a program is set to be.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// As soon as it can.
    Eager,
    /// As it comes.
    Default,
}

/// Who is notified.
pub enum Observer {
    /// By HTTP.
    Hook(Hook),
    /// By SIGHUP; the hook is there for what else a program asks.
    Target(Target, Hook),
}

/// A program that runs on mounted files.
#[derive(Clone)]
pub struct Program {
    /// Which.
    pub who: Who,
    /// Its executable.
    pub path: PathBuf,
}

impl Program {
    /// The command line; `dir` is the program's own: the volume is `volume` in it, the output `conf`.
    pub fn command(&self, dir: &Path, observer: &Observer, pace: Pace) -> Result<Command> {
        let (volume, output) = (dir.join("volume"), dir.join("conf"));
        let eager = pace == Pace::Eager;
        let (target, hook) = match observer {
            Observer::Hook(hook) => (None, hook),
            Observer::Target(target, hook) => (Some(target), hook),
        };
        let url = format!("http://{}/-/reload", hook.address);
        let mut command = Command::new(&self.path);
        match self.who {
            Who::Trimtab => {
                command.arg("--watch-dir").arg(volume).arg("--output").arg(output);
                command.args(["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]);
                match target {
                    // Without its confirmation that the target lives on, which takes two seconds of each reload.
                    Some(target) => {
                        command.args(["--signal", "HUP", "--process", &target.name, "--confirm-alive", "0"])
                    }
                    None => command.args(["--reload-url", &url]),
                };
                if eager {
                    command.args(["--debounce", "0"]);
                }
            }
            Who::PrometheusConfigReloader => {
                command.arg("--watched-dir").arg(volume).args(["--listen-address", "127.0.0.1:0"]);
                match target {
                    Some(target) => {
                        let info = format!("http://{}{RUNTIME_INFO}", hook.address);
                        command.args(["--reload-method", "signal", "--process-executable-name", &target.name]);
                        command.args(["--runtimeinfo-url", &info])
                    }
                    None => command.args(["--reload-url", &url]),
                };
                if eager {
                    command.args(["--delay-interval", "1ms"]);
                }
            }
            Who::VictoriaConfigReloader => {
                ensure!(target.is_none(), "it sends no signals");
                command.arg(format!("--watched-dir={}", volume.display())).arg(format!("--reload-url={url}"));
                command.arg("--http.listenAddr=127.0.0.1:0");
                if eager {
                    command.arg("--delay-interval=1ms");
                }
            }
            Who::ConsulTemplate => {
                ensure!(target.is_none(), "its files are polled: by signal it is as slow");
                let text = |value: &str| serde_json::Value::from(value).to_string();
                let reads = KEYS.map(|key| format!("{{{{ file {} }}}}", text(&volume.join(key).to_string_lossy())));
                let exe = env::current_exe()?;
                let config = format!(
                    "template {{\n contents = {}\n destination = {}\n command = [{}, \"call\", \"{}\"]\n}}\n",
                    text(&reads.join("\n")),
                    text(&output.join(KEYS[0]).to_string_lossy()),
                    text(&exe.to_string_lossy()),
                    hook.address,
                );
                let path = dir.join("config.hcl");
                fs::write(&path, config)?;
                command.arg(format!("-config={}", path.display()));
            }
            Who::Floor | Who::FsyncFloor => {
                command.arg(if self.who == Who::Floor { "floor" } else { "fsync-floor" });
                command.arg(volume).arg(output);
                match target {
                    Some(target) => command.args(["signal", &target.pid.to_string()]),
                    None => command.args(["hook", &hook.address.to_string()]),
                };
            }
            Who::Elsewhere => unreachable!("it is not here"),
        }
        Ok(command)
    }

    /// Where a main process reads the first key.
    pub fn published(&self, dir: &Path) -> PathBuf {
        let folder = match self.who {
            Who::Trimtab | Who::FsyncFloor | Who::ConsulTemplate => "conf",
            _ => "volume",
        };
        dir.join(folder).join(KEYS[0])
    }

    /// Whether it looks again only every so often, so that each edit takes seconds.
    pub fn polls(&self) -> bool {
        self.who == Who::ConsulTemplate
    }
}

/// Those peers that could be built from their Go modules; else why not.
pub fn peers() -> Result<Vec<Program>, String> {
    let build = || -> io::Result<Result<PathBuf, String>> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tools/build");
        let mut child = Command::new(script).arg("peers").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let mut said = String::new();
        for line in child.stderr.take().into_iter().flat_map(|pipe| BufReader::new(pipe).lines()) {
            said = line?;
            eprintln!("{said}");
        }
        let output = child.wait_with_output()?;
        let folder = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
        Ok(if output.status.success() { Ok(folder) } else { Err(said) })
    };
    let folder = build().unwrap_or_else(|error| Err(error.to_string()))?;
    let peers = [
        (Who::PrometheusConfigReloader, "prometheus-config-reloader"),
        (Who::VictoriaConfigReloader, "config-reloader"),
        (Who::ConsulTemplate, "consul-template"),
    ];
    Ok(peers.map(|(who, name)| Program { who, path: folder.join(name) }).into())
}

/// The peers' versions, from what they are built from.
pub fn versions() -> String {
    let peers = [
        (
            "prometheus-config-reloader",
            "github.com/prometheus-operator/prometheus-operator",
            include_str!("../../tests/tools/peers/prometheus-config-reloader/go.mod"),
        ),
        (
            "VictoriaMetrics' config-reloader",
            "github.com/VictoriaMetrics/operator",
            include_str!("../../tests/tools/peers/victoriametrics-config-reloader/go.mod"),
        ),
        (
            "consul-template",
            "github.com/hashicorp/consul-template",
            include_str!("../../tests/tools/peers/consul-template/go.mod"),
        ),
    ];
    let named = peers.map(|(name, module, file)| {
        let mut lines = file.lines().map(|line| line.trim().trim_start_matches("require "));
        let version = lines.find_map(|line| line.strip_prefix(module)?.strip_prefix(" v")?.split_whitespace().next());
        format!("{name} {}", version.unwrap_or_default())
    });
    named.join(", ")
}
