//! nginx, notified by HUP and confirmed by its workers.

use super::{Fault, Ground, Program, binary, play, strings};

/// What nginx 1.22 does with a bad configuration on HUP: an `[emerg]` line in its error log; master and workers go on
/// as before, no worker is forked. A port in use: the master tries to bind five times, half a second apart, and listens
/// to nobody meanwhile; `nginx -t` passes it, since that ignores `EADDRINUSE`. On success new workers and old ones
/// accept side by side for some milliseconds.
struct Nginx {
    ground: Ground,
}

impl Program for Nginx {
    fn ground(&self) -> &Ground {
        &self.ground
    }

    fn name(&self) -> &'static str {
        "nginx"
    }

    fn templates(&self) -> Vec<(&'static str, &'static str)> {
        vec![("nginx.conf", "{{ data['nginx.conf'] }}")]
    }

    fn keys(&self, edit: usize, fault: Option<Fault>) -> Vec<(&'static str, String)> {
        let (port, own, taken) = (self.ground.port, self.ground.text(""), self.ground.taken());
        let extra = match fault {
            None => String::new(),
            Some(Fault::Syntax) => "} }".to_owned(),
            Some(Fault::Unknown) => "frobnicate on;".to_owned(),
            Some(Fault::Certificate) => {
                "listen 127.0.0.1:1 ssl; ssl_certificate none.pem; ssl_certificate_key none.pem;".to_owned()
            }
            Some(Fault::Port) => format!("listen 127.0.0.1:{taken};"),
            Some(fault) => {
                assert_eq!(fault, Fault::Empty);
                return vec![("nginx.conf", String::new()), ("edit", edit.to_string())];
            }
        };
        let text = format!(
            r#"worker_processes 2;
            daemon off;
            pid {own}/nginx.pid;
            error_log {own}/program.log notice;
            events {{ worker_connections 64; }}
            http {{
                access_log off;
                client_body_temp_path {own}; proxy_temp_path {own}; fastcgi_temp_path {own};
                uwsgi_temp_path {own}; scgi_temp_path {own};
                server {{
                    listen 127.0.0.1:{port};
                    {extra}
                    location / {{ return 200 "config {edit}"; }}
                }}
            }}
            "#
        );
        vec![("nginx.conf", text), ("edit", edit.to_string())]
    }

    fn command(&self) -> Vec<String> {
        let (own, conf) = (self.ground.text(""), self.ground.text("conf/nginx.conf"));
        strings([&binary("TRIMTAB_TEST_NGINX"), "-p", &own, "-e", &self.ground.text("program.log"), "-c", &conf])
    }

    fn flags(&self) -> Vec<String> {
        let pattern = regex_lite::escape(&self.ground.text("conf/nginx.conf"));
        let target = ["--signal", "HUP", "--process", "nginx", "--process-args", &pattern];
        [&strings(target)[..], &strings(["--confirm-workers", "--confirm-alive", "300ms"])].concat()
    }

    fn validator(&self) -> String {
        let own = self.ground.text("");
        format!("{} -t -q -p {own} -e stderr -c {{dir}}/nginx.conf", binary("TRIMTAB_TEST_NGINX"))
    }
}

#[test]
fn nginx_serves_good_configurations_alone() {
    play(Nginx { ground: Ground::new() }, false);
}

#[test]
fn nginx_serves_good_configurations_alone_when_they_are_validated() {
    play(Nginx { ground: Ground::new() }, true);
}
