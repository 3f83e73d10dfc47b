use bytes::Bytes;
use proptest::prelude::*;

use super::templates::Given;
use super::*;
use crate::model::object::Kind;

/// A value that no message may hold. It is neither a number nor valid JSON, base64, YAML or TOML.
const CANARY: &str = "CaNaRy: [{\"";

fn object(kind: Kind, name: &str, keys: &[(&str, &[u8])]) -> Object {
    aged(kind, name, 0, keys)
}

fn aged(kind: Kind, name: &str, created: i64, keys: &[(&str, &[u8])]) -> Object {
    let namespace = if kind == Kind::Dir { "" } else { "ns" };
    let id = ObjectRef { kind, namespace: namespace.into(), name: name.into() };
    let data = keys.iter().map(|(key, value)| ((*key).to_owned(), Bytes::copy_from_slice(value).into())).collect();
    Object::new(id, "1".into(), created, kind == Kind::Secret, data)
}

#[derive(Clone, Copy, PartialEq)]
enum Origin {
    Named,
    Selected,
}

/// An object, how it came in, and its version that was published last.
struct Input {
    object: Arc<Object>,
    origin: Origin,
    previous: Option<Arc<Object>>,
}

fn input(object: Object, origin: Origin) -> Input {
    Input { object: Arc::new(object), origin, previous: None }
}

/// A file below the directory `from` of `--template`.
#[derive(Clone)]
struct TemplateFile {
    name: String,
    from: &'static str,
    source: Bytes,
    secret: bool,
}

fn template(from: &'static str, name: &str, text: &str) -> TemplateFile {
    TemplateFile { name: name.to_owned(), from, source: Bytes::copy_from_slice(text.as_bytes()), secret: false }
}

/// Inputs with everything in its place, to be changed by a test.
struct Case {
    objects: Vec<Input>,
    templates: Option<Vec<TemplateFile>>,
    suffix: Option<String>,
    delimiters: Delimiters,
    path: PathPattern,
    on_collision: OnCollision,
    refuse_keys: Option<String>,
    envsubst: Vec<(Arc<Object>, Option<String>)>,
    env: BTreeMap<String, EnvVar>,
    pod: Pod,
    max_size: u64,
    allow_empty: bool,
    selects: bool,
    /// Whether no file is published.
    bare: bool,
}

impl Case {
    fn plain(path: &str, objects: Vec<Input>) -> Self {
        Self {
            objects,
            templates: None,
            suffix: None,
            delimiters: Delimiters::default(),
            path: path.parse().unwrap(),
            on_collision: OnCollision::Hold,
            refuse_keys: None,
            envsubst: Vec::new(),
            env: BTreeMap::new(),
            pod: Pod { namespace: "ns".into(), ..Pod::default() },
            max_size: 1 << 20,
            allow_empty: false,
            selects: false,
            bare: false,
        }
    }

