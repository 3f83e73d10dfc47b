//! Wrong usage: which settings are refused, and that the message names the flags and no credential.

use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use super::support::sidecar::{run, trimtab};

const FILES: &[&str] = &["--output", "/tmp/trimtab-none/out", "--watch-dir", "/tmp/trimtab-none/in"];
const API: &[&str] = &["--output", "/tmp/trimtab-none/out", "--kubeconfig", "/dev/null"];
const URL: &[&str] =
    &["--output", "/tmp/trimtab-none/out", "--watch-dir", "/tmp/trimtab-none/in", "--reload-url", "http://x/"];

/// Each line: flags to begin with, those that are wrong, and what the message must name.
const WRONG: &[(&[&str], &[&str], &[&str])] = &[
    // Nothing, too little, too much.
    (&[], &[], &["--output"]),
    (&[], &["--watch-dir", "/x"], &["--output"]),
    (&["--output", "/x"], &[], &["--configmap", "--secret", "--selector", "--watch-dir"]),
    (FILES, &["--no-such-flag"], &["--no-such-flag"]),
    (FILES, &["--reload-ulr", "http://x/"], &["--reload-ulr", "--reload-url"]),
    (FILES, &["no-such-command"], &["no-such-command"]),
    (FILES, &["status"], &["status"]),
    (&["status"], &["--output", "/x"], &["--output"]),
    (FILES, &["--output", "/y"], &["--output"]),
    (FILES, &["--debounce"], &["--debounce"]),
    (FILES, &["--once=yes"], &["--once"]),
    // Sources.
    (FILES, &["--resource", "both"], &["--resource", "--selector"]),
    (FILES, &["--all-namespaces"], &["--all-namespaces", "--selector"]),
    (API, &["--selector", "a", "--all-namespaces", "--namespace", "n"], &["--all-namespaces", "--namespace"]),
    (FILES, &["--context", "c"], &["--context", "--kubeconfig"]),
    (FILES, &["--kubeconfig", "/x"], &["--kubeconfig", "--configmap", "--secret", "--selector"]),
    (FILES, &["--namespace", "n"], &["--namespace", "--configmap", "--secret", "--selector"]),
    (API, &["--configmap", "n/a", "--configmap", "n/a"], &["--configmap", "n/a", "twice"]),
    (API, &["--configmap", "a", "--configmap", "n/a", "--namespace", "n"], &["--configmap", "n/a", "twice"]),
    (API, &["--secret", "n/a", "--secret", "n/a"], &["--secret", "n/a", "twice"]),
    (API, &["--configmap", "a", "--namespace", "n", "--namespace", "m"], &["--namespace", "--configmap NAMESPACE/a"]),
    (API, &["--secret", "a", "--namespace", "n", "--namespace", "m"], &["--namespace", "--secret NAMESPACE/a"]),
    (API, &["--configmap", "a"], &["--namespace", "--kubeconfig /dev/null"]),
    (API, &["--selector", "a"], &["--namespace", "--kubeconfig /dev/null"]),
    (&["--output", "/x", "--configmap", "a"], &[], &["--namespace", "--kubeconfig"]),
    (API, &["--configmap", "n/a", "--context", "c", "--configmap", "b"], &["--namespace", "--kubeconfig /dev/null"]),
    (FILES, &["--watch-dir", "/y/in"], &["--watch-dir", "\"in\"", "NAME=PATH"]),
    (FILES, &["--public-dir", "out"], &["--public-dir out", "--watch-dir"]),
    (FILES, &["--secret-dir", "out"], &["--secret-dir out", "--watch-dir"]),
    (FILES, &["--secret-dir", "in", "--public-dir", "in"], &["--secret-dir in", "--public-dir in"]),
    (API, &["--configmap", "a", "--namespace", "N S"], &["--namespace", "lower-case"]),
    (API, &["--configmap", "n/a", "--namespace", ""], &["--namespace", "lower-case"]),
    (API, &["--selector", ""], &["--selector", "everything"]),
    (API, &["--configmap", "A"], &["--configmap"]),
    (API, &["--configmap", "n/"], &["--configmap"]),
    (API, &["--configmap", "a/b/c"], &["--configmap"]),
    (API, &["--configmap", "n/.."], &["--configmap"]),
    (API, &["--secret", ""], &["--secret"]),
    (API, &["--selector", "a", "--resource", "pod"], &["--resource", "configmap, secret, both"]),
    (FILES, &["--on-delete", "never"], &["--on-delete", "keep, apply"]),
    (FILES, &["--watch-dir", "/"], &["--watch-dir", "NAME=PATH"]),
    (FILES, &["--watch-dir", "a="], &["--watch-dir"]),
    (FILES, &["--poll-interval", "60"], &["--poll-interval", "1m30s"]),
    (FILES, &["--watch-dir", "/tmp/trimtab-none/out/below"], &["--output", "keep them apart"]),
    (FILES, &["--watch-dir", "/tmp"], &["--output", "keep them apart"]),
    (FILES, &["--template", "/tmp/trimtab-none/out/a.j2"], &["--output", "keep them apart"]),
    (FILES, &["--podinfo-dir", "/tmp/trimtab-none/out"], &["--output", "keep them apart"]),
    // Output.
    (FILES, &["--template", "/a.j2", "--path", "{key}"], &["--path", "--template"]),
    (FILES, &["--path", "{key"], &["--path", "brace"]),
    (FILES, &["--path", "{nmae}/{key}"], &["--path", "{nmae}", "{name}"]),
    (FILES, &["--path", "{name}"], &["--path", "{key}"]),
    (FILES, &["--path", "../{key}"], &["--path"]),
    (FILES, &["--path", "/{key}"], &["--path"]),
    (FILES, &["--env", "A"], &["--env", "--template"]),
    (FILES, &["--secret-env", "A"], &["--secret-env", "--template"]),
    (FILES, &["--template", "/a.j2", "--env", "A", "--secret-env", "A"], &["--env A", "--secret-env A"]),
    (FILES, &["--template", ":x"], &["--template", "SRC:DEST"]),
    (FILES, &["--template", "/a.j2:"], &["--template", "SRC:DEST"]),
    (FILES, &["--template", "/a.j2:/etc/foo"], &["--template /a.j2:/etc/foo", "it is absolute"]),
    (FILES, &["--template", "/a.j2:../foo"], &["--template /a.j2:../foo", "starts with '..'"]),
    (FILES, &["--template", "/a.j2:./foo"], &["--template", "a segment is '.'"]),
    (FILES, &["--template", "/a:b//c/"], &["--template", "a segment is empty"]),
    (FILES, &["--template", "/a:/"], &["--template /a:/"]),
    (FILES, &["--file-mode", "rw"], &["--file-mode", "0644"]),
    (FILES, &["--file-mode", "4755"], &["--file-mode"]),
    (FILES, &["--secret-mode", "0040"], &["--secret-mode", "owner"]),
    (FILES, &["--max-size", "1MB"], &["--max-size", "64Ki"]),
    (FILES, &["--max-size", "0"], &["--max-size", "zero"]),
    (FILES, &["--max-size", "99999999999Gi"], &["--max-size", "too large"]),
    // Validate.
    (FILES, &["--syntax", "loose"], &["--syntax", "strict, warn, off"]),
    (FILES, &["--validate", "check '{dir}"], &["--validate (number 1)", "quote"]),
    (FILES, &["--validate", "a {dir}", "--validate", ""], &["--validate (number 2)", "no program"]),
    (FILES, &["--validate", "nginx -t"], &["--validate nginx", "{dir}"]),
    (FILES, &["--validate-timeout", "0"], &["--validate-timeout"]),
    // Reload.
    (URL, &["--signal", "HUP", "--process", "x"], &["--signal", "--reload-url"]),
    (URL, &["--reload-user", "c4n4ry", "--reload-password", "$HOME"], &["--reload-user", "@FILE or $NAME"]),
    (URL, &["--reload-user", "$HOME"], &["--reload-user needs --reload-password"]),
    (URL, &["--reload-user", "@/u", "--reload-password", "$NOT_SET_ANYWHERE"], &["--reload-password", "not set"]),
    (
        URL,
        &["--reload-user", "@/u", "--reload-password", "@/p", "--reload-auth-file", "/a"],
        &["--reload-auth-file", "Authorization"],
    ),
    (FILES, &["--refuse-keys", ""], &["--refuse-keys", "every key"]),
    (FILES, &["--url-hosts", "*.example"], &["--url-hosts", "wildcard"]),
    (FILES, &["--url-hosts", "x", "--template", "/t"], &["--url-hosts", "--template", "plain copies"]),
    (FILES, &["--envsubst", "/x:../y"], &["--envsubst /x:../y"]),
    (FILES, &["--envsubst", "/x", "--path", "{key}"], &["--path", "--envsubst"]),
    (FILES, &["--envsubst", "/x", "--env", "A={pod.ordinal}"], &["--env A", "POD_NAME"]),
    (FILES, &["--signal", "HUP", "--process", "x", "--reload-exec", "x"], &["--signal", "--reload-exec"]),
    (FILES, &["--signal", "HUP"], &["--signal", "--process", "--process-args", "--pid-file"]),
    (FILES, &["--signal", "HUPP", "--process", "x"], &["--signal HUPP", "SIGHUP"]),
    (FILES, &["--signal", "9", "--process", "x"], &["--signal 9", "SIGKILL"]),
    (FILES, &["--signal", "SIGSTOP", "--process", "x"], &["--signal SIGSTOP"]),
    (FILES, &["--signal", "HUP", "--process", "/bin/x"], &["--process", "base name"]),
    (FILES, &["--signal", "HUP", "--process", ""], &["--process"]),
    (FILES, &["--signal", "HUP", "--process-args", "("], &["--process-args"]),
    (FILES, &["--process", "x", "--confirm-alive", "0"], &["--process", "--signal", "--confirm-alive"]),
    (FILES, &["--confirm-alive", "1s"], &["--confirm-alive", "--process"]),
    (FILES, &["--confirm-workers"], &["--confirm-workers", "--process"]),
    (URL, &["--confirm-status", "200"], &["--confirm-status", "--confirm-url"]),
    (URL, &["--confirm-match", "x"], &["--confirm-match", "--confirm-url"]),
    (URL, &["--confirm-changed", "x"], &["--confirm-changed", "--confirm-url"]),
    (URL, &["--confirm-url", "localhost"], &["--confirm-url"]),
    (URL, &["--confirm-url", "http://x", "--confirm-status", "2"], &["--confirm-status 2"]),
    (URL, &["--confirm-url", "http://x", "--confirm-match", "("], &["--confirm-match"]),
    (URL, &["--confirm-url", "http://x", "--confirm-changed", "("], &["--confirm-changed"]),
    (URL, &["--confirm-timeout", "0"], &["--confirm-timeout"]),
    (URL, &["--process", "x", "--confirm-timeout", "2s"], &["--confirm-alive", "--confirm-timeout"]),
    (FILES, &["--on-reject", "maybe"], &["--on-reject"]),
    (FILES, &["--pid-file", "/x", "--confirm-alive", "0"], &["--pid-file", "--signal"]),
    (URL, &["--pid-file", "/x", "--confirm-alive", "0"], &["--pid-file", "--signal"]),
    (FILES, &["--reload-method", "PUT"], &["--reload-method", "--reload-url"]),
    (FILES, &["--reload-body", "x"], &["--reload-body", "--reload-url"]),
    (FILES, &["--reload-status", "2xx"], &["--reload-status", "--reload-url"]),
    (FILES, &["--reload-header", "A: b"], &["--reload-header", "--reload-url"]),
    (FILES, &["--reload-auth-file", "/x"], &["--reload-auth-file", "--reload-url"]),
    (FILES, &["--reload-token-file", "/x"], &["--reload-token-file", "--reload-url"]),
    (FILES, &["--reload-ca-file", "/x"], &["--reload-ca-file", "--reload-url"]),
    (FILES, &["--reload-cert-file", "/x"], &["--reload-cert-file", "--reload-url"]),
    (FILES, &["--reload-key-file", "/x"], &["--reload-key-file", "--reload-url"]),
    (FILES, &["--reload-insecure"], &["--reload-insecure", "--reload-url"]),
    (URL, &["--reload-url", "ftp://x/"], &["--reload-url (number 2)", "http://"]),
    (URL, &["--reload-url", "x/y"], &["--reload-url (number 2)", "http://"]),
    (URL, &["--reload-url", "http:///x"], &["--reload-url (number 2)"]),
    (URL, &["--reload-url", "http://x:99999/"], &["--reload-url (number 2)"]),
    (URL, &["--reload-url", "http://x:0/"], &["--reload-url (number 2)", "port"]),
    (URL, &["--reload-url", "unix://x.sock"], &["--reload-url (number 2)", "unix:///path"]),
    (URL, &["--reload-url", "http://x/a b"], &["--reload-url (number 2)", "percent-encoded"]),
    (URL, &["--reload-method", "PO ST"], &["--reload-method", "POST"]),
    (URL, &["--reload-status", "ok"], &["--reload-status ok", "2xx"]),
    (URL, &["--reload-status", "299-200"], &["--reload-status"]),
    (URL, &["--reload-status", "99"], &["--reload-status"]),
    (URL, &["--reload-header", "A"], &["--reload-header (number 1)", "Name: value"]),
    (URL, &["--reload-header", "A: b", "--reload-header", "A B: c"], &["--reload-header (number 2)", "name"]),
    (URL, &["--reload-header", ": c"], &["--reload-header (number 1)", "name"]),
    (URL, &["--reload-header", "A: b\u{1}"], &["--reload-header (number 1)", "value"]),
    (URL, &["--reload-header", "Content-Length: 3"], &["--reload-header", "content-length"]),
    (URL, &["--reload-header", "Transfer-Encoding: x"], &["--reload-header", "transfer-encoding"]),
    (URL, &["--reload-auth-file", "/x", "--reload-token-file", "/y"], &["--reload-auth-file", "--reload-token-file"]),
    (
        URL,
        &["--reload-header", "Authorization: @/x", "--reload-token-file", "/y"],
        &["--reload-header", "--reload-token-file"],
    ),
    (
        URL,
        &["--reload-header", "authorization: @/x", "--reload-auth-file", "/y"],
        &["--reload-header", "--reload-auth-file"],
    ),
    (URL, &["--reload-key-file", "/x"], &["--reload-cert-file", "--reload-key-file"]),
    (URL, &["--reload-insecure", "--reload-ca-file", "/x"], &["--reload-insecure", "--reload-ca-file"]),
    (FILES, &["--reload-exec", ""], &["--reload-exec", "no program"]),
    (FILES, &["--reload-exec", "a \"b"], &["--reload-exec", "quote"]),
    (FILES, &["--reload-timeout", "0"], &["--reload-timeout"]),
    (FILES, &["--reload-timeout", "1.5s"], &["--reload-timeout", "1m30s"]),
    (FILES, &["--reload-attempts", "0"], &["--reload-attempts"]),
    (FILES, &["--reload-attempts", "x"], &["--reload-attempts"]),
    (FILES, &["--retry-min", "2s", "--retry-max", "1s"], &["--retry-min", "--retry-max"]),
    (FILES, &["--retry-max", "100ms"], &["--retry-min", "--retry-max"]),
    (FILES, &["--retry-min", "1ms"], &["--retry-min", "10ms"]),
    (FILES, &["--retry-min", "0"], &["--retry-min", "10ms"]),
    (FILES, &["--retry-max", "9000h"], &["--retry-max", "year"]),
    (FILES, &["--reload-min-interval", "18446744073709551615h"], &["--reload-min-interval", "too long"]),
    (FILES, &["--reload-splay=-1s"], &["--reload-splay"]),
    // Pace and life.
    (FILES, &["--debounce", "3s"], &["--debounce", "--debounce-max"]),
    (FILES, &["--debounce-max", "100ms"], &["--debounce", "--debounce-max"]),
    (FILES, &["--debounce", "x"], &["--debounce"]),
    (FILES, &["--debounce-max", "x"], &["--debounce-max"]),
    (FILES, &["--once", "--once-timeout", "0"], &["--once-timeout"]),
    (FILES, &["--once-timeout", "soon"], &["--once-timeout"]),
    (FILES, &["--listen", "9533"], &["--listen", "IP:PORT"]),
    (FILES, &["--listen", "example.com:1"], &["--listen", "IP:PORT"]),
    (FILES, &["--admin", ":99999"], &["--admin", "IP:PORT"]),
    (FILES, &["--admin", ""], &["--admin", "IP:PORT"]),
    (FILES, &["--listen", ":9000", "--admin", "127.0.0.1:9000"], &["--listen", "--admin", "9000"]),
    (FILES, &["--log-format", "xml"], &["--log-format", "text, json"]),
    (FILES, &["--log-level", "trace"], &["--log-level", "error, warn, info, debug"]),
    (FILES, &["--shutdown-grace", "x"], &["--shutdown-grace"]),
    (&["status"], &["--admin", "9534"], &["--admin", "IP:PORT"]),
    (&["retry"], &["--admin", "x:1"], &["--admin", "IP:PORT"]),
];

