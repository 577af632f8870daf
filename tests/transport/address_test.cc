#include "src/transport/address.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace predump::transport {
namespace {

using ::testing::HasSubstr;

TEST(AddressTest, ReadsHostAndPort) {
  const auto address = Address::Parse("target.example:4000");
  ASSERT_TRUE(address.ok()) << address.status();
  EXPECT_EQ(address->host(), "target.example");
  EXPECT_EQ(address->port(), 4000);
  EXPECT_EQ(address->ToString(), "target.example:4000");
}

TEST(AddressTest, ReadsIpv6InBracketsAndPortZero) {
  const auto address = Address::Parse("[::1]:0");
  ASSERT_TRUE(address.ok()) << address.status();
  EXPECT_EQ(address->host(), "::1");
  EXPECT_EQ(address->port(), 0);
  EXPECT_EQ(address->ToString(), "[::1]:0");
}

struct Wrong {
  const char* text;
  const char* expected;
};

class AddressErrorTest : public ::testing::TestWithParam<Wrong> {};

TEST_P(AddressErrorTest, SaysWhatIsWrongAndWhatIsExpected) {
  const auto address = Address::Parse(GetParam().text);
  ASSERT_TRUE(absl::IsInvalidArgument(address.status())) << GetParam().text;
  EXPECT_THAT(address.status().message(), HasSubstr(GetParam().expected));
  EXPECT_THAT(address.status().message(), HasSubstr("expected HOST:PORT"));
}

INSTANTIATE_TEST_SUITE_P(
    AllWays, AddressErrorTest,
    ::testing::Values(Wrong{"", "no port"}, Wrong{"host", "no port"},
                      Wrong{":4000", "host is missing"}, Wrong{"host:", "port must be"},
                      Wrong{"host:65536", "port must be"}, Wrong{"host:-1", "port must be"},
                      Wrong{"host:+1", "port must be"}, Wrong{"host: 1", "port must be"},
                      Wrong{"host:99999999999999999999", "port must be"},
                      Wrong{"host:http", "port must be"},
                      Wrong{"::1:4000", "must stand in brackets"}, Wrong{"[::1:4000", "not closed"},
                      Wrong{"[host]:4000", "no IPv6 address"}, Wrong{"[]:4000", "no IPv6 address"},
                      Wrong{"a b:4000", "characters"},
                      Wrong{"ssh://a:4000", "must stand in brackets"}));

bool FirstIsLoopback(const char* text) {
  const auto address = Address::Parse(text);
  EXPECT_TRUE(address.ok()) << address.status();
  const auto resolved = address->Resolve();
  EXPECT_TRUE(resolved.ok()) << resolved.status();
  return resolved->front().IsLoopback();
}

TEST(SocketAddressTest, KnowsLoopbackFromTheRest) {
  EXPECT_TRUE(FirstIsLoopback("127.0.0.1:1"));
  EXPECT_TRUE(FirstIsLoopback("127.8.9.10:1"));
  EXPECT_TRUE(FirstIsLoopback("[::1]:1"));
  EXPECT_TRUE(FirstIsLoopback("[::ffff:127.0.0.1]:1"));
  EXPECT_TRUE(FirstIsLoopback("localhost:1"));
  EXPECT_FALSE(FirstIsLoopback("0.0.0.0:1"));
  EXPECT_FALSE(FirstIsLoopback("[::]:1"));
  EXPECT_FALSE(FirstIsLoopback("192.0.2.1:1"));
  EXPECT_FALSE(FirstIsLoopback("[::ffff:192.0.2.1]:1"));
}

TEST(SocketAddressTest, PrintsTheFormThatIsRead) {
  for (const char* text : {"192.0.2.1:4000", "[2001:db8::1]:4000"}) {
    EXPECT_EQ(Address::Parse(text)->Resolve()->front().ToString(), text);
    EXPECT_EQ(Address::Parse(text)->Resolve()->front().port(), 4000);
  }
}

TEST(SocketAddressTest, RefusesOtherFamiliesAndShortAddresses) {
  const sockaddr unix_address = {AF_UNIX, {}};
  EXPECT_FALSE(SocketAddress::FromNative(&unix_address, sizeof unix_address).ok());
  sockaddr_storage storage = {};
  storage.ss_family = AF_INET6;
  EXPECT_FALSE(
      SocketAddress::FromNative(reinterpret_cast<const sockaddr*>(&storage), sizeof(sockaddr))
          .ok());
}

}  // namespace
}  // namespace predump::transport
