# Two commands do everything: `make demo` shows the main job, `make test` passes the tests.

SHELL = bash
.SHELLFLAGS = -o pipefail -c
CARGO ?= cargo
BUILT = $(abspath $(or $(CARGO_TARGET_DIR),target))/debug

.PHONY: all man demo docs test integration compat bench ratchet soak lint deny fuzz build static image chart release e2e
all: build

build:
	$(CARGO) build --release

# The man pages, into MAN (default: target/man).
man:
	$(CARGO) run --quiet --example man -- $(or $(MAN),target/man)

# The static binary, for ARCH (amd64, arm64; default: this machine's).
static:
	tools/static $(ARCH)

# The image, by buildah, podman or docker; BINARY=FILE puts a static binary in the build stage's place, for machines
# without a registry: `make image BINARY=$$(tools/static)`. TAR=OUT.tar, ARCH=arm64, TAG=NAME:TAG and PEER=k8s-sidecar as in tools/image.
image:
	tools/image $(and $(BINARY),--binary $(BINARY)) $(and $(TAR),--tar $(TAR)) $(and $(ARCH),--arch $(ARCH)) \
		$(and $(TAG),--tag $(TAG)) $(and $(PEER),--as $(PEER))

# The charts, as archives in CHARTS (target/charts); OCI=oci://registry.example/charts also pushes them there.
CHARTS ?= target/charts
chart:
	helm=$$(tests/tools/build helm)/helm && mkdir -p $(CHARTS) && rm -f $(CHARTS)/*.tgz && \
	for chart in deploy/helm/*; do $$helm package "$$chart" --destination $(CHARTS); done && \
	for chart in $(if $(OCI),$(CHARTS)/*.tgz); do $$helm push "$$chart" $(OCI); done

# What is published, from a commit with the tag vVERSION: tools/release says what.
release:
	tools/release "$(VERSION)" $(OUT)

# A real nginx, a volume in the kubelet's layout, an edit, a reload, a broken template refused. No cluster. With the
# profile that builds quickly, and that the tests have as well.
demo:
	$(CARGO) build --bin trimtab --example demo-server
	TRIMTAB=$(BUILT)/trimtab DEMO_SERVER=$(BUILT)/examples/demo-server demo/run

# The documentation as a site, in target/book; its links and manifests are checked by the tests.
docs:
	book=$$(tools/mdbook) && $$book build docs
	@echo "target/book/index.html"

# Unit, property and integration tests; the latter against a real kube-apiserver and etcd, built once into a
# cache, and real main processes, unpacked there from Debian's packages and PyPI's where they are not installed. Then the
# end-to-end tests, where a node can be started. The slowest tests are listed at the end (tests/tools/slowest).
test: integration
	@if [ "$$(uname -s)" = Linux ] && [ "$$(id -u)" = 0 ]; then $(MAKE) e2e; else \
	echo "make test: NOT RUN: the end-to-end tests, which need Linux and root: make e2e" >&2; [ -z "$$CI" ]; fi

# The same without the end-to-end tests.
integration:
	@if [ "$$(uname -s)" = Linux ] && [ "$$(id -u)" = 0 ]; then tests/node/require; fi
	release=$$(tools/static) && tools=$$(tests/tools/build) && nginx=$$(tests/tools/debian nginx) && haproxy=$$(tests/tools/debian haproxy) && \
	versitygw=$$(tests/tools/build versitygw) && moto=$$(tests/tools/moto) && gcs=$$(tests/tools/build fake-gcs-server) && azurite=$$(tests/tools/npm azurite) && \
	minisign=$$(tests/tools/debian minisign) && tinyproxy=$$(tests/tools/debian tinyproxy-bin tinyproxy) && ntfs=$$(tests/tools/debian ntfs-3g) && \
	prometheus=$$(tests/tools/debian prometheus) && envoy=$$(tests/tools/envoy) && \
	alertmanager=$$(tests/tools/debian prometheus-alertmanager) && \
	blackbox=$$(tests/tools/debian prometheus-blackbox-exporter) && peers=$$(tests/tools/build peers) && \
	faketime=$$(tests/tools/debian libfaketime libfaketime.so.1) && \
	node=$$(tests/tools/build node) && helm=$$(tests/tools/build helm) && \
	kustomize=$$(tests/tools/build kustomize) && \
	chromium=$$(tests/tools/debian chromium) && axe=$$(tests/tools/axe) && \
	TRIMTAB_TEST_CHROMIUM=$$chromium TRIMTAB_TEST_AXE=$$axe TRIMTAB_TEST_KUSTOMIZE=$$kustomize TRIMTAB_TEST_HELM=$$helm TRIMTAB_TEST_NODE=$$node \
	TRIMTAB_TEST_FAKETIME=$$faketime TRIMTAB_TEST_TOOLS=$$tools TRIMTAB_TEST_NGINX=$$nginx TRIMTAB_TEST_HAPROXY=$$haproxy \
	TRIMTAB_TEST_ALERTMANAGER=$$alertmanager TRIMTAB_TEST_BLACKBOX_EXPORTER=$$blackbox TRIMTAB_TEST_PEERS=$$peers \
	TRIMTAB_TEST_VERSITYGW=$$versitygw TRIMTAB_TEST_MOTO=$$moto TRIMTAB_TEST_FAKE_GCS=$$gcs TRIMTAB_TEST_AZURITE=$$azurite TRIMTAB_TEST_MINISIGN=$$minisign TRIMTAB_TEST_TINYPROXY=$$tinyproxy TRIMTAB_TEST_NTFS=$$ntfs \
	TRIMTAB_TEST_PROMETHEUS=$$prometheus TRIMTAB_TEST_ENVOY=$$envoy TRIMTAB_TEST_RELEASE=$$release \
	tests/tools/slowest $(CARGO) test --tests

# A volume between the previous version and this one, in both directions. That one is built from its tag, once into the cache.
compat:
	previous=$$(tests/tools/previous) && TRIMTAB_TEST_PREVIOUS=$$previous \
	$(CARGO) test --test integration -- --ignored --exact previous::volume_goes_from_the_previous_version_to_this_one_and_back

# The image, in Pods, on a node of the tests' own (tests/node/run): Linux and root. E2E=NAME runs those of that name.
e2e:
	$(CARGO) test --no-run --test e2e
	images=$$(mktemp -d) && trap 'rm -rf "$$images"' EXIT && \
	binary=$$(tools/static) && tools/image --binary "$$binary" --tar "$$images/trimtab.tar" && \
	for peer in k8s-sidecar prometheus-config-reloader configmap-reload; do \
		tools/image --as "$$peer" --binary "$$binary" --tar "$$images/$$peer.tar" || exit 1; \
	done && \
	TRIMTAB_TEST_MOTO=$$(tests/tools/moto) TRIMTAB_TEST_HELM=$$(tests/tools/build helm) NODE_IMAGES=$$images tests/node/run $(CARGO) test --test e2e -- --test-threads=4 $(E2E)

# The static binary (TRIMTAB_BENCH_BINARY, or built) beside its peers (built once into the cache, where Go is) and a floor.
# ROWS=swap,edit for some of the rows; UPDATE_DOCS=1 writes the documentation. docs/performance.md says more. In a
# process namespace of its own, where that is allowed: a Pod's is one, and a signal's target is sought in all of it.
ALONE = unshare --pid --fork --kill-child --mount-proc
bench:
	tools=$$(tests/tools/build) && binary=$${TRIMTAB_BENCH_BINARY:-$$(tools/static)} && \
	{ $(ALONE) true && alone='$(ALONE)' || alone=; } && TRIMTAB_TEST_TOOLS=$$tools \
	TRIMTAB_BENCH_BINARY=$$binary ROWS='$(ROWS)' $$alone $(CARGO) bench --bench bench

# The budgets are kept: counts and sizes against benches/ratchet.toml, no time. Alone, as above: what other processes
# there are on the machine must not count.
ratchet:
	tools=$$(tests/tools/build) && binary=$${TRIMTAB_BENCH_BINARY:-$$(tools/static)} && \
	callgrind=$$(tests/tools/valgrind) && { $(ALONE) true && alone='$(ALONE)' || alone=; } && \
	TRIMTAB_TEST_TOOLS=$$tools TRIMTAB_BENCH_BINARY=$$binary TRIMTAB_BENCH_CALLGRIND=$$callgrind $$alone $(CARGO) bench --profile dev --bench bench -- ratchet

# Sidecars beside sources and main processes that misbehave at random, for SOAK_SECONDS (3600): fails on growth, and on
# what should not be. SOAK_SEED repeats the actions of a run.
soak:
	tools=$$(tests/tools/build) && binary=$${TRIMTAB_BENCH_BINARY:-$$(tools/static)} && TRIMTAB_TEST_TOOLS=$$tools \
	TRIMTAB_BENCH_BINARY=$$binary $(CARGO) test --test soak

# --all-targets leaves out what `cargo test` does not run by itself.
lint:
	$(CARGO) fmt --check
	$(CARGO) clippy --all-targets -- -D warnings
	$(CARGO) clippy --test e2e --test soak -- -D warnings
	"$$(tests/tools/build actionlint)/actionlint" .github/workflows/*.yml
	zizmor=$$(tests/tools/zizmor) && "$$zizmor" --quiet --offline .github/workflows

# Licences, sources and bans are binding; advisories are reported, as a new one must not fail a build that changed nothing.
deny:
	$(CARGO) deny --version >/dev/null 2>&1 || $(CARGO) install --locked cargo-deny
	$(CARGO) deny check bans licenses sources
	-$(CARGO) deny check advisories

# Each fuzz target for FUZZ_SECONDS (45), two at a time; the toolchain and cargo-fuzz are installed once.
fuzz:
	fuzz/run $(FUZZ_TARGETS)
