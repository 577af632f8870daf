// What the kernel keeps for a process and tells nobody who asks from outside, refused by name: by
// the survey where there is BPF, at the freeze at the latest where there is none.
#include <asm/prctl.h>
#include <linux/mempolicy.h>
#include <sched.h>
#include <sys/io.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/sem.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <iterator>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "src/kernel/bpf/vma_capture.h"
#include "src/pagemap/bpf_adapters.h"
#include "tests/checkpoint/forked_process.h"

namespace predump::checkpoint {
namespace {

using ::predump::checkpoint::testing::BlockersOf;
using ::predump::checkpoint::testing::CaptureOnce;
using ::predump::checkpoint::testing::ForkedProcess;
using ::predump::checkpoint::testing::Require;
using ::testing::Contains;
using ::testing::HasSubstr;

constexpr int kRequestXstatePermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
constexpr int kTileData = 18;
constexpr int kEnableTaggedAddresses = 0x4002;  // ARCH_ENABLE_TAGGED_ADDR
constexpr int kTagBits = 6;
constexpr unsigned long kNodes = 64;

struct Held {
  const char* name;
  bool (*hold)();  // false: this machine has no such thing
  const char* words;
  bool told_without_bpf;
};

bool SetPolicy() {
  const unsigned long node = 1;
  return ::syscall(SYS_set_mempolicy, MPOL_BIND, &node, kNodes) == 0;
}

// In a namespace of its own, with which the semaphores go.
bool UseSemaphores() {
  if (::unshare(CLONE_NEWIPC) != 0) return false;
  const int id = ::semget(IPC_PRIVATE, 1, 0600);
  struct sembuf raise = {.sem_num = 0, .sem_op = 1, .sem_flg = SEM_UNDO};
  return id >= 0 && ::semop(id, &raise, 1) == 0;
}

bool CanHold(bool (*hold)()) {
  const pid_t child = ::fork();
  if (child == 0) ::_exit(hold() ? 0 : 1);
  int status = 0;
  ::waitpid(child, &status, 0);
  return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

class Refused : public ::testing::TestWithParam<Held> {};

TEST_P(Refused, ByTheSurvey) {
  if (!CanHold(GetParam().hold)) GTEST_SKIP() << "this machine has no " << GetParam().name;
  const ForkedProcess child([] { Require(GetParam().hold(), GetParam().name); });
  const auto blockers = BlockersOf(child.handle());
  ASSERT_TRUE(blockers.ok()) << blockers.status();
  EXPECT_THAT(*blockers, Contains(HasSubstr(GetParam().words)));
}

class RefusedWithoutBpf : public Refused {};

TEST_P(RefusedWithoutBpf, AtTheFreeze) {
  if (!CanHold(GetParam().hold)) GTEST_SKIP() << "this machine has no " << GetParam().name;
  const ForkedProcess child([] { Require(GetParam().hold(), GetParam().name); });
  EXPECT_THAT(CaptureOnce(child.handle(), {.use_bpf = false}).status().message(),
              HasSubstr(GetParam().words));
}

const Held kHeld[] = {
    Held{"TileRegisters",
         [] { return ::syscall(SYS_arch_prctl, kRequestXstatePermission, kTileData) == 0; },
         "attribute AMX: may use tile registers", true},
    Held{"ProtectionKeys", [] { return ::syscall(SYS_pkey_alloc, 0, 0) > 0; },
         "attribute protection keys", true},
    Held{"AddressTagging",
         [] { return ::syscall(SYS_arch_prctl, kEnableTaggedAddresses, kTagBits) == 0; },
         "attribute address tagging", true},
    Held{"TimeStampCounter", [] { return ::prctl(PR_SET_TSC, PR_TSC_SIGSEGV) == 0; },
         "may not read the time stamp counter", true},
    Held{"CpuidFaulting", [] { return ::syscall(SYS_arch_prctl, ARCH_SET_CPUID, 0) == 0; },
         "faults at CPUID", true},
    Held{"MemoryPolicy", SetPolicy, "by a NUMA policy of its own", true},
    Held{"IoPorts", [] { return ::ioperm(0x80, 1, 1) == 0; }, "may use I/O ports", false},
    Held{"Semaphores", UseSemaphores, "attribute semaphores", false},
};

std::vector<Held> ToldWithoutBpf() {
  std::vector<Held> told;
  std::copy_if(std::begin(kHeld), std::end(kHeld), std::back_inserter(told),
               [](const Held& held) { return held.told_without_bpf; });
  return told;
}

std::string NameOf(const ::testing::TestParamInfo<Held>& test) { return test.param.name; }

INSTANTIATE_TEST_SUITE_P(All, Refused, ::testing::ValuesIn(kHeld), NameOf);
INSTANTIATE_TEST_SUITE_P(All, RefusedWithoutBpf, ::testing::ValuesIn(ToldWithoutBpf()), NameOf);

// Threads of one process share the list, and each has it before anybody used a semaphore.
TEST(NotRefused, ThreadsThatShareAnEmptyListOfUndos) {
  const ForkedProcess child([] {
    static char stack[16384];
    const long flags =
        CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM;
    Require(::clone(
                [](void*) {
                  while (true) ::syscall(SYS_pause);
                  return 0;
                },
                stack + sizeof stack, static_cast<int>(flags), nullptr) > 0,
            "clone");
  });
  const auto blockers = BlockersOf(child.handle());
  ASSERT_TRUE(blockers.ok()) << blockers.status();
  EXPECT_THAT(*blockers, ::testing::IsEmpty());
}

void BindMemory() {
  void* memory = ::mmap(nullptr, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  const unsigned long node = 1;
  Require(::syscall(SYS_mbind, memory, 4096, MPOL_BIND, &node, kNodes, 0) == 0, "mbind");
}

TEST(RefusedMappings, OfANumaPolicy) {
  if (!CanHold(SetPolicy)) GTEST_SKIP() << "no NUMA in this kernel";
  const ForkedProcess child(BindMemory);
  const auto without = BlockersOf(child.handle(), {.use_bpf = false});
  ASSERT_TRUE(without.ok()) << without.status();
  EXPECT_THAT(*without, Contains(HasSubstr("by a NUMA policy of its own (bind:0")));

  auto mappings = kernel::VmaCapture::Create(child.pid());
  ASSERT_TRUE(mappings.ok()) << mappings.status();
  auto vmas = pagemap::VmaList::Read(child.handle(), false);
  ASSERT_TRUE(vmas.ok()) << vmas.status();
  const auto records = mappings->Read();
  ASSERT_TRUE(records.ok()) << records.status();
  pagemap::OverlayFlags(*vmas, *records);
  auto capturer = Capturer::Create(child.handle(), {});
  ASSERT_TRUE(capturer.ok()) << capturer.status();
  const auto survey = capturer->Survey(*vmas);
  ASSERT_TRUE(survey.ok()) << survey.status();
  ASSERT_EQ(survey->blockers.size(), 1u);
  EXPECT_THAT(survey->blockers.front().reason(), HasSubstr("(mbind)"));
}

}  // namespace
}  // namespace predump::checkpoint
