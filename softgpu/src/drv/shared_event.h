// An event of several processes: what each of them sees of its records, in shared memory that the handle
// names.
#pragma once
#include <atomic>
#include <cstdint>
#include <memory>

#include "cuda_types.h"

namespace sg {

struct Context;

class SharedEvent {
 public:
  /// nullptr: no memory or no descriptor for it.
  static std::shared_ptr<SharedEvent> create();
  /// 201 for an event of this process, 400 for what is no handle of one that its maker still has.
  static CUresult open(const CUipcEventHandle& handle, std::shared_ptr<SharedEvent>* out);
  ~SharedEvent();
  SharedEvent(const SharedEvent&) = delete;
  SharedEvent& operator=(const SharedEvent&) = delete;

  CUipcEventHandle handle() const;
  /// The number of a new record, which counts from now on.
  uint64_t begin_record();
  void end_record(uint64_t number);
  uint64_t last_record() const;
  bool is_complete(uint64_t number) const;
  /// Returns when the record was reached, or when `context` runs nothing any more.
  void wait(uint64_t number, const Context& context) const;

 private:
  struct Page;
  /// `maker`: this process's id where it has made the event, else 0.
  SharedEvent(int segment, Page* page, int maker);
  const int segment_, maker_;
  Page* const page_;
};

}  // namespace sg
