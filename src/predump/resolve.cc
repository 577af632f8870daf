#include "src/predump/resolve.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "src/base/errors.h"
#include "src/kernel/freezer.h"
#include "src/kernel/process.h"
#include "src/kernel/process_identity.h"
#include "src/predump/journal.h"
#include "src/transport/deadline.h"

namespace predump {
namespace {

constexpr absl::Duration kSettleTimeout = absl::Seconds(10);
// A session whose source has just died needs a moment to see that, and to decide. Nothing tells
// when it has.
constexpr absl::Duration kUndecidedPatience = absl::Seconds(5);
constexpr absl::Duration kAskAgain = absl::Milliseconds(200);

class Resolver {
 public:
  Resolver(const ResolveOptions& options, const Journal& journal, std::string boot_id)
      : options_(options), journal_(journal), boot_id_(std::move(boot_id)) {}

  ResolvedProcess Settle(const JournalEntry& entry) const {
    ResolvedProcess resolved;
    resolved.pid = entry.process.pid;
    resolved.command = entry.command;
    resolved.target = options_.to.value_or(entry.target);
    absl::StatusOr<ResolvedProcess> settled = TrySettle(entry, resolved);
    if (settled.ok()) return *std::move(settled);
    resolved.result = ResolvedProcess::Result::kFailed;
    resolved.message = absl::StrCat("not settled: ", settled.status().message());
    return resolved;
  }

 private:
  struct Verdict {
    std::optional<PersonsDecision> decision;
    std::string why;
  };

  absl::StatusOr<ResolvedProcess> TrySettle(const JournalEntry& entry,
                                            ResolvedProcess resolved) const {
    if (entry.process.boot_id != boot_id_) {
      return Settled(entry, std::move(resolved), ResolvedProcess::Result::kGone,
                     "this host has been restarted since; nothing is left of it here");
    }
    PREDUMP_ASSIGN_OR_RETURN(const auto engine, kernel::FindProcess(entry.engine));
    if (engine.has_value()) {
      resolved.result = ResolvedProcess::Result::kEngineAlive;
      resolved.message = absl::StrCat("predump, process ", entry.engine.pid,
                                      ", is still at work on it; wait for it to end");
      return resolved;
    }
    PREDUMP_ASSIGN_OR_RETURN(const auto process, kernel::FindProcess(entry.process));
    if (!process.has_value()) {
      return Gone(entry, std::move(resolved));
    }
    const Verdict verdict = Decide(entry, resolved.target);
    resolved.message = verdict.why;
    if (!verdict.decision.has_value()) return resolved;
    if (*verdict.decision == PersonsDecision::kResumeHere) return Resume(entry, *process, resolved);
    return End(entry, *process, resolved);
  }

  // As the migration did, where nothing else is said now.
  ServerCommandOptions CommandFor(const JournalEntry& entry) const {
    ServerCommandOptions command;
    command.state_directory = options_.state_directory;
    if (!entry.remote_predump.empty()) command.remote_predump = entry.remote_predump;
    if (options_.remote_predump.has_value()) command.remote_predump = *options_.remote_predump;
    command.remote_options = options_.remote_options.value_or(entry.remote_options);
    return command;
  }

  static absl::StatusOr<proto::Fate> AskUntilDecided(const LinkOptions& link,
                                                     const JournalEntry& entry) {
    const transport::Deadline patience = transport::Deadline::After(kUndecidedPatience);
    for (;;) {
      PREDUMP_ASSIGN_OR_RETURN(proto::Fate fate,
                               AskFate(link, proto::HostFacts(), entry.session_id,
                                       {entry.target_boot_id, entry.target_store_id}));
      if (fate.outcome() != proto::Fate::PENDING || patience.passed()) return fate;
      absl::SleepFor(std::min(kAskAgain, patience.Remaining()));
    }
  }

  Verdict Decide(const JournalEntry& entry, const std::string& target) const {
    if (options_.decision.has_value()) return {options_.decision, "as you decided"};
    const absl::StatusOr<transport::Endpoint> endpoint = transport::Endpoint::Parse(target);
    if (!endpoint.ok()) return {std::nullopt, std::string(endpoint.status().message())};
    Cancellation never;
    absl::StatusOr<LinkOptions> link =
        LinkOptions::To(*endpoint, options_.socket, CommandFor(entry), never);
    if (!link.ok()) return {std::nullopt, std::string(link.status().message())};
    if (endpoint->kind() == transport::Endpoint::Kind::kNative) {
      link->connect_timeout = options_.connect_timeout;
    }
    const absl::StatusOr<proto::Fate> fate = AskUntilDecided(*link, entry);
    if (absl::IsFailedPrecondition(fate.status())) {
      return {std::nullopt, absl::StrCat(fate.status().message(),
                                         "; find out whether the process runs where it was sent "
                                         "to, and decide with --resume or --end")};
    }
    if (!fate.ok()) {
      return {std::nullopt,
              absl::StrCat("the target cannot be asked (", fate.status().message(),
                           "); start its page server again, or decide with --resume or --end")};
    }
    switch (fate->outcome()) {
      case proto::Fate::RUNNING:
        if (!fate->stored_in().empty()) {
          return {PersonsDecision::kEndHere,
                  absl::StrCat("its images are stored at the target in ", fate->stored_in())};
        }
        return {PersonsDecision::kEndHere,
                absl::StrCat("it runs at the target as process ", fate->restored_pid())};
      case proto::Fate::DESTROYED:
        return {PersonsDecision::kResumeHere, "it never ran at the target"};
      default:
        return {std::nullopt, "the target has not decided yet; ask again in a moment"};
    }
  }

