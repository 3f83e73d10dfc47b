//! Validation by the built binary: what does not pass is never visible, and says why.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, PostParams};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::reload::nginx_binary;
use super::support::apiserver::{ADMIN, ApiServer};
use super::support::port::free_port;
use super::support::scene::names;
use super::support::sidecar::{Sidecar, eventually};
use super::support::stage::{Stage, metric, problem};

const CANARY: &str = "hunter2-canary";

fn rejected(sidecar: &Sidecar) -> Value {
    sidecar.until("it is rejected", |status| !status["quarantine"].is_null())
}

/// How many `sleep`s of this length there are.
fn sleeping(length: &str) -> usize {
    let line = format!("sleep\0{length}\0");
    let is_one = |entry: std::io::Result<fs::DirEntry>| {
        fs::read(entry.unwrap().path().join("cmdline")).is_ok_and(|found| found == line.as_bytes())
    };
    fs::read_dir("/proc").unwrap().map(is_one).filter(|found| *found).count()
}

/// As if there were too little memory for it.
#[test]
fn death_while_a_validators_words_are_masked_is_not_repeated() {
    let validate = ["--validate", "sh -c 'cat $0/app.conf; ! grep -q bad $0/app.conf' {dir}"];
    for published in [true, false] {
        let mut stage = Stage::new(if published { "good" } else { "bad" });
        let (flags, log) = (stage.flags(&validate), stage.at("log"));
        let start = |env: &[(&str, &str)]| Sidecar::start_with(&log, env, &flags);
        if published {
            let mut sidecar = start(&[]);
            sidecar.until_idle();
            assert_eq!(sidecar.terminate(), Some(0));
            stage.edit("bad");
        }
        let dies = [("TRIMTAB_TEST_KILL", "mask")];
        let mut sidecar = start(&dies);
        eventually("it dies", || sidecar.has_ended().then_some(()));
        let journal = fs::read(stage.at("conf/..trimtab/private/journal.json")).unwrap();
        let journal: Value = serde_json::from_slice(&journal).unwrap();
        assert_eq!(journal["quarantine"]["rejection"]["stage"], "validate", "{journal}");
        drop(sidecar);
        let mut sidecar = start(&dies);
        rejected(&sidecar);
        assert_eq!(stage.published().as_deref(), published.then_some("good"));
        eventually("the log says where it is", || {
            let log = sidecar.log_of_this_life();
            assert!(!log.contains("it said: "), "{log}");
            (published || log.contains("kubectl logs --previous")).then_some(())
        });
        if !published {
            // Whoever asks wants it.
            sidecar.request("--admin", "POST", "/retry");
            eventually("it is masked again", || sidecar.has_ended().then_some(()));
        }
    }
}

#[test]
fn nginx_refuses_what_it_would_not_load_and_takes_what_it_would() {
    // It binds it for the test, and minds no other who has it.
    let port = free_port();
    // Its temporary directories are below the prefix, which is the candidate.
    let temporary =
        ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map(|what| format!("{what}_temp_path {what}; "));
    let temporary = temporary.concat();
    let good = |answer: &str| {
        format!(
            "events {{}} http {{ access_log off; {temporary} server {{ listen 127.0.0.1:{port}; location / {{ return 200 {answer}; }} }} }}"
        )
    };
    let mut stage = Stage::new("");
    stage.volume.swap(&[("nginx.conf", &good("one"))]);
    let own = stage.at("own");
    fs::create_dir(&own).unwrap();
    let own = own.to_str().unwrap();
    let validator = format!(
        "{} -t -p {{dir}} -e {own}/error.log -g 'pid {own}/pid;' -c {{dir}}/nginx.conf",
        nginx_binary().display()
    );
    let sidecar = stage.start(&["--validate", &validator]);
    sidecar.until_idle();
    assert_eq!(names(&stage.at("conf/..data/")), ["nginx.conf"]);

    let bads =
        ["", "http {", "evnets {} http {}", &good("one").replace("return", "retrun"), "events {} include gone.conf;"];
    for (round, bad) in bads.into_iter().enumerate() {
        // The history is written when there is time.
        let lasting = |stage: &Stage| {
            let mut names = names(&stage.at("conf"));
            names.retain(|name| name != "..trimtab/private/history.json");
            names
        };
        let before = lasting(&stage);
        let published = sidecar.status()["published"].clone();
        stage.volume.swap(&[("nginx.conf", bad)]);
        // When the journal is written as well.
        let status = sidecar.until("it is rejected", |status| {
            status["phase"] == "idle" && status["quarantine"]["digest"] == status["observed"]["digest"]
        });
        assert_eq!(status["quarantine"]["stage"], "validate", "{status}");
        let reason = problem(&status, "validate");
        assert!(reason.contains("nginx") && reason.contains("exit code 1"), "{bad}: {reason}");
        assert_eq!((&status["published"], lasting(&stage)), (&published, before), "{bad}");

        let answer = format!("good{round}");
        stage.volume.swap(&[("nginx.conf", &good(&answer))]);
        eventually("a good one is published", || {
            fs::read_to_string(stage.at("conf/nginx.conf")).ok()?.contains(&answer).then_some(())
        });
        let status = sidecar.until_idle();
        assert_eq!((&status["quarantine"], &status["errors"]), (&Value::Null, &json!({})), "{status}");
    }
    assert_eq!(metric(&sidecar, "trimtab_stage_total{stage=\"validate\",result=\"rejected\"}"), Some(5.0));
    assert_eq!(metric(&sidecar, "trimtab_stage_total{stage=\"validate\",result=\"success\"}"), Some(6.0));
    assert_eq!(metric(&sidecar, "reloader_config_apply_operations_failed_total"), Some(5.0));
    assert_eq!(metric(&sidecar, "reloader_last_reload_successful"), Some(1.0));
    assert!(sidecar.log().contains("unknown directive"), "what nginx said is not in the log");
}

