// Threads, registers, credentials, signals, limits.
#include <sched.h>
#include <sys/user.h>

#include <cstring>

#include "absl/container/flat_hash_set.h"
#include "src/base/errors.h"
#include "src/images/image_constants.h"
#include "src/images/state_validation_internal.h"

namespace predump::images::internal {
namespace {

constexpr uint32_t kMaxPid = 1u << 22;  // PID_MAX_LIMIT on 64-bit
constexpr size_t kCommBytes = 15;
constexpr int kMaxGroups = 65536;           // NGROUPS_MAX
constexpr size_t kMinXsaveBytes = 576;      // legacy area and header
constexpr size_t kMaxAffinityBytes = 8192;  // 65536 CPUs
constexpr uint64_t kUserCodeSegment = 0x33;

bool IsPid(uint32_t pid) { return pid > 0 && pid <= kMaxPid; }

bool IsComm(const std::string& name) {
  return name.size() <= kCommBytes && name.find('\0') == std::string::npos;
}

absl::Status ValidateSignals(const criu::signal_queue_entry& queue, absl::string_view where,
                             const StateLimits& limits) {
  if (queue.signals_size() > limits.max_signals) return Bad(where, ": too many pending signals");
  for (const auto& entry : queue.signals()) {
    if (entry.siginfo().size() != kSiginfoBytes) {
      return Bad(where, ": siginfo of ", entry.siginfo().size(), " bytes");
    }
    int32_t signal_number;
    std::memcpy(&signal_number, entry.siginfo().data(), sizeof signal_number);
    if (signal_number < 1 || signal_number > 64) {
      return Bad(where, ": pending signal ", signal_number);
    }
  }
  return absl::OkStatus();
}

absl::Status ValidateCapabilities(const criu::creds_entry& creds, absl::string_view where) {
  for (const auto* set :
       {&creds.cap_inh(), &creds.cap_prm(), &creds.cap_eff(), &creds.cap_bnd(), &creds.cap_amb()}) {
    if (set->size() != 0 && set->size() != 2)
      return Bad(where, ": capability set of ", set->size());
  }
  if (creds.cap_eff_size() == 2) {
    for (int word = 0; word < 2; ++word) {
      const uint32_t permitted = creds.cap_prm_size() == 2 ? creds.cap_prm(word) : 0;
      if ((creds.cap_eff(word) & ~permitted) != 0) {
        return Bad(where, ": effective capabilities beyond the permitted ones");
      }
    }
  }
  if (creds.groups_size() > kMaxGroups) return Bad(where, ": ", creds.groups_size(), " groups");
  return absl::OkStatus();
}

absl::Status ValidateXsave(const criu::user_x86_xsave_entry& xsave, absl::string_view where) {
  const auto fits = [](int have, int want) { return have == 0 || have == want; };
  if (!fits(xsave.ymmh_space_size(), 64) || !fits(xsave.bndreg_state_size(), 8) ||
      !fits(xsave.bndcsr_state_size(), 8) || !fits(xsave.opmask_reg_size(), 8) ||
      !fits(xsave.zmm_upper_size(), 64) || !fits(xsave.hi16_zmm_size(), 128) ||
      !fits(xsave.pkru_size(), 2)) {
    return Bad(where, ": extended state of a wrong size");
  }
  return absl::OkStatus();
}

absl::Status ValidateRegisters(const criu::thread_info_x86& info, absl::string_view where) {
  const criu::user_x86_regs_entry& regs = info.gpregs();
  if (regs.mode() != criu::NATIVE || regs.cs() != kUserCodeSegment) {
    return Bad(where, ": not 64-bit code");
  }
  if (regs.fs_base() >= kUserSpaceEnd || regs.gs_base() >= kUserSpaceEnd ||
      info.clear_tid_addr() >= kUserSpaceEnd) {
    return Bad(where, ": address outside user space");
  }
  const criu::user_x86_fpregs_entry& fpregs = info.fpregs();
  if (fpregs.st_space_size() != static_cast<int>(kFpuStackWords) ||
      fpregs.xmm_space_size() != static_cast<int>(kXmmWords) || fpregs.padding_size() > 24) {
    return Bad(where, ": floating point state of a wrong size");
  }
  if (info.tls_size() > 3) return Bad(where, ": ", info.tls_size(), " TLS descriptors");
  return fpregs.has_xsave() ? ValidateXsave(fpregs.xsave(), where) : absl::OkStatus();
}

absl::Status ValidateScheduling(const criu::thread_core_entry& core, absl::string_view where) {
  if (core.sched_nice() < -20 || core.sched_nice() > 19) {
    return Bad(where, ": nice value ", core.sched_nice());
  }
  switch (core.sched_policy()) {
    case SCHED_FIFO:
    case SCHED_RR:
      if (core.sched_prio() < 1 || core.sched_prio() > 99) {
        return Bad(where, ": real-time priority ", core.sched_prio());
      }
      return absl::OkStatus();
    case SCHED_OTHER:
    case SCHED_BATCH:
    case SCHED_IDLE:
      if (core.sched_prio() != 0) return Bad(where, ": priority without a real-time policy");
      return absl::OkStatus();
    default:
      return Bad(where, ": scheduling policy ", core.sched_policy());
  }
}

absl::Status ValidateThreadCore(const criu::thread_core_entry& core, absl::string_view where,
                                const StateLimits& limits) {
  if (core.futex_rla() >= kUserSpaceEnd ||
      (core.futex_rla_len() != 0 && core.futex_rla_len() != 24)) {
    return Bad(where, ": robust list");
  }
  PREDUMP_RETURN_IF_ERROR(ValidateScheduling(core, where));
  if (!core.has_creds()) return Bad(where, ": no credentials");
  PREDUMP_RETURN_IF_ERROR(ValidateCapabilities(core.creds(), where));
  if (core.pdeath_sig() > 64) return Bad(where, ": parent-death signal ", core.pdeath_sig());
  if (!IsComm(core.comm())) return Bad(where, ": name of ", core.comm().size(), " bytes");
  if (core.has_seccomp_mode() && core.seccomp_mode() != criu::disabled) {
    return Bad(where, ": seccomp");
  }
  if (core.has_rseq_entry()) {
    const criu::rseq_entry& rseq = core.rseq_entry();
    if (rseq.rseq_abi_pointer() >= kUserSpaceEnd || rseq.rseq_abi_pointer() % 32 != 0 ||
        rseq.rseq_abi_size() < 32 || rseq.rseq_abi_size() > 4096) {
      return Bad(where, ": rseq area");
    }
  }
  return core.has_signals_p() ? ValidateSignals(core.signals_p(), where, limits) : absl::OkStatus();
}

absl::Status ValidateThreadExtra(const proto::ThreadExtra& extra, StateKind kind,
                                 absl::string_view where, const StateLimits& limits) {
  const size_t affinity = extra.cpu_affinity().size();
  if (affinity % 8 != 0 || affinity > kMaxAffinityBytes) return Bad(where, ": affinity mask");
  if (extra.io_priority() > 0xffff) return Bad(where, ": I/O priority");
  if (kind == StateKind::kPreview) return absl::OkStatus();
  const bool stored = kind == StateKind::kStored;
  if ((extra.has_raw_registers() || !stored) &&
      extra.raw_registers().size() != sizeof(struct user_regs_struct)) {
    return Bad(where, ": raw registers of ", extra.raw_registers().size(), " bytes");
  }
  if ((extra.has_xsave() || !stored) &&
      (extra.xsave().size() < kMinXsaveBytes || extra.xsave().size() > limits.max_xsave_bytes ||
       extra.xsave().size() % 8 != 0)) {
    return Bad(where, ": xsave area of ", extra.xsave().size(), " bytes");
  }
  if (extra.has_interrupted_call()) {
    const proto::InterruptedCall& call = extra.interrupted_call();
    if (call.number() < 0 || call.number() > 4095) return Bad(where, ": system call number");
    if (call.has_remaining_ns() && call.remaining_ns() < 0) return Bad(where, ": remaining time");
  }
  return absl::OkStatus();
}

bool IsTimer(const criu::itimer_entry& timer) {
  return timer.iusec() < 1'000'000 && timer.vusec() < 1'000'000 && timer.isec() <= INT64_MAX &&
         timer.vsec() <= INT64_MAX;
}

absl::Status ValidateTask(const criu::task_core_entry& task, StateKind kind,
                          const StateLimits& limits) {
  if (task.task_state() != kTaskAlive) return Bad("task state ", task.task_state());
  if (!IsComm(task.comm())) return Bad("name of ", task.comm().size(), " bytes");
  if (!task.has_rlimits() || task.rlimits().rlimits_size() != kRlimits) return Bad("limits");
  for (const auto& limit : task.rlimits().rlimits()) {
    if (limit.cur() > limit.max()) return Bad("a soft limit above its hard limit");
  }
  if (task.oom_score_adj() < -1000 || task.oom_score_adj() > 1000) return Bad("oom_score_adj");
  if (kind == StateKind::kPreview) return absl::OkStatus();
  if (task.sigactions_size() != kSignalActions) {
    return Bad(task.sigactions_size(), " signal actions");
  }
  if (!task.has_timers() || !IsTimer(task.timers().real()) || !IsTimer(task.timers().virt()) ||
      !IsTimer(task.timers().prof()) || task.timers().posix_size() != 0) {
    return Bad("timers");
  }
  return task.has_signals_s() ? ValidateSignals(task.signals_s(), "the process", limits)
                              : absl::OkStatus();
}

absl::Status ValidateThread(const proto::ThreadState& thread, bool leader, StateKind kind,
                            const StateLimits& limits) {
  const std::string where = absl::StrCat("thread ", thread.tid());
  const criu::core_entry& core = thread.core();
  if (core.mtype() != criu::core_entry::X86_64) return Bad(where, ": not x86-64");
  if (core.has_tc() != leader) return Bad(where, ": part of the process in the wrong thread");
  if (!core.has_thread_core()) return Bad(where, ": incomplete");
  if (leader) PREDUMP_RETURN_IF_ERROR(ValidateTask(core.tc(), kind, limits));
  PREDUMP_RETURN_IF_ERROR(ValidateThreadCore(core.thread_core(), where, limits));
  if (kind != StateKind::kPreview) {
    if (!core.has_thread_info() || !thread.has_extra()) return Bad(where, ": no registers");
    PREDUMP_RETURN_IF_ERROR(ValidateRegisters(core.thread_info(), where));
  }
  return ValidateThreadExtra(thread.extra(), kind, where, limits);
}

}  // namespace

absl::Status ValidateTasks(const proto::ProcessState& state, StateKind kind,
                           const StateLimits& limits) {
  if (!IsPid(state.pid())) return Bad("pid ", state.pid());
  if (state.threads_size() == 0 || state.threads_size() > limits.max_threads) {
    return Bad(state.threads_size(), " threads");
  }
  if (state.threads(0).tid() != state.pid()) return Bad("the first thread is not the leader");
  absl::flat_hash_set<uint32_t> tids;
  for (const auto& thread : state.threads()) {
    if (!IsPid(thread.tid())) return Bad("thread ", thread.tid());
    if (!tids.insert(thread.tid()).second) return Bad("thread ", thread.tid(), " twice");
    PREDUMP_RETURN_IF_ERROR(ValidateThread(thread, thread.tid() == state.pid(), kind, limits));
  }
  if (!state.has_pstree() || state.pstree().pid() != state.pid() ||
      state.pstree().threads_size() != state.threads_size()) {
    return Bad("process tree");
  }
  for (int i = 0; i < state.threads_size(); ++i) {
    if (state.pstree().threads(i) != state.threads(i).tid()) return Bad("process tree");
  }
  if (state.pstree().pgid() > kMaxPid || state.pstree().sid() > kMaxPid) {
    return Bad("process group or session");
  }
  if (state.has_timens() && (state.timens().monotonic().tv_nsec() >= 1'000'000'000 ||
                             state.timens().boottime().tv_nsec() >= 1'000'000'000)) {
    return Bad("clocks");
  }
  return absl::OkStatus();
}

}  // namespace predump::images::internal
