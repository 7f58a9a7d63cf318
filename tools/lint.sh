#!/usr/bin/env bash
# All linters; each runs even when one before it failed, so that one run shows everything.
set -uo pipefail
cd "$(dirname "$0")/.."
PATH=$PWD/.venv/bin:$PATH
failed=()

check() {
  local name=$1
  shift
  "$@" || failed+=("$name")
}

mapfile -t native < <(git ls-files '*.c' '*.cc' '*.cpp' '*.h' | grep -v -E '(^|/)gen_')

check "generated files" python -m wire.gen --check
check "ruff" ruff check .
check "ruff format" ruff format --check .
check "mypy" mypy
check "clang-format" clang-format --dry-run --Werror "${native[@]}"
check "clang-tidy" python tools/tidy.py

if [ ${#failed[@]} -gt 0 ]; then
  printf 'lint: FAILED: %s\n' "${failed[*]}" >&2
  exit 1
fi
echo "lint: all clean"
