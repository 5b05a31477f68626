# What people type. `make test` is the whole truth: it sets the machine up, builds, tests and checks what CI checks.
# Every cargo call builds the release profile: RocksDB takes minutes to build and is built once for all of them.

export CARGO_TARGET_DIR ?= $(CURDIR)/target
export PAGESERVER_PG_HOME ?= /opt/pageserver-postgresql
EXTENSION_DIR := $(CARGO_TARGET_DIR)/redo_extension
CARGO := nice cargo
PG ?= 14 15 16 17 18
SCALE ?= 10
ROUNDS ?= 200
MINUTES ?= 30

.NOTPARALLEL:
.PHONY: help setup build extension test test-only check fmt lint doc tidy deny demo prove-pages prove-clones prove-redo prove-redo-changed prove-crash long-run bench

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

setup: ## install what is missing on a Debian 12 machine (root or sudo)
	scripts/setup

build: extension ## build everything, tests and benchmarks included (needs what setup installs)
	$(CARGO) build --release --workspace --all-targets --locked

extension: ## build the redo extension for 15, 17 and 18, whose headers setup installs
	@set -e; for version in 15 17 18; do \
	  include=/usr/include/postgresql/$$version/server; \
	  [ -d $$include ] || include=$(PAGESERVER_PG_HOME)/headers/$$version$$include; \
	  [ -d $$include ] || { echo "no server headers of PostgreSQL $$version: run 'make setup'" >&2; exit 1; }; \
	  $(MAKE) --no-print-directory -C pageserver/redo_extension INCLUDE=$$include OUT=$(EXTENSION_DIR)/$$version; \
	done

test: setup build check ## set up, build, run all tests and all checks (what CI runs)

check: fmt-check lint doc deny test-only ## formatting, lints, documentation, tests (tidy is one of them)

test-only: build
	$(CARGO) test --release --workspace --locked

fmt: ## format
	cargo fmt --all

.PHONY: fmt-check
fmt-check:
	cargo fmt --all -- --check

lint: ## clippy, warnings are errors
	$(CARGO) clippy --release --workspace --all-targets --locked -- --deny warnings

doc: ## documentation, warnings are errors
	RUSTDOCFLAGS='--deny warnings' $(CARGO) doc --release --workspace --no-deps --document-private-items --locked

tidy: ## the rules of docs/architecture.md that a machine can check
	$(CARGO) test --release --package tests --test tidy --locked

deny: ## licences, bans, sources of dependencies, and advisories as far as their database can be fetched (when cargo-deny is installed)
	@if ! command -v cargo-deny >/dev/null; then \
	  echo "cargo-deny is not installed ('cargo install cargo-deny --locked'): deny.toml was not checked"; \
	else \
	  cargo deny --all-features --log-level error check bans licenses sources || exit 1; \
	  if cargo deny fetch db >/dev/null 2>&1; then cargo deny --all-features check advisories; \
	  else echo "the database of advisories cannot be fetched: advisories were not checked"; fi; \
	fi

demo: setup build ## a stock PostgreSQL, a page server, three moments of one page, the comparison
	scripts/demo

prove-pages: setup build ## compare every page with the primary's after load, crashes and promotion: PG="15 17" SCALE=10 SEED=n
	$(CARGO_TARGET_DIR)/release/prove-pages --scale $(SCALE) $(if $(SEED),--seed $(SEED)) $(foreach version,$(PG),--pg $(version))

prove-clones: setup build ## start stock PostgreSQL at LSNs of a busy primary's past and check all: PG="14 15 16 17 18" SCALE=1 SEED=n
	$(CARGO_TARGET_DIR)/release/prove-clones $(if $(filter-out file,$(origin SCALE)),--scale $(SCALE)) $(if $(SEED),--seed $(SEED)) $(foreach version,$(PG),--pg $(version))

prove-crash: setup build ## kill a page server under load at every failpoint and at random moments, and check all: ROUNDS=200 PG="15 17" SEED=n
	$(CARGO_TARGET_DIR)/release/prove-crash --rounds $(ROUNDS) $(if $(SEED),--seed $(SEED)) \
	  $(if $(filter-out file,$(origin PG)),$(foreach version,$(PG),--pg $(version)))

long-run: setup build ## update a database of a fixed size and draw what the page server takes: MINUTES=30 COMMAND="TIMELINE RETENTION main TIME '1m'"
	$(CARGO_TARGET_DIR)/release/long-run --minutes $(MINUTES) $(if $(COMMAND),--command "$(COMMAND)")

prove-redo: ## check native redo against every page image that busy primaries log: PG="14 15 16 17 18" SEED=n [TABLE=docs/redo.md]
	scripts/setup --regression
	$(MAKE) --no-print-directory build
	$(CARGO_TARGET_DIR)/release/prove-redo --regression $(PAGESERVER_PG_HOME)/regression $(if $(SEED),--seed $(SEED)) \
	  $(if $(TABLE),--write $(TABLE)) $(foreach version,$(PG),--pg $(version))

prove-redo-changed: ## check native redo against PostgreSQL on changed records and pages: CHANGES=600 of each recorded case, SEED=1
	$(MAKE) --no-print-directory build
	PAGESERVER_TEST_CHANGES=$(or $(CHANGES),600) PAGESERVER_TEST_SEED=$(or $(SEED),1) \
	  $(CARGO) test --release --locked --package pageserver --test redo changed_cases -- --nocapture

bench: build ## every benchmark
	$(CARGO) bench --workspace --locked --profile release
