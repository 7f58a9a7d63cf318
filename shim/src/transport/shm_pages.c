// A page moves while other threads use it. For the time of its copy it is read-only; a thread that writes to it then
// gets SIGSEGV, and the handler below has it write again when the page is in its new place. So no write is lost, and
// what a thread reads is never old.
//
// A forked child must not share these pages with its parent: its handler copies them before the child runs, and the
// parent's thread waits for that, so that the child has what its parent had at the fork.
#define _GNU_SOURCE
#include "shm_pages.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#include "../session/adopt.h"
#include "../session/internal.h"

// How much is read-only at a time: about a millisecond's copy.
#define CHUNK_BYTES (2ull << 20)
#define NAP_NS 20000

// Held while pages move, and over a fork.
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static orion_page_source sources[ORION_SESSIONS_MAX];
static uint32_t source_count;
static bool any_moved;  // some arena's pages may be at addresses of the program

// The chunk that is read-only: [window_first, window_end), else empty. Both are set before the protection changes.
static _Atomic uint64_t window_first = UINT64_MAX, window_end;
// All addresses that were ever in the window.
static _Atomic uint64_t lowest = UINT64_MAX, highest;

static void* pointer(uint64_t address) {
  return (void*)(uintptr_t)address;  // NOLINT(performance-no-int-to-ptr): pages of the program
}

// ------------------------------------------------------------------------------------------------ writers that wait

static struct sigaction previous;
static enum { NOT_INSTALLED, INSTALLED } handler_state;

static bool in_window(uint64_t address) {
  return address >= atomic_load(&window_first) && address < atomic_load(&window_end);
}

static bool is_write(const void* context) {
#if defined(__x86_64__)
  return (((const ucontext_t*)context)->uc_mcontext.gregs[REG_ERR] & 2) != 0;
#else
  (void)context;
  return true;  // readable pages: what is refused is a write
#endif
}

// The kernel changes the word by OR with 0: it answers EFAULT where this thread must not write.
static bool is_writable(uint64_t address) {
  static uint32_t own;
  const int nothing = FUTEX_OP(FUTEX_OP_OR, 0, FUTEX_OP_CMP_EQ, 0);
  return syscall(SYS_futex, &own, FUTEX_WAKE_OP, 0, NULL, pointer(address & ~3ull), nothing) >= 0;
}

static void pass_on(int number, siginfo_t* info, void* context) {
  if ((previous.sa_flags & SA_SIGINFO) != 0) {
    previous.sa_sigaction(number, info, context);
  } else if (previous.sa_handler != SIG_DFL && previous.sa_handler != SIG_IGN) {
    previous.sa_handler(number);
  } else {
    // The fault comes again when this returns, and ends the process as it would have without us.
    const struct sigaction standard = {.sa_handler = SIG_DFL};
    sigaction(number, &standard, NULL);
    if (info->si_code <= 0) raise(number);  // sent by somebody: it does not come again by itself
  }
}

static void on_fault(int number, siginfo_t* info, void* context) {
  const int error = errno;
  const uint64_t address = (uint64_t)(uintptr_t)info->si_addr;
  if (info->si_code == SEGV_ACCERR && is_write(context)) {
    const struct timespec nap = {0, NAP_NS};
    while (in_window(address)) syscall(SYS_nanosleep, &nap, NULL);
    // It may also have come while the page moved and be told only now.
    const bool was_ours = address >= atomic_load(&lowest) && address < atomic_load(&highest);
    if (was_ours && is_writable(address)) {
      errno = error;
      return;
    }
  }
  errno = error;
  pass_on(number, info, context);
}

