#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <set>
#include <string>

#include "tests/workloads/holdings.h"

namespace predump::workloads {
namespace {

constexpr size_t kRecordBytes = 64;
using FileRecord = std::array<char, kRecordBytes>;

// Record `number` of a file: fixed length, ends in a newline.
FileRecord MakeRecord(uint64_t number, uint64_t seed) {
  FileRecord record;
  record.fill('.');
  const std::string text = "record " + std::to_string(number) + " " +
                           std::to_string(number * 0x9E3779B97F4A7C15u ^ seed);
  std::copy(text.begin(), text.end(), record.begin());
  record.back() = '\n';
  return record;
}

int OpenNew(const std::string& path, int flags) {
  return Must(open(path.c_str(), O_CREAT | O_TRUNC | flags, 0644), path.c_str());
}

// A file written record by record through the description's own offset, read back at random.
class WrittenFile : public Holding {
 public:
  WrittenFile(const HoldingContext& context, const char* name, int flags, int descriptors)
      : context_(context), random_(context.workload().seed()), appending_((flags & O_APPEND) != 0) {
    path_ = context.File(name);
    descriptors_.push_back(OpenNew(path_, O_RDWR | flags));
    // The same description under more numbers, with a gap, as `2>&1` makes it.
    for (int i = 1; i < descriptors; ++i) {
      descriptors_.push_back(Must(fcntl(descriptors_[0], F_DUPFD, 100 * i + 17), "F_DUPFD"));
    }
    Must(fstat(descriptors_[0], &born_), "fstat");
  }

  void Verify(uint64_t) override {
    const auto expected = static_cast<int64_t>(records_ * kRecordBytes);
    for (const int fd : descriptors_) {
      context_.CheckEqual(lseek(fd, 0, SEEK_CUR), expected, "offset of a written file");
    }
    const int fd = descriptors_[records_ % descriptors_.size()];
    if (appending_) {
      // Wherever the offset is, O_APPEND writes at the end.
      Must(lseek(fd, 0, SEEK_SET), "lseek");
    }
    const FileRecord record = MakeRecord(records_, 0);
    context_.CheckEqual(write(fd, record.data(), record.size()), kRecordBytes, "write");
    ++records_;
    CheckRecord(random_.Below(records_));
    struct stat status = {};
    fstat(fd, &status);
    context_.CheckEqual(status.st_size, static_cast<int64_t>(records_ * kRecordBytes), "file size");
    context_.Check(status.st_ino == born_.st_ino && status.st_dev == born_.st_dev,
                   "another file is open");
  }

  void Final() override {
    for (uint64_t i = 0; i < records_; ++i) CheckRecord(i);
    // Under its name is the same file.
    struct stat status = {};
    context_.Check(stat(path_.c_str(), &status) == 0 && status.st_ino == born_.st_ino,
                   "the name leads to another file");
  }

 private:
  void CheckRecord(uint64_t number) {
    FileRecord found;
    const ssize_t size = pread(descriptors_[0], found.data(), found.size(),
                               static_cast<off_t>(number * kRecordBytes));
    context_.Check(size == kRecordBytes && found == MakeRecord(number, 0), "a record is wrong");
  }

  const HoldingContext context_;
  Random random_;
  const bool appending_;
  std::string path_;
  std::vector<int> descriptors_;
  struct stat born_;
  uint64_t records_ = 0;
};

// The same file opened twice: two descriptions, each with its own offset; one of them read-only.
class TwoDescriptions : public Holding {
 public:
  explicit TwoDescriptions(const HoldingContext& context) : context_(context) {
    const std::string path = context.File("read-twice");
    const int writer = OpenNew(path, O_WRONLY);
    for (uint64_t i = 0; i < kRecords; ++i) {
      const FileRecord record = MakeRecord(i, 7);
      Require(write(writer, record.data(), record.size()) == kRecordBytes, "write");
    }
    Must(close(writer), "close");
    slow_ = Must(open(path.c_str(), O_RDONLY), "open");
    fast_ = Must(open(path.c_str(), O_RDWR | O_CLOEXEC), "open");
  }

  void Verify(uint64_t iteration) override {
    if (iteration % 3 == 0) Read(slow_, slow_next_);
    Read(fast_, fast_next_);
    context_.Check(write(slow_, "x", 1) == -1 && errno == EBADF, "a read-only file was written");
  }

 private:
  static constexpr uint64_t kRecords = 500;

