// O_DIRECT reads in flight all the time, into the same buffer: a device writes these pages, which
// no page table tells of.
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#include <string>

#include "tests/workloads/pages.h"
#include "tests/workloads/workload.h"

namespace predump::workloads {
namespace {

constexpr uint64_t kFileSeed = 0xD10;

// A file whose page i holds PageBase(kFileSeed, i, 0), opened O_DIRECT.
int MakeFile(const std::string& path, size_t pages, std::byte* buffer, size_t buffer_pages) {
  const int flags = O_RDWR | O_CREAT | O_TRUNC | O_DIRECT | O_CLOEXEC;
  const int fd = Must(open(path.c_str(), flags, 0644), path.c_str());
  for (size_t first = 0; first < pages; first += buffer_pages) {
    for (size_t i = 0; i < buffer_pages; ++i) {
      FillPage(buffer + i * kPageBytes, PageBase(kFileSeed, first + i, 0));
    }
    const size_t bytes = buffer_pages * kPageBytes;
    Require(write(fd, buffer, bytes) == static_cast<ssize_t>(bytes), "write");
  }
  return fd;
}

int Main(int argc, char** argv) {
  Options options(argc, argv, "direct-io: O_DIRECT reads in flight, each checked");
  Workload workload("direct-io", options);
  const std::string file =
      options.Text("file", workload.report_path() + ".direct", "made here; not on tmpfs");
  const int64_t file_mib = options.Integer("file-mib", 16, "size of the file");
  const int64_t read_kib = options.Integer("read-kib", 1024, "size of each read");
  options.Done();
  const size_t buffer_pages = static_cast<size_t>(read_kib) / 4;
  const size_t file_pages = static_cast<size_t>(file_mib) * 256;
  if (buffer_pages < 1 || file_pages < buffer_pages) Die("the file must hold one read");

  auto* buffer = static_cast<std::byte*>(MapPages(buffer_pages));
  const size_t places = file_pages / buffer_pages;
  const int fd = MakeFile(file, places * buffer_pages, buffer, buffer_pages);
  Counter& bytes_read = workload.AddCounter("bytes_read");
  workload.AddCounter("memory_start") = reinterpret_cast<uint64_t>(buffer);
  workload.AddCounter("memory_bytes") = buffer_pages * kPageBytes;
  Random random(workload.seed());
  Heartbeat heartbeat(workload);
  while (!workload.StopRequested()) {
    heartbeat.Beat();
    const size_t first = random.Below(places) * buffer_pages;
    const iovec into = {buffer, buffer_pages * kPageBytes};
    const ssize_t got = preadv(fd, &into, 1, static_cast<off_t>(first * kPageBytes));
    if (got != static_cast<ssize_t>(into.iov_len)) {
      if (got == -1 && errno == EINTR) {
        workload.CountEintr("preadv");
        continue;
      }
      workload.Error("preadv gave %zd: %s", got, got == -1 ? strerror(errno) : "short");
      continue;
    }
    bytes_read += static_cast<uint64_t>(got);
    size_t wrong = 0;
    for (size_t i = 0; i < buffer_pages; ++i) {
      const uint64_t base = PageBase(kFileSeed, first + i, 0);
      wrong += FirstBadWord(buffer + i * kPageBytes, base) != kWordsPerPage ? 1 : 0;
    }
    if (wrong != 0) workload.Error("%zu of %zu pages read are wrong", wrong, buffer_pages);
  }
  return workload.Finish();
}

}  // namespace
}  // namespace predump::workloads

int main(int argc, char** argv) { return predump::workloads::Main(argc, argv); }
