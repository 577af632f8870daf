// A parent that spends most of its time inside vfork(2), where it cannot be stopped.
#include <errno.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/workloads/pages.h"
#include "tests/workloads/workload.h"

namespace predump::workloads {
namespace {

// Returns the child's pid once it has executed, or -1. Between vfork and execve the child shares
// this stack and memory, so it makes bare system calls only.
[[gnu::noinline]] pid_t SpawnSlowly(int64_t sleep_ns) {
  const timespec duration = ToTimespec(sleep_ns);
  char program[] = "/bin/true";
  char* const arguments[] = {program, nullptr};
  char* const environment[] = {nullptr};
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wdeprecated-declarations"
  const pid_t child = vfork();
#pragma GCC diagnostic pop
  if (child == 0) {
    syscall(SYS_nanosleep, &duration, nullptr);
    execve(program, arguments, environment);
    _exit(127);
  }
  return child;
}

int Main(int argc, char** argv) {
  Options options(argc, argv, "vfork-parent: in vfork, again and again");
  Workload workload("vfork-parent", options);
  const int64_t vfork_ms = options.Integer("vfork-ms", 100, "the child sleeps before it executes");
  const int64_t pause_ms = options.Integer("pause-ms", 50, "between two children");
  options.Done();

  constexpr size_t kPages = 1024;
  CheckedPages pages(workload, MapPages(kPages), kPages, workload.seed());
  Counter& children = workload.AddCounter("children");
  workload.AddCounter("memory_start") = reinterpret_cast<uint64_t>(pages.page(0));
  workload.AddCounter("memory_bytes") = kPages * kPageBytes;
  Random random(workload.seed());
  Heartbeat heartbeat(workload);
  while (!workload.StopRequested()) {
    heartbeat.Beat();
    const pid_t child = SpawnSlowly(vfork_ms * kNsPerMs);
    if (child == -1) {
      workload.Error("vfork: %s", strerror(errno));
    } else {
      int status = 0;
      const pid_t waited = waitpid(child, &status, 0);
      if (waited == -1 && errno == EINTR) workload.CountEintr("waitpid");
      if (waited != child || status != 0) {
        workload.Error("waitpid(%d) gave %d, status %#x", child, waited, status);
      }
      children++;
    }
    for (int i = 0; i < 64; ++i) pages.Write(random.Below(kPages));
    for (int i = 0; i < 64; ++i) pages.Verify(random.Below(kPages));
    SleepNs(workload, pause_ms * kNsPerMs);
  }
  pages.VerifyAll();
  return workload.Finish();
}

}  // namespace
}  // namespace predump::workloads

int main(int argc, char** argv) { return predump::workloads::Main(argc, argv); }
