// Processes that were stored as images, by predump or as CRIU does it, and brought to life.
#include "src/restore/image_restore.h"

#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "src/base/atomic_file.h"
#include "src/base/clock.h"
#include "src/images/image_constants.h"
#include "src/images/image_file.h"
#include "src/images/pagemap_image.h"
#include "src/images/state_images.h"
#include "src/kernel/procfs.h"
#include "src/kernel/time_offsets.h"
#include "src/transport/data_check.h"
#include "tests/restore/build_fixture.h"

namespace predump::restore {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

// By address. The end of a data connection that keeps what the landing would put into memory.
using StoredPages = std::map<uint64_t, std::string>;

bool ReceiveAll(int fd, void* to, size_t bytes) {
  return bytes == 0 || ::recv(fd, to, bytes, MSG_WAITALL) == static_cast<ssize_t>(bytes);
}

void KeepPages(int fd, StoredPages& pages) {
  transport::DataHeader header;
  while (ReceiveAll(fd, &header, sizeof header)) {
    const auto kind = static_cast<transport::DataKind>(header.kind);
    if (kind == transport::DataKind::kMap) {
      transport::MapRecord record;
      if (!ReceiveAll(fd, &record, sizeof record)) return;
      std::string path(record.path_bytes, '\0');
      if (!ReceiveAll(fd, path.data(), path.size())) return;
    } else if (kind == transport::DataKind::kPages) {
      std::vector<transport::WireExtent> extents(header.count);
      if (!ReceiveAll(fd, extents.data(), transport::TableBytes(header))) return;
      for (const auto& extent : extents) {
        std::string& bytes = pages[extent.start];
        bytes.resize(extent.bytes);
        if (!ReceiveAll(fd, bytes.data(), bytes.size())) return;
      }
    } else {
      header.kind = static_cast<uint32_t>(transport::DataKind::kAcknowledge);
      (void)!::send(fd, &header, sizeof header, MSG_NOSIGNAL);
      return;
    }
  }
}

class ImageRestoreTest : public BuildTest {
 protected:
  ImageRestoreTest() { options_.new_pid_namespace = true; }

  // What is stored of a child that runs `body`; the child is no more.
  void Take(const std::function<void(Report*)>& body, uint32_t pid = kPid) {
    ASSERT_NO_FATAL_FAILURE(StartChild(body));
    auto process = kernel::ProcessHandle::Open(child_);
    ASSERT_TRUE(process.ok());
    base::UniqueFd landing_end = source_.TakeLandingEnd();
    std::thread keeper([&] { KeepPages(landing_end.get(), pages_); });
    auto state = TakeSnapshot(*process, pid, source_);
    source_.Hangup();
    keeper.join();
    ASSERT_TRUE(state.ok()) << state.status();
    state_ = *std::move(state);
    state_.mutable_inventory()->set_img_version(2);
    state_.mutable_inventory()->set_fdinfo_per_id(true);
    for (auto* ids : {state_.mutable_inventory()->mutable_root_ids(), state_.mutable_ids()}) {
      const uint32_t id = ids == state_.mutable_ids() ? 2 : 1;
      ids->set_vm_id(id);
      ids->set_files_id(id);
      ids->set_fs_id(id);
      ids->set_sighand_id(id);
    }
    // The vDSO is this program's own, which the child has kept.
    auto maps = kernel::ReadMaps(*process);
    ASSERT_TRUE(maps.ok());
    for (const auto& entry : *maps) {
      if (entry.path != "[vdso]") continue;
      vdso_ = entry.range.start().value();
      pages_[vdso_] = std::string(reinterpret_cast<const char*>(vdso_), entry.range.size().value());
    }
    EndChild();
  }

  std::string Set(const std::string& name) { return directory_->File(name); }

