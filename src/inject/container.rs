//! The sidecar's container, as a Pod and a policy have it.

use super::CONTAINER;
use super::emit::{Yaml, map};
use super::pod::is_in;

/// What differs between sidecars.
pub(super) struct Parts {
    pub image: Yaml,
    pub args: Yaml,
    pub env: Yaml,
    pub port: Option<Yaml>,
    pub probed: bool,
    pub once: bool,
    pub memory_limit: Yaml,
    pub context: Yaml,
    pub mounts: Yaml,
}

/// The sidecar's container.
pub(super) fn container(parts: Parts) -> Yaml {
    let Parts { image, args, env, port, probed, once, memory_limit, context, mounts } = parts;
    let mut container = vec![("name", CONTAINER.into()), ("image", image)];
    if !once {
        container.push(("restartPolicy", "Always".into()));
    }
    container.extend([("args", args), ("env", env)]);
    if let Some(port) = port.filter(|_| !once) {
        container.push(("ports", Yaml::List(vec![map([("name", "metrics".into()), ("containerPort", port.clone())])])));
        if probed {
            let get = |path: &str| map([("path", path.into()), ("port", port.clone())]);
            // The main container starts when its configuration is there.
            let startup = [("httpGet", get("/readyz")), ("periodSeconds", 1.into()), ("failureThreshold", 60.into())];
            container.push(("startupProbe", map(startup)));
            container.push(("livenessProbe", map([("httpGet", get("/livez"))])));
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
