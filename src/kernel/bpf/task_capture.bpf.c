/* SPDX-License-Identifier: GPL-2.0 */
/* iter/task over the threads of one process: writes a process record (with its POSIX timers) before
 * the first thread that still has memory, and one record for each thread.
 */
#include "src/kernel/bpf/types.bpf.h"

char LICENSE[] SEC("license") = "GPL";

/* mm->flags, include/linux/mm_types.h (6.12 and 6.18 agree on these) */
#define MMF_DUMPABLE_MASK 3
#define MMF_DISABLE_THP_EXCEPT_ADVISED 23
#define MMF_DISABLE_THP 24
#define MMF_HAS_MDWE 28
#define MMF_HAS_MDWE_NO_INHERIT 29
#define MMF_VM_MERGE_ANY 30
/* kernel/time/posix-timers.h clock numbers */
#define CLOCK_PROCESS_CPUTIME_ID 2
#define CLOCK_THREAD_CPUTIME_ID 3
#define CLOCK_REALTIME_ALARM 8
#define CLOCK_BOOTTIME_ALARM 9
#define CPUCLOCK_PROF 0
#define CPUCLOCK_VIRT 1
#define SIGEV_THREAD_ID 4
/* A whole element has to fit the 32 KiB buffer of an iterator. */
#define MAX_POSIX_TIMERS 128

/* One reader at a time: the records are built here because they outgrow the 512 bytes of stack. */
static struct ProcessRecord process;
static struct ThreadRecord thread;
static struct PosixTimerRecord posix_timer;
static __u64 described_session = ~0ull;
static void* named_function;
static char named_function_name[kSymbolBytes] __attribute__((aligned(8)));

static const char symbol_format[] = "%ps";

/* Names are looked up once per function: nearly all threads share one. */
static __always_inline void name_function(char* name, void* function) {
  if (function != named_function) {
    __u64 argument = (__u64)function;
    if (bpf_snprintf(named_function_name, sizeof(named_function_name), symbol_format, &argument,
                     sizeof(argument)) < 0)
      named_function_name[0] = 0;
    named_function = function;
  }
  __builtin_memcpy(name, named_function_name, kSymbolBytes);
}

static __always_inline void fill_restart(struct RestartBlock* out, struct task_struct* task) {
  /* Members of a union of structs cannot be reached by a plain load. */
  name_function(out->function, task->restart_block.fn);
  out->clock_id = BPF_CORE_READ(task, restart_block.nanosleep.clockid);
  out->timespec_kind = BPF_CORE_READ(task, restart_block.nanosleep.type);
  out->remainder = (__u64)BPF_CORE_READ(task, restart_block.nanosleep.rmtp);
  out->nanosleep_expires = BPF_CORE_READ(task, restart_block.nanosleep.expires);
  out->futex_address = (__u64)BPF_CORE_READ(task, restart_block.futex.uaddr);
  out->futex_time = BPF_CORE_READ(task, restart_block.futex.time);
  out->futex_value = BPF_CORE_READ(task, restart_block.futex.val);
  out->futex_flags = BPF_CORE_READ(task, restart_block.futex.flags);
  out->futex_bitset = BPF_CORE_READ(task, restart_block.futex.bitset);
  out->poll_known = bpf_core_field_exists(task->restart_block.poll.tv_sec);
  if (out->poll_known) {
    out->poll_count = BPF_CORE_READ(task, restart_block.poll.nfds);
    out->poll_fds = (__u64)BPF_CORE_READ(task, restart_block.poll.ufds);
    out->poll_seconds = BPF_CORE_READ(task, restart_block.poll.tv_sec);
    out->poll_nanoseconds = BPF_CORE_READ(task, restart_block.poll.tv_nsec);
    out->poll_has_timeout = BPF_CORE_READ(task, restart_block.poll.has_timeout);
  }
}

/* exec_start counts without the time a CPU lost to interrupts and to the hypervisor; adding what
 * its CPU lost so far makes it comparable across CPUs. The run queue is reached through group
 * scheduling, since its own symbol is hidden without CONFIG_KALLSYMS_ALL.
 */
