/* SPDX-License-Identifier: GPL-2.0 */
/* The few members of kernel types that our programs read, cut by hand. preserve_access_index lets
 * the loader move each access to where the running kernel keeps the member, so order, size and
 * missing members here mean nothing; names and nesting do. Members that some kernels lack are
 * asked for with bpf_core_field_exists before use. Types that changed shape between kernels have a
 * second form with a ___suffix, which the loader ignores when matching names. A list of this
 * length in one file, because the types name each other.
 */
#ifndef PREDUMP_KERNEL_BPF_TYPES_BPF_H_
#define PREDUMP_KERNEL_BPF_TYPES_BPF_H_

#include <linux/bpf.h>
#include <linux/types.h>
/* after linux/types.h */
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

#include <stdbool.h>

typedef __s64 ktime_t;

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct seq_file;

struct bpf_iter_meta {
  struct seq_file* seq;
  __u64 session_id;
  __u64 seq_num;
};

struct pt_regs {
  unsigned long r10, dx, si, di, orig_ax;
};

typedef struct {
  int counter;
} atomic_t;

typedef struct {
  __s64 counter;
} atomic64_t;

struct hlist_node {
  struct hlist_node* next;
};

struct hlist_head {
  struct hlist_node* first;
};

/* --- files ---------------------------------------------------------------------------------- */

struct super_block {
  __u32 s_dev;
  unsigned long s_magic;
};

struct inode {
  unsigned short i_mode;
  unsigned long i_ino;
  struct super_block* i_sb;
};

struct file {
  struct inode* f_inode;
  unsigned int f_flags;
};

struct fdtable {
  unsigned int max_fds;
  struct file** fd;
};

struct files_struct {
  struct fdtable* fdt;
};

struct fs_struct {
  int umask;
};

/* --- process ids ---------------------------------------------------------------------------- */

struct pid_namespace;

struct upid {
  int nr;
  struct pid_namespace* ns;
};

struct pid {
  unsigned int level;
  struct upid numbers[1];
};

/* --- timers --------------------------------------------------------------------------------- */

struct timerqueue_node {
  ktime_t expires;
};

struct hrtimer_clock_base {
  int clockid;
};

struct hrtimer {
  struct timerqueue_node node;
  struct hrtimer_clock_base* base;
  __u8 state;
};

struct alarm {
  struct timerqueue_node node;
  int state;
};

struct cpu_timer {
  struct timerqueue_node node;
};

struct cpu_itimer {
  __u64 expires;
  __u64 incr;
};

struct task_cputime_atomic {
  atomic64_t utime;
  atomic64_t stime;
};

struct thread_group_cputimer {
  struct task_cputime_atomic cputime_atomic;
};

union sigval {
  int sival_int;
  void* sival_ptr;
};

union __sifields {
  struct {
    union sigval _sigval;
  } _timer;
};

struct kernel_siginfo {
  int si_signo;
  int si_errno;
  int si_code;
  union __sifields _sifields;
};

struct sigqueue {
  struct kernel_siginfo info;
};

struct k_itimer {
  struct hlist_node list;
  int it_id;
  int it_clock;
  int it_sigev_notify;
  int it_status;
  __s64 it_overrun;
  __s64 it_overrun_last;
  ktime_t it_interval;
  struct pid* it_pid;
  struct sigqueue sigq;
  union {
    struct {
      struct hrtimer timer;
    } real;
    struct cpu_timer cpu;
    struct {
      struct alarm alarmtimer;
    } alarm;
  } it;
};

/* up to 6.12 the queue entry was a pointer, and the state a flag */
struct k_itimer___6_12 {
  struct sigqueue* sigq;
  int it_active;
};

/* --- signals -------------------------------------------------------------------------------- */

typedef struct {
  unsigned long sig[1];
} sigset_t;

struct sigpending {
  sigset_t signal;
};

struct sigaction {
  void* sa_handler;
  unsigned long sa_flags;
  void* sa_restorer;
  sigset_t sa_mask;
};

struct k_sigaction {
  struct sigaction sa;
};

struct sighand_struct {
  struct k_sigaction action[64];
};

struct tty_struct;

