// Everything one migration works with, put together once and used by rounds and handover.
//
// Order of members is order of construction: what stands later may refer to what stands before, and
// is taken down first. Thread rule: the migrating thread.
#ifndef PREDUMP_PREDUMP_ENGINE_H_
#define PREDUMP_PREDUMP_ENGINE_H_

#include "src/checkpoint/capture.h"
#include "src/kernel/process.h"
#include "src/pagemap/dirty_tracker.h"
#include "src/pagemap/page_source.h"
#include "src/predump/cancellation.h"
#include "src/predump/layout_reader.h"
#include "src/predump/migration.h"
#include "src/predump/page_sender.h"
#include "src/predump/page_sink.h"
#include "src/predump/process_watch.h"
#include "src/predump/report.h"
#include "src/transport/bandwidth_limiter.h"

namespace predump {

struct Engine {
  const MigrationOptions& options;
  Cancellation& cancellation;
  MigrationObserver& observer;
  MigrationReport& report;

  const kernel::ProcessHandle& process;
  checkpoint::Capturer& capturer;
  LayoutReader& layout;
  ProcessWatch& watch;
  pagemap::DirtyTracker& tracker;
  pagemap::PageSource& source;
  PageSink& sink;
  transport::BandwidthLimiter& limiter;
  PageSender& sender;
  bool stores_images = false;  // the destination does
  int wake_fd = -1;            // Destination::wake_fd
};

// The status a step failed with, or why the migration was cancelled if it was: a cancelled
// migration's sockets fail in arbitrary ways.
absl::Status OrCancelled(const Engine& engine, const absl::Status& status);

}  // namespace predump

#endif  // PREDUMP_PREDUMP_ENGINE_H_
