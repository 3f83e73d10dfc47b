//! Each example as it stands: applied with `kubectl apply -k`, edited with kubectl, asked by requests to its main
//! process, and given a mistake, which is never served.

use std::io::Write as _;
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};

use super::support::node::{eventually, kubectl};
use super::support::pod::Pod;
use super::support::space::Space;

/// An example in a namespace of its own.
struct Example {
    space: Space,
    /// The name of the ConfigMap that people edit.
    configmap: &'static str,
}

impl Example {
    fn apply(name: &str, configmap: &'static str) -> Self {
        let space = Space::new(name);
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("examples").join(name);
        space.apply(&kubectl(&["kustomize", folder.to_str().unwrap()]));
        Self { space, configmap }
    }

    /// Its Pod, or the first of them, once it is ready.
    fn pod(&self) -> Pod<'_> {
        let name = eventually("its Pod", || {
            Some(
                self.space
                    .kubectl(&["get", "pods", "-o", "name"])
                    .lines()
                    .next()?
                    .trim_start_matches("pod/")
                    .to_owned(),
            )
        });
        self.space.pod(&name).until_ready()
    }

    fn edit(&self, key: &str, value: &str) {
        self.space.edit(self.configmap, key, value);
    }

    /// A mistake in a value: rejected at the stage, or taken back, with nothing owed afterwards; then mended.
    fn mistake(&self, pod: &Pod, key: &str, value: &str, stage: &str) {
        let before = self.space.get(&format!("configmap/{}", self.configmap))["data"][key].clone();
        self.edit(key, value);
        let status = rejected(pod);
        assert_eq!(status["quarantine"]["stage"], stage, "{status:#}");
        assert!(status["lastGood"]["sequence"] == status["published"]["sequence"], "{status:#}");
        self.edit(key, before.as_str().unwrap());
        mended(pod);
    }
}

fn rejected(pod: &Pod) -> Value {
    pod.until("rejected and done with it", |status| {
        !status["quarantine"].is_null() && status["phase"] == "idle" && status["debt"].is_null()
    })
}

fn mended(pod: &Pod) {
    pod.until("mended", |status| status["quarantine"].is_null() && status["phase"] == "idle");
}

