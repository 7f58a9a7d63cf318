// Memory and events shared between processes of one server: handles that a program may pass on, and what it opened.
#ifndef ORION_SHIM_SHARE_H
#define ORION_SHIM_SHARE_H

#include "virtual_memory.h"

enum orion_share_kind { ORION_SHARE_ALLOCATION = 1, ORION_SHARE_MEMORY, ORION_SHARE_EVENT };

/// What a CUipcMemHandle, a CUipcEventHandle or a file descriptor carries. Whoever has it can open what it names, if it
/// is a process of the same host, user and group.
typedef struct orion_share {
  uint32_t magic;
  uint32_t kind;
  uint64_t process;  // a number of its own for each process: nobody opens what he made himself
  uint64_t token[2];
  uint64_t offset_bytes, bytes;  // of the allocation, in what the token stands for
  uint64_t reserved[2];
} orion_share;
_Static_assert(sizeof(orion_share) == CU_IPC_HANDLE_SIZE, "orion_share");

/// What a token stands for, mapped whole. Several allocations may lie in it.
typedef struct orion_import {
  struct orion_import* next;
  uint64_t token[2];
  orion_memory* memory;
  uint64_t base;
  uint32_t references;  // allocations
} orion_import;

/// An allocation of kind ORION_MEMORY_IMPORTED.
typedef struct orion_imported {
  orion_allocation allocation;  // first
  orion_import* import;
  uint32_t opened;  // how often
} orion_imported;

/// A sealed file that carries the handle, for descriptors that a program passes on.
CUresult orion_share_to_file(const orion_share* share, int* fd);
CUresult orion_share_from_file(int fd, enum orion_share_kind kind, orion_share* share);
/// Gives back what a context that has ended had opened.
void orion_context_imports_end(orion_context* context);

#endif