struct rlimit {
  unsigned long rlim_cur;
  unsigned long rlim_max;
};

struct signal_struct {
  atomic_t live;
  int nr_threads;
  struct sigpending shared_pending;
  int group_exit_code;
  int group_stop_count;
  unsigned int flags;
  unsigned int is_child_subreaper : 1;
  unsigned int has_child_subreaper : 1;
  struct hlist_head posix_timers;
  struct hrtimer real_timer;
  ktime_t it_real_incr;
  struct cpu_itimer it[2];
  struct thread_group_cputimer cputimer;
  int leader;
  struct tty_struct* tty;
  struct rlimit rlim[16];
  short oom_score_adj;
};

/* --- memory --------------------------------------------------------------------------------- */

struct mempolicy;
struct userfaultfd_ctx;
struct anon_vma;
struct anon_vma_name;
struct vm_operations_struct;

struct vm_userfaultfd_ctx {
  struct userfaultfd_ctx* ctx;
};

struct vm_area_struct {
  unsigned long vm_start;
  unsigned long vm_end;
  unsigned long vm_flags;
  struct anon_vma* anon_vma;
  const struct vm_operations_struct* vm_ops;
  unsigned long vm_pgoff;
  struct file* vm_file;
  struct anon_vma_name* anon_name;
  struct mempolicy* vm_policy;
  struct vm_userfaultfd_ctx vm_userfaultfd_ctx;
};

typedef struct {
  void* ldt;
  __u16 pkey_allocation_map;
  __s16 execute_only_pkey;
  unsigned long untag_mask;
} mm_context_t;

struct mm_struct {
  mm_context_t context;
  atomic_t membarrier_state;
  int map_count;
  unsigned long def_flags;
  unsigned long start_code, end_code, start_data, end_data;
  unsigned long start_brk, brk, start_stack;
  unsigned long arg_start, arg_end, env_start, env_end;
  struct file* exe_file;
};

/* up to 6.17 */
struct mm_struct___word {
  unsigned long flags;
};

typedef struct {
  unsigned long __mm_flags[1];
} mm_flags_t;

/* since 6.18 */
struct mm_struct___bitmap {
  mm_flags_t flags;
};

/* --- tasks ---------------------------------------------------------------------------------- */

enum timespec_type { TT_NONE = 0, TT_NATIVE = 1, TT_COMPAT = 2 };

struct restart_block {
  long (*fn)(struct restart_block*);
  union {
    struct {
      __u32* uaddr;
      __u32 val;
      __u32 flags;
      __u32 bitset;
      __u64 time;
    } futex;
    struct {
      int clockid;
      enum timespec_type type;
      void* rmtp;
      __u64 expires;
    } nanosleep;
    struct {
      void* ufds;
      int nfds;
      int has_timeout;
      unsigned long tv_sec;
      unsigned long tv_nsec;
    } poll;
  };
};

struct rq {
  __u64 clock;
  __u64 clock_task;
};

struct cfs_rq {
  struct rq* rq;
};

struct sched_entity {
  unsigned char custom_slice;
  __u64 exec_start;
  __u64 slice;
  struct cfs_rq* cfs_rq;
};

struct thread_info {
  unsigned long flags;
  unsigned long syscall_work;
  __u32 cpu;
};

struct io_bitmap;

struct thread_struct {
  struct io_bitmap* io_bitmap;
  unsigned long iopl_emul;
};

struct fpu_state_perm {
  __u64 __state_perm;
};

struct fpu {
  struct fpu_state_perm perm;
};

/* up to 6.15; since then it lies behind its task_struct */
struct thread_struct___6_15 {
  struct fpu fpu;
};

struct list_head {
  struct list_head* next;
};

struct sem_undo_list {
  struct list_head list_proc;
};

struct sysv_sem {
  struct sem_undo_list* undo_list;
};

enum syscall_work_bit { SYSCALL_WORK_BIT_SYSCALL_USER_DISPATCH = 5 };

struct seccomp {
  int mode;
  atomic_t filter_count;
};

struct syscall_user_dispatch {
  char* selector;
  unsigned long offset;
  unsigned long len;
};

