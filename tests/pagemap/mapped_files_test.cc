#include "src/pagemap/mapped_files.h"

#include <sys/mman.h>

#include <fstream>
#include <string>
#include <utility>

#include "gtest/gtest.h"
#include "tests/pagemap/memory_actor.h"
#include "tests/support/temp_dir.h"

namespace predump::pagemap {
namespace {

constexpr uint64_t kPage = 4096;
constexpr uint64_t kBase = 0x700000000000;

class MappedFilesTest : public testing::Test {
 protected:
  void Map(const std::string& name, char content) {
    const std::string path = temp_.File(name);
    std::ofstream(path, std::ios::binary) << std::string(kPage, content);
    actor_.MapFile(path.c_str(), kBase, kPage, MAP_PRIVATE);
  }
  Vma Mapping() const {
    const auto vmas = VmaList::Read(actor_.process(), false);
    EXPECT_TRUE(vmas.ok()) << vmas.status();
    const Vma* vma = vmas.ok() ? vmas->Find(base::RemoteAddress(kBase)) : nullptr;
    EXPECT_TRUE(vma != nullptr);
    return vma != nullptr ? *vma : Vma();
  }
  // A private copy of the page, which holds what `content` says.
  void Fill(char content) {
    actor_.Call(
        [](const MemoryActor::Arguments& a) -> int64_t {
          auto* page = reinterpret_cast<volatile char*>(kBase);
          for (uint64_t i = 0; i < kPage; ++i) page[i] = static_cast<char>(a[0]);
          return 0;
        },
        {static_cast<uint64_t>(content)});
  }

  static MappedFiles::Comparison Compared(MappedFiles& files, const Vma& vma) {
    ExtentSet page;
    page.Add(vma.range);
    auto comparison = files.Compare(vma, page);
    EXPECT_TRUE(comparison.ok()) << comparison.status();
    return comparison.ok() ? *std::move(comparison) : MappedFiles::Comparison();
  }

  test_support::TempDir temp_ = *test_support::TempDir::Create();
  MemoryActor actor_;
};

TEST_F(MappedFilesTest, ComparesPrivateCopiesWithTheFile) {
  Map("a", 'a');
  const Vma vma = Mapping();
  auto files = MappedFiles::Create(actor_.process());
  ASSERT_TRUE(files.ok()) << files.status();
  files->Prepare(vma);
  for (const bool equal : {true, false}) {
    Fill(equal ? 'a' : 'b');
    const auto comparison = Compared(*files, vma);
    EXPECT_EQ(!comparison.equal.empty(), equal);
    EXPECT_TRUE(comparison.unknown.empty());
  }
}

// While rounds run nobody holds the process: what the layout says is mapped there may be gone.
TEST_F(MappedFilesTest, AnotherFileMappedThereMeanwhileIsNotTakenForTheFirst) {
  Map("a", 'a');
  const Vma vma = Mapping();
  auto files = MappedFiles::Create(actor_.process());
  ASSERT_TRUE(files.ok()) << files.status();
  Map("b", 'b');
  files->Prepare(vma);
  Map("a", 'a');
  ASSERT_EQ(Mapping().inode, vma.inode);
  Fill('b');
  EXPECT_TRUE(Compared(*files, vma).equal.empty()) << "its file is another";
  Fill('a');
  EXPECT_FALSE(Compared(*files, vma).equal.empty());
}

}  // namespace
}  // namespace predump::pagemap
