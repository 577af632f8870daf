// A directory that goes away with the test.
#ifndef PREDUMP_TESTS_SUPPORT_TEMP_DIR_H_
#define PREDUMP_TESTS_SUPPORT_TEMP_DIR_H_

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace predump::test_support {

// Owns a new directory (mode 0700) and removes it with all it holds. It never crosses a mount.
class TempDir {
 public:
  // Under TMPDIR, or /tmp.
  static absl::StatusOr<TempDir> Create();
  TempDir(TempDir&& other) noexcept;
  TempDir& operator=(TempDir&& other) noexcept;
  ~TempDir();

  const std::string& path() const { return path_; }
  // "<path>/<name>".
  std::string File(absl::string_view name) const;

 private:
  explicit TempDir(std::string path) : path_(std::move(path)) {}
  void Remove();

  std::string path_;
};

}  // namespace predump::test_support

#endif  // PREDUMP_TESTS_SUPPORT_TEMP_DIR_H_
