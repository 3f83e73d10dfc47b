//! Manifests in, manifests out.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use serde_json::{Value, json};

use super::document::{Edits, parse};
use super::pod::places;
use super::*;

fn settings() -> Settings {
    Settings {
        image: "trimtab:1".into(),
        args: vec!["--configmap=web".into(), "--output=/shared/conf".into()],
        volume: "trimtab".into(),
        memory_limit: "32Mi".into(),
        needed: Needed {
            output: "/shared/conf".into(),
            port: Some(9533),
            probes: Probes::Http,
            token: true,
            ..Needed::default()
        },
        ..Settings::default()
    }
}

fn signals() -> Settings {
    let needed = Needed { target: Some("--signal"), signals: true, ..settings().needed };
    Settings { needed, ..settings() }
}

fn injected(text: &str, settings: &Settings) -> Injected {
    inject(text, settings, &[]).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

fn values(text: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

fn spec(value: &Value) -> &Value {
    if value["kind"] == "Pod" { &value["spec"] } else { &value["spec"]["template"]["spec"] }
}

#[test]
fn deployment_gets_the_sidecar_and_keeps_every_other_byte() {
    let text = "\
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}   # ours
spec:
  template:
    metadata:
      labels: {app: web}
    spec:
      containers:
      - name: nginx     # the main one
        image: nginx
";
    let expected = r#"apiVersion: apps/v1
kind: Deployment
metadata: {name: web}   # ours
spec:
  template:
    metadata:
      annotations:
        trimtab.dev/injected: "container=nginx volumes=trimtab made=shareProcessNamespace,volumes,initContainers,volumeMounts,annotations"
      labels: {app: web}
    spec:
      shareProcessNamespace: true
      volumes:
      - name: trimtab
        emptyDir: {}
      initContainers:
      - name: trimtab
        image: "trimtab:1"
        restartPolicy: Always
        args:
        - --configmap=web
        - --output=/shared/conf
        env:
        - name: POD_NAME
          valueFrom:
            fieldRef:
              fieldPath: metadata.name
        - name: POD_NAMESPACE
          valueFrom:
            fieldRef:
              fieldPath: metadata.namespace
        - name: POD_UID
          valueFrom:
            fieldRef:
              fieldPath: metadata.uid
        ports:
        - name: metrics
          containerPort: 9533
        startupProbe:
          httpGet:
            path: /readyz
            port: 9533
          periodSeconds: 1
          failureThreshold: 60
        livenessProbe:
          httpGet:
            path: /livez
            port: 9533
        resources:
          requests:
            cpu: "5m"
            memory: "16Mi"
          limits:
            memory: "32Mi"
        securityContext:
          allowPrivilegeEscalation: false
          capabilities:
            drop:
            - ALL
          readOnlyRootFilesystem: true
          runAsNonRoot: true
          seccompProfile:
            type: RuntimeDefault
        volumeMounts:
        - name: trimtab
          mountPath: /shared
      containers:
      - name: nginx     # the main one
        volumeMounts:
        - name: trimtab
          mountPath: /shared
          readOnly: true
        image: nginx
"#;
    let result = injected(text, &signals());
    assert_eq!(result.text, expected.replace("\"trimtab:1\"", "trimtab:1"));
    assert_eq!(result.advice.len(), 1, "{:?}", result.advice);
    assert!(result.advice[0].starts_with("deployment/web: a signal needs the same user"), "{:?}", result.advice);
    assert_eq!(uninject(&result.text).unwrap(), text);
}

#[test]
fn lists_that_are_there_get_an_item_more() {
    let text = "\
kind: Pod
metadata:
    annotations: {a: b}
spec:
    initContainers:
        - {name: first, image: x}
        # the second
        - name: second
          image: x
    volumes: [{name: data, emptyDir: {}}]
    shareProcessNamespace: true
    containers:
        - name: nginx
          volumeMounts:
              - {name: data, mountPath: /data}   # data
";
    let after = Settings { after: Some("second".into()), ..signals() };
    for settings in [signals(), after] {
        let result = injected(text, &settings);
        let pod = &values(&result.text)[0];
        assert_eq!(pod["spec"]["volumes"].as_array().unwrap().len(), 2);
        assert_eq!(pod["metadata"]["annotations"]["a"], "b");
        let position = if settings.after.is_some() { 2 } else { 0 };
        assert_eq!(pod["spec"]["initContainers"][position]["name"], "trimtab");
        assert_eq!(pod["spec"]["containers"][0]["volumeMounts"][0]["mountPath"], "/shared");
        assert!(result.text.contains(" # the second\n") && result.text.contains("   # data\n"));
        assert_eq!(uninject(&result.text).unwrap(), text);
    }
}

#[test]
fn every_kind_with_a_pod_template_is_found_and_others_pass() {
    let template = json!({"spec": {"containers": [{"name": "main", "image": "x"}]}});
    let of = |kind: &str, spec: Value| json!({"kind": kind, "metadata": {"name": "a"}, "spec": spec});
    let mut objects = vec![json!({"kind": "Pod", "metadata": {"name": "a"}, "spec": template["spec"]})];
    for kind in ["Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "Job", "ReplicationController", "Rollout"] {
        objects.push(of(kind, json!({"template": template})));
    }
    objects.push(of("CronJob", json!({"jobTemplate": {"spec": {"template": template}}})));
    objects.push(json!({"kind": "PodTemplate", "metadata": {"name": "a"}, "template": template}));
    let others = [of("Service", json!({"ports": []})), json!({"kind": "ConfigMap", "data": {"kind": "Pod"}})];
    for list in ["List", "DeploymentList", "ResourceList"] {
        let all: Vec<_> = objects.iter().chain(&others).collect();
        let text = json!({"kind": list, "items": all}).to_string();
        let result = injected(&text, &settings());
        let read: Value = serde_json::from_str(&result.text).expect("JSON stays JSON");
        let items = read["items"].as_array().unwrap();
        let count = items.iter().filter(|item| item.to_string().contains(r#""restartPolicy":"Always""#)).count();
        assert_eq!(count, objects.len());
        assert_eq!(items[objects.len()..], others);
        assert_eq!(uninject(&result.text).unwrap(), text);
    }
    let separate: Vec<_> = objects.iter().chain(&others).map(Value::to_string).collect();
    let text = separate.join("\n---\n# a comment\n");
    let result = injected(&text, &settings());
    assert_eq!(values(&result.text).len(), objects.len() + others.len());
    assert_eq!(uninject(&result.text).unwrap(), text);
    assert!(matches!(inject(&others[0].to_string(), &settings(), &[]), Err(InjectError::NoPods)));
}

#[test]
fn workload_that_is_named_is_the_only_one() {
    let pod = |name: &str| format!("{{kind: Pod, metadata: {{name: {name}}}, spec: {{containers: [{{name: c}}]}}}}\n");
    let text = format!("{}---\n{}", pod("a"), pod("b"));
    for wanted in ["b", "pod/b", "Pod/b"] {
        let result = inject(&text, &settings(), &[wanted.to_owned()]).unwrap();
        assert!(result.text.starts_with(&pod("a")), "{}", result.text);
        assert!(result.text.contains(RECORD));
    }
    let error = inject(&text, &settings(), &["deployment/b".to_owned()]).unwrap_err();
    assert_eq!(error.to_string(), "--workload deployment/b: it is not in the input, which has pod/a, pod/b");
}

/// A Pod with this in its `spec`, in its container, and in the Pod's `securityContext`.
fn pod(of_spec: &str, of_container: &str) -> String {
    format!(
        "kind: Pod\nmetadata: {{name: p}}\nspec:\n  {of_spec}\n  containers:\n    - {{name: main, image: x{of_container}}}\n"
    )
}

#[test]
fn what_contradicts_the_pod_is_an_error_that_names_the_remedy() {
    let needs = |paths: &[(&str, &str)]| {
        let paths = paths.iter().map(|(flag, path)| ((*flag).to_owned(), (*path).to_owned())).collect();
        Settings { needed: Needed { paths, ..settings().needed }, ..settings() }
    };
    let mounts = |text: &str| Settings { mounts: vec![text.parse().unwrap()], ..settings() };
    let output = |path: &str| Settings { needed: Needed { output: path.into(), ..settings().needed }, ..settings() };
    let named = |name: &str| Settings { container: Some(name.into()), ..settings() };
    let after = |name: &str| Settings { after: Some(name.into()), ..settings() };
    let conf = "volumes: [{name: conf, configMap: {name: x}}]";
    let mount = ", volumeMounts: [{name: conf, mountPath: /etc/conf}]";
    for (text, settings, expected) in [
        (pod("hostPID: true", ""), signals(), "use --reload-url"),
        (pod("shareProcessNamespace: false", ""), signals(), "remove the line"),
        (pod("automountServiceAccountToken: false", ""), settings(), "--watch-dir"),
        (pod("volumes: [{name: trimtab, emptyDir: {}}]", ""), settings(), "--volume NAME"),
        (pod("volumes:", ""), settings(), "volumes is empty"),
        (pod(conf, mount), output("/etc/conf/out"), "nobody can write to a configMap volume"),
        (pod("hostIPC: false", ""), output("/conf"), "/shared/conf"),
        (pod("hostIPC: false", ""), output("conf"), "must begin with a slash"),
        (pod("hostIPC: false", ""), named("other"), "--container takes one of main"),
        (pod("hostIPC: false", ""), after("other"), "the Pod has none"),
        (pod("hostIPC: false", ""), needs(&[("--template", "/t")]), "--mount configmap/NAME:/t"),
        (pod("hostIPC: false", ""), mounts("volume/none:/t"), "there is no volume none in the Pod; it has none"),
        (
            pod(conf, ", volumeMounts: [{name: conf, mountPath: /t, subPath: x}]"),
            needs(&[("--template", "/t")]),
            "by subPath, which the kubelet never updates",
        ),
        (pod("hostIPC: false", ", ports: [{containerPort: 9533}]"), settings(), "give --listen another one"),
        (pod("initContainers: [{name: trimtab}]", ""), settings(), "that inject did not add"),
        (pod("volumes: &v [{name: a}]\n  x: *v", ""), settings(), "write it out"),
        (
            pod("hostIPC: false", "").replace("metadata: {", "metadata: {annotations: {trimtab.dev/injected: x}, "),
            settings(),
            "is not what inject wrote",
        ),
    ] {
        let error = inject(&text, &settings, &[]).expect_err(&text).to_string();
        assert!(error.contains(expected) && error.starts_with("pod/p: "), "{error}\n{text}");
    }
    let two = pod("hostIPC: false", "").replace("    - {", "    - {name: proxy}\n    - {");
    let error = inject(&two, &settings(), &[]).unwrap_err().to_string();
    assert_eq!(error, "pod/p: which container is the main one? --container takes one of proxy, main");
}

#[test]
fn the_kubelet_probes_by_tls_or_by_a_program_where_listen_wants_more_than_http() {
    let of = |probes| {
        let settings = Settings { needed: Needed { probes, ..settings().needed }, ..settings() };
        let result = injected(&pod("hostIPC: false", ""), &settings);
        assert!(result.advice.is_empty(), "{:?}", result.advice);
        let spec = spec(&values(&result.text)[0]).clone();
        let sidecar = spec["initContainers"][0].clone();
        [sidecar["startupProbe"].clone(), sidecar["livenessProbe"].clone()]
    };
    let get = |path: &str| json!({"path": path, "port": 9533, "scheme": "HTTPS"});
    let startup = json!({"httpGet": get("/readyz"), "periodSeconds": 1, "failureThreshold": 60});
    assert_eq!(of(Probes::Https), [startup, json!({"httpGet": get("/livez")})]);
    let exec = json!({"command": ["/trimtab", "status", "--admin=127.0.0.1:99"]});
    let startup = json!({"exec": exec, "timeoutSeconds": 10, "periodSeconds": 1, "failureThreshold": 60});
    let command = ["/trimtab", "status", "--admin=127.0.0.1:99"].map(str::to_owned);
    assert_eq!(of(Probes::Exec(command.into())), [startup, json!({"exec": exec, "timeoutSeconds": 10})]);
}

#[test]
fn what_works_and_may_surprise_is_said() {
    let secret = Settings { needed: Needed { secrets: true, ..settings().needed }, ..settings() };
    let deaf = Settings { needed: Needed { probes: Probes::None, ..settings().needed }, ..settings() };
    let program = Settings { needed: Needed { program: Some("--reload-exec"), ..settings().needed }, ..settings() };
    let variable = Settings { needed: Needed { variables: vec!["LEVEL".into()], ..settings().needed }, ..settings() };
    let hides = Settings { needed: Needed { output: "/etc/nginx/conf.d".into(), ..settings().needed }, ..settings() };
    let root = ", securityContext: {runAsUser: 0}";
    for (text, settings, expected) in [
        (pod("hostIPC: false", ""), &signals(), "runAsUser of the Pod, else the signal is refused"),
        (pod("hostIPC: false", root), &signals(), "the sidecar runs as root, too"),
        (pod("hostIPC: false", ""), &secret, "write securityContext.fsGroup"),
        (pod("hostIPC: false", ""), &deaf, "no probes"),
        (pod("hostIPC: false", ""), &program, "Trimtab's own has none"),
        (pod("hostIPC: false", ""), &variable, "LEVEL, which main has not in its env"),
        (pod("hostIPC: false", ""), &hides, "hides what the image of main has there"),
        (pod("hostNetwork: true", ""), &settings(), "one such Pod on each node"),
        (
            pod("volumes: [{name: v, emptyDir: {}}]", ", volumeMounts: [{name: v, mountPath: /shared}]"),
            &settings(),
            "main can write to volume v",
        ),
    ] {
        let advice = injected(&text, settings).advice;
        assert!(advice.len() == 1 && advice[0].contains(expected), "{advice:?}");
    }
    let one_user = "securityContext: {runAsUser: 101, fsGroup: 101}";
    for settings in [settings(), signals(), secret] {
        assert_eq!(injected(&pod(one_user, ""), &settings).advice, [""; 0]);
    }
}

#[test]
fn sidecar_has_the_user_the_paths_and_the_variables_that_its_flags_need() {
    let text = pod(
        "volumes: [{name: conf, configMap: {name: x}}, {name: trimtab-templates, emptyDir: {}}]",
        ", securityContext: {runAsUser: 7, runAsGroup: 8}, env: [{name: LEVEL, value: '3'}], volumeMounts: [{name: conf, \
         mountPath: /etc/conf}]",
    );
    let needed = Needed {
        variables: vec!["LEVEL".into()],
        paths: vec![("--watch-dir".into(), "/etc/conf/sub".into()), ("--template".into(), "/templates/a.j2".into())],
        podinfo: Some("/podinfo".into()),
        ..signals().needed
    };
    let settings = Settings {
        needed,
        mounts: vec!["configmap/templates:/templates".parse().unwrap(), "secret/tls:/tls".parse().unwrap()],
        fields: vec![("NODE_NAME".into(), "spec.nodeName".into())],
        ..settings()
    };
    let result = injected(&text, &settings);
    let pod = &values(&result.text)[0];
    let sidecar = &pod["spec"]["initContainers"][0];
    assert_eq!(
        (&sidecar["securityContext"]["runAsUser"], &sidecar["securityContext"]["runAsGroup"]),
        (&json!(7), &json!(8))
    );
    assert_eq!(
        sidecar["env"][3],
        json!({"name": "NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}})
    );
    assert_eq!(sidecar["env"][4], json!({"name": "LEVEL", "value": "3"}));
    assert_eq!(
        sidecar["volumeMounts"],
        json!([
            {"name": "trimtab", "mountPath": "/shared"},
            {"name": "trimtab-templates-2", "mountPath": "/templates", "readOnly": true},
            {"name": "trimtab-tls", "mountPath": "/tls", "readOnly": true},
            {"name": "trimtab-podinfo", "mountPath": "/podinfo", "readOnly": true},
            {"name": "conf", "mountPath": "/etc/conf", "readOnly": true},
        ])
    );
    let volumes = pod["spec"]["volumes"].as_array().unwrap();
    assert_eq!(volumes[1], json!({"name": "trimtab-templates-2", "configMap": {"name": "templates"}}));
    assert_eq!(volumes[2], json!({"name": "trimtab-tls", "secret": {"secretName": "tls"}}));
    assert_eq!(volumes[3]["downwardAPI"]["items"][1]["fieldRef"]["fieldPath"], "metadata.annotations");
    assert_eq!(uninject(&result.text).unwrap(), text);
}

#[test]
fn once_is_an_init_container_that_ends() {
    let once = Settings { needed: Needed { once: true, ..settings().needed }, ..settings() };
    let sidecar = &values(&injected(&pod("hostIPC: false", ""), &once).text)[0]["spec"]["initContainers"][0];
    for absent in ["restartPolicy", "startupProbe", "livenessProbe", "ports"] {
        assert_eq!(sidecar[absent], Value::Null, "{absent}");
    }
}

#[test]
fn other_flags_replace_what_was_added() {
    let text = pod("hostIPC: false", "");
    let first = injected(&text, &signals()).text;
    let other = Settings { args: vec!["--other".into()], volume: "v".into(), ..settings() };
    assert_eq!(injected(&first, &other), injected(&text, &other));
}

#[test]
fn text_that_is_no_yaml_is_an_error_with_its_place() {
    let error = inject("a: [\n", &settings(), &[]).unwrap_err().to_string();
    assert!(error.starts_with("line "), "{error}");
    // An alias that names what it is in, and repetitions of repetitions.
    assert!(inject("kind: Pod\nspec: &a {containers: [*a]}", &settings(), &[]).is_err());
    let mut bomb = "a0: &a0 [x]\n".to_owned();
    for level in 1..60 {
        writeln!(bomb, "a{level}: &a{level} [{}]", vec![format!("*a{}", level - 1); 9].join(", ")).unwrap();
    }
    assert!(matches!(inject(&bomb, &settings(), &[]), Err(InjectError::NoPods)));
}

// --- every example ---------------------------------------------------------------------------------------------------

fn manifests(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            manifests(&path, found);
        } else if path.file_name().is_some_and(|name| name == "manifest.yaml") {
            found.push(path);
        }
    }
}

/// An example without the sidecar that somebody wrote by hand; and that one's arguments and mounts.
fn bare(text: &str) -> (String, Value) {
    const RESTRICTED: &str =
        "{allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}";
    let text = text.replace("*restricted", RESTRICTED).replace("securityContext: &restricted\n", "securityContext:\n");
    let documents = parse(&text).unwrap();
    let place = documents.iter().flat_map(places).next().unwrap();
    let init_containers = place.spec.at(&["initContainers"]).unwrap();
    let mut edits = Edits::new(&text);
    let only = init_containers.items().len() == 1;
    if only {
        edits.remove_entries(place.spec, &["initContainers"]);
    } else {
        edits.remove_items(init_containers, |item| item.text_at(&["name"]) == Some(CONTAINER));
    }
    let objects = values(&text);
    let init_containers = objects.iter().find_map(|object| spec(object)["initContainers"].as_array()).unwrap();
    let sidecar = init_containers.iter().find(|container| container["name"] == CONTAINER).unwrap().clone();
    (edits.apply(), sidecar)
}

#[test]
fn examples_are_what_inject_makes_of_their_pods_and_uninject_gives_their_bytes_back() {
    let mut paths = Vec::new();
    manifests(&Path::new(env!("CARGO_MANIFEST_DIR")).join("examples"), &mut paths);
    assert!(paths.len() > 10);
    for path in paths {
        let (text, by_hand) = bare(&fs::read_to_string(&path).unwrap());
        let args: Vec<String> = serde_json::from_value(by_hand["args"].clone()).unwrap();
        let flag = |name: &str| args.iter().find_map(|arg| arg.strip_prefix(name)?.strip_prefix('='));
        let output = flag("--output").unwrap();
        let init = by_hand["restartPolicy"] != "Always";
        let shared = by_hand["volumeMounts"][0]["mountPath"].as_str().unwrap();
        let mounts = by_hand["volumeMounts"].as_array().unwrap().iter().filter(|mount| mount["mountPath"] != shared);
        let mounts = mounts.map(|mount| {
            let text = format!("volume/{}:{}", mount["name"].as_str().unwrap(), mount["mountPath"].as_str().unwrap());
            text.parse().unwrap()
        });
        let main =
            if text.contains("kind: StatefulSet") && text.contains("postgres") { Some("postgres") } else { None };
        let main = main.or(text.contains("- name: hook ").then_some("postgres"));
        let documents = parse(&text).unwrap();
        let place = documents.iter().flat_map(places).next().unwrap();
        let containers = pod::names(place.list("containers"));
        let settings = Settings {
            container: main.or(containers.first().copied()).map(str::to_owned),
            after: text.contains("name: initdb").then(|| "initdb".to_owned()),
            args: args.clone(),
            mounts: mounts.collect(),
            needed: Needed {
                output: output.to_owned(),
                target: flag("--signal").map(|_| "--signal"),
                signals: flag("--signal").is_some(),
                once: init,
                token: flag("--configmap").is_some(),
                ..settings().needed
            },
            ..settings()
        };
        let result = injected(&text, &settings);
        assert_eq!(uninject(&result.text).unwrap(), text, "{}", path.display());
        assert_eq!(injected(&result.text, &settings), result, "{}", path.display());
        let objects = values(&result.text);
        let init_containers = objects.iter().find_map(|object| spec(object)["initContainers"].as_array()).unwrap();
        let made = init_containers.iter().find(|container| container["name"] == CONTAINER).unwrap();
        for key in ["args", "ports", "startupProbe", "livenessProbe", "resources", "restartPolicy"] {
            assert_eq!(made[key], by_hand[key], "{key} of {}", path.display());
        }
        for (key, value) in by_hand["securityContext"].as_object().unwrap() {
            assert_eq!(&made["securityContext"][key], value, "{key} of {}", path.display());
        }
        let paths = |container: &Value| -> Vec<Value> {
            container["volumeMounts"].as_array().unwrap().iter().map(|mount| mount["mountPath"].clone()).collect()
        };
        assert_eq!(paths(made), paths(&by_hand), "{}", path.display());
    }
}

// --- any manifest ----------------------------------------------------------------------------------------------------

/// Lines of a Pod in one of many ways that people write it.
fn any_pod() -> impl Strategy<Value = String> {
    let styles = (0..3_usize, 0..4_usize, 0..4_usize, 0..4_usize, 0..3_usize, 0..3_usize);
    (styles, any::<[bool; 5]>()).prop_map(
        |((metadata, init, volumes, mounts, list, name), [comments, crlf, end, own, last])| {
            let dash = ["- ", "  - ", "    -   "][list];
            let pad = " ".repeat(dash.len());
            let note = if comments { "   # a: note" } else { "" };
            let mut text = format!("kind: Pod{note}\n");
            text += ["", "metadata: {name: p}\n", "metadata:\n  name: p\n  annotations:\n    a: 'b'\n"][metadata];
            writeln!(text, "spec:{note}").unwrap();
            match init {
                0 => {}
                1 => text += "  initContainers: []\n",
                2 => text += "  initContainers: [{name: a, image: x}]\n",
                _ => writeln!(text, "  initContainers:\n  {dash}name: a\n  {pad}args:\n  {pad}- |\n  {pad}  text\n")
                    .unwrap(),
            }
            let volumes = [
                "",
                "  volumes: [ ]\n",
                "  volumes: [{name: own, emptyDir: {}}]\n",
                "  volumes:\n  - name: own\n    emptyDir: {}\n",
            ][volumes];
            if !last {
                text += volumes;
            }
            if own {
                text += "  shareProcessNamespace: true\n";
            }
            if comments {
                text += "# left\n    # right\n";
            }
            write!(text, "  containers:\n  {dash}").unwrap();
            text += ["name: main\n", "image: x\n", "&c\n"][name];
            match name {
                1 => writeln!(text, "  {pad}name: main").unwrap(),
                2 => writeln!(text, "  {pad}name: main\n  {pad}image: x").unwrap(),
                _ => {}
            }
            match mounts {
                0 => {}
                1 => writeln!(text, "  {pad}volumeMounts: []{note}").unwrap(),
                2 => writeln!(text, "  {pad}volumeMounts: [{{name: own, mountPath: /own}}]").unwrap(),
                _ => {
                    writeln!(text, "  {pad}volumeMounts:\n  {pad}- name: own\n  {pad}  mountPath: /own{note}").unwrap();
                }
            }
            if comments {
                text += "\n  # behind\n";
            }
            if last {
                text += volumes;
            }
            if end {
                text.truncate(text.trim_end().len());
            }
            if crlf { text.replace('\n', "\r\n") } else { text }
        },
    )
}

/// The manifest as an API server or kubectl gives it back, without what `inject` left of itself in names.
fn again(text: &str) -> String {
    let value = &values(text)[0];
    serde_saphyr::to_string(value).unwrap()
}

/// An empty list or map, and none, are the same to Kubernetes.
fn without_nothing(value: &Value) -> Value {
    match value {
        Value::Object(map) => map
            .iter()
            .map(|(key, value)| (key.clone(), without_nothing(value)))
            .filter(|(key, value)| key == "emptyDir" || !matches!(value, Value::Array(items) if items.is_empty()))
            .filter(|(key, value)| key == "emptyDir" || !matches!(value, Value::Object(map) if map.is_empty()))
            .collect(),
        Value::Array(items) => items.iter().map(without_nothing).collect(),
        other => other.clone(),
    }
}

proptest! {
    #[test]
    fn any_pod_is_injected_once_and_given_back(text in any_pod(), behind in any::<bool>()) {
        let with_init = values(&text)[0]["spec"]["initContainers"][0]["name"] == "a";
        let settings = Settings { after: (behind && with_init).then(|| "a".to_owned()), ..signals() };
        let result = injected(&text, &settings);
        prop_assert_eq!(&uninject(&result.text).unwrap(), &text);
        prop_assert_eq!(&injected(&result.text, &settings).text, &result.text);
        // New lines end as the others do.
        prop_assert!(!text.contains('\r') || !result.text.replace("\r\n", "").contains('\n'));
        let (before, after) = (&values(&text)[0], &values(&result.text)[0]);
        let spec = &after["spec"];
        let position = usize::from(behind && with_init);
        prop_assert_eq!(&spec["initContainers"][position]["name"], CONTAINER);
        prop_assert_eq!(&spec["containers"][0]["volumeMounts"][0]["mountPath"], "/shared");
        prop_assert_eq!(&spec["shareProcessNamespace"], true);
        // All else is as it was, and is so again without it, whoever wrote it anew.
        for text in [again(&result.text), after.to_string()] {
            let given_back = uninject(&text).unwrap();
            prop_assert_eq!(without_nothing(&values(&given_back)[0]), without_nothing(before), "{}", given_back);
        }
    }

    #[test]
    fn no_text_makes_it_panic(text in "[a-z:{}\\[\\],&*'\"|> \n#-]{0,60}", of_pod in any::<bool>()) {
        let text = if of_pod { format!("kind: Pod\nspec:\n  containers:\n  - name: a\n  {text}") } else { text };
        if let Ok(result) = inject(&text, &settings(), &[]) {
            prop_assert_eq!(uninject(&result.text).unwrap(), text);
        }
    }
}
