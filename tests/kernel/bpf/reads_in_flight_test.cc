#include "src/kernel/bpf/reads_in_flight.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#include "src/base/errors.h"
#include "tests/kernel/bpf/test_child.h"

namespace predump::kernel {
namespace {

using testing::Shared;
using testing::TestChild;

constexpr int kManyVectors = 100;

struct Facts {
  std::atomic<int> go;
  std::atomic<int> stop;
  std::atomic<uint64_t> rounds;
  uint64_t buffer;
};

char g_buffer[kManyVectors][4096];
iovec g_vectors[kManyVectors];

// The mechanics are those of any read; a pipe whose reading end is O_DIRECT lets the test decide
// how long one lasts.
class DirectPipe {
 public:
  explicit DirectPipe(int flags = O_DIRECT) {
    EXPECT_EQ(pipe(fds_), 0);
    EXPECT_EQ(fcntl(fds_[0], F_SETFL, flags), 0);
  }
  DirectPipe(const DirectPipe&) = delete;
  DirectPipe& operator=(const DirectPipe&) = delete;
  ~DirectPipe() {
    close(fds_[0]);
    close(fds_[1]);
  }
  int reader() const { return fds_[0]; }
  void Feed() { EXPECT_EQ(write(fds_[1], "x", 1), 1); }

