// The calls a thread can sleep in, each as one object with its own descriptors.
#ifndef PREDUMP_TESTS_WORKLOADS_BLOCKING_CALLS_H_
#define PREDUMP_TESTS_WORKLOADS_BLOCKING_CALLS_H_

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace predump::workloads {

struct BlockingCall {
  enum class Returns {
    kAtTimeout,   // after the time it is given, and not before
    kWhenKicked,  // when kick() was called by another thread, with what that one sent
    kNever,
  };

  std::string name;
  Returns returns;
  // Blocks once, for `timeout_ns` (ignored unless kAtTimeout). 0 if it ended the way `returns`
  // says, EINTR if it said so, EBADMSG for wrong data, otherwise the errno (EPROTO if it had none).
  std::function<int(int64_t timeout_ns)> call;
  std::function<void()> kick;  // only kWhenKicked
  // Early returns of this much are the kernel's own: it counts ticks, and on a virtual machine one
  // processor may begin to wait while the one that counts them has not run for a while.
  int64_t early_ns = 0;
};

// All of them, with descriptors open. The caller must have SIGUSR2 blocked in every thread.
std::vector<BlockingCall> MakeBlockingCalls();

}  // namespace predump::workloads

#endif  // PREDUMP_TESTS_WORKLOADS_BLOCKING_CALLS_H_
