// make-compressible FILE MIB SEED: a file that compresses well but not trivially, the same from the
// same seed.
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <string>
#include <vector>

#include "tests/workloads/workload.h"

namespace predump::workloads {
namespace {

int Main(int argc, char** argv) {
  char* end = nullptr;
  const int64_t mib = argc == 4 ? strtoll(argv[2], &end, 10) : -1;
  if (mib < 0 || *end != '\0') Die("usage: make-compressible FILE MIB SEED");
  Random random(strtoull(argv[3], nullptr, 10));

  // Text of words from a small vocabulary, with numbers between.
  std::vector<std::string> words;
  for (int i = 0; i < 2000; ++i) {
    std::string word;
    for (uint64_t length = 2 + random.Below(9); length > 0; --length) {
      word += static_cast<char>('a' + random.Below(26));
    }
    words.push_back(word + ' ');
  }
  const int fd = Must(open(argv[1], O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644), argv[1]);
  constexpr size_t kMib = 1 << 20;
  std::string block;
  for (int64_t i = 0; i < mib; ++i) {
    while (block.size() < kMib) {
      block += random.Below(16) == 0 ? std::to_string(random.Next()) + "\n"
                                     : words[random.Below(words.size())];
    }
    Require(write(fd, block.data(), kMib) == static_cast<ssize_t>(kMib), "write");
    block.erase(0, kMib);
  }
  Must(close(fd), "close");
  return 0;
}

}  // namespace
}  // namespace predump::workloads

int main(int argc, char** argv) { return predump::workloads::Main(argc, argv); }
