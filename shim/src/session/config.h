// What the user configured: environment first, then ~/.orion/client.conf, then /etc/orion/client.conf.
#ifndef ORION_SHIM_CONFIG_H
#define ORION_SHIM_CONFIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { ORION_SERVERS_MAX = 64, ORION_CONTROLLERS_MAX = 16, ORION_SERVER_NAME_BYTES = 128 };
enum orion_transport_wish { ORION_WISH_AUTO, ORION_WISH_SHM, ORION_WISH_TCP, ORION_WISH_UCX };

enum orion_encrypt_wish { ORION_ENCRYPT_AUTO, ORION_ENCRYPT_ON, ORION_ENCRYPT_OFF };
enum { ORION_SERVER_KEY_BYTES = 41, ORION_CLIENT_KEY_BYTES = 128 };  // a server's; a pool's may be longer

enum orion_lanes_wish { ORION_LANES_RAW = 1, ORION_LANES_ZMQ = 2 };

typedef struct orion_config {
  char servers[ORION_SERVERS_MAX][ORION_SERVER_NAME_BYTES];     // "host:port"
  char server_keys[ORION_SERVERS_MAX][ORION_SERVER_KEY_BYTES];  // z85 public keys, by position; "": not encrypted
  enum orion_encrypt_wish encrypt;                              // the data lanes of tcp
  bool ciphers[3];                                              // by enum orion_cipher: whether it may be offered
  uint32_t server_count;
  bool server_is_default;  // nobody named one
  enum orion_transport_wish transport;
  uint32_t vgpu_count;       // 0: all that the server offers
  uint64_t gmem_mib;         // 0: the server's default
  uint32_t ratio_percent;    // 0: the server's default
  const char* ratio_policy;  // "hard", "elastic", or empty: the server's default
  char group[256];
  bool shares_vgpu;  // ORION_RES_GROUP=BOX: the processes of the group share one vGPU on each GPU
  uint32_t spin_us;
  uint32_t copy_threads;  // 0: as many as suit the machine
  uint32_t tcp_lanes;     // bits of enum orion_lanes_wish
  uint32_t tcp_stripes;
  char ibverbs_device[49];  // the RDMA device to use; empty: any
  uint32_t ucx_spin_us;     // over ucx instead of spin_us, on any number of CPUs; UINT32_MAX: as spin_us
  uint64_t emulate_rtt_ns, emulate_bytes_per_second;  // 0: the network as it is
  bool sync;
  uint32_t coherent;            // enum orion_coherent_wish
  uint32_t device_output_from;  // as in orion_session
  uint32_t attach_timeout_ms;
  char stats[2048];       // "0", "1" or "json:PATH"
  bool runtime_selftest;  // answer the self-test of NVIDIA's runtime where the server has validated that

  // The pool. With controllers there are no `servers`: an allocation names them.
  char controllers[ORION_CONTROLLERS_MAX][ORION_SERVER_NAME_BYTES];  // "host:port", replicas of one
  uint32_t controller_count;                                         // 0: none
  char controller_key[ORION_SERVER_KEY_BYTES];                       // z85, of all replicas; "": not encrypted
  bool cross_node;                                                   // the vGPUs may lie on several servers
  bool reserved;                                                     // they stay while the program does not use them
  const char* schedule_rule;  // "local-first", "binpack", "spread", or empty: the pool's default
  uint32_t wait_s;            // in the queue, when there is no room
  char client_key[257];       // of the pool; without controllers: what the servers may ask for
  char pod_name[256], pod_uid[256], pod_namespace[256];
  char token_file[1024];  // with the service-account token that proves the pod; "": none
} orion_config;

/// CPUs that this process may use.
uint32_t orion_usable_cpus(void);
/// Reads the configuration, sets up logging. False after one line on stderr that names the bad value.
bool orion_config_read(orion_config* config);

#endif
