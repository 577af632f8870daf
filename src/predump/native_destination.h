// A page server of ours as a destination: one session with it.
#ifndef PREDUMP_PREDUMP_NATIVE_DESTINATION_H_
#define PREDUMP_PREDUMP_NATIVE_DESTINATION_H_

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "src/predump/destination.h"
#include "src/predump/target_link.h"

namespace predump {

class NativeDestination final : public Destination {
 public:
  // Connects and exchanges hellos. Errors name the address.
  static absl::StatusOr<std::unique_ptr<Destination>> Connect(const MigrationOptions& options,
                                                              Cancellation& cancellation);

  bool stores_images() const override { return link_.server().host().stores_images(); }
  int wake_fd() override { return link_.control().fd(); }
  absl::Status Ask(Question question, std::vector<std::string>& blockers) override;
  absl::StatusOr<std::unique_ptr<PageSink>> OpenSink() override;
  absl::Status Explain(const absl::Status& failure) override;
  absl::StatusOr<HandoverResult> HandOver(Engine& engine, uint64_t final_round) override;

 private:
  NativeDestination(const MigrationOptions& options, proto::HostFacts facts, TargetLink link,
                    std::string session_id)
      : options_(options),
        facts_(std::move(facts)),
        link_(std::move(link)),
        session_id_(std::move(session_id)) {}

  absl::StatusOr<proto::Begin> MakeBegin(Question question);
  // The process's clocks must go on without a jump (back: never; forward: a round trip at most).
  absl::Status SetClockOffsets(const kernel::ProcessHandle& process, proto::Begin& begin);

  const MigrationOptions& options_;
  const proto::HostFacts facts_;  // of this host
  TargetLink link_;
  const std::string session_id_;
  std::string data_token_;
};

}  // namespace predump

#endif  // PREDUMP_PREDUMP_NATIVE_DESTINATION_H_
