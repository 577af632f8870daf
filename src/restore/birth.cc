#include "src/restore/birth.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <charconv>
#include <cstdio>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "src/base/errors.h"
#include "src/kernel/uapi_sched_attr.h"
#include "src/kernel/wait.h"

extern "C" const char predump_landing_image[];
extern "C" const char predump_landing_image_end[];

namespace predump::restore::internal {
namespace {

constexpr absl::Duration kBirthTimeout = absl::Seconds(10);

enum class Stage : int32_t { kReady, kSession, kCgroup, kTimeNamespace, kClone, kPlaceFds, kExec };

// From the children to S. kReady comes from the landing, and with it its pid (SCM_CREDENTIALS).
struct Report {
  Stage stage = Stage::kReady;
  int32_t error_number = 0;
};

// Everything the children need, made before they exist: between clone and exec they allocate
// nothing, because S may have had other threads.
struct ChildPlan {
  const BirthOptions* options = nullptr;
  int server_socket = -1;  // S's end, to be closed
  int child_socket = -1;
  int image_fd = -1;
  int cgroup_fd = -1;
  char timens_offsets[128] = {};
};

long RawClone3(clone_args& args) { return ::syscall(SYS_clone3, &args, sizeof(args)); }

[[noreturn]] void SendReportAndExit(const ChildPlan& plan, Stage stage) {
  const Report report{stage, errno};
  (void)!::send(plan.child_socket, &report, sizeof(report), MSG_NOSIGNAL);
  ::_exit(1);
}

// `argument` may be null.
void ExecuteImage(const ChildPlan& plan, const char* name, const char* argument) {
  char* const arguments[] = {const_cast<char*>(name), const_cast<char*>(argument), nullptr};
  char* const environment[] = {nullptr};
  ::syscall(SYS_execveat, plan.image_fd, "", arguments, environment, AT_EMPTY_PATH);
}

// What the server was started with and a child inherits, but no migrated process has unless it
// brings it. Where something cannot be undone the target's check has refused (server_check.h).
void ShedInheritance() {
  kernel::SchedAttributes scheduling = {};
  constexpr int kIoprioWhoProcess = 1;
  constexpr unsigned long kSetMemoryMerge = 67;  // PR_SET_MEMORY_MERGE, Linux 6.4
  static const cpu_set_t all = [] {
    cpu_set_t cpus;
    ::memset(&cpus, 0xff, sizeof cpus);
    return cpus;
  }();
  (void)::sched_setaffinity(0, sizeof all, &all);
  (void)::syscall(SYS_set_mempolicy, 0 /* MPOL_DEFAULT */, nullptr, 0);
  (void)::syscall(SYS_ioprio_set, kIoprioWhoProcess, 0, 0);
  if (::syscall(SYS_sched_getattr, 0, &scheduling, sizeof scheduling, 0) == 0 &&
      scheduling.policy != SCHED_FIFO && scheduling.policy != SCHED_RR) {
    scheduling.runtime = 0;  // the slice that is the kernel's to choose
    (void)::syscall(SYS_sched_setattr, 0, &scheduling, 0);
  }
  (void)::prctl(PR_SET_THP_DISABLE, 0, 0, 0, 0);
  (void)::prctl(kSetMemoryMerge, 0, 0, 0, 0);
  (void)::prctl(PR_MCE_KILL, PR_MCE_KILL_CLEAR, 0, 0, 0);
}

[[noreturn]] void RunLandingChild(ChildPlan& plan) {
  // Ignored signals stay ignored across exec; what is restored starts from the defaults.
  for (int number = 1; number < NSIG; ++number) ::signal(number, SIG_DFL);
  ShedInheritance();
  if (plan.options->new_session && ::setsid() < 0) SendReportAndExit(plan, Stage::kSession);
  const Report ready;
  if (::send(plan.child_socket, &ready, sizeof(ready), MSG_NOSIGNAL) < 0) ::_exit(1);
  char go = 0;
  ssize_t got;
  do {
    got = ::recv(plan.child_socket, &go, 1, 0);
  } while (got < 0 && errno == EINTR);
  if (got != 1) ::_exit(1);  // S is gone, or does not want us

  int high[5];
  const int from[] = {plan.options->data_socket, plan.options->notify_fd,
                      plan.options->trampoline_fd, plan.image_fd, plan.child_socket};
  for (int i = 0; i < 5; ++i) {
    high[i] = ::fcntl(from[i], F_DUPFD_CLOEXEC, 16);
    if (high[i] < 0) SendReportAndExit(plan, Stage::kPlaceFds);
  }
  plan.image_fd = high[3];
  plan.child_socket = high[4];
  for (int i = 0; i < 3; ++i) {
    if (::dup2(high[i], i) < 0) SendReportAndExit(plan, Stage::kPlaceFds);
  }
  if (::syscall(SYS_close_range, 3u, ~0u, 4u /* CLOSE_RANGE_CLOEXEC */) < 0) {
    SendReportAndExit(plan, Stage::kPlaceFds);
  }
  ExecuteImage(plan, "predump-landing", nullptr);
  SendReportAndExit(plan, Stage::kExec);
}

void EnterTimeNamespace(const ChildPlan& plan) {
  // Only children enter it, so it must exist, with its offsets, before the landing is cloned.
  if (::unshare(CLONE_NEWTIME) != 0) SendReportAndExit(plan, Stage::kTimeNamespace);
  const int fd = ::open("/proc/self/timens_offsets", O_WRONLY | O_CLOEXEC);
  if (fd < 0) SendReportAndExit(plan, Stage::kTimeNamespace);
  const size_t bytes = ::strlen(plan.timens_offsets);
  if (::write(fd, plan.timens_offsets, bytes) != static_cast<ssize_t>(bytes)) {
    SendReportAndExit(plan, Stage::kTimeNamespace);
  }
  ::close(fd);
}

[[noreturn]] void RunReaper(ChildPlan& plan) {
  ::close(plan.server_socket);
  if (plan.options->new_session && ::setsid() < 0) SendReportAndExit(plan, Stage::kSession);
  if (plan.cgroup_fd >= 0 && ::write(plan.cgroup_fd, "0", 1) != 1)
    SendReportAndExit(plan, Stage::kCgroup);
  if (plan.timens_offsets[0] != '\0') EnterTimeNamespace(plan);

  pid_t wanted = plan.options->pid;
  clone_args args = {};
  args.exit_signal = SIGCHLD;
  args.set_tid = reinterpret_cast<uint64_t>(&wanted);
  args.set_tid_size = 1;
  const long child = RawClone3(args);
  if (child < 0) SendReportAndExit(plan, Stage::kClone);
  if (child == 0) RunLandingChild(plan);

  (void)!::chdir("/");
  ::syscall(SYS_close_range, 0u, ~0u, 4u /* CLOSE_RANGE_CLOEXEC */);
  char number[24] = {};
  std::to_chars(number, number + sizeof number - 1, child);
  ExecuteImage(plan, "predump-reaper", number);
  // Without the image we still are what the landing needs: somebody who waits.
  ::syscall(SYS_close_range, 0u, ~0u, 0u);
  int code = 0;
  for (;;) {
    int status = 0;
    const pid_t ended = ::waitpid(-1, &status, __WALL);
    if (ended < 0 && errno != EINTR) break;
    if (ended == child) code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }
  ::_exit(code);
}

absl::StatusOr<base::UniqueFd> CreateImage() {
  constexpr unsigned kMfdExec = 0x10;  // Linux 6.3; asked for by vm.memfd_noexec
  int fd = ::memfd_create("predump-landing", MFD_CLOEXEC | kMfdExec);
  if (fd < 0 && errno == EINVAL) fd = ::memfd_create("predump-landing", MFD_CLOEXEC);
  if (fd < 0) return base::ErrnoError(errno, "memfd_create for the landing");
  base::UniqueFd image(fd);
  const size_t bytes = static_cast<size_t>(predump_landing_image_end - predump_landing_image);
  if (::write(fd, predump_landing_image, bytes) != static_cast<ssize_t>(bytes)) {
    return base::ErrnoError(errno, "write the landing image");
  }
  return image;
}

absl::Status Explain(const Report& report, const BirthOptions& options) {
  const int error = report.error_number;
  switch (report.stage) {
    case Stage::kReady:
      return absl::OkStatus();
    case Stage::kSession:
      return base::ErrnoError(error, "setsid for the landing");
    case Stage::kCgroup:
      return base::ErrnoError(error, "enter the cgroup ", options.cgroup_path);
    case Stage::kTimeNamespace:
      return base::ErrnoError(error, "time namespace with the source's clocks");
    case Stage::kClone:
      if (error == EEXIST) {
        return absl::AlreadyExistsError(
            absl::StrCat("pid ", options.pid, " is taken on this host"));
      }
      return base::ErrnoError(error, "clone3 with pid ", options.pid);
    case Stage::kPlaceFds:
      return base::ErrnoError(error, "descriptors of the landing");
    case Stage::kExec:
      return base::ErrnoError(error, "execute the landing image");
  }
  return absl::InternalError("unknown stage of the landing's birth");
}

// One report; `sender` gets the pid of who sent it, in our pid namespace. `flags` are recvmsg(2)'s.
absl::StatusOr<Report> ReceiveReport(int socket, int flags, pid_t* sender) {
  Report report;
  iovec vector = {&report, sizeof(report)};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(ucred))];
  msghdr message = {};
  message.msg_iov = &vector;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  ssize_t got;
  do {
    got = ::recvmsg(socket, &message, flags);
  } while (got < 0 && errno == EINTR);
  if (got < 0) return base::ErrnoError(errno, "wait for the landing to be born");
  if (got != sizeof(report)) return absl::AbortedError("the landing died while it was being born");
  for (cmsghdr* c = CMSG_FIRSTHDR(&message); c != nullptr; c = CMSG_NXTHDR(&message, c)) {
    if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_CREDENTIALS) {
      ucred credentials;
      ::memcpy(&credentials, CMSG_DATA(c), sizeof(credentials));
      *sender = credentials.pid;
    }
  }
  return report;
}

