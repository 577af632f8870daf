#include "src/predump/rounds.h"

#include <algorithm>
#include <optional>
#include <utility>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "spdlog/spdlog.h"
#include "src/base/clock.h"
#include "src/base/errors.h"
#include "src/kernel/freezer.h"
#include "src/predump/round_requests.h"
#include "src/transport/deadline.h"

namespace predump {
namespace {

// No round takes this long to be acknowledged once its bytes are out; a landing that is silent for
// so long is not coming back. A store waits for its disk, which others may keep busy; a host that
// is gone the connection itself notices.
constexpr absl::Duration kAcknowledgeTimeout = absl::Seconds(60);
constexpr absl::Duration kStoredTimeout = absl::Minutes(15);

struct Scanned {
  pagemap::VmaList vmas;
  pagemap::DirtySet dirty;
  absl::Duration scan;
  absl::Duration frozen;
};

// Layout and dirty set of one round. Trackers that cannot scan and reset in one step get a short
// freeze; memory is read after the thaw.
absl::StatusOr<Scanned> Scan(Engine& engine, int round) {
  Scanned scanned;
  if (engine.tracker.needs_freeze()) {
    // What takes long to find out about the layout is found out while the process runs.
    PREDUMP_RETURN_IF_ERROR(engine.layout.Read().status());
    const base::Stopwatch watch;
    base::Stopwatch stopped_since;
    // Also of a freeze or a scan that fails.
    absl::Cleanup note_stop = [&] {
      engine.report.stops.push_back({absl::StrCat("round ", round), stopped_since.Elapsed()});
    };
    PREDUMP_ASSIGN_OR_RETURN(
        kernel::FrozenProcess frozen,
        kernel::FrozenProcess::Freeze(engine.process, engine.options.freeze_timeout));
    stopped_since = frozen.stopped_since();
    PREDUMP_ASSIGN_OR_RETURN(scanned.vmas, engine.layout.ReadFrozen());
    PREDUMP_ASSIGN_OR_RETURN(scanned.dirty, engine.tracker.ScanAndReset(scanned.vmas));
    PREDUMP_RETURN_IF_ERROR(std::move(frozen).Thaw());
    scanned.frozen = stopped_since.Elapsed();
    scanned.scan = watch.Elapsed();
    std::move(note_stop).Cancel();
    engine.report.stops.push_back({absl::StrCat("round ", round), scanned.frozen});
    return scanned;
  }
  const base::Stopwatch watch;
  PREDUMP_ASSIGN_OR_RETURN(scanned.vmas, engine.layout.Read());
  PREDUMP_ASSIGN_OR_RETURN(scanned.dirty, engine.tracker.ScanAndReset(scanned.vmas));
  scanned.scan = watch.Elapsed();
  return scanned;
}

}  // namespace

class RoundLoop::Impl {
 public:
  explicit Impl(Engine& engine) : engine_(engine) {
    const std::optional<int> from = engine.options.round_requests;
    if (from.has_value()) requests_.emplace(*from, engine.options.leave_running);
  }

  absl::StatusOr<RoundsResult> Run() {
    for (;;) {
      PREDUMP_RETURN_IF_ERROR(OneRound());
      PREDUMP_RETURN_IF_ERROR(engine_.watch.CheckSameProgram());
      PREDUMP_ASSIGN_OR_RETURN(const std::string hold, WhyNotFreeze());
      const PolicyLimits& limits = engine_.options.policy;
      Decision decision = Decide(history_, limits, total_.Elapsed(), hold.empty(), hold);
      Report(decision);
      if (engine_.cancellation.requested()) return absl::CancelledError("");
      if (requests_.has_value()) PREDUMP_RETURN_IF_ERROR(AskForNext(hold, decision));
      if (decision.next != NextStep::kAnotherRound) {
        return RoundsResult{std::move(decision), history_.size()};
      }
      // Held back by children alone: another round makes sense once they have ended.
      if (!hold.empty() && WouldFreeze()) {
        const absl::Duration patience =
            std::min(engine_.options.freeze_timeout, limits.timeout - total_.Elapsed());
        PREDUMP_RETURN_IF_ERROR(engine_.watch.WaitForNoChildren(patience, engine_.wake_fd));
      }
    }
  }

  bool MayGoOn() const {
    const PolicyLimits& limits = engine_.options.policy;
    return history_.size() < rounds_asked_for_ + static_cast<size_t>(MostRounds(limits)) &&
           total_.Elapsed() < limits.timeout;
  }

 private:
  // Somebody else decides instead of the policy.
  absl::Status AskForNext(const std::string& hold, Decision& decision) {
    if (!requests_->freeze_asked()) rounds_asked_for_ = history_.size();
    PREDUMP_ASSIGN_OR_RETURN(decision.next, requests_->Next(engine_.cancellation, engine_.process));
    decision.reason = decision.next == NextStep::kCancel
                          ? "standard input ended, and nobody had asked to freeze"
                          : "as was asked for on standard input";
    if (decision.next == NextStep::kFreeze && !hold.empty()) {
      decision.next = MayGoOn() ? NextStep::kAnotherRound : NextStep::kCancel;
      decision.reason = hold;
    }
    return absl::OkStatus();
  }

