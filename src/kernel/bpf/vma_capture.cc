#include "src/kernel/bpf/vma_capture.h"

#include <vma_capture.skel.h>

#include <cstring>
#include <utility>

#include "src/base/errors.h"
#include "src/kernel/bpf/program.h"

namespace predump::kernel {

struct VmaCapture::Program {
  std::unique_ptr<vma_capture_bpf, void (*)(vma_capture_bpf*)> skeleton;
  internal::Iterator vmas;
  base::UniqueFd pidfd;
  std::vector<char> bytes;
};

VmaCapture::VmaCapture(std::unique_ptr<Program> program) : program_(std::move(program)) {}
VmaCapture::VmaCapture(VmaCapture&&) noexcept = default;
VmaCapture& VmaCapture::operator=(VmaCapture&&) noexcept = default;
VmaCapture::~VmaCapture() = default;

absl::StatusOr<VmaCapture> VmaCapture::Create(pid_t tgid) {
  PREDUMP_ASSIGN_OR_RETURN(base::UniqueFd pidfd, internal::OpenPidfd(tgid));
  PREDUMP_ASSIGN_OR_RETURN(auto skeleton,
                           internal::LoadSkeleton<vma_capture_bpf>(
                               vma_capture_bpf__open_opts, vma_capture_bpf__load,
                               vma_capture_bpf__destroy, [](vma_capture_bpf&) { return 0; }));
  PREDUMP_ASSIGN_OR_RETURN(internal::Iterator vmas,
                           internal::Iterator::Attach(skeleton->progs.capture_vma, tgid));
  return VmaCapture(std::unique_ptr<Program>(
      new Program{std::move(skeleton), std::move(vmas), std::move(pidfd), {}}));
}

absl::StatusOr<std::vector<VmaRecord>> VmaCapture::Read() {
  PREDUMP_RETURN_IF_ERROR(program_->vmas.Read(program_->bytes));
  PREDUMP_RETURN_IF_ERROR(internal::CheckAlive(program_->pidfd));
  const std::vector<char>& bytes = program_->bytes;
  if (bytes.empty()) return base::TargetExited("process without memory");
  if (bytes.size() % sizeof(VmaRecord) != 0) return absl::DataLossError("torn VMA record");
  std::vector<VmaRecord> records(bytes.size() / sizeof(VmaRecord));
  std::memcpy(records.data(), bytes.data(), bytes.size());
  return records;
}

}  // namespace predump::kernel
