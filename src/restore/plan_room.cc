#include "src/restore/plan_room.h"

#include "absl/strings/str_cat.h"
#include "src/restore/landing/layout.h"
#include "src/restore/trampoline.h"

namespace predump::restore {
namespace internal {
namespace {

// Bounding and ambient capabilities take up to 64 calls each.
constexpr size_t kThreadCalls = 192;
constexpr size_t kEntryBytes = 128;  // of a call in the table of kernel::RemoteBatch

size_t PendingSignals(const proto::ThreadState& thread) {
  return static_cast<size_t>(thread.core().tc().signals_s().signals_size()) +
         static_cast<size_t>(thread.core().thread_core().signals_p().signals_size());
}

}  // namespace

uint64_t PlanRoom::bytes() const {
  // The loop that makes the calls stands before their table.
  const uint64_t bytes = calls * kEntryBytes + data_bytes + 2 * kPageBytes;
  return (bytes + kPageBytes - 1) / kPageBytes * kPageBytes;
}

PlanRoom LeaderRoom(const proto::ProcessState& state) {
  size_t calls = 512 + kThreadCalls + 4 * static_cast<size_t>(state.mm().vmas_size()) +
                 40 * static_cast<size_t>(state.files_size()) +
                 3 * static_cast<size_t>(state.descriptors_size()) +
                 static_cast<size_t>(state.packets_size()) +
                 static_cast<size_t>(state.extra().vmas_size()) +
                 static_cast<size_t>(state.threads_size());
  if (state.threads_size() > 0) calls += PendingSignals(state.threads(0));
  for (const auto& file : state.files()) calls += 2 * static_cast<size_t>(file.epfd().tfd_size());
  for (const auto& pipe : state.pipes()) calls += static_cast<size_t>(pipe.packet_bytes_size());
  for (const auto& extra : state.file_extras()) {
    calls += static_cast<size_t>(extra.socket_options_size());
  }
  return {calls, 2 * state.ByteSizeLong() + 65536};
}

PlanRoom ThreadRoom(const proto::ThreadState& thread) {
  return {kThreadCalls + PendingSignals(thread), 2 * thread.ByteSizeLong() + 4096};
}

}  // namespace internal

absl::Status CheckRoomToBuild(const proto::ProcessState& state) {
  // For what the landing keeps there itself, and pieces of memory that have to be staged.
  constexpr uint64_t kReserved = 8 << 20;
  uint64_t bytes = kReserved + internal::LeaderRoom(state).bytes();
  for (int i = 1; i < state.threads_size(); ++i) {
    bytes += internal::ThreadRoom(state.threads(i)).bytes();
  }
  if (bytes <= kTrampolineBytes) return absl::OkStatus();
  return absl::ResourceExhaustedError(absl::StrCat(
      "to build it again takes ", bytes >> 20, " MiB of calls and data (", state.threads_size(),
      " threads, ", state.files_size(), " files, ", state.mm().vmas_size(),
      " mappings), and there is room for ", kTrampolineBytes >> 20));
}

}  // namespace predump::restore
