//! Envoy, which sees for itself what is published, and shows at its admin port what it took.

use std::fs;

use super::{Fault, Ground, Program, binary, play, strings};

/// What Envoy 1.40 does with bad listeners in a watched file: a warning in its log, a count in `update_rejected` or
/// `update_failure`, and it stays with what it has. But
/// - an unknown field is only warned of, unless it runs with `--reject-unknown-dynamic-fields`.
/// - a set is no transaction: of two listeners, or of listeners and clusters, the good ones are taken.
/// - `version_info` of a listener in `/config_dump` is the version that it was made by, and stays when it is updated in
///   place. `version_text` among the statistics is that of the last set that was taken as a whole.
/// - `--mode validate` looks at no watched file: what it is to look at is rendered once more as static resources. It
///   binds no port.
struct Envoy {
    ground: Ground,
}

const LISTENERS: &str = r#"{% if data.listeners %}version_info: "{{ generation.digest }}"
resources:
{{ data.listeners }}{% endif %}"#;
const CLUSTERS: &str = r#"version_info: "{{ generation.digest }}"
resources:
{{ data.clusters }}"#;
const STATIC: &str = r#"{% if data.listeners %}static_resources:
  listeners:
{{ data.listeners | replace('    "@type": type.googleapis.com/envoy.config.listener.v3.Listener\n', '') }}
  clusters:
{{ data.clusters | replace('    "@type": type.googleapis.com/envoy.config.cluster.v3.Cluster\n', '') }}{% endif %}"#;

impl Program for Envoy {
    fn ground(&self) -> &Ground {
        &self.ground
    }

    fn name(&self) -> &'static str {
        "Envoy"
    }

    fn templates(&self) -> Vec<(&'static str, &'static str)> {
        vec![("lds.yaml", LISTENERS), ("cds.yaml", CLUSTERS), ("static.yaml", STATIC)]
    }

    fn keys(&self, edit: usize, fault: Option<Fault>) -> Vec<(&'static str, String)> {
        let (port, own, taken) = (self.ground.port, self.ground.text(""), self.ground.taken());
        let clusters = format!(
            r#"  - name: back
    "@type": type.googleapis.com/envoy.config.cluster.v3.Cluster
    type: STATIC
    alt_stat_name: edit-{edit}
    load_assignment:
      cluster_name: back
      endpoints: [{{ lb_endpoints: [{{ endpoint: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: 1 }} }} }} }}] }}]
"#
        );
        let extra = match fault {
            // A port in use is among the addresses.
            None | Some(Fault::Port) => String::new(),
            Some(Fault::Syntax) => "bad: [".to_owned(),
            Some(Fault::Unknown) => "frobnicate: on".to_owned(),
            Some(Fault::Certificate) => format!(
                r#"transport_socket: {{ name: tls, typed_config: {{
          "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext,
          common_tls_context: {{ tls_certificates: [{{ certificate_chain: {{ filename: {own}/none.pem }},
          private_key: {{ filename: {own}/none.pem }} }}] }} }} }}"#
            ),
            Some(fault) => {
                assert_eq!(fault, Fault::Empty);
                return vec![("listeners", String::new()), ("clusters", clusters)];
            }
        };
        let addresses = match fault {
            // Of the same listener: one more of its own would be refused alone.
            Some(Fault::Port) => {
                format!("[{{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {taken} }} }} }}]")
            }
            _ => "[]".to_owned(),
        };
        let listeners = format!(
            r#"  - name: main
    "@type": type.googleapis.com/envoy.config.listener.v3.Listener
    address: {{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }}
    additional_addresses: {addresses}
    filter_chains:
      - filters:
          - name: envoy.filters.network.http_connection_manager
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
              stat_prefix: main
              http_filters:
                - name: envoy.filters.http.router
                  typed_config: {{ "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }}
              route_config:
                virtual_hosts:
                  - name: all
                    domains: ["*"]
                    routes:
                      - match: {{ prefix: / }}
                        direct_response: {{ status: 200, body: {{ inline_string: "config {edit}" }} }}
        {extra}
"#
        );
        vec![("listeners", listeners), ("clusters", clusters)]
    }

    fn command(&self) -> Vec<String> {
        let (conf, admin) = (self.ground.text("conf"), self.ground.admin);
        let source = |file: &str| {
            format!(
                "{{ resource_api_version: V3, path_config_source: {{ path: {conf}/{file}, \
                 watched_directory: {{ path: {conf} }} }} }}"
            )
        };
        let bootstrap = format!(
            "node: {{ id: test, cluster: test }}
admin: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {admin} }} }} }}
dynamic_resources:
  lds_config: {}
  cds_config: {}
",
            source("lds.yaml"),
            source("cds.yaml")
        );
        let path = self.ground.text("bootstrap.yaml");
        fs::write(&path, bootstrap).unwrap();
        let own = ["--reject-unknown-dynamic-fields", "--disable-hot-restart", "--concurrency", "1", "-l", "warn"];
        [&strings([&binary("TRIMTAB_TEST_ENVOY"), "-c", &path])[..], &strings(own)].concat()
    }

    fn flags(&self) -> Vec<String> {
        let url = format!("http://127.0.0.1:{}/stats?filter=version_text", self.ground.admin);
        let pattern = r#"cds.version_text: "{digest}"\s+listener_manager.lds.version_text: "{digest}""#;
        strings(["--confirm-url", &url, "--confirm-match", pattern])
    }

    fn validator(&self) -> String {
        format!("{} --mode validate -l off -c {{dir}}/static.yaml", binary("TRIMTAB_TEST_ENVOY"))
    }
}

#[test]
fn envoy_serves_good_configurations_alone() {
    play(Envoy { ground: Ground::new() }, false);
}

#[test]
fn envoy_serves_good_configurations_alone_when_they_are_validated() {
    play(Envoy { ground: Ground::new() }, true);
}
