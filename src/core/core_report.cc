#include "src/core/core_report.h"

#include <cmath>
#include <nlohmann/json.hpp>

namespace predump::core {
namespace {

// Milliseconds to the microsecond: more digits would pretend.
double Milliseconds(absl::Duration duration) {
  return std::round(absl::ToDoubleMicroseconds(duration)) / 1000.0;
}

}  // namespace

std::string CoreReport::ToJson(absl::string_view status, absl::string_view message) const {
  const nlohmann::ordered_json json = {
      {"status", std::string(status)},
      {"message", std::string(message)},
      {"stopped-ms", Milliseconds(stopped)},
      {"setup-stop-ms", Milliseconds(setup_stop)},
      {"total-time-ms", Milliseconds(total_time)},
      {"consistent", consistent},
      {"source", source},
      {"threads", threads},
      {"segments", segments},
      {"pages-written", pages.value()},
      {"file-bytes", file_bytes},
      {"warnings", warnings},
  };
  return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

}  // namespace predump::core