/// A validator that says where it looks, and waits until it is asked to end; and the file where it says so.
fn slow_validator(stage: &Stage) -> (String, std::path::PathBuf) {
    let (up, down) = (stage.text("up"), stage.text("down"));
    assert!(Command::new("mkfifo").arg(&down).status().unwrap().success());
    (format!("sh -c 'echo $0 >{up}.tmp; mv {up}.tmp {up}; read verdict <{down}; exit $verdict' {{dir}}"), up.into())
}

fn let_go(stage: &Stage, up: &Path, verdict: &str) {
    fs::remove_file(up).unwrap();
    fs::write(stage.at("down"), verdict).unwrap();
}

#[test]
fn nothing_is_visible_while_a_program_looks_at_it() {
    let mut stage = Stage::new("one");
    let (validator, up) = slow_validator(&stage);
    let sidecar = stage.start(&["--validate", &validator]);
    let runs = || eventually("the program runs", || fs::read_to_string(&up).ok()).trim().to_owned();

    let candidate = runs();
    let visible = || -> Vec<String> {
        names(&stage.at("conf")).into_iter().filter(|name| !candidate.ends_with(name.as_str())).collect()
    };
    assert!(candidate.starts_with('/') && Path::new(&candidate).join("app.conf").exists(), "{candidate}");
    assert_eq!(visible(), ["..trimtab/private/key", "..trimtab/private/lock"]);
    assert_eq!(sidecar.request("--listen", "GET", "/readyz").unwrap().0, 503);
    let_go(&stage, &up, "0\n");
    sidecar.until_idle();

    let before = names(&stage.at("conf"));
    let link = fs::read_link(stage.at("conf/..data")).unwrap();
    for (verdict, passes) in [("1\n", false), ("0\n", true)] {
        let content = format!("two {verdict}");
        stage.volume.swap(&[("app.conf", &content), ("more.conf", "x")]);
        let candidate = runs();
        let now = names(&stage.at("conf"));
        let new: Vec<_> = now.iter().filter(|name| !before.contains(name)).collect();
        assert!(matches!(&new[..], [name] if candidate.ends_with(name.as_str())), "{new:?}");
        assert_eq!(fs::read_link(stage.at("conf/..data")).unwrap(), link);
        assert_eq!(stage.published().as_deref(), Some("one"));
        let_go(&stage, &up, verdict);
        if passes {
            eventually("it is published", || (stage.published()? == content).then_some(()));
            assert_eq!(fs::read_to_string(stage.at("conf/more.conf")).unwrap(), "x");
        } else {
            rejected(&sidecar);
            eventually("nothing is left of it", || (names(&stage.at("conf")) == before).then_some(()));
        }
    }
}

#[test]
fn program_that_hangs_is_killed_with_its_group_and_rejects() {
    let marker = "31.4161";
    let stage = Stage::new("one");
    let validator = format!("sh -c 'sleep {marker} & sleep {marker}' {{dir}}");
    let sidecar = stage.start(&["--validate", &validator, "--validate-timeout", "300ms"]);
    let status = rejected(&sidecar);
    assert!(problem(&status, "validate").contains("--validate-timeout"), "{status}");
    eventually("its children are gone", || (sleeping(marker) == 0).then_some(()));
    // The journal remembers the quarantine.
    let left = [
        "..trimtab/private/history.json",
        "..trimtab/private/journal.json",
        "..trimtab/private/key",
        "..trimtab/private/lock",
    ];
    eventually("nothing is left of it", || (names(&stage.at("conf")) == left).then_some(()));
}

