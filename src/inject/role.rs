//! The Roles that the sidecar's flags need, and what binds them to its service account.

use std::fmt::Write as _;

use crate::source::kube::Rule;

/// Whom the permissions are for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subject {
    /// The name of each Role and of its binding.
    pub name: String,
    pub service_account: String,
    /// Where the service account is; where `kubectl apply` says, if it is not known.
    pub namespace: Option<String>,
}

/// A binding in another namespace, or of a ClusterRole, has to say where the service account is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("--namespace is needed, as {what} is outside of the Pod's own: its binding says where the service account is")]
pub struct NoNamespace {
    what: String,
}

/// The documents. `own` is what the rules have for the Pod's own namespace.
pub fn manifest(rules: &[Rule], own: &str, subject: &Subject) -> Result<String, NoNamespace> {
    let mut text = String::new();
    let mut places: Vec<Option<&str>> = Vec::new();
    for rule in rules {
        if !places.contains(&rule.namespace()) {
            places.push(rule.namespace());
        }
    }
    for place in places {
        let is_own = place == Some(own);
        let Subject { name, service_account, namespace } = subject;
        let outside = namespace.as_deref().filter(|_| !is_own);
        if outside.is_none() && !is_own {
            let what = place.map_or("a selector of all namespaces".to_owned(), |place| format!("namespace {place}"));
            return Err(NoNamespace { what });
        }
        let of_place: Vec<_> = rules.iter().filter(|rule| rule.namespace() == place).collect();
        let Some(kind) = of_place.first().map(|rule| rule.role()) else { continue };
        let name = match (place, outside) {
            // A ClusterRole's name is the whole cluster's.
            (None, Some(namespace)) => format!("{name}-{namespace}"),
            _ => name.clone(),
        };
        let inside = if is_own { namespace.as_deref() } else { place };
        let metadata = match inside {
            Some(inside) => format!("metadata:\n  name: {name}\n  namespace: {inside}\n"),
            None => format!("metadata:\n  name: {name}\n"),
        };
        let separator = if text.is_empty() { "" } else { "---\n" };
        let _ = write!(text, "{separator}apiVersion: rbac.authorization.k8s.io/v1\nkind: {kind}\n{metadata}rules:\n");
        for rule in of_place {
            for line in rule.yaml().lines() {
                let _ = writeln!(text, "  {line}");
            }
        }
        let _ = write!(
            text,
            "---\napiVersion: rbac.authorization.k8s.io/v1\nkind: {kind}Binding\n{metadata}roleRef:\n  apiGroup: \
             rbac.authorization.k8s.io\n  kind: {kind}\n  name: {name}\nsubjects:\n  - kind: ServiceAccount\n    name: \
             {service_account}\n"
        );
        if let Some(namespace) = outside {
            let _ = writeln!(text, "    namespace: {namespace}");
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::object::Kind;
    use crate::source::kube::{Scope, Watch};

    fn named(namespace: &str, name: &str) -> Rule {
        let scope = Scope::Named { namespace: namespace.into(), name: name.into() };
        Rule::to_read(&Watch { source: 0, kind: Kind::ConfigMap, scope, marks: [].into() })
    }

    fn subject(namespace: Option<&str>) -> Subject {
        Subject { name: "web-trimtab".into(), service_account: "web".into(), namespace: namespace.map(Into::into) }
    }

    #[test]
    fn rules_of_the_own_namespace_are_one_role() {
        let rules = [named("", "web"), Rule::to_create_events("")];
        let expected = r#"apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata:
  name: web-trimtab
rules:
  - apiGroups: [""]
    resources: ["configmaps"]
    resourceNames: ["web"]
    verbs: ["list", "watch"]
  - apiGroups: ["events.k8s.io"]
    resources: ["events"]
    verbs: ["create"]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata:
  name: web-trimtab
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: Role
  name: web-trimtab
subjects:
  - kind: ServiceAccount
    name: web
"#;
        assert_eq!(manifest(&rules, "", &subject(None)), Ok(expected.to_owned()));
    }

    #[test]
    fn rules_elsewhere_say_where_the_service_account_is() {
        let everywhere = Scope::Selected { selector: "a=b".into(), namespace: None };
        let everywhere = Rule::to_read(&Watch { source: 0, kind: Kind::Secret, scope: everywhere, marks: [].into() });
        let rules = [named("shop", "web"), named("other", "web"), everywhere];
        assert!(manifest(&rules[1..2], "", &subject(None)).is_err());
        assert!(manifest(&rules[2..], "", &subject(None)).is_err());
        let text = manifest(&rules, "shop", &subject(Some("shop"))).unwrap();
        let places: Vec<_> = text.lines().filter(|line| line.contains("namespace: ")).map(str::trim).collect();
        let expected = ["shop", "shop", "other", "other", "shop", "shop"].map(|name| format!("namespace: {name}"));
        assert_eq!(places, expected);
        assert!(text.contains("kind: ClusterRole\nmetadata:\n  name: web-trimtab-shop\n"), "{text}");
    }
}
