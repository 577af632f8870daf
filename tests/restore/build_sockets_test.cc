// Sockets of a process that was built.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <string>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "src/base/unique_fd.h"
#include "src/images/image_constants.h"
#include "tests/restore/build_fixture.h"

namespace predump::restore {
namespace {

TEST_F(BuildTest, SocketsListenAreBoundAndHoldWhatWasQueued) {
  ASSERT_NO_FATAL_FAILURE(Prepare(BeatAlone));
  const uint32_t tcp_port = FreePort(SOCK_STREAM);
  const uint32_t udp_port = FreePort(SOCK_DGRAM);
  const std::string path = directory_->File("listener");
  {
    // A socket file that its owner left behind is no obstacle.
    const base::UniqueFd dead(::socket(AF_UNIX, SOCK_STREAM, 0));
    sockaddr_un address = {};
    address.sun_family = AF_UNIX;
    strcpy(address.sun_path, path.c_str());
    ASSERT_EQ(::bind(dead.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  }
  AddDescriptor(state_, 3, InetSocket(SOCK_STREAM, images::kSocketListening, tcp_port));
  AddDescriptor(state_, 4, InetSocket(SOCK_DGRAM, images::kSocketClosed, udp_port));
  const uint32_t closed =
      AddDescriptor(state_, 5, InetSocket(SOCK_STREAM, images::kSocketEstablished, tcp_port));
  proto::FileExtra& extra = *state_.add_file_extras();
  extra.set_id(closed);
  extra.set_tcp_closed(true);
  criu::file_entry listener =
      UnixSocket(201, images::kSocketListening, 0, path + std::string(1, '\0'));
  listener.mutable_usk()->mutable_file_perms()->set_mode(0620);
  listener.mutable_usk()->mutable_file_perms()->set_uid(12);
  listener.mutable_usk()->mutable_file_perms()->set_gid(34);
  AddDescriptor(state_, 6, listener);
  const uint32_t left = AddDescriptor(state_, 7, UnixSocket(202, images::kSocketEstablished, 203));
  criu::file_entry right = UnixSocket(203, images::kSocketEstablished, 202);
  right.mutable_usk()->set_shutdown(criu::WRITE);
  // Made smaller after it had sent more.
  constexpr uint32_t kSmallestBuffer = 4608;
  right.mutable_usk()->mutable_opts()->set_so_sndbuf(kSmallestBuffer);
  right.mutable_usk()->mutable_opts()->set_so_buf_lock(1);  // SOCK_SNDBUF_LOCK
  const std::string content(20'000, 'q');
  AddDescriptor(state_, 8, right);
  proto::SocketPacket& packet = *state_.add_packets();
  packet.mutable_entry()->set_id_for(left);
  packet.mutable_entry()->set_length(static_cast<uint32_t>(content.size()));
  packet.set_data(content);
  const absl::Status built = Build();
  ASSERT_TRUE(built.ok()) << built;

  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  address.sin_port = htons(static_cast<uint16_t>(tcp_port));
  const base::UniqueFd client(::socket(AF_INET, SOCK_STREAM, 0));
  EXPECT_EQ(::connect(client.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  int reuse = -1;
  socklen_t length = sizeof(reuse);
  ::getsockopt(Descriptor(3).get(), SOL_SOCKET, SO_REUSEADDR, &reuse, &length);
  EXPECT_EQ(reuse, 0) << "borrowed for bind, and put back";
  address.sin_port = htons(static_cast<uint16_t>(udp_port));
  const base::UniqueFd sender(::socket(AF_INET, SOCK_DGRAM, 0));
  EXPECT_EQ(
      ::sendto(sender.get(), "udp", 3, 0, reinterpret_cast<sockaddr*>(&address), sizeof(address)),
      3);
  EXPECT_EQ(ReadSome(Descriptor(4).get()), "udp");
  EXPECT_EQ(ReadSome(Descriptor(5).get()), absl::StrCat("errno ", ENOTCONN));
  struct stat info;
  ASSERT_EQ(::stat(path.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 07777, 0620u);
  EXPECT_EQ(info.st_uid, 12u);
  const base::UniqueFd end = Descriptor(7);
  EXPECT_EQ(ReadSome(end.get()), content);
  uint32_t buffer = 0;
  length = sizeof buffer;
  ::getsockopt(Descriptor(8).get(), SOL_SOCKET, SO_SNDBUF, &buffer, &length);
  EXPECT_EQ(buffer, kSmallestBuffer);
  EXPECT_EQ(ReadSome(end.get()), "") << "the other end was shut down for writing";
  EXPECT_EQ(::send(end.get(), "back", 4, MSG_NOSIGNAL), 4);
  EXPECT_EQ(ReadSome(Descriptor(8).get()), "back");
}

void AddOption(proto::FileExtra& extra, int level, int name, int value) {
  proto::SocketOption& option = *extra.add_socket_options();
  option.set_level(level);
  option.set_name(name);
  option.set_value(&value, sizeof value);
}

// An address that is none of this host's, and an option that a listener refuses.
TEST_F(BuildTest, OptionsComeBeforeWhatTheyAreFor) {
  ASSERT_NO_FATAL_FAILURE(Prepare(BeatAlone));
  criu::file_entry socket = InetSocket(SOCK_STREAM, images::kSocketListening, 7);
  socket.mutable_isk()->set_src_addr(0, ::inet_addr("192.0.2.1"));
  const uint32_t id = AddDescriptor(state_, 3, socket);
  proto::FileExtra& extra = *state_.add_file_extras();
  extra.set_id(id);
  AddOption(extra, IPPROTO_IP, IP_TRANSPARENT, 1);
  AddOption(extra, IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1);
  AddOption(extra, IPPROTO_TCP, TCP_MAXSEG, 1000);
  const absl::Status built = Build();
  ASSERT_TRUE(built.ok()) << built;
  const base::UniqueFd listener = Descriptor(3);
  int value = 0;
  socklen_t length = sizeof value;
  ASSERT_EQ(::getsockopt(listener.get(), IPPROTO_TCP, TCP_FASTOPEN_CONNECT, &value, &length), 0);
  EXPECT_EQ(value, 1);
  ASSERT_EQ(::getsockopt(listener.get(), IPPROTO_TCP, TCP_MAXSEG, &value, &length), 0);
  EXPECT_EQ(value, 1000);
  ASSERT_EQ(::getsockopt(listener.get(), SOL_SOCKET, SO_ACCEPTCONN, &value, &length), 0);
  EXPECT_EQ(value, 1);
}

}  // namespace
}  // namespace predump::restore
