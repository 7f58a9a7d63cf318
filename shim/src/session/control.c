#define _GNU_SOURCE
#include "control.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <poll.h>
#include <sodium.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include <zmq.h>

#include "futex.h"
#include "log.h"

static bool await_socket(int fd, short events, uint64_t end_ns) {
  struct pollfd ready = {fd, events, 0};
  int count = 0;
  do {
    const uint64_t now_ns = orion_now_ns();
    count = poll(&ready, 1, now_ns < end_ns ? (int)((end_ns - now_ns) / 1000000) + 1 : 0);
  } while (count < 0 && errno == EINTR);
  return count > 0;
}

// A plain connection first: ZeroMQ retries in silence, and "connection refused" is worth telling at once. `*kept`: the
// connection, where somebody wants it.
static int probe(const char* address, uint32_t timeout_ms, char* why, size_t why_bytes, int* kept) {
  char host[ORION_SERVER_NAME_BYTES];
  snprintf(host, sizeof host, "%s", address);
  char* colon = strrchr(host, ':');
  if (!colon) return EINVAL;
  *colon = 0;
  char* name = host;
  if (*name == '[' && colon[-1] == ']') {
    colon[-1] = 0;
    name++;
  }
  const struct addrinfo wanted = {.ai_socktype = SOCK_STREAM};
  struct addrinfo* found = NULL;
  const int problem = getaddrinfo(name, colon + 1, &wanted, &found);
  if (problem) {
    snprintf(why, why_bytes, "%s", gai_strerror(problem));
    return EHOSTUNREACH;
  }
  int error = EHOSTUNREACH;
  for (struct addrinfo* item = found; item && error; item = item->ai_next) {
    const int fd = socket(item->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) {
      error = errno;
      continue;
    }
    error = connect(fd, item->ai_addr, item->ai_addrlen) == 0 ? 0 : errno;
    if (error == EINPROGRESS) {
      socklen_t bytes = sizeof error;
      if (!await_socket(fd, POLLOUT, orion_now_ns() + timeout_ms * 1000000ull))
        error = ETIMEDOUT;
      else
        getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &bytes);
    }
    if (!error && kept)
      *kept = fd;
    else
      close(fd);
  }
  freeaddrinfo(found);
  if (error) snprintf(why, why_bytes, "%s", strerror(error));
  return error;
}

// Everything is encrypted for who holds the secret of `server_key`. Our own pair lasts as long as the connection: it
// proves nothing about us.
static bool use_curve(void* socket, const char* server_key) {
  char public_key[41], secret_key[41];
  const bool done = zmq_curve_keypair(public_key, secret_key) == 0 &&
                    zmq_setsockopt(socket, ZMQ_CURVE_SERVERKEY, server_key, strlen(server_key) + 1) == 0 &&
                    zmq_setsockopt(socket, ZMQ_CURVE_PUBLICKEY, public_key, sizeof public_key) == 0 &&
                    zmq_setsockopt(socket, ZMQ_CURVE_SECRETKEY, secret_key, sizeof secret_key) == 0;
  sodium_memzero(secret_key, sizeof secret_key);
  return done;
}

// Why there is no answer.
enum silence { SILENT, NOT_OURS, OTHER_ENCRYPTION };

// After a connection that was ended: what does the server speak? An end of ZMTP that has seen ten bytes of a signature
// and a version tells its mechanism, and cannot know ours yet, so it tells it in any case.
static enum silence ask_why(const orion_control* control) {
  static const uint8_t signature[11] = {0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0x7f, 3};
  enum { MECHANISM_AT = 12, MECHANISM_BYTES = 20 };
  uint8_t greeting[MECHANISM_AT + MECHANISM_BYTES + 1] = {0};
  char why[128];
  int fd = -1;
  if (probe(control->address, control->timeout_ms, why, sizeof why, &fd) != 0) return NOT_OURS;
  const uint64_t end_ns = orion_now_ns() + control->timeout_ms * 1000000ull;
  size_t at = 0;
  bool more = send(fd, signature, sizeof signature, MSG_NOSIGNAL) == (ssize_t)sizeof signature;
  while (more && at < sizeof greeting - 1 && await_socket(fd, POLLIN, end_ns)) {
    const ssize_t got = recv(fd, greeting + at, sizeof greeting - 1 - at, 0);
    more = got > 0;
    if (more) at += (size_t)got;
  }
  close(fd);
  if (at < sizeof greeting - 1 || greeting[0] != 0xff) return NOT_OURS;
  const char* expected = control->is_encrypted ? "CURVE" : "NULL";
  return strcmp((const char*)greeting + MECHANISM_AT, expected) == 0 ? NOT_OURS : OTHER_ENCRYPTION;
}

