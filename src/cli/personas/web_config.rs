//! `--web-config-file` of Prometheus's own servers (exporter-toolkit): TLS and users, as flags of `--listen`.

use std::fs;
use std::path::Path;

use serde_json::{Map, Value};

type Fields = Map<String, Value>;
type Guard = Vec<(&'static str, String)>;

/// What rustls offers with ring where TLS is 1.2, by Go's names.
const SUITES: [&str; 6] = [
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
];
const CURVES: [&str; 3] = ["CurveP256", "CurveP384", "X25519"];

/// The flags that the file comes to: none where it asks for nothing, as the Prometheus Operator leaves it. An error says
/// what of it cannot be honoured, and the way out.
pub(super) fn flags(path: &str, warnings: &mut Vec<String>) -> Result<Guard, String> {
    let text = fs::read_to_string(path)
        .map_err(|error| format!("web-config-file {path} cannot be read: {error}; mount it, or leave it out"))?;
    // The parser's words could quote a password.
    let parts: Option<Fields> = serde_saphyr::from_str(&text)
        .map_err(|_| format!("web-config-file {path} is no YAML of a web configuration"))?;
    let mut guard = Guard::new();
    for (part, value) in parts.unwrap_or_default() {
        match (part.as_str(), value) {
            ("http_server_config", _) => warnings.push(
                "http_server_config of web-config-file is ignored: --listen speaks HTTP/1.1, without such headers"
                    .to_owned(),
            ),
            (_, Value::Null) => {}
            ("tls_server_config", Value::Object(fields)) => {
                guard.extend(tls(&fields, path, warnings).map_err(|why| format!("web-config-file {path}: {why}"))?);
            }
            ("basic_auth_users", Value::Object(users)) if users.is_empty() => {}
            ("basic_auth_users", Value::Object(_)) => guard.push(("--listen-users-file", path.to_owned())),
            ("tls_server_config" | "basic_auth_users", _) => {
                return Err(format!("web-config-file {path}: {part} is no mapping"));
            }
            _ => {
                return Err(format!(
                    "web-config-file {path}: {part} is not known; there are tls_server_config and basic_auth_users"
                ));
            }
        }
    }
    Ok(guard)
}

fn tls(fields: &Fields, file: &str, warnings: &mut Vec<String>) -> Result<Guard, String> {
    let known = |name: &&String| {
        let name = name.as_str();
        matches!(name, "cert_file" | "key_file" | "client_auth_type" | "client_ca_file" | "min_version" | "max_version")
            || matches!(name, "cipher_suites" | "curve_preferences" | "prefer_server_cipher_suites")
    };
    if let Some((name, value)) = fields.iter().find(|(name, value)| !known(name) && !is_empty(value)) {
        return Err(match name.as_str() {
            "cert" | "key" | "client_ca" => {
                format!("{name} in the file itself: Trimtab reads it from a file of its own; name that by {name}_file")
            }
            "client_allowed_sans" if value.is_array() => {
                "client_allowed_sans: every client is let in that client_ca_file \
                 has signed; leave it out, and let a CA of its own sign for those who may"
                    .to_owned()
            }
            _ => format!("{name} of tls_server_config is not known"),
        });
    }
    let text = |name: &str| fields.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
    let at = |path: &str| Path::new(file).parent().unwrap_or(Path::new("")).join(path).to_string_lossy().into_owned();
    let mut guard = Guard::new();
    match (text("cert_file"), text("key_file")) {
        (Some(certificate), Some(key)) => {
            guard.extend([("--listen-cert-file", at(certificate)), ("--listen-key-file", at(key))]);
        }
        (None, None) if fields.values().all(is_empty) => return Ok(guard),
        _ => return Err("tls_server_config needs both cert_file and key_file".to_owned()),
    }
    match (text("client_auth_type"), text("client_ca_file")) {
        (None | Some("NoClientCert"), None) => {}
        (Some("RequireAndVerifyClientCert"), Some(path)) => guard.push(("--listen-client-ca-file", at(path))),
        (Some("RequireAndVerifyClientCert"), None) => {
            return Err("client_auth_type RequireAndVerifyClientCert needs client_ca_file".to_owned());
        }
        (None | Some("NoClientCert"), Some(_)) => {
            return Err("client_ca_file without client_auth_type RequireAndVerifyClientCert checks nobody".to_owned());
        }
        (Some(kind), _) => {
            return Err(format!(
                "client_auth_type {kind}: Trimtab asks each client for a certificate and verifies it, or asks none; take \
                 RequireAndVerifyClientCert with client_ca_file, or NoClientCert"
            ));
        }
    }
    let newest_only = match text("min_version") {
        None | Some("TLS12") => false,
        Some("TLS13") => {
            guard.push(("--listen-min-tls", "1.3".to_owned()));
            true
        }
        Some(old @ ("TLS10" | "TLS11")) => {
            warnings.push(format!("min_version {old} of web-config-file: nothing older than TLS 1.2 is spoken"));
            false
        }
        Some(_) => return Err("min_version is TLS12 or TLS13".to_owned()),
    };
    if text("max_version").is_some_and(|version| version != "TLS13") {
        return Err("max_version: TLS 1.3 is always spoken; leave it out".to_owned());
    }
    // Go's list is not about TLS 1.3 either.
    covers(fields, "cipher_suites", if newest_only { &[] } else { &SUITES })?;
    covers(fields, "curve_preferences", &CURVES)?;
    Ok(guard)
}

/// Refuses a list that lacks one of those that are offered in any case.
fn covers(fields: &Fields, name: &str, offered: &[&str]) -> Result<(), String> {
    let Some(Value::Array(list)) = fields.get(name).filter(|value| !is_empty(value)) else { return Ok(()) };
    match offered.iter().find(|offer| !list.iter().any(|item| item == **offer)) {
        Some(offer) => {
            Err(format!("{name} lacks {offer}, which Trimtab offers in any case: add it, or leave {name} out"))
        }
        None => Ok(()),
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> (Result<String, String>, usize) {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), text).unwrap();
        let path = file.path().to_str().unwrap();
        let mut warnings = Vec::new();
        let flags = flags(path, &mut warnings).map(|guard| {
            let words: Vec<_> = guard.iter().map(|(flag, value)| format!("{flag}={value}")).collect();
            let here = file.path().parent().unwrap().to_str().unwrap();
            words.join(" ").replace(path, "FILE").replace(here, "HERE")
        });
        (flags.map_err(|error| error.replace(path, "FILE")), warnings.len())
    }

    #[test]
    fn a_file_may_ask_for_nothing() {
        for (text, warnings) in [
            ("", 0),
            ("# nothing\n", 0),
            ("{}", 0),
            ("tls_server_config: {}\nbasic_auth_users: {}", 0),
            ("tls_server_config:\nbasic_auth_users:", 0),
            ("tls_server_config: {cert_file: '', cipher_suites: []}", 0),
            ("http_server_config: {http2: true}", 1),
        ] {
            assert_eq!(of(text), (Ok(String::new()), warnings), "{text}");
        }
    }

    #[test]
    fn tls_and_users_are_flags() {
        let pair = "cert_file: a, key_file: /k/b";
        let flags = "--listen-cert-file=HERE/a --listen-key-file=/k/b";
        let clients = "client_auth_type: RequireAndVerifyClientCert, client_ca_file: c";
        let (suites, curves) = (SUITES.join(", "), CURVES.join(", "));
        for (text, more, warnings) in [
            (format!("{pair}, client_auth_type: NoClientCert, max_version: TLS13, min_version: TLS12"), "", 0),
            (format!("{pair}, {clients}"), " --listen-client-ca-file=HERE/c", 0),
            (format!("{pair}, min_version: TLS13, cipher_suites: [X]"), " --listen-min-tls=1.3", 0),
            (format!("{pair}, min_version: TLS10, prefer_server_cipher_suites: true"), "", 1),
            (format!("{pair}, cipher_suites: [{suites}], curve_preferences: [{curves}]"), "", 0),
        ] {
            let text = format!("tls_server_config: {{{text}}}");
            assert_eq!(of(&text), (Ok(format!("{flags}{more}")), warnings), "{text}");
        }
        let both = of(&format!("basic_auth_users: {{me: c4n4ry}}\ntls_server_config: {{{pair}}}")).0.unwrap();
        assert!(both.contains("--listen-users-file=FILE") && both.contains(flags), "{both}");
    }

    #[test]
    fn what_cannot_be_honoured_is_refused_by_name() {
        let pair = "cert_file: a, key_file: b";
        for (fields, said) in [
            ("cert_file: a".to_owned(), "needs both"),
            ("client_auth_type: NoClientCert".to_owned(), "needs both"),
            (format!("{pair}, client_auth_type: RequestClientCert"), "RequireAndVerifyClientCert with"),
            (format!("{pair}, client_auth_type: RequireAndVerifyClientCert"), "needs client_ca_file"),
            (format!("{pair}, client_ca_file: c"), "checks nobody"),
            (format!("{pair}, max_version: TLS12"), "max_version"),
            (format!("{pair}, min_version: SSL3"), "min_version"),
            (format!("{pair}, client_allowed_sans: [x]"), "client_allowed_sans"),
            (format!("{pair}, cipher_suites: [{}]", SUITES[0]), SUITES[1]),
            (format!("{pair}, curve_preferences: [X25519]"), "CurveP256"),
            ("cert: c4n4ry, key_file: b".to_owned(), "name that by cert_file"),
            (format!("{pair}, c4n: 1"), "c4n of tls_server_config is not known"),
        ] {
            let refused = of(&format!("tls_server_config: {{{fields}}}")).0.unwrap_err();
            assert!(refused.contains(said) && refused.contains("FILE") && !refused.contains("c4n4ry"), "{refused}");
        }
        for (text, said) in [
            ("tls_server_config: a", "no mapping"),
            ("basic_auth_users: [c4n4ry]", "no mapping"),
            ("rate_limit: {burst: 1}", "rate_limit is not known"),
            ("c4n4ry: [", "no YAML"),
            ("c4n4ry", "no YAML"),
        ] {
            let refused = of(text).0.unwrap_err();
            assert!(refused.contains(said) && refused.contains("FILE") && !refused.contains("c4n4ry"), "{refused}");
        }
    }
}
