# A machine with python3, its venv module and make is enough; everything else is locked in requirements/.
PYTHON ?= python3
UV ?= uv
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# What is locked is whole: with --no-deps nothing is resolved again, which pip does by the newest releases first
# and then refuses those that the lock has no hashes of.
LOCKED := --no-deps --require-hashes
# The programs that tests call, each with the package that has it.
NEEDED := curl:curl strace:strace ip:iproute2 wg:wireguard-tools wireguard-go:wireguard-go \
	mkfs.ext4:e2fsprogs mkfs.btrfs:btrfs-progs fusermount3:fuse3 sshd:openssh-server ssh:openssh-client \
	scp:openssh-client nginx:nginx-light rsync:rsync rclone:rclone chromium:chromium \
	systemd-analyze:systemd man:man-db zsh:zsh fish:fish \
	prometheus:prometheus promtool:prometheus prometheus-node-exporter:prometheus-node-exporter \
	prometheus-pushgateway:prometheus-pushgateway

# A real tailnet for the tests. These are the newest that go 1.26 builds.
GO ?= go
TAILSCALE := v1.102.5
HEADSCALE := v0.29.2
TAILSCALE_FEATURES := dns,health,ipnbus,netstack,osrouter,taildrop,unixsocketidentity
TEST_CACHE := $(or $(TDX_TEST_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/tdx-test)
TAILNET := $(TEST_CACHE)/bin

# What the benchmarks compare with and Debian does not have.
CROC := v10.7.0
PEERS := $(TEST_CACHE)/peers

# Decodes dashboards into Grafana's own types.
DECODER := $(TEST_CACHE)/bin/decode-dashboards

# Clients of other people that the tests let upload.
CLIENTS := $(TEST_CACHE)/clients

.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help demo test check soak man test-deps test-tailnet perf-deps perf observe docs-plots lock clean

help:
	@echo 'make demo          push 3 GiB, kill it halfway, resume it, compare  (DEMO_FLAGS="--size 100M")'
	@echo 'make test          style, types, imports and tests                  (TEST_FLAGS="-k names")'
	@echo 'make soak          hours of faults, kills and hostile input     (SOAK_FLAGS="-k power")'
	@echo 'make man           manual pages of every command, into build/man'
	@echo 'make test-deps     install the programs that tests call (root); where there is go, test-tailnet too'
	@echo 'make test-tailnet  build the programs of a real tailnet into $(TAILNET)'
	@echo 'make perf-deps     the programs that the benchmarks compare with: the same'
	@echo 'make perf          the benchmarks                                   (PERF_FLAGS=...)'
	@echo 'make observe       a receiver, pushes and Prometheus to look at  (OBSERVE_FLAGS="--seconds 60")'
	@echo 'make docs-plots    draw what docs/observing.md shows again: 3 minutes'
	@echo 'make lock          resolve requirements/ again (needs uv)'
	@echo 'make clean         remove what make and the tests made'

demo: $(VENV)/.package
	$(BIN)/tdx demo $(DEMO_FLAGS)

# pytest comes last, so that the output ends with its closing line.
test: check
	$(BIN)/python -m pytest -n auto --dist worksteal --cov --cov-report= --branch-floor=95 $(TEST_FLAGS)

# The whole of those tests of which make test does a taste. What they did stands before pytest's closing line.
soak: $(VENV)/.test $(VENV)/.package
	$(BIN)/python -m pytest -n auto -o faulthandler_timeout=0 --soak $(SOAK_FLAGS)

# Made from the commands' own help.
man: $(VENV)/.package
	$(BIN)/python -m tdx_cli.manual build/man

check: $(VENV)/.test $(VENV)/.package
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports --no-cache --no-logo

test-deps:
	@PATH="$$PATH:/usr/sbin:/sbin"; missing=; packages=; \
	for each in $(NEEDED); do \
		command -v "$${each%%:*}" >/dev/null || { missing="$$missing $${each%%:*}"; packages="$$packages $${each##*:}"; }; \
	done; \
	if [ -z "$$missing" ]; then echo 'test-deps: nothing to install ($(foreach each,$(NEEDED),$(firstword $(subst :, ,$(each)))) are here)'; \
	elif [ "$$(id -u)" != 0 ]; then echo "test-deps: missing$$missing; run 'make test-deps' as root" >&2; exit 1; \
	else $(unstarted); apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends -o DPkg::Lock::Timeout=120 $$packages && \
		$(disabled); fi
	@$(MAKE) --no-print-directory $(PEERS)/.made
	@if command -v npm >/dev/null; then $(MAKE) --no-print-directory $(CLIENTS)/.made; \
	else echo 'test-deps: there is no npm; the tests with tus-js-client will be skipped'; fi
	@if command -v $(GO) >/dev/null; then $(MAKE) --no-print-directory test-tailnet $(TAILNET)/.croc-$(CROC) $(DECODER); \
	else echo 'test-deps: there is no go; the tests with a real tailnet, with croc and with Grafana'\''s types will be skipped'; fi

# The benchmarks compare with what the tests call, and no more.
perf-deps: test-deps

# No server of these packages is to run: neither now, where nobody has forbidden it already (invoke-rc.d(8)
# asks policy-rc.d), nor when the machine starts, unless it was there before.
define unstarted
policy=/usr/sbin/policy-rc.d; new=; \
	for each in $$missing; do case $$each in nginx | rsync | prometheus*) new="$$new $$each" ;; sshd) new="$$new ssh" ;; esac; done; \
	if [ ! -e $$policy ]; then trap "rm -f $$policy" EXIT; printf '#!/bin/sh\nexit 101\n' >$$policy; chmod +x $$policy; fi
