//! Any templates with any values are rendered or refused, in bounded time, the same way each time; what was made of a
//! secret value is secret, and no error text holds a byte of it.
//!
//! The input is, with a NUL between two: a template, a partial `_p` for it to include, a secret template, a public
//! value (`data.value`), and a value from a variable (`env("OPEN")`).
#![no_main]

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use libfuzzer_sys::{Corpus, fuzz_target};
use trimtab::model::digest::Digest;
use trimtab::model::object::{Kind, Object, ObjectRef};
use trimtab::model::snapshot::{Snapshot, Taken, Versions};
use trimtab::render::{Delimiters, EnvVar, Inputs, OnCollision, Pod, Refused, Settings};

/// Neither a number nor valid JSON, base64, YAML or TOML, so that each filter that reads such a text fails on it.
const SECRET: &str = "CaNaRy: [{\"";
/// What of it no message may hold.
const CANARY: &str = "CaNaRy";

fn object(kind: Kind, name: &str, secret: bool, keys: &[(&str, &[u8])]) -> Arc<Object> {
    let namespace = if kind == Kind::Dir { "" } else { "ns" };
    let id = ObjectRef { kind, namespace: namespace.into(), name: name.into() };
    let data = keys.iter().map(|(key, value)| ((*key).to_owned(), Bytes::copy_from_slice(value).into())).collect();
    Arc::new(Object::new(id, "1".into(), 0, secret, data))
}

static FIXED: LazyLock<[Arc<Object>; 3]> = LazyLock::new(|| {
    [
        object(
            Kind::ConfigMap,
            "web",
            false,
            &[
                ("workers", b"4"),
                ("json", br#"{"b":[1,2.5,null,true],"a":"x"}"#),
                ("yaml", b"a: 1\nb: [x, y]\n"),
                ("toml", b"a = 1\n[b]\nc = [1979-05-27]\n"),
                ("bin", b"\xff\x00\xfe"),
                ("b64", b"aGVsbG8="),
            ],
        ),
        object(Kind::Dir, "etc", false, &[("sub/file", b"text"), ("many", b"a\nb\nc\n")]),
        object(Kind::Secret, "tls", true, &[("key", SECRET.as_bytes()), ("pin", b"\xff\xee")]),
    ]
});

/// Whether a text may make a value far larger than itself and then text of that: the one bound that is known to be
/// missing (docs/templates.md, "Limits"), as the engine counts no step for the latter. A list in a list, each many times, has
/// it; so have lists that are doubled again and again. One such list alone is small enough.
///
/// Leaves out more than has to be. A loop that calls itself could double as well, and is let through.
fn multiplies(text: &[u8]) -> bool {
    let count = |what: &str| text.windows(what.len()).filter(|window| *window == what.as_bytes()).count();
    let repeated = count("*") - 2 * count("**").min(count("*") / 2);
    repeated + count("range") + count("slice") + count("batch") > 1 || count("set") > 12 || count("macro") > 2
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

fuzz_target!(|data: &[u8]| -> Corpus {
    let mut parts = data.splitn(5, |&byte| byte == 0);
    let mut part = || parts.next().unwrap_or_default();
    let (main, partial, hidden, value, variable) = (part(), part(), part(), part(), part());
    // Else the canary would not show where it came from.
    if contains(data, CANARY) || multiplies(data) {
        return Corpus::Reject;
    }
    let templates = [
        object(Kind::Dir, "tpl", false, &[("t", main), ("_p", partial)]),
        object(Kind::Dir, "tpl", true, &[("h", hidden)]),
    ];
    let mut objects = FIXED.to_vec();
    objects.push(object(Kind::ConfigMap, "more", false, &[("value", value)]));
    let variable = String::from_utf8_lossy(variable).into_owned();
    let env = [("OPEN", variable, false), ("TOKEN", SECRET.to_owned(), true)];
    let env: BTreeMap<_, _> = env.map(|(name, value, secret)| (name.to_owned(), EnvVar { value, secret })).into();
    let snapshot = Snapshot {
        objects: objects.into_iter().map(|object| Taken { object, selected: false }).collect(),
        templates: templates.into_iter().map(|templates| (templates, None)).collect(),
        ..Snapshot::default()
    };
    let settings = Settings {
        templated: true,
        on_collision: OnCollision::Hold,
        refuse_keys: None,
        path: "{key}".parse().unwrap(),
        suffix: None,
        delimiters: Delimiters::default(),
        env,
        pod: Pod { name: "pod".into(), namespace: "ns".into(), ..Pod::default() },
        max_size: 64 * 1024,
        allow_empty: true,
        selects: false,
        flags: String::new(),
    };
    let inputs = Inputs { snapshot, settings: Arc::new(settings) };
    let render = || inputs.render(Digest::from_bytes([7; 32]), &Versions::default(), &Refused::new(), false);
    match render() {
        Ok(rendered) => {
            for (path, file) in rendered.tree.iter() {
                assert!(file.secret || !contains(&file.bytes.read().unwrap(), CANARY), "{path} is not secret");
            }
            assert_eq!(render().as_ref(), Ok(&rendered));
        }
        Err(rejection) => {
            let said = format!("{rejection} {rejection:?}");
            assert!(!said.contains(CANARY), "{said}");
            assert!(said.len() < 10_000, "{} bytes", said.len());
        }
    }
    Corpus::Keep
});
