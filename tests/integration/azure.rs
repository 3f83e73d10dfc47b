//! `--watch-url az://…`: a real server of Azure's Blob protocol (Azurite), and what stands in its way.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::json;

use super::store::{packed, published, serving, source, start};
use super::support::child::Running;
use super::support::cloud::Cloud;
use super::support::port::free_port;
use super::support::scene::Scene;
use super::support::sidecar::{Sidecar, eventually, run, trimtab};

const ACCOUNT: &str = "acct1";
const KEY: &str = "Y2FuYXJ5IHNlY3JldCBrZXkgb2YgdGhlIHRlc3RzJyBhenVyaXRl";
/// A signature by that key, until 2099: in each service, of all kinds, for all that these tests do.
const SAS: &str = "sv=2020-02-10&ss=b&srt=sco&sp=rwdlac&se=2099-01-01T00%3A00%3A00Z&sig=4eX5ykzkRejAuKvKJ8OE%2Bsfgv0dIlXtZoM2XDm4GS8M%3D";
/// `{"alg":"none"}`, and whose it is, for whom and until when: Azurite looks at no signature.
const TOKEN: &str = "eyJhbGciOiAibm9uZSIsICJ0eXAiOiAiSldUIn0.eyJhdWQiOiAiaHR0cHM6Ly9zdG9yYWdlLmF6dXJlLmNvbSIsICJpc3MiOiAiaHR0cHM6Ly9zdHMud2luZG93cy5uZXQvY2FuYXJ5LyIsICJpYXQiOiAxLCAibmJmIjogMSwgImV4cCI6IDQwNzA5MDg4MDB9.canary";

/// An Azurite with a container `web`.
struct Azurite {
    // It ends before its folder goes.
    _running: Running,
    scene: Scene,
    port: u16,
    scheme: &'static str,
}

impl Azurite {
    fn start() -> Self {
        Self::with(false)
    }

    /// `tls`: with a certificate, which is in `cert`, and then for tokens as well.
    fn with(tls: bool) -> Self {
        let (scene, port) = (Scene::new(), free_port());
        let program = std::env::var("TRIMTAB_TEST_AZURITE").expect("TRIMTAB_TEST_AZURITE is not set: run `make test`");
        let mut command = Command::new(Path::new(&program).join("azurite-blob"));
        command.args(["--blobHost", "127.0.0.1", "--blobPort", &port.to_string(), "--location", &scene.text("data")]);
        command.args(["--skipApiVersionCheck", "--disableTelemetry"]);
        command.env("AZURITE_ACCOUNTS", format!("{ACCOUNT}:{KEY}"));
        if tls {
            let own = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
            let (cert, key) = (scene.text("cert"), scene.text("key"));
            fs::write(&cert, own.cert.pem()).unwrap();
            fs::write(&key, own.signing_key.serialize_pem()).unwrap();
            command.args(["--cert", &cert, "--key", &key, "--oauth", "basic"]);
        }
        let running = serving(command, &scene, port);
        let store = Self { scene, port, scheme: if tls { "https" } else { "http" }, _running: running };
        store.curl("?restype=container&", &["-X", "PUT", "-H", "Content-Length: 0"]);
        store
    }

    fn url(&self) -> String {
        format!("{}://127.0.0.1:{}/{ACCOUNT}", self.scheme, self.port)
    }

    /// `rest`: of the container's URL, up to where a signature may follow.
    fn curl(&self, rest: &str, flags: &[&str]) -> String {
        let mut command = Command::new("curl");
        command.args(["-sS", "--fail", "--insecure", "-H", "x-ms-version: 2023-11-03"]).args(flags);
        let done = command.arg(format!("{}/web{rest}{SAS}", self.url())).output().unwrap();
        assert!(done.status.success(), "{done:?}");
        String::from_utf8(done.stdout).unwrap()
    }

    fn put_with(&self, key: &str, content: impl AsRef<[u8]>, flags: &[&str]) {
        fs::write(self.scene.at("new"), content).unwrap();
        let new = self.scene.text("new");
        self.curl(&format!("/{key}?"), &[&["-H", "x-ms-blob-type: BlockBlob", "-T", &new], flags].concat());
    }

    fn put(&self, key: &str, content: impl AsRef<[u8]>) {
        self.put_with(key, content, &[]);
    }

    fn delete(&self, key: &str) {
        self.curl(&format!("/{key}?"), &["-X", "DELETE"]);
    }

