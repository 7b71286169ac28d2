#!/usr/bin/env bash
# Puts faults into what a change touched and says which of them the tests do not see.
#
#   bash scripts/mutants.sh BASE [OPTION...]
#
# BASE is the commit that the change starts from, such as `main`; the change is the working tree against it.
# Options go to `cargo mutants`, such as `--timeout 60`, `--shard 0/4` or `--file 'crates/plan/**'`. Each fault is built
# and the tests of the whole workspace run on it, which takes long; `--test-package NAME` runs those of one crate.
# Reports lie in target/mutants. Exit status 2: a fault was not caught. Needs cargo and, if cargo-mutants is missing, a
# network.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

VERSION=27.1.0

if [ $# -lt 1 ]; then
    echo "usage: bash scripts/mutants.sh BASE [OPTION...]" >&2
    exit 2
fi
base=$1
shift
if ! cargo mutants --version >/dev/null 2>&1; then
    cargo install --locked --quiet "cargo-mutants@$VERSION"
fi
mkdir -p target/mutants
git diff --relative "$(git merge-base "$base" HEAD)" -- '*.rs' >target/mutants/change.diff
if ! [ -s target/mutants/change.diff ]; then
    echo "no Rust file differs from $base"
    exit 0
fi
tests=(--test-workspace true)
for option in "$@"; do
    case $option in
    --test-package* | --test-workspace*) tests=() ;;
    esac
done
exec cargo mutants --workspace --in-diff target/mutants/change.diff --output target/mutants --profile release \
    --no-shuffle "${tests[@]}" "$@"