// A handler that the program installs after ours is left alone: it would have to be called by ours, and may itself call
// ours as the one that it found.
static const char* install_handler(void) {
  struct sigaction now;
  if (sigaction(SIGSEGV, NULL, &now) != 0) return "SIGSEGV cannot be handled";
  const bool ours = (now.sa_flags & SA_SIGINFO) != 0 && now.sa_sigaction == on_fault;
  if (ours) return NULL;
  if (handler_state == INSTALLED) return "the program has installed a SIGSEGV handler since the first registration";
  previous = now;
  struct sigaction action = {.sa_sigaction = on_fault};
  action.sa_mask = now.sa_mask;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK | (now.sa_flags & (SA_NODEFER | SA_RESTART));
  if (sigaction(SIGSEGV, &action, NULL) != 0) return "SIGSEGV cannot be handled";
  handler_state = INSTALLED;
  return NULL;
}

// A write to a read-only page by a thread that blocks SIGSEGV ends the process.
static bool blocks_faults(const char* thread) {
  char path[64], text[4096];
  snprintf(path, sizeof path, "/proc/self/task/%.20s/status", thread);
  const int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return false;  // it has ended
  const ssize_t got = read(fd, text, sizeof text - 1);
  close(fd);
  if (got <= 0) return false;
  text[got] = 0;
  const char* mask = strstr(text, "\nSigBlk:");
  return mask != NULL && (strtoull(mask + 8, NULL, 16) >> (SIGSEGV - 1) & 1) != 0;
}

static const char* find_blocking_thread(void) {
  DIR* tasks = opendir("/proc/self/task");
  if (tasks == NULL) return "/proc/self/task cannot be read";
  char own[24];
  snprintf(own, sizeof own, "%ld", syscall(SYS_gettid));
  const char* why = NULL;
  for (const struct dirent* task = readdir(tasks); task != NULL && why == NULL; task = readdir(tasks)) {
    // This thread writes nowhere else while pages move.
    if (task->d_name[0] == '.' || strcmp(task->d_name, own) == 0) continue;
    if (blocks_faults(task->d_name)) why = "a thread of the program blocks SIGSEGV";
  }
  closedir(tasks);
  return why;
}

// Nothing else lies in the pages of a large block that begins where an allocator's mapping does: only threads that use
// the block itself write there.
static bool is_alone(uint64_t address, uint64_t bytes) {
  return address % ORION_PAGE_BYTES <= 64 && bytes >= 16 * ORION_PAGE_BYTES;
}

static const char* can_move(uint64_t address, uint64_t bytes) {
  const char* why = install_handler();
  if (why != NULL || is_alone(address, bytes)) return why;
  // A thread that is being started blocks everything for a moment.
  const struct timespec wait = {0, 1000000};
  for (int tries = 0; tries < 20 && (why = find_blocking_thread()) != NULL; tries++) nanosleep(&wait, NULL);
  return why;
}

// ------------------------------------------------------------------------------------------------ what may move

static const char* fault_of(const orion_mapping_line* line) {
  if (line->permissions[1] != 'w') return orion_adopt_unwritable;
  const bool anonymous = line->inode == 0 && (line->name[0] == 0 || strcmp(line->name, "[heap]") == 0 ||
                                              strncmp(line->name, "[anon:", 6) == 0);
  if (!anonymous) return "it is not private anonymous memory (a file's, a stack, huge pages, or registered already)";
  return strcmp(line->permissions, "rw-p") == 0 ? NULL : "it is not readable and writable private memory";
}

const char* orion_pages_movable(uint64_t address, uint64_t bytes) {
  const orion_page_range pages = orion_pages_of(address, bytes);
  const uint64_t own = (uint64_t)(uintptr_t)&pages;
  if (own - pages.first < pages.bytes) return "it is the calling thread's stack";
  const char* why = orion_examine_pages(pages, fault_of);
  if (why != NULL) return why;
  pthread_mutex_lock(&mutex);
  why = can_move(address, bytes);
  pthread_mutex_unlock(&mutex);
  return why;
}

// ------------------------------------------------------------------------------------------------ moving

