#include "src/checkpoint/blocker_list.h"

#include "absl/strings/str_cat.h"

namespace predump::checkpoint {

void BlockerList::Add(std::string what, std::string reason, std::string advice) {
  for (const proto::Blocker& known : blockers_) {
    if (known.what() == what && known.reason() == reason) return;
  }
  proto::Blocker& blocker = blockers_.emplace_back();
  blocker.set_what(std::move(what));
  blocker.set_reason(std::move(reason));
  if (!advice.empty()) blocker.set_advice(std::move(advice));
}

absl::Status BlockerList::ToStatus() const {
  if (blockers_.empty()) return absl::OkStatus();
  std::string message = "the process cannot move: ";
  for (size_t i = 0; i < blockers_.size(); ++i) {
    absl::StrAppend(&message, i == 0 ? "" : "; ", blockers_[i].what(), ": ", blockers_[i].reason());
  }
  return absl::FailedPreconditionError(message);
}

}  // namespace predump::checkpoint
