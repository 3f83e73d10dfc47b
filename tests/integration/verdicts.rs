//! Each fault shows its verdict on the page, in `trimtab status`, in the metric, and in one line of the log.

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command};

use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, DeleteParams, PostParams};
use serde_json::{Value, json};

use super::support::apiserver::{ADMIN, ApiServer, NOBODY, kubeconfig};
use super::support::hook::{Answer, Hook, Port};
use super::support::mounts::Mounted;
use super::support::sidecar::{Sidecar, eventually, needs_root, run, trimtab};
use super::support::stage::{Stage, metric};

const OTHER_USER: u32 = 65534;
const AS_NOBODY: &[&str] = &["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];

/// A main process that runs until this is dropped.
struct Main(Child);

impl Main {
    /// `name`: what its command line ends with; `begins`: what it does first.
    fn start(name: &str, begins: &str, user: u32) -> Self {
        let script = format!("{begins}; while :; do sleep 0.1; done");
        Self(Command::new("bash").args(["-c", &script, name]).uid(user).gid(user).spawn().unwrap())
    }
}

impl Drop for Main {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

const BRISK: &[&str] = &["--retry-min", "20ms", "--retry-max", "50ms", "--reload-attempts", "1"];

/// Waits for the verdict, and looks at all places that show it. `parts`: of the sentence; `next`: how the next step begins.
#[track_caller]
pub fn shows(name: &str, sidecar: &Sidecar, word: &str, parts: &[&str], next: &str) {
    looks(name, sidecar, word, parts, next);
    let lines = || {
        let log = sidecar.log_of_this_life();
        let mark = format!("verdict=\"{word}\"");
        let is_it = |line: &&str| line.contains(&mark) && parts.iter().all(|part| line.contains(part));
        log.lines().filter(is_it).filter(|line| line.contains(next)).count()
    };
    eventually(&format!("{name}: a line"), || (lines() > 0).then_some(()));
    assert_eq!(lines(), 1, "{name}: once");
}

/// The same where the cause was logged before it came to the verdict: it is not logged again.
#[track_caller]
fn shows_what_was_logged(name: &str, sidecar: &Sidecar, word: &str, parts: &[&str; 2], next: &str) {
    looks(name, sidecar, word, parts, next);
    let mark = format!("verdict=\"{word}\"");
    let log = eventually(&format!("{name}: a line"), || Some(sidecar.log()).filter(|log| log.contains(&mark)));
    assert_eq!((log.matches(parts[1]).count(), log.matches(&mark).count()), (1, 1), "{name}: {log}");
    assert!(log.lines().any(|line| line.contains(&mark) && line.contains(next)), "{name}: {log}");
}

#[track_caller]
fn looks(name: &str, sidecar: &Sidecar, word: &str, parts: &[&str], next: &str) {
    println!("{name}");
    let says = |text: &str| parts.iter().all(|part| text.contains(part));
    let status = sidecar.until(&format!("{name}: {word} with {parts:?}"), |status| {
        status["verdict"]["state"] == word && says(status["verdict"]["summary"].as_str().unwrap_or_default())
    });
    let advice = status["verdict"]["next"].as_str().unwrap_or_default();
    assert!(advice.starts_with(next), "{name}: {advice}");
    let page = sidecar.request("--admin", "GET", "/").unwrap().1;
    let text = page.replace("&gt;", ">").replace("&lt;", "<").replace("&quot;", "\"").replace("&#39;", "'");
    assert!(text.contains(&format!("<h1>{word}</h1>")) && says(&text) && text.contains(next), "{name}: {page}");
    let admin = sidecar.address("--admin").to_string();
    let (_, said) = run(trimtab().args(["status", "--admin", &admin]));
    assert!(said.starts_with(&format!("{} since ", word.to_uppercase())) && says(&said), "{name}: {said}");
    assert!(next.is_empty() || said.contains(&format!("\nNext: {next}")), "{name}: {said}");
    assert_eq!(metric(sidecar, &format!("trimtab_verdict{{state=\"{word}\"}}")), Some(1.0), "{name}");
}

#[track_caller]
fn well(sidecar: &Sidecar) {
    let in_effect = |status: &Value| status["verdict"]["state"] == "in-effect";
    let status = sidecar.until("all is well", in_effect);
    assert!(status["verdict"]["next"].is_null(), "{status}");
}

const RUNNING: &str = "(generation 1) is running.";
const EDIT: &str = "The newest edit of dir/volume is not in effect, it was rejected: ";

#[test]
fn what_a_change_can_meet_shows_its_verdict() {
    let mut stage = Stage::new("good 1");
    let mut sidecar = stage.start(&["--validate", "grep -q good {dir}/app.conf"]);
    well(&sidecar);
    stage.edit("bad");
    let next = "Fix the files of volume; a newer edit is tried at once.";
    shows("rejected by a validator", &sidecar, "rejected", &[EDIT, "grep", RUNNING], next);
    sidecar.terminate();
    sidecar.start_again();
    let found = "Generation 1, found at start, is running.";
    shows("in quarantine after a restart", &sidecar, "rejected", &["it was rejected: ", "grep", found], "Fix the ");
    stage.edit("good 2");
    well(&sidecar);

    let stage = Stage::new("good 1");
    let template = stage.write("app.json.j2", "[1]");
    let sidecar = stage.start(&["--template", &template, "--syntax", "strict"]);
    well(&sidecar);
    stage.write("app.json.new", "[1");
    fs::rename(stage.at("app.json.new"), &template).unwrap();
    let parts = ["The newest edit of template/app.json.j2 is not in effect", "app.json", RUNNING];
    shows("rejected by its syntax", &sidecar, "rejected", &parts, "Fix the template app.json.j2");
    stage.write("app.json.new", "{{ data.nope }}");
    fs::rename(stage.at("app.json.new"), &template).unwrap();
    shows("not rendered", &sidecar, "rejected", &["data.nope", RUNNING], "Fix the template or the key");

    let mut stage = Stage::new("good 1");
    let refuses = format!("grep -q good {}", stage.text("conf/app.conf"));
    let sidecar = stage.start(&[BRISK, &["--reload-exec", &refuses]].concat());
    well(&sidecar);
    let good = sidecar.status()["confirmed"]["at"].clone();
    stage.edit("bad");
    let next = "Fix the files of volume; or fix the main process, and run `trimtab retry`.";
    shows("refused, rolled back", &sidecar, "rejected", &[EDIT], next);
    let status = sidecar.until("it is back", |status| status["debt"].is_null() && status["phase"] == "idle");
    assert_eq!([&status["confirmed"]["at"], &status["lastGood"]["at"]], [&good; 2], "not younger than the bad edit");
    let said_once = |sidecar: &Sidecar| {
        let log = sidecar.log();
        assert!(!log.contains("has not taken it") && log.matches("verdict=").count() == 1, "{log}");
    };
    said_once(&sidecar);

    let mut stage = Stage::new("good 1");
    let hook = Hook::start(Some(stage.file()));
    hook.answer(Answer::Echo(200));
    let url = hook.url();
    let confirm = ["--confirm-url", &url, "--confirm-match", "good", "--confirm-timeout", "300ms"];
    let sidecar = stage.start(&[BRISK, &confirm].concat());
    well(&sidecar);
    stage.edit("bad");
    shows("not confirmed, rolled back", &sidecar, "rejected", &[EDIT], next);
    said_once(&sidecar);
}

#[test]
fn what_a_main_process_can_do_shows_its_verdict() {
    let hook = Hook::start(None);
    let url = hook.url();
    let mut stage = Stage::new("good 1");
    let sidecar = stage.start(&[BRISK, &["--reload-url", &url, "--on-reject", "hold"]].concat());
    well(&sidecar);
    hook.answer(Answer::Code(503));
    stage.edit("2");
    let parts = ["Generation 2 is published, and the main process has not taken it: ", "503"];
    shows("not reachable", &sidecar, "waiting", &parts, "Look at the main container");
    hook.answer(Answer::Code(500));
    let parts = ["Generation 2 was rejected and stays published, as there is no way back: ", "500"];
    shows("refused, held", &sidecar, "held", &parts, "Fix the files of volume, or fix the main process");
    hook.answer(Answer::Code(200));
    well(&sidecar);

    let stage = Stage::new("good 1");
    let sidecar = stage.start(&[BRISK, &["--signal", "HUP", "--process", "no-such-process"]].concat());
    let parts = ["Generation 1 is published, and the main process has not taken it: ", "no-such-process"];
    shows("no main process", &sidecar, "waiting", &parts, "Start the main process");

    let port = Port::take();
    let stage = Stage::new("good 1");
    let sidecar = stage.start(&[BRISK, &["--reload-url", &port.url()]].concat());
    shows("nobody listens", &sidecar, "waiting", &["has not taken it: ", "no connection"], "Look at the main");

    let hook = Hook::start(None);
    let mut stage = Stage::new("good 1");
    let sidecar = stage.start(&[BRISK, &["--reload-url", &hook.url()]].concat());
    well(&sidecar);
    hook.answer(Answer::Code(500));
    stage.edit("2");
    let parts = ["Generation 1, the last good one, is current again, and the main process does not take it either: "];
    shows("what is good is refused as well", &sidecar, "held", &parts, "Look at the main container");

    let hook = Hook::start(None);
    let stage = Stage::new("good 1");
    let (own, url) = (stage.at("own"), hook.url());
    fs::create_dir(&own).unwrap();
    fs::write(own.join("own.conf"), "1").unwrap();
    let sidecar = stage.start(&[BRISK, &["--reload-url", &url, "--observe-dir", own.to_str().unwrap()]].concat());
    well(&sidecar);
    hook.answer(Answer::Code(500));
    fs::write(own.join("own.new"), "2").unwrap();
    fs::rename(own.join("own.new"), own.join("own.conf")).unwrap();
    let parts = ["own/own.conf", "500"];
    shows("refused, and read by the main process itself", &sidecar, "held", &parts, "");
}

#[test]
fn what_a_signal_can_meet_shows_its_verdict() {
    needs_root("play two users");
    let start = |stage: &Stage, program: &[&str], name: &str| {
        let args = format!("{name}$");
        stage.start_by(program, &[BRISK, &["--signal", "HUP", "--process-args", &args]].concat())
    };
    let own = |what: &str| format!("verdict-{what}-{}", std::process::id());
    let none = ["has not taken it: "];

    let (stage, name) = (Stage::new("good 1"), own("twin"));
    let _twins = [0; 2].map(|_| Main::start(&name, "trap : HUP", 0));
    let sidecar = start(&stage, &["env"], &name);
    shows("two main processes", &sidecar, "waiting", &none, "Name one of the processes by --process-args");

    let (stage, name) = (Stage::new("good 1"), own("deaf"));
    let _main = Main::start(&name, ":", 0);
    let sidecar = start(&stage, &["env"], &name);
    let parts = ["has not taken it: ", "does not handle SIGHUP"];
    shows("a signal that nobody handles", &sidecar, "waiting", &parts, "Wait until the main process has started");

    let (stage, name) = (Stage::new("good 1"), own("foreign"));
    std::os::unix::fs::chown(stage.at(""), Some(OTHER_USER), Some(OTHER_USER)).unwrap();
    let _main = Main::start(&name, "trap : HUP", 0);
    let sidecar = start(&stage, AS_NOBODY, &name);
    let parts = ["has not taken it: ", "runs as user 0, Trimtab as user 65534"];
    shows("another user's main process", &sidecar, "waiting", &parts, "Give both containers one runAsUser");

    let (stage, name) = (Stage::new("good 1"), own("blind"));
    let _main = Main::start(&name, "trap : HUP", OTHER_USER);
    let args = format!("{name}$");
    let flags = ["--secret-dir", "volume", "--signal", "HUP", "--process-args", &args];
    let sidecar = stage.start(&[BRISK, &flags].concat());
    let parts = ["Generation 1 is published, and the main process may not have it: ", "cannot read ..trimtab-000001-"];
    shows_what_was_logged("a file that it may not read", &sidecar, "stale", &parts, "Change the Pod: one fsGroup");
}

#[test]
fn what_waits_though_nothing_is_wrong_shows_its_verdict() {
    let mut stage = Stage::new("good 1");
    let sidecar = stage.start(&["--reload-min-interval", "1h"]);
    well(&sidecar);
    stage.edit("good 2");
    let parts = ["is not in effect yet, it waits for --reload-min-interval", RUNNING];
    shows("the pace", &sidecar, "waiting", &parts, "");

    let (port, stage) = (Port::take(), Stage::new("good 1"));
    let url = format!("other={}", port.url());
    let sidecar = stage.start(&["--watch-url", &url]);
    let parts = ["Nothing is published yet: waiting for url/other: ", "no connection"];
    shows("a URL at which nobody answers", &sidecar, "waiting", &parts, "Fix what it names");
}

#[test]
fn what_sources_and_output_can_do_shows_its_verdict() {
    let mut stage = Stage::new("good 1");
    fs::rename(stage.at("volume"), stage.at("away")).unwrap();
    let sidecar = stage.start(&[]);
    let parts = ["Nothing is published yet: waiting for dir/volume: "];
    shows("a source that is missing", &sidecar, "waiting", &parts, "");
    fs::rename(stage.at("away"), stage.at("volume")).unwrap();
    well(&sidecar);
    fs::rename(stage.at("volume"), stage.at("away")).unwrap();
    let parts = ["What is in effect may be older than its source: dir/volume: ", RUNNING];
    shows("a source that is gone", &sidecar, "stale", &parts, "");
    fs::rename(stage.at("away"), stage.at("volume")).unwrap();
    well(&sidecar);
    let other = Sidecar::start(&stage.at("other"), stage.flags(&[]));
    let parts = ["Nothing is read or written: another Trimtab holds the output's lock"];
    shows("two on one output", &other, "waiting", &parts, "End the other Trimtab");
    drop((sidecar, other));

    fs::write(stage.at("conf/..trimtab.json"), "{\"version\": 99}").unwrap();
    let hook = Hook::start(None);
    hook.answer(Answer::Code(503));
    let sidecar = stage.start(&[BRISK, &["--reload-url", &hook.url()]].concat());
    let parts = ["is published, and the main process has not taken it: ", "503"];
    shows("a journal of another version", &sidecar, "waiting", &parts, "Look at the main container");
    assert_eq!(sidecar.log_of_this_life().matches("it has version 99").count(), 1);
    drop(sidecar);

    let mut small = Stage::new("good 1");
    fs::create_dir(small.at("conf")).unwrap();
    let _room = Mounted::tmpfs(small.at("conf"), "size=64k,mode=0755");
    let sidecar = small.start(BRISK);
    well(&sidecar);
    small.edit(&"x".repeat(200_000));
    let parts =
        ["The newest edit of dir/volume is not in effect, it cannot be written: ", "the volume is full", RUNNING];
    shows("a full volume", &sidecar, "waiting", &parts, "Make room in the volume");
    small.edit("good 2");
    well(&sidecar);
    drop(sidecar);

    stage.edit("good 2");
    let version = stage.at("volume/..data").canonicalize().unwrap();
    let mounted = Stage::new("");
    fs::create_dir(mounted.at("mounted")).unwrap();
    let _mounted = Mounted::bind(&version, mounted.at("mounted"));
    let (source, output) = (mounted.text("mounted"), mounted.text("conf"));
    let sidecar = Sidecar::start(&mounted.at("log"), ["--watch-dir", &source, "--output", &output]);
    let parts = ["What is in effect may be older than its source: dir/mounted: ", "is a subPath"];
    let next = "Mount the whole volume in a directory of its own, without subPath.";
    shows_what_was_logged("a subPath", &sidecar, "stale", &parts, next);
}

#[tokio::test]
async fn what_the_api_server_can_do_shows_its_verdict() {
    let server = ApiServer::shared().await;
    let namespace = server.namespace().await;
    let api: Api<ConfigMap> = Api::namespaced(server.client(ADMIN).await, &namespace);
    for (name, value) in [("good", "[1]"), ("other", "[1]")] {
        let object =
            json!({"metadata": {"name": name, "labels": {"app": "web"}}, "data": {format!("{name}.json"): value}});
        api.create(&PostParams::default(), &serde_json::from_value(object).unwrap()).await.unwrap();
    }
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let start = |config: &Path, output: &str, flags: &[&str]| {
        let (config, output) = (config.to_str().unwrap().to_owned(), at(output).to_str().unwrap().to_owned());
        let own = ["--namespace", &namespace, "--kubeconfig", &config, "--output", &output, "--debounce", "20ms"];
        Sidecar::start(&at("log"), own.iter().chain(flags))
    };

    let sidecar = start(&server.kubeconfig(ADMIN), "conf", &["--selector", "app=web", "--syntax", "strict"]);
    well(&sidecar);
    let bad = json!({"metadata": {"name": "other", "labels": {"app": "web"}}, "data": {"other.json": "[1"}});
    api.replace("other", &PostParams::default(), &serde_json::from_value(bad).unwrap()).await.unwrap();
    let other = format!("configmap/{namespace}/other");
    let parts = [&format!("The newest version of {other} is not in effect, it is held back: "), "All other objects"];
    shows("an object that is held back", &sidecar, "rejected", &parts, &format!("Fix {other}"));
    drop(sidecar);

    let source = format!("{namespace}/good");
    let named = ["--configmap", source.as_str()];
    let forbidden = start(&server.kubeconfig(NOBODY), "forbidden", &named);
    let parts =
        [&format!("Nothing is published yet: waiting for configmap/{source}: forbidden (403)"), "resourceNames"];
    shows("a permission that is missing", &forbidden, "waiting", &parts, "Add the rule to the Role");
    drop(forbidden);

    // Nobody listens there.
    let port = Port::take();
    let number = port.url().rsplit(':').next().unwrap().split('/').next().unwrap().parse().unwrap();
    fs::write(at("nobody"), kubeconfig(number, &server.ca(), &json!({"token": "x"}))).unwrap();
    let down = start(&at("nobody"), "down", &named);
    let parts = ["Nothing is published yet: waiting for ", "cannot reach the API server"];
    shows("an API server that is down at the start", &down, "waiting", &parts, "Look at the API server");
    drop(down);
    well(&start(&server.kubeconfig(ADMIN), "down", &named));
    let down = start(&at("nobody"), "down", &named);
    let parts =
        ["No edit is seen: waiting for ", "cannot reach the API server", "Generation 1, found at start, is running"];
    shows("an API server that is down", &down, "stale", &parts, "Look at the API server");
    drop(down);

    let sidecar = start(&server.kubeconfig(ADMIN), "down", &named);
    well(&sidecar);
    api.delete("good", &DeleteParams::default()).await.unwrap();
    let parts = [&format!("What is in effect may be older than its source: configmap/{source}: "), "is running."];
    shows("an object that was deleted", &sidecar, "stale", &parts, "Create it again, or take its flag away");
}
