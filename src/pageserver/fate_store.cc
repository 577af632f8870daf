#include "src/pageserver/fate_store.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/random.h>
#include <unistd.h>

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "src/base/atomic_file.h"
#include "src/base/errors.h"

namespace predump::pageserver {
namespace {

constexpr char kAliveSuffix[] = ".alive";

// More than any record needs, so that a shorter one leaves nothing of a longer one behind; less
// than a page.
constexpr size_t kRecordBytes = 3072;
constexpr size_t kStoreIdBytes = 16;

struct DirCloser {
  void operator()(DIR* dir) const { ::closedir(dir); }
};

}  // namespace

absl::Status FateStore::CheckId(absl::string_view session_id) {
  if (session_id.size() == kSessionIdBytes) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("a session id has ", kSessionIdBytes, " bytes, not ", session_id.size()));
}

absl::StatusOr<FateStore> FateStore::Open(const std::string& state_directory) {
  FateStore store(absl::StrCat(state_directory, "/target"));
  PREDUMP_RETURN_IF_ERROR(base::MakePrivateDirectory(store.directory_));
  PREDUMP_ASSIGN_OR_RETURN(const base::UniqueFd lock, store.Lock());
  PREDUMP_RETURN_IF_ERROR(store.ReadOrMakeId());
  return store;
}

absl::Status FateStore::ReadOrMakeId() {
  const std::string path = absl::StrCat(directory_, "/store-id");
  const absl::StatusOr<std::string> text = base::ReadWholeFile(path);
  if (text.ok()) {
    id_ = absl::HexStringToBytes(absl::StripAsciiWhitespace(*text));
    if (id_.size() == kStoreIdBytes) return absl::OkStatus();
    return absl::DataLossError(absl::StrCat(path, " holds no id of a store"));
  }
  if (base::ErrnoOf(text.status()) != ENOENT) return text.status();
  id_.resize(kStoreIdBytes);
  if (::getrandom(id_.data(), id_.size(), 0) != static_cast<ssize_t>(id_.size())) {
    return base::ErrnoError(errno, "getrandom");
  }
  return base::WriteFileAtomically(path, absl::StrCat(absl::BytesToHexString(id_), "\n"),
                                   base::Durability::kProcessDeath);
}

absl::StatusOr<base::UniqueFd> FateStore::Lock() const {
  const std::string path = absl::StrCat(directory_, "/lock");
  base::UniqueFd fd(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!fd.valid()) return base::ErrnoError(errno, "open ", path);
  while (::flock(fd.get(), LOCK_EX) != 0) {
    if (errno != EINTR) return base::ErrnoError(errno, "lock ", path);
  }
  return fd;
}

std::string FateStore::PathOf(absl::string_view session_id) const {
  return absl::StrCat(directory_, "/", absl::BytesToHexString(session_id));
}

std::string FateStore::AlivePathOf(absl::string_view session_id) const {
  return absl::StrCat(PathOf(session_id), kAliveSuffix);
}

absl::StatusOr<FateRecord> FateStore::Read(absl::string_view session_id) const {
  const std::string path = PathOf(session_id);
  PREDUMP_ASSIGN_OR_RETURN(const std::string text, base::ReadWholeFile(path));
  absl::StatusOr<FateRecord> record = FateRecord::Parse(text);
  if (!record.ok()) return base::Annotate(record.status(), path);
  return record;
}

absl::Status FateStore::Write(absl::string_view session_id, FateRecord record) const {
  record.written = absl::Now();
  std::string text = record.Serialize();
  text.resize(std::max(text.size(), kRecordBytes), '\n');
  const std::string path = PathOf(session_id);
  const base::UniqueFd fd(::open(path.c_str(), O_WRONLY | O_CLOEXEC | O_NOFOLLOW));
  if (!fd.valid()) {
    if (errno != ENOENT) return base::ErrnoError(errno, "open ", path);
    // A host that loses its power has no landing any more that could run beside the source's.
    return base::WriteFileAtomically(path, text, base::Durability::kProcessDeath);
  }
  // Both copies stand still meanwhile: in place, because a new file and its renaming cost a fifth
  // of a millisecond. Readers hold the lock, and a kill cannot break off the write of less than a
  // page.
  const ssize_t written = ::pwrite(fd.get(), text.data(), text.size(), 0);
  if (written < 0) return base::ErrnoError(errno, "write ", path);
  if (static_cast<size_t>(written) != text.size()) {
    return absl::DataLossError(absl::StrCat("write ", path, ": only ", written, " bytes"));
  }
  return absl::OkStatus();
}

void FateStore::Remove(absl::string_view session_id) const {
  ::unlink(PathOf(session_id).c_str());
  ::unlink(AlivePathOf(session_id).c_str());
}

