#include "src/checkpoint/build_id.h"

#include <elf.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <random>
#include <string>

#include "gtest/gtest.h"
#include "src/base/unique_fd.h"

namespace predump::checkpoint {
namespace {

base::UniqueFd FileWith(const std::string& bytes) {
  base::UniqueFd file(::memfd_create("elf", MFD_CLOEXEC));
  EXPECT_EQ(::write(file.get(), bytes.data(), bytes.size()), static_cast<ssize_t>(bytes.size()));
  return file;
}

// A header, one PT_NOTE and the note.
std::string Elf(const std::string& id) {
  Elf64_Ehdr header = {};
  std::memcpy(header.e_ident, ELFMAG, SELFMAG);
  header.e_ident[EI_CLASS] = ELFCLASS64;
  header.e_phoff = sizeof header;
  header.e_phentsize = sizeof(Elf64_Phdr);
  header.e_phnum = 1;
  const Elf64_Nhdr note = {
      .n_namesz = 4, .n_descsz = static_cast<Elf64_Word>(id.size()), .n_type = NT_GNU_BUILD_ID};
  Elf64_Phdr program = {};
  program.p_type = PT_NOTE;
  program.p_offset = sizeof header + sizeof program;
  program.p_filesz = sizeof note + 4 + id.size();
  program.p_align = 4;
  std::string bytes(reinterpret_cast<const char*>(&header), sizeof header);
  bytes.append(reinterpret_cast<const char*>(&program), sizeof program);
  bytes.append(reinterpret_cast<const char*>(&note), sizeof note);
  return bytes + std::string("GNU\0", 4) + id;
}

TEST(ReadBuildId, FindsTheNote) {
  EXPECT_EQ(*ReadBuildId(FileWith(Elf("0123456789abcdefghij")).get()), "0123456789abcdefghij");
}

TEST(ReadBuildId, FindsOurOwn) {
  const base::UniqueFd self(::open("/proc/self/exe", O_RDONLY | O_CLOEXEC));
  EXPECT_EQ(ReadBuildId(self.get())->size(), 20u);
  EXPECT_EQ(*ReadElfClass(self.get()), 64);
}

TEST(ReadBuildId, IsEmptyForOtherFiles) {
  EXPECT_EQ(*ReadBuildId(FileWith("").get()), "");
  EXPECT_EQ(*ReadBuildId(FileWith("#!/bin/sh\necho a longer script than a header is\n").get()), "");
  EXPECT_EQ(*ReadElfClass(FileWith("#!/bin/sh, no ELF file").get()), 0);
}

TEST(ReadBuildId, SurvivesDamage) {
  const std::string whole = Elf("0123456789abcdefghij");
  for (size_t length = 0; length < whole.size(); ++length) {
    EXPECT_EQ(*ReadBuildId(FileWith(whole.substr(0, length)).get()), "") << length;
  }
  std::mt19937 random(7);
  for (int i = 0; i < 2000; ++i) {
    std::string damaged = whole;
    for (int n = 0; n < 3; ++n) damaged[random() % damaged.size()] = static_cast<char>(random());
    const auto id = ReadBuildId(FileWith(damaged).get());
    if (id.ok()) {
      EXPECT_LE(id->size(), 64u);
    }
  }
}

}  // namespace
}  // namespace predump::checkpoint
