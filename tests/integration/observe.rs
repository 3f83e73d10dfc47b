//! What the main process reads by itself (`--observe-dir`): edits are validated, make a reload and are confirmed; nothing
//! is copied, and what cannot be taken back is held until it changes.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::support::hook::{Answer, Hook};
use super::support::sidecar::{Sidecar, Volume, eventually, run, trimtab};
use super::support::stage::metric;

const QUICK: [&str; 8] =
    ["--debounce", "20ms", "--retry-min", "20ms", "--retry-max", "100ms", "--reload-attempts", "1"];

/// A ConfigMap's volume that the main process reads by itself, and its hook, which sees what it would read.
struct Ground {
    dir: tempfile::TempDir,
    rules: Volume,
    hook: Hook,
}

impl Ground {
    fn new(content: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let rules = Volume::new(dir.path().join("rules"), &[("app.yaml", content)]);
        let hook = Hook::start(Some(dir.path().join("rules/app.yaml")));
        Self { dir, rules, hook }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.at(name).to_str().unwrap().to_owned()
    }

    fn edit(&mut self, content: &str) {
        self.rules.swap(&[("app.yaml", content)]);
    }

    fn start(&self, env: &[(&str, &str)], more: &[&str]) -> Sidecar {
        let (rules, url) = (self.text("rules"), self.hook.url());
        let own = ["--observe-dir", &rules, "--reload-url", &url];
        Sidecar::start_with(&self.at("log"), env, [&own[..], &QUICK, more].concat())
    }

    #[track_caller]
    fn reloaded(&self, content: &str) {
        eventually(&format!("a reload with {content}"), || (self.hook.last_saw()? == content).then_some(()));
    }

    fn calls(&self) -> usize {
        self.hook.calls().len()
    }
}

/// What is in a directory, in order.
fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort_unstable();
    names
}

#[test]
fn an_edit_in_place_is_a_reload_and_a_restart_is_one_too_many_or_none() {
    for remembered in [false, true] {
        let mut ground = Ground::new("a: 1");
        let state = ground.text("state");
        let more: &[&str] = if remembered { &["--state-dir", &state] } else { &[] };
        let mut sidecar = ground.start(&[], more);
        sidecar.until_idle();
        assert_eq!(ground.calls(), 1);
        ground.edit("a: 2");
        ground.reloaded("a: 2");
        let status = sidecar.until_idle();
        assert_eq!((ground.calls(), &status["published"]["sequence"]), (2, &Value::from(2)));
        let edit = &status["history"][0]["sources"][0];
        assert_eq!((&edit["source"], &edit["keys"][0]), (&Value::from("dir/rules"), &Value::from("app.yaml")));

        sidecar.kill();
        sidecar.start_again();
        sidecar.until_idle();
        assert_eq!(ground.calls(), if remembered { 2 } else { 3 });
        sidecar.kill();
        let calls = ground.calls();
        ground.edit("a: 3");
        sidecar.start_again();
        ground.reloaded("a: 3");
        sidecar.until_idle();
        assert_eq!(ground.calls(), calls + 1);
        assert_eq!(sidecar.terminate(), Some(0));
        if remembered {
            assert_eq!(names(&ground.at("state")), ["..trimtab"]);
        } else {
            assert_eq!(names(ground.dir.path()), ["log", "rules"]);
        }
    }
}

#[test]
fn what_is_refused_is_held_by_name_and_ends_with_the_bytes_that_were_confirmed() {
    let mut ground = Ground::new("a: 1");
    let sidecar = ground.start(&[], &["--state-dir", &ground.text("state")]);
    sidecar.until_idle();
    ground.hook.answer(Answer::Code(500));
    ground.edit("a: 2");
    let status = sidecar.until("it is held", |status| status["phase"] == "held");
    let file = ground.text("rules/app.yaml");
    let (summary, next) = (status["verdict"]["summary"].as_str().unwrap(), status["verdict"]["next"].as_str().unwrap());
    assert!(summary.contains(&file) && summary.contains("cannot be taken back"), "{summary}");
    assert!(next.contains(&file), "{next}");
    assert_eq!((&status["quarantine"]["stage"], &status["debt"]), (&Value::from("reload"), &Value::from("publish")));
    assert_eq!(metric(&sidecar, "trimtab_rollbacks_total"), Some(0.0));

    // The main process was asked to take it, so nobody knows what it has: what is confirmed is confirmed anew.
    ground.hook.answer(Answer::Code(200));
    let calls = ground.calls();
    ground.edit("a: 1");
    ground.reloaded("a: 1");
    let status = sidecar.until_idle();
    assert!(status["quarantine"].is_null() && ground.calls() > calls, "{status}");
    assert_eq!(status["verdict"]["state"], "in-effect");
}

