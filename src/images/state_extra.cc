#include "src/images/state_extra.h"

#include <algorithm>
#include <cstdint>
#include <string>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "google/protobuf/util/message_differencer.h"
#include "src/images/image_constants.h"
#include "src/images/image_set.h"

namespace predump::images::internal {
namespace {

using google::protobuf::util::MessageDifferencer;

// CRIU stores the hexadecimal digits of /proc/PID/personality as if they were decimal; digits
// beyond 9 do not fit in, and leave 0.
uint32_t PersonalityAsStored(uint32_t personality) {
  uint32_t stored = 0;
  return absl::SimpleAtoi(absl::StrCat(absl::Hex(personality)), &stored) ? stored : 0;
}

uint32_t PersonalityFromStored(uint32_t stored) {
  uint32_t personality = 0;
  return absl::SimpleHexAtoi(absl::StrCat(stored), &personality) ? personality : 0;
}

// What the extra says of a thread, as far as the image still says what it said when both were
// written.
void AddThreadParts(const proto::ThreadExtra& extra, const proto::StoredThread* stored,
                    proto::ThreadState& thread) {
  *thread.mutable_extra() = extra;
  criu::thread_info_x86& info = *thread.mutable_core()->mutable_thread_info();
  const bool known = stored != nullptr && stored->has_written();
  if (known && MessageDifferencer::Equals(stored->written().gpregs(), info.gpregs())) {
    if (stored->has_registers()) *info.mutable_gpregs() = stored->registers();
  } else {
    thread.mutable_extra()->clear_interrupted_call();
    thread.mutable_extra()->clear_raw_registers();
    thread.mutable_extra()->clear_temporary_signal_mask();
  }
  if (!known || !MessageDifferencer::Equals(stored->written().fpregs(), info.fpregs())) {
    thread.mutable_extra()->clear_xsave();
  }
}

void AddThreads(const proto::StoredExtra& stored, proto::ProcessState& state) {
  absl::flat_hash_map<uint32_t, const proto::ThreadExtra*> extras;
  for (const auto& thread : stored.state().threads()) {
    if (thread.has_extra()) extras.try_emplace(thread.tid(), &thread.extra());
  }
  absl::flat_hash_map<uint32_t, const proto::StoredThread*> written;
  for (const auto& thread : stored.threads()) written.try_emplace(thread.tid(), &thread);
  for (auto& thread : *state.mutable_threads()) {
    const auto extra = extras.find(thread.tid());
    if (extra == extras.end()) continue;
    const auto as_written = written.find(thread.tid());
    AddThreadParts(*extra->second, as_written == written.end() ? nullptr : as_written->second,
                   thread);
  }
}

void AddPackets(const proto::ProcessState& beside, proto::ProcessState& state) {
  absl::flat_hash_map<uint32_t, const proto::PipeData*> packets;
  for (const auto& pipe : beside.pipes()) packets.try_emplace(pipe.entry().pipe_id(), &pipe);
  for (auto& pipe : *state.mutable_pipes()) {
    const auto known = packets.find(pipe.entry().pipe_id());
    if (known == packets.end()) continue;
    uint64_t bytes = 0;
    for (const uint32_t packet : known->second->packet_bytes()) bytes += packet;
    if (bytes == pipe.data().size()) {
      *pipe.mutable_packet_bytes() = known->second->packet_bytes();
    }
  }
}

// All of the auxiliary vector, if what the image has of it is how it begins.
void AddAuxv(const proto::ProcessExtra& beside, proto::ProcessState& state) {
  const auto& saved = state.mm().mm_saved_auxv();
  if (saved.size() > beside.auxv_size()) return;
  for (int i = 0; i < saved.size(); ++i) {
    if (saved.Get(i) != beside.auxv(i)) return;
  }
  *state.mutable_extra()->mutable_auxv() = beside.auxv();
}

void AddProcess(const proto::ProcessExtra& beside, proto::ProcessState& state) {
  proto::ProcessExtra& extra = *state.mutable_extra();
  extra = beside;
  extra.clear_auxv();
  extra.clear_vmas();
  AddAuxv(beside, state);
  absl::flat_hash_set<uint64_t> starts;
  for (const auto& vma : state.mm().vmas()) starts.insert(vma.start());
  for (const auto& vma : beside.vmas()) {
    if (starts.contains(vma.start())) *extra.add_vmas() = vma;
  }
}

int64_t Nanoseconds(const criu::timespec& clock) {
  constexpr uint64_t kPerSecond = 1'000'000'000;
  if (clock.tv_sec() >= INT64_MAX / kPerSecond) return 0;
  return static_cast<int64_t>(clock.tv_sec() * kPerSecond + clock.tv_nsec() % kPerSecond);
}

// CRIU writes zeros for the peer of a socket that has none.
void ForgetNoAddress(criu::inet_sk_entry& socket) {
  const auto& words = socket.dst_addr();
  if (socket.dst_port() == 0 &&
      std::all_of(words.begin(), words.end(), [](uint32_t word) { return word == 0; })) {
    socket.clear_dst_addr();
  }
}

// What stands in the old place as well (FillOldPlaces in state_writer.cc) is one option.
void ForgetOldPlaces(criu::inet_sk_entry& socket) {
  const criu::tcp_opts_entry& tcp = socket.tcp_opts();
  criu::sk_opts_entry& options = *socket.mutable_opts();
  if (tcp.has_keepcnt()) options.clear_tcp_keepcnt();
  if (tcp.has_keepidle()) options.clear_tcp_keepidle();
  if (tcp.has_keepintvl()) options.clear_tcp_keepintvl();
}

void FillPath(const FileIndex& files, uint32_t id, std::string* path) {
  const criu::reg_file_entry* file = files.FindRegular(id);
  *path = file == nullptr ? std::string() : file->name();
}

}  // namespace

proto::ProcessState PartsBesideImages(const proto::ProcessState& state) {
  proto::ProcessState beside;
  beside.set_pid(state.pid());
  for (const auto& thread : state.threads()) {
    proto::ThreadState& to = *beside.add_threads();
    to.set_tid(thread.tid());
    to.mutable_core()->set_mtype(thread.core().mtype());
    if (thread.has_extra()) *to.mutable_extra() = thread.extra();
  }
  *beside.mutable_file_extras() = state.file_extras();
  for (const auto& pipe : state.pipes()) {
    if (pipe.packet_bytes_size() == 0) continue;
    proto::PipeData& to = *beside.add_pipes();
    *to.mutable_entry() = pipe.entry();
    *to.mutable_packet_bytes() = pipe.packet_bytes();
  }
  if (state.has_extra()) {
    proto::ProcessExtra& extra = *beside.mutable_extra();
    extra = state.extra();
    extra.clear_exe_path();
    extra.clear_working_directory();
    extra.clear_root_directory();
    extra.clear_thp_disabled();
    extra.clear_membarrier_registrations();
    extra.clear_dumpable_is_suid();
    if (state.has_timens()) {
      extra.clear_freeze_monotonic_ns();
      extra.clear_freeze_boottime_ns();
    }
  }
  return beside;
}

void AddPartsBesideImages(const proto::StoredExtra& stored, proto::ProcessState& state) {
  const proto::ProcessState& beside = stored.state();
  AddThreads(stored, state);
  AddPackets(beside, state);
  absl::flat_hash_set<uint32_t> files;
  for (const auto& file : state.files()) files.insert(file.id());
  for (const auto& extra : beside.file_extras()) {
    if (files.contains(extra.id())) *state.add_file_extras() = extra;
  }
  if (beside.has_extra()) AddProcess(beside.extra(), state);
}

void FillFromImages(proto::ProcessState& state) {
  for (auto& file : *state.mutable_files()) {
    if (!file.has_isk()) continue;
    ForgetNoAddress(*file.mutable_isk());
    ForgetOldPlaces(*file.mutable_isk());
  }
  proto::ProcessExtra& extra = *state.mutable_extra();
  const FileIndex files(state);
  FillPath(files, state.mm().exe_file_id(), extra.mutable_exe_path());
  FillPath(files, state.fs().cwd_id(), extra.mutable_working_directory());
  FillPath(files, state.fs().root_id(), extra.mutable_root_directory());
  extra.set_thp_disabled(state.mm().thp_disabled());
  extra.set_dumpable_is_suid(state.mm().dumpable() == 2);
  const criu::task_core_entry& task = state.threads(0).core().tc();
  extra.set_membarrier_registrations(task.membarrier_registration_mask());
  if (!extra.has_personality() || PersonalityAsStored(extra.personality()) != task.personality()) {
    extra.set_personality(PersonalityFromStored(task.personality()));
  }
  if (state.has_timens()) {
    extra.set_freeze_monotonic_ns(Nanoseconds(state.timens().monotonic()));
    extra.set_freeze_boottime_ns(Nanoseconds(state.timens().boottime()));
  }
}

void QueueLateSignals(const proto::StoredExtra& stored, proto::ThreadState& thread) {
  criu::core_entry& core = *thread.mutable_core();
  for (const auto& late : stored.late_signals()) {
    if (late.has_tid() ? late.tid() != thread.tid() : !core.has_tc()) continue;
    criu::signal_queue_entry& queue = late.has_tid()
                                          ? *core.mutable_thread_core()->mutable_signals_p()
                                          : *core.mutable_tc()->mutable_signals_s();
    queue.add_signals()->set_siginfo(late.siginfo());
  }
}

}  // namespace predump::images::internal
