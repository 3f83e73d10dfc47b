//! The binary against the real things: API server, main processes, file systems. One program, as each links everything.

mod support;

// How it is run: flags, variables, signals, exit codes, what it answers and logs.
mod admin; // SIGHUP, `status`, `retry`, probes, metrics, their addresses
mod ask; // `status --wait`, `status --watch`
mod dryrun; // `render` and `check`: what would happen, and what is wrong
mod guard; // who may ask `--listen`: TLS, client certificates, users
mod help; // `-h`, `--help`, `--version`, completions, man pages
mod logs; // the form of the log, and how often what lasts is logged
mod once; // `--once`
mod page; // the page in a real browser
mod reporting; // each kind of failure in status, metrics and page, and that it is over
mod rest; // what it costs while nothing happens
mod shutdown; // SIGTERM and SIGINT
mod usage; // settings that are refused
mod variables; // each flag by its variable, and by its key of a file
mod verdicts; // each fault: its verdict on the page, in `trimtab status`, in the log

// The way of a change.
mod api; // from the API server to files and a hook: edits, outages, permissions
mod archive; // --archive: a real nginx that takes uploads, one that does not, kills on the way
mod azure; // `--watch-url az://…`: a real server of Azure's Blob protocol
mod events; // Kubernetes Events of the Pod
mod fleet; // a fleet of thirty, each with an nginx, one replica first
mod gcs; // `--watch-url gs://…`: fake-gcs-server, and who hands out credentials
mod kube_source; // `source::kube`: lists, watches, refusals, where a fault comes at an exact instant
mod large; // large files: published, and not held in memory
mod observe; // what the main process reads by itself: edits, what is held, kills
mod reload; // notifying the main process: by signal, HTTP, program; retries
mod rollback; // rollback, hold, quarantine
mod rollout; // one replica first: a fleet of sidecars and its Lease
mod store; // `--watch-url s3://…`: a real store, and servers that say what is not so
mod store_faults; // the same: swapped during a list, cut, slow, of another length
mod url; // `--watch-url`: a real nginx, and servers that break off
mod validate; // `--validate` and `--syntax`
mod volume; // mounted directories as the kubelet writes them
mod way; // one swap of a volume → one call of the hook
mod yaml; // `from_yaml` beside another program's reader

// What must never happen.
mod clock; // a wall clock that steps
mod containment; // reading or writing outside the given directories
mod crash; // kills and trouble with the output: nothing is lost or left behind
mod disk; // a disk that refuses writes
mod kills; // the kill matrix: before and after every effect
mod secrets; // a secret byte where it does not belong
mod state_dir; // what is Trimtab's own beside the output

// What we ship.
mod chart; // deploy/helm and deploy/kustomize: rendered, and on an API server
mod deploy; // alerts, dashboard, PodMonitor, FlowSchema
mod docs; // the README and docs/: flags, manifests, links
mod examples; // examples/ on an API server that enforces the restricted standard
mod inject; // `inject`, `uninject`, `rbac`: manifests, on an API server
mod peers; // prometheus-config-reloader's own program beside Trimtab with its settings
mod policy; // `policy`, `profile`: the sidecar by an annotation
mod previous; // a volume between the previous version and this one: `make compat`
mod real; // real main processes: nginx, HAProxy, Prometheus, Envoy, and those of other sidecars' charts
mod recipes; // the same for Apache, php-fpm, unbound, BIND, CoreDNS, gunicorn, Redis, PgBouncer, OpenTelemetry, node: a good and a bad edit
mod words; // plain words in pages, help, messages and comments
