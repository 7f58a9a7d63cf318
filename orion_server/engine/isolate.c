// What the kernel lets a worker do once it is ready for a client: a seccomp filter on all of its threads.
//
// A list of what is refused, not of what is allowed: NVIDIA's driver is not ours, and what it calls changes with its
// versions. Refused is what no worker needs and what would let one that its tenant has broken reach others: programs,
// processes, signals and memory of others, namespaces, mounts, keys, credentials, kernel interfaces with a history of
// holes. Refused calls fail with EPERM; a call of another architecture ends the process.
#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "engine.h"

#if defined(__x86_64__)
#define ARCHITECTURE AUDIT_ARCH_X86_64
#define X32_FIRST 0x40000000u
#elif defined(__aarch64__)
#define ARCHITECTURE AUDIT_ARCH_AARCH64
#endif

// Since Linux 5.1 a call has the same number everywhere; the headers of a build may be older than the kernel.
enum {
  NR_PIDFD_SEND_SIGNAL = 424,
  NR_IO_URING_SETUP = 425,
  NR_IO_URING_ENTER = 426,
  NR_IO_URING_REGISTER = 427,
  NR_OPEN_TREE = 428,
  NR_MOVE_MOUNT = 429,
  NR_FSOPEN = 430,
  NR_FSCONFIG = 431,
  NR_FSMOUNT = 432,
  NR_FSPICK = 433,
  NR_CLONE3 = 435,
  NR_PIDFD_GETFD = 438,
  NR_PROCESS_MADVISE = 440,
  NR_MOUNT_SETATTR = 442,
  NR_QUOTACTL_FD = 443,
  NR_PROCESS_MRELEASE = 448,
  NR_OPEN_TREE_ATTR = 467,
};

static const uint32_t refused[] = {
    // other programs and processes
    __NR_execve,
    __NR_execveat,
    __NR_ptrace,
    __NR_process_vm_readv,
    __NR_process_vm_writev,
    __NR_kcmp,
    __NR_tkill,
    NR_PIDFD_SEND_SIGNAL,
    NR_PIDFD_GETFD,
    NR_PROCESS_MADVISE,
    NR_PROCESS_MRELEASE,
    __NR_migrate_pages,
#ifdef __NR_fork
    __NR_fork,
    __NR_vfork,
#endif
    // credentials and namespaces
    __NR_setuid,
    __NR_setgid,
    __NR_setreuid,
    __NR_setregid,
    __NR_setresuid,
    __NR_setresgid,
    __NR_setfsuid,
    __NR_setfsgid,
    __NR_setgroups,
    __NR_capset,
    __NR_unshare,
    __NR_setns,
    __NR_personality,
    // file systems
    __NR_mount,
    __NR_umount2,
    __NR_pivot_root,
    __NR_chroot,
    NR_OPEN_TREE,
    NR_MOVE_MOUNT,
    NR_FSOPEN,
    NR_FSCONFIG,
    NR_FSMOUNT,
    NR_FSPICK,
    NR_MOUNT_SETATTR,
    NR_OPEN_TREE_ATTR,
    __NR_open_by_handle_at,
    __NR_name_to_handle_at,
    __NR_fanotify_init,
    __NR_quotactl,
    NR_QUOTACTL_FD,
    __NR_swapon,
    __NR_swapoff,
    __NR_acct,
    __NR_mknodat,
#ifdef __NR_mknod
    __NR_mknod,
    __NR_uselib,
#endif
    // the kernel itself
    __NR_keyctl,
    __NR_add_key,
    __NR_request_key,
    __NR_bpf,
    __NR_perf_event_open,
    __NR_userfaultfd,
    __NR_init_module,
    __NR_finit_module,
    __NR_delete_module,
    __NR_kexec_load,
    __NR_reboot,
    __NR_syslog,
    NR_IO_URING_SETUP,
    NR_IO_URING_ENTER,
    NR_IO_URING_REGISTER,
    __NR_settimeofday,
    __NR_clock_settime,
    __NR_adjtimex,
    __NR_clock_adjtime,
    __NR_sethostname,
    __NR_setdomainname,
    __NR_vhangup,
#ifdef __NR_kexec_file_load
    __NR_kexec_file_load,
#endif
#ifdef __NR_iopl
    __NR_iopl,
    __NR_ioperm,
    __NR_modify_ldt,
#endif
    // meeting places by name that outlive their maker
    __NR_mq_open,
    __NR_msgget,
    __NR_semget,
};

enum rule_kind { ALLOW_THESE, REFUSE_THESE, REFUSE_BITS, NEED_BITS };