  void Read(int fd, uint64_t& next) {
    FileRecord found;
    context_.Check(
        read(fd, found.data(), found.size()) == kRecordBytes && found == MakeRecord(next, 7),
        "sequential read found another record");
    if (++next < kRecords) return;
    next = 0;
    Must(lseek(fd, 0, SEEK_SET), "lseek");
  }

  const HoldingContext context_;
  int slow_ = -1;
  int fast_ = -1;
  uint64_t slow_next_ = 0;
  uint64_t fast_next_ = 0;
};

// A directory being listed a few names at a time.
class DirectoryListing : public Holding {
 public:
  explicit DirectoryListing(const HoldingContext& context) : context_(context) {
    const std::string path = context.File("listed");
    if (mkdir(path.c_str(), 0755) == -1 && errno != EEXIST) Must(-1, path.c_str());
    for (int i = 0; i < 300; ++i) {
      const std::string entry = "entry-" + std::to_string(i);
      expected_.insert(entry);
      Must(close(OpenNew(path + "/" + entry, O_WRONLY)), "close");
    }
    fd_ = Must(open(path.c_str(), O_RDONLY | O_DIRECTORY), path.c_str());
  }

  void Verify(uint64_t) override {
    alignas(8) char buffer[256];
    const long size = syscall(SYS_getdents64, fd_, buffer, sizeof buffer);
    if (!context_.Check(size >= 0, "getdents64", true)) return;
    for (long at = 0; at < size;) {
      unsigned short length;
      memcpy(&length, buffer + at + 16, sizeof length);  // d_reclen
      const std::string entry = buffer + at + 19;        // d_name
      if (entry[0] != '.') {
        context_.Check(seen_.insert(entry).second, "a directory entry came twice");
      }
      at += length;
    }
    if (size > 0) return;
    std::set<std::string> missing = expected_;
    for (const std::string& entry : seen_) missing.erase(entry);
    if (!missing.empty()) {
      context_.workload().Error(
          "a directory was not listed whole: %zu of %zu names missing, %s ...", missing.size(),
          expected_.size(), missing.begin()->c_str());
    }
    seen_.clear();
    Must(lseek(fd_, 0, SEEK_SET), "lseek");
  }

 private:
  const HoldingContext context_;
  std::set<std::string> expected_;
  std::set<std::string> seen_;
  int fd_ = -1;
};

class Devices : public Holding {
 public:
  explicit Devices(const HoldingContext& context)
      : context_(context),
        null_(Must(open("/dev/null", O_RDWR), "/dev/null")),
        zero_(Must(open("/dev/zero", O_RDONLY | O_CLOEXEC), "/dev/zero")),
        full_(Must(open("/dev/full", O_WRONLY), "/dev/full")),
        random_(Must(open("/dev/urandom", O_RDONLY), "/dev/urandom")) {}

  void Verify(uint64_t) override {
    std::array<char, 64> buffer;
    context_.CheckEqual(write(null_, "x", 1), 1, "write to /dev/null");
    context_.CheckEqual(read(null_, buffer.data(), 1), 0, "read of /dev/null");
    buffer.fill('x');
    context_.CheckEqual(read(zero_, buffer.data(), buffer.size()), 64, "read of /dev/zero");
    context_.Check(std::count(buffer.begin(), buffer.end(), 0) == 64, "/dev/zero is not zero");
    context_.Check(write(full_, "x", 1) == -1 && errno == ENOSPC, "/dev/full is not full");
    context_.CheckEqual(read(random_, buffer.data(), buffer.size()), 64, "read of /dev/urandom");
    context_.Check(std::count(buffer.begin(), buffer.end(), 0) < 32, "/dev/urandom is zero");
  }

 private:
  const HoldingContext context_;
  int null_, zero_, full_, random_;
};

// Working directory and file mode creation mask, by what they do.
class Surroundings : public Holding {
 public:
  explicit Surroundings(const HoldingContext& context) : context_(context) {
    Must(chdir(context.settings().directory.c_str()), "chdir");
    path_ = CurrentDirectory();
    umask(kMask);
  }

