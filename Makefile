# What developers and CI run. `make setup` installs the tools that `make check` needs.

.PHONY: test check lint setup format-check clippy docs deny proto-lint audit

test:
	cargo test --locked

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