CUresult orion_control_open(orion_control* control, const char* address, const char* server_key, bool is_default,
                            uint32_t timeout_ms, bool quiet) {
  memset(control, 0, sizeof *control);
  snprintf(control->address, sizeof control->address, "%s", address);
  control->address_is_default = is_default;
  control->timeout_ms = timeout_ms;
  control->is_encrypted = server_key[0] != 0;
  char why[128] = "no address";
  if (probe(address, timeout_ms, why, sizeof why, NULL) != 0) {
    if (!quiet)
      orion_log(ORION_LOG_ERROR, "no server at %s (%s): start orion-server there, or %s", address, why,
                is_default ? "set ORION_SERVER=host:port (no server is configured, so the default was tried)"
                           : "correct ORION_SERVER");
    snprintf(control->why, sizeof control->why, "%s", why);
    return CUDA_ERROR_NO_DEVICE;
  }
  control->context = zmq_ctx_new();
  control->socket = control->context ? zmq_socket(control->context, ZMQ_DEALER) : NULL;
  char endpoint[ORION_SERVER_NAME_BYTES + 8];
  snprintf(endpoint, sizeof endpoint, "tcp://%s", address);
  const int linger_ms = 200;
  const int64_t most_bytes = ORION_CONTROL_MAX_BYTES;
  const int ipv6 = address[0] == '[';
  if (!control->socket || zmq_setsockopt(control->socket, ZMQ_LINGER, &linger_ms, sizeof linger_ms) ||
      zmq_setsockopt(control->socket, ZMQ_MAXMSGSIZE, &most_bytes, sizeof most_bytes) ||
      zmq_setsockopt(control->socket, ZMQ_IPV6, &ipv6, sizeof ipv6) ||
      (control->is_encrypted && !use_curve(control->socket, server_key)) ||
      zmq_socket_monitor(control->socket, "inproc://control-monitor",
                         ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL | ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL |
                             ZMQ_EVENT_HANDSHAKE_FAILED_AUTH | ZMQ_EVENT_DISCONNECTED) ||
      !(control->monitor = zmq_socket(control->context, ZMQ_PAIR)) ||
      zmq_connect(control->monitor, "inproc://control-monitor") || zmq_connect(control->socket, endpoint)) {
    const char* problem = zmq_strerror(zmq_errno());
    if (!quiet) orion_log(ORION_LOG_ERROR, "cannot connect to %s: %s", address, problem);
    orion_control_close(control);
    snprintf(control->why, sizeof control->why, "%s", problem);
    return CUDA_ERROR_NO_DEVICE;
  }
  return CUDA_SUCCESS;
}

void orion_control_close(orion_control* control) {
  if (control->socket) zmq_socket_monitor(control->socket, NULL, 0);
  if (control->monitor) zmq_close(control->monitor);
  if (control->socket) zmq_close(control->socket);
  if (control->context)
    while (zmq_ctx_term(control->context) != 0 && zmq_errno() == EINTR) continue;
  free(control->answer);
  memset(control, 0, sizeof *control);
}

void orion_control_begin(orion_control* control, orion_packer* packer, const char* type, uint32_t pairs) {
  orion_pack_map(packer, 3 + pairs);
  orion_pack_string(packer, "v");
  orion_pack_unsigned(packer, ORION_CONTROL_VERSION);
  orion_pack_string(packer, "type");
  orion_pack_string(packer, type);
  orion_pack_string(packer, "id");
  orion_pack_unsigned(packer, ++control->next_id);
}

void orion_control_tell(orion_control* control, const orion_packer* packer) {
  zmq_send(control->socket, packer->data, packer->bytes, ZMQ_DONTWAIT);
}

