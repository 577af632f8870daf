// What a stored state asks for that nobody here can give.
#include "src/restore/carried.h"

#include <sched.h>
#include <sys/mman.h>

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "src/images/image_set.h"
#include "src/images/state_validation.h"
#include "tests/images/valid_state.h"
#include "tests/restore/snapshot.h"

namespace predump::restore {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::vector<std::string> Lines(const proto::ProcessState& state) {
  std::vector<std::string> lines;
  for (const auto& blocker : FindUncarried(state)) {
    lines.push_back(absl::StrCat(blocker.what(), ": ", blocker.reason()));
  }
  return lines;
}

criu::file_entry UnixSocket(uint32_t inode, uint32_t peer, uint32_t type) {
  criu::file_entry file;
  file.set_type(criu::UNIXSK);
  file.mutable_usk()->set_ino(inode);
  file.mutable_usk()->set_peer(peer);
  file.mutable_usk()->set_type(type);
  file.mutable_usk()->set_state(1);
  file.mutable_usk()->set_flags(2);
  file.mutable_usk()->set_uflags(0);
  file.mutable_usk()->set_backlog(0);
  file.mutable_usk()->set_name("");
  criu::sk_opts_entry& options = *file.mutable_usk()->mutable_opts();
  options.set_so_sndbuf(212992);
  options.set_so_rcvbuf(212992);
  options.set_so_snd_tmo_sec(0);
  options.set_so_snd_tmo_usec(0);
  options.set_so_rcv_tmo_sec(0);
  options.set_so_rcv_tmo_usec(0);
  return file;
}

TEST(Carried, APlainProcessIs) { EXPECT_THAT(Lines(images::testing::ValidState()), ElementsAre()); }

TEST(Carried, SignalsOfAFileThatGoToSomebodyAreNot) {
  proto::ProcessState state = images::testing::ValidState();
  const uint32_t id = AddDescriptor(state, 9, RegularFile("/dev/null", 0));
  EXPECT_THAT(Lines(state), ElementsAre());
  for (auto& file : *state.mutable_files()) {
    if (file.id() == id) file.mutable_reg()->mutable_fown()->set_pid(12);
  }
  EXPECT_THAT(Lines(state), ElementsAre(HasSubstr("fd 9: its signals go to somebody")));
}

TEST(Carried, NamedPipesAreNot) {
  proto::ProcessState state = images::testing::ValidState();
  criu::file_entry fifo;
  fifo.set_type(criu::FIFO);
  AddDescriptor(state, 9, fifo);
  EXPECT_THAT(Lines(state), ElementsAre("fd 9: a named pipe"));
}

TEST(Carried, MessagesOfASenderThatIsNotThereAreNot) {
  proto::ProcessState state = images::testing::ValidState();
  const uint32_t receiver = AddDescriptor(state, 9, UnixSocket(50, 51, 2));
  AddDescriptor(state, 10, UnixSocket(51, 50, 2));
  proto::SocketPacket& packet = *state.add_packets();
  packet.mutable_entry()->set_id_for(receiver);
  EXPECT_THAT(Lines(state), ElementsAre());
  for (auto& file : *state.mutable_files()) {
    if (file.id() == receiver) file.mutable_usk()->set_peer(0);
  }
  EXPECT_THAT(Lines(state),
              testing::Contains("fd 9: holds messages of a socket that is not in the process"));
}

TEST(Carried, UnixSocketsWhosePeerIsNotThereAreNot) {
  proto::ProcessState state = images::testing::ValidState();
  AddDescriptor(state, 9, UnixSocket(50, 51, 1));
  EXPECT_THAT(Lines(state), ElementsAre("fd 9: a unix socket connected to another process"));
  AddDescriptor(state, 10, UnixSocket(51, 50, 1));
  EXPECT_THAT(Lines(state), ElementsAre());
}

TEST(Carried, DatagramSocketsConnectedOneWayAreNot) {
  proto::ProcessState state = images::testing::ValidState();
  AddDescriptor(state, 9, UnixSocket(50, 51, 2));
  AddDescriptor(state, 10, UnixSocket(51, 0, 2));
  EXPECT_THAT(Lines(state), ElementsAre("fd 9: a datagram socket connected one way"));
}

TEST(Carried, SchedulingAndProcessorStateOfOthersAreNot) {
  proto::ProcessState state = images::testing::ValidState();
  proto::ThreadState& thread = *state.mutable_threads(0);
  thread.mutable_core()->mutable_thread_core()->set_sched_policy(6);
  EXPECT_THAT(Lines(state), ElementsAre(HasSubstr("has the scheduling policy 6")));
  thread.mutable_core()->mutable_thread_core()->set_sched_policy(SCHED_BATCH);
  thread.mutable_extra()->clear_xsave();
  auto& xsave = *thread.mutable_core()->mutable_thread_info()->mutable_fpregs()->mutable_xsave();
  xsave.set_xstate_bv(3);
  EXPECT_THAT(Lines(state), ElementsAre());
  xsave.set_xstate_bv(3 | 1 << 18);  // AMX, which CRIU's message has no field for
  EXPECT_THAT(Lines(state), ElementsAre(HasSubstr("components 0x40000 of XCR0")));
}

TEST(Carried, WithoutWhatIsNotTheRestCanBeChecked) {
  proto::ProcessState state = images::testing::ValidState();
  criu::core_entry& core = *state.mutable_threads(0)->mutable_core();
  core.mutable_thread_core()->set_seccomp_mode(criu::filter);
  core.mutable_tc()->set_task_state(3);
  core.mutable_tc()->mutable_timers()->add_posix();
  state.mutable_mm()->mutable_vmas(0)->set_status(0x4081);
  state.mutable_mm()->add_aios();
  AddDescriptor(state, 9, UnixSocket(50, 51, 1));
  EXPECT_FALSE(images::ValidateState(state, images::StateKind::kFull).ok());
  TakeOutUncarried(state);
  const absl::Status valid = images::ValidateState(state, images::StateKind::kFull);
  EXPECT_TRUE(valid.ok()) << valid;
}

}  // namespace
}  // namespace predump::restore
