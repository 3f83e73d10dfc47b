//! Each of `examples/`, applied as it stands but for its images, edited with kubectl, and asked what it runs; and all
//! of it once more with Trimtab at 16Mi and a hundredth of a CPU. That of nginx is the README's quick start.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::json;

use super::support::example::{manifest, twice};
use super::support::node::eventually;
use super::support::pod::Pod;
use super::support::space::Space;

/// Runs a test on an example as it stands, and held tight.
fn tested(example: &str, label: &str, replicas: usize, test: impl Fn(&Space, &[Pod<'_>])) {
    twice(example, &manifest(example), &format!("app={label}"), replicas, test);
}

/// Waits until the newest inputs are refused at this stage, nothing is due, and what was good is in effect again.
fn until_refused(pod: &Pod<'_>, stage: &str) {
    pod.until("refused", |status| {
        let quarantine = &status["quarantine"];
        quarantine["stage"] == stage
            && quarantine["digest"] == status["observed"]["digest"]
            && status["debt"].is_null()
            && status["phase"] == "idle"
    });
}

/// No container was started twice.
fn undisturbed(pod: &Pod<'_>, containers: &[&str]) {
    for container in containers.iter().chain(&["trimtab"]) {
        assert_eq!(pod.restarts(container), 0, "{container}");
    }
}

/// Waits until an answer is as described.
fn until(pod: &Pod<'_>, port: u16, path: &str, expected: impl Fn(&str) -> bool) -> String {
    eventually(&format!("{}:{port}{path} answers so", pod.name()), || pod.get(port, path).filter(|body| expected(body)))
}

#[test]
fn haproxy_balances_as_it_is_edited() {
    tested("haproxy", "balancer", 1, |space, pods| {
        let pod = &pods[0];
        for server in ["blue", "green"] {
            until(pod, 8080, "/", |body| body == server);
        }
        space.edit("balancer", "servers", "- {name: green, address: '127.0.0.1:9002'}\n");
        pod.until("confirmed", |status| status["confirmed"]["sequence"] == 2);
        for _ in 0..10 {
            assert_eq!(pod.get(8080, "/").as_deref(), Some("green"));
        }
        space.edit("balancer", "balance", "nonsense");
        until_refused(pod, "confirm");
        assert_eq!(pod.get(8080, "/").as_deref(), Some("green"));
        undisturbed(pod, &["haproxy"]);
    });
}

#[test]
fn envoy_routes_as_it_is_edited() {
    tested("envoy", "gateway", 1, |space, pods| {
        let pod = &pods[0];
        pod.until_serves(8080, "/hello", "hello");
        pod.until_serves(8080, "/", "back");
        space.edit("gateway", "routes", "- {prefix: /hello, text: good evening}\n- {prefix: /, cluster: back}\n");
        pod.until_serves(8080, "/hello", "good evening");
        space.edit("gateway", "timeout", "nonsense");
        until_refused(pod, "confirm");
        pod.until_serves(8080, "/hello", "good evening");
        pod.until_serves(8080, "/", "back");
        undisturbed(pod, &["envoy"]);
    });
}

#[test]
fn prometheus_scrapes_as_it_is_edited() {
    tested("prometheus", "metrics", 1, |space, pods| {
        let pod = &pods[0];
        let runs = |interval: &str| {
            let text = format!("scrape_interval: {interval}");
            until(pod, 9090, "/api/v1/status/config", |body| body.contains(&text));
        };
        runs("15s");
        space.edit("metrics", "interval", "16s");
        runs("16s");
        space.edit("metrics", "interval", "nonsense");
        until_refused(pod, "reload");
        space.edit("metrics", "interval", "17s");
        runs("17s");
        // A rule that does not parse: other parts were taken into use before it was found.
        space.edit("metrics", "rules", "- {record: bad, expr: 'vector('}\n");
        until_refused(pod, "reload");
        runs("17s");
        undisturbed(pod, &["prometheus"]);
    });
}

#[test]
fn alertmanager_takes_a_configmap_and_a_secret() {
    tested("alertmanager", "alerts", 1, |space, pods| {
        let pod = &pods[0];
        let runs = |pod: &Pod<'_>, part: &str| until(pod, 9093, "/api/v2/status", |body| body.contains(part));
        runs(pod, "group_wait: 30s");
        space.edit("alerts", "group_wait", "31s");
        runs(pod, "group_wait: 31s");
        let before = pod.status().unwrap()["confirmed"]["digest"].clone();
        space.patch("secret", "alerts", &json!({"stringData": {"url": "http://127.0.0.1:9095/hook?token=another"}}));
        pod.until("confirmed", |status| {
            status["confirmed"]["digest"] == status["observed"]["digest"] && status["confirmed"]["digest"] != before
        });
        space.edit("alerts", "receiver", "nonsense");
        until_refused(pod, "reload");
        runs(pod, "group_wait: 31s");
        assert!(!pod.log("trimtab").contains("another"));
        undisturbed(pod, &["alertmanager"]);
    });
}

#[test]
fn dashboards_come_and_go_with_their_configmaps() {
    tested("dashboards", "dashboards", 1, |space, pods| {
        let pod = &pods[0];
        let lists = |there: &[&str], gone: &[&str]| {
            until(pod, 8080, "/", |body| {
                there.iter().all(|name| body.contains(name)) && !gone.iter().any(|name| body.contains(name))
            });
        };
        lists(&["team-data-queries.json", "team-web-latency.json", "team-web-requests.json"], &[]);
        let bring = |name: &str, text: &str| {
            space.kubectl(&["create", "configmap", name, &format!("--from-literal=new.json={text}")]);
            space.kubectl(&["label", "configmap", name, "grafana_dashboard=1"]);
        };
        bring("team-bad", "{");
        bring("team-new", r#"{"title": "New"}"#);
        space.kubectl(&["delete", "configmap", "team-data"]);
        lists(&["team-new-new.json", "team-web-requests.json"], &["team-data", "team-bad"]);
        pod.until("one is held back", |status| status["heldBack"][0]["source"].to_string().contains("team-bad"));
        space.edit("team-bad", "new.json", r#"{"title": "Corrected"}"#);
        lists(&["team-bad-new.json"], &[]);
        undisturbed(pod, &["server"]);
    });
}

#[test]
fn syslog_ng_sends_as_it_is_edited() {
    tested("log-shipper", "shipper", 1, |space, pods| {
        let pod = &pods[0];
        let log = |severity: u8, text: &str| {
            let mut stream = eventually("syslog-ng listens", || TcpStream::connect((pod.ip(), 5514)).ok());
            // Facility user is 1.
            writeln!(stream, "<{}>Jan  1 00:00:00 host app: {text}", 8 + severity).unwrap();
        };
        log(6, "info-before");
        log(5, "notice-before");
        until(pod, 8080, "/", |body| body.contains("test app notice notice-before"));
        assert!(!pod.get(8080, "/").unwrap().contains("info-before"));

        let edit = json!({"data": {"level": "info", "environment": "live"}});
        space.patch("configmap", "shipper", &edit);
        pod.until("confirmed", |status| status["confirmed"]["sequence"] == 2);
        log(6, "info-after");
        until(pod, 8080, "/", |body| body.contains("live app info info-after"));

        space.edit("shipper", "level", "nonsense");
        until_refused(pod, "confirm");
        log(6, "info-still");
        until(pod, 8080, "/", |body| body.contains("live app info info-still"));
        undisturbed(pod, &["syslog-ng", "sink"]);
    });
}

#[test]
fn postgres_follows_what_it_can_and_is_taken_back_from_what_it_cannot() {
    tested("postgres", "database", 1, |space, pods| {
        let pod = &pods[0];
        let shows = |setting: &str, value: &str| {
            let query = format!("SHOW {setting}");
            eventually(&format!("{setting} is {value}"), || {
                let answer = pod.exec("postgres", &["psql", "-h", "/run/postgresql", "-Atc", &query]).ok()?;
                (answer.trim() == value).then_some(())
            });
        };
        shows("work_mem", "4MB");
        space.edit("database", "settings", "{work_mem: 8MB}");
        shows("work_mem", "8MB");
        // One value is refused, and the other one taken: the rollback takes it back. The second needs a restart.
        for bad in ["{work_mem: banana, statement_timeout: 7s}", "{work_mem: 8MB, max_connections: 50}"] {
            space.edit("database", "settings", bad);
            until_refused(pod, "confirm");
            shows("work_mem", "8MB");
            shows("statement_timeout", "0");
        }
        space.edit("database", "settings", "{work_mem: 9MB}");
        shows("work_mem", "9MB");
        space.edit("database", "clients", "nonsense");
        until_refused(pod, "confirm");
        undisturbed(pod, &["postgres", "hook"]);
    });
}

#[test]
fn own_program_is_notified_by_its_hook() {
    tested("own-program", "greeter", 2, |space, pods| {
        let greets = |text: &str| pods.iter().for_each(|pod| pod.until_serves(8080, "/", text));
        greets("hello ***\n");
        space.edit("greeter", "stars", "5");
        greets("hello *****\n");
        space.edit("greeter", "stars", "7");
        for pod in pods {
            until_refused(pod, "reload");
        }
        greets("hello *****\n");
        for reason in ["ConfigReloaded", "ConfigRejected", "ConfigRolledBack"] {
            eventually(reason, || space.kubectl(&["get", "events"]).contains(reason).then_some(()));
        }
        space.edit("greeter", "stars", "1");
        greets("hello *\n");
        for pod in pods {
            undisturbed(pod, &["greeter"]);
        }
    });
}

/// A key and its certificate for a name.
pub fn certificate(name: &str) -> (String, String) {
    let mut openssl = Command::new("openssl");
    openssl.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1"]);
    openssl.args(["-subj", &format!("/CN={name}"), "-keyout", "-", "-out", "-"]);
    let output = openssl.stderr(Stdio::null()).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let (key, certificate) = text.split_at(text.find("-----BEGIN CERTIFICATE").unwrap());
    (key.to_owned(), certificate.to_owned())
}

#[test]
fn certificate_is_renewed_as_a_pair() {
    tested("certificate", "shop", 1, |space, pods| {
        let pod = &pods[0];
        let serves = |name: &str| {
            let address = format!("{}:8443", pod.ip());
            eventually(&format!("the certificate is for {name}"), || {
                let mut openssl = Command::new("openssl");
                openssl.args(["s_client", "-connect", &address]).stdin(Stdio::null());
                let output = openssl.stderr(Stdio::null()).output().unwrap();
                String::from_utf8_lossy(&output.stdout).contains(&format!("subject=CN = {name}\n")).then_some(())
            });
        };
        serves("shop.example");
        let (key, crt) = certificate("renewed.example");
        let stranger = certificate("stranger.example").1;
        space.patch("secret", "shop-tls", &json!({"stringData": {"tls.key": key, "tls.crt": crt}}));
        serves("renewed.example");
        space.patch("secret", "shop-tls", &json!({"stringData": {"tls.crt": stranger}}));
        until_refused(pod, "confirm");
        serves("renewed.example");
        undisturbed(pod, &["nginx"]);
    });
}

/// The body that nginx answers to this user, `name:password` in base64.
fn as_user(pod: &Pod<'_>, user: &str) -> Option<String> {
    let mut stream = TcpStream::connect((pod.ip(), 8080)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
    write!(stream, "GET / HTTP/1.0\r\nAuthorization: Basic {user}\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    head.contains(" 200 ").then(|| body.to_owned())
}

#[test]
fn mounted_volume_is_enough() {
    const ALICE: &str = "YWxpY2U6d29uZGVybGFuZA==";
    const BOB: &str = "Ym9iOmJ1aWxkZXI=";
    tested("mounted-volume", "notice", 1, |space, pods| {
        let pod = &pods[0];
        assert_eq!(as_user(pod, ALICE).as_deref(), Some("nothing new"));
        assert_eq!(as_user(pod, BOB), None);
        let token = pod.object()["spec"]["volumes"].to_string().contains("serviceAccountToken");
        assert!(!token, "a token is mounted");
        space.edit("notice", "notice", "the library is closed");
        space.patch("secret", "notice-users", &json!({"stringData": {"bob": "builder"}}));
        eventually("bob reads the notice", || {
            (as_user(pod, BOB).as_deref() == Some("the library is closed")).then_some(())
        });
        space.edit("notice", "notice", "$nonsense");
        until_refused(pod, "confirm");
        assert_eq!(as_user(pod, ALICE).as_deref(), Some("the library is closed"));
        undisturbed(pod, &["nginx"]);
    });
}
