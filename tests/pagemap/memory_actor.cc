#include "tests/pagemap/memory_actor.h"

#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <span>
#include <utility>

#include "src/base/mapped_region.h"
#include "src/kernel/pagemap_scan.h"

namespace predump::pagemap {
namespace {

void Require(bool condition, const char* what) {
  if (condition) return;
  perror(what);
  abort();
}

int64_t DoSyscall(const MemoryActor::Arguments& a) {
  const long result = ::syscall(static_cast<long>(a[5]), a[0], a[1], a[2], a[3], a[4], 0);
  return result < 0 ? -errno : result;
}

int64_t DoWrite(const MemoryActor::Arguments& a) {
  for (uint64_t at = a[0]; at < a[0] + a[1]; at += 4096) {
    auto* page = reinterpret_cast<volatile uint64_t*>(at);
    page[0] = a[2] * 0x9e3779b97f4a7c15 + at;
    page[511] = a[2];
  }
  return 0;
}

int64_t DoRead(const MemoryActor::Arguments& a) { return *reinterpret_cast<volatile char*>(a[0]); }

}  // namespace

MemoryActor::MemoryActor() {
  void* page = ::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  Require(page != MAP_FAILED, "mmap");
  shared_ = new (page) Shared{};
  int ends[2];
  Require(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0, "socketpair");
  control_ = base::UniqueFd(ends[0]);
  // It inherits our heap, and a model of its memory (mirror.h) makes that larger: without giving
  // back what is free, each actor of a program would have more memory than the one before.
  ::malloc_trim(0);
  pid_ = ::fork();
  Require(pid_ >= 0, "fork");
  if (pid_ == 0) ChildMain(ends[1]);
  ::close(ends[1]);
  auto process = kernel::ProcessHandle::Open(pid_);
  Require(process.ok(), "ProcessHandle::Open");
  process_ = *std::move(process);
}

MemoryActor::~MemoryActor() {
  ::kill(pid_, SIGKILL);
  ::waitpid(pid_, nullptr, 0);
  ::munmap(shared_, 4096);
}

void MemoryActor::ChildMain(int fd) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  Command command;
  while (::read(fd, &command, sizeof(command)) == static_cast<ssize_t>(sizeof(command))) {
    int64_t result = 0;
    if (command.loop) {
      while (!shared_->stop.load()) {
        command.arguments[5] = shared_->loops.fetch_add(1);
        result = command.function(command.arguments);
      }
    } else {
      result = command.function(command.arguments);
    }
    if (::write(fd, &result, sizeof(result)) != static_cast<ssize_t>(sizeof(result))) break;
  }
  ::_exit(0);
}

void MemoryActor::Send(const Command& command) {
  Require(
      ::write(control_.get(), &command, sizeof(command)) == static_cast<ssize_t>(sizeof(command)),
      "write to the child");
}

int64_t MemoryActor::Receive() {
  int64_t result = 0;
  Require(::read(control_.get(), &result, sizeof(result)) == static_cast<ssize_t>(sizeof(result)),
          "read from the child");
  return result;
}

int64_t MemoryActor::Call(Function function, Arguments arguments) {
  Send({function, arguments, false});
  return Receive();
}

int64_t MemoryActor::Syscall(long number, Arguments arguments) {
  arguments[5] = static_cast<uint64_t>(number);
  return Call(DoSyscall, arguments);
}

uint64_t MemoryActor::Map(uint64_t address, uint64_t bytes, int extra_flags) {
  Command command{[](const Arguments& a) -> int64_t {
                    return reinterpret_cast<int64_t>(
                        ::mmap(reinterpret_cast<void*>(a[0]), a[1], PROT_READ | PROT_WRITE,
                               MAP_PRIVATE | MAP_ANONYMOUS | static_cast<int>(a[2]), -1, 0));
                  },
                  {address, bytes, static_cast<uint64_t>(extra_flags | (address ? MAP_FIXED : 0))},
                  false};
  Send(command);
  const int64_t result = Receive();
  Require(result != -1, "mmap in the child");
  return static_cast<uint64_t>(result);
}

void MemoryActor::Unmap(uint64_t address, uint64_t bytes) {
  Require(Syscall(SYS_munmap, {address, bytes}) == 0, "munmap in the child");
}

