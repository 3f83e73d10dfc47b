//! What others say, made fit for the log: secrets masked, control characters escaped.
//!
//! A child process or a server may print anything, the secrets that it was just given included. What it said is kept
//! as a [`Said`], which cannot be printed but through a mask.

use std::fmt::{self, Write as _};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use bytes::Bytes;

/// The shortest secret that is masked, in bytes. A shorter one occurs by chance in any text: masking it would shred the
/// text, and reveal more about the secret than leaving it does.
const SHORTEST: usize = 4;

/// The longest value whose base64 form is looked for, in bytes: a longer form does not fit into a [`Said`] anyway.
const LONGEST_ENCODED: usize = 4 * Said::LIMIT;

/// The last 4 KiB of what a child process or a server said. May hold secrets: `Debug` shows the length alone.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Said(Vec<u8>);

impl Said {
    /// How much is kept, in bytes.
    pub const LIMIT: usize = 4096;

    /// Adds to the end; what is too much goes from the start.
    pub fn push(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(&bytes[bytes.len().saturating_sub(Self::LIMIT)..]);
        self.0.drain(..self.0.len().saturating_sub(Self::LIMIT));
    }

    /// To cover secrets in it.
    #[must_use]
    pub fn masking(&self) -> Masking<'_> {
        Masking::new(&self.0)
    }

    /// Whether nothing was said.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Said({} bytes)", self.0.len())
    }
}

/// A text in which secrets are covered, one after the other.
///
/// Covered are: a value, each of its lines without the white space around it, such a line as JSON escapes it, and the
/// value in base64 (up to 16 KiB); each from 4 bytes on. A piece of one is covered where the text begins or ends with
/// it, as a text that was cut does.
/// Not covered: a piece of a line in the middle of a text, and other encodings.
///
/// Texts are short and secrets may be many megabytes, so it is the text that is indexed: a secret takes no memory but
/// its own, and can be read, covered and dropped.
pub struct Masking<'a> {
    text: &'a [u8],
    /// Where each window of the text begins, in the order of the windows' bytes.
    windows: Vec<u32>,
    covered: Vec<bool>,
}

impl<'a> Masking<'a> {
    /// Nothing is covered yet. `text` has less than 4 GiB.
    #[must_use]
    pub fn new(text: &'a [u8]) -> Self {
        let last = u32::try_from((text.len() + 1).saturating_sub(SHORTEST)).unwrap_or(u32::MAX);
        let mut windows: Vec<_> = (0..last).collect();
        windows.sort_unstable_by_key(|&at| window(text, at));
        Self { text, windows, covered: vec![false; text.len()] }
    }

    /// Covers it wherever it stands.
    pub fn cover(&mut self, secret: &[u8]) {
        let mut before: &[u8] = &[];
        for line in secret.split(|&byte| byte == b'\n').map(<[u8]>::trim_ascii) {
            // Files have their empty, their equal and their closing lines in rows.
            if line != before {
                self.cover_bytes(line);
                self.cover_escaped(line);
                before = line;
            }
        }
        if secret.len() <= LONGEST_ENCODED {
            self.cover_bytes(STANDARD_NO_PAD.encode(secret).as_bytes());
        }
        self.cover_bytes(secret);
    }

    /// Many servers answer in JSON. Those in Go escape the signs of HTML as well (`encoding/json`: `HTMLEscape`).
    fn cover_escaped(&mut self, line: &[u8]) {
        let Ok(line) = std::str::from_utf8(line) else { return };
        if !line.contains(|c: char| c.is_control() || "\"\\<>&\u{2028}\u{2029}".contains(c)) {
            return;
        }
        let Ok(quoted) = serde_json::to_string(line) else { return };
        let escaped = quoted.trim_start_matches('"').strip_suffix('"').unwrap_or_default();
        let html =
            [('<', "\\u003c"), ('>', "\\u003e"), ('&', "\\u0026"), ('\u{2028}', "\\u2028"), ('\u{2029}', "\\u2029")];
        let html = html.iter().fold(escaped.to_owned(), |text, (sign, escape)| text.replace(*sign, escape));
        self.cover_bytes(escaped.as_bytes());
        self.cover_bytes(html.as_bytes());
    }

    fn cover_bytes(&mut self, needle: &[u8]) {
        let Some(&first) = needle.first_chunk() else { return };
        let Self { text, windows, covered } = self;
        let start = windows.partition_point(|&at| window(text, at) < first);
        for &at in windows[start..].iter().take_while(|&&at| window(text, at) == first) {
            let at = at as usize;
            if text[at..].starts_with(needle) {
                covered[at..at + needle.len()].fill(true);
            }
        }
        let longest = needle.len().min(text.len());
        let cut = |holds: &dyn Fn(usize) -> bool| (SHORTEST..=longest).rev().find(|&len| holds(len)).unwrap_or(0);
        let start = cut(&|len| text.starts_with(&needle[needle.len() - len..]));
        let end = cut(&|len| text.ends_with(&needle[..len]));
        covered[..start].fill(true);
        covered[text.len() - end..].fill(true);
    }

    /// The bytes with `***` for what is covered.
    #[must_use]
    pub fn finish(self) -> Vec<u8> {
        let mut clean = Vec::with_capacity(self.text.len());
        let mut masking = false;
        for (&byte, covered) in self.text.iter().zip(self.covered) {
            if !covered {
                clean.push(byte);
            } else if !masking {
                clean.extend_from_slice(b"***");
            }
            masking = covered;
        }
        clean
    }

