#!/usr/bin/env bash
# Brings what the feature `gpu` needs to build and test: LLVM and MLIR 22 from Debian, ptxas from the Python registry.
# Nothing of it is needed otherwise.
#
#   bash scripts/setup-gpu.sh && source .gpu/env
#
# Everything but the Debian packages lies in .gpu/. Exit status 3: something cannot be had here, and standard error says what.
# On other distributions: install LLVM and MLIR 22 with their development files and libclang, and set LLVM_22 to the folder
# that `llvm-config-22 --prefix` prints.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

llvm=${LLVM_22:-/usr/lib/llvm-22}
shim=$PWD/.gpu/llvm
packages=(libmlir-22-dev llvm-22-dev libclang1-22 libclang-common-22-dev)
ptxas_package=nvidia-cuda-nvcc-cu12==12.9.86

unavailable() {
    echo "error: $1" >&2
    exit 3
}

# The packages of Debian, if LLVM is not there.
install_llvm() {
    [ -x "$llvm/bin/llvm-config" ] && [ -e "$llvm/lib/libMLIR.so" ] && return
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || unavailable "no MLIR 22 in $llvm, and apt-get cannot install it"
    apt-get -qq update </dev/null >/dev/null 2>&1 || true
    DEBIAN_FRONTEND=noninteractive apt-get -qq install --yes --no-install-recommends "${packages[@]}" g++ binutils \
        </dev/null >/dev/null 2>&1 || unavailable "apt-get has no ${packages[*]}"
}

# A folder of LLVM in the form that the crate mlir-sys links: the C interface of MLIR, which Debian has as many static
# archives, as one; and an llvm-config that denies static libraries, so that the shared ones are linked.
make_shim() {
    mkdir -p "$shim/bin" "$shim/lib"
    ln -sf "$llvm"/lib/lib{LLVM,MLIR}*.so* "$llvm"/lib/libLLVM{TableGen,Support,Demangle}.a "$shim/lib/"
    if ! [ -e "$shim/lib/libMLIR-C.a" ]; then
        {
            echo "create $shim/lib/libMLIR-C.a"
            printf 'addlib %s\n' "$llvm"/lib/libMLIRCAPI*.a
            printf 'save\nend\n'
        } | ar -M
    fi
    cat >"$shim/bin/llvm-config" <<END
#!/bin/sh
case " \$* " in
*" --link-static "*--libnames*) exit 1 ;;
*" --libdir "*) echo "$shim/lib" ;;
*) exec "$llvm/bin/llvm-config" "\$@" ;;
esac
END
    chmod +x "$shim/bin/llvm-config"
}

# ptxas assembles what is generated. Without it that check is left out.
fetch_ptxas() {
    [ -x .gpu/ptxas ] && return
    command -v ptxas >/dev/null && ln -sf "$(command -v ptxas)" .gpu/ptxas && return
    local folder
    folder=$(mktemp -d)
    if python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: --dest "$folder" \
        "$ptxas_package" </dev/null >/dev/null 2>&1; then
        python3 -m zipfile -e "$folder"/*.whl "$folder/wheel"
        install -m 755 "$folder/wheel/nvidia/cuda_nvcc/bin/ptxas" .gpu/ptxas
    else
        echo "left out: ptxas, since the Python registry cannot be reached" >&2
    fi
    rm -rf "$folder"
}

install_llvm
make_shim
fetch_ptxas
cat >.gpu/env <<END
export MLIR_SYS_220_PREFIX='$shim'
export TABLEGEN_220_PREFIX='$shim'
export MLIR_SYS_LINK_SHARED=1
export LD_LIBRARY_PATH='$shim/lib'\${LD_LIBRARY_PATH:+:\$LD_LIBRARY_PATH}
export MARGAY_PTXAS='$PWD/.gpu/ptxas'
END
