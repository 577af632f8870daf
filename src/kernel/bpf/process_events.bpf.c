/* SPDX-License-Identifier: GPL-2.0 */
/* Trace points of scheduler and signals, for one process, into a ring buffer. */
#include "src/kernel/bpf/observed.bpf.h"

char LICENSE[] SEC("license") = "GPL";

#define SI_KERNEL 0x80
/* Values below are no siginfo: SEND_SIG_NOINFO (a user's kill without one), SEND_SIG_PRIV. */
#define SEND_SIG_PRIV 1

struct {
  __uint(type, BPF_MAP_TYPE_RINGBUF);
  __uint(max_entries, 256 * 1024); /* user space sets its own */
} events SEC(".maps");

__u64 lost_events = 0;

static __always_inline struct EventRecord* begin(__u32 kind, struct task_struct* task) {
  struct EventRecord* event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);

  if (!event) {
    __sync_fetch_and_add(&lost_events, 1);
    return 0;
  }
  __builtin_memset(event, 0, sizeof(*event));
  event->kind = kind;
  event->tid = observer_id(task);
  event->monotonic = bpf_ktime_get_ns();
  return event;
}

SEC("iter/task")
int find_process(struct bpf_iter__task* ctx) {
  struct task_struct* task = ctx->task;

  if (task) observe(task);
  return 0;
}

SEC("tp_btf/sched_process_fork")
int BPF_PROG(on_fork, struct task_struct* parent, struct task_struct* child) {
  struct EventRecord* event;

  if (parent->tgid != observed_tgid) return 0;
  event = begin(child->tgid == parent->tgid ? kEventThreadCreated : kEventForked, parent);
  if (!event) return 0;
  event->child = observer_id(child);
  event->child_own = pid_number(child->thread_pid, child->thread_pid->level);
  bpf_ringbuf_submit(event, 0);
  return 0;
}

SEC("tp_btf/sched_process_exec")
int BPF_PROG(on_exec, struct task_struct* task) {
  struct EventRecord* event;

  if (task->tgid != observed_tgid) return 0;
  event = begin(kEventExec, task);
  if (event) bpf_ringbuf_submit(event, 0);
  return 0;
}

SEC("tp_btf/sched_process_exit")
int BPF_PROG(on_exit, struct task_struct* task) {
  struct EventRecord* event;

  if (task->tgid != observed_tgid) return 0;
  event = begin(task->signal->live.counter == 0 ? kEventProcessExited : kEventThreadExited, task);
  if (!event) return 0;
  event->exit_code = task->exit_code;
  bpf_ringbuf_submit(event, 0);
  return 0;
}

SEC("tp_btf/signal_generate")
int BPF_PROG(on_signal, int signal, struct kernel_siginfo* info, struct task_struct* task,
             int to_process, int result) {
  struct EventRecord* event;

  if (task->tgid != observed_tgid) return 0;
  event = begin(kEventSignal, task);
  if (!event) return 0;
  event->signal = signal;
  event->to_process = to_process;
  event->result = result;
  if ((unsigned long)info > SEND_SIG_PRIV)
    bpf_core_read(&event->code, sizeof(event->code), &info->si_code);
  else
    event->code = (unsigned long)info == SEND_SIG_PRIV ? SI_KERNEL : 0;
  /* Codes up to zero were sent by a task, which is the one running now. */
  if (event->code <= 0 && event->code != -2)
    event->sender = observer_id((struct task_struct*)bpf_get_current_task_btf());
  bpf_ringbuf_submit(event, 0);
  return 0;
}
