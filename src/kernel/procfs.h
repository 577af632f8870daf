// Everything read from /proc/PID.
#ifndef PREDUMP_KERNEL_PROCFS_H_
#define PREDUMP_KERNEL_PROCFS_H_

#include "src/kernel/procfs_fd.h"
#include "src/kernel/procfs_maps.h"
#include "src/kernel/procfs_task.h"

#endif  // PREDUMP_KERNEL_PROCFS_H_
