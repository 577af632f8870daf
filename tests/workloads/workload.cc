#include "tests/workloads/workload.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <iterator>
#include <mutex>

namespace predump::workloads {
namespace {

// For the SIGUSR1 handler, which gets no argument.
std::atomic<Report*> g_report = nullptr;

std::mutex& ReportMutex() {
  static std::mutex mutex;
  return mutex;
}

void CountStraySignal(int) {
  if (Report* report = g_report.load()) report->stray_signals++;
}

void RaiseTo(Counter& maximum, uint64_t value) {
  uint64_t seen = maximum.load(std::memory_order_relaxed);
  while (value > seen && !maximum.compare_exchange_weak(seen, value)) {
  }
}

Report* MapReport(const std::string& path) {
  const int fd = Must(open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644), path.c_str());
  struct stat before;
  Must(fstat(fd, &before), "fstat of the report");
  Must(ftruncate(fd, kReportBytes), "ftruncate of the report");
  void* page = mmap(nullptr, kReportBytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  Require(page != MAP_FAILED, "mmap of the report");
  close(fd);
  return static_cast<Report*>(page);
}

}  // namespace

int64_t NowNs(clockid_t clock) {
  timespec now;
  clock_gettime(clock, &now);
  return static_cast<int64_t>(now.tv_sec) * kNsPerSecond + now.tv_nsec;
}

timespec ToTimespec(int64_t ns) { return {ns / kNsPerSecond, ns % kNsPerSecond}; }

void Die(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  fprintf(stderr, "%s: ", program_invocation_short_name);
  vfprintf(stderr, format, arguments);
  fputc('\n', stderr);
  va_end(arguments);
  _exit(2);
}

void Require(bool ok, const char* what) {
  if (!ok) Die("%s: %s", what, strerror(errno));
}

Options::Options(int argc, char** argv, const char* summary)
    : arguments_(argv + 1, argv + argc), help_(summary) {
  help_ += "\n";
  std::string unused;
  wants_help_ = Take("help", false, &unused);
}

bool Options::Take(const char* name, bool has_value, std::string* value) {
  const std::string flag = std::string("--") + name;
  for (size_t i = 0; i < arguments_.size(); ++i) {
    if (has_value && arguments_[i].compare(0, flag.size() + 1, flag + "=") == 0) {
      *value = arguments_[i].substr(flag.size() + 1);
      arguments_.erase(arguments_.begin() + static_cast<ptrdiff_t>(i));
      return true;
    }
    if (arguments_[i] != flag) continue;
    const size_t used = has_value ? 2 : 1;
    if (i + used > arguments_.size()) Die("%s needs a value", flag.c_str());
    if (has_value) *value = arguments_[i + 1];
    arguments_.erase(arguments_.begin() + static_cast<ptrdiff_t>(i),
                     arguments_.begin() + static_cast<ptrdiff_t>(i + used));
    return true;
  }
  return false;
}

std::string Options::Text(const char* name, const std::string& default_value, const char* help) {
  help_ += std::string("  --") + name + " VALUE  " + help + " [" + default_value + "]\n";
  std::string value = default_value;
  Take(name, true, &value);
  return value;
}

int64_t Options::Integer(const char* name, int64_t default_value, const char* help) {
  const std::string text = Text(name, std::to_string(default_value), help);
  char* end = nullptr;
  errno = 0;
  const int64_t value = strtoll(text.c_str(), &end, 0);
  if (text.empty() || *end != '\0' || errno != 0) {
    Die("--%s: not a number: %s", name, text.c_str());
  }
  return value;
}

bool Options::Flag(const char* name, const char* help) {
  help_ += std::string("  --") + name + "  " + help + "\n";
  std::string unused;
  return Take(name, false, &unused);
}

void Options::Done() {
  if (wants_help_) {
    fputs(help_.c_str(), stdout);
    fflush(stdout);
    _exit(0);
  }
  if (!arguments_.empty()) Die("unknown argument: %s", arguments_[0].c_str());
}

Workload::Workload(const char* name, Options& options) {
  report_path_ = options.Text("report", "", "the report, a regular file");
  report_is_copied_ =
      options.Flag("copied-report", "each host has a copy of the report, which may be older");
  seed_ = static_cast<uint64_t>(options.Integer("seed", 1, "everything random comes from it"));
  const int64_t max_seconds =
      options.Integer("max-seconds", 900, "stops by itself then, as nobody seems to care");
  if (options.wants_help()) return;  // the caller's Done() ends the program
  if (report_path_.empty()) Die("--report FILE is needed");
  lifetime_end_ns_ = NowNs(CLOCK_BOOTTIME) + max_seconds * kNsPerSecond;

  sigset_t term;
  sigemptyset(&term);
  sigaddset(&term, SIGTERM);
  Must(sigprocmask(SIG_BLOCK, &term, nullptr), "sigprocmask");
  struct sigaction stray = {};
  stray.sa_handler = CountStraySignal;  // no SA_RESTART: what it interrupts must show
  Must(sigaction(SIGUSR1, &stray, nullptr), "sigaction");

  report_ = MapReport(report_path_);
  const bool used_before = report_->magic.exchange(0) == kReportMagic;
  const uint64_t restarts = used_before ? report_->restarts + 1 : 0;
  memset(static_cast<void*>(report_), 0, sizeof(Report));
  report_->version = kReportVersion;
  report_->size = sizeof(Report);
  report_->pid = getpid();
  report_->restarts = restarts;
  snprintf(report_->name, sizeof report_->name, "%s", name);
  g_report = report_;
  report_->magic.store(kReportMagic, std::memory_order_release);
}

Counter& Workload::AddCounter(const std::string& name) {
  std::lock_guard lock(ReportMutex());
  const uint64_t index = report_->counter_count;
  if (index >= std::size(report_->counters)) Die("more counters than the report holds");
  NamedCounter& counter = report_->counters[index];
  snprintf(counter.name, sizeof counter.name, "%s", name.c_str());
  report_->counter_count.store(index + 1, std::memory_order_release);
  return counter.value;
}

void Workload::StoreError(const char* text) {
  std::lock_guard lock(ReportMutex());
  report_->error_sequence++;
  snprintf(report_->last_error, sizeof report_->last_error, "%s", text);
  if (report_->first_error[0] == '\0') {
    memcpy(report_->first_error, report_->last_error, sizeof report_->first_error);
  }
  report_->error_sequence++;
}

void Workload::Error(const char* format, ...) {
  char text[sizeof Report::last_error];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  StoreError(text);
  report_->errors++;
}

void Workload::CountEintr(const char* call) {
  char text[64];
  snprintf(text, sizeof text, "%s returned EINTR", call);
  StoreError(text);
  report_->eintr++;
}

bool Workload::StopRequested() {
  if (stopping_) return true;
  sigset_t term;
  sigemptyset(&term);
  sigaddset(&term, SIGTERM);
  const timespec now = {0, 0};
  if (sigtimedwait(&term, nullptr, &now) == SIGTERM) {
    stopping_ = true;
  } else if (NowNs(CLOCK_BOOTTIME) > lifetime_end_ns_) {
    Error("still running after --max-seconds");
    stopping_ = true;
  }
  return stopping_;
}

int Workload::Finish() {
  const int code = report_->errors != 0 || report_->eintr != 0 ? 1 : 0;
  report_->exit_code = static_cast<uint64_t>(code);
  report_->finished = 1;
  return code;
}

void Workload::FinishInHandler() { _exit(Finish()); }

int Workload::TakeHeartbeatSlot() {
  const int slot = heartbeat_slots_++;
  if (slot >= static_cast<int>(std::size(report_->witnesses))) {
    Die("more heartbeats than the report holds");
  }
  return slot;
}

Heartbeat::Heartbeat(Workload& workload)
    : workload_(workload), slot_(workload.TakeHeartbeatSlot()) {}

void Heartbeat::Beat() {
  Report& report = workload_.report();
  const int64_t now = NowNs();
  if (now < last_ns_) {
    workload_.Error("CLOCK_MONOTONIC ran backwards by %lld ns",
                    static_cast<long long>(last_ns_ - now));
  }
  const uint64_t reset = report.gap_reset_request;
  if (reset != seen_reset_) {
    // The gap that ends here began before the reset.
    seen_reset_ = reset;
    if (slot_ == 0) {
      report.longest_gap_reset_ns = 0;
      report.gap_reset_done = reset;
    }
  } else if (last_ns_ != 0 && now > last_ns_) {
    const uint64_t gap = static_cast<uint64_t>(now - last_ns_);
    RaiseTo(report.longest_gap_ns, gap);
    RaiseTo(report.longest_gap_reset_ns, gap);
    if (gap >= kNotableGapNs) {
      timespec wall;
      clock_gettime(CLOCK_REALTIME, &wall);
      NotableGap& note = report.notable_gaps[report.gap_count++ % std::size(report.notable_gaps)];
      note.length_ns = gap;
      note.end_ns = static_cast<uint64_t>(wall.tv_sec * kNsPerSecond + wall.tv_nsec);
    }
  }
  last_ns_ = now;

  Counter& witness = report.witnesses[slot_];
  const uint64_t expected = witness.load(std::memory_order_relaxed);
  const bool older_copy = workload_.report_is_copied() && expected < beats_;
  if (expected != beats_ && !older_copy) {
    workload_.Error("heartbeat %d: private memory counts %llu, the report %llu", slot_,
                    static_cast<unsigned long long>(beats_),
                    static_cast<unsigned long long>(expected));
  }
  beats_ = older_copy ? beats_ + 1 : expected + 1;
  witness.store(beats_, std::memory_order_relaxed);
  report.progress++;
}

void SleepNs(Workload& workload, int64_t ns) {
  const timespec duration = ToTimespec(ns);
  if (clock_nanosleep(CLOCK_MONOTONIC, 0, &duration, nullptr) == EINTR) {
    workload.CountEintr("clock_nanosleep");
  }
}

}  // namespace predump::workloads
