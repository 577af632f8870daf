#ifndef PREDUMP_KERNEL_UAPI_SCHED_ATTR_H_
#define PREDUMP_KERNEL_UAPI_SCHED_ATTR_H_

#include <cstdint>

namespace predump::kernel {

// struct sched_attr of sched_getattr(2) and sched_setattr(2), its first version; glibc 2.36 has
// none.
struct SchedAttributes {
  uint32_t size;
  uint32_t policy;
  uint64_t flags;
  int32_t nice;
  uint32_t priority;
  uint64_t runtime;  // of a fair policy the time slice, in ns (Linux 6.12)
  uint64_t deadline, period;
};
static_assert(sizeof(SchedAttributes) == 48);

}  // namespace predump::kernel

#endif  // PREDUMP_KERNEL_UAPI_SCHED_ATTR_H_
