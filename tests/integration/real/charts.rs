//! Other sidecars' containers with their charts' arguments, beside the real programs of those charts, which read the
//! ConfigMap's volume by themselves.

use std::path::Path;

use super::{Connection, Ground, Main, binary, marker, strings};
use crate::support::sidecar::{Sidecar, Volume, eventually, needs_root};
use crate::support::stage::metric;

/// A chart: its program, and its sidecar.
struct Chart {
    ground: Ground,
    /// The configuration's file.
    file: &'static str,
    /// What the program is started by.
    command: Vec<String>,
    /// Where it shows what it runs.
    shows: &'static str,
    /// The configuration of an edit, which the program takes, or not.
    config: fn(usize, bool) -> String,
    peer: &'static str,
    /// The peer's settings, as the chart has them.
    settings: Vec<String>,
    /// A metric of the peer's that people have alerts on, and what it is after a reload and after a failed one.
    metric: String,
    values: [f64; 2],
}

impl Chart {
    /// A good edit runs; a bad one is reported, by metric and by name, until it is undone; and the next one runs, also of
    /// a sidecar that was killed.
    fn runs_unchanged(self) {
        let config = self.config;
        let text = |edit| config(edit, true);
        let mut volume = Volume::new(self.ground.at("conf"), &[(self.file, &text(0))]);
        let mut main = Main::run(&self.ground, &self.command);
        let shown = || marker(&Connection::new(self.ground.port, false).get(self.shows).ok()?).ok();
        let runs = |edit| eventually(&format!("it runs edit {edit}"), || (shown()? == edit).then_some(()));
        runs(0);
        let settings: Vec<_> = self.settings.iter().map(String::as_str).collect();
        let mut sidecar = Sidecar::start_as_peer(Path::new(self.peer), &self.ground.at("log"), &[], &settings);
        sidecar.until_idle();
        let metric = |sidecar: &Sidecar| metric(sidecar, &self.metric);
        // Several, as the file itself is another one after the first swap.
        for edit in 1..3 {
            volume.swap(&[(self.file, &text(edit))]);
            runs(edit);
            sidecar.until_idle();
        }
        assert_eq!(metric(&sidecar), Some(self.values[0]));

        volume.swap(&[(self.file, &config(3, false))]);
        let status = sidecar.until("it is held", |status| status["phase"] == "held");
        let summary = status["verdict"]["summary"].as_str().unwrap();
        assert!(summary.contains(self.file) && summary.contains("cannot be taken back"), "{summary}");
        assert_eq!(metric(&sidecar), Some(self.values[1]), "{summary}");
        assert_eq!(shown(), Some(2));

        volume.swap(&[(self.file, &text(2))]);
        sidecar.until_idle();
        assert_eq!(metric(&sidecar), Some(self.values[0]));
        sidecar.kill();
        volume.swap(&[(self.file, &text(4))]);
        sidecar.start_again();
        runs(4);
        sidecar.until_idle();
        assert!(!main.has_ended());
    }
}

/// Debian's Alertmanager 0.25 names a receiver that is nowhere: 500. Its templates are at a path that was compiled in.
fn alertmanager(ground: &Ground) -> Vec<String> {
    let program = binary("TRIMTAB_TEST_ALERTMANAGER");
    let mut command = Vec::new();
    let unpacked = Path::new(&program).with_file_name("root/usr/share");
    if unpacked.exists() {
        needs_root("give Alertmanager the files of its package");
        let mount = r#"mount --bind "$0" /usr/share && exec "$@""#;
        command.extend(strings(["unshare", "--mount", "sh", "-c", mount, unpacked.to_str().unwrap()]));
    }
    command.extend(strings([
        &program,
        &format!("--config.file={}", ground.text("conf/alertmanager.yml")),
        &format!("--storage.path={}", ground.text("data")),
        &format!("--web.listen-address=127.0.0.1:{}", ground.port),
        // No cluster.
        "--cluster.listen-address=",
    ]));
    command
}

fn alerts(edit: usize, good: bool) -> String {
    let receiver = if good { format!("config {edit}") } else { "nowhere".to_owned() };
    format!("route: {{ receiver: '{receiver}' }}\nreceivers: [{{ name: 'config {edit}' }}]\n")
}

/// The alertmanager chart, whose sidecar was configmap-reload.
#[test]
fn the_alertmanager_charts_configmap_reload_runs_unchanged() {
    let ground = Ground::new();
    let url = format!("http://127.0.0.1:{}/-/reload", ground.port);
    Chart {
        file: "alertmanager.yml",
        command: alertmanager(&ground),
        shows: "/api/v2/status",
        config: alerts,
        peer: "configmap-reload",
        settings: vec![format!("--volume-dir={}", ground.text("conf")), format!("--webhook-url={url}")],
        metric: format!("configmap_reload_last_reload_error{{webhook=\"{url}\"}}"),
        values: [0.0, 1.0],
        ground,
    }
    .runs_unchanged();
}

/// The same with today's: prometheus-config-reloader. `--web-config-file` is the Prometheus Operator's, for each Alertmanager.
#[test]
fn the_alertmanager_charts_prometheus_config_reloader_runs_unchanged() {
    let ground = Ground::new();
    std::fs::write(ground.at("web-config.yaml"), "").unwrap();
    Chart {
        file: "alertmanager.yml",
        command: alertmanager(&ground),
        shows: "/api/v2/status",
        config: alerts,
        peer: "prometheus-config-reloader",
        settings: vec![
            format!("--watched-dir={}", ground.text("conf")),
            format!("--reload-url=http://127.0.0.1:{}/-/reload", ground.port),
            format!("--web-config-file={}", ground.text("web-config.yaml")),
            "--listen-address=:8080".to_owned(),
        ],
        metric: "reloader_last_reload_successful".to_owned(),
        values: [1.0, 0.0],
        ground,
    }
    .runs_unchanged();
}

/// The prometheus-blackbox-exporter chart names the file alone, which the peer watches until the kubelet's first swap and
/// polls from then on.
#[test]
fn the_blackbox_exporter_charts_prometheus_config_reloader_runs_unchanged() {
    let ground = Ground::new();
    Chart {
        file: "blackbox.yaml",
        command: strings([
            &binary("TRIMTAB_TEST_BLACKBOX_EXPORTER"),
            &format!("--config.file={}", ground.text("conf/blackbox.yaml")),
            &format!("--web.listen-address=127.0.0.1:{}", ground.port),
        ]),
        shows: "/config",
        config: |edit, good| {
            format!("modules: {{ 'config {edit}': {{ {}: tcp }} }}\n", if good { "prober" } else { "pigeon" })
        },
        peer: "prometheus-config-reloader",
        settings: vec![
            format!("--config-file={}", ground.text("conf/blackbox.yaml")),
            // An hour, where the chart has a minute: what is seen here is seen at once.
            "--watch-interval=1h".to_owned(),
            format!("--reload-url=http://127.0.0.1:{}/-/reload", ground.port),
            "--listen-address=:8080".to_owned(),
            "--log-format=logfmt".to_owned(),
            "--log-level=info".to_owned(),
        ],
        metric: "reloader_last_reload_successful".to_owned(),
        values: [1.0, 0.0],
        ground,
    }
    .runs_unchanged();
}
