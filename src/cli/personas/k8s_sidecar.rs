//! kiwigrid/k8s-sidecar (2.10.1): its variables as flags. `docs/k8s-sidecar.md` has a row for each of them.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use super::{Flags, Refused};
use crate::cli::flags::Env;

/// What has a meaning there and none here.
const WITHOUT_USE: [&str; 11] = [
    "SLEEP_TIME",
    "WATCH_SERVER_TIMEOUT",
    "WATCH_CLIENT_TIMEOUT",
    "ERROR_THROTTLE_SLEEP",
    "IGNORE_ALREADY_PROCESSED",
    "REQ_RETRY_TOTAL",
    "REQ_RETRY_CONNECT",
    "REQ_RETRY_READ",
    "REQ_RETRY_BACKOFF_FACTOR",
    "REQ_SKIP_INIT",
    "LOG_TZ",
];

/// How long a `SCRIPT` may take; there it may take for ever, and holds up all else.
const SCRIPT_TIMEOUT: &str = "5m";

pub(super) fn translate(settings: &[OsString], env: Env<'_>) -> Result<Flags, Refused> {
    let peer = Peer { env, files: CredentialFiles::parse(settings)? };
    let mut flags = Flags::default();
    peer.sources(&mut flags)?;
    peer.output(&mut flags)?;
    let once = peer.text("METHOD").as_deref() == Some("LIST");
    if once {
        flags.switch("--once");
        let hooks = ["SCRIPT", "REQ_URL"].into_iter().filter(|name| peer.text(name).is_some()).collect::<Vec<_>>();
        if !hooks.is_empty() {
            flags.warn(format!(
                "{} is not called with METHOD=LIST: the main process has not started yet",
                hooks.join(" and ")
            ));
        }
    } else {
        peer.hooks(&mut flags)?;
    }
    peer.life(&mut flags)?;
    let useless: Vec<_> = WITHOUT_USE.into_iter().filter(|name| peer.text(name).is_some()).collect();
    if !useless.is_empty() {
        flags.warn(format!(
            "without use here, and passed over: {}; watches are renewed and failed reloads tried again without them",
            useless.join(", ")
        ));
    }
    Ok(flags)
}

fn refused<T>(message: impl Into<String>) -> Result<T, Refused> {
    Err(Refused { message: message.into(), code: 1 })
}

/// Its two arguments.
#[derive(Default)]
struct CredentialFiles {
    user: Option<String>,
    password: Option<String>,
}

impl CredentialFiles {
    fn parse(settings: &[OsString]) -> Result<Self, Refused> {
        let mut files = Self::default();
        let mut words = settings.iter().map(|word| word.to_string_lossy().into_owned());
        while let Some(word) = words.next() {
            let (name, value) = word.split_once('=').map_or((word.as_str(), None), |(name, value)| (name, Some(value)));
            let file = match name {
                "--req-username-file" => &mut files.user,
                "--req-password-file" => &mut files.password,
                // As argparse does.
                _ => return Err(Refused { message: format!("the argument {name} is not known"), code: 2 }),
            };
            let value = value.map(str::to_owned).or_else(|| words.next());
            let missing = || Refused { message: format!("the argument {name} needs a value"), code: 2 };
            *file = Some(value.ok_or_else(missing)?);
        }
        Ok(files)
    }
}

struct Peer<'a> {
    env: Env<'a>,
    files: CredentialFiles,
}

