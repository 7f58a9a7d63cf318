#define _GNU_SOURCE
#include "interrupt.h"

#include <signal.h>
#include <stdatomic.h>

enum { WATCHED = 2 };
static const int numbers[WATCHED] = {SIGINT, SIGTERM};
static struct sigaction before[WATCHED];
static bool is_watched[WATCHED];
static _Atomic bool seen;

static void on_signal(int number, siginfo_t* info, void* context) {
  atomic_store(&seen, true);
  const struct sigaction* program = &before[number == SIGTERM];
  if (program->sa_flags & SA_SIGINFO)
    program->sa_sigaction(number, info, context);
  else
    program->sa_handler(number);
}

static bool is_ours(const struct sigaction* action) {
  return (action->sa_flags & SA_SIGINFO) && action->sa_sigaction == on_signal;
}

static bool is_handled(const struct sigaction* action) {
  if (action->sa_flags & (int)SA_RESETHAND) return false;
  return (action->sa_flags & SA_SIGINFO) || (action->sa_handler != SIG_DFL && action->sa_handler != SIG_IGN);
}

void orion_interrupt_begin(void) {
  atomic_store(&seen, false);
  for (int i = 0; i < WATCHED; i++) {
    struct sigaction now;
    is_watched[i] = sigaction(numbers[i], NULL, &now) == 0 && is_handled(&now);
    // Ours is there in the child of a fork that came while its parent waited; what it calls is the program's still.
    if (!is_watched[i] || is_ours(&now)) continue;
    before[i] = now;
    now.sa_flags |= SA_SIGINFO;  // the mask and the other flags are the program's
    now.sa_sigaction = on_signal;
    is_watched[i] = sigaction(numbers[i], &now, NULL) == 0;
  }
}

bool orion_interrupted(void) { return atomic_load(&seen); }

void orion_interrupt_end(void) {
  for (int i = 0; i < WATCHED; i++) {
    struct sigaction now;
    // A handler that the program has set meanwhile stays.
    if (is_watched[i] && sigaction(numbers[i], NULL, &now) == 0 && is_ours(&now))
      sigaction(numbers[i], &before[i], NULL);
  }
}
