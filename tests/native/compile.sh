# Sourced by the scripts that build native tests.
#
# compile FOLDER FLAGS... -- SOURCES...: compiles as many at a time as there are CPUs, into the array `objects`.
# CC and CXX name the compilers (gcc, g++).
compile() {
  local folder=$1 flags=() free source compiler object
  free=$(nproc)
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
    if [ "$free" -gt 0 ]; then free=$((free - 1)); else wait -n; fi
    "$compiler" "${flags[@]}" -c "$source" -o "$object" &
  done
  for object in "${objects[@]}"; do wait -n || [ $? = 127 ]; done
}