    /// The statuses of the requests so far whose path and query begin so.
    fn answers(&self, method: &str, target: &str) -> Vec<String> {
        let log = fs::read_to_string(self.scene.at("store.log")).unwrap_or_default();
        let wanted = format!("\"{method} /{ACCOUNT}/web{target}");
        let status = |line: &str| line.split_once(" HTTP/1.1\" ")?.1.split(' ').next().map(str::to_owned);
        log.lines().filter(|line| line.contains(&wanted)).filter_map(status).collect()
    }

    fn environment(&self) -> Vec<(&'static str, String)> {
        vec![
            ("AZURE_STORAGE_ENDPOINT", self.url()),
            ("AZURE_STORAGE_ACCOUNT_NAME", ACCOUNT.to_owned()),
            ("AZURE_STORAGE_ACCOUNT_KEY", KEY.to_owned()),
        ]
    }
}

fn nothing_secret(sidecar: &Sidecar) {
    let said = format!("{}{}", sidecar.log(), sidecar.status());
    for secret in [KEY, "sig=", "4eX5ykz", TOKEN, "SharedKey", "Bearer"] {
        assert!(!said.contains(secret), "{secret}: {said}");
    }
}

#[test]
fn object_and_bundle_of_a_container_are_published_and_cost_nothing_while_they_stay() {
    let store = Azurite::start();
    store.put("geo%20ip/list.txt", "1");
    store.put("web.tar.gz", packed(&store.scene, "top.conf", "packed"));
    let scene = Scene::new();
    let flags = ["--watch-url", "geo=az://web/geo ip/list.txt", "--watch-url", "az://web/web.tar.gz"];
    let sidecar = start(&scene, &store.environment(), &flags);
    published(&scene, "list.txt", Some("1"));
    published(&scene, "top.conf", Some("packed"));
    sidecar.until_idle();
    let path = "/geo%20ip/list.txt ";
    let answers = |status: &str| store.answers("GET", path).iter().filter(|own| *own == status).count();
    eventually("unchanged, it is not sent", || (answers("304") >= 2).then_some(()));
    assert_eq!(answers("200"), 1);
    store.put("geo%20ip/list.txt", "2");
    published(&scene, "list.txt", Some("2"));
    store.delete("geo%20ip/list.txt");
    sidecar.until("its absence is reported", |status| source(status).contains("--on-delete keep"));
    assert_eq!(scene.published("list.txt").as_deref(), Some("2"));
    nothing_secret(&sidecar);

    let output = scene.text("once");
    let once = ["--once", "--watch-url", "az://web/web.tar.gz", "--output", &output];
    let (code, said) = run(trimtab().args(once).envs(store.environment()));
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(fs::read_to_string(Path::new(&output).join("top.conf")).unwrap(), "packed");
    let check = ["check", "--watch-url", "az://web/web.tar.gz", "--output", &output];
    let (code, said) = run(trimtab().args(check).envs(store.environment()));
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("in 1 keys"), "{said}");
}

#[test]
fn objects_below_a_prefix_of_a_container_are_published_as_one_by_a_signature() {
    let store = Azurite::start();
    for (key, content) in [("conf/top.conf", "1"), ("conf/sub/a%20b", "1"), ("other/x", "no")] {
        store.put(key, content);
    }
    store.put_with("conf/sub", "", &["-H", "x-ms-meta-hdi_isfolder: true"]);
    let scene = Scene::new();
    let environment = [("AZURE_STORAGE_ENDPOINT", store.url()), ("AZURE_STORAGE_SAS_TOKEN", format!("?{SAS}"))];
    let sidecar = start(&scene, &environment, &["--watch-url", "web=az://web/conf/"]);
    published(&scene, "top.conf", Some("1"));
    published(&scene, "sub/a b", Some("1"));
    sidecar.until_idle();
    let lists = || store.answers("GET", "?restype=container&comp=list").len();
    let so_far = lists();
    eventually("it is listed", || (lists() >= so_far + 3).then_some(()));
    assert_eq!(store.answers("GET", "/conf/top.conf?sv="), ["200"], "unchanged, none is sent");
    store.put("conf/top.conf", "2");
    published(&scene, "top.conf", Some("2"));
    store.put("conf/new", "3");
    published(&scene, "new", Some("3"));
    store.delete("conf/new");
    published(&scene, "new", None);
    sidecar.until_idle();
    assert_eq!(store.answers("GET", "/conf/sub/a%20b?sv="), ["200"], "what did not change is not sent");
    assert!(scene.published("x").is_none());
    for key in ["conf/top.conf", "conf/sub/a%20b"] {
        store.delete(key);
    }
    sidecar.until("its absence is reported", |status| source(status).contains("--on-delete keep"));
    nothing_secret(&sidecar);
}

