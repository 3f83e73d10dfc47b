//! Templates: each that is no partial becomes a file.
//!
//! Secrecy is noted where values are handed out, in [`Keys`] and in `env`, not where they are used: a value that a
//! loop, a macro or a comparison took is a value that was read.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{DynObject, Enumerator, Object as Dynamic, ObjectExt, ObjectRepr, Value};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State, UndefinedBehavior};

use super::{EnvVar, Inputs, Place, Pod, Rejection, filters, tree_path};
use crate::model::content::Content;
use crate::model::object::{Kind, Object, ObjectRef};
use crate::model::spool::SpoolError;
use crate::model::tree::{File, Tree, TreePath};

/// Steps a template may take beside those for its output. The engine counts one for an instruction or 64 bytes moved.
/// Fewer under the fuzzer, which needs many short runs.
const STEPS: u64 = if cfg!(fuzzing) { 50_000 } else { 2_000_000 };

/// Nesting of blocks and loops (1 each), macros (4) and includes (10). A block takes 22 KiB of stack in a build for
/// debugging, 4 KiB in a release: 2 MiB bear both.
const DEPTH: usize = 80;

/// Words and signs in one tag, and `elif`s in one template: see [`too_complex`].
const TOKENS: usize = 1500;
const ELIFS: usize = 400;

/// A template.
#[derive(Clone, PartialEq, Eq)]
pub struct Template {
    /// What `include` and messages call it: the file's name, or its path below the directory of `--template`.
    pub name: String,
    /// The source it came from, for messages.
    pub from: String,
    /// The file it becomes. `None`: a partial, there for others to include.
    pub dest: Option<TreePath>,
    /// Its text.
    pub source: Bytes,
    /// Whether it came from a secret source: what includes it becomes secret, and no message quotes it.
    pub secret: bool,
}

impl fmt::Debug for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} to {:?} ({} bytes)", self.name, self.from, self.dest, self.source.len())
    }
}

/// The template of `--template FILE[:DEST]`; `src` has the file's name as its only key.
///
/// `dest` is the file's path, or, with a slash at the end, the directory that it is put into. The default is its name
/// without `.j2`; a name that starts with `_` is a partial then.
pub fn template_file(src: &Object, dest: Option<&str>) -> Result<Template, Rejection> {
    let Some((key, bytes)) = src.data.first_key_value() else {
        return Err(Rejection::Empty { reason: format!("{} has no template", src.id) });
    };
    match dest {
        Some(dest) if !dest.ends_with('/') => {
            let mut template = template(src, key, bytes, "")?;
            template.dest = Some(tree_path(dest, &format!("template {key} of {}", src.id))?);
            Ok(template)
        }
        prefix => template(src, key, bytes, prefix.unwrap_or_default()),
    }
}

/// The templates of `--template DIR[:DEST]`: every key of `src`, below the directory `dest`.
///
/// A file becomes its path without `.j2`; one whose base name starts with `_` is a partial.
pub fn template_dir(src: &Object, dest: Option<&str>) -> Result<Vec<Template>, Rejection> {
    let prefix = match dest {
        Some(dest) if !dest.ends_with('/') => format!("{dest}/"),
        dest => dest.unwrap_or_default().to_owned(),
    };
    src.data.iter().map(|(key, bytes)| template(src, key, bytes, &prefix)).collect()
}

fn template(src: &Object, key: &str, bytes: &Content, prefix: &str) -> Result<Template, Rejection> {
    let from = src.id.to_string();
    let base = key.rsplit('/').next().unwrap_or(key);
    let dest = if base.starts_with('_') {
        None
    } else {
        let path = format!("{prefix}{}", key.strip_suffix(".j2").unwrap_or(key));
        Some(tree_path(&path, &format!("template {key} of {from}"))?)
    };
    Ok(Template { name: key.to_owned(), from, dest, source: bytes.read()?, secret: src.secret })
}

