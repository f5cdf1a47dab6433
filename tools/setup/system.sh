#!/bin/sh
# Installs what the build needs and the system lacks: a C and C++ compiler and
# libclang (RocksDB's bindings), and for the tests Python's venv. Quiet, and only
# when something is missing.
set -eu

say() { printf '%s\n' "custody: $*" >&2; }

have_libclang() {
    [ -n "${LIBCLANG_PATH:-}" ] && return 0
    for dir in /usr/lib/llvm-*/lib /usr/lib/x86_64-linux-gnu /usr/lib/aarch64-linux-gnu /usr/lib64 \
        /usr/lib64/llvm*/lib /opt/homebrew/opt/llvm/lib /usr/local/opt/llvm/lib \
        /Library/Developer/CommandLineTools/usr/lib; do
        for lib in "$dir"/libclang.so "$dir"/libclang.so.* "$dir"/libclang-*.so* "$dir"/libclang.dylib; do
            case $lib in *libclang-cpp*) continue ;; esac
            [ -e "$lib" ] && return 0
        done
    done
    return 1
}

# bindgen needs clang's own headers (stddef.h and the like) or gcc's.
have_headers() {
    for dir in /usr/lib/llvm-*/lib/clang/*/include /usr/lib/clang/*/include /usr/lib/gcc/*/*/include \
        /opt/homebrew/opt/llvm/lib/clang /Library/Developer/CommandLineTools; do
        [ -d "$dir" ] && return 0
    done
    return 1
}

have() { command -v "$1" >/dev/null 2>&1; }

if ! have cargo && [ -x "$HOME/.cargo/bin/cargo" ]; then
    say "cargo is in $HOME/.cargo/bin but not on PATH; run: . \"$HOME/.cargo/env\""
    exit 1
fi
if ! have cargo; then
    say "Rust is missing; install it from https://rustup.rs, then run make again"
    exit 1
fi

missing=
have c++ || missing="$missing c++"
have cc || missing="$missing cc"
have_libclang || missing="$missing libclang"
have_headers || missing="$missing headers"
have python3 || missing="$missing python3"
if have python3 && ! python3 -c 'import ensurepip, venv' >/dev/null 2>&1; then
    missing="$missing venv"
fi
[ -z "$missing" ] && exit 0

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; elif have sudo; then sudo "$@"; else
        say "these are missing and need root to install:$missing"
        exit 1
    fi
}

say "installing what the build needs:$missing"
log=$(mktemp)
if have apt-get; then
    { as_root apt-get update -qq && as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq \
        --no-install-recommends build-essential libclang-dev python3 python3-venv ca-certificates; } >"$log" 2>&1 ||
        { cat "$log" >&2; say "apt-get failed; its words are above"; exit 1; }
elif have dnf; then
    as_root dnf install -y -q gcc gcc-c++ make clang-devel python3 >"$log" 2>&1 ||
        { cat "$log" >&2; say "dnf failed; its words are above"; exit 1; }
elif have brew; then
    brew install --quiet llvm python3 >"$log" 2>&1 ||
        { cat "$log" >&2; say "brew failed; its words are above"; exit 1; }
else
    say "please install a C++ compiler, libclang and python3 with venv, then run make again"
    exit 1
fi
rm -f "$log"