#[test]
fn what_was_confirmed_is_kept_in_a_container_once_and_is_a_start_without_the_sources() {
    let store = Azurite::start();
    for replica in 1..=2 {
        let scene = Scene::new();
        fs::create_dir(scene.at("in")).unwrap();
        fs::write(scene.at("in/a.conf"), "1").unwrap();
        let flags = ["--watch-dir", &scene.text("in"), "--archive", "az://web/kept/web"];
        let sidecar = start(&scene, &store.environment(), &flags);
        let archived = sidecar.until("it is archived", |status| status["archive"]["archived"]["sequence"] == 1);
        let name = archived["archive"]["archived"]["name"].as_str().unwrap().to_owned();
        let list = store.curl("?restype=container&comp=list&prefix=kept/web/&", &[]);
        for kept in [&name, "latest.tar.gz"] {
            assert!(list.contains(&format!("<Name>kept/web/{kept}</Name>")), "replica {replica}: {list}");
        }
        assert_eq!(list.matches("<Name>").count(), 2, "replica {replica}: {list}");
        nothing_secret(&sidecar);
    }
    assert_eq!(store.answers("PUT", "/kept/web/"), ["201", "201", "409", "201"]);

    // Its source does not answer.
    let scene = Scene::new();
    let (watched, fallback) = (scene.text("in"), "az://web/kept/web/latest.tar.gz");
    let flags = ["--watch-dir", &watched, "--fallback-url", fallback, "--fallback-after", "10ms"];
    let sidecar = start(&scene, &store.environment(), &flags);
    published(&scene, "a.conf", Some("1"));
    sidecar.until("it is confirmed", |status| status["confirmed"].is_object());
}

#[test]
fn what_azure_refuses_is_said_without_its_words() {
    let store = Azurite::start();
    store.put("list.txt", "1");
    let scene = Scene::new();
    let look = |url: &str, changed: &[(&str, &str)], flags: &[&str]| {
        let mut command = trimtab();
        command.args(["check", "--watch-url", url, "--output", &scene.text("conf")]).args(flags);
        command.envs(store.environment()).envs(changed.iter().copied());
        let (code, said) = run(&mut command);
        assert!(!said.contains(KEY) && !said.contains("sig=") && !said.contains("SharedKey"), "{said}");
        (code, said)
    };
    assert_eq!(look("az://web/list.txt", &[], &[]).0, Some(0));
    let no_key = ("AZURE_STORAGE_ACCOUNT_KEY", "");
    for (url, changed, flags, words) in [
        (
            "az://web/list.txt",
            &[("AZURE_STORAGE_ACCOUNT_KEY", "d3JvbmctY2FuYXJ5")][..],
            &[][..],
            "403 AuthorizationFailure (request ",
        ),
        ("az://nocontainer/list.txt", &[], &[], "404 ContainerNotFound (request "),
        ("az://nocontainer/", &[], &[], "404 ContainerNotFound (request "),
        ("az://web/list.txt", &[], &["--url-anonymous"], "403 AuthorizationFailure (request "),
        ("az://web/none.txt", &[], &[], "answers 404: that nothing is there"),
        ("az://web/list.txt", &[no_key], &[], "AZURE_CLIENT_ID and AZURE_TENANT_ID (workload identity)"),
        (
            "az://web/list.txt",
            &[no_key, ("AZURE_STORAGE_SAS_TOKEN", "sv=2020-02-10&ss=b&srt=o&sp=r&se=2099-01-01&sig=canary")],
            &[],
            "403 Auth",
        ),
    ] {
        let (code, said) = look(url, changed, flags);
        assert!(code != Some(0) && said.contains(words) && !said.contains("anary"), "{words}: {said}");
    }
    // Azurite minds no clock: another fault has its answer's Date looked at.
    let faketime = std::env::var("TRIMTAB_TEST_FAKETIME").expect("TRIMTAB_TEST_FAKETIME is not set: run `make test`");
    let changed = [("LD_PRELOAD", &*faketime), ("FAKETIME", "+2h"), ("AZURE_STORAGE_ACCOUNT_KEY", "d3JvbmctY2FuYXJ5")];
    let (_, said) = look("az://web/list.txt", &changed, &[]);
    assert!(said.contains("set the node's clock"), "{said}");
}