// Seizes the landing, lets it execute the image, and leaves it in the stop after that.
absl::StatusOr<kernel::Tracee> SeizeAndExecute(int socket, pid_t pid, const BirthOptions& options) {
  PREDUMP_ASSIGN_OR_RETURN(
      kernel::Tracee landing,
      kernel::Tracee::Seize(pid, PTRACE_O_EXITKILL | PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACEEXEC));
  const auto execute = [&]() -> absl::Status {
    if (::send(socket, "g", 1, MSG_NOSIGNAL) != 1) {
      return base::ErrnoError(errno, "start the landing");
    }
    auto event = landing.WaitForStop(kBirthTimeout);
    if (!event.ok()) {
      // Where it has ended by itself, it has said why.
      pid_t sender = 0;
      auto report = ReceiveReport(socket, MSG_DONTWAIT, &sender);
      if (report.ok()) PREDUMP_RETURN_IF_ERROR(Explain(*report, options));
      return event.status();
    }
    if (event->kind != kernel::WaitEvent::Kind::kPtraceEvent || event->code != PTRACE_EVENT_EXEC) {
      return absl::InternalError(absl::StrCat("the landing stopped oddly: ", event->ToString()));
    }
    // That stop is inside execve(2), whose end would be taken for that of the first remote call.
    PREDUMP_RETURN_IF_ERROR(landing.ContinueToSyscall());
    PREDUMP_ASSIGN_OR_RETURN(const kernel::WaitEvent exit, landing.WaitForStop(kBirthTimeout));
    if (exit.kind != kernel::WaitEvent::Kind::kSyscallStop) {
      return absl::InternalError(absl::StrCat("the landing stopped oddly: ", exit.ToString()));
    }
    return absl::OkStatus();
  };
  absl::Status executed = execute();
  if (!executed.ok()) {
    // Not reaped yet, so the number is still its own. A tracee is its tracer's to collect first:
    // its parent, which is waited for next, would wait for ever.
    ::kill(pid, SIGKILL);
    while (landing.WaitForStop(std::nullopt).ok()) {
    }
    return executed;
  }
  return landing;
}

