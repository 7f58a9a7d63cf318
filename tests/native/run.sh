#!/usr/bin/env bash
# Every native test under the sanitizers: the shim's session side here, then the engine's; and the fuzzers.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
native=$root/tests/shim/native
for sanitizer in address,undefined thread; do
  binary=$root/build/native_shim/session_test_${sanitizer%%,*}
  "$native/build.sh" "$binary" "-fsanitize=$sanitizer" -fno-sanitize-recover=all
  echo "== shim sessions ($sanitizer)"
  "$native/run.sh" "$binary"
done
for script in engine fuzz; do
  echo "== $script"
  "$here/$script.sh"
done
