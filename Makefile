# Custody: two commands are enough.
#
#   make demo   build, and run the whole story on recorded agents, in a minute
#   make test   build, and pass the tests
#
# Both install what is missing first (a C++ compiler and libclang by the system's
# package manager; Python clients for the tests into .venv, and Node.js with its
# OpenTelemetry exporters), and only then.

CARGO ?= cargo
PROFILE_DIR := $(or $(CARGO_TARGET_DIR),target)/debug
export CARGO_TERM_COLOR ?= auto

.PHONY: help demo test build lint bench release sbom audit clean system venv node

help: ## What can be made
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 12

demo: build ## Build, then run the whole story on real input
	@$(PROFILE_DIR)/custody demo

test: system venv node ## Build, then pass all tests
	@tools/setup/progress.sh test
	@$(CARGO) fmt --all --check
	@CUSTODY_TEST_PYTHON="$(CURDIR)/.venv/bin/python" $(CARGO) test --workspace --no-fail-fast

build: system ## Build the custody command
	@tools/setup/progress.sh build

# Clippy over our own crates; what they depend on is shared with `make test`.
lint: system ## Format and lints, as strict as the repository asks
	@$(CARGO) fmt --all --check
	@CLIPPY_ARGS=-Dwarnings RUSTC_WORKSPACE_WRAPPER="$$(rustup which clippy-driver)" $(CARGO) build --workspace --all-targets

bench: system ## Measure the hot path beside bare loops (release build)
	@$(CARGO) run --release -p custody-benches -- all

release: system ## Build the optimised custody command
	@$(CARGO) build --release --bin custody

sbom: ## Write target/custody.cdx.json, the bill of materials (CycloneDX)
	@tools/packaging/sbom.py > target/custody.cdx.json
	@echo "target/custody.cdx.json"

audit: ## Known vulnerabilities, licenses and sources of what is built in
	@tools/packaging/audit.sh

clean: ## Remove what was built
	@$(CARGO) clean
	@rm -rf .venv tests/exporters/node/node_modules

system:
	@tools/setup/system.sh

venv:
	@tools/setup/venv.sh

node:
	@tools/setup/node.sh
