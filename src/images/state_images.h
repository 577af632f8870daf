// The captured state of a process as CRIU's images, and back.
//
// Written: inventory, pstree, ids-, core-, mm-, fs-, files, fdinfo-, pipes-data, sk-queues,
// seccomp, timens-0, tty-info where one is needed; and `predump-extra`, ours, with what CRIU's
// messages have no room for. CRIU ignores that file. The images are the truth: what they and the
// extra both tell, the images decide, so that a set edited with `crit` is restored as edited. Pages
// are not written here (pagemap_image.h). Thread rule: free functions.
#ifndef PREDUMP_IMAGES_STATE_IMAGES_H_
#define PREDUMP_IMAGES_STATE_IMAGES_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "proto/state.pb.h"
#include "proto/stored.pb.h"

namespace predump::images {

inline constexpr char kExtraName[] = "predump-extra";
inline constexpr uint32_t kExtraVersion = 1;

// Writes all images of `state` (validated, full) into `directory_fd`. `stored` brings the source
// host's facts and the like; its version and its part of the state are set here. Its late signals
// are queued in the images, where CRIU finds them, too.
absl::Status WriteState(int directory_fd, const proto::ProcessState& state,
                        proto::StoredExtra stored);

// Queues signals that came after the state was captured in images that WriteState wrote.
absl::Status AddLateSignals(int directory_fd,
                            const google::protobuf::RepeatedPtrField<proto::LateSignal>& signals);

struct StoredState {
  proto::ProcessState state;
  // Absent: the set is CRIU's own. Its late signals are in the state's queues.
  std::optional<proto::StoredExtra> extra;
  // Images that are there and mean something that ProcessState cannot say, each as one line for a
  // person ("ghost-file-1.img: a file that was deleted while open"). Not empty: refuse to restore.
  std::vector<proto::Blocker> blockers;
};

// Reads a whole set, predump's or CRIU's (3.15 to 4.2), of one process. Errors: NotFound with the
// image that is missing, and what that means (a directory with rounds only has no inventory of
// version 2); DataLoss for what is broken; Unimplemented for an inventory of a newer format, more
// than one process, another architecture.
absl::StatusOr<StoredState> ReadState(int directory_fd);

// inventory.img of a directory that holds rounds only, as `criu pre-dump` leaves it.
// `uptime_us`: microseconds since the source host's boot when the round's pages were reset; what
// `criu dump --prev-images-dir` compares with the process's start to notice a reused pid.
// What is there is replaced at once.
absl::Status WriteRoundInventory(int directory_fd, uint64_t uptime_us);

// Whether that would spoil nothing. FailedPrecondition: the directory is a store, or holds a whole
// process; other errors: it has an inventory that cannot be read. All say what is there, without
// the directory's name.
absl::Status CheckTakesRoundInventory(int directory_fd);

}  // namespace predump::images

#endif  // PREDUMP_IMAGES_STATE_IMAGES_H_