 private:
  int fds_[2];
};

ReadsInFlight MustCreate(pid_t pid) {
  auto reads = ReadsInFlight::Create(pid);
  EXPECT_TRUE(reads.ok()) << reads.status();
  if (!reads.ok()) std::abort();
  return *std::move(reads);
}

std::vector<InFlightRead> MustSnapshot(ReadsInFlight& reads) {
  auto snapshot = reads.Snapshot();
  EXPECT_TRUE(snapshot.ok()) << snapshot.status();
  return snapshot.ok() ? *std::move(snapshot) : std::vector<InFlightRead>{};
}

void WaitForGo(Facts& facts) {
  while (facts.go.load() == 0) sched_yield();
}

TEST(ReadsInFlight, ReadAppearsAndDisappears) {
  Shared<Facts> facts;
  DirectPipe pipe;
  TestChild child([&] {
    WaitForGo(*facts);
    syscall(SYS_read, pipe.reader(), g_buffer[0], 1234);
    while (true) syscall(SYS_pause);
  });
  ReadsInFlight reads = MustCreate(child.pid());
  EXPECT_TRUE(MustSnapshot(reads).empty());
  facts->go = 1;
  ASSERT_TRUE(TestChild::WaitUntilInside(child.pid(), SYS_read));
  const auto inside = MustSnapshot(reads);
  ASSERT_EQ(inside.size(), 1u);
  EXPECT_EQ(inside[0].tid, child.pid());
  EXPECT_EQ(inside[0].nr, SYS_read);
  EXPECT_EQ(inside[0].fd, pipe.reader());
  EXPECT_FALSE(inside[0].finished);
  EXPECT_FALSE(inside[0].seeded);
  ASSERT_EQ(inside[0].buffers.size(), 1u);
  // The child is a copy of this process: addresses agree.
  EXPECT_EQ(inside[0].buffers[0].start().value(), reinterpret_cast<uint64_t>(g_buffer[0]));
  EXPECT_EQ(inside[0].buffers[0].size().value(), 1234u);
  EXPECT_EQ(MustSnapshot(reads).size(), 1u);

  pipe.Feed();
  ASSERT_TRUE(TestChild::WaitUntilInside(child.pid(), SYS_pause));
  EXPECT_TRUE(MustSnapshot(reads).empty());
}

TEST(ReadsInFlight, ReadThatEndsDuringTheResetIsStillReported) {
  Shared<Facts> facts;
  DirectPipe pipe;
  TestChild child([&] {
    WaitForGo(*facts);
    syscall(SYS_read, pipe.reader(), g_buffer[0], 1234);
    while (true) syscall(SYS_pause);
  });
  ReadsInFlight reads = MustCreate(child.pid());
  facts->go = 1;
  ASSERT_TRUE(TestChild::WaitUntilInside(child.pid(), SYS_read));
  ASSERT_TRUE(reads.BeginReset().ok());
  pipe.Feed();
  ASSERT_TRUE(TestChild::WaitUntilInside(child.pid(), SYS_pause));
  const auto snapshot = MustSnapshot(reads);
  ASSERT_EQ(snapshot.size(), 1u);
  EXPECT_TRUE(snapshot[0].finished);
  ASSERT_EQ(snapshot[0].buffers.size(), 1u);
  EXPECT_EQ(snapshot[0].buffers[0].start().value(), reinterpret_cast<uint64_t>(g_buffer[0]));
  EXPECT_EQ(snapshot[0].buffers[0].size().value(), 1234u);
  EXPECT_TRUE(MustSnapshot(reads).empty());
}

class VectorReadTest : public ::testing::TestWithParam<int> {};

TEST_P(VectorReadTest, EveryBufferIsNamed) {
  Shared<Facts> facts;
  DirectPipe pipe;
  for (int i = 0; i < GetParam(); ++i) {
    g_vectors[i] = {g_buffer[i], 100 + static_cast<size_t>(i)};
  }
  TestChild child([&] {
    WaitForGo(*facts);
    syscall(SYS_readv, pipe.reader(), g_vectors, GetParam());
  });
  ReadsInFlight reads = MustCreate(child.pid());
  facts->go = 1;
  ASSERT_TRUE(TestChild::WaitUntilInside(child.pid(), SYS_readv));
  const auto snapshot = MustSnapshot(reads);
  ASSERT_EQ(snapshot.size(), 1u);
  EXPECT_EQ(snapshot[0].nr, SYS_readv);
  ASSERT_EQ(snapshot[0].buffers.size(), static_cast<size_t>(GetParam()));
  for (int i = 0; i < GetParam(); ++i) {
    const auto& range = snapshot[0].buffers[static_cast<size_t>(i)];
    EXPECT_EQ(range.start().value(), reinterpret_cast<uint64_t>(g_buffer[i]));
    EXPECT_EQ(range.size().value(), 100u + static_cast<unsigned>(i));
  }
}

// 64 fit into the kernel's record, more are read from the process.
INSTANTIATE_TEST_SUITE_P(Counts, VectorReadTest, ::testing::Values(1, 3, 64, 65, kManyVectors));

TEST(ReadsInFlight, FinishedReadWithTooManyBuffersIsAnErrorNotAGuess) {
  Shared<Facts> facts;
  DirectPipe pipe;
  for (int i = 0; i < kManyVectors; ++i) g_vectors[i] = {g_buffer[i], 100};
  TestChild child([&] {
    WaitForGo(*facts);
    syscall(SYS_readv, pipe.reader(), g_vectors, kManyVectors);
    while (true) syscall(SYS_pause);
  });
  ReadsInFlight reads = MustCreate(child.pid());
  facts->go = 1;
  ASSERT_TRUE(TestChild::WaitUntilInside(child.pid(), SYS_readv));
  ASSERT_TRUE(reads.BeginReset().ok());
  pipe.Feed();
  ASSERT_TRUE(TestChild::WaitUntilInside(child.pid(), SYS_pause));
  EXPECT_EQ(reads.Snapshot().status().code(), absl::StatusCode::kResourceExhausted);
  // The next reset is not touched by it.
  ASSERT_TRUE(reads.BeginReset().ok());
  EXPECT_TRUE(MustSnapshot(reads).empty());
}

TEST(ReadsInFlight, ReadsThatCopyAreLeftAlone) {
  Shared<Facts> facts;
  DirectPipe pipe(0);
  TestChild child([&] {
    WaitForGo(*facts);
    syscall(SYS_read, pipe.reader(), g_buffer[0], 1234);
  });
  ReadsInFlight reads = MustCreate(child.pid());
  facts->go = 1;
  ASSERT_TRUE(TestChild::WaitUntilInside(child.pid(), SYS_read));
  EXPECT_TRUE(MustSnapshot(reads).empty());
}

TEST(ReadsInFlight, ThreadAlreadyInsideIsFound) {
  DirectPipe pipe;
  TestChild child(
      [&] {
        syscall(SYS_pread64, -1, nullptr, 0, 0);  // another call before
        syscall(SYS_read, pipe.reader(), g_buffer[1], 777);
        while (true) syscall(SYS_pause);
      },
      TestChild::PidNamespace::kNew);
  ASSERT_TRUE(TestChild::WaitUntilInside(child.pid(), SYS_read));
  ReadsInFlight reads = MustCreate(child.pid());
  const auto inside = MustSnapshot(reads);
  ASSERT_EQ(inside.size(), 1u);
  EXPECT_TRUE(inside[0].seeded);
  EXPECT_EQ(inside[0].tid, child.pid());
  ASSERT_EQ(inside[0].buffers.size(), 1u);
  EXPECT_EQ(inside[0].buffers[0].start().value(), reinterpret_cast<uint64_t>(g_buffer[1]));
  EXPECT_EQ(inside[0].buffers[0].size().value(), 777u);

  ASSERT_TRUE(reads.BeginReset().ok());
  pipe.Feed();
  ASSERT_TRUE(TestChild::WaitUntilInside(child.pid(), SYS_pause));
  const auto finished = MustSnapshot(reads);
  ASSERT_EQ(finished.size(), 1u);
  EXPECT_TRUE(finished[0].finished);
  EXPECT_TRUE(finished[0].seeded);
  EXPECT_TRUE(MustSnapshot(reads).empty());
}

TEST(ReadsInFlight, SeededVectorReadIsResolved) {
  DirectPipe pipe;
  g_vectors[0] = {g_buffer[3], 11};
  g_vectors[1] = {g_buffer[4], 12};
  TestChild child([&] { syscall(SYS_readv, pipe.reader(), g_vectors, 2); });
  ASSERT_TRUE(TestChild::WaitUntilInside(child.pid(), SYS_readv));
  ReadsInFlight reads = MustCreate(child.pid());
  const auto inside = MustSnapshot(reads);
  ASSERT_EQ(inside.size(), 1u);
  ASSERT_EQ(inside[0].buffers.size(), 2u);
  EXPECT_EQ(inside[0].buffers[1].start().value(), reinterpret_cast<uint64_t>(g_buffer[4]));
  EXPECT_EQ(inside[0].buffers[1].size().value(), 12u);
}

TEST(ReadsInFlight, ThreadAsleepElsewhereIsNotSeeded) {
  TestChild child([] {
    while (true) syscall(SYS_pause);
  });
  ASSERT_TRUE(TestChild::WaitUntilInside(child.pid(), SYS_pause));
  ReadsInFlight reads = MustCreate(child.pid());
  EXPECT_TRUE(MustSnapshot(reads).empty());
}

TEST(ReadsInFlight, BadDescriptorsAndLengthsDoNoHarm) {
  Shared<Facts> facts;
  DirectPipe pipe;
  TestChild child([&] {
    WaitForGo(*facts);
    syscall(SYS_read, -1, g_buffer[0], 10);
    syscall(SYS_read, 1 << 20, g_buffer[0], 10);
    syscall(SYS_readv, pipe.reader(), g_vectors, -1);
    syscall(SYS_readv, pipe.reader(), 16, 3);
    syscall(SYS_read, pipe.reader(), g_buffer[0], -1L);
    syscall(SYS_read, pipe.reader(), g_buffer[0], 0xffffffffL);
  });
  ReadsInFlight reads = MustCreate(child.pid());
  ASSERT_TRUE(reads.BeginReset().ok());
  facts->go = 1;
  ASSERT_TRUE(TestChild::WaitUntilInside(child.pid(), SYS_read));
  const auto snapshot = reads.Snapshot();
  // readv from a bad address could not be resolved, and says so; it failed anyway.
  EXPECT_EQ(snapshot.status().code(), absl::StatusCode::kResourceExhausted);
  const auto inside = MustSnapshot(reads);
  ASSERT_EQ(inside.size(), 1u);
  ASSERT_EQ(inside[0].buffers.size(), 1u);
  EXPECT_EQ(inside[0].buffers[0].size().value(), 0x7ffff000u);  // what the kernel cuts it to
}

// A real file: reads of a megabyte, over and over; some are inside or end within each window.
TEST(ReadsInFlight, DirectFileReadsAreSeen) {
  constexpr size_t kBytes = 1 << 20;
  std::string path = "reads_in_flight_test.XXXXXX";
  const int file = mkostemp(path.data(), O_CLOEXEC);
  ASSERT_GE(file, 0);
  const std::string data(kBytes, 'd');
  ASSERT_EQ(write(file, data.data(), data.size()), static_cast<ssize_t>(kBytes));
  fsync(file);
  const int direct = open(path.c_str(), O_RDONLY | O_DIRECT);
  unlink(path.c_str());
  close(file);
  ASSERT_GE(direct, 0) << "the build directory's file system has no O_DIRECT";

  Shared<Facts> facts;
  TestChild child([&] {
    void* buffer =
        mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    facts->buffer = reinterpret_cast<uint64_t>(buffer);
    while (facts->stop.load() == 0) {
      if (syscall(SYS_pread64, direct, buffer, kBytes, 0) != static_cast<long>(kBytes)) _exit(9);
      facts->rounds.fetch_add(1);
    }
    while (true) syscall(SYS_pause);
  });
  ASSERT_TRUE(testing::Eventually([&] { return facts->rounds.load() > 3; }));
  ReadsInFlight reads = MustCreate(child.pid());
  int windows_with_a_whole_read = 0;
  auto total = std::chrono::nanoseconds::zero();
  constexpr int kWindows = 50;
  for (int i = 0; i < kWindows; ++i) {
    ASSERT_TRUE(reads.BeginReset().ok());
    const uint64_t first = facts->rounds.load();
    // Two ends within the window: at least one read lies in it from beginning to end.
    ASSERT_TRUE(testing::Eventually([&] { return facts->rounds.load() >= first + 2; }));
    const auto start = std::chrono::steady_clock::now();
    const auto snapshot = MustSnapshot(reads);
    total += std::chrono::steady_clock::now() - start;
    ASSERT_GE(snapshot.size(), 2u);
    ++windows_with_a_whole_read;
    for (const InFlightRead& read : snapshot) {
      ASSERT_EQ(read.nr, SYS_pread64);
      ASSERT_EQ(read.buffers.size(), 1u);
      ASSERT_EQ(read.buffers[0].start().value(), facts->buffer);
      ASSERT_EQ(read.buffers[0].size().value(), kBytes);
    }
  }
  EXPECT_EQ(windows_with_a_whole_read, kWindows);
  std::printf("Snapshot %.1f us\n",
              std::chrono::duration<double, std::micro>(total).count() / kWindows);
  facts->stop = 1;
  ASSERT_TRUE(TestChild::WaitUntilInside(child.pid(), SYS_pause));
  EXPECT_TRUE(MustSnapshot(reads).empty());
  close(direct);
}

TEST(ReadsInFlight, MissingProcessIsTargetExited) {
  TestChild child([] {});
  const pid_t pid = child.pid();
  child.Wait();
  EXPECT_TRUE(base::IsTargetExited(ReadsInFlight::Create(pid).status()));
}

}  // namespace
}  // namespace predump::kernel
