//! A disk that will not be written to: read-only, forbidden, out of inodes. (A full one is in `crash`; each error at
//! each system call, and a disk that forgets, in the unit tests of `publish`.)

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use nix::mount::MsFlags;
use serde_json::{Value, json};

use super::support::hook::Hook;
use super::support::mounts::Mounted;
use super::support::scene::{Layout, Scene};
use super::support::sidecar::{Sidecar, Volume, eventually, output_of, run, trimtab};

const QUICK: [&str; 6] = ["--debounce", "5ms", "--retry-min", "20ms", "--retry-max", "100ms"];

const NOBODY: u32 = 65534;

/// A tmpfs with a `conf` for the output.
struct Disk {
    scene: Scene,
    volume: Volume,
    mounted: Mounted,
    hook: Hook,
}

impl Disk {
    fn new(layout: Layout, options: &str) -> Self {
        let mut scene = Scene::of(layout);
        let mounted = scene.at("shared");
        fs::create_dir(&mounted).unwrap();
        scene.output = mounted.join("conf");
        let mounted = Mounted::tmpfs(mounted, options);
        let volume = Volume::new(scene.at("volume"), &[]);
        let hook = Hook::start(Some(scene.output.join("n")));
        let mut disk = Self { scene, volume, mounted, hook };
        disk.edit(0, 1);
        disk
    }

    /// So many files, that all say the same.
    fn edit(&mut self, number: u64, files: usize) {
        let text = number.to_string();
        let names: Vec<_> = (0..files).map(|file| format!("f{file}")).collect();
        let mut all = vec![("n", text.as_str())];
        all.extend(names.iter().map(|name| (name.as_str(), text.as_str())));
        self.volume.swap(&all);
    }

    fn flags(&self) -> Vec<String> {
        let flags = ["--watch-dir", self.volume.path.to_str().unwrap(), "--reload-url", &self.hook.url()];
        self.scene.flags(&[&QUICK[..], &flags].concat())
    }

    fn log(&self) -> PathBuf {
        self.scene.at("log")
    }

    fn holds(&self, number: u64) -> bool {
        let number = Some(number.to_string());
        self.scene.published("n") == number && self.scene.published("f0") == number
    }

    /// It is published and delivered, all is well, and nothing else is there.
    #[track_caller]
    fn settled(&self, sidecar: &Sidecar, number: u64) {
        eventually(&format!("{number} is published and delivered"), || {
            (self.holds(number) && self.hook.last_saw() == Some(number.to_string())).then_some(())
        });
        assert_eq!(sidecar.until_idle()["errors"], json!({}));
        assert_eq!(self.scene.left_behind(), Vec::<String>::new());
    }

    /// It says what is wrong, where and what to do; the last good generation stays, and there is no junk.
    #[track_caller]
    fn stays(&self, sidecar: &Sidecar, number: u64, says: &[&str]) {
        let status = sidecar.until(&format!("it says {says:?}"), |status| {
            let message = status["errors"]["publish"]["message"].as_str().unwrap_or_default();
            let output = self.scene.output.to_str().unwrap();
            message.contains(output) && says.iter().all(|part| message.contains(part))
        });
        assert_eq!((&status["ready"], &status["debt"]), (&true.into(), &Value::Null));
        assert_eq!(status["quarantine"], Value::Null, "the inputs are not at fault");
        eventually("it cleans up", || self.scene.left_behind().is_empty().then_some(()));
        assert!(self.holds(number), "the last good one stays");
        assert_eq!(self.hook.last_saw(), Some(number.to_string()));
    }
}

#[test]
fn output_that_is_forbidden_for_a_while_keeps_the_last_good_generation() {
    forbids_for_a_while(Layout::Atomic);
}

#[test]
fn output_of_single_files_that_is_forbidden_for_a_while_keeps_the_last_good_generation() {
    forbids_for_a_while(Layout::Files);
}

