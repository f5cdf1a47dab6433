#!/bin/sh
# Builds (`progress.sh build` or `progress.sh test`) and tells a person how far it is: on a terminal cargo's own
# progress bar does; elsewhere a line now and then. The first build compiles
# DataFusion and RocksDB and takes a while; later ones take seconds.
set -eu
cd "$(dirname "$0")/../.."
what=${1:-build}
if [ "$what" = test ]; then set -- test --workspace --no-run; else
    # One test beside the binary: cargo then builds what we depend on with the same features as for `make test`, once.
    set -- build --workspace --bin custody --test tamper
fi
dir=${CARGO_TARGET_DIR:-target}
if [ ! -d "$dir/debug/deps" ]; then
    printf '%s\n' "custody: first build; DataFusion and RocksDB take 10 to 25 minutes on two cores" >&2
fi
if [ -t 2 ]; then exec cargo "$@"; fi

log=$(mktemp)
start=$(date +%s)
total=$(grep -c '^\[\[package\]\]' Cargo.lock)
cargo "$@" >"$log" 2>&1 &
pid=$!
last=0
while kill -0 "$pid" 2>/dev/null; do
    sleep 2
    now=$(date +%s)
    if [ $((now - last)) -ge 30 ]; then
        last=$now
        done=$(grep -c '^ *Compiling ' "$log" || true)
        [ "$done" = 0 ] || printf 'custody: building: %s of at most %s crates, %s s, now %s\n' "$done" "$total" \
            $((now - start)) "$(grep '^ *Compiling ' "$log" | tail -n 1 | awk '{print $2}')" >&2
    fi
done
status=0
wait "$pid" || status=$?
if [ "$status" != 0 ]; then cat "$log" >&2; fi
grep -E '^ *(Finished|warning)' "$log" >&2 || true
rm -f "$log"
exit "$status"
