#include "src/kernel/procfs_maps.h"

#include <sys/sysmacros.h>

#include <array>
#include <optional>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "src/base/errors.h"
#include "src/kernel/procfs_task.h"

namespace predump::kernel {
namespace {

absl::Status BadLine(absl::string_view file, absl::string_view line) {
  return absl::DataLossError(
      absl::StrCat("not a line of ", file, ": \"", line.substr(0, 200), "\""));
}

// Cuts the first space-separated word off `rest`.
absl::string_view TakeWord(absl::string_view* rest) {
  const size_t end = std::min(rest->find(' '), rest->size());
  const absl::string_view word = rest->substr(0, end);
  rest->remove_prefix(std::min(end + 1, rest->size()));
  return word;
}

std::optional<base::AddressRange> ParseRange(absl::string_view word) {
  const std::pair<absl::string_view, absl::string_view> ends = absl::StrSplit(word, '-');
  uint64_t start = 0;
  uint64_t end = 0;
  if (!absl::SimpleHexAtoi(ends.first, &start) || !absl::SimpleHexAtoi(ends.second, &end) ||
      start > end) {
    return std::nullopt;
  }
  return base::AddressRange::FromOrdered(start, end);
}

// maps escapes newlines only (seq_path(m, path, "\n")).
std::string Unescape(absl::string_view path) {
  std::string out;
  out.reserve(path.size());
  for (size_t i = 0; i < path.size(); ++i) {
    if (absl::StartsWith(path.substr(i), "\\012")) {
      out.push_back('\n');
      i += 3;
    } else {
      out.push_back(path[i]);
    }
  }
  return out;
}

std::optional<MapsEntry> ParseMapsLine(absl::string_view line) {
  MapsEntry entry;
  absl::string_view rest = line;
  const std::optional<base::AddressRange> range = ParseRange(TakeWord(&rest));
  const absl::string_view permissions = TakeWord(&rest);
  const absl::string_view offset = TakeWord(&rest);
  const std::pair<absl::string_view, absl::string_view> device =
      absl::StrSplit(TakeWord(&rest), ':');
  uint32_t major_number = 0;
  uint32_t minor_number = 0;
  if (!range.has_value() || permissions.size() != 4 ||
      !absl::SimpleHexAtoi(offset, &entry.file_offset) ||
      !absl::SimpleHexAtoi(device.first, &major_number) ||
      !absl::SimpleHexAtoi(device.second, &minor_number) ||
      !absl::SimpleAtoi(TakeWord(&rest), &entry.inode)) {
    return std::nullopt;
  }
  entry.range = *range;
  entry.device = makedev(major_number, minor_number);
  if (permissions[0] == 'r') entry.prot |= PROT_READ;
  if (permissions[1] == 'w') entry.prot |= PROT_WRITE;
  if (permissions[2] == 'x') entry.prot |= PROT_EXEC;
  entry.shared = permissions[3] == 's';
  // Names are aligned by padding; a path itself may begin with '/' or '[' but not with a space.
  while (absl::ConsumePrefix(&rest, " ")) {
  }
  // A file whose own name ends in " (deleted)" cannot be told apart by the text; callers that must
  // know compare device and inode.
  if (entry.IsFile()) entry.deleted = absl::ConsumeSuffix(&rest, " (deleted)");
  entry.path = Unescape(rest);
  return entry;
}

struct FlagName {
  char letters[3];
  VmFlag flag;
};

constexpr std::array kFlagNames = {
    FlagName{"rd", VmFlag::kReadable},
    FlagName{"wr", VmFlag::kWritable},
    FlagName{"ex", VmFlag::kExecutable},
    FlagName{"sh", VmFlag::kShared},
    FlagName{"mr", VmFlag::kMayRead},
    FlagName{"mw", VmFlag::kMayWrite},
    FlagName{"me", VmFlag::kMayExecute},
    FlagName{"ms", VmFlag::kMayShare},
    FlagName{"gd", VmFlag::kGrowsDown},
    FlagName{"pf", VmFlag::kPurePfn},
    FlagName{"lo", VmFlag::kLocked},
    FlagName{"io", VmFlag::kIo},
    FlagName{"sr", VmFlag::kSequential},
    FlagName{"rr", VmFlag::kRandom},
    FlagName{"dc", VmFlag::kDontCopy},
    FlagName{"de", VmFlag::kDontExpand},
    FlagName{"lf", VmFlag::kLockOnFault},
    FlagName{"ac", VmFlag::kAccounted},
    FlagName{"nr", VmFlag::kNoReserve},
    FlagName{"ht", VmFlag::kHugetlb},
    FlagName{"sf", VmFlag::kSynchronousFault},
    FlagName{"wf", VmFlag::kWipeOnFork},
    FlagName{"dd", VmFlag::kDontDump},
    FlagName{"sd", VmFlag::kSoftDirty},
    FlagName{"mm", VmFlag::kMixedMap},
    FlagName{"hg", VmFlag::kHugePage},
    FlagName{"nh", VmFlag::kNoHugePage},
    FlagName{"mg", VmFlag::kMergeable},
    FlagName{"um", VmFlag::kUffdMissing},
    FlagName{"uw", VmFlag::kUffdWriteProtect},
    FlagName{"ui", VmFlag::kUffdMinor},
    FlagName{"ss", VmFlag::kShadowStack},
    FlagName{"sl", VmFlag::kSealed},
    FlagName{"dp", VmFlag::kDroppable},
    FlagName{"gu", VmFlag::kGuard},
    FlagName{"ar", VmFlag::kArchitecture},
};

uint64_t FlagBit(absl::string_view letters) {
  for (const FlagName& name : kFlagNames) {
    if (letters == name.letters) return static_cast<uint64_t>(name.flag);
  }
  return static_cast<uint64_t>(VmFlag::kUnknown);
}

}  // namespace

bool MapsEntry::IsKernelProvided() const {
  // [vdso], [vvar], [vvar_vclock], [vsyscall], [uprobes]; [heap], [stack] and [anon:...] are not.
  return absl::StartsWith(path, "[v") || path == "[uprobes]";
}

absl::StatusOr<std::vector<MapsEntry>> ParseMaps(absl::string_view text) {
  std::vector<MapsEntry> entries;
  for (absl::string_view line : absl::StrSplit(text, '\n', absl::SkipEmpty())) {
    std::optional<MapsEntry> entry = ParseMapsLine(line);
    if (!entry.has_value()) return BadLine("maps", line);
    entries.push_back(*std::move(entry));
  }
  return entries;
}

absl::StatusOr<std::vector<MapsEntry>> ReadMaps(const ProcessHandle& process) {
  PREDUMP_ASSIGN_OR_RETURN(const std::string text, ReadProcFile(process, "maps"));
  return ParseMaps(text);
}

absl::StatusOr<std::vector<VmaFlags>> ParseSmapsFlags(absl::string_view text) {
  std::vector<VmaFlags> all;
  for (absl::string_view line : absl::StrSplit(text, '\n', absl::SkipEmpty())) {
    absl::string_view rest = line;
    const absl::string_view first = TakeWord(&rest);
    if (!absl::EndsWith(first, ":")) {
      const std::optional<base::AddressRange> range = ParseRange(first);
      if (!range.has_value()) return BadLine("smaps", line);
      all.push_back({.range = *range});
      continue;
    }
    if (all.empty()) return BadLine("smaps", line);
    if (first == "VmFlags:") {
      for (absl::string_view letters : absl::StrSplit(rest, ' ', absl::SkipEmpty())) {
        all.back().bits |= FlagBit(letters);
      }
    } else if (first == "ProtectionKey:") {
      if (!absl::SimpleAtoi(rest, &all.back().protection_key)) return BadLine("smaps", line);
    }
  }
  return all;
}

absl::StatusOr<std::vector<VmaFlags>> ReadSmapsFlags(const ProcessHandle& process) {
  PREDUMP_ASSIGN_OR_RETURN(const std::string text, ReadProcFile(process, "smaps"));
  return ParseSmapsFlags(text);
}

}  // namespace predump::kernel
