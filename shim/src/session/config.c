#define _GNU_SOURCE
#include "config.h"

#include <ctype.h>
#include <errno.h>
#include <pwd.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>
#include <zmq.h>

#include "log.h"
#include "orion_lanes.h"
#include "session.h"

enum { VALUE_BYTES = 8192, CONF_FILE_MAX_BYTES = 1 << 20 };

uint32_t orion_usable_cpus(void) {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) != 0) return 1;
  return (uint32_t)CPU_COUNT(&set);
}

static char* trimmed(char* text) {
  while (isspace((unsigned char)*text)) text++;
  size_t n = strlen(text);
  while (n && isspace((unsigned char)text[n - 1])) text[--n] = 0;
  return text;
}

// Looks for `key` in an INI file. Sections only group keys for the reader; `#` and `;` start a comment line.
static bool find_in_file(const char* path, const char* key, char* value) {
  FILE* file = fopen(path, "re");
  if (!file) return false;
  char line[VALUE_BYTES];
  bool found = false;
  size_t read_bytes = 0;
  while (!found && read_bytes < CONF_FILE_MAX_BYTES && fgets(line, sizeof line, file)) {
    read_bytes += strlen(line);
    char* text = trimmed(line);
    if (!*text || *text == '#' || *text == ';' || *text == '[') continue;
    char* equals = strchr(text, '=');
    if (!equals) continue;
    *equals = 0;
    if (strcasecmp(trimmed(text), key) != 0) continue;
    snprintf(value, VALUE_BYTES, "%s", trimmed(equals + 1));
    found = true;
  }
  fclose(file);
  return found;
}

// Where a setting stands; the higher goes before.
enum place { NOWHERE, IN_SYSTEM_FILE, IN_HOME_FILE, IN_ENVIRONMENT };

static enum place find_setting(const char* key, char* value) {
  const char* from_environment = getenv(key);
  if (from_environment && *from_environment) {
    snprintf(value, VALUE_BYTES, "%s", from_environment);
    return IN_ENVIRONMENT;
  }
  const char* home = getenv("HOME");
  char buffer[1024];
  struct passwd entry;
  struct passwd* user = NULL;
  if (!home && getpwuid_r(getuid(), &entry, buffer, sizeof buffer, &user) == 0 && user) home = user->pw_dir;
  if (home) {
    char path[1024];
    if (snprintf(path, sizeof path, "%s/.orion/client.conf", home) < (int)sizeof path && find_in_file(path, key, value))
      return IN_HOME_FILE;
  }
  return find_in_file("/etc/orion/client.conf", key, value) ? IN_SYSTEM_FILE : NOWHERE;
}

static bool setting(const char* key, char* value) { return find_setting(key, value) != NOWHERE; }

static bool bad_value(const char* key, const char* value, const char* expected) {
  char shown[128];
  orion_printable(shown, sizeof shown, value, strlen(value));
  orion_log(ORION_LOG_ERROR, "%s=%s is not valid: expected %s", key, shown, expected);
  return false;
}

static bool read_number(const char* key, uint64_t least, uint64_t most, const char* expected, uint64_t* number) {
  char value[VALUE_BYTES];
  if (!setting(key, value)) return true;
  char* end = NULL;
  errno = 0;
  unsigned long long parsed = strtoull(value, &end, 10);
  if (!isdigit((unsigned char)value[0]) || *end || errno || parsed < least || parsed > most)
    return bad_value(key, value, expected);
  *number = parsed;
  return true;
}

// A positive number that need not be whole, times `factor`; 0 stands for "not wanted".
static bool read_decimal(const char* key, double most, double factor, const char* expected, uint64_t* number) {
  char value[VALUE_BYTES];
  if (!setting(key, value)) return true;
  char* end = NULL;
  const double parsed = strtod(value, &end);
  if (end == value || *end || !(parsed >= 0) || parsed > most) return bad_value(key, value, expected);
  *number = (uint64_t)(parsed * factor);
  return true;
}

