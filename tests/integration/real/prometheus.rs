//! Prometheus, notified by HTTP and confirmed by the time of its last reload that succeeded.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::path::Path;

use super::{
    Connection, Failure, Fault, Ground, Main, Program, Refusal, binary, borrow, marker, play, serves, strings,
};
use crate::support::sidecar::{Sidecar, Volume, eventually, run, trimtab};
use crate::support::stage::metric;

/// What Prometheus 2.42 does with a bad configuration on `POST /-/reload`: what does not parse (an unknown field, a job
/// named twice) is answered by 500, and it stays with what it has. But applying is no transaction:
/// - a rule file or a certificate of an Alertmanager's client that cannot be loaded: 500 as well, after other parts
///   were taken into use; `/api/v1/status/config` shows the new configuration then. promtool looks at the rules, and
///   not at this certificate.
/// - a certificate of a scrape job's client: 200 in the first five seconds of the job's life, as its pool is made
///   later.
/// - an empty file: 200, and promtool passes it. The time of the last reload cannot show it, but what it runs can: a
///   group of rules named for the generation is among its metrics.
///
/// `/-/healthy` answers 200 all the while, `prometheus_config_last_reload_success_timestamp_seconds` changes with each
/// reload that is answered 200 and with no other.
struct Prometheus {
    ground: Ground,
}

const RULES: &str = "groups: [{ name: '@DIGEST@', rules: [{ record: edit, expr: vector(1) }] }]\n";

impl Program for Prometheus {
    fn ground(&self) -> &Ground {
        &self.ground
    }

    fn name(&self) -> &'static str {
        "Prometheus"
    }

    fn templates(&self) -> Vec<(&'static str, &'static str)> {
        vec![
            ("prometheus.yml", "{{ data['prometheus.yml'] }}\n"),
            ("rules.yml", "{{ data['rules.yml'] | replace('@DIGEST@', generation.digest) }}\n"),
        ]
    }

    fn keys(&self, edit: usize, fault: Option<Fault>) -> Vec<(&'static str, String)> {
        let own = self.ground.text("");
        let mut rules = RULES.to_owned();
        let mut extra = String::new();
        match fault {
            None => (),
            Some(Fault::Syntax) => "  bad: [".clone_into(&mut extra),
            Some(Fault::Unknown) => "frobnicate: on".clone_into(&mut extra),
            Some(Fault::Certificate) => {
                extra = format!(
                    "alerting: {{ alertmanagers: [{{ scheme: https, tls_config: {{ ca_file: {own}/none.pem, \
                     cert_file: {own}/none.pem, key_file: {own}/none.pem }}, \
                     static_configs: [{{ targets: ['127.0.0.1:1'] }}] }}] }}"
                );
            }
            Some(Fault::Part) => rules = rules.replace("vector(1)", "'vector('"),
            Some(fault) => {
                assert_eq!(fault, Fault::Empty);
                return vec![("prometheus.yml", String::new()), ("rules.yml", rules), ("edit", edit.to_string())];
            }
        }
        // An hour: no scrape is due while the test runs.
        let text = format!(
            "global:
  scrape_interval: 1h
  evaluation_interval: 1h
  external_labels: {{ edit: config {edit} }}
rule_files: [rules.yml]
scrape_configs:
  - job_name: self
    static_configs: [{{ targets: ['127.0.0.1:1'] }}]
{extra}
"
        );
        vec![("prometheus.yml", text), ("rules.yml", rules), ("edit", edit.to_string())]
    }

    fn command(&self) -> Vec<String> {
        let (conf, data) = (self.ground.text("conf/prometheus.yml"), self.ground.text("data"));
        let listen = format!("--web.listen-address=127.0.0.1:{}", self.ground.port);
        strings([
            &binary("TRIMTAB_TEST_PROMETHEUS"),
            &format!("--config.file={conf}"),
            &format!("--storage.tsdb.path={data}"),
            &listen,
            "--web.enable-lifecycle",
            "--log.level=warn",
        ])
    }

    fn flags(&self) -> Vec<String> {
        let base = format!("http://127.0.0.1:{}", self.ground.port);
        strings([
            "--reload-url",
            &format!("{base}/-/reload"),
            "--confirm-url",
            &format!("{base}/metrics"),
            "--confirm-changed",
            // From the line's beginning: `# HELP` has the name as well.
            r"(?m)^prometheus_config_last_reload_success_timestamp_seconds (\S+)",
            "--confirm-match",
            r#"prometheus_rule_group_rules\{rule_group="[^"]*;{digest}"\}"#,
        ])
    }

    fn validator(&self) -> String {
        let prometheus = binary("TRIMTAB_TEST_PROMETHEUS");
        let promtool = Path::new(&prometheus).with_file_name("promtool");
        format!("{} check config {{dir}}/prometheus.yml", promtool.display())
    }

    fn faults(&self) -> [(Fault, Refusal); 5] {
        [
            (Fault::Syntax, Refusal::Both),
            (Fault::Unknown, Refusal::Both),
            (Fault::Certificate, Refusal::Confirmation),
            (Fault::Part, Refusal::Gate),
            (Fault::Empty, Refusal::Gate),
        ]
    }

    fn ask(&self, connection: &mut Connection) -> Result<usize, Failure> {
        connection.get("/-/healthy")?;
        let running = connection.get("/api/v1/status/config")?;
        // It answers, by a configuration that is nobody's: the empty one.
        Ok(marker(&running).unwrap_or(usize::MAX))
    }
}

