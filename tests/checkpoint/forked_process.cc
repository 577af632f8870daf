#include "tests/checkpoint/forked_process.h"

#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "gtest/gtest.h"
#include "src/base/errors.h"
#include "src/images/image_set.h"
#include "src/kernel/procfs.h"
#include "src/kernel/uapi_sched_attr.h"

namespace predump::checkpoint::testing {
namespace {

constexpr int kReadyFd = 1000;

[[noreturn]] void RunChild(int ready, const ForkedProcess::Body& set_up,
                           const ForkedProcess::Body& go_on) {
  ::setsid();
  const int null = ::open("/dev/null", O_RDWR);
  Require(::dup3(ready, kReadyFd, O_CLOEXEC) == kReadyFd, "dup3");
  // Standard error stays until the set-up is done: it says what went wrong.
  ::dup2(null, 0);
  ::dup2(null, 1);
  ::close_range(3, kReadyFd - 1, 0);
  ::close_range(kReadyFd + 1, ~0u, 0);
  set_up();
  ::dup2(0, 2);
  Require(::write(kReadyFd, "R", 1) == 1, "write");
  ::close(kReadyFd);
  if (go_on) go_on();
  while (true) ::pause();
}

}  // namespace

void Require(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "child: %s: errno %d\n", what, errno);
  ::_exit(99);
}

void ForkHolder() {
  const pid_t child = ::getpid();
  const pid_t holder = ::fork();
  Require(holder >= 0, "fork");
  if (holder > 0) return;
  ::close(kReadyFd);  // or nobody would see that the child is ready
  ::dup2(0, 2);
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (::getppid() != child) ::_exit(0);
  while (true) ::pause();
}

void SetTimeSlice(uint64_t nanoseconds) {
  kernel::SchedAttributes attributes = {};
  Require(::syscall(SYS_sched_getattr, 0, &attributes, sizeof attributes, 0) == 0, "sched_getattr");
  attributes.runtime = nanoseconds;
  Require(::syscall(SYS_sched_setattr, 0, &attributes, 0) == 0, "sched_setattr");
}

ForkedProcess::ForkedProcess(const Body& set_up, const Body& go_on) {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) std::abort();
  pid_ = ::fork();
  if (pid_ < 0) std::abort();
  if (pid_ == 0) RunChild(ends[1], set_up, go_on);
  ::close(ends[1]);
  char byte = 0;
  const bool ready = ::read(ends[0], &byte, 1) == 1;
  // The child's own end is closed once this reads as end of file.
  while (ready && ::read(ends[0], &byte, 1) > 0) {
  }
  ::close(ends[0]);
  auto handle = kernel::ProcessHandle::Open(pid_);
  if (!ready || !handle.ok()) {
    std::fprintf(stderr, "the child did not get ready\n");
    std::abort();
  }
  handle_.emplace(*std::move(handle));
  if (go_on) return;
  // Asleep for ever, where it can be compared with itself.
  AwaitCall(pid_, SYS_pause);
}

void ForkedProcess::AwaitCall(pid_t tid, int64_t number) const {
  // Nothing tells when that begins.
  for (;;) {
    const auto call = kernel::ReadThreadSyscall(*handle_, tid);
    if (call.ok() && !call->running && call->number == number) return;
    ::sched_yield();
  }
}

void ForkedProcess::AwaitPauses() const {
  const auto threads = kernel::ListThreads(*handle_);
  if (!threads.ok()) std::abort();
  for (const pid_t tid : *threads) AwaitCall(tid, SYS_pause);
}

ForkedProcess::~ForkedProcess() {
  ::kill(pid_, SIGKILL);
  ::waitpid(pid_, nullptr, 0);
}

absl::StatusOr<proto::ProcessState> CaptureOnce(const kernel::ProcessHandle& process,
                                                const CaptureOptions& options) {
  PREDUMP_ASSIGN_OR_RETURN(Capturer capturer, Capturer::Create(process, options));
  PREDUMP_ASSIGN_OR_RETURN(const auto vmas, pagemap::VmaList::Read(process, true));
  PREDUMP_RETURN_IF_ERROR(capturer.Survey(vmas));
  PREDUMP_RETURN_IF_ERROR(capturer.NoteSleepers());
  PREDUMP_ASSIGN_OR_RETURN(auto frozen, kernel::FrozenProcess::Freeze(process, absl::Seconds(5)));
  PREDUMP_ASSIGN_OR_RETURN(const auto frozen_vmas, pagemap::VmaList::Read(process, false));
  auto state = capturer.Capture(frozen, frozen_vmas);
  PREDUMP_RETURN_IF_ERROR(std::move(frozen).Thaw());
  return state;
}

absl::StatusOr<std::vector<std::string>> BlockersOf(const kernel::ProcessHandle& process,
                                                    const CaptureOptions& options) {
  PREDUMP_ASSIGN_OR_RETURN(Capturer capturer, Capturer::Create(process, options));
  PREDUMP_ASSIGN_OR_RETURN(const auto vmas, pagemap::VmaList::Read(process, true));
  PREDUMP_ASSIGN_OR_RETURN(const Survey survey, capturer.Survey(vmas));
  std::vector<std::string> texts;
  for (const auto* list : {&survey.blockers, &survey.children}) {
    for (const auto& blocker : *list) {
      texts.push_back(absl::StrCat(blocker.what(), ": ", blocker.reason()));
    }
  }
  return texts;
}

const criu::file_entry& FileOf(const proto::ProcessState& state, uint32_t fd) {
  const criu::file_entry* file = images::FileIndex(state).FindByDescriptor(fd);
  // An empty entry rather than an end of the program, which would leave the child behind.
  static const criu::file_entry none;
  if (file == nullptr) ADD_FAILURE() << "no descriptor " << fd << " in the state";
  return file == nullptr ? none : *file;
}

const proto::FileExtra* ExtraOf(const proto::ProcessState& state, uint32_t fd) {
  const proto::FileExtra* extra = images::FileIndex(state).FindExtra(FileOf(state, fd).id());
  static const proto::FileExtra none;
  if (extra == nullptr) ADD_FAILURE() << "descriptor " << fd << " has no extra";
  return extra == nullptr ? &none : extra;
}

}  // namespace predump::checkpoint::testing
