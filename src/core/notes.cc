#include "src/core/notes.h"

#include <elf.h>
#include <sys/user.h>

#include <cstdint>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace predump::core {
namespace {

template <typename T>
absl::string_view BytesOf(const T& value) {
  return {reinterpret_cast<const char*>(&value), sizeof value};
}

void Pad(std::string& out) { out.append((4 - out.size() % 4) % 4, '\0'); }

// `name` is "CORE" or "LINUX"; it is written with its NUL, and both parts padded to four bytes.
void AppendNote(std::string& out, absl::string_view name, uint32_t type, absl::string_view bytes) {
  Elf64_Nhdr header;
  header.n_namesz = static_cast<uint32_t>(name.size() + 1);
  header.n_descsz = static_cast<uint32_t>(bytes.size());
  header.n_type = type;
  absl::StrAppend(&out, BytesOf(header), name);
  out.push_back('\0');
  Pad(out);
  absl::StrAppend(&out, bytes);
  Pad(out);
}

// NT_FILE: count, page size, {start, end, offset in pages} each, then the names.
std::string FileTable(const std::vector<kernel::MapsEntry>& mappings) {
  std::string table;
  std::string names;
  uint64_t count = 0;
  const uint64_t page = base::PageSize();
  for (const kernel::MapsEntry& entry : mappings) {
    // A debugger would read private memory from the device, where nothing of it is.
    if (!absl::StartsWith(entry.path, "/") || (entry.path == "/dev/zero" && !entry.shared))
      continue;
    ++count;
    const uint64_t offset = entry.file_offset / page;
    absl::StrAppend(&table, BytesOf(entry.range.start()), BytesOf(entry.range.end()),
                    BytesOf(offset));
    absl::StrAppend(&names, entry.path, entry.deleted ? " (deleted)" : "");
    names.push_back('\0');
  }
  return absl::StrCat(BytesOf(count), BytesOf(page), table, names);
}

void AppendFloatingPoint(std::string& out, const ThreadState& thread) {
  const absl::string_view xstate(reinterpret_cast<const char*>(thread.xstate.data()),
                                 thread.xstate.size());
  AppendNote(out, "CORE", NT_FPREGSET, xstate.substr(0, sizeof(user_fpregs_struct)));
  AppendNote(out, "LINUX", NT_X86_XSTATE, xstate);
}

}  // namespace

std::string BuildNotes(const FrozenState& state) {
  std::string notes;
  for (const ThreadState& thread : state.threads) {
    AppendNote(notes, "CORE", NT_PRSTATUS, BytesOf(thread.status));
    if (&thread == &state.threads.front()) {
      AppendNote(notes, "CORE", NT_PRPSINFO, BytesOf(state.process));
      AppendNote(notes, "CORE", NT_AUXV, state.auxv);
      AppendNote(notes, "CORE", NT_FILE, FileTable(state.mappings));
    }
    AppendFloatingPoint(notes, thread);
  }
  return notes;
}

}  // namespace predump::core
