// Building a process from a landing: that it goes on, with its threads and its memory.
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <string>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "src/kernel/freezer.h"
#include "src/kernel/procfs.h"
#include "src/restore/landing/layout.h"
#include "tests/restore/build_fixture.h"

namespace predump::restore {
namespace {

TEST_F(BuildTest, AProcessGoesOnWhereItWas) {
  ASSERT_NO_FATAL_FAILURE(Prepare(BeatAlone));
  const uint64_t before = report_->beats[0];
  ASSERT_TRUE(Build().ok()) << "see above";
  EXPECT_EQ(report_->beats[0], before) << "it ran before it was released";
  const absl::Status released = Release();
  ASSERT_TRUE(released.ok()) << released;
  EXPECT_TRUE(Beats(0));
  EXPECT_EQ(report_->wrong, 0u);
}

TEST_F(BuildTest, ThreadsGoOnWithTheirNumbers) {
  ASSERT_NO_FATAL_FAILURE(Prepare([](Report* report) {
    for (int i = 1; i <= kThreads; ++i) {
      std::thread([report, i] { Beat(report, i); }).detach();
    }
    for (int i = 1; i <= kThreads; ++i) {
      while (report->beats[i] == 0) ::sched_yield();
    }
    Beat(report, 0);
  }));
  const absl::Status built = Build();
  ASSERT_TRUE(built.ok()) << built;
  const absl::Status released = Release();
  ASSERT_TRUE(released.ok()) << released;
  for (int i = 0; i <= kThreads; ++i) EXPECT_TRUE(Beats(i)) << i;
  EXPECT_EQ(report_->wrong, 0u);
  const auto process = Process();
  auto threads = kernel::ListThreads(process);
  ASSERT_TRUE(threads.ok());
  std::vector<pid_t> inner;
  for (const pid_t tid : *threads) {
    auto status = kernel::ReadThreadStatus(process, tid);
    ASSERT_TRUE(status.ok());
    inner.push_back(status->namespace_pids.back());
  }
  std::sort(inner.begin(), inner.end());
  for (int i = 0; i <= kThreads; ++i) {
    EXPECT_EQ(inner[static_cast<size_t>(i)], static_cast<pid_t>(kPid) + i);
  }
}

// DESIGN 12.6: without its area a thread that is preempted inside a sequence is not aborted.
TEST_F(BuildTest, RestartableSequencesAreRegisteredForEachThread) {
  ASSERT_NO_FATAL_FAILURE(Prepare([](Report* report) {
    std::thread([report] { Beat(report, 1); }).detach();
    while (report->beats[1] == 0) ::sched_yield();
    Beat(report, 0);
  }));
  const absl::Status built = Build();
  ASSERT_TRUE(built.ok()) << built;
  const absl::Status released = Release();
  ASSERT_TRUE(released.ok()) << released;
  const auto process = Process();
  auto frozen = kernel::FrozenProcess::Freeze(process, absl::Seconds(5));
  ASSERT_TRUE(frozen.ok()) << frozen.status();
  ASSERT_EQ(frozen->threads().size(), 2u);
  for (size_t i = 0; i < 2; ++i) {
    const auto now = frozen->threads()[i].GetRseqConfiguration();
    ASSERT_TRUE(now.ok()) << now.status();
    const auto& before = state_.threads(static_cast<int>(i)).core().thread_core().rseq_entry();
    ASSERT_NE(before.rseq_abi_pointer(), 0u) << "this C library registers none";
    EXPECT_EQ(now->address.value(), before.rseq_abi_pointer());
    EXPECT_EQ(now->signature, before.signature());
  }
}

TEST_F(BuildTest, MappingsProtectionsAndExecutableAreAsBefore) {
  ASSERT_NO_FATAL_FAILURE(Prepare(BeatAlone));
  ASSERT_TRUE(Build().ok());
  ASSERT_TRUE(Release().ok());
  const auto process = Process();
  auto maps = kernel::ReadMaps(process);
  ASSERT_TRUE(maps.ok());
  std::vector<std::string> now;
  for (const auto& entry : *maps) {
    if (entry.path == "[vsyscall]") continue;
    now.push_back(entry.range.ToString() + " " + std::to_string(entry.prot));
  }
  std::vector<std::string> before;
  for (const auto& vma : state_.mm().vmas()) {
    before.push_back(base::AddressRange::FromOrdered(vma.start(), vma.end()).ToString() + " " +
                     std::to_string(vma.prot()));
  }
  EXPECT_EQ(now, before);
  auto exe = kernel::ReadProcLink(process, "exe");
  ASSERT_TRUE(exe.ok());
  EXPECT_EQ(*exe, *kernel::ReadProcLink(*kernel::ProcessHandle::Open(::getpid()), "exe"));
  auto descriptors = kernel::ListDescriptors(process);
  ASSERT_TRUE(descriptors.ok());
  EXPECT_TRUE(descriptors->empty());
}

TEST_F(BuildTest, MemoryThatBelongsWhereTheLandingLivesComesHome) {
  ASSERT_NO_FATAL_FAILURE(Prepare([](Report* report) {
    // Image, vDSO and trampoline of the landing all lie in this.
    auto* home = static_cast<uint64_t*>(
        ::mmap(reinterpret_cast<void*>(kHome - 8192), kHomeBytes + 16384, PROT_READ | PROT_WRITE,
               MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE | MAP_NORESERVE, -1, 0));
    const uint64_t words = (kHomeBytes + 16384) / 8;
    for (uint64_t i = 0; i < words; i += 4096) home[i] = i + 7;
    for (;;) {
      for (uint64_t i = 0; i < words; i += 4096) {
        if (home[i] != i + 7) report->wrong++;
      }
      report->beats[0]++;
    }
  }));
  const absl::Status built = Build();
  ASSERT_TRUE(built.ok()) << built;
  const absl::Status released = Release();
  ASSERT_TRUE(released.ok()) << released;
  const uint64_t before = report_->beats[0];
  const absl::Time limit = absl::Now() + absl::Seconds(10);
  while (report_->beats[0] < before + 3 && absl::Now() < limit) ::usleep(1000);
  EXPECT_GE(report_->beats[0], before + 3);
  EXPECT_EQ(report_->wrong, 0u);
}

TEST_F(BuildTest, AProcessParkedByADyingServerNeedsOnlyAWakeUp) {
  ASSERT_NO_FATAL_FAILURE(Prepare(BeatAlone));
  ASSERT_TRUE(Build().ok());
  ASSERT_TRUE(built_->QueueStop().ok());
  ASSERT_TRUE(built_->ClearExitKill().ok());
  built_pid_ = built_->pid();
  const uint64_t before = report_->beats[0];
  built_.reset();  // detaches, as a dying server does
  const auto process = Process();
  const absl::Time limit = absl::Now() + absl::Seconds(5);
  while (kernel::ReadStat(process)->state != 'T' && absl::Now() < limit) ::usleep(1000);
  EXPECT_EQ(kernel::ReadStat(process)->state, 'T');
  EXPECT_EQ(report_->beats[0], before);
  const absl::Status finished = BuiltProcess::FinishParked(process, absl::Seconds(5));
  ASSERT_TRUE(finished.ok()) << finished;
  EXPECT_TRUE(Beats(0));
}

}  // namespace
}  // namespace predump::restore
