#include "src/checkpoint/memory_capture.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstdint>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "src/base/errors.h"
#include "src/images/image_constants.h"
#include "src/kernel/procfs.h"

namespace predump::checkpoint {
namespace {

using kernel::VmFlag;

struct Advice {
  VmFlag flag;
  int advice;
};
constexpr Advice kAdvice[] = {
    {VmFlag::kSequential, MADV_SEQUENTIAL}, {VmFlag::kRandom, MADV_RANDOM},
    {VmFlag::kDontCopy, MADV_DONTFORK},     {VmFlag::kMergeable, MADV_MERGEABLE},
    {VmFlag::kHugePage, MADV_HUGEPAGE},     {VmFlag::kNoHugePage, MADV_NOHUGEPAGE},
    {VmFlag::kDontDump, MADV_DONTDUMP},     {VmFlag::kWipeOnFork, MADV_WIPEONFORK},
};

uint32_t StatusOf(const pagemap::Vma& vma) {
  switch (vma.kind) {
    case pagemap::VmaKind::kFilePrivate:
      return images::kVmaRegular | images::kVmaFilePrivate;
    case pagemap::VmaKind::kFileShared:
      return images::kVmaRegular | images::kVmaFileShared;
    case pagemap::VmaKind::kVdso:
      return images::kVmaRegular | images::kVmaVdso | images::kVmaAnonymousPrivate;
    case pagemap::VmaKind::kVvar:
      return images::kVmaRegular | images::kVmaVvar | images::kVmaAnonymousPrivate;
    case pagemap::VmaKind::kVsyscall:
      return images::kVmaVsyscall | images::kVmaAnonymousPrivate;
    default:
      return images::kVmaRegular | images::kVmaAnonymousPrivate |
             (vma.path == "[heap]" ? images::kVmaHeap : 0u);
  }
}

uint32_t MapFlagsOf(const pagemap::Vma& vma, const kernel::VmaFlags& flags) {
  uint32_t bits = 0;
  switch (vma.kind) {
    case pagemap::VmaKind::kFileShared:
      bits = MAP_SHARED;
      break;
    case pagemap::VmaKind::kFilePrivate:
      bits = MAP_PRIVATE;
      break;
    default:
      bits = MAP_PRIVATE | MAP_ANONYMOUS;
  }
  if (vma.grows_down) bits |= MAP_GROWSDOWN;
  if (flags.Has(VmFlag::kLocked)) bits |= MAP_LOCKED;
  if (flags.Has(VmFlag::kNoReserve)) bits |= MAP_NORESERVE;
  return bits;
}

bool IsKernelProvided(const pagemap::Vma& vma) {
  return vma.kind == pagemap::VmaKind::kVdso || vma.kind == pagemap::VmaKind::kVvar ||
         vma.kind == pagemap::VmaKind::kVsyscall;
}

// The id of the file a mapping is of, 0 with a blocker where its path leads elsewhere. Device
// numbers in maps are not those of stat(2) on some file systems; then map_files, which is the file
// itself, decides. `surveying`: look again even where it is known; the process runs, and 0 without
// a blocker is a mapping that is gone.
absl::StatusOr<uint32_t> MappedFile(const kernel::ProcessHandle& process, const pagemap::Vma& vma,
                                    bool surveying, FileRegistry& files, const std::string& name,
                                    BlockerList& blockers) {
  IdentityCache& identities = files.identities();
  const FileIdentity* noted = identities.FindMapped(vma.path, vma.device, vma.inode);
  if (const uint32_t id = files.FindByPath(vma.path); noted != nullptr && id != 0) return id;
  // A file mapped shared may have been written to: its size is read anew.
  if (noted != nullptr && !surveying && vma.kind == pagemap::VmaKind::kFilePrivate) {
    return files.ByPath(vma.path, *noted);
  }
  const auto at_path = identities.Look(vma.path, true);
  if (!at_path.ok() || at_path->stat.st_ino != vma.inode || at_path->stat.st_dev != vma.device) {
    struct stat actual;
    const std::string link = absl::StrCat("map_files/", vma.range.ToString());
    if (::fstatat(process.proc_fd(), link.c_str(), &actual, 0) != 0) {
      const absl::Status status = process.ErrorFor(errno, "stat " + link);
      if (surveying && base::ErrnoOf(status) == ENOENT) return 0;
      return status;
    }
    if (const auto why = WhyNotReachable(vma.path, actual, at_path); why.has_value()) {
      blockers.Add(name, absl::StrCat(*why, " (", vma.path, ")"),
                   "restart the program after an update of its files");
      return 0;
    }
  }
  identities.NoteMapped(vma.path, vma.device, vma.inode, *at_path);
  return files.ByPath(vma.path, *at_path);
}

void RefuseFlags(const kernel::VmaFlags& flags, bool surveying, const std::string& name,
                 BlockerList& blockers) {
  if (flags.Has(VmFlag::kUffdMissing) || flags.Has(VmFlag::kUffdMinor)) {
    blockers.Add(name, "the program handles its page faults itself (userfaultfd)");
  } else if (surveying && flags.Has(VmFlag::kUffdWriteProtect)) {
    // All of its memory, mostly: said once.
    blockers.Add("memory",
                 "somebody tracks what is written to it (userfaultfd write-protect): another "
                 "predump that is sending the process just now, or the program itself",
                 "wait until that predump has ended");
  }
  if (flags.Has(VmFlag::kLockOnFault)) {
    blockers.Add(name, "locked as it is touched (mlock2 MLOCK_ONFAULT)");
  }
  if (flags.Has(VmFlag::kPolicy)) {
    blockers.Add(name, "has a NUMA policy of its own (mbind)");
  }
}

absl::Status AddMapping(const kernel::ProcessHandle& process, const pagemap::Vma& vma,
                        const kernel::VmaFlags& flags, bool surveying, FileRegistry& files,
                        proto::ProcessState& state, BlockerList& blockers,
                        const std::string& name) {
  criu::vma_entry entry;
  const bool is_file =
      vma.kind == pagemap::VmaKind::kFilePrivate || vma.kind == pagemap::VmaKind::kFileShared;
  entry.set_start(vma.range.start().value());
  entry.set_end(vma.range.end().value());
  entry.set_pgoff(is_file ? vma.file_offset_bytes : 0);
  entry.set_shmid(0);
  entry.set_prot(vma.prot);
  entry.set_flags(MapFlagsOf(vma, flags));
  entry.set_status(StatusOf(vma));
  entry.set_fd(-1);
  uint64_t advice = 0;
  for (const Advice& known : kAdvice) {
    if (flags.Has(known.flag) && !IsKernelProvided(vma)) advice |= uint64_t{1} << known.advice;
  }
  if (vma.kind == pagemap::VmaKind::kVvar) advice = uint64_t{1} << MADV_DONTDUMP;
  if (advice != 0) entry.set_madv(advice);
  if (is_file) {
    PREDUMP_ASSIGN_OR_RETURN(const uint32_t id,
                             MappedFile(process, vma, surveying, files, name, blockers));
    if (id == 0) return absl::OkStatus();
    entry.set_shmid(id);
    const bool writable = vma.kind == pagemap::VmaKind::kFileShared &&
                          (flags.Has(VmFlag::kMayWrite) || (vma.prot & PROT_WRITE) != 0);
    entry.set_fdflags(writable ? O_RDWR : O_RDONLY);
  }
  absl::string_view label = vma.path;
  if (absl::ConsumePrefix(&label, "[anon:") && absl::ConsumeSuffix(&label, "]")) {
    proto::VmaExtra* extra = state.mutable_extra()->add_vmas();
    extra->set_start(entry.start());
    extra->set_anonymous_name(std::string(label));
  }
  // CRIU keeps [vvar] and [vvar_vclock], which lie side by side, as one.
  criu::mm_entry& mm = *state.mutable_mm();
  if (vma.kind == pagemap::VmaKind::kVvar && mm.vmas_size() > 0) {
    criu::vma_entry& last = *mm.mutable_vmas(mm.vmas_size() - 1);
    if (last.status() == entry.status() && last.end() == entry.start()) {
      last.set_end(entry.end());
      return absl::OkStatus();
    }
  }
  *mm.add_vmas() = std::move(entry);
  return absl::OkStatus();
}

// The id of what the link `name` of /proc/PID leads to; 0 with a blocker where that is no more.
absl::StatusOr<uint32_t> LinkedFile(const kernel::ProcessHandle& process, const char* name,
                                    bool with_build_id, FileRegistry& files, std::string* path,
                                    BlockerList& blockers) {
  PREDUMP_ASSIGN_OR_RETURN(*path, kernel::ReadProcLink(process, name));
  struct stat actual;
  if (::fstatat(process.proc_fd(), name, &actual, 0) != 0) return process.ErrorFor(errno, name);
  const auto at_path = files.identities().Look(*path, with_build_id);
  if (const auto why = WhyNotReachable(*path, actual, at_path); why.has_value()) {
    blockers.Add(absl::StrCat("attribute ", name), absl::StrCat(*why, " (", *path, ")"));
    return 0;
  }
  return files.ByPath(*path, *at_path);
}

}  // namespace

void FlagMemory::Remember(const pagemap::VmaList& vmas) { vmas_ = vmas; }

kernel::VmaFlags FlagMemory::Of(const pagemap::Vma& vma) const {
  if (vma.flags_known()) return vma.flags;
  const pagemap::Vma* noted = vmas_.Find(vma.range.start());
  if (noted != nullptr && noted->range == vma.range && noted->inode == vma.inode &&
      noted->path == vma.path) {
    return noted->flags;
  }
  return {};
}

absl::Status FillMappings(const kernel::ProcessHandle& process, const pagemap::VmaList& vmas,
                          const FlagMemory& flags, bool surveying, FileRegistry& files,
                          proto::ProcessState& state, BlockerList& blockers) {
  for (const pagemap::Vma& vma : vmas.vmas()) {
    const std::string name = absl::StrCat("mapping ", vma.range.ToString());
    if (vma.kind == pagemap::VmaKind::kUnsupported ||
        vma.kind == pagemap::VmaKind::kAnonymousShared) {
      blockers.Add(name,
                   vma.why_unsupported.empty() ? "shared anonymous memory" : vma.why_unsupported);
      continue;
    }
    const kernel::VmaFlags known = flags.Of(vma);
    RefuseFlags(known, surveying, name, blockers);
    PREDUMP_RETURN_IF_ERROR(
        AddMapping(process, vma, known, surveying, files, state, blockers, name));
  }
  return absl::OkStatus();
}

absl::Status FillPaths(const kernel::ProcessHandle& process, uint32_t umask, FileRegistry& files,
                       proto::ProcessState& state, BlockerList& blockers) {
  proto::ProcessExtra& extra = *state.mutable_extra();
  PREDUMP_ASSIGN_OR_RETURN(const uint32_t exe, LinkedFile(process, "exe", true, files,
                                                          extra.mutable_exe_path(), blockers));
  PREDUMP_ASSIGN_OR_RETURN(
      const uint32_t cwd,
      LinkedFile(process, "cwd", false, files, extra.mutable_working_directory(), blockers));
  PREDUMP_ASSIGN_OR_RETURN(
      const uint32_t root,
      LinkedFile(process, "root", false, files, extra.mutable_root_directory(), blockers));
  state.mutable_mm()->set_exe_file_id(exe);
  state.mutable_fs()->set_cwd_id(cwd);
  state.mutable_fs()->set_root_id(root);
  state.mutable_fs()->set_umask(umask);
  return absl::OkStatus();
}

}  // namespace predump::checkpoint