static bool read_lanes_setting(orion_config* config) {
  char value[VALUE_BYTES] = "auto";
  setting("ORION_TCP_LANES", value);
  static const char* const names[] = {"auto", "raw", "zmq"};
  static const uint32_t lanes[] = {ORION_LANES_RAW | ORION_LANES_ZMQ, ORION_LANES_RAW, ORION_LANES_ZMQ};
  for (int i = 0; i < 3; i++) {
    if (strcasecmp(value, names[i]) != 0) continue;
    config->tcp_lanes = lanes[i];
    return true;
  }
  return bad_value("ORION_TCP_LANES", value, "auto, raw or zmq");
}

// On a machine with few CPUs more connections only take turns.
static uint64_t default_stripes(void) {
  const uint32_t cpus = orion_usable_cpus();
  return cpus <= 2 ? 1 : cpus <= 4 ? 2 : 4;
}

typedef char address_text[ORION_SERVER_NAME_BYTES];

// host:port[,host:port...] into `addresses`.
static bool parse_addresses(const char* key, char* value, unsigned long default_port, uint32_t most,
                            address_text* addresses, uint32_t* count) {
  char expected[96];
  snprintf(expected, sizeof expected, "host:port[,host:port...], at most %u, for example 127.0.0.1:%lu", most,
           default_port);
  char whole[VALUE_BYTES];
  snprintf(whole, sizeof whole, "%s", value);
  char* rest = NULL;
  for (char* item = strtok_r(value, ",", &rest); item; item = strtok_r(NULL, ",", &rest)) {
    item = trimmed(item);
    char* colon = strrchr(item, ':');
    char* end = NULL;
    unsigned long port = default_port;
    if (colon && !strchr(colon, ']')) {  // "[::1]" alone has its last colon inside the brackets
      port = strtoul(colon + 1, &end, 10);
      if (!isdigit((unsigned char)colon[1]) || *end) return bad_value(key, whole, expected);
      *colon = 0;
    }
    if (!*item || port < 1 || port > 65535 || strpbrk(item, " \t/") || *count == most ||
        snprintf(addresses[*count], sizeof(address_text), "%s:%lu", item, port) >= (int)sizeof(address_text))
      return bad_value(key, whole, expected);
    ++*count;
  }
  return *count ? true : bad_value(key, whole, expected);
}

// Servers are named by the user, or else by a controller. Of the two, the one counts that stands in the place that goes
// before; in the same place, the servers.
static bool read_addresses(orion_config* config) {
  char servers[VALUE_BYTES];
  char value[VALUE_BYTES];
  const char* key = "ORION_CONTROLLER";
  enum place named = find_setting("ORION_SERVER", servers);
  enum place pool = find_setting(key, value);
  char in_section[VALUE_BYTES];
  const enum place older = find_setting("controller_addr", in_section);  // the key of [controller] in such files
  if (older > pool && older != IN_ENVIRONMENT) {
    key = "controller_addr";
    pool = older;
    memcpy(value, in_section, sizeof value);
  }
  if (pool > named)
    return parse_addresses(key, value, 9123, ORION_CONTROLLERS_MAX, config->controllers, &config->controller_count);
  if (pool != NOWHERE) orion_log(ORION_LOG_INFO, "ORION_SERVER is set, so %s=%s is not asked", key, value);
  config->server_is_default = named == NOWHERE;
  if (config->server_is_default) snprintf(servers, sizeof servers, "127.0.0.1:9960");
  return parse_addresses("ORION_SERVER", servers, 9960, ORION_SERVERS_MAX, config->servers, &config->server_count);
}

static bool read_short_text(const char* key, bool is_secret, char* text, size_t capacity) {
  char value[VALUE_BYTES];
  char expected[32];
  if (!setting(key, value)) return true;
  snprintf(expected, sizeof expected, "at most %zu bytes", capacity - 1);
  if (strlen(value) >= capacity) return bad_value(key, is_secret ? "(not shown)" : value, expected);
  memcpy(text, value, strlen(value) + 1);
  return true;
}

