# Two commands do everything: `make run` builds Gantry and starts it, `make test` installs what the tests drive and passes them.
# Neither needs anything but Rust (rustup), a C compiler, and the package registries (crates.io; Debian's for the tests).

CARGO ?= cargo
TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)
CLIENTS := docker.io podman skopeo buildah containerd docker-registry strace iproute2 e2fsprogs perl
PROGRAMS := dockerd podman skopeo buildah ctr docker-registry strace ip mkfs.ext4 e2fsck perl

.PHONY: build run test test-fast bench soak examples check fmt clippy doc deny toolchain clients peers

build: toolchain ## target/release/gantry, with the built-in plugins inside
	$(CARGO) build --release --locked --package gantry

run: build ## build, then serve examples/quickstart.yaml on loopback
	$(TARGET_DIR)/release/gantry serve

test: toolchain clients examples ## every test: unit, suites, hosts, real clients
	$(CARGO) test --locked --workspace --no-fail-fast

test-fast: toolchain ## the libraries only: no clients, no wasm
	$(CARGO) test --locked -p gantry-model -p gantry-storage -p gantry-upstream -p gantry-registry

EXAMPLES := javascript python c go

examples: toolchain ## the example plugins, each into its folder's build/plugin.wasm; their tools come from PyPI and npm
	@python3 -c 'import ensurepip' 2>/dev/null || { echo "installing python3-venv"; apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends python3-venv >/dev/null; }
	$(CARGO) build --locked --package gantry
	for language in $(EXAMPLES); do $(MAKE) -C examples/plugins/$$language GANTRY=$(abspath $(TARGET_DIR))/debug/gantry || exit 1; done
	$(CARGO) build --locked --profile guest --target wasm32-wasip2 --package provenance --package deny-image

bench: toolchain clients peers ## every figure of README's table, side by side with nginx and docker-registry in one run
	$(CARGO) build --release --locked --package gantry
	$(CARGO) bench --locked --package tests --bench bench

soak: toolchain clients ## an hour of mixed load (SOAK_MINUTES=5 for less): the memory must be flat in its second half and stay below 160 MiB
	$(CARGO) build --release --locked --package gantry
	$(CARGO) bench --locked --package tests --bench bench -- soak

check: fmt clippy doc deny ## everything but the tests

fmt: toolchain
	$(CARGO) fmt --all --check

clippy: toolchain
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings

doc: toolchain
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --workspace --no-deps

deny: toolchain
	@command -v cargo-deny >/dev/null || { echo "installing cargo-deny from crates.io"; $(CARGO) install cargo-deny --locked; }
	$(CARGO) deny --locked check bans licenses sources

# rust-toolchain.toml names the compiler and the wasm target; rustup installs them here, once.
toolchain:
	@command -v rustup >/dev/null || { echo "rustup is needed: https://rustup.rs"; exit 1; }
	@rustup target list --installed 2>/dev/null | grep -qx wasm32-wasip2 || { echo "installing the toolchain of rust-toolchain.toml"; rustup toolchain install; }

# The tests drive real clients and a real registry:2.8 as upstream, from Debian's packages.
clients:
	@missing=; for program in $(PROGRAMS); do command -v $$program >/dev/null || missing="$$missing $$program"; done; \
	if [ -n "$$missing" ]; then \
		echo "installing Debian packages for$$missing: $(CLIENTS)"; \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(CLIENTS) >/dev/null; \
	fi

# The benchmark's: a static file server, and what asks it.
peers:
	@missing=; for program in nginx wrk curl; do command -v $$program >/dev/null || test -x /usr/sbin/$$program || missing="$$missing $$program"; done; \
	if [ -n "$$missing" ]; then \
		echo "installing Debian packages for$$missing: nginx-light wrk curl"; \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends nginx-light wrk curl >/dev/null; \
	fi