// The pid of the reaper, or an error; in the reaper itself it does not return.
absl::StatusOr<pid_t> CloneReaper(ChildPlan& plan) {
  // The children begin with all signals blocked and keep it so: none may end them half-way.
  sigset_t all;
  sigset_t before;
  ::sigfillset(&all);
  ::pthread_sigmask(SIG_SETMASK, &all, &before);
  clone_args args = {};
  args.flags = plan.options->new_pid_namespace ? CLONE_NEWPID : 0;
  args.exit_signal = SIGCHLD;
  const long pid = RawClone3(args);
  if (pid == 0) RunReaper(plan);
  const int error = errno;
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  if (pid < 0) return base::ErrnoError(error, "clone3 for the reaper");
  return static_cast<pid_t>(pid);
}

void FormatOffsets(const BirthOptions& options, ChildPlan& plan) {
  if (!options.monotonic_offset_ns.has_value() && !options.boottime_offset_ns.has_value()) return;
  // time_namespaces(7): nanoseconds are counted upwards from the (possibly negative) second.
  const auto split = [](int64_t ns, long long& seconds, long& nanoseconds) {
    seconds = ns / 1'000'000'000;
    nanoseconds = static_cast<long>(ns % 1'000'000'000);
    if (nanoseconds < 0) {
      nanoseconds += 1'000'000'000;
      --seconds;
    }
  };
  long long seconds[2];
  long nanoseconds[2];
  split(options.monotonic_offset_ns.value_or(0), seconds[0], nanoseconds[0]);
  split(options.boottime_offset_ns.value_or(0), seconds[1], nanoseconds[1]);
  std::snprintf(plan.timens_offsets, sizeof(plan.timens_offsets),
                "monotonic %lld %ld\nboottime %lld %ld\n", seconds[0], nanoseconds[0], seconds[1],
                nanoseconds[1]);
}

// `reaper` is set once there is one, whatever becomes of the landing.
absl::StatusOr<Newborn> TryToGiveBirth(const BirthOptions& options, pid_t& reaper) {
  PREDUMP_ASSIGN_OR_RETURN(base::UniqueFd image, CreateImage());
  base::UniqueFd cgroup;
  if (!options.cgroup_path.empty()) {
    const std::string path = absl::StrCat(options.cgroup_path, "/cgroup.procs");
    cgroup = base::UniqueFd(::open(path.c_str(), O_WRONLY | O_CLOEXEC));
    if (!cgroup.valid()) return base::ErrnoError(errno, "open ", path);
  }
  int pair[2];
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) != 0) {
    return base::ErrnoError(errno, "socketpair");
  }
  base::UniqueFd ours(pair[0]);
  base::UniqueFd theirs(pair[1]);
  const int on = 1;
  const timeval limit = absl::ToTimeval(kBirthTimeout);
  if (::setsockopt(ours.get(), SOL_SOCKET, SO_PASSCRED, &on, sizeof(on)) != 0 ||
      ::setsockopt(ours.get(), SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit)) != 0) {
    return base::ErrnoError(errno, "setsockopt");
  }
  ChildPlan plan;
  plan.options = &options;
  plan.server_socket = ours.get();
  plan.child_socket = theirs.get();
  plan.image_fd = image.get();
  plan.cgroup_fd = cgroup.get();
  FormatOffsets(options, plan);
  PREDUMP_ASSIGN_OR_RETURN(reaper, CloneReaper(plan));
  (void)theirs.Close();

  const auto finish = [&]() -> absl::StatusOr<kernel::Tracee> {
    pid_t landing = 0;
    PREDUMP_ASSIGN_OR_RETURN(const Report report, ReceiveReport(ours.get(), 0, &landing));
    PREDUMP_RETURN_IF_ERROR(Explain(report, options));
    return SeizeAndExecute(ours.get(), landing, options);
  };
  auto landing = finish();
  if (!landing.ok()) {
    // Closing our end ends the landing where it still waits. The reaper need not wait for it: what
    // has become stuck, in a frozen cgroup for one, shall not hold us up.
    (void)ours.Close();
    ::kill(reaper, SIGKILL);
    ::waitpid(reaper, nullptr, 0);
    return landing.status();
  }
  return Newborn{reaper, *std::move(landing)};
}

}  // namespace

absl::StatusOr<Newborn> GiveBirth(const BirthOptions& options) {
  pid_t reaper = 0;
  auto newborn = TryToGiveBirth(options, reaper);
  // In a young pid namespace the reaper itself may get the number. The next one gets another.
  if (absl::IsAlreadyExists(newborn.status()) && reaper == options.pid &&
      !options.new_pid_namespace) {
    newborn = TryToGiveBirth(options, reaper);
  }
  return newborn;
}

}  // namespace predump::restore::internal
