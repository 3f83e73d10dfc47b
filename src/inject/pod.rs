//! Where a manifest has Pods, and what they say of themselves.

use super::Problem;
use super::document::Node;

/// A Pod, or the template of Pods, in a document.
pub(super) struct Place<'a> {
    /// `deployment/web`.
    pub name: String,
    pub namespace: Option<&'a str>,
    /// What has `metadata` and `spec`.
    pub holder: &'a Node,
    pub spec: &'a Node,
}

/// Where a Pod template is, by the kinds that have one.
const TEMPLATES: [&[&str]; 3] = [&["spec", "jobTemplate", "spec", "template"], &["spec", "template"], &["template"]];

/// The Pods of a document, those in a List or a ResourceList as well.
pub(super) fn places(document: &Node) -> Vec<Place<'_>> {
    let kind = document.text_at(&["kind"]).unwrap_or_default();
    if let Some(items) = document.at(&["items"]).filter(|_| kind.ends_with("List")) {
        return items.items().iter().flat_map(places).collect();
    }
    let holder = if kind == "Pod" {
        Some(document)
    } else {
        TEMPLATES
            .iter()
            .find_map(|path| document.at(path).filter(|holder| holder.at(&["spec", "containers"]).is_some()))
    };
    let Some((holder, spec)) = holder.and_then(|holder| Some((holder, holder.at(&["spec"])?))) else {
        return Vec::new();
    };
    let name = document.text_at(&["metadata", "name"]).or(document.text_at(&["metadata", "generateName"]));
    vec![Place {
        name: format!("{}/{}", kind.to_lowercase(), name.unwrap_or_default()),
        namespace: document.text_at(&["metadata", "namespace"]),
        holder,
        spec,
    }]
}

/// The names of a list's items.
pub(super) fn names(list: Option<&Node>) -> Vec<&str> {
    list.map_or(&[][..], Node::items).iter().filter_map(|item| item.text_at(&["name"])).collect()
}

/// The item of this name.
pub(super) fn named<'a>(list: Option<&'a Node>, name: &str) -> Option<&'a Node> {
    list?.items().iter().find(|item| item.text_at(&["name"]) == Some(name))
}

impl<'a> Place<'a> {
    /// Whether somebody means it, as `deployment/web` or `web`.
    pub fn is_called(&self, wanted: &str) -> bool {
        let wanted = wanted.to_lowercase();
        wanted == self.name || self.name.split_once('/').is_some_and(|(_, name)| name == wanted)
    }

    pub fn list(&self, key: &str) -> Option<&'a Node> {
        self.spec.at(&[key])
    }

    /// The container of this name; without a name, the only one.
    pub fn container(&self, wanted: Option<&str>) -> Result<&'a Node, Problem> {
        let containers = self.list("containers");
        let has = || names(containers).join(", ");
        match (wanted, containers.map_or(&[][..], Node::items)) {
            (Some(name), _) => {
                named(containers, name).ok_or_else(|| Problem::NoContainer { wanted: name.to_owned(), has: has() })
            }
            (None, [only]) if only.text_at(&["name"]).is_some() => Ok(only),
            (None, _) => Err(Problem::WhichContainer { has: has() }),
        }
    }

    /// What a container's or, where that is silent, the Pod's `securityContext` says.
    pub fn context(&self, container: &'a Node, key: &str) -> Option<&'a str> {
        container.text_at(&["securityContext", key]).or(self.spec.text_at(&["securityContext", key]))
    }
}

/// The mount of a container that a path is in: the deepest.
pub(super) fn mount_of<'a>(container: &'a Node, path: &str) -> Option<(&'a Node, &'a str)> {
    let mounts = container.at(&["volumeMounts"])?.items().iter();
    let mounts = mounts.filter_map(|mount| Some((mount, mount.text_at(&["mountPath"])?)));
    mounts.filter(|(_, at)| is_in(path, at)).max_by_key(|(_, at)| at.len())
}

/// Whether a path is a directory or is below it.
pub(super) fn is_in(path: &str, directory: &str) -> bool {
    let rest = path.strip_prefix(directory.trim_end_matches('/'));
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}
