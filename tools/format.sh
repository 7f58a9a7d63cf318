#!/usr/bin/env bash
# Rewrites the sources given (default: all tracked) in the project's style; generated files are left alone.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH=$PWD/.venv/bin:$PATH
mapfile -t files < <(git ls-files -- "$@" | grep -E '\.(c|cc|cpp|h|py)$' | grep -v -E '(^|/)gen_')
mapfile -t native < <(printf '%s\n' "${files[@]}" | grep -v '\.py$' || true)
mapfile -t python < <(printf '%s\n' "${files[@]}" | grep '\.py$' || true)
if [ ${#native[@]} -gt 0 ]; then clang-format -i "${native[@]}"; fi
if [ ${#python[@]} -gt 0 ]; then
  ruff check -q --fix-only "${python[@]}"
  ruff format -q "${python[@]}"
fi
