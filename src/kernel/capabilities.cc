#include "src/kernel/capabilities.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kcmp.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <functional>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "src/base/errors.h"
#include "src/base/mapped_region.h"
#include "src/base/units.h"
#include "src/kernel/pagemap_scan.h"
#include "src/kernel/process.h"
#include "src/kernel/ptrace.h"
#include "src/kernel/splice.h"
#include "src/kernel/userfaultfd.h"

namespace predump::kernel {
namespace {

// What a probe found: OK, or why not. `detail` explains a success.
struct Finding {
  absl::Status status;
  std::string detail = "tried and works";
};

Finding Missing(int error_number, const char* what) {
  return {base::ErrnoError(error_number, what), ""};
}

// Runs `body` in a child and gives the number it returns (0..255): for what must not happen to us.
absl::StatusOr<int> InChild(const std::function<int()>& body) {
  const pid_t pid = ::fork();
  if (pid < 0) return base::ErrnoError(errno, "fork for a probe");
  if (pid == 0) ::_exit(body());
  int status = 0;
  while (::waitpid(pid, &status, 0) < 0) {
    if (errno != EINTR) return base::ErrnoError(errno, "wait for a probe");
  }
  if (WIFEXITED(status)) return WEXITSTATUS(status);
  return absl::InternalError(absl::StrCat("a probe was killed by signal ", WTERMSIG(status)));
}

// A child's errno as a finding; a child that died (seccomp) is a finding, too.
absl::StatusOr<Finding> ErrnoInChild(const char* what, const std::function<int()>& body) {
  const absl::StatusOr<int> error_number = InChild(body);
  if (!error_number.ok() && error_number.status().code() != absl::StatusCode::kInternal) {
    return error_number.status();
  }
  if (!error_number.ok()) return Finding{error_number.status(), ""};
  if (*error_number != 0) return Missing(*error_number, what);
  return Finding{};
}

absl::StatusOr<Finding> ProbeUffdWpAsync(const ProbeOptions&) {
  const absl::StatusOr<Userfaultfd> uffd = Userfaultfd::CreateForSelf();
  if (!uffd.ok()) return Finding{uffd.status(), ""};
  return Finding{uffd->EnableWriteProtectAsync()};
}

absl::StatusOr<Finding> ProbeUffdUnprivileged(const ProbeOptions&) {
  constexpr uid_t kNobody = 65534;
  return ErrnoInChild("userfaultfd without privileges", [] {
    if (::geteuid() == 0 && (::setresgid(kNobody, kNobody, kNobody) != 0 ||
                             ::setresuid(kNobody, kNobody, kNobody) != 0)) {
      return errno;
    }
    return Userfaultfd::CreateForSelf().ok() ? 0 : EPERM;
  });
}

absl::StatusOr<Finding> ProbePagemapScan(const ProbeOptions&) {
  PREDUMP_ASSIGN_OR_RETURN(const ProcessHandle self, ProcessHandle::Open(::getpid()));
  PREDUMP_ASSIGN_OR_RETURN(base::MappedRegion page,
                           base::MappedRegion::Anonymous(base::PageSize(), true));
  const absl::StatusOr<PagemapFile> pagemap = PagemapFile::Open(self);
  if (!pagemap.ok()) return Finding{pagemap.status(), ""};
  const uint64_t start = reinterpret_cast<uint64_t>(page.data());
  std::array<PageRegion, 1> regions;
  const absl::StatusOr<ScanResult> result =
      pagemap->Scan({.range = base::AddressRange::FromOrdered(start, start + page.size()),
                     .category_mask = kPageIsPresent,
                     .return_mask = kPageIsPresent},
                    regions);
  if (!result.ok()) return Finding{result.status(), ""};
  if (result->count == 1) return Finding{};
  return Finding{absl::InternalError("the scan does not see a page that is present"), ""};
}

// A page that is written after a reset must be marked, one that is not must not be.
absl::StatusOr<Finding> ProbeSoftDirty(const ProbeOptions&) {
  absl::StatusOr<Finding> finding = ErrnoInChild("soft-dirty tracking", [] {
    const uint64_t page = base::PageSize();
    absl::StatusOr<base::MappedRegion> pages = base::MappedRegion::Anonymous(2 * page, true);
    const absl::StatusOr<ProcessHandle> self = ProcessHandle::Open(::getpid());
    if (!pages.ok() || !self.ok()) return ENOMEM;
    const absl::StatusOr<base::UniqueFd> clear = self->OpenProc("clear_refs", O_WRONLY);
    const absl::StatusOr<PagemapFile> pagemap = PagemapFile::Open(*self);
    if (!clear.ok() || !pagemap.ok() || ::write(clear->get(), "4", 1) != 1) return ENOSYS;
    *const_cast<volatile std::byte*>(pages->data()) = std::byte{1};
    const uint64_t start = reinterpret_cast<uint64_t>(pages->data());
    std::array<uint64_t, 2> entries{};
    const auto read =
        pagemap->ReadEntries(base::AddressRange::FromOrdered(start, start + 2 * page), entries);
    if (!read.ok() || *read != 2) return EIO;
    const bool written = (entries[0] & kPagemapSoftDirty) != 0;
    const bool untouched = (entries[1] & kPagemapSoftDirty) == 0;
    return written && untouched ? 0 : ENOSYS;
  });
  PREDUMP_RETURN_IF_ERROR(finding);
  if (base::ErrnoOf(finding->status) == ENOSYS) {
    finding->status =
        absl::UnimplementedError("it does not mark written pages: no CONFIG_MEM_SOFT_DIRTY");
  }
  return finding;
}

absl::StatusOr<Finding> ProbePidfdGetfd(const ProbeOptions&) {
  PREDUMP_ASSIGN_OR_RETURN(const ProcessHandle self, ProcessHandle::Open(::getpid()));
  return Finding{self.GetDescriptor(self.pidfd()).status()};
}

absl::StatusOr<Finding> ProbeProcessVmReadv(const ProbeOptions&) {
  uint64_t from = 0x70726564756d70;
  uint64_t to = 0;
  struct iovec local = {&to, sizeof to};
  struct iovec remote = {&from, sizeof from};
  const ssize_t n = ::process_vm_readv(::getpid(), &local, 1, &remote, 1, 0);
  if (n < 0) return Missing(errno, "process_vm_readv");
  if (n == sizeof to && from == to) return Finding{};
  return Finding{absl::InternalError("process_vm_readv gives other bytes"), ""};
}

// Queues a page with `queue`, changes the page, and looks which bytes come out of the pipe.
int SharesPages(const std::function<ssize_t(int, const struct iovec&)>& queue) {
  absl::StatusOr<base::MappedRegion> page = base::MappedRegion::Anonymous(base::PageSize(), true);
  const absl::StatusOr<PipePair> pipe = PipePair::Create(base::ByteCount(base::PageSize()));
  if (!page.ok() || !pipe.ok()) return ENOMEM;
  // A call that only says it queued something must not leave the probe waiting for it.
  if (::fcntl(pipe->read_end(), F_SETFL, O_NONBLOCK) != 0) return errno;
  ::memset(page->data(), 'a', page->size());
  errno = 0;
  if (queue(pipe->write_end(), {page->data(), page->size()}) !=
      static_cast<ssize_t>(page->size())) {
    return errno != 0 ? errno : EIO;
  }
  ::memset(page->data(), 'b', page->size());
  char byte = 0;
  if (::read(pipe->read_end(), &byte, 1) != 1) return EIO;
  return byte == 'b' ? 0 : EXDEV;
}

Finding SharingFinding(absl::StatusOr<Finding> finding) {
  if (base::ErrnoOf(finding->status) == EXDEV) {
    finding->status = absl::UnimplementedError("it copies the pages");
  }
  if (finding->status.ok()) finding->detail = "a write after the call is seen in the pipe";
  return *std::move(finding);
}

absl::StatusOr<Finding> ProbeVmsplice(const ProbeOptions& options) {
  absl::StatusOr<Finding> finding = ErrnoInChild("vmsplice", [&] {
    return SharesPages([&](int pipe, const struct iovec& memory) {
      return static_cast<ssize_t>(
          ::syscall(options.vmsplice_number, pipe, &memory, 1ul, SPLICE_F_NONBLOCK));
    });
  });
  PREDUMP_RETURN_IF_ERROR(finding);
  return SharingFinding(std::move(finding));
}

absl::StatusOr<Finding> ProbeProcessVmsplice(const ProbeOptions& options) {
  absl::StatusOr<Finding> finding = ErrnoInChild("process_vmsplice", [&] {
    return SharesPages([&](int pipe, const struct iovec& memory) {
      return static_cast<ssize_t>(::syscall(options.process_vmsplice_number, ::getpid(), pipe,
                                            &memory, 1ul, SPLICE_F_NONBLOCK));
    });
  });
  PREDUMP_RETURN_IF_ERROR(finding);
  const std::optional<int> error_number = base::ErrnoOf(finding->status);
  if (error_number == ENOSYS) {
    finding->status = absl::UnimplementedError(
        absl::StrCat("no system call has its number ", options.process_vmsplice_number,
                     ": the kernel is not patched, or built without CONFIG_PROCESS_VMSPLICE"));
  } else if (error_number.has_value() && *error_number != EXDEV && *error_number != ENOMEM) {
    finding->status = absl::UnimplementedError(
        absl::StrCat("its number ", options.process_vmsplice_number,
                     " belongs to another system call: ", finding->status.message()));
  }
  return SharingFinding(std::move(finding));
}

absl::StatusOr<Finding> ProbeCloseRangeUnshare(const ProbeOptions&) {
  constexpr unsigned kUnshare = 1u << 1;  // CLOSE_RANGE_UNSHARE
  return ErrnoInChild("close_range with CLOSE_RANGE_UNSHARE", [] {
    return ::syscall(SYS_close_range, 3u, ~0u, kUnshare) == 0 ? 0 : errno;
  });
}

// struct clone_args of include/uapi/linux/sched.h.
struct CloneArguments {
  uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid,
      set_tid_size, cgroup;
};

absl::StatusOr<Finding> ProbeSetTid(const ProbeOptions&) {
  // The number of a child that has just exited and was reaped is free, but for a race that nobody
  // can exclude: one more try tells EEXIST from a refusal.
  for (int attempt = 0;; ++attempt) {
    const pid_t free_pid = ::fork();
    if (free_pid < 0) return base::ErrnoError(errno, "fork for a probe");
    if (free_pid == 0) ::_exit(0);
    while (::waitpid(free_pid, nullptr, 0) < 0 && errno == EINTR) {
    }
    CloneArguments arguments = {};
    arguments.exit_signal = SIGCHLD;
    arguments.set_tid = reinterpret_cast<uint64_t>(&free_pid);
    arguments.set_tid_size = 1;
    const long pid = ::syscall(SYS_clone3, &arguments, sizeof arguments);
    if (pid == 0) ::_exit(0);
    if (pid < 0 && errno == EEXIST && attempt < 3) continue;
    if (pid < 0) return Missing(errno, "clone3 with set_tid");
    while (::waitpid(static_cast<pid_t>(pid), nullptr, 0) < 0 && errno == EINTR) {
    }
    if (pid == free_pid) return Finding{};
    return Finding{absl::InternalError("clone3 gave another id than asked for"), ""};
  }
}

absl::StatusOr<Finding> ProbeTimeNamespace(const ProbeOptions&) {
  constexpr int kNewTime = 0x80;  // CLONE_NEWTIME
  return ErrnoInChild("unshare of a time namespace",
                      [] { return ::unshare(kNewTime) == 0 ? 0 : errno; });
}

absl::StatusOr<Finding> ProbeRseq(const ProbeOptions&) {
  const pid_t pid = ::fork();
  if (pid < 0) return base::ErrnoError(errno, "fork for a probe");
  if (pid == 0) {
    for (;;) ::pause();
  }
  const absl::Status status = [&]() -> absl::Status {
    PREDUMP_ASSIGN_OR_RETURN(Tracee tracee, Tracee::Seize(pid, 0));
    PREDUMP_RETURN_IF_ERROR(tracee.Interrupt());
    PREDUMP_RETURN_IF_ERROR(tracee.WaitForEventStop(absl::Seconds(2)));
    return tracee.GetRseqConfiguration().status();
  }();
  ::kill(pid, SIGKILL);
  while (::waitpid(pid, nullptr, 0) < 0 && errno == EINTR) {
  }
  return Finding{status};
}

absl::StatusOr<Finding> ProbeKcmp(const ProbeOptions&) {
  const pid_t self = ::getpid();
  const long result = ::syscall(SYS_kcmp, self, self, KCMP_VM, 0ul, 0ul);
  if (result < 0) return Missing(errno, "kcmp");
  if (result == 0) return Finding{};
  return Finding{absl::InternalError("kcmp finds a process different from itself"), ""};
}

absl::StatusOr<Finding> ProbeBtf(const ProbeOptions&) {
  if (::access("/sys/kernel/btf/vmlinux", R_OK) != 0) {
    return Missing(errno, "read /sys/kernel/btf/vmlinux");
  }
  return Finding{absl::OkStatus(), "/sys/kernel/btf/vmlinux is readable"};
}

absl::StatusOr<Finding> ProbeMemfd(const ProbeOptions&) {
  const base::UniqueFd fd(::memfd_create("predump-probe", MFD_CLOEXEC));
  if (!fd.valid()) return Missing(errno, "memfd_create");
  return Finding{};
}

struct ProbeEntry {
  Capability capability;
  const char* name;
  const char* purpose;
  const char* since;
  absl::StatusOr<Finding> (*run)(const ProbeOptions&);
};

constexpr std::array kProbes = {
    ProbeEntry{Capability::kUffdWpAsync, "uffd-wp-async", "tracking without a stop", "6.7",
               ProbeUffdWpAsync},
    ProbeEntry{Capability::kUffdUnprivileged, "uffd-unprivileged",
               "tracking processes of ordinary users", "5.11", ProbeUffdUnprivileged},
    ProbeEntry{Capability::kPagemapScan, "pagemap-scan", "finding written pages", "6.7",
               ProbePagemapScan},
    ProbeEntry{Capability::kSoftDirty, "soft-dirty", "tracking with short stops", "3.11",
               ProbeSoftDirty},
    ProbeEntry{Capability::kPidfdGetfd, "pidfd-getfd", "taking descriptors of the process", "5.6",
               ProbePidfdGetfd},
    ProbeEntry{Capability::kProcessVmReadv, "process-vm-readv", "copying pages", "3.2",
               ProbeProcessVmReadv},
    ProbeEntry{Capability::kVmspliceSharesPages, "vmsplice-shares-pages",
               "sending pages without a copy through a helper", "2.6.17", ProbeVmsplice},
    ProbeEntry{Capability::kProcessVmsplice, "process-vmsplice",
               "sending pages without a copy and without a helper", "patched",
               ProbeProcessVmsplice},
    ProbeEntry{Capability::kCloseRangeUnshare, "close-range-unshare",
               "a helper that holds no descriptor", "5.9", ProbeCloseRangeUnshare},
    ProbeEntry{Capability::kClone3SetTid, "clone3-set-tid", "restoring process ids", "5.5",
               ProbeSetTid},
    ProbeEntry{Capability::kTimeNamespace, "time-namespace", "clocks that go on without a jump",
               "5.6", ProbeTimeNamespace},
    ProbeEntry{Capability::kRseqConfiguration, "rseq-configuration",
               "aborting restartable sequences", "5.13", ProbeRseq},
    ProbeEntry{Capability::kKcmp, "kcmp", "finding shared open files", "3.5", ProbeKcmp},
    ProbeEntry{Capability::kBtf, "btf", "reading process state through BPF", "5.4", ProbeBtf},
    ProbeEntry{Capability::kMemfd, "memfd", "starting the landing", "3.17", ProbeMemfd},
};

absl::StatusOr<CapabilityResult> Run(const ProbeEntry& entry, const ProbeOptions& options) {
  const absl::StatusOr<Finding> finding = entry.run(options);
  if (!finding.ok()) return base::Annotate(finding.status(), entry.name);
  return CapabilityResult{
      .capability = entry.capability,
      .name = entry.name,
      .purpose = entry.purpose,
      .since = entry.since,
      .available = finding->status.ok(),
      .reason = finding->status.ok() ? finding->detail : std::string(finding->status.message()),
  };
}

}  // namespace

absl::StatusOr<CapabilityResult> Probe(Capability capability, const ProbeOptions& options) {
  for (const ProbeEntry& entry : kProbes) {
    if (entry.capability == capability) return Run(entry, options);
  }
  return absl::InvalidArgumentError("no such capability");
}

absl::StatusOr<std::vector<CapabilityResult>> ProbeAll(const ProbeOptions& options) {
  std::vector<CapabilityResult> results;
  for (const ProbeEntry& entry : kProbes) {
    PREDUMP_ASSIGN_OR_RETURN(CapabilityResult result, Run(entry, options));
    results.push_back(std::move(result));
  }
  return results;
}

}  // namespace predump::kernel