  absl::StatusOr<ResolvedProcess> Resume(const JournalEntry& entry,
                                         const kernel::ProcessHandle& process,
                                         ResolvedProcess resolved) const {
    const absl::Status status = kernel::FrozenProcess::UnparkAndResume(process, kSettleTimeout);
    if (base::IsTargetExited(status)) return Gone(entry, std::move(resolved));
    // Somebody sent SIGCONT: it goes on already.
    if (!status.ok() && !absl::IsFailedPrecondition(status)) return status;
    const std::string message = absl::StrCat(resolved.message, "; it goes on here");
    return Settled(entry, std::move(resolved), ResolvedProcess::Result::kResumed, message);
  }

  absl::StatusOr<ResolvedProcess> End(const JournalEntry& entry,
                                      const kernel::ProcessHandle& process,
                                      ResolvedProcess resolved) const {
    const absl::Status status = kernel::FrozenProcess::KillParked(process, kSettleTimeout);
    if (base::IsTargetExited(status)) return Gone(entry, std::move(resolved));
    PREDUMP_RETURN_IF_ERROR(
        base::Annotate(status, absl::StrCat("process ", entry.process.pid,
                                            " runs at the target, but the copy here is no longer "
                                            "parked and is left alone")));
    const std::string message = absl::StrCat(resolved.message, "; the parked copy here was ended");
    return Settled(entry, std::move(resolved), ResolvedProcess::Result::kEnded, message);
  }

  absl::StatusOr<ResolvedProcess> Gone(const JournalEntry& entry, ResolvedProcess resolved) const {
    return Settled(entry, std::move(resolved), ResolvedProcess::Result::kGone,
                   "the copy here has ended");
  }

  absl::StatusOr<ResolvedProcess> Settled(const JournalEntry& entry, ResolvedProcess resolved,
                                          ResolvedProcess::Result result,
                                          const std::string& message) const {
    PREDUMP_RETURN_IF_ERROR(journal_.Remove(entry));
    resolved.result = result;
    resolved.message = message;
    return resolved;
  }

  const ResolveOptions& options_;
  const Journal& journal_;
  std::string boot_id_;
};

// What engines prepared that died before they committed: their processes simply ran on. Whose
// engine cannot be judged from here stays: it does not count.
absl::Status DiscardPrepared(const Journal& journal) {
  PREDUMP_ASSIGN_OR_RETURN(const JournalListing prepared, journal.ListPrepared());
  for (const JournalEntry& entry : prepared.entries) {
    const auto engine = kernel::FindProcess(entry.engine);
    if (engine.ok() && !engine->has_value()) journal.Discard(entry);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Resolution> Resolve(const ResolveOptions& options) {
  PREDUMP_ASSIGN_OR_RETURN(const Journal journal,
                           Journal::Open(absl::StrCat(options.state_directory, "/source")));
  PREDUMP_ASSIGN_OR_RETURN(JournalListing listing, journal.List());
  PREDUMP_ASSIGN_OR_RETURN(std::string boot_id, kernel::ReadBootId());
  PREDUMP_RETURN_IF_ERROR(DiscardPrepared(journal));
  const Resolver resolver(options, journal, std::move(boot_id));
  Resolution resolution;
  resolution.unreadable = std::move(listing.unreadable);
  for (const JournalEntry& entry : listing.entries) {
    if (options.pid.has_value() && *options.pid != entry.process.pid) continue;
    resolution.processes.push_back(resolver.Settle(entry));
  }
  if (options.pid.has_value() && resolution.processes.empty()) {
    std::string message =
        absl::StrCat("no handover of process ", *options.pid, " is waiting to be settled here");
    for (const std::string& line : resolution.unreadable) {
      absl::StrAppend(&message, "; but ", line);
    }
    return absl::NotFoundError(message);
  }
  return resolution;
}

}  // namespace predump
