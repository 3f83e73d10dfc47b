//! prometheus-config-reloader (0.93) of the Prometheus Operator: its flags.

use std::ffi::OsString;
use std::path::Path;

use super::arguments::Arguments;
use super::{Flags, Refused, web_config};
use crate::cli::flags::Env;

const KNOWN: [&str; 17] = [
    "config-file",
    "config-envsubst-file",
    "watched-dir",
    "watch-interval",
    "delay-interval",
    "retry-interval",
    "reload-timeout",
    "reload-method",
    "reload-url",
    "process-executable-name",
    "runtimeinfo-url",
    "statefulset-ordinal-from-envvar",
    "listen-address",
    "web-config-file",
    "log-format",
    "log-level",
    "auto-gomemlimit-ratio",
];

/// `names`: of all variables that there are.
pub(super) fn translate(settings: &[OsString], env: Env<'_>, names: &[String]) -> Result<Flags, Refused> {
    let given = Arguments::parse(settings, &KNOWN, 2)?;
    let mut flags = Flags::default();
    sources(&given, env, names, &mut flags)?;
    let interval = given.last("watch-interval").unwrap_or("3m");
    let once = is_zero(interval);
    if once {
        flags.switch("--once");
    } else {
        flags.add("--poll-interval", interval);
        reload(&given, &mut flags)?;
        let delay = given.last("delay-interval").unwrap_or("1s");
        flags.add("--debounce", delay);
        // Every event restarts the peer's wait, up to the next poll.
        flags.add("--debounce-max", if matches!(delay, "1s" | "0" | "0s") { "5s" } else { interval });
    }
    flags.add("--listen", given.last("listen-address").filter(|it| !it.is_empty()).unwrap_or("off"));
    if let Some(path) = given.last("web-config-file").filter(|path| !path.is_empty()) {
        let guard = web_config::flags(path, &mut flags.warnings).map_err(|message| given.refused(message))?;
        for (flag, value) in guard {
            flags.add(flag, value);
        }
    }
    flags.add("--admin", "off");
    flags.add(
        "--log-format",
        match given.last("log-format") {
            None | Some("logfmt") => "text",
            Some("json") => "json",
            Some(_) => return Err(given.refused("log-format is logfmt or json")),
        },
    );
    flags.add(
        "--log-level",
        match given.last("log-level") {
            None | Some("info") => "info",
            Some("all" | "debug") => "debug",
            Some("warn") => "warn",
            Some("error" | "none") => "error",
            Some(_) => return Err(given.refused("log-level is all, debug, info, warn, error or none")),
        },
    );
    if given.last("auto-gomemlimit-ratio").is_some_and(|ratio| !ratio.trim_matches(['0', '.']).is_empty()) {
        flags.warn("auto-gomemlimit-ratio is ignored: Trimtab has no garbage collector to be limited");
    }
    Ok(flags)
}

/// What is read, and what of it is written.
fn sources(given: &Arguments, env: Env<'_>, names: &[String], flags: &mut Flags) -> Result<(), Refused> {
    let set = |name: &str| given.last(name).filter(|value| !value.is_empty());
    let (config, filled) = (set("config-file"), set("config-envsubst-file"));
    let watched = given.all("watched-dir").filter(|path| !path.is_empty());
    match (config, filled) {
        (Some(config), Some(filled)) => {
            let path = Path::new(filled);
            let name = path.file_name().and_then(|name| name.to_str());
            let (Some(name), Some(directory)) = (name, path.parent().filter(|it| !it.as_os_str().is_empty())) else {
                return Err(given.refused("config-envsubst-file is no path of a file in a directory"));
            };
            flags.add("--envsubst", format!("{config}:{name}"));
            flags.add("--output", directory);
            flags.add("--layout", "files");
            // As readable as the peer's file.
            flags.add("--secret-mode", "0644");
            let is_name =
                |name: &&String| !name.is_empty() && name.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'_');
            for name in names.iter().filter(is_name).filter(|name| !name.starts_with("TRIMTAB_")) {
                flags.add("--env", name);
            }
            let of = set("statefulset-ordinal-from-envvar").unwrap_or("POD_NAME");
            let pod = env(of).and_then(|value| value.into_string().ok()).unwrap_or_default();
            let number = pod.rsplit(|c: char| !c.is_ascii_digit()).next().filter(|number| !number.is_empty());
            if let Some(number) = number {
                flags.add("--env", format!("STATEFULSET_ORDINAL_NUMBER={number}"));
            }
            flags.observe(watched);
        }
        (None, Some(_)) => {
            return Err(given.refused("config-envsubst-file is written from config-file, and there is none"));
        }
        (config, None) => flags.observe(config.into_iter().chain(watched)),
    }
    if config.is_none() && given.last("watched-dir").is_none() {
        return Err(Refused {
            message: "there is neither config-file nor watched-dir: nothing would be done".to_owned(),
            code: 1,
        });
    }
    Ok(())
}

