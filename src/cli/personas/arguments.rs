//! A peer's command line as Go's parsers read it: `-name value`, `--name=value`.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::Path;

use super::{Flags, Refused};

/// The peer's arguments by name, in their order. Only long flags with a value are known; `code`: the peer's exit code for
/// others.
pub(super) struct Arguments {
    given: Vec<(&'static str, String)>,
    code: u8,
}

impl Arguments {
    pub fn parse(words: &[OsString], known: &[&'static str], code: u8) -> Result<Self, Refused> {
        let refused = |message: String| Refused { message, code };
        let mut words = words.iter();
        let mut given = Vec::new();
        while let Some(word) = words.next() {
            let word = word.to_str().ok_or_else(|| refused("an argument is not UTF-8".to_owned()))?;
            let name = word.trim_start_matches('-');
            let (name, value) = name.split_once('=').map_or((name, None), |(name, value)| (name, Some(value)));
            let is_flag = word.starts_with('-');
            let known = known.iter().find(|known| is_flag && **known == name);
            // A word that is no flag may be a credential.
            let shown = if is_flag { name } else { "a word that is no flag" };
            let known = known.ok_or_else(|| refused(format!("{shown} is not known")))?;
            let value = if let Some(value) = value {
                value.to_owned()
            } else {
                let next = words.next().and_then(|next| next.to_str());
                next.ok_or_else(|| refused(format!("--{name} needs a value")))?.to_owned()
            };
            given.push((*known, value));
        }
        Ok(Self { given, code })
    }

    /// The last value of a flag.
    pub fn last(&self, name: &str) -> Option<&str> {
        self.all(name).last()
    }

    pub fn all(&self, name: &str) -> impl DoubleEndedIterator<Item = &str> {
        self.given.iter().filter(move |(known, _)| *known == name).map(|(_, value)| value.as_str())
    }

    pub fn refused(&self, message: impl Into<String>) -> Refused {
        Refused { message: message.into(), code: self.code }
    }
}

impl Flags {
    /// `--observe-dir` for each of these, under names that differ.
    pub(super) fn observe<'a>(&mut self, paths: impl IntoIterator<Item = &'a str>) {
        let mut names = BTreeSet::new();
        for path in paths {
            let last = Path::new(path).file_name().map_or("root".into(), |last| last.to_string_lossy().into_owned());
            let mut tried =
                (1..).map(|number: u32| if number == 1 { last.clone() } else { format!("{last}-{number}") });
            let name = tried.find(|name| names.insert(name.clone())).unwrap_or_default();
            self.add("--observe-dir", format!("{name}={path}"));
        }
    }

    /// `--reload-url`; whether there is a user in it. Trimtab keeps credentials out of URLs, and has none in flags.
    pub(super) fn reload_url(&mut self, url: &str) -> bool {
        let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let Some(at) = rest[..end].rfind('@') else {
            self.add("--reload-url", url);
            return false;
        };
        self.add("--reload-url", format!("{scheme}://{}", &rest[at + 1..]));
        let (user, password) = rest[..at].split_once(':').unwrap_or((&rest[..at], ""));
        for (flag, name, value) in
            [("--reload-user", "RELOAD_URL_USER", user), ("--reload-password", "RELOAD_URL_PASSWORD", password)]
        {
            self.add(flag, format!("${name}"));
            self.variables.0.push((name, OsString::from_vec(unescaped(value))));
        }
        true
    }
}

/// With `%40` as the byte that it stands for.
fn unescaped(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, more)) = rest.split_first() {
        let hex = more.get(..2).and_then(|two| u8::from_str_radix(str::from_utf8(two).ok()?, 16).ok());
        if let Some(byte) = hex.filter(|_| *first == b'%') {
            bytes.push(byte);
            rest = &more[2..];
        } else {
            bytes.push(*first);
            rest = more;
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::super::split;
    use super::*;

    #[test]
    fn arguments_are_read_as_go_reads_them() {
        let read = Arguments::parse(&split("-a x --b=y=z --a=w"), &["a", "b"], 2).ok().unwrap();
        assert_eq!(read.all("a").collect::<Vec<_>>(), ["x", "w"]);
        assert_eq!((read.last("b"), read.last("c")), (Some("y=z"), None));
        for (line, said) in [("--c=1", "c is not known"), ("-a", "--a needs a value"), ("c4n4ry", "no flag")] {
            let refused = Arguments::parse(&split(line), &["a"], 2).err().unwrap();
            assert!(refused.code == 2 && refused.message.contains(said), "{refused:?}");
            assert!(!refused.message.contains("c4n4ry"), "{refused:?}");
        }
    }

    #[test]
    fn credentials_of_a_url_become_variables() {
        let flag = " --reload-user=$RELOAD_URL_USER --reload-password=$RELOAD_URL_PASSWORD";
        for (url, bare, user) in [
            ("http://h/x?a@b", "http://h/x?a@b", None),
            ("http://m%65:p%40s:s@h:1/", "http://h:1/", Some(("me", "p@s:s"))),
            ("https://me@h", "https://h", Some(("me", ""))),
        ] {
            let mut flags = Flags::default();
            assert_eq!(flags.reload_url(url), user.is_some());
            assert_eq!(flags.line(), format!("--reload-url={bare}{}", if user.is_some() { flag } else { "" }));
            let found = ["RELOAD_URL_USER", "RELOAD_URL_PASSWORD"].map(|name| flags.variables.get(name));
            assert_eq!(found, user.map_or([None, None], |(user, password)| [user, password].map(|it| Some(it.into()))));
        }
    }
}
