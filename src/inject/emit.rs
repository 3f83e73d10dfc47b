//! Writes values as YAML: in lines, or in brackets, which is JSON as well.

use super::document::{Content, Node};

/// A value that is to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Yaml {
    Text(String),
    /// A number, a boolean, or what somebody wrote without quotes.
    Plain(String),
    /// An expression, for [`Yaml::cel`] alone.
    Cel(String),
    List(Vec<Yaml>),
    /// In this order.
    Map(Vec<(String, Yaml)>),
}

impl From<&str> for Yaml {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<bool> for Yaml {
    fn from(value: bool) -> Self {
        Self::Plain(value.to_string())
    }
}

impl From<u16> for Yaml {
    fn from(value: u16) -> Self {
        Self::Plain(value.to_string())
    }
}

/// A map of these entries.
pub(super) fn map<const N: usize>(entries: [(&str, Yaml); N]) -> Yaml {
    Yaml::Map(entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
}

impl Yaml {
    /// What is written somewhere, aliases resolved.
    pub fn of(node: &Node) -> Self {
        match &*node.content {
            Content::Scalar { text, plain: true } => {
                Self::Plain(if text.is_empty() || text == "~" { "null".to_owned() } else { text.clone() })
            }
            Content::Scalar { text, plain: false } => Self::Text(text.clone()),
            Content::List { items, .. } => Self::List(items.iter().map(Self::of).collect()),
            Content::Map { entries, .. } => {
                Self::Map(entries.iter().map(|entry| (entry.key.clone(), Self::of(&entry.value))).collect())
            }
        }
    }

    /// In brackets.
    pub fn flow(&self) -> String {
        match self {
            Self::Text(text) => quoted(text),
            // Of what somebody wrote, only what JSON has goes without quotes.
            Self::Plain(text) => {
                let is_json = serde_json::from_str::<serde_json::Value>(text).is_ok_and(|value| !value.is_string());
                if is_json { text.clone() } else { quoted(text) }
            }
            Self::Cel(expression) => quoted(expression),
            Self::List(items) => format!("[{}]", items.iter().map(Self::flow).collect::<Vec<_>>().join(", ")),
            Self::Map(entries) => {
                let entries = entries.iter().map(|(key, value)| format!("{}: {}", quoted(key), value.flow()));
                format!("{{{}}}", entries.collect::<Vec<_>>().join(", "))
            }
        }
    }

    /// As a document, with lists as Helm and people write them.
    pub fn document(&self) -> String {
        self.block(2).join("\n") + "\n"
    }

    /// As an expression of CEL. A map's values may have any types.
    pub fn cel(&self) -> String {
        match self {
            Self::Text(text) => quoted(text),
            Self::Plain(text) | Self::Cel(text) => text.clone(),
            Self::List(items) => format!("[{}]", items.iter().map(Self::cel).collect::<Vec<_>>().join(", ")),
            Self::Map(entries) => {
                let entries = entries.iter().map(|(key, value)| format!("{}: dyn({})", quoted(key), value.cel()));
                format!("{{{}}}", entries.collect::<Vec<_>>().join(", "))
            }
        }
    }

    /// In lines. `indent`: how far a list stands in from its key.
    pub fn block(&self, indent: usize) -> Vec<String> {
        match self {
            Self::Text(text) => vec![scalar(text)],
            Self::Plain(text) => vec![text.clone()],
            Self::Cel(expression) => vec![quoted(expression)],
            Self::List(items) if items.is_empty() => vec!["[]".to_owned()],
            Self::Map(entries) if entries.is_empty() => vec!["{}".to_owned()],
            Self::List(items) => {
                let mut lines = Vec::new();
                for item in items {
                    let mut first = true;
                    for line in item.block(indent) {
                        lines.push(format!("{}{line}", if first { "- " } else { "  " }));
                        first = false;
                    }
                }
                lines
            }
            Self::Map(entries) => {
                let mut lines = Vec::new();
                for (key, value) in entries {
                    let key = scalar(key);
                    let below = value.block(indent);
                    match value {
                        Self::List(items) if !items.is_empty() => {
                            lines.push(format!("{key}:"));
                            lines.extend(below.iter().map(|line| format!("{}{line}", " ".repeat(indent))));
                        }
                        Self::Map(entries) if !entries.is_empty() => {
                            lines.push(format!("{key}:"));
                            lines.extend(below.iter().map(|line| format!("  {line}")));
                        }
                        Self::Text(text) if is_of_lines(text) => {
                            lines.push(format!("{key}: |"));
                            lines.extend(text.lines().map(|line| format!("  {line}")));
                        }
                        _ => lines.push(format!("{key}: {}", below.concat())),
                    }
                }
                lines
            }
        }
    }
}

/// Whether a text can be written as a literal block: whole lines, none of which has a sign that would not survive there.
fn is_of_lines(text: &str) -> bool {
    let is_plain = |line: &str| !line.is_empty() && !line.starts_with(' ') && !line.ends_with(' ');
    text.ends_with('\n') && text.lines().all(|line| is_plain(line) && !line.contains(char::is_control))
}

/// In double quotes, as JSON and YAML read it.
pub(super) fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// Without quotes, where YAML 1.1 and 1.2 read it as this text.
fn scalar(text: &str) -> String {
    let is_word = |c: char| c.is_ascii_alphanumeric() || "-_./=@%+,~^$()*".contains(c) || c == ':';
    let starts = |c: char| c.is_ascii_alphabetic() || c == '/' || c == '_' || (c == '-' && text.starts_with("--"));
    let word = matches!(
        text.to_ascii_lowercase().as_str(),
        "true" | "false" | "yes" | "no" | "on" | "off" | "null" | "y" | "n"
    );
    let plain = text.starts_with(starts) && text.chars().all(is_word) && !text.ends_with(':') && !word;
    if plain && text != "---" { text.to_owned() } else { quoted(text) }
}
