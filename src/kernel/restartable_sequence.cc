#include "src/kernel/restartable_sequence.h"

#include <errno.h>

#include <cstdint>
#include <span>

#include "src/base/errors.h"

namespace predump::kernel {
namespace {

// struct rseq_cs of include/uapi/linux/rseq.h.
struct CriticalSection {
  uint32_t version;
  uint32_t flags;
  uint64_t start_ip;
  uint64_t post_commit_offset;
  uint64_t abort_ip;
};
static_assert(sizeof(CriticalSection) == 32);
constexpr uint64_t kRseqCsOffset = 8;

}  // namespace

absl::Status LeaveRestartableSequence(const Tracee& thread, const ProcessMemory& memory,
                                      user_regs_struct* registers) {
  const absl::StatusOr<RseqConfiguration> rseq = thread.GetRseqConfiguration();
  // EIO: a kernel older than the request (5.13), whose sequences abort on their own signal only.
  if (base::ErrnoOf(rseq.status()) == EIO) return absl::OkStatus();
  PREDUMP_RETURN_IF_ERROR(rseq);
  if (rseq->address.value() == 0) return absl::OkStatus();
  uint64_t section_address = 0;
  PREDUMP_RETURN_IF_ERROR(
      memory.ReadExactly(rseq->address + base::ByteCount(kRseqCsOffset),
                         std::as_writable_bytes(std::span(&section_address, 1))));
  if (section_address == 0) return absl::OkStatus();
  CriticalSection section = {};
  PREDUMP_RETURN_IF_ERROR(memory.ReadExactly(base::RemoteAddress(section_address),
                                             std::as_writable_bytes(std::span(&section, 1))));
  if (registers->rip - section.start_ip < section.post_commit_offset) {
    registers->rip = section.abort_ip;
  }
  return absl::OkStatus();
}

}  // namespace predump::kernel