#[test]
fn wrong_usage_is_refused_by_name() {
    for (begin, wrong, names) in WRONG {
        let (code, said) = run(trimtab().args(*begin).args(*wrong).env_remove("KUBERNETES_SERVICE_HOST"));
        assert_eq!(code, Some(64), "{wrong:?}: {said}");
        for name in *names {
            assert!(said.contains(name), "{wrong:?}: {name:?} is not in {said}");
        }
        assert!(!said.contains("panicked"), "{wrong:?}: {said}");
    }
    assert!(!Path::new("/tmp/trimtab-none").exists(), "something was done before");
}

#[test]
fn wrong_variables_are_refused_by_the_flags_name() {
    let output = &FILES[..2];
    for (begin, variable, value, names) in [
        (FILES, "POLL_INTERVAL", "60", &["--poll-interval"][..]),
        (FILES, "MAX_SIZE", "lots", &["--max-size"]),
        (FILES, "FILE_MODE", "rw", &["--file-mode"]),
        (FILES, "ONCE", "maybe", &["--once"]),
        (FILES, "OPTIONAL", "", &["--optional"]),
        (FILES, "ON_DELETE", "never", &["--on-delete"]),
        (FILES, "RELOAD_ATTEMPTS", "0", &["--reload-attempts"]),
        (FILES, "LISTEN", "x", &["--listen"]),
        (FILES, "LOG_LEVEL", "loud", &["--log-level"]),
        (output, "WATCH_DIR", "/a\n/b/a", &["--watch-dir"]),
        (&["--output", "/x", "--configmap", "n/a"], "NAMESPACE", "", &["--namespace"]),
        (API, "SELECTOR", "", &["--selector"]),
        (output, "CONFIGMAP", "n/a\nn/A", &["--configmap"]),
        (FILES, "RELOAD_URL", "http://x/\n", &["--reload-url (number 2)"]),
        (FILES, "RELOAD_HEADER", "A: b", &["--reload-header", "--reload-url"]),
        (FILES, "SIGNAL", "HUP", &["--signal", "--process"]),
        (FILES, "DEBOUNCE", "1h", &["--debounce", "--debounce-max"]),
    ] {
        let (code, said) = run(trimtab().args(begin).env(format!("TRIMTAB_{variable}"), value));
        assert_eq!(code, Some(64), "{variable}: {said}");
        for name in names {
            assert!(said.contains(name), "{variable}: {name} is not in {said}");
        }
    }
    // What a template may read must be text.
    let bytes = std::ffi::OsString::from_vec(vec![b'c', b'4', 0xff]);
    for flag in ["--env", "--secret-env"] {
        let mut command = trimtab();
        command.args(FILES).args(["--template", "/a.j2", flag, "NO_TEXT"]).env("NO_TEXT", &bytes);
        let (code, said) = run(&mut command);
        assert_eq!(code, Some(64), "{said}");
        assert!(said.contains(&format!("{flag} NO_TEXT")) && said.contains("UTF-8"), "{said}");
    }
}

