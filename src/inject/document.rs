//! YAML as it is written: a tree whose nodes know where they stand in the text, so that an edit leaves every other byte,
//! comments included.

use std::collections::HashMap;
use std::ops::Range;
use std::rc::Rc;

use granit_parser::{Event, Options, Parser, ScalarStyle, Span, StructureStyle};

use super::InjectError;
use super::emit::{Yaml, quoted};

/// How deeply a document may be nested.
const DEPTH: usize = 100;

/// A node of a document.
#[derive(Debug)]
pub(super) struct Node {
    /// Shared with what repeats it, so that repetitions of repetitions cost nothing.
    pub content: Rc<Content>,
    /// Where it begins. That of a block list is not where its first dash is.
    pub start: usize,
    /// Where it ends; only of scalars, aliases and what stands in brackets.
    pub end: usize,
    /// Whether it is an alias, or an alias repeats it: an edit here would be one elsewhere.
    pub repeated: bool,
    is_alias: bool,
}

#[derive(Debug)]
pub(super) enum Content {
    Scalar { text: String, plain: bool },
    Map { flow: bool, entries: Vec<Entry> },
    List { flow: bool, items: Vec<Node> },
}

#[derive(Debug)]
pub(super) struct Entry {
    pub key: String,
    pub start: usize,
    pub value: Node,
}

impl Node {
    pub fn entries(&self) -> &[Entry] {
        if let Content::Map { entries, .. } = &*self.content { entries } else { &[] }
    }

    pub fn items(&self) -> &[Self] {
        if let Content::List { items, .. } = &*self.content { items } else { &[] }
    }

    pub fn entry(&self, key: &str) -> Option<&Entry> {
        self.entries().iter().find(|entry| entry.key == key)
    }

    /// The value below these keys.
    pub fn at(&self, path: &[&str]) -> Option<&Self> {
        let (first, rest) = path.split_first()?;
        let value = &self.entry(first)?.value;
        if rest.is_empty() { Some(value) } else { value.at(rest) }
    }

    /// The text of a scalar that is not null.
    pub fn text(&self) -> Option<&str> {
        match &*self.content {
            Content::Scalar { text, plain } if !(*plain && matches!(text.as_str(), "" | "~" | "null")) => Some(text),
            _ => None,
        }
    }

    pub fn text_at(&self, path: &[&str]) -> Option<&str> {
        self.at(path)?.text()
    }

    pub fn is_true_at(&self, path: &[&str]) -> bool {
        self.text_at(path) == Some("true")
    }

    pub fn is_flow(&self) -> bool {
        matches!(*self.content, Content::Map { flow: true, .. } | Content::List { flow: true, .. })
    }

    /// Where the last of its text ends.
    fn last(&self) -> usize {
        let last = match &*self.content {
            _ if self.is_alias => None,
            Content::Map { flow: false, entries } => entries.last().map(|entry| entry.start.max(entry.value.last())),
            Content::List { flow: false, items } => items.last().map(Self::last),
            _ => None,
        };
        last.unwrap_or(self.end)
    }
}

/// The documents of a text.
pub(super) fn parse(text: &str) -> Result<Vec<Node>, InjectError> {
    let mut options = Options::default();
    options.flow_nesting_limit = DEPTH;
    options.block_nesting_limit = DEPTH;
    options.emit_comments = false;
    let mut loader = Loader::default();
    for event in Parser::new_from_str_with_options(text, options) {
        let (event, span) = event
            .map_err(|error| InjectError::NotYaml { line: error.marker().line(), column: error.marker().col() + 1 })?;
        let at = |span: &Span| InjectError::NotYaml { line: span.start.line(), column: span.start.col() + 1 };
        let range = span.byte_range().ok_or_else(|| at(&span))?;
        loader.take(event, range).ok_or_else(|| at(&span))?;
    }
    Ok(loader.finish())
}

/// A node while it is read: repetition is known only at the end of its document.
struct Draft {
    content: DraftContent,
    range: Range<usize>,
    anchor: usize,
}

enum DraftContent {
    Scalar { text: String, plain: bool },
    Map { flow: bool, entries: Vec<(String, usize, Draft)>, key: Option<(String, usize)> },
    List { flow: bool, items: Vec<Draft> },
    Alias(usize),
}

#[derive(Default)]
struct Loader {
    open: Vec<Draft>,
    document: Option<Draft>,
    documents: Vec<Node>,
}

