// What became of a core file, for people and for machines.
#ifndef PREDUMP_CORE_CORE_REPORT_H_
#define PREDUMP_CORE_CORE_REPORT_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "src/base/units.h"

namespace predump::core {

struct CoreReport {
  bool consistent = false;
  std::string command;  // the name of the process
  std::string source;   // empty: it did not come to that
  std::string source_reason;
  absl::Duration setup_stop;  // one thread, to set the source up
  absl::Duration stopped;     // all threads, from the request to freeze until the last went on
  absl::Duration total_time;
  uint64_t threads = 0;
  uint64_t segments = 0;
  base::PageCount pages;  // written
  uint64_t file_bytes = 0;
  std::vector<std::string> warnings;  // what the core does not hold, one line each

  // One JSON object on one line, keys as documented in predump(1).
  std::string ToJson(absl::string_view status, absl::string_view message) const;
};

}  // namespace predump::core

#endif  // PREDUMP_CORE_CORE_REPORT_H_
