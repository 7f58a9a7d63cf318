"""A small checkout that looks like NVIDIA's cuda-samples, in both layouts, with programs of our own in C."""

from __future__ import annotations

import json
from pathlib import Path

# Uses the GPU through the libcuda.so.1 that it finds, and prints what changes from run to run as well.
FILL = r"""
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#define GET(name, ...)                               \
  int (*name)(__VA_ARGS__) = dlsym(driver, #name);   \
  if (!name) return printf("no " #name "\n"), 1

int main(int argc, char** argv) {
  void* driver = dlopen("libcuda.so.1", RTLD_NOW);
  if (!driver) return printf("%s\n", dlerror()), 1;
  GET(cuInit, unsigned);
  GET(cuDevicePrimaryCtxRetain, void**, int);
  GET(cuCtxSetCurrent, void*);
  GET(cuMemAlloc_v2, unsigned long long*, size_t);
  GET(cuMemsetD8_v2, unsigned long long, unsigned char, size_t);
  GET(cuMemcpyDtoH_v2, void*, unsigned long long, size_t);
  void* context = 0;
  unsigned long long memory = 0;
  unsigned char bytes[256] = {0};
  const int value = argc > 1 ? (int)strlen(argv[1]) : 1;
  FILE* data = fopen("data/word.txt", "r");
  char word[16] = "";
  if (!data || !fgets(word, sizeof word, data)) return printf("no data beside the program\n"), 1;
  int code = cuInit(0) | cuDevicePrimaryCtxRetain(&context, 0) | cuCtxSetCurrent(context);
  code |= cuMemAlloc_v2(&memory, sizeof bytes) | cuMemsetD8_v2(memory, value, sizeof bytes);
  code |= cuMemcpyDtoH_v2(bytes, memory, sizeof bytes);
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  printf("filled with %d, %s at %p in %ld ns\n", bytes[255], word, (void*)&now, now.tv_nsec);
  return code || bytes[255] != value;
}
"""
PLAIN = "#include <stdio.h>\n#include <stdlib.h>\n#include <unistd.h>\nint main(void) { %s }\n"
PROGRAMS = {
    "fill": FILL,
    "waived": PLAIN % 'puts("no such hardware"); return 2;',
    "fails": PLAIN % 'puts("never works"); return 3;',
    "fails_remotely": PLAIN % 'if (getenv("ORION_SERVER")) { puts("remote"); fflush(stdout); abort(); } return 0;',
    "prints_remotely": PLAIN % 'puts("first"); puts(getenv("ORION_SERVER") ? "here" : "there"); return 0;',
    "unsteady": PLAIN % 'printf("value %d\\n", (int)getpid()); return 0;',
    "window": PLAIN % "return 0;",
    "hangs": PLAIN % 'puts("waiting"); fflush(stdout); for (;;) sleep(9);',
    "broken": "int main(void) { return no_such_name; }\n",
}
CMAKE = """\
cmake_minimum_required(VERSION 3.20)
list(APPEND CMAKE_MODULE_PATH "${CMAKE_CURRENT_SOURCE_DIR}/../../../cmake/Modules")
project(NAME LANGUAGES C)
set(CMAKE_CUDA_ARCHITECTURES 50 60)
include(Common)
if(NOT CMAKE_CUDA_ARCHITECTURES STREQUAL "80-virtual")
  message(FATAL_ERROR "built for ${CMAKE_CUDA_ARCHITECTURES}")
endif()
add_executable(NAME NAME.c)
target_link_libraries(NAME PRIVATE ${CMAKE_DL_LIBS})
if(EXISTS "${CMAKE_CURRENT_SOURCE_DIR}/data")
  add_custom_command(TARGET NAME POST_BUILD
    COMMAND ${CMAKE_COMMAND} -E copy_directory ${CMAKE_CURRENT_SOURCE_DIR}/data ${CMAKE_CURRENT_BINARY_DIR}/data)
endif()
"""
CMAKE_WITHOUT_WINDOWS = """\
cmake_minimum_required(VERSION 3.20)
project(NAME LANGUAGES C)
message(STATUS "NoWindows not found - will not build sample 'NAME'")
"""
MAKE = """\
ifneq ($(SMS),80)
  $(error built for $(SMS))
endif
include ../../../Common/common.mk
all: NAME
NAME: NAME.c
\t$(CC) -o $@ $< $(LIBRARIES)
\tmkdir -p ../../../bin && cp $@ ../../../bin
"""
MAKE_WAIVED = """\
$(info >>> WARNING - libwindows.so not found, please install it <<<)
all:
\t@echo "Sample will be waived due to the above missing dependencies"
"""
BUILD_FILES = {"cmake": "CMakeLists.txt", "make": "Makefile"}


def write_sample(checkout: Path, folder: str, kind: str, build: str | None = None) -> None:
    place = checkout / "Samples" / folder
    place.mkdir(parents=True)
    name = place.name
    text = build or {"cmake": CMAKE, "make": MAKE}[kind]
    (place / BUILD_FILES[kind]).write_text(text.replace("NAME", name))
    (place / f"{name}.c").write_text(PROGRAMS.get(name.removesuffix("_old"), PROGRAMS["window"]))
    if name.startswith("fill"):
        (place / "data").mkdir()
        (place / "data" / "word.txt").write_text("word")


def write_checkout(checkout: Path) -> None:
    write_sample(checkout, "0_New/fill", "cmake")
    write_sample(checkout, "0_New/waived", "cmake")
    write_sample(checkout, "0_New/fails", "cmake")
    write_sample(checkout, "0_New/broken", "cmake")
    write_sample(checkout, "0_New/no_window", "cmake", CMAKE_WITHOUT_WINDOWS)
    write_sample(
        checkout, "0_New/nested/prints_remotely", "cmake", CMAKE.replace("/../../../cmake", "/../../../../cmake")
    )
    write_sample(checkout, "1_Old/fill_old", "make")
    write_sample(checkout, "1_Old/fails_remotely", "make")
    write_sample(checkout, "1_Old/unsteady", "make")
    write_sample(checkout, "1_Old/window", "make")
    write_sample(checkout, "1_Old/no_window_old", "make", MAKE_WAIVED)
    write_sample(checkout, "2_Slow/hangs", "make")
    (checkout / "cmake" / "Modules").mkdir(parents=True)
    (checkout / "cmake" / "Modules" / "Common.cmake").write_text("")
    (checkout / "Common").mkdir()
    (checkout / "Common" / "common.mk").write_text("LIBRARIES := -ldl\n")
    # Files that only collect samples are none, and what was built inside the checkout is not taken.
    (checkout / "CMakeLists.txt").write_text("project(samples)\nadd_subdirectory(Samples)\n")
    (checkout / "Samples" / "0_New" / "CMakeLists.txt").write_text("add_subdirectory(fill)\n")
    (checkout / "Samples" / "1_Old" / "Makefile").write_text("all:\n\t$(MAKE) -C fill_old\n")
    stale = checkout / "Samples" / "1_Old" / "unsteady" / "unsteady"
    stale.write_bytes(b"\x7fELF of another machine")
    stale.chmod(0o755)
    arguments = {"window": {"skip": True}, "fill": {"runs": [{"args": ["two"]}, {"args": ["three"]}]}}
    (checkout / "test_args.json").write_text(json.dumps(arguments))
