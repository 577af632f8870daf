// One session whose process is stored instead of being built (DESIGN 10): from the data connection
// to Done.
//
// Whole moves go as a handover to a landing does: the images take the landing's place, and what is
// their being published (one rename) is its being resumed. With --leave-running they are published
// although the process goes on at the source. Thread rule: one thread.
#ifndef PREDUMP_PAGESERVER_IMAGE_SESSION_H_
#define PREDUMP_PAGESERVER_IMAGE_SESSION_H_

#include <cstdint>
#include <optional>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "proto/session.pb.h"
#include "src/base/clock.h"
#include "src/pageserver/fate_store.h"
#include "src/pageserver/frame_reader.h"
#include "src/pageserver/incoming_images.h"
#include "src/pageserver/server.h"
#include "src/pageserver/session_link.h"

namespace predump::pageserver {

// What is known of the source since its hello.
struct SourceHost {
  std::string program_version;
  proto::HostFacts facts;
  base::Stopwatch since_hello;

  // Microseconds since its boot, now.
  uint64_t UptimeMicroseconds() const;
};

class ImageSession {
 public:
  ImageSession(const ServerOptions& options, const proto::Begin& begin, const SourceHost& source,
               SessionLink& link, FateStore& store, IncomingImages images)
      : options_(options),
        begin_(begin),
        source_(source),
        link_(link),
        store_(store),
        images_(std::move(images)) {}

  // --rounds: rounds come, each is published, and then the source leaves.
  absl::Status TakeRounds();

  // Goes on to the end of the handover of `live`, or of its rehearsal. An error with committed()
  // false: nothing of its last directory is kept; with committed() true: the fate store decides,
  // while this still lives (it removes what it did not publish).
  absl::Status TakeProcess(LiveSession& live);

  bool committed() const { return committed_; }

 private:
  // Takes pages until the source says something else.
  absl::StatusOr<transport::ControlFrame> TakePages();
  // Once round; false: there was nothing to take.
  absl::StatusOr<bool> Advance();
  absl::Status Prepare(const transport::ControlFrame& frame);
  // Two connections have no order: the last pages may come after Prepare.
  absl::Status AwaitMemory();
  absl::StatusOr<proto::Commit> WaitForCommit();
  absl::Status Verify(const transport::ControlFrame& frame);
  absl::Status Commit(LiveSession& live, const proto::Commit& commit);
  // Of a rehearsal: what is Ready is published, and the process goes on at the source.
  absl::Status Keep(LiveSession& live);
  void SayStored();
  void WaitForDone(LiveSession& live);

  const ServerOptions& options_;
  const proto::Begin& begin_;
  const SourceHost& source_;
  SessionLink& link_;
  FateStore& store_;
  IncomingImages images_;
  std::optional<FrameReader> reader_;
  std::optional<proto::ProcessState> state_;
  bool committed_ = false;
};

}  // namespace predump::pageserver

#endif  // PREDUMP_PAGESERVER_IMAGE_SESSION_H_
