#include "src/core/layout.h"

#include <elf.h>
#include <sys/mman.h>

#include <algorithm>

#include "absl/strings/match.h"

namespace predump::core {
namespace {

using base::AddressRange;
using base::ByteCount;
using kernel::VmFlag;

bool IsUnlinked(const kernel::MapsEntry& entry) {
  // System V segment 0 has inode 0, and no " (deleted)" was cut off its name.
  return entry.deleted || absl::StartsWith(entry.path, "[anon_shmem:") ||
         absl::StartsWith(entry.path, "/SYSV");
}

// Its pages are anonymous memory in all but the name (drivers/char/mem.c).
bool IsPrivateZeroDevice(const kernel::MapsEntry& entry) {
  return !entry.shared && entry.path == "/dev/zero";
}

Content If(uint64_t filter, uint64_t bit, Content content) {
  return (filter & bit) != 0 ? content : Content::kNothing;
}

uint32_t SegmentFlags(int prot) {
  uint32_t flags = 0;
  if ((prot & PROT_READ) != 0) flags |= PF_R;
  if ((prot & PROT_WRITE) != 0) flags |= PF_W;
  if ((prot & PROT_EXEC) != 0) flags |= PF_X;
  return flags;
}

void Append(std::string& out, const void* data, size_t size) {
  out.append(static_cast<const char*>(data), size);
}

uint64_t PageAligned(uint64_t offset) {
  const uint64_t page = base::PageSize();
  return (offset + page - 1) / page * page;
}

// The segments of one mapping: one, unless parts of it are to be found elsewhere.
void AppendSegments(const Taken& taken, std::vector<Segment>& segments) {
  const AddressRange range = taken.mapping.entry.range;
  const uint32_t flags = SegmentFlags(taken.mapping.entry.prot);
  const std::vector<pagemap::Extent>& runs = taken.pages.extents();
  if (taken.rest_is_zeros || runs.empty()) {
    // As the kernel: the whole of it, holes included; nothing of what was never touched.
    segments.push_back({range, flags, runs.empty() ? ByteCount(0) : range.size(), 0});
    return;
  }
  if (range.start() < runs.front().start()) {
    segments.push_back(
        {AddressRange::FromOrdered(range.start().value(), runs.front().start().value()), flags,
         ByteCount(0), 0});
  }
  for (size_t i = 0; i < runs.size(); ++i) {
    const base::RemoteAddress end = i + 1 < runs.size() ? runs[i + 1].start() : range.end();
    segments.push_back({AddressRange::FromOrdered(runs[i].start().value(), end.value()), flags,
                        runs[i].size(), 0});
  }
}

}  // namespace

Policy PolicyOf(const Mapping& mapping, uint64_t filter) {
  const kernel::MapsEntry& entry = mapping.entry;
  if (entry.path == "[vdso]") return {Content::kVdso, false};
  if (entry.IsKernelProvided() || mapping.flags.Has(VmFlag::kDontDump)) return {};
  if (mapping.flags.Has(VmFlag::kHugetlb)) {
    return entry.shared ? Policy{If(filter, kFilterHugetlbShared, Content::kSharedObject), false}
                        : Policy{If(filter, kFilterHugetlbPrivate, Content::kData), false};
  }
  // Reading a device may do something to it, and page frames of a driver cannot be read.
  if (mapping.flags.Has(VmFlag::kIo) || mapping.flags.Has(VmFlag::kPurePfn)) return {};
  if (entry.shared) {
    const uint64_t bit = IsUnlinked(entry) ? kFilterAnonymousShared : kFilterFileShared;
    return {If(filter, bit, Content::kSharedObject), false};
  }
  if (!entry.IsFile() || IsPrivateZeroDevice(entry)) {
    return {If(filter, kFilterAnonymousPrivate, Content::kData), false};
  }
  if ((filter & kFilterFilePrivate) != 0) return {Content::kWholeFile, false};
  return {
      If(filter, kFilterAnonymousPrivate, Content::kOwnPages),
      (filter & kFilterElfHeaders) != 0 && entry.file_offset == 0 && (entry.prot & PROT_READ) != 0};
}

std::vector<Mapping> WithFlags(const std::vector<kernel::MapsEntry>& entries,
                               const std::vector<kernel::VmaFlags>& flags) {
  std::vector<Mapping> mappings;
  auto next = flags.begin();
  for (const kernel::MapsEntry& entry : entries) {
    base::RemoteAddress at = entry.range.start();
    while (next != flags.end() && next->range.end() <= at) ++next;
    const auto add = [&](base::RemoteAddress end, const kernel::VmaFlags& known) {
      if (end <= at) return;
      Mapping part = {entry, known};
      part.entry.range = AddressRange::FromOrdered(at.value(), end.value());
      if (entry.IsFile()) part.entry.file_offset += (at - entry.range.start()).value();
      part.flags.range = part.entry.range;
      mappings.push_back(std::move(part));
      at = end;
    };
    for (auto f = next; f != flags.end() && f->range.start() < entry.range.end(); ++f) {
      add(std::min(f->range.start(), entry.range.end()), {});  // unmapped since
      add(std::min(f->range.end(), entry.range.end()), *f);
    }
    add(entry.range.end(), {});
  }
  return mappings;
}

Layout Layout::Create(const std::vector<Taken>& taken, ByteCount notes) {
  Layout layout;
  layout.notes_ = notes;
  for (const Taken& one : taken) AppendSegments(one, layout.segments_);
  layout.file_size_ = layout.headers_size() + notes.value();
  uint64_t offset = PageAligned(layout.file_size_);
  for (Segment& segment : layout.segments_) {
    segment.offset = offset;
    if (segment.in_file == ByteCount(0)) continue;
    offset += segment.in_file.value();
    layout.file_size_ = offset;
    layout.covered_.Add(AddressRange::FromOrdered(
        segment.range.start().value(), (segment.range.start() + segment.in_file).value()));
  }
  return layout;
}

bool Layout::many() const { return segments_.size() + 1 >= PN_XNUM; }

uint64_t Layout::headers_size() const {
  return sizeof(Elf64_Ehdr) + (segments_.size() + 1) * sizeof(Elf64_Phdr) +
         (many() ? sizeof(Elf64_Shdr) : 0);
}

std::string Layout::Headers() const {
  Elf64_Ehdr header = {};
  header.e_ident[EI_MAG0] = ELFMAG0;
  header.e_ident[EI_MAG1] = ELFMAG1;
  header.e_ident[EI_MAG2] = ELFMAG2;
  header.e_ident[EI_MAG3] = ELFMAG3;
  header.e_ident[EI_CLASS] = ELFCLASS64;
  header.e_ident[EI_DATA] = ELFDATA2LSB;
  header.e_ident[EI_VERSION] = EV_CURRENT;
  header.e_type = ET_CORE;
  header.e_machine = EM_X86_64;
  header.e_version = EV_CURRENT;
  header.e_phoff = sizeof header;
  header.e_ehsize = sizeof header;
  header.e_phentsize = sizeof(Elf64_Phdr);
  header.e_phnum = static_cast<Elf64_Half>(many() ? PN_XNUM : segments_.size() + 1);
  Elf64_Shdr count = {};
  if (many()) {
    header.e_shoff = headers_size() - sizeof count;
    header.e_shentsize = sizeof count;
    header.e_shnum = 1;
    count.sh_type = SHT_NULL;
    count.sh_size = header.e_shnum;
    count.sh_link = header.e_shstrndx;
    count.sh_info = static_cast<Elf64_Word>(segments_.size() + 1);
  }
  std::string bytes;
  bytes.reserve(headers_size());
  Append(bytes, &header, sizeof header);
  Elf64_Phdr notes = {};
  notes.p_type = PT_NOTE;
  notes.p_offset = headers_size();
  notes.p_filesz = notes_.value();
  notes.p_align = 4;
  Append(bytes, &notes, sizeof notes);
  for (const Segment& segment : segments_) {
    Elf64_Phdr load = {};
    load.p_type = PT_LOAD;
    load.p_flags = segment.flags;
    load.p_offset = segment.offset;
    load.p_vaddr = segment.range.start().value();
    load.p_filesz = segment.in_file.value();
    load.p_memsz = segment.range.size().value();
    load.p_align = base::PageSize();
    Append(bytes, &load, sizeof load);
  }
  if (many()) Append(bytes, &count, sizeof count);
  return bytes;
}

std::optional<Layout::Place> Layout::PlaceOf(base::RemoteAddress address) const {
  const auto it = std::partition_point(segments_.begin(), segments_.end(),
                                       [&](const Segment& s) { return s.range.end() <= address; });
  if (it == segments_.end() || !it->range.Contains(address)) return std::nullopt;
  const ByteCount into = address - it->range.start();
  if (into >= it->in_file) return std::nullopt;
  return Place{it->offset + into.value(), it->in_file - into};
}

}  // namespace predump::core
