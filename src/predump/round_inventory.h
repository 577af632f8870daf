// --images-dir of rounds: inventory.img on this host, as `criu pre-dump --page-server -D DIR`
// leaves it.
//
// The pages are elsewhere; what is here tells `criu dump --prev-images-dir DIR` when they were
// taken, so that it can see whether the process is still the one it was. Thread rule: values.
#ifndef PREDUMP_PREDUMP_ROUND_INVENTORY_H_
#define PREDUMP_PREDUMP_ROUND_INVENTORY_H_

#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "src/base/unique_fd.h"

namespace predump {

class RoundInventory {
 public:
  // Makes the directory (mode 0700) where it is not there. Before the first round: errors name it.
  // FailedPrecondition: something else is there that would be spoilt.
  static absl::StatusOr<RoundInventory> Open(const std::string& directory);

  // After the last reset of dirty marks.
  absl::Status Write() const;

 private:
  RoundInventory(base::UniqueFd directory, std::string path)
      : directory_(std::move(directory)), path_(std::move(path)) {}

  base::UniqueFd directory_;
  std::string path_;
};

}  // namespace predump

#endif  // PREDUMP_PREDUMP_ROUND_INVENTORY_H_
