//! What the sidecar is in a Pod: its container, its volumes, and what of the Pod contradicts its flags.

use std::str::FromStr;

use super::container::{Parts, Probes, container, field, is_token, of_the_pod, restricted, volume_name};
use super::emit::{Yaml, map};
use super::pod::{Place, is_in, mount_of, named, names};
use super::{CONTAINER, Plan, Problem, list_or};
use crate::inject::document::Node;

/// What the sidecar's flags need of a Pod.
#[derive(Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "independent answers, none of which is a state")]
pub struct Needed {
    /// `--output`; empty where there is none.
    pub output: String,
    /// Other paths that must be in a volume, with their flags.
    pub paths: Vec<(String, String)>,
    /// `--podinfo-dir`, which gets a volume of its own.
    pub podinfo: Option<String>,
    /// Variables that templates may read.
    pub variables: Vec<String>,
    /// The flag that looks for the main process.
    pub target: Option<&'static str>,
    /// Whether the main process is sent a signal, for which both need the same user.
    pub signals: bool,
    /// The port of `--listen`.
    pub port: Option<u16>,
    pub probes: Probes,
    /// Whether the API server is asked, with the token of the Pod's service account.
    pub token: bool,
    /// Whether files with a secret in them are published.
    pub secrets: bool,
    /// `--once`: an init container that ends.
    pub once: bool,
    /// A program that has to be in the image.
    pub program: Option<&'static str>,
}

/// How the sidecar is added.
#[derive(Debug, Default)]
pub struct Settings {
    /// The main container; the only one, if there is none named.
    pub container: Option<String>,
    pub image: String,
    /// The sidecar's flags, as they are typed.
    pub args: Vec<String>,
    pub needed: Needed,
    /// Mounts of its own.
    pub mounts: Vec<Mount>,
    /// Variables from fields of the Pod, as `NODE_NAME` and `spec.nodeName`.
    pub fields: Vec<(String, String)>,
    /// The name of the shared volume.
    pub volume: String,
    /// The init container that it comes after; first, if there is none named.
    pub after: Option<String>,
    pub memory_limit: String,
}

/// `configmap/NAME:PATH`, `secret/NAME:PATH` or `volume/NAME:PATH`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    pub source: MountSource,
    pub path: String,
}

/// What is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MountSource {
    ConfigMap(String),
    Secret(String),
    /// A volume that the Pod has.
    Volume(String),
}

impl FromStr for Mount {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let expected = "expected configmap/NAME:/PATH, secret/NAME:/PATH or volume/NAME:/PATH";
        let (source, path) = text.split_once(':').ok_or(expected)?;
        let (kind, name) = source.split_once('/').ok_or(expected)?;
        if name.is_empty() || !path.starts_with('/') {
            return Err(expected.into());
        }
        let name = name.to_owned();
        let source = match kind {
            "configmap" => MountSource::ConfigMap(name),
            "secret" => MountSource::Secret(name),
            "volume" => MountSource::Volume(name),
            _ => return Err(expected.into()),
        };
        Ok(Self { source, path: path.to_owned() })
    }
}

/// Volumes that the kubelet fills, and nobody else writes to.
const FILLED: [&str; 4] = ["configMap", "secret", "projected", "downwardAPI"];
/// What an image has there would be hidden by the shared volume.
const OF_THE_IMAGE: [&str; 8] = ["/bin", "/etc", "/home", "/lib", "/opt", "/root", "/usr", "/var"];

/// What belongs to one Pod, while it is put together.
struct Draft<'a> {
    place: &'a Place<'a>,
    main: &'a Node,
    main_name: String,
    volumes: Vec<(String, Yaml)>,
    /// Of the sidecar: its path, and the mount.
    mounts: Vec<(String, Yaml)>,
    main_mounts: Vec<Yaml>,
    advice: Vec<String>,
}

