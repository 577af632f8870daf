// Takes pages without copying them and without anything in the target: process_vmsplice(2), the
// call that kernel-patch/ adds to Linux, queues them into a pipe of our own (DESIGN 6).
//
// Thread rule: one thread at a time.
#ifndef PREDUMP_PAGEMAP_PROCESS_VMSPLICE_SOURCE_H_
#define PREDUMP_PAGEMAP_PROCESS_VMSPLICE_SOURCE_H_

#include <memory>
#include <span>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "src/base/units.h"
#include "src/kernel/process.h"
#include "src/kernel/splice.h"
#include "src/pagemap/extent.h"
#include "src/pagemap/spliced_source.h"

namespace predump::pagemap {

class ProcessVmspliceSource final : public SplicedSource {
 public:
  // `process` outlives the source. The call must have been probed for
  // (kernel::Capability::kProcessVmsplice). Errors: TargetExited; else from errno.
  static absl::StatusOr<std::unique_ptr<ProcessVmspliceSource>> Create(
      const kernel::ProcessHandle& process);

  absl::string_view name() const override { return "process_vmsplice"; }
  absl::Status Finish() override { return absl::OkStatus(); }

 private:
  ProcessVmspliceSource(const kernel::ProcessHandle& process, SecondWay second_way,
                        kernel::PipePair pipe)
      : SplicedSource(process, std::move(second_way)), pipe_(std::move(pipe)) {}

  absl::StatusOr<base::ByteCount> Queue(std::span<const Extent> pages) override {
    return kernel::ProcessVmsplice(process(), pipe_.write_end(), pages);
  }
  int pipe_read_end() const override { return pipe_.read_end(); }
  base::ByteCount pipe_capacity() const override { return pipe_.capacity(); }

  kernel::PipePair pipe_;
};

}  // namespace predump::pagemap

#endif  // PREDUMP_PAGEMAP_PROCESS_VMSPLICE_SOURCE_H_