fn forbids_for_a_while(layout: Layout) {
    let mut disk = Disk::new(layout, "mode=0755");
    fs::set_permissions(disk.scene.at("."), Permissions::from_mode(0o755)).unwrap();
    chown(disk.mounted.path(), Some(NOBODY), Some(NOBODY)).unwrap();
    let sidecar = Sidecar::start_as(NOBODY, &disk.log(), disk.flags());
    disk.settled(&sidecar, 0);
    let allow = |disk: &Disk, mode| fs::set_permissions(&disk.scene.output, Permissions::from_mode(mode)).unwrap();
    for number in 1..4 {
        allow(&disk, 0o2555);
        disk.edit(number, 1);
        disk.stays(&sidecar, number - 1, &["Permission denied", "fsGroup", "runAsUser"]);
        allow(&disk, 0o2755);
        disk.settled(&sidecar, number);
    }
}

#[test]
fn output_without_inodes_keeps_the_last_good_generation() {
    // Each needs more for its files, and then for its links.
    takes_the_inodes(Layout::Atomic, [60, 45, 20, 15]);
}

#[test]
fn output_of_single_files_without_inodes_keeps_the_last_good_generation() {
    // The same for its files, and then for the copies of what it replaces.
    takes_the_inodes(Layout::Files, [60, 45, 28, 27]);
}

fn takes_the_inodes(layout: Layout, sizes: [usize; 4]) {
    let mut disk = Disk::new(layout, "nr_inodes=40,mode=0755");
    let sidecar = Sidecar::start(&disk.log(), disk.flags());
    disk.settled(&sidecar, 0);
    let mut number = 0;
    for files in sizes {
        let last = number;
        number += 1;
        disk.edit(number, files);
        disk.stays(&sidecar, last, &["No space left on device", "the volume is full"]);
        disk.mounted.remount(MsFlags::empty(), "nr_inodes=400");
        disk.settled(&sidecar, number);
        number += 1;
        disk.edit(number, 1);
        disk.settled(&sidecar, number);
        // One more, or the large one would stay as what was current before.
        number += 1;
        disk.edit(number, 1);
        disk.settled(&sidecar, number);
        disk.mounted.remount(MsFlags::empty(), "nr_inodes=40");
    }
}

#[test]
fn output_that_is_removed_ends_it_and_is_made_anew_at_the_next_start() {
    removes_the_output(Layout::Atomic);
}

#[test]
fn output_of_single_files_that_is_removed_ends_it_and_is_made_anew_at_the_next_start() {
    removes_the_output(Layout::Files);
}

fn removes_the_output(layout: Layout) {
    let disk = Disk::new(layout, "mode=0755");
    let flags = [disk.flags(), vec!["--listen".into(), "127.0.0.1:0".into()]].concat();
    let mut sidecar = Sidecar::start(&disk.log(), flags);
    disk.settled(&sidecar, 0);
    assert_eq!(sidecar.request("--listen", "GET", "/livez").map(|(code, _)| code), Some(200));
    fs::remove_dir_all(&disk.scene.output).unwrap();
    // Nothing is to be written: the probe is what shows it.
    eventually("it ends", || {
        sidecar.request("--listen", "GET", "/livez");
        sidecar.has_ended().then_some(())
    });
    assert_eq!(sidecar.exit_code(), Some(73));
    let said = sidecar.log_of_this_life();
    let parts = [disk.scene.output.to_str().unwrap(), "was removed", "makes it anew"];
    assert!(parts.iter().all(|part| said.contains(part)), "{said}");
    sidecar.start_again();
    disk.settled(&sidecar, 0);
}

/// What a file system looks like that takes a mode and does not keep it: SMB, for instance.
#[test]
fn check_finds_modes_that_are_not_kept() {
    let mut disk = Disk::new(Layout::Atomic, "mode=0755");
    let mut sidecar = Sidecar::start(&disk.log(), disk.flags());
    disk.settled(&sidecar, 0);
    sidecar.kill();
    let check = |disk: &Disk| {
        let output = output_of(trimtab().arg("check").args(disk.flags()));
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
    };
    let what = "files may not keep the mode of --file-mode and --secret-mode";
    let said = check(&disk);
    assert!(!said.contains(what), "{said}");
    fs::set_permissions(disk.scene.output.join("..trimtab/private/journal.json"), Permissions::from_mode(0o755))
        .unwrap();
    let said = check(&disk);
    // It may break its lines anywhere.
    let words = said.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(
        words.contains(what) && words.contains("..trimtab/private/journal.json") && words.contains("0755"),
        "{said}"
    );
    disk.edit(1, 1);
    sidecar.start_again();
    disk.settled(&sidecar, 1);
}

