// The landing as a receiver of frames; landing_life_test.cc has its life and death.
#include "src/restore/landing.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>

#include <cstddef>
#include <optional>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "src/kernel/process.h"
#include "src/kernel/process_memory.h"
#include "src/kernel/procfs.h"
#include "src/restore/landing/layout.h"
#include "tests/restore/frame_source.h"

namespace predump::restore {
namespace {

using ::testing::HasSubstr;
using transport::DataKind;

constexpr uint64_t kPage = 4096;
constexpr pid_t kPid = 4321;
constexpr uint64_t kPlain = 0x10000000;

class LandingTest : public ::testing::Test {
 protected:
  void SetUp() override {
    LandingOptions options;
    options.pid = kPid;
    options.new_pid_namespace = true;
    options.data_socket = source_.TakeLandingEnd();
    auto landing = Landing::Start(std::move(options));
    ASSERT_TRUE(landing.ok()) << landing.status();
    landing_.emplace(*std::move(landing));
  }

  // Everything sent so far is in place once this returns.
  void EndRound(uint64_t round = 0) {
    ASSERT_TRUE(source_.Header(DataKind::kRoundEnd, 0, round));
    const auto answer = source_.Answer();
    ASSERT_EQ(answer.kind, static_cast<uint32_t>(DataKind::kAcknowledge)) << Fate();
    ASSERT_EQ(answer.arg, round);
  }
  std::string Fate() {
    return landing_->WaitForFinal(absl::Now() + absl::Seconds(5), -1).ToString();
  }
  void ExpectRefusal(absl::string_view words, std::optional<int> error = std::nullopt) {
    const auto answer = source_.Answer();
    EXPECT_EQ(answer.kind, static_cast<uint32_t>(DataKind::kLandingError));
    if (error.has_value()) {
      EXPECT_EQ(static_cast<int>(answer.count), *error);
    }
    EXPECT_THAT(Fate(), HasSubstr(std::string(words)));
  }
  std::string Memory(uint64_t address, size_t bytes) {
    auto process = kernel::ProcessHandle::Open(landing_->outer_pid());
    EXPECT_TRUE(process.ok()) << process.status();
    auto memory = kernel::ProcessMemory::Open(*process, O_RDONLY);
    EXPECT_TRUE(memory.ok()) << memory.status();
    std::string text(bytes, '?');
    const absl::Status read =
        memory->ReadExactly(base::RemoteAddress(address), std::as_writable_bytes(std::span(text)));
    EXPECT_TRUE(read.ok()) << read;
    return text;
  }
  std::vector<kernel::MapsEntry> Maps() {
    auto process = kernel::ProcessHandle::Open(landing_->outer_pid());
    EXPECT_TRUE(process.ok()) << process.status();
    auto maps = kernel::ReadMaps(*process);
    EXPECT_TRUE(maps.ok());
    return *maps;
  }

