#!/bin/sh
# Takes another version of gitleaks' rules: `ingest/rules/update.sh v8.30.1`, or without
# an argument the newest. Needs Go, whose module proxy hands out the source and checks it.
# Then: `cargo test --workspace --lib redact` says whether every rule still compiles, and
# which new ones are to be looked at; the change belongs in CHANGELOG.md.
set -eu
cd "$(dirname "$0")"
module=github.com/zricethezav/gitleaks/v8
found=$(go mod download -json "$module@${1:-latest}")
field() { printf '%s\n' "$found" | sed -n "s/^[[:space:]]*\"$1\": \"\(.*\)\",\{0,1\}\$/\1/p"; }
dir=$(field Dir)
version=$(field Version)
[ -f "$dir/config/gitleaks.toml" ] || { echo "update.sh: $module has no config/gitleaks.toml" >&2; exit 1; }
cat "$dir/config/gitleaks.toml" >gitleaks.toml
cat "$dir/LICENSE" >gitleaks.LICENSE
sed -i "s/^\(pub(super) const GITLEAKS_VERSION: &str = \"\).*\";/\1${version#v}\";/" ../src/redact/files.rs
echo "gitleaks $version, $(grep -c '^id = ' gitleaks.toml) rules, $(field Sum)"
