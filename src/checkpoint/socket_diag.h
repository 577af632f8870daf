// What sock_diag(7) tells about unix sockets of the process's network namespace, which may be
// another than ours.
#ifndef PREDUMP_CHECKPOINT_SOCKET_DIAG_H_
#define PREDUMP_CHECKPOINT_SOCKET_DIAG_H_

#include <cstdint>
#include <utility>

#include "absl/status/statusor.h"
#include "src/base/unique_fd.h"
#include "src/kernel/process.h"

namespace predump::checkpoint {

struct UnixSocketFacts {
  uint32_t state = 0;          // TCP_ESTABLISHED 1, TCP_CLOSE 7, TCP_LISTEN 10
  uint32_t peer_inode = 0;     // 0: none
  uint32_t receive_queue = 0;  // bytes; of a listening socket: connections waiting
  uint32_t send_queue = 0;     // of a listening socket: its backlog
  uint32_t shutdown = 0;       // 1 read, 2 write
  // Of the file a bound name stands for; 0: no such file.
  uint32_t file_inode = 0;
};

class SocketDiag {
 public:
  // Opens a netlink socket in the network namespace of `process`. Errors: setns(2), socket(2).
  static absl::StatusOr<SocketDiag> Open(const kernel::ProcessHandle& process);

  // Errors: NotFound no unix socket with this inode; Unimplemented without CONFIG_UNIX_DIAG.
  absl::StatusOr<UnixSocketFacts> LookUp(uint32_t inode) const;

 private:
  explicit SocketDiag(base::UniqueFd netlink) : netlink_(std::move(netlink)) {}
  base::UniqueFd netlink_;
};

}  // namespace predump::checkpoint

#endif  // PREDUMP_CHECKPOINT_SOCKET_DIAG_H_
