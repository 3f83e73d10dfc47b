//! The sidecar's container, as a Pod and a policy have it.

use super::CONTAINER;
use super::emit::{Yaml, map};
use super::pod::is_in;

/// How the kubelet asks after the sidecar.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Probes {
    /// It has no way.
    #[default]
    None,
    /// By HTTP at `--listen`.
    Http,
    /// By TLS there; the kubelet does not verify the certificate.
    Https,
    /// By a program in the container that asks at `--admin`: the kubelet does not reach `--listen`, or has neither the
    /// certificate nor the password that it wants. This is what it is run with.
    Exec(Vec<String>),
}

/// What differs between sidecars.
pub(super) struct Parts {
    pub image: Yaml,
    pub args: Yaml,
    pub env: Yaml,
    pub port: Option<Yaml>,
    pub probes: Probes,
    pub once: bool,
    pub memory_limit: Yaml,
    pub context: Yaml,
    pub mounts: Yaml,
}

/// The sidecar's container.
pub(super) fn container(parts: Parts) -> Yaml {
    let Parts { image, args, env, port, probes, once, memory_limit, context, mounts } = parts;
    let mut container = vec![("name", CONTAINER.into()), ("image", image)];
    if !once {
        container.push(("restartPolicy", "Always".into()));
    }
    container.extend([("args", args), ("env", env)]);
    if !once {
        if let Some(port) = &port {
            let port = map([("name", "metrics".into()), ("containerPort", port.clone())]);
            container.push(("ports", Yaml::List(vec![port])));
        }
        let get = |path: &str| {
            let mut get = vec![("path".to_owned(), path.into()), ("port".to_owned(), port.clone()?)];
            if probes == Probes::Https {
                get.push(("scheme".to_owned(), "HTTPS".into()));
            }
            Some(vec![("httpGet", Yaml::Map(get))])
        };
        let asks = match &probes {
            Probes::None => None,
            Probes::Http | Probes::Https => get("/readyz").zip(get("/livez")),
            Probes::Exec(command) => {
                let command = Yaml::List(command.iter().cloned().map(Yaml::Text).collect());
                // It is there once a generation is published, which it stays. A second is little for a new process.
                let ask = vec![("exec", map([("command", command)])), ("timeoutSeconds", 10.into())];
                Some((ask.clone(), ask))
            }
        };
        if let Some((mut startup, live)) = asks {
            // The main container starts when its configuration is there.
            startup.extend([("periodSeconds", 1.into()), ("failureThreshold", 60.into())]);
            for (key, probe) in [("startupProbe", startup), ("livenessProbe", live)] {
                let probe = probe.into_iter().map(|(key, value)| (key.to_owned(), value));
                container.push((key, Yaml::Map(probe.collect())));
            }
        }
    }
    let requests = map([("cpu", "5m".into()), ("memory", "16Mi".into())]);
    container.push(("resources", map([("requests", requests), ("limits", map([("memory", memory_limit)]))])));
    container.extend([("securityContext", context), ("volumeMounts", mounts)]);
    Yaml::Map(container.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
}

/// What the restricted Pod Security Standard asks of a container, and what is given instead or beside it.
pub(super) fn restricted(users: Vec<(String, Yaml)>) -> Yaml {
    let mut context = vec![
        ("allowPrivilegeEscalation".to_owned(), false.into()),
        ("capabilities".to_owned(), map([("drop", Yaml::List(vec!["ALL".into()]))])),
        ("readOnlyRootFilesystem".to_owned(), true.into()),
    ];
    if !users.iter().any(|(key, _)| key == "runAsNonRoot") {
        context.push(("runAsNonRoot".to_owned(), true.into()));
    }
    context.extend(users);
    context.push(("seccompProfile".to_owned(), map([("type", "RuntimeDefault".into())])));
    Yaml::Map(context)
}

/// A variable from a field of the Pod.
pub(super) fn field(name: &str, path: &str) -> Yaml {
    map([("name", name.into()), ("valueFrom", map([("fieldRef", map([("fieldPath", path.into())]))]))])
}

/// The variables that each sidecar has from fields of its Pod: Events, `--rollout` and `pod` in templates need them.
pub const OF_THE_POD: [(&str, &str); 3] =
    [("POD_NAME", "metadata.name"), ("POD_NAMESPACE", "metadata.namespace"), ("POD_UID", "metadata.uid")];

pub(super) fn of_the_pod() -> Vec<Yaml> {
    OF_THE_POD.map(|(name, path)| field(name, path)).into()
}

/// Whether the kubelet mounts this path for the service account's token.
pub(super) fn is_token(path: &str) -> bool {
    is_in(path, "/var/run/secrets/kubernetes.io")
}

/// A volume's name for a path, of at most 63 letters, digits and dashes.
pub(super) fn volume_name(path: &str, is_taken: &dyn Fn(&String) -> bool) -> String {
    let word: String =
        path.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' }).collect();
    let word: String = word.trim_matches('-').chars().take(40).collect();
    let base = format!("{CONTAINER}-{}", word.trim_matches('-'));
    let numbered = (2..).map(|number| format!("{base}-{number}"));
    std::iter::once(base.clone()).chain(numbered).find(|name| !is_taken(name)).unwrap_or(base)
}
