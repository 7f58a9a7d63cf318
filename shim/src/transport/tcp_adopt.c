// Over a network, memory that the program registers stays where it is and stands for a range of the arena, whose own
// bytes are not used: whatever is sent from or stored into that range is the program's. What else lies in its first and
// last page neither travels nor is written.
#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "../session/adopt.h"
#include "../session/internal.h"
#include "tcp.h"

static tcp_state* state_of(orion_session* session) { return session->transport_state; }

// Under the lock. `bytes`: how many from there on lie as one.
static uint8_t* at(const tcp_state* state, uint64_t offset, uint64_t* bytes) {
  for (uint32_t i = 0; i < state->adopted_count; i++) {
    const tcp_adopted* a = &state->adopted[i];
    if (offset >= a->first && offset < a->end) {
      if (*bytes > a->end - offset) *bytes = a->end - offset;
      return a->memory + (offset - a->first);
    }
    if (offset < a->first && *bytes > a->first - offset) *bytes = a->first - offset;
  }
  return state->session->host_base + offset;
}

uint8_t* orion_tcp_memory(const tcp_state* state, uint64_t offset) {
  uint64_t bytes = 1;
  return at(state, offset, &bytes);
}

bool orion_tcp_is_plain(const tcp_state* state, uint64_t first, uint64_t end) {
  for (uint32_t i = 0; i < state->adopted_count; i++)
    if (first < state->adopted[i].end && end > state->adopted[i].first) return false;
  for (uint32_t i = 0; i < state->coherent_count; i++)
    if (first < state->coherent[i].end && end > state->coherent[i].first) return false;
  return true;
}

void orion_tcp_load(tcp_state* state, uint64_t offset, uint8_t* to, uint64_t bytes) {
  if (atomic_load_explicit(&state->adopted_count, memory_order_acquire) == 0) {
    memcpy(to, state->session->host_base + offset, bytes);
    return;
  }
  // The lock keeps the program's memory there: adopt_end waits for it.
  pthread_mutex_lock(&state->lock);
  for (uint64_t piece = bytes; bytes; offset += piece, to += piece, bytes -= piece, piece = bytes) {
    const uint8_t* from = at(state, offset, &piece);
    memcpy(to, from, piece);
  }
  pthread_mutex_unlock(&state->lock);
}

void orion_tcp_put(tcp_state* state, uint64_t offset, const uint8_t* from, uint64_t bytes) {
  for (uint64_t piece = bytes; bytes; offset += piece, from += piece, bytes -= piece, piece = bytes) {
    uint8_t* to = at(state, offset, &piece);
    memcpy(to, from, piece);
  }
}

static const char* fault_of(const orion_mapping_line* line) {
  if (line->permissions[1] != 'w') return orion_adopt_unwritable;
  if (line->permissions[0] != 'r') return "it is not readable";
  const bool is_memory = strncmp(line->name, "/dev/", 5) != 0 || strncmp(line->name, "/dev/shm/", 9) == 0 ||
                         strncmp(line->name, "/dev/zero", 9) == 0;
  return is_memory ? NULL : "it is a device's memory";
}

const char* orion_tcp_adoptable(orion_session* session, uint64_t address, uint64_t bytes) {
  (void)session;
  return orion_examine_pages(orion_pages_of(address, bytes), fault_of);
}

const char* orion_tcp_adopt(orion_session* session, uint64_t address, uint64_t bytes, uint64_t offset) {
  tcp_state* state = state_of(session);
  pthread_mutex_lock(&state->lock);
  bool added = state->adopted_count < state->adopted_capacity;
  if (!added) {
    const uint32_t capacity = state->adopted_capacity ? state->adopted_capacity * 2 : 16;
    tcp_adopted* larger = realloc(state->adopted, capacity * sizeof *larger);
    added = larger != NULL;
    if (added) {
      state->adopted = larger;
      state->adopted_capacity = capacity;
    }
  }
  if (added) {
    const uint64_t first = offset + address % ORION_PAGE_BYTES;
    void* memory = (void*)(uintptr_t)address;  // NOLINT(performance-no-int-to-ptr): memory of the program
    state->adopted[state->adopted_count] = (tcp_adopted){first, first + bytes, memory};
    atomic_fetch_add(&state->adopted_count, 1);
  }
  pthread_mutex_unlock(&state->lock);
  return added ? NULL : "out of memory";
}

bool orion_tcp_adopt_end(orion_session* session, uint64_t address, uint64_t bytes, uint64_t offset) {
  (void)bytes;
  tcp_state* state = state_of(session);
  pthread_mutex_lock(&state->lock);
  for (uint32_t i = 0; i < state->adopted_count; i++) {
    if (state->adopted[i].first != offset + address % ORION_PAGE_BYTES) continue;
    state->adopted[i] = state->adopted[state->adopted_count - 1];
    atomic_fetch_sub(&state->adopted_count, 1);
    break;
  }
  pthread_mutex_unlock(&state->lock);
  return true;
}

const char* orion_tcp_place(orion_session* session, uint64_t address, uint64_t bytes, uint64_t offset) {
  const char* why = orion_map_free(address, bytes, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (why == NULL && (why = orion_tcp_adopt(session, address, bytes, offset)) != NULL) {
    munmap((void*)(uintptr_t)address, bytes);  // NOLINT(performance-no-int-to-ptr): mapped above
  }
  return why;
}

void orion_tcp_unplace(orion_session* session, uint64_t address, uint64_t bytes, uint64_t offset) {
  (void)orion_tcp_adopt_end(session, address, bytes, offset);
  munmap((void*)(uintptr_t)address, bytes);  // NOLINT(performance-no-int-to-ptr): orion_tcp_place has mapped it
}
