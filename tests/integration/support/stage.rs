//! What a sidecar of most tests has around it: a volume with one key, an output, the flags for both.

use std::fs;
use std::path::PathBuf;

use serde_json::Value;

use super::scene::Layout;
use super::sidecar::{Sidecar, Volume};

/// A folder with a volume that holds `app.conf`; the output will be `conf`, the log `log`.
pub struct Stage {
    dir: tempfile::TempDir,
    /// The volume.
    pub volume: Volume,
    /// The output's.
    pub layout: Layout,
}

impl Stage {
    /// One whose `app.conf` holds this.
    pub fn new(content: &str) -> Self {
        Self::of(Layout::Atomic, content)
    }

    /// The same with an output of this layout.
    pub fn of(layout: Layout, content: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let volume = Volume::new(dir.path().join("volume"), &[("app.conf", content)]);
        Self { dir, volume, layout }
    }

    /// A path in the folder.
    pub fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The same as text.
    pub fn text(&self, name: &str) -> String {
        self.at(name).to_str().unwrap().to_owned()
    }

    /// Writes a file into the folder; its path.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        fs::write(self.at(name), content).unwrap();
        self.text(name)
    }

    /// Somebody edits the ConfigMap.
    pub fn edit(&mut self, content: &str) {
        self.volume.swap(&[("app.conf", content)]);
    }

    /// Where `app.conf` is published.
    pub fn file(&self) -> PathBuf {
        self.at("conf/app.conf")
    }

    /// What is published; nothing yet: `None`.
    pub fn published(&self) -> Option<String> {
        fs::read_to_string(self.file()).ok()
    }

    /// The flags for the volume and the output, and more.
    pub fn flags(&self, more: &[&str]) -> Vec<String> {
        let (volume, output) = (self.text("volume"), self.text("conf"));
        let own = ["--watch-dir", &volume, "--output", &output, "--debounce", "20ms"];
        own.iter().chain(self.layout.flags()).chain(more).map(|flag| (*flag).to_owned()).collect()
    }

    /// Starts a sidecar with these flags and more.
    pub fn start(&self, more: &[&str]) -> Sidecar {
        Sidecar::start(&self.at("log"), self.flags(more))
    }

    /// The same by a program that becomes it.
    pub fn start_by(&self, program: &[&str], more: &[&str]) -> Sidecar {
        Sidecar::start_by(program, &self.at("log"), self.flags(more))
    }
}

/// The message of `/status` for a stage; empty where nothing is wrong.
pub fn problem<'a>(status: &'a Value, stage: &str) -> &'a str {
    status["errors"][stage]["message"].as_str().unwrap_or_default()
}

/// The value of the metric whose line begins so, labels included; `None` where there is no such line.
pub fn metric(sidecar: &Sidecar, name: &str) -> Option<f64> {
    let (_, text) = sidecar.request("--listen", "GET", "/metrics")?;
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}