/// What curl prints, if the answer is a success.
fn curl(args: &[&str]) -> Option<String> {
    let output = Command::new("curl").args(["-sf", "--max-time", "5"]).args(args).output().unwrap();
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Waits until a GET's body holds this.
fn until_shows(pod: &Pod, port: u16, path: &str, text: &str) {
    let url = format!("http://{}:{port}{path}", pod.ip());
    eventually(&format!("{url} shows {text:?}"), || curl(&[&url])?.contains(text).then_some(()));
}

#[test]
fn example_nginx() {
    let nginx = Example::apply("nginx", "web");
    let pod = nginx.pod();
    pod.until_serves(8080, "/", "hello");
    nginx.edit("greeting", "good morning");
    pod.until_serves(8080, "/", "good morning");
    // Renders, and is refused by nginx.
    nginx.mistake(&pod, "workers", "0", "confirm");
    pod.until_serves(8080, "/", "good morning");
}

#[test]
fn example_haproxy() {
    let balancer = Example::apply("haproxy", "balancer");
    let pod = balancer.pod();
    until_shows(&pod, 8080, "/", "blue");
    until_shows(&pod, 8080, "/", "green");
    balancer.edit("servers", "- {name: green, address: \"127.0.0.1:9002\"}\n");
    pod.until("reloaded", |status| status["confirmed"]["sequence"] == 2);
    assert_eq!(curl(&[&format!("http://{}:8080/", pod.ip())]).unwrap().trim(), "green");
    balancer.mistake(&pod, "balance", "nonsense", "confirm");
    until_shows(&pod, 8080, "/", "green");
}

#[test]
fn example_envoy() {
    let gateway = Example::apply("envoy", "gateway");
    let pod = gateway.pod();
    until_shows(&pod, 8080, "/hello", "hello");
    gateway.edit("routes", "- {prefix: /hello, text: good evening}\n- {prefix: /, cluster: back}\n");
    until_shows(&pod, 8080, "/hello", "good evening");
    gateway.mistake(&pod, "timeout", "nonsense", "confirm");
    until_shows(&pod, 8080, "/hello", "good evening");
}

#[test]
fn example_prometheus() {
    let metrics = Example::apply("prometheus", "metrics");
    let pod = metrics.pod();
    until_shows(&pod, 9090, "/api/v1/status/config", "scrape_interval: 15s");
    metrics.edit("interval", "30s");
    until_shows(&pod, 9090, "/api/v1/status/config", "scrape_interval: 30s");
    metrics.mistake(&pod, "interval", "nonsense", "reload");
    until_shows(&pod, 9090, "/api/v1/status/config", "scrape_interval: 30s");
}

#[test]
fn example_alertmanager() {
    let alerts = Example::apply("alertmanager", "alerts");
    let pod = alerts.pod();
    until_shows(&pod, 9093, "/api/v2/status", "receiver: people");
    alerts.edit("receiver", "nobody");
    until_shows(&pod, 9093, "/api/v2/status", "receiver: nobody");
    alerts.space.patch("secret", "alerts", &json!({"stringData": {"url": "http://127.0.0.1:9096/hook?token=other"}}));
    pod.until("the Secret's edit is confirmed", |status| status["confirmed"]["sequence"] == 3);
    alerts.mistake(&pod, "receiver", "nonsense", "reload");
    let log = pod.log("trimtab");
    assert!(!log.contains("token="), "a value of the Secret is logged: {log}");
}

#[test]
fn example_dashboards() {
    let dashboards = Example::apply("dashboards", "team-data");
    let pod = dashboards.pod();
    until_shows(&pod, 8080, "/", "team-data-queries.json");
    until_shows(&pod, 8080, "/", "team-web-latency.json");
    let space = &dashboards.space;
    space.kubectl(&["create", "configmap", "team-new", "--from-literal=new.json={\"title\": \"New\"}"]);
    space.kubectl(&["label", "configmap", "team-new", "grafana_dashboard=1"]);
    until_shows(&pod, 8080, "/team-new-new.json", "New");
    // One bad object holds itself back, and nothing else.
    space.edit("team-new", "new.json", "{");
    let status = pod.until("held back", |status| status["heldBack"].as_array().is_some_and(|held| !held.is_empty()));
    assert!(status["heldBack"][0]["source"].as_str().unwrap().ends_with("/team-new"), "{status:#}");
    space.kubectl(&["delete", "configmap", "team-data"]);
    let listing = format!("http://{}:8080/", pod.ip());
    eventually("the deleted one is gone", || (!curl(&[&listing])?.contains("team-data")).then_some(()));
    until_shows(&pod, 8080, "/team-new-new.json", "New");
}

#[test]
fn example_log_shipper() {
    let shipper = Example::apply("log-shipper", "shipper");
    let pod = shipper.pod();
    // One record, from a client of the Pod's, until it is there: syslog-ng sends when it likes.
    let ship = |text: &str| {
        let mut stream = TcpStream::connect((pod.ip().as_str(), 5514)).unwrap();
        writeln!(stream, "<12>Nov 24 12:00:00 here test: {text}").unwrap();
    };
    ship("first");
    until_shows(&pod, 8080, "/", "test test warning first");
    shipper.edit("environment", "live");
    pod.until("reloaded", |status| status["confirmed"]["sequence"] == 2);
    ship("second");
    until_shows(&pod, 8080, "/", "live test warning second");
    shipper.mistake(&pod, "level", "nonsense", "confirm");
    ship("third");
    until_shows(&pod, 8080, "/", "live test warning third");
}

#[test]
fn example_postgres() {
    let database = Example::apply("postgres", "database");
    let pod = database.pod();
    let until_is = |setting: &str, value: &str| {
        let show = format!("SHOW {setting}");
        eventually(&format!("{setting} is {value}"), || {
            let shown = pod.exec("postgres", &["psql", "-h", "/run/postgresql", "-Atc", &show]).ok()?;
            (shown.trim() == value).then_some(())
        });
    };
    until_is("work_mem", "4MB");
    database.edit("settings", "work_mem: 8MB\n");
    until_is("work_mem", "8MB");
    pod.until("confirmed", |status| status["confirmed"]["sequence"] == 2);
    database.mistake(&pod, "settings", "work_mem: banana\n", "confirm");
    until_is("work_mem", "8MB");
}

#[test]
fn example_own_program() {
    let greeter = Example::apply("own-program", "greeter");
    greeter.space.kubectl(&["rollout", "status", "deployment/greeter", "--timeout=120s"]);
    let pod = greeter.pod();
    until_shows(&pod, 8080, "/", "hello ***");
    greeter.edit("stars", "5");
    // Each replica takes it by itself.
    for pod in greeter.space.pods("app=greeter") {
        until_shows(&pod, 8080, "/", "hello *****");
    }
    greeter.mistake(&pod, "stars", "7", "reload");
    greeter.mistake(&pod, "stars", "many", "render");
    until_shows(&pod, 8080, "/", "hello *****");
    let told = greeter.space.kubectl(&["get", "events", "-o", "jsonpath={.items[*].reason}"]);
    for reason in ["ConfigReloaded", "ConfigRejected", "ConfigRolledBack"] {
        assert!(told.contains(reason), "no Event {reason}: {told}");
    }
}

#[test]
fn example_certificate() {
    let shop = Example::apply("certificate", "shop");
    let pod = shop.pod();
    let (url, address) = (format!("https://{}:8443/", pod.ip()), format!("{}:8443", pod.ip()));
    eventually("it serves", || (curl(&["-k", &url])? == "open").then_some(()));
    let folder = tempfile::tempdir().unwrap();
    let subject = || {
        let script =
            format!("openssl s_client -connect {address} </dev/null 2>/dev/null | openssl x509 -noout -subject");
        String::from_utf8(Command::new("sh").args(["-c", &script]).output().unwrap().stdout).unwrap()
    };
    let make = |name: &str| {
        let (key, crt) = (folder.path().join(format!("{name}.key")), folder.path().join(format!("{name}.crt")));
        let ended = Command::new("openssl")
            .args([
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:prime256v1",
                "-nodes",
                "-days",
                "90",
            ])
            .args([
                "-subj",
                &format!("/CN={name}.example"),
                "-keyout",
                key.to_str().unwrap(),
                "-out",
                crt.to_str().unwrap(),
            ])
            .output()
            .unwrap();
        assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
        [crt, key].map(|file| std::fs::read_to_string(file).unwrap())
    };
    let ([crt, key], [_, other]) = (make("renewed"), make("other"));
    shop.space.patch("secret", "shop-tls", &json!({"stringData": {"tls.crt": crt, "tls.key": key}}));
    eventually("the renewed certificate is served", || subject().contains("renewed.example").then_some(()));
    pod.until("confirmed", |status| status["confirmed"]["sequence"] == 2);
    // A key that does not belong to the certificate.
    shop.space.patch("secret", "shop-tls", &json!({"stringData": {"tls.key": other}}));
    assert_eq!(rejected(&pod)["quarantine"]["stage"], "confirm");
    assert!(subject().contains("renewed.example"));
    shop.space.patch("secret", "shop-tls", &json!({"stringData": {"tls.key": key}}));
    mended(&pod);
    shop.edit("greeting", "closed");
    eventually("the edit is served", || (curl(&["-k", &url])? == "closed").then_some(()));
}

#[test]
fn example_mounted_volume() {
    let notice = Example::apply("mounted-volume", "notice");
    let pod = notice.pod();
    let url = format!("http://{}:8080/", pod.ip());
    let until_says = |user: &str, text: &str| {
        eventually(&format!("{user} reads {text:?}"), || (curl(&["--user", user, &url])? == text).then_some(()));
    };
    until_says("alice:wonderland", "nothing new");
    assert_eq!(curl(&["--user", "alice:guessed", &url]), None);
    notice.edit("notice", "the library is closed");
    notice.space.patch("secret", "notice-users", &json!({"stringData": {"bob": "builder"}}));
    until_says("bob:builder", "the library is closed");
    notice.mistake(&pod, "notice", "$nonsense", "confirm");
    until_says("alice:wonderland", "the library is closed");
}

/// What has no image here is still taken by the API server, as it stands.
#[test]
fn manifests_beside_the_examples_are_valid() {
    let space = Space::new("dry");
    for folder in ["dashboards/grafana", "log-shipper/fluentd"] {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("examples").join(folder);
        space.kubectl(&["apply", "--dry-run=server", "-k", path.to_str().unwrap()]);
    }
}