// The next message, whole. False at the deadline or when the peer does not speak our protocol.
static bool receive(orion_control* control, uint64_t deadline_ns, enum silence* why) {
  for (;;) {
    const uint64_t now_ns = orion_now_ns();
    if (now_ns >= deadline_ns) return false;
    zmq_pollitem_t items[] = {{control->socket, 0, ZMQ_POLLIN, 0}, {control->monitor, 0, ZMQ_POLLIN, 0}};
    if (zmq_poll(items, 2, (long)((deadline_ns - now_ns) / 1000000) + 1) < 0 && zmq_errno() != EINTR) return false;
    if (items[0].revents & ZMQ_POLLIN) {
      zmq_msg_t message;
      zmq_msg_init(&message);
      if (zmq_msg_recv(&message, control->socket, ZMQ_DONTWAIT) >= 0) {
        const bool more = zmq_msg_more(&message) != 0;
        free(control->answer);
        control->answer_bytes = zmq_msg_size(&message);
        control->answer = malloc(control->answer_bytes + 1);
        if (control->answer) memcpy(control->answer, zmq_msg_data(&message), control->answer_bytes);
        zmq_msg_close(&message);
        if (control->answer && !more) return true;
        continue;  // messages of several parts are not ours
      }
      zmq_msg_close(&message);
    }
    if (items[1].revents & ZMQ_POLLIN) {
      *why = NOT_OURS;
      return false;
    }
  }
}

orion_unpacker orion_control_answer(const orion_control* control, uint32_t* pairs) {
  orion_unpacker u = {control->answer, control->answer + control->answer_bytes, false};
  *pairs = orion_unpack_map(&u);
  if (u.bad) *pairs = 0;
  return u;
}

typedef struct answer_head {
  int64_t version, id, code;
  char type[32], message[384], hint[256];
} answer_head;

static bool read_head(const orion_control* control, answer_head* head) {
  memset(head, 0, sizeof *head);
  head->code = CUDA_ERROR_UNKNOWN;
  uint32_t pairs = 0;
  orion_unpacker u = orion_control_answer(control, &pairs);
  if (u.bad) return false;
  for (; pairs && !u.bad; pairs--) {
    const uint8_t* key = NULL;
    const uint8_t* text = NULL;
    const uint32_t key_bytes = orion_unpack_bytes(&u, &key);
    if (orion_unpack_equals(key, key_bytes, "v")) {
      head->version = orion_unpack_integer(&u);
    } else if (orion_unpack_equals(key, key_bytes, "id")) {
      orion_unpacker probe_id = u;
      const int64_t id = orion_unpack_integer(&probe_id);
      if (!probe_id.bad) head->id = id;
      orion_unpack_skip(&u);
    } else if (orion_unpack_equals(key, key_bytes, "type")) {
      const uint32_t bytes = orion_unpack_bytes(&u, &text);
      orion_printable(head->type, sizeof head->type, (const char*)text, bytes);
    } else if (orion_unpack_equals(key, key_bytes, "code")) {
      head->code = orion_unpack_integer(&u);
    } else if (orion_unpack_equals(key, key_bytes, "message")) {
      const uint32_t bytes = orion_unpack_bytes(&u, &text);
      orion_printable(head->message, sizeof head->message, (const char*)text, bytes);
    } else if (orion_unpack_equals(key, key_bytes, "hint")) {
      if (u.at < u.end && *u.at == 0xc0) {
        orion_unpack_skip(&u);
        continue;
      }
      const uint32_t bytes = orion_unpack_bytes(&u, &text);
      orion_printable(head->hint, sizeof head->hint, (const char*)text, bytes);
    } else {
      orion_unpack_skip(&u);
    }
  }
  return !u.bad && head->type[0];
}

// Keeps the sentence, and tells it unless `quiet`.
__attribute__((format(printf, 4, 5))) static void fail(orion_control* control, bool quiet,
                                                       enum orion_control_failure failure, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(control->why, sizeof control->why, format, arguments);
  va_end(arguments);
  control->failure = failure;
  if (!quiet) orion_log(ORION_LOG_ERROR, "%s", control->why);
}

typedef struct peer_names {
  const char *port, *setting, *printed_by, *started_as;
} peer_names;

static const peer_names names_of[] = {
    [ORION_PEER_SERVER] = {"the control port (9960) of an orion-server", "ORION_SERVER", "orion-server key",
                           "orion-server"},
    [ORION_PEER_CONTROLLER] = {"the port (9123) of an orion-controller", "ORION_CONTROLLER", "orion-controller key",
                               "orion-controller"},
    [ORION_PEER_OF_POOL] = {"the control port (9960) of an orion-server", "", "", ""},
};

