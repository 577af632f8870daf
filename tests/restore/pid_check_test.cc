// A number is free, taken, or free as soon as a parent looks after its dead.
#include "src/restore/pid_check.h"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <functional>
#include <future>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace predump::restore {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

// A child in a process group: that of `group`, or its own. Ends when it is told to, and is reaped
// with the object at the latest.
class GroupMember {
 public:
  explicit GroupMember(pid_t group = 0) {
    pid_ = ::fork();
    if (pid_ == 0) {
      for (;;) ::pause();
    }
    EXPECT_EQ(::setpgid(pid_, group), 0);
  }
  GroupMember(const GroupMember&) = delete;
  GroupMember& operator=(const GroupMember&) = delete;
  ~GroupMember() {
    if (pid_ < 0) return;
    ::kill(pid_, SIGKILL);
    Reap();
  }

  pid_t pid() const { return pid_; }
  void End() {
    ::kill(pid_, SIGKILL);
    siginfo_t info;
    EXPECT_EQ(::waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED | WNOWAIT), 0);
  }
  void Reap() { EXPECT_GT(::waitpid(std::exchange(pid_, -1), nullptr, 0), 0); }

 private:
  pid_t pid_ = -1;
};

std::vector<std::string> Find(pid_t pid, absl::Duration patience) {
  proto::Begin begin;
  begin.set_pid(static_cast<uint32_t>(pid));
  internal::Blockers blockers;
  internal::FindTakenPids(begin, patience, blockers);
  std::vector<std::string> texts;
  for (const auto& blocker : blockers) {
    texts.push_back(absl::StrCat(blocker.what(), ": ", blocker.reason()));
  }
  return texts;
}

std::string Taken(pid_t pid) { return absl::StrCat("pid ", pid, ": is taken on this host"); }
std::string TakenByTheDead(pid_t pid, pid_t dead, const std::string& comm) {
  return absl::StrCat(Taken(pid), " by process ", dead, " (", comm,
                      "), which has ended and is not reaped by its parent, ", ::getpid());
}

// Whether Find waits until `reap` has been called, and finds nothing then.
void ExpectWaitsFor(pid_t pid, const std::function<void()>& reap) {
  auto found = std::async(std::launch::async, [&] { return Find(pid, absl::InfiniteDuration()); });
  EXPECT_EQ(found.wait_for(std::chrono::milliseconds(100)), std::future_status::timeout);
  reap();
  EXPECT_THAT(found.get(), IsEmpty());
}

TEST(PidCheckTest, TheLivingAreNotWaitedFor) {
  const GroupMember child;
  EXPECT_THAT(Find(child.pid(), absl::InfiniteDuration()), ElementsAre(Taken(child.pid())));
}

TEST(PidCheckTest, TheDeadAreUntilTheyAreReaped) {
  GroupMember child;
  child.End();
  ExpectWaitsFor(child.pid(), [&] { child.Reap(); });
}

TEST(PidCheckTest, TheUnreapedAreNamedWithTheirParents) {
  GroupMember child;
  child.End();
  EXPECT_THAT(Find(child.pid(), absl::Milliseconds(10)),
              ElementsAre(TakenByTheDead(child.pid(), child.pid(), "restore_pid_che")));
}

TEST(PidCheckTest, AGroupWithLivingMembersKeepsItsNumber) {
  GroupMember leader;
  const GroupMember member(leader.pid());
  const pid_t group = leader.pid();
  leader.End();
  EXPECT_THAT(Find(group, absl::InfiniteDuration()), ElementsAre(Taken(group)));
  leader.Reap();
  EXPECT_THAT(Find(group, absl::InfiniteDuration()), ElementsAre(Taken(group)));
}

TEST(PidCheckTest, AGroupOfTheDeadIsWaitedFor) {
  GroupMember leader;
  GroupMember member(leader.pid());
  const pid_t group = leader.pid();
  leader.End();
  leader.Reap();
  member.End();
  EXPECT_THAT(Find(group, absl::ZeroDuration()),
              ElementsAre(TakenByTheDead(group, member.pid(), "restore_pid_che")));
  ExpectWaitsFor(group, [&] { member.Reap(); });
}

}  // namespace
}  // namespace predump::restore
