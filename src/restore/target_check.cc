#include "src/restore/target_check.h"

#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <netinet/in.h>
#include <signal.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "src/base/errors.h"
#include "src/base/unique_fd.h"
#include "src/images/image_constants.h"
#include "src/images/image_set.h"
#include "src/kernel/capabilities.h"
#include "src/kernel/procfs.h"
#include "src/restore/blockers.h"
#include "src/restore/limit_names.h"
#include "src/restore/pid_check.h"
#include "src/restore/plan_room.h"
#include "src/restore/requirement_check.h"
#include "src/restore/server_check.h"
#include "src/restore/socket_address.h"

namespace predump::restore {
namespace {

using internal::AddBlocker;
using internal::Blockers;

// The GNU build-id note's bytes of an ELF file, empty where there is none; all reads are bounded.
std::string BuildId(int fd) {
  constexpr size_t kMostNotes = 4096;
  constexpr size_t kMostHeaders = 64;
  Elf64_Ehdr header;
  if (::pread(fd, &header, sizeof(header), 0) != sizeof(header) ||
      ::memcmp(header.e_ident, ELFMAG, SELFMAG) != 0 || header.e_ident[EI_CLASS] != ELFCLASS64) {
    return "";
  }
  for (size_t i = 0; i < header.e_phnum && i < kMostHeaders; ++i) {
    Elf64_Phdr segment;
    const off_t at = static_cast<off_t>(header.e_phoff + i * sizeof(segment));
    if (::pread(fd, &segment, sizeof(segment), at) != sizeof(segment)) return "";
    if (segment.p_type != PT_NOTE || segment.p_filesz > kMostNotes) continue;
    std::string notes(segment.p_filesz, '\0');
    const ssize_t got =
        ::pread(fd, notes.data(), notes.size(), static_cast<off_t>(segment.p_offset));
    if (got != static_cast<ssize_t>(notes.size())) return "";
    for (size_t offset = 0; offset + sizeof(Elf64_Nhdr) <= notes.size();) {
      Elf64_Nhdr note;
      ::memcpy(&note, notes.data() + offset, sizeof(note));
      const size_t name = offset + sizeof(note);
      const size_t value = name + ((size_t{note.n_namesz} + 3) & ~size_t{3});
      const size_t end = value + ((size_t{note.n_descsz} + 3) & ~size_t{3});
      if (value > notes.size() || end > notes.size()) break;
      if (note.n_type == NT_GNU_BUILD_ID && notes.compare(name, 4, std::string("GNU\0", 4)) == 0) {
        return notes.substr(value, note.n_descsz);
      }
      offset = end;
    }
  }
  return "";
}

void CheckRegular(const criu::reg_file_entry& file, Blockers& blockers) {
  const std::string what = absl::StrCat("file ", file.name());
  struct stat info;
  if (::stat(file.name().c_str(), &info) != 0) {
    AddBlocker(blockers, what, absl::StrCat("not on this host: ", ::strerror(errno)),
               "provide the same file at the same path");
    return;
  }
  if (file.has_mode() && ((file.mode() ^ info.st_mode) & S_IFMT) != 0) {
    AddBlocker(blockers, what, "is of another kind on this host");
    return;
  }
  if (file.has_mode() && ((file.mode() ^ info.st_mode) & 07777) != 0) {
    AddBlocker(blockers, what,
               absl::StrFormat("has mode %04o on this host, %04o at the source",
                               info.st_mode & 07777, file.mode() & 07777));
  }
  if (!S_ISREG(info.st_mode)) return;
  if (file.has_size() && file.size() != static_cast<uint64_t>(info.st_size)) {
    AddBlocker(
        blockers, what,
        absl::StrCat("has ", info.st_size, " bytes on this host, ", file.size(), " at the source"),
        "copy the file, or share it between the hosts");
    return;
  }
  if (file.build_id_size() == 0) return;
  const base::UniqueFd fd(::open(file.name().c_str(), O_RDONLY | O_CLOEXEC));
  std::string wanted(reinterpret_cast<const char*>(file.build_id().data()),
                     static_cast<size_t>(file.build_id_size()) * 4);
  std::string have = fd.valid() ? BuildId(fd.get()) : "";
  have.resize((have.size() + 3) & ~size_t{3});  // words
  if (have != wanted) {
    AddBlocker(blockers, what, "is another build on this host (build-id differs)",
               "install the same version of the program and its libraries");
  }
}

void CheckPids(const proto::Begin& begin, const TargetCheckOptions& options, Blockers& blockers) {
  if (options.new_pid_namespace) {
    if (begin.pid() == 1) {
      AddBlocker(blockers, "pid 1", "is the init of the namespace that is made for the process");
    }
    return;
  }
  internal::FindTakenPids(begin, options.pid_patience, blockers);
}

// Options that this kernel, its modules or its interfaces may not have, set on a socket like it.
void CheckOptions(int probe, const criu::sk_opts_entry& options, const proto::FileExtra* extra,
                  const std::string& what, Blockers& blockers) {
  const std::string& device = options.so_bound_dev();
  if (!device.empty() && ::setsockopt(probe, SOL_SOCKET, SO_BINDTODEVICE, device.c_str(),
                                      static_cast<socklen_t>(device.size() + 1)) != 0) {
    AddBlocker(
        blockers, what,
        absl::StrCat("is bound to the interface ", device, ", on this host: ", ::strerror(errno)));
  }
  if (extra == nullptr) return;
  for (const auto& option : extra->socket_options()) {
    if (::setsockopt(probe, option.level(), option.name(), option.value().data(),
                     static_cast<socklen_t>(option.value().size())) != 0) {
      AddBlocker(blockers, what,
                 absl::StrCat("option ", option.level(), "/", option.name(),
                              " cannot be set on this host: ", ::strerror(errno)));
    }
  }
}

// Whether an address can be had: bind(2) with the options the socket will have. `bind`: false where
// another socket of the process has had a try at the same.
void CheckInet(const criu::inet_sk_entry& socket, const proto::FileExtra* extra, bool bind,
               Blockers& blockers) {
  const int family = static_cast<int>(socket.family());
  const base::UniqueFd probe(::socket(family, static_cast<int>(socket.type()) | SOCK_CLOEXEC,
                                      static_cast<int>(socket.proto())));
  const std::string what = absl::StrCat(socket.type() == SOCK_STREAM ? "TCP " : "UDP ",
                                        internal::InetAddressText(socket));
  if (!probe.valid()) {
    AddBlocker(blockers, what, absl::StrCat("no such sockets on this host: ", ::strerror(errno)));
    return;
  }
  const auto set = [&](int level, int option, int value) {
    (void)::setsockopt(probe.get(), level, option, &value, sizeof(value));
  };
  if (family == AF_INET6) set(IPPROTO_IPV6, IPV6_V6ONLY, socket.v6only() ? 1 : 0);
  if (socket.ip_opts().freebind()) set(IPPROTO_IP, IP_FREEBIND, 1);
  CheckOptions(probe.get(), socket.opts(), extra, what, blockers);
  if (!bind || socket.src_port() == 0 || (extra != nullptr && extra->tcp_closed())) return;
  if (socket.opts().reuseaddr() || socket.type() == SOCK_STREAM) set(SOL_SOCKET, SO_REUSEADDR, 1);
  if (socket.opts().so_reuseport()) set(SOL_SOCKET, SO_REUSEPORT, 1);
  const std::string address = internal::InetSourceAddress(socket);
  const bool bound = ::bind(probe.get(), reinterpret_cast<const sockaddr*>(address.data()),
                            static_cast<socklen_t>(address.size())) == 0;
  // With SO_REUSEADDR only listen(2) tells that somebody listens there already.
  const bool listens = socket.state() != images::kSocketListening || ::listen(probe.get(), 1) == 0;
  if (!bound || !listens) {
    AddBlocker(blockers, what, absl::StrCat("cannot be bound on this host: ", ::strerror(errno)));
  }
}

void CheckUnix(const criu::unix_sk_entry& socket, Blockers& blockers) {
  if (socket.name().empty() || socket.state() == images::kSocketEstablished) return;
  const std::string what = absl::StrCat("unix socket ", internal::UnixAddressText(socket.name()));
  if (internal::IsAbstract(socket.name())) {
    const base::UniqueFd probe(
        ::socket(AF_UNIX, static_cast<int>(socket.type()) | SOCK_CLOEXEC, 0));
    const std::string address = internal::UnixAddress(socket.name());
    if (::bind(probe.get(), reinterpret_cast<const sockaddr*>(address.data()),
               static_cast<socklen_t>(address.size())) != 0) {
      AddBlocker(blockers, what, absl::StrCat("cannot be bound on this host: ", ::strerror(errno)));
    }
    return;
  }
  const std::string path = internal::UnixPath(socket);
  const std::string directory = path.substr(0, std::max<size_t>(path.rfind('/'), 1));
  struct stat info;
  if (::lstat(path.c_str(), &info) == 0) {
    if (!internal::IsStaleSocket(path)) AddBlocker(blockers, what, "exists on this host");
  } else if (::access(directory.c_str(), W_OK | X_OK) != 0) {
    AddBlocker(blockers, what,
               absl::StrCat("cannot be made in ", directory, " on this host: ", ::strerror(errno)));
  }
}

void CheckSockets(const proto::ProcessState& state, Blockers& blockers) {
  const images::FileIndex files(state);
  // Two sockets of the process may share an address (SO_REUSEPORT); one look is enough.
  std::set<std::string> seen;
  for (const auto& file : state.files()) {
    const proto::FileExtra* extra = files.FindExtra(file.id());
    if (file.has_isk()) {
      const bool first =
          seen.insert(internal::InetSourceAddress(file.isk()) + absl::StrCat(file.isk().type()))
              .second;
      CheckInet(file.isk(), extra, first, blockers);
    }
    if (file.has_usk()) {
      const base::UniqueFd probe(
          ::socket(AF_UNIX, static_cast<int>(file.usk().type()) | SOCK_CLOEXEC, 0));
      CheckOptions(probe.get(), file.usk().opts(), extra,
                   absl::StrCat("unix socket ", internal::UnixAddressText(file.usk().name())),
                   blockers);
      CheckUnix(file.usk(), blockers);
    }
  }
}

absl::Status CheckMemory(uint64_t needed_bytes, Blockers& blockers) {
  std::ifstream file("/proc/meminfo");
  std::string key;
  uint64_t kibibytes = 0;
  std::string unit;
  while (file >> key >> kibibytes) {
    std::getline(file, unit);
    if (key != "MemAvailable:") continue;
    if (kibibytes * 1024 < needed_bytes) {
      AddBlocker(blockers, "memory",
                 absl::StrCat("the process holds ", needed_bytes >> 20, " MiB, this host has ",
                              kibibytes >> 10, " MiB available"));
    }
    return absl::OkStatus();
  }
  return absl::DataLossError("/proc/meminfo has no MemAvailable");
}

absl::Status CheckRights(const proto::ProcessState& state, Blockers& blockers) {
  PREDUMP_ASSIGN_OR_RETURN(const kernel::ProcessHandle self,
                           kernel::ProcessHandle::Open(::getpid()));
  PREDUMP_ASSIGN_OR_RETURN(const auto status, kernel::ReadStatus(self));
  const uint64_t have = status.cap_permitted & status.cap_bounding;
  for (const int needed : {CAP_SYS_PTRACE, CAP_SYS_ADMIN}) {
    if ((status.cap_effective & (1ull << needed)) == 0) {
      AddBlocker(blockers, "predump", absl::StrCat("lacks ", internal::CapabilityName(needed)),
                 "run it as root");
    }
  }
  uint64_t wanted = 0;
  for (const auto& thread : state.threads()) {
    const criu::creds_entry& creds = thread.core().thread_core().creds();
    for (const auto* set : {&creds.cap_prm(), &creds.cap_bnd()}) {
      for (int i = 0; i < set->size() && i < 2; ++i) wanted |= uint64_t{set->Get(i)} << (32 * i);
    }
  }
  for (int bit = 0; bit < 64; ++bit) {
    if ((wanted & ~have & (1ull << bit)) != 0) {
      AddBlocker(blockers, "attribute capabilities",
                 absl::StrCat(internal::CapabilityName(bit), " cannot be given on this host"));
    }
  }
  if (state.threads_size() == 0) return absl::OkStatus();
  const auto& limits = state.threads(0).core().tc().rlimits().rlimits();
  const bool may_raise = (status.cap_effective & (1ull << CAP_SYS_RESOURCE)) != 0;
  for (int i = 0; i < limits.size() && i < static_cast<int>(RLIM_NLIMITS); ++i) {
    rlimit ours = {};
    ::getrlimit(static_cast<__rlimit_resource>(i), &ours);
    if (limits.Get(i).max() > ours.rlim_max && !may_raise) {
      AddBlocker(blockers, absl::StrCat("attribute ", internal::LimitName(i)),
                 absl::StrCat("its hard limit ", internal::LimitText(limits.Get(i).max()),
                              " is above predump's own ", internal::LimitText(ours.rlim_max)),
                 "start predump with that limit, or with CAP_SYS_RESOURCE");
    }
  }
  return absl::OkStatus();
}

void CheckKernel(const proto::Begin& begin, Blockers& blockers) {
  std::vector<kernel::Capability> needed = {kernel::Capability::kClone3SetTid,
                                            kernel::Capability::kMemfd};
  if (begin.has_monotonic_offset_ns() || begin.has_boottime_offset_ns()) {
    needed.push_back(kernel::Capability::kTimeNamespace);
  }
  for (const kernel::Capability capability : needed) {
    const auto result = kernel::Probe(capability);
    if (result.ok() && !result->available) {
      AddBlocker(blockers, "target kernel",
                 absl::StrCat("lacks ", result->name, ": ", result->reason));
    }
  }
}

}  // namespace

absl::StatusOr<std::vector<proto::Blocker>> RecheckFiles(const proto::ProcessState& state) {
  Blockers blockers;
  // A terminal's path is that of another host's; the process gets the one there is here.
  std::set<uint32_t> terminals;
  for (const auto& file : state.files()) {
    if (file.has_tty()) terminals.insert(file.tty().regf_id());
  }
  for (const auto& descriptor : state.descriptors()) terminals.erase(descriptor.id());
  std::set<std::string> seen;
  for (const auto& file : state.files()) {
    if (file.has_reg() && !terminals.contains(file.id()) && seen.insert(file.reg().name()).second) {
      CheckRegular(file.reg(), blockers);
    }
  }
  return blockers;
}

void FindRoomBlockers(const proto::ProcessState& preview, std::vector<proto::Blocker>& blockers) {
  const absl::Status room = CheckRoomToBuild(preview);
  if (!room.ok()) AddBlocker(blockers, "its size", std::string(room.message()));
}

absl::StatusOr<std::vector<proto::Blocker>> FindTargetBlockers(const proto::Begin& begin,
                                                               const TargetCheckOptions& options) {
  PREDUMP_ASSIGN_OR_RETURN(Blockers blockers, RecheckFiles(begin.preview()));
  CheckPids(begin, options, blockers);
  CheckKernel(begin, blockers);
  FindRoomBlockers(begin.preview(), blockers);
  PREDUMP_RETURN_IF_ERROR(
      internal::FindUnmetRequirements(begin, options.new_pid_namespace, blockers));
  PREDUMP_RETURN_IF_ERROR(CheckMemory(begin.memory_bytes(), blockers));
  if (!options.cgroup_path.empty() &&
      ::access(absl::StrCat(options.cgroup_path, "/cgroup.procs").c_str(), W_OK) != 0) {
    AddBlocker(blockers, absl::StrCat("cgroup ", options.cgroup_path), ::strerror(errno));
  }
  CheckSockets(begin.preview(), blockers);
  PREDUMP_RETURN_IF_ERROR(CheckRights(begin.preview(), blockers));
  PREDUMP_RETURN_IF_ERROR(internal::FindServerBlockers(begin.preview(), blockers));
  const auto& files = begin.preview().files();
  if (!options.shell_job &&
      std::any_of(files.begin(), files.end(), [](const auto& file) { return file.has_tty(); })) {
    AddBlocker(blockers, "terminal", "predump has no terminal for the process",
               "run it in the foreground of one, with --shell-job");
  }
  return blockers;
}

}  // namespace predump::restore