#[test]
fn what_is_not_let_pass_costs_no_reload_and_neither_does_its_undoing() {
    let mut ground = Ground::new("a: 1");
    let check = ["--syntax", "strict", "--validate", "sh -c '! grep -q bad $0/app.yaml' {dir}"];
    let sidecar = ground.start(&[], &check);
    sidecar.until_idle();
    let calls = ground.calls();
    let file = ground.text("rules/app.yaml");
    for (content, said) in [("a: [", file.as_str()), ("a: bad", "--validate sh refused")] {
        ground.edit(content);
        let status = sidecar.until("it is rejected", |status| {
            status["quarantine"]["stage"] == "validate"
                && status["quarantine"]["reason"].as_str().is_some_and(|reason| reason.contains(said))
                && status["phase"] == "idle"
        });
        let summary = status["verdict"]["summary"].as_str().unwrap();
        assert!(summary.contains(&format!("{file}, which the main process reads by itself, stays")), "{summary}");
        assert_eq!(sidecar.request("--listen", "GET", "/readyz").unwrap().0, 200);
        ground.edit("a: 1");
        let status = sidecar.until("the verdict is cleared", |status| status["quarantine"].is_null());
        assert_eq!(status["published"]["sequence"], 1, "{status}");
    }
    assert_eq!(ground.calls(), calls);
    // With what was bad at the start, the sidecar is ready all the same: the Pod's readiness is not its matter.
    ground.edit("a: bad");
    let mut sidecar = sidecar;
    sidecar.kill();
    sidecar.start_again();
    sidecar.until("it is rejected again", |status| !status["quarantine"].is_null());
    eventually("it is ready", || (sidecar.request("--listen", "GET", "/readyz")?.0 == 200).then_some(()));
    assert_eq!(ground.calls(), calls);
}

#[test]
fn beside_templates_an_edit_in_place_reloads_and_of_a_mixed_change_the_rest_is_taken_back() {
    let mut ground = Ground::new("a: 1");
    let mut volume = Volume::new(ground.at("volume"), &[("word", "good")]);
    fs::write(ground.at("main.conf.j2"), "{{ data.word }} {{ dir('rules')['app.yaml'] | sha256 | length }}").unwrap();
    let (watched, output, template) = (ground.text("volume"), ground.text("conf"), ground.text("main.conf.j2"));
    let sidecar = ground.start(&[], &["--watch-dir", &watched, "--output", &output, "--template", &template]);
    sidecar.until_idle();
    let published = || fs::read_to_string(ground.dir.path().join("conf/main.conf")).unwrap();
    assert_eq!(published(), "good 64");
    ground.rules.swap(&[("app.yaml", "a: 2")]);
    ground.reloaded("a: 2");
    let status = sidecar.until_idle();
    let good = status["published"]["sequence"].clone();
    assert_eq!((published().as_str(), &good), ("good 64", &Value::from(2)), "equal files, and a reload");

    ground.hook.answer(Answer::Code(500));
    // One read of both: neither is refused alone.
    sidecar.signal(nix::sys::signal::Signal::SIGSTOP);
    volume.swap(&[("word", "evil")]);
    ground.rules.swap(&[("app.yaml", "a: 3")]);
    sidecar.signal(nix::sys::signal::Signal::SIGCONT);
    let status = sidecar
        .until("the way back is refused, too", |status| status["phase"] == "held" && status["debt"] == "rollback");
    assert_eq!((published().as_str(), &status["published"]["sequence"]), ("good 64", &good));
    let summary = status["verdict"]["summary"].as_str().unwrap();
    assert!(summary.contains(&format!("{}, which the main process reads", ground.text("rules/app.yaml"))), "{summary}");

    ground.hook.answer(Answer::Code(200));
    sidecar.until("the last good files are taken beside the edit", |status| status["debt"].is_null());
    let calls = ground.calls();
    volume.swap(&[("word", "good")]);
    ground.rules.swap(&[("app.yaml", "a: 2")]);
    ground.reloaded("a: 2");
    let status = sidecar.until_idle();
    assert!(ground.calls() > calls && status["quarantine"].is_null(), "{status}");
}

