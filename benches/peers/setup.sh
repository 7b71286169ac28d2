#!/usr/bin/env bash
# Brings everything that run.py needs: margay, the Python peers, the Rust peers.
#
#   benches/peers/setup.sh [--python-only] [CACHE]
#
# CACHE is .cache/peers unless named. Needs cargo, python3 with venv, and the package registries. The Rust peers
# are packages of their own, outside of the workspace; each has its own lock file.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$here/../..
rust=true
if [ "${1:-}" = --python-only ]; then
    rust=false
    shift
fi
cache=${1:-$root/.cache/peers}
mkdir -p "$cache"

[ -x "$cache/venv/bin/python" ] || python3 -m venv "$cache/venv"
"$cache/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-input \
    --requirement "$here/requirements.txt"

(cd "$root" && cargo build --release -p margay-cli -p margay-benches --bins)
if $rust; then
    for peer in rten tract; do
        cargo build --release --locked --manifest-path "$here/$peer/Cargo.toml" --target-dir "$cache/target"
    done
fi
