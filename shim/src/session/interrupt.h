// Ctrl-C and SIGTERM while cuInit waits for a long time. Where they end the program they do so by themselves. Where the
// program handles them (an interpreter only notes them until the call returns), the wait has to end.
#ifndef ORION_SHIM_INTERRUPT_H
#define ORION_SHIM_INTERRUPT_H

#include <stdbool.h>

/// From here to the end the program's handlers of both signals run as before, and are noticed. One thread at a time.
void orion_interrupt_begin(void);
bool orion_interrupted(void);
void orion_interrupt_end(void);

#endif