static __always_inline __u64 ran_at(struct task_struct* task) {
  struct rq* rq;

  if (!bpf_core_field_exists(task->se.cfs_rq) || !bpf_core_field_exists(task->se.cfs_rq->rq))
    return 0;
  rq = task->se.cfs_rq->rq;
  if (!rq) return 0;
  return task->se.exec_start + (rq->clock - rq->clock_task);
}

static __always_inline void fill_thread(struct ThreadRecord* out, struct task_struct* task,
                                        struct task_struct* reader) {
  out->header.kind = kRecordThread;
  out->header.bytes = sizeof(*out);
  fill_ids(&out->tid, task->thread_pid, reader->thread_pid);
  out->start_boottime = task->start_boottime;
  bpf_probe_read_kernel_str(out->comm, sizeof(out->comm), task->comm);

  out->clear_child_tid = (__u64)task->clear_child_tid;
  out->robust_list = (__u64)task->robust_list;
  out->robust_list_bytes = 24;
  out->alt_stack_address = task->sas_ss_sp;
  out->alt_stack_bytes = task->sas_ss_size;
  out->alt_stack_flags = task->sas_ss_flags;
  out->restore_sigmask = 0;
  if (bpf_core_field_exists(task->restore_sigmask))
    out->restore_sigmask = BPF_CORE_READ_BITFIELD_PROBED(task, restore_sigmask);
  out->blocked = task->blocked.sig[0];
  out->real_blocked = task->real_blocked.sig[0];
  out->saved_mask = task->saved_sigmask.sig[0];
  out->pending = task->pending.signal.sig[0];
  fill_restart(&out->restart, task);
  out->last_ran = ran_at(task);
  out->last_ran_now = ran_at(reader);
  out->voluntary_switches = task->nvcsw;

  out->jobctl = task->jobctl;
  out->timer_slack = task->timer_slack_ns;
  out->default_timer_slack = task->default_timer_slack_ns;
  out->atomic_flags = task->atomic_flags;
  out->flags = task->flags;
  out->state = task->__state;
  out->exit_state = (__u32)task->exit_state;
  out->exit_signal = task->exit_signal;
  out->parent_death_signal = task->pdeath_signal;
  out->personality = task->personality;
  out->policy = task->policy;
  out->static_priority = task->static_prio;
  out->realtime_priority = task->rt_priority;
  out->reset_on_fork = BPF_CORE_READ_BITFIELD_PROBED(task, sched_reset_on_fork);
  out->io_priority = task->io_context ? task->io_context->ioprio : 0;
  out->has_mm = task->mm != 0;
  out->credentials = (__u64)task->cred;
  out->secure_bits = task->cred->securebits;
}

/* Threads that share the list (CLONE_SYSVSEM) have one from the start, empty at first. */
static __always_inline __u32 has_semaphore_undo(struct task_struct* task) {
  struct sem_undo_list* undo;

  if (!bpf_core_field_exists(task->sysvsem.undo_list)) return 0;
  undo = BPF_CORE_READ(task, sysvsem.undo_list);
  if (!undo) return 0;
  return BPF_CORE_READ(undo, list_proc.next) !=
         (void*)undo + bpf_core_field_offset(struct sem_undo_list, list_proc);
}

/* What a task holds that does not move, or only as a default. */
static __always_inline void fill_refused(struct ThreadRecord* out, struct task_struct* task) {
  out->thread_flags = task->thread_info.flags;
  out->has_memory_policy = 0;
  if (bpf_core_field_exists(task->mempolicy)) out->has_memory_policy = task->mempolicy != 0;
  out->has_io_ports = 0;
  if (bpf_core_field_exists(task->thread.io_bitmap))
    out->has_io_ports = BPF_CORE_READ(task, thread.io_bitmap) != 0;
  if (bpf_core_field_exists(task->thread.iopl_emul))
    out->has_io_ports |= BPF_CORE_READ(task, thread.iopl_emul) != 0;
  out->has_semaphore_undo = has_semaphore_undo(task);
  out->has_core_cookie = 0;
  if (bpf_core_field_exists(task->core_cookie)) out->has_core_cookie = task->core_cookie != 0;
  out->time_slice = 0;
  if (bpf_core_field_exists(task->se.custom_slice) && BPF_CORE_READ(task, se.custom_slice))
    out->time_slice = BPF_CORE_READ(task, se.slice);
}