impl Loader {
    /// Takes an event; `None` if it does not belong to what Kubernetes reads.
    fn take(&mut self, event: Event<'_>, range: Range<usize>) -> Option<()> {
        match event {
            Event::Scalar(text, style, anchor, _) => {
                let plain = style == ScalarStyle::Plain;
                self.add(Draft { content: DraftContent::Scalar { text: text.into_owned(), plain }, range, anchor })
            }
            Event::Alias(id) => self.add(Draft { content: DraftContent::Alias(id), range, anchor: 0 }),
            Event::SequenceStart(style, anchor, _) => {
                let flow = style == StructureStyle::Flow;
                self.open.push(Draft { content: DraftContent::List { flow, items: Vec::new() }, range, anchor });
                Some(())
            }
            Event::MappingStart(style, anchor, _) => {
                let flow = style == StructureStyle::Flow;
                let content = DraftContent::Map { flow, entries: Vec::new(), key: None };
                self.open.push(Draft { content, range, anchor });
                Some(())
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let mut draft = self.open.pop()?;
                draft.range.end = range.end;
                self.add(draft)
            }
            Event::DocumentEnd => {
                self.end_document();
                Some(())
            }
            _ => Some(()),
        }
    }

    fn add(&mut self, draft: Draft) -> Option<()> {
        match self.open.last_mut().map(|parent| &mut parent.content) {
            None => self.document = Some(draft),
            Some(DraftContent::List { items, .. }) => items.push(draft),
            Some(DraftContent::Map { entries, key, .. }) => match key.take() {
                Some((text, start)) => entries.push((text, start, draft)),
                None => match draft.content {
                    DraftContent::Scalar { text, .. } => *key = Some((text, draft.range.start)),
                    _ => return None,
                },
            },
            Some(_) => return None,
        }
        Some(())
    }

    fn end_document(&mut self) {
        let Some(draft) = self.document.take() else { return };
        let mut aliases = Vec::new();
        list_aliases(&draft, &mut aliases);
        self.documents.push(finish(draft, &aliases, &mut HashMap::new()));
    }

    fn finish(mut self) -> Vec<Node> {
        self.end_document();
        self.documents
    }
}

fn list_aliases(draft: &Draft, found: &mut Vec<usize>) {
    match &draft.content {
        DraftContent::Alias(id) => found.push(*id),
        DraftContent::Map { entries, .. } => entries.iter().for_each(|(_, _, value)| list_aliases(value, found)),
        DraftContent::List { items, .. } => items.iter().for_each(|item| list_aliases(item, found)),
        DraftContent::Scalar { .. } => {}
    }
}

fn finish(draft: Draft, aliases: &[usize], anchors: &mut HashMap<usize, Rc<Content>>) -> Node {
    let Draft { content, range, anchor } = draft;
    let is_alias = matches!(content, DraftContent::Alias(_));
    let content = match content {
        DraftContent::Alias(id) => {
            // One that names what it is in does not end.
            let nothing = || Rc::new(Content::Scalar { text: String::new(), plain: true });
            anchors.get(&id).map_or_else(nothing, Rc::clone)
        }
        DraftContent::Scalar { text, plain } => Rc::new(Content::Scalar { text, plain }),
        DraftContent::Map { flow, entries, .. } => {
            let entries = entries.into_iter().map(|(key, start, value)| {
                let value = finish(value, aliases, anchors);
                Entry { key, start, value }
            });
            Rc::new(Content::Map { flow, entries: entries.collect() })
        }
        DraftContent::List { flow, items } => {
            let items = items.into_iter().map(|item| finish(item, aliases, anchors));
            Rc::new(Content::List { flow, items: items.collect() })
        }
    };
    if anchor != 0 {
        anchors.insert(anchor, Rc::clone(&content));
    }
    let repeated = is_alias || (anchor != 0 && aliases.contains(&anchor));
    Node { content, start: range.start, end: range.end, repeated, is_alias }
}

/// Edits of a text, none of which overlaps another.
pub(super) struct Edits<'a> {
    text: &'a str,
    edits: Vec<(Range<usize>, String)>,
}

impl<'a> Edits<'a> {
    pub fn new(text: &'a str) -> Self {
        Self { text, edits: Vec::new() }
    }

    /// The text with all of them.
    pub fn apply(mut self) -> String {
        self.edits.sort_by_key(|(range, _)| (range.start, range.end));
        let mut result = String::with_capacity(self.text.len());
        let mut from = 0;
        for (range, new) in self.edits {
            result += &self.text[from..range.start];
            result += &new;
            from = range.end;
        }
        result + &self.text[from..]
    }

    /// Puts an entry before another one of a map, or where the map begins.
    pub fn add_entry(&mut self, map: &Node, before: Option<&str>, key: &str, value: &Yaml, indent: usize) {
        if map.is_flow() {
            let rest = if map.entries().is_empty() { "" } else { ", " };
            let text = format!("{}: {}{rest}", quoted(key), value.flow());
            self.edits.push((map.start + 1..map.start + 1, text));
            return;
        }
        let before = before.and_then(|key| map.entry(key)).or(map.entries().first());
        let place = before.map_or(map.start, |entry| entry.start);
        let lines = Yaml::Map(vec![(key.to_owned(), value.clone())]).block(indent);
        self.insert_lines(place, &lines);
    }

