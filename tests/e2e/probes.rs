//! The probes that `trimtab inject` writes where `--listen` has TLS, client certificates or users: the kubelet makes them,
//! and they hold the main container back as long as nothing is published.

use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::examples::certificate;
use super::support::app::{PORT, configmap, grant, pod};
use super::support::node::eventually;
use super::support::space::Space;

const FLAGS: [&str; 4] = ["--configmap=web", "--output=/shared/conf", "--signal=HUP", "--process-args=/program/app.py"];
const TLS: [&str; 2] = ["--listen-cert-file=/listen/tls.crt", "--listen-key-file=/listen/tls.key"];
const CLIENTS: [&str; 3] = [TLS[0], TLS[1], "--listen-client-ca-file=/listen/tls.crt"];
const USERS: [&str; 1] = ["--listen-users-file=/listen/users.yaml"];

/// What `inject` makes of a Pod that has no sidecar yet.
fn injected(name: &str, flags: &[&str]) -> String {
    let mut object = pod(name, &[]);
    let spec = object["spec"].as_object_mut().unwrap();
    spec.remove("initContainers");
    spec["containers"][0].as_object_mut().unwrap().remove("imagePullPolicy");
    let mut command = Command::new(env!("CARGO_BIN_EXE_trimtab"));
    command.args(["inject", "--mount=secret/listen:/listen", "--"]).args(FLAGS).args(flags);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let text = serde_saphyr::to_string(&object).unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{name}\n{text}");
    String::from_utf8(output.stdout).unwrap()
}

/// What the kubelet says of a Pod's probes that fail.
fn failed(space: &Space, name: &str) -> String {
    let events = space.get("events");
    let events = events["items"].as_array().unwrap();
    let own = events.iter().filter(|event| event["involvedObject"]["name"] == name && event["reason"] == "Unhealthy");
    own.filter_map(|event| event["message"].as_str()).collect::<Vec<_>>().join("\n")
}

#[test]
fn injected_probes_pass_guarded_listeners_and_only_once_there_is_a_configuration() {
    let space = Space::new("probes");
    grant(&space);
    space.create(&configmap("program", "app.py", include_str!("support/app.py")));
    let (key, certificate) = certificate("listen.example");
    let users = format!("basic_auth_users: {{prometheus: {}}}\n", bcrypt::hash("password", 4).unwrap());
    space.create(&json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "listen"},
        "stringData": {"tls.key": key, "tls.crt": certificate, "users.yaml": users},
    }));
    let exec = json!({"command": ["/trimtab", "status"]});
    let variants = [("tls", &TLS[..], &Value::Null), ("clients", &CLIENTS, &exec), ("users", &USERS, &exec)];
    for (name, flags, exec) in variants {
        space.apply(&injected(name, flags));
        let probe = space.pod(name).object()["spec"]["initContainers"][0]["startupProbe"].clone();
        let scheme = if exec.is_null() { json!("HTTPS") } else { Value::Null };
        assert_eq!((&probe["exec"], &probe["httpGet"]["scheme"]), (exec, &scheme), "{name}");
    }
    // The ConfigMap is not there: the probes are answered, and the answer is no.
    for (name, _, exec) in variants {
        let says = if exec.is_null() { "statuscode: 503" } else { "does not exist" };
        eventually(&format!("{name}: the kubelet hears that it is not ready"), || {
            failed(&space, name).contains(says).then_some(())
        });
        assert!(space.pod(name).container("main").unwrap()["state"]["waiting"].is_object(), "{name}");
    }
    space.create(&configmap("web", "app.txt", "one"));
    for (name, ..) in variants {
        let pod = space.pod(name).until_ready();
        pod.until_serves(PORT, "/", "one");
        assert!(pod.get(9533, "/readyz").is_none(), "{name}: whoever asks without what it takes is let in");
        assert_eq!(pod.restarts("main") + pod.restarts("trimtab"), 0, "{name}");
    }
}
