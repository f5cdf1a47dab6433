#!/bin/sh
# Node.js and the OpenTelemetry exporters that the tests drive the built binary with, as
# tests/exporters/node/package-lock.json pins them. Made once; made anew when that changes.
# Where Node cannot be had (no root, or the system's is too old), it says so and leaves a note,
# and the test that needs it says again what it skips.
set -eu
cd "$(dirname "$0")/../../tests/exporters/node"
say() { printf '%s\n' "custody: $*" >&2; }
as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }
have() { command -v "$1" >/dev/null 2>&1; }
# What `engines` of package.json asks for.
usable() {
    have node && have npm && node -e 'const [a, b] = process.versions.node.split(".").map(Number);
        process.exit((a === 18 && b >= 19) || (a === 20 && b >= 6) || a > 20 ? 0 : 1)' 2>/dev/null
}
skip() {
    say "$*; the test of the Node.js exporters will be SKIPPED"
    mkdir -p node_modules
    printf '%s\n' "$*" >node_modules/.skipped
    exit 0
}

wanted=$(cat package.json package-lock.json | cksum)
[ "$(cat node_modules/.wanted 2>/dev/null || true)" = "$wanted" ] && usable && exit 0
rm -rf node_modules
log=$(mktemp)
trap 'rm -f "$log"' EXIT

if ! usable && { [ "$(id -u)" = 0 ] || have sudo || have brew; }; then
    say "installing Node.js for the tests"
    if have apt-get; then
        { as_root apt-get update -qq && as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq \
            --no-install-recommends nodejs npm; } >"$log" 2>&1 || cat "$log" >&2
    elif have dnf; then
        as_root dnf install -y -q nodejs npm >"$log" 2>&1 || cat "$log" >&2
    elif have brew; then
        brew install --quiet node >"$log" 2>&1 || cat "$log" >&2
    fi
fi
usable || skip "Node.js 18.19, 20.6 or newer with npm is missing and could not be installed"

say "installing the Node.js exporters into tests/exporters/node/node_modules"
npm ci --ignore-scripts --no-audit --no-fund --loglevel=error >"$log" 2>&1 ||
    { cat "$log" >&2; rm -rf node_modules; say "npm failed; its words are above"; exit 1; }
printf '%s\n' "$wanted" >node_modules/.wanted
