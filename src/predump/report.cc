#include "src/predump/report.h"

#include <cmath>
#include <nlohmann/json.hpp>

namespace predump {
namespace {

// Milliseconds to the microsecond: more digits would pretend.
double Milliseconds(absl::Duration duration) {
  return std::round(absl::ToDoubleMicroseconds(duration)) / 1000.0;
}

double Whole(double value) { return std::round(value); }

nlohmann::ordered_json RoundJson(const RoundReport& round) {
  nlohmann::ordered_json json = {
      {"round", round.number},
      {"pages", round.pages.value()},
      {"bytes", round.bytes.value()},
      {"milliseconds", Milliseconds(round.duration)},
      {"scan-ms", Milliseconds(round.scan)},
      {"frozen-ms", Milliseconds(round.frozen)},
      {"dirty-pages-rate", Whole(round.dirty_pages_per_second)},
      {"bytes-per-second", Whole(round.bytes_per_second)},
      {"remaining", base::ToBytes(round.remaining).value()},
  };
  if (round.expected_downtime.has_value()) {
    json["expected-downtime-ms"] = Milliseconds(*round.expected_downtime);
  }
  return json;
}

}  // namespace

absl::string_view StatusName(MigrationStatus status) {
  switch (status) {
    case MigrationStatus::kCompleted:
      return "completed";
    case MigrationStatus::kFailed:
      return "failed";
    case MigrationStatus::kUsage:
      return "usage";
    case MigrationStatus::kRefused:
      return "refused";
    case MigrationStatus::kCancelled:
      return "cancelled";
    case MigrationStatus::kParked:
      return "parked";
    case MigrationStatus::kTargetGone:
      return "process-ended";
  }
  return "failed";
}

std::string RoundReport::ToJson() const { return RoundJson(*this).dump(); }

std::string MigrationReport::ToJson() const {
  nlohmann::ordered_json json = {{"status", std::string(StatusName(status))}, {"message", message}};
  if (downtime.has_value()) json["downtime-ms"] = Milliseconds(*downtime);
  if (frozen_at.has_value()) {
    json["frozen-at"] = absl::FormatTime("%Y-%m-%dT%H:%M:%E6SZ", *frozen_at, absl::UTCTimeZone());
  }
  json["setup-stop-ms"] = Milliseconds(setup_stop);
  json["stops"] = nlohmann::ordered_json::array();
  for (const StopReport& stop : stops) {
    json["stops"].push_back({{"what", stop.what}, {"milliseconds", Milliseconds(stop.duration)}});
  }
  json["total-time-ms"] = Milliseconds(total_time);
  json["tracker"] = tracker;
  json["source"] = source;
  json["transferred-bytes"] = transferred.value();
  json["pages-sent"] = pages_sent.value();
  json["rounds"] = nlohmann::ordered_json::array();
  for (const RoundReport& round : rounds) json["rounds"].push_back(RoundJson(round));
  json["downtime-phases"] = nlohmann::ordered_json::array();
  for (const auto& [name, duration] : phases) {
    json["downtime-phases"].push_back({{"phase", name}, {"milliseconds", Milliseconds(duration)}});
  }
  if (restored_pid.has_value()) json["restored-pid"] = *restored_pid;
  if (!stored_in.empty()) json["stored-in"] = stored_in;
  if (verified) json["pages-verified"] = pages_verified.value();
  if (!blockers.empty()) json["blockers"] = blockers;
  return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

}  // namespace predump
