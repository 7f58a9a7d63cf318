#!/usr/bin/env bash
# A whole session on a GPU machine that has Python 3.12, gcc and a driver, and no package registry.
#
#   benchmarks/gpu_session.sh OUT [WHEELS] [MODE] [options of the mode's program]
#
#   rows        facts, null engine, driver-API rows (benchmarks.session); without a MODE
#   bench       latency, launch, copy, scale, attach, network (benchmarks.measure_all, 500 s): rows.jsonl, tables.txt
#   slices      configured against achieved shares, alone, in company and changed live (560 s): rows.jsonl, tables.txt
#   suite       the workloads, three times (benchmarks.suite_session; over ten minutes: choose with `--only`): suite.json
#   areas       every tests/programs/*_api.c (benchmarks.area_session): areas.json
#   runtime     programs of the CUDA runtime (benchmarks.runtime_session): runtime.json
#   frameworks  tests/programs/frameworks (benchmarks.framework_session): frameworks.json
#   attach      stages from a fresh process to its first result (benchmarks.attach_stages): attach.json
#   correctness areas, runtime and frameworks side by side (nothing in them is timed), a folder of OUT and a log each
#   memory      quotas, kill and moved memory (benchmarks.memory_session): memory.json
#   ucx         UCX's lanes over its tcp, with and without its CUDA modules, from a UCX with CUDA
#               support in ORION_UCX_FOLDER (benchmarks.ucx_session, 140 s; tools/fetch_ucx.py): ucx.json
#   samples     a checkout of NVIDIA's cuda-samples, its path is the first option (benchmarks.cuda_samples): samples.json
#
# Uses what was built here before (build/shim, the engine module) and wheels from the folder WHEELS (default .whl) for
# what the machine's Python lacks. OUT gets JSON, tables and logs.
set -euo pipefail
cd "$(dirname "$0")/.."
out=$1
wheels=${2:-.whl}
shift $(($# > 1 ? 2 : 1))
mkdir -p "$out" build/tests
if [ -d "$wheels" ]; then
  site=$(mktemp -d)
  python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$site" "$wheels"/*.whl
  export PYTHONPATH="$site:$PWD"
fi
if [ "${1:-}" = correctness ]; then
  failed=0
  declare -A running=()
  for mode in area runtime framework; do
    mkdir -p "$out/$mode"
    python3 -m "benchmarks.${mode}_session" --device nvidia --out "$out/$mode" > "$out/$mode.log" 2>&1 &
    running[$mode]=$!
  done
  for mode in "${!running[@]}"; do
    wait "${running[$mode]}" || failed=1
    tail -n 25 "$out/$mode.log"
  done
  exit $failed
fi
case "${1:-}" in
  bench | slices) program=measure_all ;;
  suite) program=suite_session ;;
  areas) program=area_session ;;
  runtime) program=runtime_session ;;
  frameworks) program=framework_session ;;
  memory) program=memory_session ;;
  samples) program=cuda_samples ;;
  attach) program=attach_stages ;;
  ucx) program=ucx_session ;;
  rows | --* | "") program=session ;;
  *)
    echo "no such mode: $1" >&2
    exit 2
    ;;
esac
mode=${1:-}
case "$mode" in --* | "") ;; *) shift ;; esac
if [ "$mode" = slices ]; then set -- slices --budget 560 "$@"; fi
# Below the ten minutes that such machines give a command; `--budget` behind the mode says otherwise.
if [ "$mode" = suite ]; then set -- --repeats 3 "$@"; fi
if [ "$mode" = bench ]; then set -- --budget 500 "$@"; fi
if [ "$program" = session ]; then
  gcc -O1 -std=gnu11 -Iwire/include tests/programs/driver_api.c -o build/tests/driver_api -ldl -lpthread
  python3 -m benchmarks.gpu_facts > "$out/facts.json" 2> "$out/facts.log" || echo "a fact does not hold: see $out/facts.json"
  python3 -m benchmarks.null_engine --json > "$out/null.json" 2> "$out/null.log" || echo "null engine: see $out/null.log"
  cat "$out/null.json"
fi
exec python3 -m "benchmarks.$program" --device nvidia --out "$out" "$@"
