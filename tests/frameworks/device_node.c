// Preloaded: /dev/nvidiactl exists for this process, as /dev/null does.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <string.h>

struct stat;
typedef int (*stat_function)(const char*, struct stat*);

static int look(const char* name, const char* path, struct stat* out) {
  stat_function next = (stat_function)dlsym(RTLD_NEXT, name);
  return next(strcmp(path, "/dev/nvidiactl") == 0 ? "/dev/null" : path, out);
}

int stat(const char* path, struct stat* out) { return look("stat", path, out); }

int stat64(const char* path, struct stat* out) { return look("stat64", path, out); }