/// What nobody reads is a mistake; what Kubernetes sets for a Service of the name is none.
#[test]
fn unknown_variables_are_refused_by_name() {
    let (code, said) = run(trimtab().args(FILES).env("TRIMTAB_RELOADURL", "http://x/?c4n4ry"));
    assert_eq!(code, Some(64), "{said}");
    assert!(said.contains("TRIMTAB_RELOADURL") && said.contains("did you mean TRIMTAB_RELOAD_URL?"), "{said}");
    assert!(!said.contains("c4n4ry"), "{said}");
    // The flag that is missing is that one.
    let (code, said) = run(trimtab().args(&FILES[2..]).env("TRIMTAB_OUTPTU", "/x"));
    assert!(code == Some(64) && said.contains("did you mean TRIMTAB_OUTPUT?"), "{said}");
    for help in ["--help", "-h", "--version"] {
        let (code, said) = run(trimtab().arg(help).env("TRIMTAB_RELOADURL", "x"));
        assert_eq!(code, Some(0), "{said}");
    }
    let missing = ["--watch-dir", "/no/such", "--output", "/no/out", "--once", "--once-timeout", "10ms"];
    let (code, said) = run(trimtab().args(missing).envs([
        ("TRIMTAB_SERVICE_HOST", "10.0.0.5"),
        ("TRIMTAB_METRICS_PORT", "tcp://10.0.0.5:80"),
        ("TRIMTAB_PORT_80_TCP_ADDR", "10.0.0.5"),
    ]));
    assert!(code != Some(64) && !said.contains("the variable"), "{code:?}: {said}");
}