#[test]
fn prometheus_runs_good_configurations_alone() {
    play(Prometheus { ground: Ground::new() }, false);
}

#[test]
fn prometheus_runs_good_configurations_alone_when_they_are_validated() {
    play(Prometheus { ground: Ground::new() }, true);
}

/// No template and no output: Prometheus reads the ConfigMap's volume by itself, as in most charts.
#[test]
fn prometheus_reads_a_volume_by_itself_and_each_edit_of_it_is_validated_reloaded_and_confirmed() {
    let program = Prometheus { ground: Ground::new() };
    let edit = |edit: usize, fault| program.keys(edit, fault);
    let mut volume = Volume::new(program.ground.at("conf"), &borrow(&edit(0, None)));
    let mut main = Main::start(&program);
    serves(&program, 0);
    let base = format!("http://127.0.0.1:{}", program.ground.port);
    let mut flags =
        strings(["--observe-dir", &program.ground.text("conf"), "--state-dir", &program.ground.text("state")]);
    flags.extend(strings(["--debounce", "20ms", "--retry-min", "50ms", "--retry-max", "500ms"]));
    flags.extend(strings(["--reload-url", &format!("{base}/-/reload"), "--confirm-url", &format!("{base}/metrics")]));
    let changed = r"(?m)^prometheus_config_last_reload_success_timestamp_seconds (\S+)";
    flags.extend(strings(["--confirm-changed", changed, "--reload-attempts", "1"]));
    let mut sidecar = Sidecar::start(&program.ground.at("log"), &flags);
    sidecar.until_idle();
    volume.swap(&borrow(&edit(1, None)));
    serves(&program, 1);
    let status = sidecar.until_idle();
    assert_eq!(status["confirmed"]["sequence"], 2, "{status}");

    // Prometheus refuses it, and goes on with what it has. There is no way back, and nobody pretends that there is.
    volume.swap(&borrow(&edit(2, Some(Fault::Unknown))));
    let status = sidecar.until("it is held", |status| status["phase"] == "held");
    let summary = status["verdict"]["summary"].as_str().unwrap();
    assert!(summary.contains("conf/prometheus.yml") && summary.contains("cannot be taken back"), "{summary}");
    serves(&program, 1);
    volume.swap(&borrow(&edit(1, None)));
    let status = sidecar.until_idle();
    assert!(status["quarantine"].is_null() && status["confirmed"]["sequence"] == 4, "{status}");

    // Killed, it misses no edit.
    sidecar.kill();
    volume.swap(&borrow(&edit(3, None)));
    sidecar.start_again();
    serves(&program, 3);
    sidecar.until_idle();
    sidecar.kill();

    // With promtool at the gate, Prometheus hears nothing of it.
    flags.extend(strings(["--validate", &program.validator()]));
    let sidecar = Sidecar::start(&program.ground.at("log"), &flags);
    let before = sidecar.until_idle()["confirmed"]["sequence"].clone();
    volume.swap(&borrow(&edit(4, Some(Fault::Part))));
    let status = sidecar.until("promtool refuses it", |status| status["quarantine"]["stage"] == "validate");
    assert_eq!(status["confirmed"]["sequence"], before);
    serves(&program, 3);
    volume.swap(&borrow(&edit(3, None)));
    let status = sidecar.until("it is undone", |status| status["quarantine"].is_null() && status["phase"] == "idle");
    assert_eq!(status["confirmed"]["sequence"], before, "without a reload: {status}");
    assert!(!main.has_ended());
    assert_eq!(eventually("its state", || fs::read_dir(program.ground.at("state")).ok()).count(), 1);
}

