#!/usr/bin/env bash
# A whole session on a GPU machine that has Python 3.12, gcc and a driver, and no package registry.
#
#   benchmarks/gpu_session.sh OUT [WHEELS] [options of benchmarks.session]
#
# Uses what was built here before (build/shim, the engine module) and wheels from the folder WHEELS (default .whl) for
# what the machine's Python lacks. OUT gets session.json, table.txt, facts.json, null.json and logs.
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
gcc -O1 -std=gnu11 -Iwire/include tests/programs/driver_api.c -o build/tests/driver_api -ldl -lpthread
python3 -m benchmarks.gpu_facts > "$out/facts.json" 2> "$out/facts.log" || echo "a fact does not hold: see $out/facts.json"
python3 -m benchmarks.null_engine --json > "$out/null.json" 2> "$out/null.log" || echo "null engine: see $out/null.log"
cat "$out/null.json"
exec python3 -m benchmarks.session --device nvidia --out "$out" "$@"
