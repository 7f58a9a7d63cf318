#include "api.h"
#include "gen/gen_errors.h"

// Allowed before cuInit: programs print what cuInit answered.

static CUresult give_text(const char* text, const char** out) {
  if (out == NULL) return CUDA_ERROR_INVALID_VALUE;
  *out = text;
  return text == NULL ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}

ORION_API CUresult cuGetErrorName(CUresult code, const char** name) { return give_text(orion_error_name(code), name); }

ORION_API CUresult cuGetErrorString(CUresult code, const char** text) {
  return give_text(orion_error_string(code), text);
}
