// DESIGN 5: an O_DIRECT read that is under way while its buffer is reset and copied. The device
// writes through pages pinned before the reset, which no page-table mark shows.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <fstream>
#include <memory>
#include <string>
#include <utility>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "src/pagemap/bpf_adapters.h"
#include "src/pagemap/readv_source.h"
#include "src/pagemap/uffd_wp_tracker.h"
#include "tests/pagemap/memory_actor.h"
#include "tests/pagemap/mirror.h"
#include "tests/support/temp_dir.h"

namespace predump::pagemap {
namespace {

using ::testing::IsEmpty;

constexpr uint64_t kBase = 0x700000000000;
constexpr uint64_t kBufferBytes = 1 << 20;
constexpr uint64_t kFileBlocks = 16;

// Reads one block of the file per step, a different one each time.
int64_t ReadBlock(const MemoryActor::Arguments& a) {
  return ::pread(static_cast<int>(a[0]), reinterpret_cast<void*>(kBase), kBufferBytes,
                 static_cast<off_t>(a[5] * 7 % kFileBlocks * kBufferBytes));
}

class DirectIoTest : public testing::Test {
 protected:
  void SetUp() override {
    const std::string path = temp_.File("blocks");
    {
      std::ofstream file(path, std::ios::binary);
      for (uint64_t i = 0; i < kFileBlocks; ++i) {
        file << std::string(kBufferBytes, static_cast<char>('a' + i));
      }
    }
    fd_ = ::open(path.c_str(), O_RDONLY | O_DIRECT);
    ASSERT_GE(fd_, 0) << "the file system of " << path << " has no direct I/O";
    ::fsync(fd_);
    actor_ = std::make_unique<MemoryActor>();  // inherits the descriptor
    ::close(fd_);
    actor_->Map(kBase, kBufferBytes);
    actor_->Write(kBase, kBufferBytes, 1);
  }

  // Rounds while reads are under way; returns how many freezes found stale pages at the target.
  int StaleFreezes(InFlightReads* reads, int freezes) {
    UffdWpOptions options;
    options.reads = reads;
    auto tracker = UffdWpTracker::Create(actor_->process(), UserfaultfdOf(*actor_), options);
    auto source = ReadvSource::Create(actor_->process());
    EXPECT_TRUE(tracker.ok() && source.ok());
    Mover mover(*actor_, **tracker, **source);
    int stale = 0;
    for (int i = 0; i < freezes; ++i) {
      actor_->StartLoop(ReadBlock, {static_cast<uint64_t>(fd_)});
      for (int round = 0; round < 3; ++round) mover.ScanAndSend();
      if (!mover.Finish().empty()) ++stale;
      actor_->StopLoop();
    }
    return stale;
  }

  test_support::TempDir temp_ = *test_support::TempDir::Create();
  std::unique_ptr<MemoryActor> actor_;
  int fd_ = -1;
};

// First without following them, until the hazard has shown: how soon a read meets a scan depends on
// the disk. Then with it, as many freezes, or the silence would prove nothing.
TEST_F(DirectIoTest, PagesAreStaleOnlyWhereReadsAreNotFollowed) {
  constexpr int kFreezes = 150;
  int batches = 0;
  int stale = 0;
  for (; batches < 20 && stale == 0; ++batches) stale = StaleFreezes(nullptr, kFreezes);
  ASSERT_GT(stale, 0);
  auto reads = kernel::ReadsInFlight::Create(actor_->pid());
  ASSERT_TRUE(reads.ok()) << reads.status();
  BpfInFlightReads adapter(*std::move(reads));
  EXPECT_EQ(StaleFreezes(&adapter, batches * kFreezes), 0);
}

}  // namespace
}  // namespace predump::pagemap
