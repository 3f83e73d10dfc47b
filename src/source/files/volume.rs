//! For tests: a volume as the kubelet writes it.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;

/// Performs the steps of `AtomicWriter.Write` (kubernetes: `pkg/volume/util/atomic_writer.go`).
pub struct Volume {
    pub path: PathBuf,
    count: u32,
}

impl Volume {
    pub fn new(path: PathBuf, files: &[(&str, &str)]) -> Self {
        fs::create_dir_all(&path).unwrap();
        let mut volume = Self { path, count: 0 };
        volume.swap(files);
        volume
    }

    pub fn swap(&mut self, files: &[(&str, &str)]) {
        self.prepare(files);
        self.finish(files);
    }

    /// Everything before `..data` is renamed.
    pub fn prepare(&mut self, files: &[(&str, &str)]) {
        self.count += 1;
        let new = self.path.join(name(self.count));
        fs::create_dir(&new).unwrap();
        fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).unwrap();
        for (key, value) in files {
            let file = new.join(key);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(&file, value).unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        }
        symlink(name(self.count), self.path.join("..data_tmp")).unwrap();
    }

    /// The rename, and what follows it.
    pub fn finish(&mut self, files: &[(&str, &str)]) {
        fs::rename(self.path.join("..data_tmp"), self.path.join("..data")).unwrap();
        let names: Vec<_> = files.iter().map(|(key, _)| key.split('/').next().unwrap()).collect();
        for name in &names {
            if fs::symlink_metadata(self.path.join(name)).is_err() {
                symlink(format!("..data/{name}"), self.path.join(name)).unwrap();
            }
        }
        for entry in fs::read_dir(&self.path).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            if !name.starts_with("..") && !names.contains(&name.as_str()) {
                fs::remove_file(self.path.join(name)).unwrap();
            }
        }
        if self.count > 1 {
            fs::remove_dir_all(self.path.join(name(self.count - 1))).unwrap();
        }
    }
}

fn name(count: u32) -> String {
    format!("..2026_02_03_04_05_06.{count:09}")
}

/// Runs this on a thread of user 65534, if we are root: credentials are a thread's own (credentials(7)).
pub fn as_nobody<T: Send>(run: impl FnOnce() -> T + Send) -> T {
    let nobody = rustix::process::Uid::from_raw(65_534);
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            if nix::unistd::geteuid().is_root() {
                rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
            }
            run()
        });
        thread.join().unwrap()
    })
}
