// One thread in one blocking call: any return that is not the call's own is an error.
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include <string>

#include "tests/workloads/blocking_calls.h"
#include "tests/workloads/workload.h"

namespace predump::workloads {
namespace {

Workload* g_workload = nullptr;  // for the handler, which gets no argument

// Unlike elsewhere SIGTERM must be able to end a call that never returns.
void EndOnSigterm() {
  struct sigaction action = {};
  action.sa_handler = [](int) { g_workload->FinishInHandler(); };
  Must(sigaction(SIGTERM, &action, nullptr), "sigaction");
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  Must(sigprocmask(SIG_UNBLOCK, &set, nullptr), "sigprocmask");
}

int Main(int argc, char** argv) {
  Options options(argc, argv, "eintr: one blocking call, again and again");
  const bool list = options.Flag("list", "print the names of the calls, \"timed\" or \"endless\"");
  if (list) {
    for (const BlockingCall& call : MakeBlockingCalls()) {
      const bool timed = call.returns == BlockingCall::Returns::kAtTimeout;
      printf("%s %s\n", call.name.c_str(), timed ? "timed" : "endless");
    }
    return 0;
  }
  Workload workload("eintr", options);
  const std::string wanted = options.Text("call", "epoll_wait", "one of --list");
  const int64_t timeout_ms = options.Integer("timeout-ms", 400, "of a timed call");
  const int64_t late_ms = options.Integer("late-ms", 300, "a timed call may be late by");
  const int64_t early_us = options.Integer("early-us", 1000, "a timed call may be early by");
  options.Done();
  g_workload = &workload;

  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGUSR2);
  Must(sigprocmask(SIG_BLOCK, &set, nullptr), "sigprocmask");
  BlockingCall call;
  for (BlockingCall& candidate : MakeBlockingCalls()) {
    if (candidate.name == wanted) call = candidate;
  }
  if (!call.call) Die("no such call: %s", wanted.c_str());
  // Nobody kicks here.
  const bool timed = call.returns == BlockingCall::Returns::kAtTimeout;
  Counter& returns = workload.AddCounter("returns");
  Heartbeat heartbeat(workload);
  EndOnSigterm();
  for (;;) {
    heartbeat.Beat();
    const int64_t start_ns = NowNs();
    const int error = call.call(timeout_ms * kNsPerMs);
    const int64_t took_ns = NowNs() - start_ns;
    returns++;
    if (error == EINTR) {
      workload.CountEintr(wanted.c_str());
    } else if (error != 0 || !timed) {
      workload.Error("%s returned: %s", wanted.c_str(), strerror(error));
    } else if (took_ns < timeout_ms * kNsPerMs - early_us * 1000 - call.early_ns ||
               took_ns > (timeout_ms + late_ms) * kNsPerMs) {
      workload.Error("%s: asked for %ld ms, took %ld ns", wanted.c_str(), timeout_ms, took_ns);
    }
  }
}

}  // namespace
}  // namespace predump::workloads

int main(int argc, char** argv) { return predump::workloads::Main(argc, argv); }
