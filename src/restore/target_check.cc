#include "src/restore/target_check.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "src/base/atomic_file.h"
#include "src/base/errors.h"
#include "src/base/unique_fd.h"
#include "src/restore/limit_names.h"
#include "src/restore/socket_address.h"

namespace predump::restore {
namespace {

constexpr uint32_t kTcp = 6;
constexpr uint32_t kStateListen = 10;
constexpr uint64_t kBytesPerKib = 1024;

proto::Blocker Block(std::string what, std::string reason, std::string advice = "") {
  proto::Blocker blocker;
  blocker.set_what(std::move(what));
  blocker.set_reason(std::move(reason));
  if (!advice.empty()) blocker.set_advice(std::move(advice));
  return blocker;
}

std::string ErrnoText(int error_number) {
  return std::string(base::ErrnoError(error_number, "").message().substr(2));
}

class Checker {
 public:
  void CheckFile(const criu::reg_file_entry& file) {
    struct stat st;
    const std::string what = absl::StrCat("file ", file.name());
    if (::stat(file.name().c_str(), &st) != 0) {
      Add(Block(what, absl::StrCat("is not here (", ErrnoText(errno), ")"),
                "make it available at the target under the same name"));
      return;
    }
    if (file.has_mode() && (st.st_mode & S_IFMT) != (file.mode() & S_IFMT)) {
      Add(Block(what, "is of another kind here than at the source"));
      return;
    }
    if (file.has_mode() && (st.st_mode & 07777) != (file.mode() & 07777)) {
      Add(Block(what, absl::StrFormat("has mode %04o here, %04o at the source", st.st_mode & 07777,
                                      file.mode() & 07777)));
    }
    if (file.has_size() && S_ISREG(st.st_mode) &&
        static_cast<uint64_t>(st.st_size) != file.size()) {
      Add(Block(what, absl::StrCat("has ", st.st_size, " bytes here, ", file.size(),
                                   " at the source"),
                "it must be the same file at both ends"));
    }
  }

  void CheckFiles(const proto::ProcessState& state) {
    for (const criu::file_entry& file : state.files()) {
      if (file.has_reg()) CheckFile(file.reg());
    }
  }

  void CheckSockets(const proto::ProcessState& state) {
    for (const criu::file_entry& file : state.files()) {
      if (file.has_isk()) CheckInetSocket(file.isk());
      if (file.has_usk()) CheckUnixSocket(file.usk());
    }
  }

  void CheckPids(const proto::Begin& begin) {
    for (const uint32_t tid : begin.tids()) {
      if (::access(absl::StrCat("/proc/", tid).c_str(), F_OK) == 0) {
        Add(Block(absl::StrCat("pid ", tid), "is taken on this host",
                  "run the page server with --new-pidns"));
      }
    }
  }

  absl::Status CheckMemory(uint64_t needed_bytes) {
    PREDUMP_ASSIGN_OR_RETURN(const std::string text, base::ReadWholeFile("/proc/meminfo"));
    for (const absl::string_view line : absl::StrSplit(text, '\n')) {
      const std::vector<absl::string_view> words = absl::StrSplit(line, ' ', absl::SkipEmpty());
      uint64_t kib = 0;
      if (words.size() < 2 || words[0] != "MemAvailable:" || !absl::SimpleAtoi(words[1], &kib)) {
        continue;
      }
      if (kib < needed_bytes / kBytesPerKib) {
        Add(Block("memory", absl::StrCat("the process holds ", needed_bytes / kBytesPerKib,
                                         " KiB, and only ", kib, " KiB are available here")));
      }
      return absl::OkStatus();
    }
    return absl::DataLossError("/proc/meminfo has no MemAvailable");
  }

  // Hard limits can be raised only with CAP_SYS_RESOURCE; trying tells.
  void CheckLimits(const proto::ProcessState& state) {
    if (state.threads().empty() || !state.threads(0).core().has_tc()) return;
    const auto& limits = state.threads(0).core().tc().rlimits().rlimits();
    for (int resource = 0; resource < limits.size() && resource < RLIM_NLIMITS; ++resource) {
      struct rlimit ours;
      if (::getrlimit(static_cast<__rlimit_resource_t>(resource), &ours) != 0) continue;
      if (limits[resource].max() <= ours.rlim_max) continue;
      struct rlimit raised = {ours.rlim_cur, limits[resource].max()};
      if (::setrlimit(static_cast<__rlimit_resource_t>(resource), &raised) == 0) {
        ::setrlimit(static_cast<__rlimit_resource_t>(resource), &ours);
        continue;
      }
      Add(Block(absl::StrCat("limit ", internal::LimitName(resource)),
                absl::StrCat("the process may raise it to ", limits[resource].max(),
                             ", the page server only to ", ours.rlim_max),
                "start the page server with higher hard limits"));
    }
  }

