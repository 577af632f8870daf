// The place a process is sent to, or its memory alone, as the migration sees it.
//
// Native: a page server of ours, which takes the process (it runs there, or its images are stored).
// CRIU's: a page server that takes memory, round by round. Thread rule: the migrating thread.
#ifndef PREDUMP_PREDUMP_DESTINATION_H_
#define PREDUMP_PREDUMP_DESTINATION_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "proto/session.pb.h"
#include "src/checkpoint/capture.h"
#include "src/kernel/process.h"
#include "src/pagemap/vma.h"
#include "src/predump/cancellation.h"
#include "src/predump/engine.h"
#include "src/predump/handover.h"
#include "src/predump/migration.h"
#include "src/predump/page_sink.h"
#include "src/predump/report.h"

namespace predump {

// What a destination is asked with, before anything is touched.
struct Question {
  const kernel::ProcessHandle& process;
  const pagemap::VmaList& vmas;
  checkpoint::Survey survey;  // its blockers are noted already
  bool check_only = false;    // nothing will follow
};

class Destination {
 public:
  // Connects. Everything given outlives the result. Errors name the place.
  static absl::StatusOr<std::unique_ptr<Destination>> Connect(const MigrationOptions& options,
                                                              Cancellation& cancellation,
                                                              MigrationObserver& observer);
  virtual ~Destination() = default;

  // What arrives is stored as images and not run.
  virtual bool stores_images() const = 0;

  // Readable once the other end has gone, or the migration was cancelled; -1: nothing tells.
  virtual int wake_fd() = 0;

  // Asks whether the process may come. Adds to `blockers` what stands in the way there, a line
  // each; with blockers already in it nothing can follow.
  virtual absl::Status Ask(Question question, std::vector<std::string>& blockers) = 0;

  // The way for rounds. Precondition: asked, and nothing stood in the way.
  virtual absl::StatusOr<std::unique_ptr<PageSink>> OpenSink() = 0;

  // What the other end says of `failure`, which its sink met; `failure` where it says nothing.
  virtual absl::Status Explain(const absl::Status& failure) { return failure; }

  // The last step (handover.h).
  virtual absl::StatusOr<HandoverResult> HandOver(Engine& engine, uint64_t final_round) = 0;
};

// A blocker as a line for a person.
std::string Line(const proto::Blocker& blocker);

}  // namespace predump

#endif  // PREDUMP_PREDUMP_DESTINATION_H_
