// Notes are of the documented form, whatever their lengths.
#include "src/core/notes.h"

#include <elf.h>
#include <sys/user.h>

#include <cstring>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace predump::core {
namespace {

struct Note {
  std::string name;
  uint32_t type;
  std::string bytes;
};

std::vector<Note> Parse(const std::string& text) {
  std::vector<Note> notes;
  const auto padded = [](size_t size) { return (size + 3) / 4 * 4; };
  for (size_t at = 0; at < text.size();) {
    Elf64_Nhdr header;
    if (at + sizeof header > text.size()) ADD_FAILURE() << "cut at " << at;
    std::memcpy(&header, text.data() + at, sizeof header);
    at += sizeof header;
    Note note;
    note.name = text.substr(at, header.n_namesz);
    at += padded(header.n_namesz);
    note.type = header.n_type;
    note.bytes = text.substr(at, header.n_descsz);
    at += padded(header.n_descsz);
    EXPECT_LE(at, text.size());
    notes.push_back(note);
  }
  return notes;
}

ThreadState Thread(pid_t tid, size_t xstate_bytes) {
  ThreadState thread;
  thread.status.pr_pid = tid;
  thread.xstate.assign(xstate_bytes, std::byte{7});
  return thread;
}

TEST(CoreNotes, ComeInTheOrderOfTheKernel) {
  FrozenState state;
  state.threads = {Thread(5, 2696), Thread(6, 2696)};
  const std::vector<Note> notes = Parse(BuildNotes(state));
  std::vector<uint32_t> types;
  for (const Note& note : notes) {
    types.push_back(note.type);
    EXPECT_EQ(note.name, std::string(note.type == NT_X86_XSTATE ? "LINUX" : "CORE") + '\0');
  }
  EXPECT_THAT(types, testing::ElementsAre(NT_PRSTATUS, NT_PRPSINFO, NT_AUXV, NT_FILE, NT_FPREGSET,
                                          NT_X86_XSTATE, NT_PRSTATUS, NT_FPREGSET, NT_X86_XSTATE));
  EXPECT_EQ(notes[0].bytes.size(), 336u);
  EXPECT_EQ(notes[1].bytes.size(), 136u);
  EXPECT_EQ(notes[4].bytes.size(), sizeof(user_fpregs_struct));
  EXPECT_EQ(notes[5].bytes.size(), 2696u);
  elf_prstatus second;
  std::memcpy(&second, notes[6].bytes.data(), sizeof second);
  EXPECT_EQ(second.pr_pid, 6);
}

TEST(CoreNotes, FilesAreListedWithTheirOffsetsInPages) {
  FrozenState state;
  state.threads = {Thread(5, 576)};
  kernel::MapsEntry file;
  file.range = base::AddressRange::FromOrdered(0x1000, 0x3000);
  file.inode = 9;
  file.path = "/lib/a";
  file.file_offset = 0x2000;
  kernel::MapsEntry gone = file;
  gone.range = base::AddressRange::FromOrdered(0x3000, 0x4000);
  gone.path = "/tmp/longer";
  gone.deleted = true;
  kernel::MapsEntry anonymous;
  anonymous.range = base::AddressRange::FromOrdered(0x5000, 0x6000);
  kernel::MapsEntry zero = file;
  zero.path = "/dev/zero";
  state.mappings = {file, gone, anonymous, zero};
  state.auxv = "odd";
  const std::vector<Note> notes = Parse(BuildNotes(state));
  ASSERT_EQ(notes.size(), 6u);
  EXPECT_EQ(notes[2].bytes, "odd");
  const std::string& table = notes[3].bytes;
  std::vector<uint64_t> numbers(8);
  ASSERT_GT(table.size(), numbers.size() * 8);
  std::memcpy(numbers.data(), table.data(), numbers.size() * 8);
  EXPECT_THAT(numbers, testing::ElementsAre(2, 4096, 0x1000, 0x3000, 2, 0x3000, 0x4000, 2));
  EXPECT_EQ(table.substr(numbers.size() * 8), std::string("/lib/a\0/tmp/longer (deleted)\0", 29));
}

}  // namespace
}  // namespace predump::core
