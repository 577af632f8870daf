// The TCP connections of a process that is about to be ended because it runs elsewhere.
#ifndef PREDUMP_PREDUMP_TCP_SOCKETS_H_
#define PREDUMP_PREDUMP_TCP_SOCKETS_H_

#include <vector>

#include "proto/session.pb.h"
#include "src/kernel/process.h"

namespace predump {

// The descriptors of `state` that are TCP sockets.
std::vector<int> TcpDescriptors(const proto::ProcessState& state);

// Shuts down those of `descriptors` that do not listen. Peers shall learn at once that the process
// is elsewhere: a killed process closes its sockets only after it has given back its memory, which
// takes a tenth of a second for each GiB.
void ShutDownTcpSockets(const kernel::ProcessHandle& process, const std::vector<int>& descriptors);

}  // namespace predump

#endif  // PREDUMP_PREDUMP_TCP_SOCKETS_H_
