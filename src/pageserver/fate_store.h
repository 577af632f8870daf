// What became of each session, on disk, so that whoever is asked says the same (DESIGN 10).
//
// A session brings a process to life, or stores its images. Of images, to be published (by one
// rename) is what to be resumed is of a process: after `committed` it happens, or never will.
//
//   (nothing) --BeginSession--> preparing --Commit--> committed --Release--> released --Resumed-->
//   released
//        \________________________|_____________________|                    (not resumed)
//        (resumed)
//                         Destroy, or Decide           Decide, if the landing is dead, or the
//                                 v                     v        images were not published
//                              destroyed            destroyed
//
// I1: a fate is decided once: no transition leaves `destroyed` or `released` (but to be forgotten).
// I2: every transition is made under one lock, and no kill leaves half a record: two deciders
//     cannot differ.
// I3: while a session process lives (it holds a lock of its own) nobody else decides for it.
// Files: DIR/target/<session id in hex>, mode 0600, and <...>.alive, the lock of the session.
// Thread rule: one thread at a time; any number of processes.
#ifndef PREDUMP_PAGESERVER_FATE_STORE_H_
#define PREDUMP_PAGESERVER_FATE_STORE_H_

#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "src/base/unique_fd.h"
#include "src/kernel/process_identity.h"

namespace predump::images {
class LockedStore;
}

namespace predump::pageserver {

inline constexpr size_t kSessionIdBytes = 16;

// As seen by the server.
using LandingIdentity = kernel::ProcessIdentity;

enum class FateState { kPreparing, kCommitted, kReleased, kDestroyed };

// "committed" and the like, as records have it.
absl::string_view NameOf(FateState state);

// Where the images of a session go: D of a store S is S/.D.partial until it is published.
struct StoredImages {
  std::string partial_path;  // absolute
  std::string final_path;    // absolute
};

struct FateRecord {
  FateState state = FateState::kPreparing;
  // Of kReleased: the landing was seen to go on, or `latest` leads to the images.
  bool resumed = false;
  // One of the two, once committed.
  std::optional<LandingIdentity> landing;
  std::optional<StoredImages> images;
  absl::Time written;

  std::string Serialize() const;
  // DataLoss for what Serialize does not write.
  static absl::StatusOr<FateRecord> Parse(absl::string_view text);
};

enum class Outcome { kDestroyed, kRunning, kPending };

struct Fate {
  Outcome outcome = Outcome::kPending;
  pid_t restored_pid = 0;      // of kRunning; 0: it was stored
  std::string stored_in = {};  // of kRunning: the image directory
};

class FateStore;

// Held by the process that works on a session. As long as it is, the fate is this process's alone.
class LiveSession {
 public:
  const std::string& id() const { return id_; }

 private:
  friend class FateStore;
  LiveSession(std::string id, base::UniqueFd lock) : id_(std::move(id)), lock_(std::move(lock)) {}

  std::string id_;
  base::UniqueFd lock_;
};

class FateStore {
 public:
  // Makes DIR/target (0700) where it is not there.
  static absl::StatusOr<FateStore> Open(const std::string& state_directory);

  // 16 random bytes, made with the store: tells it from an empty one that knows of no session.
  const std::string& id() const { return id_; }

  // Records `preparing`. InvalidArgument for an id that is not 16 bytes; FailedPrecondition where
  // the session has a fate, or a live process, already.
  absl::StatusOr<LiveSession> BeginSession(absl::string_view session_id);

  // From `preparing`. FailedPrecondition where the fate was decided otherwise meanwhile: then the
  // landing must not run.
  absl::Status Commit(const LiveSession& session, const LandingIdentity& landing);
  // The same of images, which are whole and on disk at partial_path, and bear the session's id.
  // InvalidArgument: the paths are too long for a record.
  absl::Status Commit(const LiveSession& session, const StoredImages& images);
  // From `committed`. Of images: they have their final path.
  absl::Status Release(const LiveSession& session);
  // The released process was seen to go on.
  absl::Status Resumed(const LiveSession& session);
  // From `preparing`: it will never run here. No-op where that is on record already.
  absl::Status Destroy(const LiveSession& session);
  // The source knows all it needs.
  absl::Status Forget(const LiveSession& session);

  // Says what became of a session, and makes it so for ever where it was open:
  //   unknown, or preparing without a live process: destroyed, which is recorded first
  //   committed, no live process: destroyed where the landing is dead; else it is made to run
  //   released: running, whatever became of it since; a landing left stopped is made to run
  //   of images, committed, no live process: running where final_path holds the session's, and
  //     `latest` is made to lead there; destroyed where only partial_path does, which then goes
  //   a live process is at it: pending
  // Errors: the store cannot be read or written; the landing cannot be judged (other pid
  // namespace); committed images are in neither place. In every error the fate is open and the
  // source stays as it is.
  absl::StatusOr<Fate> Decide(absl::string_view session_id);

  // Whether Settle(limit) may have something to do. Looks without the lock: what is in motion may
  // count.
  absl::StatusOr<bool> NeedsSettling(absl::Duration limit) const;
  // Brings to an end what dead sessions left between commit and resumption, and forgets fates older
  // than `limit`, but none of a released process: its source may still be parked, and "unknown"
  // means "may run at the source". Returns the first error, after trying all.
  absl::Status Settle(absl::Duration limit);

  // Decides at once about all sessions that died, and waits a moment for those that are dying. For
  // a session that has just locked a store, before it tidies up there: a fate may hang on it.
  void SettleTheDead(const images::LockedStore& locked);
  // The same without a store.
  void SettleTheDead();

 private:
  explicit FateStore(std::string directory) : directory_(std::move(directory)) {}
  absl::Status ReadOrMakeId();
  static absl::Status CheckId(absl::string_view session_id);

  absl::StatusOr<base::UniqueFd> Lock() const;
  std::string PathOf(absl::string_view session_id) const;
  std::string AlivePathOf(absl::string_view session_id) const;
  // NotFound: no record.
  absl::StatusOr<FateRecord> Read(absl::string_view session_id) const;
  absl::Status Write(absl::string_view session_id, FateRecord record) const;
  void Remove(absl::string_view session_id) const;
  absl::StatusOr<bool> SessionLives(absl::string_view session_id) const;
  // Nothing: the landing is between two states, look again. `going_is_final`: it had all the time
  // it needs to stop, so that one that goes on was let go by somebody.
  absl::StatusOr<std::optional<Fate>> DecideNow(absl::string_view session_id, bool going_is_final);
  absl::StatusOr<std::optional<Fate>> DecideCommitted(absl::string_view session_id,
                                                      FateRecord record, bool going_is_final);
  absl::StatusOr<Fate> DecideStored(absl::string_view session_id, FateRecord record);
  absl::Status FinishPublishing(const StoredImages& images) const;
  absl::Status CommitAs(const LiveSession& session, std::optional<LandingIdentity> landing,
                        std::optional<StoredImages> images);
  // Ids of all sessions on record.
  absl::StatusOr<std::vector<std::string>> ListSessions() const;
  absl::Status SettleOne(const std::string& session_id, absl::Duration limit);

  std::string directory_;
  std::string id_;
  const images::LockedStore* locked_store_ = nullptr;  // by this process, in SettleTheDead
};

}  // namespace predump::pageserver

#endif  // PREDUMP_PAGESERVER_FATE_STORE_H_