static bool read_pool_settings(orion_config* config) {
  char value[VALUE_BYTES];
  uint64_t cross_node = 1;
  uint64_t reserved = 0;
  uint64_t wait_s = 0;
  config->schedule_rule = "";
  if (setting("ORION_SCHEDULE_RULE", value)) {
    static const char* const rules[] = {"local-first", "binpack", "spread"};
    for (int i = 0; i < 3; i++)
      if (strcasecmp(value, rules[i]) == 0) config->schedule_rule = rules[i];
    if (!config->schedule_rule[0]) return bad_value("ORION_SCHEDULE_RULE", value, "local-first, binpack or spread");
  }
  if (!read_number("ORION_CROSS_NODE", 0, 1, "0 (all vGPUs on one server) or 1", &cross_node) ||
      !read_number("ORION_RESERVED", 0, 1, "0 or 1 (idle vGPUs are not given to others)", &reserved) ||
      !read_number("ORION_WAIT_S", 0, 86400, "seconds to wait for vGPUs in the queue, 0 to 86400", &wait_s) ||
      !read_short_text("ORION_CLIENT_KEY", true, config->client_key, sizeof config->client_key) ||
      !read_short_text("ORION_TOKEN_FILE", false, config->token_file, sizeof config->token_file) ||
      !read_short_text("ORION_K8S_POD_NAME", false, config->pod_name, sizeof config->pod_name) ||
      !read_short_text("ORION_K8S_POD_UID", false, config->pod_uid, sizeof config->pod_uid) ||
      !read_short_text("ORION_K8S_POD_NS", false, config->pod_namespace, sizeof config->pod_namespace))
    return false;
  config->cross_node = cross_node != 0;
  config->reserved = reserved != 0;
  config->wait_s = (uint32_t)wait_s;
  return true;
}

static bool is_public_key(const char* key) {
  uint8_t decoded[32];
  return strlen(key) == ORION_SERVER_KEY_BYTES - 1 && zmq_z85_decode(decoded, key);
}

static bool read_controller_key(orion_config* config) {
  char value[VALUE_BYTES];
  if (!config->controller_count || !setting("ORION_CONTROLLER_KEY", value) || strcmp(value, "none") == 0) return true;
  if (!is_public_key(value))
    return bad_value("ORION_CONTROLLER_KEY", value, "the 40 characters that `orion-controller key` prints there");
  memcpy(config->controller_key, value, ORION_SERVER_KEY_BYTES);
  return true;
}

// One key for each server, in their order; an empty item is a server without.
static bool read_server_keys(orion_config* config) {
  static const char expected[] =
      "the 40 characters that `orion-server key` prints there; for several servers a comma list in the order of "
      "ORION_SERVER";
  char value[VALUE_BYTES];
  if (!setting("ORION_SERVER_KEY", value) || strcmp(value, "none") == 0) return true;
  char* item = value;
  for (uint32_t i = 0; i < config->server_count; i++) {
    char* comma = strchr(item, ',');
    if ((comma != NULL) != (i + 1 < config->server_count)) return bad_value("ORION_SERVER_KEY", "...", expected);
    if (comma) *comma = 0;
    const char* key = trimmed(item);
    if (*key && !is_public_key(key)) return bad_value("ORION_SERVER_KEY", key, expected);
    memcpy(config->server_keys[i], key, strlen(key) + 1);
    if (comma) item = comma + 1;
  }
  return true;
}