/// As the Prometheus Operator writes it: packed, with variables, and rules in a volume of their own.
fn packed(program: &Prometheus, edit: usize, extra: &str) {
    let text = &program.keys(edit, None)[0].1;
    let text = text.replace("[rules.yml]", &format!("['{}/*.yml']", program.ground.text("rules")));
    let text =
        text.replace("{ edit:", "{ pod: $(POD_NAME), number: n$(STATEFULSET_ORDINAL_NUMBER), kept: $(NOBODY), edit:");
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(format!("{text}\n{extra}").as_bytes()).unwrap();
    fs::create_dir_all(program.ground.at("config")).unwrap();
    fs::write(program.ground.at("config/..new"), packed.finish().unwrap()).unwrap();
    fs::rename(program.ground.at("config/..new"), program.ground.at("config/prometheus.yaml.gz")).unwrap();
}

/// The containers init-config-reloader and config-reloader of a Pod of the Prometheus Operator, with their arguments.
#[test]
fn prometheus_operators_containers_run_unchanged() {
    let program = Prometheus { ground: Ground::new() };
    packed(&program, 0, "");
    let rules = |name: &str| format!("groups: [{{ name: {name}, rules: [{{ record: edit, expr: vector(1) }}] }}]\n");
    let mut volume = Volume::new(program.ground.at("rules"), &[("a.yml", &rules("first"))]);
    let url = format!("http://127.0.0.1:{}/-/reload", program.ground.port);
    let common = [
        format!("--reload-url={url}"),
        format!("--config-file={}", program.ground.text("config/prometheus.yaml.gz")),
        format!("--config-envsubst-file={}", program.ground.text("conf/prometheus.yml")),
        format!("--watched-dir={}", program.ground.text("rules")),
        format!("--watched-dir={}", program.ground.text("config")),
    ];
    let (code, said) = run(trimtab()
        .args(["as", "prometheus-config-reloader", "--watch-interval=0", "--listen-address=:8081"])
        .args(&common)
        .env("POD_NAME", "prometheus-k8s-3"));
    assert_eq!(code, Some(0), "{said}");
    let mut main = Main::start(&program);
    serves(&program, 0);
    let arguments: Vec<_> = ["--listen-address=:8080", "--delay-interval=20ms"]
        .into_iter()
        .chain(common.iter().map(String::as_str))
        .collect();
    let log = program.ground.at("log");
    let env = [("POD_NAME", "prometheus-k8s-3"), ("SHARD", "0")];
    let sidecar = Sidecar::start_as_peer(Path::new("prometheus-config-reloader"), &log, &env, &arguments);
    sidecar.until_idle();
    packed(&program, 1, "");
    serves(&program, 1);
    sidecar.until_idle();
    let running = Connection::new(program.ground.port, false).get("/api/v1/status/config").unwrap();
    for part in ["pod: prometheus-k8s-3", "number: n3", "kept: $(NOBODY)"] {
        assert!(running.contains(part), "{part} is not in {running}");
    }
    let before = metric(&sidecar, "reloader_reloads_total").unwrap();
    volume.swap(&[("a.yml", &rules("second"))]);
    let groups = || Connection::new(program.ground.port, false).get("/api/v1/rules").ok();
    eventually("the rules are reloaded", || groups()?.contains("second").then_some(()));
    sidecar.until_idle();
    assert!(metric(&sidecar, "reloader_reloads_total").unwrap() > before);
    assert_eq!(metric(&sidecar, "reloader_last_reload_successful"), Some(1.0));

    // What the peer does not do: a configuration that Prometheus refuses is taken back.
    packed(&program, 2, "frobnicate: on");
    sidecar.until("it is refused", |status| status["quarantine"].is_object() && status["phase"] == "idle");
    assert!(fs::read_to_string(program.ground.at("conf/prometheus.yml")).unwrap().contains("config 1"));
    assert_eq!(metric(&sidecar, "reloader_last_reload_successful"), Some(0.0));
    serves(&program, 1);
    packed(&program, 3, "");
    serves(&program, 3);
    assert!(!main.has_ended());
}

