// The token by which a pod proves to a controller that it is itself.
#ifndef ORION_SHIM_POD_TOKEN_H
#define ORION_SHIM_POD_TOKEN_H

#include "config.h"
#include "control.h"

enum { ORION_TOKEN_BYTES = 8192 };  // at most: what a controller takes

/// The token as it is in ORION_TOKEN_FILE now, since it is renewed; empty where there is none. Only for a controller to
/// which the connection is encrypted, or that is on this machine. False after one line when the file cannot be a token.
bool orion_pod_token_read(const orion_config* config, const orion_control* control, char token[ORION_TOKEN_BYTES + 1]);

#endif
