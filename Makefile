# The two commands of the quick start are `make demo` and `make test`; both do all the set-up on a fresh Debian machine
# that has Rust. Tests that ask a CoreDNS need Go from 1.24 on as well, to build it.

# Where `make dist` puts the programs.
DIST = target/dist
# The CoreDNS that tests ask for names, and where it is built.
COREDNS_VERSION = v1.14.7
COREDNS = target/coredns/$(COREDNS_VERSION)
# The path of a program, or of several, that was built: cargo knows where that is, by CARGO_TARGET_DIR or its
# configuration.
path_of = cargo build --workspace --message-format json-render-diagnostics $(2) | \
  sed -n 's|.*"executable":"\([^"]*/'"$(1)"'\)".*|\1|p'

.PHONY: help demo test soak guest bench generated dist build tools demo-tools test-tools guest-tools bind packages

help:
	@echo "make demo    build, then bring examples/quickstart up in network namespaces and show who reaches whom"
	@echo "make test    build, then run every test"
	@echo "make soak    the tests that kill processes, 30 rounds each, the laws of access and plans 10,000 times, 200 small networks"
	@echo "             with packets, and every suite of the guests"
	@echo "make guest   suites in guests with the kernel's WireGuard and systemd (QEMU); GUEST=all: every one,"
	@echo "             GUEST=SUITE,SUITE/TEST,...: these"
	@echo "make generated   refreshes what tests compare: references, schemas, snapshots"
	@echo "make bench   the benchmarks of BENCHMARKS.md (release build)"
	@echo "make dist    the programs to install, in $(DIST)/: stripped, with the tables for backtraces beside them"

demo: tools demo-tools build
	@"$$($(call path_of,nmplan))" lab examples/quickstart

# What laws are tried with is drawn once and for all, so that a run fails for what was changed; `make soak` draws anew.
test: export PROPTEST_RNG_SEED ?= 1
test: tools test-tools guest-tools build
	cargo test --workspace

soak: tools test-tools guest-tools build
	ROUNDS=30 cargo test -p end-to-end --test faults --test client_mode --test register -- --nocapture kill
	CASES=10000 cargo test -p schema --test access --test impacts
	CASES=10000 cargo test -p nmserver --test predicted
	DRAWS=200 cargo test -p end-to-end --test worlds -- --nocapture
	@$(MAKE) --no-print-directory guest GUEST=all

guest: tools guest-tools build
	cargo test --workspace --test kernel -- --nocapture --test-threads=1

bench: tools guest-tools
	cargo build --release --workspace
	cargo bench -p end-to-end

# What is written by tests from the code: references, schemas, snapshots.
generated:
	UPDATE=1 INSTA_UPDATE=always cargo test -q -p schema -p nmplan -p nmserver --no-fail-fast
	INSTA_UPDATE=always cargo test -q -p end-to-end --test messages

# Symbols and line tables go to PROGRAM.debug, which a backtrace finds beside the program.
dist: tools
	cargo build --workspace --release
	@mkdir -p $(DIST)
	@set -e; for name in nmplan nmserver netclient; do \
	  path=$$($(call path_of,$$name,--release)); \
	  objcopy --only-keep-debug "$$path" "$(DIST)/$$name.debug"; chmod 644 "$(DIST)/$$name.debug"; \
	  (cd "$(DIST)" && objcopy --strip-all --add-gnu-debuglink="$$name.debug" "$$path" "$$name"); \
	done
	@ls -lh $(DIST)

build:
	cargo build --workspace

# A C compiler builds SQLite and libgit2, which are bundled; everything else is Rust.
tools:
	@command -v cargo >/dev/null || { echo "Rust is missing; install it from https://rustup.rs" >&2; exit 1; }
	@command -v cc >/dev/null || $(MAKE) --no-print-directory packages PACKAGES="gcc libc6-dev"

# What the agents of the demo use.
demo-tools:
	@[ -x /usr/sbin/nft ] || $(MAKE) --no-print-directory packages PACKAGES="nftables"

# Programs that the tests run.
test-tools: demo-tools
	@command -v wg >/dev/null || $(MAKE) --no-print-directory packages PACKAGES="wireguard-tools"
	@command -v wireguard-go >/dev/null || $(MAKE) --no-print-directory packages PACKAGES="wireguard-go"
	@command -v ip >/dev/null || $(MAKE) --no-print-directory packages PACKAGES="iproute2"
	@command -v dig >/dev/null || $(MAKE) --no-print-directory packages PACKAGES="bind9-dnsutils"
	@command -v named-compilezone >/dev/null || $(MAKE) --no-print-directory packages PACKAGES="bind9-utils"
	@[ -x /usr/sbin/named ] || $(MAKE) --no-print-directory bind
	@[ -x $(COREDNS)/coredns ] || GOBIN=$(CURDIR)/$(COREDNS) \
	  go install github.com/coredns/coredns@$(COREDNS_VERSION) || \
	  echo "CoreDNS cannot be built, which needs Go from 1.24 on: the tests with it say so (and fail if CI is set)" >&2

# Tests run it on hosts of their own; the service that Debian starts is not wanted.
bind:
	@$(MAKE) --no-print-directory packages PACKAGES="bind9"
	@[ ! -d /run/systemd/system ] || { sudo=; [ "$$(id -u)" = 0 ] || sudo=sudo; $$sudo systemctl disable --now named; }

# What boots the guest, and makes its file system.
guest-tools:
	@command -v qemu-system-x86_64 >/dev/null || $(MAKE) --no-print-directory packages PACKAGES="qemu-system-x86"
	@[ "$$(id -u)" = 0 ] || command -v newuidmap >/dev/null || $(MAKE) --no-print-directory packages PACKAGES="uidmap"
	@command -v mmdebstrap >/dev/null || $(MAKE) --no-print-directory packages PACKAGES="mmdebstrap"

packages:
	@sudo=; [ "$$(id -u)" = 0 ] || sudo=sudo; \
	  $$sudo apt-get update -q && $$sudo apt-get install -qy --no-install-recommends $(PACKAGES)
