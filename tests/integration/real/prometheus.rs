//! Prometheus, notified by HTTP and confirmed by the time of its last reload that succeeded.

use std::path::Path;

use super::{Connection, Failure, Fault, Ground, Program, Refusal, binary, marker, play, strings};

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