impl Peer<'_> {
    /// A variable that is set and not empty.
    fn text(&self, name: &str) -> Option<String> {
        (self.env)(name).and_then(|value| value.into_string().ok()).filter(|value| !value.is_empty())
    }

    fn is_true(&self, name: &str) -> bool {
        self.text(name).is_some_and(|value| value.eq_ignore_ascii_case("true"))
    }

    /// Of these two it takes no other spelling.
    fn is_exactly_true(&self, name: &str) -> bool {
        self.text(name).as_deref() == Some("true")
    }

    fn needed(&self, name: &str, what: &str) -> Result<String, Refused> {
        self.text(name).map_or_else(|| refused(format!("the variable {name} is needed: {what}")), Ok)
    }

    fn sources(&self, flags: &mut Flags) -> Result<(), Refused> {
        let label = self.needed("LABEL", "an empty one would select every object that may be read")?;
        let resource = self.text("RESOURCE").unwrap_or_else(|| "configmap".to_owned());
        let kinds: &[&str] = match resource.as_str() {
            "configmap" => &["configmap"],
            "secret" => &["secret"],
            "both" => &["configmap", "secret"],
            other => return refused(format!("RESOURCE={other}: there are configmap, secret and both")),
        };
        let list = |name: &str| -> Vec<String> {
            let text = self.text(name).unwrap_or_default();
            text.split(',').map(|item| item.trim().to_owned()).filter(|item| !item.is_empty()).collect()
        };
        let namespaces = list("NAMESPACE");
        let everywhere = namespaces.iter().any(|namespace| namespace == "ALL");
        let names = list("RESOURCE_NAME");
        if everywhere && !names.is_empty() {
            flags.warn("RESOURCE_NAME has no effect with NAMESPACE=ALL");
        }
        if names.is_empty() || everywhere {
            flags.add("--selector", self.text("LABEL_VALUE").map_or(label.clone(), |value| format!("{label}={value}")));
            flags.add("--resource", resource);
            if everywhere {
                flags.switch("--all-namespaces");
            } else {
                for namespace in &namespaces {
                    flags.add("--namespace", namespace);
                }
            }
        } else {
            for (kind, name) in named(&names, kinds, &namespaces)? {
                flags.add(if kind == "secret" { "--secret" } else { "--configmap" }, name);
            }
            // What is not there counts as deleted.
            flags.switch("--optional");
            flags.add("--on-delete", "apply");
        }
        flags.switch("--allow-empty");
        if let Some(path) = self.kubeconfig() {
            flags.add("--kubeconfig", path);
        }
        if self.is_exactly_true("SKIP_TLS_VERIFY") {
            flags.warn("SKIP_TLS_VERIFY has no effect: the API server is checked by the CA of the service account, or of KUBECONFIG");
        }
        Ok(())
    }

    /// The file that `KUBECONFIG` names, or the one in the home directory; none if it does not exist.
    fn kubeconfig(&self) -> Option<PathBuf> {
        let home = || self.text("HOME").map(|home| Path::new(&home).join(".kube/config"));
        self.text("KUBECONFIG").map(PathBuf::from).or_else(home).filter(|path| path.exists())
    }

    fn output(&self, flags: &mut Flags) -> Result<(), Refused> {
        flags.add("--output", self.needed("FOLDER", "where the files go")?);
        // Its readers do not follow linked folders, or take them for what they are not.
        flags.add("--layout", "files");
        let annotation = self.text("FOLDER_ANNOTATION").unwrap_or_else(|| "k8s-sidecar-target-directory".to_owned());
        let namespace = if self.is_true("FOLDER_PER_NAMESPACE") { "{namespace}/" } else { "" };
        let name = if self.is_true("UNIQUE_FILENAMES") { "namespace_{namespace}.{kind}_{name}.{key}" } else { "{key}" };
        flags.add("--path", format!("{namespace}{{annotation:{annotation}|}}/{name}"));
        flags.add("--on-collision", "last");
        if self.text("TRIMTAB_URL_HOSTS").is_none() {
            flags.add("--refuse-keys", ".url");
        } else if self.text("TRIMTAB_URL_TIMEOUT").is_none() {
            flags.add("--url-timeout", self.timeout()?);
        }
        let mode = match self.text("DEFAULT_FILE_MODE") {
            Some(mode) => mode.trim_start_matches("0o").to_owned(),
            None => "0644".to_owned(),
        };
        flags.add("--file-mode", &mode);
        flags.add("--secret-mode", &mode);
        if self.is_true("ENABLE_5XX") {
            flags.warn("ENABLE_5XX has no effect: what an answer of 5xx has is never published");
        }
        Ok(())
    }

    fn hooks(&self, flags: &mut Flags) -> Result<(), Refused> {
        let script = self.text("SCRIPT");
        if let Some(script) = &script {
            flags.add_secret("--reload-exec", program(script)?);
        }
        let method = self.text("REQ_METHOD").unwrap_or_else(|| "GET".to_owned());
        let url = self.text("REQ_URL").filter(|_| {
            let known = matches!(method.as_str(), "GET" | "POST");
            if !known {
                flags.warn(format!("REQ_METHOD={method} is neither GET nor POST: REQ_URL is not called"));
            }
            known
        });
        if let Some(url) = &url {
            self.request(flags, url, &method)?;
        }
        if script.is_none() && url.is_none() {
            return Ok(());
        }
        flags.add("--reload-timeout", if script.is_some() { SCRIPT_TIMEOUT.to_owned() } else { self.timeout()? });
        // It never takes a file back because a hook failed.
        flags.add("--on-reject", "hold");
        Ok(())
    }

    fn timeout(&self) -> Result<String, Refused> {
        match self.text("REQ_TIMEOUT").map(|seconds| seconds.parse::<f64>()) {
            None => Ok("10s".to_owned()),
            Some(Ok(seconds)) if seconds > 0.0 && seconds < 1e6 => Ok(format!("{:.0}ms", (seconds * 1000.0).ceil())),
            Some(_) => refused("REQ_TIMEOUT is no number of seconds"),
        }
    }

    fn request(&self, flags: &mut Flags, url: &str, method: &str) -> Result<(), Refused> {
        let authority = url.split_once("://").map_or(url, |(_, rest)| rest).split(['/', '?', '#']).next();
        if authority.is_some_and(|authority| authority.contains('@')) {
            return refused(
                "REQ_URL holds a user: put user and password into REQ_USERNAME and REQ_PASSWORD, or their …_FILE",
            );
        }
        flags.add_secret("--reload-url", url);
        flags.add("--reload-method", method);
        if let Some(payload) = self.text("REQ_PAYLOAD").filter(|_| method == "POST") {
            // What is no JSON is sent as a JSON string.
            let json = serde_json::from_str::<serde::de::IgnoredAny>(&payload).is_ok();
            let body = if json { payload } else { serde_json::Value::from(payload).to_string() };
            flags.add_secret("--reload-body", body);
            flags.add("--reload-header", "Content-Type: application/json");
        }
        let file = |argument: &Option<String>, name: String| argument.clone().or_else(|| self.text(&name));
        let part = |argument, name: &str| match file(argument, format!("{name}_FILE")) {
            Some(path) => Some(format!("@{path}")),
            None => self.text(name).map(|_| format!("${name}")),
        };
        let user = part(&self.files.user, "REQ_USERNAME");
        let password = part(&self.files.password, "REQ_PASSWORD");
        match (user, password) {
            (Some(user), Some(password)) => {
                self.check_encoding()?;
                flags.add("--reload-user", user);
                flags.add("--reload-password", password);
            }
            (None, None) => {}
            _ => flags.warn("REQ_USERNAME and REQ_PASSWORD go together: neither is sent"),
        }
        if self.is_exactly_true("REQ_SKIP_TLS_VERIFY") {
            flags.switch("--reload-insecure");
        }
        Ok(())
    }

    /// User and password are sent byte for byte; that differs where the peer would encode their letters.
    fn check_encoding(&self) -> Result<(), Refused> {
        let encoding = self.text("REQ_BASIC_AUTH_ENCODING").unwrap_or_else(|| "latin1".to_owned());
        let ascii = |name: &str| self.text(name).is_none_or(|value| value.is_ascii());
        let utf8 = matches!(encoding.to_lowercase().replace(['-', '_'], "").as_str(), "utf8" | "u8");
        if utf8 || (ascii("REQ_USERNAME") && ascii("REQ_PASSWORD")) {
            return Ok(());
        }
        refused(format!(
            "REQ_USERNAME or REQ_PASSWORD has letters beyond ASCII, and would be sent as UTF-8 and not in {encoding}: set \
             REQ_BASIC_AUTH_ENCODING=utf-8 if the server takes that, or put the encoded bytes into REQ_PASSWORD_FILE"
        ))
    }

    fn life(&self, flags: &mut Flags) -> Result<(), Refused> {
        let port = self.text("HEALTH_PORT").unwrap_or_else(|| "8080".to_owned());
        let host = self.text("HEALTH_HOST").unwrap_or_default();
        let bare = host.contains(':') && !host.starts_with('[');
        flags.add("--listen", if bare { format!("[{host}]:{port}") } else { format!("{host}:{port}") });
        if self.text("TRIMTAB_ADMIN").is_none() {
            // Several of them in one Pod would want one port.
            flags.add("--admin", "off");
        }
        flags.add("--on-bind-error", "warn");
        if self.text("LOG_CONFIG").is_some() {
            return refused("LOG_CONFIG is for Python's logging: take it away, and use LOG_LEVEL and LOG_FORMAT");
        }
        let level = self.text("LOG_LEVEL").unwrap_or_default().to_uppercase();
        let level = match level.as_str() {
            "DEBUG" => "debug",
            "WARN" | "WARNING" => "warn",
            "ERROR" | "CRITICAL" | "FATAL" => "error",
            _ => "info",
        };
        flags.add("--log-level", level);
        let text = self.text("LOG_FORMAT").is_some_and(|format| format.eq_ignore_ascii_case("LOGFMT"));
        flags.add("--log-format", if text { "text" } else { "json" });
        Ok(())
    }
}

