#!/usr/bin/env bash
# Makes a folder for a machine with an NVIDIA driver and nothing else: no Rust, no LLVM, no network.
#
#   bash scripts/gpu-bundle.sh FOLDER [CLASS]
#
# CLASS is what to compile for, sm_80 unless said otherwise; later devices run it, too. The folder holds the program, the kernels
# of `margay selftest`, the demo model compiled, and run.sh, which runs all of it in parts, the most telling first,
# and writes what is found into results/ after each part. The program needs a C library that is not older than the one here.
# Needs what scripts/setup-gpu.sh brings. Exit status 1: the folder is larger than 60 MB.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

folder=${1:?"usage: bash scripts/gpu-bundle.sh FOLDER [CLASS]"}
class=${2:-sm_80}
most_kb=60000
built=${CARGO_TARGET_DIR:-target}/release/margay

bash scripts/setup-gpu.sh
mkdir -p "$folder/results"

# The compiler makes the code; the program that goes along has none.
(
    source .gpu/env
    cargo build --release --quiet --features margay-cli/gpu
    rm -rf "$folder/kernels"
    "$built" selftest --class "$class" --write "$folder/kernels"
    cp demo/model.onnx "$folder/model.onnx"
    "$built" compile demo/model.onnx -o "$folder/model.margay" --device "cuda:$class" --dim batch=1
)
cargo build --release --quiet
cp "$built" "$folder/margay"
strip "$folder/margay"

cat >"$folder/run.sh" <<'END'
#!/bin/sh
# Runs the parts, each for so many seconds at most, and writes results/ as it goes: NAME.txt has what a part found, NAME.log what
# it said meanwhile, and summary.txt how each part ended: 0 is good, 1 a wrong result, 4 no device, 124 out of time.
#
#   sh run.sh [SECONDS]
cd "$(dirname "$0")" || exit 2
seconds=${1:-120}
mkdir -p results
: >results/summary.txt

part() {
    name=$1
    shift
    timeout "$seconds" "$@" >"results/$name.txt" 2>"results/$name.log"
    echo "$name: exit $?" | tee -a results/summary.txt
}

family() {
    name=$1
    shift
    part "$name" ./margay selftest --device cuda --class CLASS --kernels kernels "$@"
}

part machine nvidia-smi
for name in loops reductions products attention sketches; do
    family "$name" --small --family "$name"
done
part model ./margay compare model.onnx model.margay --dim batch=8 --rtol 1e-3 --atol 1e-4
for name in loops reductions attention sketches "large products"; do
    family "large-${name#large }" --family "$name"
done
part speed ./margay bench model.onnx model.margay --dim batch=8
if command -v compute-sanitizer >/dev/null; then
    part sanitizer compute-sanitizer ./margay selftest --device cuda --class CLASS --kernels kernels --small
fi
END
sed -i "s/CLASS/$class/" "$folder/run.sh"

size=$(du -sk "$folder" | cut -f1)
echo "$folder: $size kB; there: sh run.sh"
if [ "$size" -gt "$most_kb" ]; then
    echo "error: more than $most_kb kB" >&2
    exit 1
fi