  void Verify(uint64_t iteration) override {
    context_.CheckEqual(CurrentDirectory(), path_, "working directory");
    const mode_t mask = umask(kMask);
    context_.CheckEqual(mask, kMask, "umask");
    if (iteration % 64 != 0) return;
    const int fd = open("made-here", O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0777);
    if (!context_.Check(fd >= 0, "open of a relative path", true)) return;
    struct stat status = {};
    fstat(fd, &status);
    context_.CheckEqual(status.st_mode & 0777, 0777 & ~kMask, "mode of a new file");
    close(fd);
    context_.Check(unlink((path_ + "/made-here").c_str()) == 0, "unlink", true);
  }

 private:
  static constexpr mode_t kMask = 0137;

  static std::string CurrentDirectory() {
    std::array<char, 4096> buffer;
    return getcwd(buffer.data(), buffer.size()) != nullptr ? buffer.data() : "";
  }

  const HoldingContext context_;
  std::string path_;
};

// Everything in the descriptor table as fcntl and /proc see it.
class DescriptorTable : public Holding {
 public:
  explicit DescriptorTable(const HoldingContext& context)
      : context_(context),
        compared_flags_(context.Wants("directory-flag") ? ~0 : ~O_DIRECTORY),
        expected_(List()) {}

  void Verify(uint64_t) override {
    const std::vector<Entry> found = List();
    if (found == expected_) return;
    for (const Entry& entry : expected_) {
      if (std::find(found.begin(), found.end(), entry) != found.end()) continue;
      context_.workload().Error("descriptor %d (flags %#x, %#x, %s) is gone or changed",
                                entry.number, entry.flags, entry.status, entry.target.c_str());
    }
    for (const Entry& entry : found) {
      if (std::find(expected_.begin(), expected_.end(), entry) != expected_.end()) continue;
      context_.workload().Error("descriptor %d (flags %#x, %#x, %s) is new or changed",
                                entry.number, entry.flags, entry.status, entry.target.c_str());
    }
    expected_ = found;
  }

 private:
  struct Entry {
    int number;
    int flags;
    int status;
    std::string target;
    bool operator==(const Entry&) const = default;
  };

  // Without the descriptor it is read through.
  std::vector<Entry> List() const {
    std::vector<Entry> entries;
    const int directory = Must(open("/proc/self/fd", O_RDONLY | O_DIRECTORY), "/proc/self/fd");
    alignas(8) char buffer[4096];
    long size;
    while ((size = syscall(SYS_getdents64, directory, buffer, sizeof buffer)) > 0) {
      for (long at = 0; at < size;) {
        unsigned short length;
        memcpy(&length, buffer + at + 16, sizeof length);
        const char* number = buffer + at + 19;
        if (number[0] != '.' && atoi(number) != directory)
          entries.push_back(Describe(atoi(number)));
        at += length;
      }
    }
    close(directory);
    return entries;
  }

  Entry Describe(int fd) const {
    std::array<char, 4096> target;
    const std::string link = "/proc/self/fd/" + std::to_string(fd);
    const ssize_t size = readlink(link.c_str(), target.data(), target.size());
    std::string text(target.data(), size > 0 ? static_cast<size_t>(size) : 0);
    // Inode numbers of pipes and sockets differ between hosts.
    if (text[0] != '/' && !text.starts_with("anon_inode")) text.resize(text.find(':'));
    return {fd, fcntl(fd, F_GETFD), fcntl(fd, F_GETFL) & compared_flags_, std::move(text)};
  }

  const HoldingContext context_;
  const int compared_flags_;  // of F_GETFL
  std::vector<Entry> expected_;
};

}  // namespace

Holdings MakeFileHoldings(const HoldingContext& context) {
  Holdings holdings;
  if (context.Wants("written-file")) {
    holdings.push_back(std::make_unique<WrittenFile>(context, "written", 0, 3));
  }
  if (context.Wants("append-log")) {
    holdings.push_back(std::make_unique<WrittenFile>(context, "log", O_APPEND | O_CLOEXEC, 1));
  }
  if (context.Wants("two-descriptions")) {
    holdings.push_back(std::make_unique<TwoDescriptions>(context));
  }
  if (context.Wants("directory-listing")) {
    holdings.push_back(std::make_unique<DirectoryListing>(context));
  }
  if (context.Wants("devices")) holdings.push_back(std::make_unique<Devices>(context));
  if (context.Wants("surroundings")) holdings.push_back(std::make_unique<Surroundings>(context));
  return holdings;
}

std::unique_ptr<Holding> MakeDescriptorTable(const HoldingContext& context) {
  return std::make_unique<DescriptorTable>(context);
}

}  // namespace predump::workloads
