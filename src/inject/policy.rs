//! The sidecar without a manifest that has it: a `MutatingAdmissionPolicy`, by which the API server adds to a Pod what a
//! ConfigMap, its profile, says. No webhook, so nothing runs, expires or fails beside the API server itself.
//!
//! The expressions are CEL. What they build is a JSON patch of plain maps: the other way, an apply configuration, refuses
//! lists without a merge key, such as `args`. Types differ within a map, so every value in one is `dyn(…)`.

use super::container::{Parts, Probes, container, is_token, of_the_pod, restricted, volume_name};
use super::emit::{Yaml, map};
use super::pod::is_in;
use super::{CONTAINER, MountSource, Problem, Settings};

/// By this annotation a Pod names its profile; `false` is none.
pub const WANTS: &str = "trimtab.dev/inject";
/// Profiles are the ConfigMaps with this label.
pub const PROFILE: &str = "trimtab.dev/profile";
/// The name of the policies and of their bindings.
const NAME: &str = "trimtab";
/// The name of the policy that stays, and of its binding.
const PARAMS: &str = "trimtab-params";

/// The container of a profile's sidecar, as an expression.
fn sidecar() -> Yaml {
    let of_profile = |key: &str| Yaml::Cel(format!("params.data.{key}"));
    let mounts = "[{'name': dyn('trimtab'), 'mountPath': dyn(params.data.mountPath)}] + variables.mounts.map(m, {'name': \
                  dyn(m[0]), 'mountPath': dyn(m[3]), 'readOnly': dyn(true)})";
    let fields =
        "variables.fields.map(f, {'name': dyn(f[0]), 'valueFrom': dyn({'fieldRef': dyn({'fieldPath': dyn(f[1])})})})";
    let env = of_the_pod();
    container(Parts {
        image: of_profile("image"),
        args: Yaml::Cel("params.data.args.split('\\n').filter(line, line != '')".to_owned()),
        env: Yaml::Cel(format!("{} + {fields}", Yaml::List(env).cel())),
        port: Some(Yaml::Cel("int(params.data.port)".to_owned())),
        probes: Probes::Http,
        once: false,
        memory_limit: of_profile("memoryLimit"),
        context: restricted(Vec::new()),
        mounts: Yaml::Cel(mounts.to_owned()),
    })
}

/// The patch, one step a line.
fn patch() -> String {
    let add = |path: &str, value: &str| format!("JSONPatch{{op: 'add', path: {path}, value: {value}}}");
    let unless = |has: &str, path: &str| format!("(has({has}) ? [] : [{}])", add(path, "[]"));
    let when = |condition: &str, patch: &str| format!("({condition} ? [{patch}] : [])");
    let volume = |kind: &str, source: &str| {
        let value = format!("{{'name': dyn(m[0]), {source}}}");
        format!("variables.mounts.filter(m, m[1] == '{kind}').map(m, {})", add("'/spec/volumes/-'", &value))
    };
    let of_main = |rest: &str| format!("'/spec/containers/' + string(variables.index) + '/{rest}'");
    let item =
        |file: &str| format!("{{'path': dyn('{file}'), 'fieldRef': dyn({{'fieldPath': dyn('metadata.{file}')}})}}");
    let podinfo = format!("'downwardAPI': dyn({{'items': dyn([{}, {}])}})", item("labels"), item("annotations"));
    let shared = "{'name': dyn('trimtab'), 'mountPath': dyn(params.data.mountPath), 'readOnly': dyn(true)}";
    let context = |key: &str| format!("'/spec/initContainers/0/securityContext/{key}'");
    [
        when("variables.shares", &add("'/spec/shareProcessNamespace'", "true")),
        unless("object.spec.volumes", "'/spec/volumes'"),
        format!("[{}]", add("'/spec/volumes/-'", "{'name': dyn('trimtab'), 'emptyDir': dyn({})}")),
        volume("configmap", "'configMap': dyn({'name': dyn(m[2])})"),
        volume("secret", "'secret': dyn({'secretName': dyn(m[2])})"),
        volume("podinfo", &podinfo),
        unless("variables.main.volumeMounts", &of_main("volumeMounts")),
        format!("[{}]", add(&of_main("volumeMounts/-"), shared)),
        unless("object.spec.initContainers", "'/spec/initContainers'"),
        format!("[{}]", add("'/spec/initContainers/0'", &sidecar().cel())),
        // A signal needs the main container's user.
        when("variables.user >= 0", &add(&context("runAsUser"), "variables.user")),
        when("variables.user == 0", &add(&context("runAsNonRoot"), "false")),
    ]
    .join(" +\n")
        + "\n"
}

