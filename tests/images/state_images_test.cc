// A state becomes images and a state again.
#include "src/images/state_images.h"

#include <signal.h>

#include <string>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "google/protobuf/util/message_differencer.h"
#include "gtest/gtest.h"
#include "src/images/image_constants.h"
#include "src/images/image_file.h"
#include "src/images/image_set.h"
#include "src/images/state_validation.h"
#include "tests/images/rich_state.h"
#include "tests/images/state_images_fixture.h"

namespace predump::images {
namespace {

using ::google::protobuf::util::MessageDifferencer;
using ::testing::IsEmpty;

std::string Difference(const google::protobuf::Message& a, const google::protobuf::Message& b) {
  std::string text;
  MessageDifferencer differencer;
  differencer.ReportDifferencesToString(&text);
  differencer.Compare(a, b);
  return text;
}

TEST_F(StateImages, ComesBackAsItWas) {
  const proto::ProcessState state = testing::RichState();
  ASSERT_TRUE(ValidateState(state, StateKind::kFull).ok())
      << ValidateState(state, StateKind::kFull);
  Write(state);
  const StoredState stored = Read();
  EXPECT_EQ(Difference(state, stored.state), "");
  EXPECT_THAT(stored.blockers, IsEmpty());
  ASSERT_TRUE(stored.extra.has_value());
}

TEST_F(StateImages, TheExtraBringsWhatItWasGiven) {
  proto::StoredExtra extra;
  extra.mutable_host()->set_kernel_release("6.6.6");
  extra.set_session_id("0123456789abcdef");
  extra.set_shell_job(true);
  Write(testing::RichState(), extra);
  const StoredState stored = Read();
  EXPECT_EQ(stored.extra->host().kernel_release(), "6.6.6");
  EXPECT_EQ(stored.extra->session_id(), "0123456789abcdef");
  EXPECT_TRUE(stored.extra->shell_job());
}

TEST_F(StateImages, WithoutTheExtraItIsASetOfCriusAndStillValid) {
  Write(testing::RichState());
  Remove(kExtraName);
  const StoredState stored = Read();
  EXPECT_FALSE(stored.extra.has_value());
  EXPECT_THAT(stored.blockers, IsEmpty());
  EXPECT_EQ(stored.state.extra().exe_path(), "/bin/true");
  EXPECT_EQ(stored.state.extra().personality(), 0x40000u);
  EXPECT_EQ(stored.state.extra().freeze_monotonic_ns(), 1'000'000'007);
  EXPECT_TRUE(ValidateState(stored.state, StateKind::kStored).ok())
      << ValidateState(stored.state, StateKind::kStored);
}

TEST_F(StateImages, AnEditedImageWinsOverTheExtra) {
  Write(testing::RichState());
  Edit<criu::core_entry>("core-4321.img", ImageMagic::kCore, [](auto& core) {
    core.mutable_tc()->set_comm("edited");
    core.mutable_tc()->set_personality(0);
    core.mutable_tc()->set_membarrier_registration_mask(16);
    core.mutable_thread_info()->mutable_gpregs()->set_ip(0x401234);
  });
  Edit<criu::core_entry>("core-4322.img", ImageMagic::kCore, [](auto& core) {
    core.mutable_thread_info()->mutable_fpregs()->set_mxcsr(0x1fa0);
  });
  Edit<criu::mm_entry>("mm-4321.img", ImageMagic::kMm, [](auto& mm) {
    mm.set_mm_saved_auxv(1, 77);
    mm.set_thp_disabled(false);
    mm.mutable_vmas()->DeleteSubrange(1, 1);  // the one with a name
  });
  const StoredState stored = Read();
  EXPECT_EQ(stored.state.threads(0).core().tc().comm(), "edited");
  EXPECT_EQ(stored.state.extra().personality(), 0u);
  EXPECT_EQ(stored.state.extra().membarrier_registrations(), 16u);
  EXPECT_FALSE(stored.state.extra().thp_disabled());
  // What belonged to the registers as they were is gone, the extended state is not.
  EXPECT_FALSE(stored.state.threads(0).extra().has_interrupted_call());
  EXPECT_FALSE(stored.state.threads(0).extra().has_raw_registers());
  EXPECT_TRUE(stored.state.threads(0).extra().has_xsave());
  // And the other way round in the second thread.
  EXPECT_TRUE(stored.state.threads(1).extra().has_raw_registers());
  EXPECT_FALSE(stored.state.threads(1).extra().has_xsave());
  EXPECT_EQ(stored.state.extra().auxv_size(), 0);
  EXPECT_EQ(stored.state.extra().vmas_size(), 0);
  EXPECT_TRUE(ValidateState(stored.state, StateKind::kStored).ok())
      << ValidateState(stored.state, StateKind::kStored);
}

TEST_F(StateImages, ExtrasOfFilesThatWereTakenOutAreLeftOut) {
  Write(testing::RichState());
  auto state = testing::RichState();
  auto image = ImageWriter::Create(fd_.get(), "files.img", ImageMagic::kFiles);
  ASSERT_TRUE(image.ok());
  for (const auto& file : state.files()) {
    if (file.type() == criu::EVENTFD) continue;
    ASSERT_TRUE(image->Add(file).ok());
  }
  ASSERT_TRUE(image->Finish().ok());
  const StoredState stored = Read();
  EXPECT_EQ(stored.state.files_size(), state.files_size() - 1);
  EXPECT_EQ(stored.state.file_extras_size(), state.file_extras_size() - 1);
}

TEST_F(StateImages, CriuGetsNoCgroupSetAndAtMostItsWordsOfTheVector) {
  proto::ProcessState state = testing::RichState();
  state.mutable_inventory()->set_root_cg_set(1);
  state.mutable_threads(0)->mutable_core()->mutable_tc()->set_cg_set(1);
  state.mutable_threads(1)->mutable_core()->mutable_thread_core()->set_cg_set(1);
  for (int i = 0; i < 60; ++i) state.mutable_mm()->add_mm_saved_auxv(1);
  Write(state);
  const StoredState stored = Read();
  EXPECT_FALSE(stored.state.inventory().has_root_cg_set());
  EXPECT_FALSE(stored.state.threads(0).core().tc().has_cg_set());
  EXPECT_FALSE(stored.state.threads(1).core().thread_core().has_cg_set());
  EXPECT_EQ(stored.state.mm().mm_saved_auxv_size(), kMaxSavedAuxvWords);
}

TEST_F(StateImages, CriuGetsAnAddressForEachSocket) {
  Write(testing::RichState());
  auto image = ImageReader::Open(fd_.get(), "files.img", ImageMagic::kFiles);
  ASSERT_TRUE(image.ok());
  int sockets = 0;
  for (criu::file_entry file; *image->Next(file);) {
    if (!file.has_isk()) continue;
    ++sockets;
    EXPECT_EQ(file.isk().src_addr_size(), 1);
    EXPECT_EQ(file.isk().dst_addr_size(), 1);
    EXPECT_EQ(file.isk().opts().tcp_keepidle(), 60u);  // where 3.17.1 looks for it
  }
  EXPECT_EQ(sockets, 1);
}

// CRIU refuses a terminal of which tty-info.img knows nothing.
TEST_F(StateImages, ATerminalIsDescribed) {
  proto::ProcessState state = testing::RichState();
  criu::file_entry device = state.files(0);
  device.set_id(100);
  device.mutable_reg()->set_id(100);
  device.mutable_reg()->set_name("/dev/pts/7");
  criu::file_entry terminal;
  terminal.set_type(criu::TTY);
  terminal.set_id(101);
  terminal.mutable_tty()->set_id(101);
  terminal.mutable_tty()->set_tty_info_id(0);
  terminal.mutable_tty()->set_flags(2);
  terminal.mutable_tty()->set_regf_id(100);
  *terminal.mutable_tty()->mutable_fown() = NoFileOwner();
  *state.add_files() = device;
  *state.add_files() = terminal;
  Write(state);
  auto image = ImageReader::Open(fd_.get(), "tty-info.img", ImageMagic::kTtyInfo);
  ASSERT_TRUE(image.ok()) << image.status();
  criu::tty_info_entry info;
  ASSERT_TRUE(image->Single(info).ok());
  EXPECT_EQ(info.id(), 14u);
  EXPECT_EQ(info.type(), criu::PTY);
  EXPECT_EQ(info.pty().index(), 7u);
  const StoredState stored = Read();
  EXPECT_EQ(FileIndex(stored.state).Find(101)->tty().tty_info_id(), 14u);
  EXPECT_THAT(stored.blockers, IsEmpty());
  EXPECT_TRUE(ValidateState(stored.state, StateKind::kStored).ok());
}

// A signal for which a handler runs before the broken-off call is made again.
proto::LateSignal Late(int number, std::optional<uint32_t> tid) {
  proto::LateSignal late;
  if (tid.has_value()) late.set_tid(*tid);
  late.set_siginfo(testing::Siginfo(number));
  return late;
}

TEST_F(StateImages, LateSignalsAreQueuedInTheImages) {
  proto::StoredExtra extra;
  *extra.add_late_signals() = Late(SIGUSR2, std::nullopt);
  *extra.add_late_signals() = Late(SIGTERM, kSecond);
  Write(testing::RichState(), extra);
  const StoredState stored = Read();
  EXPECT_EQ(stored.extra->late_signals_size(), 0);
  const auto& process = stored.state.threads(0).core().tc().signals_s();
  ASSERT_EQ(process.signals_size(), 2);
  EXPECT_EQ(process.signals(1).siginfo(), testing::Siginfo(SIGUSR2));
  const auto& thread = stored.state.threads(1).core().thread_core().signals_p();
  ASSERT_EQ(thread.signals_size(), 1);
  EXPECT_EQ(thread.signals(0).siginfo(), testing::Siginfo(SIGTERM));
}

TEST_F(StateImages, SignalsThatCameAfterTheWritingAreAdded) {
  Write(testing::RichState());
  google::protobuf::RepeatedPtrField<proto::LateSignal> late;
  *late.Add() = Late(SIGTERM, kSecond);
  const absl::Status added = AddLateSignals(fd_.get(), late);
  ASSERT_TRUE(added.ok()) << added;
  proto::ProcessState expected = testing::RichState();
  expected.mutable_threads(1)
      ->mutable_core()
      ->mutable_thread_core()
      ->mutable_signals_p()
      ->add_signals()
      ->set_siginfo(testing::Siginfo(SIGTERM));
  EXPECT_EQ(Difference(expected, Read().state), "");
}

TEST_F(StateImages, LateSignalsOfTheExtraAreQueuedOnce) {
  Write(testing::RichState());
  Edit<proto::StoredExtra>(kExtraName, ImageMagic::kPredumpExtra,
                           [](auto& extra) { *extra.add_late_signals() = Late(SIGTERM, kSecond); });
  const StoredState stored = Read();
  EXPECT_EQ(stored.state.threads(1).core().thread_core().signals_p().signals_size(), 1);
  EXPECT_EQ(stored.extra->late_signals_size(), 0);
}

criu::user_x86_regs_entry ImageRegistersOf(int directory, uint32_t tid) {
  auto image = ImageReader::Open(directory, absl::StrCat("core-", tid, ".img"), ImageMagic::kCore);
  criu::core_entry core;
  EXPECT_TRUE(image.ok() && image->Single(core).ok());
  return core.thread_info().gpregs();
}

TEST_F(StateImages, ABrokenOffCallIsRepeated) {
  const proto::ProcessState state = testing::RichState();
  Write(state);
  EXPECT_EQ(
      Difference(ImageRegistersOf(fd_.get(), kPid), state.threads(0).core().thread_info().gpregs()),
      "");
}

TEST_F(StateImages, ACallThatASignalEndsIsNotRepeatedBehindItsHandler) {
  proto::ProcessState state = testing::RichState();
  auto& task = *state.mutable_threads(0)->mutable_core()->mutable_tc();
  task.mutable_sigactions(SIGUSR2 - 1 - 1)->set_sigaction(0x401500);  // no action for SIGKILL
  proto::StoredExtra extra;
  *extra.add_late_signals() = Late(SIGUSR2, kPid);
  Write(state, extra);
  const auto captured = state.threads(0).core().thread_info().gpregs();
  const auto written = ImageRegistersOf(fd_.get(), kPid);
  EXPECT_EQ(static_cast<int64_t>(written.ax()), -EINTR);
  EXPECT_EQ(written.ip(), captured.ip() + 2);
  // predump itself repeats it from within the kernel's signal path, and needs the captured ones.
  const StoredState stored = Read();
  EXPECT_EQ(Difference(stored.state.threads(0).core().thread_info().gpregs(), captured), "");
  EXPECT_TRUE(stored.state.threads(0).extra().has_interrupted_call());
}

TEST_F(StateImages, ABlockedSignalAndAnIgnoredOneEndNoCall) {
  proto::ProcessState state = testing::RichState();
  auto& task = *state.mutable_threads(0)->mutable_core()->mutable_tc();
  task.mutable_sigactions(SIGUSR2 - 1 - 1)->set_sigaction(0x401500);
  task.set_blk_sigset(1u << (SIGUSR2 - 1));
  proto::StoredExtra extra;
  *extra.add_late_signals() = Late(SIGUSR2, kPid);
  *extra.add_late_signals() = Late(SIGCHLD, kPid);
  Write(state, extra);
  EXPECT_EQ(ImageRegistersOf(fd_.get(), kPid).ip(),
            state.threads(0).core().thread_info().gpregs().ip());
}

}  // namespace
}  // namespace predump::images