#[test]
fn a_secret_is_not_written_to_a_file_system_that_keeps_no_modes() {
    for layout in [Layout::Atomic, Layout::Files] {
        let mut scene = Scene::of(layout);
        let (mounted, image) = (scene.at("shared"), scene.at("ntfs"));
        fs::create_dir(&mounted).unwrap();
        scene.output = mounted.join("conf");
        let mounted = Mounted::ntfs(mounted, &image);
        let public = Volume::new(scene.at("public"), &[("n", "0")]);
        let secret = Volume::new(scene.at("secret"), &[("password", "canary-of-0600")]);
        let flags = [
            &QUICK[..],
            &["--watch-dir", public.path.to_str().unwrap(), "--once", "--once-timeout", "1s"],
            &["--watch-dir", secret.path.to_str().unwrap(), "--secret-dir", "secret"],
        ];
        let flags = scene.flags(&flags.concat());
        let (code, said) = run(trimtab().arg("check").args(&flags));
        let words = said.split_whitespace().collect::<Vec<_>>().join(" ");
        let what = "may not keep the mode of --file-mode and --secret-mode";
        assert!(words.contains(what) && words.contains("(FUSE)"), "before the first start, {code:?}: {said}");
        assert!(!scene.output.exists());
        let (code, said) = run(trimtab().args(&flags));
        let parts = ["password holds a secret and is not written", "gives it 0777 instead of --secret-mode 0640"];
        assert!(code != Some(0) && parts.iter().all(|part| said.contains(part)), "{code:?}: {said}");
        assert_eq!(scene.published("n"), None, "all of a generation or nothing");
        let (_, said) = run(trimtab().arg("check").args(&flags));
        assert!(said.contains("lock was made with mode 0600") && said.contains("0777"), "{said}");
        let holds = |image: &Path| fs::read(image).unwrap().windows(14).any(|bytes| bytes == b"canary-of-0600");
        assert!(!holds(&image), "no byte of it came to the disk");
        let (code, said) = run(trimtab().args(&flags).args(["--secret-mode", "0777"]));
        assert!(code == Some(0) && said.contains("has mode 0777, and was given 0644"), "{code:?}: {said}");
        assert_eq!(scene.published("password").as_deref(), Some("canary-of-0600"));
        drop(mounted);
        assert!(holds(&image), "else it could not be found above");
    }
}

/// While Trimtab runs, its lock keeps the kernel from making the volume read-only: it is found so after a restart.
#[test]
fn output_that_is_read_only_at_a_restart_keeps_the_last_good_generation() {
    is_read_only_at_a_restart(Layout::Atomic);
}

#[test]
fn output_of_single_files_that_is_read_only_at_a_restart_keeps_the_last_good_generation() {
    is_read_only_at_a_restart(Layout::Files);
}

fn is_read_only_at_a_restart(layout: Layout) {
    let mut disk = Disk::new(layout, "mode=0755");
    let mut sidecar = Sidecar::start(&disk.log(), disk.flags());
    disk.settled(&sidecar, 0);
    sidecar.kill();
    disk.edit(1, 1);
    disk.mounted.remount(MsFlags::MS_RDONLY, "");
    sidecar.start_again();
    assert_eq!(sidecar.exit_code(), Some(73));
    let said = sidecar.log_of_this_life();
    let parts = ["Read-only file system", "remove readOnly", disk.scene.output.to_str().unwrap()];
    assert!(parts.iter().all(|part| said.contains(part)), "{said}");
    assert!(disk.holds(0));
    disk.mounted.remount(MsFlags::empty(), "");
    sidecar.start_again();
    disk.settled(&sidecar, 1);
}
