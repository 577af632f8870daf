// The source's journal: what a later `predump resolve` must know when an engine dies between
// Commit and the end of the handover (DESIGN 10).
//
// One JSON file per handover, /run/predump/source/SESSION.json, in place before Commit is sent and
// removed once the fate of the process is settled. Pids are those of the pid namespace that is
// written down with them.
#ifndef PREDUMP_PREDUMP_JOURNAL_H_
#define PREDUMP_PREDUMP_JOURNAL_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "src/kernel/process.h"
#include "src/kernel/process_identity.h"

namespace predump {

struct JournalEntry {
  std::string session_id;  // 16 bytes, as sent
  kernel::ProcessIdentity process;
  std::string command;  // comm, for people
  std::string target;   // the address given with --to
  // How the server there is started, where that is up to us (ssh://); else empty.
  std::string remote_predump;
  std::string remote_options;
  // Of the host that answered there: after a restart, or on another host, a page server knows
  // nothing of the session, and that must not pass for "it never ran".
  std::string target_boot_id;
  // The store of fates there: a server with another one knows as little.
  std::string target_store_id;
  kernel::ProcessIdentity engine;

  std::string session_hex() const;
};

// What a directory of entries holds.
struct JournalListing {
  std::vector<JournalEntry> entries;
  // Files that cannot be read, or were written by another version: one line each, with the name.
  std::vector<std::string> unreadable;
};

class Journal {
 public:
  // `directory` (default /run/predump/source) is made, mode 0700. Errors: PermissionDenied when
  // others could write there; otherwise from errno.
  static absl::StatusOr<Journal> Open(std::string directory);

  // Writes all of the entry beside its place; it does not count yet. Before the freeze: making a
  // file can take milliseconds on a disk that is busy.
  absl::Status Prepare(const JournalEntry& entry) const;
  // Makes the prepared entry count, with a single rename(2).
  absl::Status Commit(const JournalEntry& entry) const;
  // Forgets what was prepared and not committed.
  void Discard(const JournalEntry& entry) const;
  // Takes it back. No error where there is none.
  absl::Status Remove(const JournalEntry& entry) const;
  // Why this process may not be handed over: an earlier handover of it counts still, or an entry
  // may speak of it and cannot be read. One line each; empty: nothing. Makes no directory.
  static absl::StatusOr<std::vector<std::string>> FindUnsettled(
      const std::string& directory, const kernel::ProcessHandle& process);
  // Entries that an engine prepared; it has died since, or is about to commit.
  absl::StatusOr<JournalListing> ListPrepared() const;
  // All that count. Errors: the directory cannot be read.
  absl::StatusOr<JournalListing> List() const;

 private:
  explicit Journal(std::string directory) : directory_(std::move(directory)) {}
  std::string PathOf(const JournalEntry& entry) const;
  absl::StatusOr<JournalListing> ListFiles(absl::string_view suffix) const;

  std::string directory_;
};

}  // namespace predump

#endif  // PREDUMP_PREDUMP_JOURNAL_H_
