// workload-report [--json] FILE: prints a report as key=value lines, or as one JSON object.
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <string>
#include <string_view>
#include <vector>

#include "tests/workloads/report.h"
#include "tests/workloads/workload.h"

namespace predump::workloads {
namespace {

struct Entry {
  std::string key;
  std::string value;
  bool is_text;
};

std::string JsonString(std::string_view text) {
  std::string quoted = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') quoted += '\\';
    if (static_cast<unsigned char>(c) < 0x20) {
      char escape[8];
      snprintf(escape, sizeof escape, "\\u%04x", static_cast<unsigned>(c));
      quoted += escape;
    } else {
      quoted += c;
    }
  }
  return quoted + "\"";
}

std::vector<Entry> Entries(const Report& report) {
  std::vector<Entry> entries;
  const auto text = [&](const char* key, const char* value, size_t size) {
    entries.push_back({key, std::string(value, strnlen(value, size)), true});
  };
  const auto number = [&](std::string key, uint64_t value) {
    entries.push_back({std::move(key), std::to_string(value), false});
  };
  text("name", report.name, sizeof report.name);
  number("pid", static_cast<uint64_t>(report.pid.load()));
  number("progress", report.progress);
  number("errors", report.errors);
  number("eintr", report.eintr);
  number("longest-gap-ns", report.longest_gap_ns);
  number("longest-gap-since-reset-ns", report.longest_gap_reset_ns);
  number("restarts", report.restarts);
  number("stray-signals", report.stray_signals);
  number("finished", report.finished);
  number("exit-code", report.exit_code);
  text("first-error", report.first_error, sizeof report.first_error);
  text("last-error", report.last_error, sizeof report.last_error);
  for (size_t i = 0; i < report.counter_count && i < std::size(report.counters); ++i) {
    const NamedCounter& counter = report.counters[i];
    number(std::string(counter.name, strnlen(counter.name, sizeof counter.name)), counter.value);
  }
  return entries;
}

int Main(int argc, char** argv) {
  const bool json = argc == 3 && strcmp(argv[1], "--json") == 0;
  if (argc != 2 && !json) Die("usage: workload-report [--json] FILE");
  const char* path = argv[argc - 1];
  const int fd = Must(open(path, O_RDONLY | O_CLOEXEC), path);
  if (lseek(fd, 0, SEEK_END) != static_cast<off_t>(kReportBytes)) Die("%s: not a report", path);
  void* page = mmap(nullptr, kReportBytes, PROT_READ, MAP_SHARED, fd, 0);
  Require(page != MAP_FAILED, "mmap");
  const auto& report = *static_cast<const Report*>(page);
  if (report.magic.load(std::memory_order_acquire) != kReportMagic ||
      report.version != kReportVersion) {
    Die("%s: not a report, or not ready", path);
  }
  const std::vector<Entry> entries = Entries(report);
  for (size_t i = 0; i < entries.size(); ++i) {
    const Entry& entry = entries[i];
    if (json) {
      printf("%s%s: %s", i == 0 ? "{" : ", ", JsonString(entry.key).c_str(),
             entry.is_text ? JsonString(entry.value).c_str() : entry.value.c_str());
    } else {
      printf("%s=%s\n", entry.key.c_str(), entry.value.c_str());
    }
  }
  if (json) printf("}\n");
  return 0;
}

}  // namespace
}  // namespace predump::workloads

int main(int argc, char** argv) { return predump::workloads::Main(argc, argv); }