  // `flags` of every entry; pages only where they are present.
  void WriteMemory(const std::string& set, uint32_t flags = images::kPagePresent) {
    const base::UniqueFd directory = MakeSet(set);
    images::Pagemap pagemap;
    pagemap.pages_id = 1;
    std::string bytes;
    for (const auto& [start, content] : pages_) {
      pagemap.entries.push_back({start, content.size() / 4096, flags});
      if (flags == images::kPagePresent) bytes += content;
    }
    ASSERT_TRUE(base::WriteFileAtomically(Set(set) + "/pages-1.img", bytes).ok());
    const absl::Status written = images::WritePagemap(directory.get(), PagesOfProcess(), pagemap);
    ASSERT_TRUE(written.ok()) << written;
  }
  images::PagesOf PagesOfProcess() const {
    return {images::PagesOf::Kind::kTask, uint64_t{state_.pid()}};
  }

  void WriteState(const std::string& set, proto::StoredExtra stored = {}) {
    const base::UniqueFd directory = MakeSet(set);
    const absl::Status written = images::WriteState(directory.get(), state_, std::move(stored));
    ASSERT_TRUE(written.ok()) << written;
  }

  // As predump stores it.
  void WriteOurs(const std::string& set = "set") {
    ASSERT_NO_FATAL_FAILURE(WriteMemory(set));
    proto::StoredExtra stored;
    stored.mutable_host()->set_kernel_release("of the test");
    ASSERT_NO_FATAL_FAILURE(WriteState(set, stored));
  }
  // As CRIU does: without what only we have.
  void WriteCrius(const std::string& set = "set") {
    ASSERT_NO_FATAL_FAILURE(WriteMemory(set));
    ASSERT_NO_FATAL_FAILURE(WriteState(set));
    ASSERT_EQ(::unlink((Set(set) + "/" + images::kExtraName).c_str()), 0);
  }

  absl::StatusOr<ImageRestoreReport> Restore(const std::string& set = "set") {
    options_.images_directory = Set(set);
    auto report = RestoreImages(options_);
    if (report.ok() && report->blockers.empty()) {
      built_pid_ = report->pid;
      landing_pid_ = report->pid;
      reaper_ = report->reaper;
    }
    return report;
  }
  void ExpectRuns(int index = 0) {
    EXPECT_TRUE(Beats(index)) << index;
    EXPECT_EQ(report_->wrong, 0u);
  }
  // Each as "what: reason".
  std::vector<std::string> Refusal(const std::string& set = "set") {
    const auto report = Restore(set);
    std::vector<std::string> lines;
    if (!report.ok()) {
      ADD_FAILURE() << report.status();
      return lines;
    }
    for (const auto& blocker : report->blockers) {
      lines.push_back(absl::StrCat(blocker.what(), ": ", blocker.reason()));
    }
    ExpectNothingMade();
    return lines;
  }
  std::string Failure(const std::string& set = "set") {
    const auto report = Restore(set);
    EXPECT_FALSE(report.ok());
    ExpectNothingMade();
    return std::string(report.status().message());
  }
  void ExpectNothingMade() {
    EXPECT_EQ(::waitpid(-1, nullptr, WNOHANG), -1);
    EXPECT_EQ(errno, ECHILD) << "a child was left";
  }
  void Cut(const std::string& file, off_t bytes) {
    ASSERT_EQ(::truncate((Set("set") + "/" + file).c_str(), bytes), 0);
  }

  StoredPages pages_;
  uint64_t vdso_ = 0;
  ImageRestoreOptions options_;