// The connection ended before an answer: says why.
static void tell_closed(orion_control* control, bool quiet) {
  const peer_names* names = &names_of[control->peer];
  const enum orion_control_failure closed = ORION_CONTROL_CLOSED;
  const char* address = control->address;
  const bool differs = ask_why(control) == OTHER_ENCRYPTION;
  if (control->peer == ORION_PEER_OF_POOL && (differs || control->is_encrypted))
    fail(control, quiet, closed,
         "no %sconnection to %s: it does not have the key that its controller told (has it been restarted with another "
         "one?); try again, and see its log",
         control->is_encrypted ? "encrypted " : "", address);
  else if (differs && !control->is_encrypted)
    fail(control, quiet, closed,
         "%s takes encrypted connections only: set %s_KEY to its public key, which `%s` prints there and its log shows",
         address, names->setting, names->printed_by);
  else if (differs)
    fail(control, quiet, closed, "%s_KEY is set and %s does not encrypt: start %s with --curve on, or unset it",
         names->setting, address, names->started_as);
  else if (control->is_encrypted)
    fail(control, quiet, closed,
         "no encrypted connection to %s: is %s_KEY the key that `%s` prints there, and is it %s?", address,
         names->setting, names->printed_by, names->port);
  else
    fail(control, quiet, closed, "%s closed the connection or does not speak Orion's protocol: is it %s?", address,
         names->port);
}

CUresult orion_control_await(orion_control* control, uint32_t timeout_ms, char type[32], bool quiet) {
  const char* address = control->address;
  const uint64_t deadline_ns = orion_now_ns() + timeout_ms * 1000000ull;
  control->failure = ORION_CONTROL_WELL;
  for (;;) {
    enum silence why = SILENT;
    if (!receive(control, deadline_ns, &why)) {
      if (why == NOT_OURS)
        tell_closed(control, quiet);
      else
        fail(control, quiet, ORION_CONTROL_SILENT,
             "%s accepted the connection but did not answer within %u ms: is it %s? (ORION_ATTACH_TIMEOUT_MS sets the "
             "limit)",
             address, timeout_ms, names_of[control->peer].port);
      return CUDA_ERROR_NO_DEVICE;
    }
    answer_head head;
    if (!read_head(control, &head)) {
      fail(control, quiet, ORION_CONTROL_GARBAGE, "%s answered with something that is not an Orion message: check %s",
           address, control->peer == ORION_PEER_SERVER ? "ORION_SERVER" : "ORION_CONTROLLER");
      return CUDA_ERROR_NO_DEVICE;
    }
    if (head.version != ORION_CONTROL_VERSION) {
      fail(control, quiet, ORION_CONTROL_OTHER_VERSION,
           "%s speaks version %lld of the control protocol and this client version %d: install the same release on "
           "both sides",
           address, (long long)head.version, ORION_CONTROL_VERSION);
      return CUDA_ERROR_SYSTEM_DRIVER_MISMATCH;
    }
    const bool is_error = strcmp(head.type, "error") == 0;
    const bool is_ours =
        head.id > 0 && ((uint64_t)head.id == control->next_id || (uint64_t)head.id == control->also_answer);
    // An error may answer a message that the server could not read far enough to know its id.
    if (!is_ours && !(is_error && head.id == 0)) continue;
    if (is_error) {
      fail(control, quiet, ORION_CONTROL_REFUSED, "%s refused: %s%s%s", address,
           head.message[0] ? head.message : "no reason given", head.hint[0] ? "; " : "", head.hint);
      return head.code > 0 && head.code < 1000 ? (CUresult)head.code : CUDA_ERROR_UNKNOWN;
    }
    snprintf(type, 32, "%s", head.type);
    return CUDA_SUCCESS;
  }
}

CUresult orion_control_request(orion_control* control, const orion_packer* packer, char type[32], bool quiet) {
  if (packer->overflow || zmq_send(control->socket, packer->data, packer->bytes, ZMQ_DONTWAIT) < 0) {
    fail(control, quiet, ORION_CONTROL_UNSENT, "cannot send to %s: the request does not fit", control->address);
    return CUDA_ERROR_NO_DEVICE;
  }
  return orion_control_await(control, control->timeout_ms, type, quiet);
}
