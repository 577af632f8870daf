// The memory of one process, written round by round as image directories of a store.
//
// Every round becomes one directory (DESIGN 9, criu-formats 3): what came in it is in its pages
// file, what earlier rounds brought and still lives is marked as being in the parent. The last one
// gets the process's state beside it and is published by whoever decides the handover.
//
// I1: a round is acknowledged only once its directory has its name, so that nothing acknowledged is
//     lost with us.
// I2: the first directory of a session stands alone; each further one builds on the one before,
//     whatever else was stored meanwhile. Nobody else writes to the store as long as this lives.
// I3: what was never published is removed with this object.
// Thread rule: one thread at a time.
#ifndef PREDUMP_PAGESERVER_INCOMING_IMAGES_H_
#define PREDUMP_PAGESERVER_INCOMING_IMAGES_H_

#include <cstdint>
#include <optional>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "src/images/image_store.h"
#include "src/images/pagemap_image.h"
#include "src/pagemap/extent.h"
#include "src/pageserver/fate_store.h"
#include "src/pageserver/frame_reader.h"
#include "src/pageserver/pages_file.h"

namespace predump::pageserver {

class IncomingImages {
 public:
  // Takes hold of the store at `path` for process `pid`, once all that dead sessions left there is
  // decided about in `fates`. Errors: as ImageStore::Open and Begin.
  static absl::StatusOr<IncomingImages> Start(const std::string& path, FateStore& fates,
                                              uint64_t pid);

  // Goes on with what has arrived on `reader`, for a few MiB at most. `source_uptime_us`: of the
  // source's host, now. True: there may be more; false: wait for the socket. Errors: as FrameReader
  // and PagesFile; from the store. After any error nothing more can be taken.
  absl::StatusOr<bool> Advance(FrameReader& reader, uint64_t source_uptime_us);

  // The last mark has come: all memory is in directory(), its pagemap too.
  bool memory_complete() const { return memory_complete_; }
  int rounds_published() const { return rounds_published_; }

  // The one that is being written.
  images::PartialDirectory& directory() { return directory_; }
  images::PagesOf pages_of() const { return {images::PagesOf::Kind::kTask, pid_}; }

 private:
  IncomingImages(images::ImageStore store, images::PartialDirectory directory, uint64_t pid,
                 PagesFile pages)
      : store_(std::move(store)),
        directory_(std::move(directory)),
        pid_(pid),
        pages_(std::move(pages)) {}

  absl::Status Take(const DataFrame& frame, FrameReader& reader);
  absl::Status EndRound(uint64_t round, FrameReader& reader);
  absl::Status WritePagemap();

  images::ImageStore store_;
  images::PartialDirectory directory_;
  uint64_t pid_;
  PagesFile pages_;
  pagemap::ExtentSet in_parents_;  // published by earlier rounds, and alive
  // Of the source when the round's first frame came: after its pages were reset, and hardly later.
  std::optional<uint64_t> round_uptime_us_;
  bool payload_awaited_ = false;
  bool memory_complete_ = false;
  int rounds_published_ = 0;
};

}  // namespace predump::pageserver

#endif  // PREDUMP_PAGESERVER_INCOMING_IMAGES_H_