/// A policy for no object. As long as it is bound, the API server follows ConfigMaps for policies: it stops when the last
/// binding with such a `paramKind` goes, and does not start again before it is itself started again
/// (<https://github.com/kubernetes/kubernetes/issues/130887>). So it stays when the other policies are uninstalled.
fn keeps_params() -> [Yaml; 2] {
    let text = |text: &str| Yaml::Text(text.to_owned());
    let list = |only: &str| Yaml::List(vec![text(only)]);
    let nothing = map([
        ("apiGroups", list("trimtab.dev")),
        ("apiVersions", list("v1")),
        ("operations", list("CREATE")),
        ("resources", list("nothing")),
    ]);
    let none = map([
        ("patchType", text("ApplyConfiguration")),
        ("applyConfiguration", map([("expression", text("Object{}"))])),
    ]);
    let selector = map([("matchLabels", map([(PROFILE, text("none"))]))]);
    [
        map([
            ("failurePolicy", text("Ignore")),
            ("reinvocationPolicy", text("Never")),
            ("paramKind", config_maps()),
            ("matchConstraints", map([("resourceRules", Yaml::List(vec![nothing]))])),
            ("mutations", Yaml::List(vec![none])),
        ]),
        map([
            ("policyName", text(PARAMS)),
            ("paramRef", map([("selector", selector), ("parameterNotFoundAction", text("Allow"))])),
        ]),
    ]
}

fn config_maps() -> Yaml {
    map([("apiVersion", Yaml::Text("v1".to_owned())), ("kind", Yaml::Text("ConfigMap".to_owned()))])
}

/// The policies and what binds them. They are the cluster's, and do nothing to a Pod without the annotation.
#[must_use]
pub fn policy() -> String {
    let text = |text: &str| Yaml::Text(text.to_owned());
    let expression = |name: &str, expression: &str| map([("name", text(name)), ("expression", text(expression))]);
    let pods = map([
        ("apiGroups", Yaml::List(vec![text("")])),
        ("apiVersions", Yaml::List(vec![text("v1")])),
        ("operations", Yaml::List(vec![text("CREATE")])),
        ("resources", Yaml::List(vec![text("pods")])),
    ]);
    let of_pods = map([("resourceRules", Yaml::List(vec![pods]))]);
    let wanted = format!("object.metadata.?annotations[?'{WANTS}'].orValue('false')");
    let has_sidecar = format!("object.spec.?initContainers.orValue([]).exists(c, c.name == '{CONTAINER}')");
    let lines = |key: &str| {
        format!("params.data.?{key}.orValue('').split('\\n').filter(line, line != '').map(line, line.split(' '))")
    };
    let of_user =
        "variables.main.?securityContext.?runAsUser.orValue(object.spec.?securityContext.?runAsUser.orValue(-1))";
    let mutating = map([
        ("failurePolicy", text("Fail")),
        ("reinvocationPolicy", text("Never")),
        ("paramKind", config_maps()),
        ("matchConstraints", of_pods.clone()),
        (
            "matchConditions",
            Yaml::List(vec![
                expression("wants-this-profile", &format!("{wanted} == params.metadata.name")),
                expression("has-no-sidecar", &format!("!{has_sidecar}")),
                expression(
                    "has-the-main-container",
                    "params.data.container == '' || object.spec.containers.exists(c, c.name == params.data.container)",
                ),
            ]),
        ),
        (
            "variables",
            Yaml::List(vec![
                expression(
                    "index",
                    "params.data.container == '' ? 0 : object.spec.containers.map(c, c.name).indexOf(params.data.container)",
                ),
                expression("main", "object.spec.containers[variables.index]"),
                expression("mounts", &lines("mounts")),
                expression("fields", &lines("fields")),
                expression("shares", "params.data.?target.orValue('') != ''"),
                expression("user", &format!("params.data.?target.orValue('') == 'signal' ? {of_user} : -1")),
            ]),
        ),
        (
            "mutations",
            Yaml::List(vec![map([
                ("patchType", text("JSONPatch")),
                ("jsonPatch", map([("expression", text(&patch()))])),
            ])]),
        ),
    ]);
    let message = format!(
        "'{WANTS}: ' + object.metadata.annotations['{WANTS}'] + ': this Pod would start without its configuration, as there \
         is no such profile in namespace ' + namespaceObject.metadata.name + ', or the Pod has no container of the name \
         that the profile has: kubectl get configmap -l {PROFILE}=true; the annotation false leaves a Pod as it is'"
    );
    let validating = map([
        ("failurePolicy", text("Fail")),
        ("matchConstraints", of_pods),
        ("matchConditions", Yaml::List(vec![expression("wants-a-profile", &format!("{wanted} != 'false'"))])),
        (
            "validations",
            Yaml::List(vec![map([("expression", text(&has_sidecar)), ("messageExpression", text(&message))])]),
        ),
    ]);
    let selector = map([("matchLabels", map([(PROFILE, text("true"))]))]);
    // Without any profile nothing is added, and the second policy says so.
    let params = map([("selector", selector), ("parameterNotFoundAction", text("Allow"))]);
    let bind = |more: (&str, Yaml)| map([("policyName", text(NAME)), more]);
    let object = |kind: &str, metadata: Yaml, spec: Yaml| {
        let object = map([
            ("apiVersion", text("admissionregistration.k8s.io/v1")),
            ("kind", text(kind)),
            ("metadata", metadata),
            ("spec", spec),
        ]);
        object.document()
    };
    let named = || map([("name", text(NAME))]);
    let stays = || {
        let annotations =
            [("helm.sh/resource-policy", "keep"), ("argocd.argoproj.io/sync-options", "Prune=false,Delete=false")];
        map([("name", text(PARAMS)), ("annotations", map(annotations.map(|(key, value)| (key, text(value)))))])
    };
    let [for_nothing, bound] = keeps_params();
    [
        object("MutatingAdmissionPolicy", named(), mutating),
        object("MutatingAdmissionPolicyBinding", named(), bind(("paramRef", params))),
        object("ValidatingAdmissionPolicy", named(), validating),
        object(
            "ValidatingAdmissionPolicyBinding",
            named(),
            bind(("validationActions", Yaml::List(vec![text("Deny")]))),
        ),
        object("MutatingAdmissionPolicy", stays(), for_nothing),
        object("MutatingAdmissionPolicyBinding", stays(), bound),
    ]
    .join("---\n")
}

