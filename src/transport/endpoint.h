// What --to takes: the place that rounds, state and, in the end, the right to run are sent to.
//
//   HOST:PORT, [IPv6]:PORT      a page server of ours
//   criu://HOST:PORT            a page server of CRIU's, which takes memory and nothing else
//   file:DIR                    images in DIR on this host
//   ssh://[USER@]HOST[:PORT]    a page server of ours, started there by ssh
//
// Thread rule: values.
#ifndef PREDUMP_TRANSPORT_ENDPOINT_H_
#define PREDUMP_TRANSPORT_ENDPOINT_H_

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "src/transport/address.h"

namespace predump::transport {

// Whom ssh is to connect to. Neither part can be taken for an option of ssh.
struct SshHost {
  std::string user;              // empty: as ssh itself decides
  std::string host;              // an IPv6 address without brackets
  std::optional<uint16_t> port;  // none: as ssh itself decides
};

class Endpoint {
 public:
  enum class Kind { kNative, kCriu, kFile, kSsh };

  // Errors: InvalidArgument saying what is wrong and what is expected.
  static absl::StatusOr<Endpoint> Parse(absl::string_view text);
  static Endpoint Native(Address address);

  Kind kind() const { return kind_; }
  // kNative and kCriu.
  const Address& address() const { return address_; }
  // kFile: an absolute path, since a journal that names it outlives our working directory.
  const std::string& directory() const { return directory_; }
  // kSsh.
  const SshHost& ssh() const { return ssh_; }

  // The form that Parse reads.
  std::string ToString() const;

 private:
  Kind kind_ = Kind::kNative;
  Address address_;
  std::string directory_;
  SshHost ssh_;
};

}  // namespace predump::transport

#endif  // PREDUMP_TRANSPORT_ENDPOINT_H_
