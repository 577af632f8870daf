// One thread that holds one of everything a process can hold besides memory, and looks at it all in
// every iteration.
#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <string>

#include "tests/workloads/holdings.h"
#include "tests/workloads/pages.h"
#include "tests/workloads/workload.h"

namespace predump::workloads {

bool HoldingContext::Check(bool ok, const char* what, bool with_errno) const {
  const int error = errno;
  if (!ok)
    workload_.Error("%s%s%s", what, with_errno ? ": " : "", with_errno ? strerror(error) : "");
  return ok;
}

bool HoldingContext::CheckEqual(int64_t value, int64_t expected, const char* what) const {
  if (value != expected) workload_.Error("%s: %ld, expected %ld", what, value, expected);
  return value == expected;
}

bool HoldingContext::CheckEqual(const std::string& value, const std::string& expected,
                                const char* what) const {
  if (value != expected) {
    workload_.Error("%s: \"%s\", expected \"%s\"", what, value.c_str(), expected.c_str());
  }
  return value == expected;
}

namespace {

void Append(Holdings& all, Holdings some) {
  for (auto& holding : some) all.push_back(std::move(holding));
}

// Interval timers interrupt it rightfully.
void Pause(Workload& workload, int64_t ns) {
  const timespec duration = ToTimespec(ns);
  const uint64_t handlers_before = HandlersRun();
  if (clock_nanosleep(CLOCK_MONOTONIC, 0, &duration, nullptr) == EINTR &&
      HandlersRun() == handlers_before) {
    workload.CountEintr("clock_nanosleep");
  }
}

int Main(int argc, char** argv) {
  Options options(argc, argv, "files: descriptors, signals, timers, credentials, attributes");
  Workload workload("files", options);
  HoldingSettings settings;
  settings.directory = options.Text("dir", workload.report_path() + ".d", "for its files");
  settings.tcp_port = static_cast<uint16_t>(options.Integer("tcp-port", 0, "0: any"));
  settings.late_ms = options.Integer("late-ms", 300, "a timer may be late by");
  settings.max_jump_ms = options.Integer("max-jump-ms", 2000, "of a clock in one iteration");
  settings.cycle_iterations = options.Integer("cycle", 200, "iterations signals are kept pending");
  settings.uid = static_cast<uid_t>(options.Integer("uid", 0, "give up root for this user"));
  settings.no_new_privs = options.Flag("no-new-privs", "set it");
  const int64_t pause_us = options.Integer("pause-us", 1000, "between iterations");
  settings.skip =
      "," + options.Text("skip", "", "names of holdings and details, with commas") + ",";
  options.Done();
  if (settings.cycle_iterations < 20) Die("--cycle: at least 20");
  if (mkdir(settings.directory.c_str(), 0755) == -1 && errno != EEXIST) {
    Must(-1, settings.directory.c_str());
  }
  if (settings.directory[0] != '/') Die("--dir: an absolute path");

  const HoldingContext context(workload, settings);
  Holdings holdings = MakeProcessHoldings(context);  // first: the user the others belong to
  Append(holdings, MakeFileHoldings(context));
  Append(holdings, MakePipeHoldings(context));
  Append(holdings, MakeEventHoldings(context));
  Append(holdings, MakeSocketHoldings(context));
  Append(holdings, MakeSignalHoldings(context));
  if (context.Wants("descriptor-table")) holdings.push_back(MakeDescriptorTable(context));

  constexpr size_t kPages = 256;
  CheckedPages pages(workload, MapPages(kPages), kPages, workload.seed());
  workload.AddCounter("memory_start") = reinterpret_cast<uint64_t>(pages.page(0));
  workload.AddCounter("memory_bytes") = kPages * kPageBytes;
  Random random(workload.seed());
  Heartbeat heartbeat(workload);
  for (uint64_t iteration = 0; !workload.StopRequested(); ++iteration) {
    heartbeat.Beat();
    for (auto& holding : holdings) holding->Verify(iteration);
    pages.Write(random.Below(kPages));
    pages.Verify(random.Below(kPages));
    Pause(workload, pause_us * 1000);
  }
  for (auto& holding : holdings) holding->Final();
  pages.VerifyAll();
  return workload.Finish();
}

}  // namespace
}  // namespace predump::workloads

int main(int argc, char** argv) { return predump::workloads::Main(argc, argv); }
