# Toolchain of the release build: zig's clang against glibc 2.17 and a static libc++.
# ORION_ZIG_BIN is the folder of wrappers (zig-cc, zig-c++, zig-ar, zig-ranlib) that tools/zig_wrappers.py makes:
# CMake wants one executable per tool, and zig's tools are sub-commands.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR x86_64)

set(ORION_ZIG TRUE)
list(APPEND CMAKE_TRY_COMPILE_PLATFORM_VARIABLES ORION_ZIG_BIN)
if(NOT IS_DIRECTORY "${ORION_ZIG_BIN}")
  message(FATAL_ERROR "ORION_ZIG_BIN must name the folder that tools/zig_wrappers.py prints")
endif()

set(CMAKE_C_COMPILER "${ORION_ZIG_BIN}/zig-cc")
set(CMAKE_CXX_COMPILER "${ORION_ZIG_BIN}/zig-c++")
set(CMAKE_AR "${ORION_ZIG_BIN}/zig-ar" CACHE FILEPATH "")
set(CMAKE_RANLIB "${ORION_ZIG_BIN}/zig-ranlib" CACHE FILEPATH "")

# zig's own libc++ carries debug information, ten times the size of the code.
set(CMAKE_SHARED_LINKER_FLAGS_INIT "-s")
