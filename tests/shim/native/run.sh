#!/usr/bin/env bash
# Runs every scenario over both transports: run.sh BINARY
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
export ASAN_OPTIONS="detect_leaks=1:${ASAN_OPTIONS:-}"
export UBSAN_OPTIONS="halt_on_error=1:print_stacktrace=1:${UBSAN_OPTIONS:-}"
export TSAN_OPTIONS="halt_on_error=1:suppressions=$here/tsan.supp:${TSAN_OPTIONS:-}"
unset LD_PRELOAD CUDA_VISIBLE_DEVICES
for transport in shm tcp; do
  for scenario in calls full bounce staging errors callback death full_death fork sync copies exit; do
    timeout -k 5 120 "$1" "$transport" "$scenario"
  done
done
timeout -k 5 120 "$1" tcp garbage