/// Renders each template that has a destination.
pub(super) fn render(inputs: &Inputs<'_>, templates: &[Template]) -> Result<Tree, Rejection> {
    let notes = Arc::new(Notes::default());
    let named = by_name(templates)?;
    let env = environment(inputs, &named, &notes)?;
    let mut tree = Tree::default();
    let mut room = inputs.max_size;
    for template in templates {
        let Some(dest) = &template.dest else { continue };
        notes.secret.store(template.secret, Ordering::Relaxed);
        let mut out = Limited { bytes: Vec::new(), room, full: false };
        let done = env
            .get_template(&template.name)
            .and_then(|compiled| compiled.render_captured_to((), &mut out).map(drop))
            .and_then(|()| notes.check_misuse());
        if out.full {
            let origin = format!("template {} ({})", template.name, template.from);
            return Err(Rejection::TooLarge { origin, max_size: inputs.max_size });
        }
        done.map_err(|error| failure(&error, template, &named, &notes))?;
        if out.bytes.trim_ascii().is_empty() && !inputs.allow_empty {
            return Err(Rejection::EmptyFile { place: template.place(None).into() });
        }
        room = out.room;
        let origin = format!("template {} ({})", template.name, template.from);
        tree.insert(
            dest.clone(),
            File { bytes: Bytes::from(out.bytes).into(), secret: notes.secret(), origin: origin.into() },
        )?;
    }
    Ok(tree)
}

impl Template {
    fn place(&self, line: Option<usize>) -> Place {
        Place { template: self.name.clone(), source: self.from.clone(), included: None, line }
    }

    fn text(&self) -> Result<&str, Rejection> {
        std::str::from_utf8(&self.source).map_err(|error| {
            let before = self.source.get(..error.valid_up_to()).unwrap_or_default();
            let line = before.split(|&byte| byte == b'\n').count();
            Rejection::NotUtf8 { place: self.place(Some(line)).into() }
        })
    }
}

type Named<'a> = BTreeMap<&'a str, &'a Template>;

fn by_name(templates: &[Template]) -> Result<Named<'_>, Rejection> {
    let mut named = Named::new();
    for template in templates {
        if let Some(first) = named.insert(&template.name, template) {
            return Err(Rejection::SameName {
                name: template.name.clone(),
                first: first.from.clone(),
                second: template.from.clone(),
            });
        }
    }
    Ok(named)
}

/// The engine with every template parsed, and every name that templates may use. Nothing in it touches a disk.
fn environment<'a>(
    inputs: &Inputs<'_>,
    templates: &Named<'a>,
    notes: &Arc<Notes>,
) -> Result<Environment<'a>, Rejection> {
    let mut env = Environment::new();
    env.set_debug(false);
    env.set_undefined_behavior(UndefinedBehavior::Strict);
    env.set_auto_escape_callback(|_| AutoEscape::None);
    let syntax = SyntaxConfig::builder().keep_trailing_newline(true).build();
    env.set_syntax(syntax.expect("the default delimiters are valid"));
    env.set_recursion_limit(DEPTH);
    // The steps themselves, and two moves of each byte of the largest output.
    env.set_fuel(Some(STEPS.saturating_add(inputs.max_size / 32)));
    env.remove_global("debug");
    // It can hold itself, and a loop can nest it without end: to print either, or to drop the second, overflows the
    // stack, which nothing can catch.
    env.remove_global("namespace");

    let secret: Vec<_> = templates.values().filter(|template| template.secret).map(|t| t.name.clone()).collect();
    let shared = Arc::clone(notes);
    env.set_path_join_callback(move |name, _| {
        shared.secret.fetch_or(secret.iter().any(|secret| secret == name), Ordering::Relaxed);
        name.into()
    });
    let shared = Arc::clone(notes);
    env.set_formatter(move |out, state, value| {
        minijinja::escape_formatter(out, state, value)?;
        shared.check_misuse()
    });

    filters::add(&mut env, notes);
    add_names(&mut env, inputs, notes)?;
    for template in templates.values() {
        let text = template.text()?;
        if let Some(line) = too_complex(text) {
            let problem =
                format!("a tag has more than {TOKENS} words and signs, or there are more than {ELIFS} 'elif's");
            return Err(Rejection::Syntax { place: template.place(Some(line)).into(), problem });
        }
        env.add_template(&template.name, text).map_err(|error| {
            let detail = error.detail().filter(|_| !template.secret);
            let detail = detail.map_or_else(String::new, |detail| format!(": {}", one_line(detail, 200)));
            Rejection::Syntax {
                place: template.place(error.line()).into(),
                problem: format!("{}{detail}", error.kind()),
            }
        })?;
    }
    Ok(env)
}

