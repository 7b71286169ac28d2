#!/usr/bin/env bash
# Runs all tests: cargo's, on real models where they can be had, the GPU back end on its emulator, the Python checks end to
# end, and one round of the comparison with other runtimes.
#
#   bash scripts/test.sh
#
# Needs cargo and a C linker; python3 and a network for the models; what scripts/setup-gpu.sh brings for the GPU
# back end. What the machine lacks is left out and said. Downloads and the Python environment live in .cache/. Closes with one line,
# `N passed, N failed, N skipped`. Exit status 1: a test failed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

cache=$PWD/.cache
data=$cache/models
python=$cache/venv/bin/python
tools=tests/tools
export PYTHONDONTWRITEBYTECODE=1

left_out=()     # what this machine could not run, one sentence each
passed=0 failed=0 skipped=0
features=()     # of cargo

say() { printf '== %s\n' "$*"; }

leave_out() {
    left_out+=("$1")
    say "left out: $1"
}

# apt_install PACKAGE...: true if the packages are installed afterwards.
apt_install() {
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || return 1
    say "installing $*"
    apt-get -qq update </dev/null >/dev/null 2>&1 || true
    DEBIAN_FRONTEND=noninteractive apt-get -qq install --yes --no-install-recommends "$@" \
        </dev/null >/dev/null 2>&1
}

require_compilers() {
    if ! command -v cargo >/dev/null && [ -x "$HOME/.cargo/bin/cargo" ]; then
        export PATH="$HOME/.cargo/bin:$PATH"
    fi
    if ! command -v cargo >/dev/null; then
        echo "error: cargo is missing; install Rust" >&2
        exit 2
    fi
    if ! command -v cc >/dev/null && ! apt_install gcc libc6-dev; then
        echo "error: a C linker (cc) is missing" >&2
        exit 2
    fi
}

# Makes .cache/venv hold what tests/tools/requirements.txt names; false if it cannot.
prepare_python() {
    local requirements=$tools/requirements.txt stamp=$cache/venv/requirements.txt
    if [ -x "$python" ] && cmp -s "$requirements" "$stamp"; then
        return 0
    fi
    command -v python3 >/dev/null || apt_install python3 python3-venv || return 1
    mkdir -p "$cache"
    if ! [ -x "$python" ] || ! "$python" -m pip --version >/dev/null 2>&1; then
        make_venv || { apt_install python3-venv && make_venv; } || return 1
    fi
    say "installing $requirements into $cache/venv"
    "$python" -m pip install --quiet --disable-pip-version-check --no-input --retries 1 \
        --requirement "$requirements" </dev/null || return 1
    cp "$requirements" "$stamp"
}

make_venv() { python3 -m venv --clear "$cache/venv" >/dev/null 2>&1; }

# tool SCRIPT ARGUMENT...: runs a Python tool; false if what it needs is not available here.
tool() {
    local status=0
    "$python" "$tools/$1" "${@:2}" </dev/null >/dev/null || status=$?
    case $status in
    0) return 0 ;;
    3) return 1 ;;
    *)
        echo "error: $tools/$1 failed with status $status" >&2
        exit 1
        ;;
    esac
}

# Brings models and data into $data, and exports MARGAY_TEST_DATA if there are any.
prepare_data() {
    if ! prepare_python; then
        leave_out "tests on real models: no Python environment (python3 or network missing)"
        return
    fi
    say "preparing models and data in $data"
    if ! tool fetch_models.py --out "$data"; then
        leave_out "tests on real models: they could not be downloaded"
        return
    fi
    tool make_reference.py --models "$data" --out "$data"
    tool make_gradients.py --models "$data" --out "$data"
    if ! tool make_calibration.py --models "$data" --out "$data"; then
        leave_out "tests on calibration text: the Debian packages could not be downloaded"
    fi
    test_data=$data
}

# Runs the tests of cargo and adds up their result lines. A test that finds no data passes, but prints a line that begins
# with `skipped:`; it is counted as skipped.
cargo_tests() {
    local log=$cache/cargo-test.log status=0 ok bad without
    say "cargo test --release --workspace ${features[*]}"
    CARGO_TERM_COLOR=never ${test_data:+env "MARGAY_TEST_DATA=$test_data"} \
        cargo test --release --no-fail-fast --workspace "${features[@]}" -- --show-output \
        </dev/null 2>&1 | tee "$log" | without_successes || status=$?
    read -r ok bad without < <(cargo_counts "$log")
    if [ "$status" != 0 ] && [ "$bad" = 0 ]; then
        # It did not compile, or a test program died before its result line.
        bad=1
    fi
    add_counts "$ok" "$bad" "$without"
}

