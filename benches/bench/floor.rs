//! The floor: this program again, as what no program can be faster than, because it does the bare minimum; and the
//! small programs that are notified.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufReader, Write};
use std::net::TcpStream;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use futures_util::TryStreamExt;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, WatchEvent, WatchParams};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cluster;
use crate::hook::run_target;
use crate::notified::read_message;
use crate::volume::KEYS;

/// Runs what these words name; `None` if they name nothing.
pub fn run(words: &[&str]) -> Option<Result<()>> {
    Some(match *words {
        ["floor", volume, output, how, whom] => mounted(volume.as_ref(), output.as_ref(), how, whom, false),
        ["fsync-floor", volume, output, how, whom] => mounted(volume.as_ref(), output.as_ref(), how, whom, true),
        ["watch", kubeconfig, namespace, name, address] => watched(kubeconfig.as_ref(), namespace, name, address),
        ["call", address] => Notify::new("hook", address).and_then(|mut notify| notify.send("/-/reload")),
        ["target", file] => run_target(file.as_ref()),
        _ => return None,
    })
}

/// Waits for each swap of a volume, and notifies.
fn mounted(volume: &Path, output: &Path, how: &str, whom: &str, synced: bool) -> Result<()> {
    let inotify = watch(volume)?;
    let mut notify = Notify::new(how, whom)?;
    fs::create_dir_all(output)?;
    loop {
        wait_for(&inotify, "..data")?;
        if synced {
            let mut content = Vec::new();
            for key in KEYS {
                content.extend(fs::read(volume.join(key))?);
            }
            let temporary = output.join(".tmp");
            let mut file = fs::File::create(&temporary)?;
            file.write_all(&content)?;
            file.sync_all()?;
            fs::rename(&temporary, output.join(KEYS[0]))?;
        }
        notify.send("/-/reload")?;
    }
}

/// A bare watch on one ConfigMap: reports each event with the version that it carries.
fn watched(kubeconfig: &Path, namespace: &str, name: &str, address: &str) -> Result<()> {
    let mut notify = Notify::new("hook", address)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let client = cluster::client(kubeconfig).await?;
        let objects: Api<ConfigMap> = Api::namespaced(client, namespace);
        let params = WatchParams::default().fields(&format!("metadata.name={name}"));
        let mut events = Box::pin(objects.watch(&params, "0").await?);
        while let Some(event) = events.try_next().await? {
            if let WatchEvent::Added(object) | WatchEvent::Modified(object) = event {
                let value = object.data.as_ref().and_then(|data| data.get(KEYS[0])).context("no such key")?;
                notify.send(&format!("/v/{}", value.split(' ').next().unwrap_or_default()))?;
            }
        }
        bail!("the watch has ended")
    })
}

/// An inotify of what is renamed into a directory.
pub fn watch(directory: &Path) -> Result<Inotify> {
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC)?;
    inotify.add_watch(directory, AddWatchFlags::IN_MOVED_TO)?;
    Ok(inotify)
}

/// Returns when this name was renamed into place.
pub fn wait_for(inotify: &Inotify, name: &str) -> Result<()> {
    let name = Some(OsStr::new(name));
    while !inotify.read_events()?.iter().any(|event| event.name.as_deref() == name) {}
    Ok(())
}

/// Who is notified.
enum Notify {
    Hook { stream: TcpStream, answer: BufReader<TcpStream> },
    Signal(Pid),
}

impl Notify {
    fn new(how: &str, whom: &str) -> Result<Self> {
        if how == "signal" {
            return Ok(Self::Signal(Pid::from_raw(whom.parse()?)));
        }
        let stream = TcpStream::connect(whom)?;
        stream.set_nodelay(true)?;
        let answer = BufReader::new(stream.try_clone()?);
        Ok(Self::Hook { stream, answer })
    }

    fn send(&mut self, path: &str) -> Result<()> {
        match self {
            Self::Signal(pid) => kill(*pid, Signal::SIGHUP)?,
            Self::Hook { stream, answer } => {
                let request = format!("POST {path} HTTP/1.1\r\nHost: hook\r\nContent-Length: 0\r\n\r\n");
                stream.write_all(request.as_bytes())?;
                ensure!(read_message(answer)?.is_some(), "the hook closed the connection");
            }
        }
        Ok(())
    }
}
