// Pipes and socketpairs with something in them, both ends here.
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>

#include "tests/workloads/holdings.h"

namespace predump::workloads {
namespace {

// Byte `position` of a stream.
char StreamByte(uint64_t position) {
  return static_cast<char>((position * 0x9E3779B97F4A7C15u) >> 56);
}

struct Ends {
  int first;
  int second;
};

Ends MakePipe(int flags) {
  int ends[2];
  Must(pipe2(ends, flags), "pipe2");
  return {ends[0], ends[1]};
}

Ends MakeStreamPair() {
  int ends[2];
  Must(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends), "socketpair");
  return {ends[0], ends[1]};
}

// An endless stream of known bytes through a pipe or stream socket that always holds `fill` bytes.
class FilledStream : public Holding {
 public:
  FilledStream(const HoldingContext& context, const char* name, Ends ends, size_t fill)
      : context_(context), name_(name), reader_(ends.first), writer_(ends.second), fill_(fill) {
    Write(fill);
  }

  void Verify(uint64_t iteration) override {
    int queued = 0;
    ioctl(reader_, FIONREAD, &queued);
    context_.CheckEqual(queued, static_cast<int64_t>(fill_), name_);
    // Odd lengths, so that boundaries wander through buffers and pages.
    const size_t count = std::min<size_t>(fill_, 1 + iteration * 37 % 499);
    Read(count);
    Write(count);
  }

  void Final() override {
    Read(fill_);
    char byte;
    context_.Check(read(reader_, &byte, 1) == -1 && errno == EAGAIN, "more than was written");
  }

 protected:
  void Read(size_t count) {
    std::array<char, 4096> buffer;
    while (count > 0) {
      const ssize_t got = read(reader_, buffer.data(), std::min(count, buffer.size()));
      if (got <= 0) {
        context_.workload().Error("%s: read gave %zd: %s", name_, got, strerror(errno));
        return;
      }
      for (ssize_t i = 0; i < got; ++i) {
        if (buffer[static_cast<size_t>(i)] == StreamByte(read_++)) continue;
        context_.workload().Error("%s: byte %lu is wrong", name_, read_ - 1);
        break;
      }
      count -= static_cast<size_t>(got);
    }
  }

  void Write(size_t count) {
    std::array<char, 4096> buffer;
    while (count > 0) {
      const size_t size = std::min(count, buffer.size());
      for (size_t i = 0; i < size; ++i) buffer[i] = StreamByte(written_ + i);
      const ssize_t put = write(writer_, buffer.data(), size);
      if (put <= 0) {
        context_.workload().Error("%s: write gave %zd: %s", name_, put, strerror(errno));
        return;
      }
      written_ += static_cast<uint64_t>(put);
      count -= static_cast<size_t>(put);
    }
  }

  const HoldingContext context_;
  const char* name_;
  int reader_;
  int writer_;
  size_t fill_;
  uint64_t written_ = 0;
  uint64_t read_ = 0;
};

// Filled to the last byte, of a size of its own.
class FullPipe : public FilledStream {
 public:
  FullPipe(const HoldingContext& context, Ends ends)
      : FilledStream(context, "full-pipe", ends, MakeLarge(ends)) {}

  void Verify(uint64_t iteration) override {
    context_.CheckEqual(fcntl(writer_, F_GETPIPE_SZ), kBytes, "size of a pipe");
    context_.Check(write(writer_, "x", 1) == -1 && errno == EAGAIN, "the pipe is not full");
    int queued = 0;
    ioctl(reader_, FIONREAD, &queued);
    context_.CheckEqual(queued, kBytes, "content of the full pipe");
    if (iteration % 16 != 0) return;
    Read(8192);
    Write(8192);
  }

 private:
  static constexpr int kBytes = 128 << 10;
  static size_t MakeLarge(Ends ends) {
    Must(fcntl(ends.second, F_SETPIPE_SZ, kBytes), "F_SETPIPE_SZ");
    return kBytes;
  }
};

// Messages of different lengths waiting in both directions of a socketpair; boundaries are kept.
class QueuedMessages : public Holding {
 public:
  QueuedMessages(const HoldingContext& context, const char* name, int type)
      : context_(context), name_(name), pass_credentials_(context.Wants("credentials")) {
    Must(socketpair(AF_UNIX, type | SOCK_NONBLOCK, 0, ends_), "socketpair");
    const int size = 100'000;
    Must(setsockopt(ends_[1], SOL_SOCKET, SO_SNDBUF, &size, sizeof size), "SO_SNDBUF");
    send_buffer_ = Option(ends_[1], SO_SNDBUF);
    const int on = pass_credentials_ ? 1 : 0;
    Must(setsockopt(ends_[0], SOL_SOCKET, SO_PASSCRED, &on, sizeof on), "SO_PASSCRED");
    for (int direction = 0; direction < 2; ++direction) {
      for (int i = 0; i < kQueued; ++i) Send(direction);
    }
  }

