//! An nginx that serves files from a folder, in the foreground and with all that it writes in one place.

use std::fs;
use std::net::TcpStream;
use std::process::{Command, Stdio};

use super::child::Running;
use super::scene::Scene;
use super::sidecar::eventually;

/// Starts one that serves the scene's `www` on this port, and waits until it does. `log`: what `access.log` has of each
/// request; `more`: what its server has to do beside.
pub fn start(scene: &Scene, port: u16, log: &str, more: &str) -> Running {
    let own = scene.text("");
    let conf = format!(
        "daemon off; master_process off; pid {own}/pid; error_log {own}/error.log; events {{}}
        http {{
            log_format short '{log}'; access_log {own}/access.log short;
            client_body_temp_path {own}; proxy_temp_path {own}; fastcgi_temp_path {own};
            uwsgi_temp_path {own}; scgi_temp_path {own};
            server {{ listen 127.0.0.1:{port}; root {own}/www; {more} }}
        }}"
    );
    fs::write(scene.at("nginx.conf"), conf).unwrap();
    let binary = std::env::var("TRIMTAB_TEST_NGINX").expect("TRIMTAB_TEST_NGINX is not set: run `make test`");
    let mut command = Command::new(binary);
    command.args(["-p", &own, "-e", &scene.text("error.log"), "-c", &scene.text("nginx.conf")]);
    let nginx = Running(command.stdin(Stdio::null()).spawn().unwrap());
    eventually("nginx serves", || TcpStream::connect(("127.0.0.1", port)).ok());
    nginx
}
