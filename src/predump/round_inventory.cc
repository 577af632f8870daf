#include "src/predump/round_inventory.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "absl/strings/str_cat.h"
#include "src/base/clock.h"
#include "src/base/errors.h"
#include "src/images/state_images.h"

namespace predump {

absl::StatusOr<RoundInventory> RoundInventory::Open(const std::string& directory) {
  if (::mkdir(directory.c_str(), 0700) != 0 && errno != EEXIST) {
    return base::ErrnoError(errno, "--images-dir: make ", directory);
  }
  base::UniqueFd fd(::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd.valid()) return base::ErrnoError(errno, "--images-dir: open ", directory);
  if (::faccessat(fd.get(), ".", W_OK, AT_EACCESS) != 0) {
    return base::ErrnoError(errno, "--images-dir: write in ", directory);
  }
  if (const absl::Status takes = images::CheckTakesRoundInventory(fd.get()); !takes.ok()) {
    return absl::FailedPreconditionError(
        absl::StrCat("--images-dir: ", directory, ": ", takes.message(),
                     "; name a directory of its own, which gets the inventory of these rounds and "
                     "nothing else"));
  }
  return RoundInventory(std::move(fd), directory);
}

absl::Status RoundInventory::Write() const {
  // What /proc/uptime counts, in our time namespace, as the start times in /proc/PID/stat do.
  const int64_t uptime_us = base::ClockNanoseconds(CLOCK_BOOTTIME) / 1000;
  return base::Annotate(
      images::WriteRoundInventory(directory_.get(), static_cast<uint64_t>(uptime_us)),
      absl::StrCat("--images-dir ", path_));
}

}  // namespace predump
