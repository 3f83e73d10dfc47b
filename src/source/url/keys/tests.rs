use std::cell::RefCell;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::timeout;

use super::*;
use crate::net::request::fetch::server::{Server, ok};

const DEADLINE: Duration = Duration::from_secs(30);
const REFUSES: &str = "HTTP/1.1 500 X\r\nContent-Length: 0\r\n\r\n";

struct Case {
    keys: Keys,
    fetch: channel::Sender<u64>,
}

impl Case {
    fn waits_for(&self) -> Vec<String> {
        self.keys.waiting().map(|(_, waited)| waited).collect()
    }

    fn new(hosts: &str) -> Self {
        Self::by(hosts, String::new())
    }

    /// Without TLS, by this proxy.
    fn by(hosts: &str, proxy: String) -> Self {
        let proxies = Proxies::new(String::new(), proxy, String::new());
        let followed = Config { hosts: hosts.parse().unwrap(), ca_file: None, proxies, may_be_empty: true };
        let poll = Duration::from_hours(1);
        let config =
            super::super::Config { poll, timeout: DEADLINE, max_size: 64, keys: Some(followed), sources: Vec::new() };
        let spec = |role| Spec { name: "x".into(), role, apply_deletes: true, required: true, may_be_empty: true };
        let specs = [spec(Role::Selected), spec(Role::Observed { path: Path::new("/x").into() })];
        let fetch = channel::Sender::new(0);
        Self { keys: Keys::new(&Arc::new(config), &specs, None, fetch.subscribe()).unwrap(), fetch }
    }

    /// An object of a selector comes in; how it goes out.
    fn takes(&mut self, object: Object) -> String {
        let Seen::Changed(object) = self.keys.follow(changed(object)).seen else { panic!() };
        text(&object)
    }

    /// Waits until its object is so.
    async fn until(&mut self, wanted: &str) {
        let last = RefCell::new(String::new());
        let seen = async {
            while !last.borrow().contains(wanted) {
                let update = self.keys.next().await.unwrap();
                if let Some(Update { seen: Seen::Fetched(object), .. }) = self.keys.answered(update) {
                    *last.borrow_mut() = text(&object);
                }
            }
        };
        timeout(DEADLINE, seen).await.unwrap_or_else(|_| panic!("{wanted:?}: {}", last.borrow()));
    }

    fn now(&self) -> String {
        self.keys.objects.values().map(|followed| text(&followed.object())).collect()
    }

    fn ask_again(&self) {
        self.fetch.send_modify(|count| *count += 1);
    }
}

fn changed(object: Object) -> Update {
    Update { source: 0, seen: Seen::Changed(Arc::new(object)) }
}

fn object(kind: Kind, data: &[(&str, &str)]) -> Object {
    let id = ObjectRef { kind, namespace: "ns".into(), name: "web".into() };
    let value = |(key, value): &(&str, &str)| ((*key).to_owned(), Bytes::copy_from_slice(value.as_bytes()).into());
    Object::new(id, "1".into(), 7, kind == Kind::Secret, data.iter().map(value).collect())
}

/// Its keys with their values, and what is held back.
fn text(object: &Object) -> String {
    let value =
        |(key, value): (&String, &Content)| format!("{key}={}", String::from_utf8_lossy(&value.read().unwrap()));
    let held = object.held().map(|(key, reason)| format!("!{key}: {reason}"));
    object.data.iter().map(value).chain(held).collect::<Vec<_>>().join(" ")
}

