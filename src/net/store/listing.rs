//! A page of a bucket's list, and whether its keys may be used.

use std::collections::BTreeSet;

use super::kind::Kind;

/// What a list says of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub etag: String,
    pub size: u64,
    modified: String,
}

/// Some of the objects below a prefix, by the rest of their keys, and where the next ones begin.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Page {
    pub entries: Vec<(String, Entry)>,
    pub next: Option<String>,
}

/// Why nothing below a prefix is used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ListingError {
    #[error("the list makes no sense; {}", .0.other())]
    Broken(Kind),
    #[error("{key:?} has an empty segment, '.' or '..'; rename the object, or give another prefix")]
    Outside { key: String },
    #[error("{key:?} is an object and a folder as well; rename one of them")]
    Both { key: String },
    #[error("{key:?} is listed twice")]
    Twice { key: String },
    #[error("more than 10,000 objects are below it; make a bundle of them (.tar.gz)")]
    TooMany,
    #[error("what is below it has more than {limit} bytes; raise --max-size (and give the volume of --output room)")]
    TooLarge { limit: u64 },
    #[error(
        "it changed three times while it was fetched; asking again. Upload a bundle (.tar.gz) instead, which is whole by nature"
    )]
    Restless,
}

impl ListingError {
    /// Whether the next answer will hardly be another one.
    #[must_use]
    pub fn is_lasting(&self) -> bool {
        !matches!(self, Self::Restless)
    }
}

/// What a page says, as it says it.
#[derive(Debug, Default)]
pub(super) struct Listed {
    pub objects: Vec<ListedObject>,
    pub next: Option<String>,
}

/// One of its objects.
#[derive(Debug)]
pub(super) struct ListedObject {
    pub key: String,
    pub etag: String,
    pub size: u64,
    pub modified: String,
}

impl Page {
    /// `prefix`: what was asked for.
    pub(super) fn read(kind: Kind, body: &[u8], prefix: &str) -> Result<Self, ListingError> {
        let broken = || ListingError::Broken(kind);
        let list = std::str::from_utf8(body).ok().and_then(|text| kind.listed(text)).ok_or_else(broken)?;
        let mut page = Self { next: list.next, ..Self::default() };
        for ListedObject { key, etag, size, modified } in list.objects {
            let rest = key.strip_prefix(prefix).ok_or_else(broken)?;
            // What some tools make of a folder.
            if size == 0 && (rest.is_empty() || rest.ends_with('/')) {
                continue;
            }
            if rest.split('/').any(|segment| matches!(segment, "" | "." | "..")) {
                return Err(ListingError::Outside { key });
            }
            if etag.is_empty() {
                return Err(broken());
            }
            page.entries.push((rest.to_owned(), Entry { etag, size, modified }));
        }
        Ok(page)
    }
}

/// Whether one of these would have to be a file and a folder.
pub fn folders<'a>(keys: impl Iterator<Item = &'a str> + Clone) -> Result<(), ListingError> {
    let all: BTreeSet<_> = keys.clone().collect();
    for key in keys {
        let above = key.match_indices('/').map(|(end, _)| &key[..end]);
        if let Some(both) = above.into_iter().find(|above| all.contains(above)) {
            return Err(ListingError::Both { key: both.to_owned() });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(contents: &str) -> Result<Vec<String>, ListingError> {
        let text = format!(
            "<?xml version=\"1.0\"?><ListBucketResult xmlns=\"x\"><Name>web</Name>{contents}</ListBucketResult>"
        );
        Page::read(Kind::S3, text.as_bytes(), "conf/")
            .map(|page| page.entries.into_iter().map(|(key, _)| key).collect())
    }

    fn entry(key: &str, size: u64) -> String {
        format!("<Contents><Key>{key}</Key><ETag>&quot;1&quot;</ETag><Size>{size}</Size></Contents>")
    }

    #[test]
    fn keys_are_used_or_refused_as_a_whole() {
        let both = entry("conf/a &amp; b", 1) + &entry("conf/sub/c", 2) + &entry("conf/sub/", 0) + &entry("conf/", 0);
        assert_eq!(page(&both).unwrap(), ["a & b", "sub/c"]);
        assert_eq!(page("").unwrap(), [""; 0]);
        for key in ["conf/../a", "conf/a/../b", "conf//etc/passwd", "conf/a//b", "conf/./a"] {
            assert_eq!(
                page(&(entry("conf/a", 1) + &entry(key, 1))),
                Err(ListingError::Outside { key: key.to_owned() })
            );
        }
        for broken in
            [&entry("other/a", 1), "<IsTruncated>true</IsTruncated>", "<Contents><Key>conf/a</Key></Contents>", "<a"]
        {
            assert_eq!(page(broken), Err(ListingError::Broken(Kind::S3)), "{broken}");
        }
        assert_eq!(Page::read(Kind::S3, b"<html>\xff", ""), Err(ListingError::Broken(Kind::S3)));
        let keys = ["a", "b/c", "b", "d/e"];
        assert_eq!(folders(keys.into_iter()), Err(ListingError::Both { key: "b".to_owned() }));
        assert_eq!(folders(["a", "a.b/c", "d/e"].into_iter()), Ok(()));
    }
}