#[test]
fn end_of_the_sidecar_is_the_end_of_the_program_and_the_next_life_validates_again() {
    let marker = "31.4162";
    let stage = Stage::new("one");
    let gate = stage.write("gate", "");
    let validator = format!("sh -c 'if [ -e {gate} ]; then sleep {marker} & sleep {marker}; fi' {{dir}}");
    let mut sidecar = stage.start(&["--validate", &validator]);
    eventually("it runs", || (sleeping(marker) == 2).then_some(()));
    sidecar.signal(Signal::SIGTERM);
    eventually("the first is heard", || sidecar.log().contains("finishing the step in flight").then_some(()));
    sidecar.signal(Signal::SIGTERM);
    assert_eq!(sidecar.exit_code(), Some(143));
    eventually("its children are gone", || (sleeping(marker) == 0).then_some(()));
    assert_eq!(stage.published(), None);

    fs::remove_file(gate).unwrap();
    sidecar.start_again();
    sidecar.until_idle();
    assert_eq!(stage.published().as_deref(), Some("one"));
    let generations = names(&stage.at("conf")).into_iter().filter(|name| name.starts_with("..trimtab-"));
    assert_eq!(generations.count(), 1);
}

#[test]
fn what_a_program_says_is_masked_and_the_last_of_it_is_in_the_log_alone() {
    let mut stage = Stage::new("fine");
    let validator = "sh -c 'grep -q fine $0/app.conf || { head -c 9000 /dev/zero | tr \"\\0\" x; cat $0/app.conf; echo end; exit 1; }' {dir}";
    let sidecar = stage.start(&["--secret-dir", "volume", "--validate", validator]);
    sidecar.until_idle();
    stage.edit(CANARY);
    let status = rejected(&sidecar);
    let line = eventually("what it said is logged", || {
        let log = sidecar.log();
        log.lines().find(|line| line.contains("it said: ")).map(str::to_owned)
    });
    let (_, said) = line.split_once("it said: ").unwrap();
    let (said, _) = said.split_once(" stage=").unwrap();
    assert!(said.ends_with("xxx***end\\n"), "{said}");
    assert!((4000..4100).contains(&said.len()), "{}", said.len());
    let metrics = sidecar.request("--listen", "GET", "/metrics").unwrap().1;
    for text in [sidecar.log(), status.to_string(), metrics] {
        assert!(!text.contains(CANARY), "{text}");
    }
    assert!(!status.to_string().contains("xxx"), "{status}");
}