/* Permissions for extended state belong to the leader (arch/x86/kernel/fpu/xstate.c). */
static __always_inline __u64 xstate_permissions(struct task_struct* leader) {
  struct thread_struct___6_15* old = (void*)leader + bpf_core_field_offset(leader->thread);
  struct fpu* fpu = (void*)leader + bpf_core_type_size(struct task_struct);
  __u64 permissions = 0;

  if (!bpf_core_field_exists(fpu->perm.__state_perm)) return 0;
  if (bpf_core_field_exists(old->fpu)) fpu = (void*)old + bpf_core_field_offset(old->fpu);
  bpf_probe_read_kernel(&permissions, sizeof(permissions),
                        (void*)fpu + bpf_core_field_offset(fpu->perm.__state_perm));
  return permissions;
}

static __always_inline void fill_processor(struct ProcessRecord* out, struct task_struct* task) {
  struct mm_struct* mm = task->mm;

  out->xstate_permissions = xstate_permissions(task->group_leader);
  out->protection_keys = 0;
  if (bpf_core_field_exists(mm->context.pkey_allocation_map)) {
    __s16 execute_only = BPF_CORE_READ(mm, context.execute_only_pkey);

    out->protection_keys = BPF_CORE_READ(mm, context.pkey_allocation_map) & ~1u;
    if (execute_only > 0) out->protection_keys &= ~(1u << (execute_only & 15));
  }
  out->has_address_tagging = 0;
  if (bpf_core_field_exists(mm->context.untag_mask))
    out->has_address_tagging = BPF_CORE_READ(mm, context.untag_mask) + 1 > 1;
}

/* What depends on how the kernel was configured. */
static __always_inline void fill_optional(struct ThreadRecord* out, struct task_struct* task) {
  out->seccomp_mode = 0;
  out->seccomp_filters = 0;
  if (bpf_core_field_exists(task->seccomp.mode)) out->seccomp_mode = task->seccomp.mode;
  if (bpf_core_field_exists(task->seccomp.filter_count))
    out->seccomp_filters = task->seccomp.filter_count.counter;
  out->has_io_uring = 0;
  if (bpf_core_field_exists(task->io_uring)) out->has_io_uring = task->io_uring != 0;
  out->dispatch_on = 0;
  if (bpf_core_field_exists(task->syscall_dispatch.selector)) {
    unsigned int bit =
        bpf_core_enum_value(enum syscall_work_bit, SYSCALL_WORK_BIT_SYSCALL_USER_DISPATCH);
    out->dispatch_on = (task->thread_info.syscall_work >> bit) & 1;
    out->dispatch_selector = (__u64)task->syscall_dispatch.selector;
    out->dispatch_offset = task->syscall_dispatch.offset;
    out->dispatch_bytes = task->syscall_dispatch.len;
  }
}

static __always_inline unsigned long mm_flags_of(struct mm_struct* mm) {
  struct mm_struct___bitmap* bitmap = (void*)mm;
  struct mm_struct___word* word = (void*)mm;
  unsigned long flags = 0;

  if (bpf_core_field_exists(bitmap->flags.__mm_flags))
    bpf_core_read(&flags, sizeof(flags), &bitmap->flags.__mm_flags);
  else
    bpf_core_read(&flags, sizeof(flags), &word->flags);
  return flags;
}

