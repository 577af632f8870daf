#include "src/checkpoint/build_id.h"

#include <elf.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "src/base/errors.h"

namespace predump::checkpoint {
namespace {

constexpr size_t kMaxNoteBytes = 64 << 10;
constexpr size_t kMaxBuildIdBytes = 64;
constexpr uint16_t kMaxProgramHeaders = 256;

// The bytes at `offset`, fewer at the end of the file.
absl::StatusOr<std::vector<char>> ReadAt(int fd, uint64_t offset, size_t size) {
  std::vector<char> bytes(size);
  size_t have = 0;
  while (have < size) {
    const ssize_t n =
        ::pread(fd, bytes.data() + have, size - have, static_cast<off_t>(offset + have));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return base::ErrnoError(errno, "pread of an ELF file");
    if (n == 0) break;
    have += static_cast<size_t>(n);
  }
  bytes.resize(have);
  return bytes;
}

std::string FindInNotes(const std::vector<char>& notes, size_t alignment) {
  const auto aligned = [alignment](size_t n) {
    return (n + alignment - 1) / alignment * alignment;
  };
  size_t position = 0;
  while (position + sizeof(Elf64_Nhdr) <= notes.size()) {
    Elf64_Nhdr header;  // the same in 32-bit files
    std::memcpy(&header, notes.data() + position, sizeof header);
    const size_t name = position + sizeof header;
    if (header.n_namesz > notes.size() || header.n_descsz > notes.size()) return "";
    const size_t description = name + aligned(header.n_namesz);
    if (description + header.n_descsz > notes.size()) return "";
    if (header.n_type == NT_GNU_BUILD_ID && header.n_namesz == 4 &&
        std::memcmp(notes.data() + name, "GNU", 4) == 0 && header.n_descsz <= kMaxBuildIdBytes) {
      return std::string(notes.data() + description, header.n_descsz);
    }
    position = description + aligned(header.n_descsz);
  }
  return "";
}

template <typename FileHeader, typename ProgramHeader>
absl::StatusOr<std::string> FindInFile(int fd, const std::vector<char>& start) {
  FileHeader header;
  if (start.size() < sizeof header) return "";
  std::memcpy(&header, start.data(), sizeof header);
  if (header.e_phentsize != sizeof(ProgramHeader) || header.e_phnum > kMaxProgramHeaders) return "";
  PREDUMP_ASSIGN_OR_RETURN(const auto table,
                           ReadAt(fd, header.e_phoff, header.e_phnum * sizeof(ProgramHeader)));
  for (size_t at = 0; at + sizeof(ProgramHeader) <= table.size(); at += sizeof(ProgramHeader)) {
    ProgramHeader program;
    std::memcpy(&program, table.data() + at, sizeof program);
    if (program.p_type != PT_NOTE || program.p_filesz > kMaxNoteBytes) continue;
    PREDUMP_ASSIGN_OR_RETURN(const auto notes,
                             ReadAt(fd, program.p_offset, static_cast<size_t>(program.p_filesz)));
    std::string id = FindInNotes(notes, program.p_align == 8 ? 8 : 4);
    if (!id.empty()) return id;
  }
  return "";
}

}  // namespace

absl::StatusOr<int> ReadElfClass(int fd) {
  PREDUMP_ASSIGN_OR_RETURN(const auto start, ReadAt(fd, 0, EI_NIDENT));
  if (start.size() < EI_NIDENT || std::memcmp(start.data(), ELFMAG, SELFMAG) != 0) return 0;
  return start[EI_CLASS] == ELFCLASS64 ? 64 : start[EI_CLASS] == ELFCLASS32 ? 32 : 0;
}

absl::StatusOr<std::string> ReadBuildId(int fd) {
  PREDUMP_ASSIGN_OR_RETURN(const auto start, ReadAt(fd, 0, sizeof(Elf64_Ehdr)));
  if (start.size() < EI_NIDENT || std::memcmp(start.data(), ELFMAG, SELFMAG) != 0) return "";
  if (start[EI_CLASS] == ELFCLASS64) return FindInFile<Elf64_Ehdr, Elf64_Phdr>(fd, start);
  if (start[EI_CLASS] == ELFCLASS32) return FindInFile<Elf32_Ehdr, Elf32_Phdr>(fd, start);
  return "";
}

}  // namespace predump::checkpoint