#[test]
fn program_that_is_not_there_is_waited_for_and_nothing_is_published_without_it() {
    let mut stage = Stage::new("one");
    let program = stage.text("check");
    let sidecar =
        stage.start(&["--validate", &format!("{program} {{dir}}"), "--retry-min", "20ms", "--retry-max", "50ms"]);
    let status = sidecar.until("it is reported", |status| !problem(status, "validate").is_empty());
    assert!(problem(&status, "validate").contains(&program) && problem(&status, "validate").contains("COPY --from"));
    assert!(status["quarantine"].is_null(), "{status}");
    // Another attempt, and newer inputs, change nothing.
    let failed = "trimtab_stage_total{stage=\"validate\",result=\"failed\"}";
    eventually("it is tried again", || (metric(&sidecar, failed)? >= 3.0).then_some(()));
    stage.edit("two");
    assert_eq!(stage.published(), None);
    assert_eq!(sidecar.log().matches("cannot be started").count(), 1);

    fs::write(stage.at("check.tmp"), "#!/bin/sh\nexit 0\n").unwrap();
    fs::set_permissions(stage.at("check.tmp"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::rename(stage.at("check.tmp"), &program).unwrap();
    eventually("it is published", || (stage.published()? == "two").then_some(()));
    assert_eq!(sidecar.until_idle()["errors"], json!({}));
}

#[test]
fn once_reports_a_rejection_by_its_exit_code() {
    let refuse = ["--validate", "sh -c 'exit 1' {dir}"];
    for (more, code) in [(&refuse[..], 65), (&["--syntax", "strict"], 65), (&["--syntax", "off"], 0), (&[], 0)] {
        let mut stage = Stage::new("");
        let text = format!("{{\n  \"a\": {CANARY}}}");
        stage.volume.swap(&[("a.json", text.as_str())]);
        let mut sidecar = stage.start(&[&["--once"], more].concat());
        assert_eq!(sidecar.exit_code(), Some(code), "{more:?}");
        assert_eq!(stage.at("conf/a.json").exists(), code == 0, "{more:?}");
        let log = sidecar.log();
        assert!(!log.contains(CANARY), "{log}");
        assert_eq!(log.contains("a.json, line 2, column"), more != ["--syntax", "off"], "{more:?}: {log}");
        // An init container that is started again tries again, and says why not.
        sidecar.start_again();
        assert_eq!(sidecar.exit_code(), Some(code), "{more:?}");
        assert_eq!(sidecar.log_of_this_life().contains("rejected: "), code == 65, "{more:?}");
    }
}

/// ConfigMaps of a namespace of its own.
struct Maps {
    _server: std::sync::Arc<ApiServer>,
    api: Api<ConfigMap>,
    namespace: String,
    kubeconfig: String,
}

impl Maps {
    async fn new() -> Self {
        let server = ApiServer::shared().await;
        let namespace = server.namespace().await;
        let api = Api::namespaced(server.client(ADMIN).await, &namespace);
        let kubeconfig = server.kubeconfig(ADMIN).to_str().unwrap().to_owned();
        Self { _server: server, api, namespace, kubeconfig }
    }

    async fn put(&self, name: &str, key: &str, value: &str) {
        let data = BTreeMap::from([(key.to_owned(), value.to_owned())]);
        let mut object = ConfigMap { data: Some(data), ..ConfigMap::default() };
        object.metadata.name = Some(name.to_owned());
        object.metadata.labels = Some(BTreeMap::from([("app".to_owned(), "web".to_owned())]));
        let replaced = self.api.replace(name, &PostParams::default(), &object).await;
        if replaced.is_err() {
            self.api.create(&PostParams::default(), &object).await.unwrap();
        }
    }

    fn start(&self, stage: &Stage, more: &[&str]) -> Sidecar {
        let output = stage.text("conf");
        let own = ["--selector", "app=web", "--namespace", &self.namespace, "--kubeconfig", &self.kubeconfig];
        Sidecar::start(&stage.at("log"), [&own[..], &["--output", &output, "--debounce", "20ms"], more].concat())
    }
}

fn read(stage: &Stage, name: &str) -> Option<String> {
    fs::read_to_string(stage.at("conf").join(name)).ok()
}

async fn one_bad_object_holds_back_itself_alone(flags: &[&str], reason: &[&str]) {
    let (maps, stage) = (Maps::new().await, Stage::new(""));
    for name in ["a", "b", "c"] {
        maps.put(name, &format!("{name}.json"), "[1]").await;
    }
    let mut sidecar = maps.start(&stage, flags);
    sidecar.until_idle();
    maps.put("b", "b.json", &format!("[{CANARY}")).await;
    let status = sidecar.until("it is held back", |status| status["heldBack"][0].is_object());
    assert_eq!(status["heldBack"].as_array().unwrap().len(), 1, "{status}");
    let held = &status["heldBack"][0];
    assert_eq!(held["source"], format!("configmap/{}/b", maps.namespace));
    for part in reason.iter().chain(&["its last published version stays"]) {
        assert!(held["reason"].as_str().unwrap().contains(part), "{held}");
    }
    maps.put("c", "c.json", "[2]").await;
    eventually("the others flow", || (read(&stage, "c.json")? == "[2]").then_some(()));
    let status = sidecar.until_idle();
    assert_eq!((read(&stage, "b.json").as_deref(), &status["quarantine"]), (Some("[1]"), &Value::Null));
    assert_eq!(status["heldBack"][0]["source"], format!("configmap/{}/b", maps.namespace));
    assert!(!status.to_string().contains(CANARY), "{status}");

    // It does so across a restart.
    sidecar.kill();
    sidecar.start_again();
    maps.put("c", "c.json", "[4]").await;
    eventually("the others flow", || (read(&stage, "c.json")? == "[4]").then_some(()));
    assert_eq!(read(&stage, "b.json").as_deref(), Some("[1]"));
    let status = sidecar.until_idle();
    let reason = status["heldBack"][0]["reason"].as_str().unwrap();
    assert!(reason.contains("its last published version stays") && !reason.contains(CANARY), "{status}");

    maps.put("b", "b.json", "[3]").await;
    eventually("it is corrected", || (read(&stage, "b.json")? == "[3]").then_some(()));
    assert_eq!(sidecar.until_idle()["heldBack"], json!([]));
}

#[tokio::test]
async fn malformed_selected_object_holds_back_itself_alone() {
    one_bad_object_holds_back_itself_alone(&["--syntax", "strict"], &["\"b.json\"", "line 1, column 2"]).await;
}

#[tokio::test]
async fn selected_object_that_a_program_refuses_holds_back_itself_alone() {
    let program = "sh -c '! grep -rq canary $0' {dir}";
    one_bad_object_holds_back_itself_alone(&["--validate", program], &["--validate sh", "exit code 1"]).await;
}
