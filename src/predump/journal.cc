#include "src/predump/journal.h"

#include <errno.h>
#include <unistd.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <system_error>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "src/base/atomic_file.h"
#include "src/base/errors.h"
#include "src/kernel/process_identity.h"

namespace predump {
namespace {

constexpr int kJournalVersion = 1;
constexpr char kCommitted[] = ".json";
constexpr char kPrepared[] = ".prepared";

absl::StatusOr<JournalEntry> Parse(const std::string& text) {
  const nlohmann::json json = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return absl::DataLossError("it is damaged: not a JSON object");
  JournalEntry entry;
  try {
    if (const int version = json.at("version").get<int>(); version != kJournalVersion) {
      return absl::FailedPreconditionError(
          absl::StrCat("it was written by another version of predump (format ", version,
                       ", this one knows ", kJournalVersion, "); use that one"));
    }
    entry.session_id = absl::HexStringToBytes(json.at("session").get<std::string>());
    entry.process.pid = json.at("pid").get<pid_t>();
    entry.process.start_time_ticks = json.at("start-time-ticks").get<uint64_t>();
    entry.process.boot_id = json.at("boot-id").get<std::string>();
    entry.process.pid_namespace = json.value("pid-namespace", uint64_t{0});
    entry.command = json.at("command").get<std::string>();
    entry.target = json.at("target").get<std::string>();
    entry.remote_predump = json.value("remote-predump", "");
    entry.remote_options = json.value("remote-options", "");
    entry.target_boot_id = json.at("target-boot-id").get<std::string>();
    entry.target_store_id = absl::HexStringToBytes(json.value("target-store-id", ""));
    entry.engine = entry.process;  // both were seen from one place
    entry.engine.pid = json.at("engine-pid").get<pid_t>();
    entry.engine.start_time_ticks = json.at("engine-start-time-ticks").get<uint64_t>();
  } catch (const nlohmann::json::exception& e) {
    return absl::DataLossError(absl::StrCat("it is damaged: ", e.what()));
  }
  return entry;
}

// Whether an entry of this boot speaks of that process, or may: under another number it may where
// numbers are another pid namespace's.
bool MaySpeakOf(const kernel::ProcessIdentity& entry, const kernel::ProcessIdentity& process) {
  if (entry.boot_id != process.boot_id || entry.start_time_ticks != process.start_time_ticks) {
    return false;
  }
  const bool same_numbers =
      entry.pid_namespace == 0 || entry.pid_namespace == process.pid_namespace;
  return !same_numbers || entry.pid == process.pid;
}

}  // namespace

std::string JournalEntry::session_hex() const { return absl::BytesToHexString(session_id); }

absl::StatusOr<Journal> Journal::Open(std::string directory) {
  PREDUMP_RETURN_IF_ERROR(base::MakePrivateDirectory(directory));
  return Journal(std::move(directory));
}

std::string Journal::PathOf(const JournalEntry& entry) const {
  return absl::StrCat(directory_, "/", entry.session_hex(), kCommitted);
}

absl::Status Journal::Prepare(const JournalEntry& entry) const {
  const nlohmann::ordered_json json = {
      {"version", kJournalVersion},
      {"state", "committing"},
      {"session", entry.session_hex()},
      {"pid", entry.process.pid},
      {"start-time-ticks", entry.process.start_time_ticks},
      {"boot-id", entry.process.boot_id},
      {"pid-namespace", entry.process.pid_namespace},
      {"command", entry.command},
      {"target", entry.target},
      {"remote-predump", entry.remote_predump},
      {"remote-options", entry.remote_options},
      {"target-boot-id", entry.target_boot_id},
      {"target-store-id", absl::BytesToHexString(entry.target_store_id)},
      {"engine-pid", entry.engine.pid},
      {"engine-start-time-ticks", entry.engine.start_time_ticks},
  };
  // A command name may hold any bytes.
  const std::string text = json.dump(2, ' ', false, nlohmann::json::error_handler_t::replace);
  return base::WriteFileAtomically(PathOf(entry) + kPrepared, absl::StrCat(text, "\n"),
                                   base::Durability::kProcessDeath);
}

absl::Status Journal::Commit(const JournalEntry& entry) const {
  const std::string path = PathOf(entry);
  const std::string prepared = path + kPrepared;
  if (::rename(prepared.c_str(), path.c_str()) != 0) {
    return base::ErrnoError(errno, "rename ", prepared, " to ", path);
  }
  return absl::OkStatus();
}

void Journal::Discard(const JournalEntry& entry) const {
  ::unlink((PathOf(entry) + kPrepared).c_str());
}

absl::Status Journal::Remove(const JournalEntry& entry) const {
  const std::string path = PathOf(entry);
  if (::unlink(path.c_str()) != 0 && errno != ENOENT) {
    return base::ErrnoError(errno, "unlink ", path);
  }
  return absl::OkStatus();
}

absl::StatusOr<JournalListing> Journal::List() const { return ListFiles(kCommitted); }

absl::StatusOr<std::vector<std::string>> Journal::FindUnsettled(
    const std::string& directory, const kernel::ProcessHandle& process) {
  std::vector<std::string> reasons;
  if (::access(directory.c_str(), F_OK) != 0 && errno == ENOENT) return reasons;
  PREDUMP_ASSIGN_OR_RETURN(const JournalListing listing, Journal(directory).List());
  PREDUMP_ASSIGN_OR_RETURN(const kernel::ProcessIdentity identity,
                           kernel::ProcessIdentity::Of(process));
  for (const JournalEntry& entry : listing.entries) {
    if (!MaySpeakOf(entry.process, identity)) continue;
    reasons.push_back(absl::StrCat("process ", process.pid(), ": an earlier handover to ",
                                   entry.target, " was never settled (run `predump resolve --pid ",
                                   entry.process.pid, "`)"));
  }
  for (const std::string& line : listing.unreadable) {
    reasons.push_back(absl::StrCat("process ", process.pid(), ": ", line,
                                   "; it may speak of this process (see `predump resolve`)"));
  }
  return reasons;
}

absl::StatusOr<JournalListing> Journal::ListPrepared() const {
  return ListFiles(absl::StrCat(kCommitted, kPrepared));
}

absl::StatusOr<JournalListing> Journal::ListFiles(absl::string_view suffix) const {
  JournalListing listing;
  std::error_code error;
  std::filesystem::directory_iterator files(directory_, error);
  if (error) return base::ErrnoError(error.value(), "list ", directory_);
  for (const auto& file : files) {
    const std::string path = file.path().string();
    if (!absl::EndsWith(path, suffix)) continue;
    const absl::StatusOr<std::string> text = base::ReadWholeFile(path);
    // Settled by somebody else between listing and reading.
    if (base::ErrnoOf(text.status()) == ENOENT) continue;
    absl::StatusOr<JournalEntry> entry = text.ok() ? Parse(*text) : text.status();
    if (entry.ok()) {
      listing.entries.push_back(*std::move(entry));
    } else {
      listing.unreadable.push_back(
          absl::StrCat("journal entry ", path, ": ", entry.status().message()));
    }
  }
  return listing;
}

}  // namespace predump
