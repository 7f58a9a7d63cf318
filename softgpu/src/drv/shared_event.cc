#include "shared_event.h"

#include <sys/ipc.h>
#include <sys/shm.h>
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
/// For every user: processes that share an event may have different uids, and need not be able to look into each other.
constexpr int kMode = 0666;
// NOLINTNEXTLINE(performance-no-int-to-ptr): how shmat says no
void* const kNowhere = reinterpret_cast<void*>(-1);

/// What the 64 bytes are: the maker's segment, and a number that tells whether it still is this event.
struct Name {
  uint64_t magic;
  int32_t process;
  int32_t segment;
  uint64_t number[2];
  uint64_t reserved[4];
};
static_assert(sizeof(Name) == sizeof(CUipcEventHandle));

}  // namespace

struct SharedEvent::Page {
  uint64_t magic;
  std::atomic<uint64_t> number[2];
  std::atomic<uint64_t> recorded;
  std::atomic<uint64_t> completed[kPlaces];  // the number of the last record of this place that was reached
};
static_assert(std::atomic<uint64_t>::is_always_lock_free);

SharedEvent::SharedEvent(int segment, Page* page, int maker) : segment_(segment), maker_(maker), page_(page) {}

std::shared_ptr<SharedEvent> SharedEvent::create() {
  uint64_t number[2];
  // Through syscall, because older C libraries do not have it.
  if (syscall(SYS_getrandom, number, sizeof number, 0) != sizeof number) return nullptr;
  const int segment = shmget(IPC_PRIVATE, sizeof(Page), IPC_CREAT | kMode);
  if (segment < 0) return nullptr;
  void* at = shmat(segment, nullptr, 0);
  shmctl(segment, IPC_RMID, nullptr);  // it goes with the last process that has it, however that ends
  if (at == kNowhere) return nullptr;
  auto* page = static_cast<Page*>(at);
  page->magic = kMagic;
  page->number[0] = number[0];
  page->number[1] = number[1];
  return std::shared_ptr<SharedEvent>(new SharedEvent(segment, page, getpid()));
}

CUresult SharedEvent::open(const CUipcEventHandle& handle, std::shared_ptr<SharedEvent>* out) {
  Name name;
  memcpy(&name, &handle, sizeof name);
  if (name.magic != kMagic || name.process <= 0 || name.segment < 0) return CUDA_ERROR_MAP_FAILED;
  if (name.process == getpid()) return CUDA_ERROR_INVALID_CONTEXT;
  const std::string maker = "/proc/" + std::to_string(name.process);
  struct shmid_ds status{};
  if (access(maker.c_str(), F_OK) != 0 || shmctl(name.segment, IPC_STAT, &status) != 0) return CUDA_ERROR_MAP_FAILED;
  if (status.shm_segsz != sizeof(Page)) return CUDA_ERROR_MAP_FAILED;
  void* at = shmat(name.segment, nullptr, 0);
  if (at == kNowhere) return CUDA_ERROR_MAP_FAILED;
  auto* page = static_cast<Page*>(at);
  std::shared_ptr<SharedEvent> opened(new SharedEvent(name.segment, page, 0));
  if (page->magic != kMagic || page->number[0] != name.number[0] || page->number[1] != name.number[1]) {
    return CUDA_ERROR_MAP_FAILED;  // its maker has destroyed it, or the segment has become another event's
  }
  *out = std::move(opened);
  return CUDA_SUCCESS;
}

SharedEvent::~SharedEvent() {
  if (maker_ == getpid()) page_->number[0] = page_->number[1] = 0;  // nobody opens it any more
  shmdt(page_);
}

CUipcEventHandle SharedEvent::handle() const {
  Name name{kMagic, getpid(), segment_, {page_->number[0], page_->number[1]}, {}};
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