/// The objects of `RESOURCE_NAME`: NAME, KIND/NAME or NAMESPACE/KIND/NAME.
fn named(names: &[String], kinds: &[&str], namespaces: &[String]) -> Result<Vec<(String, String)>, Refused> {
    let mut found = Vec::new();
    for item in names {
        let (namespace, kind, name) = match item.split('/').collect::<Vec<_>>()[..] {
            [name] => (None, None, name),
            [kind, name] => (None, Some(kind), name),
            [namespace, kind, name] => (Some(namespace), Some(kind), name),
            _ => {
                return refused(format!("RESOURCE_NAME has {item}: there are NAME, KIND/NAME and NAMESPACE/KIND/NAME"));
            }
        };
        for taken in kinds.iter().filter(|taken| kind.is_none_or(|kind| kind == **taken)) {
            let mut add = |full: String| {
                let object = ((*taken).to_owned(), full);
                if !found.contains(&object) {
                    found.push(object);
                }
            };
            match namespace {
                Some(namespace) if namespaces.is_empty() || namespaces.iter().any(|known| known == namespace) => {
                    add(format!("{namespace}/{name}"));
                }
                Some(_) => {}
                None if namespaces.is_empty() => add(name.to_owned()),
                None => namespaces.iter().for_each(|namespace| add(format!("{namespace}/{name}"))),
            }
        }
    }
    if found.is_empty() {
        return refused("RESOURCE_NAME names nothing that RESOURCE and NAMESPACE admit");
    }
    Ok(found)
}

