// Who this process is, as requests for GPUs tell it.
#ifndef ORION_SHIM_IDENTITY_H
#define ORION_SHIM_IDENTITY_H

#include "msgpack.h"

/// Names this boot of this host; empty where the system does not tell.
void orion_boot_id(char* out, size_t capacity);

enum { ORION_IDENTITY_PAIRS = 6 };
/// wire, client, pid, uid, host, program.
void orion_pack_identity(orion_packer* p);

#endif