  void Verify(uint64_t) override {
    for (int direction = 0; direction < 2; ++direction) {
      Receive(direction);
      Send(direction);
    }
    context_.CheckEqual(Option(ends_[1], SO_SNDBUF), send_buffer_, "SO_SNDBUF");
    context_.CheckEqual(Option(ends_[0], SO_PASSCRED), pass_credentials_ ? 1 : 0, "SO_PASSCRED");
    context_.CheckEqual(Option(ends_[1], SO_PASSCRED), 0, "SO_PASSCRED of the other end");
  }

  void Final() override {
    for (int direction = 0; direction < 2; ++direction) {
      for (int i = 0; i < kQueued; ++i) Receive(direction);
      char byte;
      context_.Check(recv(ends_[direction], &byte, 1, 0) == -1 && errno == EAGAIN,
                     "more messages than were sent");
    }
  }

 private:
  static constexpr int kQueued = 4;

  static int Option(int fd, int option) {
    int value = -1;
    socklen_t size = sizeof value;
    getsockopt(fd, SOL_SOCKET, option, &value, &size);
    return value;
  }
  static size_t Length(uint64_t number) { return 1 + number * 211 % 1500; }

  void Send(int direction) {
    const uint64_t number = sent_[direction]++;
    std::array<char, 1500> message;
    message.fill(StreamByte(number));
    const ssize_t size = send(ends_[1 - direction], message.data(), Length(number), 0);
    context_.CheckEqual(size, static_cast<int64_t>(Length(number)), name_);
  }

  void Receive(int direction) {
    const uint64_t number = received_[direction]++;
    std::array<char, 1600> message;
    const ssize_t size = recv(ends_[direction], message.data(), message.size(), 0);
    if (!context_.CheckEqual(size, static_cast<int64_t>(Length(number)), name_)) return;
    for (ssize_t i = 0; i < size; ++i) {
      if (message[static_cast<size_t>(i)] == StreamByte(number)) continue;
      context_.workload().Error("%s: message %lu is wrong", name_, number);
      return;
    }
  }

  const HoldingContext context_;
  const char* name_;
  const bool pass_credentials_;  // with each message
  int ends_[2] = {-1, -1};
  int send_buffer_ = 0;
  uint64_t sent_[2] = {};
  uint64_t received_[2] = {};
};

// One direction shut down, with data before the end of file.
class HalfClosedPair : public Holding {
 public:
  explicit HalfClosedPair(const HoldingContext& context) : context_(context) {
    int ends[2];
    Must(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, ends), "socketpair");
    reader_ = ends[0];
    writer_ = ends[1];
    Require(write(writer_, "last words", 10) == 10, "write");
    Must(shutdown(writer_, SHUT_WR), "shutdown");
  }

  void Verify(uint64_t) override {
    char text[16];
    context_.CheckEqual(recv(reader_, text, sizeof text, MSG_PEEK), 10,
                        "what was sent before shutdown");
    context_.Check(send(writer_, "x", 1, MSG_NOSIGNAL) == -1 && errno == EPIPE,
                   "a shut down socket sends");
    context_.CheckEqual(send(reader_, "y", 1, 0), 1, "send the other way");
    context_.CheckEqual(recv(writer_, text, sizeof text, 0), 1, "receive the other way");
  }

  void Final() override {
    char text[16];
    context_.CheckEqual(recv(reader_, text, sizeof text, 0), 10, "what was sent before shutdown");
    context_.CheckEqual(recv(reader_, text, sizeof text, 0), 0, "end of file after shutdown");
  }

 private:
  const HoldingContext context_;
  int reader_ = -1;
  int writer_ = -1;
};

}  // namespace

Holdings MakePipeHoldings(const HoldingContext& context) {
  Holdings holdings;
  if (context.Wants("filled-pipe")) {
    holdings.push_back(std::make_unique<FilledStream>(context, "filled-pipe",
                                                      MakePipe(O_NONBLOCK | O_CLOEXEC), 9'000));
  }
  if (context.Wants("full-pipe")) {
    holdings.push_back(std::make_unique<FullPipe>(context, MakePipe(O_NONBLOCK)));
  }
  if (context.Wants("stream-pair")) {
    holdings.push_back(
        std::make_unique<FilledStream>(context, "stream-pair", MakeStreamPair(), 7'000));
  }
  if (context.Wants("datagram-pair")) {
    holdings.push_back(std::make_unique<QueuedMessages>(context, "datagram-pair", SOCK_DGRAM));
  }
  if (context.Wants("seqpacket-pair")) {
    holdings.push_back(std::make_unique<QueuedMessages>(context, "seqpacket-pair", SOCK_SEQPACKET));
  }
  if (context.Wants("half-closed-pair")) {
    holdings.push_back(std::make_unique<HalfClosedPair>(context));
  }
  return holdings;
}

}  // namespace predump::workloads
