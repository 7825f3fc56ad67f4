# `make demo`: an encrypted mesh on this machine. `make demo ARGS='--nodes 10 --keep'` passes options on;
# with `--registry kubernetes` among them, a real API server is on the network, too.
# `make test`: every test there is. `make test-kubernetes`: those against a Kubernetes API server.
# `make test-kernel`: the scenarios with every backend under a kernel that has WireGuard; ends in a table.
# `make bench`: WireGuard programs side by side, and whether Warren meets its targets; ARGS goes to `warren-perf bench`,
# RUN is the folder where the run and its report are kept. perf/README.md says more.
# `make image`: the container image, with podman, buildah or docker. `make sbom`: what the programs are made of.
# `make lint`: format, lints, docs, dependencies. `make check`: lint and test.

CARGO ?= cargo
ARGS ?=
RUN ?= target/bench

# program:package of what the demo calls, what the benchmark calls, and what the tests call besides.
DEMO_TOOLS := ip:iproute2 nft:nftables iperf3:iperf3 ping:iputils-ping wg:wireguard-tools
BENCH_TOOLS := ip:iproute2 iperf3:iperf3 ping:iputils-ping wg:wireguard-tools
TEST_TOOLS := $(DEMO_TOOLS) iptables-nft:iptables wireguard-go:wireguard-go od:coreutils ethtool:ethtool promtool:prometheus \
	time:time setpriv:util-linux unshare:util-linux ncat:ncat ss:iproute2 iptables:iptables ping6:iputils-ping

# library:package of what makes tunnels faster where the processor has AVX-512, and is for no other architecture. It may be
# missing, but for its tests, which compare its header, too.
ifeq ($(shell uname -m),x86_64)
FASTER := libIPSec_MB.so.1:libipsec-mb1
TEST_TOOLS += /usr/include/intel-ipsec-mb.h:libipsec-mb-dev
endif

# Slow to build, so kept outside the checkout, in a folder that says which version it is.
CARGO_DENY_VERSION := 0.20.2
CARGO_DENY := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/warren/cargo-deny-$(CARGO_DENY_VERSION)/bin/cargo-deny
CARGO_SBOM_VERSION := 0.10.0
CARGO_SBOM := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/warren/cargo-sbom-$(CARGO_SBOM_VERSION)/bin/cargo-sbom

# What the image is called, and flags for whichever program builds it.
IMAGE ?= warren:0.1.0
IMAGE_FLAGS ?=

# Puts a kube-apiserver and etcd where the tests look for them: $KUBEBUILDER_ASSETS, else built once and cached.
KUBE_APISERVER := daemon/testkit/bin/kube-apiserver.sh

# Puts the test script that wireguard-go ships where the scenario finds it, from Debian's source package.
NETNS_SCRIPT := daemon/tunnel/tests/bin/netns.sh

# Runs scenarios with each backend, in QEMU where this machine's kernel has no WireGuard.
TEST_KERNEL := daemon/testkit/bin/test-kernel.sh

.PHONY: demo bench test test-kubernetes test-kernel lint check image sbom manifest-tools tools

demo: TOOLS := $(DEMO_TOOLS)
demo: LIBRARIES := $(FASTER)
demo: tools
	@$(if $(findstring kubernetes,$(ARGS)),$(KUBE_APISERVER))
	$(CARGO) build --release -p warrend -p warren-tunnel -p warren-perf
	@$(CARGO) run --quiet --release -p warren-perf -- demo $(ARGS)

# The report is made whether the targets are met or not; make fails if they are not.
bench: TOOLS := $(BENCH_TOOLS)
bench: LIBRARIES := $(FASTER)
bench: tools
	$(CARGO) build --release -p warren-tunnel -p warren-perf
	@mkdir -p $(RUN)
	@programs=$$(CARGO='$(CARGO)' perf/bin/programs.sh) || exit 1; \
	PATH="$$programs:$$PATH" $(CARGO) run --quiet --release -p warren-perf -- \
		bench --check --json $(RUN)/run.json $(ARGS); \
	met=$$?; \
	[ ! -e $(RUN)/run.json ] || $(CARGO) run --quiet --release -p warren-perf -- report $(RUN)/run.json || exit 1; \
	exit $$met

