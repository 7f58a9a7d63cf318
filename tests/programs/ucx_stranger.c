// ucx_stranger PORT TOKEN [HARM]: connects to a worker's UCX lanes by hand and greets with what TOKEN (64 hexadecimal
// digits, a session's) gives. Prints "welcome" or "dropped". With HARM (order, lane, offer, unknown, leave) it then
// sends a frame that no client sends, and stays until the worker closes the connection.
#define _GNU_SOURCE
#include <stdio.h>
#include <time.h>
#include <unistd.h>

#include "orion_ucx_link.h"

static orion_ucx_link ucx;
static bool is_welcome, is_closed;

static orion_ucs_status take(void* argument, const void* header, size_t header_bytes, void* data, size_t bytes,
                             const orion_ucp_am_recv_param* param) {
  (void)argument, (void)header, (void)header_bytes, (void)data, (void)bytes, (void)param;
  is_welcome = true;
  return ORION_UCS_OK;
}

static void on_error(void* argument, void* ep, orion_ucs_status status) {
  (void)argument, (void)ep, (void)status;
  is_closed = true;
}

static void send_frame(void* ep, const orion_ucx_head* head, const void* body, uint32_t how) {
  const orion_ucp_request_param param = {.mask = ORION_UCP_OP_FLAGS, .flags = how};
  void* request = ucx.api.am_send_nbx(ep, ORION_UCX_AM, head, sizeof *head, body, head->frame.bytes, &param);
  if (request && !orion_ucs_is_error(request)) ucx.api.request_free(request);
}

static void until(const bool* condition, int limit_s) {
  const time_t end = time(NULL) + limit_s;
  while (!*condition && !is_closed && time(NULL) < end)
    if (!ucx.api.worker_progress(ucx.worker)) usleep(1000);
}

int main(int argc, char** argv) {
  if (argc < 3 || strlen(argv[2]) != 64) return 2;
  uint8_t session_token[32], token[32];
  for (int i = 0; i < 32; i++) {
    unsigned byte = 0;
    if (sscanf(argv[2] + 2 * i, "%2x", &byte) != 1) return 2;
    session_token[i] = (uint8_t)byte;
  }
  orion_ucx_token(session_token, token);
  const char* why = orion_ucx_open(&ucx, "", "", "", take, NULL, NULL);
  if (why) {
    fprintf(stderr, "%s\n", why);
    return 1;
  }
  const struct sockaddr_in address = {
      .sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[1])), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  const orion_ucp_ep_params params = {
      .mask = ORION_UCP_EP_FLAGS | ORION_UCP_EP_SOCKADDR | ORION_UCP_EP_ERROR_MODE | ORION_UCP_EP_ERROR_HANDLER,
      .error_mode = ORION_UCP_ERRORS_OF_PEER,
      .error = {on_error, NULL},
      .flags = ORION_UCP_EP_CLIENT_SERVER,
      .peer = {(const struct sockaddr*)&address, sizeof address}};
  void* ep = NULL;
  if (ucx.api.ep_create(ucx.worker, &params, &ep)) return 1;
  static orion_ucx_head head;
  head = (orion_ucx_head){.frame = {.type = ORION_FRAME_CONTROL, .bytes = 32}, .cookie = orion_ucx_cookie(token)};
  send_frame(ep, &head, token, ORION_UCP_AM_EAGER | ORION_UCP_AM_REPLY);
  until(&is_welcome, 10);
  puts(is_welcome ? "welcome" : "dropped");
  fflush(stdout);
  if (argc < 4 || !is_welcome) return 0;
  static uint8_t body[4096];
  static orion_ucx_head first;  // that all welcomes are here
  first = (orion_ucx_head){.frame = {.type = ORION_FRAME_CONTROL}, .order = 1, .cookie = head.cookie};
  send_frame(ep, &first, body, ORION_UCP_AM_EAGER);
  static orion_ucx_head harm;
  harm = (orion_ucx_head){.frame = {.type = ORION_FRAME_OPS_MAIN}, .order = 2, .cookie = head.cookie};
  uint32_t how = ORION_UCP_AM_EAGER;
  if (strcmp(argv[3], "leave") == 0) harm.frame.type = 78;
  if (strcmp(argv[3], "order") == 0) harm.order = 1;
  if (strcmp(argv[3], "lane") == 0) harm.frame.flags = 3;
  if (strcmp(argv[3], "unknown") == 0) harm.frame.type = 77;
  if (strcmp(argv[3], "offer") == 0) {
    harm.frame =
        (orion_frame){.type = ORION_FRAME_BULK, .flags = 1, .bytes = sizeof body, .sequence = 1, .a = 1ull << 60};
    how = ORION_UCP_AM_RNDV;
  }
  send_frame(ep, &harm, body, how);
  const bool never = false;
  until(&never, 20);
  return 0;
}
