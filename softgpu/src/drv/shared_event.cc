#include "shared_event.h"

#include <fcntl.h>
#include <linux/memfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <string>
#include <thread>

#include "state.h"

namespace sg {

namespace {

constexpr uint64_t kMagic = 0x746e65766567736full;
// Records that may be on their way at once; a record's place is used again that many records later.
constexpr uint64_t kPlaces = 4000;
constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW;

/// What the 64 bytes are: the maker's descriptor, and a number that tells whether it still is this event.
struct Name {
  uint64_t magic;
  int32_t process;
  int32_t fd;
  uint64_t number[2];
  uint64_t reserved[4];
};
static_assert(sizeof(Name) == sizeof(CUipcEventHandle));

}  // namespace

struct SharedEvent::Page {
  uint64_t magic;
  uint64_t number[2];
  std::atomic<uint64_t> recorded;
  std::atomic<uint64_t> completed[kPlaces];  // the number of the last record of this place that was reached
};
static_assert(std::atomic<uint64_t>::is_always_lock_free);

std::shared_ptr<SharedEvent> SharedEvent::create() {
  uint64_t number[2];
  // Through syscall, because older C libraries have neither.
  if (syscall(SYS_getrandom, number, sizeof number, 0) != sizeof number) return nullptr;
  const int fd = static_cast<int>(syscall(SYS_memfd_create, "softgpu-event", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (fd < 0) return nullptr;
  void* at = MAP_FAILED;
  if (ftruncate(fd, sizeof(Page)) == 0 && fcntl(fd, F_ADD_SEALS, kSeals | F_SEAL_SEAL) == 0) {
    at = mmap(nullptr, sizeof(Page), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  }
  if (at == MAP_FAILED) {
    close(fd);
    return nullptr;
  }
  auto* page = static_cast<Page*>(at);
  page->magic = kMagic;
  memcpy(page->number, number, sizeof number);
  return std::shared_ptr<SharedEvent>(new SharedEvent(fd, page));
}

CUresult SharedEvent::open(const CUipcEventHandle& handle, std::shared_ptr<SharedEvent>* out) {
  Name name;
  memcpy(&name, &handle, sizeof name);
  if (name.magic != kMagic || name.process <= 0 || name.fd < 0) return CUDA_ERROR_MAP_FAILED;
  if (name.process == getpid()) return CUDA_ERROR_INVALID_CONTEXT;
  const std::string path = "/proc/" + std::to_string(name.process) + "/fd/" + std::to_string(name.fd);
  const int fd = ::open(path.c_str(), O_RDWR | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return CUDA_ERROR_MAP_FAILED;
  struct stat status{};
  const int seals = fcntl(fd, F_GET_SEALS);
  void* at = MAP_FAILED;
  if (seals >= 0 && (seals & kSeals) == kSeals && fstat(fd, &status) == 0 && status.st_size == sizeof(Page)) {
    at = mmap(nullptr, sizeof(Page), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  }
  if (at == MAP_FAILED) {
    close(fd);
    return CUDA_ERROR_MAP_FAILED;
  }
  auto* page = static_cast<Page*>(at);
  std::shared_ptr<SharedEvent> opened(new SharedEvent(fd, page));
  if (page->magic != kMagic || memcmp(page->number, name.number, sizeof name.number) != 0) {
    return CUDA_ERROR_MAP_FAILED;  // the descriptor has become another event's
  }
  *out = std::move(opened);
  return CUDA_SUCCESS;
}

SharedEvent::~SharedEvent() {
  munmap(page_, sizeof(Page));
  close(fd_);
}

CUipcEventHandle SharedEvent::handle() const {
  Name name{kMagic, getpid(), fd_, {page_->number[0], page_->number[1]}, {}};
  CUipcEventHandle out;
  memcpy(&out, &name, sizeof out);
  return out;
}

uint64_t SharedEvent::begin_record() { return page_->recorded.fetch_add(1) + 1; }

void SharedEvent::end_record(uint64_t number) {
  auto& place = page_->completed[number % kPlaces];
  uint64_t known = place.load();
  while (known < number && !place.compare_exchange_weak(known, number)) {
  }
}

uint64_t SharedEvent::last_record() const { return page_->recorded.load(); }

bool SharedEvent::is_complete(uint64_t number) const {
  return number == 0 || page_->completed[number % kPlaces].load() >= number;
}

void SharedEvent::wait(uint64_t number, const Context& context) const {
  for (unsigned pause_us = 1; !is_complete(number); pause_us = std::min(pause_us * 2, 500u)) {
    if (context.fault.load() != 0 || context.closing.load()) return;
    std::this_thread::sleep_for(std::chrono::microseconds(pause_us));
  }
}

}  // namespace sg
