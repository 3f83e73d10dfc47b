//! What the API server sends, as far as Trimtab wants it: the rest (managedFields, annotations, labels) is skipped
//! while it is parsed, and never kept. Labels and annotations that `--path` names are read from the same text once more. None of these types has a `Debug`, as they hold secrets.
//!
//! Shapes: <https://kubernetes.io/docs/reference/using-api/api-concepts/>.

use std::borrow::Cow;
use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::failure::Failure;
use crate::model::content::Content;
use crate::model::object::{Kind, Marks, Object, ObjectRef};
use crate::model::spool::Spool;

/// One page of a list (`ConfigMapList`, `SecretList`).
#[derive(Deserialize)]
pub(super) struct Page {
    pub(super) metadata: PageMeta,
    /// Go writes an empty list as `[]` or as `null`.
    pub(super) items: Option<Vec<Item>>,
}

/// The same without its items.
#[derive(Deserialize)]
pub(super) struct PageHead {
    pub(super) metadata: PageMeta,
}

/// `ListMeta`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PageMeta {
    /// Where a watch that follows this list starts.
    #[serde(default)]
    pub(super) resource_version: String,
    /// What to ask the next page with; empty on the last one.
    #[serde(default, rename = "continue")]
    pub(super) next: String,
}

/// One line of a watch.
#[derive(Deserialize)]
#[serde(tag = "type", content = "object", rename_all = "UPPERCASE")]
pub(super) enum Event {
    Added(Item),
    Modified(Item),
    Deleted(Item),
    Bookmark(Item),
    Error(Status),
}

/// A `ConfigMap` or a Secret. The items of a list carry no `kind` of their own.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Item {
    pub(super) metadata: Meta,
    #[serde(default)]
    data: Option<Values>,
    #[serde(default)]
    binary_data: Option<Values>,
}

/// Text, or base64. Go writes an empty `[]byte` as `""` or as `null`.
type Values = BTreeMap<String, Option<String>>;

/// `ObjectMeta`. A bookmark's has a resourceVersion alone.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Meta {
    #[serde(default)]
    name: String,
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    pub(super) resource_version: String,
    /// RFC 3339; `null` in a bookmark.
    #[serde(default)]
    creation_timestamp: Option<String>,
}

/// `Status`: why a request, or a watch that was running, failed.
#[derive(Default, Deserialize)]
pub(super) struct Status {
    #[serde(default)]
    pub(super) code: u16,
    #[serde(default)]
    pub(super) reason: String,
    /// Free text of the server's. Read for the user's name, never shown.
    #[serde(default)]
    pub(super) message: String,
    #[serde(default)]
    pub(super) details: Option<StatusDetails>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct StatusDetails {
    #[serde(default)]
    pub(super) retry_after_seconds: u64,
    #[serde(default)]
    pub(super) causes: Option<Vec<StatusCause>>,
}

#[derive(Deserialize)]
pub(super) struct StatusCause {
    #[serde(default)]
    pub(super) reason: String,
}

/// Labels and annotations as they stand in the text of a page or an event.
#[derive(Deserialize)]
struct Marked<'a> {
    #[serde(borrow)]
    metadata: MarkedMeta<'a>,
}

#[derive(Deserialize)]
struct MarkedMeta<'a> {
    #[serde(borrow, default)]
    labels: Option<&'a RawValue>,
    #[serde(borrow, default)]
    annotations: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct MarkedPage<'a> {
    #[serde(borrow, default)]
    items: Option<Vec<Marked<'a>>>,
}

#[derive(Deserialize)]
struct MarkedEvent<'a> {
    #[serde(borrow)]
    object: Marked<'a>,
}

/// The wanted labels and annotations of each item; nothing where none is wanted.
pub(super) fn marks_of_page(text: &[u8], wanted: &[String]) -> Result<Vec<Marks>, serde_json::Error> {
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let page: MarkedPage<'_> = serde_json::from_slice(text)?;
    page.items.iter().flatten().map(|item| item.metadata.wanted(wanted)).collect()
}

/// The wanted labels and annotations of an event's object.
pub(super) fn marks_of_event(text: &[u8], wanted: &[String]) -> Result<Marks, serde_json::Error> {
    if wanted.is_empty() {
        return Ok(Marks::new());
    }
    // The status of an error has no object.
    let event: Result<MarkedEvent<'_>, _> = serde_json::from_slice(text);
    event.map_or_else(|_| Ok(Marks::new()), |event| event.object.metadata.wanted(wanted))
}

impl MarkedMeta<'_> {
    fn wanted(&self, wanted: &[String]) -> Result<Marks, serde_json::Error> {
        let mut marks = Marks::new();
        for (prefix, raw) in [("label:", self.labels), ("annotation:", self.annotations)] {
            let Some(raw) = raw.filter(|_| wanted.iter().any(|name| name.starts_with(prefix))) else { continue };
            let all: BTreeMap<Cow<'_, str>, String> = serde_json::from_str(raw.get())?;
            for (name, value) in all {
                let name = format!("{prefix}{name}");
                if wanted.contains(&name) {
                    marks.insert(name, value);
                }
            }
        }
        Ok(marks)
    }
}