/// The line of a tag with which the engine could overflow the stack: its compiler calls itself for each operator of a
/// chain such as `1+1+1` and for each `elif`, without a limit (1 to 3 KB each in a build for debugging).
///
/// Looks from each place where a tag could begin, without regard to comments and raw text: too strict for some odd
/// text there, but no tag escapes it.
fn too_complex(text: &str) -> Option<usize> {
    let line = |at| Some(text.get(..at)?.matches('\n').count() + 1);
    let (mut elifs, mut budget) = (0, text.len().saturating_mul(16));
    for (at, open) in text.match_indices('{') {
        let tag = text.get(at + open.len()..).unwrap_or_default();
        let (close, tag) = match tag.as_bytes() {
            [b'{', ..] => ("}}", &tag[1..]),
            [b'%', ..] => ("%}", &tag[1..]),
            _ => continue,
        };
        if close == "%}" && tag.trim_start_matches(['-', '+']).trim_start().starts_with("elif") {
            elifs += 1;
        }
        if elifs > ELIFS || tokens(tag, close, &mut budget) > TOKENS {
            return line(at);
        }
    }
    None
}

/// Words and signs of a tag, a text in quotes as one, and less one for each comma, as what it ends is no link of a
/// chain. Counts no further than needed; what uses up the budget is too much as well.
fn tokens(tag: &str, close: &str, budget: &mut usize) -> usize {
    let (mut count, mut quote, mut word, mut escaped) = (0_usize, None, false, false);
    for (at, c) in tag.char_indices() {
        let Some(left) = budget.checked_sub(1) else { return usize::MAX };
        *budget = left;
        if let Some(end) = quote {
            if !escaped && c == end {
                quote = None;
            }
            escaped = !escaped && c == '\\';
            continue;
        }
        if tag[at..].starts_with(close) || count > TOKENS {
            break;
        }
        let in_word = c.is_alphanumeric() || c == '_';
        match c {
            ',' => count = count.saturating_sub(1),
            _ if in_word && word || c.is_whitespace() => {}
            _ => count += 1,
        }
        word = in_word;
        if matches!(c, '"' | '\'') {
            quote = Some(c);
        }
    }
    count
}

/// The names that templates may use.
fn add_names(env: &mut Environment<'_>, inputs: &Inputs<'_>, notes: &Arc<Notes>) -> Result<(), SpoolError> {
    let mut merged = BTreeMap::new();
    let mut objects = BTreeMap::new();
    for input in inputs.objects {
        let keys = entries(&input.object)?;
        merged.extend(keys.iter().map(|(key, entry)| (key.clone(), Arc::clone(entry))));
        objects.insert(input.object.id.clone(), Keys::value(keys, notes));
    }
    env.add_global("data", Keys::value(merged, notes));

    let objects = Arc::new(objects);
    for kind in [Kind::ConfigMap, Kind::Secret, Kind::Dir] {
        let objects = Arc::clone(&objects);
        let home = inputs.pod.namespace.clone();
        env.add_function(kind.as_str(), move |state: &State<'_, '_>, name: &str| {
            state.consume_fuel(objects.len() as u64 / 8)?;
            find(&objects, kind, name, &home)
        });
    }

    let (variables, shared) = (inputs.env.clone(), Arc::clone(notes));
    env.add_function("env", move |name: &str| match variables.get(name) {
        Some(EnvVar { value, secret }) => {
            shared.secret.fetch_or(*secret, Ordering::Relaxed);
            Ok(Value::from(value.as_str()))
        }
        None => Err(fault("a variable that neither --env nor --secret-env names", Some(name))),
    });
    env.add_global("pod", pod(inputs.pod));
    env.add_global("generation", Value::from_pairs([("digest", inputs.digest.to_string())]));
    Ok(())
}

