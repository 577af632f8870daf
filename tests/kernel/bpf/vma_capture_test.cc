#include "src/kernel/bpf/vma_capture.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <map>
#include <sstream>
#include <string>

#include "src/base/errors.h"
#include "src/kernel/procfs_maps.h"
#include "tests/kernel/bpf/test_child.h"

namespace predump::kernel {
namespace {

using testing::Shared;
using testing::TestChild;

constexpr size_t kPage = 4096;
constexpr long kSysMseal = 462;
constexpr int kMapDroppable = 0x08;

struct Facts {
  std::atomic<int> ready;
  uint64_t address[8];
  int mappings;
};

std::string ReadText(pid_t pid, const char* name) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/" + name);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

char* Map(size_t bytes, int prot = PROT_READ | PROT_WRITE, int flags = MAP_PRIVATE | MAP_ANONYMOUS,
          int fd = -1, off_t offset = 0) {
  void* address = mmap(nullptr, bytes, prot, flags, fd, offset);
  return address == MAP_FAILED ? nullptr : static_cast<char*>(address);
}

void Advise(int advice) { madvise(Map(2 * kPage), 2 * kPage, advice); }

// One of each kind this kernel lets a process make.
void MakeMappings(Facts& facts) {
  for (const int advice : {MADV_DONTFORK, MADV_WIPEONFORK, MADV_DONTDUMP, MADV_HUGEPAGE,
                           MADV_NOHUGEPAGE, MADV_MERGEABLE, MADV_SEQUENTIAL, MADV_RANDOM}) {
    Advise(advice);
  }
  Map(kPage, PROT_NONE);
  Map(kPage, PROT_READ | PROT_EXEC);
  Map(kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE);
  Map(kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN);
  Map(kPage, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS);
  Map(kPage, PROT_READ | PROT_WRITE, kMapDroppable | MAP_ANONYMOUS);
  mlock(Map(kPage), kPage);
  mlock2(Map(kPage), kPage, MLOCK_ONFAULT);
  if (char* sealed = Map(kPage)) syscall(kSysMseal, sealed, kPage, 0);
  const int key = pkey_alloc(0, 0);
  if (key > 0) pkey_mprotect(Map(kPage), kPage, PROT_READ, key);

  const int exe = open("/proc/self/exe", O_RDONLY);
  facts.address[4] = reinterpret_cast<uint64_t>(Map(kPage, PROT_READ, MAP_PRIVATE, exe, 2 * kPage));
  const int memory = memfd_create("shared", 0);
  [[maybe_unused]] const int resized = ftruncate(memory, kPage);
  Map(kPage, PROT_READ | PROT_WRITE, MAP_SHARED, memory);
}

int OpenUffd() {
  const int fd = static_cast<int>(syscall(SYS_userfaultfd, O_CLOEXEC));
  uffdio_api api = {};
  api.api = UFFD_API;
  ioctl(fd, UFFDIO_API, &api);
  return fd;
}

uint64_t Register(int uffd, uint64_t mode) {
  char* memory = Map(2 * kPage);
  uffdio_register request = {};
  request.range = {reinterpret_cast<uint64_t>(memory), 2 * kPage};
  request.mode = mode;
  if (ioctl(uffd, UFFDIO_REGISTER, &request) != 0) _exit(3);
  return request.range.start;
}

void MakeUffds(Facts& facts) {
  const int first = OpenUffd();
  const int second = OpenUffd();
  facts.address[0] = Register(first, UFFDIO_REGISTER_MODE_WP);
  facts.address[1] = Register(first, UFFDIO_REGISTER_MODE_MISSING);
  facts.address[2] = Register(second, UFFDIO_REGISTER_MODE_WP);
  facts.address[3] = reinterpret_cast<uint64_t>(Map(2 * kPage, PROT_READ));
}

class VmaCaptureTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(testing::Eventually([&] { return facts_->ready.load() == 1; }));
    ASSERT_TRUE(TestChild::WaitUntilInside(child_.pid(), SYS_pause));
    auto capture = VmaCapture::Create(child_.pid());
    ASSERT_TRUE(capture.ok()) << capture.status();
    auto vmas = capture->Read();
    ASSERT_TRUE(vmas.ok()) << vmas.status();
    vmas_ = *std::move(vmas);
  }

  const VmaRecord& At(uint64_t address) const {
    for (const VmaRecord& vma : vmas_) {
      if (vma.start <= address && address < vma.end) return vma;
    }
    ADD_FAILURE() << "no mapping at " << std::hex << address;
    return vmas_.front();
  }

  Shared<Facts> facts_;
  TestChild child_{[this] {
    MakeMappings(*facts_);
    MakeUffds(*facts_);
    facts_->ready = 1;
    while (true) pause();
  }};
  std::vector<VmaRecord> vmas_;
};

TEST_F(VmaCaptureTest, MappingsAreThoseOfMaps) {
  auto maps = ParseMaps(ReadText(child_.pid(), "maps"));
  ASSERT_TRUE(maps.ok()) << maps.status();
  std::erase_if(*maps, [](const MapsEntry& entry) { return entry.path == "[vsyscall]"; });
  ASSERT_EQ(vmas_.size(), maps->size());
  for (size_t i = 0; i < vmas_.size(); ++i) {
    const MapsEntry& entry = (*maps)[i];
    const VmaRecord& vma = vmas_[i];
    EXPECT_EQ(vma.start, entry.range.start().value());
    EXPECT_EQ(vma.end, entry.range.end().value());
    EXPECT_EQ(vma.inode, entry.inode) << entry.range.ToString();
    EXPECT_EQ(vma.device, entry.device) << entry.range.ToString();
    if (entry.IsFile()) {
      EXPECT_EQ(vma.page_offset * kPage, entry.file_offset) << entry.path;
      EXPECT_EQ(vma.has_file, 1u);
      EXPECT_NE(vma.operations, 0u);
    }
  }
}

