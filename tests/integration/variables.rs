//! Each flag by its variable of the environment, and by its key of `--config`.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use serde_json::Value;
use tempfile::TempDir;

use super::guard::{Pki, code, get, hash};
use super::support::child::{Running, pid_of};
use super::support::hook::{Answer, Hook};
use super::support::sidecar::{SOON, Sidecar, Volume, eventually, run, trimtab};
use super::support::stage::{Stage, metric, problem};

/// Starts by variables, or by files that have the same; notes which were used.
struct Variables {
    used: BTreeSet<String>,
    files: Option<TempDir>,
}

impl Variables {
    fn new() -> Self {
        Self { used: BTreeSet::new(), files: None }
    }

    fn in_files() -> Self {
        Self { files: Some(tempfile::tempdir().unwrap()), ..Self::new() }
    }

    /// What `env` takes.
    fn pairs(&mut self, variables: &[(&str, &str)]) -> Vec<String> {
        self.used.extend(variables.iter().map(|(name, _)| format!("TRIMTAB_{name}")));
        let Some(files) = &self.files else {
            return variables.iter().map(|(name, value)| format!("TRIMTAB_{name}={value}")).collect();
        };
        let number = fs::read_dir(files.path()).unwrap().count();
        let path = files.path().join(format!("{number}.yaml"));
        fs::write(&path, yaml(variables)).unwrap();
        vec![format!("TRIMTAB_CONFIG={}", path.display())]
    }

    fn start(&mut self, stage: &Stage, log: &str, variables: &[(&str, &str)], more: &[&str]) -> Sidecar {
        let pairs = self.pairs(variables);
        let mut program = vec!["env"];
        program.extend(more);
        program.extend(pairs.iter().map(String::as_str));
        Sidecar::start_by(&program, &stage.at(log), Vec::<String>::new())
    }

    fn run(&mut self, variables: &[(&str, &str)]) -> (Option<i32>, String) {
        let pairs = self.pairs(variables);
        run(Command::new("env").args(pairs).arg(env!("CARGO_BIN_EXE_trimtab")))
    }
}

/// The keys of the flags that have these variables.
fn yaml(variables: &[(&str, &str)]) -> String {
    let command = trimtab::cli::command();
    let line = |(name, value): &(&str, &str)| {
        let key = name.to_lowercase().replace('_', "-");
        let arg = command.get_arguments().find(|arg| arg.get_long() == Some(&key)).expect("a flag");
        let plain = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric());
        let scalar = |text: &str| if plain(text) { text.to_owned() } else { Value::from(text).to_string() };
        if matches!(arg.get_action(), clap::ArgAction::Append) {
            let items: Vec<_> = value.split('\n').map(|item| format!("- {}", scalar(item))).collect();
            format!("{key}:\n{}\n", items.join("\n"))
        } else {
            format!("{key}: {}\n", scalar(value))
        }
    };
    variables.iter().map(line).collect()
}

#[test]
fn every_flag_works_by_its_variable() {
    let mut variables = Variables::new();
    works(&mut variables);
    by_variables_a_file(&mut variables);
    assert_eq!(variables.used, all(), "a flag without a test of its variable, or a wrong name");
}

#[test]
fn every_flag_works_by_its_key_of_a_file() {
    let mut variables = Variables::in_files();
    works(&mut variables);
    let mut all = all();
    all.remove("TRIMTAB_CONFIG");
    assert_eq!(variables.used, all);
}

fn all() -> BTreeSet<String> {
    let command = trimtab::cli::command();
    command.get_arguments().filter_map(|arg| Some(arg.get_env()?.to_str()?.to_owned())).collect()
}

fn works(variables: &mut Variables) {
    by_variables_files_templates_and_http(variables);
    by_variables_signs_of_templates(variables);
    by_variables_copies_programs_and_pace(variables);
    by_variables_targets_tls_and_once(variables);
    by_variables_checks(variables);
    by_variables_objects(variables);
    by_variables_servers_and_logs(variables);
    by_variables_rollout(variables);
    by_variables_what_is_observed(variables);
    by_variables_two_files_and_a_program(variables);
    by_variables_urls(variables);
    by_variables_who_may_ask(variables);
}

