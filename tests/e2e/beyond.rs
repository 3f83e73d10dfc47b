//! `examples/blocklist`: a list of 50 MB from an object store, by a role that the Pod's own token gets, in a real HAProxy.

use std::fs;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use super::support::cgroup::Cgroup;
use super::support::moto::Moto;
use super::support::node::{eventually, kubectl, kubectl_with};
use super::support::pod::Pod;
use super::support::space::Space;
use super::support::table;

/// The node's own address, which its Pods reach.
const NODE: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const PORT: u16 = 5000;
const LINES: u32 = 365_000;
const TOKENS: &str = "/var/run/secrets/eks.amazonaws.com/serviceaccount";

/// The example as it stands, with what EKS' webhook (amazon-eks-pod-identity-webhook) adds to each container of a Pod whose
/// service account has the annotation, and for Trimtab where the two services are in the place of AWS'.
fn manifest(folder: &Path, role: &str, services: &str) -> String {
    let variable = |name: &str, value: &str| json!({"name": name, "value": value});
    let token = format!("{TOKENS}/token");
    let role = [
        variable("AWS_STS_REGIONAL_ENDPOINTS", "regional"),
        variable("AWS_DEFAULT_REGION", "eu-central-1"),
        variable("AWS_REGION", "eu-central-1"),
        variable("AWS_ROLE_ARN", role),
        variable("AWS_WEB_IDENTITY_TOKEN_FILE", &token),
    ];
    let services = ["AWS_ENDPOINT_URL_STS", "AWS_ENDPOINT_URL_S3"].map(|name| variable(name, services));
    let container = |name: &str, env: &[Value]| {
        let mount = json!({"name": "aws-iam-token", "mountPath": TOKENS, "readOnly": true});
        json!({"name": name, "env": env, "volumeMounts": [mount]})
    };
    let volume = json!({"name": "aws-iam-token", "projected": {"defaultMode": 420, "sources": [
        {"serviceAccountToken": {"audience": "sts.amazonaws.com", "expirationSeconds": 86400, "path": "token"}},
    ]}});
    let spec = json!({
        "initContainers": [container("trimtab", &[&role[..], &services].concat())],
        "containers": [container("haproxy", &role)],
        "volumes": [volume],
    });
    let patch = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "edge"},
        "spec": {"template": {"spec": spec}},
    });
    // A base is named by a relative path.
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/blocklist");
    let up = "../".repeat(folder.canonicalize().unwrap().components().count() - 1);
    let overlay = json!({
        "resources": [format!("{up}{}", example.strip_prefix("/").unwrap().display())],
        "patches": [{"patch": patch.to_string()}],
    });
    fs::write(folder.join("kustomization.yaml"), overlay.to_string()).unwrap();
    kubectl(&["kustomize", folder.to_str().unwrap()])
}

/// The bundles, of which the list is written once.
struct List {
    folder: PathBuf,
}

impl List {
    fn new(folder: &Path) -> Self {
        let list = Self { folder: folder.join("list") };
        fs::create_dir(&list.folder).unwrap();
        let mut text = Vec::new();
        for case in 0..LINES {
            let [_, high, middle, low] = case.to_be_bytes();
            let what = "an open proxy that guesses passwords and sends spam, see https://lists.example.net/cases";
            writeln!(text, "11.{high}.{middle}.{low} case {case:07} of 2026-11-24: {what}/{case:07}").unwrap();
        }
        assert!((48_000_000..52_000_000).contains(&text.len()), "{}", text.len());
        fs::write(list.folder.join("blocked.map"), text).unwrap();
        list
    }

    /// A bundle of the list with one more line.
    fn with(&self, line: &str) -> PathBuf {
        let path = self.folder.join("blocked.map");
        let (file, len) = (fs::File::options().append(true).open(&path).unwrap(), fs::metadata(path).unwrap().len());
        writeln!(&file, "{line}").unwrap();
        let bundle = self.folder.with_file_name("edge.tar.gz");
        let mut tar = Command::new("tar");
        tar.args(["-I", "gzip -1", "-cf"]).arg(&bundle).arg("-C").arg(&self.folder).arg(".");
        assert!(tar.status().unwrap().success());
        file.set_len(len).unwrap();
        bundle
    }
}

