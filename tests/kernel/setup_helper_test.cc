// The helper that a setup makes: what it takes from its target, and what it leaves in it.
#include <errno.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "src/kernel/setup_injection.h"
#include "tests/kernel/checked_child.h"
#include "tests/kernel/child_process.h"
#include "tests/kernel/process_snapshot.h"

namespace predump::kernel {
namespace {

using base::AddressRange;
using base::ByteCount;

struct Progress {
  std::atomic<long> steps;
  std::atomic<long> wrong;
  std::atomic<int> command;
  std::atomic<int> answer;
  std::atomic<int> answer_errno;
};

TEST(SetupInjectionTest, HelperSplicesTheTargetsBytesAndFollowsItsWrites) {
  constexpr size_t kPages = 128;
  const size_t bytes = kPages * base::PageSize();
  auto* memory = static_cast<unsigned char*>(
      ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  SharedValue<Progress> progress;
  ChildProcess child([&] {
    for (size_t i = 0; i < bytes; ++i) memory[i] = static_cast<unsigned char>(i * 7 + i / 4096);
    progress->answer = 1;
    for (;;) ::pause();
  });
  ASSERT_TRUE(Eventually([&] { return progress->answer == 1; }));
  const auto process = ProcessHandle::Open(child.pid());
  auto setup = InjectSetup(*process, {.userfaultfd = false});
  ASSERT_TRUE(setup.ok()) << setup.status();
  ASSERT_TRUE(setup->helper.has_value()) << setup->helper_status;
  EXPECT_FALSE(setup->userfaultfd.valid());
  HelperTask& helper = *setup->helper;
  ASSERT_GE(helper.pipe_capacity().value(), bytes);

  // Every page a range of its own: more ranges than one call takes.
  std::vector<AddressRange> ranges;
  for (size_t page = 0; page < kPages; ++page) {
    const uint64_t start = reinterpret_cast<uint64_t>(memory) + page * base::PageSize();
    ranges.push_back(AddressRange::FromOrdered(start, start + base::PageSize()));
  }
  ASSERT_GT(ranges.size(), helper.max_ranges_per_call());
  const auto queued = helper.Vmsplice(ranges);
  ASSERT_TRUE(queued.ok()) << queued.status();
  ASSERT_EQ(queued->value(), bytes);
  std::vector<unsigned char> got(bytes);
  for (size_t done = 0; done < bytes;) {
    const ssize_t n = ::read(helper.pipe(), got.data() + done, bytes - done);
    ASSERT_GT(n, 0);
    done += static_cast<size_t>(n);
  }
  for (size_t i = 0; i < bytes; ++i) {
    ASSERT_EQ(got[i], static_cast<unsigned char>(i * 7 + i / 4096)) << i;
  }
  ::munmap(memory, bytes);
}

TEST(SetupInjectionTest, HelperStopsShortAtAFullPipeAndAtUnreadableMemory) {
  auto* memory = static_cast<unsigned char*>(
      ::mmap(nullptr, 64 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  memory[0] = 1;
  ::mprotect(memory + 32 * 4096, 4096, PROT_NONE);
  ChildProcess child([] {
    for (;;) ::pause();
  });
  const auto process = ProcessHandle::Open(child.pid());
  auto setup = InjectSetup(*process, {.pipe_capacity = ByteCount(16 * 4096)});
  ASSERT_TRUE(setup.ok() && setup->helper.has_value()) << setup.status();
  const uint64_t start = reinterpret_cast<uint64_t>(memory);
  const AddressRange all = AddressRange::FromOrdered(start, start + 64 * 4096);
  EXPECT_EQ(setup->helper->Vmsplice(std::span(&all, 1))->value(), 16u * 4096);
  EXPECT_EQ(setup->helper->Vmsplice(std::span(&all, 1))->value(), 0u);
  std::vector<char> sink(16 * 4096);
  ASSERT_EQ(::read(setup->helper->pipe(), sink.data(), sink.size()), ssize_t{16 * 4096});
  const AddressRange hole = AddressRange::FromOrdered(start + 32 * 4096, start + 33 * 4096);
  EXPECT_EQ(setup->helper->Vmsplice(std::span(&hole, 1))->value(), 0u);
  const AddressRange into = AddressRange::FromOrdered(start + 30 * 4096, start + 34 * 4096);
  EXPECT_EQ(setup->helper->Vmsplice(std::span(&into, 1))->value(), 2u * 4096);
  ::munmap(memory, 64 * 4096);
}

TEST(SetupInjectionTest, PeerSeesEndOfFileWhileTheHelperLives) {
  int ends[2];
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
  SharedValue<Progress> progress;
  ChildProcess child([&] {
    ::close(ends[0]);
    while (progress->command == 0) ::usleep(100);
    ::close(ends[1]);
    progress->answer = 1;
    for (;;) ::pause();
  });
  ::close(ends[1]);
  const auto process = ProcessHandle::Open(child.pid());
  const auto setup = InjectSetup(*process, {});
  ASSERT_TRUE(setup.ok() && setup->helper.has_value()) << setup.status();
  progress->command = 1;
  ASSERT_TRUE(Eventually([&] { return progress->answer == 1; }));
  char byte = 0;
  EXPECT_EQ(::recv(ends[0], &byte, 1, MSG_DONTWAIT), 0);
  ::close(ends[0]);
}

TEST(SetupInjectionTest, TargetHasNoChildToWaitFor) {
  SharedValue<Progress> progress;
  ChildProcess child([&] {
    for (;;) {
      while (progress->command == 0) ::usleep(100);
      int status = 0;
      progress->answer = ::waitpid(-1, &status, __WALL | WNOHANG);
      progress->answer_errno = errno;
      progress->command = 0;
    }
  });
  const auto process = ProcessHandle::Open(child.pid());
  const auto ask = [&] {
    progress->command = 1;
    ASSERT_TRUE(Eventually([&] { return progress->command == 0; }));
    EXPECT_EQ(progress->answer, -1);
    EXPECT_EQ(progress->answer_errno, ECHILD);
  };
  {
    const auto setup = InjectSetup(*process, {});
    ASSERT_TRUE(setup.ok() && setup->helper.has_value()) << setup.status();
    ask();
  }
  ask();
}

TEST(SetupInjectionTest, SubreaperGetsNoHelperButItsUserfaultfd) {
  SharedValue<Progress> progress;
  ChildProcess child([&] {
    ::prctl(PR_SET_CHILD_SUBREAPER, 1);
    progress->answer = 1;
    for (;;) ::pause();
  });
  ASSERT_TRUE(Eventually([&] { return progress->answer == 1; }));
  const auto process = ProcessHandle::Open(child.pid());
  const ProcessSnapshot before = TakeSnapshot(*process);
  const auto setup = InjectSetup(*process, {});
  ASSERT_TRUE(setup.ok()) << setup.status();
  EXPECT_TRUE(setup->userfaultfd.valid());
  EXPECT_FALSE(setup->helper.has_value());
  EXPECT_THAT(std::string(setup->helper_status.message()), testing::HasSubstr("subreaper"));
  EXPECT_EQ(TakeSnapshot(*process), before);
}

TEST(SetupInjectionTest, HelperDiesWithItsTracerAndTheTargetRunsOn) {
  SharedValue<Progress> progress;
  ChildProcess child([&] { ComputeAndCheck(*progress); });
  ASSERT_TRUE(Eventually([&] { return progress->steps > 1000; }));
  const auto process = ProcessHandle::Open(child.pid());
  const ProcessSnapshot before = TakeSnapshot(*process);
  SharedValue<Progress> engine_progress;
  ChildProcess engine([&] {
    const auto setup = InjectSetup(*process, {});
    engine_progress->answer = setup.ok() && setup->helper.has_value() ? setup->helper->tid() : -1;
    for (;;) ::pause();
  });
  ASSERT_TRUE(Eventually([&] { return engine_progress->answer != 0; }));
  const pid_t helper = engine_progress->answer;
  ASSERT_GT(helper, 0);
  engine.Kill();
  // Its reaper may be an init that does not reap: gone or a zombie.
  EXPECT_TRUE(Eventually([&] {
    const auto handle = ProcessHandle::Open(helper);
    return !handle.ok();
  }));
  const long steps = progress->steps;
  EXPECT_TRUE(Eventually([&] { return progress->steps > steps + 1000; }));
  EXPECT_EQ(progress->wrong, 0);
  EXPECT_EQ(TakeSnapshot(*process), before);
  // What the dead engine left in the padding is known as ours.
  const auto again = InjectSetup(*process, {});
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_TRUE(again->helper.has_value());
}

// Its program lies where the next one would be written.
TEST(SetupInjectionTest, WaitsUntilTheTasksOfAnotherEngineHaveEnded) {
  SharedValue<Progress> progress;
  ChildProcess child([&] { ComputeAndCheck(*progress); });
  const auto process = ProcessHandle::Open(child.pid());
  SharedValue<Progress> engine_progress;
  ChildProcess engine([&] {
    const auto setup = InjectSetup(*process, {});
    engine_progress->answer = setup.ok() && setup->helper.has_value() ? 1 : -1;
    for (;;) ::pause();
  });
  ASSERT_TRUE(Eventually([&] { return engine_progress->answer != 0; }));
  ASSERT_EQ(engine_progress->answer, 1);
  const std::vector<std::byte> padding = ReadPadding(*process);
  const auto refused = InjectSetup(*process, {.timeout = absl::Milliseconds(50)});
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kFailedPrecondition) << refused.status();
  EXPECT_THAT(std::string(refused.status().message()), testing::HasSubstr("another predump"));
  EXPECT_EQ(ReadPadding(*process), padding);
  std::thread killer([&] {
    SleepMs(20);
    engine.Kill();
  });
  const auto setup = InjectSetup(*process, {.timeout = absl::Seconds(20)});
  killer.join();
  EXPECT_TRUE(setup.ok()) << setup.status();
  EXPECT_EQ(progress->wrong, 0);
}

// What a terminal's ^Z and `fg` send to the whole process group reaches the helper too.
TEST(SetupInjectionTest, HelperTakesNoNoticeOfStopAndContinueSignals) {
  constexpr size_t kPages = 16;
  const size_t bytes = kPages * base::PageSize();
  auto* memory = static_cast<unsigned char*>(
      ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  for (size_t i = 0; i < bytes; ++i) memory[i] = static_cast<unsigned char>(i * 7 + i / 4096);
  ChildProcess child([] {
    for (;;) ::pause();
  });
  const auto process = ProcessHandle::Open(child.pid());
  auto setup = InjectSetup(*process, {.userfaultfd = false});
  ASSERT_TRUE(setup.ok() && setup->helper.has_value()) << setup.status();
  HelperTask& helper = *setup->helper;
  std::atomic<bool> done = false;
  std::thread sender([&, tid = helper.tid()] {
    while (!done) {
      ::kill(tid, SIGSTOP);
      ::kill(tid, SIGCONT);
      ::usleep(20);
    }
  });
  const uint64_t start = reinterpret_cast<uint64_t>(memory);
  const AddressRange range = AddressRange::FromOrdered(start, start + bytes);
  absl::Status status;
  std::vector<unsigned char> got(bytes);
  for (int i = 0; i < 2000 && status.ok(); ++i) {
    const auto queued = helper.Vmsplice(std::span(&range, 1));
    status = queued.status();
    if (!queued.ok()) break;
    EXPECT_EQ(queued->value(), bytes);
    EXPECT_EQ(::read(helper.pipe(), got.data(), bytes), static_cast<ssize_t>(bytes));
    EXPECT_EQ(memcmp(got.data(), memory, bytes), 0);
  }
  done = true;
  sender.join();
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_TRUE(helper.Finish().ok());
  EXPECT_TRUE(AllZero(ReadPadding(*process)));
  ::munmap(memory, bytes);
}

}  // namespace
}  // namespace predump::kernel
