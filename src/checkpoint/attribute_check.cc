#include "src/checkpoint/attribute_check.h"

#include <fcntl.h>
#include <linux/kcmp.h>
#include <linux/sched.h>
#include <sched.h>
#include <sys/personality.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "src/base/errors.h"
#include "src/checkpoint/build_id.h"

namespace predump::checkpoint {
namespace {

// include/linux/sched.h: flags set by prctl(2) that have no way of being read back elsewhere.
struct TaskFlag {
  uint32_t bit;
  const char* reason;
};
constexpr TaskFlag kTaskFlags[] = {
    {0x00000080, "policy for memory failures (PR_MCE_KILL)"},
    {0x00100000, "part of writing memory out (PR_SET_IO_FLUSHER)"},
    {0x00000010, "a worker of io_uring"},
};
constexpr uint64_t kSpeculationFlags = ~uint64_t{7};  // PFA_* but no_new_privs and cpuset spreading
// The one component that has to be asked for (arch_prctl ARCH_REQ_XCOMP_PERM).
constexpr uint64_t kTileData = 1 << 18;
constexpr uint32_t kSchedDeadline = 6;
constexpr uint32_t kSchedExt = 7;
constexpr uint32_t kSignalStopped = 1;  // SIGNAL_STOP_STOPPED

// What the kernel keeps for a thread and gives to no other host's thread.
void RefuseThreadHoldings(const kernel::ThreadRecord& thread, const std::string& who,
                          BlockerList& blockers) {
  if (thread.has_memory_policy != 0) {
    blockers.Add(who, "allocates memory by a NUMA policy of its own (set_mempolicy)");
  }
  if (thread.has_io_ports != 0) blockers.Add(who, "may use I/O ports (ioperm, iopl)");
  if (thread.has_core_cookie != 0) {
    blockers.Add(who, "shares a core with chosen tasks only (PR_SCHED_CORE)");
  }
  if ((thread.thread_flags & kNoTimeStampCounter) != 0) {
    blockers.Add(who, "may not read the time stamp counter (PR_SET_TSC)");
  }
  if ((thread.thread_flags & kNoCpuid) != 0) {
    blockers.Add(who, "faults at CPUID (arch_prctl ARCH_SET_CPUID)");
  }
  if (thread.has_semaphore_undo != 0) {
    blockers.Add("attribute semaphores",
                 "System V semaphores, with what its end undoes (SEM_UNDO)");
  }
}

void RefuseThreadState(const kernel::ThreadRecord& thread, BlockerList& blockers) {
  const std::string who = absl::StrCat("thread ", thread.tid.own);
  if (thread.seccomp_mode != 0)
    blockers.Add("attribute seccomp", absl::StrCat(who, " is confined"));
  if (thread.has_io_uring != 0) blockers.Add(who, "uses io_uring");
  if (thread.dispatch_on != 0) {
    blockers.Add(who, "redirects its system calls (PR_SET_SYSCALL_USER_DISPATCH)");
  }
  if (thread.policy == kSchedDeadline) blockers.Add(who, "scheduled by deadline (SCHED_DEADLINE)");
  if (thread.policy == kSchedExt) blockers.Add(who, "scheduled by a BPF scheduler (SCHED_EXT)");
  for (const TaskFlag& flag : kTaskFlags) {
    if ((thread.flags & flag.bit) != 0) blockers.Add(who, flag.reason);
  }
  if ((thread.atomic_flags & kSpeculationFlags) != 0) {
    blockers.Add(who, "controls speculation (PR_SET_SPECULATION_CTRL)");
  }
  RefuseThreadHoldings(thread, who, blockers);
}

void RefuseProcessorState(const kernel::ProcessRecord& process, BlockerList& blockers) {
  if (process.has_ldt != 0) {
    blockers.Add("attribute LDT", "has segment descriptors of its own (modify_ldt)");
  }
  if ((process.xstate_permissions & kTileData) != 0) {
    blockers.Add("attribute AMX", "may use tile registers (arch_prctl ARCH_REQ_XCOMP_PERM)");
  }
  if (process.protection_keys != 0) {
    blockers.Add("attribute protection keys", "has allocated some (pkey_alloc)");
  }
  if (process.has_address_tagging != 0) {
    blockers.Add("attribute address tagging", "is on (arch_prctl ARCH_ENABLE_TAGGED_ADDR)");
  }
}

absl::StatusOr<bool> SharesWithLeader(const kernel::ProcessHandle& process, pid_t tid, int type) {
  const long order = ::syscall(SYS_kcmp, process.pid(), tid, type, 0, 0);
  if (order < 0) return process.ErrorFor(errno, "kcmp");
  return order == 0;
}

// A parent that shares memory or descriptors: the process is the child of a vfork(2) that has not
// run exec yet, or a kind of thread made with clone(2).
absl::Status RefuseSharingWithParent(const kernel::ProcessHandle& process, pid_t parent,
                                     BlockerList& blockers) {
  if (parent == 0) return absl::OkStatus();  // in another pid namespace
  for (const int type : {KCMP_VM, KCMP_FILES, KCMP_FS, KCMP_SIGHAND}) {
    const long order = ::syscall(SYS_kcmp, process.pid(), parent, type, 0, 0);
    if (order != 0) continue;
    blockers.Add("attribute clone",
                 absl::StrCat("shares ", type == KCMP_VM ? "memory" : "open files or more",
                              " with its parent, process ", parent));
    return absl::OkStatus();
  }
  return absl::OkStatus();
}

// The process lives in the server's pid, network and time namespace afterwards, with its clocks
// going on; every other namespace has to be the one it is in already.
bool NamespaceMayDiffer(absl::string_view name) {
  return name == "pid" || name == "net" || name == "time" || name == "pid_for_children" ||
         name == "time_for_children";
}

absl::Status RefuseNamespaces(const kernel::ProcessHandle& process, BlockerList& blockers) {
  PREDUMP_ASSIGN_OR_RETURN(const auto theirs, kernel::ListNamespaces(process));
  PREDUMP_ASSIGN_OR_RETURN(const auto self, kernel::ProcessHandle::Open(::getpid()));
  PREDUMP_ASSIGN_OR_RETURN(const auto ours, kernel::ListNamespaces(self));
  const auto find = [](const std::vector<kernel::NamespaceId>& list, absl::string_view name) {
    for (const kernel::NamespaceId& id : list) {
      if (id.name == name) return &id;
    }
    return static_cast<const kernel::NamespaceId*>(nullptr);
  };
  for (const kernel::NamespaceId& id : theirs) {
    const auto* here = find(ours, id.name);
    if (!NamespaceMayDiffer(id.name) && (here == nullptr || here->inode != id.inode)) {
      blockers.Add(absl::StrCat("attribute ", id.name, " namespace"), "differs from this program's",
                   "run predump in that namespace (nsenter)");
    }
  }
  // A pid namespace that has no process yet cannot even be read (kernel/pid_namespace.c).
  for (const auto& [own, of_children] :
       {std::pair("pid", "pid_for_children"), std::pair("time", "time_for_children")}) {
    const auto* current = find(theirs, own);
    const auto* next = find(theirs, of_children);
    if (current != nullptr && find(ours, of_children) != nullptr &&
        (next == nullptr || next->inode != current->inode)) {
      blockers.Add(absl::StrCat("attribute ", own, " namespace"),
                   "its children would be born in another one");
    }
  }
  return absl::OkStatus();
}

// Threads can leave the namespaces of their process (setns(2)).
absl::Status RefuseThreadNamespaces(const kernel::ProcessHandle& process, BlockerList& blockers) {
  PREDUMP_ASSIGN_OR_RETURN(const auto tids, kernel::ListThreads(process));
  for (const char* name : {"net", "mnt", "uts", "ipc"}) {
    PREDUMP_ASSIGN_OR_RETURN(const std::string leader,
                             kernel::ReadProcLink(process, absl::StrCat("ns/", name)));
    for (const pid_t tid : tids) {
      const auto link = kernel::ReadProcLink(process, absl::StrCat("task/", tid, "/ns/", name));
      if (link.ok() && *link != leader) {
        blockers.Add(absl::StrCat("thread ", tid),
                     absl::StrCat("is in another ", name, " namespace than its process"));
      }
    }
  }
  return absl::OkStatus();
}

absl::Status RefuseLabels(const kernel::ProcessHandle& process, BlockerList& blockers) {
  const auto label = kernel::ReadProcFile(process, "attr/current");
  if (!label.ok()) return base::IsTargetExited(label.status()) ? label.status() : absl::OkStatus();
  absl::string_view text = *label;
  text = text.substr(0, text.find('\0'));
  absl::ConsumeSuffix(&text, "\n");
  if (!text.empty() && text != "unconfined" && text != "kernel") {
    blockers.Add("attribute security label", absl::StrCat("confined by ", text));
  }
  return absl::OkStatus();
}

absl::Status RefuseArchitecture(const kernel::ProcessHandle& process, BlockerList& blockers) {
  const auto exe = process.OpenProc("exe", O_RDONLY);
  PREDUMP_RETURN_IF_ERROR(exe);
  PREDUMP_ASSIGN_OR_RETURN(const int elf_class, ReadElfClass(exe->get()));
  if (elf_class == 32) blockers.Add("attribute architecture", "a 32-bit program");
  return absl::OkStatus();
}

}  // namespace

void RefuseKernelState(const kernel::TaskSnapshot& snapshot, BlockerList& blockers) {
  const kernel::ProcessRecord& process = snapshot.process;
  if (process.posix_timer_count != 0) {
    blockers.Add("attribute timers",
                 absl::StrCat(process.posix_timer_count, " POSIX timers (timer_create)"));
  }
  if (process.memory_merge_any != 0) {
    blockers.Add("attribute memory merging", "all its memory may be merged (PR_SET_MEMORY_MERGE)");
  }
  RefuseProcessorState(process, blockers);
  if ((process.signal_flags & kSignalStopped) != 0) {
    blockers.Add("attribute state", "stopped by a signal", "let it go on first (SIGCONT)");
  }
  if (process.tgid.own == 1) {
    blockers.Add("attribute pid", "the init process of its pid namespace");
  }
  uint64_t pending = process.shared_pending;
  for (const kernel::ThreadRecord& thread : snapshot.threads) {
    pending |= thread.pending;
    RefuseThreadState(thread, blockers);
    if (thread.personality != snapshot.threads.front().personality) {
      blockers.Add(absl::StrCat("thread ", thread.tid.own), "has a personality of its own");
    }
  }
  // The stop that the handover queues would discard it, as any stop signal does.
  if ((pending & 1ull << (SIGCONT - 1)) != 0) {
    blockers.Add("attribute signals", "a blocked SIGCONT is pending");
  }
}

absl::Status RefuseRelations(const kernel::ProcessHandle& process,
                             const kernel::TaskSnapshot& snapshot, BlockerList& blockers,
                             BlockerList& children_as_blockers) {
  for (const kernel::ThreadRecord& thread : snapshot.threads) {
    const pid_t tid = thread.tid.observer;
    const auto children = kernel::ListChildren(process, tid);
    if (!children.ok()) {
      if (base::IsTargetExited(children.status()) && tid != process.pid()) continue;
      return children.status();
    }
    for (const pid_t child : *children) {
      children_as_blockers.Add(absl::StrCat("child process ", child), "only single processes move");
    }
    if (tid == process.pid()) continue;
    for (const int type : {KCMP_FILES, KCMP_FS}) {
      const auto shared = SharesWithLeader(process, tid, type);
      if (shared.ok() && !*shared) {
        blockers.Add(absl::StrCat("thread ", thread.tid.own),
                     type == KCMP_FILES ? "has descriptors of its own (unshare CLONE_FILES)"
                                        : "has a working directory of its own (unshare CLONE_FS)");
      }
    }
  }
  return absl::OkStatus();
}

absl::Status RefuseMemoryPolicies(const kernel::ProcessHandle& process, BlockerList& blockers) {
  const auto text = kernel::ReadProcFile(process, "numa_maps");
  if (absl::IsNotFound(text.status())) return absl::OkStatus();  // no CONFIG_NUMA
  PREDUMP_RETURN_IF_ERROR(text);
  for (const absl::string_view line : absl::StrSplit(*text, '\n', absl::SkipEmpty())) {
    const std::vector<absl::string_view> words =
        absl::StrSplit(line, absl::MaxSplits(' ', 2), absl::SkipEmpty());
    if (words.size() < 2 || words[1] == "default") continue;
    blockers.Add("attribute memory policy",
                 absl::StrCat("allocates memory by a NUMA policy of its own (", words[1], ")"));
  }
  return absl::OkStatus();
}

absl::Status RefuseSurroundings(const kernel::ProcessHandle& process,
                                const kernel::StatusFields& status, const kernel::StatFields& stat,
                                const CaptureOptions& options, BlockerList& blockers) {
  if (status.tracer_pid != 0) {
    blockers.Add("attribute tracer", absl::StrCat("process ", status.tracer_pid, " traces it"),
                 "detach the debugger");
  }
  if (status.state == 'Z' || status.state == 'X') {
    blockers.Add("attribute state", "its first thread has ended");
  }
  if (stat.tty != 0 && !options.shell_job) {
    blockers.Add("attribute controlling terminal", "it belongs to a terminal session",
                 "start it with setsid, or use --shell-job");
  }
  PREDUMP_RETURN_IF_ERROR(RefuseNamespaces(process, blockers));
  PREDUMP_RETURN_IF_ERROR(RefuseThreadNamespaces(process, blockers));
  PREDUMP_RETURN_IF_ERROR(RefuseLabels(process, blockers));
  PREDUMP_RETURN_IF_ERROR(RefuseArchitecture(process, blockers));
  return RefuseSharingWithParent(process, status.ppid, blockers);
}

}  // namespace predump::checkpoint