#[test]
fn identity_of_the_pod_or_the_node_is_asked_for_a_token_which_is_kept() {
    let store = Azurite::with(true);
    store.put("list.txt", "1");
    let answer = json!({ "token_type": "Bearer", "expires_in": 3599, "access_token": TOKEN });
    let as_text = json!({ "token_type": "Bearer", "expires_in": "3599", "access_token": TOKEN });
    for (of_pod, answer) in [(true, answer), (false, as_text)] {
        let (cloud, scene) = (Cloud::start(&answer.to_string()), Scene::new());
        let token = scene.text("token");
        fs::write(&token, "canary-token\n").unwrap();
        let mut environment = vec![("AZURE_STORAGE_ENDPOINT", store.url())];
        let ca = store.scene.text("cert");
        let mut flags = vec!["--watch-url", "az://web/list.txt", "--url-ca-file", &ca];
        let url = format!("http://{}/", cloud.address);
        environment.push(("AZURE_CLIENT_ID", "client-1".to_owned()));
        if of_pod {
            environment.push(("AZURE_AUTHORITY_HOST", url));
            environment.push(("AZURE_TENANT_ID", "tenant-1".to_owned()));
            environment.push(("AZURE_FEDERATED_TOKEN_FILE", token));
        } else {
            environment.push(("AZURE_POD_IDENTITY_AUTHORITY_HOST", url));
            flags.push("--url-instance-identity");
        }
        let mut sidecar = start(&scene, &environment, &flags);
        published(&scene, "list.txt", Some("1"));
        let polls = || store.answers("GET", "/list.txt ").len();
        let so_far = polls();
        eventually("it asks the store again", || (polls() > so_far + 2).then_some(()));
        let asked = cloud.asked();
        assert_eq!(asked.len(), 1, "what was got is kept until it ends: {asked:?}");
        if of_pod {
            assert!(asked[0].starts_with("POST /tenant-1/oauth2/v2.0/token HTTP/1.1\r\n"), "{asked:?}");
            for part in [
                "grant_type=client_credentials&client_id=client-1&scope=https%3A%2F%2Fstorage.azure.com%2F.default",
                "&client_assertion_type=urn%3Aietf%3Aparams%3Aoauth%3Aclient-assertion-type%3Ajwt-bearer",
                "&client_assertion=canary-token",
            ] {
                assert!(asked[0].contains(part), "{part}: {asked:?}");
            }
        } else {
            let target = "/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https%3A%2F%2Fstorage.azure.com%2F\
                          &client_id=client-1";
            assert!(asked[0].starts_with(&format!("GET {target} HTTP/1.1\r\n")), "{asked:?}");
            assert!(asked[0].contains("metadata: true\r\n"), "{asked:?}");
        }
        nothing_secret(&sidecar);
        sidecar.kill();

        // Refused, with a text that must not be shown.
        let refusal = json!({ "error": "invalid_client", "error_description": "canary", "error_codes": [700_213] });
        *cloud.answer.lock().unwrap() = (401, refusal.to_string());
        let other = Scene::new();
        let sidecar = start(&other, &environment, &flags);
        let words = "answered 401 invalid_client, AADSTS700213; has ";
        sidecar.until("the identity is refused", |status| source(status).contains(words));
        *cloud.answer.lock().unwrap() = (200, "canary-nonsense".to_owned());
        let status = sidecar.until("the answer is nonsense", |status| source(status).contains("makes no sense"));
        assert!(!format!("{status}{}", sidecar.log()).contains("canary"), "{status}");
    }
}

#[test]
fn list_of_a_container_is_followed_to_its_end_and_objects_are_fetched_as_listed() {
    let list = |rest: &str| {
        let properties = "<Properties><Etag>0x8D</Etag><Content-Length>1</Content-Length></Properties>";
        let blob = format!("<Blob><Name>conf/a</Name>{properties}</Blob>");
        format!("<EnumerationResults><Blobs>{blob}</Blobs>{rest}</EnumerationResults>")
    };
    // The object is served by the same words as the list: it is never what was listed.
    let (cloud, scene) = (Cloud::start(&list("<NextMarker />")), Scene::new());
    let environment = [("AZURE_STORAGE_ENDPOINT", format!("http://{}", cloud.address))];
    let sidecar = start(&scene, &environment, &["--watch-url", "web=az://web/conf/", "--url-anonymous"]);
    sidecar.until("it is never the listed one", |status| source(status).contains("it changed three times"));
    let asked = cloud.asked();
    let fetched = |head: &String| head.starts_with("GET /web/conf/a HTTP") && head.contains("if-match: \"0x8D\"\r\n");
    assert!(asked.iter().any(fetched), "{asked:?}");
    assert!(asked.iter().all(|head| head.contains("x-ms-version: 2023-11-03\r\n")), "{asked:?}");
    *cloud.answer.lock().unwrap() = (200, list("<NextMarker>2!x</NextMarker>"));
    sidecar.until("the next page is the same", |status| source(status).contains("listed twice"));
    assert!(cloud.asked().iter().any(|head| head.contains("&prefix=conf%2F&marker=2%21x HTTP")), "{:?}", cloud.asked());
}