static __always_inline void fill_memory(struct ProcessRecord* out, struct mm_struct* mm) {
  unsigned long flags = mm_flags_of(mm);

  out->start_code = mm->start_code;
  out->end_code = mm->end_code;
  out->start_data = mm->start_data;
  out->end_data = mm->end_data;
  out->start_brk = mm->start_brk;
  out->brk = mm->brk;
  out->start_stack = mm->start_stack;
  out->arg_start = mm->arg_start;
  out->arg_end = mm->arg_end;
  out->env_start = mm->env_start;
  out->env_end = mm->env_end;
  out->default_vm_flags = mm->def_flags;
  out->executable_inode = mm->exe_file->f_inode->i_ino;
  out->executable_device = user_device(mm->exe_file->f_inode->i_sb->s_dev);
  if (bpf_core_field_exists(mm->membarrier_state))
    out->membarrier_state = (__u32)mm->membarrier_state.counter;
  out->map_count = (__u32)mm->map_count;
  out->has_ldt = 0;
  if (bpf_core_field_exists(mm->context.ldt)) out->has_ldt = mm->context.ldt != 0;
  out->has_mm = 1;
  out->mm_flags = flags;
  out->dumpable = flags & MMF_DUMPABLE_MASK;
  out->thp_disabled = (flags >> MMF_DISABLE_THP) & 1;
  /* The bit came with the bitmap; before, it said something else. */
  out->thp_disabled_but_advised = 0;
  if (bpf_core_field_exists(((struct mm_struct___bitmap*)mm)->flags.__mm_flags))
    out->thp_disabled_but_advised = (flags >> MMF_DISABLE_THP_EXCEPT_ADVISED) & 1;
  out->memory_merge_any = (flags >> MMF_VM_MERGE_ANY) & 1;
  out->mdwe = ((flags >> MMF_HAS_MDWE) & 1) | (((flags >> MMF_HAS_MDWE_NO_INHERIT) & 1) << 1);
}

static __always_inline void fill_timers(struct ProcessRecord* out, struct signal_struct* signal) {
  __u64 user = (__u64)signal->cputimer.cputime_atomic.utime.counter;
  __u64 system = (__u64)signal->cputimer.cputime_atomic.stime.counter;

  out->real_timer_interval = (__u64)signal->it_real_incr;
  out->real_timer_expires = (__u64)signal->real_timer.node.expires;
  out->real_timer_armed = signal->real_timer.state & 1;
  out->itimer_clock = 1;
  out->profiling_timer.expires = signal->it[CPUCLOCK_PROF].expires;
  out->profiling_timer.interval = signal->it[CPUCLOCK_PROF].incr;
  out->profiling_timer.now = user + system;
  out->virtual_timer.expires = signal->it[CPUCLOCK_VIRT].expires;
  out->virtual_timer.interval = signal->it[CPUCLOCK_VIRT].incr;
  out->virtual_timer.now = user;
}

static __always_inline void fill_process(struct ProcessRecord* out, struct task_struct* task,
                                         struct task_struct* reader) {
  struct signal_struct* signal = task->signal;

  out->header.kind = kRecordProcess;
  out->header.bytes = sizeof(*out);
  fill_ids(&out->tgid, task->group_leader->thread_pid, reader->thread_pid);
  out->monotonic_now = bpf_ktime_get_ns();
  out->shared_pending = signal->shared_pending.signal.sig[0];
  out->thread_count = signal->nr_threads;
  out->group_stop_count = signal->group_stop_count;
  out->signal_flags = signal->flags;
  out->group_exit_code = signal->group_exit_code;
  out->is_child_subreaper = BPF_CORE_READ_BITFIELD_PROBED(signal, is_child_subreaper);
  out->has_child_subreaper = BPF_CORE_READ_BITFIELD_PROBED(signal, has_child_subreaper);
  out->is_session_leader = signal->leader;
  out->has_tty = signal->tty != 0;
  out->oom_score_adj = signal->oom_score_adj;
  bpf_probe_read_kernel(out->resource_limits, sizeof(out->resource_limits), signal->rlim);
  fill_timers(out, signal);
  out->umask = (__u32)task->fs->umask;
  fill_memory(out, task->mm);
  fill_processor(out, task);
  bpf_probe_read_kernel(out->actions, sizeof(out->actions), task->sighand->action);
}

