// What the BPF programs write and user space reads: one layout for both sides.
//
// Included by *.bpf.c (C, after types.bpf.h) and by C++. Every field has a fixed width and every
// struct a size that is a multiple of eight, so that records can follow each other in one stream.
// Unless said otherwise, addresses are those of the target, times are nanoseconds, masks carry
// signal n in bit n - 1, and clock values are the host's (initial time namespace).
//
// Kinds of process ids: "host" is the initial pid namespace; "observer" is the pid namespace of
// whoever called Create(), 0 where the task is not visible there; "own" is the innermost one.
#ifndef PREDUMP_KERNEL_BPF_RECORDS_H_
#define PREDUMP_KERNEL_BPF_RECORDS_H_

#ifdef __cplusplus
#include <linux/types.h>
namespace predump::kernel {
#endif

enum { kCommBytes = 16, kSymbolBytes = 40, kSignals = 64, kResourceLimits = 16 };

// First member of every record an iterator writes; `bytes` covers the whole record.
struct RecordHeader {
  __u32 kind;  // one of kRecord*
  __u32 bytes;
};
enum { kRecordProcess = 1, kRecordThread = 2, kRecordPosixTimer = 3 };

struct TaskIds {
  __s32 host;
  __s32 observer;
  __s32 own;
  __s32 level;  // depth of the own pid namespace; 0 is the initial one
};

// struct sigaction as the kernel keeps it (include/linux/signal_types.h).
struct SignalAction {
  __u64 handler;  // SIG_DFL 0, SIG_IGN 1, or an address
  __u64 flags;    // SA_*
  __u64 restorer;
  __u64 mask;
};

// struct restart_block, meaningful only where the interrupted call returned -516
// (ERESTART_RESTARTBLOCK); otherwise it is what an earlier call left behind.
struct RestartBlock {
  char function[kSymbolBytes];  // name of fn, "" where it cannot be told
  // nanosleep: absolute expiry on `clock_id`, timespec kind (0 none, 1 native), remainder pointer.
  __s32 clock_id;
  __s32 timespec_kind;
  __u64 remainder;
  __u64 nanosleep_expires;
  // futex: absolute timeout; flags are the kernel's FLAGS_*, not FUTEX_*.
  __u64 futex_address;
  __u64 futex_time;
  __u32 futex_value;
  __u32 futex_flags;
  __u32 futex_bitset;
  // poll: absolute on CLOCK_MONOTONIC, meaningful if poll_has_timeout.
  __s32 poll_count;
  __u64 poll_fds;
  __u64 poll_seconds;
  __u64 poll_nanoseconds;
  __s32 poll_has_timeout;
  __u32 poll_known;  // 0: this kernel keeps the poll deadline in a form not known here
};

// One CPU-clock interval timer: `expires` counts in the process's own CPU clock (0: not armed).
struct CpuTimer {
  __u64 expires;
  __u64 interval;
  __u64 now;  // that clock when read
};

struct ThreadRecord {
  struct RecordHeader header;
  struct TaskIds tid;
  __u64 start_boottime;  // CLOCK_BOOTTIME: tells two tasks with the same id apart
  char comm[kCommBytes];

  __u64 clear_child_tid;
  __u64 robust_list;
  __u64 robust_list_bytes;  // 24, the only length the kernel accepts
  __u64 alt_stack_address;
  __u64 alt_stack_bytes;
  __u32 alt_stack_flags;  // SS_*

  // restore_sigmask set: `blocked` is temporary (ppoll, sigsuspend ...), `saved_mask` comes back.
  __u32 restore_sigmask;
  __u64 blocked;
  __u64 real_blocked;  // sigtimedwait keeps the true mask here while it waits; else 0
  __u64 saved_mask;
  __u64 pending;  // private to this thread

  struct RestartBlock restart;

  // Time since the thread last ran, in the scheduler's clock corrected for stolen time: both are
  // comparable across CPUs to well under a millisecond. 0 where the kernel does not tell.
  __u64 last_ran;
  __u64 last_ran_now;
  // How often it has gone to sleep or into a stop: two records with the same number speak of the
  // same sleep; being stopped in it adds one.
  __u64 voluntary_switches;

  __u64 jobctl;
  __u64 timer_slack;
  __u64 default_timer_slack;
  __u64 dispatch_selector;  // prctl PR_SET_SYSCALL_USER_DISPATCH
  __u64 dispatch_offset;
  __u64 dispatch_bytes;
  __u64 atomic_flags;  // PFA_*; bit 0 is no_new_privs
  __u32 flags;         // PF_*
  __u32 state;
  __u32 exit_state;
  __s32 exit_signal;
  __s32 parent_death_signal;
  __u32 personality;
  __u32 policy;           // SCHED_*
  __s32 static_priority;  // nice + 120
  __u32 realtime_priority;
  __u32 reset_on_fork;
  __u32 io_priority;  // ioprio_get(2); 0 where none was set
  __s32 seccomp_mode;
  __s32 seccomp_filters;
  __u32 has_io_uring;  // has ever set up or used a ring
  __u32 dispatch_on;
  __u32 has_mm;  // 0: the thread has exited and waits to be reaped
  // struct cred is never changed, only replaced: equal values read at one instant are one set of
  // credentials.
  __u64 credentials;
  __u32 secure_bits;        // prctl PR_GET_SECUREBITS
  __u32 has_memory_policy;  // set_mempolicy(2)
  __u32 has_io_ports;       // ioperm(2), iopl(2)
  // semop(2) with SEM_UNDO was used: what the kernel keeps to be undone, be it nothing by now
  __u32 has_semaphore_undo;
  __u32 has_core_cookie;  // prctl PR_SCHED_CORE
  __u32 reserved;
  __u64 thread_flags;  // TIF_*
  __u64 time_slice;    // sched_attr.sched_runtime of a fair policy; 0 where none was asked for
};

struct ProcessRecord {
  struct RecordHeader header;
  struct TaskIds tgid;
  __u64 monotonic_now;  // CLOCK_MONOTONIC when the record was made