/// Whose token it is, for this audience, by the API server that had it made.
fn owner(token: &str, audience: &str) -> Value {
    let review = json!({
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "metadata": {"name": "token"},
        "spec": {"token": token, "audiences": [audience]},
    });
    let output = kubectl_with(&["create", "-f", "-", "-o", "json"], &review.to_string());
    serde_json::from_slice::<Value>(&output.stdout).unwrap()["status"]["user"]["username"].clone()
}

/// The list says this of an address.
fn says(pod: &Pod<'_>, address: &str, expected: &str) {
    let path = format!("/{address}");
    let mut last = None;
    eventually(&format!("the list says {expected:?} of {address}"), || {
        last = pod.get(8080, &path);
        last.as_deref().is_some_and(|text| text.contains(expected)).then_some(())
    });
}

#[test]
fn list_of_50_mb_comes_by_the_pods_role_is_replaced_and_is_taken_back_when_it_is_bad() {
    let folder = tempfile::tempdir().unwrap();
    let list = List::new(folder.path());
    let moto = Moto::start(NODE, PORT);
    let role = moto.role("edge", "s3:GetObject");
    moto.put("edge.tar.gz", &list.with("203.0.113.7 first"));
    moto.guard();
    let space = Space::new("blocklist");
    space.apply(&manifest(folder.path(), &role, moto.url()));
    let pod = space.pods_when_there("app=edge", 1).remove(0).until_ready();
    let pod = &pod;
    says(pod, "203.0.113.7", "first");
    says(pod, "11.0.0.7", "case 0000007");
    says(pod, "9.9.9.9", "not listed");
    let tokens = moto.tokens();
    assert_eq!(tokens.len(), 1, "the role is asked for once");
    assert_eq!(owner(&tokens[0], "sts.amazonaws.com"), format!("system:serviceaccount:{}:edge", space.name()));
    assert!(owner(&tokens[0], "another").is_null(), "it is for the token service alone");

    let put = |bundle: &Path| {
        moto.put("edge.tar.gz", bundle);
        pod.exec("trimtab", &["/trimtab", "retry"]).unwrap();
    };
    put(&list.with("203.0.113.7 second"));
    says(pod, "203.0.113.7", "second");
    pod.until("confirmed", |status| status["confirmed"]["sequence"] == 2 && status["phase"] == "idle");

    // Half of a bundle.
    let half = list.with("203.0.113.7 half");
    let bytes = fs::read(&half).unwrap();
    fs::write(&half, &bytes[..bytes.len() / 2]).unwrap();
    put(&half);
    pod.until("refused", |status| status["sources"].to_string().contains("breaks off"));
    says(pod, "203.0.113.7", "second");

    // A whole one, of which HAProxy refuses a line.
    put(&list.with("nobody bad"));
    pod.until("rolled back", |status| {
        let quarantine = &status["quarantine"];
        quarantine["stage"] == "confirm" && status["phase"] == "idle" && status["debt"].is_null()
    });
    says(pod, "203.0.113.7", "second");
    says(pod, "11.0.0.7", "case 0000007");

    assert_eq!(moto.tokens().len(), 1, "the role's credentials are kept until they end");
    for container in ["trimtab", "haproxy"] {
        assert_eq!(pod.restarts(container), 0, "{container}");
    }
    let log = pod.log("trimtab");
    assert!(!log.contains("ASIA") && !log.contains(&tokens[0]), "{log}");
    let head = ["", "peak", "throttled periods"].map(str::to_owned).to_vec();
    let row = [vec!["at 32Mi".to_owned()], Cgroup::of(pod, "trimtab").cells().into()].concat();
    table::print("Trimtab's cgroup beside blocklist (the page cache counts)", &[head, row]);
}