  void CheckCgroup(const std::string& path) {
    if (path.empty()) return;
    if (::access(absl::StrCat(path, "/cgroup.procs").c_str(), W_OK) != 0) {
      Add(Block(absl::StrCat("cgroup ", path), ErrnoText(errno)));
    }
  }

  std::vector<proto::Blocker> Take() { return std::move(blockers_); }

 private:
  void Add(proto::Blocker blocker) { blockers_.push_back(std::move(blocker)); }

  // Bound as the process will be, on a socket of our own.
  void CheckInetSocket(const criu::inet_sk_entry& socket) {
    if (socket.src_port() == 0) return;
    if (socket.proto() == kTcp && socket.state() != kStateListen) return;
    base::UniqueFd trial(::socket(static_cast<int>(socket.family()),
                                  static_cast<int>(socket.type()) | SOCK_CLOEXEC,
                                  static_cast<int>(socket.proto())));
    if (!trial.valid()) return;
    const int on = 1;
    if (socket.opts().reuseaddr() || socket.proto() == kTcp) {
      ::setsockopt(trial.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    }
    if (socket.opts().so_reuseport()) {
      ::setsockopt(trial.get(), SOL_SOCKET, SO_REUSEPORT, &on, sizeof on);
    }
    if (socket.has_v6only()) {
      const int only = socket.v6only() ? 1 : 0;
      ::setsockopt(trial.get(), 41 /* SOL_IPV6 */, 26 /* IPV6_V6ONLY */, &only, sizeof only);
    }
    if (socket.ip_opts().freebind()) {
      ::setsockopt(trial.get(), 0 /* SOL_IP */, 15 /* IP_FREEBIND */, &on, sizeof on);
    }
    const std::string address = internal::InetSourceAddress(socket);
    bool taken = ::bind(trial.get(), reinterpret_cast<const sockaddr*>(address.data()),
                        static_cast<socklen_t>(address.size())) != 0;
    // With SO_REUSEADDR two may bind; only one may listen.
    if (!taken && socket.proto() == kTcp) taken = ::listen(trial.get(), 1) != 0;
    if (taken) {
      Add(Block(absl::StrCat("address ", internal::InetAddressText(socket)),
                absl::StrCat("cannot be bound here (", ErrnoText(errno), ")")));
    }
  }

  void CheckUnixSocket(const criu::unix_sk_entry& socket) {
    if (socket.name().empty() || socket.peer() != 0) return;
    base::UniqueFd trial(
        ::socket(AF_UNIX, static_cast<int>(socket.type()) | SOCK_CLOEXEC, 0));
    if (!trial.valid()) return;
    const std::string text = internal::UnixAddressText(socket.name());
    if (internal::IsAbstract(socket.name())) {
      const std::string address = internal::UnixAddress(socket.name());
      if (::bind(trial.get(), reinterpret_cast<const sockaddr*>(address.data()),
                 static_cast<socklen_t>(address.size())) != 0) {
        Add(Block(absl::StrCat("unix socket ", text),
                  absl::StrCat("cannot be bound here (", ErrnoText(errno), ")")));
      }
      return;
    }
    const std::string path = internal::UnixPath(socket);
    const std::string directory = path.substr(0, path.rfind('/'));
    if (::access(directory.empty() ? "/" : directory.c_str(), W_OK) != 0) {
      Add(Block(absl::StrCat("unix socket ", text),
                absl::StrCat("its directory: ", ErrnoText(errno))));
    }
  }

  std::vector<proto::Blocker> blockers_;
};

}  // namespace

absl::StatusOr<std::vector<proto::Blocker>> FindTargetBlockers(const proto::Begin& begin,
                                                               const TargetCheckOptions& options) {
  Checker checker;
  if (!options.new_pid_namespace) checker.CheckPids(begin);
  checker.CheckFiles(begin.preview());
  checker.CheckSockets(begin.preview());
  checker.CheckLimits(begin.preview());
  checker.CheckCgroup(options.cgroup_path);
  PREDUMP_RETURN_IF_ERROR(checker.CheckMemory(begin.memory_bytes()));
  return checker.Take();
}

absl::StatusOr<std::vector<proto::Blocker>> RecheckFiles(const proto::ProcessState& state) {
  Checker checker;
  checker.CheckFiles(state);
  return checker.Take();
}

}  // namespace predump::restore