fn find(objects: &BTreeMap<ObjectRef, Value>, kind: Kind, asked: &str, home: &str) -> Result<Value, Error> {
    let (namespace, name) = match asked.split_once('/') {
        Some((namespace, name)) if kind != Kind::Dir => (Some(namespace), name),
        _ => (None, asked),
    };
    let called = |id: &ObjectRef| {
        id.kind == kind && &*id.name == name && namespace.is_none_or(|namespace| namespace == &*id.namespace)
    };
    let found: Vec<_> = objects.iter().filter(|(id, _)| called(id)).collect();
    match (&found[..], found.iter().find(|(id, _)| &*id.namespace == home)) {
        ([(_, value)], _) | (_, Some((_, value))) => Ok((*value).clone()),
        ([], _) => {
            let mut known: Vec<_> = objects.keys().filter(|id| id.kind == kind).map(ToString::to_string).collect();
            if known.len() > 20 {
                known.truncate(20);
                known.push("…".into());
            }
            let known = if known.is_empty() { "none at all".into() } else { known.join(", ") };
            Err(fault(format!("no source is a {kind} of that name (there is {known})"), Some(asked)))
        }
        _ => Err(fault(format!("several namespaces have that {kind}; write NAMESPACE/NAME"), Some(asked))),
    }
}

fn pod(pod: &Pod) -> Value {
    let texts = [
        ("name", Some(&pod.name)),
        ("namespace", Some(&pod.namespace)),
        ("uid", Some(&pod.uid)),
        ("ip", Some(&pod.ip)),
        ("node", pod.node.as_ref()),
    ];
    let texts = texts.into_iter().filter_map(|(name, text)| Some((name, text.filter(|text| !text.is_empty())?)));
    let maps = [("labels", &pod.labels), ("annotations", &pod.annotations)];
    let texts = texts.map(|(name, text)| (name, Value::from(text.as_str())));
    Value::from_pairs(texts.chain(maps.map(|(name, map)| (name, Value::from(map.clone())))))
}

/// What the render of the present file has done.
#[derive(Debug, Default)]
pub(super) struct Notes {
    /// It has read a secret value, or text of a secret template.
    secret: AtomicBool,
    /// It has used a binary value as text. Never taken back: that ends the render.
    misused: AtomicBool,
}

impl Notes {
    fn secret(&self) -> bool {
        self.secret.load(Ordering::Relaxed)
    }

    fn check_misuse(&self) -> Result<(), Error> {
        if self.misused.load(Ordering::Relaxed) {
            return Err(fault("a value that is not UTF-8 is used as text; b64encode and sha256 take it", None));
        }
        Ok(())
    }
}

/// One key's value; made for the engine when first read, then shared.
struct Entry {
    bytes: Bytes,
    secret: bool,
    value: OnceLock<Value>,
}

fn entries(object: &Object) -> Result<BTreeMap<String, Arc<Entry>>, SpoolError> {
    let entry = |bytes: &Content| Ok(Entry { bytes: bytes.read()?, secret: object.secret, value: OnceLock::new() });
    object.data.iter().map(|(key, bytes)| Ok((key.clone(), Arc::new(entry(bytes)?)))).collect()
}

/// A map of keys that notes when the value of a secret one is taken. Names of keys are no secrets.
struct Keys {
    entries: BTreeMap<String, Arc<Entry>>,
    notes: Arc<Notes>,
}

impl Keys {
    fn value(entries: BTreeMap<String, Arc<Entry>>, notes: &Arc<Notes>) -> Value {
        Value::from_object(Self { entries, notes: Arc::clone(notes) })
    }
}

impl Dynamic for Keys {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.get_value_by_str(key.as_str()?)
    }

    fn get_value_by_str(self: &Arc<Self>, key: &str) -> Option<Value> {
        let entry = self.entries.get(key)?;
        self.notes.secret.fetch_or(entry.secret, Ordering::Relaxed);
        Some(entry.value.get_or_init(|| text_or_binary(entry.bytes.clone(), &self.notes)).clone())
    }

    // Keys alone: whoever wants the values takes them by `get_value`.
    fn enumerate(self: &Arc<Self>) -> Enumerator {
        self.mapped_enumerator(|this| Box::new(this.entries.keys().map(|key| Value::from(key.as_str()))))
    }
}

// The engine prints what lies in lists and maps by `Debug`.
impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.entries.keys()).finish()
    }
}

/// Bytes that are no UTF-8. The engine would put replacement characters in their place, so its own kind is not used.
pub(super) struct Binary {
    pub(super) bytes: Bytes,
    notes: Arc<Notes>,
}

