//! A test's own directory: what the sidecar reads, its output, its log.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tempfile::TempDir;

use super::sidecar::Sidecar;

/// `--layout`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    Atomic,
    Files,
}

impl Layout {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Atomic, Self::Files];

    /// The flags for it.
    pub fn flags(self) -> &'static [&'static str] {
        match self {
            Self::Atomic => &[],
            Self::Files => &["--layout", "files"],
        }
    }

    /// The generation that is current in an output, by its directory's name.
    pub fn current(self, output: &Path) -> Option<String> {
        match self {
            Self::Atomic => fs::read_link(output.join("..data")).ok()?.into_os_string().into_string().ok(),
            Self::Files => {
                let pointer: Value =
                    serde_json::from_slice(&fs::read(output.join("..trimtab/private/current")).ok()?).ok()?;
                pointer["current"].as_str().map(str::to_owned)
            }
        }
    }
}

/// The directory. Removed when dropped.
pub struct Scene {
    dir: TempDir,
    /// The sidecar's `--output`.
    pub output: PathBuf,
    /// The output's.
    pub layout: Layout,
}

impl Scene {
    /// An empty one; the output is `conf` in it.
    pub fn new() -> Self {
        Self::of(Layout::Atomic)
    }

    /// The same with an output of this layout.
    pub fn of(layout: Layout) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let output = dir.path().join("conf");
        Self { dir, output, layout }
    }

    /// A path in it.
    pub fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The same as a flag's value.
    pub fn text(&self, name: &str) -> String {
        self.at(name).to_str().unwrap().to_owned()
    }

    /// Starts a sidecar with these flags beside `--output`.
    pub fn start<S: AsRef<str>>(&self, flags: &[S]) -> Sidecar {
        Sidecar::start(&self.at("log"), self.flags(flags))
    }

    /// These flags, `--output` and its layout.
    pub fn flags<S: AsRef<str>>(&self, flags: &[S]) -> Vec<String> {
        let mut all: Vec<_> = flags.iter().map(|flag| flag.as_ref().to_owned()).collect();
        all.extend(self.layout.flags().iter().map(|flag| (*flag).to_owned()));
        all.extend(["--output".to_owned(), self.output.to_str().unwrap().to_owned()]);
        all
    }

    /// What a file of the output holds, by its top-level name.
    pub fn published(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.output.join(path)).ok()
    }

    /// The generation that is current, by its directory's name.
    pub fn current(&self) -> Option<String> {
        self.layout.current(&self.output)
    }

    /// The journal.
    pub fn journal(&self) -> Value {
        let text = fs::read_to_string(self.output.join("..trimtab/private/journal.json")).unwrap_or_default();
        serde_json::from_str(&text).unwrap_or(Value::Null)
    }

    /// What is in the output under Trimtab's own names that the journal does not account for: nothing, when nothing
    /// is under way.
    pub fn left_behind(&self) -> Vec<String> {
        let journal = self.journal();
        let generations = ["current", "from", "lastGood"].map(|role| &journal[role]["directory"]);
        let files = [
            "..data",
            "..trimtab/private/archived.json",
            "..trimtab/private/boot",
            "..trimtab/private/current",
            "..trimtab/private/history.json",
            "..trimtab/private/journal.json",
            "..trimtab/private/journal.synced.json",
            "..trimtab/private/key",
            "..trimtab/private/lock",
        ];
        let mut names = names(&self.output);
        names.retain(|name| {
            name.starts_with("..")
                && !files.contains(&name.as_str())
                && !generations.contains(&&Value::from(name.rsplit('/').next()))
        });
        names
    }
}

/// The sorted names in a directory; instead of that of Trimtab's own directory, those in it.
pub fn names(directory: &Path) -> Vec<String> {
    let in_it = |at: &str| {
        let entries = fs::read_dir(directory.join(at)).unwrap();
        entries.map(|entry| format!("{at}{}", entry.unwrap().file_name().into_string().unwrap())).collect::<Vec<_>>()
    };
    let mut names = in_it("");
    if let Some(own) = names.iter().position(|name| name == "..trimtab") {
        names.swap_remove(own);
        names.extend(in_it("..trimtab/private/"));
    }
    names.sort_unstable();
    names
}
