//! `trimtab render` and `trimtab check`: what they say is true, and they leave no trace.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::api::{Api, PostParams};
use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};

use super::support::apiserver::{ADMIN, APP, ApiServer, NOBODY as NOBODY_AT_THE_API, kubeconfig};
use super::support::child::pid_of;
use super::support::hook::{Answer, Hook};
use super::support::port::free_port;
use super::support::scene::{Layout, Scene};
use super::support::sidecar::{Sidecar, Volume, eventually, needs_root, output_of, trimtab};

const NOBODY: u32 = 65534;
const ALONE: [&str; 5] = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"];

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
    scene_of(Layout::Atomic, files)
}

/// The same with an output of this layout.
fn scene_of(layout: Layout, files: &[(&str, &str)]) -> (Scene, Volume, Vec<String>) {
    let scene = Scene::of(layout);
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
    Layout::ALL.into_iter().for_each(shows_what_would_change);
}

fn shows_what_would_change(layout: Layout) {
    let (_scene, mut volume, flags) =
        scene_of(layout, &[("a.conf", "one\ntwo\nthree\n"), ("gone", "x\n"), ("same", "s\n")]);
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
    Layout::ALL.into_iter().for_each(touches_nothing);
}

fn touches_nothing(layout: Layout) {
    let (scene, mut volume, flags) = scene_of(layout, &[("a.conf", "1\n")]);
    for published in [false, true] {
        if published {
            publish(&flags);
            // Modes that the sidecar would correct.
            fs::set_permissions(&scene.output, fs::Permissions::from_mode(0o755)).unwrap();
            fs::set_permissions(scene.output.join("..trimtab/private/key"), fs::Permissions::from_mode(0o644)).unwrap();
            fs::write(scene.output.join("..trimtab/private/journal.json"), "not a journal").unwrap();
            fs::write(scene.output.join("..trimtab/private/current.tmp"), "left by a crash").unwrap();
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

/// As the sidecar does that starts again.
#[test]
fn render_keeps_what_is_gone() {
    let (scene, _volume, mut flags) = scene(&[("a.conf", "1\n")]);
    let other = Volume::new(scene.at("other"), &[("key", "hunter22\n")]);
    flags.extend(["--watch-dir".into(), scene.text("other"), "--secret-dir".into(), "other".into()]);
    publish(&flags);
    fs::rename(&other.path, scene.at("away")).unwrap();
    let before = traces(&scene.at("conf"));
    let ended = dry("render", &flags);
    let kept = "kept: dir/other: it is gone or empty; its last content is kept (--on-delete keep), but a new Pod will not have \
                it: create it again\nnothing differs from what is published (2 files)\n";
    assert_eq!((ended.code, &*ended.out), (Some(0), kept), "{}", ended.err);
    let report = dry("render", &with(&flags, &["--format", "json"])).json();
    assert_eq!(report["kept"][0]["source"], "dir/other");
    assert!(!ended.err.contains("hunter") && !report.to_string().contains("hunter"));
    assert_eq!(traces(&scene.at("conf")), before);
    // Where templates made the files, its values are not known any more, and nothing newer is published.
    fs::rename(scene.at("away"), &other.path).unwrap();
    fs::write(scene.at("t.j2"), "{{ data['a.conf'] }}").unwrap();
    flags.extend(["--template".into(), scene.text("t.j2")]);
    publish(&flags);
    fs::rename(&other.path, scene.at("away")).unwrap();
    let ended = dry("render", &with(&flags, &["--once-timeout", "300ms"]));
    assert_eq!(ended.code, Some(69), "{}", ended.out);
    assert!(ended.err.contains("waiting for dir/other: it is gone or empty since before this start"), "{}", ended.err);
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
    fs::remove_file(scene.output.join("..trimtab/private/key")).unwrap();
    let report = dry("render", &with(&flags, &["--format", "json"])).json();
    assert_eq!(change(&report, "t")["change"], "changed");
}

/// The new version is secret, the old one, both; text and JSON; added, changed and removed.
#[test]
fn render_shows_no_byte_of_a_secret() {
    Layout::ALL.into_iter().for_each(shows_no_byte_of_a_secret);
}

fn shows_no_byte_of_a_secret(layout: Layout) {
    let files = [("key", "hunter-old\n"), ("gone", "hunter-gone\n"), ("same", "hunter-s")];
    let (scene, mut volume, flags) = scene_of(layout, &files);
    let secret = with(&flags, &["--secret-dir", "volume"]);
    let public = with(&flags, &["--public-dir", "volume"]);
    let quiet = |ended: &Ended| {
        assert_eq!(ended.code, Some(0), "{}", ended.err);
        assert!(!ended.out.contains("hunter") && !ended.err.contains("hunter"), "{}{}", ended.out, ended.err);
    };
    let modes: [&[&str]; 3] = [&[], &["--file-mode", "0640"], &["--file-mode", "0640", "--secret-mode", "0600"]];
    for more in modes {
        // With equal modes nobody knows what was secret: all of it is taken to be.
        let secret: Vec<_> = secret.iter().chain(more).copied().collect();
        let public: Vec<_> = public.iter().chain(more).copied().collect();
        volume.swap(&[("key", "hunter-old\n"), ("gone", "hunter-gone\n"), ("same", "hunter-s")]);
        publish(&secret);
        // As the kubelet does with an fsGroup, at the next mount of a persistent volume.
        for name in ["key", "gone", "same"] {
            let mode = fs::metadata(scene.output.join(name)).unwrap().mode() | 0o660;
            fs::set_permissions(scene.output.join(name), fs::Permissions::from_mode(mode)).unwrap();
        }
        volume.swap(&[("key", "hunter-new-one\nhunter\n"), ("more", "hunter-more"), ("same", "hunter-s")]);
        for flags in [&secret, &public] {
            let ended = dry("render", flags);
            if flags == &secret {
                quiet(&ended);
            } else {
                // What was not secret as the flags have it now, and replaces nothing, is shown.
                assert!(!ended.out.contains("hunter-old") && !ended.out.contains("hunter-new"), "{}", ended.out);
            }
            assert!(
                ended.out.contains("key: differs (secret, 11 bytes in 1 lines → 22 bytes in 2 lines)"),
                "{}",
                ended.out
            );
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
fn render_parses_as_the_sidecar_does() {
    let (_scene, _volume, flags) = scene(&[("a.json", "{hunter22")]);
    let strict = dry("render", &with(&flags, &["--syntax", "strict"]));
    assert_eq!((strict.code, &*strict.out), (Some(65), ""));
    assert!(strict.err.contains("rejected: a.json, line 1, column 2: not JSON"), "{}", strict.err);
    assert!(!strict.err.contains("hunter22"));
    let warned = dry("render", &flags);
    assert_eq!(warned.code, Some(0));
    assert!(warned.err.contains("WARN a.json, line 1, column 2: not JSON"), "{}", warned.err);
    assert_eq!(dry("render", &with(&flags, &["--syntax", "off"])).err, "");
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
    assert!(
        coloured.contains("\x1b[31m-old\x1b[0m") && coloured.contains("\x1b[32m+new\\u{1b}[2J\x1b[0m"),
        "{coloured:?}"
    );
    let plain = on_terminal("NO_COLOR=1");
    assert!(plain.contains("\r\n-old\r\n+new\\u{1b}[2J\r\n"), "{plain:?}");
    // Elsewhere it is what it is, so that the patch is one.
    assert!(dry("render", &flags).out.contains("+new\x1b[2J\n"));
}

/// Two objects that want one place, from a real API server.
#[tokio::test]
async fn render_reads_the_api_and_lists_what_is_held_back() {
    let server = ApiServer::shared().await;
    let namespace = server.namespace().await;
    let api: Api<ConfigMap> = Api::namespaced(server.client(ADMIN).await, &namespace);
    // Of one second, the name decides.
    for name in ["a", "b"] {
        let object = json!({"metadata": {"name": name, "labels": {"app": "web"}}, "data": {"app.conf": name}});
        api.create(&PostParams::default(), &serde_json::from_value(object).unwrap()).await.unwrap();
    }
    let scene = Scene::new();
    let kubeconfig = server.kubeconfig(ADMIN);
    let flags = ["--kubeconfig", kubeconfig.to_str().unwrap(), "--namespace", &namespace, "--selector", "app=web"];
    let flags = scene.flags(&flags);
    let report = dry("render", &with(&flags, &["--format", "json"])).json();
    assert!(change(&report, "app.conf")["diff"].as_str().unwrap().contains("\n+a\n"), "{report}");
    let held = &report["heldBack"][0];
    assert_eq!(held["source"], format!("configmap/{namespace}/b"));
    let ended = dry("render", &flags);
    assert_eq!(ended.code, Some(0));
    let line = format!("\nheld back: configmap/{namespace}/b: {}", held["reason"].as_str().unwrap());
    assert!(ended.out.contains(&line), "{}", ended.out);
    assert!(!scene.output.exists());
    // Who may not read it waits, and that is reported.
    let kubeconfig = server.kubeconfig(NOBODY_AT_THE_API);
    let mut flags = flags;
    flags[1] = kubeconfig.to_str().unwrap().to_owned();
    let ended = dry("render", &with(&flags, &["--once-timeout", "1s"]));
    assert_eq!(ended.code, Some(77), "{}", ended.err);
    assert!(ended.err.contains("forbidden (403): nobody may not list configmaps"), "{}", ended.err);
}

// --- check -----------------------------------------------------------------------------------------------------------

/// The only finding that weighs.
#[track_caller]
fn only(ended: &Ended) -> Value {
    let report = ended.json();
    let mut findings = report["findings"].as_array().unwrap().clone();
    findings.retain(|finding| finding["severity"] != "advice");
    assert_eq!(findings.len(), 1, "{report:#}");
    findings.remove(0)
}

/// Whether a finding says all of this, in its words and its remedy.
#[track_caller]
fn says(finding: &Value, severity: &str, place: &str, message: &[&str], remedy: &[&str]) {
    assert_eq!(finding["severity"], severity, "{finding}");
    assert_eq!(finding["place"], place, "{finding}");
    for (field, parts) in [("message", message), ("remedy", remedy)] {
        let text = finding[field].as_str().unwrap();
        assert!(parts.iter().all(|part| text.contains(part)), "{field}: {parts:?} in {finding}");
    }
}

fn check(flags: &[String], more: &[&str]) -> Ended {
    dry("check", &with(flags, &[more, &["--format", "json"]].concat()))
}

/// The same as another user.
fn check_as(user: u32, flags: &[String], more: &[&str]) -> Ended {
    needs_root("be another user");
    let mut command = trimtab();
    command.uid(user).gid(user).arg("check").args(with(flags, more)).args(["--format", "json"]);
    Ended::of(output_of(&mut command))
}

/// A main process, found by `--process-args` and its name here. Killed when dropped.
struct Main {
    child: Child,
    said: BufReader<ChildStdout>,
    marker: String,
}

impl Main {
    /// A shell that handles HUP, if `handles`. It is there, and ready, on return.
    fn start(user: u32, handles: bool) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let marker = format!("main-{}-{}-end", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let trap = if handles { "trap notified=yes HUP; " } else { "" };
        let script =
            format!("{trap}trap 'echo notified=$notified; exit' TERM; echo ready; while :; do sleep 0.05; done");
        let mut command = Command::new("bash");
        command.args(["-c", &script, &marker]).uid(user).gid(user).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let said = BufReader::new(child.stdout.take().unwrap());
        let mut main = Self { child, said, marker };
        assert_eq!(main.line(), "ready\n");
        main
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.said.read_line(&mut line).unwrap();
        line
    }

    /// Ends it, and sees that it got no HUP before.
    #[track_caller]
    fn was_not_notified(mut self) {
        // Of two signals that wait, a shell handles the one of the lower number first.
        kill(pid_of(&self.child), Signal::SIGTERM).unwrap();
        assert_eq!(self.line(), "notified=\n");
    }

    fn flags(&self) -> [&str; 4] {
        ["--signal", "HUP", "--process-args", &self.marker]
    }

    fn place(&self) -> String {
        format!("--process-args '{}'", self.marker)
    }
}

impl Drop for Main {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// Lets another user get to what is in a scene.
fn open_to_all(scene: &Scene) {
    fs::set_permissions(scene.at(""), fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn check_finds_nothing_where_nothing_is_wrong_and_calls_nobody() {
    let (_scene, _volume, flags) = scene(&[("a", "1")]);
    let hook = Hook::start(None);
    let ended = dry("check", &with(&flags, &["--reload-url", &hook.url()]));
    assert_eq!((ended.code, &*ended.out), (Some(0), "no problems found\n"), "{}", ended.err);
    assert_eq!(check(&flags, &["--reload-url", &hook.url()]).json(), json!({"findings": []}));
    let calls = eventually("both have connected", || Some(hook.calls()).filter(|calls| calls.len() == 2));
    assert!(calls.iter().all(|call| call.head.is_empty()), "{calls:?}");
}

#[test]
fn check_advises_on_a_signal_that_nothing_confirms() {
    let (_scene, _volume, flags) = scene(&[("a", "1")]);
    let main = Main::start(0, true);
    let ended = dry("check", &with(&flags, &main.flags()));
    assert_eq!(ended.code, Some(0), "{}{}", ended.out, ended.err);
    assert!(ended.out.starts_with("advice: --signal SIGHUP\n  nothing shows whether"), "{}", ended.out);
    assert!(ended.out.ends_with("\nno problems found\n"), "{}", ended.out);
    let confirmed = with(&flags, &[&main.flags()[..], &["--confirm-workers"]].concat());
    assert_eq!(dry("check", &confirmed).out, "no problems found\n");
    main.was_not_notified();
}

#[tokio::test]
async fn check_names_the_rule_that_is_missing() {
    let server = ApiServer::shared().await;
    let namespace = server.namespace().await;
    let scene = Scene::new();
    let kubeconfig = server.kubeconfig(APP);
    let flags = scene.flags(&["--kubeconfig", kubeconfig.to_str().unwrap(), "--namespace", &namespace]);
    let checked = |more: &[&str]| check(&flags, more);

    let ended = checked(&["--configmap", "web"]);
    assert_eq!(ended.code, Some(77));
    let place = format!("configmap/{namespace}/web");
    let remedy = format!(
        "add to a Role in namespace {namespace}, and bind it by a RoleBinding:\n- apiGroups: [\"\"]\n  resources: \
         [\"configmaps\"]\n  resourceNames: [\"web\"]\n  verbs: [\"list\", \"watch\"]"
    );
    says(&only(&ended), "permission", &place, &["may not list and watch it"], &[&remedy]);

    let text = dry("check", &with(&flags, &["--configmap", "web"]));
    let lines = remedy.replace('\n', "\n    ");
    let wanted = format!("permission: {place}\n  this user may not list and watch it\n    {lines}\n1 problem\n");
    assert_eq!((text.code, text.out), (Some(77), wanted), "{}", text.err);

    let client = server.client(ADMIN).await;
    let grant = async |name: &str, resource: &str, names: Value, verbs: Value| {
        let role = json!({"metadata": {"name": name},
            "rules": [{"apiGroups": [""], "resources": [resource], "resourceNames": names, "verbs": verbs}]});
        let role: Role = serde_json::from_value(role).unwrap();
        Api::namespaced(client.clone(), &namespace).create(&PostParams::default(), &role).await.unwrap();
        let binding = json!({"metadata": {"name": name},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": APP}]});
        let binding: RoleBinding = serde_json::from_value(binding).unwrap();
        Api::namespaced(client.clone(), &namespace).create(&PostParams::default(), &binding).await.unwrap();
    };
    // The rule as the remedy has it suffices.
    let rule = remedy.split_once(":\n").unwrap().1;
    let rules: Value = serde_saphyr::from_str(rule).unwrap();
    grant("web", "configmaps", rules[0]["resourceNames"].clone(), rules[0]["verbs"].clone()).await;
    create_configmaps(&server, &namespace, &["web"]).await;
    // The server's authorizer learns of it a moment later.
    eventually("the permission is seen", || (checked(&["--configmap", "web"]).code == Some(0)).then_some(()));

    // Of one verb, the other is missing; another name is another object; a selector needs all of them.
    grant("half", "secrets", json!(["tls"]), json!(["list"])).await;
    eventually("half of it is seen", || {
        let finding = only(&checked(&["--secret", "tls"]));
        (finding["message"] == "this user may not watch it").then_some(())
    });
    assert_eq!(checked(&["--configmap", "other"]).code, Some(77));
    let finding = only(&checked(&["--selector", "app=web"]));
    assert!(!finding["remedy"].as_str().unwrap().contains("resourceNames"), "{finding}");
    let wide =
        scene.flags(&["--kubeconfig", kubeconfig.to_str().unwrap(), "--selector", "app=web", "--all-namespaces"]);
    let finding = only(&check(&wide, &[]));
    says(
        &finding,
        "permission",
        "configmap/*/[app=web]",
        &[],
        &["add to a ClusterRole, and bind it by a ClusterRoleB"],
    );
}

async fn create_configmaps(server: &ApiServer, namespace: &str, names: &[&str]) {
    let api: Api<ConfigMap> = Api::namespaced(server.client(ADMIN).await, namespace);
    for name in names {
        let object = json!({"metadata": {"name": name}, "data": {"a": "c4n4ry"}});
        api.create(&PostParams::default(), &serde_json::from_value(object).unwrap()).await.unwrap();
    }
}

#[tokio::test]
async fn check_says_what_there_is_instead_of_what_is_missing() {
    let server = ApiServer::shared().await;
    let namespace = server.namespace().await;
    let scene = Scene::new();
    let kubeconfig = server.kubeconfig(ADMIN);
    let flags = scene.flags(&["--kubeconfig", kubeconfig.to_str().unwrap(), "--namespace", &namespace]);
    let checked = |more: &[&str]| check(&flags, more);
    let place = format!("configmap/{namespace}/wbe");
    let nothing = format!("it does not exist; there is no configmap in namespace {namespace}");
    says(&only(&checked(&["--configmap", "wbe"])), "problem", &place, &[&nothing], &["create it, or correct its name"]);

    create_configmaps(&server, &namespace, &["web", "web-templates"]).await;
    let ended = checked(&["--configmap", "wbe"]);
    assert_eq!(ended.code, Some(1));
    assert!(!ended.out.contains("c4n4ry"), "{}", ended.out);
    says(&only(&ended), "problem", &place, &["it does not exist; there is: web, web-templates"], &["--namespace"]);
    let ended = checked(&["--configmap", "wbe", "--optional"]);
    assert_eq!(ended.code, Some(0), "it is not needed");
    says(&ended.json()["findings"][0], "advice", &place, &["it does not exist"], &["--optional"]);
    let ended = checked(&["--selector", "app=web"]);
    assert_eq!(ended.code, Some(0));
    let place = format!("configmap/{namespace}/[app=web]");
    let instead = "nothing has these labels; there is: web, web-templates";
    says(&ended.json()["findings"][0], "advice", &place, &[instead], &["label"]);
    assert_eq!(checked(&["--configmap", "web"]).code, Some(0));
}

#[test]
fn check_reports_an_api_server_that_it_cannot_ask() {
    let scene = Scene::new();
    let port = free_port();
    let user = json!({"token": "x"});
    let ca = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap().cert.pem();
    fs::write(scene.at("ca"), ca).unwrap();
    fs::write(scene.at("kubeconfig"), kubeconfig(port, &scene.at("ca"), &user)).unwrap();
    let flags = scene.flags(&["--kubeconfig", &scene.text("kubeconfig"), "--configmap", "web"]);
    let ended = check(&flags, &[]);
    assert_eq!(ended.code, Some(1), "{}", ended.err);
    says(&only(&ended), "problem", "configmap/here/web", &["cannot reach the API server"], &["NetworkPolicies"]);
    // Outside of a cluster.
    let mut command = trimtab();
    command.env_remove("KUBERNETES_SERVICE_HOST").arg("check").args(scene.flags(&["--configmap", "ns/web"]));
    let ended = Ended::of(output_of(command.args(["--format", "json"])));
    assert_eq!(ended.code, Some(1));
    says(&only(&ended), "problem", "API server", &["not a Pod"], &["automountServiceAccountToken: true"]);
}

#[test]
fn check_reports_a_process_namespace_that_is_not_shared() {
    needs_root("make namespaces");
    let (scene, _volume, flags) = scene(&[("a", "1")]);
    let signal = ["--signal", "HUP", "--process", "nginx"];
    let mut command = Command::new(ALONE[0]);
    command.args(&ALONE[1..]).arg(env!("CARGO_BIN_EXE_trimtab")).arg("check").args(with(&flags, &signal));
    let alone = Ended::of(output_of(command.args(["--format", "json"])));
    // As by `kubectl exec`: beside the sidecar, which is PID 1.
    let sidecar = Sidecar::start_by(&ALONE, &scene.at("log"), with(&flags, &signal));
    let parent = sidecar.pid();
    let children = format!("/proc/{parent}/task/{parent}/children");
    sidecar.address("--admin");
    let pid = fs::read_to_string(children).unwrap();
    let beside = |with_another: &str| {
        let script = format!("{with_another} exec \"$@\"");
        let mut command = Command::new("nsenter");
        command.args(["--target", pid.trim(), "--pid", "--mount", "sh", "-c", &script, "-"]);
        command.args([env!("CARGO_BIN_EXE_trimtab"), "check", "--format", "json"]).args(with(&flags, &signal));
        Ended::of(output_of(&mut command))
    };
    // Another process of this container's, as of a second exec; it ends with the namespace.
    for ended in [alone, beside(""), beside("(sleep 60 > /dev/null 2>&1 &);")] {
        assert_eq!(ended.code, Some(1), "{}{}", ended.out, ended.err);
        let message = ["no other container's processes are visible here"];
        says(&only(&ended), "problem", "--process nginx", &message, &["the Pod's spec:\nshareProcessNamespace: true"]);
    }
}

#[test]
fn check_reports_a_target_that_is_missing_or_ambiguous() {
    let (scene, _volume, flags) = scene(&[("a", "1")]);
    let ended = check(&flags, &["--signal", "HUP", "--process", "no-such-program"]);
    assert_eq!(ended.code, Some(1));
    says(&only(&ended), "problem", "--process no-such-program", &["no process matches"], &["start the main process"]);
    let (one, _two) = (Main::start(0, true), Main::start(0, true));
    let both = format!("main-{}-", std::process::id());
    let ended = check(&flags, &["--signal", "HUP", "--process", "bash", "--process-args", &both]);
    assert_eq!(ended.code, Some(1));
    let place = format!("--process bash --process-args '{both}'");
    says(&only(&ended), "problem", &place, &["none of which is the other's child"], &["--pid-file PATH"]);
    // A pid file that names a process which started after it was written.
    fs::write(scene.at("pid"), "1\n").unwrap();
    let ended = check(&flags, &["--signal", "HUP", "--pid-file", &scene.text("pid")]);
    assert_eq!(ended.code, Some(1), "{}", one.marker);
}

/// The sidecar's own command line holds what `--process-args` looks for.
#[test]
fn check_does_not_take_the_sidecar_beside_it_for_the_target() {
    let (scene, _volume, flags) = scene(&[("a", "1")]);
    let main = Main::start(0, true);
    let sidecar = Sidecar::start(&scene.at("log"), with(&flags, &main.flags()));
    sidecar.until_idle();
    let ended = check(&flags, &main.flags());
    assert_eq!(ended.code, Some(0), "{}", ended.out);
}

#[test]
fn check_reports_another_users_target_and_sends_nothing() {
    let (scene, _volume, flags) = scene(&[("a", "1")]);
    open_to_all(&scene);
    let main = Main::start(0, true);
    let ended = check_as(NOBODY, &flags, &main.flags());
    assert_eq!(ended.code, Some(77), "{}", ended.out);
    let findings = ended.json();
    let findings = findings["findings"].as_array().unwrap();
    let finding = findings.iter().find(|finding| finding["place"] == main.place()).unwrap();
    let remedy = ["securityContext: {runAsUser: 0}\nor", "{runAsUser: 0, capabilities: {add: [KILL]}}"];
    says(finding, "permission", &main.place(), &["runs as user 0, Trimtab as user 65534", "EPERM"], &remedy);
    main.was_not_notified();
}

#[test]
fn check_reports_a_target_that_does_not_handle_the_signal_and_spares_it() {
    let (_scene, _volume, flags) = scene(&[("a", "1")]);
    let mut main = Main::start(0, false);
    let ended = check(&flags, &main.flags());
    assert_eq!(ended.code, Some(1), "{}", ended.out);
    says(&only(&ended), "problem", &main.place(), &["does not handle SIGHUP"], &["another --signal"]);
    assert_eq!(main.child.try_wait().unwrap(), None);
}

#[test]
fn check_reports_an_output_that_the_target_cannot_read() {
    Layout::ALL.into_iter().for_each(reports_what_the_target_cannot_read);
}

fn reports_what_the_target_cannot_read(layout: Layout) {
    needs_root("play two users");
    let (scene, mut volume, flags) = scene_of(layout, &[("a", "1")]);
    open_to_all(&scene);
    let main = Main::start(NOBODY, true);
    let place = format!("--output {}", scene.output.display());
    let narrow = [&main.flags()[..], &["--file-mode", "0640"]].concat();
    // Before anything is published.
    assert_eq!(check(&flags, &main.flags()).code, Some(0));
    let ended = check(&flags, &narrow);
    assert_eq!(ended.code, Some(77), "{}", ended.out);
    let message = ["user 65534) cannot read files of --file-mode 0640, which will belong to user 0 and group 0"];
    says(&only(&ended), "permission", &place, &message, &["securityContext: {fsGroup: GROUP}"]);
    // What is published: a file.
    publish(&with(&flags, &["--file-mode", "0640"]));
    let finding = only(&check(&flags, &narrow));
    let file = match layout {
        Layout::Atomic => ["cannot read ..trimtab-000001-", "/a (mode 0640, user 0, group 0)"],
        Layout::Files => ["cannot read a ", "a (mode 0640, user 0, group 0)"],
    };
    says(&finding, "permission", &place, &file, &[]);
    volume.swap(&[("a", "2")]);
    publish(&flags);
    assert_eq!(check(&flags, &main.flags()).code, Some(0));
    // The directory.
    fs::set_permissions(&scene.output, fs::Permissions::from_mode(0o2750)).unwrap();
    let finding = only(&check(&flags, &main.flags()));
    says(&finding, "permission", &place, &["conf (mode 2750, user 0, group 0)"], &[]);
}

#[test]
fn check_reports_an_output_that_cannot_be_written_and_leaves_it() {
    let (scene, _volume, flags) = scene(&[("a", "1")]);
    let place = format!("--output {}", scene.output.display());
    let reported = |severity: &str, message: &str, remedy: &str| {
        let before = traces(&scene.at(""));
        let ended = check(&flags, &[]);
        assert_eq!(ended.code, Some(if severity == "permission" { 77 } else { 1 }), "{}", ended.out);
        says(&only(&ended), severity, &place, &[message], &[remedy]);
        assert_eq!(traces(&scene.at("")), before);
    };
    let mode = |mode| fs::set_permissions(&scene.output, fs::Permissions::from_mode(mode)).unwrap();
    fs::write(&scene.output, "").unwrap();
    reported("problem", "is a regular file, and must be a directory", "nothing else writes to");
    fs::remove_file(&scene.output).unwrap();
    fs::create_dir(&scene.output).unwrap();
    mode(0o1777);
    reported("problem", "is a sticky directory (mode 1777)", "/conf/conf");
    mode(0o755);
    std::os::unix::fs::symlink("..2026_11_24_07_00_00.1", scene.output.join("..data")).unwrap();
    reported("problem", "which Trimtab did not make", "nothing else writes to");
    fs::remove_dir_all(&scene.output).unwrap();

    // By another user: neither what is there may be written into, nor what is not there be made.
    open_to_all(&scene);
    for exists in [false, true] {
        if exists {
            fs::create_dir(&scene.output).unwrap();
        }
        let ended = check_as(NOBODY, &flags, &[]);
        assert_eq!(ended.code, Some(77), "{}", ended.out);
        says(&only(&ended), "permission", &place, &["this container's user may not"], &["{fsGroup: GROUP}"]);
    }
    let nowhere = scene.text("no/such/conf");
    let flags = ["--watch-dir".to_owned(), scene.text("volume"), "--output".to_owned(), nowhere.clone()];
    let ended = check(&flags, &[]);
    assert_eq!(ended.code, Some(1), "{}", ended.out);
    let remedy = format!("mountPath: {}}}", scene.text("no/such"));
    says(&only(&ended), "problem", &format!("--output {nowhere}"), &["its parent directory"], &[&remedy]);
}

/// Runs `check` in a mount namespace of its own, after these commands in the scene's directory.
fn check_after(scene: &Scene, mounts: &str, flags: &[String]) -> Ended {
    needs_root("mount");
    let script = format!("cd \"$0\"; {mounts}; exec \"$@\"");
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-ec", &script]).arg(scene.at("")).arg(env!("CARGO_BIN_EXE_trimtab")).arg("check");
    Ended::of(output_of(command.args(flags).args(["--format", "json"])))
}

#[test]
fn check_reports_an_output_on_a_read_only_mount() {
    let (scene, _volume, flags) = scene(&[("a", "1")]);
    let place = format!("--output {}", scene.output.display());
    let read_only = "mount --bind . . && mount -o remount,ro,bind .; cd \"$0\"";
    for exists in [false, true] {
        if exists {
            fs::create_dir(&scene.output).unwrap();
        }
        let ended = check_after(&scene, read_only, &flags);
        assert_eq!(ended.code, Some(1), "{}{}", ended.out, ended.err);
        says(&only(&ended), "problem", &place, &["it is mounted read-only"], &["without readOnly"]);
    }
}

#[test]
fn check_reports_a_mount_that_will_never_change() {
    let (scene, _volume, _) = scene(&[("app.conf", "1")]);
    fs::write(scene.at("plain"), "1").unwrap();
    let mounted = |from: &str, to: &str, watched: &str| {
        let make = if from == "volume" { "mkdir -p" } else { "mkdir -p m && touch" };
        let mounts = format!("{make} {to}; mount --bind {from} {to}");
        check_after(&scene, &mounts, &scene.flags(&["--watch-dir", &format!("in={}", scene.text(watched))]))
    };
    // The kubelet resolves the links of a subPath, so that one version of the volume is mounted.
    for watched in ["m/app.conf", "m"] {
        let ended = mounted("volume/app.conf", "m/app.conf", watched);
        assert_eq!(ended.code, Some(1), "{}{}", ended.out, ended.err);
        let message = format!("{} is a subPath volumeMount", scene.text("m/app.conf"));
        let remedy = format!("mountPath: {}}}  # without subPath", scene.text("m"));
        says(&only(&ended), "problem", "dir/in", &[&message], &[&remedy]);
    }
    let ended = mounted("plain", "m/plain", "m/plain");
    assert_eq!(ended.code, Some(1), "{}", ended.out);
    says(&only(&ended), "problem", "dir/in", &["is a single mounted file"], &["without subPath"]);
    // A whole volume follows.
    assert_eq!(mounted("volume", "whole", "whole").json(), json!({"findings": []}));
}

#[test]
fn check_reports_a_url_that_nobody_serves() {
    let (scene, _volume, flags) = scene(&[("a", "1")]);
    let port = free_port();
    let url = format!("http://127.0.0.1:{port}/-/reload?token=hunter22");
    let ended = check(&flags, &["--reload-url", &url]);
    assert_eq!(ended.code, Some(1));
    let place = format!("--reload-url http://127.0.0.1:{port}/-/reload?…");
    says(&only(&ended), "problem", &place, &["no connection: ", "refused"], &["127.0.0.1"]);
    let socket = format!("unix://{}:/reload", scene.text("no.sock"));
    let finding = only(&check(&flags, &["--reload-url", &socket]));
    says(&finding, "problem", &format!("--reload-url {socket}"), &["the server may be starting"], &["unix socket"]);
    // The one that confirms.
    let hook = Hook::start(None);
    let finding = only(&check(&flags, &["--reload-url", &hook.url(), "--confirm-url", &url]));
    assert_eq!(finding["place"], place.replace("--reload", "--confirm"));
    // What it would have sent is looked at, too.
    let hook = Hook::start(None);
    let token = ["--reload-url", &hook.url(), "--reload-token-file", &scene.text("token")];
    let finding = only(&check(&flags, &token));
    assert!(finding["message"].as_str().unwrap().starts_with("--reload-token-file "), "{finding}");
    assert_eq!(hook.calls().len(), 0);
}

#[test]
fn check_reports_a_directory_that_is_missing_or_forbidden() {
    let (scene, _volume, flags) = scene(&[("a", "1")]);
    let missing = scene.text("missing");
    let ended = check(&flags, &["--watch-dir", &missing]);
    assert_eq!(ended.code, Some(1));
    says(&only(&ended), "problem", "dir/missing", &["it does not exist"], &[&format!("mountPath: {missing}}}")]);
    assert_eq!(check(&flags, &["--watch-dir", &missing, "--optional"]).code, Some(0));
    open_to_all(&scene);
    fs::create_dir(scene.at("closed")).unwrap();
    fs::set_permissions(scene.at("closed"), fs::Permissions::from_mode(0o700)).unwrap();
    fs::create_dir(scene.at("free")).unwrap();
    fs::set_permissions(scene.at("free"), fs::Permissions::from_mode(0o777)).unwrap();
    let flags = ["--watch-dir".to_owned(), scene.text("closed"), "--output".to_owned(), scene.text("free/conf")];
    let ended = check_as(NOBODY, &flags, &[]);
    assert_eq!(ended.code, Some(77), "{}", ended.out);
    says(&only(&ended), "permission", "dir/closed", &["cannot read"], &["fsGroup"]);
}

#[test]
fn check_reports_a_template_that_reads_what_nobody_has() {
    let (scene, _volume, flags) = scene(&[("a.conf", "1")]);
    fs::write(scene.at("t.j2"), "{{ data.greting }}").unwrap();
    let ended = check(&flags, &["--template", &scene.text("t.j2")]);
    assert_eq!(ended.code, Some(1), "{}{}", ended.out, ended.err);
    let message = ["template t.j2 (dir/t.j2), line 1: ", "data.greting", "there is no key \"greting\""];
    says(&only(&ended), "problem", "what would be published", &message, &["trimtab render"]);
    fs::write(scene.at("t.j2"), "{{ data['a.conf'] }}").unwrap();
    assert_eq!(check(&flags, &["--template", &scene.text("t.j2")]).json(), json!({"findings": []}));
    // What the sidecar would only warn of is advice.
    fs::write(scene.at("t.json.j2"), "[1").unwrap();
    let ended = check(&flags, &["--template", &scene.text("t.json.j2")]);
    assert_eq!(ended.code, Some(0), "{}", ended.out);
    says(&ended.json()["findings"][0], "advice", "what would be published", &["t.json, line 1"], &["--syntax strict"]);
}

#[test]
fn check_reports_a_confirm_url_that_does_not_answer() {
    let (_scene, _volume, flags) = scene(&[("a", "1")]);
    let (reload, hook) = (Hook::start(None), Hook::start(None));
    let (reload, url) = (reload.url(), hook.url());
    let confirm = ["--reload-url", &reload, "--confirm-url", &url, "--confirm-timeout", "300ms"];
    let place = format!("--confirm-url {url}");
    let finds = |answer, more: &[&str], message: &[&str]| {
        hook.answer(answer);
        let ended = check(&flags, &[&confirm, more].concat());
        assert_eq!(ended.code, Some(1), "{}", ended.out);
        says(&only(&ended), "problem", &place, message, &["must listen there"]);
    };
    finds(Answer::Hang, &[], &["300ms"]);
    finds(Answer::Code(404), &[], &["answered 404, which --confirm-status does not accept"]);
    finds(
        Answer::Code(200),
        &["--confirm-changed", "generation (\\d+)"],
        &["nothing in its body", "--confirm-changed"],
    );
    hook.answer(Answer::Code(200));
    assert_eq!(check(&flags, &confirm).json(), json!({"findings": []}));
}

/// As `kubectl exec` starts it: in the mount namespace of a sidecar, and without its arguments.
#[test]
fn check_and_render_take_the_flags_of_the_sidecar_in_their_container() {
    needs_root("have a mount namespace of its own");
    let hook = Hook::start(None);
    let (scene, _volume, flags) = scene(&[("a.conf", "1\n")]);
    let url = format!("{}?token=hunter22", hook.url());
    let args = with(&flags, &["--reload-url", &url, "--reload-header", "X-Token: hunter22", "--syntax=off"]);
    let sidecar = Sidecar::start_by(&["unshare", "--mount"], &scene.at("log"), &args);
    sidecar.until_idle();
    let pid = sidecar.pid().to_string();
    let inside = |args: &[&str]| {
        let mut command = Command::new("nsenter");
        command.args(["--target", &pid, "--mount", env!("CARGO_BIN_EXE_trimtab")]);
        Ended::of(output_of(command.args(args)))
    };
    let note = format!("trimtab: with the flags of the running sidecar (pid {pid}): ");
    let ended = inside(&["check"]);
    assert_eq!((ended.code, &*ended.out), (Some(0), "no problems found\n"), "{}", ended.err);
    let shown = ["--watch-dir", "--output", "--reload-url", "--reload-header", "--syntax off"];
    assert!(ended.err.starts_with(&note) && shown.iter().all(|flag| ended.err.contains(flag)), "{}", ended.err);
    assert!(!ended.err.contains("hunter22"));
    // One's own win, and the others stay.
    let nobody = "http://127.0.0.1:1/";
    let ended = inside(&["check", "--reload-url", nobody, "--format", "json"]);
    says(&only(&ended), "problem", &format!("--reload-url {nobody}"), &["no connection"], &[]);
    let ended = inside(&["render"]);
    assert_eq!(ended.out, "nothing differs from what is published (1 files)\n", "{}", ended.err);
    // What is read and written is one's own, or the sidecar's.
    let (other, output) = (scene.text("volume"), scene.text("other"));
    let ended = inside(&["render", "--watch-dir", &other, "--output", &output]);
    assert!(ended.out.contains("+++ b/a.conf") && !ended.err.contains("running sidecar"), "{}{}", ended.out, ended.err);
    // Another sidecar of this container: neither is meant more than the other.
    let second = ["nsenter", "--target", &pid, "--mount"];
    let second = Sidecar::start_by(&second, &scene.at("second"), ["--watch-dir", &other, "--output", &output]);
    second.until_idle();
    let ended = inside(&["check"]);
    assert_eq!(ended.code, Some(64), "{}", ended.out);
    assert!(ended.err.contains("--output") && ended.err.contains("two sidecars run here (pid "), "{}", ended.err);
}

/// The user and the password of its URL, too, which no flag of Trimtab's holds.
#[test]
fn check_takes_the_settings_of_another_sidecars_name() {
    needs_root("have a mount namespace of its own");
    let hook = Hook::start(None);
    let (scene, _volume, _) = scene(&[("a.conf", "1\n")]);
    let servers = ["TRIMTAB_LISTEN=127.0.0.1:0", "TRIMTAB_ADMIN=127.0.0.1:0"];
    let url = format!("--webhook-url={}", hook.url().replace("://", "://me:hunter22@"));
    let volume = format!("--volume-dir={}", scene.text("volume"));
    let program = ["env", servers[0], servers[1], "unshare", "--mount"];
    let sidecar = Sidecar::start_by(&program, &scene.at("log"), ["as", "configmap-reload", &volume, &url]);
    sidecar.until_idle();
    let pid = sidecar.pid().to_string();
    let mut command = Command::new("nsenter");
    command
        .args(["--target", &pid, "--mount", env!("CARGO_BIN_EXE_trimtab"), "check"])
        .envs(servers.iter().filter_map(|variable| variable.split_once('=')));
    let ended = Ended::of(output_of(&mut command));
    assert_eq!((ended.code, &*ended.out), (Some(0), "no problems found\n"), "{}", ended.err);
    assert!(
        ended.err.contains(&format!("running sidecar (pid {pid})")) && !ended.err.contains("hunter22"),
        "{}",
        ended.err
    );
}