impl Settings {
    /// What is added to this Pod.
    pub(super) fn plan<'a>(&self, place: &'a Place<'a>) -> Result<Plan<'a>, Problem> {
        let main = place.container(self.container.as_deref())?;
        let init_containers = names(place.list("initContainers"));
        if init_containers.contains(&CONTAINER) || named(place.list("containers"), CONTAINER).is_some() {
            return Err(Problem::HasSidecar);
        }
        let after = match &self.after {
            None => 0,
            Some(wanted) => {
                let found = init_containers.iter().position(|name| name == wanted);
                let has = || list_or(&init_containers, "the Pod has none");
                1 + found.ok_or_else(|| Problem::NoInitContainer { wanted: wanted.clone(), has: has() })?
            }
        };
        self.check(place, main)?;
        let mut draft = Draft {
            place,
            main,
            main_name: main.text_at(&["name"]).unwrap_or_default().to_owned(),
            volumes: Vec::new(),
            mounts: Vec::new(),
            main_mounts: Vec::new(),
            advice: Vec::new(),
        };
        if !self.needed.output.is_empty() {
            draft.share_output(&self.needed.output, &self.volume)?;
        }
        for mount in &self.mounts {
            draft.mount(mount)?;
        }
        if let Some(path) = self.needed.podinfo.as_ref().filter(|path| !draft.covers(path)) {
            draft.podinfo(path);
        }
        for (flag, path) in &self.needed.paths {
            draft.need(flag, path)?;
        }
        let shares_processes = self.needed.target.is_some() && !place.spec.is_true_at(&["shareProcessNamespace"]);
        let context = self.context(&mut draft);
        self.advise(&mut draft);
        let sidecar = self.container(&mut draft, context);
        let Draft { volumes, main_mounts: mounts, advice, .. } = draft;
        Ok(Plan { main, sidecar, after, volumes, mounts, shares_processes, advice })
    }

    /// What in the Pod cannot be.
    fn check(&self, place: &Place<'_>, main: &Node) -> Result<(), Problem> {
        if let Some(flag) = self.needed.target {
            if place.spec.is_true_at(&["hostPID"]) {
                return Err(Problem::HostPid { flag });
            }
            if place.spec.text_at(&["shareProcessNamespace"]) == Some("false") {
                return Err(Problem::NotShared { flag });
            }
        }
        if self.needed.token && place.spec.text_at(&["automountServiceAccountToken"]) == Some("false") {
            return Err(Problem::NoToken);
        }
        for container in place.list("containers").map_or(&[][..], Node::items) {
            let ports = container.at(&["ports"]).map_or(&[][..], Node::items);
            let uses = |port: u16| ports.iter().any(|item| item.text_at(&["containerPort"]) == Some(&port.to_string()));
            if let Some(port) = self.needed.port.filter(|port| uses(*port)) {
                let container = container.text_at(&["name"]).or(main.text_at(&["name"])).unwrap_or_default().to_owned();
                return Err(Problem::PortTaken { container, port });
            }
        }
        Ok(())
    }

    /// The restricted `securityContext`, with the main container's user where that is what a signal needs.
    fn context(&self, draft: &mut Draft<'_>) -> Yaml {
        let Draft { place, main, main_name, advice, .. } = draft;
        let of_pod = place.spec.text_at(&["securityContext", "runAsUser"]);
        let user = place.context(main, "runAsUser");
        let mut users = Vec::new();
        if self.needed.signals {
            match user {
                None => advice.push(format!(
                    "a signal needs the same user, and the manifest does not say whose {main_name} is: write its number \
                     as securityContext.runAsUser of the Pod, else the signal is refused; or use --reload-url"
                )),
                Some("0") => {
                    users.push(("runAsNonRoot".to_owned(), false.into()));
                    users.push(("runAsUser".to_owned(), Yaml::Plain("0".to_owned())));
                    advice.push(format!(
                        "{main_name} runs as root, and a signal needs the same user: the sidecar runs as root, too, \
                         without capabilities; give {main_name} a user of its own, or use --reload-url"
                    ));
                }
                Some(user) if of_pod != Some(user) => {
                    for key in ["runAsUser", "runAsGroup"] {
                        let own = main.text_at(&["securityContext", key]);
                        users.extend(own.map(|id| (key.to_owned(), Yaml::Plain(id.to_owned()))));
                    }
                }
                Some(_) => {}
            }
        }
        restricted(users)
    }

