#include "tests/kernel/bpf/test_child.h"

#include <gtest/gtest.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <fstream>
#include <string>

namespace predump::kernel::testing {

void* MapShared(size_t bytes) {
  void* address = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (address == MAP_FAILED) std::abort();
  return address;
}

void UnmapShared(void* address, size_t bytes) { munmap(address, bytes); }

TestChild::TestChild(const std::function<void()>& body, PidNamespace pid_namespace) {
  const unsigned long flags = pid_namespace == PidNamespace::kNew ? CLONE_NEWPID : 0;
  pid_ = static_cast<pid_t>(syscall(SYS_clone, flags | SIGCHLD, 0, 0, 0, 0));
  if (pid_ == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    body();
    _exit(0);
  }
  EXPECT_GT(pid_, 0);
}

TestChild::~TestChild() {
  if (pid_ > 0) {
    kill(pid_, SIGKILL);
    Wait();
  }
}

int TestChild::Wait() {
  int status = 0;
  if (pid_ > 0) {
    EXPECT_EQ(waitpid(pid_, &status, __WALL), pid_);
  }
  pid_ = -1;
  return status;
}

bool Eventually(const std::function<bool()>& condition) {
  const auto limit = std::chrono::steady_clock::now() + std::chrono::seconds(10);
  while (!condition()) {
    if (std::chrono::steady_clock::now() > limit) return false;
    sched_yield();
  }
  return true;
}

bool TestChild::WaitUntilInside(pid_t tid, long nr) {
  return Eventually([tid, nr] {
    std::ifstream file("/proc/" + std::to_string(tid) + "/syscall");
    std::string word;
    file >> word;
    return word == std::to_string(nr);
  });
}

}  // namespace predump::kernel::testing