/// Each file is refused with its line, and with no value that may be a credential.
#[test]
fn wrong_files_are_refused_by_line() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("trimtab.yaml");
    let own = "output: /tmp/trimtab-none/out\nwatch-dir: /tmp/trimtab-none/in\n";
    for (wrong, names) in [
        ("wach-dir: /x", &["line 3", "\"wach-dir\"", "did you mean watch-dir?"][..]),
        ("--optional: true", &["line 3", "did you mean optional?"]),
        ("reload_url: http://c4n4ry/", &["line 3", "did you mean reload-url?"]),
        ("xyzzy: 1", &["line 3", "\"xyzzy\"", "without --"]),
        ("config: /other.yaml", &["line 3", "\"config\" is not known"]),
        ("format: json", &["line 3", "\"format\" is not known"]),
        ("debounce: 1s\noutput: /y", &["line 4", "output is there twice", "line 1"]),
        ("debounce: soon", &["line 3", "--debounce", "1m30s"]),
        ("reload-attempts: 0", &["line 3", "--reload-attempts"]),
        ("layout: loose", &["line 3", "--layout", "atomic, files"]),
        ("configmap: [a, B]", &["line 3", "--configmap", "lower-case"]),
        ("once: maybe", &["line 3", "once is true or false"]),
        ("once: [true]", &["line 3", "once is true or false"]),
        ("reload-body: [c4n4ry]", &["line 3", "reload-body takes one value"]),
        ("reload-body: {c4n4ry: 1}", &["line 3", "a value is text"]),
        ("reload-body:", &["line 3", "reload-body has no value"]),
        ("reload-header: [[c4n4ry]]", &["line 3", "a list"]),
        ("reload-header: &a [c4n4ry]\nreload-body: *a", &["line 4", "alias"]),
        ("reload-body: 'c4n4ry", &["line ", "not YAML"]),
        ("---\nreload-body: c4n4ry", &["line 3", "second document"]),
        // What only the flags together show.
        ("reload-header: 'Authorization: Bearer c4n4ry'\nreload-url: http://x/", &["--reload-header", "too"]),
        ("confirm-match: c4n4ry", &["--confirm-match", "--confirm-url", "trimtab.yaml, too"]),
    ] {
        std::fs::write(&path, format!("{own}{wrong}\n")).unwrap();
        for subcommand in [&[][..], &["render"], &["check"]] {
            let (code, said) = run(trimtab().args(subcommand).arg("--config").arg(&path));
            assert_eq!(code, Some(64), "{wrong}: {said}");
            for name in names {
                assert!(said.contains(name), "{wrong}: {name:?} is not in {said}");
            }
            assert!(said.contains("trimtab.yaml") && !said.contains("c4n4ry"), "{wrong}: {said}");
        }
    }
    std::fs::write(&path, "- a\n").unwrap();
    let (code, said) = run(trimtab().arg("--config").arg(&path));
    assert!(code == Some(64) && said.contains("line 1"), "{said}");
    let (code, said) = run(trimtab().args(FILES).args(["--config", "/no/such.yaml"]));
    assert!(code == Some(64) && said.contains("--config /no/such.yaml: No such file"), "{said}");
    std::fs::write(&path, [0xff]).unwrap();
    let (code, said) = run(trimtab().arg("--config").arg(&path));
    assert!(code == Some(64) && said.contains("not UTF-8"), "{said}");
    // Help needs no file, and shows nothing of it.
    std::fs::write(&path, format!("{own}reload-body: c4n4ry\n")).unwrap();
    for args in [&["--help"][..], &["-h"], &["check", "--help"]] {
        let (code, said) = run(trimtab().args(args).env("TRIMTAB_CONFIG", &path));
        assert!(code == Some(0) && !said.contains("c4n4ry"), "{said}");
        assert_eq!(run(trimtab().args(args).env("TRIMTAB_CONFIG", "/no/such.yaml")).0, Some(0));
    }
}

