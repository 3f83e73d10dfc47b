//! `--watch-url gs://…`, `--archive gs://…`: fake-gcs-server, with the conditions that it lacks in front of it, and whoever
//! hands out credentials.

use std::fs;
use std::io::{BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use super::store::{packed, published, serving, source, start};
use super::support::child::Running;
use super::support::cloud::Cloud;
use super::support::head::{head, header};
use super::support::port::free_port;
use super::support::scene::Scene;
use super::support::sidecar::{Sidecar, eventually, output_of, run, trimtab};

const TOKEN: &str = "canary-token";

/// What stands before the store: the conditions of HTTP, which it lacks and Google's has, and who may ask.
#[derive(Default)]
struct Front {
    /// Each request as `METHOD TARGET STATUS`, and its If-Match.
    asked: Vec<String>,
    conditions: Vec<String>,
    /// Whether a token is wanted.
    guarded: bool,
    /// Where everybody is sent.
    elsewhere: Option<String>,
}

/// A fake-gcs-server with a bucket `web`.
struct Store {
    _running: Running,
    scene: Scene,
    port: u16,
    front: String,
    state: Arc<Mutex<Front>>,
}

/// A head, and as much of a body as it says, or all there is.
fn message(stream: &TcpStream) -> Option<(String, Vec<u8>)> {
    let mut reader = BufReader::new(stream);
    let (head, length) = head(&mut reader).ok()??;
    let mut body = Vec::new();
    match length {
        Some(length) => {
            body.resize(length.try_into().unwrap(), 0);
            reader.read_exact(&mut body).ok()?;
        }
        None if head.starts_with("HTTP/") => {
            reader.read_to_end(&mut body).ok()?;
        }
        None => {}
    }
    Some((head, body))
}

/// What is answered, by whoever may.
fn answer(state: &Mutex<Front>, port: u16, head: &str, body: &[u8]) -> Option<(String, Vec<u8>)> {
    let short = |status: &str| Some((format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n"), Vec::new()));
    let (guarded, elsewhere) = {
        let state = state.lock().unwrap();
        (state.guarded, state.elsewhere.clone())
    };
    if let Some(elsewhere) = elsewhere {
        return short(&format!("302 Found\r\nLocation: {elsewhere}"));
    }
    if guarded && header(head, "authorization") != Some("Bearer canary-token") {
        let error = b"<Error><Code>AuthenticationRequired</Code><Details>canary</Details></Error>";
        return Some((format!("HTTP/1.1 401 Unauthorized\r\nContent-Length: {}\r\n\r\n", error.len()), error.to_vec()));
    }
    let mut store = TcpStream::connect(("127.0.0.1", port)).ok()?;
    store.write_all(&[head.as_bytes(), body].concat()).ok()?;
    let (answer, body) = message(&store)?;
    let quoted = |value: &str| value.trim_matches('"').to_owned();
    let [etag, not, only] = [header(&answer, "etag"), header(head, "if-none-match"), header(head, "if-match")]
        .map(|value| value.map(quoted));
    if answer.starts_with("HTTP/1.1 200") && etag.is_some() {
        if not == etag {
            return short("304 Not Modified");
        }
        if only.is_some() && only != etag {
            return short("412 Precondition Failed");
        }
    }
    Some((answer, body))
}

impl Store {
    fn start() -> Self {
        let (scene, port) = (Scene::new(), free_port());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let front = listener.local_addr().unwrap().to_string();
        let tools = std::env::var("TRIMTAB_TEST_FAKE_GCS").expect("TRIMTAB_TEST_FAKE_GCS is not set: run `make test`");
        let mut command = Command::new(Path::new(&tools).join("fake-gcs-server"));
        command.args(["-backend", "memory", "-scheme", "http", "-host", "127.0.0.1", "-port", &port.to_string()]);
        command.args(["-public-host", &front]);
        let running = serving(command, &scene, port);
        let state = Arc::<Mutex<Front>>::default();
        let own = state.clone();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let own = own.clone();
                std::thread::spawn(move || {
                    let (head, body) = message(&stream)?;
                    let (answer, content) = answer(&own, port, &head, &body)?;
                    let asked: Vec<_> = head.split(' ').take(2).collect();
                    {
                        let mut own = own.lock().unwrap();
                        own.asked.push(format!("{} {}", asked.join(" "), answer.split(' ').nth(1)?));
                        own.conditions.extend(header(&head, "if-match").map(str::to_owned));
                    }
                    stream.write_all(&[answer.as_bytes(), &content].concat()).ok()
                });
            }
        });
        let store = Self { _running: running, scene, port, front, state };
        store.curl("/storage/v1/b", &["-H", "Content-Type: application/json", "-d", r#"{"name":"web"}"#]);
        store
    }

    fn curl(&self, path: &str, flags: &[&str]) -> Vec<u8> {
        let mut command = Command::new("curl");
        let url = format!("http://127.0.0.1:{}{path}", self.port);
        let done = command.args(["-sS", "--fail"]).args(flags).arg(url).output().unwrap();
        assert!(done.status.success(), "{done:?}");
        done.stdout
    }

    fn put(&self, key: &str, content: impl AsRef<[u8]>) {
        fs::write(self.scene.at("new"), content).unwrap();
        let (path, data) =
            (format!("/upload/storage/v1/b/web/o?uploadType=media&name={key}"), format!("@{}", self.scene.text("new")));
        self.curl(&path, &["-H", "Content-Type: text/plain", "--data-binary", &data]);
    }

    fn delete(&self, key: &str) {
        self.curl(&format!("/storage/v1/b/web/o/{}", key.replace('/', "%2F")), &["-X", "DELETE"]);
    }

    /// The requests so far that begin so, as their statuses.
    fn answers(&self, request: &str) -> Vec<String> {
        let state = self.state.lock().unwrap();
        let own = state.asked.iter().filter(|asked| asked.starts_with(request));
        own.map(|asked| asked.rsplit(' ').next().unwrap().to_owned()).collect()
    }

    fn environment(&self) -> [(&'static str, String); 1] {
        [("STORAGE_EMULATOR_HOST", self.front.clone())]
    }
}

fn nothing_secret(sidecar: &Sidecar) {
    let said = format!("{}{}", sidecar.log(), sidecar.status());
    assert!(!said.contains("canary"), "{said}");
}

#[test]
fn object_and_bundle_of_google_s_store_are_published_and_cost_nothing_while_they_stay() {
    let store = Store::start();
    store.put("geo%20ip/list.txt", "1");
    store.put("web.tar.gz", packed(&store.scene, "top.conf", "packed"));
    let scene = Scene::new();
    let flags = ["--watch-url", "geo=gs://web/geo ip/list.txt", "--watch-url", "gs://web/web.tar.gz"];
    let sidecar = start(&scene, &store.environment(), &flags);
    published(&scene, "list.txt", Some("1"));
    published(&scene, "top.conf", Some("packed"));
    sidecar.until_idle();
    let list = "GET /web/geo%20ip/list.txt ";
    eventually("unchanged, it is not sent", || {
        (store.answers(list).iter().filter(|status| *status == "304").count() >= 2).then_some(())
    });
    assert_eq!(store.answers(list).iter().filter(|status| *status == "200").count(), 1, "{:?}", store.answers(list));
    store.put("geo%20ip/list.txt", "2");
    published(&scene, "list.txt", Some("2"));
    store.delete("geo%20ip/list.txt");
    sidecar.until("its absence is reported", |status| source(status).contains("--on-delete keep"));
    assert_eq!(scene.published("list.txt").as_deref(), Some("2"));

    let look = |url: &str| {
        let mut check = trimtab();
        check.args(["check", "--watch-url", url, "--output", &scene.text("other")]).envs(store.environment());
        run(&mut check)
    };
    let (code, said) = look("gs://web/web.tar.gz");
    assert!(code == Some(0) && said.contains("in 1 keys"), "{said}");
    let zipped = Command::new("gzip").args(["-k", &store.scene.text("new")]).status().unwrap();
    assert!(zipped.success());
    store.put("zipped.txt&contentEncoding=gzip", fs::read(store.scene.at("new.gz")).unwrap());
    let (_, said) = look("gs://web/zipped.txt");
    assert!(said.contains("with a Content-Encoding, which was not asked for"), "{said}");
    let (_, said) = look("gs://web/none.txt");
    assert!(said.contains("answers 404: that nothing is there"), "{said}");
    store.state.lock().unwrap().guarded = true;
    let (_, said) = look("gs://web/web.tar.gz");
    assert!(said.contains("401 AuthenticationRequired; it does not take the token"), "{said}");
    assert!(said.contains("GOOGLE_APPLICATION_CREDENTIALS") && !said.contains("canary"), "{said}");
}

#[test]
fn objects_below_a_prefix_of_google_s_store_are_published_as_one() {
    let store = Store::start();
    for (key, content) in [("conf/top.conf", "1"), ("conf/sub/a%20b", "1"), ("other/x", "no")] {
        store.put(key, content);
    }
    let scene = Scene::new();
    let sidecar = start(&scene, &store.environment(), &["--watch-url", "web=gs://web/conf/"]);
    published(&scene, "top.conf", Some("1"));
    published(&scene, "sub/a b", Some("1"));
    sidecar.until_idle();
    let lists = || store.answers("GET /web/?list-type=2&prefix=conf%2F ").len();
    let so_far = lists();
    eventually("it is listed", || (lists() >= so_far + 3).then_some(()));
    assert_eq!(store.answers("GET /web/conf/top.conf "), ["200"], "unchanged, none is sent");
    assert_eq!(store.state.lock().unwrap().conditions.len(), 2, "each is fetched as it was listed");
    store.put("conf/top.conf", "2");
    published(&scene, "top.conf", Some("2"));
    store.put("conf/new", "3");
    published(&scene, "new", Some("3"));
    store.delete("conf/new");
    published(&scene, "new", None);
    sidecar.until_idle();
    assert_eq!(store.answers("GET /web/conf/sub/a%20b "), ["200"], "what did not change is not sent");
    assert!(scene.published("x").is_none());
    for key in ["conf/top.conf", "conf/sub/a%20b"] {
        store.delete(key);
    }
    sidecar.until("its absence is reported", |status| source(status).contains("--on-delete keep"));
    let (code, said) = run(trimtab()
        .args(["check", "--watch-url", "web=gs://web/none/", "--output", &scene.text("other")])
        .envs(store.environment()));
    assert!(said.contains("nothing, and empty counts as absent"), "{code:?} {said}");
}

#[test]
fn what_was_confirmed_is_kept_in_google_s_store_once_and_another_starts_from_it() {
    let store = Store::start();
    for replica in 1..=2 {
        let scene = Scene::new();
        fs::create_dir(scene.at("in")).unwrap();
        fs::write(scene.at("in/a.conf"), "1").unwrap();
        let flags = ["--watch-dir", &scene.text("in"), "--archive", "gs://web/kept/we b"];
        let sidecar = start(&scene, &store.environment(), &flags);
        let archived = sidecar.until("it is archived", |status| status["archive"]["archived"]["sequence"] == 1);
        let name = archived["archive"]["archived"]["name"].as_str().unwrap();
        let list: Value = serde_json::from_slice(&store.curl("/storage/v1/b/web/o", &[])).unwrap();
        let kept: Vec<_> =
            list["items"].as_array().unwrap().iter().map(|item| item["name"].as_str().unwrap()).collect();
        let mut expected = [format!("kept/we b/{name}"), "kept/we b/latest.tar.gz".to_owned()];
        expected.sort_unstable();
        assert_eq!(kept, expected, "replica {replica}");
    }
    let statuses = store.answers("POST /upload/storage/v1/b/web/o?uploadType=media&name=kept/we%20b/");
    assert_eq!(statuses, ["200", "200", "412", "200"]);

    let scene = Scene::new();
    let watched = scene.text("in");
    let flags =
        ["--watch-dir", &watched, "--fallback-url", "gs://web/kept/we b/latest.tar.gz", "--fallback-after", "10ms"];
    let sidecar = start(&scene, &store.environment(), &flags);
    published(&scene, "a.conf", Some("1"));
    sidecar.until("the verdict says so", |status| {
        status["verdict"]["summary"].as_str().is_some_and(|summary| summary.contains("from --fallback-url"))
    });
    drop(sidecar);

    store.state.lock().unwrap().guarded = true;
    let scene = Scene::new();
    fs::create_dir(scene.at("in")).unwrap();
    fs::write(scene.at("in/a.conf"), "2").unwrap();
    let flags = ["--watch-dir", &scene.text("in"), "--archive", "gs://web/kept/web"];
    let sidecar = start(&scene, &store.environment(), &flags);
    sidecar.until("what the identity lacks is said", |status| {
        status["archive"].to_string().contains("(roles/storage.objectUser)")
    });
    nothing_secret(&sidecar);
}

/// A key of a service account: its PEM, and the file of its public half.
fn key(scene: &Scene) -> (String, String) {
    let (private, public) = (scene.text("key.pem"), scene.text("public.pem"));
    let made = Command::new("openssl").args(["genrsa", "-out", &private, "2048"]).output().unwrap();
    assert!(made.status.success(), "{made:?}");
    let taken = Command::new("openssl").args(["rsa", "-in", &private, "-pubout", "-out", &public]).output().unwrap();
    assert!(taken.status.success(), "{taken:?}");
    (fs::read_to_string(private).unwrap(), public)
}

/// What an assertion says, signed by the key's other half.
fn verified(scene: &Scene, assertion: &str, public: &str) -> Value {
    let (said, signature) = assertion.rsplit_once('.').unwrap();
    fs::write(scene.at("said"), said).unwrap();
    fs::write(scene.at("signature"), BASE64_URL_SAFE_NO_PAD.decode(signature).unwrap()).unwrap();
    let mut openssl = Command::new("openssl");
    openssl.args(["dgst", "-sha256", "-verify", public, "-signature", &scene.text("signature"), &scene.text("said")]);
    let verdict = output_of(&mut openssl);
    assert!(verdict.status.success(), "{verdict:?}");
    let claims = BASE64_URL_SAFE_NO_PAD.decode(said.split_once('.').unwrap().1).unwrap();
    serde_json::from_slice(&claims).unwrap()
}

#[test]
fn token_of_the_pod_is_asked_for_by_each_way_and_kept() {
    let store = Store::start();
    store.put("list.txt", "1");
    store.state.lock().unwrap().guarded = true;
    // As each of the services has it.
    let tokens = json!({
        "access_token": TOKEN, "expires_in": 3600, "accessToken": TOKEN, "expireTime": "2099-01-01T00:00:00Z"
    });
    let keys = Scene::new();
    let (private, public) = key(&keys);
    for way in ["metadata", "account", "federation", "impersonation"] {
        let (cloud, scene) = (Cloud::start(&tokens.to_string()), Scene::new());
        fs::write(scene.at("token"), "canary/subject\n").unwrap();
        let federation = json!({
            "type": "external_account", "audience": "//iam.googleapis.com/pool", "token_url": cloud.url(),
            "subject_token_type": "urn:ietf:params:oauth:token-type:jwt", "credential_source": {"file": scene.text("token")}
        });
        let mut impersonation = federation.clone();
        impersonation["service_account_impersonation_url"] = cloud.url().into();
        let account = json!({
            "type": "service_account", "client_email": "web@example", "private_key": private, "private_key_id": "1",
            "token_uri": cloud.url()
        });
        let file = match way {
            "account" => account,
            "federation" => federation,
            _ => impersonation,
        };
        fs::write(scene.at("file"), file.to_string()).unwrap();
        let identity = match way {
            "metadata" => ("GCE_METADATA_HOST", cloud.address.to_string()),
            _ => ("GOOGLE_APPLICATION_CREDENTIALS", scene.text("file")),
        };
        let environment = [&store.environment()[..], &[identity]].concat();
        let flags = ["--watch-url", "gs://web/list.txt"];
        let mut sidecar = start(&scene, &environment, &flags);
        published(&scene, "list.txt", Some("1"));
        let asked = cloud.asked();
        let polls = || store.answers("GET /web/list.txt ").len();
        let so_far = polls();
        eventually("it asks the store again", || (polls() > so_far + 2).then_some(()));
        assert_eq!(cloud.asked().len(), asked.len(), "what was got is kept: {asked:?}");
        let last = asked.last().unwrap();
        match way {
            "metadata" => assert!(
                asked[0].starts_with("GET /computeMetadata/v1/instance/service-accounts/default/token ")
                    && asked[0].contains("metadata-flavor: Google\r\n"),
                "{asked:?}"
            ),
            "account" => {
                let claims = verified(&scene, asked[0].split_once("&assertion=").unwrap().1, &public);
                assert_eq!((&claims["iss"], &claims["aud"]), (&"web@example".into(), &cloud.url().into()));
                assert_eq!(claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap(), 3600);
            }
            _ => assert!(
                asked[0].contains("&audience=%2F%2Fiam.googleapis.com%2Fpool&")
                    && asked[0].ends_with("&subject_token=canary%2Fsubject"),
                "{asked:?}"
            ),
        }
        if way == "impersonation" {
            assert!(last.contains("authorization: Bearer canary-token\r\n"), "{asked:?}");
            assert!(last.contains("devstorage.read_write") && last.contains(r#""lifetime":"3600s""#), "{asked:?}");
        }
        nothing_secret(&sidecar);

        // It goes to the store, and to nobody to whom that one sends us.
        store.state.lock().unwrap().elsewhere = Some(cloud.url());
        sidecar.until("it goes nowhere else", |status| source(status).contains("the store answered 302"));
        assert_eq!(cloud.asked().len(), asked.len());
        store.state.lock().unwrap().elsewhere = None;
        sidecar.kill();

        // Refused, with texts that must not be shown.
        let refusal = json!({"error": "invalid_grant", "error_description": "canary-message"});
        *cloud.answer.lock().unwrap() = (403, refusal.to_string());
        let other = Scene::new();
        let sidecar = start(&other, &environment, &flags);
        let words = format!("answered 403 invalid_grant; {}", if way == "account" { "is the" } else { "" });
        let status = sidecar.until("it is refused", |status| source(status).contains(&words));
        let names = source(&status).contains("GOOGLE_APPLICATION_CREDENTIALS is not set");
        assert_eq!(names, way == "metadata", "{status}");
        for (answer, words) in [("canary", "is no JSON"), ("{\"canary\":\"canary\"}", "is missing")] {
            *cloud.answer.lock().unwrap() = (200, answer.to_owned());
            sidecar.until(words, |status| source(status).contains(words));
        }
        nothing_secret(&sidecar);
    }
}