static void open_window(uint64_t address, uint64_t bytes) {
  if (address < atomic_load(&lowest)) atomic_store(&lowest, address);
  if (address + bytes > atomic_load(&highest)) atomic_store(&highest, address + bytes);
  atomic_store(&window_end, address + bytes);
  atomic_store(&window_first, address);
}

static void close_window(void) {
  atomic_store(&window_first, UINT64_MAX);
  atomic_store(&window_end, 0);
}

static bool move_chunk(const orion_page_source* source, uint64_t address, uint64_t offset, uint64_t bytes) {
  void* at = pointer(address);
  open_window(address, bytes);
  bool moved = mprotect(at, bytes, PROT_READ) == 0;
  if (moved) {
    memcpy(source->base + offset, at, bytes);
    moved = mmap(at, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE | MAP_FIXED, source->fd,
                 (off_t)offset) != MAP_FAILED;
    // A refused mapping leaves the old one.
    if (!moved) (void)mprotect(at, bytes, PROT_READ | PROT_WRITE);
  }
  close_window();
  return moved;
}

static uint64_t piece(uint64_t at, uint64_t end) { return end - at < CHUNK_BYTES ? end - at : CHUNK_BYTES; }

static void before_fork(void);
static void in_parent(void);
static void in_child(void);
static pthread_once_t fork_once = PTHREAD_ONCE_INIT;
static bool has_fork_handlers;

static void register_fork_handlers(void) { has_fork_handlers = pthread_atfork(before_fork, in_parent, in_child) == 0; }

const char* orion_pages_move(const orion_page_source* source, uint64_t address, uint64_t bytes, uint64_t offset) {
  const orion_page_range pages = orion_pages_of(address, bytes);
  pthread_once(&fork_once, register_fork_handlers);
  if (!has_fork_handlers) return "out of memory";
  pthread_mutex_lock(&mutex);
  const char* why = can_move(address, bytes);
  if (why == NULL) any_moved = true;
  for (uint64_t done = 0, next = 0; done < pages.bytes && why == NULL; done += next) {
    next = piece(done, pages.bytes);
    if (!move_chunk(source, pages.first + done, offset + done, next)) why = "the system refused a mapping";
  }
  pthread_mutex_unlock(&mutex);
  return why;
}

const char* orion_pages_place(const orion_page_source* source, uint64_t address, uint64_t bytes, uint64_t offset) {
  pthread_once(&fork_once, register_fork_handlers);
  if (!has_fork_handlers) return "out of memory";
  pthread_mutex_lock(&mutex);
  any_moved = true;
  const char* why = orion_map_free(address, bytes, MAP_SHARED, source->fd, offset);
  pthread_mutex_unlock(&mutex);
  return why;
}

static bool is_of(const orion_page_source* source, const orion_mapping_line* line) {
  return line->inode == source->inode && makedev(line->device_major, line->device_minor) == source->device;
}

typedef struct homecoming {
  const orion_page_source* source;
  uint64_t address, bytes;  // as they were registered
  orion_page_range pages;
  uint64_t offset;
  const char* why;  // they cannot come, or not all
} homecoming;

