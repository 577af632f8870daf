#include "tests/restore/build_fixture.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <sched.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include "absl/strings/str_cat.h"
#include "src/base/unique_fd.h"

namespace predump::restore {

Report* g_report = nullptr;  // a signal handler can be told in no other way

void Handler(int number, siginfo_t* info, void*) {
  g_report->signals[number]++;
  g_report->signal_value = static_cast<uint64_t>(info->si_value.sival_int);
}

void Beat(Report* report, int index) {
  static thread_local uint64_t local = 0;
  double sum = 0;
  for (uint64_t i = 0;; ++i) {
    local += 1;
    sum += 0.5;
    asm volatile("" : "+x"(sum));
    if (sum != 0.5 * static_cast<double>(local)) report->wrong++;
    report->beats[index]++;
    if (i % 1024 == 0) ::sched_yield();
  }
}

void BeatAlone(Report* report) { Beat(report, 0); }

namespace {

criu::sk_opts_entry SocketOptions() {
  criu::sk_opts_entry options;
  options.set_so_sndbuf(212992);
  options.set_so_rcvbuf(212992);
  options.set_so_snd_tmo_sec(0);
  options.set_so_snd_tmo_usec(0);
  options.set_so_rcv_tmo_sec(0);
  options.set_so_rcv_tmo_usec(0);
  options.set_so_buf_lock(0);
  return options;
}

}  // namespace

criu::file_entry InetSocket(uint32_t type, uint32_t state, uint32_t port) {
  criu::file_entry file;
  file.set_type(criu::INETSK);
  criu::inet_sk_entry& socket = *file.mutable_isk();
  socket.set_ino(100 + port);
  socket.set_family(AF_INET);
  socket.set_type(type);
  socket.set_proto(type == SOCK_STREAM ? IPPROTO_TCP : IPPROTO_UDP);
  socket.set_state(state);
  socket.set_src_port(port);
  socket.set_dst_port(0);
  socket.set_flags(O_RDWR);
  socket.set_backlog(17);
  socket.add_src_addr(htonl(INADDR_LOOPBACK));
  socket.add_dst_addr(0);
  *socket.mutable_opts() = SocketOptions();
  return file;
}

criu::file_entry UnixSocket(uint32_t inode, uint32_t state, uint32_t peer,
                            const std::string& name) {
  criu::file_entry file;
  file.set_type(criu::UNIXSK);
  criu::unix_sk_entry& socket = *file.mutable_usk();
  socket.set_ino(inode);
  socket.set_type(SOCK_STREAM);
  socket.set_state(state);
  socket.set_flags(O_RDWR);
  socket.set_uflags(0);
  socket.set_backlog(5);
  socket.set_peer(peer);
  *socket.mutable_opts() = SocketOptions();
  socket.set_name(name);
  return file;
}

criu::file_entry PipeEnd(uint32_t pipe, uint32_t flags) {
  criu::file_entry file;
  file.set_type(criu::PIPE);
  file.mutable_pipe()->set_pipe_id(pipe);
  file.mutable_pipe()->set_flags(flags);
  return file;
}

uint32_t FreePort(int type) {
  const base::UniqueFd probe(::socket(AF_INET, type, 0));
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof(address);
  EXPECT_EQ(::bind(probe.get(), reinterpret_cast<sockaddr*>(&address), length), 0);
  EXPECT_EQ(::getsockname(probe.get(), reinterpret_cast<sockaddr*>(&address), &length), 0);
  return ntohs(address.sin_port);
}

std::string ReadSome(int fd) {
  char text[32768];
  const ssize_t got = ::read(fd, text, sizeof(text));
  return got < 0 ? absl::StrCat("errno ", errno) : std::string(text, static_cast<size_t>(got));
}

}  // namespace predump::restore