static bool read_security_settings(orion_config* config) {
  char value[VALUE_BYTES] = "auto";
  static const char* const names[] = {"auto", "on", "off"};
  uint32_t wish = 0;
  setting("ORION_ENCRYPT", value);
  while (wish < 3 && strcasecmp(value, names[wish]) != 0) wish++;
  if (wish == 3) return bad_value("ORION_ENCRYPT", value, "auto, on or off");
  config->encrypt = (enum orion_encrypt_wish)wish;
  if (setting("ORION_CIPHER", value) && strcasecmp(value, "auto") != 0) {
    static const char* const ciphers[] = {"", "aes256gcm", "chacha20poly1305"};
    uint32_t cipher = 1;
    while (cipher < 3 && strcasecmp(value, ciphers[cipher]) != 0) cipher++;
    if (cipher == 3) return bad_value("ORION_CIPHER", value, "auto, aes256gcm or chacha20poly1305");
    config->ciphers[cipher] = true;
  } else {
    config->ciphers[ORION_CIPHER_AES256GCM] = config->ciphers[ORION_CIPHER_CHACHA20POLY1305] = true;
  }
  if (!read_server_keys(config) || !read_controller_key(config)) return false;
  if (wish == ORION_ENCRYPT_ON && config->controller_count && !config->controller_key[0])
    return bad_value("ORION_ENCRYPT", names[wish], "the controller's key in ORION_CONTROLLER_KEY beside it");
  for (uint32_t i = 0; i < config->server_count && wish == ORION_ENCRYPT_ON; i++)
    if (!config->server_keys[i][0])
      return bad_value("ORION_ENCRYPT", names[wish], "the key of each server in ORION_SERVER_KEY beside it");
  if (config->server_count && strlen(config->client_key) > ORION_CLIENT_KEY_BYTES)
    return bad_value("ORION_CLIENT_KEY", "(not shown)", "at most 128 bytes: what the server's --client-key-file holds");
  return true;
}

static bool read_log_settings(void) {
  char value[VALUE_BYTES];
  char file[VALUE_BYTES] = "";
  int level = ORION_LOG_WARN;
  setting("ORION_LOG_FILE", file);
  if (setting("ORION_LOG", value)) {
    static const char* const names[] = {"error", "warn", "info", "debug"};
    for (level = 0; level < 4 && strcasecmp(value, names[level]) != 0; level++) continue;
    if (level == 4) return bad_value("ORION_LOG", value, "error, warn, info or debug");
  }
  orion_log_configure(level, file);
  return true;
}

static bool read_stats_setting(char* wish, size_t capacity) {
  char value[VALUE_BYTES] = "0";
  setting("ORION_STATS", value);
  const bool is_file = strncmp(value, "json:", 5) == 0 && value[5];
  if (!is_file && strcmp(value, "0") != 0 && strcmp(value, "1") != 0)
    return bad_value("ORION_STATS", value, "0, 1 or json:PATH");
  if (strlen(value) >= capacity) return bad_value("ORION_STATS", value, "a shorter PATH");
  memcpy(wish, value, strlen(value) + 1);
  return true;
}

static bool read_group_settings(orion_config* config) {
  char value[VALUE_BYTES];
  config->ratio_policy = "";
  if (setting("ORION_GROUP_ID", value)) {
    if (strlen(value) >= sizeof config->group) return bad_value("ORION_GROUP_ID", value, "at most 255 bytes");
    memcpy(config->group, value, strlen(value) + 1);
  }
  if (setting("ORION_RES_GROUP", value)) {
    if (strcmp(value, "BOX") != 0)
      return bad_value("ORION_RES_GROUP", value, "BOX (the processes of the group share one vGPU), or nothing");
    if (!config->group[0]) return bad_value("ORION_RES_GROUP", value, "the group's name in ORION_GROUP_ID beside it");
    config->shares_vgpu = true;
  }
  if (setting("ORION_RATIO_POLICY", value)) {
    static const char* const policies[] = {"hard", "elastic"};
    for (int i = 0; i < 2; i++)
      if (strcasecmp(value, policies[i]) == 0) config->ratio_policy = policies[i];
    if (!config->ratio_policy[0]) return bad_value("ORION_RATIO_POLICY", value, "hard or elastic");
  }
  return true;
}