/// With `reloadStrategy: ProcessSignal`: a SIGHUP, and the time of the last reload by the API.
#[test]
fn prometheus_operators_container_signals_and_confirms() {
    let program = Prometheus { ground: Ground::new() };
    packed(&program, 0, "");
    let mut volume = Volume::new(program.ground.at("rules"), &[("a.yml", RULES)]);
    let (name, link) = (format!("prom-{}", program.ground.port), program.ground.at("bin"));
    fs::create_dir(&link).unwrap();
    // Of this name there is no other, where other tests run one, too.
    fs::copy(binary("TRIMTAB_TEST_PROMETHEUS"), link.join(&name)).unwrap();
    let arguments = [
        format!("--config-file={}", program.ground.text("config/prometheus.yaml.gz")),
        format!("--config-envsubst-file={}", program.ground.text("conf/prometheus.yml")),
        format!("--watched-dir={}", program.ground.text("rules")),
        format!("--watched-dir={}", program.ground.text("config")),
        format!("--runtimeinfo-url=http://127.0.0.1:{}/api/v1/status/runtimeinfo", program.ground.port),
        format!("--process-executable-name={name}"),
        "--reload-method=signal".to_owned(),
    ];
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    let env = [("POD_NAME", "prometheus-k8s-3")];
    let sidecar =
        Sidecar::start_as_peer(Path::new("prometheus-config-reloader"), &program.ground.at("log"), &env, &arguments);
    eventually("the first configuration", || program.ground.at("conf/prometheus.yml").exists().then_some(()));
    let mut command = program.command();
    command[0] = link.join(&name).to_str().unwrap().to_owned();
    let mut main = Main::run(&program.ground, &command);
    serves(&program, 0);
    sidecar.until_idle();
    packed(&program, 1, "");
    serves(&program, 1);
    let confirmed = sidecar.until_idle()["confirmed"]["sequence"].clone();
    volume.swap(&[("a.yml", &RULES.replace("'@DIGEST@'", "second"))]);
    sidecar.until("the rules are confirmed", |status| {
        status["confirmed"]["sequence"] != confirmed && status["phase"] == "idle"
    });
    let groups = Connection::new(program.ground.port, false).get("/api/v1/rules").unwrap();
    assert!(groups.contains("second"), "{groups}");
    packed(&program, 2, "frobnicate: on");
    let status = sidecar.until("it is refused", |status| status["quarantine"].is_object() && status["phase"] == "idle");
    assert_eq!(status["quarantine"]["stage"], "confirm", "{status}");
    assert!(fs::read_to_string(program.ground.at("conf/prometheus.yml")).unwrap().contains("config 1"));
    assert_eq!(metric(&sidecar, "reloader_last_reload_successful"), Some(0.0));
    serves(&program, 1);
    assert!(!main.has_ended());
}

/// The container configmap-reload of the prometheus chart, by the name that its image calls it by.
#[test]
fn the_prometheus_charts_configmap_reload_runs_unchanged() {
    let program = Prometheus { ground: Ground::new() };
    let mut volume = Volume::new(program.ground.at("conf"), &borrow(&program.keys(0, None)));
    let _main = Main::start(&program);
    serves(&program, 0);
    let link = program.ground.at("configmap-reload");
    symlink(env!("CARGO_BIN_EXE_trimtab"), &link).unwrap();
    let url = format!("--webhook-url=http://127.0.0.1:{}/-/reload", program.ground.port);
    let dir = format!("--volume-dir={}", program.ground.text("conf"));
    let sidecar = Sidecar::start_as_peer(&link, &program.ground.at("log"), &[], &[&dir, &url]);
    sidecar.until_idle();
    volume.swap(&borrow(&program.keys(1, None)));
    serves(&program, 1);
    sidecar.until_idle();
    let (code, said) = run(trimtab().args(["as", "configmap-reload", &dir, &url, "--print-flags"]));
    assert!(code == Some(0) && said.contains("--observe-dir=conf=") && said.contains("--reload-status=200"), "{said}");
    let (code, said) = run(trimtab().args(["as", "configmap-reload", &dir]));
    assert!(code == Some(1) && said.contains("Missing webhook-url"), "{said}");
    let (code, said) = run(trimtab().args(["as", "prometheus-config-reloader", "--version"]));
    assert!(code == Some(0) && said.contains("trimtab"), "{said}");
}
