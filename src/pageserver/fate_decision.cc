// What the dead left undone is decided, and brought to an end, here.
#include <errno.h>
#include <fcntl.h>
#include <poll.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "proto/stored.pb.h"
#include "spdlog/spdlog.h"
#include "src/base/errors.h"
#include "src/base/unique_fd.h"
#include "src/images/image_store.h"
#include "src/kernel/freezer.h"
#include "src/pageserver/fate_store.h"
#include "src/pageserver/stored_extra.h"
#include "src/transport/deadline.h"

namespace predump::pageserver {
namespace {

// A landing whose tracer died is killed, or stops, within microseconds; a loaded machine takes
// longer.
constexpr absl::Duration kSettleTimeout = absl::Seconds(5);
// A killed process has let go of a store, but not yet of its session.
constexpr absl::Duration kDyingTimeout = absl::Seconds(1);
constexpr int kLookAgainMs = 2;
constexpr absl::Duration kResumeTimeout = absl::Seconds(2);

Fate RunningAs(const FateRecord& record) {
  return {Outcome::kRunning, record.landing.has_value() ? record.landing->pid : 0,
          record.images.has_value() ? record.images->final_path : ""};
}

// Between commit and resumption: if its session is dead, somebody has to bring it to an end.
bool IsOpen(const FateRecord& record) {
  return record.state == FateState::kCommitted ||
         (record.state == FateState::kReleased && !record.resumed);
}

// Whether the image directory at `path` is there and of session `session_id`.
absl::StatusOr<bool> HoldsSession(const std::string& path, absl::string_view session_id) {
  const base::UniqueFd directory(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!directory.valid()) {
    if (errno == ENOENT || errno == ENOTDIR) return false;
    return base::ErrnoError(errno, "open ", path);
  }
  const absl::StatusOr<proto::StoredExtra> extra = ReadStoredExtra(directory.get());
  if (absl::IsNotFound(extra.status())) return false;  // another's, of rounds only
  if (!extra.ok()) return base::Annotate(extra.status(), path);
  return extra->session_id() == session_id;
}

std::pair<std::string, std::string> SplitPath(const std::string& path) {
  const size_t slash = path.find_last_of('/');
  return {path.substr(0, slash), path.substr(slash + 1)};
}

absl::Status RemovePartial(const StoredImages& images) {
  PREDUMP_ASSIGN_OR_RETURN(const images::ImageStore opened,
                           images::ImageStore::Open(SplitPath(images.partial_path).first));
  // A new writer removes what dead ones left; one that is at work has done so.
  const absl::Status begun = opened.Begin(/*with_parent=*/false).status();
  return absl::IsUnavailable(begun) ? absl::OkStatus() : begun;
}

}  // namespace

absl::StatusOr<Fate> FateStore::Decide(absl::string_view session_id) {
  PREDUMP_RETURN_IF_ERROR(CheckId(session_id));
  const transport::Deadline deadline = transport::Deadline::After(kSettleTimeout);
  const transport::Deadline stop_deadline = transport::Deadline::After(kernel::kStopGrace);
  for (;;) {
    PREDUMP_ASSIGN_OR_RETURN(const std::optional<Fate> fate,
                             DecideNow(session_id, stop_deadline.passed()));
    if (fate.has_value()) return *fate;
    if (deadline.passed()) return Fate{Outcome::kPending, 0};
    ::poll(nullptr, 0, kLookAgainMs);  // without the lock: other sessions go on
  }
}

absl::StatusOr<std::optional<Fate>> FateStore::DecideNow(absl::string_view session_id,
                                                         bool going_is_final) {
  PREDUMP_ASSIGN_OR_RETURN(const base::UniqueFd lock, Lock());
  absl::StatusOr<FateRecord> record = Read(session_id);
  if (absl::IsNotFound(record.status())) record = FateRecord();
  if (!record.ok()) return record.status();
  if (record->state == FateState::kDestroyed) return Fate{Outcome::kDestroyed, 0};
  if (record->state == FateState::kReleased && record->resumed) return RunningAs(*record);
  PREDUMP_ASSIGN_OR_RETURN(const bool lives, SessionLives(session_id));
  if (lives) {
    return record->state == FateState::kReleased ? RunningAs(*record) : Fate{Outcome::kPending, 0};
  }
  if (record->state == FateState::kPreparing) {
    record->state = FateState::kDestroyed;
    PREDUMP_RETURN_IF_ERROR(Write(session_id, *std::move(record)));
    return Fate{Outcome::kDestroyed, 0};
  }
  return DecideCommitted(session_id, *std::move(record), going_is_final);
}

// Of a committed or released session whose process is dead.
absl::StatusOr<std::optional<Fate>> FateStore::DecideCommitted(absl::string_view session_id,
                                                               FateRecord record,
                                                               bool going_is_final) {
  if (record.images.has_value()) return DecideStored(session_id, std::move(record));
  PREDUMP_ASSIGN_OR_RETURN(const std::optional<kernel::ProcessHandle> landing,
                           kernel::FindProcess(*record.landing));
  auto condition = kernel::ParkCondition::kExited;
  if (landing.has_value()) {
    PREDUMP_ASSIGN_OR_RETURN(condition, kernel::ParkConditionOf(*landing));
  }
  if (condition == kernel::ParkCondition::kHeld) return std::nullopt;
  if (condition == kernel::ParkCondition::kGoing && !going_is_final) return std::nullopt;
  const bool was_released = record.state == FateState::kReleased;
  if (condition == kernel::ParkCondition::kExited) {
    // Committed and dead: no instruction of it ever ran. Released: it may have run.
    if (was_released) {
      record.resumed = true;
    } else {
      record.state = FateState::kDestroyed;
    }
    PREDUMP_RETURN_IF_ERROR(Write(session_id, record));
    return was_released ? RunningAs(record) : Fate{Outcome::kDestroyed, 0};
  }
  // On record before it can run: whoever looks in between sees that it may.
  record.state = FateState::kReleased;
  PREDUMP_RETURN_IF_ERROR(Write(session_id, record));
  if (condition == kernel::ParkCondition::kParked) {
    const absl::Status resumed = kernel::FrozenProcess::UnparkAndResume(*landing, kResumeTimeout);
    // Not stopped any more: somebody's SIGCONT was quicker, and it goes on all the same.
    if (!resumed.ok() && !absl::IsFailedPrecondition(resumed) && !base::IsTargetExited(resumed)) {
      spdlog::error("process {} is committed but could not be resumed: {}", record.landing->pid,
                    std::string(resumed.message()));
      return RunningAs(record);
    }
  }
  record.resumed = true;
  PREDUMP_RETURN_IF_ERROR(Write(session_id, record));
  return RunningAs(record);
}

// Of a committed session that stored images, and whose process is dead: nobody renames them now.
absl::StatusOr<Fate> FateStore::DecideStored(absl::string_view session_id, FateRecord record) {
  const StoredImages& images = *record.images;
  PREDUMP_ASSIGN_OR_RETURN(const bool is_final, HoldsSession(images.final_path, session_id));
  PREDUMP_ASSIGN_OR_RETURN(const bool is_partial, HoldsSession(images.partial_path, session_id));
  if (!is_final && record.state == FateState::kReleased) {  // moved away, or removed
    record.resumed = true;
    PREDUMP_RETURN_IF_ERROR(Write(session_id, record));
    return RunningAs(record);
  }
  if (!is_final && !is_partial) {
    return absl::FailedPreconditionError(absl::StrCat(
        "the images of this session are neither in ", images.final_path, " nor in ",
        images.partial_path,
        ": look for a directory that was moved away from there. If there is "
        "one, it holds the process, and `predump resolve` is to end the copy at the source"));
  }
  const bool was_released = record.state == FateState::kReleased;
  record.state = is_final ? FateState::kReleased : FateState::kDestroyed;
  // On record first: then nobody can be told otherwise, whatever becomes of what is left.
  PREDUMP_RETURN_IF_ERROR(Write(session_id, record));
  const absl::Status tidied = is_final ? FinishPublishing(images) : RemovePartial(images);
  if (!tidied.ok()) {
    // Said once: where it is `latest` that does not lead there, Settle tries again and again.
    spdlog::log(was_released ? spdlog::level::debug : spdlog::level::warn, "{}",
                std::string(tidied.message()));
  }
  if (!is_final) return Fate{Outcome::kDestroyed, 0};
  if (tidied.ok()) {
    record.resumed = true;
    PREDUMP_RETURN_IF_ERROR(Write(session_id, record));
  }
  return RunningAs(record);
}

// A writer that dies between its last two steps, or fails there, leaves `latest` where it was.
absl::Status FateStore::FinishPublishing(const StoredImages& images) const {
  const auto [store, number] = SplitPath(images.final_path);
  if (locked_store_ != nullptr && locked_store_->IsAt(store)) {
    return locked_store_->FinishPublishing(number);
  }
  PREDUMP_ASSIGN_OR_RETURN(const images::ImageStore opened, images::ImageStore::Open(store));
  return opened.FinishPublishing(number);
}

absl::StatusOr<bool> FateStore::NeedsSettling(absl::Duration limit) const {
  PREDUMP_ASSIGN_OR_RETURN(const std::vector<std::string> ids, ListSessions());
  for (const std::string& id : ids) {
    const absl::StatusOr<FateRecord> record = Read(id);
    // Half written, or damaged: the former is whole the next time, the latter nobody can settle.
    if (!record.ok()) continue;
    if (IsOpen(*record)) return true;
    const bool ran = record->state == FateState::kReleased;
    if (!ran && absl::Now() - record->written >= limit) return true;
  }
  return false;
}

absl::Status FateStore::Settle(absl::Duration limit) {
  PREDUMP_ASSIGN_OR_RETURN(const std::vector<std::string> ids, ListSessions());
  absl::Status first;
  for (const std::string& id : ids) first.Update(SettleOne(id, limit));
  return first;
}

void FateStore::SettleTheDead(const images::LockedStore& locked) {
  locked_store_ = &locked;
  SettleTheDead();
  locked_store_ = nullptr;
}

void FateStore::SettleTheDead() {
  const transport::Deadline deadline = transport::Deadline::After(kDyingTimeout);
  for (;;) {
    const absl::StatusOr<bool> needed = NeedsSettling(absl::InfiniteDuration());
    if (!needed.ok() || !*needed) return;
    const absl::Status settled = Settle(absl::InfiniteDuration());
    // What cannot be decided now is told to whoever asks for it.
    if (!settled.ok()) spdlog::debug("{}", std::string(settled.message()));
    if (deadline.passed()) return;
    ::poll(nullptr, 0, kLookAgainMs);
  }
}

absl::Status FateStore::SettleOne(const std::string& session_id, absl::Duration limit) {
  const absl::StatusOr<FateRecord> before = Read(session_id);
  if (absl::IsNotFound(before.status())) return absl::OkStatus();
  if (!before.ok()) return before.status();
  if (IsOpen(*before)) {
    PREDUMP_RETURN_IF_ERROR(Decide(session_id));
  }
  PREDUMP_ASSIGN_OR_RETURN(const base::UniqueFd lock, Lock());
  const absl::StatusOr<FateRecord> record = Read(session_id);
  if (!record.ok() || absl::Now() - record->written < limit) return absl::OkStatus();
  PREDUMP_ASSIGN_OR_RETURN(const bool lives, SessionLives(session_id));
  if (lives || record->state == FateState::kCommitted) return absl::OkStatus();
  // A source that never said Done may still be parked and ask: forgotten, "it never ran" would be
  // the answer, and a second copy would run.
  if (record->state == FateState::kReleased) return absl::OkStatus();
  Remove(session_id);
  return absl::OkStatus();
}

}  // namespace predump::pageserver
