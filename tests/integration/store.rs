//! `--watch-url s3://…`: a real S3 store (versitygw), and what stands in its way.

use std::fs;
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use super::support::child::Running;
use super::support::cloud::Cloud;
use super::support::hook::Hook;
use super::support::moto::Moto;
use super::support::port::free_port;
use super::support::scene::Scene;
use super::support::sidecar::{Sidecar, eventually, output_of, run, trimtab};

const KEY: &str = "AKIDCANARY";
const SECRET: &str = "canary+secret/key";

/// A versitygw with a bucket `web`.
pub(super) struct Store {
    // It ends before its folder goes.
    _running: Running,
    scene: Scene,
    pub(super) port: u16,
}

impl Store {
    pub(super) fn start() -> Self {
        let (scene, port) = (Scene::new(), free_port());
        fs::create_dir_all(scene.at("data/web")).unwrap();
        let tools =
            std::env::var("TRIMTAB_TEST_VERSITYGW").expect("TRIMTAB_TEST_VERSITYGW is not set: run `make test`");
        let mut command = Command::new(Path::new(&tools).join("versitygw"));
        command.args(["--port", &format!("127.0.0.1:{port}"), "posix", &scene.text("data")]);
        command.env("ROOT_ACCESS_KEY", KEY).env("ROOT_SECRET_KEY", SECRET);
        let running = serving(command, &scene, port);
        Self { scene, port, _running: running }
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    fn curl(&self, key: &str, flags: &[&str]) {
        let mut command = Command::new("curl");
        command.args(["-sS", "--fail", "--aws-sigv4", "aws:amz:us-east-1:s3", "--user", &format!("{KEY}:{SECRET}")]);
        command.args(["-H", "x-amz-content-sha256: UNSIGNED-PAYLOAD"]).args(flags);
        let done = command.arg(format!("{}/web/{key}", self.url())).output().unwrap();
        assert!(done.status.success(), "{done:?}");
    }

    pub(super) fn put(&self, key: &str, content: impl AsRef<[u8]>) {
        fs::write(self.scene.at("new"), content).unwrap();
        self.curl(key, &["-T", &self.scene.text("new")]);
    }

    fn delete(&self, key: &str) {
        self.curl(key, &["-X", "DELETE"]);
    }

    /// The requests for an object so far, as their statuses.
    pub(super) fn answers(&self, path: &str) -> Vec<String> {
        let log = fs::read_to_string(self.scene.at("store.log")).unwrap_or_default();
        let lines = log.lines().filter(|line| line.contains(&format!("| GET | {path} ")));
        lines.filter_map(|line| Some(line.split('|').nth(2)?.trim().to_owned())).collect()
    }

    pub(super) fn environment(&self) -> [(&'static str, String); 3] {
        [
            ("AWS_ENDPOINT_URL", self.url()),
            ("AWS_ACCESS_KEY_ID", KEY.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", SECRET.to_owned()),
        ]
    }
}

/// A store's program, once it serves; what it says is in `store.log`.
pub(super) fn serving(mut command: Command, scene: &Scene, port: u16) -> Running {
    let log = fs::File::create(scene.at("store.log")).unwrap();
    command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
    let running = Running(command.spawn().unwrap());
    eventually("the store serves", || TcpStream::connect(("127.0.0.1", port)).ok());
    running
}

/// A bundle of one file.
pub(super) fn packed(scene: &Scene, name: &str, content: &str) -> Vec<u8> {
    let folder = scene.at("packed");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join(name), content).unwrap();
    let tar = output_of(Command::new("tar").arg("-czC").arg(folder).arg("."));
    assert!(tar.status.success(), "{tar:?}");
    tar.stdout
}

pub(super) fn start(scene: &Scene, environment: &[(&str, String)], flags: &[&str]) -> Sidecar {
    let environment: Vec<_> = environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let flags = [flags, &["--url-poll", "100ms", "--debounce", "10ms"]].concat();
    Sidecar::start_with(&scene.at("log"), &environment, scene.flags(&flags))
}

pub(super) fn source(status: &Value) -> String {
    status["sources"].to_string()
}

pub(super) fn published(scene: &Scene, path: &str, content: Option<&str>) {
    eventually(&format!("{path} is {content:?}"), || (scene.published(path).as_deref() == content).then_some(()));
}

pub(super) fn nothing_secret(sidecar: &Sidecar) {
    let said = format!("{}{}", sidecar.log(), sidecar.status());
    assert!(!said.contains(KEY) && !said.contains(SECRET) && !said.contains("Signature"), "{said}");
}

#[test]
fn object_and_bundle_of_a_real_store_are_published_and_cost_nothing_while_they_stay() {
    let store = Store::start();
    store.put("geo%20ip/list.txt", "1");
    store.put("web.tar.gz", packed(&store.scene, "top.conf", "packed"));
    let scene = Scene::new();
    let flags = ["--watch-url", "geo=s3://web/geo ip/list.txt", "--watch-url", "s3://web/web.tar.gz"];
    let sidecar = start(&scene, &store.environment(), &flags);
    published(&scene, "list.txt", Some("1"));
    published(&scene, "top.conf", Some("packed"));
    sidecar.until_idle();
    let path = "/web/geo ip/list.txt";
    eventually("unchanged, it is not sent", || {
        (store.answers(path).iter().filter(|status| *status == "304").count() >= 2).then_some(())
    });
    assert_eq!(store.answers(path).iter().filter(|status| *status == "200").count(), 1, "{:?}", store.answers(path));
    store.put("geo%20ip/list.txt", "2");
    published(&scene, "list.txt", Some("2"));
    store.delete("geo%20ip/list.txt");
    sidecar.until("its absence is reported", |status| source(status).contains("--on-delete keep"));
    assert_eq!(scene.published("list.txt").as_deref(), Some("2"));
    nothing_secret(&sidecar);

    let environment = store.environment();
    let environment = environment.iter().map(|(name, value)| (*name, value.as_str()));
    let output = scene.text("once");
    let once = ["--once", "--watch-url", "s3://web/web.tar.gz", "--output", &output];
    let (code, said) = run(trimtab().args(once).envs(environment.clone()));
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(fs::read_to_string(Path::new(&output).join("top.conf")).unwrap(), "packed");
    let check = ["check", "--watch-url", "s3://web/web.tar.gz", "--output", &output];
    let (code, said) = run(trimtab().args(check).envs(environment));
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("in 1 keys"), "{said}");
}

#[test]
fn what_was_confirmed_is_kept_in_a_real_store_once() {
    let store = Store::start();
    for replica in 1..=2 {
        let scene = Scene::new();
        fs::create_dir(scene.at("in")).unwrap();
        fs::write(scene.at("in/a.conf"), "1").unwrap();
        let sidecar =
            start(&scene, &store.environment(), &["--watch-dir", &scene.text("in"), "--archive", "s3://web/kept/web"]);
        let archived = sidecar.until("it is archived", |status| status["archive"]["archived"]["sequence"] == 1);
        let name = archived["archive"]["archived"]["name"].as_str().unwrap().to_owned();
        let kept = fs::read_dir(store.scene.at("data/web/kept/web")).unwrap();
        let mut kept: Vec<_> = kept.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        kept.sort_unstable();
        let mut expected = [name, "latest.tar.gz".to_owned()];
        expected.sort_unstable();
        assert_eq!(kept, expected, "replica {replica}");
        nothing_secret(&sidecar);
    }
    let log = fs::read_to_string(store.scene.at("store.log")).unwrap();
    let puts: Vec<_> = log.lines().filter(|line| line.contains("| PUT | /web/kept/")).collect();
    let statuses: Vec<_> = puts.iter().map(|line| line.split('|').nth(2).unwrap().trim()).collect();
    assert_eq!(statuses, ["200", "200", "412", "200"], "{puts:?}");
}

#[test]
fn what_a_real_store_refuses_is_said_without_its_words() {
    let store = Store::start();
    store.put("list.txt", "1");
    let scene = Scene::new();
    let look = |url: &str, changed: &[(&str, &str)], flags: &[&str]| {
        let mut command = trimtab();
        command.args(["check", "--watch-url", url, "--output", &scene.text("conf")]).args(flags);
        command.envs(store.environment()).envs(changed.iter().copied());
        let (code, said) = run(&mut command);
        assert!(!said.contains(KEY) && !said.contains(SECRET) && !said.contains("StringToSign"), "{said}");
        (code, said)
    };
    assert_eq!(look("s3://web/list.txt", &[], &[]).0, Some(0));
    for (url, changed, flags, words) in [
        (
            "s3://web/list.txt",
            &[("AWS_SECRET_ACCESS_KEY", "wrong-canary")][..],
            &[][..],
            "403 SignatureDoesNotMatch (request ",
        ),
        ("s3://web/list.txt", &[("AWS_ACCESS_KEY_ID", "wrong")], &[], "it does not know the access key"),
        ("s3://nobucket/list.txt", &[], &[], "404 NoSuchBucket (request "),
        ("s3://web/list.txt", &[], &["--url-anonymous"], "403 AccessDenied (request "),
        ("s3://web/none.txt", &[], &[], "answers 404: that nothing is there"),
        ("s3://web/list.txt", &[("AWS_ACCESS_KEY_ID", "")], &[], "AWS_ACCESS_KEY_ID is not"),
        (
            "s3://web/list.txt",
            &[("AWS_ACCESS_KEY_ID", ""), ("AWS_SECRET_ACCESS_KEY", "")],
            &[],
            "AWS_WEB_IDENTITY_TOKEN_FILE (IRSA)",
        ),
    ] {
        let (code, said) = look(url, changed, flags);
        assert!(code != Some(0) && said.contains(words) && !said.contains("canary"), "{words}: {said}");
    }
    let faketime = std::env::var("TRIMTAB_TEST_FAKETIME").expect("TRIMTAB_TEST_FAKETIME is not set: run `make test`");
    let (_, said) = look("s3://web/list.txt", &[("LD_PRELOAD", &faketime), ("FAKETIME", "+2h")], &[]);
    assert!(said.contains("403 RequestTimeTooSkewed") && said.contains("set the node's clock"), "{said}");
}

#[test]
fn urls_of_object_stores_are_checked_before_anything_is_asked() {
    let scene = Scene::new();
    for (flags, words) in [
        (&["--watch-url", "s3://canary@web/a"][..], "from the environment"),
        (&["--watch-url", "s3://web/../canary"], "has an empty segment"),
        (&["--watch-url", "ftp://canary/a"], "http://, https://, s3://, gs:// or az://"),
        (&["--watch-url", "http://canary/a", "--url-anonymous"], "no URL here is one"),
        (&["--watch-url", "s3://web/a", "--url-anonymous", "--url-instance-identity"], "contradict each other"),
    ] {
        let (code, said) = run(trimtab().args(["--output", &scene.text("conf")]).args(flags));
        assert!(code == Some(64) && said.contains(words) && !said.contains("canary"), "{code:?} {said}");
    }
}

#[test]
fn role_of_the_pod_is_asked_for_by_its_token_and_kept() {
    let store = Store::start();
    store.put("list.txt", "1");
    // versitygw knows no session tokens, and takes an empty one for none.
    let xml = format!(
        "<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult><Credentials><AccessKeyId>{KEY}</AccessKeyId>\
         <SecretAccessKey>{SECRET}</SecretAccessKey><SessionToken></SessionToken>\
         <Expiration>2099-01-01T00:00:00Z</Expiration></Credentials></AssumeRoleWithWebIdentityResult>\
         </AssumeRoleWithWebIdentityResponse>"
    );
    let json = serde_json::json!({
        "AccessKeyId": KEY, "SecretAccessKey": SECRET, "Token": "", "Expiration": "2099-01-01T00:00:00Z"
    });
    for (by_token_service, answer) in [(true, xml), (false, json.to_string())] {
        let (cloud, scene) = (Cloud::start(&answer), Scene::new());
        let token = scene.text("token");
        fs::write(&token, "canary-token\n").unwrap();
        let role = [
            ("AWS_ROLE_ARN", "arn:aws:iam::1:role/web".to_owned()),
            ("AWS_WEB_IDENTITY_TOKEN_FILE", token.clone()),
            ("AWS_ENDPOINT_URL_STS", cloud.url()),
        ];
        let pod =
            [("AWS_CONTAINER_CREDENTIALS_FULL_URI", cloud.url()), ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", token)];
        let identity = if by_token_service { &role[..] } else { &pod };
        let environment = [&[("AWS_ENDPOINT_URL", store.url())], identity].concat();
        let flags = ["--watch-url", "s3://web/list.txt"];
        let mut sidecar = start(&scene, &environment, &flags);
        published(&scene, "list.txt", Some("1"));
        let polls = store.answers("/web/list.txt").len();
        eventually("it asks the store again", || (store.answers("/web/list.txt").len() > polls + 2).then_some(()));
        let asked = cloud.asked();
        assert_eq!(asked.len(), 1, "what was got is kept until it ends: {asked:?}");
        if by_token_service {
            assert!(
                asked[0].contains("Action=AssumeRoleWithWebIdentity")
                    && asked[0].contains("WebIdentityToken=canary-token&")
            );
            assert!(asked[0].contains("RoleSessionName=trimtab"), "{asked:?}");
        } else {
            assert!(asked[0].contains("authorization: canary-token\r\n"), "{asked:?}");
        }
        nothing_secret(&sidecar);
        sidecar.kill();

        // Refused, with a text that must not be shown.
        let refusal =
            "<ErrorResponse><Error><Code>AccessDenied</Code><Message>canary-message</Message></Error></ErrorResponse>";
        *cloud.answer.lock().unwrap() = (403, refusal.to_owned());
        let other = Scene::new();
        let sidecar = start(&other, &environment, &flags);
        let status =
            sidecar.until("the role is refused", |status| source(status).contains("answered 403 AccessDenied"));
        assert!(source(&status).contains("trust policy"), "{status}");
        *cloud.answer.lock().unwrap() = (200, "canary-nonsense".to_owned());
        let status = sidecar.until("the answer is nonsense", |status| source(status).contains("makes no sense"));
        assert!(!format!("{status}{}", sidecar.log()).contains("canary"), "{status}");
    }
}

/// versitygw knows no session tokens: moto verifies token, signature and policy of each request.
#[test]
fn role_of_the_pod_reads_and_archives_in_a_store_that_verifies_its_credentials() {
    let moto = Moto::start(Ipv4Addr::LOCALHOST, free_port());
    let scene = Scene::new();
    let put = |content: &str| {
        let new = scene.at("new.tar.gz");
        fs::write(&new, packed(&scene, "blocked.map", content)).unwrap();
        moto.put("edge.tar.gz", &new);
    };
    put("1");
    let (reads, only_archives) = (moto.role("web", "s3:*Object"), moto.role("backup", "s3:PutObject"));
    let token = scene.text("token");
    fs::write(&token, "a.b-c_d.e\n").unwrap();
    let environment = |role: &str| {
        [
            ("AWS_REGION", "eu-central-1".to_owned()),
            ("AWS_STS_REGIONAL_ENDPOINTS", "regional".to_owned()),
            ("AWS_ROLE_ARN", role.to_owned()),
            ("AWS_WEB_IDENTITY_TOKEN_FILE", token.clone()),
            ("AWS_ENDPOINT_URL_STS", moto.url().to_owned()),
            ("AWS_ENDPOINT_URL_S3", moto.url().to_owned()),
        ]
    };
    moto.guard();
    let flags = ["--watch-url", "s3://lists/edge.tar.gz", "--archive", "s3://lists/kept"];
    let sidecar = start(&scene, &environment(&reads), &flags);
    published(&scene, "blocked.map", Some("1"));
    sidecar.until("it is archived", |status| status["archive"]["archived"]["sequence"] == 1);
    let got = |status: &str| moto.answers("GET /lists/edge.tar.gz ").iter().filter(|answer| *answer == status).count();
    eventually("unchanged, it is not sent", || (got("304") >= 2).then_some(()));
    put("2");
    published(&scene, "blocked.map", Some("2"));
    let status = sidecar.until("it is archived", |status| status["archive"]["archived"]["sequence"] == 2);
    assert_eq!(moto.tokens(), ["a.b-c_d.e"; 2], "what the source and the archive got is kept until it ends");
    let said = format!("{status}{}", sidecar.log());
    assert!(!said.contains("ASIA") && !said.contains("a.b-c_d.e") && !said.contains("Signature"), "{said}");
    drop(sidecar);

    // Good credentials, for another purpose.
    let other = Scene::new();
    let sidecar = start(&other, &environment(&only_archives), &["--watch-url", "s3://lists/edge.tar.gz"]);
    let status = sidecar.until("the role is refused", |status| source(status).contains("403 AccessDenied"));
    assert!(source(&status).contains("needs s3:GetObject"), "{status}");
}

#[test]
fn objects_below_a_prefix_of_a_real_store_are_published_as_one() {
    let store = Store::start();
    for (key, content) in [("conf/top.conf", "1"), ("conf/sub/a%20b", "1"), ("other/x", "no")] {
        store.put(key, content);
    }
    let scene = Scene::new();
    let sidecar = start(&scene, &store.environment(), &["--watch-url", "web=s3://web/conf/"]);
    published(&scene, "top.conf", Some("1"));
    published(&scene, "sub/a b", Some("1"));
    sidecar.until_idle();
    let lists = |least: usize| eventually("it is listed", || (store.answers("/web/").len() >= least).then_some(()));
    let so_far = store.answers("/web/").len();
    lists(so_far + 3);
    assert_eq!(store.answers("/web/conf/top.conf"), ["200"], "unchanged, none is sent");
    store.put("conf/top.conf", "2");
    published(&scene, "top.conf", Some("2"));
    store.put("conf/new", "3");
    published(&scene, "new", Some("3"));
    store.delete("conf/new");
    published(&scene, "new", None);
    sidecar.until_idle();
    assert_eq!(store.answers("/web/conf/sub/a b"), ["200"], "what did not change is not sent");
    assert!(scene.published("x").is_none());
    for key in ["conf/top.conf", "conf/sub/a%20b"] {
        store.delete(key);
    }
    // Between the two, one of them may be gone alone.
    let status = sidecar.until("its absence is reported", |status| source(status).contains("--on-delete keep"));
    assert!(scene.published("top.conf").is_some() || scene.published("sub/a b").is_some(), "{status}");
    nothing_secret(&sidecar);
}

#[test]
fn list_that_is_of_no_use_leaves_what_was_published() {
    let entry = |key: &str, etag: &str| {
        format!("<Contents><Key>conf/{key}</Key><ETag>\"{etag}\"</ETag><Size>1</Size></Contents>")
    };
    let list = |contents: &str| format!("<ListBucketResult>{contents}</ListBucketResult>");
    // The objects are served by the same words as the list: they are never what was listed.
    let cloud = Cloud::start(&list(""));
    let scene = Scene::new();
    let environment = [("AWS_ENDPOINT_URL", format!("http://{}", cloud.address))];
    let sidecar = start(&scene, &environment, &["--watch-url", "web=s3://web/conf/", "--url-anonymous"]);
    sidecar.until("an empty list is an absence", |status| source(status).contains("does not exist"));
    for (answer, words) in [
        (list(&entry("a", "1")), "it changed three times"),
        (list(&entry("../canary-a", "1")), "has an empty segment"),
        (list(&(entry("a", "1") + &entry("a/b", "1"))), "an object and a folder"),
        (list(&(entry("a", "1") + &entry("a", "1"))), "listed twice"),
        (list("<IsTruncated>true</IsTruncated>"), "makes no sense"),
        (list(&(0..10_001).map(|number| entry(&number.to_string(), "1")).collect::<String>()), "more than 10,000"),
        (list(&entry("a", "1").replace("<Size>1<", "<Size>99999999999<")), "--max-size"),
        ("<html>".to_owned(), "makes no sense"),
    ] {
        *cloud.answer.lock().unwrap() = (200, answer);
        nix::sys::signal::kill(sidecar.pid(), nix::sys::signal::Signal::SIGHUP).unwrap();
        sidecar.until(words, |status| source(status).contains(words));
    }
    assert!(
        cloud.asked().iter().any(|head| head.contains("if-match: \"1\"")),
        "objects are fetched as they were listed"
    );
    let flags = ["--watch-url", "web=s3://web/conf/", "--url-key", "web=/k", "--output", &scene.text("other")];
    let (code, said) = run(trimtab().args(flags));
    assert!(code == Some(64) && said.contains("sign a bundle"), "{said}");
}

#[test]
fn public_bucket_is_read_without_credentials() {
    let store = Store::start();
    store.put("conf/list.txt", "1");
    let environment = [("AWS_ENDPOINT_URL", store.url())];
    let scene = Scene::new();
    let flags =
        ["--watch-url", "one=s3://web/conf/list.txt", "--watch-url", "all=s3://web/conf/", "--path", "{name}/{key}"];
    let flags = [&flags[..], &["--url-anonymous"]].concat();
    let sidecar = start(&scene, &environment, &flags);
    sidecar.until("it is not public yet", |status| source(status).contains("403 AccessDenied"));
    assert_eq!(scene.current(), None);
    let policy = serde_json::json!({"Version": "2012-10-17", "Statement": [
        {"Effect": "Allow", "Principal": "*", "Action": ["s3:GetObject"], "Resource": ["arn:aws:s3:::web/*"]},
        {"Effect": "Allow", "Principal": "*", "Action": ["s3:ListBucket"], "Resource": ["arn:aws:s3:::web"]},
    ]});
    store.curl("?policy=", &["-X", "PUT", "--data-binary", &policy.to_string()]);
    for path in ["one/list.txt", "all/list.txt"] {
        published(&scene, path, Some("1"));
    }
}

/// The node's metadata service: a token first, then the role's name by it, then its keys.
fn metadata_service() -> Hook {
    Hook::responding(None, |call| {
        let asked = |line: &str| call.head[0].starts_with(line);
        let has_token =
            call.head.iter().any(|line| line.eq_ignore_ascii_case("x-aws-ec2-metadata-token: canary-token"));
        if asked("PUT /latest/api/token ") {
            return (200, "canary-token".to_owned());
        }
        if !has_token {
            return (401, String::new());
        }
        if asked("GET /latest/meta-data/iam/security-credentials/ ") {
            return (200, "node".to_owned());
        }
        let keys = serde_json::json!({
            "Code": "Success", "AccessKeyId": KEY, "SecretAccessKey": SECRET, "Token": "", "Expiration": "2099-01-01T00:00:00Z"
        });
        let code = if asked("GET /latest/meta-data/iam/security-credentials/node ") { 200 } else { 404 };
        (code, keys.to_string())
    })
}

#[test]
fn role_of_the_node_is_asked_for_only_where_a_flag_says_so() {
    let store = Store::start();
    store.put("list.txt", "1");
    let (node, scene) = (metadata_service(), Scene::new());
    let place = node.url();
    let place = place.split('/').take(3).collect::<Vec<_>>().join("/");
    let environment = [("AWS_ENDPOINT_URL", store.url()), ("AWS_EC2_METADATA_SERVICE_ENDPOINT", place)];
    let flags = ["--watch-url", "s3://web/list.txt"];
    let sidecar = start(&scene, &environment, &flags);
    sidecar.until("nobody knows who asks", |status| source(status).contains("--url-instance-identity"));
    assert!(node.calls().is_empty(), "{:?}", node.calls());
    drop(sidecar);
    let sidecar = start(&scene, &environment, &[&flags[..], &["--url-instance-identity"]].concat());
    published(&scene, "list.txt", Some("1"));
    let polls = store.answers("/web/list.txt").len();
    eventually("it asks the store again", || (store.answers("/web/list.txt").len() > polls + 2).then_some(()));
    let calls = node.calls();
    assert_eq!(calls.len(), 3, "what was got is kept until it ends: {calls:?}");
    nothing_secret(&sidecar);
    assert!(!format!("{}{}", sidecar.log(), sidecar.status()).contains("canary"), "{}", sidecar.log());
}
