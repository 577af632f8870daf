// A forked child to be stopped, injected and moved about by a test; dies with the object.
#ifndef PREDUMP_TESTS_KERNEL_CHILD_PROCESS_H_
#define PREDUMP_TESTS_KERNEL_CHILD_PROCESS_H_

#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <functional>
#include <new>
#include <utility>

namespace predump::kernel {

// Runs `body` in a child, which exits 0 when it returns.
class ChildProcess {
 public:
  explicit ChildProcess(const std::function<void()>& body) {
    const pid_t parent = ::getpid();
    pid_ = ::fork();
    if (pid_ == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      if (::getppid() != parent) ::_exit(1);
      body();
      ::_exit(0);
    }
  }
  ChildProcess(const ChildProcess&) = delete;
  ChildProcess& operator=(const ChildProcess&) = delete;
  ~ChildProcess() { Kill(); }

  pid_t pid() const { return pid_; }
  // Kills and reaps.
  void Kill() {
    if (pid_ <= 0) return;
    ::kill(pid_, SIGKILL);
    Reap();
  }
  // The raw wait status, once it has ended.
  int Reap() {
    int status = 0;
    while (::waitpid(std::exchange(pid_, -1), &status, 0) < 0 && errno == EINTR) {
    }
    return status;
  }
  bool Alive() const {
    siginfo_t info = {};
    return ::waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED | WNOHANG | WNOWAIT) == 0 &&
           info.si_pid == 0;
  }

 private:
  pid_t pid_ = -1;
};

// One T shared with forked children, zero-initialised.
template <typename T>
class SharedValue {
 public:
  SharedValue()
      : value_(new (::mmap(nullptr, sizeof(T), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
                           -1, 0)) T()) {}
  SharedValue(const SharedValue&) = delete;
  SharedValue& operator=(const SharedValue&) = delete;
  ~SharedValue() { ::munmap(value_, sizeof(T)); }
  T* operator->() const { return value_; }
  T& operator*() const { return *value_; }

 private:
  T* value_;
};

// Looks every 200 us, for at most twenty seconds, until `condition` holds.
inline bool Eventually(const std::function<bool()>& condition) {
  struct timespec now = {};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  const time_t limit = now.tv_sec + 20;
  while (now.tv_sec < limit) {
    if (condition()) return true;
    const struct timespec pause = {0, 200'000};
    ::nanosleep(&pause, nullptr);
    ::clock_gettime(CLOCK_MONOTONIC, &now);
  }
  return condition();
}

inline void SleepMs(int milliseconds) {
  const struct timespec pause = {milliseconds / 1000, milliseconds % 1000 * 1'000'000};
  ::nanosleep(&pause, nullptr);
}

}  // namespace predump::kernel

#endif  // PREDUMP_TESTS_KERNEL_CHILD_PROCESS_H_
