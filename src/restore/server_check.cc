#include "src/restore/server_check.h"

#include <fcntl.h>
#include <linux/securebits.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"
#include "src/base/errors.h"
#include "src/base/unique_fd.h"
#include "src/kernel/process.h"
#include "src/kernel/procfs.h"
#include "src/restore/try_in_child.h"

namespace predump::restore::internal {
namespace {

constexpr char kServer[] = "predump";
constexpr int kGetMdwe = 66;           // PR_GET_MDWE, Linux 6.3
constexpr int kMdweNoInherit = 2;      // PR_MDWE_NO_INHERIT
constexpr int kThpExceptAdvised = 2;   // PR_THP_DISABLE_EXCEPT_ADVISED, Linux 6.18
constexpr int kSchedCore = 62;         // PR_SCHED_CORE, Linux 5.14
constexpr uint32_t kNoLoginUid = ~0u;  // of a process that nobody logged in for

bool WriteLoginUid(const std::string& text) {
  const int fd = ::open("/proc/self/loginuid", O_WRONLY | O_CLOEXEC);
  return fd >= 0 && ::write(fd, text.data(), text.size()) == static_cast<ssize_t>(text.size());
}

void CheckConfinement(const kernel::StatusFields& status, const proto::ProcessState& preview,
                      Blockers& blockers) {
  if (status.seccomp_mode != 0) {
    AddBlocker(blockers, kServer, "runs under seccomp, and so would the process",
               "start it without (systemd: SystemCallFilter=, RestrictNamespaces= and their like)");
  }
  const bool wanted =
      std::all_of(preview.threads().begin(), preview.threads().end(),
                  [](const auto& t) { return t.core().thread_core().creds().no_new_privs() != 0; });
  if (status.no_new_privileges && !wanted) {
    AddBlocker(blockers, kServer, "has no_new_privs, and so would the process",
               "start it without (systemd: NoNewPrivileges=no)");
  }
}

absl::Status CheckLabel(const kernel::ProcessHandle& self, Blockers& blockers) {
  const auto file = kernel::ReadProcFile(self, "attr/current");
  if (!file.ok()) return absl::OkStatus();  // no such security module
  absl::string_view label = *file;
  label = label.substr(0, label.find('\0'));
  absl::ConsumeSuffix(&label, "\n");
  if (label.empty() || label == "unconfined" || label == "kernel") return absl::OkStatus();
  AddBlocker(blockers, kServer, absl::StrCat("is confined by ", label, ", as the process would be"),
             "start it unconfined");
  return absl::OkStatus();
}

void CheckSecureBits(const proto::ProcessState& preview, Blockers& blockers) {
  const uint32_t ours = static_cast<uint32_t>(::prctl(PR_GET_SECUREBITS)) & ~SECBIT_KEEP_CAPS;
  if ((ours & SECURE_ALL_LOCKS) == 0) return;
  for (const auto& thread : preview.threads()) {
    if (thread.core().thread_core().creds().secbits() == ours) continue;
    AddBlocker(blockers, kServer,
               absl::StrFormat("its secure bits (%#x) are locked, and the process has %#x", ours,
                               thread.core().thread_core().creds().secbits()),
               "start it without (systemd: SecureBits=)");
    return;
  }
}

void CheckHardening(Blockers& blockers) {
  const int mdwe = ::prctl(kGetMdwe, 0, 0, 0, 0);
  if (mdwe > 0 && (mdwe & kMdweNoInherit) == 0) {
    AddBlocker(blockers, kServer, "may not make memory executable, and neither could the process",
               "start it without (systemd: MemoryDenyWriteExecute=no)");
  }
  for (const int kind : {PR_SPEC_STORE_BYPASS, PR_SPEC_INDIRECT_BRANCH}) {
    const int control = ::prctl(PR_GET_SPECULATION_CTRL, kind, 0, 0, 0);
    if (control < 0 || (control & PR_SPEC_PRCTL) == 0) continue;
    if ((control & (PR_SPEC_DISABLE | PR_SPEC_FORCE_DISABLE)) == 0) continue;
    AddBlocker(blockers, kServer,
               "controls speculation (PR_SET_SPECULATION_CTRL), and so would the "
               "process");
    break;
  }
  uint64_t cookie = 0;
  if (::prctl(kSchedCore, 0 /* PR_SCHED_CORE_GET */, 0, 0, &cookie) == 0 && cookie != 0) {
    AddBlocker(blockers, kServer, "shares a core with chosen tasks only (PR_SCHED_CORE)");
  }
}

absl::Status CheckLoginUid(const kernel::ProcessHandle& self, const criu::task_core_entry& task,
                           Blockers& blockers) {
  if (!task.has_loginuid()) return absl::OkStatus();
  const auto ours = kernel::ReadLoginUid(self);
  if (ours.ok() ? *ours == task.loginuid() : task.loginuid() == kNoLoginUid) {
    return absl::OkStatus();
  }
  const std::string wanted = absl::StrCat(task.loginuid());
  PREDUMP_ASSIGN_OR_RETURN(const int error, TryInChild([&] { return WriteLoginUid(wanted); }));
  if (error == 0) return absl::OkStatus();
  const auto name = [](uint32_t uid) { return uid == kNoLoginUid ? "none" : absl::StrCat(uid); };
  AddBlocker(
      blockers, "attribute login uid",
      absl::StrCat(name(task.loginuid()), " cannot be given on this host, where predump's own is ",
                   ours.ok() ? name(*ours) : "unknown", ": ", ::strerror(error)),
      "start predump as a service, or with CAP_AUDIT_CONTROL");
  return absl::OkStatus();
}

absl::Status CheckHugePages(const proto::ProcessState& preview, Blockers& blockers) {
  if (!preview.extra().thp_disabled_but_advised()) return absl::OkStatus();
  PREDUMP_ASSIGN_OR_RETURN(const int error, TryInChild([] {
                             return ::prctl(PR_SET_THP_DISABLE, 1, kThpExceptAdvised, 0, 0) == 0;
                           }));
  if (error != 0) {
    AddBlocker(blockers, "target kernel",
               absl::StrCat("lacks PR_THP_DISABLE_EXCEPT_ADVISED: ", ::strerror(error)));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status FindServerBlockers(const proto::ProcessState& preview, Blockers& blockers) {
  PREDUMP_ASSIGN_OR_RETURN(const kernel::ProcessHandle self,
                           kernel::ProcessHandle::Open(::getpid()));
  PREDUMP_ASSIGN_OR_RETURN(const kernel::StatusFields status, kernel::ReadStatus(self));
  CheckConfinement(status, preview, blockers);
  PREDUMP_RETURN_IF_ERROR(CheckLabel(self, blockers));
  CheckSecureBits(preview, blockers);
  CheckHardening(blockers);
  PREDUMP_RETURN_IF_ERROR(CheckHugePages(preview, blockers));
  if (preview.threads_size() == 0) return absl::OkStatus();
  return CheckLoginUid(self, preview.threads(0).core().tc(), blockers);
}

}  // namespace predump::restore::internal