struct io_context {
  unsigned short ioprio;
};

struct io_uring_task;

struct cred {
  unsigned int securebits;
};

struct task_struct {
  struct cred* cred;
  struct thread_info thread_info;
  unsigned int __state;
  unsigned int flags;
  int static_prio;
  unsigned int rt_priority;
  struct sched_entity se;
  unsigned int policy;
  unsigned long nvcsw;
  struct mm_struct* mm;
  int exit_state;
  int exit_code;
  int exit_signal;
  int pdeath_signal;
  unsigned long jobctl;
  unsigned int personality;
  unsigned int sched_reset_on_fork : 1;
  unsigned int restore_sigmask : 1;
  unsigned long atomic_flags;
  struct restart_block restart_block;
  int pid;
  int tgid;
  struct pid* thread_pid;
  struct task_struct* group_leader;
  int* clear_child_tid;
  __u64 start_boottime;
  char comm[16];
  struct sysv_sem sysvsem;
  struct fs_struct* fs;
  struct files_struct* files;
  struct io_uring_task* io_uring;
  struct signal_struct* signal;
  struct sighand_struct* sighand;
  sigset_t blocked;
  sigset_t real_blocked;
  sigset_t saved_sigmask;
  struct sigpending pending;
  unsigned long sas_ss_sp;
  unsigned long sas_ss_size;
  unsigned int sas_ss_flags;
  struct seccomp seccomp;
  struct syscall_user_dispatch syscall_dispatch;
  struct io_context* io_context;
  void* robust_list;
  struct mempolicy* mempolicy;
  unsigned long core_cookie;
  __u64 timer_slack_ns;
  __u64 default_timer_slack_ns;
  struct thread_struct thread;
};

struct bpf_iter__task {
  struct bpf_iter_meta* meta;
  struct task_struct* task;
};

struct bpf_iter__task_vma {
  struct bpf_iter_meta* meta;
  struct task_struct* task;
  struct vm_area_struct* vma;
};

#pragma clang attribute pop

#include "src/kernel/bpf/records.h"

/* include/linux/kdev_t.h: 12 bits of major above 20 of minor; makedev(3) spreads them. */
static __always_inline __u64 user_device(__u32 dev) {
  __u64 major = dev >> 20;
  __u64 minor = dev & 0xfffff;
  return ((major & 0xfffff000ull) << 32) | ((major & 0xfffull) << 8) |
         ((minor & 0xffffff00ull) << 12) | (minor & 0xffull);
}

/* The id of `pid` in the namespace at `level`, 0 where it has none there. */
static __always_inline int pid_number(struct pid* pid, unsigned int level) {
  int number = 0;

  if (!pid || level > BPF_CORE_READ(pid, level)) return 0;
  bpf_probe_read_kernel(&number, sizeof(number),
                        (void*)pid + bpf_core_field_offset(struct pid, numbers) +
                            level * bpf_core_type_size(struct upid) +
                            bpf_core_field_offset(struct upid, nr));
  return number;
}

static __always_inline void* pid_namespace_at(struct pid* pid, unsigned int level) {
  void* ns = 0;

  if (!pid || level > BPF_CORE_READ(pid, level)) return 0;
  bpf_probe_read_kernel(&ns, sizeof(ns),
                        (void*)pid + bpf_core_field_offset(struct pid, numbers) +
                            level * bpf_core_type_size(struct upid) +
                            bpf_core_field_offset(struct upid, ns));
  return ns;
}

/* The ids of `task`; `observer` is the pid of whoever asks. */
static __always_inline void fill_ids(struct TaskIds* ids, struct pid* pid, struct pid* observer) {
  unsigned int own_level = BPF_CORE_READ(pid, level);
  unsigned int observer_level = BPF_CORE_READ(observer, level);

  ids->host = pid_number(pid, 0);
  ids->own = pid_number(pid, own_level);
  ids->level = (int)own_level;
  ids->observer = 0;
  if (pid_namespace_at(pid, observer_level) == pid_namespace_at(observer, observer_level))
    ids->observer = pid_number(pid, observer_level);
}

#endif  // PREDUMP_KERNEL_BPF_TYPES_BPF_H_
