// How the record of a session is written: lines of "key value", so that people can read it.
#include <map>
#include <utility>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "src/pageserver/fate_store.h"

namespace predump::pageserver {
namespace {

constexpr char kFormatLine[] = "predump-fate 1";

constexpr std::pair<FateState, absl::string_view> kStateNames[] = {
    {FateState::kPreparing, "preparing"},
    {FateState::kCommitted, "committed"},
    {FateState::kReleased, "released"},
    {FateState::kDestroyed, "destroyed"},
};

}  // namespace

absl::string_view NameOf(FateState state) {
  for (const auto& [known, name] : kStateNames) {
    if (known == state) return name;
  }
  return "unknown";
}

std::string FateRecord::Serialize() const {
  std::string text =
      absl::StrCat(kFormatLine, "\nstate ", NameOf(state), "\nresumed ", resumed ? 1 : 0,
                   "\nwritten ", absl::ToUnixSeconds(written), "\n");
  if (landing.has_value()) {
    absl::StrAppend(&text, "pid ", landing->pid, "\nstart ", landing->start_time_ticks, "\nboot ",
                    landing->boot_id, "\npidns ", landing->pid_namespace, "\n");
  }
  if (images.has_value()) {
    // The last line tells a path that is whole from one that was cut off.
    absl::StrAppend(&text, "partial ", absl::CEscape(images->partial_path), "\nfinal ",
                    absl::CEscape(images->final_path), "\nimages 1\n");
  }
  return text;
}

absl::StatusOr<FateRecord> FateRecord::Parse(absl::string_view text) {
  const absl::Status malformed = absl::DataLossError("this is not a fate record");
  std::vector<absl::string_view> lines = absl::StrSplit(text, '\n', absl::SkipEmpty());
  if (lines.empty() || lines.front() != kFormatLine) return malformed;
  std::map<absl::string_view, absl::string_view> fields;
  for (size_t i = 1; i < lines.size(); ++i) {
    const std::pair<absl::string_view, absl::string_view> field =
        absl::StrSplit(lines[i], absl::MaxSplits(' ', 1));
    if (!fields.insert(field).second) return malformed;
  }
  FateRecord record;
  bool known = false;
  for (const auto& [state, name] : kStateNames) {
    if (fields["state"] != name) continue;
    record.state = state;
    known = true;
  }
  int64_t written = 0;
  if (!known || !absl::SimpleAtoi(fields["written"], &written)) return malformed;
  record.written = absl::FromUnixSeconds(written);
  record.resumed = fields["resumed"] == "1";
  if (fields.contains("pid")) {
    LandingIdentity landing;
    landing.boot_id = std::string(fields["boot"]);
    if (!absl::SimpleAtoi(fields["pid"], &landing.pid) || landing.pid <= 0 ||
        !absl::SimpleAtoi(fields["start"], &landing.start_time_ticks) ||
        !absl::SimpleAtoi(fields["pidns"], &landing.pid_namespace) || landing.boot_id.empty()) {
      return malformed;
    }
    record.landing = std::move(landing);
  }
  if (fields.contains("partial")) {
    StoredImages images;
    if (fields["images"] != "1" || !absl::CUnescape(fields["partial"], &images.partial_path) ||
        !absl::CUnescape(fields["final"], &images.final_path) ||
        !images.partial_path.starts_with('/') || !images.final_path.starts_with('/')) {
      return malformed;
    }
    record.images = std::move(images);
  }
  const bool is_committed =
      record.state == FateState::kCommitted || record.state == FateState::kReleased;
  if (is_committed && record.landing.has_value() == record.images.has_value()) return malformed;
  return record;
}

}  // namespace predump::pageserver
