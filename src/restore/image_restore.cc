#include "src/restore/image_restore.h"

#include <errno.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <optional>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "spdlog/spdlog.h"
#include "src/base/atomic_file.h"
#include "src/base/clock.h"
#include "src/base/errors.h"
#include "src/base/unique_fd.h"
#include "src/images/directory_names.h"
#include "src/images/image_store.h"
#include "src/images/page_chain.h"
#include "src/images/state_images.h"
#include "src/images/state_validation.h"
#include "src/kernel/process.h"
#include "src/kernel/time_offsets.h"
#include "src/restore/blockers.h"
#include "src/restore/carried.h"
#include "src/restore/landing.h"
#include "src/restore/stored_memory.h"
#include "src/restore/target_check.h"
#include "src/transport/data_writer.h"

namespace predump::restore {
namespace {

using internal::AddBlocker;
using internal::Blockers;

// Everything has been handed to the kernel by then.
constexpr absl::Duration kFinalTimeout = absl::Seconds(60);

struct Stored {
  images::StoredState set;
  images::PageChain pages;
  std::vector<images::StoredRun> runs;  // of private memory
};

struct ClockOffsets {
  int64_t monotonic_ns = 0;
  int64_t boottime_ns = 0;
};

// With which the clocks of the process go on from where they were; nothing where the images do not
// say.
absl::StatusOr<std::optional<ClockOffsets>> OffsetsFor(const proto::ProcessState& state) {
  if (!state.has_timens()) return std::nullopt;
  PREDUMP_ASSIGN_OR_RETURN(const kernel::TimeOffsets own, kernel::ReadTimeOffsets(::getpid()));
  ClockOffsets offsets;
  offsets.monotonic_ns = state.extra().freeze_monotonic_ns() -
                         (base::ClockNanoseconds(CLOCK_MONOTONIC) - own.monotonic_ns);
  offsets.boottime_ns = state.extra().freeze_boottime_ns() -
                        (base::ClockNanoseconds(CLOCK_BOOTTIME) - own.boottime_ns);
  return offsets;
}

proto::Begin BeginOf(const proto::ProcessState& state, uint64_t pages,
                     const ImageRestoreOptions& options) {
  proto::Begin begin;
  begin.set_session_id("");
  begin.set_pid(state.pid());
  for (const auto& thread : state.threads()) begin.add_tids(thread.tid());
  begin.set_memory_bytes(pages * 4096);
  *begin.mutable_preview() = state;
  if (state.has_timens()) {  // that there are any is what is checked
    begin.set_monotonic_offset_ns(0);
    begin.set_boottime_offset_ns(0);
  }
  begin.set_shell_job(options.shell_job);
  return begin;
}

absl::Status CheckVdso(const Stored& stored, Blockers& blockers) {
  const absl::StatusOr<bool> ours = internal::HasOurVdso(stored.set.state, stored.pages);
  if (absl::IsNotFound(ours.status())) {
    AddBlocker(blockers, "host vDSO",
               absl::StrCat("nothing tells whether it is this kernel's: ",
                            std::string(ours.status().message())));
    return absl::OkStatus();
  }
  if (!ours.ok()) return ours.status();
  if (!*ours) {
    AddBlocker(blockers, "host vDSO",
               "this kernel gives processes another one than they were stored with, and threads "
               "may stand in it",
               "boot the kernel it was captured on, or restore it there");
  }
  return absl::OkStatus();
}

// Everything that keeps the process from this host, at once.
absl::StatusOr<Blockers> FindBlockers(Stored& stored, const ImageRestoreOptions& options) {
  Blockers blockers = stored.set.blockers;
  for (proto::Blocker& blocker : FindUncarried(stored.set.state)) {
    blockers.push_back(std::move(blocker));
  }
  // What is left of a set that is refused anyway need not hang together.
  const bool refused = !blockers.empty();
  if (refused) TakeOutUncarried(stored.set.state);
  const absl::Status valid =
      images::ValidateState(stored.set.state, images::StateKind::kStored, {});
  if (!valid.ok()) return refused ? absl::StatusOr<Blockers>(blockers) : valid;
  if (stored.set.extra.has_value() && stored.set.extra->has_host() && options.compare_hosts) {
    for (proto::Blocker& blocker : options.compare_hosts(stored.set.extra->host())) {
      blockers.push_back(std::move(blocker));
    }
  } else {
    const absl::Status checked = CheckVdso(stored, blockers);
    if (!checked.ok()) return refused ? absl::StatusOr<Blockers>(blockers) : checked;
  }
  auto runs = internal::PrivateRuns(stored.set.state, stored.pages);
  if (!runs.ok()) return refused ? absl::StatusOr<Blockers>(blockers) : runs.status();
  stored.runs = *std::move(runs);
  uint64_t pages = 0;
  for (const images::StoredRun& run : stored.runs) pages += run.pages;
  TargetCheckOptions check;
  check.new_pid_namespace = options.new_pid_namespace;
  check.shell_job = options.shell_job;
  check.cgroup_path = options.cgroup_path;
  PREDUMP_ASSIGN_OR_RETURN(Blockers found,
                           FindTargetBlockers(BeginOf(stored.set.state, pages, options), check));
  for (proto::Blocker& blocker : found) blockers.push_back(std::move(blocker));
  return blockers;
}

absl::StatusOr<Stored> Read(const std::string& path) {
  PREDUMP_ASSIGN_OR_RETURN(const base::UniqueFd directory, images::OpenImageDirectory(path));
  // Of a store it is not the directory that was named.
  const std::string where = images::PathOf(directory.get());
  absl::StatusOr<images::StoredState> read = images::ReadState(directory.get());
  if (!read.ok()) return base::Annotate(read.status(), where);
  images::StoredState set = *std::move(read);
  PREDUMP_ASSIGN_OR_RETURN(images::PageChain pages,
                           images::PageChain::Open(directory.get(), {images::PagesOf::Kind::kTask,
                                                                     uint64_t{set.state.pid()}}));
  return Stored{std::move(set), std::move(pages), {}};
}

// The two ends of a data connection within this host. The landing reads frames at once: a server
// would have taken the preamble off.
struct Channel {
  transport::DataWriter writer;
  base::UniqueFd landing_end;
};

absl::StatusOr<Channel> OpenChannel() {
  int pair[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0) {
    return base::ErrnoError(errno, "socketpair");
  }
  base::UniqueFd ours(pair[0]);
  base::UniqueFd theirs(pair[1]);
  PREDUMP_ASSIGN_OR_RETURN(
      transport::DataWriter writer,
      transport::DataWriter::Start(std::move(ours), std::string(transport::kTokenBytes, '\0')));
  char preamble[sizeof(transport::kDataMagic) + transport::kTokenBytes];
  if (::recv(theirs.get(), preamble, sizeof preamble, MSG_WAITALL) != sizeof preamble) {
    return base::ErrnoError(errno, "read the preamble of a data connection");
  }
  return Channel{std::move(writer), std::move(theirs)};
}

absl::StatusOr<Landing> Load(Stored& stored, const ImageRestoreOptions& options) {
  PREDUMP_ASSIGN_OR_RETURN(Channel channel, OpenChannel());
  LandingOptions landing_options;
  landing_options.pid = static_cast<pid_t>(stored.set.state.pid());
  landing_options.new_pid_namespace = options.new_pid_namespace;
  landing_options.data_socket = std::move(channel.landing_end);
  landing_options.cgroup_path = options.cgroup_path;
  landing_options.shell_job = options.shell_job;
  PREDUMP_ASSIGN_OR_RETURN(const std::optional<ClockOffsets> offsets, OffsetsFor(stored.set.state));
  if (offsets.has_value()) {
    // Its timers go on as its clocks do: by the time that the landing takes.
    landing_options.monotonic_offset_ns = offsets->monotonic_ns;
    landing_options.boottime_offset_ns = offsets->boottime_ns;
  } else {
    stored.set.state.mutable_extra()->clear_freeze_monotonic_ns();
  }
  PREDUMP_ASSIGN_OR_RETURN(Landing landing, Landing::Start(std::move(landing_options)));
  const absl::Status sent = internal::SendMemory(stored.set.state, stored.runs, channel.writer);
  // The landing's own account of a failure says more than the broken connection.
  const absl::Status arrived = sent.ok() || absl::IsUnavailable(sent)
                                   ? landing.WaitForFinal(absl::Now() + kFinalTimeout, -1)
                                   : sent;
  PREDUMP_RETURN_IF_ERROR(arrived);
  PREDUMP_RETURN_IF_ERROR(sent);
  return landing;
}

// Lets it go. On an error it is dead.
absl::Status Release(BuiltProcess built, const std::string& pidfile_path) {
  // Between the stop that is queued and the one that is taken back nobody shall ask us to end: the
  // process would be left stopped.
  sigset_t requests;
  sigset_t before;
  ::sigemptyset(&requests);
  for (const int number : {SIGHUP, SIGINT, SIGQUIT, SIGTERM}) ::sigaddset(&requests, number);
  ::pthread_sigmask(SIG_BLOCK, &requests, &before);
  const absl::Cleanup unblock = [&before] { ::pthread_sigmask(SIG_SETMASK, &before, nullptr); };
  PREDUMP_ASSIGN_OR_RETURN(const kernel::ProcessHandle process,
                           kernel::ProcessHandle::Open(built.pid()));
  PREDUMP_RETURN_IF_ERROR(built.QueueStop());
  bool pidfile_written = false;
  const auto let_go = [&]() -> absl::Status {
    if (!pidfile_path.empty()) {
      // Whoever reads it finds the process.
      PREDUMP_RETURN_IF_ERROR(base::WriteFileAtomically(pidfile_path, absl::StrCat(built.pid()),
                                                        base::Durability::kProcessDeath));
      pidfile_written = true;
    }
    PREDUMP_RETURN_IF_ERROR(built.ClearExitKill());
    return std::move(built).Release();
  };
  const absl::Status released = let_go();
  if (!released.ok()) {
    (void)process.SendSignal(SIGKILL);
    if (pidfile_written) ::unlink(pidfile_path.c_str());
  }
  return released;
}

}  // namespace

absl::StatusOr<ImageRestoreReport> RestoreImages(const ImageRestoreOptions& options) {
  PREDUMP_ASSIGN_OR_RETURN(Stored stored, Read(options.images_directory));
  ImageRestoreReport report;
  PREDUMP_ASSIGN_OR_RETURN(report.blockers, FindBlockers(stored, options));
  if (!report.blockers.empty()) return report;

  base::Stopwatch phase;
  PREDUMP_ASSIGN_OR_RETURN(Landing landing, Load(stored, options));
  for (const images::StoredRun& run : stored.runs) report.pages += run.pages;
  report.loading = phase.Elapsed();
  phase = base::Stopwatch();
  PREDUMP_ASSIGN_OR_RETURN(BuiltProcess built, std::move(landing).Build(stored.set.state));
  for (const proto::Phase& step : built.phases()) {
    spdlog::debug("{}: {:.3f} ms", step.name(), static_cast<double>(step.nanoseconds()) / 1e6);
  }
  if (stored.set.extra.has_value()) {
    const auto& late = stored.set.extra->late_signals();
    PREDUMP_RETURN_IF_ERROR(
        built.QueueLateSignals(std::vector<proto::LateSignal>(late.begin(), late.end())));
  }
  report.pid = built.pid();
  report.reaper = built.reaper_pid();
  PREDUMP_RETURN_IF_ERROR(Release(std::move(built), options.pidfile_path));
  report.building = phase.Elapsed();
  return report;
}

absl::StatusOr<int> WaitForRestored(pid_t reaper) {
  int status = 0;
  while (::waitpid(reaper, &status, 0) < 0) {
    if (errno != EINTR) return base::ErrnoError(errno, "wait for the restored process");
  }
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

}  // namespace predump::restore
