//! The Pod, as templates see it.

use std::collections::BTreeMap;

/// What is known of the Pod. An empty text, or no node, is undefined in a template.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    /// `POD_NAME`.
    pub name: String,
    /// `POD_NAMESPACE`, or the service account's.
    pub namespace: String,
    /// `POD_UID`.
    pub uid: String,
    /// `POD_IP`.
    pub ip: String,
    /// `NODE_NAME`.
    pub node: Option<String>,
    /// The file `labels` of `--podinfo-dir`.
    pub labels: BTreeMap<String, String>,
    /// The file `annotations` of `--podinfo-dir`.
    pub annotations: BTreeMap<String, String>,
}

impl Pod {
    /// The number at the end of its name, as a `StatefulSet` gives one to each Pod.
    #[must_use]
    pub fn ordinal(&self) -> Option<u32> {
        let (_, number) = self.name.rsplit_once('-')?;
        number.parse().ok().filter(|_| number.bytes().all(|byte| byte.is_ascii_digit()))
    }
}

/// A downward API file is not lines of `key="value"`. Fatal for this read; the file is read again when it changes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line} is not KEY=\"VALUE\", as the downward API writes labels and annotations")]
pub struct PodInfoError {
    /// The line, from 1.
    pub line: usize,
}

/// Parses a downward API file of labels or annotations.
///
/// The kubelet writes each as `%v=%q` (kubernetes `pkg/fieldpath/fieldpath.go`, `FormatMap`), so that a value is a Go
/// string literal on one line.
pub fn parse_podinfo(bytes: &[u8]) -> Result<BTreeMap<String, String>, PodInfoError> {
    let lines = bytes.split(|&byte| byte == b'\n').enumerate().filter(|(_, line)| !line.is_empty());
    lines.map(|(index, line)| parse_line(line).ok_or(PodInfoError { line: index + 1 })).collect()
}

fn parse_line(line: &[u8]) -> Option<(String, String)> {
    let (key, value) = std::str::from_utf8(line).ok()?.split_once('=')?;
    let value = value.strip_prefix('"')?.strip_suffix('"')?;
    (!key.is_empty()).then_some(())?;
    Some((key.to_owned(), unquote(value)?))
}

/// The inside of a Go string literal in double quotes: <https://go.dev/ref/spec#Rune_literals>.
fn unquote(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        let c = match c {
            '"' => return None,
            '\\' => match chars.next()? {
                'a' => '\x07',
                'b' => '\x08',
                'f' => '\x0c',
                'n' => '\n',
                'r' => '\r',
                't' => '\t',
                'v' => '\x0b',
                c @ ('\\' | '"') => c,
                'x' => {
                    bytes.push(u8::try_from(hex(&mut chars, 2)?).ok()?);
                    continue;
                }
                'u' => char::from_u32(hex(&mut chars, 4)?)?,
                'U' => char::from_u32(hex(&mut chars, 8)?)?,
                _ => return None,
            },
            c => c,
        };
        bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
    }
    String::from_utf8(bytes).ok()
}

fn hex(chars: &mut std::str::Chars<'_>, digits: usize) -> Option<u32> {
    (0..digits).try_fold(0, |number, _| Some(number << 4 | chars.next()?.to_digit(16)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn podinfo_is_read_as_the_kubelet_writes_it() {
        let file = concat!(
            "app.kubernetes.io/name=\"web\"\n",
            "empty=\"\"\n",
            "json=\"{\\\"a\\\": \\\"b=c\\\"}\"\n",
            "odd=\"tab\\t line\\nend \\u00a0\\U0001f600 \\x41\\\\ é\"",
        );
        let map = parse_podinfo(file.as_bytes()).unwrap();
        assert_eq!(map["app.kubernetes.io/name"], "web");
        assert_eq!(map["empty"], "");
        assert_eq!(map["json"], r#"{"a": "b=c"}"#);
        assert_eq!(map["odd"], "tab\t line\nend \u{a0}\u{1f600} A\\ é");
        assert!(parse_podinfo(b"").unwrap().is_empty());
    }

    #[test]
    fn a_line_that_the_kubelet_would_not_write_is_named_by_number() {
        for bad in ["a", "a=b", "a=\"", "=\"b\"", "a=\"\"b\"", "a=\"\\q\"", "a=\"\\u12\"", "a=\"\\ud800\"", "a=\"\\\""]
        {
            let file = format!("ok=\"1\"\n{bad}\n");
            assert_eq!(parse_podinfo(file.as_bytes()), Err(PodInfoError { line: 2 }), "{bad}");
        }
        assert_eq!(parse_podinfo(b"a=\"\xff\""), Err(PodInfoError { line: 1 }));
        assert_eq!(parse_podinfo(b"a=\"\\xff\""), Err(PodInfoError { line: 1 }));
    }
}