# Turns the GPU back end on, which needs LLVM but no GPU: its tests run on an emulator. One set of features for all that
# follows, since each other set compiles every crate anew.
prepare_gpu() {
    if bash scripts/setup-gpu.sh; then
        source .gpu/env
        features=(--features margay-tests/gpu,margay-cli/gpu)
    else
        leave_out "tests of the GPU back end: no LLVM and MLIR 22"
        add_counts 0 0 1
    fi
}

build_programs() { cargo build --release --quiet --workspace --bins "${features[@]}" </dev/null; }

# What a reader wants of cargo's output: all but the passed tests and what they printed.
without_successes() {
    awk '
        /^successes:$/ { quiet = 1 }
        /^(failures:|test result:.*)$/ { quiet = 0 }
        /^test .* \.\.\. ok$/ || (quiet && !/^skipped:/) { next }
        { print; fflush() }
    '
}

# Prints PASSED FAILED SKIPPED of a log of `cargo test -- --show-output`.
cargo_counts() {
    awk '
        /^---- .* stdout ----$/ { uncounted = 1 }
        /^skipped:/ && uncounted { unavailable++; uncounted = 0 }
        /^test result:/ {
            for (i = 2; i <= NF; i++) {
                if ($i == "passed;") passed += $(i - 1)
                if ($i == "failed;") failed += $(i - 1)
                if ($i == "ignored;") ignored += $(i - 1)
            }
        }
        END { print passed - unavailable, failed + 0, ignored + unavailable }
    ' "$1"
}

# The whole program, checked by a script that closes with `N passed, N failed, N skipped`.
python_check() {
    local check=$tools/$1 log=$cache/${1%.py}.log status=0 counts ok bad without
    if ! "$python" -c 'import numpy, onnx, onnxruntime' 2>/dev/null; then
        leave_out "$check: no Python environment"
        add_counts 0 0 1
        return 0
    fi
    say "$check"
    build_programs
    ${test_data:+env "MARGAY_TEST_DATA=$test_data"} \
        "$python" "$check" --binary "${CARGO_TARGET_DIR:-target}/release/margay" \
        </dev/null 2>&1 | tee "$log" || status=$?
    counts=$(sed -nE '$s/^([0-9]+) passed, ([0-9]+) failed, ([0-9]+) skipped$/\1 \2 \3/p' "$log")
    read -r ok bad without <<<"${counts:-0 1 0}"
    if [ "$status" != 0 ] && [ "$bad" = 0 ]; then
        bad=1
    fi
    add_counts "$ok" "$bad" "$without"
}

# One round of the comparison with other runtimes on a tiny network: that it runs, and that outputs agree.
peers_check() {
    local peers=benches/peers folder=$cache/peers-check
    say "$peers/run.py"
    if ! "$python" -c 'import numpy, onnx, onnxruntime' 2>/dev/null; then
        leave_out "$peers/run.py: no Python environment"
        add_counts 0 0 1
        return 0
    fi
    build_programs
    rm -rf "$folder"
    if "$python" $peers/run.py --models tiny --peers margay,onnxruntime --rounds 1 --seconds 0.05 \
        --python "$python" --cache "$folder" --out "$folder/results" </dev/null &&
        "$python" $peers/report.py --results "$folder/results" --out "$folder/benchmarks.md"; then
        add_counts 1 0 0
    else
        add_counts 0 1 0
    fi
}

# add_counts PASSED FAILED SKIPPED
add_counts() {
    passed=$((passed + $1))
    failed=$((failed + $2))
    skipped=$((skipped + $3))
}

test_data=
require_compilers
mkdir -p "$cache"
prepare_data
prepare_gpu
cargo_tests
python_check check_e2e.py
python_check check_nodes.py
python_check check_models.py
peers_check
for sentence in ${left_out[@]+"${left_out[@]}"}; do
    say "left out: $sentence"
done
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" = 0 ]
