#include "src/checkpoint/socket_capture.h"

#include <netinet/in.h>
#include <sys/socket.h>

#include <cerrno>

#include "absl/strings/str_cat.h"
#include "src/base/errors.h"
#include "src/base/unique_fd.h"

namespace predump::checkpoint {
namespace {

std::string FamilyName(int family) {
  switch (family) {
    case AF_NETLINK:
      return "a netlink socket";
    case AF_PACKET:
      return "a packet socket";
    case AF_VSOCK:
      return "a vsock socket";
    case AF_ALG:
      return "a socket of the kernel's cryptography (AF_ALG)";
    case AF_XDP:
      return "an XDP socket";
    default:
      return absl::StrCat("a socket of family ", family);
  }
}

}  // namespace

absl::StatusOr<uint32_t> AddSocket(FileContext& context, const Descriptor& descriptor) {
  PREDUMP_ASSIGN_OR_RETURN(const SocketKind kind, ReadSocketKind(descriptor.duplicate.get()));
  if (const auto why = WhyAttachmentsStay(descriptor.duplicate.get(), kind); why.has_value()) {
    context.blockers.Add(descriptor.name(), *why);
    return 0;
  }
  if (kind.family == AF_UNIX) return AddUnixSocket(context, descriptor, kind);
  if (kind.family != AF_INET && kind.family != AF_INET6) {
    context.blockers.Add(descriptor.name(), FamilyName(kind.family));
    return 0;
  }
  const bool tcp = kind.type == SOCK_STREAM && kind.protocol == IPPROTO_TCP;
  const bool udp = kind.type == SOCK_DGRAM && kind.protocol == IPPROTO_UDP;
  if (!tcp && !udp) {
    context.blockers.Add(descriptor.name(),
                         absl::StrCat("an internet socket of type ", kind.type, ", protocol ",
                                      kind.protocol, " (only TCP and UDP move)"));
    return 0;
  }
  return AddInetSocket(context, descriptor, kind);
}

}  // namespace predump::checkpoint
