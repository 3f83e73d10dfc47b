//! The engine: every template parsed, and every name that templates may use. Nothing in it touches a disk.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use minijinja::value::Value;
use minijinja::{AutoEscape, Environment, Error, State, UndefinedBehavior};

use super::explain::{fault, listed, one_line};
use super::templates::{Source, Sources};
use super::values::{Keys, Notes, entries};
use super::{EnvVar, Inputs, Pod, RenderError, filters, guard};
use crate::model::digest::Digest;
use crate::model::object::{Kind, ObjectRef};

/// Steps a template may take beside those for its output. The engine counts one for an instruction or 64 bytes moved.
/// Fewer under the fuzzer, which needs many short runs.
const STEPS: u64 = if cfg!(fuzzing) { 50_000 } else { 2_000_000 };

/// Nesting of blocks and loops (1 each), macros (4) and includes (10). A block takes 22 KiB of stack in a build for
/// debugging, 4 KiB in a release: 2 MiB bear both.
pub(super) const DEPTH: usize = 80;

pub(super) fn environment<'a>(
    inputs: &Inputs,
    sources: &'a Sources<'_>,
    digest: Digest,
    notes: &Arc<Notes>,
) -> Result<Environment<'a>, RenderError> {
    let settings = &inputs.settings;
    let mut env = Environment::new();
    env.set_debug(false);
    env.set_undefined_behavior(UndefinedBehavior::Strict);
    env.set_auto_escape_callback(|_| AutoEscape::None);
    env.set_syntax(settings.delimiters.syntax());
    env.set_recursion_limit(DEPTH);
    // The steps themselves, and two moves of each byte of the largest output.
    env.set_fuel(Some(STEPS.saturating_add(settings.max_size / 32)));
    env.remove_global("debug");
    // It can hold itself, and a loop can nest it without end: to print either, or to drop the second, overflows the
    // stack, which nothing can catch.
    env.remove_global("namespace");

    let templates = || sources.values().map(|source| source.template);
    let secret: Vec<_> = templates().filter(|template| template.secret).map(|t| t.name.clone()).collect();
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

    filters::add(&mut env, notes, settings.max_size);
    add_names(&mut env, inputs, digest, notes)?;
    for Source { template, text } in sources.values() {
        env.add_template(&template.name, text).map_err(|error| {
            let detail = error.detail().filter(|_| !template.secret);
            let detail = detail.map_or_else(String::new, |detail| format!(": {}", one_line(detail, 200)));
            let ways = guard::ways_out(&error, text, &settings.delimiters);
            RenderError::Syntax {
                place: template.place(error.line()).into(),
                problem: format!("{}{detail}{}", error.kind(), ways.unwrap_or_default()),
            }
        })?;
    }
    Ok(env)
}

/// The names that templates may use.
fn add_names(
    env: &mut Environment<'_>,
    inputs: &Inputs,
    digest: Digest,
    notes: &Arc<Notes>,
) -> Result<(), RenderError> {
    let pod = inputs.pod()?;
    let mut merged = BTreeMap::new();
    let mut objects = BTreeMap::new();
    let taken = inputs.snapshot.objects.iter().map(|taken| &taken.object);
    for object in taken.chain(inputs.snapshot.observed.iter().map(|observed| &observed.object)) {
        let keys = entries(object);
        merged.extend(keys.iter().map(|(key, entry)| (key.clone(), Arc::clone(entry))));
        objects.insert(object.id.clone(), Keys::value(keys, notes));
    }
    env.add_global("data", Keys::value(merged, notes));

    let objects = Arc::new(objects);
    for kind in Kind::ALL {
        let objects = Arc::clone(&objects);
        let home = pod.namespace.clone();
        env.add_function(kind.as_str(), move |state: &State<'_, '_>, name: &str| {
            state.consume_fuel(objects.len() as u64 / 8)?;
            find(&objects, kind, name, &home)
        });
    }

    let (variables, shared) = (inputs.settings.env.clone(), Arc::clone(notes));
    env.add_function("env", move |name: &str| match variables.get(name) {
        Some(EnvVar { value, secret }) => {
            shared.secret.fetch_or(*secret, Ordering::Relaxed);
            Ok(Value::from(value.as_str()))
        }
        None => Err(fault("a variable that neither --env nor --secret-env names", Some(name))),
    });
    env.add_global("pod", pod_value(&pod));
    env.add_global("generation", Value::from_pairs([("digest", digest.to_string())]));
    Ok(())
}

fn find(objects: &BTreeMap<ObjectRef, Value>, kind: Kind, asked: &str, home: &str) -> Result<Value, Error> {
    let (namespace, name) = match asked.split_once('/') {
        Some((namespace, name)) if !kind.is_local() => (Some(namespace), name),
        _ => (None, asked),
    };
    let called = |id: &ObjectRef| {
        id.kind == kind && &*id.name == name && namespace.is_none_or(|namespace| namespace == &*id.namespace)
    };
    let found: Vec<_> = objects.iter().filter(|(id, _)| called(id)).collect();
    match (&found[..], found.iter().find(|(id, _)| &*id.namespace == home)) {
        ([(_, value)], _) | (_, Some((_, value))) => Ok((*value).clone()),
        ([], _) => {
            let known: Vec<_> = objects.keys().filter(|id| id.kind == kind).map(ToString::to_string).collect();
            let known = listed(known.iter().map(String::as_str));
            Err(fault(format!("no source is a {kind} of that name (there is {known})"), Some(asked)))
        }
        _ => Err(fault(format!("several namespaces have that {kind}; write NAMESPACE/NAME"), Some(asked))),
    }
}

fn pod_value(pod: &Pod) -> Value {
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
    let ordinal = pod.ordinal().map(|ordinal| ("ordinal", Value::from(ordinal)));
    Value::from_pairs(texts.chain(ordinal).chain(maps.map(|(name, map)| (name, Value::from(map.clone())))))
}
