//! `trimtab render` and `trimtab check`: what they say is true, and they leave no trace.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};

use super::support::scene::Scene;
use super::support::sidecar::{Volume, needs_root, output_of, trimtab};

const NOBODY: u32 = 65534;

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
    let old: String = (0..200).flat_map(|line| ["line ".to_owned(), line.to_string(), "\n".to_owned()]).collect();
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

#[test]
fn render_works_on_an_output_that_it_may_not_write() {
    needs_root("mount");
    let (scene, mut volume, flags) = scene(&[("a.conf", "1\n")]);
    publish(&flags);
    volume.swap(&[("a.conf", "2\n")]);
    let output = scene.output.to_str().unwrap();
    let mount = r#"mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@""#;
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-ec", mount, output, env!("CARGO_BIN_EXE_trimtab"), "render"]).args(&flags);
    let ended = Ended::of(output_of(&mut command));
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    assert!(ended.out.contains("-1\n+2\n"), "{}", ended.out);
}

#[test]
fn render_says_that_nothing_differs() {
    let (_scene, _volume, flags) = scene(&[("a.conf", "1\n")]);
    publish(&flags);
    let ended = dry("render", &flags);
    assert_eq!((ended.code, &*ended.out), (Some(0), "nothing differs from what is published (1 files)\n"));
}

/// A published key makes the digests of a dry run those of the sidecar.
#[test]
fn render_uses_the_key_that_is_there() {
    let (scene, _volume, mut flags) = scene(&[("a", "hunter22")]);
    fs::write(scene.at("t.j2"), "{{ generation.digest }}\n").unwrap();
    flags.extend(["--secret-dir".into(), "volume".into(), "--template".into(), scene.text("t.j2")]);
    publish(&flags);
    let report = dry("render", &with(&flags, &["--format", "json"])).json();
    assert_eq!(change(&report, "t")["change"], "same");
    fs::remove_file(scene.output.join("..trimtab.key")).unwrap();
    let report = dry("render", &with(&flags, &["--format", "json"])).json();
    assert_eq!(change(&report, "t")["change"], "changed");
}

/// The new version is secret, the old one, both; text and JSON; added, changed and removed.
#[test]
fn render_shows_no_byte_of_a_secret() {
    let (scene, mut volume, flags) = scene(&[("key", "hunter-old\n"), ("gone", "hunter-gone\n"), ("same", "hunter-s")]);
    let secret = with(&flags, &["--secret-dir", "volume"]);
    let public = with(&flags, &["--public-dir", "volume"]);
    let quiet = |ended: &Ended| {
        assert_eq!(ended.code, Some(0), "{}", ended.err);
        assert!(!ended.out.contains("hunter") && !ended.err.contains("hunter"), "{}{}", ended.out, ended.err);
    };
    let modes: [&[&str]; 2] = [&[], &["--file-mode", "0640"]];
    for more in modes {
        // With equal modes nobody can tell what was secret: all of it is taken to be.
        let secret: Vec<_> = secret.iter().chain(more).copied().collect();
        let public: Vec<_> = public.iter().chain(more).copied().collect();
        volume.swap(&[("key", "hunter-old\n"), ("gone", "hunter-gone\n"), ("same", "hunter-s")]);
        publish(&secret);
        volume.swap(&[("key", "hunter-new-one\nhunter\n"), ("more", "hunter-more"), ("same", "hunter-s")]);
        for flags in [&secret, &public] {
            let ended = dry("render", flags);
            if flags == &secret {
                quiet(&ended);
            } else {
                // What was not secret as the flags have it now, and replaces nothing, is shown.
                assert!(!ended.out.contains("hunter-old") && !ended.out.contains("hunter-new"), "{}", ended.out);
            }
            assert!(ended.out.contains("key: differs (secret, 11 bytes in 1 lines → 22 bytes in 2 lines)"), "{}", ended.out);
            assert!(ended.out.contains("gone: removed (secret, 12 bytes in 1 lines)"), "{}", ended.out);
        }
        let ended = dry("render", &secret);
        assert!(ended.out.contains("more: added (secret, 11 bytes in 1 lines)"), "{}", ended.out);
        let json = dry("render", &[&secret[..], &["--format", "json"]].concat());
        quiet(&json);
        assert_eq!(change(&json.json(), "key")["secret"], true);
        assert_eq!(change(&json.json(), "same")["change"], "same");
    }
    // The old version was public, the new one is secret.
    fs::remove_dir_all(&scene.output).unwrap();
    publish(&public);
    volume.swap(&[("key", "hunter-3\n")]);
    let ended = dry("render", &secret);
    assert!(ended.out.contains("key: differs (secret,"), "{}", ended.out);
    assert!(!ended.out.contains("hunter-3"), "{}", ended.out);
}

