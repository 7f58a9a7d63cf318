// The life of one session object, apart from how it came to be attached.
#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "copier.h"
#include "internal.h"

enum { COPY_THREADS = 4 };

orion_session_impl* orion_session_new(const orion_config* config) {
  orion_session_impl* impl = NULL;
  if (posix_memalign((void**)&impl, 64, sizeof *impl) != 0) return NULL;
  memset(impl, 0, sizeof *impl);
  // On two CPUs a spinning waiter takes the time that the worker needs to answer.
  const uint32_t cpus = orion_usable_cpus();
  impl->spin_us = cpus > 2 ? config->spin_us : 0;
  // Half of the CPUs, and no more than saturate a bus; on two the worker needs the other one.
  const uint32_t suitable = cpus <= 2 ? 1 : cpus / 2 < COPY_THREADS ? cpus / 2 : COPY_THREADS;
  orion_copier_set(config->copy_threads != 0 ? config->copy_threads : suitable);
  impl->sync = config->sync;
  impl->base.image_offer_min_bytes = ORION_IMAGE_OFFER_MIN_BYTES;
  impl->base.device_output_from = config->device_output_from;
  impl->base.coherent = (enum orion_coherent_wish)config->coherent;
  return impl;
}

bool orion_session_start(orion_session_impl* impl) {
  impl->staging = orion_staging_new();
  impl->arena = orion_arena_new(ORION_STAGING_BYTES, ORION_HOST_ARENA_BYTES - ORION_STAGING_BYTES);
  return impl->staging && impl->arena;
}

void orion_session_free(orion_session_impl* impl) {
  if (!impl) return;
  orion_staging_free(impl->staging);
  orion_arena_delete(impl->arena);
  free(impl);
}
