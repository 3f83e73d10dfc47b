//! `trimtab render` and `trimtab check`: what they say is true, and they leave no trace.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};

use super::support::scene::Scene;
use super::support::sidecar::{Volume, output_of, trimtab};

/// A subcommand's end: code, standard output, standard error.
struct Ended {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Ended {
    fn of(output: Output) -> Self {
        Self {
            code: output.status.code(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    #[track_caller]
    fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {}{}", self.out, self.err))
    }
}

fn dry<S: AsRef<std::ffi::OsStr>>(subcommand: &str, flags: &[S]) -> Ended {
    Ended::of(output_of(trimtab().arg(subcommand).args(flags)))
}

/// Publishes with these flags, as the sidecar would.
fn publish<S: AsRef<std::ffi::OsStr>>(flags: &[S]) {
    let output = output_of(trimtab().args(flags).arg("--once"));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// All that can be seen of a directory and what is below it.
fn traces(path: &Path) -> Vec<String> {
    let mut traces = Vec::new();
    let mut open = vec![path.to_owned()];
    while let Some(path) = open.pop() {
        let Ok(stat) = fs::symlink_metadata(&path) else { continue };
        traces.push(format!(
            "{} {:o} {}.{} {}.{} {} {} {}",
            path.display(),
            stat.mode(),
            stat.mtime(),
            stat.mtime_nsec(),
            stat.ctime(),
            stat.ctime_nsec(),
            stat.ino(),
            stat.size(),
            stat.nlink()
        ));
        if stat.is_dir() {
            open.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
    traces.sort();
    traces
}

/// A scene with a volume, and the flags for it.
fn scene(files: &[(&str, &str)]) -> (Scene, Volume, Vec<String>) {
    let scene = Scene::new();
    let volume = Volume::new(scene.at("volume"), files);
    let flags = scene.flags(&["--watch-dir", &scene.text("volume")]);
    (scene, volume, flags)
}

fn with<'a>(flags: &'a [String], more: &[&'a str]) -> Vec<&'a str> {
    flags.iter().map(String::as_str).chain(more.iter().copied()).collect()
}

fn change<'a>(report: &'a Value, path: &str) -> &'a Value {
    let files = report["files"].as_array().unwrap();
    files.iter().find(|file| file["path"] == path).unwrap_or_else(|| panic!("{path} in {report}"))
}

// --- render ----------------------------------------------------------------------------------------------------------

#[test]
fn render_shows_what_would_change_as_a_unified_diff() {
    let (_scene, mut volume, flags) = scene(&[("a.conf", "one\ntwo\nthree\n"), ("gone", "x\n"), ("same", "s\n")]);
    publish(&flags);
    volume.swap(&[("a.conf", "one\nTWO\nthree\n"), ("new", "fresh"), ("same", "s\n")]);
    let ended = dry("render", &flags);
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    assert_eq!(
        ended.out,
        "--- a/a.conf\n+++ b/a.conf\n@@ -1,3 +1,3 @@\n one\n-two\n+TWO\n three\n\
         --- a/gone\n+++ /dev/null\n@@ -1 +0,0 @@\n-x\n\
         --- /dev/null\n+++ b/new\n@@ -0,0 +1 @@\n+fresh\n\\ No newline at end of file\n\
         1 changed, 1 added, 1 removed, 1 the same; nothing was written\n"
    );
    let report = dry("render", &with(&flags, &["--format", "json"])).json();
    assert_eq!(change(&report, "a.conf")["change"], "changed");
    assert_eq!(change(&report, "gone")["change"], "removed");
    assert_eq!(change(&report, "same"), &json!({"path": "same", "change": "same", "secret": false}));
    let new = change(&report, "new");
    assert_eq!((&new["change"], &new["secret"]), (&json!("added"), &json!(false)));
    assert!(new["diff"].as_str().unwrap().contains("+fresh"), "{new}");
}

/// What it shows is a patch that makes the old files of the new ones.
#[test]
fn render_prints_a_patch_that_applies() {
    let old: String = (0..200).map(|line| format!("line {line}\n")).collect();
    let new = old.replace("line 3\n", "").replace("line 90\n", "ninety\nand more\n") + "end without newline";
    let (scene, mut volume, flags) = scene(&[("a.conf", &old), ("b.conf", "no newline")]);
    publish(&flags);
    let before = scene.at("before");
    fs::create_dir(&before).unwrap();
    for name in ["a.conf", "b.conf"] {
        fs::copy(scene.output.join(name), before.join(name)).unwrap();
    }
    volume.swap(&[("a.conf", &new), ("b.conf", "no newline, still")]);
    fs::write(scene.at("patch"), dry("render", &flags).out).unwrap();
    let mut git = Command::new("git");
    // Outside of a repository, and of this one.
    git.current_dir(&before).env("GIT_CEILING_DIRECTORIES", scene.at("")).args(["apply", "../patch"]);
    let applied = output_of(&mut git);
    assert!(applied.status.success(), "{}", String::from_utf8_lossy(&applied.stderr));
    assert_eq!(fs::read_to_string(before.join("a.conf")).unwrap(), new);
    assert_eq!(fs::read_to_string(before.join("b.conf")).unwrap(), "no newline, still");
}

#[test]
fn render_touches_nothing() {
    let (scene, mut volume, flags) = scene(&[("a.conf", "1\n")]);
    for published in [false, true] {
        if published {
            publish(&flags);
            // Modes that the sidecar would mend.
            fs::set_permissions(&scene.output, fs::Permissions::from_mode(0o755)).unwrap();
            fs::set_permissions(scene.output.join("..trimtab.key"), fs::Permissions::from_mode(0o644)).unwrap();
            fs::write(scene.output.join("..trimtab.json"), "not a journal").unwrap();
        }
        volume.swap(&[("a.conf", "2\n")]);
        for subcommand in ["render", "check"] {
            let before = traces(&scene.at(""));
            let ended = dry(subcommand, &with(&flags, &["--secret-dir", "volume"]));
            assert_eq!(ended.code, Some(0), "{}{}", ended.out, ended.err);
            assert_eq!(traces(&scene.at("")), before, "{subcommand}");
        }
    }
}
