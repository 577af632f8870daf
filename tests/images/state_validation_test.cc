#include "src/images/state_validation.h"

#include <cstddef>
#include <functional>
#include <random>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "src/images/image_constants.h"
#include "src/images/image_set.h"
#include "tests/images/valid_state.h"

namespace predump::images {
namespace {

using ::predump::images::testing::ValidState;
using ::testing::HasSubstr;

TEST(ValidateState, AcceptsAValidState) {
  EXPECT_TRUE(ValidateState(ValidState(), StateKind::kFull).ok())
      << ValidateState(ValidState(), StateKind::kFull);
}

TEST(ValidateState, AcceptsAPreviewWithoutRegisters) {
  proto::ProcessState state = ValidState();
  state.mutable_threads(0)->mutable_core()->clear_thread_info();
  state.mutable_threads(0)->clear_extra();
  EXPECT_TRUE(ValidateState(state, StateKind::kPreview).ok());
  EXPECT_FALSE(ValidateState(state, StateKind::kFull).ok());
}

TEST(ValidateState, RefusesAnEmptyState) {
  EXPECT_EQ(ValidateState(proto::ProcessState(), StateKind::kFull).code(),
            absl::StatusCode::kDataLoss);
}

struct Damage {
  const char* name;
  std::function<void(proto::ProcessState&)> apply;
  const char* message;
};

class DamagedState : public ::testing::TestWithParam<Damage> {};

TEST_P(DamagedState, IsRefusedByName) {
  proto::ProcessState state = ValidState();
  GetParam().apply(state);
  const absl::Status status = ValidateState(state, StateKind::kFull);
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(status.message(), HasSubstr(GetParam().message));
}

criu::core_entry& Core(proto::ProcessState& s) { return *s.mutable_threads(0)->mutable_core(); }
criu::thread_core_entry& Thread(proto::ProcessState& s) { return *Core(s).mutable_thread_core(); }
criu::task_core_entry& Task(proto::ProcessState& s) { return *Core(s).mutable_tc(); }
proto::ThreadExtra& Extra(proto::ProcessState& s) { return *s.mutable_threads(0)->mutable_extra(); }
criu::vma_entry& Vma(proto::ProcessState& s, int i) { return *s.mutable_mm()->mutable_vmas(i); }

INSTANTIATE_TEST_SUITE_P(
    Tasks, DamagedState,
    ::testing::Values(
        Damage{"MissingField", [](auto& s) { s.clear_pid(); }, "required field"},
        Damage{"PidZero", [](auto& s) { s.set_pid(0); }, "pid 0"},
        Damage{"PidTooLarge", [](auto& s) { s.set_pid(1u << 30); }, "pid "},
        Damage{"NoThreads", [](auto& s) { s.clear_threads(); }, "0 threads"},
        Damage{"LeaderNotFirst", [](auto& s) { s.mutable_threads(0)->set_tid(7); }, "leader"},
        Damage{"ThreadTwice",
               [](auto& s) {
                 *s.add_threads() = s.threads(0);
                 s.mutable_pstree()->add_threads(s.pid());
               },
               "twice"},
        Damage{"TreeDisagrees", [](auto& s) { s.mutable_pstree()->set_threads(0, 1); }, "tree"},
        Damage{"OtherArchitecture", [](auto& s) { Core(s).set_mtype(criu::core_entry::ARM); },
               "x86-64"},
        Damage{"NoCredentials", [](auto& s) { Thread(s).clear_creds(); }, "credentials"},
        Damage{"EffectiveBeyondPermitted",
               [](auto& s) { Thread(s).mutable_creds()->set_cap_eff(0, 4); }, "beyond"},
        Damage{"HalfACapabilitySet", [](auto& s) { Thread(s).mutable_creds()->add_cap_bnd(1); },
               "capability set"},
        Damage{"ShortFpu",
               [](auto& s) {
                 Core(s).mutable_thread_info()->mutable_fpregs()->mutable_st_space()->Truncate(31);
               },
               "floating point"},
        Damage{"ShortAvx",
               [](auto& s) {
                 Core(s).mutable_thread_info()->mutable_fpregs()->mutable_xsave()->add_ymmh_space(
                     1);
               },
               "extended state"},
        Damage{"CompatCode",
               [](auto& s) { Core(s).mutable_thread_info()->mutable_gpregs()->set_cs(0x23); },
               "64-bit"},
        Damage{"KernelFsBase",
               [](auto& s) { Core(s).mutable_thread_info()->mutable_gpregs()->set_fs_base(~0ull); },
               "user space"},
        Damage{"NoRawRegisters", [](auto& s) { Extra(s).set_raw_registers("x"); }, "raw registers"},
        Damage{"ShortXsave", [](auto& s) { Extra(s).set_xsave("x"); }, "xsave"},
        Damage{"HugeXsave", [](auto& s) { Extra(s).set_xsave(std::string(1 << 20, 0)); }, "xsave"},
        Damage{"OddAffinity", [](auto& s) { Extra(s).set_cpu_affinity("abc"); }, "affinity"},
        Damage{"WrongCall",
               [](auto& s) {
                 Extra(s).mutable_interrupted_call()->set_number(-1);
                 Extra(s).mutable_interrupted_call()->set_result(-516);
               },
               "system call"},
        Damage{"PriorityWithoutPolicy", [](auto& s) { Thread(s).set_sched_prio(5); }, "priority"},
        Damage{"Deadline", [](auto& s) { Thread(s).set_sched_policy(6); }, "policy"},
        Damage{"Nice", [](auto& s) { Thread(s).set_sched_nice(20); }, "nice"},
        Damage{"LongName", [](auto& s) { Thread(s).set_comm("0123456789abcdef"); }, "name"},
        Damage{"Rseq",
               [](auto& s) {
                 Thread(s).mutable_rseq_entry()->set_rseq_abi_pointer(1);
                 Thread(s).mutable_rseq_entry()->set_rseq_abi_size(32);
                 Thread(s).mutable_rseq_entry()->set_signature(0);
               },
               "rseq"},
        Damage{"Zombie", [](auto& s) { Task(s).set_task_state(2); }, "task state"},
        Damage{"TooFewActions", [](auto& s) { Task(s).mutable_sigactions()->RemoveLast(); },
               "signal actions"},
        Damage{"SoftAboveHard",
               [](auto& s) { Task(s).mutable_rlimits()->mutable_rlimits(3)->set_cur(9); }, "limit"},
        Damage{"ShortSiginfo",
               [](auto& s) { Task(s).mutable_signals_s()->add_signals()->set_siginfo("short"); },
               "siginfo"},
        Damage{"SignalZero",
               [](auto& s) {
                 Task(s).mutable_signals_s()->add_signals()->set_siginfo(std::string(128, '\0'));
               },
               "pending signal 0"},
        Damage{"Microseconds",
               [](auto& s) { Task(s).mutable_timers()->mutable_real()->set_vusec(1000000); },
               "timers"}),
    [](const auto& test) { return test.param.name; });

INSTANTIATE_TEST_SUITE_P(
    Memory, DamagedState,
    ::testing::Values(
        Damage{"NoMappings", [](auto& s) { s.mutable_mm()->clear_vmas(); }, "0 mappings"},
        Damage{"Unaligned", [](auto& s) { Vma(s, 0).set_end(0x401234); }, "bounds"},
        Damage{"Backwards", [](auto& s) { Vma(s, 0).set_end(0x400000); }, "bounds"},
        Damage{"Overlap", [](auto& s) { Vma(s, 1).set_start(0x401000); }, "overlap"},
        Damage{"KernelSpace", [](auto& s) { Vma(s, 1).set_end(0xffff800000000000); },
               "outside user space"},
        Damage{"UnknownFlags", [](auto& s) { Vma(s, 1).set_flags(0x40022); }, "flags"},
        Damage{"UnknownKind", [](auto& s) { Vma(s, 1).set_status(0x4081); }, "kind"},
        Damage{"UnknownFile", [](auto& s) { Vma(s, 0).set_shmid(99); }, "not in the state"},
        Damage{"PipeAsFile", [](auto& s) { Vma(s, 0).set_shmid(3); }, "not in the state"},
        Damage{"FileNumberCut", [](auto& s) { Vma(s, 0).set_shmid(0x100000001); },
               "not in the state"},
        Damage{"OffsetOverflow", [](auto& s) { Vma(s, 0).set_pgoff(0xfffffffffffff000); },
               "offset"},
        Damage{"Advice", [](auto& s) { Vma(s, 0).set_madv(1 << 4); }, "advice"},
        Damage{"Executable", [](auto& s) { s.mutable_mm()->set_exe_file_id(3); }, "executable"},
        Damage{"Break", [](auto& s) { s.mutable_mm()->set_mm_brk(1); }, "addresses"},
        Damage{"LongAuxv",
               [](auto& s) {
                 for (int i = 0; i < 45; ++i) s.mutable_mm()->add_mm_saved_auxv(0);
               },
               "auxiliary"},
        Damage{"NameOfNoMapping", [](auto& s) { s.mutable_extra()->add_vmas()->set_start(0x1000); },
               "extra"}),
    [](const auto& test) { return test.param.name; });

INSTANTIATE_TEST_SUITE_P(
    Files, DamagedState,
    ::testing::Values(
        Damage{"IdTwice", [](auto& s) { *s.add_files() = s.files(0); }, "twice"},
        Damage{"IdZero", [](auto& s) { s.mutable_files(0)->set_id(0); }, "file 0"},
        Damage{"BodyOfAnotherId", [](auto& s) { s.mutable_files(0)->mutable_reg()->set_id(9); },
               "body"},
        Damage{"BodyOfAnotherType", [](auto& s) { s.mutable_files(0)->set_type(criu::EVENTFD); },
               "body"},
        Damage{"TwoBodies",
               [](auto& s) { *s.mutable_files(0)->mutable_pipe() = s.files(2).pipe(); }, "body"},
        Damage{"RelativePath",
               [](auto& s) { s.mutable_files(0)->mutable_reg()->set_name("etc/passwd"); }, "path"},
        Damage{
            "PathWithNul",
            [](auto& s) { s.mutable_files(0)->mutable_reg()->set_name(std::string("/a\0b", 4)); },
            "path"},
        Damage{"LongPath",
               [](auto& s) {
                 s.mutable_files(0)->mutable_reg()->set_name("/" + std::string(5000, 'a'));
               },
               "path"},
        Damage{"DescriptorTwice", [](auto& s) { *s.add_descriptors() = s.descriptors(0); },
               "twice"},
        Damage{"DescriptorOfNothing", [](auto& s) { s.mutable_descriptors(0)->set_id(50); },
               "not in the state"},
        Damage{"DescriptorType", [](auto& s) { s.mutable_descriptors(0)->set_type(criu::REG); },
               "type"},
        Damage{"DescriptorNumber", [](auto& s) { s.mutable_descriptors(0)->set_fd(~0u); },
               "number"},
        Damage{"WorkingDirectory", [](auto& s) { s.mutable_fs()->set_cwd_id(3); }, "directory"},
        Damage{"PipeOfNobody", [](auto& s) { s.mutable_pipes(0)->mutable_entry()->set_pipe_id(1); },
               "open"},
        Damage{"PipeLength", [](auto& s) { s.mutable_pipes(0)->mutable_entry()->set_bytes(5); },
               "length"},
        Damage{"PipeCapacity", [](auto& s) { s.mutable_pipes(0)->mutable_entry()->set_size(1); },
               "capacity"},
        Damage{"PipePackets", [](auto& s) { s.mutable_pipes(0)->add_packet_bytes(9); }, "packets"},
        Damage{"ExtraOfNothing", [](auto& s) { s.mutable_file_extras(0)->set_id(44); }, "extra"},
        Damage{"PacketForNobody",
               [](auto& s) {
                 s.add_packets()->mutable_entry()->set_id_for(1);
                 s.mutable_packets(0)->mutable_entry()->set_length(0);
               },
               "packet"}),
    [](const auto& test) { return test.param.name; });

criu::file_entry UnixSocket(uint32_t inode, uint32_t peer) {
  criu::file_entry file;
  file.set_type(criu::UNIXSK);
  criu::unix_sk_entry& body = *file.mutable_usk();
  body.set_ino(inode);
  body.set_type(1);
  body.set_state(kSocketEstablished);
  body.set_flags(2);
  body.set_uflags(0);
  body.set_backlog(0);
  body.set_peer(peer);
  *body.mutable_fown() = NoFileOwner();
  criu::sk_opts_entry& opts = *body.mutable_opts();
  opts.set_so_sndbuf(1);
  opts.set_so_rcvbuf(1);
  opts.set_so_snd_tmo_sec(0);
  opts.set_so_snd_tmo_usec(0);
  opts.set_so_rcv_tmo_sec(0);
  opts.set_so_rcv_tmo_usec(0);
  body.set_name("");
  return file;
}

void Append(proto::ProcessState& state, criu::file_entry file) {
  const uint32_t id = static_cast<uint32_t>(state.files_size()) + 1;
  file.set_id(id);
  if (file.has_usk()) file.mutable_usk()->set_id(id);
  if (file.has_epfd()) file.mutable_epfd()->set_id(id);
  *state.add_files() = std::move(file);
}

TEST(ValidateState, UnixPairsMustPointAtEachOther) {
  proto::ProcessState state = ValidState();
  Append(state, UnixSocket(10, 11));
  Append(state, UnixSocket(11, 10));
  EXPECT_TRUE(ValidateState(state, StateKind::kFull).ok());
  state.mutable_files(4)->mutable_usk()->set_peer(11);
  EXPECT_THAT(ValidateState(state, StateKind::kFull).message(), HasSubstr("not a pair"));
}

TEST(ValidateState, EpollMayOnlyWatchDescriptorsThatAreThere) {
  proto::ProcessState state = ValidState();
  criu::file_entry file;
  file.set_type(criu::EVENTPOLL);
  file.mutable_epfd()->set_flags(2);
  *file.mutable_epfd()->mutable_fown() = NoFileOwner();
  criu::eventpoll_tfd_entry& entry = *file.mutable_epfd()->add_tfd();
  entry.set_id(0);
  entry.set_tfd(3);
  entry.set_events(1);
  entry.set_data(1);
  Append(state, file);
  EXPECT_TRUE(ValidateState(state, StateKind::kFull).ok());
  state.mutable_files(3)->mutable_epfd()->mutable_tfd(0)->set_tfd(4);
  EXPECT_THAT(ValidateState(state, StateKind::kFull).message(), HasSubstr("not there"));
}

TEST(ValidateState, HoldsEachLimit) {
  StateLimits limits;
  limits.max_threads = 0;
  EXPECT_FALSE(ValidateState(ValidState(), StateKind::kFull, limits).ok());
  limits = {};
  limits.max_vmas = 1;
  EXPECT_FALSE(ValidateState(ValidState(), StateKind::kFull, limits).ok());
  limits = {};
  limits.max_files = 2;
  EXPECT_FALSE(ValidateState(ValidState(), StateKind::kFull, limits).ok());
  limits = {};
  limits.max_descriptors = 0;
  EXPECT_FALSE(ValidateState(ValidState(), StateKind::kFull, limits).ok());
  limits = {};
  limits.max_signals = 0;
  EXPECT_FALSE(ValidateState(ValidState(), StateKind::kFull, limits).ok());
  limits = {};
  limits.max_queued_bytes = 3;
  EXPECT_FALSE(ValidateState(ValidState(), StateKind::kFull, limits).ok());
}

TEST(ValidateState, NeverAcceptsATruncatedMessageThatLostAPart) {
  const std::string bytes = ValidState().SerializeAsString();
  for (size_t length = 0; length < bytes.size(); ++length) {
    proto::ProcessState state;
    if (!state.ParsePartialFromArray(bytes.data(), static_cast<int>(length))) continue;
    // What comes last (the pipe's contents) may be missing from a state that is still whole.
    if (state.has_fs() && state.pipes_size() > 0) continue;
    if (state.has_fs() && length + 64 > bytes.size()) continue;
    EXPECT_FALSE(ValidateState(state, StateKind::kFull).ok()) << length;
  }
}

TEST(ValidateState, SurvivesRandomDamage) {
  const std::string bytes = ValidState().SerializeAsString();
  std::mt19937 random(2);
  for (int round = 0; round < 20000; ++round) {
    std::string damaged = bytes;
    for (int i = 0; i < 4; ++i) {
      damaged[random() % damaged.size()] = static_cast<char>(random());
    }
    proto::ProcessState state;
    if (state.ParsePartialFromString(damaged)) {
      (void)ValidateState(state, StateKind::kFull);
    }
  }
}

}  // namespace
}  // namespace predump::images
