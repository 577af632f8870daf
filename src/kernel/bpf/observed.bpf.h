/* SPDX-License-Identifier: GPL-2.0 */
/* For programs that run in anybody's context: which process is observed, and who observes.
 * An iterator program calls observe() once, before the trace points are attached.
 */
#ifndef PREDUMP_KERNEL_BPF_OBSERVED_BPF_H_
#define PREDUMP_KERNEL_BPF_OBSERVED_BPF_H_

#include "src/kernel/bpf/types.bpf.h"

int observed_tgid = 0;           /* initial pid namespace; 0: not yet known */
unsigned int observer_level = 0; /* of the observer's pid namespace */

static __always_inline void observe(struct task_struct* task) {
  struct task_struct* observer = bpf_get_current_task_btf();

  observer_level = observer->thread_pid->level;
  observed_tgid = task->tgid;
}

/* The id of `task` as the observer sees it: tasks of the observed process, and children of it, are
 * in the observer's pid namespace or below.
 */
static __always_inline int observer_id(struct task_struct* task) {
  return pid_number(task->thread_pid, observer_level);
}

#endif  // PREDUMP_KERNEL_BPF_OBSERVED_BPF_H_
