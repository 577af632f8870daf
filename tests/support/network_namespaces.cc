#include "tests/support/network_namespaces.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#include <atomic>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "src/base/errors.h"
#include "tests/support/child_process.h"

namespace predump::test_support {
namespace {

using Side = NetworkNamespacePair::Side;

constexpr char kSourceAddress[] = "10.213.0.1";
constexpr char kTargetAddress[] = "10.213.0.2";

// Distinguishes pairs of one process.
int NextNumber() {
  static std::atomic<int> next = 0;
  return next++;
}

absl::Status Ip(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), "ip");
  PREDUMP_ASSIGN_OR_RETURN(const CommandResult result, RunCommand(arguments, absl::Seconds(20)));
  if (result.exit.ok()) return absl::OkStatus();
  return absl::InternalError(absl::StrCat(absl::StrJoin(arguments, " "), ": ",
                                          result.exit.ToString(), ": ", result.errors));
}

}  // namespace

absl::StatusOr<NetworkNamespacePair> NetworkNamespacePair::Create() {
  NetworkNamespacePair pair;
  PREDUMP_RETURN_IF_ERROR(base::Annotate(pair.SetUp(), "network namespaces"));
  return pair;
}

NetworkNamespacePair::NetworkNamespacePair(NetworkNamespacePair&& other) noexcept
    : source_(std::exchange(other.source_, std::string())),
      target_(std::exchange(other.target_, std::string())) {}

NetworkNamespacePair::~NetworkNamespacePair() {
  for (const std::string& name : {source_, target_}) {
    if (name.empty()) continue;
    // The cable goes with its namespace.
    if (absl::Status deleted = Ip({"netns", "del", name}); !deleted.ok()) {
      fprintf(stderr, "%s\n", deleted.ToString().c_str());
    }
  }
}

absl::Status NetworkNamespacePair::SetUp() {
  const std::string stem = absl::StrCat("predump-", getpid(), "-", NextNumber());
  // A name is ours to delete only once the namespace was made.
  PREDUMP_RETURN_IF_ERROR(Ip({"netns", "add", stem + "-source"}));
  source_ = stem + "-source";
  PREDUMP_RETURN_IF_ERROR(Ip({"netns", "add", stem + "-target"}));
  target_ = stem + "-target";
  // Both ends are born inside, so no name is needed in the namespace we are in.
  PREDUMP_RETURN_IF_ERROR(Ip({"-n", source_, "link", "add", "cable", "type", "veth", "peer", "name",
                              "cable", "netns", target_}));
  const std::pair<const std::string&, const char*> ends[] = {{source_, kSourceAddress},
                                                             {target_, kTargetAddress}};
  for (const auto& [name, address] : ends) {
    PREDUMP_RETURN_IF_ERROR(
        Ip({"-n", name, "address", "add", absl::StrCat(address, "/30"), "dev", "cable"}));
    PREDUMP_RETURN_IF_ERROR(Ip({"-n", name, "link", "set", "lo", "up"}));
    PREDUMP_RETURN_IF_ERROR(Ip({"-n", name, "link", "set", "cable", "up"}));
  }
  return absl::OkStatus();
}

const std::string& NetworkNamespacePair::name(Side side) const {
  return side == Side::kSource ? source_ : target_;
}

std::string NetworkNamespacePair::address(Side side) const {
  return side == Side::kSource ? kSourceAddress : kTargetAddress;
}

std::vector<std::string> NetworkNamespacePair::Inside(
    Side side, const std::vector<std::string>& command) const {
  std::vector<std::string> inside = {"ip", "netns", "exec", name(side)};
  inside.insert(inside.end(), command.begin(), command.end());
  return inside;
}

absl::StatusOr<base::UniqueFd> NetworkNamespacePair::OpenNamespace(Side side) const {
  const std::string path = absl::StrCat("/run/netns/", name(side));
  base::UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd.valid()) return base::ErrnoError(errno, "open ", path);
  return fd;
}

absl::Status NetworkNamespacePair::SetLink(const char* state) {
  return Ip({"-n", target_, "link", "set", "cable", state});
}

absl::Status NetworkNamespacePair::CutCable() { return SetLink("down"); }
absl::Status NetworkNamespacePair::MendCable() { return SetLink("up"); }

}  // namespace predump::test_support
