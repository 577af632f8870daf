#include "tests/images/stored_pages.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "gtest/gtest.h"
#include "proto/criu_memory.pb.h"
#include "src/images/image_file.h"

namespace predump::images::testing {

base::UniqueFd MakeDirectory(const std::string& path) {
  EXPECT_TRUE(::mkdir(path.c_str(), 0700) == 0 || errno == EEXIST) << path;
  base::UniqueFd fd(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  EXPECT_TRUE(fd.valid()) << path;
  return fd;
}

void WriteEntries(int directory_fd, const std::vector<PagemapEntry>& entries, const PagesOf& of) {
  auto writer = ImageWriter::Create(directory_fd, of.PagemapName(), ImageMagic::kPagemap);
  ASSERT_TRUE(writer.ok()) << writer.status();
  criu::pagemap_head head;
  head.set_pages_id(1);
  ASSERT_TRUE(writer->Add(head).ok());
  for (const PagemapEntry& entry : entries) {
    criu::pagemap_entry message;
    message.set_vaddr(entry.start);
    message.set_compat_nr_pages(static_cast<uint32_t>(entry.pages));
    message.set_nr_pages(entry.pages);
    message.set_flags(entry.flags);
    ASSERT_TRUE(writer->Add(message).ok());
  }
  ASSERT_TRUE(writer->Finish().ok());
}

unsigned char MarkOf(unsigned mark, uint64_t page) {
  return static_cast<unsigned char>(mark * 16 + page % 16);
}

void WritePages(int directory_fd, uint64_t pages, unsigned mark) {
  std::string bytes;
  for (uint64_t i = 0; i < pages; ++i) bytes.append(4096, static_cast<char>(MarkOf(mark, i)));
  const base::UniqueFd fd(
      ::openat(directory_fd, "pages-1.img", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
  ASSERT_EQ(::write(fd.get(), bytes.data(), bytes.size()), static_cast<ssize_t>(bytes.size()));
}

base::UniqueFd MakeImages(const std::string& path, const std::vector<PagemapEntry>& entries,
                          unsigned mark) {
  base::UniqueFd fd = MakeDirectory(path);
  WriteEntries(fd.get(), entries);
  uint64_t pages = 0;
  for (const PagemapEntry& entry : entries) {
    if ((entry.flags & kPagePresent) != 0) pages += entry.pages;
  }
  if (pages > 0) WritePages(fd.get(), pages, mark);
  return fd;
}

void LinkParent(int directory_fd, const std::string& target) {
  ASSERT_EQ(::symlinkat(target.c_str(), directory_fd, "parent"), 0);
}

}  // namespace predump::images::testing