#[test]
fn render_rejects_with_the_reason_and_exit_code_65() {
    let (scene, _volume, flags) = scene(&[("a", "1")]);
    fs::write(scene.at("t.j2"), "x\n{{ data.b }}\n").unwrap();
    let ended = dry("render", &with(&flags, &["--template", &scene.text("t.j2")]));
    assert_eq!(ended.code, Some(65));
    assert_eq!(ended.out, "");
    assert!(ended.err.contains("rejected: template t.j2 (dir/t.j2), line 2: "), "{}", ended.err);
    // A name that is taken.
    fs::create_dir(&scene.output).unwrap();
    fs::write(scene.output.join("a"), "theirs").unwrap();
    let ended = dry("render", &flags);
    assert_eq!(ended.code, Some(65));
    assert!(ended.err.contains("which Trimtab did not make"), "{}", ended.err);
}

#[test]
fn render_waits_for_sources_as_once_does() {
    let (scene, _volume, flags) = scene(&[("a", "1")]);
    let missing = scene.text("missing");
    let ended = dry("render", &with(&flags, &["--watch-dir", &missing, "--once-timeout", "300ms"]));
    assert_eq!(ended.code, Some(69));
    assert!(ended.err.contains("--once-timeout is over, waiting for dir/missing: it does not exist"), "{}", ended.err);
    needs_root("be another user");
    let closed = scene.at("closed");
    fs::create_dir(&closed).unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
    fs::set_permissions(scene.at(""), fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = trimtab();
    command.uid(NOBODY).gid(NOBODY).arg("render").args(with(&flags, &["--once-timeout", "300ms"]));
    let ended = Ended::of(output_of(command.arg("--watch-dir").arg(&closed)));
    assert_eq!(ended.code, Some(77), "{}", ended.err);
}

#[test]
fn render_accepts_what_concerns_the_sidecar_alone() {
    let (_scene, _volume, flags) = scene(&[("a", "1\n")]);
    let more = ["--listen", ":9533", "--admin", ":9533", "--signal", "HUP", "--process", "nginx", "--debounce", "1s"];
    let ended = dry("render", &with(&flags, &more));
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    // By their variables as well, and beside the sidecar's own.
    let mut command = trimtab();
    command.arg("render").env("TRIMTAB_WATCH_DIR", &flags[1]).env("TRIMTAB_OUTPUT", &flags[3]);
    assert!(output_of(&mut command).status.success());
}

/// Colours, and no byte that steers the terminal, as `script` has one.
#[test]
fn render_on_a_terminal_is_coloured_and_cannot_steer_it() {
    let (scene, mut volume, flags) = scene(&[("a.conf", "old\n")]);
    publish(&flags);
    volume.swap(&[("a.conf", "new\x1b[2J\n")]);
    let line = format!("{} render {}", env!("CARGO_BIN_EXE_trimtab"), flags.join(" "));
    let on_terminal = |env: &str| {
        let log = scene.at("script");
        let mut command = Command::new("script");
        command.args(["-qec", &format!("{env} {line}")]).arg(&log).env_remove("NO_COLOR").env("TERM", "xterm");
        assert!(output_of(&mut command).status.success());
        fs::read_to_string(log).unwrap()
    };
    let coloured = on_terminal("");
    assert!(coloured.contains("\x1b[31m-old\x1b[0m") && coloured.contains("\x1b[32m+new\\u{1b}[2J\x1b[0m"), "{coloured:?}");
    let plain = on_terminal("NO_COLOR=1");
    assert!(plain.contains("\r\n-old\r\n+new\\u{1b}[2J\r\n"), "{plain:?}");
    // Elsewhere it is what it is, so that the patch is one.
    assert!(dry("render", &flags).out.contains("+new\x1b[2J\n"));
}
