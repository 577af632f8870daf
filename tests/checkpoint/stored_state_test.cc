// What is captured of a process goes through CRIU's images and comes back as it was.
#include <fcntl.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include <string>
#include <thread>

#include "google/protobuf/util/message_differencer.h"
#include "gtest/gtest.h"
#include "src/base/unique_fd.h"
#include "src/images/state_images.h"
#include "src/images/state_validation.h"
#include "src/kernel/procfs.h"
#include "tests/checkpoint/forked_process.h"
#include "tests/support/temp_dir.h"

namespace predump::checkpoint {
namespace {

using ::google::protobuf::util::MessageDifferencer;
using ::predump::checkpoint::testing::CaptureOnce;
using ::predump::checkpoint::testing::ForkedProcess;
using ::predump::checkpoint::testing::Require;

std::string Difference(const google::protobuf::Message& a, const google::protobuf::Message& b) {
  std::string text;
  MessageDifferencer differencer;
  differencer.ReportDifferencesToString(&text);
  differencer.Compare(a, b);
  return text;
}

absl::StatusOr<images::StoredState> ThroughImages(const proto::ProcessState& state,
                                                  bool with_extra) {
  const auto directory = test_support::TempDir::Create();
  if (!directory.ok()) return directory.status();
  const base::UniqueFd fd(::open(directory->path().c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  proto::StoredExtra extra;
  extra.set_version(images::kExtraVersion);
  const absl::Status written = images::WriteState(fd.get(), state, extra);
  if (!written.ok()) return written;
  if (!with_extra) ::unlinkat(fd.get(), images::kExtraName, 0);
  return images::ReadState(fd.get());
}

void HoldManyThings() {
  int ends[2];
  Require(::pipe2(ends, O_DIRECT) == 0, "pipe2");
  Require(::write(ends[1], "one", 3) == 3 && ::write(ends[1], "three", 5) == 5, "write");
  Require(::socketpair(AF_UNIX, SOCK_SEQPACKET, 0, ends) == 0, "socketpair");
  Require(::send(ends[0], "packet", 6, 0) == 6, "send");
  Require(::eventfd(7, EFD_SEMAPHORE) >= 0, "eventfd");
  const int epoll = ::epoll_create1(0);
  struct epoll_event event = {.events = EPOLLIN, .data = {.u64 = 1234567890123}};
  Require(::epoll_ctl(epoll, EPOLL_CTL_ADD, ends[1], &event) == 0, "epoll_ctl");
  sigset_t mask;
  sigemptyset(&mask);
  sigaddset(&mask, SIGUSR1);
  Require(::sigprocmask(SIG_BLOCK, &mask, nullptr) == 0, "sigprocmask");
  ::raise(SIGUSR1);
  Require(::signalfd(-1, &mask, 0) >= 0, "signalfd");
  const itimerval timer = {{1000, 0}, {2000, 0}};
  Require(::setitimer(ITIMER_REAL, &timer, nullptr) == 0, "setitimer");
  void* named = ::mmap(nullptr, 8192, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  constexpr int kAnonymousName = 0;  // PR_SET_VMA_ANON_NAME
  ::prctl(PR_SET_VMA, kAnonymousName, named, 4096, "arena");
}

TEST(StoredState, OfAProcessWithManyThingsIsTheCapturedOne) {
  const ForkedProcess child(&HoldManyThings);
  const auto state = CaptureOnce(child.handle());
  ASSERT_TRUE(state.ok()) << state.status();
  const auto stored = ThroughImages(*state, true);
  ASSERT_TRUE(stored.ok()) << stored.status();
  EXPECT_EQ(Difference(*state, stored->state), "");
  EXPECT_TRUE(stored->blockers.empty());
}

TEST(StoredState, OfBrokenOffCallsIsTheCapturedOne) {
  const ForkedProcess child(
      [] {
        std::thread([] {
          const timespec long_time = {100000, 0};
          ::nanosleep(&long_time, nullptr);
        }).detach();
      },
      [] {
        const int epoll = ::epoll_create1(0);
        struct epoll_event event;
        while (true) ::epoll_wait(epoll, &event, 1, 100'000'000);
      });
  const auto threads = kernel::ListThreads(child.handle());
  ASSERT_TRUE(threads.ok() && threads->size() == 2);
  child.AwaitCall(child.pid(), SYS_epoll_wait);
  const auto state = CaptureOnce(child.handle());
  ASSERT_TRUE(state.ok()) << state.status();
  EXPECT_TRUE(state->threads(0).extra().has_interrupted_call());
  const auto stored = ThroughImages(*state, true);
  ASSERT_TRUE(stored.ok()) << stored.status();
  EXPECT_EQ(Difference(*state, stored->state), "");
}

// As criu restore sees it, and predump a set of CRIU's.
TEST(StoredState, WithoutTheExtraIsStillAWholeProcess) {
  const ForkedProcess child(&HoldManyThings);
  const auto state = CaptureOnce(child.handle());
  ASSERT_TRUE(state.ok()) << state.status();
  const auto stored = ThroughImages(*state, false);
  ASSERT_TRUE(stored.ok()) << stored.status();
  EXPECT_TRUE(stored->blockers.empty());
  const absl::Status valid = images::ValidateState(stored->state, images::StateKind::kStored);
  EXPECT_TRUE(valid.ok()) << valid;
  EXPECT_EQ(Difference(state->mm(), stored->state.mm()), "");
}

}  // namespace
}  // namespace predump::checkpoint
