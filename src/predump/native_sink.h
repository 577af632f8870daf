// The sink of a native session: data frames to a landing process, or to a server that stores them.
#ifndef PREDUMP_PREDUMP_NATIVE_SINK_H_
#define PREDUMP_PREDUMP_NATIVE_SINK_H_

#include <cstdint>
#include <span>

#include "src/predump/page_sink.h"
#include "src/transport/data_writer.h"

namespace predump {

class NativeSink final : public PageSink {
 public:
  // `data` outlives the sink. `control_fd`: whose round trips are the link's; borrowed.
  NativeSink(transport::DataWriter& data, int control_fd) : data_(data), control_fd_(control_fd) {}

  // The landing takes rounds as they come.
  absl::Status AwaitReady() override { return absl::OkStatus(); }
  absl::StatusOr<pagemap::ExtentSet> BeginRound(const pagemap::VmaList& vmas,
                                                const pagemap::DirtySet& dirty) override;
  absl::Status Pages(std::span<const pagemap::Extent> extents,
                     pagemap::PageSource& source) override;
  absl::Status EndRound(uint64_t number, transport::Deadline deadline) override;
  int fd() const override { return data_.fd(); }
  base::ByteCount bytes_sent() const override { return data_.bytes_sent(); }
  absl::Duration round_trip() const override;

 private:
  absl::Status SendLayout(const pagemap::VmaList& vmas);

  transport::DataWriter& data_;
  int control_fd_;
  pagemap::VmaList sent_layout_;
};

}  // namespace predump

#endif  // PREDUMP_PREDUMP_NATIVE_SINK_H_
