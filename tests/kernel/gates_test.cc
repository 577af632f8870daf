// The thin gates: wait, memory, pagemap, userfaultfd, splice.
#include <fcntl.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#include <array>
#include <atomic>
#include <cstring>
#include <numeric>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "src/base/clock.h"
#include "src/base/errors.h"
#include "src/base/mapped_region.h"
#include "src/kernel/pagemap_scan.h"
#include "src/kernel/process_memory.h"
#include "src/kernel/procfs.h"
#include "src/kernel/splice.h"
#include "src/kernel/userfaultfd.h"
#include "src/kernel/vdso_padding.h"
#include "src/kernel/wait.h"
#include "tests/kernel/child_process.h"

namespace predump::kernel {
namespace {

using base::AddressRange;
using base::ByteCount;
using base::RemoteAddress;

void PauseForEver() {
  for (;;) ::pause();
}

AddressRange RangeOf(const void* start, size_t bytes) {
  const uint64_t address = reinterpret_cast<uint64_t>(start);
  return AddressRange::FromOrdered(address, address + bytes);
}

TEST(WaitTest, DeadlineIsKeptAndExitIsReported) {
  const pid_t pid = ::fork();
  if (pid == 0) PauseForEver();
  const base::Stopwatch stopwatch;
  const auto none = Wait({.tid = pid, .timeout = absl::Milliseconds(20)});
  EXPECT_EQ(none.status().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_GE(stopwatch.Elapsed(), absl::Milliseconds(20));
  EXPECT_LT(stopwatch.Elapsed(), absl::Seconds(2));
  ::kill(pid, SIGKILL);
  const auto killed = Wait({.tid = pid, .timeout = absl::Seconds(5)});
  ASSERT_TRUE(killed.ok()) << killed.status();
  EXPECT_EQ(killed->kind, WaitEvent::Kind::kKilled);
  EXPECT_EQ(killed->code, SIGKILL);
  EXPECT_EQ(Wait({.tid = pid}).status().code(), absl::StatusCode::kNotFound);
}

TEST(WaitTest, BlockedSigchldOfTheCallerIsNotEaten) {
  sigset_t sigchld;
  sigset_t before;
  ::sigemptyset(&sigchld);
  ::sigaddset(&sigchld, SIGCHLD);
  ::sigprocmask(SIG_BLOCK, &sigchld, &before);
  const pid_t pid = ::fork();
  if (pid == 0) {
    SleepMs(5);
    ::_exit(3);
  }
  const auto event = Wait({.tid = pid, .timeout = absl::Seconds(5)});
  ASSERT_TRUE(event.ok()) << event.status();
  EXPECT_EQ(event->kind, WaitEvent::Kind::kExited);
  EXPECT_EQ(event->code, 3);
  const struct timespec soon = {1, 0};
  EXPECT_EQ(::sigtimedwait(&sigchld, nullptr, &soon), SIGCHLD);
  ::sigprocmask(SIG_SETMASK, &before, nullptr);
}

TEST(ProcessMemoryTest, ShortReadTellsUnreadableFromError) {
  auto region = base::MappedRegion::Anonymous(4 * 4096);
  ASSERT_TRUE(region.ok());
  for (size_t i = 0; i < region->size(); ++i) region->data()[i] = static_cast<std::byte>(i / 97);
  ::mprotect(region->data() + 2 * 4096, 4096, PROT_NONE);
  ChildProcess child(PauseForEver);
  const auto process = ProcessHandle::Open(child.pid());
  std::vector<std::byte> out(4 * 4096);
  const AddressRange all = RangeOf(region->data(), region->size());
  EXPECT_EQ(ReadProcessMemory(*process, {&all, 1}, out)->value(), 2u * 4096);
  EXPECT_EQ(memcmp(out.data(), region->data(), 2 * 4096), 0);
  EXPECT_EQ(ReadProcessMemoryExactly(*process, all.start(), out).code(),
            absl::StatusCode::kOutOfRange);
  EXPECT_EQ(ReadProcessMemory(*process, {&all, 1}, std::span(out).first(100)).status().code(),
            absl::StatusCode::kInvalidArgument);
  const auto memory = ProcessMemory::Open(*process, O_RDWR);
  ASSERT_TRUE(memory.ok()) << memory.status();
  EXPECT_EQ(memory->Read(all.start(), out)->value(), out.size()) << "PROT_NONE is read too";
  const std::byte other[] = {std::byte{7}};
  EXPECT_TRUE(memory->Write(all.start(), other).ok());
  EXPECT_EQ(memory->Read(all.start(), std::span(out).first(1))->value(), 1u);
  EXPECT_EQ(out[0], std::byte{7});
  child.Kill();
  EXPECT_TRUE(base::IsTargetExited(ReadProcessMemory(*process, {&all, 1}, out).status()));
  EXPECT_TRUE(base::IsTargetExited(memory->Read(all.start(), out).status()));
}

TEST(ProcessMemoryTest, ManyRangesInOrder) {
  auto region = base::MappedRegion::Anonymous(2000 * 64);
  ASSERT_TRUE(region.ok());
  for (size_t i = 0; i < region->size(); ++i) region->data()[i] = static_cast<std::byte>(i * 31);
  ChildProcess child(PauseForEver);
  const auto process = ProcessHandle::Open(child.pid());
  std::vector<AddressRange> ranges;
  for (size_t i = 0; i < 2000; ++i) ranges.push_back(RangeOf(region->data() + (1999 - i) * 64, 8));
  std::vector<std::byte> out(2000 * 8);
  ASSERT_EQ(ReadProcessMemory(*process, ranges, out)->value(), out.size());
  for (size_t i = 0; i < 2000; ++i) {
    ASSERT_EQ(memcmp(out.data() + i * 8, region->data() + (1999 - i) * 64, 8), 0) << i;
  }
}

class PagemapTest : public testing::Test {
 protected:
  static constexpr size_t kPages = 16;
  void SetUp() override {
    region_ = *base::MappedRegion::Anonymous(2 * kPages * 4096, true);
    self_.emplace(*ProcessHandle::Open(::getpid()));
    pagemap_.emplace(*PagemapFile::Open(*self_));
    uffd_.emplace(*Userfaultfd::CreateForSelf());
    ASSERT_TRUE(uffd_->EnableWriteProtectAsync().ok());
    first_half_ = RangeOf(region_.data(), kPages * 4096);
    whole_ = RangeOf(region_.data(), 2 * kPages * 4096);
    ASSERT_TRUE(uffd_->Register(first_half_).ok());
  }
  ScanRequest Reset(AddressRange range) const {
    return {.range = range,
            .flags = kScanWpMatching | kScanCheckWpAsync,
            .category_mask = kPageIsWritten,
            .return_mask = kPageIsWritten};
  }
  base::MappedRegion region_;
  std::optional<ProcessHandle> self_;
  std::optional<PagemapFile> pagemap_;
  std::optional<Userfaultfd> uffd_;
  AddressRange first_half_;
  AddressRange whole_;
};

TEST_F(PagemapTest, ScanFindsWhatWasWrittenSinceTheReset) {
  std::array<PageRegion, 64> regions;
  auto result = pagemap_->Scan(Reset(first_half_), regions);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->count, 1u);
  EXPECT_EQ(result->walk_end, first_half_.end());
  EXPECT_EQ(pagemap_->Scan(Reset(first_half_), regions)->count, 0u);
  region_.data()[3 * 4096] = std::byte{1};
  region_.data()[9 * 4096] = std::byte{1};
  result = pagemap_->Scan(Reset(first_half_), regions);
  ASSERT_EQ(result->count, 2u);
  EXPECT_EQ(regions[0].start, first_half_.start().value() + 3 * 4096);
  EXPECT_EQ(regions[1].end, first_half_.start().value() + 10 * 4096);
}

TEST_F(PagemapTest, FullOutputEndsTheWalkAndNothingIsLost) {
  std::array<PageRegion, 64> regions;
  ASSERT_TRUE(pagemap_->Scan(Reset(first_half_), regions).ok());
  for (size_t page = 0; page < kPages; page += 2) region_.data()[page * 4096] = std::byte{1};
  size_t found = 0;
  for (AddressRange rest = first_half_; !rest.empty();) {
    const auto result = pagemap_->Scan(Reset(rest), std::span(regions).first(3));
    ASSERT_TRUE(result.ok()) << result.status();
    ASSERT_GT(result->walk_end, rest.start());
    found += result->count;
    rest = AddressRange::FromOrdered(result->walk_end.value(), rest.end().value());
  }
  EXPECT_EQ(found, kPages / 2);
}

TEST_F(PagemapTest, UnregisteredMappingIsRefusedNotAnError) {
  std::array<PageRegion, 64> regions;
  const auto result = pagemap_->Scan(Reset(whole_), regions);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->refused_errno, EPERM);
  EXPECT_EQ(result->walk_end, whole_.start());
  EXPECT_EQ(result->count, 0u);
}

TEST_F(PagemapTest, PlainReadsAgree) {
  std::array<uint64_t, 2 * kPages> entries{};
  ASSERT_EQ(*pagemap_->ReadEntries(whole_, entries), entries.size());
  for (const uint64_t entry : entries) EXPECT_NE(entry & kPagemapPresent, 0u);
}

TEST_F(PagemapTest, UnregisterEndsTrackingAndRegisteringTwiceElsewhereIsBusy) {
  Userfaultfd other = *Userfaultfd::CreateForSelf();
  ASSERT_TRUE(other.EnableWriteProtectAsync().ok());
  EXPECT_EQ(base::ErrnoOf(other.Register(first_half_)), EBUSY);
  EXPECT_TRUE(uffd_->Unregister(first_half_).ok());
  EXPECT_TRUE(other.Register(first_half_).ok());
}

TEST(SpliceTest, MovesExactlyWhatItIsToldAcrossSeveralPipesFull) {
  const auto from = PipePair::Create(ByteCount(64 << 10));
  ASSERT_TRUE(from.ok()) << from.status();
  EXPECT_GE(from->capacity().value(), 64u << 10);
  int ends[2];
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
  std::vector<char> sent(32 << 10);
  std::iota(sent.begin(), sent.end(), '\0');
  ASSERT_EQ(::write(from->write_end(), sent.data(), sent.size()),
            static_cast<ssize_t>(sent.size()));
  const auto status = SpliceAll(from->read_end(), ends[0], ByteCount(sent.size() - 10), false);
  ASSERT_TRUE(status.ok()) << status;
  std::vector<char> got(sent.size());
  ASSERT_EQ(::recv(ends[1], got.data(), got.size(), 0), static_cast<ssize_t>(sent.size() - 10));
  EXPECT_EQ(memcmp(got.data(), sent.data(), sent.size() - 10), 0);
  ::close(ends[0]);
  ::close(ends[1]);
}

TEST(SpliceTest, PipeThatEndsEarlyIsDataLossNotAnEndlessLoop) {
  auto from = PipePair::Create(ByteCount(4096));
  const auto to = PipePair::Create(ByteCount(64 << 10));
  ASSERT_EQ(::write(from->write_end(), "abc", 3), 3);
  from->CloseWriteEnd();
  EXPECT_EQ(SpliceAll(from->read_end(), to->write_end(), ByteCount(10), false).code(),
            absl::StatusCode::kDataLoss);
}

TEST(SpliceTest, ClosedPeerIsUnavailable) {
  ::signal(SIGPIPE, SIG_IGN);
  auto from = PipePair::Create(ByteCount(4096));
  auto to = PipePair::Create(ByteCount(4096));
  to->TakeReadEnd();
  ASSERT_EQ(::write(from->write_end(), "abc", 3), 3);
  EXPECT_EQ(SpliceAll(from->read_end(), to->write_end(), ByteCount(3), false).code(),
            absl::StatusCode::kUnavailable);
  ::signal(SIGPIPE, SIG_DFL);
}

TEST(SpliceTest, VmspliceStopsAtAFullPipe) {
  const auto pipe = PipePair::Create(ByteCount(4096));
  auto page = base::MappedRegion::Anonymous(4096, true);
  const iovec memory = {page->data(), page->size()};
  size_t queued = 0;
  for (;;) {
    const auto step = Vmsplice(pipe->write_end(), {&memory, 1});
    ASSERT_TRUE(step.ok()) << step.status();
    if (step->value() == 0) break;
    queued += step->value();
  }
  EXPECT_EQ(queued, pipe->capacity().value());
}

TEST(VdsoPaddingTest, ImageEndOfGarbageIsAnError) {
  std::vector<std::byte> image(4096);
  EXPECT_EQ(VdsoImageEnd(image).status().code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(VdsoImageEnd({}).status().code(), absl::StatusCode::kDataLoss);
  // A 64-bit header whose section table lies outside.
  const unsigned char identity[] = {0x7f, 'E', 'L', 'F', 2};
  memcpy(image.data(), identity, sizeof identity);
  image[0x3c] = std::byte{5};
  image[0x2a] = std::byte{0xff};
  EXPECT_FALSE(VdsoImageEnd(std::span(image).first(64)).ok());
  image[4] = std::byte{1};
  EXPECT_EQ(VdsoImageEnd(image).status().code(), absl::StatusCode::kUnimplemented);
}

TEST(VdsoPaddingTest, FreePageIsFarFromEveryMapping) {
  const auto self = ProcessHandle::Open(::getpid());
  const auto maps = ReadMaps(*self);
  const auto page = FindRemotePage(*maps);
  ASSERT_TRUE(page.ok()) << page.status();
  EXPECT_EQ(page->value() % 4096, 0u);
  for (const MapsEntry& entry : *maps) {
    EXPECT_FALSE(entry.range.Overlaps(
        AddressRange::FromOrdered(page->value() - (256 << 10), page->value() + (256 << 10))));
  }
  std::vector<MapsEntry> full(1);
  full[0].range = AddressRange::FromOrdered(0, 0x7ffffffff000);
  EXPECT_EQ(FindRemotePage(full).status().code(), absl::StatusCode::kResourceExhausted);
}

}  // namespace
}  // namespace predump::kernel