fn by_variables_who_may_ask(variables: &mut Variables) {
    let (stage, pki) = (Stage::new("x"), Pki::new());
    let [certificate, key] = pki.issue();
    let files = [
        ("LISTEN_CERT_FILE", stage.write("certificate", certificate)),
        ("LISTEN_KEY_FILE", stage.write("key", key)),
        ("LISTEN_CLIENT_CA_FILE", stage.write("ca", pki.ca())),
        ("LISTEN_USERS_FILE", stage.write("users", format!("basic_auth_users: {{me: {}}}", hash("x")))),
    ];
    let (output, volume) = (stage.text("conf"), stage.text("volume"));
    let mut own = vec![("OUTPUT", &*output), ("WATCH_DIR", &volume), ("LISTEN_MIN_TLS", "1.3")];
    own.extend(files.iter().map(|(name, path)| (*name, path.as_str())));
    let sidecar = variables.start(&stage, "log", &own, &[]);
    sidecar.until_idle();
    let address = sidecar.address("--listen");
    let ask = |client, user| code(&get(address, Some(&client), "/readyz", user));
    assert_eq!(ask(pki.client(Some(&pki.issue())), Some(("me", "x"))), 200);
    assert_eq!(ask(pki.client(Some(&pki.issue())), None), 401);
    assert_eq!(ask(pki.client(None), Some(("me", "x"))), 0);
}

fn by_variables_urls(variables: &mut Variables) {
    let stage = Stage::new("x");
    let hook = Hook::start(Some(stage.file()));
    hook.answer(Answer::Echo(200));
    let (output, url) = (stage.text("conf"), format!("geo={}", hook.url()));
    let own = [("OUTPUT", output.as_str()), ("WATCH_URL", url.as_str()), ("URL_POLL", "100ms")];
    let more = [("SECRET_URL", "geo"), ("URL_HEADER", "X-One: 1")];
    let mut sidecar = variables.start(&stage, "log", &[&own[..], &more].concat(), &[]);
    sidecar.until_idle();
    let published = stage.at("conf/reload");
    assert_eq!(fs::metadata(&published).unwrap().permissions().mode() & 0o777, 0o640);
    assert!(fs::read_to_string(&published).unwrap().contains("x-one: 1"));
    eventually("it asks again", || (hook.calls().len() >= 3).then_some(()));
    sidecar.kill();
    let keys = [("URL_KEY", "geo=/no/key"), ("ONCE", "true"), ("ONCE_TIMEOUT", "500ms")];
    let (_, said) = variables.run(&[&own[..], &keys].concat());
    assert!(said.contains("--url-key /no/key"), "{said}");
    hook.answer(Answer::Hang);
    let slow = [("URL_TIMEOUT", "50ms"), ("ONCE", "true"), ("ONCE_TIMEOUT", "500ms")];
    let (_, said) = variables.run(&[&own[..], &slow].concat());
    assert!(said.contains("raise --url-timeout"), "{said}");

    let store = [("OUTPUT", output.as_str()), ("WATCH_URL", "s3://web/x"), ("URL_ANONYMOUS", "true")];
    let (_, said) = variables.run(&[&store[..], &[("URL_INSTANCE_IDENTITY", "true")]].concat());
    assert!(said.contains("--url-anonymous and --url-instance-identity contradict each other"), "{said}");

    hook.answer(Answer::Echo(200));
    let archive = [
        ("ARCHIVE", hook.url()),
        ("ARCHIVE_SECRETS", "true".to_owned()),
        ("FALLBACK_URL", format!("{}/none.tar", hook.url().trim_end_matches('/'))),
        ("FALLBACK_AFTER", "1h".to_owned()),
    ];
    let archive = archive.each_ref().map(|(name, value)| (*name, value.as_str()));
    let mut sidecar = variables.start(&stage, "log", &[&own[..], &more[..1], &archive].concat(), &[]);
    sidecar.until("it is archived", |status| status["archive"]["archived"].is_object());
    sidecar.kill();

    stage.write("x.url", hook.url());
    let keys = [("WATCH_DIR", stage.text("x.url")), ("URL_HOSTS", "localhost,127.0.0.1".to_owned())];
    let keys = keys.each_ref().map(|(name, value)| (*name, value.as_str()));
    let (_, said) = variables.run(&[&own[..1], &keys, &[("ONCE", "true")]].concat());
    assert!(fs::read_to_string(stage.at("conf/x")).is_ok_and(|body| body.starts_with("GET ")), "{said}");

    let cert = rcgen::generate_simple_self_signed(["x".to_owned()]).unwrap().cert.pem();
    let (ca, key) = (stage.write("ca", cert), stage.write("key", "no key"));
    let tls = [("OUTPUT", &*output), ("WATCH_URL", "https://127.0.0.1:1/x"), ("ONCE", "1"), ("ONCE_TIMEOUT", "100ms")];
    for (ca, key, said_of) in [
        ("/no/ca", &*key, "--url-ca-file /no/ca".to_owned()),
        (&ca, "/no/key", "--url-key-file /no/key".to_owned()),
        (&ca, &key, format!("--url-key-file {key}")),
    ] {
        let files = [("URL_CA_FILE", ca), ("URL_CERT_FILE", &*stage.text("ca")), ("URL_KEY_FILE", key)];
        let (_, said) = variables.run(&[&tls[..], &files].concat());
        assert!(said.contains(&said_of), "{said_of}: {said}");
    }
}

