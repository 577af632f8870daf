// A child process that changes its own memory on command, one step at a time.
//
// It is a fork of the test, so functions of the test can be named to it by address. Between steps
// it sits in a read and changes nothing. It dies with the object, and with the test.
#ifndef PREDUMP_TESTS_PAGEMAP_MEMORY_ACTOR_H_
#define PREDUMP_TESTS_PAGEMAP_MEMORY_ACTOR_H_

#include <sys/types.h>

#include <array>
#include <atomic>
#include <cstdint>
#include <optional>

#include "src/base/unique_fd.h"
#include "src/base/units.h"
#include "src/kernel/process.h"

namespace predump::pagemap {

class MemoryActor {
 public:
  using Arguments = std::array<uint64_t, 6>;
  using Function = int64_t (*)(const Arguments&);

  MemoryActor();  // aborts the test where a child cannot be made
  MemoryActor(const MemoryActor&) = delete;
  MemoryActor& operator=(const MemoryActor&) = delete;
  ~MemoryActor();

  pid_t pid() const { return pid_; }
  const kernel::ProcessHandle& process() const { return *process_; }

  // Runs `function` in the child and returns its result.
  int64_t Call(Function function, Arguments arguments = {});
  // A system call in the child: its result or -errno.
  int64_t Syscall(long number, Arguments arguments = {});

  // Frequent steps. Addresses are the child's.
  uint64_t Map(uint64_t address, uint64_t bytes, int extra_flags = 0);  // private, anonymous
  void Unmap(uint64_t address, uint64_t bytes);
  void Discard(uint64_t address, uint64_t bytes);  // MADV_DONTNEED
  void Protect(uint64_t address, uint64_t bytes, int prot);
  // mremap to a fixed place.
  void Move(uint64_t from, uint64_t bytes, uint64_t to);
  // Writes every page of the range, contents made from `seed`.
  void Write(uint64_t address, uint64_t bytes, uint64_t seed);
  void Read(uint64_t address);  // one byte
  uint64_t MapFile(const char* path, uint64_t address, uint64_t bytes, int flags);

  // Runs `function` over and over, arguments[5] counting up, until StopLoop.
  void StartLoop(Function function, Arguments arguments = {});
  void StopLoop();
  uint64_t loops_done() const { return shared_->loops.load(); }
  // Until that many are done. Aborts the test where the child has died.
  void AwaitLoops(uint64_t loops) const;

  // Stops it wherever it is, and lets it go on.
  void Freeze();
  void Thaw();

  // Kills it and waits until it is gone; a zombie remains until destruction.
  void Kill();

 private:
  struct Shared {
    std::atomic<bool> stop;
    std::atomic<uint64_t> loops;
  };
  struct Command {
    Function function;
    Arguments arguments;
    bool loop;
  };

  [[noreturn]] void ChildMain(int fd);
  void Send(const Command& command);
  int64_t Receive();

  Shared* shared_ = nullptr;
  base::UniqueFd control_;
  pid_t pid_ = -1;
  std::optional<kernel::ProcessHandle> process_;
};

// Whether anonymous memory that is only read shares one page of zeros. A kernel that runs as a
// guest of PVM may have none (pvm_no_zero_page): such memory gets pages of its own there.
bool MemoryOnlyReadIsTheZeroPage();

}  // namespace predump::pagemap

#endif  // PREDUMP_TESTS_PAGEMAP_MEMORY_ACTOR_H_