    /// What works, and may surprise.
    fn advise(&self, draft: &mut Draft<'_>) {
        let Draft { place, main, main_name, advice, .. } = draft;
        let output = &self.needed.output;
        let user = place.context(main, "runAsUser");
        let one_user =
            user.is_some() && (self.needed.signals || place.spec.text_at(&["securityContext", "runAsUser"]) == user);
        let has_group = place.spec.text_at(&["securityContext", "fsGroup"]).is_some();
        if self.needed.secrets && !has_group && !one_user {
            advice.push(format!(
                "files with a secret in them can be read by the sidecar's user and group alone (--secret-mode 0640), and \
                 the Pod has no fsGroup and not one user: {main_name} will not read them; write securityContext.fsGroup \
                 of the Pod"
            ));
        }
        if let Some(program) = self.needed.program {
            advice.push(format!(
                "{program} runs a program of the sidecar's image, and Trimtab's own has none: --image takes one that you \
                 made FROM it"
            ));
        }
        if self.needed.probes == Probes::None && !self.needed.once {
            advice.push(format!(
                "no probes, as the kubelet can ask neither --listen nor --admin: {main_name} may start before there is a \
                 configuration"
            ));
        }
        if place.spec.is_true_at(&["hostNetwork"]) && self.needed.port.is_some() {
            advice.push(
                "hostNetwork: true, and --listen takes its port on the node: one such Pod on each node".to_owned(),
            );
        }
        let hidden = output.rsplit_once('/').map_or("", |(above, _)| above);
        if OF_THE_IMAGE.iter().any(|directory| is_in(hidden, directory)) && !draft.main_mounts.is_empty() {
            draft.advice.push(format!(
                "the shared volume is mounted at {hidden}, and hides what the image of {} has there",
                draft.main_name
            ));
        }
    }

    fn container(&self, draft: &mut Draft<'_>, context: Yaml) -> Yaml {
        let mut env = of_the_pod();
        env.extend(self.fields.iter().map(|(name, path)| field(name, path)));
        for name in &self.needed.variables {
            match named(draft.main.at(&["env"]), name) {
                Some(variable) => env.push(Yaml::of(variable)),
                None if self.fields.iter().any(|(field, _)| field == name) => {}
                None => draft.advice.push(format!(
                    "templates may read {name}, which {} has not in its env, and the sidecar has neither",
                    draft.main_name
                )),
            }
        }
        container(Parts {
            image: Yaml::Text(self.image.clone()),
            args: Yaml::List(self.args.iter().cloned().map(Yaml::Text).collect()),
            env: Yaml::List(env),
            port: self.needed.port.map(Yaml::from),
            probes: self.needed.probes.clone(),
            once: self.needed.once,
            memory_limit: Yaml::Text(self.memory_limit.clone()),
            context,
            mounts: Yaml::List(draft.mounts.iter().map(|(_, mount)| mount.clone()).collect()),
        })
    }
}

