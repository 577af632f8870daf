// A core file on a file system: sparse, and there whole or not at all.
#ifndef PREDUMP_CORE_FILE_OUTPUT_H_
#define PREDUMP_CORE_FILE_OUTPUT_H_

#include <memory>
#include <string>
#include <utility>

#include "src/base/unique_fd.h"
#include "src/core/output.h"

namespace predump::core {

// Whether the file has a name before it is whole.
enum class Aside {
  kUnnamed,  // none (O_TMPFILE), where the file system can: even our sudden death leaves nothing
  kNamed,    // ".predump-PID-TIME.tmp" beside it
};

class FileOutput final : public Output {
 public:
  // Errors: from errno, with the path.
  static absl::StatusOr<std::unique_ptr<Output>> Create(const std::string& path,
                                                        Aside aside = Aside::kUnnamed);
  // Takes away what was not finished.
  ~FileOutput() override;

  absl::Status Write(uint64_t offset, std::span<const std::byte> bytes) override;
  // A splice from the source's pipe into the file: nothing passes through our memory.
  absl::Status Take(pagemap::PageSource& source, std::span<const Placement> placements) override;
  base::ByteCount max_bytes() const override { return pipe_.capacity(); }
  absl::Status Finish(uint64_t size) override;

 private:
  FileOutput(std::string path, kernel::PipePair pipe)
      : path_(std::move(path)), pipe_(std::move(pipe)) {}

  absl::Status OpenAside(Aside aside);
  absl::Status SeekTo(uint64_t offset) const;
  // In words that tell the file and what is to be done.
  absl::Status Explain(const absl::Status& status) const;

  std::string path_;
  std::string name_;        // in its directory
  std::string aside_name_;  // so too
  base::UniqueFd directory_;
  base::UniqueFd fd_;
  kernel::PipePair pipe_;  // where pages that go to several places wait
  bool named_ = false;     // aside_name_ exists
};

}  // namespace predump::core

#endif  // PREDUMP_CORE_FILE_OUTPUT_H_
