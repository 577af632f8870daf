// A child process to be observed. It runs a function of the test and dies with the object.
#ifndef PREDUMP_TESTS_KERNEL_BPF_TEST_CHILD_H_
#define PREDUMP_TESTS_KERNEL_BPF_TEST_CHILD_H_

#include <sys/types.h>

#include <cstddef>
#include <functional>
#include <new>
#include <utility>

namespace predump::kernel::testing {

// Memory that parent and child both see, zeroed.
void* MapShared(size_t bytes);
void UnmapShared(void* address, size_t bytes);

template <typename T>
class Shared {
 public:
  Shared() : value_(new (MapShared(sizeof(T))) T) {}
  Shared(const Shared&) = delete;
  Shared& operator=(const Shared&) = delete;
  ~Shared() { UnmapShared(value_, sizeof(T)); }
  T* operator->() const { return value_; }
  T& operator*() const { return *value_; }
  T* get() const { return value_; }

 private:
  T* value_;
};

class TestChild {
 public:
  enum class PidNamespace { kSame, kNew };

  explicit TestChild(const std::function<void()>& body,
                     PidNamespace pid_namespace = PidNamespace::kSame);
  TestChild(const TestChild&) = delete;
  TestChild& operator=(const TestChild&) = delete;
  ~TestChild();

  pid_t pid() const { return pid_; }

  // Waits until thread `tid` (of any process) sleeps inside system call `nr`; false after 10 s.
  static bool WaitUntilInside(pid_t tid, long nr);
  // Waits for the end and returns the status of waitpid(2).
  int Wait();

 private:
  pid_t pid_ = -1;
};

// Polls `condition` until it holds; false after 10 s. For states the kernel announces nowhere.
bool Eventually(const std::function<bool()>& condition);

}  // namespace predump::kernel::testing

#endif  // PREDUMP_TESTS_KERNEL_BPF_TEST_CHILD_H_
