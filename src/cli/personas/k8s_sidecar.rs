//! kiwigrid/k8s-sidecar (2.10.1): its variables as flags.

use std::ffi::OsString;

use super::{Flags, Refused};
use crate::cli::flags::Env;

pub(super) fn translate(settings: &[OsString], env: Env<'_>) -> Result<Flags, Refused> {
    let text = |name: &str| env(name).and_then(|value| value.into_string().ok()).filter(|value| !value.is_empty());
    let refused = |message: String| Refused { message, code: 1 };
    if let [first, ..] = settings {
        return Err(refused(format!("{} is not known", first.to_string_lossy())));
    }
    let needed = |name: &str| text(name).ok_or_else(|| refused(format!("the variable {name} is needed")));
    let (label, folder) = (needed("LABEL")?, needed("FOLDER")?);
    let mut flags = Flags::default();
    flags.add("--selector", text("LABEL_VALUE").map_or(label.clone(), |value| format!("{label}={value}")));
    flags.add("--resource", text("RESOURCE").unwrap_or_else(|| "configmap".to_owned()));
    match text("NAMESPACE").as_deref() {
        None => {}
        Some(namespaces) if namespaces.split(',').any(|namespace| namespace == "ALL") => {
            flags.switch("--all-namespaces");
        }
        Some(namespaces) => namespaces.split(',').for_each(|namespace| flags.add("--namespace", namespace)),
    }
    for timeout in ["WATCH_SERVER_TIMEOUT", "WATCH_CLIENT_TIMEOUT"].into_iter().filter(|name| text(name).is_some()) {
        flags.warn(format!("{timeout} does nothing: a watch that hangs is found and opened again by itself"));
    }
    flags.add("--output", folder);
    flags.add("--layout", "files");
    if text("METHOD").as_deref() == Some("LIST") {
        flags.switch("--once");
    } else if let Some(url) = text("REQ_URL") {
        flags.add("--reload-url", url);
        flags.add("--reload-method", text("REQ_METHOD").unwrap_or_else(|| "GET".to_owned()));
    }
    flags.add("--listen", format!(":{}", text("HEALTH_PORT").unwrap_or_else(|| "8080".to_owned())));
    Ok(flags)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grafanas_variables_are_flags() {
        let env = |name: &str| {
            let value = match name {
                "LABEL" => "grafana_dashboard",
                "LABEL_VALUE" => "1",
                "FOLDER" => "/tmp/dashboards",
                "RESOURCE" => "both",
                "NAMESPACE" => "ALL",
                "REQ_URL" => "http://localhost:3000/api",
                "REQ_METHOD" => "POST",
                _ => return None,
            };
            Some(OsString::from(value))
        };
        let flags = translate(&[], &env).unwrap();
        let expected = "--selector=grafana_dashboard=1 --resource=both --all-namespaces --output=/tmp/dashboards \
                        --layout=files --reload-url=http://localhost:3000/api --reload-method=POST --listen=:8080";
        assert_eq!(flags.words().map(|word| word.into_string().unwrap()).collect::<Vec<_>>().join(" "), expected);
        let missing = translate(&[], &|_| None).unwrap_err();
        assert!(missing.message.contains("LABEL") && missing.code == 1, "{missing:?}");
    }
}
