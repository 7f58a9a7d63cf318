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

void orion_interrupt_begin(void) {
  atomic_store(&seen, false);
  for (int i = 0; i < WATCHED; i++) {
    is_watched[i] =
        sigaction(numbers[i], NULL, &before[i]) == 0 && !(before[i].sa_flags & (int)SA_RESETHAND) &&
        ((before[i].sa_flags & SA_SIGINFO) || (before[i].sa_handler != SIG_DFL && before[i].sa_handler != SIG_IGN));
    if (!is_watched[i]) continue;
    struct sigaction ours = before[i];  // its mask and flags too
    ours.sa_flags |= SA_SIGINFO;
    ours.sa_sigaction = on_signal;
    is_watched[i] = sigaction(numbers[i], &ours, NULL) == 0;
  }
}

bool orion_interrupted(void) { return atomic_load(&seen); }

void orion_interrupt_end(void) {
  for (int i = 0; i < WATCHED; i++) {
    struct sigaction now;
    // A handler that the program has set meanwhile stays.
    if (is_watched[i] && sigaction(numbers[i], NULL, &now) == 0 && (now.sa_flags & SA_SIGINFO) &&
        now.sa_sigaction == on_signal)
      sigaction(numbers[i], &before[i], NULL);
  }
}
