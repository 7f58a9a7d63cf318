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

# one TRANSPORT SCENARIO [ACT]: what it printed, in one piece, once it has ended.
one() {
  local output status=0
  [ $# -lt 3 ] || export FAKE_RAW_ACT=$3
  output=$(timeout -k 5 120 "$binary" "$1" "$2" 2>&1) || status=$?
  printf '%s\n' "$output"
  [ $status = 0 ] || printf '%s over %s: FAILED with %d\n' "$2" "$1" $status
  return $status
}
export -f one
export binary

all() {
  local transport scenario act
  for transport in "$@"; do
    for scenario in "${both[@]}"; do echo "$transport $scenario"; done
    case $transport in
      shm) echo "shm answers" ;;
      tcp) echo "tcp garbage" ;;
      raw*)
        for scenario in "${raw[@]}"; do echo "$transport $scenario"; done
        for act in 4 5 6 7 8 9; do echo "$transport bad_frames $act"; done  # enum fake_raw_act: what no worker sends
        ;;
    esac
  done
}

# They mostly wait for one another's threads: two for each CPU.
all "$@" | xargs -P $(($(nproc) * 2)) -L 1 bash -c 'one "$@"' one
