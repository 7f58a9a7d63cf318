#!/usr/bin/env bash
# libFuzzer with AddressSanitizer and UBSan on everything that reads bytes of others: frames from a client (and the
# operations in them), PTX, and images of modules.
#
#   tests/native/fuzz.sh [frame|ptx|fatbin]...      all when none is named
#
# FUZZ_RUNS: inputs of each (default: about half a minute of each); FUZZ_SEED: another chain of mutations.
# An input that fails stays in build/fuzz/TARGET: build/fuzz/fuzz_TARGET FILE runs it again.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/native/compile.sh
tools/setup.sh --fuzz
python=${PYTHON:-.venv/bin/python}
out=build/fuzz
mkdir -p "$out"
common=(-g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize=alignment,function,vptr
  -fno-sanitize-recover=all)

# compile_for TARGET FLAGS... -- SOURCES...
compile_for() {
  CC=clang CXX=clang++ compile "$out/objects_$1" "${common[@]}" -fsanitize=fuzzer-no-link "${@:2}"
}

link() {
  clang++ "${common[@]}" -fsanitize=fuzzer "${objects[@]}" "${@:2}" -o "$out/fuzz_$1"
}

# run TARGET RUNS FLAGS...: from the seeds in its folder, and those that the program writes there itself.
run() {
  local target=$1 runs=${FUZZ_RUNS:-$2} started=$SECONDS
  local folder=$out/$target
  if ! ORION_FUZZ_SEEDS=$folder/seeds "$out/fuzz_$target" -runs="$runs" -seed="${FUZZ_SEED:-1}" -timeout=30 \
    -rss_limit_mb=6000 -artifact_prefix="$folder/" "${@:3}" "$folder/found" "$folder/seeds" >"$folder/log" 2>&1; then
    tail -n 60 "$folder/log" >&2
    return 1
  fi
  printf 'fuzz_%s: %s, coverage%s, %d s\n' "$target" "$(grep -o 'Done [0-9]* runs' "$folder/log")" \
    "$(grep -o ' cov: [0-9]*' "$folder/log" | tail -n 1 | cut -d: -f2)" $((SECONDS - started))
}

frame() {
  local zmq source sources=(tests/native/fuzz_frame.c)
  zmq=${ORION_LIBZMQ_DIR:-$("$python" tools/build_libzmq.py | tail -n 1)}
  for source in orion_server/engine/*.c; do
    case "$(basename "$source")" in _engine* | engine.c) ;; *) sources+=("$source") ;; esac
  done
  compile_for frame -O1 -std=c11 -D_GNU_SOURCE -DSODIUM_STATIC -Iwire/include -Iorion_server/engine "-I$zmq/include" \
    -- "${sources[@]}"
  link frame "$zmq/lib/libzmq.a" "$zmq/lib/libsodium.a" -lpthread -lrt -ldl
  run frame 12000 -max_len=8192
}

ptx() {
  compile_for ptx -O0 -std=c++17 -fno-strict-aliasing -Isoftgpu/include \
    -- softgpu/tests/fuzz_ptx.cc softgpu/src/ptx/*.cc softgpu/src/vm/*.cc
  link ptx -lpthread
  "$python" -m softgpu.tests.fuzz_seeds "$out/ptx/seeds"
  run ptx 30000 -max_len=131072  # the longest module is 95 KB
}

fatbin() {
  compile_for fatbin -O1 -std=c++17 -Isoftgpu/include \
    -- softgpu/tests/fuzz_fatbin.cc softgpu/src/drv/{fatbin,archive,outline}.cc
  link fatbin -ldl
  run fatbin 300000 -max_len=4096
}

targets=("$@")
[ ${#targets[@]} -gt 0 ] || targets=(frame ptx fatbin)
for target in "${targets[@]}"; do
  case $target in frame | ptx | fatbin) ;; *)
    echo "fuzz.sh: no target $target; there are: frame ptx fatbin" >&2
    exit 2
    ;;
  esac
done
running=()
for target in "${targets[@]}"; do
  rm -rf "${out:?}/$target"
  mkdir -p "$out/$target/seeds" "$out/$target/found"
  "$target" &  # side by side: none uses more than one CPU
  running+=($!)
done
failed=0
for process in "${running[@]}"; do wait "$process" || failed=1; done
exit $failed
