// The gate of process_vmsplice(2), on kernels that have it; the process is our own.
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <optional>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "src/base/errors.h"
#include "src/base/mapped_region.h"
#include "src/kernel/capabilities.h"
#include "src/kernel/process.h"
#include "src/kernel/splice.h"

namespace predump::kernel {
namespace {

constexpr uint64_t kPage = 4096;
constexpr uint64_t kPages = 4096;

class ProcessVmspliceTest : public testing::Test {
 protected:
  void SetUp() override {
    const auto probed = Probe(Capability::kProcessVmsplice);
    ASSERT_TRUE(probed.ok()) << probed.status();
    if (!probed->available)
      GTEST_SKIP() << "this kernel lacks " << probed->name << ": " << probed->reason;
    auto memory = base::MappedRegion::Anonymous(kPages * kPage, /*populate=*/true);
    auto self = ProcessHandle::Open(::getpid());
    auto pipe = PipePair::Create(base::ByteCount(64 * kPage));
    ASSERT_TRUE(memory.ok() && self.ok() && pipe.ok());
    memory_ = *std::move(memory);
    self_ = *std::move(self);
    pipe_ = *std::move(pipe);
    for (uint64_t i = 0; i < kPages; ++i) memory_.bytes()[i * kPage] = std::byte(i % 251);
  }

  base::AddressRange Pages(uint64_t first, uint64_t count) const {
    const uint64_t start = reinterpret_cast<uint64_t>(memory_.data()) + first * kPage;
    return base::AddressRange::FromOrdered(start, start + count * kPage);
  }
  // Queues `ranges`; how many pages it were.
  uint64_t Queue(const std::vector<base::AddressRange>& ranges) {
    const auto queued = ProcessVmsplice(*self_, pipe_->write_end(), ranges);
    EXPECT_TRUE(queued.ok()) << queued.status();
    return queued.ok() ? queued->value() / kPage : 0;
  }

  base::MappedRegion memory_;
  std::optional<ProcessHandle> self_;
  std::optional<PipePair> pipe_;
};

TEST_F(ProcessVmspliceTest, EndsWhereThePipeIsFullAndThenQueuesNothing) {
  EXPECT_EQ(Queue({Pages(0, 100)}), 64u);
  EXPECT_EQ(Queue({Pages(64, 36)}), 0u);
  char page[kPage];
  for (uint64_t i = 0; i < 64; ++i) {
    ASSERT_EQ(::read(pipe_->read_end(), page, kPage), static_cast<ssize_t>(kPage));
    EXPECT_EQ(std::byte(page[0]), std::byte(i % 251));
  }
  EXPECT_EQ(Queue({Pages(64, 36)}), 36u);
}

TEST_F(ProcessVmspliceTest, EndsBeforeAPageThatCannotBeHad) {
  ASSERT_EQ(::munmap(memory_.data() + 5 * kPage, kPage), 0);
  ASSERT_EQ(::mprotect(memory_.data() + 10 * kPage, kPage, PROT_NONE), 0);
  EXPECT_EQ(Queue({Pages(0, 8)}), 5u);
  EXPECT_EQ(Queue({Pages(5, 3)}), 0u);
  EXPECT_EQ(Queue({Pages(6, 2), Pages(8, 4), Pages(20, 2)}), 4u);
  EXPECT_EQ(Queue({Pages(10, 1), Pages(11, 1)}), 0u);
}

TEST_F(ProcessVmspliceTest, TakesMoreRangesThanOneCallDoes) {
  auto pipe = PipePair::Create(base::ByteCount(2048 * kPage));
  ASSERT_TRUE(pipe.ok());
  if (pipe->capacity().value() < 2048 * kPage) GTEST_SKIP() << "pipes of 8 MiB are not allowed";
  pipe_ = *std::move(pipe);
  std::vector<base::AddressRange> ranges;
  for (uint64_t i = 0; i < 2000; ++i) ranges.push_back(Pages(2 * i, 1));
  EXPECT_EQ(Queue(ranges), 2000u);
}

TEST_F(ProcessVmspliceTest, AnExitedProcessIsReportedAsSuch) {
  const pid_t pid = ::fork();
  if (pid == 0) {
    for (;;) ::pause();
  }
  auto child = ProcessHandle::Open(pid);
  ASSERT_TRUE(child.ok());
  ASSERT_EQ(::kill(pid, SIGKILL), 0);
  ASSERT_TRUE(*child->WaitForExit(absl::Seconds(10)));
  const std::vector<base::AddressRange> ranges = {Pages(0, 1)};
  EXPECT_TRUE(base::IsTargetExited(ProcessVmsplice(*child, pipe_->write_end(), ranges).status()));
  ASSERT_EQ(::waitpid(pid, nullptr, 0), pid);
}

}  // namespace
}  // namespace predump::kernel