fn by_variables_two_files_and_a_program(variables: &mut Variables) {
    let stage = Stage::new("x");
    let hook = Hook::start(None);
    let sidecar = variables.start(
        &stage,
        "log",
        &[
            ("ON_BIND_ERROR", "warn"),
            ("ENVSUBST", &format!("{}:filled", stage.write("app.yml", "$(A) $(B)"))),
            ("ENV", "A=one"),
            ("OUTPUT", &stage.text("conf")),
            ("RELOAD_URL", &hook.url()),
            ("RELOAD_USER", &format!("@{}", stage.write("user", "a"))),
            ("RELOAD_PASSWORD", "$SECRET"),
            ("RELOAD_EXEC", "true"),
        ],
        &["SECRET=b"],
    );
    sidecar.until_idle();
    assert_eq!(fs::read_to_string(stage.at("conf/filled")).unwrap(), "one $(B)");
    assert!(hook.calls()[0].head.iter().any(|head| head.eq_ignore_ascii_case("authorization: Basic YTpi")));
}

fn by_variables_what_is_observed(variables: &mut Variables) {
    let mut stage = Stage::new("1");
    let hook = Hook::start(Some(stage.at("volume/app.conf")));
    let (volume, kept) = (stage.text("volume"), stage.text("state"));
    let sidecar = variables.start(
        &stage,
        "log",
        &[
            ("OBSERVE_DIR", &format!("app={volume}")),
            ("STATE_DIR", &kept),
            ("RELOAD_URL", &hook.url()),
            ("METRICS_AS", "configmap-reload"),
        ],
        &[],
    );
    let status = sidecar.until_idle();
    assert_eq!(status["sources"][0]["name"], "dir/app");
    let error = format!("configmap_reload_last_reload_error{{webhook=\"{}\"}}", hook.url());
    assert_eq!(metric(&sidecar, &error), Some(0.0));
    stage.edit("2");
    eventually("the edit is reloaded", || (hook.last_saw()? == "2").then_some(()));
    assert!(stage.at("state/..trimtab/private/journal.json").exists());
}

fn by_variables_rollout(variables: &mut Variables) {
    let stage = Stage::new("x");
    let (volume, output) = (format!("app={}", stage.text("volume")), stage.text("conf"));
    let more = [("ROLLOUT", "web"), ("ROLLOUT_BAKE", "1s"), ("ROLLOUT_SPREAD", "2s"), ("ONCE", "1")];
    let (code, said) = variables.run(&[&[("WATCH_DIR", &*volume), ("OUTPUT", &*output)][..], &more].concat());
    assert!(code == Some(64) && said.contains("--rollout and --once contradict each other"), "{said}");
    let (code, said) = variables.run(&[("WATCH_DIR", &*volume), ("OUTPUT", &*output), ("FOLDERS", "/a,/b")]);
    assert!(code == Some(64) && said.contains("--folders goes with --layout files"), "{said}");
    let (code, said) = variables.run(&[("WATCH_DIR", &*volume), ("OUTPUT", &*output), ("ROLLOUT_BAKE", "1s")]);
    assert!(code == Some(64) && said.contains("--rollout-bake goes with --rollout"), "{said}");
    for (variable, flag, value) in [
        ("ROLLOUT_GATE_URL", "--rollout-gate-url", "http://127.0.0.1:1/"),
        ("ROLLOUT_HISTORY", "--rollout-history", "no"),
    ] {
        let (code, said) = variables.run(&[("WATCH_DIR", &*volume), ("OUTPUT", &*output), (variable, value)]);
        assert!(code == Some(64) && said.contains(&format!("{flag} goes with --rollout")), "{said}");
    }
}

