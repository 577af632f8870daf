// A build without BPF: everything says so, nothing pretends.
#include <gtest/gtest.h>
#include <unistd.h>

#include "src/kernel/bpf/process_events.h"
#include "src/kernel/bpf/reads_in_flight.h"
#include "src/kernel/bpf/task_capture.h"
#include "src/kernel/bpf/vma_capture.h"

namespace predump::kernel {
namespace {

TEST(BuiltWithoutBpf, EveryCreateIsUnimplemented) {
  const absl::Status expected = absl::UnimplementedError("built without BPF");
  EXPECT_EQ(TaskCapture::Create(getpid()).status(), expected);
  EXPECT_EQ(VmaCapture::Create(getpid()).status(), expected);
  EXPECT_EQ(ProcessEvents::Create(getpid()).status(), expected);
  EXPECT_EQ(ReadsInFlight::Create(getpid()).status(), expected);
}

}  // namespace
}  // namespace predump::kernel