bool orion_config_read(orion_config* config) {
  memset(config, 0, sizeof *config);
  if (!read_log_settings()) return false;
  char value[VALUE_BYTES];
  if (!read_addresses(config) || !read_pool_settings(config) || !read_security_settings(config)) return false;
  if (setting("ORION_TRANSPORT", value)) {
    static const char* const names[] = {"auto", "shm", "tcp", "ucx"};
    int wish = 0;
    while (wish < 4 && strcasecmp(value, names[wish]) != 0) wish++;
    if (wish == 4) return bad_value("ORION_TRANSPORT", value, "auto, shm, ucx or tcp");
    config->transport = (enum orion_transport_wish)wish;
  }
  if (setting("ORION_COHERENT", value)) {
    static const char* const names[] = {"params", "all", "off"};
    uint32_t wish = 0;
    while (wish < 3 && strcasecmp(value, names[wish]) != 0) wish++;
    if (wish == 3) return bad_value("ORION_COHERENT", value, "params, all or off");
    config->coherent = wish;
  }
  if (!read_group_settings(config)) return false;
  if (!read_stats_setting(config->stats, sizeof config->stats)) return false;
  uint64_t vgpu = config->controller_count ? 1 : 0;  // 0: all that the servers offer
  uint64_t stripes = default_stripes();
  uint64_t ratio = 0;
  uint64_t spin = 50;
  uint64_t ucx_spin = UINT32_MAX;
  uint64_t copy_threads = 0;
  uint64_t timeout = 5000;
  uint64_t sync = 0;
  uint64_t selftest = 1;
  uint64_t device_printf = 2;  // where images with printing kernels are loaded
  if (!read_number("ORION_VGPU", 1, ORION_DEVICES, "a count of vGPUs, 1 to 64", &vgpu) ||
      !read_number("ORION_GMEM", 1, 1u << 30, "device memory for each vGPU in MiB", &config->gmem_mib) ||
      !read_number("ORION_RATIO", 1, 100, "a share of compute in percent, 1 to 100", &ratio) ||
      !read_number("ORION_SPIN_US", 0, 1000000, "microseconds to spin before sleeping, 0 to 1000000", &spin) ||
      !read_number("ORION_COPY_THREADS", 1, 16, "threads that share a large copy, 1 to 16", &copy_threads) ||
      !read_number("ORION_UCX_SPIN_US", 0, 1000000, "microseconds to spin over ucx, 0 to 1000000", &ucx_spin) ||
      !read_short_text("ORION_IBVERBS_DEVICE", false, config->ibverbs_device, sizeof config->ibverbs_device) ||
      !read_lanes_setting(config) ||
      !read_number("ORION_TCP_STRIPES", 0, ORION_STRIPES_MAX, "connections for large copies, 0 to 8", &stripes) ||
      !read_decimal("ORION_EMULATE_RTT_US", 1e6, 1e3, "microseconds, 0 to 1000000", &config->emulate_rtt_ns) ||
      !read_decimal("ORION_EMULATE_GBIT", 1e4, 1e9 / 8, "Gbit/s, 0 to 10000", &config->emulate_bytes_per_second) ||
      !read_number("ORION_ATTACH_TIMEOUT_MS", 1, 3600000, "milliseconds, 1 to 3600000", &timeout) ||
      !read_number("ORION_DEVICE_PRINTF", 0, 1, "0 or 1", &device_printf) ||
      !read_number("ORION_SYNC", 0, 1, "0 or 1", &sync) ||
      !read_number("ORION_RUNTIME_SELFTEST", 0, 1, "0 or 1", &selftest))
    return false;
  if (config->emulate_rtt_ns || config->emulate_bytes_per_second) {
    if (config->transport == ORION_WISH_SHM || config->transport == ORION_WISH_UCX)
      return bad_value("ORION_TRANSPORT", config->transport == ORION_WISH_SHM ? "shm" : "ucx",
                       "tcp where a network is emulated");
    config->transport = ORION_WISH_TCP;
  }
  config->vgpu_count = (uint32_t)vgpu;
  config->ratio_percent = (uint32_t)ratio;
  config->spin_us = (uint32_t)spin;
  config->ucx_spin_us = (uint32_t)ucx_spin;
  config->copy_threads = (uint32_t)copy_threads;
  config->tcp_stripes = (uint32_t)stripes;
  config->attach_timeout_ms = (uint32_t)timeout;
  const uint32_t from[] = {ORION_OUTPUT_NEVER, ORION_OUTPUT_KEPT, ORION_OUTPUT_EXPECTED};
  config->device_output_from = from[device_printf];
  config->sync = sync != 0;
  config->runtime_selftest = selftest != 0;
  return true;
}
