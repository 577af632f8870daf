// Where a fuzz target keeps files: in memory, made once, removed at the end.
#ifndef PREDUMP_TESTS_FUZZ_SCRATCH_DIRECTORY_H_
#define PREDUMP_TESTS_FUZZ_SCRATCH_DIRECTORY_H_

#include <stdlib.h>

#include <cstdlib>
#include <filesystem>
#include <string>

namespace predump {

class ScratchDirectory {
 public:
  ScratchDirectory() {
    if (::mkdtemp(path_.data()) == nullptr) std::abort();
  }
  ~ScratchDirectory() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  ScratchDirectory(const ScratchDirectory&) = delete;
  ScratchDirectory& operator=(const ScratchDirectory&) = delete;

  const std::string& path() const { return path_; }

 private:
  std::string path_ = "/dev/shm/predump-fuzz-XXXXXX";
};

}  // namespace predump

#endif  // PREDUMP_TESTS_FUZZ_SCRATCH_DIRECTORY_H_
