// Credentials, scheduling, limits and names of a process that was built.
#include <fcntl.h>
#include <linux/mempolicy.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/sysinfo.h>
#include <unistd.h>

#include <string>
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "src/kernel/procfs.h"
#include "src/kernel/uapi_sched_attr.h"
#include "tests/restore/build_fixture.h"

namespace predump::restore {
namespace {

using ::testing::HasSubstr;

uint64_t TimeSlice(pid_t pid) {
  kernel::SchedAttributes attributes = {};
  EXPECT_EQ(::syscall(SYS_sched_getattr, pid, &attributes, sizeof attributes, 0), 0);
  return attributes.runtime;
}

void SetTimeSlice(uint64_t nanoseconds) {
  kernel::SchedAttributes attributes = {};
  EXPECT_EQ(::syscall(SYS_sched_getattr, 0, &attributes, sizeof attributes, 0), 0);
  attributes.runtime = nanoseconds;
  EXPECT_EQ(::syscall(SYS_sched_setattr, 0, &attributes, 0), 0);
}

TEST_F(BuildTest, AttributesOfTheProcessComeBack) {
  ASSERT_NO_FATAL_FAILURE(Prepare(BeatAlone));
  auto* leader = state_.mutable_threads(0);
  criu::thread_core_entry& core = *leader->mutable_core()->mutable_thread_core();
  criu::task_core_entry& task = *leader->mutable_core()->mutable_tc();
  core.set_sched_nice(7);
  core.set_comm("renamed");
  task.set_comm("renamed");
  task.set_oom_score_adj(321);
  task.mutable_rlimits()->mutable_rlimits(RLIMIT_NOFILE)->set_cur(123);
  task.mutable_rlimits()->mutable_rlimits(RLIMIT_CORE)->set_cur(0);
  criu::creds_entry& creds = *core.mutable_creds();
  creds.set_uid(1001);
  creds.set_euid(1001);
  creds.set_suid(1001);
  creds.set_fsuid(1001);
  creds.set_gid(1002);
  creds.set_egid(1002);
  creds.set_sgid(1002);
  creds.set_fsgid(1002);
  creds.clear_groups();
  creds.add_groups(1003);
  creds.add_groups(1004);
  for (auto* set : {creds.mutable_cap_prm(), creds.mutable_cap_eff()}) {
    set->Set(0, 0);
    set->Set(1, 0);
  }
  creds.set_no_new_privs(1);
  core.set_pdeath_sig(SIGUSR2);
  state_.mutable_fs()->set_umask(027);
  state_.mutable_extra()->set_coredump_filter(0x13);
  const std::string mask("\1\0\0\0\0\0\0\0", 8);
  leader->mutable_extra()->set_cpu_affinity(mask);
  leader->mutable_extra()->set_timer_slack_ns(77'000);
  AddDescriptor(state_, 200, RegularFile("/dev/null", O_RDWR));  // above the soft limit
  const absl::Status built = Build();
  ASSERT_TRUE(built.ok()) << built;
  const absl::Status released = Release();
  ASSERT_TRUE(released.ok()) << released;
  EXPECT_TRUE(Beats(0));
  const auto process = Process();
  const auto status = *kernel::ReadStatus(process);
  EXPECT_THAT(status.uids, ::testing::Each(1001u));
  EXPECT_THAT(status.gids, ::testing::Each(1002u));
  EXPECT_THAT(status.groups, ::testing::ElementsAre(1003u, 1004u));
  EXPECT_EQ(status.cap_permitted, 0u);
  EXPECT_EQ(status.cap_effective, 0u);
  EXPECT_TRUE(status.no_new_privileges);
  EXPECT_EQ(status.umask, 027u);
  EXPECT_EQ(status.name, "renamed");
  EXPECT_EQ(kernel::ReadStat(process)->nice, 7);
  EXPECT_EQ(*kernel::ReadOomScoreAdj(process), 321);
  EXPECT_EQ(*kernel::ReadProcFile(process, "coredump_filter"), "00000013\n");
  EXPECT_EQ(*kernel::ReadProcFile(process, "timerslack_ns"), "77000\n");
  const auto limits = *kernel::ReadLimits(process);
  for (const auto& limit : limits) {
    if (limit.resource == RLIMIT_NOFILE) {
      EXPECT_EQ(limit.soft, 123u);
    }
  }
  cpu_set_t cpus;
  ASSERT_EQ(::sched_getaffinity(built_pid_, sizeof(cpus), &cpus), 0);
  EXPECT_EQ(CPU_COUNT(&cpus), 1);
}

// A page server is started by whatever somebody thought good for it; what it makes has what it had.
TEST_F(BuildTest, NothingOfTheServerIsInherited) {
  // In a thread of its own: most of it belongs to one.
  absl::Status built;
  std::thread([&] {
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(0, &one);
    const unsigned long node = 1;
    ASSERT_EQ(::sched_setaffinity(0, sizeof one, &one), 0);
    ASSERT_EQ(::syscall(SYS_ioprio_set, 1, 0, 3 << 13), 0);
    ASSERT_EQ(::prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0), 0);
    (void)::syscall(SYS_set_mempolicy, MPOL_BIND, &node, 64);  // where there is NUMA
    SetTimeSlice(7'000'000);
    ASSERT_NO_FATAL_FAILURE(Prepare(BeatAlone));
    ::prctl(PR_SET_THP_DISABLE, 0, 0, 0, 0);
    for (auto& thread : *state_.mutable_threads()) thread.mutable_extra()->clear_cpu_affinity();
    state_.mutable_extra()->clear_thp_disabled();
    state_.mutable_mm()->clear_thp_disabled();
    built = Build();
    if (built.ok()) built = Release();
  }).join();
  if (HasFatalFailure()) return;
  ASSERT_TRUE(built.ok()) << built;
  cpu_set_t cpus;
  ASSERT_EQ(::sched_getaffinity(built_pid_, sizeof cpus, &cpus), 0);
  EXPECT_EQ(CPU_COUNT(&cpus), ::get_nprocs());
  EXPECT_EQ(::syscall(SYS_ioprio_get, 1, built_pid_) >> 13, 0);
  EXPECT_EQ(TimeSlice(built_pid_), TimeSlice(0));
  EXPECT_TRUE(kernel::ReadStatus(Process())->thp_enabled);
  const auto policies = kernel::ReadProcFile(Process(), "numa_maps");
  if (policies.ok()) {
    EXPECT_THAT(*policies, ::testing::Not(HasSubstr("bind")));
  }
}

TEST_F(BuildTest, TimeSliceLoginUidAndHugePagesComeBack) {
  ASSERT_NO_FATAL_FAILURE(Prepare(BeatAlone));
  state_.mutable_threads(0)->mutable_extra()->set_time_slice_ns(5'000'000);
  state_.mutable_extra()->set_thp_disabled(true);
  const auto login = kernel::ReadLoginUid(*kernel::ProcessHandle::Open(::getpid()));
  // Somebody who has logged in stays who he is; nobody can become somebody.
  const bool may_log_in = login.ok() && *login == ~0u;
  criu::task_core_entry& task = *state_.mutable_threads(0)->mutable_core()->mutable_tc();
  if (may_log_in) task.set_loginuid(4242);
  const absl::Status built = Build();
  ASSERT_TRUE(built.ok()) << built;
  EXPECT_EQ(TimeSlice(landing_pid_), 5'000'000u);
  EXPECT_FALSE(kernel::ReadStatus(Process())->thp_enabled);
  if (may_log_in) {
    EXPECT_EQ(*kernel::ReadLoginUid(Process()), 4242u);
  }
}

}  // namespace
}  // namespace predump::restore
