# Sourced by the scripts that build native tests.
#
# compile FOLDER FLAGS... -- SOURCES...: compiles as many at a time as there are CPUs, into the array `objects`.
# CC and CXX name the compilers (gcc, g++).
compile() {
  local folder=$1 flags=() running=() source compiler object process
  shift
  while [ "$1" != -- ]; do
    flags+=("$1")
    shift
  done
  shift
  mkdir -p "$folder"
  objects=()
  for source in "$@"; do
    compiler=${CC:-gcc}
    [ "${source##*.}" = cc ] && compiler=${CXX:-g++}
    # Two folders may have a file of one name.
    object=$folder/$(basename "$(dirname "$source")")_$(basename "${source%.*}").o
    objects+=("$object")
    rm -f "$object"  # what does not compile shall not be linked as it was
    if [ ${#running[@]} -ge "$(nproc)" ]; then
      wait "${running[0]}"
      running=("${running[@]:1}")
    fi
    "$compiler" "${flags[@]}" -c "$source" -o "$object" &
    running+=($!)
  done
  for process in "${running[@]}"; do wait "$process"; done  # by name: `wait -n` forgets those that failed early
}
