#include "driver.h"

#include <dlfcn.h>
#include <stdio.h>

static CUresult not_supported(void) { return (CUresult)801; }

bool orion_driver_load(orion_driver* driver, const char* path, char* why, size_t why_bytes) {
  void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    snprintf(why, why_bytes, "cannot load %s: %s", path, dlerror());
    return false;
  }
  // A function that the library lacks answers "not supported"; the calling convention lets it ignore its arguments.
#define ORION_DRIVER_BIND(member, symbol, required, parameters)        \
  {                                                                    \
    void* address = dlsym(library, symbol);                            \
    if (!address && (required)) {                                      \
      snprintf(why, why_bytes, "%s has no function %s", path, symbol); \
      dlclose(library);                                                \
      return false;                                                    \
    }                                                                  \
    if (!address) address = (void*)not_supported;                      \
    driver->member = (CUresult(*) parameters)address;                  \
  }
  ORION_DRIVER_FUNCTIONS(ORION_DRIVER_BIND)
#undef ORION_DRIVER_BIND
  driver->library = library;
  return true;
}
