// criu://HOST:PORT as a destination: rounds, and nothing else.
#ifndef PREDUMP_PREDUMP_CRIU_DESTINATION_H_
#define PREDUMP_PREDUMP_CRIU_DESTINATION_H_

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "src/predump/criu_sink.h"
#include "src/predump/destination.h"

namespace predump {

class CriuDestination final : public Destination {
 public:
  // Connects to nobody yet: each round does that. Errors: InvalidArgument where more than rounds is
  // asked for.
  static absl::StatusOr<std::unique_ptr<Destination>> Create(const MigrationOptions& options,
                                                             Cancellation& cancellation,
                                                             MigrationObserver& observer);

  bool stores_images() const override { return true; }
  int wake_fd() override { return -1; }
  absl::Status Ask(Question question, std::vector<std::string>& blockers) override;
  absl::StatusOr<std::unique_ptr<PageSink>> OpenSink() override;
  absl::StatusOr<HandoverResult> HandOver(Engine& engine, uint64_t final_round) override;

 private:
  CriuDestination(CriuSinkOptions sink, Cancellation& cancellation)
      : sink_(std::move(sink)), cancellation_(cancellation) {}

  CriuSinkOptions sink_;
  Cancellation& cancellation_;
};

}  // namespace predump

#endif  // PREDUMP_PREDUMP_CRIU_DESTINATION_H_
