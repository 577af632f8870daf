// What every page source promises, run over each of them.
#include "src/pagemap/page_source.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "src/base/errors.h"
#include "src/kernel/process_memory.h"
#include "src/kernel/procfs.h"
#include "src/kernel/procfs_maps.h"
#include "src/kernel/setup_injection.h"
#include "src/kernel/vdso_padding.h"
#include "src/pagemap/helper_source.h"
#include "src/pagemap/readv_source.h"
#include "tests/pagemap/memory_actor.h"
#include "tests/pagemap/sources.h"
#include "tests/pagemap/swap.h"

namespace predump::pagemap {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

constexpr uint64_t kPage = 4096;
constexpr uint64_t kBase = 0x700000000000;
constexpr uint64_t kMiB = 1 << 20;

Extent Range(uint64_t start, uint64_t bytes) {
  return base::AddressRange::FromOrdered(start, start + bytes);
}

// All that was fetched and pushed, in order.
struct Taken {
  std::vector<Extent> fetched;
  std::vector<Extent> vanished;
  std::vector<std::byte> bytes;
};

class PageSourceTest : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    if (const std::string why = WhyNoSource(GetParam()); !why.empty()) GTEST_SKIP() << why;
    ::signal(SIGPIPE, SIG_IGN);
    source_ = MakeSource(GetParam(), actor_);
    ASSERT_NE(source_, nullptr);
  }
  void TearDown() override {
    if (source_ == nullptr) return;
    EXPECT_TRUE(source_->Finish().ok());
  }

  // Fetches all of `wanted`, pushing to `out`.
  Taken TakeAll(std::vector<Extent> wanted, int out) {
    Taken taken;
    while (!wanted.empty()) {
      auto result = source_->Fetch(wanted);
      EXPECT_TRUE(result.ok()) << result.status();
      if (!result.ok() || result->consumed == base::PageCount(0)) {
        ADD_FAILURE() << "no progress";
        break;
      }
      uint64_t pages = 0;
      for (const Extent& e : result->fetched) pages += e.pages().value();
      EXPECT_LE(pages, source_->max_pages().value());
      for (const Extent& e : result->vanished) pages += e.pages().value();
      EXPECT_EQ(pages, result->consumed.value());
      taken.fetched.insert(taken.fetched.end(), result->fetched.begin(), result->fetched.end());
      taken.vanished.insert(taken.vanished.end(), result->vanished.begin(), result->vanished.end());
      const absl::Status pushed = source_->PushTo(out);
      EXPECT_TRUE(pushed.ok()) << pushed;
      for (uint64_t left = result->consumed.value() * kPage; left > 0;) {
        const uint64_t part = std::min(left, wanted.front().size().value());
        wanted.front() =
            Range(wanted.front().start().value() + part, wanted.front().size().value() - part);
        if (wanted.front().empty()) wanted.erase(wanted.begin());
        left -= part;
      }
    }
    return taken;
  }

  // The same into a descriptor pair whose other end a thread reads.
  Taken TakeThrough(std::vector<Extent> wanted, int in, base::UniqueFd out) {
    std::vector<std::byte> bytes;
    std::thread reader([&] {
      std::vector<std::byte> chunk(1 << 16);
      ssize_t n = 0;
      while ((n = ::read(in, chunk.data(), chunk.size())) > 0) {
        bytes.insert(bytes.end(), chunk.begin(), chunk.begin() + n);
      }
    });
    Taken taken = TakeAll(std::move(wanted), out.get());
    out = base::UniqueFd();
    reader.join();
    taken.bytes = std::move(bytes);
    return taken;
  }
  Taken TakeThroughPipe(std::vector<Extent> wanted) {
    int ends[2];
    EXPECT_EQ(::pipe2(ends, O_CLOEXEC), 0);
    const base::UniqueFd in(ends[0]);
    return TakeThrough(std::move(wanted), in.get(), base::UniqueFd(ends[1]));
  }

  std::vector<std::byte> Memory(const std::vector<Extent>& extents) {
    const auto memory = kernel::ProcessMemory::Open(actor_.process(), O_RDONLY);
    EXPECT_TRUE(memory.ok());
    std::vector<std::byte> all;
    for (const Extent& extent : extents) {
      std::vector<std::byte> bytes(extent.size().value());
      EXPECT_TRUE(memory->ReadExactly(extent.start(), bytes).ok());
      all.insert(all.end(), bytes.begin(), bytes.end());
    }
    return all;
  }

  MemoryActor actor_;
  std::unique_ptr<PageSource> source_;
};