    /// Puts items first in a list, or behind the first `after` ones.
    pub fn add_items(&mut self, list: &Node, after: usize, values: &[Yaml], indent: usize) {
        let items = list.items();
        if list.is_flow() {
            let new = values.iter().map(Yaml::flow).collect::<Vec<_>>().join(", ");
            let (place, text) = match (items.get(after), items.last()) {
                (Some(next), _) => (next.start, format!("{new}, ")),
                (None, Some(other)) => (other.end, format!(", {new}")),
                (None, None) => (list.start + 1, new),
            };
            self.edits.push((place..place, text));
            return;
        }
        let lines = Yaml::List(values.to_vec()).block(indent);
        if let Some(next) = items.get(after) {
            let place = self.dash(next.start);
            self.insert_lines(place, &lines);
        } else if let (Some(first), Some(last)) = (items.first(), items.last()) {
            let pad = " ".repeat(self.column(self.dash(first.start)));
            let newline = self.newline();
            let place = self.line_after(last.last());
            let mut text = pad.clone() + &lines.join(&format!("{newline}{pad}")) + newline;
            if !self.text[..place].ends_with('\n') {
                text = format!("{newline}{}", text.trim_end());
            }
            self.edits.push((place..place, text));
        }
    }

    fn insert_lines(&mut self, place: usize, lines: &[String]) {
        let next = format!("{}{}", self.newline(), " ".repeat(self.column(place)));
        self.edits.push((place..place, lines.join(&next) + &next));
    }

    /// Takes entries out of a map. One that loses all of them is `{}`.
    pub fn remove_entries(&mut self, map: &Node, keys: &[&str]) {
        let entries = map.entries();
        let starts: Vec<_> = entries.iter().map(|entry| entry.start).collect();
        let ends: Vec<_> = entries.iter().map(|entry| entry.start.max(entry.value.last())).collect();
        let unwanted: Vec<_> = entries.iter().map(|entry| keys.contains(&entry.key.as_str())).collect();
        self.remove(map.is_flow(), &starts, &ends, &unwanted, "{}");
    }

    /// Takes items out of a list. One that loses all of them is `[]`.
    pub fn remove_items(&mut self, list: &Node, is_unwanted: impl Fn(&Node) -> bool) {
        let (items, flow) = (list.items(), list.is_flow());
        let starts: Vec<_> = items.iter().map(|item| if flow { item.start } else { self.dash(item.start) }).collect();
        let ends: Vec<_> = items.iter().map(Node::last).collect();
        let unwanted: Vec<_> = items.iter().map(is_unwanted).collect();
        // Brackets stand in farther than their key; a dash need not.
        self.remove(flow, &starts, &ends, &unwanted, "  []");
    }

    /// Takes out what is unwanted, neighbours at once: up to the next one that stays, or back to the one before.
    fn remove(&mut self, flow: bool, starts: &[usize], ends: &[usize], unwanted: &[bool], empty: &str) {
        let mut from = None;
        for index in 0..=starts.len() {
            if unwanted.get(index) == Some(&true) {
                from = from.or(Some(index));
                continue;
            }
            let Some(first) = from.take() else { continue };
            let (range, new) = match starts.get(index) {
                Some(next) => (starts[first]..*next, ""),
                None if first == 0 => {
                    let end = self.text[..ends[index - 1]].trim_end().len();
                    (starts[0]..end.max(starts[0]), if flow { "" } else { empty })
                }
                None if flow => (ends[first - 1]..ends[index - 1], ""),
                None => (self.line_start(starts[first])..self.line_after(ends[index - 1]), ""),
            };
            self.edits.push((range, new.to_owned()));
        }
    }

    /// Where the dash before a list's item is; anchors and tags may stand between.
    fn dash(&self, item: usize) -> usize {
        let mut rest = &self.text[..item];
        loop {
            rest = rest.trim_end();
            if rest.ends_with('-') {
                return rest.len() - 1;
            }
            let word = rest.rfind(char::is_whitespace).map_or(0, |at| at + 1);
            if !rest[word..].starts_with(['&', '!']) {
                return item;
            }
            rest = &rest[..word];
        }
    }

    fn line_start(&self, place: usize) -> usize {
        let start = self.text[..place].rfind('\n').map_or(0, |at| at + 1);
        // What is not alone in its line leaves the rest of it.
        if self.text[start..place].trim().is_empty() { start } else { place }
    }

    /// The line after the one that this text ends in. A block scalar's end is where the next word begins.
    fn line_after(&self, end: usize) -> usize {
        let end = self.text[..end].trim_end().len();
        self.text[end..].find('\n').map_or(self.text.len(), |at| end + at + 1)
    }

    fn column(&self, place: usize) -> usize {
        let start = self.text[..place].rfind('\n').map_or(0, |at| at + 1);
        self.text[start..place].trim_start_matches('\u{feff}').chars().count()
    }

    fn newline(&self) -> &'static str {
        if self.text.contains("\r\n") { "\r\n" } else { "\n" }
    }

    /// How far the items of a block list stand in from its key.
    pub fn indent(&self, key: usize, list: &Node) -> usize {
        let Some(first) = list.items().first().filter(|_| !list.is_flow()) else { return 2 };
        self.column(self.dash(first.start)).saturating_sub(self.column(key))
    }
}
