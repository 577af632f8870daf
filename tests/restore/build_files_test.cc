// Files, pipes and anonymous descriptors of a process that was built.
#include <fcntl.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <string>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "src/base/clock.h"
#include "src/base/unique_fd.h"
#include "src/images/image_constants.h"
#include "src/kernel/procfs.h"
#include "tests/restore/build_fixture.h"

namespace predump::restore {
namespace {

TEST_F(BuildTest, FilesKeepOffsetFlagsSharingAndCloseOnExec) {
  ASSERT_NO_FATAL_FAILURE(Prepare(BeatAlone));
  const std::string path = directory_->File("data");
  {
    const base::UniqueFd file(::open(path.c_str(), O_CREAT | O_WRONLY, 0600));
    ASSERT_EQ(::write(file.get(), "0123456789", 10), 10);
  }
  AddDescriptor(state_, 0, RegularFile("/dev/null", O_RDWR));
  const uint32_t log = AddDescriptor(state_, 2, RegularFile(path, O_RDWR | O_APPEND, 4));
  AddAnotherDescriptor(state_, 1, log);
  AddDescriptor(state_, 700, RegularFile(path, O_RDONLY, 7), true);
  AddDescriptor(state_, 5, RegularFile(directory_->path(), O_RDONLY | O_DIRECTORY));
  const absl::Status built = Build();
  ASSERT_TRUE(built.ok()) << built;
  const auto process = Process();
  EXPECT_THAT(*kernel::ListDescriptors(process), ::testing::ElementsAre(0, 1, 2, 5, 700));
  EXPECT_EQ(*kernel::ReadProcLink(process, "fd/5"), directory_->path());
  EXPECT_EQ(ReadSome(Descriptor(700).get()), "789");
  // One description: what one descriptor reads the other has passed.
  EXPECT_EQ(ReadSome(Descriptor(1).get()), "456789");
  EXPECT_EQ(::lseek(Descriptor(2).get(), 0, SEEK_CUR), 10);
  EXPECT_NE(::fcntl(Descriptor(2).get(), F_GETFL) & O_APPEND, 0);
  EXPECT_NE(kernel::ReadFdInfo(process, 700)->flags & O_CLOEXEC, 0u);
  EXPECT_EQ(kernel::ReadFdInfo(process, 2)->flags & O_CLOEXEC, 0u);
}

TEST_F(BuildTest, PipesKeepWhatIsInThemAndTheirSize) {
  ASSERT_NO_FATAL_FAILURE(Prepare(BeatAlone));
  // Crossed on purpose: the numbers pipe2(2) gives are the other way round.
  AddDescriptor(state_, 1, PipeEnd(77, O_RDONLY | O_NONBLOCK));
  AddDescriptor(state_, 0, PipeEnd(77, O_WRONLY), true);
  AddDescriptor(state_, 4, PipeEnd(78, O_RDONLY));  // the writer is gone
  proto::PipeData& data = *state_.add_pipes();
  data.mutable_entry()->set_pipe_id(77);
  data.mutable_entry()->set_bytes(5);
  data.mutable_entry()->set_size(131072);
  data.set_data("hello");
  proto::PipeData& rest = *state_.add_pipes();
  rest.mutable_entry()->set_pipe_id(78);
  rest.mutable_entry()->set_bytes(4);
  rest.mutable_entry()->set_size(65536);
  rest.set_data("last");
  const absl::Status built = Build();
  ASSERT_TRUE(built.ok()) << built;
  const base::UniqueFd reader = Descriptor(1);
  EXPECT_EQ(::fcntl(reader.get(), F_GETPIPE_SZ), 131072);
  EXPECT_EQ(ReadSome(reader.get()), "hello");
  EXPECT_EQ(ReadSome(reader.get()), absl::StrCat("errno ", EAGAIN));
  EXPECT_EQ(::write(Descriptor(0).get(), "more", 4), 4);
  EXPECT_EQ(ReadSome(reader.get()), "more");
  EXPECT_EQ(ReadSome(Descriptor(4).get()), "last");
  EXPECT_EQ(ReadSome(Descriptor(4).get()), "");
  EXPECT_THAT(*kernel::ListDescriptors(Process()), ::testing::ElementsAre(0, 1, 4));
}

// Protections change while rounds go on, and only those of the freeze count.
TEST_F(BuildTest, SharedFilesGetTheProtectionOfTheFreeze) {
  ASSERT_NO_FATAL_FAILURE(Prepare(BeatAlone));
  uint64_t start = 0;
  for (auto& vma : *state_.mutable_mm()->mutable_vmas()) {
    if ((vma.flags() & MAP_SHARED) == 0 || vma.prot() != (PROT_READ | PROT_WRITE)) continue;
    start = vma.start();
    vma.set_prot(PROT_READ);
  }
  ASSERT_NE(start, 0u);
  const absl::Status built = Build();
  ASSERT_TRUE(built.ok()) << built;
  const auto maps = kernel::ReadMaps(Process());
  ASSERT_TRUE(maps.ok());
  for (const kernel::MapsEntry& entry : *maps) {
    if (entry.range.start().value() != start) continue;
    EXPECT_EQ(entry.prot, PROT_READ);
  }
}

TEST_F(BuildTest, ADirectoryLeftAtItsEndCanBeRewound) {
  ASSERT_NO_FATAL_FAILURE(Prepare(BeatAlone));
  const std::string path = directory_->File("listed");
  ASSERT_EQ(::mkdir(path.c_str(), 0700), 0);
  for (int i = 0; i < 300; ++i) {
    const base::UniqueFd entry(::open(absl::StrCat(path, "/entry-", i).c_str(), O_CREAT, 0600));
    ASSERT_TRUE(entry.valid());
  }
  const auto list = [](int fd) {
    alignas(8) char buffer[1024];
    long total = 0;
    for (long n; (n = ::syscall(SYS_getdents64, fd, buffer, sizeof buffer)) > 0;) total += n;
    return total;
  };
  const base::UniqueFd before(::open(path.c_str(), O_RDONLY | O_DIRECTORY));
  const long all = list(before.get());
  ASSERT_GT(all, 300 * 24);
  criu::file_entry file;
  file.set_type(criu::REG);
  file.mutable_reg()->set_flags(O_RDONLY | O_DIRECTORY);
  file.mutable_reg()->set_name(path);
  file.mutable_reg()->set_mode(S_IFDIR | 0700);
  file.mutable_reg()->set_pos(static_cast<uint64_t>(::lseek(before.get(), 0, SEEK_CUR)));
  AddDescriptor(state_, 3, file);
  const absl::Status built = Build();
  ASSERT_TRUE(built.ok()) << built;
  const base::UniqueFd directory = Descriptor(3);
  EXPECT_EQ(list(directory.get()), 0);
  ASSERT_EQ(::lseek(directory.get(), 0, SEEK_SET), 0);
  EXPECT_EQ(list(directory.get()), all);
}

TEST_F(BuildTest, EventTimerSignalAndPollDescriptorsComeBack) {
  ASSERT_NO_FATAL_FAILURE(Prepare(BeatAlone));
  criu::file_entry event;
  event.set_type(criu::EVENTFD);
  event.mutable_efd()->set_flags(O_RDWR | O_NONBLOCK);
  event.mutable_efd()->set_counter(3);
  const uint32_t event_id = AddDescriptor(state_, 3, event);
  proto::FileExtra& extra = *state_.add_file_extras();
  extra.set_id(event_id);
  extra.set_eventfd_semaphore(true);
  event.mutable_efd()->set_counter(0x1'0000'0005);
  AddDescriptor(state_, 4, event);
  criu::file_entry timer;
  timer.set_type(criu::TIMERFD);
  timer.mutable_tfd()->set_flags(O_RDWR);
  timer.mutable_tfd()->set_clockid(CLOCK_MONOTONIC);
  timer.mutable_tfd()->set_ticks(0);
  timer.mutable_tfd()->set_settime_flags(0);
  timer.mutable_tfd()->set_vsec(100);
  timer.mutable_tfd()->set_vnsec(0);
  timer.mutable_tfd()->set_isec(7);
  timer.mutable_tfd()->set_insec(0);
  AddDescriptor(state_, 5, timer);
  criu::file_entry signals;
  signals.set_type(criu::SIGNALFD);
  signals.mutable_sgfd()->set_flags(O_RDWR | O_NONBLOCK);
  signals.mutable_sgfd()->set_signal_mask(1ull << (SIGUSR2 - 1));
  AddDescriptor(state_, 6, signals);
  criu::file_entry poll;
  poll.set_type(criu::EVENTPOLL);
  poll.mutable_epfd()->set_flags(O_RDWR);
  for (const uint32_t watched : {3u, 5u}) {
    auto* entry = poll.mutable_epfd()->add_tfd();
    entry->set_id(0);
    entry->set_tfd(watched);
    entry->set_events(EPOLLIN | EPOLLET | (watched == 5 ? EPOLLONESHOT : 0u));
    entry->set_data(0xabcd0000u + watched);
  }
  AddDescriptor(state_, 7, poll);
  const absl::Status built = Build();
  ASSERT_TRUE(built.ok()) << built;
  uint64_t value = 0;
  ASSERT_EQ(::read(Descriptor(3).get(), &value, 8), 8);
  EXPECT_EQ(value, 1u) << "semaphore";
  ASSERT_EQ(::read(Descriptor(4).get(), &value, 8), 8);
  EXPECT_EQ(value, 0x1'0000'0005u);
  itimerspec left = {};
  ASSERT_EQ(::timerfd_gettime(Descriptor(5).get(), &left), 0);
  EXPECT_GE(left.it_value.tv_sec, 95);
  EXPECT_EQ(left.it_interval.tv_sec, 7);
  const auto process = Process();
  EXPECT_EQ(*kernel::ReadFdInfo(process, 6)->Find("sigmask"), "0000000000000800");
  epoll_event ready[4];
  ASSERT_EQ(::epoll_wait(Descriptor(7).get(), ready, 4, 0), 1);
  EXPECT_EQ(ready[0].data.u64, 0xabcd0003u);
  const auto info = kernel::ReadFdInfo(process, 7);
  int watched = 0;
  for (const auto& [key, text] : info->lines) watched += key == "tfd";
  EXPECT_EQ(watched, 2);
}

// As `criu dump` finds it; predump's own capture asks for the time left.
TEST_F(BuildTest, APeriodicTimerThatNobodyHasReadSinceItExpiredGoesOn) {
  ASSERT_NO_FATAL_FAILURE(Prepare(BeatAlone));
  criu::file_entry timer;
  timer.set_type(criu::TIMERFD);
  timer.mutable_tfd()->set_flags(O_RDWR);
  timer.mutable_tfd()->set_clockid(CLOCK_MONOTONIC);
  timer.mutable_tfd()->set_ticks(3);
  timer.mutable_tfd()->set_settime_flags(0);
  timer.mutable_tfd()->set_vsec(0);
  timer.mutable_tfd()->set_vnsec(0);
  timer.mutable_tfd()->set_isec(70);
  timer.mutable_tfd()->set_insec(0);
  AddDescriptor(state_, 3, timer);
  const absl::Status built = Build();
  ASSERT_TRUE(built.ok()) << built;
  uint64_t ticks = 0;
  ASSERT_EQ(::read(Descriptor(3).get(), &ticks, 8), 8);
  EXPECT_EQ(ticks, 3u);
  itimerspec left = {};
  ASSERT_EQ(::timerfd_gettime(Descriptor(3).get(), &left), 0);
  EXPECT_EQ(left.it_interval.tv_sec, 70);
  EXPECT_GT(left.it_value.tv_sec, 0);
}

// 2.5 s after the freeze, a timer of 1 s that had 0.3 s left has expired three times, and has 0.8
// s.
TEST_F(BuildTest, APeriodicTimerKeepsItsPhaseAndCountsWhatExpiredMeanwhile) {
  ASSERT_NO_FATAL_FAILURE(Prepare(BeatAlone));
  state_.mutable_extra()->set_freeze_monotonic_ns(base::MonotonicNanoseconds() - 2'500'000'000);
  criu::file_entry timer;
  timer.set_type(criu::TIMERFD);
  timer.mutable_tfd()->set_flags(O_RDWR);
  timer.mutable_tfd()->set_clockid(CLOCK_MONOTONIC);
  timer.mutable_tfd()->set_ticks(2);
  timer.mutable_tfd()->set_settime_flags(0);
  timer.mutable_tfd()->set_vsec(0);
  timer.mutable_tfd()->set_vnsec(300'000'000);
  timer.mutable_tfd()->set_isec(1);
  timer.mutable_tfd()->set_insec(0);
  AddDescriptor(state_, 3, timer);
  const base::Stopwatch watch;
  const absl::Status built = Build();
  ASSERT_TRUE(built.ok()) << built;
  itimerspec left = {};
  ASSERT_EQ(::timerfd_gettime(Descriptor(3).get(), &left), 0);
  uint64_t ticks = 0;
  ASSERT_EQ(::read(Descriptor(3).get(), &ticks, 8), 8);
  ASSERT_LT(watch.Elapsed(), absl::Milliseconds(700)) << "this machine is too busy to tell";
  EXPECT_EQ(ticks, 5u);
  EXPECT_EQ(left.it_value.tv_sec, 0);
  EXPECT_GT(left.it_value.tv_nsec, 50'000'000);
  EXPECT_LE(left.it_value.tv_nsec, 800'000'000);
}

// What a thread took from epoll_wait(2) is its own until it asks for more: also when the other end
// hangs up meanwhile.
TEST_F(BuildTest, AOneShotEntryThatHasFiredStaysSilent) {
  ASSERT_NO_FATAL_FAILURE(Prepare(BeatAlone));
  criu::file_entry left = UnixSocket(300, images::kSocketEstablished, 301);
  criu::file_entry right = UnixSocket(301, images::kSocketEstablished, 300);
  right.mutable_usk()->set_shutdown(criu::BOTH);
  AddDescriptor(state_, 3, left);
  AddDescriptor(state_, 4, right);
  criu::file_entry event;
  event.set_type(criu::EVENTFD);
  event.mutable_efd()->set_flags(O_RDWR);
  event.mutable_efd()->set_counter(1);
  AddDescriptor(state_, 5, event);
  criu::file_entry poll;
  poll.set_type(criu::EVENTPOLL);
  poll.mutable_epfd()->set_flags(O_RDWR);
  for (const uint32_t watched : {5u, 3u, 4u}) {
    auto* entry = poll.mutable_epfd()->add_tfd();
    entry->set_id(0);
    entry->set_tfd(watched);
    entry->set_events(watched == 5 ? EPOLLIN | EPOLLERR | EPOLLHUP : EPOLLONESHOT);
    entry->set_data(watched);
  }
  AddDescriptor(state_, 6, poll);
  const absl::Status built = Build();
  ASSERT_TRUE(built.ok()) << built;
  epoll_event ready[4];
  ASSERT_EQ(::epoll_wait(Descriptor(6).get(), ready, 4, 0), 1);
  EXPECT_EQ(ready[0].data.u64, 5u);
  const auto info = kernel::ReadFdInfo(Process(), 6);
  int fired = 0;
  for (const auto& [key, text] : info->lines) {
    if (key == "tfd" && text.find("events: 40000000 data:") != std::string::npos) ++fired;
  }
  EXPECT_EQ(fired, 2);
}

}  // namespace
}  // namespace predump::restore