// A rule on one argument, of which the kernel uses the low 32 bits.
typedef struct rule {
  uint32_t number;
  uint32_t argument;
  enum rule_kind kind;
  uint32_t value_count;
  uint32_t values[4];
} rule;

#define F_SETOWN_COMMAND 8u
#define F_SETOWN_EX_COMMAND 15u
#define TIOCSTI_REQUEST 0x5412u
#define TIOCLINUX_REQUEST 0x541cu
#define FIOSETOWN_REQUEST 0x8901u
#define SIOCSPGRP_REQUEST 0x8902u
#define FASTOPEN_FLAG 0x20000000u
#define NEW_NAMESPACES 0x7e020000u  // CLONE_NEWNS, CGROUP, UTS, IPC, USER, PID, NET
#define SELF 0xffffffffu            // stands for this process's id

static const rule rules[] = {
    // Signals and limits: for this process alone. Owners of descriptors get signals too.
    {__NR_kill, 0, ALLOW_THESE, 1, {SELF}},
    {__NR_tgkill, 0, ALLOW_THESE, 1, {SELF}},
    {__NR_rt_sigqueueinfo, 0, ALLOW_THESE, 1, {SELF}},
    {__NR_rt_tgsigqueueinfo, 0, ALLOW_THESE, 1, {SELF}},
    {__NR_prlimit64, 0, ALLOW_THESE, 2, {0, SELF}},
    {__NR_move_pages, 0, ALLOW_THESE, 2, {0, SELF}},
    {__NR_fcntl, 1, REFUSE_THESE, 2, {F_SETOWN_COMMAND, F_SETOWN_EX_COMMAND}},
    {__NR_ioctl, 1, REFUSE_THESE, 4, {TIOCSTI_REQUEST, TIOCLINUX_REQUEST, FIOSETOWN_REQUEST, SIOCSPGRP_REQUEST}},
    // Threads, no processes.
    {__NR_clone, 0, REFUSE_BITS, 1, {NEW_NAMESPACES}},
    {__NR_clone, 0, NEED_BITS, 1, {CLONE_THREAD}},
    // libzmq asks for the names of interfaces (netlink) before it listens.
    {__NR_socket, 0, ALLOW_THESE, 4, {AF_UNIX, AF_INET, AF_INET6, AF_NETLINK}},
    {__NR_socketpair, 0, ALLOW_THESE, 1, {AF_UNIX}},
};

// Once the lanes listen, nothing new is connected from here: a worker answers, it calls nobody.
static const uint32_t refused_with_lanes[] = {__NR_socket, __NR_connect, __NR_bind, __NR_listen};
// A closed listener could still be connected by sending.
static const rule rules_with_lanes[] = {
    {__NR_sendmsg, 2, REFUSE_BITS, 1, {FASTOPEN_FLAG}},
    {__NR_sendto, 3, REFUSE_BITS, 1, {FASTOPEN_FLAG}},
    {__NR_sendmmsg, 3, REFUSE_BITS, 1, {FASTOPEN_FLAG}},
};
// On the way of every copy over tcp, and not cached by the kernel because of the rules above: past the long list.
static const uint32_t allowed_first[] = {__NR_sendmsg, __NR_sendto, __NR_sendmmsg};

#ifdef ARCHITECTURE
#define COUNT(array) ((uint32_t)(sizeof(array) / sizeof *(array)))
#define PROGRAM_MAX 512u

typedef struct program {
  struct sock_filter code[PROGRAM_MAX];
  uint32_t length;
} program;

static void emit(program* p, uint16_t code, uint8_t if_true, uint8_t if_false, uint32_t value) {
  if (p->length < PROGRAM_MAX) {
    p->code[p->length] = (struct sock_filter){.code = code, .jt = if_true, .jf = if_false, .k = value};
  }
  p->length++;  // one that is too long is noticed at its end
}

static void load(program* p, uint32_t offset) { emit(p, BPF_LD | BPF_W | BPF_ABS, 0, 0, offset); }
static void answer(program* p, uint32_t verdict) { emit(p, BPF_RET | BPF_K, 0, 0, verdict); }
static uint32_t failing(uint32_t error) { return SECCOMP_RET_ERRNO | error; }

static void answer_call(program* p, uint32_t number, uint32_t verdict) {
  emit(p, BPF_JMP | BPF_JEQ | BPF_K, 0, 1, number);
  answer(p, verdict);
}