/* Deadline and state of a timer driven by an hrtimer; CPU clocks and alarms stay unknown. */
static __always_inline void fill_posix_timer(struct PosixTimerRecord* out, struct k_itimer* timer) {
  struct k_itimer___6_12* old = (void*)timer;
  struct sigqueue* queue = 0;
  struct pid* pid;

  out->header.kind = kRecordPosixTimer;
  out->header.bytes = sizeof(*out);
  out->id = BPF_CORE_READ(timer, it_id);
  out->clock_id = BPF_CORE_READ(timer, it_clock);
  out->notify = BPF_CORE_READ(timer, it_sigev_notify);
  out->interval = (__u64)BPF_CORE_READ(timer, it_interval);
  out->overrun = BPF_CORE_READ(timer, it_overrun);
  out->overrun_last = BPF_CORE_READ(timer, it_overrun_last);
  out->now = 0;

  if (bpf_core_field_exists(timer->it_status)) {
    out->armed = (__u32)BPF_CORE_READ(timer, it_status);
    queue = (void*)timer + bpf_core_field_offset(timer->sigq);
  } else {
    out->armed = (__u32)BPF_CORE_READ(old, it_active);
    queue = BPF_CORE_READ(old, sigq);
  }
  out->signal = BPF_CORE_READ(queue, info.si_signo);
  out->value = (__u64)BPF_CORE_READ(queue, info._sifields._timer._sigval.sival_ptr);
  pid = BPF_CORE_READ(timer, it_pid);
  out->notify_tid = pid ? pid_number(pid, BPF_CORE_READ(pid, level)) : 0;

  out->expires = (__u64)BPF_CORE_READ(timer, it.real.timer.node.expires);
  out->base_clock_id = BPF_CORE_READ(timer, it.real.timer.base, clockid);
  out->known = out->clock_id >= 0 && out->clock_id != CLOCK_PROCESS_CPUTIME_ID &&
               out->clock_id != CLOCK_THREAD_CPUTIME_ID && out->clock_id != CLOCK_REALTIME_ALARM &&
               out->clock_id != CLOCK_BOOTTIME_ALARM;
  if (!out->known) {
    out->expires = 0;
    out->base_clock_id = -1;
  }
}

/* The list is walked with bpf_loop, because the verifier follows a plain loop turn by turn. */
struct TimerWalk {
  struct hlist_node* node;
  struct seq_file* seq;
  long error;
  __u32 count;
};

static long count_timer(__u32 index, struct TimerWalk* walk) {
  struct hlist_node* node = walk->node;

  if (!node) return 1;
  walk->node = BPF_CORE_READ(node, next);
  walk->count++;
  return 0;
}

static long write_timer(__u32 index, struct TimerWalk* walk) {
  struct hlist_node* node = walk->node;

  if (!node) return 1;
  fill_posix_timer(&posix_timer, (void*)node - bpf_core_field_offset(struct k_itimer, list));
  walk->error = bpf_seq_write(walk->seq, &posix_timer, sizeof(posix_timer));
  walk->node = BPF_CORE_READ(node, next);
  return walk->error != 0;
}

static __always_inline __u32 count_timers(struct signal_struct* signal) {
  struct TimerWalk walk = {.node = BPF_CORE_READ(signal, posix_timers.first)};

  bpf_loop(1 << 20, count_timer, &walk, 0);
  return walk.count;
}

static __always_inline long write_timers(struct seq_file* seq, struct signal_struct* signal) {
  struct TimerWalk walk = {.node = BPF_CORE_READ(signal, posix_timers.first), .seq = seq};

  bpf_loop(MAX_POSIX_TIMERS, write_timer, &walk, 0);
  return walk.error;
}

SEC("iter/task")
int capture_task(struct bpf_iter__task* ctx) {
  struct task_struct* reader = bpf_get_current_task_btf();
  struct seq_file* seq = ctx->meta->seq;
  struct task_struct* task = ctx->task;
  bool describe;

  if (!task) return 0;
  /* An element that does not fit is asked for again, hence the mark is set at the very end. */
  describe = described_session != ctx->meta->session_id && task->mm;
  if (describe) {
    fill_process(&process, task, reader);
    process.posix_timer_count = count_timers(task->signal);
    if (bpf_seq_write(seq, &process, sizeof(process))) return 0;
    if (write_timers(seq, task->signal)) return 0;
  }
  fill_thread(&thread, task, reader);
  fill_optional(&thread, task);
  fill_refused(&thread, task);
  if (bpf_seq_write(seq, &thread, sizeof(thread))) return 0;
  if (describe) described_session = ctx->meta->session_id;
  return 0;
}
