#include "src/checkpoint/pipe_capture.h"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <cerrno>
#include <map>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "src/base/errors.h"
#include "src/base/unique_fd.h"

namespace predump::checkpoint {
namespace {

struct PipeEnds {
  const Descriptor* reader = nullptr;
  const Descriptor* writer = nullptr;
};

bool Reads(const Descriptor& end) { return (end.flags() & O_ACCMODE) != O_WRONLY; }
bool Writes(const Descriptor& end) { return (end.flags() & O_ACCMODE) != O_RDONLY; }

// Everything in `pipe` (a pipe of ours), in the portions read(2) gives: packets where they are kept
// apart.
absl::Status Drain(int pipe, size_t bytes, bool packets, proto::PipeData& data) {
  std::string& out = *data.mutable_data();
  out.resize(bytes);
  size_t have = 0;
  while (have < bytes) {
    const ssize_t n = ::read(pipe, out.data() + have, bytes - have);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return base::ErrnoError(errno, "read of a copied pipe");
    if (n == 0) return absl::DataLossError("a copied pipe ended early");
    if (packets) data.add_packet_bytes(static_cast<uint32_t>(n));
    have += static_cast<size_t>(n);
  }
  return absl::OkStatus();
}

absl::Status CopyContents(const Descriptor& reader, bool packets, size_t bytes, int capacity,
                          proto::PipeData& data) {
  int ends[2];
  // Packet buffers stay packets in the copy, whatever its own mode.
  if (::pipe2(ends, O_CLOEXEC | O_NONBLOCK) != 0) return base::ErrnoError(errno, "pipe2");
  const base::UniqueFd copy_reader(ends[0]);
  const base::UniqueFd copy_writer(ends[1]);
  if (::fcntl(copy_writer.get(), F_SETPIPE_SZ, capacity) < 0) {
    return base::ErrnoError(errno, "F_SETPIPE_SZ ", capacity);
  }
  const ssize_t copied = ::tee(reader.duplicate.get(), copy_writer.get(), bytes, SPLICE_F_NONBLOCK);
  if (copied < 0) return base::ErrnoError(errno, "tee of ", reader.name());
  if (static_cast<size_t>(copied) != bytes) {
    return absl::DataLossError(
        absl::StrCat("tee of ", reader.name(), ": ", copied, " of ", bytes, " bytes"));
  }
  return Drain(copy_reader.get(), bytes, packets, data);
}

absl::Status AddContents(FileContext& context, uint32_t pipe_id, const PipeEnds& ends) {
  const int reader = ends.reader->duplicate.get();
  int bytes = 0;
  if (::ioctl(reader, FIONREAD, &bytes) != 0) return base::ErrnoError(errno, "FIONREAD");
  const int capacity = ::fcntl(reader, F_GETPIPE_SZ);
  if (capacity < 0) return base::ErrnoError(errno, "F_GETPIPE_SZ");
  proto::PipeData& data = *context.state.add_pipes();
  data.mutable_entry()->set_pipe_id(pipe_id);
  data.mutable_entry()->set_size(static_cast<uint32_t>(capacity));
  data.mutable_entry()->set_bytes(context.frozen ? static_cast<uint32_t>(bytes) : 0);
  if (!context.frozen || bytes == 0) return absl::OkStatus();
  const bool packets = (ends.writer->flags() & O_DIRECT) != 0;
  return CopyContents(*ends.reader, packets, static_cast<size_t>(bytes), capacity, data);
}

}  // namespace

absl::StatusOr<uint32_t> AddPipeEnd(FileContext& context, const Descriptor& descriptor) {
  criu::file_entry entry;
  auto& body = StartEntry(entry, criu::PIPE, entry.mutable_pipe(), descriptor);
  body.set_pipe_id(static_cast<uint32_t>(descriptor.stat.st_ino));
  return context.files.builder().AddFile(std::move(entry));
}

absl::Status FillPipes(FileContext& context) {
  std::map<uint32_t, PipeEnds> pipes;
  for (size_t i = 0; i < context.descriptors.size(); ++i) {
    const Descriptor& end = context.descriptors[i];
    if (end.shares_with != i || context.file_ids[i] == 0) continue;
    const criu::file_entry& file = context.state.files(static_cast<int>(context.file_ids[i]) - 1);
    if (file.type() != criu::PIPE) continue;
    PipeEnds& ends = pipes[file.pipe().pipe_id()];
    if (Reads(end)) ends.reader = &end;
    if (Writes(end)) ends.writer = &end;
  }
  for (const auto& [id, ends] : pipes) {
    if (ends.reader != nullptr && ends.writer != nullptr) {
      PREDUMP_RETURN_IF_ERROR(AddContents(context, id, ends));
      continue;
    }
    const Descriptor& end = ends.reader != nullptr ? *ends.reader : *ends.writer;
    context.blockers.Add(end.name(),
                         absl::StrCat("a pipe whose ", ends.reader != nullptr ? "write" : "read",
                                      " end is not in the process"),
                         "start the program with its output in a file");
  }
  return absl::OkStatus();
}

}  // namespace predump::checkpoint