impl Draft<'_> {
    fn covers(&self, path: &str) -> bool {
        self.mounts.iter().any(|(at, _)| is_in(path, at))
    }

    fn add_mount(&mut self, volume: &str, path: &str, read_only: bool) {
        let mut mount = vec![("name".to_owned(), volume.into()), ("mountPath".to_owned(), path.into())];
        if read_only {
            mount.push(("readOnly".to_owned(), true.into()));
        }
        self.mounts.push((path.to_owned(), Yaml::Map(mount)));
    }

    /// The volume of `--output`: that which the main container has there, or a new one for both.
    fn share_output(&mut self, output: &str, name: &str) -> Result<(), Problem> {
        if !output.starts_with('/') {
            return Err(Problem::Relative { flag: "--output".to_owned(), path: output.to_owned() });
        }
        let above = output.trim_end_matches('/').rsplit_once('/').map_or("", |(above, _)| above);
        if above.is_empty() {
            return Err(Problem::NoParent(output.to_owned()));
        }
        let volumes = self.place.list("volumes");
        if let Some((mount, at)) = mount_of(self.main, above) {
            let volume = mount.text_at(&["name"]).unwrap_or_default();
            let filled =
                named(volumes, volume).and_then(|volume| FILLED.into_iter().find(|kind| volume.at(&[kind]).is_some()));
            if let Some(kind) = filled {
                return Err(Problem::ReadOnly {
                    output: output.to_owned(),
                    container: self.main_name.clone(),
                    volume: volume.to_owned(),
                    kind: kind.to_owned(),
                });
            }
            if !mount.is_true_at(&["readOnly"]) {
                self.advice.push(format!(
                    "{} can write to volume {volume}, and so spoil what the sidecar publishes there: readOnly: true",
                    self.main_name
                ));
            }
            let mut shared = vec![("name".to_owned(), volume.into()), ("mountPath".to_owned(), at.into())];
            shared.extend(mount.text_at(&["subPath"]).map(|path| ("subPath".to_owned(), path.into())));
            self.mounts.push((at.to_owned(), Yaml::Map(shared)));
            return Ok(());
        }
        if named(volumes, name).is_some() {
            return Err(Problem::VolumeTaken { name: name.to_owned() });
        }
        self.volumes.push((name.to_owned(), map([("name", name.into()), ("emptyDir", Yaml::Map(Vec::new()))])));
        self.add_mount(name, above, false);
        self.main_mounts.push(map([("name", name.into()), ("mountPath", above.into()), ("readOnly", true.into())]));
        Ok(())
    }

    fn mount(&mut self, Mount { source, path }: &Mount) -> Result<(), Problem> {
        let (key, inside, name) = match source {
            MountSource::Volume(name) => {
                let volumes = self.place.list("volumes");
                if named(volumes, name).is_none() && !self.volumes.iter().any(|(new, _)| new == name) {
                    let has = list_or(&names(volumes), "it has none");
                    let source_flag = format!("--mount volume/{name}:{path}");
                    return Err(Problem::NoVolume { source_flag, name: name.clone(), has });
                }
                self.add_mount(name, path, true);
                return Ok(());
            }
            MountSource::ConfigMap(name) => ("configMap", "name", name),
            MountSource::Secret(name) => ("secret", "secretName", name),
        };
        let volume = self.new_name(path);
        let filled = map([(inside, name.as_str().into())]);
        self.volumes.push((volume.clone(), map([("name", volume.as_str().into()), (key, filled)])));
        self.add_mount(&volume, path, true);
        Ok(())
    }

    fn podinfo(&mut self, path: &str) {
        let volume = self.new_name(path);
        let item = |file: &str| {
            let field = map([("fieldPath", Yaml::Text(format!("metadata.{file}")))]);
            map([("path", file.into()), ("fieldRef", field)])
        };
        let items = map([("items", Yaml::List(vec![item("labels"), item("annotations")]))]);
        self.volumes.push((volume.clone(), map([("name", volume.as_str().into()), ("downwardAPI", items)])));
        self.add_mount(&volume, path, true);
    }

    fn new_name(&self, path: &str) -> String {
        volume_name(path, &|name| {
            named(self.place.list("volumes"), name).is_some() || self.volumes.iter().any(|(other, _)| other == name)
        })
    }

    /// A path that must be in a volume of the sidecar: where the main container has it, that volume.
    fn need(&mut self, flag: &str, path: &str) -> Result<(), Problem> {
        let (flag, path) = (flag.to_owned(), path.to_owned());
        if !path.starts_with('/') {
            return Err(Problem::Relative { flag, path });
        }
        if self.covers(&path) || is_token(&path) {
            return Ok(());
        }
        let container = self.main_name.clone();
        let Some((mount, at)) = mount_of(self.main, &path) else {
            return Err(Problem::NotMounted { flag, path, container });
        };
        if mount.text_at(&["subPath"]).is_some() || mount.text_at(&["subPathExpr"]).is_some() {
            return Err(Problem::SubPath { flag, path, container });
        }
        let volume = mount.text_at(&["name"]).unwrap_or_default();
        self.add_mount(volume, at, true);
        Ok(())
    }
}