static void begin(program* p) {
  load(p, offsetof(struct seccomp_data, arch));
  emit(p, BPF_JMP | BPF_JEQ | BPF_K, 1, 0, ARCHITECTURE);
  answer(p, SECCOMP_RET_KILL_PROCESS);
  load(p, offsetof(struct seccomp_data, nr));
#ifdef X32_FIRST
  emit(p, BPF_JMP | BPF_JGE | BPF_K, 0, 1, X32_FIRST);
  answer(p, SECCOMP_RET_KILL_PROCESS);
#endif
}

// Allows or refuses the call as the rule says. `more`: where it does not refuse, another rule on the same call follows.
static void add_rule(program* p, const rule* r, bool more) {
  const uint32_t head = p->length;
  const bool allows = r->kind == ALLOW_THESE || r->kind == NEED_BITS;
  const bool bits = r->kind == REFUSE_BITS || r->kind == NEED_BITS;
  emit(p, BPF_JMP | BPF_JEQ | BPF_K, 0, 0, r->number);
  load(p, (uint32_t)(offsetof(struct seccomp_data, args) + (sizeof(uint64_t) * r->argument)));  // little endian
  for (uint32_t i = 0; i < r->value_count; i++) {
    const uint32_t value = r->values[i] == SELF ? (uint32_t)getpid() : r->values[i];
    // What is met goes past the other values and the one instruction that is for the rest.
    const uint8_t past = (uint8_t)(r->value_count - i);
    emit(p, (uint16_t)(BPF_JMP | (bits ? BPF_JSET : BPF_JEQ) | BPF_K), past, 0, value);
  }
  if (!allows) emit(p, BPF_JMP | BPF_JA, 0, 0, 1);
  answer(p, failing(EPERM));
  if (more) {
    load(p, offsetof(struct seccomp_data, nr));
  } else {
    answer(p, SECCOMP_RET_ALLOW);
  }
  if (head < PROGRAM_MAX) p->code[head].jf = (uint8_t)(p->length - head - 1);
}

static void add_rules(program* p, const rule* first, uint32_t count) {
  for (uint32_t i = 0; i < count; i++) {
    add_rule(p, &first[i], i + 1 < count && first[i + 1].number == first[i].number);
  }
}

static int install(const program* p, bool tells) {
  if (p->length > PROGRAM_MAX) return E2BIG;
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)) return errno;
  const struct sock_fprog filter = {.len = (unsigned short)p->length, .filter = (struct sock_filter*)p->code};
  // SPEC_ALLOW: older kernels otherwise slow every filtered process down against Spectre, which is for those who run
  // strangers' code; a tenant's code runs on the GPU. Each flag is newer than the one before.
  const unsigned long all = SECCOMP_FILTER_FLAG_TSYNC | SECCOMP_FILTER_FLAG_SPEC_ALLOW;
  const unsigned long attempts[] = {all | (tells ? SECCOMP_FILTER_FLAG_LOG : 0u), all, SECCOMP_FILTER_FLAG_TSYNC};
  long result = -1;
  for (uint32_t i = 0; i < COUNT(attempts); i++) {
    result = syscall(__NR_seccomp, SECCOMP_SET_MODE_FILTER, attempts[i], &filter);
    if (result == 0) return 0;
    if (result > 0) return ESRCH;  // a thread with another filter
    if (errno != EINVAL) break;
  }
  return errno;
}

int orion_isolate(int stage, int tells) {
  static program p;  // only one thread sets filters
  memset(&p, 0, sizeof p);
  begin(&p);
  if (stage == ORION_ISOLATE_LANES) {
    add_rules(&p, rules_with_lanes, COUNT(rules_with_lanes));
    for (uint32_t i = 0; i < COUNT(refused_with_lanes); i++) answer_call(&p, refused_with_lanes[i], failing(EPERM));
  } else {
    for (uint32_t i = 0; i < COUNT(allowed_first); i++) answer_call(&p, allowed_first[i], SECCOMP_RET_ALLOW);
    add_rules(&p, rules, COUNT(rules));
    // Its flags are in memory, which a filter cannot read: C libraries then use clone.
    answer_call(&p, NR_CLONE3, failing(ENOSYS));
    for (uint32_t i = 0; i < COUNT(refused); i++) answer_call(&p, refused[i], failing(EPERM));
  }
  answer(&p, SECCOMP_RET_ALLOW);
  return install(&p, tells != 0);
}
#else
int orion_isolate(int stage, int tells) {
  (void)stage, (void)tells, (void)refused, (void)rules, (void)refused_with_lanes, (void)rules_with_lanes;
  (void)allowed_first;
  return ENOSYS;
}
#endif
