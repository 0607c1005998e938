# What developers and CI run. `make setup` installs the tools that `make check` needs.

.PHONY: test history crash soak check lint setup format-check clippy docs deny proto-lint audit

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

check: lint test

lint: format-check clippy docs deny proto-lint

setup:
	scripts/setup

format-check:
	cargo fmt --check

clippy:
	cargo clippy --locked --all-targets -- --deny warnings

docs:
	RUSTDOCFLAGS="--deny warnings" cargo doc --locked --no-deps --document-private-items

# Licences, bans and sources. Advisories need a database from the network: `make audit`.
deny:
	cargo deny --locked check licenses bans sources

proto-lint:
	.tools/node_modules/.bin/buf lint

audit:
	cargo deny --locked check advisories
