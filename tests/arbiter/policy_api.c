// policy.h and residency.h for ctypes: structures behind handles.
#include <stdlib.h>

#include "policy.h"
#include "residency.h"

void* model_new(uint64_t turn_ns, uint64_t now_ns) {
  policy* p = malloc(sizeof *p);
  policy_init(p, turn_ns, now_ns);
  return p;
}
void model_tell(policy* p, uint32_t seat, int wants, uint64_t returned, uint64_t ending, uint64_t spent_ns,
                uint64_t in_flight_ns, uint64_t now_ns) {
  const policy_report report = {wants != 0, returned, ending, spent_ns, in_flight_ns};
  policy_tell(p, seat, &report, now_ns);
}
uint64_t model_grant(const policy* p, uint32_t seat) { return p->seats[seat].grant; }
uint64_t model_budget(const policy* p, uint32_t seat) { return p->seats[seat].budget_ns; }
uint64_t model_recalled(const policy* p, uint32_t seat) { return p->seats[seat].recalled; }
int model_holds(const policy* p, uint32_t seat) { return p->seats[seat].holds; }
int64_t model_credit(const policy* p, uint32_t slice) { return p->slices[slice].credit_ns; }

void* residency_new(uint64_t capacity_bytes, uint32_t count) {
  residency_gpu* gpu = calloc(1, sizeof *gpu);
  gpu->capacity_bytes = capacity_bytes;
  gpu->count = count;
  return gpu;
}
residency_seat* residency_seat_of(residency_gpu* gpu, uint32_t seat) { return &gpu->seats[seat]; }
