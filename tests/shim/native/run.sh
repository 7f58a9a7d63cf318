#!/usr/bin/env bash
# Runs every scenario over all transports: run.sh BINARY [TRANSPORT...]
# raw-spin is raw as on a machine with CPUs enough for waits to spin.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
export ASAN_OPTIONS="detect_leaks=1:${ASAN_OPTIONS:-}"
export UBSAN_OPTIONS="halt_on_error=1:print_stacktrace=1:${UBSAN_OPTIONS:-}"
export TSAN_OPTIONS="halt_on_error=1:suppressions=$here/tsan.supp:${TSAN_OPTIONS:-}"
unset LD_PRELOAD CUDA_VISIBLE_DEVICES
binary=$1
shift
both=(calls full bounce staging errors callback death full_death fork sync copies exit)
raw=(garbage waiters stripes resend words_first held_end close_lane_0 reset_lane_0 reset_stripe fork_wait exit_unsent)
[ $# -gt 0 ] || set -- shm tcp raw raw-spin
for transport in "$@"; do
  scenarios=("${both[@]}")
  case $transport in shm) scenarios+=(answers) ;; tcp) scenarios+=(garbage) ;; raw*) scenarios+=("${raw[@]}") ;; esac
  for scenario in "${scenarios[@]}"; do
    timeout -k 5 120 "$binary" "$transport" "$scenario"
  done
  case $transport in
    raw*)  # enum fake_raw_act: what no worker sends
      for act in 4 5 6 7 8 9; do FAKE_RAW_ACT=$act timeout -k 5 120 "$binary" "$transport" bad_frames; done
      ;;
  esac
done
