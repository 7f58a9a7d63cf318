#!/usr/bin/env bash
# The PTX front end of softgpu under AddressSanitizer and UBSan, on mutated texts. FUZZ_ROUNDS bounds it, FUZZ_SEED repeats.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=build/native_softgpu
mkdir -p "$out"
objects=()
flags=(-std=c++17 -g -O0 -fsanitize=address,undefined -fno-sanitize-recover=all -fno-sanitize=alignment
  -fno-strict-aliasing -Isoftgpu/include -DSOFTGPU_OWN_MUTATOR)
for source in softgpu/tests/fuzz_ptx.cc softgpu/src/ptx/*.cc softgpu/src/vm/*.cc; do
  object=$out/$(basename "$source" .cc).o
  objects+=("$object")
  g++ "${flags[@]}" -c "$source" -o "$object" &
  while [ "$(jobs -rp | wc -l)" -ge 2 ]; do wait -n; done
done
wait
g++ "${flags[@]}" "${objects[@]}" -lpthread -o "$out/fuzz_ptx"
"$out/fuzz_ptx" "${FUZZ_ROUNDS:-5000}" "${FUZZ_SEED:-1}" softgpu/tests/ptx/*.ptx
