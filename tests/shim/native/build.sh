#!/usr/bin/env bash
# Builds the session test: build.sh OUTPUT [compiler flags]. ORION_LIBZMQ_DIR names the private libzmq.
set -euo pipefail
root=$(cd "$(dirname "$0")/../../.." && pwd)
. "$root/tests/native/compile.sh"
output=$1
shift
libzmq=${ORION_LIBZMQ_DIR:-$("$root/.venv/bin/python" "$root/tools/build_libzmq.py")}
folder=$(dirname "$output")
mkdir -p "$folder"
link=("$libzmq/lib/libzmq.a" "$libzmq/lib/libsodium.a" -lstdc++)
case " $* " in
  *-fsanitize=thread*)
    # libzmq is not instrumented. As a library of its own it can be named in tsan.supp, which is far cheaper than
    # suppressing each report.
    gcc -shared -o "$folder/libzmq-apart.so" -Wl,--whole-archive "$libzmq/lib/libzmq.a" -Wl,--no-whole-archive \
      "$libzmq/lib/libsodium.a" \
      -lstdc++ -lpthread -lrt
    link=("$root/tests/native/tsan_sendmsg.c" -Wl,--wrap=sendmsg -L"$folder" -lzmq-apart
      "$libzmq/lib/libsodium.a" "-Wl,-rpath,\$ORIGIN")
    set -- "$@" -Wno-tsan  # fences: only pairs of flag and fence depend on them, which TSan does not follow
    ;;
esac
flags=(-std=c11 -Wall -Wextra -Werror -O1 -g -fno-omit-frame-pointer "$@" -D_GNU_SOURCE= -DZMQ_STATIC -DSODIUM_STATIC
  -I"$root/wire/include" -I"$root/shim/src" -I"$libzmq/include")
compile "$output.objects" "${flags[@]}" -- \
  "$root"/shim/src/session/*.c "$root"/shim/src/transport/*.c "$root"/tests/shim/native/*.c
gcc "${flags[@]}" "${objects[@]}" "${link[@]}" -lpthread -ldl -lm -lrt -o "$output"
