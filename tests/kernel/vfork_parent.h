// A child in an uninterruptible wait, which ends when the test says so.
#ifndef PREDUMP_TESTS_KERNEL_VFORK_PARENT_H_
#define PREDUMP_TESTS_KERNEL_VFORK_PARENT_H_

#include <sys/prctl.h>

#include <atomic>
#include <cstdlib>

#include "src/kernel/process.h"
#include "src/kernel/procfs_task.h"
#include "tests/kernel/child_process.h"

namespace predump::kernel {

class VforkParent {
 public:
  VforkParent()
      : child_([this] {
          if (::vfork() == 0) {
            ::prctl(PR_SET_PDEATHSIG, SIGKILL);
            *waiting_ = 1;
            while (*wait_over_ == 0) SleepMs(1);
            ::_exit(0);
          }
          for (;;) ++*steps_;
        }),
        process_(*ProcessHandle::Open(child_.pid())) {
    // Only then does its child die with it.
    if (!Eventually([&] { return *waiting_ == 1 && ReadStat(process_)->state == 'D'; })) ::abort();
  }

  pid_t pid() const { return child_.pid(); }
  const ProcessHandle& process() const { return process_; }
  void EndWait() const { *wait_over_ = 1; }
  // Whether it is back, goes on, and is traced by nobody.
  bool RunsOn() const {
    const long before = *steps_;
    return ReadStatus(process_)->tracer_pid == 0 && ReadStat(process_)->state == 'R' &&
           Eventually([&] { return *steps_ > before; });
  }

 private:
  SharedValue<std::atomic<int>> waiting_;
  SharedValue<std::atomic<int>> wait_over_;
  SharedValue<std::atomic<long>> steps_;
  ChildProcess child_;
  ProcessHandle process_;
};

}  // namespace predump::kernel

#endif  // PREDUMP_TESTS_KERNEL_VFORK_PARENT_H_