TEST_P(PageSourceTest, IsByteExactThroughAPipe) {
  actor_.Map(kBase, 4 * kMiB);
  actor_.Write(kBase, 4 * kMiB, 7);
  const std::vector<Extent> wanted = {Range(kBase, kPage), Range(kBase + 5 * kPage, 3 * kPage),
                                      Range(kBase + kMiB, 3 * kMiB)};
  const Taken taken = TakeThroughPipe(wanted);
  EXPECT_EQ(taken.bytes, Memory(wanted));
  EXPECT_THAT(taken.vanished, IsEmpty());
}

TEST_P(PageSourceTest, IsByteExactThroughASocket) {
  actor_.Map(kBase, 4 * kMiB);
  actor_.Write(kBase, 4 * kMiB, 7);
  int ends[2];
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
  const base::UniqueFd in(ends[0]);
  const Taken taken = TakeThrough({Range(kBase, 4 * kMiB)}, in.get(), base::UniqueFd(ends[1]));
  EXPECT_EQ(taken.bytes, Memory({Range(kBase, 4 * kMiB)}));
}

TEST_P(PageSourceTest, IsByteExactThroughASocketThatDoesNotBlock) {
  actor_.Map(kBase, 2 * kMiB);
  actor_.Write(kBase, 2 * kMiB, 7);
  int ends[2];
  ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
  ASSERT_EQ(::fcntl(ends[1], F_SETFL, O_NONBLOCK), 0);
  const base::UniqueFd in(ends[0]);
  const Taken taken = TakeThrough({Range(kBase, 2 * kMiB)}, in.get(), base::UniqueFd(ends[1]));
  EXPECT_EQ(taken.bytes, Memory({Range(kBase, 2 * kMiB)}));
}

TEST_P(PageSourceTest, IsByteExactThroughAFile) {
  actor_.Map(kBase, 3 * kMiB);
  actor_.Write(kBase, 3 * kMiB, 9);
  const base::UniqueFd file(::memfd_create("pages", MFD_CLOEXEC));
  TakeAll({Range(kBase, 3 * kMiB)}, file.get());
  std::vector<std::byte> bytes(3 * kMiB);
  ASSERT_EQ(::pread(file.get(), bytes.data(), bytes.size(), 0), static_cast<ssize_t>(3 * kMiB));
  EXPECT_EQ(bytes, Memory({Range(kBase, 3 * kMiB)}));
}

TEST_P(PageSourceTest, TakesManySmallExtentsInOrder) {
  actor_.Map(kBase, 8 * kMiB);
  actor_.Write(kBase, 8 * kMiB, 3);
  std::vector<Extent> wanted;
  for (uint64_t i = 0; i < 1000; ++i) wanted.push_back(Range(kBase + 2 * i * kPage, kPage));
  const Taken taken = TakeThroughPipe(wanted);
  EXPECT_EQ(taken.fetched, wanted);
  EXPECT_EQ(taken.bytes, Memory(wanted));
}

// DESIGN 12.5.
TEST_P(PageSourceTest, MemoryWithoutReadPermissionIsReadAllTheSame) {
  actor_.Map(kBase, 64 * kPage);
  actor_.Write(kBase, 64 * kPage, 5);
  actor_.Protect(kBase + 10 * kPage, 4 * kPage, PROT_NONE);
  actor_.Protect(kBase + 30 * kPage, 1 * kPage, PROT_NONE);
  const Taken taken = TakeThroughPipe({Range(kBase, 64 * kPage)});
  EXPECT_THAT(taken.vanished, IsEmpty());
  EXPECT_EQ(taken.bytes, Memory({Range(kBase, 64 * kPage)}));
}

TEST_P(PageSourceTest, VanishedPagesAreReportedAndTheRestIsExact) {
  actor_.Map(kBase, 64 * kPage);
  actor_.Write(kBase, 64 * kPage, 5);
  actor_.Unmap(kBase, 2 * kPage);
  actor_.Unmap(kBase + 20 * kPage, 5 * kPage);
  actor_.Unmap(kBase + 60 * kPage, 4 * kPage);
  const Taken taken =
      TakeThroughPipe({Range(kBase, 30 * kPage), Range(kBase + 40 * kPage, 24 * kPage)});
  EXPECT_THAT(taken.vanished,
              ElementsAre(Range(kBase, 2 * kPage), Range(kBase + 20 * kPage, 5 * kPage),
                          Range(kBase + 60 * kPage, 4 * kPage)));
  EXPECT_EQ(taken.bytes,
            Memory({Range(kBase + 2 * kPage, 18 * kPage), Range(kBase + 25 * kPage, 5 * kPage),
                    Range(kBase + 40 * kPage, 20 * kPage)}));
}

