#include <sys/mman.h>

#include <cstdint>
#include <string>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "src/images/foreign_parts.h"
#include "src/images/image_constants.h"
#include "src/images/image_set.h"

namespace predump::images::internal {
namespace {

// vma_entry.status and .flags that no state of ours has.
constexpr uint32_t kVmaSysvIpc = 0x400;
constexpr uint32_t kVmaSocket = 0x800;
constexpr uint32_t kVmaAioRing = 0x2000;
constexpr uint32_t kVmaMemfd = 0x4000;
constexpr uint32_t kVmaShadowStack = 0x8000;
constexpr uint32_t kVmaGuard = 0x10000;
constexpr uint32_t kVmaPlugin = 1u << 27;
constexpr uint32_t kMapDroppable = 0x8;

constexpr uint32_t kTaskDead = 2;
constexpr uint32_t kTaskStopped = 3;
constexpr uint32_t kUnixExternal = 1;  // unix_sk_entry.uflags: USK_EXTERN

class List {
 public:
  explicit List(std::vector<proto::Blocker>& blockers) : blockers_(blockers) {}
  void Add(const std::string& what, absl::string_view reason) {
    proto::Blocker& blocker = blockers_.emplace_back();
    blocker.set_what(what);
    blocker.set_reason(std::string(reason));
  }