# The scenarios start the programs, so these are built first. Each scenario binary enters namespaces of its
# own, as root or in a user namespace; where it may not, it fails and says what it lacks.
test: TOOLS := $(TEST_TOOLS)
test: LIBRARIES := $(FASTER)
test: tools manifest-tools
	@$(KUBE_APISERVER)
	@$(NETNS_SCRIPT)
	$(CARGO) build --workspace --bins
	$(CARGO) test --workspace
	CARGO='$(CARGO)' $(TEST_KERNEL)

# ARGS may name suites: make test-kernel ARGS='mesh attacks'.
test-kernel: TOOLS := $(TEST_TOOLS)
test-kernel: LIBRARIES := $(FASTER)
test-kernel: tools
	$(CARGO) build --workspace --bins
	CARGO='$(CARGO)' $(TEST_KERNEL) $(ARGS)

test-kubernetes: TOOLS := $(DEMO_TOOLS) setpriv:util-linux
test-kubernetes: LIBRARIES := $(FASTER)
test-kubernetes: tools manifest-tools
	@$(KUBE_APISERVER)
	$(CARGO) build --workspace --bins
	$(CARGO) test -p warrend --test kubernetes
	$(CARGO) test -p warren-manifests --test manifests
	$(CARGO) test -p warren-manifests --test server -- --nocapture
	$(CARGO) test -p warren-perf --test demo kubernetes

lint: $(CARGO_DENY)
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --workspace --no-deps --document-private-items
	$(CARGO_DENY) --log-level error check --show-stats licenses bans sources
	@# The advisories are a repository on the Internet; a machine without it says so and goes on.
	@if timeout 120 $(CARGO_DENY) --log-level off fetch db 2>/dev/null; \
	then $(CARGO_DENY) check advisories; \
	else echo 'lint: the advisory database cannot be had here; advisories were NOT checked' >&2; fi

check: lint test

image:
	manifests/bin/image.sh $(IMAGE) $(IMAGE_FLAGS)

# CycloneDX of the three programs, in target/sbom. What the image has of Debian's is in its /var/lib/dpkg/status.d.
sbom: $(CARGO_SBOM)
	@mkdir -p target/sbom
	for program in warrend warren-tunnel keyctl; do \
		$(CARGO_SBOM) --cargo-package $$program --output-format cyclone_dx_json_1_6 \
			>target/sbom/$$program.cdx.json || exit 1; \
	done

# What the manifests' tests call. They fetch it themselves; here it is fetched ahead of them.
manifest-tools: TOOLS := promtool:prometheus
manifest-tools: tools
	@for tool in kustomize kubernetes-validate promtool; do manifests/bin/tool.sh $$tool >/dev/null || exit 1; done

$(CARGO_SBOM):
	$(CARGO) install --locked --version $(CARGO_SBOM_VERSION) --root $(patsubst %/bin/,%,$(dir $@)) cargo-sbom

$(CARGO_DENY):
	$(CARGO) install --locked --version $(CARGO_DENY_VERSION) --root $(patsubst %/bin/,%,$(dir $@)) cargo-deny

# Installs what is missing of TOOLS, and if it is to be had of LIBRARIES, as root; otherwise names it.
tools:
	@for library in $(LIBRARIES); do \
		! PATH="$$PATH:/usr/sbin:/sbin" ldconfig -p | grep -qF "$${library%%:*}" || continue; \
		package=$${library##*:}; \
		if [ "$$(id -u)" -ne 0 ]; then echo "tunnels may be slower; as root: apt-get install $$package" >&2; continue; fi; \
		{ apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends $$package; } || \
			echo "$$package cannot be had here; tunnels may be slower" >&2; \
	done
	@missing=''; \
	for tool in $(TOOLS); do \
		[ -e "$${tool%%:*}" ] || PATH="$$PATH:/usr/sbin:/sbin" command -v "$${tool%%:*}" >/dev/null || \
			missing="$$missing $${tool##*:}"; \
	done; \
	[ -n "$$missing" ] || exit 0; \
	if [ "$$(id -u)" -ne 0 ]; then echo "missing; as root: apt-get install$$missing" >&2; exit 1; fi; \
	apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends $$missing