/// The command line of `SCRIPT`. An interpreter that the image does not have is named before anything is published.
fn program(script: &str) -> Result<String, Refused> {
    let quoted = shlex::try_quote(script).map_or_else(|_| script.to_owned(), std::borrow::Cow::into_owned);
    let executable =
        |path: &Path| fs::metadata(path).is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0);
    let missing = |interpreter: &str| {
        refused(format!(
            "SCRIPT {script} needs {interpreter}, and this image has none: build one FROM an image that has it, with COPY \
             --from of Trimtab's binary, or let REQ_URL do the reload"
        ))
    };
    if !executable(Path::new(script)) {
        // It may also come later; then it is run by a shell, as there.
        let shell = Path::new("/bin/sh");
        return if shell.exists() { Ok(format!("/bin/sh {quoted}")) } else { missing("a shell") };
    }
    let interpreter = fs::read(script).ok().and_then(|bytes| {
        let line = bytes.strip_prefix(b"#!")?.split(|&byte| byte == b'\n').next()?.to_vec();
        String::from_utf8(line).ok()?.split_whitespace().next().map(str::to_owned)
    });
    match interpreter {
        Some(interpreter) if !Path::new(&interpreter).exists() => missing(&interpreter),
        _ => Ok(quoted),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn translated(variables: &[(&str, &str)], arguments: &[&str]) -> Result<Flags, Refused> {
        let env =
            |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| OsString::from(value));
        translate(&arguments.iter().map(OsString::from).collect::<Vec<_>>(), &env)
    }

    fn words(variables: &[(&str, &str)], arguments: &[&str]) -> String {
        let flags = translated(variables, arguments).unwrap_or_else(|refused| panic!("{refused:?}"));
        flags.line()
    }

    const LEAST: [(&str, &str); 2] = [("LABEL", "l"), ("FOLDER", "/f")];

    fn more<'a>(variables: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
        [variables, &LEAST[..]].concat()
    }

    #[test]
    fn grafanas_variables_are_flags() {
        let variables = [
            ("METHOD", "WATCH"),
            ("LABEL", "grafana_dashboard"),
            ("LABEL_VALUE", "1"),
            ("FOLDER", "/tmp/dashboards"),
            ("RESOURCE", "both"),
            ("NAMESPACE", "ALL"),
            ("REQ_USERNAME", "admin"),
            ("REQ_PASSWORD", "c4n4ry"),
            ("REQ_URL", "http://localhost:3000/api/admin/provisioning/dashboards/reload"),
            ("REQ_METHOD", "POST"),
        ];
        let expected = "--selector=grafana_dashboard=1 --resource=both --all-namespaces --allow-empty \
                        --output=/tmp/dashboards --layout=files --path={annotation:k8s-sidecar-target-directory|}/{key} \
                        --on-collision=last --refuse-keys=.url --file-mode=0644 --secret-mode=0644 \
                        --reload-url=http://localhost:3000/api/admin/provisioning/dashboards/reload --reload-method=POST \
                        --reload-user=$REQ_USERNAME --reload-password=$REQ_PASSWORD --reload-timeout=10s \
                        --on-reject=hold --listen=:8080 --admin=off --on-bind-error=warn --log-level=info \
                        --log-format=json";
        assert_eq!(words(&variables, &[]), expected);
    }

    #[test]
    fn each_setting_is_a_flag() {
        for (name, value, flags) in [
            ("FOLDER_ANNOTATION", "a.b/c", "--path={annotation:a.b/c|}/{key}"),
            ("UNIQUE_FILENAMES", "True", "|}/namespace_{namespace}.{kind}_{name}.{key}"),
            ("FOLDER_PER_NAMESPACE", "true", "--path={namespace}/{annotation:"),
            ("NAMESPACE", "a, b", "--namespace=a --namespace=b --allow-empty"),
            ("NAMESPACE", "a,ALL", "--all-namespaces"),
            ("RESOURCE", "secret", "--resource=secret"),
            ("RESOURCE_NAME", "x,configmap/x,secret/y", "--configmap=x --optional --on-delete=apply --allow-empty"),
            ("METHOD", "LIST", "--secret-mode=0644 --once --listen=:8080"),
            ("METHOD", "SLEEP", "--secret-mode=0644 --listen=:8080"),
            ("DEFAULT_FILE_MODE", "640", "--file-mode=640 --secret-mode=640"),
            ("REQ_URL", "http://x/", "--reload-method=GET --reload-timeout=10s"),
            ("HEALTH_PORT", "9", "--listen=:9 "),
            ("HEALTH_HOST", "::1", "--listen=[::1]:8080"),
            ("LOG_LEVEL", "warning", "--log-level=warn"),
            ("LOG_FORMAT", "LOGFMT", "--log-format=text"),
            ("TRIMTAB_URL_HOSTS", "x", "--on-collision=last --url-timeout=10s --file-mode"),
        ] {
            let words = words(&more(&[(name, value)]), &[]);
            assert!(words.contains(flags), "{name}={value}: {words}");
        }
        let url =
            [("REQ_URL", "https://x/"), ("REQ_METHOD", "POST"), ("REQ_TIMEOUT", "1.5"), ("REQ_PAYLOAD", "no json")];
        let tls = [("REQ_SKIP_TLS_VERIFY", "true"), ("REQ_USERNAME", "u"), ("REQ_PASSWORD_FILE", "/p")];
        let said = words(&more(&[&url[..], &tls[..]].concat()), &["--req-password-file", "/q"]);
        let expected = "--reload-body=\"no json\" --reload-header=Content-Type: application/json \
                        --reload-user=$REQ_USERNAME --reload-password=@/q --reload-insecure --reload-timeout=1500ms";
        assert!(said.contains(expected), "{said}");
        let hosts = [("TRIMTAB_URL_HOSTS", "x"), ("REQ_TIMEOUT", "0.5"), ("SCRIPT", "/bin/true")];
        assert!(words(&more(&hosts), &[]).contains("--url-timeout=500ms"));
        let own = [("TRIMTAB_URL_HOSTS", "x"), ("TRIMTAB_URL_TIMEOUT", "3s")];
        assert!(!words(&more(&own), &[]).contains("--url-timeout"));
        let named = [("RESOURCE_NAME", "x,secret/y,b/secret/z,c/secret/z"), ("RESOURCE", "both"), ("NAMESPACE", "a,b")];
        let said = words(&more(&named), &[]);
        let expected =
            "--configmap=a/x --configmap=b/x --secret=a/x --secret=b/x --secret=a/y --secret=b/y --secret=b/z --opt";
        assert!(said.starts_with(expected), "{said}");
    }

    #[test]
    fn what_cannot_be_honoured_is_refused_by_name_and_what_has_no_use_is_named_once() {
        for (variables, name, code) in [
            (&[("FOLDER", "/f")][..], "LABEL", 1),
            (&[("LABEL", ""), ("FOLDER", "/f")], "LABEL", 1),
            (&[("LABEL", "l")], "FOLDER", 1),
            (&more(&[("RESOURCE", "pods")]), "RESOURCE=pods", 1),
            (&more(&[("RESOURCE_NAME", "secret/x")]), "RESOURCE_NAME", 1),
            (&more(&[("LOG_CONFIG", "/x")]), "LOG_CONFIG", 1),
            (&more(&[("REQ_URL", "http://u:p@x/")]), "REQ_USERNAME", 1),
            (&more(&[("REQ_URL", "http://x/"), ("REQ_TIMEOUT", "soon")]), "REQ_TIMEOUT", 1),
            (
                &more(&[("REQ_URL", "http://x/"), ("REQ_USERNAME", "é"), ("REQ_PASSWORD", "p")]),
                "REQ_BASIC_AUTH_ENCODING",
                1,
            ),
        ] {
            let refused = translated(variables, &[]).unwrap_err();
            assert!(refused.message.contains(name) && refused.code == code, "{refused:?}");
        }
        assert_eq!(translated(&LEAST, &["--what"]).unwrap_err().code, 2);
        let flags = translated(&more(&[("SLEEP_TIME", "1"), ("WATCH_CLIENT_TIMEOUT", "60")]), &[]).unwrap();
        assert_eq!(flags.warnings.len(), 1);
        assert!(flags.warnings[0].contains("SLEEP_TIME, WATCH_CLIENT_TIMEOUT"), "{:?}", flags.warnings);
    }

    #[test]
    fn script_without_its_interpreter_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let script = |name: &str, text: &str, mode| {
            let path = dir.path().join(name);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let plain = script("a b.sh", "true", 0o644);
        assert!(words(&more(&[("SCRIPT", &plain)]), &[]).contains(&format!("--reload-exec=/bin/sh '{plain}'")));
        let good = script("good", "#!/bin/sh\n", 0o755);
        let said = words(&more(&[("SCRIPT", &good)]), &[]);
        assert!(said.contains(&format!("--reload-exec={good} --reload-timeout=5m --on-reject=hold")), "{said}");
        let bad = script("bad", "#!/no/such/python -u\n", 0o755);
        let refused = translated(&more(&[("SCRIPT", &bad)]), &[]).unwrap_err();
        assert!(refused.message.contains("SCRIPT") && refused.message.contains("/no/such/python"), "{refused:?}");
        // An init container runs none.
        let flags = translated(&more(&[("SCRIPT", &bad), ("METHOD", "LIST")]), &[]).unwrap();
        assert!(flags.warnings[0].contains("SCRIPT"), "{:?}", flags.warnings);
    }

    #[test]
    fn kubeconfig_is_used_if_it_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config");
        let given = [("KUBECONFIG", path.to_str().unwrap())];
        assert!(!words(&more(&given), &[]).contains("--kubeconfig"));
        fs::write(&path, "").unwrap();
        assert!(words(&more(&given), &[]).contains("--kubeconfig="));
    }
}
