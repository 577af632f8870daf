// Two hosts on one machine: a pair of network namespaces joined by a cable.
#ifndef PREDUMP_TESTS_SUPPORT_NETWORK_NAMESPACES_H_
#define PREDUMP_TESTS_SUPPORT_NETWORK_NAMESPACES_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "src/base/unique_fd.h"

namespace predump::test_support {

// Owns two named network namespaces with loopback up and a veth between them. Names hold our pid
// and a number, so pairs of concurrent tests do not meet; addresses (10.213.0.1 and .2) exist only
// inside. Both are deleted with the object. Needs root and ip(8).
class NetworkNamespacePair {
 public:
  enum class Side { kSource, kTarget };

  // Nothing is left behind where a step fails.
  static absl::StatusOr<NetworkNamespacePair> Create();
  NetworkNamespacePair(NetworkNamespacePair&& other) noexcept;
  NetworkNamespacePair& operator=(NetworkNamespacePair&&) = delete;
  ~NetworkNamespacePair();

  const std::string& name(Side side) const;
  // Without prefix length, for connect and listen.
  std::string address(Side side) const;
  // `command` as it is to be run inside: "ip netns exec NAME command...". Replaces itself by the
  // command, so the pid is that of the command. Note that ip(8) gives it a mount namespace of its
  // own, with /sys remounted.
  std::vector<std::string> Inside(Side side, const std::vector<std::string>& command) const;
  // The namespace itself, for setns(2).
  absl::StatusOr<base::UniqueFd> OpenNamespace(Side side) const;
  // Pulls the plug and puts it back: packets in both directions vanish while it is out.
  absl::Status CutCable();
  absl::Status MendCable();

 private:
  NetworkNamespacePair() = default;
  absl::Status SetUp();
  absl::Status SetLink(const char* state);

  std::string source_;
  std::string target_;
};

}  // namespace predump::test_support

#endif  // PREDUMP_TESTS_SUPPORT_NETWORK_NAMESPACES_H_
