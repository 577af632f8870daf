// A test's own way to take a process apart, so that restore is tested without the rest: enough of
// its state for a simple program, and its memory as frames.
#ifndef PREDUMP_TESTS_RESTORE_SNAPSHOT_H_
#define PREDUMP_TESTS_RESTORE_SNAPSHOT_H_

#include "absl/status/statusor.h"
#include "proto/state.pb.h"
#include "src/kernel/process.h"
#include "tests/restore/frame_source.h"

namespace predump::restore {

// Stops `process`, describes it without descriptors, sends its memory to `source` with the final
// mark (round 1), and lets it go on. `pid` becomes the leader's number, other threads get the
// numbers after it.
absl::StatusOr<proto::ProcessState> TakeSnapshot(const kernel::ProcessHandle& process, uint32_t pid,
                                                 FrameSource& source);

// Appends a file with the given body, and a descriptor of it; returns the file's id.
uint32_t AddDescriptor(proto::ProcessState& state, uint32_t fd, criu::file_entry file,
                       bool close_on_exec = false);
// Another descriptor of a file that is there.
void AddAnotherDescriptor(proto::ProcessState& state, uint32_t fd, uint32_t file_id);
criu::file_entry RegularFile(const std::string& path, uint32_t flags, uint64_t position = 0);

}  // namespace predump::restore

#endif  // PREDUMP_TESTS_RESTORE_SNAPSHOT_H_
