# `make demo`: an encrypted mesh on this machine. `make demo ARGS='--nodes 10 --keep'` passes options on.

CARGO ?= cargo
ARGS ?=

# program:package of what the demo calls.
TOOLS := ip:iproute2 nft:nftables iperf3:iperf3 ping:iputils-ping wg:wireguard-tools

.PHONY: demo tools

demo: tools
	$(CARGO) build --release -p warrend -p warren-tunnel -p warren-perf
	@$(CARGO) run --quiet --release -p warren-perf -- demo $(ARGS)

# Installs what is missing of TOOLS, as root; otherwise names it.
tools:
	@missing=''; \
	for tool in $(TOOLS); do \
		PATH="$$PATH:/usr/sbin:/sbin" command -v "$${tool%%:*}" >/dev/null || missing="$$missing $${tool##*:}"; \
	done; \
	[ -n "$$missing" ] || exit 0; \
	if [ "$$(id -u)" -ne 0 ]; then echo "missing; as root: apt-get install$$missing" >&2; exit 1; fi; \
	apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends $$missing
