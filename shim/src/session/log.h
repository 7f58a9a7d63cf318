// Sentences for people: one line on stderr for each failure, and a log that ORION_LOG widens.
#ifndef ORION_SHIM_LOG_H
#define ORION_SHIM_LOG_H

#include <stddef.h>

enum { ORION_LINE_BYTES = 1024 };

/// Level from ORION_LOG, file from ORION_LOG_FILE (NULL or empty: stderr only). Before this, warnings go to stderr.
void orion_log_configure(int level, const char* file);

/// Copies text that another process sent into `out`, with control bytes replaced, so that it cannot forge log lines.
void orion_printable(char* out, size_t capacity, const char* text, size_t bytes);

#endif