#[test]
fn a_directory_that_is_gone_or_emptied_is_no_change_and_one_that_begins_empty_is_no_wait() {
    let ground = Ground::new("a: 1");
    fs::create_dir(ground.at("empty")).unwrap();
    let empty = ground.text("empty");
    let sidecar = ground.start(&[], &["--observe-dir", &empty]);
    sidecar.until_idle();
    fs::write(ground.at("empty/new"), "x").unwrap();
    sidecar.until("a first file", |status| status["published"]["sequence"] == 2 && status["phase"] == "idle");
    fs::remove_file(ground.at("empty/new")).unwrap();
    let status = sidecar.until("it is reported", |status| {
        let said = status["sources"][1]["message"].as_str().unwrap_or_default();
        said.contains("the main process is not notified")
    });
    assert_eq!(status["published"]["sequence"], 2, "{status}");
    assert_eq!(ground.calls(), 2);
}

#[test]
fn once_validates_what_is_there_and_wrong_flags_are_named() {
    let ground = Ground::new("a: [");
    let rules = ground.text("rules");
    let try_it = |more: &[&str]| run(trimtab().args(["--observe-dir", &rules]).args(more));
    let (code, said) = try_it(&["--once", "--syntax", "strict"]);
    assert!(code == Some(65) && said.contains("app.yaml, line 1"), "{code:?}: {said}");
    assert_eq!(try_it(&["--once"]).0, Some(0));
    for (flags, expected) in [
        (&["--output", "/x"][..], "nothing would be written into --output"),
        (&["--watch-dir", "/x"], "--output is required"),
        (&["--template", "/x"], "--output is required"),
        (&["--observe-dir", "rules=/x"], "have the name \"rules\""),
        (&["--observe-dir", "b=/x", "--validate", "true {dir}"], "write {dir:NAME}"),
        (&["--validate", "true {dir:other}"], "has no {dir}"),
        (&["--state-dir", &ground.text("rules/state")], "in one another"),
    ] {
        let (code, said) = try_it(flags);
        assert!(code == Some(64) && said.contains(expected), "{flags:?}: {code:?}: {said}");
    }
}

/// Killed before and after every effect of an edit in place, and started again, it comes to the same end: a reload of
/// what is there, and then none.
#[test]
fn a_kill_at_any_point_costs_no_reload_of_what_is_remembered() {
    let prepare = || {
        let mut ground = Ground::new("a: 1");
        let state = ground.text("state");
        let mut sidecar = ground.start(&[], &["--state-dir", &state]);
        sidecar.until_idle();
        assert_eq!(sidecar.terminate(), Some(0));
        ground.edit("a: 2");
        (ground, state)
    };
    let (ground, state) = prepare();
    let points = ground.text("points");
    let mut sidecar = ground.start(&[("TRIMTAB_TEST_FAULTS", &points)], &["--state-dir", &state]);
    ground.reloaded("a: 2");
    sidecar.until_idle();
    sidecar.kill();
    let points = fs::read_to_string(points).unwrap().lines().count();
    assert!(points > 5, "{points}: fault points need a build with debug assertions");
    for point in 1..=points {
        let (ground, state) = prepare();
        let number = point.to_string();
        let mut sidecar = ground.start(&[("TRIMTAB_TEST_KILL", &number)], &["--state-dir", &state]);
        eventually(&format!("it is killed at point {point}"), || sidecar.has_ended().then_some(()));
        drop(sidecar);
        let mut sidecar = ground.start(&[], &["--state-dir", &state]);
        ground.reloaded("a: 2");
        let status = sidecar.until(&format!("it has come to its end after a kill at point {point}"), |status| {
            status["phase"] == "idle" && status["debt"].is_null() && status["confirmed"]["sequence"].as_u64() > Some(1)
        });
        assert!(status["quarantine"].is_null(), "{status}");
        let calls = ground.calls();
        sidecar.kill();
        sidecar.start_again();
        sidecar.until_idle();
        assert_eq!(ground.calls(), calls, "killed at point {point}");
    }
}

/// As the Prometheus Operator's configuration is, whatever its name says.
#[test]
fn what_is_packed_is_no_text_and_no_reason_for_a_warning() {
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut packed, b"a: 1").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir(at("rules")).unwrap();
    fs::write(at("rules/packed.yaml"), packed.finish().unwrap()).unwrap();
    let rules = at("rules").to_str().unwrap().to_owned();
    let sidecar = Sidecar::start(&at("log"), ["--observe-dir", &rules, "--debounce", "20ms"]);
    sidecar.until_idle();
    assert!(!sidecar.log().contains("packed.yaml"), "{}", sidecar.log());
    // Other bytes are still no text.
    fs::write(at("rules/bytes.yaml"), [0x1f, 0x8b, 9]).unwrap();
    eventually("it is a warning", || sidecar.log().contains("bytes.yaml").then_some(()));
    assert!(!sidecar.log().contains("packed.yaml"), "{}", sidecar.log());
}
