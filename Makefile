# What developers and CI run. `make setup` installs the tools that `make check` needs, but for openssl, which the tests run.

.PHONY: test history crash soak fuzz timing bench bench-parts check lint setup format-check clippy docs deny proto-lint rules dashboard dashboard-check audit sbom chart chart-golden chart-apiserver image-check dockerfile instructions instructions-baseline

test:
	cargo test --locked

# Clients that take down what they see while the server is killed again and again, and a checker of what they saw. Prints
# its seed; VERDICT_HISTORY_SEED makes the same choices again. A few operations fall to the kills, so it asks for some more
# than a million.
history: export VERDICT_HISTORY_OPERATIONS ?= 1050000
history:
	cargo test --locked --release --test it history:: -- --nocapture

# Power cuts under the log, on a simulated disk.
crash: export VERDICT_CRASH_CUTS ?= 2000
crash:
	cargo test --locked --release --test it crash:: -- --nocapture

# Millions of events through the server, while it deletes old ones.
soak: export VERDICT_SOAK_EVENTS ?= 10000000
soak:
	cargo test --locked --release --test it soak:: -- --nocapture

# Whatever may come in, mutated by coverage: 20 seconds for each target of fuzz/. VERDICT_FUZZ_SECONDS=600 for a long run.
fuzz:
	scripts/fuzz

# Whether the time that a refusal takes tells where a signature is wrong: a report, to be read on a quiet machine.
timing: export VERDICT_TIMING_SAMPLES ?= 1000000
timing:
	cargo test --locked --release --test it timing:: -- --nocapture --test-threads=1

# The pure parts of the way of a webhook, and what they cost next to the least that anybody can do.
bench-parts:
	cargo bench --locked --bench parts

# Whether a pure part takes many more instructions than it did: what a run counts does not depend on how busy the machine is.
instructions:
	scripts/instructions

# Writes benches/instructions.txt anew, after a change that is meant to be, or of the compiler.
instructions-baseline:
	scripts/instructions write

check: lint test

lint: format-check clippy docs deny proto-lint rules dockerfile

setup:
	scripts/setup

format-check:
	cargo fmt --check
	cargo fmt --check --manifest-path fuzz/Cargo.toml

clippy:
	cargo clippy --locked --all-targets -- --deny warnings

docs:
	RUSTDOCFLAGS="--deny warnings" cargo doc --locked --no-deps --document-private-items

# Licences, bans and sources. Advisories need a database that is not fetched: `make audit`.
deny:
	cargo deny --locked check licenses bans sources

proto-lint:
	.tools/node_modules/.bin/buf lint

# The alert rules of the chart: that they are valid, and that each fires when it should and not otherwise.
rules: export PATH := .tools/prometheus/usr/bin:$(PATH)
rules:
	promtool check rules helm/verdict/rules/verdict.yaml
	promtool test rules helm/verdict/rules/verdict_test.yaml helm/verdict/rules/weeks_test.yaml

# The Dockerfile: hadolint, that its versions are those of the repository, and that cargo can build from what it is given.
dockerfile:
	scripts/image-check dockerfile

# Writes the Grafana dashboard of the chart anew, after a change of scripts/dashboard.
dashboard:
	scripts/dashboard > helm/verdict/dashboards/verdict.json

# Every expression of the dashboard and of the alerts, evaluated by a real Prometheus that scrapes a running server.
dashboard-check:
	cargo build --locked
	scripts/dashboard-check

# How fast verdict is, next to services that do nothing: writes docs/benchmarks.md. For a quiet machine; half an hour.
bench: export VERDICT_BENCH_GROWTH ?= 10000000
bench:
	cargo bench --locked --bench load > target/benchmarks.md
	cargo bench --locked --bench parts | sed --quiet '/^## /,$$p' >> target/benchmarks.md
	cp target/benchmarks.md docs/benchmarks.md

# The Helm chart: with helm, the schemas of Kubernetes, our own policies, and the server run as each value set has it.
chart:
	cargo build --locked
	scripts/chart

# Writes helm/tests/golden anew, what the chart renders, after a change of the chart.
chart-golden:
	scripts/chart golden

# The chart on a real API server, which is built the first time: some minutes.
chart-apiserver:
	scripts/chart-apiserver

# What can be looked at of the image without Docker, with the program that it would hold: a release build. Needs root.
image-check:
	scripts/image-check

# Known vulnerabilities, from a local clone of the RustSec database: make audit ADVISORY_DB=<its directory>.
audit:
	scripts/audit

# What the program is made of, as CycloneDX: target/verdict.cdx.json.
sbom:
	scripts/sbom
