#include "tests/support/temp_dir.h"

#include <errno.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "src/base/errors.h"

namespace predump::test_support {

absl::StatusOr<TempDir> TempDir::Create() {
  const char* parent = getenv("TMPDIR");
  std::string path = absl::StrCat(parent != nullptr ? parent : "/tmp", "/predump-test-XXXXXX");
  if (mkdtemp(path.data()) == nullptr) return base::ErrnoError(errno, "mkdtemp ", path);
  return TempDir(std::move(path));
}

TempDir::TempDir(TempDir&& other) noexcept : path_(std::exchange(other.path_, std::string())) {}

TempDir& TempDir::operator=(TempDir&& other) noexcept {
  if (this != &other) {
    Remove();
    path_ = std::exchange(other.path_, std::string());
  }
  return *this;
}

TempDir::~TempDir() { Remove(); }

void TempDir::Remove() {
  if (path_.empty()) return;
  const auto remove_one = [](const char* path, const struct stat*, int, struct FTW*) {
    if (::remove(path) != 0) perror(path);
    return 0;  // the rest all the same
  };
  nftw(path_.c_str(), remove_one, 16, FTW_DEPTH | FTW_PHYS | FTW_MOUNT);
  path_.clear();
}

std::string TempDir::File(absl::string_view name) const { return absl::StrCat(path_, "/", name); }

}  // namespace predump::test_support
