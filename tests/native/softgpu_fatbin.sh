#!/usr/bin/env bash
# softgpu's readers of fatbins, object files and archives under AddressSanitizer and UBSan, on mutated images that the
# program makes itself. FATBIN_ROUNDS bounds it, FUZZ_SEED repeats.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=build/native_softgpu
mkdir -p "$out"
g++ -std=c++17 -g -O1 -fsanitize=address,undefined -fno-sanitize-recover=all -DSOFTGPU_OWN_MUTATOR -Isoftgpu/include \
  softgpu/tests/fuzz_fatbin.cc softgpu/src/drv/{fatbin,archive,outline}.cc -ldl -o "$out/fuzz_fatbin"
"$out/fuzz_fatbin" "${FATBIN_ROUNDS:-50000}" "${FUZZ_SEED:-1}"