// Private pages in the place of shared ones. They come from one mapping, so that they become one again.
static bool make_private(uint64_t first, uint64_t end, bool is_child) {
  uint8_t* fresh = mmap(NULL, end - first, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (fresh == MAP_FAILED) return false;
  uint64_t at = first;
  for (uint64_t next = 0; at < end; at += next) {
    next = piece(at, end);
    if (!is_child) open_window(at, next);
    bool moved = is_child || mprotect(pointer(at), next, PROT_READ) == 0;
    if (moved) {
      uint8_t* from = fresh + (at - first);
      memcpy(from, pointer(at), next);
      moved = mremap(from, next, next, MREMAP_MAYMOVE | MREMAP_FIXED, pointer(at)) != MAP_FAILED;
      if (!moved && !is_child) (void)mprotect(pointer(at), next, PROT_READ | PROT_WRITE);
    }
    if (!is_child) close_window();
    if (!moved) break;
  }
  if (at < end) munmap(fresh + (at - first), end - at);
  return at == end;
}

static bool bring_home(const orion_mapping_line* line, void* argument) {
  homecoming* h = argument;
  if (!is_of(h->source, line) || line->permissions[3] != 's') return true;
  const uint64_t last = h->pages.first + h->pages.bytes;
  const uint64_t first = line->first > h->pages.first ? line->first : h->pages.first;
  const uint64_t end = line->end < last ? line->end : last;
  // Only pages that still lie where they were put: the program may have unmapped them and mapped others.
  if (line->file_offset + (first - line->first) != h->offset + (first - h->pages.first)) return true;
  h->why = can_move(h->address, h->bytes);
  if (h->why == NULL && !make_private(first, end, false)) h->why = "the system refused a mapping";
  return h->why == NULL;
}

bool orion_pages_return(const orion_page_source* source, uint64_t address, uint64_t bytes, uint64_t offset) {
  homecoming h = {.source = source, .address = address, .bytes = bytes, .offset = offset};
  h.pages = orion_pages_of(address, bytes);
  pthread_mutex_lock(&mutex);
  if (!orion_maps_visit(h.pages.first, h.pages.first + h.pages.bytes, bring_home, &h)) {
    h.why = "/proc/self/maps cannot be read";
  }
  pthread_mutex_unlock(&mutex);
  if (h.why != NULL) {
    orion_log(ORION_LOG_WARN, "memory at %#llx stays shared with the worker after it was unregistered: %s",
              (unsigned long long)address, h.why);
  }
  return h.why == NULL;
}

bool orion_pages_source(int fd, uint8_t* base, orion_page_source* source) {
  struct stat status;
  if (fstat(fd, &status) != 0) return false;
  *source = (orion_page_source){fd, base, status.st_dev, status.st_ino};
  pthread_mutex_lock(&mutex);
  const bool fits = source_count < ORION_SESSIONS_MAX;
  if (fits) sources[source_count++] = *source;
  pthread_mutex_unlock(&mutex);
  return fits;
}

// ------------------------------------------------------------------------------------------------ fork

static int child_ready[2] = {-1, -1};  // the child writes a byte when it has its own pages

static void before_fork(void) {
  pthread_mutex_lock(&mutex);
  if (any_moved && pipe2(child_ready, O_CLOEXEC) != 0) child_ready[0] = child_ready[1] = -1;
}

static void close_end(int end) {
  if (child_ready[end] >= 0) close(child_ready[end]);
  child_ready[end] = -1;
}

static void in_parent(void) {
  close_end(1);
  if (child_ready[0] >= 0) {
    char byte = 0;
    while (read(child_ready[0], &byte, 1) < 0 && errno == EINTR) continue;  // its end, too, if the child dies
  }
  close_end(0);
  pthread_mutex_unlock(&mutex);
}

static bool copy_in_child(const orion_mapping_line* line, void* argument) {
  bool* complete = argument;
  for (uint32_t i = 0; i < source_count; i++) {
    // The arena itself is not inherited: whatever is mapped of it are pages of the program.
    if (is_of(&sources[i], line) && line->permissions[3] == 's' && !make_private(line->first, line->end, true)) {
      *complete = false;
    }
  }
  return *complete;
}

static void in_child(void) {
  bool complete = true;
  if (any_moved && (!orion_maps_visit(0, UINT64_MAX, copy_in_child, &complete) || !complete)) {
    static const char line[] = "orion: no memory for the forked process's own copy of registered memory\n";
    if (write(STDERR_FILENO, line, sizeof line - 1) < 0) _exit(1);
    abort();  // to run on would be to write into the parent's memory
  }
  if (child_ready[1] >= 0 && write(child_ready[1], "", 1) < 0) _exit(1);
  close_end(0);
  close_end(1);
  any_moved = false;
  pthread_mutex_init(&mutex, NULL);
}