/// A profile: a ConfigMap in the Pods' namespace.
pub fn profile(name: &str, settings: &Settings) -> Result<String, Problem> {
    let needed = &settings.needed;
    let output = needed.output.trim_end_matches('/');
    let above = output.rsplit_once('/').map_or("", |(above, _)| above);
    if !output.starts_with('/') || above.is_empty() {
        return Err(Problem::NoParent(needed.output.clone()));
    }
    let Some(port) = needed.port.filter(|_| needed.probes == Probes::Http && !needed.once) else {
        return Err(Problem::NotForProfiles);
    };
    if let Some(name) = needed.variables.iter().find(|name| !settings.fields.iter().any(|(field, _)| field == *name)) {
        return Err(Problem::VariableOfProfile(name.clone()));
    }
    if let Some(arg) = settings.args.iter().find(|arg| arg.is_empty() || arg.contains(['\n', '\r'])) {
        return Err(Problem::LinesOfProfile(arg.clone()));
    }
    let mut mounts = Vec::new();
    let mut names = Vec::new();
    for mount in &settings.mounts {
        let (kind, object) = match &mount.source {
            MountSource::ConfigMap(name) => ("configmap", name),
            MountSource::Secret(name) => ("secret", name),
            MountSource::Volume(name) => ("volume", name),
        };
        let volume =
            if kind == "volume" { object.clone() } else { volume_name(&mount.path, &|name| names.contains(name)) };
        mounts.push(format!("{volume} {kind} {object} {}\n", mount.path));
        names.push(volume);
    }
    if let Some(path) = &needed.podinfo {
        mounts.push(format!("{} podinfo - {path}\n", volume_name(path, &|name| names.contains(name))));
    }
    let main = settings.container.clone().unwrap_or_default();
    for (flag, path) in &needed.paths {
        let covered = is_in(path, above) || settings.mounts.iter().any(|mount| is_in(path, &mount.path));
        if !covered && !is_token(path) {
            let container = if main.is_empty() { "of the Pod".to_owned() } else { main };
            return Err(Problem::NotMounted { flag: flag.clone(), path: path.clone(), container });
        }
    }
    let fields: Vec<_> = settings.fields.iter().map(|(name, path)| format!("{name} {path}\n")).collect();
    let target = match needed.target {
        Some(_) if needed.signals => "signal",
        Some(_) => "look",
        None => "",
    };
    let text = |text: &str| Yaml::Text(text.to_owned());
    let mut data = vec![
        ("container", text(&main)),
        ("image", text(&settings.image)),
        ("args", Yaml::Text(settings.args.join("\n") + "\n")),
        ("mountPath", text(above)),
        ("memoryLimit", text(&settings.memory_limit)),
        ("port", Yaml::Text(port.to_string())),
    ];
    for (key, value) in [("target", target.to_owned()), ("mounts", mounts.concat()), ("fields", fields.concat())] {
        if !value.is_empty() {
            data.push((key, Yaml::Text(value)));
        }
    }
    let labels = map([(PROFILE, text("true"))]);
    let object = map([
        ("apiVersion", text("v1")),
        ("kind", text("ConfigMap")),
        ("metadata", map([("name", text(name)), ("labels", labels)])),
        ("data", Yaml::Map(data.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())),
    ]);
    Ok(object.document())
}