fn reload(given: &Arguments, flags: &mut Flags) -> Result<(), Refused> {
    match given.last("reload-method").unwrap_or("http") {
        "http" => {
            let url = given.last("reload-url").unwrap_or("http://127.0.0.1:9090/-/reload");
            flags.reload_url(url);
            flags.add("--reload-status", "200");
            if url.starts_with("https:") {
                // The peer never verifies.
                flags.switch("--reload-insecure");
            }
            flags.add("--reload-timeout", given.last("reload-timeout").unwrap_or("30s"));
        }
        "signal" => {
            flags.add("--signal", "HUP");
            flags.add("--process", given.last("process-executable-name").unwrap_or("prometheus"));
            let url = given.last("runtimeinfo-url").unwrap_or("http://127.0.0.1:9090/api/v1/status/runtimeinfo");
            flags.add("--confirm-url", url);
            flags.add("--confirm-match", r#""reloadConfigSuccess":\s*true"#);
            flags.add("--confirm-changed", r#""lastConfigTime":\s*"([^"]*)""#);
            if url.starts_with("https:") {
                flags.switch("--reload-insecure");
            }
        }
        _ => return Err(given.refused("reload-method is http or signal")),
    }
    let retry = given.last("retry-interval").unwrap_or("5s");
    if retry.ends_with("ms") {
        flags.add("--retry-min", retry);
    }
    flags.add("--retry-max", retry);
    Ok(())
}

/// Whether a duration is none, whatever its unit.
fn is_zero(duration: &str) -> bool {
    let number = duration.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    !number.is_empty() && number.bytes().all(|c| c == b'0')
}

#[cfg(test)]
mod tests {
    use super::super::split;
    use super::*;

    fn flags(line: &str) -> Result<String, Refused> {
        let env = |name: &str| (name == "POD_NAME").then(|| OsString::from("prometheus-k8s-12"));
        let names = ["POD_NAME", "SHARD", "TRIMTAB_VALIDATE", "a.b"].map(str::to_owned);
        translate(&split(line), &env, &names).map(|flags| flags.line())
    }

    const REST: &str = "--debounce=1s --debounce-max=5s";

    #[test]
    fn the_operators_containers_and_the_charts_are_flags() {
        for (line, expected) in [
            (
                "--listen-address=:8080 --reload-url=http://127.0.0.1:9090/-/reload \
                 --config-file=/etc/prometheus/config/prometheus.yaml.gz \
                 --config-envsubst-file=/etc/prometheus/config_out/prometheus.env.yaml \
                 --watched-dir=/etc/prometheus/rules/prometheus-k8s-rulefiles-0 --watched-dir=/etc/prometheus/config",
                "--envsubst=/etc/prometheus/config/prometheus.yaml.gz:prometheus.env.yaml \
                 --output=/etc/prometheus/config_out --layout=files --secret-mode=0644 --env=POD_NAME --env=SHARD \
                 --env=STATEFULSET_ORDINAL_NUMBER=12 \
                 --observe-dir=prometheus-k8s-rulefiles-0=/etc/prometheus/rules/prometheus-k8s-rulefiles-0 \
                 --observe-dir=config=/etc/prometheus/config --poll-interval=3m \
                 --reload-url=http://127.0.0.1:9090/-/reload --reload-status=200 --reload-timeout=30s --retry-max=5s \
                 REST --listen=:8080 --admin=off --log-format=text --log-level=info",
            ),
            (
                "--watch-interval=0 --listen-address=:8081 --config-file=/c/p.yaml --config-envsubst-file=/out/p.yaml",
                "--envsubst=/c/p.yaml:p.yaml --output=/out --layout=files --secret-mode=0644 --env=POD_NAME \
                 --env=SHARD --env=STATEFULSET_ORDINAL_NUMBER=12 --once --listen=:8081 --admin=off \
                 --log-format=text --log-level=info",
            ),
            (
                "--watched-dir=/etc/config --reload-url=https://u:p@127.0.0.1:9093/-/reload --reload-timeout=5s \
                 --retry-interval=100ms --log-format=json --log-level=none --delay-interval 0",
                "--observe-dir=config=/etc/config --poll-interval=3m --reload-url=https://127.0.0.1:9093/-/reload \
                 --reload-user=$RELOAD_URL_USER --reload-password=$RELOAD_URL_PASSWORD --reload-status=200 --reload-insecure --reload-timeout=5s \
                 --retry-min=100ms --retry-max=100ms --debounce=0 --debounce-max=5s --listen=off --admin=off \
                 --log-format=json --log-level=error",
            ),
            (
                "--config-file=/c/p.yaml --watch-interval=30s --reload-method=signal --process-executable-name=prom \
                 --runtimeinfo-url=http://h/r",
                "--observe-dir=p.yaml=/c/p.yaml --poll-interval=30s --signal=HUP --process=prom --confirm-url=http://h/r \
                 --confirm-match=\"reloadConfigSuccess\":\\s*true --confirm-changed=\"lastConfigTime\":\\s*\"([^\"]*)\" \
                 --retry-max=5s REST --listen=off --admin=off --log-format=text --log-level=info",
            ),
        ] {
            assert_eq!(flags(line).unwrap(), expected.replace("REST", REST), "{line}");
        }
    }

    #[test]
    fn what_cannot_be_honoured_is_refused_by_name_with_the_peers_exit_code() {
        for (line, code, said) in [
            ("--listen-address=:1", 1, "neither config-file nor watched-dir"),
            ("--watched-dir=/a --other=1", 2, "other is not known"),
            ("--watched-dir=/a --web-config-file=/nowhere/web.yaml", 2, "/nowhere/web.yaml cannot be read"),
            ("--watched-dir=/a --reload-method=pigeon", 2, "http or signal"),
            ("--watched-dir=/a --log-level=loud", 2, "log-level"),
            ("--config-envsubst-file=/a/b --watched-dir=/a", 2, "config-file"),
        ] {
            let refused = flags(line).unwrap_err();
            assert!(refused.code == code && refused.message.contains(said), "{line}: {refused:?}");
        }
    }

    /// Also where there is no `--listen-address`: `TRIMTAB_LISTEN` may be set.
    #[test]
    fn a_web_configuration_guards_what_is_listened_at() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().display();
        std::fs::write(file.path(), "basic_auth_users: {me: x}").unwrap();
        for listen in ["", " --listen-address=:1"] {
            let plain = flags(&format!("--watched-dir=/a{listen}")).unwrap();
            let guarded = flags(&format!("--watched-dir=/a{listen} --web-config-file={path}")).unwrap();
            assert_eq!(guarded, plain.replace(" --admin", &format!(" --listen-users-file={path} --admin")));
        }
        std::fs::write(file.path(), "c4n4ry: {}").unwrap();
        let refused = flags(&format!("--watched-dir=/a --web-config-file={path}")).unwrap_err();
        assert!(refused.code == 2 && refused.message.contains(&path.to_string()), "{refused:?}");
    }
}
