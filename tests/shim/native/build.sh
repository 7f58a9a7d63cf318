#!/usr/bin/env bash
# Builds the session test: build.sh OUTPUT [compiler flags]. ORION_LIBZMQ_DIR names the private libzmq.
set -euo pipefail
root=$(cd "$(dirname "$0")/../../.." && pwd)
output=$1
shift
libzmq=${ORION_LIBZMQ_DIR:-$("$root/.venv/bin/python" "$root/tools/build_libzmq.py")}
mkdir -p "$(dirname "$output")"
gcc -std=c11 -Wall -Wextra -Werror -O1 -g -fno-omit-frame-pointer "$@" -D_GNU_SOURCE= -DZMQ_STATIC \
  -I"$root/wire/include" -I"$root/shim/src" -I"$libzmq/include" \
  "$root"/shim/src/session/*.c "$root"/shim/src/transport/*.c "$root"/tests/shim/native/*.c \
  "$libzmq/lib/libzmq.a" -lstdc++ -lpthread -ldl -lm -lrt -o "$output"