fn by_variables_files_templates_and_http(variables: &mut Variables) {
    let stage = Stage::new("from the volume");
    for dir in ["extra", "podinfo"] {
        fs::create_dir(stage.at(dir)).unwrap();
    }
    stage.write("extra/password", "from the extra");
    stage.write("podinfo/labels", "app=\"web\"\n");
    let template = stage.write(
        "app.conf.j2",
        "{{ dir('app')['app.conf'] }}, {{ env('A_PUBLIC') }}, {{ env('B_PUBLIC') }}, {{ pod.labels.app }}",
    );
    let secret = stage.write("secret.j2", "{{ dir('extra').password }}, {{ env('A_SECRET') }}");
    let empty = stage.write("empty.j2", "");
    let hooks = [Hook::start(Some(stage.at("conf/app.conf"))), Hook::start(Some(stage.at("conf/moved.conf")))];
    hooks[0].answer(Answer::Code(418));
    let sidecar = variables.start(
        &stage,
        "log",
        &[
            (
                "WATCH_DIR",
                &format!("app={}\nextra={}\nabsent={}", stage.text("volume"), stage.text("extra"), stage.text("no")),
            ),
            ("SECRET_DIR", "extra"),
            ("PUBLIC_DIR", "app\nabsent"),
            ("OPTIONAL", "1"),
            ("ALLOW_EMPTY", "yes"),
            ("OUTPUT", &stage.text("conf")),
            ("TEMPLATE", &format!("{template}\n{secret}:moved.conf\n{empty}")),
            ("SECRET_MODE", "0600"),
            ("MAX_SIZE", "1Mi"),
            ("ENV", "A_PUBLIC\nB_PUBLIC"),
            ("SECRET_ENV", "A_SECRET"),
            ("PODINFO_DIR", &stage.text("podinfo")),
            ("DIGEST_KEY_FILE", &stage.write("key", "k")),
            ("RELOAD_URL", &format!("{}\n{}", hooks[0].url(), hooks[1].url())),
            ("RELOAD_METHOD", "PATCH"),
            ("RELOAD_BODY", "a, b"),
            ("RELOAD_STATUS", "2xx,418"),
            ("RELOAD_HEADER", "X-One: 1, 1\nX-Two: 2"),
            ("RELOAD_TOKEN_FILE", &stage.write("token", "t0ken")),
            ("RELOAD_TIMEOUT", "250ms"),
            ("RELOAD_ATTEMPTS", "2"),
            ("ON_REJECT", "hold"),
            ("RETRY_MIN", "20ms"),
            ("RETRY_MAX", "40ms"),
        ],
        &["A_PUBLIC=one", "B_PUBLIC=two", "A_SECRET=three"],
    );
    sidecar.until_idle();
    assert_eq!(hooks[0].last_saw().as_deref(), Some("from the volume, one, two, web"));
    assert_eq!(hooks[1].last_saw().as_deref(), Some("from the extra, three"));
    assert_eq!(fs::read(stage.at("conf/empty")).unwrap(), b"");
    assert_eq!(fs::metadata(stage.at("conf/moved.conf")).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(!stage.at("conf/..trimtab/private/key").exists(), "the key is the given one");
    for hook in &hooks {
        let call = &hook.calls()[0];
        assert_eq!((call.head[0].as_str(), call.body.as_str()), ("PATCH /-/reload HTTP/1.1", "a, b"));
        for line in ["x-one: 1, 1", "x-two: 2", "authorization: Bearer t0ken"] {
            assert!(call.head.iter().any(|head| head.eq_ignore_ascii_case(line)), "{line} is not in {call:?}");
        }
    }
    hooks[0].answer(Answer::Hang);
    let edit = |name: &str, content: &str| {
        stage.write("new", content);
        fs::rename(stage.at("new"), stage.at(name)).unwrap();
    };
    edit("empty.j2", "x");
    sidecar.until("it is slow", |status| problem(status, "reload").contains("within 250ms"));
    let before = hooks[0].calls().len();
    hooks[0].answer(Answer::Code(500));
    sidecar.until("it is held", |status| status["phase"] == "held");
    assert!(hooks[0].calls().len() >= before + 2);
    edit("empty.j2", &"x".repeat(2 << 20));
    let status = sidecar.until("it is too large", |status| status["sources"].to_string().contains("--max-size"));
    assert_eq!(status["published"]["sequence"], 2);
}

fn by_variables_signs_of_templates(variables: &mut Variables) {
    let stage = Stage::new("from the volume");
    fs::create_dir(stage.at("rules")).unwrap();
    stage.write("rules/app.conf.tpl", "[[ dir('app')['app.conf'] ]]");
    let copied = "{{ $labels.instance }} and [[ nobody.reads.this ]]";
    stage.write("rules/alerts.yml", copied);
    let sidecar = variables.start(
        &stage,
        "log",
        &[
            ("WATCH_DIR", &format!("app={}", stage.text("volume"))),
            ("OUTPUT", &stage.text("conf")),
            ("TEMPLATE", &stage.text("rules")),
            ("TEMPLATE_SUFFIX", ".tpl"),
            ("TEMPLATE_DELIMITERS", "[[ ]]"),
        ],
        &[],
    );
    sidecar.until_idle();
    assert_eq!(fs::read_to_string(stage.at("conf/app.conf")).unwrap(), "from the volume");
    assert_eq!(fs::read_to_string(stage.at("conf/alerts.yml")).unwrap(), copied);
}

fn by_variables_copies_programs_and_pace(variables: &mut Variables) {
    let stage = Stage::new("1");
    let script = stage.write("reload.sh", format!("echo ran >> {}", stage.text("ran")));
    let ran = || fs::read_to_string(stage.at("ran")).unwrap_or_default().lines().count();
    fs::create_dir(stage.at("plain")).unwrap();
    stage.write("plain/kept", "1");
    stage.write("plain/gone", "1");
    let sidecar = variables.start(
        &stage,
        "log",
        &[
            ("WATCH_DIR", &format!("app={}", stage.text("plain"))),
            ("PUBLIC_DIR", "app"),
            ("OUTPUT", &stage.text("conf")),
            ("PATH", "{kind}/{name}/{key}"),
            ("ON_COLLISION", "last"),
            ("REFUSE_KEYS", ".url"),
            ("FILE_MODE", "0604"),
            ("LAYOUT", "files"),
            ("ON_DELETE", "apply"),
            ("POLL_INTERVAL", "300ms"),
            ("RELOAD_EXEC", &format!("sh '{script}'")),
            ("RELOAD_MIN_INTERVAL", "10ms"),
            ("RELOAD_SPLAY", "10ms"),
            ("DEBOUNCE", "10ms"),
            ("DEBOUNCE_MAX", "20ms"),
        ],
        &[],
    );
    sidecar.until_idle();
    assert_eq!(ran(), 1);
    let kept = stage.at("conf/dir/app/kept");
    assert_eq!(fs::metadata(&kept).unwrap().permissions().mode() & 0o777, 0o604);
    assert!(!fs::symlink_metadata(stage.at("conf/dir")).unwrap().is_symlink(), "a file in its place, by LAYOUT");
    fs::remove_file(stage.at("plain/gone")).unwrap();
    eventually("the deletion is applied", || (!stage.at("conf/dir/app/gone").exists()).then_some(()));
    // Written in place and not closed: only the poll can see it.
    let mut file = fs::OpenOptions::new().write(true).open(stage.at("plain/kept")).unwrap();
    file.write_all(b"2").unwrap();
    eventually("the poll finds it", || (fs::read(&kept).ok()? == b"2").then_some(()));
    sidecar.until("all is delivered", |status| status["phase"] == "idle" && status["confirmed"]["sequence"] == 3);
    assert_eq!(ran(), 3);

    // The paces themselves: with these, nothing that changes is published for an hour.
    for (log, name) in [("log-1", "RELOAD_MIN_INTERVAL"), ("log-2", "RELOAD_SPLAY"), ("log-3", "DEBOUNCE")] {
        let mut stage = Stage::new("1");
        let mut vars = vec![(name, "1h"), ("OUTPUT", ""), ("WATCH_DIR", ""), ("DEBOUNCE_MAX", "1h")];
        let (output, volume) = (stage.text("conf"), stage.text("volume"));
        (vars[1].1, vars[2].1) = (&output, &volume);
        let sidecar = variables.start(&stage, log, &vars, &[]);
        sidecar.until_idle();
        stage.edit("2");
        sidecar.until("it is put off", |status| status["phase"] == "settling");
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(sidecar.status()["phase"], "settling", "{name}");
    }
}

fn by_variables_checks(variables: &mut Variables) {
    let mut stage = Stage::new("state good 1");
    let (output, volume) = (stage.text("conf"), stage.text("volume"));
    let own = [("OUTPUT", output.as_str()), ("WATCH_DIR", volume.as_str()), ("DEBOUNCE", "10ms")];
    let hook = Hook::start(Some(stage.file()));
    hook.answer(Answer::Echo(418));
    let url = hook.url();
    let programs = "sh -c '! grep -q bad $0/app.conf' {dir}\nsh -c 'grep -q slow $0/app.conf && sleep 60; true' {dir}";
    let checks = [
        ("SYNTAX", "strict"),
        ("VALIDATE", programs),
        ("VALIDATE_TIMEOUT", "300ms"),
        ("CONFIRM_URL", &url),
        ("CONFIRM_STATUS", "418"),
        ("CONFIRM_MATCH", "state good"),
        ("CONFIRM_CHANGED", r"state \S+ (\S+)"),
        ("CONFIRM_TIMEOUT", "300ms"),
    ];
    let sidecar = variables.start(&stage, "log", &[&own[..], &checks].concat(), &[]);
    sidecar.until_idle();
    for (content, reported) in [
        ("state good bad", "exit code 1"),
        ("state good slow", "--validate-timeout"),
        ("state poor 2", "--confirm-match"),
        ("state good 1 still", "--confirm-changed"),
    ] {
        stage.edit(content);
        let status = sidecar.until(content, |status| status["quarantine"]["reason"].to_string().contains(reported));
        assert!(reported.starts_with("--confirm") == (status["quarantine"]["stage"] == "confirm"), "{status}");
        // What was the same before the last of them is the same after its rollback.
        if reported != "--confirm-changed" {
            sidecar.until_idle();
        }
    }
    stage.volume.swap(&[("app.conf", "state good 3"), ("app.json", "{")]);
    sidecar.until("it is malformed", |status| status["quarantine"]["reason"].to_string().contains("app.json"));

    // Its children live for too short a time.
    let target = Running(Command::new("sh").args(["-c", "while :; do sleep 0.02; done"]).spawn().unwrap());
    let pid_file = stage.write("pid", target.0.id().to_string());
    let hook = Hook::start(None);
    let url = hook.url();
    let alive = [
        ("RELOAD_URL", url.as_str()),
        ("PID_FILE", &pid_file),
        ("CONFIRM_ALIVE", "2s"),
        ("CONFIRM_WORKERS", "true"),
        ("CONFIRM_TIMEOUT", "3s"),
    ];
    let other = stage.text("other");
    let own = [("OUTPUT", other.as_str()), ("WATCH_DIR", volume.as_str())];
    let sidecar = variables.start(&stage, "log-alive", &[&own[..], &alive].concat(), &[]);
    let reported = |status: &Value| problem(status, "confirm").contains("lived for 2s (--confirm-workers)");
    sidecar.until("it has no workers", reported);
}

fn by_variables_targets_tls_and_once(variables: &mut Variables) {
    let stage = Stage::new("1");
    let (output, volume) = (stage.text("conf"), stage.text("volume"));
    let own = [("OUTPUT", output.as_str()), ("WATCH_DIR", volume.as_str())];
    let pid_file = stage.write("pid", "999999999");
    let target = [("SIGNAL", "usr1"), ("PROCESS", "nobody"), ("PROCESS_ARGS", "a b"), ("PID_FILE", &pid_file)];
    let mut sidecar = variables.start(&stage, "log-1", &[&own[..], &target].concat(), &[]);
    let flags = format!("--process nobody --process-args 'a b' --pid-file {pid_file}");
    sidecar.until("it is missed", |status| problem(status, "reload").contains(&flags));
    sidecar.kill();
    let (code, said) = variables.run(&[&own[..], &[("SIGNAL", "KILL"), ("PROCESS", "nobody")]].concat());
    assert!(code == Some(64) && said.contains("--signal"), "{said}");

    let url = ("RELOAD_URL", "https://127.0.0.1:1/");
    for (files, flag) in [
        (&[("RELOAD_CA_FILE", "/no/ca")][..], "--reload-ca-file /no/ca"),
        (&[("RELOAD_AUTH_FILE", "/no/auth")], "--reload-auth-file /no/auth"),
        (
            &[("RELOAD_CERT_FILE", "/no/cert"), ("RELOAD_KEY_FILE", "/no/key"), ("RELOAD_INSECURE", "true")],
            "--reload-cert-file /no/cert",
        ),
    ] {
        let mut sidecar =
            variables.start(&stage, flag.split_once(' ').unwrap().0, &[&own[..], &[url], files].concat(), &[]);
        sidecar.until(flag, |status| problem(status, "reload").contains(flag));
        sidecar.kill();
    }
    let key = stage.write("key", "no key");
    let cert = rcgen::generate_simple_self_signed(["x".to_owned()]).unwrap().cert.pem();
    let cert = stage.write("cert", cert);
    let pair = [url, ("RELOAD_CERT_FILE", &cert), ("RELOAD_KEY_FILE", &key), ("RELOAD_INSECURE", "true")];
    let mut sidecar = variables.start(&stage, "log-key", &[&own[..], &pair].concat(), &[]);
    sidecar.until("the key", |status| problem(status, "reload").contains(&format!("--reload-key-file {key}")));
    sidecar.kill();
    let both = [url, ("RELOAD_CA_FILE", "/x"), ("RELOAD_INSECURE", "true")];
    let (code, said) = variables.run(&[&own[..], &both].concat());
    assert!(code == Some(64) && said.contains("--reload-insecure"), "{said}");
    let (code, said) = variables.run(&[&own[..], &[url, ("RELOAD_INSECURE", "false"), ("ONCE", "true")]].concat());
    assert_eq!(code, Some(0), "{said}");

    let used = stage.text("used");
    fs::create_dir(&used).unwrap();
    stage.write("used/file", "");
    let used = [("OUTPUT", used.as_str()), ("WATCH_DIR", "/no/such"), ("LAYOUT", "files"), ("ONCE", "true")];
    let (code, said) = variables.run(&[&used[..], &[("ONCE_IF_EMPTY", "true")]].concat());
    assert!(code == Some(0) && said.contains("they stay"), "{said}");
    let absent = [("OUTPUT", output.as_str()), ("WATCH_DIR", "/no/such"), ("ONCE", "true"), ("ONCE_TIMEOUT", "100ms")];
    let began = Instant::now();
    let (code, said) = variables.run(&absent);
    assert!(code == Some(69) && began.elapsed() < SOON, "{said}");
}

fn by_variables_a_file(variables: &mut Variables) {
    let stage = Stage::new("1");
    let file = stage.write("trimtab.yaml", "watch-dir: /no/such\nonce: true\nonce-timeout: 100ms\n");
    let (code, said) = variables.run(&[("CONFIG", &file), ("OUTPUT", &stage.text("conf"))]);
    assert!(code == Some(69) && said.contains("waiting for dir/such"), "{code:?}: {said}");
}

fn by_variables_objects(variables: &mut Variables) {
    let stage = Stage::new("1");
    let context = |name: &str, namespace: &str| {
        format!("- {{name: {name}, context: {{cluster: c, user: u, namespace: {namespace}}}}}\n")
    };
    let kubeconfig = stage.write(
        "kubeconfig",
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: one\nclusters:\n\
             - {{name: c, cluster: {{server: 'http://127.0.0.1:1'}}}}\nusers:\n- {{name: u, user: {{}}}}\ncontexts:\n{}{}",
            context("one", "first"),
            context("two", "second")
        ),
    );
    let output = stage.text("conf");
    let own = [("OUTPUT", output.as_str()), ("KUBECONFIG", &kubeconfig)];
    let names = |sidecar: &Sidecar| {
        let status = sidecar.until("the sources are in trouble", |status| {
            status["sources"].as_array().is_some_and(|all| all.iter().all(|source| source["message"].is_string()))
        });
        let sources = status["sources"].as_array().unwrap();
        sources.iter().map(|source| source["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let by_name = [("CONFIGMAP", "web\nother/db"), ("SECRET", "s\nother/t"), ("CONTEXT", "two")];
    let mut sidecar = variables.start(&stage, "log-1", &[&own[..], &by_name].concat(), &[]);
    let expected = ["configmap/second/web", "configmap/other/db", "secret/second/s", "secret/other/t"];
    assert_eq!(names(&sidecar), expected);
    sidecar.kill();
    let selected = [("SELECTOR", "app in (a, b),tier=web"), ("RESOURCE", "both"), ("NAMESPACE", "n\nm")];
    let mut sidecar = variables.start(&stage, "log-2", &[&own[..], &selected].concat(), &[]);
    let expected =
        ["configmap/n", "secret/n", "configmap/m", "secret/m"].map(|kind| format!("{kind}/[{}]", selected[0].1));
    assert_eq!(names(&sidecar), expected);
    sidecar.kill();
    let all = [("SELECTOR", "a"), ("RESOURCE", "secret"), ("ALL_NAMESPACES", "1")];
    let sidecar = variables.start(&stage, "log-3", &[&own[..], &all].concat(), &[]);
    assert_eq!(names(&sidecar), ["secret/*/[a]"]);
}

fn by_variables_servers_and_logs(variables: &mut Variables) {
    let stage = Stage::new("1");
    let hook = Hook::start(None);
    hook.answer(Answer::Hang);
    let pairs = variables.pairs(&[
        ("OUTPUT", &stage.text("conf")),
        ("WATCH_DIR", &stage.text("volume")),
        ("LISTEN", "127.0.0.1:0"),
        ("ADMIN", "localhost:0"),
        ("LOG_FORMAT", "json"),
        ("LOG_LEVEL", "debug"),
        ("SHUTDOWN_GRACE", "200ms"),
        ("RELOAD_URL", &hook.url()),
    ]);
    let log = fs::File::create(stage.at("log")).unwrap();
    let command = Command::new("env").args(pairs).arg(env!("CARGO_BIN_EXE_trimtab")).stderr(log).spawn();
    let mut sidecar = Running(command.unwrap());
    eventually("the hook is called", || (!hook.calls().is_empty()).then_some(()));
    let pid = pid_of(&sidecar.0);
    let asked = Instant::now();
    kill(pid, Signal::SIGTERM).unwrap();
    let status = eventually("an end", || sidecar.0.try_wait().unwrap());
    assert!(status.code() == Some(143) && asked.elapsed() < SOON, "{status}, {:?}", asked.elapsed());
    let log = fs::read_to_string(stage.at("log")).unwrap();
    for part in ["--listen serves on 127.0.0.1:", "--admin serves on 127.0.0.1:", "\"level\":\"DEBUG\""] {
        assert!(log.contains(part), "{part} is not in {log}");
    }
}

#[test]
fn flags_beat_variables() {
    let stage = Stage::new("1");
    let hooks = [Hook::start(Some(stage.file())), Hook::start(None)];
    let mut variables = Variables::new();
    let others = variables.pairs(&[
        ("OUTPUT", "/nowhere/at/all"),
        ("WATCH_DIR", "/nowhere\n/at/all"),
        ("RELOAD_URL", &hooks[1].url()),
        ("RELOAD_METHOD", "PUT"),
        ("RELOAD_HEADER", "X-Variable: 1"),
        ("DEBOUNCE", "1h"),
        ("LISTEN", "203.0.113.1:1"),
    ]);
    let program: Vec<_> = ["env"].into_iter().chain(others.iter().map(String::as_str)).collect();
    let url = hooks[0].url();
    let more = ["--reload-url", &url, "--reload-method", "PATCH", "--reload-header", "X-Flag: 1"];
    let sidecar = stage.start_by(&program, &more);
    let status = sidecar.until_idle();
    assert_eq!(status["sources"].as_array().unwrap().len(), 1, "a list is replaced, not added to");
    let call = &hooks[0].calls()[0];
    assert_eq!(call.head[0], "PATCH /-/reload HTTP/1.1");
    assert!(call.head.iter().any(|line| line.eq_ignore_ascii_case("x-flag: 1")));
    assert!(!call.head.iter().any(|line| line.to_lowercase().contains("variable")));
    assert!(hooks[1].calls().is_empty());
}

/// A flag wins over a variable, a variable over the file, and the file over the default. The file is a key of a mounted
/// ConfigMap.
#[test]
fn flags_beat_variables_and_both_beat_the_file() {
    let stage = Stage::new("1");
    let hook = Hook::start(Some(stage.file()));
    let url = hook.url();
    let file = yaml(&[
        ("OUTPUT", &stage.text("conf")),
        ("WATCH_DIR", "/nowhere\n/at/all"),
        ("RELOAD_URL", &url),
        ("RELOAD_METHOD", "PUT"),
        ("RELOAD_HEADER", "X-File: 1\nX-Other: 1"),
        ("RELOAD_BODY", "from the file"),
        ("ONCE", "true"),
    ]);
    let settings = Volume::new(stage.at("settings"), &[("trimtab.yaml", &file)]);
    let config = settings.path.join("trimtab.yaml").to_str().unwrap().to_owned();
    let watched = format!("TRIMTAB_WATCH_DIR={}", stage.text("volume"));
    let program =
        ["env", "TRIMTAB_RELOAD_METHOD=PATCH", "TRIMTAB_RELOAD_HEADER=X-Variable: 1", "TRIMTAB_ONCE=no", &watched];
    let flags = ["--config", &config, "--reload-header", "X-Flag: 1"];
    let sidecar = Sidecar::start_by(&program, &stage.at("log"), flags);
    let status = sidecar.until_idle();
    assert_eq!(status["sources"].as_array().unwrap().len(), 1, "a list is replaced, not added to");
    let call = &hook.calls()[0];
    assert_eq!((call.head[0].as_str(), call.body.as_str()), ("PATCH /-/reload HTTP/1.1", "from the file"));
    let has = |header: &str| call.head.iter().any(|line| line.eq_ignore_ascii_case(header));
    assert!(has("x-flag: 1") && !has("x-variable: 1") && !has("x-file: 1") && !has("x-other: 1"), "{call:?}");
    // The subcommands read it as well; what concerns them not is left aside.
    stage.write("short.yaml", format!("{file}admin: {}\n", sidecar.address("--admin")));
    let short = stage.text("short.yaml");
    for subcommand in [&["render", "--watch-dir", &stage.text("volume")][..], &["status"], &["retry"]] {
        let (code, said) = run(trimtab().args(subcommand).args(["--config", &short]));
        assert_eq!(code, Some(0), "{subcommand:?}: {said}");
    }
}

#[test]
fn variables_are_never_printed() {
    let canary = "c4n4ry-value";
    let command = trimtab::cli::command();
    let names: Vec<_> = command.get_arguments().filter_map(|arg| Some(arg.get_env()?.to_owned())).collect();
    for args in [&["--help"][..], &["-h"], &["--version"], &["status", "--help"], &["retry", "--help"]] {
        let mut command = trimtab();
        command.args(args).envs(names.iter().map(|name| (name, canary)));
        let (code, said) = run(&mut command);
        assert_eq!(code, Some(0), "{said}");
        assert!(!said.is_empty() && !said.contains(canary), "{args:?}: {said}");
    }
    // Nor by an error about something else.
    let secrets = ["RELOAD_BODY", "RELOAD_HEADER", "RELOAD_EXEC", "RELOAD_URL"].map(|name| format!("TRIMTAB_{name}"));
    let mut command = trimtab();
    command.args(["--output", "/x", "--watch-dir", "/y"]).envs(secrets.iter().map(|name| (name, canary)));
    let (code, said) = run(&mut command);
    assert_eq!(code, Some(64));
    assert!(!said.contains(canary), "{said}");
}