    /// The text for a log line: what is covered as `***`, control characters, line ends and what is not UTF-8 as escapes
    /// (`\n`, `\u{1b}`, `\xff`), all else as it was.
    #[must_use]
    pub fn line(self) -> String {
        let mut line = String::new();
        for chunk in self.finish().utf8_chunks() {
            for char in chunk.valid().chars() {
                // Beside control characters: those that reorder text or end lines.
                if char.is_control() || matches!(char, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}') {
                    line.extend(char.escape_default());
                } else {
                    line.push(char);
                }
            }
            for byte in chunk.invalid() {
                // Writing to a String cannot fail.
                let _ = write!(line, "\\x{byte:02x}");
            }
        }
        line
    }
}

/// Secrets that are at hand, to be covered in more than one text.
pub struct Mask(Vec<Bytes>);

impl Mask {
    /// Values are shared, not copied.
    pub fn new(secrets: impl IntoIterator<Item = Bytes>) -> Self {
        Self(secrets.into_iter().collect())
    }

    /// See [`Masking::line`].
    #[must_use]
    pub fn apply(&self, said: &Said) -> String {
        self.over(&said.0).line()
    }

    /// See [`Masking::finish`].
    #[must_use]
    pub fn redact(&self, text: &[u8]) -> Vec<u8> {
        self.over(text).finish()
    }

    fn over<'a>(&self, text: &'a [u8]) -> Masking<'a> {
        let mut masking = Masking::new(text);
        self.0.iter().for_each(|secret| masking.cover(secret));
        masking
    }
}

/// The bytes there; `at` is the start of a window.
fn window(text: &[u8], at: u32) -> [u8; SHORTEST] {
    text.get(at as usize..).and_then(<[u8]>::first_chunk).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn mask(secrets: &[&str]) -> Mask {
        Mask::new(secrets.iter().map(|secret| Bytes::copy_from_slice(secret.as_bytes())))
    }

    fn output(text: impl AsRef<[u8]>) -> Said {
        let mut output = Said::default();
        output.push(text.as_ref());
        output
    }

    #[test]
    fn values_lines_and_base64_are_masked() {
        let mask = mask(&["hunter2-canary", "-----BEGIN-----\n  first-line\r\nsecond-line\n"]);
        let said = "a hunter2-canary b first-line c second-line d aHVudGVyMi1jYW5hcnk= e";
        assert_eq!(mask.apply(&output(said)), "a *** b *** c *** d ***= e");
    }

    #[test]
    fn lines_are_masked_as_json_escapes_them() {
        let mask = mask(&["pa\"ss\\wo<rd>&\tx", "{\"key\": \"value\"}\nplain-line"]);
        let said = r#"{"a": "pa\"ss\\wo<rd>&\tx", "b": "pa\"ss\\wo\u003crd\u003e\u0026\tx", "c": "{\"key\": \"value\"}\nplain-line"}"#;
        assert_eq!(mask.apply(&output(said)), r#"{"a": "***", "b": "***", "c": "***\n***"}"#);
    }

    #[test]
    fn overlapping_and_longer_secrets_leave_nothing_of_either() {
        let mask = mask(&["canary", "canary-extended", "extended-more"]);
        assert_eq!(mask.apply(&output("<canary-extended-more> <canary>")), "<***> <***>");
    }

    #[test]
    fn short_secrets_are_left_alone() {
        assert_eq!(mask(&["80", "", "abc", "\n\n"]).apply(&output("port 80 abc")), "port 80 abc");
    }

    #[test]
    fn a_secret_cut_by_the_window_is_masked() {
        let secret = "start-0123456789-end";
        for kept in SHORTEST..secret.len() {
            let tail = format!("{}{}", &secret[secret.len() - kept..], "x".repeat(Said::LIMIT - kept));
            let masked = mask(&[secret]).apply(&output(format!("lost{}{tail}", &secret[..secret.len() - kept])));
            assert_eq!(masked, format!("***{}", "x".repeat(Said::LIMIT - kept)));
            assert_eq!(mask(&[secret]).apply(&output(format!("said {}", &secret[..kept]))), "said ***");
        }
    }

    #[test]
    fn control_characters_are_escaped_and_nothing_else() {
        let said = b"caf\xc3\xa9 \\ \"q\"\r\n\x1b[31mred\x00 \xff \xe2\x80\xae";
        assert_eq!(mask(&[]).apply(&output(said)), "café \\ \"q\"\\r\\n\\u{1b}[31mred\\u{0} \\xff \\u{202e}");
    }

    #[test]
    fn output_keeps_the_end_and_shows_its_length_alone() {
        let mut output = output("canary");
        for _ in 0..3 {
            output.push(&[b'x'; 4000]);
        }
        output.push(b"end");
        assert_eq!(output.0.len(), Said::LIMIT);
        assert!(output.0.ends_with(b"xend"));
        assert_eq!(format!("{output:?}"), "Said(4096 bytes)");
    }

    proptest! {
        #[test]
        fn a_masked_secret_does_not_occur_in_the_result(
            secret in "[ab]{4,9}",
            text in proptest::collection::vec("[abc]{0,9}", 0..9),
        ) {
            let text = text.join(&secret);
            let masked = mask(&[&secret]).apply(&output(&text));
            prop_assert!(!masked.contains(&secret), "{masked}");
        }

        #[test]
        fn any_bytes_are_taken(secrets in proptest::collection::vec(any::<Vec<u8>>(), 0..4), text in any::<Vec<u8>>()) {
            let mask = Mask::new(secrets.into_iter().map(Bytes::from));
            let _ = mask.apply(&output(text));
        }
    }
}
