// Values that libraries keep with a context, each under a key of its own.
#ifndef ORION_SHIM_CONTEXT_STORAGE_H
#define ORION_SHIM_CONTEXT_STORAGE_H

struct orion_context;

/// The context is about to end or to lose its contents: what is kept with it goes, last first, and each value's
/// destructor is called on this thread with the context current. No lock may be held.
void orion_storage_end(struct orion_context* context);

#endif
