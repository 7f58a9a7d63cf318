#!/usr/bin/env bash
# Makes a fresh Debian or Ubuntu machine ready: system packages (only those missing), .venv, Python packages, pycuda.
# Repeats are cheap: nothing is done when .venv is newer than what describes it.
set -euo pipefail
cd "$(dirname "$0")/.."

VENV=.venv
STAMP=$VENV/.orion-setup
APT_UPDATED=

say() { printf 'setup: %s\n' "$*" >&2; }

die() {
  say "$*"
  exit 1
}

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}

# need PACKAGES...: installs Debian packages, or says what to install.
need() {
  command -v apt-get >/dev/null || die "missing: $*; this is not Debian or Ubuntu, install their equivalents and run again"
  if [ "$(id -u)" != 0 ] && ! sudo -n true 2>/dev/null; then
    die "missing: $*; run as root: apt-get install -y $*"
  fi
  say "installing $*"
  export DEBIAN_FRONTEND=noninteractive
  if [ -z "$APT_UPDATED" ]; then
    as_root apt-get update -qq
    APT_UPDATED=1
  fi
  as_root apt-get install -y -qq --no-install-recommends -o DPkg::Lock::Timeout=600 "$@" >/dev/null
}

usable_python() {
  "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null
}

find_python() {
  local candidate
  for candidate in ${PYTHON:-} python3 python3.13 python3.12 python3.11; do
    if usable_python "$candidate"; then
      command -v "$candidate"
      return
    fi
  done
  return 1
}

system_packages() {
  local missing=() tool
  declare -A package_of=([gcc]=gcc [g++]=g++ [cmake]=cmake [make]=make [ar]=binutils [git]=git [valgrind]=valgrind)
  for tool in "${!package_of[@]}"; do
    command -v "$tool" >/dev/null || missing+=("${package_of[$tool]}")
  done
  command -v gcc >/dev/null && ! echo '#include <stdlib.h>' | gcc -E - >/dev/null 2>&1 && missing+=(libc6-dev)
  if [ ${#missing[@]} -gt 0 ]; then need "${missing[@]}"; fi

  local python version
  python=$(find_python) || {
    need python3
    python=$(find_python) || die "no Python 3.11, 3.12 or 3.13 found; install one and name it with PYTHON=/path/to/python3"
  }
  version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
  "$python" -c 'import ensurepip, venv' 2>/dev/null || need "python$version-venv"
  "$python" -c 'import os, sysconfig; open(os.path.join(sysconfig.get_path("include"), "Python.h"))' 2>/dev/null ||
    need "python$version-dev"
}

# What the tests start or build against: a browser, PostgreSQL, UCX with its headers and ucx_perftest.
test_packages() {
  local missing=() folder=/etc/postgresql-common/createcluster.d
  command -v chromium >/dev/null || missing+=(chromium)
  if ! command -v initdb >/dev/null && ! compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null; then
    missing+=(postgresql)
    # The tests start servers of their own: the package must neither make nor start one.
    if [ "$(id -u)" = 0 ] || sudo -n true 2>/dev/null; then
      as_root mkdir -p $folder
      echo 'create_main_cluster = false' | as_root tee $folder/orion-setup.conf >/dev/null
    fi
  fi
  compgen -G '/usr/lib/*/libucp.so.0' >/dev/null || missing+=(libucx0)
  [ -e /usr/include/ucp/api/ucp.h ] || missing+=(libucx-dev)
  command -v ucx_perftest >/dev/null || missing+=(ucx-utils)
  if [ ${#missing[@]} -gt 0 ]; then need "${missing[@]}"; fi
  if [ -e $folder/orion-setup.conf ]; then as_root rm -f $folder/orion-setup.conf; fi
}

# For `make rdma`: what goes into the emulated machine. Its kernel's package is fetched by tests/rdma/image.py.
rdma_machine() {
  local missing=()
  command -v qemu-system-x86_64 >/dev/null || missing+=(qemu-system-x86)
  command -v busybox >/dev/null || missing+=(busybox-static)
  command -v rdma >/dev/null || missing+=(iproute2)
  compgen -G '/usr/lib/*/libibverbs/librxe-*.so' >/dev/null || missing+=(ibverbs-providers)
  if [ ${#missing[@]} -gt 0 ]; then need "${missing[@]}"; fi
  apt-cache depends linux-image-amd64 2>/dev/null | grep -q 'Depends: linux-image-' || as_root apt-get update -qq
}

# For tests/native/fuzz.sh: clang with libFuzzer.
fuzzer() {
  command -v clang++ >/dev/null || need clang
  local version
  version=$(clang++ -dumpversion)
  compgen -G "$(clang++ -print-resource-dir)/lib/*/libclang_rt.fuzzer*" >/dev/null ||
    need "libclang-rt-${version%%.*}-dev"
}

virtual_environment() {
  local python
  if [ -e $VENV/bin/python ] && ! usable_python $VENV/bin/python; then
    say "$VENV has an unusable Python; making it again"
    rm -rf $VENV
  fi
  if [ ! -e $VENV/bin/python ]; then
    python=$(find_python)
    say "making $VENV with $python"
    "$python" -m venv $VENV
  fi
  # The build tools first, because the project itself is then installed without a build environment of its own.
  say "installing Python packages"
  quietly $VENV/bin/python -m pip install -q --upgrade 'pip>=24' 'setuptools>=77,<84' 'cffi>=2.0,<3'
  say "building pycuda beside them (a minute or two on the first run, cached afterwards)"
  quietly $VENV/bin/python tools/build_pycuda.py &
  local pycuda=$!
  quietly $VENV/bin/python -m pip install -q --no-build-isolation -e '.[dev]'
  wait $pycuda || exit 1
  quietly $VENV/bin/python tools/build_pycuda.py --install
}

# Shows a command's output only when it fails: pip and setuptools warn at length about what is as intended.
quietly() {
  local output
  output=$("$@" 2>&1) || {
    printf '%s\n' "$output" >&2
    die "failed: $*"
  }
}

case "${1:-}" in
  --rdma)
    rdma_machine
    exit 0
    ;;
  --fuzz)
    fuzzer
    exit 0
    ;;
esac
if [ -e $STAMP ] && [ $STAMP -nt pyproject.toml ] && [ $STAMP -nt setup.py ] && [ $STAMP -nt tools/setup.sh ] &&
  [ $STAMP -nt tools/build_pycuda.py ] && usable_python $VENV/bin/python; then
  exit 0
fi
system_packages
trap wait EXIT  # apt is not left alone when something else fails
test_packages &
packages=$!
virtual_environment
wait $packages
touch $STAMP
say "ready"
