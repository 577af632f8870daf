#include "src/predump/criu_destination.h"

#include "absl/strings/str_cat.h"
#include "src/base/errors.h"

namespace predump {
namespace {

absl::Status TakesMemoryOnly(const transport::Endpoint& to) {
  return absl::InvalidArgumentError(
      absl::StrCat(to.ToString(),
                   ": CRIU's page server takes memory, not processes: give --rounds K "
                   "--leave-running, and let `criu dump --page-server` do the last step"));
}

}  // namespace

absl::StatusOr<std::unique_ptr<Destination>> CriuDestination::Create(
    const MigrationOptions& options, Cancellation& cancellation, MigrationObserver& observer) {
  if (!options.rounds_only()) return TakesMemoryOnly(options.to);
  CriuSinkOptions sink;
  sink.name = options.to.ToString();
  PREDUMP_ASSIGN_OR_RETURN(sink.connect, transport::ConnectorTo(options.to, options.socket));
  sink.header = options.criu_header;
  if (options.policy.timeout != absl::InfiniteDuration()) sink.patience = options.policy.timeout;
  sink.note = [&observer](const std::string& text) { observer.OnNote(text); };
  return std::unique_ptr<Destination>(new CriuDestination(std::move(sink), cancellation));
}

absl::Status CriuDestination::Ask(Question question, std::vector<std::string>&) {
  sink_.pid = question.survey.preview.pid();
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<PageSink>> CriuDestination::OpenSink() {
  auto sink = std::make_unique<CriuSink>(sink_, cancellation_);
  // Nothing is put into a process whose memory nobody would take.
  PREDUMP_RETURN_IF_ERROR(sink->AwaitReady());
  return std::unique_ptr<PageSink>(std::move(sink));
}

absl::StatusOr<HandoverResult> CriuDestination::HandOver(Engine& engine, uint64_t) {
  return TakesMemoryOnly(engine.options.to);
}

}  // namespace predump