  // signal_struct
  __u64 shared_pending;
  __s32 thread_count;
  __s32 group_stop_count;
  __u32 signal_flags;  // SIGNAL_*; bit 0 SIGNAL_STOP_STOPPED
  __s32 group_exit_code;
  __u32 is_child_subreaper;
  __u32 has_child_subreaper;
  __s32 is_session_leader;
  __u32 has_tty;
  __s32 oom_score_adj;
  __u32 posix_timer_count;
  __u64 resource_limits[kResourceLimits][2];  // {current, maximum}, by RLIMIT_*
  __u64 real_timer_interval;
  __u64 real_timer_expires;  // CLOCK_MONOTONIC; meaningful if real_timer_armed
  __u32 real_timer_armed;
  __s32 itimer_clock;  // CLOCK_MONOTONIC
  struct CpuTimer virtual_timer;
  struct CpuTimer profiling_timer;

  // mm_struct; all zero if has_mm is 0.
  __u64 start_code, end_code, start_data, end_data;
  __u64 start_brk, brk, start_stack;
  __u64 arg_start, arg_end, env_start, env_end;
  __u64 mm_flags;          // MMF_*, see thp_disabled and the rest below
  __u64 default_vm_flags;  // VM_* given to new mappings (mlockall(MCL_FUTURE))
  __u64 executable_inode;
  __u64 executable_device;  // as makedev(3) writes it
  __u32 dumpable;           // prctl PR_GET_DUMPABLE: 0, 1, 2
  __u32 membarrier_state;   // MEMBARRIER_STATE_*
  __u32 map_count;
  __u32 has_mm;
  __u32 thp_disabled;      // prctl PR_SET_THP_DISABLE
  __u32 memory_merge_any;  // prctl PR_SET_MEMORY_MERGE
  __u32 mdwe;              // prctl PR_SET_MDWE: PR_MDWE_*
  __u32 umask;
  __u32 has_ldt;                   // modify_ldt(2) was used
  __u32 thp_disabled_but_advised;  // PR_SET_THP_DISABLE with PR_THP_DISABLE_EXCEPT_ADVISED
  __u32 protection_keys;           // pkey_alloc(2): key n in bit n
  __u32 has_address_tagging;       // arch_prctl ARCH_ENABLE_TAGGED_ADDR
  __u64 xstate_permissions;        // arch_prctl ARCH_GET_XCOMP_PERM

  struct SignalAction actions[kSignals];  // signal n at n - 1
};

// One timer of timer_create(2), linked to the process record before it.
struct PosixTimerRecord {
  struct RecordHeader header;
  __s32 id;
  __s32 clock_id;
  __s32 notify;  // SIGEV_*
  __s32 signal;
  __u64 value;       // sigev_value
  __s32 notify_tid;  // own tid for SIGEV_THREAD_ID, else the process's
  __u32 armed;
  __u64 interval;
  __u64 expires;  // absolute, on `base_clock_id`; 0 where not armed
  __u64 now;      // that clock when read; 0 for other clocks
  __s64 overrun;
  __s64 overrun_last;
  __s32 base_clock_id;
  __u32 known;  // 0: a field of this timer has a form not known here
};

// One mapping (struct vm_area_struct).
struct VmaRecord {
  __u64 start;
  __u64 end;
  __u64 vm_flags;  // raw VM_*, see FlagsOf()
  __u64 page_offset;
  __u64 inode;         // 0: no file
  __u64 device;        // as makedev(3) writes it
  __u64 uffd_context;  // identity only: equal values are one userfaultfd; 0 none
  __u64 operations;    // identity of vm_ops: 0 is anonymous memory
  __u32 has_file;
  __u32 has_anon_vma;
  __u32 has_anon_name;
  __u32 has_policy;  // mbind(2)
};

// Events in the life of one process.
enum {
  kEventThreadCreated = 1,
  kEventForked = 2,
  kEventExec = 3,
  kEventThreadExited = 4,
  kEventProcessExited = 5,
  kEventSignal = 6,
};
struct EventRecord {
  __u32 kind;
  __s32 tid;        // observer's view
  __s32 child;      // created thread or process, observer's view
  __s32 child_own;  // the same as the child sees itself
  __s32 signal;
  __s32 code;        // si_code
  __s32 sender;      // tid that sent it, observer's view; 0: the kernel or a timer
  __s32 to_process;  // 1 shared pending, 0 one thread
  __s32 result;      // TRACE_SIGNAL_*: 0 queued, 1 ignored, 2 already pending, 3 and 4 info lost
  __s32 exit_code;
  __u64 monotonic;
};

// A read-type call a thread is inside, with the buffers the kernel may write to.
enum { kInlineVectors = 64 };
struct ReadVector {
  __u64 base;
  __u64 bytes;
};
struct ReadRecord {
  __u64 entered;  // CLOCK_MONOTONIC; for seeded records the time of seeding
  __u64 iov;      // address of the struct iovec array; 0 for plain reads
  __s64 nr;       // system call number, -1: in no such call
  __s32 tid;      // observer's view
  __s32 fd;
  __u32 iov_count;     // of the call
  __u32 vector_count;  // valid entries of `vectors`; less than iov_count: resolve `iov`
  __u32 seeded;        // taken from saved registers, the call may be over
  __u32 reserved;
  struct ReadVector vectors[kInlineVectors];
};

#ifdef __cplusplus
}  // namespace predump::kernel
#endif

#endif  // PREDUMP_KERNEL_BPF_RECORDS_H_
