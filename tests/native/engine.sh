#!/usr/bin/env bash
# Builds the engine's native tests with each sanitizer and runs them.
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/native/compile.sh
python=${PYTHON:-.venv/bin/python}
zmq=${ORION_LIBZMQ_DIR:-$("$python" tools/build_libzmq.py | tail -n 1)}
out=build/native_engine
mkdir -p "$out"
flags=(-std=c11 -D_GNU_SOURCE -DSODIUM_STATIC -g -O1 -fno-omit-frame-pointer -Wall -Wextra -Wno-tsan -Iwire/include -Iorion_server/engine "-I$zmq/include")
libraries=("$zmq/lib/libzmq.a" "$zmq/lib/libsodium.a" -lstdc++ -lpthread -lrt -ldl)
sources=()
for source in orion_server/engine/*.c; do
  case "$(basename "$source")" in _engine*) ;; *) sources+=("$source") ;; esac
done
tests=(engine_ring engine_lanes lanes_unit ledger_race)
for sanitizer in address,undefined thread; do
  name=${sanitizer%%,*}
  checked=("-fsanitize=$sanitizer" -fno-sanitize-recover=all)
  wrapped=()
  [ "$name" = thread ] && wrapped=(tests/native/tsan_sendmsg.c -Wl,--wrap=sendmsg)
  compile "$out/$name" "${flags[@]}" "${checked[@]}" -- "${sources[@]}"
  engine=("${objects[@]}")
  for test in "${tests[@]}"; do
    gcc "${flags[@]}" "${checked[@]}" "tests/native/$test.c" "${wrapped[@]}" "${engine[@]}" "${libraries[@]}" \
      -o "$out/${test}_$name"
    echo "$test ($sanitizer)"
    timeout -k 5 300 "$out/${test}_$name"
  done
done
