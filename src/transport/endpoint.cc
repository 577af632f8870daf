#include "src/transport/endpoint.h"

#include <errno.h>
#include <limits.h>
#include <unistd.h>

#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "src/base/errors.h"

namespace predump::transport {
namespace {

constexpr absl::string_view kCriuScheme = "criu://";
constexpr absl::string_view kSshScheme = "ssh://";
constexpr absl::string_view kFileScheme = "file:";

absl::Status Malformed(absl::string_view text, absl::string_view why, absl::string_view expected) {
  return absl::InvalidArgumentError(
      absl::StrCat("\"", text, "\" is no place to send to: ", why, "; expected ", expected));
}

bool HasOddCharacter(absl::string_view word) {
  for (const char c : word) {
    if (!absl::ascii_isgraph(static_cast<unsigned char>(c))) return true;
  }
  return false;
}

absl::StatusOr<std::string> ParseDirectory(absl::string_view text) {
  constexpr absl::string_view kExpected = "file:DIR";
  absl::string_view path = text.substr(kFileScheme.size());
  // As the scheme is written elsewhere: file:///DIR, where a host could stand after two slashes.
  if (absl::StartsWith(path, "//") && !absl::StartsWith(path, "///")) {
    return Malformed(text, "a directory of another host cannot be written to", kExpected);
  }
  if (path.empty()) return Malformed(text, "the directory is missing", kExpected);
  if (path.find('\0') != absl::string_view::npos) {
    return Malformed(text, "the directory has characters that no name has", kExpected);
  }
  if (path.front() == '/') {
    while (path.size() > 1 && path[1] == '/') path.remove_prefix(1);
    return std::string(path);
  }
  char here[PATH_MAX];
  if (::getcwd(here, sizeof here) == nullptr) return base::ErrnoError(errno, "getcwd");
  return absl::StrCat(here, "/", path);
}

absl::StatusOr<SshHost> ParseSshHost(absl::string_view text) {
  constexpr absl::string_view kExpected = "ssh://[USER@]HOST[:PORT]";
  absl::string_view rest = text.substr(kSshScheme.size());
  absl::ConsumeSuffix(&rest, "/");
  SshHost result;
  // No host has an '@', a user may.
  if (const size_t at = rest.rfind('@'); at != absl::string_view::npos) {
    result.user = std::string(rest.substr(0, at));
    if (result.user.empty()) return Malformed(text, "the user is missing", kExpected);
    rest = rest.substr(at + 1);
  }
  if (rest.empty()) return Malformed(text, "the host is missing", kExpected);
  const size_t bracket = rest.rfind(']');
  const size_t colon = rest.find(':', bracket == absl::string_view::npos ? 0 : bracket);
  const bool has_port = colon != absl::string_view::npos;
  // One form for all hosts, so that one parser judges them.
  const absl::StatusOr<Address> address =
      Address::Parse(has_port ? std::string(rest) : absl::StrCat(rest, ":22"));
  if (!address.ok()) return Malformed(text, address.status().message(), kExpected);
  result.host = address->host();
  if (has_port) {
    if (address->port() == 0) return Malformed(text, "no server listens on port 0", kExpected);
    result.port = address->port();
  }
  if (HasOddCharacter(result.user) || HasOddCharacter(result.host) ||
      result.user.find_first_of(":/") != std::string::npos) {
    return Malformed(text, "user or host have characters that no such name has", kExpected);
  }
  // ssh would take it for an option, and some of those run commands.
  if (result.host.front() == '-' || absl::StartsWith(result.user, "-")) {
    return Malformed(text, "user or host begin with '-'", kExpected);
  }
  return result;
}

}  // namespace

Endpoint Endpoint::Native(Address address) {
  Endpoint endpoint;
  endpoint.address_ = std::move(address);
  return endpoint;
}

absl::StatusOr<Endpoint> Endpoint::Parse(absl::string_view text) {
  Endpoint endpoint;
  if (absl::StartsWith(text, kFileScheme)) {
    endpoint.kind_ = Kind::kFile;
    PREDUMP_ASSIGN_OR_RETURN(endpoint.directory_, ParseDirectory(text));
    return endpoint;
  }
  if (absl::StartsWith(text, kSshScheme)) {
    endpoint.kind_ = Kind::kSsh;
    PREDUMP_ASSIGN_OR_RETURN(endpoint.ssh_, ParseSshHost(text));
    return endpoint;
  }
  absl::string_view address = text;
  if (absl::ConsumePrefix(&address, kCriuScheme)) {
    endpoint.kind_ = Kind::kCriu;
  } else if (text.find("://") != absl::string_view::npos) {
    return Malformed(text, "nothing is known by that scheme",
                     "HOST:PORT, criu://HOST:PORT, file:DIR or ssh://[USER@]HOST[:PORT]");
  }
  absl::StatusOr<Address> parsed = Address::Parse(address);
  if (!parsed.ok() && text.find('/') != absl::string_view::npos && text == address) {
    return Malformed(text, "it has no port", absl::StrCat("file:", text, " for a directory"));
  }
  PREDUMP_RETURN_IF_ERROR(parsed);
  endpoint.address_ = *std::move(parsed);
  return endpoint;
}

std::string Endpoint::ToString() const {
  switch (kind_) {
    case Kind::kNative:
      break;
    case Kind::kCriu:
      return absl::StrCat(kCriuScheme, address_.ToString());
    case Kind::kFile:
      return absl::StrCat(kFileScheme, directory_);
    case Kind::kSsh: {
      const bool brackets = ssh_.host.find(':') != std::string::npos;
      return absl::StrCat(kSshScheme, ssh_.user, ssh_.user.empty() ? "" : "@", brackets ? "[" : "",
                          ssh_.host, brackets ? "]" : "",
                          ssh_.port.has_value() ? absl::StrCat(":", *ssh_.port) : "");
    }
  }
  return address_.ToString();
}

}  // namespace predump::transport