  FrameSource source_;
  std::optional<Landing> landing_;
};

std::string Pattern(size_t bytes, int seed) {
  std::string text(bytes, '\0');
  for (size_t i = 0; i < bytes; ++i) text[i] = static_cast<char>((i * 31 + seed) ^ (i >> 12));
  return text;
}

TEST_F(LandingTest, OccupiesNothingButItsHomeBlock) {
  for (const kernel::MapsEntry& entry : Maps()) {
    if (entry.path == "[vsyscall]") continue;
    EXPECT_GE(entry.range.start().value(), kHome) << entry.path;
    EXPECT_LE(entry.range.end().value(), kHomeEnd) << entry.path;
  }
}

TEST_F(LandingTest, HasTheWantedPidInItsNamespaceAndOneDescriptorPerSocket) {
  auto process = kernel::ProcessHandle::Open(landing_->outer_pid());
  ASSERT_TRUE(process.ok());
  auto status = kernel::ReadStatus(*process);
  ASSERT_TRUE(status.ok());
  EXPECT_EQ(status->namespace_pids.back(), kPid);
  EXPECT_EQ(status->namespace_sessions.back(), kPid);
  auto descriptors = kernel::ListDescriptors(*process);
  ASSERT_TRUE(descriptors.ok());
  EXPECT_THAT(*descriptors, ::testing::ElementsAre(0, 1));
}

TEST_F(LandingTest, ReceivesPagesAtTheirFinalAddresses) {
  const std::string bytes = Pattern(64 * kPage, 1);
  ASSERT_TRUE(source_.MapAnonymous(kPlain, 64 * kPage));
  ASSERT_TRUE(source_.Pages(kPlain, bytes));
  EndRound();
  EXPECT_EQ(Memory(kPlain, bytes.size()), bytes);
  EXPECT_EQ(landing_->received_bytes(), bytes.size());
}

TEST_F(LandingTest, ScattersOnePayloadOverManyExtents) {
  ASSERT_TRUE(source_.MapAnonymous(kPlain, 4096 * kPage));
  std::vector<transport::WireExtent> extents;
  for (uint64_t i = 0; i < transport::kMaxExtentsPerFrame; ++i) {
    extents.push_back({kPlain + 4 * i * kPage, kPage});
  }
  const std::string bytes = Pattern(extents.size() * kPage, 2);
  ASSERT_TRUE(source_.Ranges(DataKind::kPages, extents, bytes.size()));
  ASSERT_TRUE(source_.Send(bytes.data(), bytes.size()));
  EndRound();
  for (size_t i = 0; i < extents.size(); i += 111) {
    EXPECT_EQ(Memory(extents[i].start, kPage), bytes.substr(i * kPage, kPage)) << i;
    EXPECT_EQ(Memory(extents[i].start + kPage, kPage), std::string(kPage, '\0')) << i;
  }
}

TEST_F(LandingTest, DroppedPagesReadAsZero) {
  ASSERT_TRUE(source_.MapAnonymous(kPlain, 4 * kPage));
  ASSERT_TRUE(source_.Pages(kPlain, Pattern(4 * kPage, 3)));
  ASSERT_TRUE(source_.Ranges(DataKind::kDrop, {{kPlain + kPage, 2 * kPage}}));
  EndRound();
  const std::string expected = Pattern(4 * kPage, 3);
  EXPECT_EQ(Memory(kPlain, kPage), expected.substr(0, kPage));
  EXPECT_EQ(Memory(kPlain + kPage, 2 * kPage), std::string(2 * kPage, '\0'));
  EXPECT_EQ(Memory(kPlain + 3 * kPage, kPage), expected.substr(3 * kPage));
}

TEST_F(LandingTest, MappingAgainReplacesAndUnmappingRemoves) {
  ASSERT_TRUE(source_.MapAnonymous(kPlain, 4 * kPage));
  ASSERT_TRUE(source_.Pages(kPlain, Pattern(4 * kPage, 4)));
  ASSERT_TRUE(source_.MapAnonymous(kPlain + kPage, kPage));
  ASSERT_TRUE(source_.Ranges(DataKind::kUnmap, {{kPlain + 3 * kPage, kPage}}));
  EndRound();
  EXPECT_EQ(Memory(kPlain + kPage, kPage), std::string(kPage, '\0'));
  EXPECT_EQ(Memory(kPlain + 2 * kPage, kPage), Pattern(4 * kPage, 4).substr(2 * kPage, kPage));
  for (const auto& entry : Maps()) {
    EXPECT_FALSE(entry.range.Contains(base::RemoteAddress(kPlain + 3 * kPage)));
  }
}

TEST_F(LandingTest, OpensFilesItselfAndKeepsPrivateWritesOffThem) {
  transport::MapRecord record = {};
  record.start = kPlain;
  record.bytes = kPage;
  record.prot = PROT_READ | PROT_EXEC;
  record.flags = transport::kMapFile;
  ASSERT_TRUE(source_.Map(record, "/proc/self/exe"));
  EndRound();
  // Through /proc/self of the landing: its own image.
  EXPECT_EQ(Memory(kPlain, 4), "\177ELF");
  ASSERT_TRUE(source_.Pages(kPlain, Pattern(kPage, 5)));
  EndRound(1);
  EXPECT_EQ(Memory(kPlain, kPage), Pattern(kPage, 5));
}

TEST_F(LandingTest, ReservationsStayReservationsUntilPagesCome) {
  ASSERT_TRUE(source_.MapAnonymous(kPlain, 16 * kPage, PROT_NONE));
  EndRound();
  for (const auto& entry : Maps()) {
    if (entry.range.start().value() == kPlain) {
      EXPECT_EQ(entry.prot, PROT_NONE);
    }
  }
  ASSERT_TRUE(source_.Pages(kPlain + 2 * kPage, Pattern(3 * kPage, 6)));
  EndRound(1);
  EXPECT_EQ(Memory(kPlain + 2 * kPage, 3 * kPage), Pattern(3 * kPage, 6));
}

// A file larger than memory may be mapped to be read, and so may memory that nobody ever writes.
TEST_F(LandingTest, WhatIsOnlyReadMayBeLargerThanMemory) {
  constexpr uint64_t kBytes = uint64_t{8} << 40;
  constexpr uint64_t kHuge = uint64_t{1} << 44;
  ASSERT_TRUE(source_.MapAnonymous(kHuge, kBytes, PROT_READ));
  EndRound();
  ASSERT_TRUE(source_.Pages(kHuge + 2 * kPage, Pattern(3 * kPage, 6)));
  EndRound(1);
  EXPECT_EQ(Memory(kHuge + 2 * kPage, 3 * kPage), Pattern(3 * kPage, 6));
}

TEST_F(LandingTest, MemoryForItsOwnHomeIsStagedCongruentModuloOneGibibyte) {
  const uint64_t start = kHome - 2 * kPage;
  const std::string bytes = Pattern(8 * kPage, 7);
  ASSERT_TRUE(source_.MapAnonymous(start, 8 * kPage));
  ASSERT_TRUE(source_.Pages(start, bytes));
  EndRound();
  EXPECT_EQ(Memory(start, 2 * kPage), bytes.substr(0, 2 * kPage));
  const uint64_t staged = kStagingCandidates[0];
  EXPECT_EQ(staged % (1u << 30), kHome % (1u << 30));
  EXPECT_EQ(Memory(staged, 6 * kPage), bytes.substr(2 * kPage));
}

TEST_F(LandingTest, StagedMemoryGivesWayToWhatBelongsThere) {
  const std::string home = Pattern(4 * kPage, 8);
  ASSERT_TRUE(source_.MapAnonymous(kHome, 4 * kPage));
  ASSERT_TRUE(source_.Pages(kHome, home));
  const uint64_t contested = kStagingCandidates[0];
  const std::string there = Pattern(4 * kPage, 9);
  ASSERT_TRUE(source_.MapAnonymous(contested, 4 * kPage));
  ASSERT_TRUE(source_.Pages(contested, there));
  EndRound();
  EXPECT_EQ(Memory(contested, there.size()), there);
  EXPECT_EQ(Memory(kStagingCandidates[1], home.size()), home);
}

TEST_F(LandingTest, StopsAfterTheFinalMark) {
  ASSERT_TRUE(source_.Header(DataKind::kFinal, 0, 9));
  EXPECT_EQ(source_.Answer().arg, 9u);
  EXPECT_TRUE(landing_->WaitForFinal(absl::Now() + absl::Seconds(5), -1).ok());
}

TEST_F(LandingTest, WaitingEndsWhenAnotherDescriptorSpeaksOrTimeIsUp) {
  int pipe_ends[2];
  ASSERT_EQ(::pipe2(pipe_ends, O_CLOEXEC), 0);
  const base::UniqueFd reader(pipe_ends[0]);
  base::UniqueFd writer(pipe_ends[1]);
  EXPECT_TRUE(absl::IsDeadlineExceeded(
      landing_->WaitForFinal(absl::Now() + absl::Milliseconds(20), reader.get())));
  ASSERT_TRUE(writer.Close().ok());
  EXPECT_TRUE(absl::IsCancelled(landing_->WaitForFinal(absl::InfiniteFuture(), reader.get())));
}

TEST_F(LandingTest, EndOfStreamEndsIt) {
  source_.Hangup();
  EXPECT_THAT(Fate(), HasSubstr("ended before the last round"));
}

TEST_F(LandingTest, MissingFilesAreNamed) {
  transport::MapRecord record = {};
  record.start = kPlain;
  record.bytes = kPage;
  record.flags = transport::kMapFile;
  ASSERT_TRUE(source_.Map(record, "/nowhere/at/all"));
  ExpectRefusal("/nowhere/at/all", ENOENT);
}

TEST_F(LandingTest, PagesWithoutAMappingAreRefused) {
  ASSERT_TRUE(source_.Pages(kPlain, Pattern(kPage, 1)));
  ExpectRefusal("receiving memory at 10000000", EFAULT);
}

struct BadFrame {
  const char* name;
  void (*send)(FrameSource& source);
  const char* words;
};

class BadFrameTest : public LandingTest, public ::testing::WithParamInterface<BadFrame> {};

TEST_P(BadFrameTest, IsRefusedAndEndsTheLanding) {
  GetParam().send(source_);
  ExpectRefusal(GetParam().words, EPROTO);
  // It has hung up; with bytes of the bad frame still unread, the kernel calls that a reset.
  char byte;
  const ssize_t got = ::recv(source_.fd(), &byte, 1, 0);
  EXPECT_TRUE(got == 0 || (got < 0 && errno == ECONNRESET)) << got << " errno " << errno;
}

constexpr auto kPages = DataKind::kPages;
void SendMap(FrameSource& s, uint64_t start, uint64_t bytes, uint32_t prot, uint32_t flags,
             const std::string& path = "") {
  transport::MapRecord record = {};
  record.start = start;
  record.bytes = bytes;
  record.prot = prot;
  record.flags = flags;
  s.Map(record, path);
}

INSTANTIATE_TEST_SUITE_P(
    EveryRule, BadFrameTest,
    ::testing::Values(
        BadFrame{"UnknownKind", [](FrameSource& s) { s.Header(static_cast<DataKind>(77), 0, 0); },
                 "unknown kind"},
        BadFrame{"LandingsOwnKind", [](FrameSource& s) { s.Header(DataKind::kAcknowledge, 0, 0); },
                 "unknown kind"},
        BadFrame{
            "TooManyExtents",
            [](FrameSource& s) { s.Header(kPages, transport::kMaxExtentsPerFrame + 1, kPage); },
            "count out of bounds"},
        BadFrame{"NoExtents", [](FrameSource& s) { s.Header(DataKind::kDrop, 0, 0); },
                 "count out of bounds"},
        BadFrame{"PayloadTooLarge",
                 [](FrameSource& s) { s.Header(kPages, 1, transport::kMaxPayloadBytes + kPage); },
                 "payload"},
        BadFrame{"PayloadNotTheSum",
                 [](FrameSource& s) {
                   s.Ranges(kPages, {{kPlain, kPage}}, 2 * kPage);
                 },
                 "payload"},
        BadFrame{"Unaligned",
                 [](FrameSource& s) {
                   s.Ranges(DataKind::kDrop, {{kPlain + 1, kPage}});
                 },
                 "not page-aligned"},
        BadFrame{"Empty",
                 [](FrameSource& s) {
                   s.Ranges(DataKind::kDrop, {{kPlain, 0}});
                 },
                 "empty range"},
        BadFrame{"BeyondUserSpace",
                 [](FrameSource& s) {
                   s.Ranges(DataKind::kUnmap, {{transport::kUserSpaceEnd - kPage, 2 * kPage}});
                 },
                 "outside user space"},
        BadFrame{"WrapsRound",
                 [](FrameSource& s) {
                   s.Ranges(DataKind::kUnmap, {{kPlain, ~0ull - kPage + 1}});
                 },
                 "outside user space"},
        BadFrame{"PageZero",
                 [](FrameSource& s) {
                   s.Ranges(DataKind::kUnmap, {{0, kPage}});
                 },
                 "outside user space"},
        BadFrame{"OutOfOrder",
                 [](FrameSource& s) {
                   s.Ranges(DataKind::kDrop, {{kPlain + kPage, kPage}, {kPlain, kPage}});
                 },
                 "ascending"},
        BadFrame{"Overlapping",
                 [](FrameSource& s) {
                   s.Ranges(DataKind::kDrop, {{kPlain, 2 * kPage}, {kPlain + kPage, kPage}});
                 },
                 "ascending"},
        BadFrame{"UnknownMapFlag", [](FrameSource& s) { SendMap(s, kPlain, kPage, 3, 1u << 20); },
                 "flags"},
        BadFrame{"SharedWithoutFile",
                 [](FrameSource& s) { SendMap(s, kPlain, kPage, 3, transport::kMapShared); },
                 "flags"},
        BadFrame{"UnknownProtection", [](FrameSource& s) { SendMap(s, kPlain, kPage, 0x100, 0); },
                 "protection"},
        BadFrame{"RelativePath",
                 [](FrameSource& s) { SendMap(s, kPlain, kPage, 1, transport::kMapFile, "etc/x"); },
                 "bad path"},
        BadFrame{"PathWithNul",
                 [](FrameSource& s) {
                   SendMap(s, kPlain, kPage, 1, transport::kMapFile, std::string("/etc\0x", 6));
                 },
                 "bad path"},
        BadFrame{"PathForAnonymous",
                 [](FrameSource& s) { SendMap(s, kPlain, kPage, 1, 0, "/etc/passwd"); },
                 "bad path"},
        BadFrame{"Reserved",
                 [](FrameSource& s) {
                   transport::DataHeader header = {};
                   header.kind = static_cast<uint32_t>(DataKind::kRoundEnd);
                   header.reserved = 1;
                   s.Send(&header, sizeof(header));
                 },
                 "reserved"}),
    [](const auto& tested) { return std::string(tested.param.name); });

}  // namespace
}  // namespace predump::restore
