//! `trimtab inject`, `uninject` and `rbac`: by their pipes, on a real API server.

use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::{Api, PostParams};
use serde_json::{Value, json};

use super::examples::{create, kubectl, restricted};
use super::support::apiserver::{ADMIN, ApiServer, kubeconfig};
use super::support::sidecar::{output_of, run, trimtab};

/// Runs it with this on its standard input.
pub fn piped(command: &mut Command, input: &str) -> Output {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            // What refuses its flags reads nothing.
            let _ = stdin.write_all(input.as_bytes());
        });
        child.wait_with_output().unwrap()
    })
}

/// What it says, once it ends well.
#[track_caller]
pub fn said(output: Output) -> String {
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    assert!(output.status.success(), "{}{}", text(output.stdout), text(output.stderr));
    text(output.stdout)
}

const DEPLOYMENT: &str = "\
apiVersion: apps/v1
kind: Deployment
metadata:
  name: web   # theirs
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      serviceAccountName: web
      securityContext: {runAsNonRoot: true, runAsUser: 101, fsGroup: 101, seccompProfile: {type: RuntimeDefault}}
      containers:
        - name: nginx
          image: nginx
          securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
";

const INJECT: [&str; 3] = ["inject", "--mount=configmap/web-templates:/templates", "--"];
/// An nginx's sidecar.
pub const FLAGS: [&str; 6] = [
    "--configmap=web",
    "--template=/templates",
    "--output=/shared/conf",
    "--signal=HUP",
    "--process=nginx",
    "--confirm-workers",
];

fn inject(text: &str) -> Output {
    piped(trimtab().args(INJECT).args(FLAGS), text)
}

/// The Pods are such as a restricted namespace takes, and the Role allows what the sidecar asks for.
#[tokio::test]
async fn pods_with_the_sidecar_are_restricted_and_its_role_suffices() {
    let server = ApiServer::shared().await;
    let client = server.client(ADMIN).await;
    let namespace = restricted(&server).await;
    let output = inject(DEPLOYMENT);
    let advice = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(advice.contains(r#"resourceNames: ["web"]"#), "{advice}");
    let text = said(output);
    let deployment: Value = serde_saphyr::from_str(&text).unwrap();
    assert_eq!(create(&client, &namespace, false, deployment.clone()).await, Ok(()));
    let mut pod = deployment["spec"]["template"].clone();
    pod["apiVersion"] = "v1".into();
    pod["kind"] = "Pod".into();
    pod["metadata"]["name"] = "one-of-them".into();
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "web"}});
    assert_eq!(create(&client, &namespace, false, account).await, Ok(()));
    assert_eq!(create(&client, &namespace, true, pod).await, Ok(()));

    // A namespace beside it, for a ClusterRole and a Role elsewhere.
    let elsewhere = restricted(&server).await;
    let data = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "web"}, "data": {"a": "b"}});
    for place in [&namespace, &elsewhere] {
        assert_eq!(create(&client, place, false, data.clone()).await, Ok(()));
    }
    let sources = ["--configmap=web".to_owned(), format!("--configmap={elsewhere}/web")];
    let mut rbac = trimtab();
    rbac.args(["rbac", "--service-account=web", "--name=web-trimtab"]).arg(format!("--namespace={namespace}"));
    let roles = said(output_of(rbac.arg("--").args(&sources).args(["--selector=a=b", "--output=/shared/conf"])));
    let roles: Vec<Value> = serde_saphyr::from_multiple(&roles).unwrap();
    assert_eq!(roles.len(), 4);
    for role in roles {
        let place = role["metadata"]["namespace"].as_str().unwrap().to_owned();
        assert_eq!(create(&client, &place, false, role).await, Ok(()));
    }
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), &namespace);
    let request = TokenRequest { spec: Some(TokenRequestSpec::default()), ..TokenRequest::default() };
    let token = accounts.create_token_request("web", &PostParams::default(), &request).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("kubeconfig");
    let user = json!({"token": token.status.unwrap().token});
    std::fs::write(&config, kubeconfig(server.port(), &server.ca(), &user)).unwrap();
    let mut check = trimtab();
    check.arg("check").args(&sources).args(["--selector=a=b", "--listen=off"]);
    check.arg(format!("--output={}", dir.path().join("conf").display())).arg(format!("--namespace={namespace}"));
    check.arg(format!("--kubeconfig={}", config.display()));
    let found = tokio::task::spawn_blocking(move || output_of(&mut check)).await.unwrap();
    let found = said(found);
    assert!(!found.contains("may not"), "{found}");
}

