#include "src/transport/endpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <string>

namespace predump::transport {
namespace {

using ::testing::HasSubstr;
using Kind = Endpoint::Kind;

Endpoint Parsed(const std::string& text) {
  const auto endpoint = Endpoint::Parse(text);
  EXPECT_TRUE(endpoint.ok()) << text << ": " << endpoint.status();
  return endpoint.ok() ? *endpoint : Endpoint();
}

TEST(EndpointTest, ReadsWhatItPrints) {
  for (const char* text :
       {"host:4000", "[::1]:0", "criu://host:27", "criu://[fe80::1]:27", "file:/var/images",
        "ssh://host", "ssh://user@host:2222", "ssh://u@[::1]", "ssh://[::1]:22"}) {
    EXPECT_EQ(Parsed(text).ToString(), text);
  }
}

TEST(EndpointTest, TellsTheKindsApart) {
  EXPECT_EQ(Parsed("host:4000").kind(), Kind::kNative);
  EXPECT_EQ(Parsed("host:4000").address().port(), 4000);
  const Endpoint criu = Parsed("criu://10.0.0.1:27");
  EXPECT_EQ(criu.kind(), Kind::kCriu);
  EXPECT_EQ(criu.address().ToString(), "10.0.0.1:27");
  // Hosts may be called so.
  EXPECT_EQ(Parsed("criu:4000").kind(), Kind::kNative);
  EXPECT_EQ(Parsed("ssh:4000").kind(), Kind::kNative);
}

TEST(EndpointTest, ADirectoryIsAbsolute) {
  EXPECT_EQ(Parsed("file:///var/images").directory(), "/var/images");
  EXPECT_EQ(Parsed("file:/var/images").kind(), Kind::kFile);
  char here[4096];
  ASSERT_NE(::getcwd(here, sizeof here), nullptr);
  EXPECT_EQ(Parsed("file:images").directory(), std::string(here) + "/images");
}

TEST(EndpointTest, SshHostsHaveWhatWasGiven) {
  const Endpoint full = Parsed("ssh://user@host:2222");
  EXPECT_EQ(full.kind(), Kind::kSsh);
  EXPECT_EQ(full.ssh().user, "user");
  EXPECT_EQ(full.ssh().host, "host");
  EXPECT_EQ(full.ssh().port, 2222);
  const Endpoint bare = Parsed("ssh://[fe80::1%eth0]/");
  EXPECT_EQ(bare.ssh().user, "");
  EXPECT_EQ(bare.ssh().host, "fe80::1%eth0");
  EXPECT_EQ(bare.ssh().port, std::nullopt);
  EXPECT_EQ(Parsed("ssh://a@b@host").ssh().user, "a@b");
}

struct Wrong {
  std::string text;
  const char* why;
};

class EndpointErrorTest : public ::testing::TestWithParam<Wrong> {};

TEST_P(EndpointErrorTest, SaysWhatIsWrongAndWhatIsExpected) {
  const auto endpoint = Endpoint::Parse(GetParam().text);
  ASSERT_TRUE(absl::IsInvalidArgument(endpoint.status())) << GetParam().text;
  EXPECT_THAT(endpoint.status().message(), HasSubstr(GetParam().why));
  EXPECT_THAT(endpoint.status().message(), HasSubstr("expected "));
}

INSTANTIATE_TEST_SUITE_P(
    AllWays, EndpointErrorTest,
    ::testing::Values(Wrong{"", "no port"}, Wrong{"host", "no port"}, Wrong{"criu://", "no port"},
                      Wrong{"criu://host", "no port"}, Wrong{"criu://host:x", "port must be"},
                      Wrong{"tcp://host:4000", "nothing is known by that scheme"},
                      Wrong{"file:", "directory is missing"},
                      Wrong{"file://host/dir", "another host"},
                      Wrong{std::string("file:/a\0b", 9), "characters"},
                      Wrong{"ssh://", "host is missing"}, Wrong{"ssh://@host", "user is missing"},
                      Wrong{"ssh://user@", "host is missing"}, Wrong{"ssh://host:0", "port 0"},
                      Wrong{"ssh://host:ssh", "port must be"},
                      Wrong{"ssh://host/dir", "characters"}, Wrong{"ssh://a b@host", "characters"},
                      Wrong{"ssh://a:secret@host", "characters"},
                      Wrong{"ssh://-oProxyCommand=x", "begin with '-'"},
                      Wrong{"ssh://-l@host", "begin with '-'"}));

}  // namespace
}  // namespace predump::transport
