#include "src/pagemap/process_vmsplice_source.h"

#include "src/base/errors.h"

namespace predump::pagemap {
namespace {

// As the helper's.
constexpr base::ByteCount kPipeCapacity{1 << 20};

}  // namespace

absl::StatusOr<std::unique_ptr<ProcessVmspliceSource>> ProcessVmspliceSource::Create(
    const kernel::ProcessHandle& process) {
  PREDUMP_ASSIGN_OR_RETURN(SecondWay second_way, SecondWay::Open(process));
  PREDUMP_ASSIGN_OR_RETURN(kernel::PipePair pipe, kernel::PipePair::Create(kPipeCapacity));
  return std::unique_ptr<ProcessVmspliceSource>(
      new ProcessVmspliceSource(process, std::move(second_way), std::move(pipe)));
}

}  // namespace predump::pagemap
