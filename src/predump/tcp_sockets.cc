#include "src/predump/tcp_sockets.h"

#include <sys/socket.h>

#include "absl/container/flat_hash_set.h"
#include "absl/status/statusor.h"
#include "src/base/unique_fd.h"

namespace predump {

std::vector<int> TcpDescriptors(const proto::ProcessState& state) {
  absl::flat_hash_set<uint32_t> sockets;
  for (const criu::file_entry& file : state.files()) {
    if (file.has_isk() && file.isk().type() == SOCK_STREAM) sockets.insert(file.id());
  }
  std::vector<int> descriptors;
  for (const criu::fdinfo_entry& descriptor : state.descriptors()) {
    if (sockets.contains(descriptor.id())) {
      descriptors.push_back(static_cast<int>(descriptor.fd()));
    }
  }
  return descriptors;
}

void ShutDownTcpSockets(const kernel::ProcessHandle& process, const std::vector<int>& descriptors) {
  for (const int descriptor : descriptors) {
    const absl::StatusOr<base::UniqueFd> socket = process.GetDescriptor(descriptor);
    // A listener may be shared with a process that stays (socket activation), and is then its own
    // business.
    int listens = 0;
    socklen_t size = sizeof listens;
    if (socket.ok() &&
        ::getsockopt(socket->get(), SOL_SOCKET, SO_ACCEPTCONN, &listens, &size) == 0 &&
        listens == 0) {
      ::shutdown(socket->get(), SHUT_RDWR);
    }
  }
}

}  // namespace predump