TEST_P(PageSourceTest, SkipsAGibibyteThatVanishedWithoutLookingAtEachPage) {
  const uint64_t vanished = 1ull << 30;
  std::vector<Extent> wanted = {Range(kBase, vanished)};
  size_t fetches = 0;
  while (!wanted[0].empty()) {
    const auto result = source_->Fetch(wanted);
    ASSERT_TRUE(result.ok()) << result.status();
    ASSERT_GT(result->consumed.value(), 0u);
    EXPECT_THAT(result->fetched, IsEmpty());
    const uint64_t bytes = result->consumed.value() * kPage;
    wanted[0] = Range(wanted[0].start().value() + bytes, wanted[0].size().value() - bytes);
    ++fetches;
  }
  EXPECT_EQ(fetches, 1u);
}

// Unmaps a part of the range and maps and fills it again.
int64_t MapAnew(const MemoryActor::Arguments& a) {
  const uint64_t at = kBase + a[5] * 7 % 200 * kPage;
  ::munmap(reinterpret_cast<void*>(at), 56 * kPage);
  ::mmap(reinterpret_cast<void*>(at), 56 * kPage, PROT_READ | PROT_WRITE,
         MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
  for (uint64_t i = 0; i < 56; ++i) {
    *reinterpret_cast<volatile uint64_t*>(at + i * kPage) = a[5];
  }
  return 0;
}

TEST_P(PageSourceTest, MemoryThatIsUnmappedWhileItIsTakenDoesNoHarm) {
  actor_.Map(kBase, 256 * kPage);
  actor_.Write(kBase, 256 * kPage, 1);
  actor_.StartLoop(MapAnew);
  for (int i = 0; i < 50; ++i) {
    const uint64_t before = actor_.loops_done();
    const Taken taken = TakeThroughPipe({Range(kBase, 256 * kPage)});
    uint64_t bytes = 0;
    for (const Extent& extent : taken.fetched) bytes += extent.size().value();
    EXPECT_EQ(taken.bytes.size(), bytes);
    while (actor_.loops_done() == before) {
    }
  }
  actor_.StopLoop();
  const Taken taken = TakeThroughPipe({Range(kBase, 256 * kPage)});
  EXPECT_EQ(taken.bytes, Memory({Range(kBase, 256 * kPage)}));
}

// What is in swap is brought back, as by a read of the process itself.
TEST_P(PageSourceTest, SwappedPagesAreTakenUnderSwap) {
  if (!HasSwap()) GTEST_SKIP() << "this machine has no swap";
  actor_.Map(kBase, 64 * kPage);
  actor_.Write(kBase, 64 * kPage, 5);
  ASSERT_TRUE(SwapOut(actor_, Range(kBase, 64 * kPage)));
  const Taken taken = TakeThroughPipe({Range(kBase, 64 * kPage)});
  EXPECT_THAT(taken.vanished, IsEmpty());
  EXPECT_EQ(taken.bytes, Memory({Range(kBase, 64 * kPage)}));
}

// The move is called off then (ProcessWatch); until it is noticed, nothing of the new program may
// be taken for the old one's. A helper still has the old one's memory.
TEST_P(PageSourceTest, AfterExecTheOldMemoryIsGone) {
  actor_.Map(kBase, 4 * kPage);
  actor_.Write(kBase, 4 * kPage, 1);
  actor_.StartLoop([](const MemoryActor::Arguments&) -> int64_t {
    return ::execl("/bin/sleep", "sleep", "1000", nullptr);
  });
  const auto comm = [&] { return kernel::ReadComm(actor_.process()); };
  while (comm().value_or("sleep") != "sleep") std::this_thread::yield();
  const std::vector<Extent> wanted = {Range(kBase, 4 * kPage)};
  const auto result = source_->Fetch(wanted);
  if (GetParam() == "helper") {
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_THAT(result->fetched, ElementsAre(wanted[0]));
  } else {
    EXPECT_TRUE(base::IsTargetExited(result.status())) << result.status();
  }
}

TEST_P(PageSourceTest, AnExitedProcessIsReportedAsSuch) {
  actor_.Map(kBase, 4 * kPage);
  actor_.Write(kBase, 4 * kPage, 1);
  actor_.Kill();
  const std::vector<Extent> wanted = {Range(kBase, 4 * kPage)};
  EXPECT_TRUE(base::IsTargetExited(source_->Fetch(wanted).status()));
}

TEST_P(PageSourceTest, FetchingTwiceWithoutPushingIsRefused) {
  actor_.Map(kBase, 4 * kPage);
  actor_.Write(kBase, 4 * kPage, 1);
  const std::vector<Extent> wanted = {Range(kBase, 4 * kPage)};
  ASSERT_TRUE(source_->Fetch(wanted).ok());
  EXPECT_EQ(source_->Fetch(wanted).status().code(), absl::StatusCode::kFailedPrecondition);
}

TEST_P(PageSourceTest, AClosedPeerIsAnError) {
  actor_.Map(kBase, 4 * kPage);
  actor_.Write(kBase, 4 * kPage, 1);
  int ends[2];
  ASSERT_EQ(::pipe2(ends, O_CLOEXEC), 0);
  const base::UniqueFd out(ends[1]);
  ::close(ends[0]);
  const std::vector<Extent> wanted = {Range(kBase, 4 * kPage)};
  ASSERT_TRUE(source_->Fetch(wanted).ok());
  EXPECT_EQ(source_->PushTo(out.get()).code(), absl::StatusCode::kUnavailable);
}

// CRIU's page server wants a header before each run of pages.
TEST_P(PageSourceTest, WhatWasFetchedMayBePushedInParts) {
  actor_.Map(kBase, 8 * kPage);
  for (uint64_t page = 0; page < 8; ++page) actor_.Write(kBase + page * kPage, kPage, page + 1);
  actor_.Protect(kBase + 6 * kPage, kPage, PROT_NONE);
  const std::vector<Extent> all = {Range(kBase, 2 * kPage), Range(kBase + 3 * kPage, kPage),
                                   Range(kBase + 5 * kPage, 3 * kPage)};
  std::vector<Extent> wanted = all;
  int ends[2];
  ASSERT_EQ(::pipe2(ends, O_CLOEXEC), 0);
  const base::UniqueFd in(ends[0]);
  const base::UniqueFd out(ends[1]);
  while (!wanted.empty()) {
    const auto result = source_->Fetch(wanted);
    ASSERT_TRUE(result.ok()) << result.status();
    ASSERT_TRUE(result->vanished.empty());
    uint64_t left = base::ToBytes(result->consumed).value();
    ASSERT_EQ(source_->held().value(), left);
    while (left > 0) {
      const uint64_t part = std::min(left, wanted.front().size().value());
      ASSERT_TRUE(source_->Push(out.get(), base::ByteCount(part)).ok());
      left -= part;
      EXPECT_EQ(source_->held().value(), left);
      wanted.front() =
          Range(wanted.front().start().value() + part, wanted.front().size().value() - part);
      if (wanted.front().empty()) wanted.erase(wanted.begin());
    }
  }
  EXPECT_EQ(source_->Push(out.get(), base::ByteCount(kPage)).code(),
            absl::StatusCode::kFailedPrecondition);
  std::vector<std::byte> got(6 * kPage);
  ASSERT_EQ(::read(in.get(), got.data(), got.size()), static_cast<ssize_t>(got.size()));
  EXPECT_EQ(got, Memory(all));
}

TEST_P(PageSourceTest, NothingWantedIsNothingFetched) {
  const auto result = source_->Fetch({});
  ASSERT_TRUE(result.ok());
  EXPECT_EQ(result->consumed.value(), 0u);
}

TEST_P(PageSourceTest, FinishMayBeCalledTwice) {
  EXPECT_TRUE(source_->Finish().ok());
  EXPECT_TRUE(source_->Finish().ok());
  actor_.Map(kBase, kPage);  // the process lives on
}

INSTANTIATE_TEST_SUITE_P(Sources, PageSourceTest,
                         testing::Values("readv", "helper", "process_vmsplice"),
                         [](const auto& param_info) { return param_info.param; });

// Somebody kills the helper, seen in ps(1), at any moment: before, between and during its calls.
TEST(HelperSourceTest, GoesOnByCopyingWhenItsHelperIsKilled) {
  MemoryActor actor;
  actor.Map(kBase, 8 * kMiB);
  actor.Write(kBase, 8 * kMiB, 7);
  const auto memory = kernel::ProcessMemory::Open(actor.process(), O_RDONLY);
  std::vector<std::byte> expected(8 * kMiB);
  ASSERT_TRUE(memory->ReadExactly(base::RemoteAddress(kBase), expected).ok());
  int killed_before_the_end = 0;
  for (int i = 0; i < 40; ++i) {
    auto setup = kernel::InjectSetup(actor.process(), {.userfaultfd = false});
    ASSERT_TRUE(setup.ok() && setup->helper.has_value()) << setup.status();
    const pid_t helper = setup->helper->tid();
    auto source = HelperSource::Create(actor.process(), *std::move(setup->helper));
    ASSERT_TRUE(source.ok()) << source.status();
    const base::UniqueFd file(::memfd_create("pages", MFD_CLOEXEC));
    std::thread killer([&] {
      ::usleep(static_cast<useconds_t>(i * 40));
      ::kill(helper, SIGKILL);
    });
    absl::Status status;
    for (uint64_t done = 0; done < 8 * kMiB && status.ok();) {
      const std::vector<Extent> wanted = {Range(kBase + done, 8 * kMiB - done)};
      const auto result = (*source)->Fetch(wanted);
      status = result.status();
      if (!status.ok()) break;
      done += base::ToBytes(result->consumed).value();
      if (i == 0) killer.join();  // between the fetch and the push
      if (i == 0) killer = std::thread([] {});
      status = (*source)->PushTo(file.get());
    }
    killer.join();
    ASSERT_TRUE(status.ok()) << i << ": " << status;
    killed_before_the_end += (*source)->name() == "readv";
    std::vector<std::byte> bytes(8 * kMiB);
    ASSERT_EQ(::pread(file.get(), bytes.data(), bytes.size(), 0), static_cast<ssize_t>(8 * kMiB));
    ASSERT_EQ(memcmp(bytes.data(), expected.data(), bytes.size()), 0) << i;
    EXPECT_TRUE((*source)->Finish().ok());
    // Nothing is left in the process, killed helper or not.
    const auto maps = kernel::ReadMaps(actor.process());
    const auto padding = kernel::FindVdsoPadding(*maps, *memory);
    ASSERT_TRUE(padding.ok()) << padding.status();
    std::vector<std::byte> left(padding->size().value());
    ASSERT_TRUE(memory->ReadExactly(padding->start(), left).ok());
    EXPECT_EQ(left, std::vector<std::byte>(left.size())) << i;
  }
  EXPECT_GT(killed_before_the_end, 0);
}

class ReadvSourceTest : public testing::Test {
 protected:
  MemoryActor actor_;
};

// DESIGN 6: what was pushed stays in the pipe or socket, unread, while the buffer is refilled.
TEST_F(ReadvSourceTest, RefillingTheBufferDoesNotChangeWhatWasPushed) {
  actor_.Map(kBase, 32 * kPage);
  actor_.Write(kBase, 16 * kPage, 1);
  actor_.Write(kBase + 16 * kPage, 16 * kPage, 2);
  auto source = ReadvSource::Create(actor_.process(), {.buffer = base::ByteCount(64 << 10)});
  ASSERT_TRUE(source.ok());
  for (const bool socket : {false, true}) {
    int ends[2];
    if (socket) {
      ASSERT_EQ(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
    } else {
      ASSERT_EQ(::pipe2(ends, O_CLOEXEC), 0);
      std::swap(ends[0], ends[1]);
    }
    const base::UniqueFd out(ends[0]);
    const base::UniqueFd in(ends[1]);
    const std::vector<Extent> first = {Range(kBase, 16 * kPage)};
    const std::vector<Extent> second = {Range(kBase + 16 * kPage, 16 * kPage)};
    ASSERT_TRUE((*source)->Fetch(first).ok());
    ASSERT_TRUE((*source)->PushTo(out.get()).ok());
    ASSERT_TRUE((*source)->Fetch(second).ok());  // refills the buffer
    std::vector<uint64_t> got(16 * kPage / sizeof(uint64_t));
    size_t bytes = 0;
    while (bytes < 16 * kPage) {
      const ssize_t n =
          ::read(in.get(), reinterpret_cast<char*>(got.data()) + bytes, 16 * kPage - bytes);
      ASSERT_GT(n, 0);
      bytes += static_cast<size_t>(n);
    }
    for (size_t page = 0; page < 16; ++page) EXPECT_EQ(got[page * 512 + 511], 1u) << page;
    const base::UniqueFd null(::open("/dev/null", O_WRONLY | O_CLOEXEC));
    ASSERT_TRUE((*source)->PushTo(null.get()).ok());
  }
}

TEST_F(ReadvSourceTest, BufferSizesOutOfBoundsAreRefused) {
  for (const uint64_t bytes : {uint64_t{4096}, 8 * kMiB, 100 * kPage + 1}) {
    EXPECT_EQ(
        ReadvSource::Create(actor_.process(), {.buffer = base::ByteCount(bytes)}).status().code(),
        absl::StatusCode::kInvalidArgument);
  }
}

}  // namespace
}  // namespace predump::pagemap