/// What people do: with what the API server made of it, and back.
#[tokio::test]
async fn deployment_that_is_applied_gets_the_sidecar_keeps_it_and_loses_it() {
    let server = ApiServer::shared().await;
    let namespace = restricted(&server).await;
    let config = server.kubeconfig(ADMIN);
    let kubectl = |args: &[&str], input: &str| {
        let mut command = Command::new(kubectl());
        command.arg("--kubeconfig").arg(&config).args(["--namespace", &namespace]).args(args);
        said(piped(&mut command, input))
    };
    let apply = |text: &str| kubectl(&["apply", "-f", "-"], text);
    let get = || kubectl(&["get", "deployment/web", "-o", "yaml"], "");
    let spec = || -> Value {
        let text = kubectl(&["get", "deployment/web", "-o", "json"], "");
        serde_json::from_str::<Value>(&text).unwrap()["spec"]["template"].clone()
    };
    apply(DEPLOYMENT);
    let before = spec();
    apply(&said(inject(&get())));
    let with = spec();
    assert_eq!(with["spec"]["initContainers"][0]["args"], json!(FLAGS));
    assert_eq!(with["spec"]["shareProcessNamespace"], true);
    assert_eq!(with["spec"]["volumes"].as_array().unwrap().len(), 2);
    apply(&said(inject(&get())));
    assert_eq!(spec(), with, "twice is once");
    apply(&said(piped(trimtab().arg("uninject"), &get())));
    assert_eq!(spec(), before);
}

#[test]
fn wrong_flags_are_refused_when_the_manifest_is_made() {
    for (args, code, expected) in [
        (&["inject", "--", "--configmap=web", "--output=/a/b", "--sginal=HUP"][..], 64, "--signal"),
        (&["inject", "--", "--configmap=web", "--output=/a/b", "--signal=HUP"], 64, "--process"),
        (&["inject", "--", "status"], 64, "no subcommand"),
        (&["inject"], 64, "<FLAGS>"),
        (&["inject", "--mount=x:/y", "--", "--watch-dir=/y", "--output=/a/b"], 64, "configmap/NAME"),
        (&["inject", "--", "--watch-dir=/y", "--output=/a/b"], 65, "deployment/web: --watch-dir /y: no volume"),
        (
            &[
                "inject",
                "--mount=secret/x:/y",
                "--",
                "--watch-dir=/y",
                "--reload-url=unix:///run/a.sock:/r",
                "--output=/a/b",
            ],
            65,
            "--reload-url /run: no volume",
        ),
        (&["inject", "--workload=x", "--", "--watch-dir=/y", "--output=/a/b"], 65, "which has deployment/web"),
        (&["rbac", "--", "--all-namespaces", "--selector=a", "--output=/a/b"], 64, "--namespace is needed"),
    ] {
        // Variables are the sidecar's, not of whoever writes its manifest.
        let output = piped(trimtab().env("TRIMTAB_PROCESS", "x").args(args), DEPLOYMENT);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{args:?}: {text}");
        assert!(text.contains(expected), "{args:?}: {text}");
        assert_eq!(output.stdout, b"", "{args:?}");
    }
}

#[test]
fn a_role_needs_no_output() {
    for flags in
        [&["--configmap=web"][..], &["--configmap=web", "--observe-dir=/x"], &["--configmap=web", "--output=/y"]]
    {
        let (code, said) = run(trimtab().args(["rbac", "--"]).args(flags));
        assert!(code == Some(0) && said.contains("resourceNames") && said.contains("web"), "{flags:?}: {said}");
    }
    let (code, said) = run(trimtab().args(["rbac", "--", "--observe-dir=/x"]));
    assert!(code == Some(0) && said.contains("no permission is needed"), "{said}");
}