/// The key whose value is not the base64 that the API promises.
pub(super) struct NotBase64(pub(super) String);

impl Item {
    /// Who it is.
    pub(super) fn id(&self, kind: Kind) -> ObjectRef {
        ObjectRef { kind, namespace: self.metadata.namespace.as_str().into(), name: self.metadata.name.as_str().into() }
    }

    /// The object that it describes, with its values decoded; they are kept in the spool, if there is one.
    pub(super) fn into_object(self, kind: Kind, spool: Option<&Spool>) -> Result<Object, Failure> {
        let kept = |value| match spool {
            Some(spool) => Content::keep(value, spool),
            None => Ok(Content::from(value)),
        };
        let id = self.id(kind);
        let secret = kind == Kind::Secret;
        let mut data = BTreeMap::new();
        for (key, value) in self.data.unwrap_or_default() {
            let value = value.unwrap_or_default();
            let value = if secret { decode(&key, &value)? } else { Bytes::from(value) };
            data.insert(key, kept(value)?);
        }
        for (key, value) in self.binary_data.unwrap_or_default() {
            let value = kept(decode(&key, &value.unwrap_or_default())?)?;
            data.insert(key, value);
        }
        // A time that cannot be read orders the object before all others; nothing else depends on it.
        let created =
            self.metadata.creation_timestamp.and_then(|time| time.parse::<jiff::Timestamp>().ok()).unwrap_or_default();
        Ok(Object::new(id, self.metadata.resource_version, created.as_second(), secret, data))
    }
}

fn decode(key: &str, value: &str) -> Result<Bytes, NotBase64> {
    // The decoder's own error quotes the offending byte.
    STANDARD.decode(value).map(Bytes::from).map_err(|_| NotBase64(key.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_go_leaves_out_or_writes_as_null_is_empty() {
        let page: Page = serde_json::from_str(r#"{"kind": "SecretList", "metadata": {}, "items": null}"#).unwrap();
        assert!(page.items.is_none() && page.metadata.next.is_empty());
        let text = r#"{"metadata": {"name": "a", "namespace": "n", "managedFields": [{"fieldsV1": {"f:data": {}}}]},
            "data": {"null": null, "text": "AAE="}, "type": "Opaque"}"#;
        let item: Item = serde_json::from_str(text).unwrap();
        let Ok(object) = item.into_object(Kind::Secret, None) else { panic!("not base64") };
        assert!(object.data["null"].is_empty());
        assert_eq!(object.data["text"].read().unwrap()[..], [0, 1]);
        assert_eq!((object.id.to_string().as_str(), object.created), ("secret/n/a", 0));
    }

    #[test]
    fn labels_and_annotations_are_kept_where_they_are_wanted() {
        let item = |name: &str, annotations: &str| {
            format!(
                r#"{{"metadata": {{"name": "{name}", "labels": {{"app": "web", "other": "x"}}, "annotations": {annotations}}}}}"#
            )
        };
        let marked = item("a", r#"{"folder": "a\u0062", "last-applied": "{\"metadata\": {}}"}"#);
        let page = format!(r#"{{"metadata": {{}}, "items": [{marked}, {}, {{"metadata": {{}}}}]}}"#, item("b", "null"));
        let wanted = ["annotation:folder".to_owned(), "label:app".to_owned()];
        let map = |marks: &[(&str, &str)]| {
            marks.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect::<Marks>()
        };
        let all = marks_of_page(page.as_bytes(), &wanted).unwrap();
        assert_eq!(
            all,
            [map(&[("annotation:folder", "ab"), ("label:app", "web")]), map(&[("label:app", "web")]), map(&[])]
        );
        let event = format!(r#"{{"object": {marked}, "type": "MODIFIED"}}"#);
        assert_eq!(marks_of_event(event.as_bytes(), &wanted).unwrap(), all[0]);
        let error = r#"{"type": "ERROR", "object": {"kind": "Status", "metadata": {}, "code": 410}}"#;
        assert_eq!(marks_of_event(error.as_bytes(), &wanted).unwrap(), map(&[]));
        assert!(marks_of_page(page.as_bytes(), &[]).unwrap().is_empty());
    }

    #[test]
    fn a_watch_line_is_read_whichever_way_round_it_stands() {
        for text in [
            r#"{"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "7", "creationTimestamp": null}}}"#,
            r#"{"object": {"metadata": {"resourceVersion": "7"}}, "type": "BOOKMARK"}"#,
        ] {
            let Ok(Event::Bookmark(item)) = serde_json::from_str(text) else { panic!("{text}") };
            assert_eq!(item.metadata.resource_version, "7");
        }
    }
}
