// What an image directory holds, for people.
//
// Thread rule: free functions.
#ifndef PREDUMP_CLI_IMAGE_SUMMARY_H_
#define PREDUMP_CLI_IMAGE_SUMMARY_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "src/images/state_images.h"

namespace predump::cli {

// One directory of the chain, the newest first.
struct ChainLink {
  std::string path;
  uint64_t pages_here = 0;       // in its pages files, of the task
  uint64_t pages_in_parent = 0;  // that it leaves to its parent
  uint64_t stored_bytes = 0;     // on disk, of all pages files
};

struct MemorySummary {
  uint64_t pid = 0;
  uint64_t pages = 0;  // that the chain holds together
  std::vector<ChainLink> chain;
};

struct ImageSummary {
  enum class Kind { kProcess, kRounds, kPagesOnly };
  Kind kind = Kind::kProcess;
  std::string path;                   // where it was found, links followed
  int64_t stored_at = 0;              // seconds since 1970, of the newest image that tells
  std::vector<MemorySummary> memory;  // of each process whose pages are there
  std::optional<images::StoredState> process;
  std::string command_line;  // from its memory; empty where that is not there
};

// Reads what is there, checks that its chain of parents is whole. Errors: as ReadState and
// PageChain::Open; NotFound for a directory without a page.
absl::StatusOr<ImageSummary> ReadImageSummary(int directory_fd);

// "fd 5" -> "pipe 1234 (read)": what an open file is, in one line.
std::string DescribeFile(const proto::ProcessState& state, const criu::file_entry& file);

// Prints the entries of one image ("mm-12.img" or "mm-12") as protobuf text. Errors: NotFound,
// DataLoss; Unimplemented for an image whose entries are not known here.
absl::Status PrintImage(int directory_fd, const std::string& name);

}  // namespace predump::cli

#endif  // PREDUMP_CLI_IMAGE_SUMMARY_H_
