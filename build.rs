//! What `--version` says of a build: its commit, its target and the libraries that do most of the work. No date: the same
//! source gives the same binary.

use std::path::Path;
use std::process::Command;

const LIBRARIES: [&str; 7] = ["clap", "hyper", "kube", "minijinja", "rustls", "serde-saphyr", "tokio"];

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-env=BUILD_COMMIT={}", commit());
    println!("cargo:rustc-env=BUILD_TARGET={}", std::env::var("TARGET").unwrap_or_default());
    println!("cargo:rustc-env=BUILD_LIBRARIES={}", libraries());
}

/// `REVISION`, for builds without a repository; or the repository's commit. Of release builds alone: a developer's would
/// be compiled again after each commit.
fn commit() -> String {
    println!("cargo:rerun-if-env-changed=REVISION");
    if let Some(revision) = std::env::var("REVISION").ok().filter(|revision| !revision.is_empty()) {
        return revision;
    }
    if std::env::var("PROFILE").as_deref() != Ok("release") {
        return "not known (a build for development)".to_owned();
    }
    for path in ["HEAD", "logs/HEAD"] {
        let path = git(&["rev-parse", "--git-path", path]).filter(|path| Path::new(path.trim()).exists());
        if let Some(path) = path {
            println!("cargo:rerun-if-changed={}", path.trim());
        }
    }
    // The prefix is empty at the top of a repository: a tarball may have been unpacked into another one.
    let head = git(&["rev-parse", "--show-prefix", "HEAD"]);
    let head = head.as_deref().and_then(|head| head.strip_prefix('\n')).map(str::trim);
    head.unwrap_or("not known").to_owned()
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    output.status.success().then(|| String::from_utf8(output.stdout).ok())?
}

/// As the lock file has them.
fn libraries() -> String {
    println!("cargo:rerun-if-changed=Cargo.lock");
    let lock = std::fs::read_to_string("Cargo.lock").unwrap_or_default();
    let version = |name: &str| {
        let (_, rest) = lock.split_once(&format!("name = \"{name}\"\nversion = \""))?;
        Some(format!("{name} {}", rest.split_once('"')?.0))
    };
    LIBRARIES.iter().filter_map(|name| version(name)).collect::<Vec<_>>().join(", ")
}