TEST_F(VmaCaptureTest, FlagsAreThoseOfSmaps) {
  const auto smaps = ParseSmapsFlags(ReadText(child_.pid(), "smaps"));
  ASSERT_TRUE(smaps.ok()) << smaps.status();
  std::map<uint64_t, VmaFlags> by_start;
  for (const VmaFlags& flags : *smaps) by_start[flags.range.start().value()] = flags;
  uint64_t seen = 0;
  for (const VmaRecord& vma : vmas_) {
    const VmaFlags flags = FlagsOf(vma);
    ASSERT_TRUE(by_start.contains(vma.start));
    EXPECT_EQ(flags.bits, by_start[vma.start].bits)
        << flags.range.ToString() << " raw " << std::hex << vma.vm_flags;
    EXPECT_EQ(flags.protection_key, by_start[vma.start].protection_key);
    seen |= flags.bits;
  }
  // The comparison is worth something only if the kinds made above did come about.
  for (const VmFlag flag :
       {VmFlag::kDontCopy, VmFlag::kWipeOnFork, VmFlag::kDontDump, VmFlag::kLocked,
        VmFlag::kLockOnFault, VmFlag::kSequential, VmFlag::kRandom, VmFlag::kNoReserve,
        VmFlag::kGrowsDown, VmFlag::kUffdWriteProtect, VmFlag::kUffdMissing, VmFlag::kShared}) {
    EXPECT_NE(seen & static_cast<uint64_t>(flag), 0u) << static_cast<uint64_t>(flag);
  }
}

TEST_F(VmaCaptureTest, UserfaultfdsAreToldApart) {
  const uint64_t first = At(facts_->address[0]).uffd_context;
  EXPECT_NE(first, 0u);
  EXPECT_EQ(At(facts_->address[1]).uffd_context, first);
  EXPECT_NE(At(facts_->address[2]).uffd_context, 0u);
  EXPECT_NE(At(facts_->address[2]).uffd_context, first);
  EXPECT_EQ(At(facts_->address[3]).uffd_context, 0u);
}

TEST_F(VmaCaptureTest, FileMappingsNameTheirFile) {
  struct stat exe = {};
  ASSERT_EQ(stat("/proc/self/exe", &exe), 0);
  const VmaRecord& vma = At(facts_->address[4]);
  EXPECT_EQ(vma.inode, exe.st_ino);
  EXPECT_EQ(vma.device, exe.st_dev);
  EXPECT_EQ(vma.page_offset, 2u);
  EXPECT_EQ(vma.has_anon_vma, 0u);
}

TEST(VmaCapture, TenThousandMappingsTakeLessThanTenMilliseconds) {
  constexpr int kMappings = 10000;
  Shared<Facts> facts;
  TestChild child([&] {
    // Neighbours differ in protection, so that none merge.
    char* memory = Map(kMappings * kPage, PROT_READ);
    for (size_t i = 0; i < kMappings; i += 2) {
      mprotect(memory + i * kPage, kPage, PROT_READ | PROT_WRITE);
    }
    facts->ready = 1;
    while (true) pause();
  });
  ASSERT_TRUE(testing::Eventually([&] { return facts->ready.load() == 1; }));
  auto capture = VmaCapture::Create(child.pid());
  ASSERT_TRUE(capture.ok()) << capture.status();
  auto best = std::chrono::nanoseconds::max();
  for (int i = 0; i < 10; ++i) {
    const auto start = std::chrono::steady_clock::now();
    const auto vmas = capture->Read();
    best = std::min<std::chrono::nanoseconds>(best, std::chrono::steady_clock::now() - start);
    ASSERT_TRUE(vmas.ok()) << vmas.status();
    ASSERT_GE(vmas->size(), static_cast<size_t>(kMappings));
  }
  std::printf("%d mappings: Read %.2f ms\n", kMappings,
              std::chrono::duration<double, std::milli>(best).count());
  EXPECT_LT(best, std::chrono::milliseconds(10));
}

TEST(VmaCapture, ThreadsWithDescriptorTablesOfTheirOwnRepeatNothing) {
  Shared<Facts> facts;
  TestChild child([&] {
    pthread_t thread;
    pthread_create(
        &thread, nullptr,
        [](void* shared) -> void* {
          unshare(CLONE_FILES);
          static_cast<Facts*>(shared)->ready = 1;
          while (true) pause();
        },
        facts.get());
    while (true) pause();
  });
  ASSERT_TRUE(testing::Eventually([&] { return facts->ready.load() == 1; }));
  auto capture = VmaCapture::Create(child.pid());
  ASSERT_TRUE(capture.ok()) << capture.status();
  const auto vmas = capture->Read();
  ASSERT_TRUE(vmas.ok()) << vmas.status();
  for (size_t i = 1; i < vmas->size(); ++i) EXPECT_GE((*vmas)[i].start, (*vmas)[i - 1].end);
}

TEST(VmaCapture, ProcessThatIsGoneIsTargetExited) {
  TestChild child([] {
    while (true) pause();
  });
  auto capture = VmaCapture::Create(child.pid());
  ASSERT_TRUE(capture.ok()) << capture.status();
  EXPECT_TRUE(capture->Read().ok());
  kill(child.pid(), SIGKILL);
  child.Wait();
  EXPECT_TRUE(base::IsTargetExited(capture->Read().status()));
}

}  // namespace
}  // namespace predump::kernel
