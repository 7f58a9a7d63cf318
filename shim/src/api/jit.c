// What module loads and links share: recognising images, compile options, logs.
#include <elf.h>
#include <stdlib.h>
#include <string.h>

#include "api.h"

#define FATBIN_WRAPPER_MAGIC 0x466243b1u
#define FATBIN_MAGIC 0xba55ed50u
#define IMAGE_LIMIT_BYTES (4ull << 30)
#define LOG_LIMIT_BYTES (1u << 20)

static uint64_t elf_bytes(const uint8_t* image) {
  Elf64_Ehdr header;
  memcpy(&header, image, sizeof header);
  if (header.e_ident[EI_CLASS] != ELFCLASS64) return 0;
  uint64_t end = sizeof header;
  const uint64_t sections_end = header.e_shoff + (uint64_t)header.e_shnum * header.e_shentsize;
  const uint64_t segments_end = header.e_phoff + (uint64_t)header.e_phnum * header.e_phentsize;
  if (header.e_shnum != 0 && sections_end > end) end = sections_end;
  if (header.e_phnum != 0 && segments_end > end) end = segments_end;
  for (uint32_t i = 0; header.e_shentsize >= sizeof(Elf64_Shdr) && i < header.e_shnum; i++) {
    Elf64_Shdr section;
    memcpy(&section, image + header.e_shoff + (uint64_t)i * header.e_shentsize, sizeof section);
    if (section.sh_type != SHT_NOBITS && section.sh_offset + section.sh_size > end) {
      end = section.sh_offset + section.sh_size;
    }
  }
  for (uint32_t i = 0; header.e_phentsize >= sizeof(Elf64_Phdr) && i < header.e_phnum; i++) {
    Elf64_Phdr segment;
    memcpy(&segment, image + header.e_phoff + (uint64_t)i * header.e_phentsize, sizeof segment);
    if (segment.p_offset + segment.p_filesz > end) end = segment.p_offset + segment.p_filesz;
  }
  return end;
}

uint64_t orion_image_bytes(const void* image, const void** data) {
  uint32_t magic;
  memcpy(&magic, image, sizeof magic);
  if (magic == FATBIN_WRAPPER_MAGIC) {
    memcpy(&image, (const uint8_t*)image + 8, sizeof image);
    if (image == NULL) return 0;
    memcpy(&magic, image, sizeof magic);
  }
  *data = image;
  uint64_t bytes;
  if (magic == FATBIN_MAGIC) {
    uint16_t header_bytes;
    memcpy(&header_bytes, (const uint8_t*)image + 6, sizeof header_bytes);
    memcpy(&bytes, (const uint8_t*)image + 8, sizeof bytes);
    bytes = bytes > IMAGE_LIMIT_BYTES ? 0 : bytes + header_bytes;
  } else if (memcmp(image, ELFMAG, SELFMAG) == 0) {
    bytes = elf_bytes(image);
  } else {
    const unsigned char first = *(const unsigned char*)image;  // text: white space, '/' of a comment or '.'
    const bool is_text = first == '\t' || first == '\n' || first == '\r' || (first >= 0x20 && first < 0x7f);
    bytes = is_text ? strlen(image) + 1 : 0;
  }
  return bytes > IMAGE_LIMIT_BYTES ? 0 : bytes;
}

static uint32_t bounded_log(void* value) {
  const uint32_t bytes = (uint32_t)(uintptr_t)value;
  return bytes < LOG_LIMIT_BYTES ? bytes : LOG_LIMIT_BYTES;
}

CUresult orion_jit_parse(orion_jit* jit, uint32_t count, const CUjit_option* options, void** values) {
  *jit = (orion_jit){
      .info_size_at = UINT32_MAX, .error_size_at = UINT32_MAX, .wall_time_at = UINT32_MAX, .values = values};
  if (count == 0) return CUDA_SUCCESS;
  if (options == NULL || values == NULL) return CUDA_ERROR_INVALID_VALUE;
  for (uint32_t i = 0; i < count; i++) {
    switch (options[i]) {
      case CU_JIT_INFO_LOG_BUFFER:
        jit->info_log = values[i];
        break;
      case CU_JIT_INFO_LOG_BUFFER_SIZE_BYTES:
        jit->info_log_bytes = bounded_log(values[i]);
        jit->info_size_at = i;
        break;
      case CU_JIT_ERROR_LOG_BUFFER:
        jit->error_log = values[i];
        break;
      case CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES:
        jit->error_log_bytes = bounded_log(values[i]);
        jit->error_size_at = i;
        break;
      case CU_JIT_WALL_TIME:
        jit->wall_time_at = i;
        break;
      case CU_JIT_GLOBAL_SYMBOL_NAMES:
      case CU_JIT_GLOBAL_SYMBOL_ADDRESSES:
      case CU_JIT_GLOBAL_SYMBOL_COUNT:
        return CUDA_ERROR_NOT_SUPPORTED;  // addresses of the program's own process
      case CU_JIT_REFERENCED_KERNEL_NAMES:
      case CU_JIT_REFERENCED_KERNEL_COUNT:
      case CU_JIT_REFERENCED_VARIABLE_NAMES:
      case CU_JIT_REFERENCED_VARIABLE_COUNT:
        break;  // only let the linker leave code out
      default:
        if ((unsigned)options[i] >= CU_JIT_NUM_OPTIONS) return CUDA_ERROR_INVALID_VALUE;
        if (jit->pair_count == sizeof jit->pairs / sizeof jit->pairs[0]) return CUDA_ERROR_INVALID_VALUE;
        jit->pairs[jit->pair_count][0] = (uint32_t)options[i];
        jit->pairs[jit->pair_count++][1] = (uint32_t)(uintptr_t)values[i];
    }
  }
  if (jit->info_log == NULL) jit->info_log_bytes = 0;
  if (jit->error_log == NULL) jit->error_log_bytes = 0;
  return CUDA_SUCCESS;
}

static void deliver(char* log, uint32_t capacity, const uint8_t* from, uint32_t bytes, void** size) {
  if (log == NULL || capacity == 0) bytes = 0;
  if (bytes > capacity) bytes = capacity;
  if (bytes != 0) {
    memcpy(log, from, bytes);
    log[bytes - 1] = log[bytes - 1] == '\0' || bytes == capacity ? '\0' : log[bytes - 1];
    if (bytes < capacity) log[bytes] = '\0';
  } else if (log != NULL && capacity != 0) {
    log[0] = '\0';
  }
  if (size != NULL) *size = (void*)(uintptr_t)bytes;
}

void orion_jit_finish(orion_jit* jit, const uint8_t* logs, uint32_t info_bytes, uint32_t error_bytes) {
  if (info_bytes > jit->info_log_bytes) info_bytes = jit->info_log_bytes;
  if (error_bytes > jit->error_log_bytes) error_bytes = jit->error_log_bytes;
  deliver(jit->info_log, jit->info_log_bytes, logs, info_bytes,
          jit->info_size_at == UINT32_MAX ? NULL : &jit->values[jit->info_size_at]);
  deliver(jit->error_log, jit->error_log_bytes, logs + jit->info_log_bytes, error_bytes,
          jit->error_size_at == UINT32_MAX ? NULL : &jit->values[jit->error_size_at]);
  if (jit->wall_time_at != UINT32_MAX) {
    const float unknown_ms = 0;  // the worker does not report compile time
    memcpy(&jit->values[jit->wall_time_at], &unknown_ms, sizeof unknown_ms);
  }
}