endef
define disabled
{ [ -z "$$new" ] || ! command -v systemctl >/dev/null || systemctl disable --quiet $$new; }
endef

test-tailnet: $(TAILNET)/.tailscale-$(TAILSCALE) $(TAILNET)/.headscale-$(HEADSCALE)
	@echo 'test-tailnet: tailscale $(TAILSCALE) and headscale $(HEADSCALE) are in $(TAILNET)'

# Built where the module cache has them, as main modules: so their own go.sum pins whatever they need.
# $(call module,PATH,VERSION) begins such a recipe.
define module
@command -v $(GO) >/dev/null || { echo 'test-tailnet: there is no go; install Go 1.26 or newer' >&2; exit 1; }
@echo 'test-tailnet: building $(1) $(2); the first time, this takes minutes'
@set -e; export CGO_ENABLED=0 GOFLAGS='-mod=readonly -buildvcs=false' GOWORK=off; \
	$(GO) mod download $(1)@$(2); \
	module=$$($(GO) mod download -json $(1)@$(2) | sed -n 's/.*"Dir": "\(.*\)",$$/\1/p'); test -d "$$module"; \
	mkdir -p $(@D); new=$$(mktemp -d $(@D)/new.XXXXXX); trap 'rm -rf "$$new"' EXIT; \
	build="nice $(GO) build -C $$module -trimpath -o $$new/"
endef

$(TAILNET)/.tailscale-$(TAILSCALE):
	$(call module,tailscale.com,$(TAILSCALE)); \
	version=tailscale.com/version; number=$(TAILSCALE:v%=%); \
	tags=$$(cd "$$module" && $(GO) run ./cmd/featuretags --min --add=$(TAILSCALE_FEATURES)); \
	$$build -tags "$$tags" -ldflags "-s -w -X $$version.shortStamp=$$number -X $$version.longStamp=$$number" \
		./cmd/tailscaled ./cmd/tailscale; \
	rm -f $(@D)/.tailscale-*; mv "$$new"/* $(@D)/; touch $@

$(TAILNET)/.headscale-$(HEADSCALE):
	$(call module,github.com/juanfont/headscale,$(HEADSCALE)); \
	$$build -ldflags '-s -w' ./cmd/headscale; \
	rm -f $(@D)/.headscale-*; mv "$$new"/* $(@D)/; touch $@

$(TAILNET)/.croc-$(CROC):
	$(call module,github.com/schollz/croc/v10,$(CROC)); \
	$$build -ldflags '-s -w' .; \
	rm -f $(@D)/.croc-*; mv "$$new"/* $(@D)/; touch $@

$(DECODER): $(wildcard tests/grafana/decode/*)
	@echo 'test-deps: building $(@F); the first time, this takes a minute'
	@mkdir -p $(@D); CGO_ENABLED=0 GOFLAGS='-mod=readonly -buildvcs=false' GOWORK=off nice $(GO) build -C tests/grafana/decode -o $@ .

$(PEERS)/.made: requirements/peers.txt
	@rm -rf $(@D); mkdir -p $(@D)
	@$(PYTHON) -m venv $(@D) || { echo 'no virtual environment: apt-get install python3-venv' >&2; exit 1; }
	@$(@D)/bin/python -m pip --disable-pip-version-check --quiet install $(LOCKED) -r requirements/peers.txt
	@touch $@

$(CLIENTS)/.made: tests/clients/package.json tests/clients/package-lock.json
	@rm -rf $(@D); mkdir -p $(@D); cp $^ $(@D)
	@npm ci --prefix $(@D) --ignore-scripts --no-audit --no-fund --silent
	@touch $@

perf: $(VENV)/.test $(VENV)/.package
	$(BIN)/python -m perf $(PERF_FLAGS)

observe: $(VENV)/.test $(VENV)/.package
	@PATH="$$PATH:/usr/sbin:/sbin" $(BIN)/python -m observe $(OBSERVE_FLAGS)

docs-plots:
	@$(MAKE) --no-print-directory observe OBSERVE_FLAGS="--seconds 180 --plots docs/observing"

COMPILE := pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-annotate \
	--no-emit-index-url --custom-compile-command 'make lock'

lock:
	$(UV) $(COMPILE) pyproject.toml --extra test --extra perf --group build -o requirements/test.txt
	$(UV) $(COMPILE) pyproject.toml -c requirements/test.txt -o requirements/run.txt
	echo copyparty | $(UV) $(COMPILE) - -o requirements/peers.txt
	$(UV) $(COMPILE) --group build -c requirements/test.txt -o requirements/build.txt

clean:
	rm -rf $(VENV) build dist .coverage .coverage.* .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find engine cli tests perf observe -name __pycache__ -prune -exec rm -rf {} +

# --- the virtual environment, in steps that are repeated only when their inputs change ---

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "tdx needs Python 3.11 or newer")'
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo 'no virtual environment: apt-get install python3-venv' >&2; exit 1; }
	@touch $@

$(VENV)/.run: requirements/run.txt requirements/build.txt | $(VENV)/.made
	$(PIP) install $(LOCKED) -r requirements/run.txt -r requirements/build.txt
	@touch $@

# With what the benchmarks need: they bring up the tests' tailnet, and the tests draw their plots.
$(VENV)/.test: requirements/test.txt | $(VENV)/.made
	$(PIP) install $(LOCKED) -r requirements/test.txt
	@touch $@ $(VENV)/.run

$(VENV)/.package: pyproject.toml engine/tdx/version.py $(VENV)/.run
	$(PIP) install --no-index --no-deps --no-build-isolation --editable .
	@touch $@
