#!/usr/bin/env bash
# Builds the engine's native tests with each sanitizer and runs them.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-.venv/bin/python}
zmq=${ORION_LIBZMQ_DIR:-$("$python" tools/build_libzmq.py | tail -n 1)}
out=build/native_engine
mkdir -p "$out"
flags=(-std=c11 -D_GNU_SOURCE -DSODIUM_STATIC -g -O1 -fno-omit-frame-pointer -Wall -Wextra -Wno-tsan -Iwire/include -Iorion_server/engine "-I$zmq/include")
libraries=("$zmq/lib/libzmq.a" "$zmq/lib/libsodium.a" -lstdc++ -lpthread -lrt -ldl)
engine=()
for source in orion_server/engine/*.c; do
  case "$(basename "$source")" in _engine*) ;; *) engine+=("$source") ;; esac
done
for sanitizer in address,undefined thread; do
  name=${sanitizer%%,*}
  wrapped=()
  [ "$name" = thread ] && wrapped=(tests/native/tsan_sendmsg.c -Wl,--wrap=sendmsg)
  for test in engine_ring engine_lanes lanes_unit ledger_race; do
    gcc "${flags[@]}" "-fsanitize=$sanitizer" -fno-sanitize-recover=all "tests/native/$test.c" "${wrapped[@]}" \
      "${engine[@]}" "${libraries[@]}" -o "$out/${test}_$name"
    echo "$test ($sanitizer)"
    timeout -k 5 300 "$out/${test}_$name"
  done
done