#[test]
fn refused_credentials_are_not_echoed() {
    for (flag, value) in [
        ("reload-header", "Authorization: Bearer c4n4ry"),
        ("reload-header", "Proxy-Authorization: c4n4ry"),
        ("reload-header", "cookie:c4n4ry"),
        ("reload-header", "X-Api-Key: c4n4ry\u{1}"),
        ("reload-header", "X Api Key: c4n4ry"),
        ("reload-header", "c4n4ry"),
        ("reload-url", "http://user:c4n4ry@x/"),
        ("reload-url", "http://c4n4ry@x/"),
        ("reload-url", "http://x/?token=c4n4ry here"),
        ("reload-url", "gopher://c4n4ry/"),
        ("reload-url", "http://x:port/?c4n4ry"),
        ("reload-url", "unix://c4n4ry"),
        ("reload-exec", "curl -H 'Authorization: c4n4ry"),
    ] {
        let url: &[&str] = if flag == "reload-header" { &["--reload-url", "http://x/"] } else { &[] };
        let variable = format!("TRIMTAB_{}", flag.to_uppercase().replace('-', "_"));
        for by_flag in [true, false] {
            let mut command = trimtab();
            command.args(FILES).args(url);
            if by_flag {
                command.arg(format!("--{flag}")).arg(value);
            } else {
                command.env(&variable, value);
            }
            let (code, said) = run(&mut command);
            assert_eq!(code, Some(64), "{value}: {said}");
            assert!(said.contains(&format!("--{flag}")) && !said.contains("c4n4ry"), "{value}: {said}");
        }
    }
    // What is right is the way that the message names.
    let (_, said) = run(trimtab().args(URL).args(["--reload-header", "Authorization: Bearer c4n4ry"]));
    assert!(said.contains("authorization: @FILE"), "{said}");
    let (_, said) = run(trimtab().args(FILES).args(["--reload-url", "http://user:c4n4ry@x/"]));
    assert!(said.contains("--reload-auth-file"), "{said}");
}