    /// A `ConfigMap` `web`, a Secret `tls`, a directory `etc`, and these templates.
    fn templates(templates: &[(&str, &str)]) -> Self {
        let objects = vec![
            input(
                object(
                    Kind::ConfigMap,
                    "web",
                    &[
                        ("workers", b"4"),
                        ("both", b"open"),
                        ("json", br#"{"b":[1,2.5,null,true],"a":"x"}"#),
                        ("bin", b"\xff\x00\xfe"),
                        ("empty", b""),
                        ("nginx.conf", b"events {}"),
                    ],
                ),
                Origin::Named,
            ),
            input(object(Kind::Dir, "etc", &[("sub/file", b"in a directory"), ("more", b"1")]), Origin::Named),
            input(
                object(Kind::Secret, "tls", &[("key", CANARY.as_bytes()), ("both", b"hidden"), ("pin", b"\xff\xee")]),
                Origin::Named,
            ),
        ];
        let templates = templates.iter().map(|(name, text)| template("tpl", name, text)).collect();
        let env = [("OPEN", "o", false), ("TOKEN", CANARY, true)]
            .map(|(name, value, secret)| (name.to_owned(), EnvVar { value: value.into(), secret }));
        Self { templates: Some(templates), env: env.into(), ..Self::plain("{key}", objects) }
    }

    fn inputs(&self) -> Inputs {
        let taken = |input: &Input| Taken { object: input.object.clone(), selected: input.origin == Origin::Selected };
        let mut sources: Vec<(&str, bool, BTreeMap<String, Content>)> = Vec::new();
        for TemplateFile { name, from, source, secret } in self.templates.iter().flatten() {
            let is_known = |known: &&mut (&str, bool, _)| (known.0, known.1) == (*from, *secret);
            if sources.iter_mut().find(is_known).is_none() {
                sources.push((from, *secret, BTreeMap::new()));
            }
            if let Some((.., data)) = sources.iter_mut().find(is_known) {
                data.insert(name.clone(), source.clone().into());
            }
        }
        let sources = sources.into_iter().map(|(from, secret, data)| {
            let id = ObjectRef { kind: Kind::Dir, namespace: "".into(), name: from.into() };
            (Arc::new(Object::new(id, String::new(), 0, secret, data)), None)
        });
        let snapshot = Snapshot {
            objects: self.objects.iter().map(taken).collect(),
            templates: sources.collect(),
            envsubst: self.envsubst.clone(),
            ..Snapshot::default()
        };
        let settings = Settings {
            templated: self.templates.is_some() || !self.envsubst.is_empty(),
            path: self.path.clone(),
            on_collision: self.on_collision,
            refuse_keys: self.refuse_keys.clone(),
            suffix: self.suffix.clone(),
            delimiters: self.delimiters.clone(),
            env: self.env.clone(),
            pod: self.pod.clone(),
            max_size: self.max_size,
            allow_empty: self.allow_empty,
            selects: self.selects,
            flags: String::new(),
        };
        Inputs { snapshot, settings: Arc::new(settings) }
    }

    fn render(&self) -> Result<Rendered, RenderError> {
        let previous = self.objects.iter().filter_map(|input| input.previous.clone());
        let published: BTreeMap<_, _> = previous.map(|object| (object.id.clone(), object)).collect();
        self.inputs().render(Digest::from_bytes([7; 32]), &published.into(), &Refused::new(), self.bare)
    }

    fn paths(&self) -> Vec<String> {
        self.render().unwrap().tree.iter().map(|(path, _)| path.to_string()).collect()
    }
}

/// What one template renders to, and whether that is secret.
fn one(text: &str) -> Result<(String, bool), RenderError> {
    let tree = Case::templates(&[("t", text)]).render()?.tree;
    let file = tree.get("t").unwrap();
    Ok((String::from_utf8(file.bytes.read().unwrap().to_vec()).unwrap(), file.secret))
}

fn text(template: &str) -> String {
    one(template).unwrap_or_else(|error| panic!("{template}: {error}")).0
}

fn refusal(template: &str) -> String {
    match one(template) {
        Ok((text, _)) => panic!("{template} rendered to {text}"),
        Err(rejection) => rejection.to_string(),
    }
}

// === Plain copies ===

#[test]
fn keys_are_copied_untouched_and_share_their_bytes() {
    let config = object(Kind::ConfigMap, "web", &[("a.bin", b"\xff\x00"), ("empty", b"")]);
    let bytes = config.data["a.bin"].clone();
    let case = Case::plain(
        "{kind}/{namespace}-{name}/{key}",
        vec![input(config, Origin::Named), input(object(Kind::Secret, "tls", &[("key", b"k")]), Origin::Named)],
    );
    let tree = case.render().unwrap().tree;
    let file = tree.get("configmap/ns-web/a.bin").unwrap();
    assert_eq!(file.bytes.read().unwrap().as_ptr(), bytes.read().unwrap().as_ptr());
    assert_eq!(file.bytes, bytes);
    assert!(!file.secret && tree.get("secret/ns-tls/key").unwrap().secret);
    assert!(tree.get("configmap/ns-web/empty").unwrap().bytes.is_empty());
}

#[test]
fn keys_of_a_directory_keep_their_directories() {
    let dir = object(Kind::Dir, "etc", &[("a/b/c", b"1"), ("d", b"2")]);
    assert_eq!(Case::plain("{name}/{key}", vec![input(dir, Origin::Named)]).paths(), ["etc/a/b/c", "etc/d"]);
}

#[test]
fn a_directory_has_no_namespace_to_put_into_a_path() {
    let dir = object(Kind::Dir, "etc", &[("a", b"1")]);
    let error = Case::plain("{namespace}-{key}", vec![input(dir, Origin::Named)]).render().unwrap_err();
    assert!(error.to_string().contains("dir/etc has no namespace"), "{error}");
}

#[test]
fn named_objects_on_one_path_are_both_named() {
    for keys in [("a", "a"), ("a", "a/b"), ("a/b", "a")] {
        let objects = vec![
            input(object(Kind::ConfigMap, "one", &[(keys.0, b"1")]), Origin::Named),
            input(object(Kind::Dir, "two", &[(keys.1, b"2")]), Origin::Named),
        ];
        let error = Case::plain("{key}", objects).render().unwrap_err();
        assert!(matches!(error, RenderError::Collision(_)), "{error:?}");
        let text = error.to_string();
        assert!(text.contains("configmap/ns/one") && text.contains("dir/two"), "{text}");
    }
}

#[test]
fn of_colliding_selected_objects_the_younger_ones_key_is_held_back() {
    for reversed in [false, true] {
        let mut objects = vec![
            input(aged(Kind::ConfigMap, "old", 10, &[("x", b"old")]), Origin::Selected),
            input(aged(Kind::ConfigMap, "young", 20, &[("a", b"young"), ("x", b"young")]), Origin::Selected),
            input(aged(Kind::ConfigMap, "same-b", 30, &[("y", b"b")]), Origin::Selected),
            input(aged(Kind::ConfigMap, "same-a", 30, &[("y", b"a")]), Origin::Selected),
        ];
        if reversed {
            objects.reverse();
        }
        let rendered = Case::plain("{key}", objects).render().unwrap();
        let files: Vec<_> =
            rendered.tree.iter().map(|(path, file)| (path.as_str(), file.bytes.read().unwrap())).collect();
        assert_eq!(files, [("a", "young".into()), ("x", "old".into()), ("y", "a".into())]);
        let held = rendered.held_back.iter().map(|held| (held.source.to_string(), held.key.clone().unwrap()));
        let held: Vec<_> = held.collect();
        let expected = [("configmap/ns/young", "x"), ("configmap/ns/same-b", "y")];
        assert_eq!(held, expected.map(|(source, key)| (source.to_owned(), key.to_owned())));
        let [first, second] = &rendered.held_back[..] else { panic!() };
        assert!(first.reason.contains("configmap/ns/old") && first.reason.contains("other keys"), "{first:?}");
        assert!(!second.reason.contains("other keys"), "{second:?}");
    }
}

#[test]
fn keys_that_are_refused_are_held_back_alone() {
    for origin in [Origin::Named, Origin::Selected] {
        let web = object(Kind::ConfigMap, "web", &[("a", b"1"), ("b.url", b"http://x/"), (".url", b"x")]);
        let case = Case { refuse_keys: Some(".url".into()), ..Case::plain("{key}", vec![input(web, origin)]) };
        assert_eq!(case.paths(), ["a"]);
        let held = case.render().unwrap().held_back;
        let keys: Vec<_> = held.iter().map(|held| held.key.as_deref().unwrap()).collect();
        assert_eq!(keys, [".url", "b.url"]);
        assert!(held[1].reason.contains("--refuse-keys") && held[1].reason.contains("other keys"), "{held:?}");
    }
}

#[test]
fn last_of_colliding_keys_is_published_if_that_is_asked_for() {
    let objects = vec![
        input(aged(Kind::ConfigMap, "named", 9, &[("n", b"1"), ("d", b"1")]), Origin::Named),
        input(aged(Kind::ConfigMap, "old", 10, &[("n", b"2"), ("x", b"2"), ("o", b"2")]), Origin::Selected),
        input(aged(Kind::ConfigMap, "young", 20, &[("x", b"3"), ("..", b"3")]), Origin::Selected),
        input(aged(Kind::ConfigMap, "youngest", 30, &[("x", b"4")]), Origin::Selected),
        input(object(Kind::Dir, "etc", &[("d/e", b"5")]), Origin::Named),
    ];
    let rendered = Case { on_collision: OnCollision::Last, ..Case::plain("{key}", objects) }.render().unwrap();
    let files = rendered.tree.iter().map(|(path, file)| format!("{path} {:?}", file.bytes.read().unwrap()));
    assert_eq!(files.collect::<Vec<_>>(), [r#"d/e b"5""#, r#"n b"2""#, r#"o b"2""#, r#"x b"4""#]);
    let [held] = &rendered.held_back[..] else { panic!("{:?}", rendered.held_back) };
    assert_eq!((held.source.to_string().as_str(), &held.key), ("configmap/ns/young", &None));
    let overridden = rendered.warnings.join("\n");
    assert_eq!(rendered.warnings.len(), 3, "{overridden}");
    assert!(overridden.contains("configmap/ns/youngest") && overridden.contains("configmap/ns/old"), "{overridden}");
}

#[test]
fn a_selected_object_yields_to_a_named_one() {
    let rendered = Case::plain(
        "{key}",
        vec![
            input(aged(Kind::ConfigMap, "selected", 1, &[("x", b"1")]), Origin::Selected),
            input(aged(Kind::ConfigMap, "named", 2, &[("x", b"2")]), Origin::Named),
            // Selected as well as named: one object.
            input(aged(Kind::ConfigMap, "named", 2, &[("x", b"2")]), Origin::Selected),
        ],
    )
    .render()
    .unwrap();
    assert_eq!(rendered.tree.get("x").unwrap().bytes.read().unwrap(), "2");
    assert_eq!(rendered.held_back.len(), 1);
    assert_eq!(rendered.held_back[0].source.to_string(), "configmap/ns/selected");
}

#[test]
fn the_last_published_version_of_a_failing_selected_object_stays() {
    let old = aged(Kind::ConfigMap, "old", 1, &[("x", b"1")]);
    let mut young = input(aged(Kind::ConfigMap, "young", 2, &[("../y", b"2")]), Origin::Selected);
    young.previous = Some(Arc::new(aged(Kind::ConfigMap, "young", 2, &[("y", b"2")])));
    let mut bad = input(aged(Kind::ConfigMap, "bad", 3, &[("../x", b"3")]), Origin::Selected);
    bad.previous = Some(Arc::new(aged(Kind::ConfigMap, "bad", 3, &[("y", b"3")])));
    let case = Case::plain("{key}", vec![input(old, Origin::Selected), young, bad]);
    assert_eq!(case.paths(), ["x", "y"]);
    let held = case.render().unwrap().held_back;
    assert!(held[0].reason.ends_with("its last published version stays"), "{held:?}");
    assert!(held[1].reason.contains("nor can its last published version"), "{held:?}");
}

#[test]
fn a_key_that_leads_out_is_held_back_if_selected_and_else_rejected() {
    for key in ["../x", "/etc/passwd", "..data", "a/../../b", "a\0b", ""] {
        let bad = || object(Kind::ConfigMap, "bad", &[(key, b"1")]);
        let good = || input(object(Kind::ConfigMap, "good", &[("x", b"1")]), Origin::Selected);
        let case = Case::plain("{key}", vec![input(bad(), Origin::Selected), good()]);
        assert_eq!(case.paths(), ["x"]);
        let held = case.render().unwrap().held_back;
        assert!(held.len() == 1 && held[0].source.to_string() == "configmap/ns/bad", "{held:?}");
        let error = Case::plain("{key}", vec![input(bad(), Origin::Named), good()]).render().unwrap_err();
        assert!(error.to_string().contains("configmap/ns/bad"), "{error}");
    }
}

#[test]
fn copies_beyond_max_size_are_refused_or_held_back() {
    let big = |name, origin| input(object(Kind::ConfigMap, name, &[(name, &[0; 600])]), origin);
    let mut case = Case::plain("{key}", vec![big("a", Origin::Named), big("b", Origin::Named)]);
    case.max_size = 1200;
    assert_eq!(case.paths().len(), 2);
    case.max_size = 1199;
    let text = case.render().unwrap_err().to_string();
    assert!(text.contains("configmap/ns/b") && text.contains("--max-size"), "{text}");
    case.objects[1].origin = Origin::Selected;
    assert_eq!(case.paths(), ["a"]);
    assert!(case.render().unwrap().held_back[0].reason.contains("--max-size"));
}

#[test]
fn nothing_is_published_only_if_that_is_meant() {
    let empty = || input(object(Kind::ConfigMap, "web", &[]), Origin::Named);
    let bad = || input(object(Kind::ConfigMap, "bad", &[("..", b"1")]), Origin::Selected);
    let mut templates = Case::templates(&[("t", "x")]);
    templates.objects = vec![empty()];
    let mut partials = Case::templates(&[("_t", "x")]);
    let mut blank = Case::templates(&[("t", "{% if false %}x{% endif %}\n \n")]);
    let cases = [
        &mut Case::plain("{key}", vec![]),
        &mut Case::plain("{key}", vec![empty()]),
        &mut Case::plain("{key}", vec![bad()]),
    ];
    for case in cases.into_iter().chain([&mut templates, &mut partials]) {
        let error = case.render().unwrap_err();
        assert!(matches!(error, RenderError::Empty { .. }) && error.to_string().contains("--allow-empty"), "{error}");
        case.allow_empty = true;
        case.render().unwrap();
    }
    let error = blank.render().unwrap_err();
    assert!(matches!(&error, RenderError::EmptyFile { place } if place.template == "t"), "{error}");
    blank.allow_empty = true;
    blank.render().unwrap();
}

#[test]
fn selector_may_select_nothing_while_that_takes_no_file_away() {
    let empty = || input(object(Kind::ConfigMap, "web", &[]), Origin::Selected);
    for objects in [|| vec![], || vec![input(object(Kind::ConfigMap, "web", &[]), Origin::Selected)]] {
        let case = || Case { selects: true, bare: true, ..Case::plain("{key}", objects()) };
        assert!(case().render().unwrap().tree.is_empty());
        Case { bare: false, ..case() }.render().unwrap_err();
        Case { selects: false, ..case() }.render().unwrap_err();
    }
    let mut templates = Case::templates(&[("t", "x")]);
    templates.objects = vec![empty()];
    Case { selects: true, bare: true, ..templates }.render().unwrap_err();
    // What there is and does not pass is no empty set.
    let bad = input(object(Kind::ConfigMap, "bad", &[("..", b"1")]), Origin::Selected);
    let error = Case { selects: true, bare: true, ..Case::plain("{key}", vec![bad]) }.render().unwrap_err();
    assert!(error.to_string().contains("held back"), "{error}");
}

#[test]
fn a_pattern_is_checked_when_it_is_read() {
    for (bad, words) in [
        ("{name}", "needs {key}"),
        ("", "needs {key}"),
        ("{key", "without a partner"),
        ("key}", "without a partner"),
        ("{{key}}", "without a partner"),
        ("{Key}", "has {Key}; there are {namespace}"),
        ("/{key}", "absolute"),
        ("../{key}", "starts with '..'"),
        ("{name}//{key}", "empty"),
        ("{key}/", "empty"),
        ("{label:}/{key}", "has {label:}; there are"),
        ("{labels:a}/{key}", "{annotation:NAME}"),
        ("{annotation:a b}/{key}", "{label:NAME|DEFAULT}"),
        ("{annotation:a|..}/{key}", "starts with '..'"),
        ("{annotation:a|/}/{key}", "absolute"),
    ] {
        let error = bad.parse::<PathPattern>().unwrap_err().to_string();
        assert!(error.contains("--path") && error.contains(words), "{bad}: {error}");
    }
    for good in ["{key}", "{namespace}/{name}/{key}", "{kind}-{name}.d/{key}.conf", "{key}{key}", "{label:a.b/c}{key}"]
    {
        good.parse::<PathPattern>().unwrap();
    }
}

#[test]
fn labels_and_annotations_say_where_keys_go() {
    let case = |pattern: &str, value: Option<&str>, origin| {
        let marks = value.map(|value| ("annotation:folder".to_owned(), value.to_owned()));
        let object = object(Kind::ConfigMap, "web", &[("k", b"1")]).marked(marks.into_iter().collect());
        let case = Case::plain(pattern, vec![input(object, origin)]);
        Case { path: case.path.clone().below("/out/conf/".as_ref()), ..case }
    };
    let path = |pattern: &str, value: Option<&str>| case(pattern, value, Origin::Selected).paths().join(" ");
    let pattern = "{annotation:folder|}/{key}";
    for (value, expected) in [
        (None, "k"),
        (Some(""), "k"),
        (Some("team"), "team/k"),
        (Some("a/b/"), "a/b/k"),
        (Some("/out/conf"), "k"),
        (Some("/out/conf/"), "k"),
        (Some("/out/conf/team/"), "team/k"),
    ] {
        assert_eq!(path(pattern, value), expected, "{value:?}");
    }
    assert_eq!(path("x/{annotation:folder|}/{key}", None), "x/k");
    assert_eq!(path("{annotation:folder|general}/{key}", None), "general/k");
    assert_eq!(path("{namespace}{annotation:folder|}/{key}", None), "ns/k");
    for value in ["..", "a/../b", "/", "/etc", "/out/config", "/out/conf/../x", "a//b", ".", "a\nb"] {
        let error = case(pattern, Some(value), Origin::Named).render().unwrap_err().to_string();
        assert!(error.contains("configmap/ns/web") && error.contains("cannot be a path"), "{value}: {error}");
        let error = case(pattern, Some(value), Origin::Selected).render().unwrap_err().to_string();
        assert!(error.contains("held back"), "{value}: {error}");
    }
    let folders = ["/data/x".into(), "/more/".into()];
    let case = |value: &str, origin| {
        let plain = case(pattern, Some(value), origin);
        Case { path: plain.path.clone().with_folders(&folders), ..plain }
    };
    for (value, expected) in [
        ("/data/x", "/data/x/k"),
        ("/data/x/", "/data/x/k"),
        ("/data/x/team/a/", "/data/x/team/a/k"),
        ("/more", "/more/k"),
        ("/out/conf/team", "team/k"),
        ("data/x", "data/x/k"),
    ] {
        assert_eq!(case(value, Origin::Selected).paths(), [expected], "{value}");
    }
    for value in
        ["/data", "/data/xy", "/data/x/../y", "/data/x/..", "/data/x//y", "/etc", "/data/x/..trimtab", "../data/x"]
    {
        let error = case(value, Origin::Named).render().unwrap_err().to_string();
        assert!(error.contains("cannot be a path"), "{value}: {error}");
    }
    let case = |pattern: &str, value: Option<&str>, origin| {
        let marks = value.map(|value| ("annotation:folder".to_owned(), value.to_owned()));
        let object = object(Kind::ConfigMap, "web", &[("k", b"1")]).marked(marks.into_iter().collect());
        Case::plain(pattern, vec![input(object, origin)])
    };
    let error = case("{annotation:folder}/{key}", None, Origin::Named).render().unwrap_err().to_string();
    assert!(error.contains("configmap/ns/web has no annotation:folder") && error.contains("|DEFAULT}"), "{error}");
}

// === Templates ===

#[test]
fn templates_go_to_their_destinations() {
    let dests = |given: &Given| given.templates.iter().map(|t| Some(t.dest.as_ref()?.to_string())).collect::<Vec<_>>();
    let file = |keys: &[(&str, &[u8])], dest, suffix| {
        let mut given = Given::default();
        given.file(&object(Kind::Dir, "tpl", keys), dest, suffix)?;
        Ok::<_, RenderError>(dests(&given))
    };
    let one: &[(&str, &[u8])] = &[("a.conf.j2", b"x")];
    assert_eq!(file(one, None, None).unwrap(), [Some("a.conf".into())]);
    assert_eq!(file(one, Some("b"), None).unwrap(), [Some("b".into())]);
    assert_eq!(file(one, Some("d/"), None).unwrap(), [Some("d/a.conf".into())]);
    assert_eq!(file(one, None, Some(".tmpl")).unwrap(), [Some("a.conf.j2".into())]);
    let keys: &[(&str, &[u8])] = &[("a.j2", b"x"), ("d/_part.j2", b"x"), ("d/e", b"x")];
    let dir = |dest, suffix| {
        let mut given = Given::default();
        given.dir(&object(Kind::Dir, "tpl", keys), dest, suffix)?;
        let copies = given.copies.iter().map(|(path, _)| path.to_string()).collect::<Vec<_>>();
        Ok::<_, RenderError>((dests(&given), copies))
    };
    assert_eq!(dir(None, None).unwrap(), (vec![Some("a".into()), None, Some("d/e".into())], vec![]));
    assert_eq!(dir(Some("to"), None).unwrap().0, [Some("to/a".into()), None, Some("to/d/e".into())]);
    assert_eq!(dir(Some("to/"), None).unwrap(), dir(Some("to"), None).unwrap());
    assert_eq!(dir(Some("to"), Some(".j2")).unwrap(), (vec![Some("to/a".into()), None], vec!["to/d/e".into()]));
    for bad in ["..", "/etc/", "", "a/../b"] {
        let error = file(&keys[..1], Some(bad), None).unwrap_err();
        assert!(error.to_string().contains("a.j2 of dir/tpl"), "{error}");
        assert!(bad.is_empty() || dir(Some(bad), None).is_err());
        assert!(bad.is_empty() || dir(Some(bad), Some(".no")).is_err());
    }
}

#[test]
fn every_name_of_the_contract_gives_its_value() {
    let mut case = Case::templates(&[(
        "t",
        "{{ data.workers }} {{ data['nginx.conf'] }} {{ data.both }} {{ configmap('web').both }} \
         {{ configmap('ns/web').both }} {{ secret('tls').both }} {{ dir('etc')['sub/file'] }} {{ env('OPEN') }} \
         {{ pod.name }} {{ pod.namespace }} {{ pod.uid }} {{ pod.ip }} {{ pod.node }} {{ pod.labels['a/b'] }} \
         {{ pod.annotations.c }} {{ generation.digest }}\n",
    )]);
    case.pod = Pod {
        name: "n".into(),
        namespace: "ns".into(),
        uid: "u".into(),
        ip: "::1".into(),
        node: Some("k".into()),
        labels: [("a/b".to_owned(), "l".to_owned())].into(),
        annotations: [("c".to_owned(), "an".to_owned())].into(),
    };
    let tree = case.render().unwrap().tree;
    let expected = "4 events {} hidden open open hidden in a directory o n ns u ::1 k l an";
    let expected = format!("{expected} {}\n", "07".repeat(32));
    assert_eq!(tree.get("t").unwrap().bytes.read().unwrap(), expected);
}

#[test]
fn a_name_without_namespace_means_the_pods_own_if_there_are_several() {
    let mut case = Case::templates(&[("t", "{{ configmap('web').x }}")]);
    let other = |namespace: &str, value: &str| {
        let id = ObjectRef { kind: Kind::ConfigMap, namespace: namespace.into(), name: "web".into() };
        let data = [("x".to_owned(), Bytes::copy_from_slice(value.as_bytes()).into())].into();
        input(Object::new(id, String::new(), 0, false, data), Origin::Named)
    };
    case.objects = vec![other("a", "1"), other("ns", "2")];
    assert_eq!(case.render().unwrap().tree.get("t").unwrap().bytes.read().unwrap(), "2");
    case.objects = vec![other("a", "1"), other("b", "2")];
    assert!(case.render().unwrap_err().to_string().contains("write NAMESPACE/NAME"));
    case.objects = vec![other("b", "3")];
    assert_eq!(case.render().unwrap().tree.get("t").unwrap().bytes.read().unwrap(), "3");
}

#[test]
fn what_is_undefined_is_reported_with_template_line_and_expression() {
    let text = refusal("a\n{{ data.worker }}");
    assert!(text.starts_with("template t (dir/tpl), line 2: undefined value in `data.worker`"), "{text}");
    for (template, words) in [
        ("{{ pod.node }}", "pod.node"),
        ("{{ pod.name }}", "pod.name"),
        ("{{ nothing }}", "nothing"),
        ("{{ data.a.b }}", "data.a.b"),
        ("{% for x in data.no %}{% endfor %}", "for x in data.no"),
        ("{% if data.no %}{% endif %}", "if data.no"),
        ("{{ data.no|upper }}", "data.no|upper"),
        ("{{ data.no|quote }}", "data.no|quote"),
        ("{{ data.no|to_json }}", "data.no|to_json"),
        ("{{ data.no|b64encode }}", "data.no|b64encode"),
        ("{{ 'x' ~ data.no }}", "data.no"),
        ("{{ data.no == 'x' }}", "data.no"),
    ] {
        let text = refusal(template);
        assert!(text.contains("undefined value") && text.contains(words), "{template}: {text}");
    }
    for (template, words) in [
        ("{{ configmap('no') }}", "(there is configmap/ns/web): no in `configmap('no')`"),
        ("{{ secret('web') }}", "(there is secret/ns/tls): web"),
        ("{{ dir('sub/x') }}", "(there is dir/etc): sub/x"),
        ("{{ env('HOME') }}", "--env nor --secret-env names: HOME"),
        ("{{ data.no|required('set no\nin web') }}", "a required value is missing: set no in web"),
        ("{{ data.empty|required }}", "a required value is missing in `data.empty|required`"),
        ("{{ data|upperr }}", "unknown filter"),
    ] {
        let text = refusal(template);
        assert!(text.contains(words), "{template}: {text}");
    }
}

#[test]
fn what_may_be_undefined_can_be_asked_for() {
    assert_eq!(text("{% if data.no is defined %}1{% else %}2{% endif %}"), "2");
    assert_eq!(text("{% if data.no is undefined %}1{% endif %}"), "1");
    assert_eq!(text("{{ data.no|default('d') }}{{ data.workers|default('d') }}"), "d4");
    assert_eq!(text("{{ pod.node|d('none') }}"), "none");
    assert_eq!(text("{{ 'no' in data }} {{ 'workers' in data }}"), "False True");
}

#[test]
fn includes_imports_and_extends_reach_the_given_templates_alone() {
    let case = Case::templates(&[
        ("a", "{% include '_p' %} {% set n = '_' ~ 'p' %}{% include n %} {% from '_m' import m %}{{ m(1) }}"),
        ("b", "{% extends '_base' %}{% block x %}b{% endblock %}"),
        ("_p", "partial {{ data.workers }}"),
        ("_m", "{% macro m(x) %}macro {{ x }}{% endmacro %}"),
        ("_base", "<{% block x %}{% endblock %}>"),
    ]);
    let tree = case.render().unwrap().tree;
    assert_eq!(tree.len(), 2);
    assert_eq!(tree.get("a").unwrap().bytes.read().unwrap(), "partial 4 partial 4 macro 1");
    assert_eq!(tree.get("b").unwrap().bytes.read().unwrap(), "<b>");
    for name in ["/etc/passwd", "../Cargo.toml", "Cargo.toml"] {
        assert!(refusal(&format!("{{% include '{name}' %}}")).contains("template not found"));
        assert_eq!(text(&format!("{{% include '{name}' ignore missing %}}x")), "x");
    }
}

#[test]
fn a_failure_in_an_include_names_both_templates() {
    let case = Case::templates(&[("a", "\n{% include '_p' %}"), ("_p", "\n\n{{ data.no }}")]);
    let text = case.render().unwrap_err().to_string();
    assert!(text.starts_with("template a (dir/tpl), in _p, line 3: undefined value in `data.no`"), "{text}");
}

#[test]
fn the_text_is_written_as_it_is() {
    for name in ["t.html", "t.json", "t.yaml", "t.xml"] {
        let mut case = Case::templates(&[(name, "{{ data.html }}|{{ '<' }}\n\n")]);
        case.objects.push(input(object(Kind::ConfigMap, "html", &[("html", b"<a href=\"x\">&'")]), Origin::Named));
        assert_eq!(case.render().unwrap().tree.get(name).unwrap().bytes.read().unwrap(), "<a href=\"x\">&'|<\n\n");
    }
}

#[test]
fn a_template_that_does_not_parse_or_is_not_text_is_named_with_its_line() {
    let text = refusal("a\nb {{ data.x");
    assert!(text.starts_with("template t (dir/tpl), line 2: syntax error: "), "{text}");
    let mut case = Case::templates(&[("a", "fine"), ("_unused", "\n{% bad %}")]);
    let text = case.render().unwrap_err().to_string();
    assert!(text.starts_with("template _unused (dir/tpl), line 2: syntax error: "), "{text}");
    let unused = case.templates.as_mut().unwrap().iter_mut().find(|template| template.name == "_unused");
    unused.unwrap().source = Bytes::from_static(b"a\nb\xff");
    let text = case.render().unwrap_err().to_string();
    assert!(text.starts_with("template _unused (dir/tpl), line 2: a template must be UTF-8"), "{text}");
}

#[test]
fn two_templates_of_one_name_or_place_are_refused() {
    let mut case = Case::templates(&[]);
    case.templates = Some(vec![template("one", "t", "x"), template("two", "t", "x")]);
    let text = case.render().unwrap_err().to_string();
    assert!(text.contains("dir/one") && text.contains("dir/two"), "{text}");
    case.templates = Some(vec![template("one", "t", "x"), template("two", "t.j2", "x")]);
    let text = case.render().unwrap_err().to_string();
    assert!(text.contains("t (dir/one)") && text.contains("t.j2 (dir/two)"), "{text}");
}

#[test]
fn the_room_of_max_size_is_for_all_files_together() {
    let mut case = Case::templates(&[("a", "{{ 'x' * 600 }}"), ("b", "{{ 'y' * 600 }}")]);
    case.max_size = 1200;
    case.render().unwrap();
    case.max_size = 1199;
    let text = case.render().unwrap_err().to_string();
    assert!(text.contains("template b (dir/tpl)") && text.contains("--max-size (1199 bytes)"), "{text}");
}

#[test]
fn a_template_that_would_not_end_is_stopped() {
    let endless = "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}";
    assert!(refusal(endless).contains("too many steps"));
    assert!(refusal("{% set x = 'a' * 1000000000 %}x").contains("too many steps"));
    assert!(refusal("{% for a in range(100000) %}{% set x = data.bin|sha256 %}{% set y = data.json|from_json|to_json %}{% endfor %}x{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}").contains("too many steps"));
}

#[test]
fn json_is_not_indented_by_gigabytes() {
    let wide = format!("[\n{}1\n]", " ".repeat(16));
    for template in ["{{ [1]|to_json(indent=99999) }}", "{{ [1]|tojson(indent=99999) }}", "{{ [1]|tojson(99999) }}"] {
        assert_eq!(text(template), wide, "{template}");
    }
    assert_eq!(text("{{ [1]|tojson(true) }}{{ [1]|tojson(1) }}{{ ['<']|tojson }}"), "[\n  1\n][\n 1\n][\"\\u003c\"]");
    assert!(refusal("{{ [1]|tojson('a') }}").contains("tojson"));
    assert!(refusal("{{ [1]|tojson(x=1) }}").contains("tojson"));
}

#[test]
fn nesting_and_chains_end_before_the_stack_does() {
    let deep = "nested deeper than 80";
    for template in [
        "{% macro m(n) %}{{ m(n+1) }}{% endmacro %}{{ m(0) }}",
        "{% include 't' %}",
        "{% import 't' as m %}{{ m }}",
        "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
        "{% block a %}{{ self.a() }}{% endblock %}",
        "{% block a %}{% include 't' %}{% endblock %}",
        "{% macro m(n) %}{% for i in [1] %}{% include 't' %}{% endfor %}{% endmacro %}{{ m(0) }}",
    ] {
        assert!(refusal(template).contains(deep), "{template}: {}", refusal(template));
    }
    for link in ["1+", "-", "1 if 0 else ", "not ", "1**", "1~", "{'a':'}}'}~", "'%}'~", "x()[1].a|d is odd+"] {
        for n in [400, 100_000] {
            let chain = link.repeat(n);
            let results = [
                one(&format!("{{{{ {chain}1 }}}}")),
                one(&format!("{{% set x = {chain}1 %}}x")),
                one(&format!("{{% raw %}}{{{{ '{{# {{% endraw %}}{{{{ {chain}1 }}}}")),
            ];
            for result in results.into_iter().filter(|_| n > 400) {
                let Err(RenderError::Syntax { problem, .. }) = result else { panic!("{link}: {result:?}") };
                assert!(problem.contains("words and signs"), "{problem}");
            }
        }
    }
    let elifs = |n| format!("{{% if 0 %}}{}{{% endif %}}y", "{%- elif 0 %}".repeat(n));
    assert_eq!(text(&elifs(400)), "y");
    assert!(refusal(&elifs(100_000)).contains("'elif's"));
    // Long lists, and much text with braces, are no chains.
    assert_eq!(text(&format!("{{{{ [{}]|length }}}}", "'a', ".repeat(5000))), "5000");
    assert_eq!(text(&"{ {'a': 1 }\n".repeat(5000)).len(), 12 * 5000);
    // A text that looks like the beginning of a tag at every place costs no more than another.
    refusal(&"{{,,".repeat(250_000));
    refusal(&format!("{}'{}", "{{ ".repeat(300), "x".repeat(1_000_000)));
    for open in ["{", "[", "- ", "a: {"] {
        for format in ["json", "yaml", "toml"] {
            refusal(&format!("{{{{ '{}'|from_{format} }}}}", open.repeat(100_000)));
        }
    }
}

// === What is written for other programs ===

#[test]
fn files_beside_templates_are_copied_where_a_suffix_is_chosen() {
    let rules = "expr: up == 0 {# no comment\nsummary: {{ $labels.instance }} {{- end }}\n";
    let mut case = Case::templates(&[("a.conf.j2", "{{ data.workers }}"), ("rules.yaml", rules), ("_part", "p")]);
    assert!(case.render().is_err(), "without a suffix, each file is a template");
    case.suffix = Some(".j2".into());
    let files = |case: &Case| {
        let tree = case.render().unwrap().tree;
        let read = |file: &crate::model::tree::File| String::from_utf8(file.bytes.read().unwrap().to_vec()).unwrap();
        tree.iter().map(|(path, file)| (path.to_string(), read(file), file.secret)).collect::<Vec<_>>()
    };
    let copied = |secret| {
        [("_part", "p", secret), ("a.conf", "4", false), ("rules.yaml", rules, secret)]
            .map(|(path, text, secret)| (path.to_owned(), text.to_owned(), secret))
    };
    assert_eq!(files(&case), copied(false));
    let set_secret = |case: &mut Case, secret| {
        for file in case.templates.as_mut().unwrap().iter_mut().filter(|file| file.name != "a.conf.j2") {
            file.secret = secret;
        }
    };
    set_secret(&mut case, true);
    assert_eq!(files(&case), copied(true));
    set_secret(&mut case, false);
    // They have their place, and their share of the room.
    case.templates.as_mut().unwrap().push(template("tpl", "rules.yaml.j2", "x"));
    let text = case.render().unwrap_err().to_string();
    assert!(text.contains("file rules.yaml of dir/tpl") && text.contains("rules.yaml.j2"), "{text}");
    case.templates.as_mut().unwrap().pop();
    case.max_size = rules.len() as u64 + 2;
    case.render().unwrap();
    case.max_size -= 1;
    assert!(matches!(case.render().unwrap_err(), RenderError::TooLarge { .. }));
    case.max_size = 3;
    let text = case.render().unwrap_err().to_string();
    assert!(text.contains("file rules.yaml of dir/tpl does not fit"), "{text}");
}

#[test]
fn other_signs_leave_the_usual_ones_as_text() {
    let mut case = Case::templates(&[(
        "t",
        "{{ $labels.x }} [[ data.workers ]] [% if true %]y[% endif %][# c #] {% x %} {# y ${#z} [[ '[[' ~ {'a': 1} ]]\n",
    )]);
    case.delimiters = "[[ ]] [% %] [# #]".parse().unwrap();
    let tree = case.render().unwrap().tree;
    let expected = "{{ $labels.x }} 4 y {% x %} {# y ${#z} [[{\"a\": 1}\n".replace('"', "'");
    let found = tree.get("t").unwrap().bytes.read().unwrap();
    assert_eq!(String::from_utf8_lossy(&found).replace('"', "'"), expected);
    case.templates = Some(vec![template("tpl", "t", "a\n[[ data.no ]] [[ 1 ]]")]);
    let text = case.render().unwrap_err().to_string();
    assert!(text.contains("line 2: undefined value in `data.no`"), "{text}");
    case.templates = Some(vec![template("tpl", "t", &format!("[[ {}1 ]]", "1+".repeat(100_000)))]);
    assert!(case.render().unwrap_err().to_string().contains("words and signs"));
}

#[test]
fn a_shells_length_is_text_and_begins_no_comment() {
    for script in [
        "a=(1 2)\nfor ((i=0; i<${#a[@]}; i++)); do echo ${#a[$i]} ${#a[*]} ${#name} ${#@} ${#}; done\n# ok #}\n",
        "${#x}",
        "x ${#x} y ${#x}",
    ] {
        assert_eq!(text(script), script);
    }
    // Where it is no text, nothing changes.
    assert_eq!(
        text("{{ '${#x}' }}{% raw %}${#x}{{ {% endraw %}{# ${#x} #}{{ {'a': '${#x}'}.a }}"),
        "${#x}${#x}{{ ${#x}"
    );
    assert_eq!(text("{%- raw -%} ${#x} {%- endraw -%} a{# b\nc #}d${# e #}f"), "${#x}ad$f");
    assert_eq!(text("{{ {'a': {'b': \"}} {# ${#x}\"}}.a.b }}${#y}"), "}} {# ${#x}${#y}");
    // Lines stay where they are, and so do the pieces that messages quote.
    let refused = refusal("${#a}\n${#b} {{ data.no }}");
    assert!(refused.contains("line 2: undefined value in `data.no`"), "{refused}");
}

#[test]
fn a_comment_that_swallows_text_is_named_by_its_first_line() {
    for (template, line, words) in [
        ("a\n{# b\nc\nd", 2, "no #} ends it"),
        ("a\n\nserver {#1\nlisten\n{# a comment #}\n", 3, "would swallow all up to the #} that ends the one of line 5"),
    ] {
        let text = refusal(template);
        assert!(text.starts_with(&format!("template t (dir/tpl), line {line}: a comment begins here")), "{text}");
        assert!(text.contains(words), "{text}");
        assert!(text.contains("--template-suffix .j2") && text.contains("--template-delimiters"), "{text}");
    }
    assert_eq!(text("{# a {# b #}c{#\n\n#}d"), "cd");
}

#[test]
fn a_tag_of_another_language_names_both_ways_out() {
    for template in ["{{ $labels.x }}", "a\n{{ .Values.x }}", "{{ range $i := .x }}", "{{ x y }}"] {
        let text = refusal(template);
        assert!(text.contains("syntax error"), "{template}: {text}");
        assert!(text.contains("--template-suffix .j2") && text.contains("--template-delimiters"), "{template}: {text}");
    }
    for template in ["{% if x %}", "{% bad %}", "{{ 1 }}{% for %}"] {
        let text = refusal(template);
        assert!(!text.contains("--template-suffix"), "{template}: {text}");
    }
}

#[test]
fn what_was_meant_is_said_where_it_can_be_seen() {
    let mut case = Case::templates(&[]);
    case.objects.push(input(
        object(Kind::ConfigMap, "odd", &[("mysql-root-password", b"x"), ("my.cnf", b"y"), ("mysql", b"z")]),
        Origin::Named,
    ));
    let mut refusal = |template: &str| {
        case.templates = Some(vec![self::template("tpl", "t", template)]);
        case.render().unwrap_err().to_string()
    };
    for (template, words) in [
        ("{{ data.mysql-root-password }}", "data[\"mysql-root-password\"]"),
        ("{{ 'a' ~ data.mysql-root-password }}", "brackets: data[\"mysql-root-password\"]"),
        ("{% if configmap('odd').mysql-root-password %}{% endif %}", "configmap('odd')[\"mysql-root-password\"]"),
        ("{{ data.nginx.conf }}", "data[\"nginx.conf\"]"),
        ("{{ data.my.cnf }}", "data[\"my.cnf\"]"),
        ("{{ dir('etc').sub/file }}", "dir('etc')[\"sub/file\"]"),
        (
            "{{ configmap('web').worker }}",
            "there is no key \"worker\", but bin, both, empty, json, nginx.conf, workers",
        ),
        ("{{ secret('tls').pasword }}", "there is no key \"pasword\", but both, key, pin"),
        ("{{ data['worker'] }}", "there is no key \"worker\", but "),
        ("{{ data.workers + 1 }}", "`| int`"),
        ("{{ 1 - data.workers }}", "`| int`"),
        ("{{ data.workers / 2 }}", "`| int`"),
    ] {
        let text = refusal(template);
        assert!(text.contains(words), "{template}: {text}");
    }
    assert!(!refusal("{{ nothing }}").contains("there is no key"));
    assert!(!refusal("{{ data.no is defined and nothing }}{{ nothing }}").contains("there is no key"));
}

// === Filters ===

#[test]
fn filters_do_what_they_are_called() {
    assert_eq!(text("{{ 'hi'|b64encode }} {{ 'aGk='|b64decode }} {{ ' aG\nk '|b64decode }}"), "aGk= hi hi");
    assert_eq!(text("{{ data.bin|b64encode }} {{ '/wD+'|b64decode|b64encode }}"), "/wD+ /wD+");
    assert_eq!(text("{{ data.bin == '/wD+'|b64decode }} {{ data.bin == secret('tls').pin }}"), "True False");
    let digest = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";
    assert_eq!(text("{{ 'test'|sha256 }}"), digest);
    assert_eq!(text("{{ data.json|from_json|to_json }}"), r#"{"a":"x","b":[1,2.5,null,true]}"#);
    assert_eq!(
        text("{{ {'b': [1], 'a': '<&>'}|to_json(indent=2) }}"),
        "{\n  \"a\": \"<&>\",\n  \"b\": [\n    1\n  ]\n}"
    );
    assert_eq!(text("{{ 'b: [1, yes]\na: {x: ~}'|from_yaml|to_json }}"), r#"{"a":{"x":null},"b":[1,"yes"]}"#);
    assert_eq!(text("{{ {'b': [1, 'yes'], 'a': 'x: y'}|to_yaml }}|"), "a: \"x: y\"\nb:\n- 1\n- \"yes\"|");
    let toml = "t = 1979-05-27T07:32:00Z\n[b]\nc = [1, 2.5, true]\n";
    assert_eq!(
        text(&format!("{{{{ '{toml}'|from_toml|to_json }}}}")),
        r#"{"b":{"c":[1,2.5,true]},"t":"1979-05-27T07:32:00Z"}"#
    );
    assert_eq!(text("{{ {'z': 1, 'a': {'b': 'c'}, 'm': [1]}|to_toml }}|"), "m = [1]\nz = 1\n\n[a]\nb = \"c\"|");
    assert_eq!(text(r#"{{ 'a"\\b\n\t$é'|quote }} {{ 5|quote }}"#), r#""a\"\\b\n\t$é" "5""#);
    assert_eq!(text("{{ data.workers|required('no') }}"), "4");
    // By gzip(1).
    let packed = "'H4sIAAAAAAACA8tIzcnJV0gvzavKLOACAAGfXr8NAAAA'|b64decode";
    assert_eq!(text(&format!("{{{{ {packed}|gunzip }}}}")), "hello gunzip\n");
    assert_eq!(text("{{ 'H4sIAAAAAAACA/v/DwCWMPiIAgAAAA=='|b64decode|gunzip|b64encode }}"), "//4=");
    assert_eq!(text(&format!("{{{{ ({packed}|b64encode)|b64decode|gunzip|length }}}}")), "13");
    assert_eq!(text("{{ ('!!binary aGk='|from_yaml) }} {{ ('v: 0755'|from_yaml).v }}"), "hi 0755");
    assert_eq!(text("{{ data|length }} {% for key in data %}{{ key }} {% endfor %}").split(' ').count(), 12);
}

#[test]
fn filters_report_where_their_input_is_wrong() {
    for (template, words) in [
        ("{{ '{\n\"a\": x}'|from_json }}", "from_json: not JSON at 2:6"),
        ("{{ 'a: b\n  c: [' |from_yaml }}", "from_yaml: not one YAML document at 2:"),
        ("{{ 'a: 1\n---\nb: 2'|from_yaml }}", "from_yaml: not one YAML document"),
        ("{{ 'a = 1\nb = x'|from_toml }}", "from_toml: not TOML at 2:5"),
        ("{{ '???'|b64decode }}", "b64decode: the text is not base64"),
        ("{{ 'H4sIAAAAAAACA8tIzcnJV0gv'|b64decode|gunzip }}", "gunzip: the value is not gzip data"),
        ("{{ 'x'|gunzip }}", "gunzip: the value is not gzip data"),
        ("{{ 5|gunzip }}", "gunzip takes text"),
        ("{{ '\u{feff}{}'|from_json }}", "begins with a byte order mark"),
        ("{{ 5|to_toml }}", "to_toml"),
        ("{{ {'a': none}|to_toml }}", "to_toml"),
        ("{{ data|quote }}", "quote takes text or a number"),
        ("{{ 5|sha256 }}", "sha256 takes text"),
        ("{{ 5|from_json }}", "from_json takes text"),
    ] {
        let text = refusal(template);
        assert!(text.contains(words), "{template}: {text}");
    }
}

fn gzipped(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    std::io::Write::write_all(&mut encoder, bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn variables_are_filled_into_files_and_what_is_not_set_stays() {
    let file = |bytes: &[u8]| Arc::new(object(Kind::Dir, "app.yml", &[("app.yml", bytes)]));
    let case = |bytes: &[u8]| Case {
        envsubst: vec![(file(bytes), Some("conf/x".to_owned()))],
        env: Case::templates(&[]).env,
        ..Case::plain("{key}", vec![])
    };
    let filled = |text: &[u8]| {
        let rendered = case(text).render().unwrap();
        let file = rendered.tree.get("conf/x").unwrap().clone();
        (file.bytes.read().unwrap().to_vec(), file.secret, rendered.warnings)
    };
    let text = b"$(OPEN) $OPEN ${OPEN} $1 $$(OPEN) $(OPEN $() $(a b) $($(OPEN)) \xff $(NONE) $(NONE) $(OPEN)";
    let (bytes, secret, warnings) = filled(text);
    assert_eq!(
        bytes.escape_ascii().to_string(),
        "o $OPEN ${OPEN} $1 $o $(OPEN $() $(a b) $(o) \\xff $(NONE) $(NONE) o"
    );
    assert!(!secret && warnings.len() == 1 && warnings[0].contains("$(NONE)"), "{warnings:?}");
    // A value is not looked at again.
    let (bytes, secret, warnings) = filled(b"$(TOKEN)");
    assert_eq!((&bytes[..], secret, warnings.len()), (CANARY.as_bytes(), true, 0));
    assert_eq!(filled(&gzipped(b"packed $(OPEN)")).0, b"packed o");
    let broken = case(&gzipped(b"packed")[..9]).render().unwrap_err().to_string();
    assert!(broken.contains("app.yml") && broken.contains("cut off"), "{broken}");
    let large = Case { max_size: 99, ..case(&gzipped(&[b'x'; 100])) }.render().unwrap_err().to_string();
    assert!(large.contains("--max-size"), "{large}");
    assert!(matches!(case(b" \n").render().unwrap_err(), RenderError::EmptyFile { .. }));
    // Beside templates, one of which is packed.
    let packed = TemplateFile { source: gzipped(b"{{ 1 + 1 }}").into(), ..template("tpl", "t.j2", "") };
    let both = Case { templates: Some(vec![packed]), ..case(b"$(OPEN)") };
    assert_eq!(both.paths(), ["conf/x", "t"]);
    assert_eq!(both.render().unwrap().tree.get("t").unwrap().bytes.read().unwrap(), "2");
    let digest = |case: &Case| case.inputs().digest(&DigestKey::new([1; 32]));
    assert_ne!(digest(&case(b"1")), digest(&case(b"2")));
    assert_ne!(case(b"1").inputs().change(None), case(b"2").inputs().change(None));
}

#[test]
fn pod_has_the_number_of_its_stateful_set() {
    for (name, ordinal) in
        [("web-0", Some(0)), ("web-a-12", Some(12)), ("web", None), ("web-x1", None), ("web-+1", None)]
    {
        assert_eq!(Pod { name: name.into(), ..Pod::default() }.ordinal(), ordinal, "{name}");
    }
    let mut case = Case::templates(&[("t", "{{ pod.ordinal + 1 }}")]);
    case.pod.name = "web-2".into();
    assert_eq!(case.render().unwrap().tree.get("t").unwrap().bytes.read().unwrap(), "3");
}

#[test]
fn what_gunzip_gives_is_bounded() {
    let gzip = |len: usize| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        std::io::Write::write_all(&mut encoder, &vec![0; len]).unwrap();
        encoder.finish().unwrap()
    };
    for (len, fits) in [(1 << 20, true), ((1 << 20) + 1, false)] {
        let mut case = Case::templates(&[("t", "{{ data.packed|gunzip|length }}")]);
        case.objects.push(input(object(Kind::ConfigMap, "packed", &[("packed", &gzip(len))]), Origin::Named));
        match case.render() {
            Ok(_) => assert!(fits),
            Err(error) => assert!(!fits && error.to_string().contains("more than --max-size"), "{error}"),
        }
    }
}

#[test]
fn a_binary_value_is_never_spoilt_by_use_as_text() {
    for template in [
        "{{ data.bin }}",
        "{{ data.bin ~ '' }}",
        "{{ [data.bin] }}",
        "{{ [data.bin]|join(',') }}",
        "{{ data.bin|string }}",
        "{{ data.bin|upper }}",
        "{{ data.bin|to_json }}",
        "{{ data.bin|tojson }}",
        "{{ data|to_yaml }}",
        "{{ data|pprint }}{{ data }}",
        "{% set x = data.bin ~ '' %}x",
        "{{ '%s'|format(data.bin) }}",
    ] {
        match one(template) {
            Err(RenderError::Template { .. }) => {}
            other => panic!("{template}: {other:?}"),
        }
    }
    let text = refusal("\n{{ data.bin }}");
    assert!(text.contains("line 2") && text.contains("not UTF-8") && text.contains("`data.bin`"), "{text}");
}

// === Secrets ===

#[test]
fn a_file_is_secret_as_soon_as_it_has_read_a_secret_value() {
    for (template, secret) in [
        ("plain", false),
        ("{{ data.workers }}", false),
        ("{{ configmap('web').both }}", false),
        ("{{ data.no|default('x') }}", false),
        ("{% for key in data %}{{ key }}{% endfor %}", false),
        ("{{ data|length }}{{ secret('tls')|length }}", false),
        ("{% if false %}{{ data.key }}{% endif %}x", false),
        ("{{ env('OPEN') }}", false),
        ("{{ data.both }}", true),
        ("{{ data['key'] }}", true),
        ("{{ secret('tls').key }}", true),
        ("{{ secret('only') }}", true),
        ("{{ env('TOKEN') }}", true),
        ("{% if data.key is defined %}x{% endif %}", true),
        ("{% if data.key == 'x' %}{% endif %}x", true),
        ("{% if data.key %}x{% endif %}", true),
        ("{% if secret('only') == {} %}{% endif %}x", false),
        ("{% if secret('only') == {'no_other': 2} %}{% endif %}x", true),
        (
            "{% if 'x' in secret('tls')|list|map('lower') %}{% endif %}{% if data.values is defined %}{% endif %}x",
            false,
        ),
        ("{% for key, value in secret('tls')|items %}{{ key }}{% endfor %}", true),
        ("{% for key in secret('tls')|dictsort %}x{% endfor %}", true),
        ("{% set x = data.key %}x", true),
        ("{% macro m(x) %}{{ x|length }}{% endmacro %}{{ m(data.key) }}", true),
        ("{% macro m() %}{{ data.key|length }}{% endmacro %}{{ m() }}", true),
        ("{% macro m() %}{{ data.key|length }}{% endmacro %}x", false),
        ("{{ data.key|sha256 }}", true),
        ("{{ secret('tls').pin|b64encode }}", true),
        ("{{ [secret('tls')]|map(attribute='both')|join }}", true),
        ("{{ secret('tls')|attr('both') }}", true),
        ("{{ dict(secret('tls')).both }}", true),
        ("{% set x = secret('tls')|length ~ data.workers %}{{ x }}", false),
    ] {
        let mut case = Case::templates(&[("t", template)]);
        case.objects.insert(0, input(object(Kind::Secret, "only", &[("no_other", b"1")]), Origin::Named));
        let tree = case.render().unwrap_or_else(|error| panic!("{template}: {error}")).tree;
        assert_eq!(tree.get("t").unwrap().secret, secret, "{template}");
    }
}

#[test]
fn secrecy_passes_through_includes_and_ends_with_the_file() {
    let mut case = Case::templates(&[
        ("a", "{% include '_secret' %}"),
        ("b", "{{ data.workers }}"),
        ("c", "{% from '_secret' import m %}{{ m() }}"),
        ("d", "{% import '_macros' as m %}{{ m.twice(data.key) }}"),
        ("e", "x"),
        ("_secret", "{{ data.key }}{% macro m() %}x{% endmacro %}"),
        ("_macros", "{% macro twice(x) %}{{ x }}{{ x }}{% endmacro %}"),
    ]);
    let secrets = |case: &Case| case.render().unwrap().tree.iter().map(|(_, file)| file.secret).collect::<Vec<_>>();
    assert_eq!(secrets(&case), [true, false, true, true, false]);
    // A template from a secret source taints what takes it in by any way.
    for (template, secret) in [
        ("{% include '_s' %}", true),
        ("{% set n = '_' ~ 's' %}{% include n %}", true),
        ("{% include ['_no', '_s'] %}", true),
        ("{% extends '_s' %}", true),
        ("{% import '_s' as m %}x", true),
        ("{% from '_s' import m %}x", true),
        ("{% include '_t' %}", true),
        ("{% if false %}{% include '_s' %}{% endif %}x", false),
    ] {
        let mut case = Case::templates(&[
            ("t", template),
            ("_t", "{% include '_s' %}"),
            ("_s", "s{% macro m() %}x{% endmacro %}"),
            ("u", "x"),
        ]);
        case.templates.as_mut().unwrap().iter_mut().find(|template| template.name == "_s").unwrap().secret = true;
        assert_eq!(secrets(&case), [secret, false], "{template}");
    }
    case.templates.as_mut().unwrap().iter_mut().for_each(|template| template.secret = true);
    assert_eq!(secrets(&case), [true; 5]);
}

/// Every way to fail that we could think of, with the canary on its way.
const FAILING: &[&str] = &[
    "{{ KEY + 1 }}",
    "{{ KEY - KEY }}",
    "{{ -KEY }}",
    "{{ KEY // 2 }}",
    "{{ KEY ** 2 }}",
    "{{ KEY * KEY }}",
    "{{ 1 < KEY + 1 }}",
    "{{ KEY.attr.attr }}",
    "{{ KEY.method() }}",
    "{{ KEY() }}",
    "{{ KEY[0:'x'] }}",
    "{{ KEY|int }}",
    "{{ KEY|float }}",
    "{{ KEY|abs }}",
    "{{ KEY|round }}",
    "{{ KEY|bool|items }}",
    "{{ KEY|items }}",
    "{{ KEY|dictsort }}",
    "{{ KEY|sum }}",
    "{{ [KEY, 1]|sum }}",
    "{{ KEY|batch(0) }}",
    "{{ KEY|slice(KEY) }}",
    "{{ 'x'|indent(KEY) }}",
    "{{ KEY|map(KEY) }}",
    "{{ [1]|map(KEY) }}",
    "{{ [1]|select(KEY)|list }}",
    "{{ [1]|map(attribute=KEY)|map('upper')|list }}",
    "{{ (KEY ~ '%d')|format(KEY) }}",
    "{{ '%d'|format(KEY) }}",
    "{{ KEY|tojson(indent=KEY) }}",
    "{{ KEY|to_json(indent=KEY) }}",
    "{{ KEY|to_json(KEY=1) }}",
    "{{ KEY|to_json(**{KEY: 1}) }}",
    "{{ dict(**{KEY: 1})|to_toml(**{KEY: 2}) }}",
    "{{ KEY|from_json }}",
    "{{ KEY|from_yaml }}",
    "{{ ('[' ~ KEY)|from_yaml }}",
    "{{ ('a: *' ~ KEY)|from_yaml }}",
    "{{ ('!' ~ KEY ~ ' {')|from_yaml }}",
    "{{ ('{\"a\": 1, \"a\": ' ~ KEY)|from_json }}",
    "{{ KEY|from_toml }}",
    "{{ ('a = ' ~ KEY)|from_toml }}",
    "{{ ('a = 1\na = ' ~ KEY|quote)|from_toml }}",
    "{{ KEY|to_toml }}",
    "{{ [KEY]|to_toml }}",
    "{{ {KEY: none}|to_toml }}",
    "{{ {(1, KEY): 1}|to_json }}",
    "{{ {(1, KEY): 1}|to_yaml|from_yaml|from_json }}",
    "{{ KEY|b64decode }}",
    "{{ [KEY]|b64encode }}",
    "{{ KEY|gunzip }}",
    "{{ ('!!binary ' ~ KEY)|from_yaml }}",
    "{{ [KEY]|sha256 }}",
    "{{ [KEY]|quote }}",
    "{{ data.no|required(KEY) }}",
    "{{ ''|required(message=KEY) }}",
    "{{ configmap(KEY) }}",
    "{{ secret(KEY) }}",
    "{{ dir(KEY) }}",
    "{{ env(KEY) }}",
    "{{ configmap('web', KEY) }}",
    "{{ range(KEY) }}",
    "{{ dict(KEY) }}",
    "{{ data[KEY] }}",
    "{{ secret('tls')[KEY] }}",
    "{{ secret('tls').no.no }}",
    "{{ secret('tls').no }}{{ KEY }}",
    "{{ secret('tls')() }}",
    "{{ secret('tls').both() }}",
    "{{ secret('tls') + 1 }}",
    "{{ secret('tls')|int }}",
    "{{ secret('tls')|b64encode }}",
    "{% include KEY %}",
    "{% include [KEY, KEY] %}",
    "{% extends KEY %}",
    "{% import KEY as x %}",
    "{% from '_m' import no %}{{ no(KEY) }}",
    "{% from '_m' import m %}{{ m(KEY, KEY) }}",
    "{% from '_m' import m %}{{ m(no=KEY) }}",
    "{% from '_m' import m %}{{ m(**{KEY: 1}) }}",
    "{% from '_m' import bad %}{{ bad(KEY) }}",
    "{% set x = KEY %}{% include '_bad' %}",
    "{% for a, b in [KEY] %}{% endfor %}",
    "{% for a, b in KEY|list %}{% endfor %}",
    "{% for a in KEY + 1 %}{% endfor %}",
    "{% set a, b = KEY %}",
    "{% set KEYS = {KEY: 1} %}{% set a.b = KEY %}",
    "{% if KEY is divisibleby(KEY) %}{% endif %}",
    "{% if KEY is startingwith(1) %}{% endif %}{{ no }}",
    "{% if KEY in 5 %}{% endif %}",
    "{% if KEY < [] and KEY|int %}{% endif %}",
    "{% filter from_json %}{{ KEY }}{% endfilter %}",
    "{% filter upper|int %}{{ KEY }}{% endfilter %}",
    "{% set x %}{{ KEY }}{% endset %}{{ x|int }}",
    "{% call KEY() %}{% endcall %}",
    "{% block b %}{{ KEY|int }}{% endblock %}",
    "{{ KEY }}{{ no }}",
    "{{ KEY ~ data.bin }}",
    "{{ KEY }}{% for a in range(100000) %}{% for b in range(100000) %}{{ KEY }}{% endfor %}{% endfor %}",
    "{{ KEY }}{{ 'x' * 2000000 }}",
    "{{ ''.join(KEY) }}",
    "{{ KEY|sort(attribute=KEY)|int }}",
    "{{ KEY|groupby(KEY)|int }}",
    "{{ KEY|unique(KEY) }}",
    "{{ KEY|replace(KEY) }}",
    "{{ KEY|split(1)|int }}",
    "{{ KEY|min|int }}",
    "{{ KEY|first|int }}{{ no }}",
    "{{ KEY|attr(KEY)|int }}",
    "{{ [KEY]|zip(KEY)|int }}",
    "{{ KEY|default(KEY, KEY, KEY) }}",
];

#[test]
fn no_byte_of_a_secret_is_in_any_rejection() {
    let partials = [
        ("_m", "{% macro m(x) %}{% endmacro %}{% macro bad(x) %}{{ x|int }}{% endmacro %}"),
        ("_bad", "{{ data.key|from_json }}"),
    ];
    let mut kinds = std::collections::BTreeSet::new();
    for read in ["data.key", "secret('tls').key", "env('TOKEN')", "(data.key ~ '')", "secret('tls')['key']"] {
        for template in FAILING {
            let template = template.replace("KEY", read);
            let case = Case::templates(&[partials[0], partials[1], ("t", &template)]);
            let Err(rejection) = case.render() else { panic!("{template} did not fail") };
            let shown = format!("{rejection} {rejection:?} {rejection:#?}");
            for part in [CANARY, "CaNaRy", "canary", "CANARY", "[{", "hidden"] {
                assert!(!shown.contains(part), "{template} shows {part}: {shown}");
            }
            let source = std::error::Error::source(&rejection);
            assert!(source.is_none(), "{template} has a source: {source:?}");
            if let RenderError::Template { problem, .. } = rejection {
                kinds.insert(problem);
            }
        }
    }
    assert!(kinds.len() > 15, "{kinds:#?}");
}

#[test]
fn nothing_of_a_secret_template_is_in_a_rejection() {
    for template in [
        "CaNaRy {{ data.CaNaRy }}",
        "{{ CaNaRy",
        "{% CaNaRy %}",
        "{{ 'CaNaRy'|int }}",
        "{{ ''|required('CaNaRy') }}",
        "{{ configmap('CaNaRy') }}",
        "{{ x|CaNaRy }}",
        "{{ 'CaNaRy'|from_json }}",
        "{% include 'CaNaRy' %}",
    ] {
        for main in [template, "{% include '_t' %}{{ data.x }}"] {
            let mut case = Case::templates(&[("t", main), ("_t", template)]);
            for secret in case.templates.as_mut().unwrap().iter_mut().filter(|t| main == template || t.name == "_t") {
                secret.secret = true;
            }
            let rejection = case.render().unwrap_err();
            let shown = format!("{rejection} {rejection:?}");
            assert!(!shown.contains("CaNaRy"), "{template} shows it: {shown}");
        }
    }
}

#[test]
fn debug_of_the_inputs_shows_no_value() {
    let case = Case::templates(&[("t", CANARY)]);
    let shown = format!("{:?}", case.inputs());
    assert!(!shown.contains("CaNaRy"), "{shown}");
}

// === Properties ===

fn fragment() -> impl Strategy<Value = String> {
    let tokens = [
        "{{ ",
        " }}",
        "{% ",
        " %}",
        "{# ",
        " #}",
        "{%- ",
        "data",
        ".key",
        ".workers",
        ".bin",
        "['json']",
        "secret('tls')",
        "configmap('web')",
        "dir(",
        ")",
        "(",
        "env('TOKEN')",
        "pod",
        "|",
        "upper",
        "int",
        "from_json",
        "to_json",
        "to_yaml",
        "to_toml",
        "from_yaml",
        "from_toml",
        "quote",
        "b64encode",
        "b64decode",
        "sha256",
        "items",
        "list",
        "required('m')",
        "default(1)",
        "for x in ",
        "for a, b in ",
        "endfor",
        "if ",
        "elif ",
        "else",
        "endif",
        "set x = ",
        "macro m(x)",
        "endmacro",
        "m(1)",
        "include 't'",
        "extends 't'",
        "block b",
        "endblock",
        "raw",
        "endraw",
        "x",
        "1",
        "'s'",
        "\"",
        "+",
        "~",
        "*",
        "==",
        " in ",
        " is defined",
        "[",
        "]",
        ",",
        ":",
        "{",
        "}",
        "\n",
        "text",
        "é",
        "0.5",
        "range(9)",
        "loop",
        "self.b()",
        "caller()",
        "not ",
        "none",
    ];
    prop_oneof![
        proptest::collection::vec(proptest::sample::select(tokens.to_vec()), 0..40).prop_map(|tokens| tokens.concat()),
        (0..FAILING.len()).prop_map(|index| FAILING[index].replace("KEY", "data.json")),
        "\\PC{0,40}",
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

    #[test]
    fn any_template_gives_the_same_bytes_or_the_same_rejection(
        template in fragment(), partial in fragment(), value in proptest::collection::vec(any::<u8>(), 0..30),
    ) {
        let mut case = Case::templates(&[("t", &template), ("_p", &partial)]);
        case.objects.push(input(object(Kind::Secret, "random", &[("random", &value), ("workers", &value)]), Origin::Named));
        case.max_size = 1 << 12;
        let first = case.render();
        prop_assert_eq!(&first, &case.render());
        if let Ok(rendered) = first {
            prop_assert!(rendered.tree.iter().map(|(_, file)| file.bytes.len()).sum::<usize>() <= 1 << 12);
        }
    }

    #[test]
    fn copies_stay_below_the_output(
        keys in proptest::collection::vec("[./a-b\\x00]{0,6}", 0..6), name in "[./a]{0,3}", selected: bool,
        pattern in proptest::sample::select(vec!["{key}", "{name}/{key}", "{key}/{name}", "x{key}", "{namespace}{key}"]),
    ) {
        let keys: Vec<_> = keys.iter().map(|key| (key.as_str(), &b"1"[..])).collect();
        let objects = ["a", &name].map(|name| object(Kind::ConfigMap, name, &keys));
        let origin = if selected { Origin::Selected } else { Origin::Named };
        let case = Case::plain(pattern, objects.map(|object| input(object, origin)).into());
        if let Ok(rendered) = case.render() {
            for (path, _) in rendered.tree.iter() {
                prop_assert!(TreePath::parse(path.as_str()).is_ok());
            }
        }
    }

    #[test]
    fn texts_come_back_from_every_format(value in "(\\PC|[\n\t\"'\\\\:#-]){0,12}", odd: String) {
        for value in [value, odd] {
            let mut case = Case::templates(&[(
                "t",
                "{% set v = configmap('v').v %}{{ v|to_json|from_json == v }} {{ v|quote|from_json == v }} \
                 {{ v|quote|from_yaml == v }} {{ ('a = ' ~ v|quote)|from_toml == {'a': v} }} \
                 {{ {'a': v, v: [v]}|to_yaml|from_yaml == {'a': v, v: [v]} }} {{ {'a': v}|to_toml|from_toml == {'a': v} }} \
                 {{ v|b64encode|b64decode == v }}",
            )]);
            case.objects.push(input(object(Kind::ConfigMap, "v", &[("v", value.as_bytes())]), Origin::Named));
            let rendered = case.render().map_err(|error| TestCaseError::fail(format!("{value:?}: {error}")))?;
            let file = rendered.tree.get("t").unwrap();
            prop_assert_eq!(&file.bytes.read().unwrap()[..], b"True True True True True True True", "{:?}", value);
        }
    }
}
