#include "tests/pageserver/handmade_process.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <optional>
#include <span>

#include "src/base/clock.h"
#include "src/images/image_constants.h"
#include "src/images/image_set.h"
#include "src/kernel/process_memory.h"
#include "src/kernel/procfs.h"
#include "tests/images/valid_state.h"

namespace predump::pageserver {
namespace {

constexpr uint64_t kCounterOffset = 0x800;
constexpr uint64_t kKernelMappings = 0x7e1000000000;

void AddVma(criu::mm_entry& mm, uint64_t start, uint64_t bytes, int prot, uint32_t status) {
  criu::vma_entry* vma = mm.add_vmas();
  vma->set_start(start);
  vma->set_end(start + bytes);
  vma->set_pgoff(0);
  vma->set_shmid(0);
  vma->set_prot(static_cast<uint32_t>(prot));
  vma->set_fd(-1);
  vma->set_flags(MAP_PRIVATE | MAP_ANONYMOUS);
  vma->set_status(status);
}

// The kernel's mappings as this process has them, side by side at another address.
void AddKernelMappings(criu::mm_entry& mm) {
  const auto self = kernel::ProcessHandle::Open(::getpid());
  ASSERT_TRUE(self.ok()) << self.status();
  const auto maps = kernel::ReadMaps(*self);
  ASSERT_TRUE(maps.ok()) << maps.status();
  uint64_t start = kKernelMappings;
  for (const kernel::MapsEntry& entry : *maps) {
    const bool vdso = entry.path == "[vdso]";
    if (!vdso && !entry.path.starts_with("[vvar")) continue;
    AddVma(mm, start, entry.range.size().value(), entry.prot,
           images::kVmaRegular | images::kVmaAnonymousPrivate |
               (vdso ? images::kVmaVdso : images::kVmaVvar));
    start += entry.range.size().value();
  }
}

void KeepRegularFiles(proto::ProcessState& state) {
  state.clear_descriptors();
  state.clear_pipes();
  state.clear_file_extras();
  proto::ProcessState kept;
  for (const criu::file_entry& file : state.files()) {
    if (file.has_reg()) *kept.add_files() = file;
  }
  state.mutable_files()->Swap(kept.mutable_files());
}

}  // namespace

std::string CountingPage() {
  // loop: inc qword [rip + counter]; pause; jmp loop
  constexpr unsigned char kCode[] = {0x48, 0xff, 0x05, 0xf9, 0x07, 0, 0, 0xf3, 0x90, 0xeb, 0xf5};
  static_assert(0x07f9 + 7 == kCounterOffset);
  std::string page(4096, '\0');
  page.replace(0, sizeof kCode, reinterpret_cast<const char*>(kCode), sizeof kCode);
  return page;
}

proto::ProcessState HandmadeState(pid_t pid) {
  const auto number = static_cast<uint32_t>(pid);
  proto::ProcessState state = images::testing::ValidState();
  KeepRegularFiles(state);
  state.set_pid(number);
  criu::pstree_entry& tree = *state.mutable_pstree();
  tree.set_pid(number);
  tree.set_pgid(number);
  tree.set_sid(number);
  tree.set_threads(0, number);
  proto::ThreadState& thread = *state.mutable_threads(0);
  thread.set_tid(number);
  criu::core_entry& core = *thread.mutable_core();
  core.mutable_tc()->clear_signals_s();
  for (int i = 0; i < core.tc().rlimits().rlimits_size(); ++i) {
    rlimit limit = {};
    EXPECT_EQ(::getrlimit(static_cast<__rlimit_resource>(i), &limit), 0);
    core.mutable_tc()->mutable_rlimits()->mutable_rlimits(i)->set_cur(limit.rlim_cur);
    core.mutable_tc()->mutable_rlimits()->mutable_rlimits(i)->set_max(limit.rlim_max);
  }
  criu::user_x86_regs_entry& registers = *core.mutable_thread_info()->mutable_gpregs();
  registers.set_ip(kCountingPage);
  registers.set_sp(kCountingPage + 4096);
  registers.set_flags(0x202);
  criu::mm_entry& mm = *state.mutable_mm();
  mm.clear_vmas();
  AddVma(mm, kCountingPage, 4096, PROT_READ | PROT_WRITE | PROT_EXEC,
         images::kVmaRegular | images::kVmaAnonymousPrivate);
  AddKernelMappings(mm);
  return state;
}

bool Counts(pid_t pid) {
  const auto process = kernel::ProcessHandle::Open(pid);
  if (!process.ok()) return false;
  std::optional<uint64_t> first;
  const base::Stopwatch watch;
  while (watch.Elapsed() < absl::Seconds(2)) {
    uint64_t counter = 0;
    const absl::Status read = kernel::ReadProcessMemoryExactly(
        *process, base::RemoteAddress(kCountingPage + kCounterOffset),
        std::as_writable_bytes(std::span(&counter, 1)));
    if (!read.ok()) return false;
    if (first.has_value() && counter != *first) return true;
    first = counter;
    ::poll(nullptr, 0, 1);
  }
  return false;
}

}  // namespace predump::pageserver
