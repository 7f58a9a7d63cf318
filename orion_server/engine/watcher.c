// The watcher: the GPU cannot wake a futex. Polls the words that client threads have posted and wakes them.
// It decides nothing, so it may read what the client can write.
#include <sys/prctl.h>

#include "internal.h"

// Between two looks passes a part of the time that the newest waiter has waited, which is how much too late it hears.
#define POLL_PART 16u
#define POLL_MIN_NS 20000ull
#define POLL_MAX_NS 200000ull
#define POLL_PARK_NS 100000000ull
#define REPEAT_NS 1000000ull  // a waiter that stays posted although its word is there is woken again after this

static void* watch(void* argument) {
  orion_engine* e = argument;
  orion_segment* s = e->segment;
  struct told {
    uint32_t word;
    uint64_t value, at_ns;
  } told[ORION_WAITERS] = {0};
  uint64_t news_at_ns = 0;
  prctl(PR_SET_TIMERSLACK, 1000UL, 0UL, 0UL, 0UL);
  while (!atomic_load_explicit(&e->watcher_stop, memory_order_relaxed)) {
    const uint32_t wake = atomic_load_explicit(&s->watcher_wake, memory_order_acquire);
    const uint64_t now_ns = engine_now_ns();
    bool posted = false, reached = false, news = false;
    for (uint32_t i = 0; i < ORION_WAITERS; i++) {
      const uint32_t word = atomic_load_explicit(&s->waiters[i].word, memory_order_acquire);
      if (!word || word >= ORION_WORDS) continue;
      const uint64_t value = atomic_load_explicit(&s->waiters[i].value, memory_order_acquire);
      posted = true;
      const bool same = told[i].word == word && told[i].value == value;
      if (!same) news = true;
      if (atomic_load_explicit(&s->words[word], memory_order_acquire) < value) {
        if (!same) told[i] = (struct told){word, value, 0};
      } else if (!same || now_ns - told[i].at_ns > REPEAT_NS) {
        told[i] = (struct told){word, value, now_ns};
        reached = true;
      }
    }
    if (reached) {
      atomic_fetch_add_explicit(&s->client_wake, 1, memory_order_release);
      engine_futex_wake(&s->client_wake);
    }
    if (news) news_at_ns = now_ns;
    if (!posted) {
      atomic_store_explicit(&s->watcher_parked, 1, memory_order_seq_cst);
      atomic_thread_fence(memory_order_seq_cst);
      engine_futex_wait(&s->watcher_wake, wake, POLL_PARK_NS);
      atomic_store_explicit(&s->watcher_parked, 0, memory_order_relaxed);
      news_at_ns = engine_now_ns();  // who posts next is new, also where the same was waited for before
    } else if (e->spin_allowed && now_ns - news_at_ns < e->spin_ns) {
      engine_pause(32);
    } else {
      // Sleeping on the futex, so that a new waiter is looked at as soon as it is posted.
      const uint64_t part = (now_ns - news_at_ns) / POLL_PART;
      const uint64_t poll_ns = part < POLL_MIN_NS ? POLL_MIN_NS : part < POLL_MAX_NS ? part : POLL_MAX_NS;
      atomic_store_explicit(&s->watcher_parked, 1, memory_order_seq_cst);
      engine_futex_wait(&s->watcher_wake, wake, poll_ns);
      atomic_store_explicit(&s->watcher_parked, 0, memory_order_relaxed);
    }
  }
  return NULL;
}

bool watcher_start(orion_engine* e) {
  if (pthread_create(&e->watcher, NULL, watch, e)) return false;
  e->watcher_running = true;
  return true;
}

void watcher_stop(orion_engine* e) {
  if (!e->watcher_running) return;
  atomic_store(&e->watcher_stop, true);
  atomic_fetch_add(&e->segment->watcher_wake, 1);
  engine_futex_wake(&e->segment->watcher_wake);
  pthread_join(e->watcher, NULL);
  e->watcher_running = false;
}
