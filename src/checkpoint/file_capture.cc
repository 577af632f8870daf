#include "src/checkpoint/file_capture.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "src/base/errors.h"
#include "src/checkpoint/anonymous_file.h"
#include "src/checkpoint/pipe_capture.h"
#include "src/checkpoint/regular_file.h"
#include "src/checkpoint/socket_capture.h"

namespace predump::checkpoint {
namespace {

constexpr unsigned kMemoryDevices = 1;  // major of null 3, zero 5, full 7, random 8, urandom 9
constexpr unsigned kTtyDevices = 4;     // virtual consoles and serial lines
constexpr unsigned kTtyAuxDevices = 5;  // /dev/tty, /dev/console, /dev/ptmx
constexpr unsigned kFirstPtyMaster = 128;
constexpr unsigned kFirstPtySlave = 136;
constexpr unsigned kLastPtySlave = 143;

bool IsCarriedDevice(dev_t device) {
  if (major(device) != kMemoryDevices) return false;
  switch (minor(device)) {
    case 3:
    case 5:
    case 7:
    case 8:
    case 9:
      return true;
    default:
      return false;
  }
}

bool IsTerminal(dev_t device) {
  const unsigned number = major(device);
  return number == kTtyDevices || number == kTtyAuxDevices ||
         (number >= kFirstPtySlave && number <= kLastPtySlave);
}

// What holds for a description of any kind. Nullopt: nothing against it.
std::optional<std::string> WhyAttributesStay(const Descriptor& descriptor) {
  if ((descriptor.flags() & O_PATH) != 0) return "opened with O_PATH";
  if (const auto lock = descriptor.info.Find("lock"); lock.has_value()) {
    return absl::StrCat("a file lock or lease is held (", *lock, ")");
  }
  if ((descriptor.flags() & O_ASYNC) != 0) return "sends signals on input (O_ASYNC)";
  struct f_owner_ex owner = {};
  if (::fcntl(descriptor.duplicate.get(), F_GETOWN_EX, &owner) == 0 && owner.pid != 0) {
    return "has an owner for its signals (F_SETOWN)";
  }
  const int signal_number = ::fcntl(descriptor.duplicate.get(), F_GETSIG);
  if (signal_number > 0) return absl::StrCat("signals with ", signal_number, " (F_SETSIG)");
  return std::nullopt;
}

absl::StatusOr<uint32_t> AddTerminal(FileContext& context, const Descriptor& descriptor,
                                     const FileIdentity& identity) {
  const bool controlling = context.controlling_terminal != 0 &&
                           (descriptor.stat.st_rdev == context.controlling_terminal ||
                            descriptor.stat.st_rdev == makedev(kTtyAuxDevices, 0));
  if (!context.options.shell_job || !controlling) {
    context.blockers.Add(
        descriptor.name(), absl::StrCat("a terminal (", descriptor.link, ")"),
        controlling ? "--shell-job gives it the terminal of the server instead" : "");
    return 0;
  }
  criu::file_entry path = RegularFileEntry(descriptor.link, descriptor.flags(), 0, identity);
  const uint32_t path_id = context.files.builder().AddFile(std::move(path));
  criu::file_entry entry;
  auto& body = StartEntry(entry, criu::TTY, entry.mutable_tty(), descriptor);
  body.set_tty_info_id(0);
  body.set_regf_id(path_id);
  const uint32_t id = context.files.builder().AddFile(std::move(entry));
  context.files.builder().Extra(id).set_same_as_controlling_terminal(true);
  return id;
}

std::string DeviceName(const Descriptor& descriptor) {
  return absl::StrCat("device ", descriptor.link, " (",
                      S_ISBLK(descriptor.stat.st_mode) ? "block " : "",
                      major(descriptor.stat.st_rdev), ":", minor(descriptor.stat.st_rdev), ")");
}

// Why a file with a path does not move, judged by its kind alone.
std::optional<std::string> WhyKindStays(const Descriptor& descriptor) {
  const mode_t mode = descriptor.stat.st_mode;
  if (absl::StartsWith(descriptor.link, "/memfd:")) return "a memory file (memfd_create)";
  if (absl::StartsWith(descriptor.link, "/anon_hugepage")) return "hugetlb memory";
  if (S_ISFIFO(mode)) return absl::StrCat("a named pipe (", descriptor.link, ")");
  if (S_ISCHR(mode) && major(descriptor.stat.st_rdev) == kFirstPtyMaster) {
    return "the master of a terminal";
  }
  if (S_ISCHR(mode) && descriptor.stat.st_rdev == makedev(kTtyAuxDevices, 2)) {
    return "the master of a terminal";
  }
  if (S_ISBLK(mode) || (S_ISCHR(mode) && !IsCarriedDevice(descriptor.stat.st_rdev) &&
                        !IsTerminal(descriptor.stat.st_rdev))) {
    return DeviceName(descriptor);
  }
  if (S_ISREG(mode) || S_ISDIR(mode) || S_ISCHR(mode)) {
    struct statfs system;
    if (::fstatfs(descriptor.duplicate.get(), &system) == 0) {
      return WhyFileSystemStays(static_cast<uint64_t>(system.f_type));
    }
    return std::nullopt;
  }
  return absl::StrCat("a kind of file not known (", descriptor.link, ")");
}

absl::StatusOr<uint32_t> AddPathFile(FileContext& context, const Descriptor& descriptor) {
  auto why = WhyKindStays(descriptor);
  const auto at_path = context.files.identities().Look(descriptor.link, false);
  if (!why.has_value()) {
    why = WhyNotReachable(descriptor.link, descriptor.stat, at_path);
    if (why.has_value()) why = absl::StrCat(*why, " (", descriptor.link, ")");
  }
  if (why.has_value()) {
    context.blockers.Add(descriptor.name(), *std::move(why));
    return 0;
  }
  if (S_ISCHR(descriptor.stat.st_mode) && IsTerminal(descriptor.stat.st_rdev)) {
    return AddTerminal(context, descriptor, *at_path);
  }
  const uint64_t position =
      S_ISCHR(descriptor.stat.st_mode) ? 0 : static_cast<uint64_t>(descriptor.info.position);
  const uint32_t id = context.files.builder().AddFile(
      RegularFileEntry(descriptor.link, descriptor.flags(), position, *at_path));
  proto::FileExtra& extra = context.files.builder().Extra(id);
  extra.set_inode(descriptor.stat.st_ino);
  extra.set_device(descriptor.stat.st_dev);
  return id;
}

absl::StatusOr<uint32_t> AddFile(FileContext& context, const Descriptor& descriptor) {
  if (const auto why = WhyAttributesStay(descriptor); why.has_value()) {
    context.blockers.Add(descriptor.name(), absl::StrCat(*why, " (", descriptor.link, ")"));
    return 0;
  }
  if (absl::StartsWith(descriptor.link, "pipe:[")) return AddPipeEnd(context, descriptor);
  if (absl::StartsWith(descriptor.link, "socket:[")) return AddSocket(context, descriptor);
  if (absl::StartsWith(descriptor.link, "anon_inode:")) {
    return AddAnonymousFile(context, descriptor);
  }
  if (absl::StartsWith(descriptor.link, "pidfd:")) {
    context.blockers.Add(descriptor.name(), "refers to a process (pidfd)");
    return 0;
  }
  if (descriptor.link.empty() || descriptor.link[0] != '/') {
    const size_t colon = descriptor.link.find(":[");
    context.blockers.Add(descriptor.name(),
                         colon == std::string::npos
                             ? absl::StrCat("a kind of file not known (", descriptor.link, ")")
                             : absl::StrCat("refers to a namespace (", descriptor.link, ")"));
    return 0;
  }
  return AddPathFile(context, descriptor);
}

struct CloseDirectory {
  void operator()(DIR* directory) const { ::closedir(directory); }
};
using Directory = std::unique_ptr<DIR, CloseDirectory>;

// Calls visit(fd, link) for each descriptor of the process in the directory `pid` of /proc.
template <typename Visit>
void ForEachLink(const std::string& pid, const Visit& visit) {
  const std::string path = absl::StrCat("/proc/", pid, "/fd");
  const Directory directory(::opendir(path.c_str()));
  if (directory == nullptr) return;  // gone, a kernel thread, or not ours to look at
  while (const dirent* entry = ::readdir(directory.get())) {
    std::array<char, 64> link;
    const ssize_t n =
        ::readlinkat(::dirfd(directory.get()), entry->d_name, link.data(), link.size());
    if (n > 0) visit(absl::string_view(link.data(), static_cast<size_t>(n)));
  }
}

bool IsSharedEnd(const FileContext& context, size_t index) {
  if (context.file_ids[index] == 0) return false;
  const auto& file = context.state.files(static_cast<int>(context.file_ids[index]) - 1);
  return file.type() == criu::PIPE || (file.type() == criu::UNIXSK && file.usk().peer() != 0);
}

}  // namespace

absl::Status RefuseSharedEnds(FileContext& context) {
  absl::flat_hash_map<std::string, const Descriptor*> ends;
  for (size_t i = 0; i < context.descriptors.size(); ++i) {
    const Descriptor& descriptor = context.descriptors[i];
    if (descriptor.shares_with == i && IsSharedEnd(context, i))
      ends.emplace(descriptor.link, &descriptor);
  }
  if (ends.empty()) return absl::OkStatus();
  const Directory proc(::opendir("/proc"));
  if (proc == nullptr) return base::ErrnoError(errno, "opendir /proc");
  while (const dirent* entry = ::readdir(proc.get())) {
    pid_t pid = 0;
    if (!absl::SimpleAtoi(entry->d_name, &pid) || pid == context.process.pid() ||
        pid == ::getpid()) {
      continue;
    }
    ForEachLink(entry->d_name, [&](absl::string_view link) {
      const auto end = ends.find(link);
      if (end == ends.end()) return;
      context.blockers.Add(end->second->name(),
                           absl::StrCat(link, " is also open in process ", pid));
    });
  }
  return absl::OkStatus();
}

absl::Status FillFiles(FileContext& context) {
  PREDUMP_ASSIGN_OR_RETURN(context.descriptors, ReadDescriptors(context.process));
  context.file_ids.assign(context.descriptors.size(), 0);
  for (size_t i = 0; i < context.descriptors.size(); ++i) {
    const Descriptor& descriptor = context.descriptors[i];
    if (descriptor.shares_with == i) {
      PREDUMP_ASSIGN_OR_RETURN(context.file_ids[i], AddFile(context, descriptor));
    } else {
      context.file_ids[i] = context.file_ids[descriptor.shares_with];
    }
    if (context.file_ids[i] == 0) continue;
    context.files.builder().AddDescriptor(static_cast<uint32_t>(descriptor.fd), context.file_ids[i],
                                          descriptor.close_on_exec());
  }
  PREDUMP_RETURN_IF_ERROR(FillPipes(context));
  PREDUMP_RETURN_IF_ERROR(FillUnixQueues(context));
  return RefuseEpollEntries(context);
}

}  // namespace predump::checkpoint