#[tokio::test]
async fn key_is_the_file_that_its_url_has_and_what_was_fetched_stays() {
    let server = Server::start(&ok("", "one"));
    let mut case = Case::new("127.0.0.1");
    let url = server.url("/a?token=canary").replace("//", "//u%40:canary@");
    assert_eq!(case.takes(object(Kind::ConfigMap, &[("x.url", &url), ("y", "2")])), "y=2");
    let waits_for = case.waits_for();
    assert!(waits_for[0].contains("configmap/ns/web") && waits_for[0].contains("x.url"), "{waits_for:?}");
    case.until("x=one y=2").await;
    assert_eq!(case.waits_for(), [""; 0]);
    // u@:canary
    assert!(server.heads()[0].contains("authorization: Basic dUA6Y2FuYXJ5\r\n"), "{}", server.heads()[0]);
    for (answer, words) in [
        (REFUSES, "answered 500"),
        ("HTTP/1.1 404 X\r\nContent-Length: 0\r\n\r\n", "nothing is there"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n", "--max-size"),
        ("HTTP/1.1 302 X\r\nLocation: http://localhost:1/canary\r\nContent-Length: 0\r\n\r\n", "http://localhost:1"),
    ] {
        server.answer(answer);
        case.ask_again();
        case.until(words).await;
        let now = case.now();
        let stays =
            now.starts_with("x=one y=2 !x.url: key \"x.url\": ") && now.ends_with("; what was fetched before stays");
        assert!(stays && !now.contains("canary"), "{now}");
    }
    // The same body as before: what was wrong is wrong no more.
    server.answer(ok("", "one"));
    case.ask_again();
    while case.now().contains('!') {
        let update = timeout(DEADLINE, case.keys.next()).await.unwrap().unwrap();
        case.keys.answered(update);
    }
    // An edit of another key asks nobody again; a URL that is not allowed leaves what there is.
    let asked = server.heads().len();
    assert_eq!(case.takes(object(Kind::ConfigMap, &[("x.url", &url), ("y", "3")])), "x=one y=3");
    let said = case.takes(object(Kind::ConfigMap, &[("x.url", "http://evil.example/canary"), ("y", "3")]));
    assert!(
        said.starts_with("x=one y=3 !x.url: ") && said.contains("evil.example") && !said.contains("canary"),
        "{said}"
    );
    assert!(said.contains("--url-hosts (TRIMTAB_URL_HOSTS)") && said.ends_with("before stays"), "{said}");
    assert_eq!(case.takes(object(Kind::ConfigMap, &[("y", "3")])), "y=3");
    assert_eq!(server.heads().len(), asked);
}

#[tokio::test]
async fn hosts_are_asked_through_the_proxy_of_the_environment() {
    let proxy = Server::start(&ok("", "one"));
    let mut case = Case::by("files.invalid", proxy.url(""));
    case.takes(object(Kind::ConfigMap, &[("x.url", "http://files.invalid/a")]));
    case.until("x=one").await;
    assert!(proxy.heads()[0].starts_with("GET http://files.invalid/a "), "{}", proxy.heads()[0]);
}

#[tokio::test]
async fn first_fetch_that_fails_holds_its_own_key_and_is_tried_again() {
    let server = Server::start(REFUSES);
    let mut case = Case::new("127.0.0.1");
    case.takes(object(Kind::Secret, &[("x.url", &server.url("/c4n4ry/a")), ("y", "2")]));
    case.until("y=2 !x.url: key \"x.url\": http://127.0.0.1:").await;
    let now = case.now();
    assert!(!now.contains("c4n4ry") && !now.contains("stays"), "{now}");
    assert!(case.keys.objects.values().all(|followed| followed.object().secret));
    assert_eq!(case.waits_for(), [""; 0], "the other keys wait for it");
    server.answer(ok("", "one"));
    // Without being asked to.
    case.until("x=one y=2").await;
}

#[tokio::test]
async fn what_is_no_url_or_names_a_host_that_is_not_allowed_is_never_asked() {
    let server = Server::start(&ok("", "one"));
    let mut case = Case::new("allowed.example");
    for (key, value, words) in [
        ("x.url", &*server.url("/"), "names 127.0.0.1"),
        ("x.url", &server.url("/").replace("//", "//allowed.example@"), "names 127.0.0.1"),
        ("x.url", "unix:///run/c4n4ry.sock:/", "http"),
        ("x.url", "c4n4ry", "http://"),
        ("x.url", "http://u:%0ac4n4ry@allowed.example/", "control character"),
        (".url", "http://allowed.example/", "stands before"),
        ("a/.url", "http://allowed.example/", "stands before"),
        ("x.url", &"c4n4ry".repeat(2000), "no URL"),
    ] {
        let said = case.takes(object(Kind::ConfigMap, &[(key, value), ("y", "2")]));
        assert!(said.starts_with("y=2 !") && said.contains(words) && !said.contains("c4n4ry"), "{value:.60}: {said}");
    }
    let own = case.takes(object(Kind::ConfigMap, &[("x", "1"), ("x.url", "http://allowed.example/")]));
    assert!(own.starts_with("x=1 !x.url: key \"x.url\": the object has a key \"x\" as well"), "{own}");
    assert!(server.heads().is_empty());
    // What a server sends, and what the main process reads by itself, names no server.
    assert!(case.takes(object(Kind::Url, &[("x.url", "http://allowed.example/")])).starts_with("x.url="));
    let observed = Update { source: 1, ..changed(object(Kind::Dir, &[("x.url", "http://allowed.example/")])) };
    let Seen::Changed(observed) = case.keys.follow(observed).seen else { panic!() };
    assert!(text(&observed).starts_with("x.url="));
}

#[tokio::test]
async fn what_was_published_before_a_start_stays_while_nothing_can_be_fetched() {
    let server = Server::start(REFUSES);
    let mut case = Case::new("127.0.0.1");
    case.keys.on_top();
    case.takes(object(Kind::ConfigMap, &[("x.url", &server.url("/")), ("z.url", &server.url("/")), ("y", "2")]));
    let absent = case.keys.absent();
    assert_eq!(absent.values().next().unwrap().keys, ["x", "z"]);
    assert!(case.keys.absent().is_empty(), "asked for twice");
    case.until("!x.url").await;
    while case.now().matches('!').count() < 2 {
        let update = timeout(DEADLINE, case.keys.next()).await.unwrap().unwrap();
        case.keys.answered(update);
    }
    assert_eq!(case.waits_for().len(), 1, "it is being read back");
    let id = object(Kind::ConfigMap, &[]).id;
    let published = object(Kind::ConfigMap, &[("x", "old")]);
    let updates = case.keys.restore(&[(id, Some(Arc::new(published)))].into());
    let [Update { source: 0, seen: Seen::Fetched(object) }] = &updates[..] else { panic!("{updates:?}") };
    assert!(text(object).starts_with("x=old y=2 !x.url: "), "{}", text(object));
    assert_eq!(case.waits_for(), [""; 0]);
    server.answer(ok("", "new"));
    case.until("x=new y=2 z=new").await;
}

#[tokio::test]
async fn poller_ends_with_its_key() {
    let server = Server::start(&ok("", "one"));
    let mut case = Case::new("127.0.0.1");
    case.takes(object(Kind::ConfigMap, &[("x.url", &server.url("/"))]));
    case.until("x=one").await;
    let gone = object(Kind::ConfigMap, &[]).id;
    case.keys.follow(Update { source: 0, seen: Seen::Gone(gone) });
    case.takes(object(Kind::ConfigMap, &[("x.url", &server.url("/"))]));
    case.until("x=one").await;
    case.keys.follow(Update { source: 0, seen: Seen::All(BTreeMap::new()) });
    let ended = async { while case.keys.tasks.join_next().await.is_some() {} };
    timeout(DEADLINE, ended).await.expect("they end");
}