void MemoryActor::Discard(uint64_t address, uint64_t bytes) {
  Require(Syscall(SYS_madvise, {address, bytes, MADV_DONTNEED}) == 0, "madvise in the child");
}

void MemoryActor::Protect(uint64_t address, uint64_t bytes, int prot) {
  Require(Syscall(SYS_mprotect, {address, bytes, static_cast<uint64_t>(prot)}) == 0,
          "mprotect in the child");
}

void MemoryActor::Move(uint64_t from, uint64_t bytes, uint64_t to) {
  Require(Syscall(SYS_mremap, {from, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, to}) ==
              static_cast<int64_t>(to),
          "mremap in the child");
}

void MemoryActor::Write(uint64_t address, uint64_t bytes, uint64_t seed) {
  Call(DoWrite, {address, bytes, seed});
}

void MemoryActor::Read(uint64_t address) { Call(DoRead, {address}); }

uint64_t MemoryActor::MapFile(const char* path, uint64_t address, uint64_t bytes, int flags) {
  // The path lies in memory that the child inherited only if it was made before: send it over.
  const uint64_t scratch = Map(0, 4096);
  for (uint64_t i = 0; i <= ::strlen(path); ++i) {
    Call(
        [](const Arguments& a) -> int64_t {
          *reinterpret_cast<char*>(a[0]) = static_cast<char>(a[1]);
          return 0;
        },
        {scratch + i, static_cast<uint64_t>(path[i])});
  }
  const int64_t fd = Syscall(SYS_open, {scratch, O_RDONLY});
  Require(fd >= 0, "open in the child");
  const int64_t result = Call(
      [](const Arguments& a) -> int64_t {
        return reinterpret_cast<int64_t>(::mmap(
            reinterpret_cast<void*>(a[0]), a[1], PROT_READ | PROT_WRITE,
            static_cast<int>(a[2]) | (a[0] != 0 ? MAP_FIXED : 0), static_cast<int>(a[3]), 0));
      },
      {address, bytes, static_cast<uint64_t>(flags), static_cast<uint64_t>(fd)});
  Require(result != -1, "mmap of a file in the child");
  Syscall(SYS_close, {static_cast<uint64_t>(fd)});
  Unmap(scratch, 4096);
  return static_cast<uint64_t>(result);
}

void MemoryActor::StartLoop(Function function, Arguments arguments) {
  shared_->stop.store(false);
  Send({function, arguments, true});
}

void MemoryActor::AwaitLoops(uint64_t loops) const {
  while (loops_done() < loops) {
    const auto exited = process_->HasExited();
    Require(exited.ok() && !*exited, "go on in the child");
    ::sched_yield();
  }
}

void MemoryActor::StopLoop() {
  shared_->stop.store(true);
  Receive();
}

void MemoryActor::Freeze() {
  Require(::kill(pid_, SIGSTOP) == 0, "kill");
  int status = 0;
  Require(::waitpid(pid_, &status, WUNTRACED) == pid_ && WIFSTOPPED(status), "waitpid");
}

void MemoryActor::Thaw() { Require(::kill(pid_, SIGCONT) == 0, "kill"); }

void MemoryActor::Kill() {
  Require(::kill(pid_, SIGKILL) == 0, "kill");
  siginfo_t info = {};
  Require(::waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED | WNOWAIT) == 0, "waitid");
}

bool MemoryOnlyReadIsTheZeroPage() {
  const auto page = base::MappedRegion::Anonymous(4096);
  const auto self = kernel::ProcessHandle::Open(::getpid());
  Require(page.ok() && self.ok(), "a page to read");
  DoRead({reinterpret_cast<uint64_t>(page->data())});
  const auto pagemap = kernel::PagemapFile::Open(*self);
  Require(pagemap.ok(), "pagemap");
  const auto start = reinterpret_cast<uint64_t>(page->data());
  uint64_t entry = 0;
  Require(
      pagemap
          ->ReadEntries(base::AddressRange::FromOrdered(start, start + 4096), std::span(&entry, 1))
          .ok(),
      "read pagemap");
  return (entry & kernel::kPagemapExclusive) == 0;
}

}  // namespace predump::pagemap
