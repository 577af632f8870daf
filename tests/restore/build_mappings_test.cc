// Building a process from a landing: that what was one mapping at the source is one again.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <span>
#include <string>

#include "gtest/gtest.h"
#include "src/kernel/process_memory.h"
#include "src/kernel/procfs.h"
#include "tests/restore/build_fixture.h"

namespace predump::restore {
namespace {

constexpr uint64_t kPage = 4096;
constexpr uint64_t kPages = 64;
constexpr uint64_t kWhole = 0x200000000000;
constexpr uint64_t kEnd = kWhole + kPages * kPage;
constexpr uint64_t kSecond = kWhole + 20 * kPage;  // where the larger piece begins
constexpr uint64_t kElsewhere = 0x210000000000;
constexpr uint64_t kNeighbour = kWhole - 4 * kPage;

uint8_t* At(uint64_t address) { return reinterpret_cast<uint8_t*>(address); }

// Every third page holds nothing.
uint8_t Filling(uint64_t page) { return static_cast<uint8_t>(page % 3 == 2 ? 0 : page + 1); }

void MapAt(uint64_t start, uint64_t end, int prot) {
  if (::mmap(At(start), end - start, prot,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE | MAP_NORESERVE, -1,
             0) == MAP_FAILED) {
    ::_exit(1);
  }
}

void CheckContents(Report* report, uint64_t start) {
  for (uint64_t i = 0; i < kPages * kPage; ++i) {
    if (At(start)[i] != Filling(i / kPage)) report->wrong++;
  }
}

// Writes one mapping, and once signal_value is set moves it as a whole.
void UseOneMapping(Report* report) {
  MapAt(kWhole, kEnd, PROT_READ | PROT_WRITE);
  for (uint64_t i = 0; i < kPages; ++i) {
    if (Filling(i) != 0) std::fill_n(At(kWhole + i * kPage), kPage, Filling(i));
  }
  report->beats[0] = 1;
  while (report->signal_value == 0) continue;
  CheckContents(report, kWhole);
  const void* moved = ::mremap(At(kWhole), kPages * kPage, kPages * kPage,
                               MREMAP_MAYMOVE | MREMAP_FIXED, At(kElsewhere));
  report->signal_value = moved == At(kElsewhere) ? 2 : 1000 + errno;
  if (moved == At(kElsewhere)) CheckContents(report, kElsewhere);
  report->beats[0] = 2;
  for (;;) ::pause();
}

class MappingsTest : public BuildTest {
 protected:
  std::string Filled(uint64_t page) { return std::string(kPage, static_cast<char>(Filling(page))); }
  bool Touch(uint64_t start) {
    return source_.Pages(start, Filled(start >= kWhole ? (start - kWhole) / kPage : 0));
  }
  int Pieces(pid_t pid, uint64_t start, uint64_t end) {
    const auto maps = kernel::ReadMaps(*kernel::ProcessHandle::Open(pid));
    if (!maps.ok()) return -1;
    int pieces = 0;
    for (const auto& entry : *maps) {
      pieces += entry.range.start().value() < end && start < entry.range.end().value() ? 1 : 0;
    }
    return pieces;
  }
  // What makes two pieces of it at the landing that cannot merge: a gap is filled at last.
  void ArriveInPieces() {
    constexpr uint64_t kGap = kSecond - kPage;
    EXPECT_TRUE(source_.MapAnonymous(kWhole, kGap - kWhole) && Touch(kWhole));
    EXPECT_TRUE(source_.MapAnonymous(kSecond, kEnd - kSecond) && Touch(kSecond));
    EXPECT_TRUE(source_.MapAnonymous(kGap, kPage));
    source_.Keep(kWhole);
  }
  void ExpectItMovesWhole() {
    const absl::Status built = Build();
    ASSERT_TRUE(built.ok()) << built;
    EXPECT_EQ(Pieces(landing_pid_, kWhole, kEnd), 1);
    report_->signal_value = 1;
    const absl::Status released = Release();
    ASSERT_TRUE(released.ok()) << released;
    const absl::Time limit = absl::Now() + absl::Seconds(10);
    while (report_->beats[0] != 2 && absl::Now() < limit) ::usleep(100);
    EXPECT_EQ(report_->signal_value, 2u) << "mremap: 1000 + errno";
    EXPECT_EQ(report_->wrong, 0u);
  }
};

TEST_F(MappingsTest, WhatArrivedInPiecesIsOneMapping) {
  ASSERT_NO_FATAL_FAILURE(Prepare(UseOneMapping, {}, [&] { ArriveInPieces(); }));
  ASSERT_EQ(Pieces(landing_->outer_pid(), kWhole, kEnd), 2);
  ExpectItMovesWhole();
}

// The landing has all writable, so a piece can merge with a neighbour that it must part from.
TEST_F(MappingsTest, APieceThatTheNeighbourTakesIsMadeAnewWithTheWhole) {
  ASSERT_NO_FATAL_FAILURE(Prepare(
      [](Report* report) {
        MapAt(kNeighbour, kWhole, PROT_READ);
        UseOneMapping(report);
      },
      {},
      [&] {
        EXPECT_TRUE(source_.MapAnonymous(kNeighbour, kWhole - kNeighbour) && Touch(kNeighbour));
        source_.Keep(kNeighbour);
        ArriveInPieces();
      }));
  ASSERT_EQ(Pieces(landing_->outer_pid(), kNeighbour, kEnd), 2);
  ASSERT_NO_FATAL_FAILURE(ExpectItMovesWhole());
  EXPECT_EQ(Pieces(landing_pid_, kNeighbour, kWhole), 1);
}

TEST_F(MappingsTest, AReservationOpenedSinceIsPartOfTheMapping) {
  ASSERT_NO_FATAL_FAILURE(Prepare(UseOneMapping, {}, [&] {
    EXPECT_TRUE(source_.MapAnonymous(kWhole, kSecond - kWhole) && Touch(kWhole));
    EXPECT_TRUE(source_.MapAnonymous(kSecond, kEnd - kSecond, PROT_NONE));
    source_.Keep(kWhole);
  }));
  ExpectItMovesWhole();
}

// What holds pages and may be neither read nor written any more.
TEST_F(MappingsTest, PiecesNobodyMayTouchAreOneMapping) {
  ASSERT_NO_FATAL_FAILURE(Prepare(UseOneMapping, {}, [&] { ArriveInPieces(); }));
  for (auto& vma : *state_.mutable_mm()->mutable_vmas()) {
    if (vma.start() == kWhole) vma.set_prot(PROT_NONE);
  }
  const absl::Status built = Build();
  ASSERT_TRUE(built.ok()) << built;
  EXPECT_EQ(Pieces(landing_pid_, kWhole, kEnd), 1);
  auto memory = kernel::ProcessMemory::Open(Process(), O_RDONLY);
  ASSERT_TRUE(memory.ok()) << memory.status();
  for (uint64_t i = 0; i < kPages; ++i) {
    std::string page(kPage, 'x');
    ASSERT_TRUE(memory
                    ->ReadExactly(base::RemoteAddress(kWhole + i * kPage),
                                  std::as_writable_bytes(std::span(page)))
                    .ok());
    EXPECT_EQ(page, Filled(i)) << i;
  }
}

}  // namespace
}  // namespace predump::restore