/// The value of these bytes.
pub(super) fn text_or_binary(bytes: Bytes, notes: &Arc<Notes>) -> Value {
    match std::str::from_utf8(&bytes) {
        Ok(text) => Value::from(text),
        Err(_) => Value::from_object(Binary { bytes, notes: Arc::clone(notes) }),
    }
}

impl Dynamic for Binary {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn custom_cmp(self: &Arc<Self>, other: &DynObject) -> Option<std::cmp::Ordering> {
        Some(self.bytes.cmp(&other.downcast_ref::<Self>()?.bytes))
    }
}

// By way of this (`render` falls back to it) the engine makes text of a value, where no error can be returned.
impl fmt::Debug for Binary {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.notes.misused.store(true, Ordering::Relaxed);
        Ok(())
    }
}

/// Takes what a template writes, up to the room that is left.
struct Limited {
    bytes: Vec<u8>,
    room: u64,
    full: bool,
}

impl io::Write for &mut Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(room) = self.room.checked_sub(bytes.len() as u64) else {
            self.full = true;
            return Err(io::ErrorKind::FileTooLarge.into());
        };
        self.room = room;
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A failure that one of our own functions or filters tells, as the source of the engine's error.
#[derive(Debug, thiserror::Error)]
#[error("{said}")]
struct Fault {
    /// Holds no value's byte.
    said: String,
    /// An argument, which a template may have made of a secret: told only if none was read.
    argument: Option<String>,
}

/// An error of our own. `said` may hold names and places, never a byte of a value.
pub(super) fn fault(said: impl Into<String>, argument: Option<&str>) -> Error {
    Error::from(ErrorKind::InvalidOperation)
        .with_source(Fault { said: said.into(), argument: argument.map(|argument| one_line(argument, 200)) })
}

/// What the engine's error may tell: its kind, our own words, and the piece of the template. Never its detail, which
/// may quote a value.
fn failure(error: &Error, template: &Template, templates: &Named<'_>, notes: &Notes) -> Rejection {
    let chain = || std::iter::successors(Some(error), |error| std::error::Error::source(*error)?.downcast_ref());
    let cause = chain().last().unwrap_or(error);
    // A failure in an include is told where it happened, the innermost place that is known.
    let at = chain().filter(|error| error.line().is_some()).last().unwrap_or(error);
    let found = at.name().and_then(|name| templates.get(name).copied()).unwrap_or(template);

    let mut place = template.place(at.line());
    place.included = Some(found.name.clone()).filter(|name| *name != template.name);
    let fault = std::error::Error::source(cause).and_then(|source| source.downcast_ref::<Fault>());
    let problem = match (fault, cause.kind()) {
        (Some(Fault { said, argument: Some(argument) }), _) if !notes.secret() => format!("{said}: {argument}"),
        (Some(Fault { said, .. }), _) => said.clone(),
        (None, ErrorKind::OutOfFuel) => "it takes too many steps; a loop may not end".into(),
        (None, kind) if cause.detail() == Some("recursion limit exceeded") => {
            format!("{kind}: calls, includes or loops are nested deeper than {DEPTH}")
        }
        (None, kind) => kind.to_string(),
    };
    let expression = (at.range().filter(|_| !found.secret))
        .and_then(|range| expression(std::str::from_utf8(&found.source).ok()?, range))
        .map(|text| one_line(text, 80));
    Rejection::Template { place: place.into(), problem, expression }
}

/// The inside of the tag around a range, as the engine's range may be a filter's name alone; the range itself if the
/// tag is long.
fn expression(source: &str, range: std::ops::Range<usize>) -> Option<&str> {
    let (before, after) = (source.get(..range.start)?, source.get(range.end..)?);
    let start = before.rfind("{{").max(before.rfind("{%")).map(|at| at + 2);
    let end = [after.find("}}"), after.find("%}")].into_iter().flatten().min().map(|at| range.end + at);
    let tag = start.zip(end).and_then(|(start, end)| source.get(start..end));
    let tag = tag.map(|tag| tag.trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+'));
    tag.filter(|tag| tag.len() <= 80).or_else(|| source.get(range))
}

/// The text on one line, without control characters, cut at `limit` characters.
fn one_line(text: &str, limit: usize) -> String {
    let text = text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty());
    let text = text.collect::<Vec<_>>().join(" ");
    match text.char_indices().nth(limit) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