absl::StatusOr<bool> FateStore::SessionLives(absl::string_view session_id) const {
  const std::string path = AlivePathOf(session_id);
  base::UniqueFd fd(::open(path.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW));
  if (!fd.valid()) {
    if (errno == ENOENT) return false;
    return base::ErrnoError(errno, "open ", path);
  }
  if (::flock(fd.get(), LOCK_EX | LOCK_NB) == 0) return false;
  if (errno == EWOULDBLOCK) return true;
  return base::ErrnoError(errno, "lock ", path);
}

absl::StatusOr<LiveSession> FateStore::BeginSession(absl::string_view session_id) {
  PREDUMP_RETURN_IF_ERROR(CheckId(session_id));
  PREDUMP_ASSIGN_OR_RETURN(const base::UniqueFd lock, Lock());
  const absl::StatusOr<FateRecord> record = Read(session_id);
  if (record.ok()) {
    return absl::FailedPreconditionError(
        absl::StrCat("this session is ", NameOf(record->state), " here already"));
  }
  if (!absl::IsNotFound(record.status())) return record.status();
  const std::string path = AlivePathOf(session_id);
  base::UniqueFd alive(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!alive.valid()) return base::ErrnoError(errno, "open ", path);
  if (::flock(alive.get(), LOCK_EX | LOCK_NB) != 0) return base::ErrnoError(errno, "lock ", path);
  const absl::Status written = Write(session_id, FateRecord());
  if (!written.ok()) {
    Remove(session_id);
    return written;
  }
  return LiveSession(std::string(session_id), std::move(alive));
}

absl::Status FateStore::Commit(const LiveSession& session, const LandingIdentity& landing) {
  return CommitAs(session, landing, std::nullopt);
}

absl::Status FateStore::Commit(const LiveSession& session, const StoredImages& images) {
  return CommitAs(session, std::nullopt, images);
}

absl::Status FateStore::CommitAs(const LiveSession& session, std::optional<LandingIdentity> landing,
                                 std::optional<StoredImages> images) {
  PREDUMP_ASSIGN_OR_RETURN(const base::UniqueFd lock, Lock());
  PREDUMP_ASSIGN_OR_RETURN(FateRecord record, Read(session.id()));
  if (record.state != FateState::kPreparing) {
    return absl::FailedPreconditionError(
        absl::StrCat("this session was ", NameOf(record.state), " meanwhile"));
  }
  record.state = FateState::kCommitted;
  record.landing = std::move(landing);
  record.images = std::move(images);
  if (record.Serialize().size() > kRecordBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(record.images->final_path, " is too long a path for the record of a session"));
  }
  return Write(session.id(), std::move(record));
}

absl::Status FateStore::Release(const LiveSession& session) {
  PREDUMP_ASSIGN_OR_RETURN(const base::UniqueFd lock, Lock());
  PREDUMP_ASSIGN_OR_RETURN(FateRecord record, Read(session.id()));
  if (record.state != FateState::kCommitted) {
    return absl::FailedPreconditionError(
        absl::StrCat("only a committed session is released; this one is ", NameOf(record.state)));
  }
  record.state = FateState::kReleased;
  record.resumed = record.images.has_value();  // nothing is left to be done
  return Write(session.id(), std::move(record));
}

absl::Status FateStore::Resumed(const LiveSession& session) {
  PREDUMP_ASSIGN_OR_RETURN(const base::UniqueFd lock, Lock());
  PREDUMP_ASSIGN_OR_RETURN(FateRecord record, Read(session.id()));
  if (record.state != FateState::kReleased) {
    return absl::FailedPreconditionError(
        absl::StrCat("only a released session resumes; this one is ", NameOf(record.state)));
  }
  record.resumed = true;
  return Write(session.id(), std::move(record));
}

absl::Status FateStore::Destroy(const LiveSession& session) {
  PREDUMP_ASSIGN_OR_RETURN(const base::UniqueFd lock, Lock());
  PREDUMP_ASSIGN_OR_RETURN(FateRecord record, Read(session.id()));
  if (record.state == FateState::kDestroyed) return absl::OkStatus();
  if (record.state != FateState::kPreparing) {
    return absl::FailedPreconditionError(
        absl::StrCat("a ", NameOf(record.state), " session is not ours to destroy"));
  }
  record.state = FateState::kDestroyed;
  return Write(session.id(), std::move(record));
}

absl::Status FateStore::Forget(const LiveSession& session) {
  PREDUMP_ASSIGN_OR_RETURN(const base::UniqueFd lock, Lock());
  Remove(session.id());
  return absl::OkStatus();
}

absl::StatusOr<std::vector<std::string>> FateStore::ListSessions() const {
  const std::unique_ptr<DIR, DirCloser> dir(::opendir(directory_.c_str()));
  if (dir == nullptr) return base::ErrnoError(errno, "opendir ", directory_);
  std::vector<std::string> ids;
  while (const dirent* entry = ::readdir(dir.get())) {
    const std::string name = entry->d_name;
    if (name.size() != 2 * kSessionIdBytes ||
        name.find_first_not_of("0123456789abcdef") != std::string::npos) {
      continue;
    }
    ids.push_back(absl::HexStringToBytes(name));
  }
  return ids;
}

}  // namespace predump::pageserver