  // If only it had no children.
  bool WouldFreeze() const {
    if (requests_.has_value()) return requests_->freeze_asked();
    return Decide(history_, engine_.options.policy, total_.Elapsed(), true, "").next ==
           NextStep::kFreeze;
  }

  absl::Status OneRound() {
    current_ = RoundReport();
    current_.number = static_cast<int>(history_.size());
    PREDUMP_RETURN_IF_ERROR(engine_.sink.AwaitReady());
    const int64_t scan_started_ns = base::MonotonicNanoseconds();
    PREDUMP_ASSIGN_OR_RETURN(const Scanned scanned, Scan(engine_, current_.number));
    for (const pagemap::FullResend& resend : engine_.tracker.full_resends()) {
      spdlog::debug("{} is sent whole: {}",
                    resend.range.empty() ? "the memory" : resend.range.ToString(), resend.reason);
    }

    RoundRecord record;
    record.scan = scanned.scan;
    record.frozen = scanned.frozen;
    if (last_scan_ns_ != 0) {
      record.since_last_scan = absl::Nanoseconds(scan_started_ns - last_scan_ns_);
    }
    last_scan_ns_ = scan_started_ns;
    current_.remaining = scanned.dirty.pages.pages();
    const double seconds = absl::ToDoubleSeconds(record.since_last_scan);
    if (seconds > 0) {
      current_.dirty_pages_per_second = static_cast<double>(current_.remaining.value()) / seconds;
    }

    const base::ByteCount sent_before = engine_.sink.bytes_sent();
    const base::Stopwatch send;
    PREDUMP_ASSIGN_OR_RETURN(
        record.pages,
        engine_.sender.Send(
            scanned.vmas, scanned.dirty, [&](base::PageCount sent, base::PageCount left) {
              RoundReport so_far = current_;
              so_far.pages = sent;
              so_far.remaining = left;
              so_far.bytes_per_second = static_cast<double>(base::ToBytes(sent).value()) /
                                        std::max(absl::ToDoubleSeconds(send.Elapsed()), 1e-6);
              so_far.expected_downtime = expected_;
              engine_.observer.OnProgress(so_far);
            }));
    const uint64_t round = static_cast<uint64_t>(current_.number);
    PREDUMP_RETURN_IF_ERROR(engine_.sink.EndRound(
        round,
        transport::Deadline::After(engine_.stores_images ? kStoredTimeout : kAcknowledgeTimeout)));
    record.send = send.Elapsed();
    record.owed = engine_.tracker.owed();
    record.round_trip = engine_.sink.round_trip();
    record.bytes = engine_.sink.bytes_sent() - sent_before;
    history_.push_back(record);
    return absl::OkStatus();
  }

  // Empty when nothing stands in the way of a freeze.
  absl::StatusOr<std::string> WhyNotFreeze() {
    if (engine_.options.rounds_only()) return std::string();
    PREDUMP_ASSIGN_OR_RETURN(const std::vector<pid_t> children, engine_.watch.Children());
    if (children.empty()) return std::string();
    return absl::StrCat("the process has children (", absl::StrJoin(children, ", "),
                        "), and process trees cannot be moved yet");
  }

  void Report(const Decision& decision) {
    const RoundRecord& record = history_.back();
    expected_ = decision.expected_downtime;
    current_.pages = record.pages;
    current_.bytes = record.bytes;
    current_.duration = record.scan + record.send;
    current_.scan = record.scan;
    current_.frozen = record.frozen;
    current_.bytes_per_second = static_cast<double>(record.bytes.value()) /
                                std::max(absl::ToDoubleSeconds(record.send), 1e-6);
    current_.expected_downtime = decision.expected_downtime;
    engine_.report.rounds.push_back(current_);
    engine_.report.pages_sent += record.pages;
    engine_.observer.OnRound(current_);
    if (decision.next == NextStep::kAnotherRound && !decision.reason.empty()) {
      engine_.observer.OnNote(absl::StrCat("another round: ", decision.reason));
    }
  }

  Engine& engine_;
  const base::Stopwatch total_;
  std::vector<RoundRecord> history_;
  std::optional<RoundRequests> requests_;
  size_t rounds_asked_for_ = 0;  // one by one, by those
  RoundReport current_;
  std::optional<absl::Duration> expected_;
  int64_t last_scan_ns_ = 0;
};

RoundLoop::RoundLoop(Engine& engine) : impl_(std::make_unique<Impl>(engine)) {}
RoundLoop::~RoundLoop() = default;

absl::StatusOr<RoundsResult> RoundLoop::Run() { return impl_->Run(); }

bool RoundLoop::MayGoOn() const { return impl_->MayGoOn(); }

}  // namespace predump
