// Image directories for tests: pagemaps as told, also wrong ones, and pages that say where they
// are.
#ifndef PREDUMP_TESTS_IMAGES_STORED_PAGES_H_
#define PREDUMP_TESTS_IMAGES_STORED_PAGES_H_

#include <cstdint>
#include <string>
#include <vector>

#include "src/base/unique_fd.h"
#include "src/images/pagemap_image.h"

namespace predump::images::testing {

inline constexpr PagesOf kTask{PagesOf::Kind::kTask, 7};

// Makes the directory where it is not there; aborts where that fails.
base::UniqueFd MakeDirectory(const std::string& path);

// pagemap-7.img with these entries, whatever is wrong with them.
void WriteEntries(int directory_fd, const std::vector<PagemapEntry>& entries,
                  const PagesOf& of = kTask);

// pages-1.img with `pages` pages, each filled with MarkOf(mark, its number in the file).
void WritePages(int directory_fd, uint64_t pages, unsigned mark);
unsigned char MarkOf(unsigned mark, uint64_t page);

// A directory as a writer leaves it: the entries, and all present pages with `mark`.
base::UniqueFd MakeImages(const std::string& path, const std::vector<PagemapEntry>& entries,
                          unsigned mark);

// `parent` in `directory_fd` leads to `target`.
void LinkParent(int directory_fd, const std::string& target);

}  // namespace predump::images::testing

#endif  // PREDUMP_TESTS_IMAGES_STORED_PAGES_H_
