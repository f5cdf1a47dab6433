#!/bin/sh
# A Python venv with the real clients that the tests use, at pinned versions.
# Made once; made anew when tests/requirements.txt changes.
set -eu
cd "$(dirname "$0")/../.."
wanted=$(cksum <tests/requirements.txt)
[ "$(cat .venv/.wanted 2>/dev/null || true)" = "$wanted" ] && [ -x .venv/bin/python ] && exit 0

printf '%s\n' "custody: installing the test clients into .venv" >&2
rm -rf .venv
log=$(mktemp)
{ python3 -m venv .venv && .venv/bin/python -m pip install --quiet --disable-pip-version-check -r tests/requirements.txt; } \
    >"$log" 2>&1 || { cat "$log" >&2; rm -rf .venv; printf '%s\n' "custody: pip failed; its words are above" >&2; exit 1; }
rm -f "$log"
printf '%s\n' "$wanted" >.venv/.wanted
