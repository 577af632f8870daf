// From captured sockets to sockets: options, addresses, pairs with what is queued in them.
#ifndef PREDUMP_RESTORE_SOCKET_PLAN_H_
#define PREDUMP_RESTORE_SOCKET_PLAN_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "proto/state.pb.h"
#include "src/restore/call_plan.h"

namespace predump::restore::internal {

class FilePlan;

// Part of FilePlan, cut off for size: works on its descriptors.
class SocketPlan {
 public:
  explicit SocketPlan(FilePlan& files) : files_(files) {}

  // INETSK or UNIXSK, with its peer if that is in the state.
  absl::Status AddSocket(const criu::file_entry& file);
  // What is queued is sent by the peers before anything is shut down.
  void AddQueuesAndShutdowns();

 private:
  absl::Status AddInet(const criu::file_entry& file);
  absl::Status AddUnix(const criu::file_entry& file);
  absl::Status AddUnixPair(const criu::file_entry& file, const criu::file_entry* peer);
  void AddIpOptions(int fd, const criu::ip_opts_entry& options, const std::string& name);
  void BindUnix(int fd, const criu::file_entry& file);
  void AddOptions(int fd, const criu::sk_opts_entry& options, bool is_unix,
                  const std::string& name);
  void AddExtraOptions(int fd, const criu::file_entry& file, const std::string& name);
  void AddTcpOptions(int fd, const criu::inet_sk_entry& socket, const std::string& name);
  template <typename T>
  void SetOption(int fd, int level, int option, const T& value, const std::string& name);

  FilePlan& files_;
};

}  // namespace predump::restore::internal

#endif  // PREDUMP_RESTORE_SOCKET_PLAN_H_