 private:
  base::UniqueFd MakeSet(const std::string& set) {
    ::mkdir(Set(set).c_str(), 0700);
    return base::UniqueFd(::open(Set(set).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  }
};

TEST_F(ImageRestoreTest, AProcessGoesOnWhereItWas) {
  ASSERT_NO_FATAL_FAILURE(Take(BeatAlone));
  ASSERT_NO_FATAL_FAILURE(WriteOurs());
  std::string captured_on;
  options_.compare_hosts = [&](const proto::HostFacts& host) {
    captured_on = host.kernel_release();
    return std::vector<proto::Blocker>();
  };
  const auto report = Restore();
  ASSERT_TRUE(report.ok()) << report.status();
  ASSERT_TRUE(report->blockers.empty()) << report->blockers[0].ShortDebugString();
  EXPECT_EQ(captured_on, "of the test");
  EXPECT_GT(report->pages, 0u);
  ExpectRuns();
}

TEST_F(ImageRestoreTest, CriusImagesWithThreadsGoOn) {
  ASSERT_NO_FATAL_FAILURE(Take([](Report* report) {
    for (int i = 1; i <= kThreads; ++i) std::thread([report, i] { Beat(report, i); }).detach();
    for (int i = 1; i <= kThreads; ++i) {
      while (report->beats[i] == 0) ::sched_yield();
    }
    Beat(report, 0);
  }));
  ASSERT_NO_FATAL_FAILURE(WriteCrius());
  options_.compare_hosts = [](const proto::HostFacts&) {
    ADD_FAILURE() << "nobody knows that host";
    return std::vector<proto::Blocker>();
  };
  const auto report = Restore();
  ASSERT_TRUE(report.ok()) << report.status();
  ASSERT_TRUE(report->blockers.empty()) << report->blockers[0].ShortDebugString();
  for (int i = 0; i <= kThreads; ++i) ExpectRuns(i);
}

TEST_F(ImageRestoreTest, MemoryComesThroughParents) {
  ASSERT_NO_FATAL_FAILURE(Take(BeatAlone));
  ASSERT_NO_FATAL_FAILURE(WriteMemory("1"));
  ASSERT_NO_FATAL_FAILURE(WriteMemory("2", images::kPageParent));
  ASSERT_EQ(::symlink("../1", (Set("2") + "/parent").c_str()), 0);
  ASSERT_NO_FATAL_FAILURE(WriteState("2"));
  const auto report = Restore("2");
  ASSERT_TRUE(report.ok()) << report.status();
  ASSERT_TRUE(report->blockers.empty()) << report->blockers[0].ShortDebugString();
  ExpectRuns();
}

TEST_F(ImageRestoreTest, ClocksGoOnFromWhatTheyWere) {
  ASSERT_NO_FATAL_FAILURE(Take(BeatAlone));
  constexpr int64_t kFarAhead = 100'000'000;  // seconds
  state_.mutable_timens()->mutable_monotonic()->set_tv_sec(kFarAhead);
  state_.mutable_timens()->mutable_monotonic()->set_tv_nsec(0);
  state_.mutable_timens()->mutable_boottime()->set_tv_sec(2 * kFarAhead);
  state_.mutable_timens()->mutable_boottime()->set_tv_nsec(0);
  ASSERT_NO_FATAL_FAILURE(WriteCrius());
  const auto report = Restore();
  ASSERT_TRUE(report.ok()) << report.status();
  const auto offsets = kernel::ReadTimeOffsets(report->pid);
  ASSERT_TRUE(offsets.ok()) << offsets.status();
  constexpr int64_t kSecond = 1'000'000'000;
  EXPECT_NEAR(static_cast<double>(offsets->monotonic_ns + base::ClockNanoseconds(CLOCK_MONOTONIC)),
              static_cast<double>(kFarAhead * kSecond), 20.0 * kSecond);
  EXPECT_NEAR(static_cast<double>(offsets->boottime_ns + base::ClockNanoseconds(CLOCK_BOOTTIME)),
              static_cast<double>(2 * kFarAhead * kSecond), 20.0 * kSecond);
  ExpectRuns();
}

TEST_F(ImageRestoreTest, ItsEndIsTold) {
  const auto body = [](Report* report) {
    while (report->signal_value == 0) report->beats[0]++;
    ::_exit(7);
  };
  ASSERT_NO_FATAL_FAILURE(Take(body));
  ASSERT_NO_FATAL_FAILURE(WriteCrius());
  const auto report = Restore();
  ASSERT_TRUE(report.ok()) << report.status();
  ASSERT_TRUE(Beats(0));
  report_->signal_value = 1;
  EXPECT_EQ(*WaitForRestored(std::exchange(reaper_, 0)), 7);
  report_->signal_value = 0;

  const auto again = Restore();
  ASSERT_TRUE(again.ok()) << again.status();
  ASSERT_EQ(::kill(again->pid, SIGUSR1), 0);
  EXPECT_EQ(*WaitForRestored(std::exchange(reaper_, 0)), 128 + SIGUSR1);
  built_pid_ = 0;
}

TEST_F(ImageRestoreTest, SignalsThatCameLateAreThere) {
  ASSERT_NO_FATAL_FAILURE(Take(BeatAlone));
  ASSERT_NO_FATAL_FAILURE(WriteMemory("set"));
  siginfo_t info = {};
  info.si_signo = SIGUSR2;
  proto::StoredExtra stored;
  stored.add_late_signals()->set_siginfo(&info, sizeof info);
  ASSERT_NO_FATAL_FAILURE(WriteState("set", stored));
  const auto report = Restore();
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(*WaitForRestored(std::exchange(reaper_, 0)), 128 + SIGUSR2);
  built_pid_ = 0;
}

TEST_F(ImageRestoreTest, ThePidfileNamesIt) {
  ASSERT_NO_FATAL_FAILURE(Take(BeatAlone));
  ASSERT_NO_FATAL_FAILURE(WriteCrius());
  options_.pidfile_path = directory_->File("pid");
  const auto report = Restore();
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(*base::ReadWholeFile(options_.pidfile_path), absl::StrCat(report->pid));
}

TEST_F(ImageRestoreTest, WithoutItsPidfileNothingRuns) {
  ASSERT_NO_FATAL_FAILURE(Take(BeatAlone));
  ASSERT_NO_FATAL_FAILURE(WriteCrius());
  options_.pidfile_path = directory_->File("nowhere/pid");
  const uint64_t before = report_->beats[0];
  EXPECT_THAT(Failure(), HasSubstr("nowhere/pid"));
  EXPECT_EQ(report_->beats[0], before);
}

TEST_F(ImageRestoreTest, APidThatIsTakenIsRefused) {
  ASSERT_NO_FATAL_FAILURE(Take(BeatAlone, static_cast<uint32_t>(::getpid())));
  ASSERT_NO_FATAL_FAILURE(WriteCrius());
  options_.new_pid_namespace = false;
  EXPECT_THAT(Refusal(), ElementsAre(absl::StrCat("pid ", ::getpid(), ": is taken on this host")));
}

TEST_F(ImageRestoreTest, AnotherVdsoIsRefused) {
  ASSERT_NO_FATAL_FAILURE(Take(BeatAlone));
  pages_[vdso_][2000] ^= 1;
  ASSERT_NO_FATAL_FAILURE(WriteCrius());
  EXPECT_THAT(Refusal(), ElementsAre(HasSubstr("host vDSO: this kernel gives processes another")));
}

TEST_F(ImageRestoreTest, AnUnknownVdsoIsRefused) {
  ASSERT_NO_FATAL_FAILURE(Take(BeatAlone));
  pages_.erase(vdso_);
  ASSERT_NO_FATAL_FAILURE(WriteCrius());
  EXPECT_THAT(Refusal(), ElementsAre(HasSubstr("host vDSO: nothing tells")));
}

TEST_F(ImageRestoreTest, WhatKeepsItFromThisHostIsNamedAtOnce) {
  ASSERT_NO_FATAL_FAILURE(Take(BeatAlone));
  AddDescriptor(state_, 5, RegularFile("/nowhere/x", O_RDONLY));
  AddDescriptor(state_, 6, UnixSocket(77, 1, 78));
  criu::posix_timer_entry& timer =
      *state_.mutable_threads(0)->mutable_core()->mutable_tc()->mutable_timers()->add_posix();
  timer.set_it_id(0);
  timer.set_clock_id(CLOCK_MONOTONIC);
  timer.set_si_signo(SIGALRM);
  timer.set_it_sigev_notify(0);
  timer.set_sival_ptr(0);
  timer.set_overrun(0);
  timer.set_isec(0);
  timer.set_insec(0);
  timer.set_vsec(1);
  timer.set_vnsec(0);
  ASSERT_NO_FATAL_FAILURE(WriteCrius());
  const std::vector<std::string> lines = Refusal();
  EXPECT_THAT(lines, Contains(HasSubstr("attribute timers: 1 POSIX timers")));
  EXPECT_THAT(lines, Contains(HasSubstr("fd 6: a unix socket connected to another process")));
  EXPECT_THAT(lines, Contains(HasSubstr("file /nowhere/x: not on this host")));
}

// CRIU stores pages of some kinds of memory that are not restored here.
TEST_F(ImageRestoreTest, MemoryOfAForeignKindIsNamedThoughItHasPages) {
  ASSERT_NO_FATAL_FAILURE(Take(BeatAlone));
  uint64_t changed = 0;
  for (criu::vma_entry& vma : *state_.mutable_mm()->mutable_vmas()) {
    if (changed != 0 || pages_.count(vma.start()) == 0 || vma.start() == vdso_) continue;
    if ((vma.status() & images::kVmaAnonymousPrivate) == 0) continue;
    vma.set_flags(vma.flags() | MAP_HUGETLB);
    changed = vma.start();
  }
  ASSERT_NE(changed, 0u);
  ASSERT_NO_FATAL_FAILURE(WriteCrius());
  EXPECT_THAT(Refusal(), Contains(::testing::AllOf(HasSubstr(absl::StrCat(absl::Hex(changed))),
                                                   HasSubstr("hugetlb memory"))));
}

TEST_F(ImageRestoreTest, ASetThatIsNotWholeIsNamed) {
  ASSERT_NO_FATAL_FAILURE(Take(BeatAlone));
  EXPECT_THAT(Failure("none"), HasSubstr("none"));
  ASSERT_NO_FATAL_FAILURE(WriteCrius("set"));
  ASSERT_EQ(::unlink((Set("set") + "/core-5000.img").c_str()), 0);
  EXPECT_THAT(Failure(), HasSubstr("core-5000.img"));
  ASSERT_NO_FATAL_FAILURE(WriteCrius("set"));
  ASSERT_NO_FATAL_FAILURE(Cut("pages-1.img", 8192));
  EXPECT_THAT(Failure(), HasSubstr("pages-1.img"));
  ASSERT_NO_FATAL_FAILURE(WriteCrius("set"));
  ASSERT_EQ(::unlink((Set("set") + "/pagemap-5000.img").c_str()), 0);
  EXPECT_THAT(Failure(), HasSubstr("pagemap-5000.img"));
}

TEST_F(ImageRestoreTest, AParentThatIsGoneIsNamed) {
  ASSERT_NO_FATAL_FAILURE(Take(BeatAlone));
  ASSERT_NO_FATAL_FAILURE(WriteMemory("2", images::kPageParent));
  ASSERT_NO_FATAL_FAILURE(WriteState("2"));
  EXPECT_THAT(Failure("2"), HasSubstr("parent"));
  ASSERT_EQ(::symlink("../1", (Set("2") + "/parent").c_str()), 0);
  EXPECT_THAT(Failure("2"), HasSubstr("parent"));
}

TEST_F(ImageRestoreTest, ANewerFormatIsNamed) {
  ASSERT_NO_FATAL_FAILURE(Take(BeatAlone));
  ASSERT_NO_FATAL_FAILURE(WriteCrius());
  const base::UniqueFd directory(::open(Set("set").c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  state_.mutable_inventory()->set_img_version(3);
  auto image =
      images::ImageWriter::Create(directory.get(), "inventory.img", images::ImageMagic::kInventory);
  ASSERT_TRUE(image.ok());
  ASSERT_TRUE(image->Add(state_.inventory()).ok());
  ASSERT_TRUE(image->Finish().ok());
  EXPECT_THAT(Failure(), HasSubstr("format 3"));
}

TEST_F(ImageRestoreTest, PagesThatAreNobodysAreNamed) {
  ASSERT_NO_FATAL_FAILURE(Take(BeatAlone));
  pages_[0x10000] = std::string(4096, 'x');
  ASSERT_NO_FATAL_FAILURE(WriteCrius());
  EXPECT_THAT(Failure(), HasSubstr("pages at 10000, where the process had no private memory"));
}

}  // namespace
}  // namespace predump::restore
