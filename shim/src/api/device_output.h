// What kernels print: asked for after waits, when some kernel may.
#ifndef ORION_SHIM_DEVICE_OUTPUT_H
#define ORION_SHIM_DEVICE_OUTPUT_H

#include "state.h"

/// `context`: index of the one whose work was waited for.
void orion_device_output_write(orion_session* session, uint32_t context);

static inline bool orion_device_output_expected(const orion_session* session) {
  return orion_word(session, ORION_WORD_DEVICE_OUTPUT) >= session->device_output_from;
}

/// Ends a wait of the program: what finished work has printed is in its stdout when the wait returns. The text of a
/// failed assertion comes with its error.
static inline CUresult orion_waited(orion_context* context, CUresult result) {
  if (__builtin_expect(orion_device_output_expected(context->session) || result == CUDA_ERROR_ASSERT, 0)) {
    orion_device_output_write(context->session, context->entry.index);
  }
  return result;
}

#endif