 private:
  std::vector<proto::Blocker>& blockers_;
};

void AddNamespaces(const proto::ProcessState& state, List& list) {
  const criu::task_kobj_ids_entry& task = state.ids();
  const criu::task_kobj_ids_entry& dumper = state.inventory().root_ids();
  const auto compare = [&](const char* name, uint32_t of_task, uint32_t of_dumper) {
    if (of_task == of_dumper) return;
    list.Add(absl::StrCat("attribute ", name, " namespace"),
             "the process had another one than the program that dumped it, which would have to be "
             "made again");
  };
  compare("pid", task.pid_ns_id(), dumper.pid_ns_id());
  compare("network", task.net_ns_id(), dumper.net_ns_id());
  compare("IPC", task.ipc_ns_id(), dumper.ipc_ns_id());
  compare("UTS", task.uts_ns_id(), dumper.uts_ns_id());
  compare("mount", task.mnt_ns_id(), dumper.mnt_ns_id());
  compare("user", task.user_ns_id(), dumper.user_ns_id());
  compare("cgroup", task.cgroup_ns_id(), dumper.cgroup_ns_id());
  compare("time", task.time_ns_id(), dumper.time_ns_id());
}

void AddTask(const criu::task_core_entry& task, List& list) {
  if (task.task_state() == kTaskStopped) list.Add("attribute state", "stopped by a signal");
  if (task.task_state() == kTaskDead) list.Add("attribute state", "the process has ended");
  if (task.timers().posix_size() != 0) {
    list.Add("attribute timers",
             absl::StrCat(task.timers().posix_size(), " POSIX timers (timer_create)"));
  }
}

// CRIU writes an empty slot as zeros, or as the kernel tells it: not present, read only.
bool IsInUse(const criu::user_desc_t& slot) {
  return !slot.seg_not_present() &&
         (slot.base_addr() != 0 || slot.limit() != 0 || slot.seg_32bit() || slot.usable());
}

void AddThreads(const proto::ProcessState& state, List& list) {
  for (const auto& thread : state.threads()) {
    const std::string who = absl::StrCat("thread ", thread.tid());
    const criu::thread_core_entry& core = thread.core().thread_core();
    if (core.seccomp_mode() != criu::disabled) list.Add(who, "seccomp");
    if (core.creds().has_lsm_profile() && !core.creds().lsm_profile().empty()) {
      list.Add(who, absl::StrCat("a security label (", core.creds().lsm_profile(), ")"));
    }
    const criu::thread_info_x86& info = thread.core().thread_info();
    if (info.gpregs().mode() == criu::COMPAT) list.Add(who, "runs 32-bit code");
    if (info.fpregs().xsave().has_cet()) list.Add(who, "a shadow stack");
    for (const auto& slot : info.tls()) {
      if (IsInUse(slot)) {
        list.Add(who, "segment descriptors of its own (set_thread_area)");
        break;
      }
    }
  }
}

const char* WhyMappingStays(const criu::vma_entry& vma) {
  if ((vma.status() & kVmaMemfd) != 0) return "a memory file or shared anonymous memory";
  if ((vma.status() & kVmaAnonymousShared) != 0) return "shared anonymous memory";
  if ((vma.status() & kVmaSysvIpc) != 0) return "System V shared memory";
  if ((vma.status() & kVmaSocket) != 0) return "a mapped socket";
  if ((vma.status() & kVmaAioRing) != 0) return "asynchronous I/O (io_setup)";
  if ((vma.status() & kVmaShadowStack) != 0) return "a shadow stack";
  if ((vma.status() & kVmaGuard) != 0) return "guard pages (MADV_GUARD_INSTALL)";
  if ((vma.status() & kVmaPlugin) != 0) return "a mapping for a plugin of CRIU's";
  if ((vma.flags() & MAP_HUGETLB) != 0) return "hugetlb memory";
  if ((vma.flags() & kMapDroppable) != 0) return "droppable memory";
  return nullptr;
}

void AddMappings(const criu::mm_entry& mm, List& list) {
  for (const auto& vma : mm.vmas()) {
    if (const char* why = WhyMappingStays(vma); why != nullptr) {
      list.Add(absl::StrFormat("mapping %x-%x", vma.start(), vma.end()), why);
    }
  }
}

const char* KindName(criu::fd_types type) {
  switch (type) {
    case criu::INOTIFY:
      return "inotify";
    case criu::PACKETSK:
      return "a packet socket";
    case criu::FANOTIFY:
      return "fanotify";
    case criu::NETLINKSK:
      return "a netlink socket";
    case criu::NS:
      return "a namespace";
    case criu::TUNF:
      return "a tun device";
    case criu::EXT:
      return "a file for a plugin of CRIU's";
    case criu::MEMFD:
      return "a memory file (memfd_create)";
    case criu::BPFMAP:
      return "a BPF map";
    case criu::PIDFD:
      return "a pidfd";
    default:
      return nullptr;
  }
}

std::string WhyFileStays(const criu::file_entry& file, const proto::FileExtra* extra) {
  if (const char* kind = KindName(file.type()); kind != nullptr) return kind;
  if (file.has_reg() && file.reg().ext()) return "a file that was declared external";
  if (file.has_usk() && (file.usk().uflags() & kUnixExternal) != 0) {
    return "a unix socket whose peer was declared external";
  }
  if (file.has_isk() && file.isk().proto() == 6 && file.isk().state() != kSocketListening &&
      file.isk().state() != kSocketClosed && (extra == nullptr || !extra->tcp_closed())) {
    return "an established TCP connection";
  }
  if (file.has_tty() && file.tty().tty_info_id() % 2 == 1) return "the master of a terminal";
  return "";
}

void AddFiles(const proto::ProcessState& state, List& list) {
  absl::flat_hash_map<uint32_t, uint32_t> descriptors;
  for (const auto& descriptor : state.descriptors()) {
    descriptors.try_emplace(descriptor.id(), descriptor.fd());
  }
  const FileIndex files(state);
  for (const auto& file : state.files()) {
    const std::string why = WhyFileStays(file, files.FindExtra(file.id()));
    if (why.empty()) continue;
    const auto descriptor = descriptors.find(file.id());
    list.Add(descriptor == descriptors.end() ? absl::StrCat("file ", file.id(), " of files.img")
                                             : absl::StrCat("fd ", descriptor->second),
             why);
  }
  for (const auto& packet : state.packets()) {
    if (packet.entry().scm_size() == 0) continue;
    const auto descriptor = descriptors.find(packet.entry().id_for());
    list.Add(
        descriptor == descriptors.end() ? "a unix socket" : absl::StrCat("fd ", descriptor->second),
        "descriptors wait in its queue (SCM_RIGHTS)");
  }
}

}  // namespace

void AddForeignEntries(const proto::ProcessState& state, std::vector<proto::Blocker>& blockers) {
  List list(blockers);
  AddNamespaces(state, list);
  AddTask(state.threads(0).core().tc(), list);
  AddThreads(state, list);
  AddMappings(state.mm(), list);
  AddFiles(state, list);
}

}  // namespace predump::images::internal
