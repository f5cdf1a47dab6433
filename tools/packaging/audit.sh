#!/bin/sh
# Known vulnerabilities, licenses and sources of what Cargo.lock names, by whichever of the usual tools
# is installed. That nothing was looked at is told, and is no success.
set -u
cd "$(dirname "$0")/../.."

if command -v cargo-deny >/dev/null; then
    exec cargo deny --config tools/packaging/deny.toml check
fi
if command -v cargo-audit >/dev/null; then
    echo "cargo-deny is not installed: vulnerabilities only, no licenses, bans and sources" >&2
    exec cargo audit
fi
echo "nothing was looked at: install cargo-deny (cargo install --locked cargo-deny) or cargo-audit" >&2
exit 2
