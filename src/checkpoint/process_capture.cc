#include "src/checkpoint/process_capture.h"

#include <linux/membarrier.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "src/base/clock.h"
#include "src/base/errors.h"
#include "src/images/image_constants.h"
#include "src/kernel/time_offsets.h"

namespace predump::checkpoint {
namespace {

constexpr uint64_t kNanosecondsPerSecond = 1'000'000'000;
constexpr int kDumpFilterShift = 2;  // mm->flags: 2 bits of "dumpable", then the filter
constexpr uint64_t kDumpFilterMask = 0x1ff;

void SetInterval(uint64_t interval_ns, criu::itimer_entry& timer) {
  const uint64_t interval_us = interval_ns / 1000;
  timer.set_isec(interval_us / 1'000'000);
  timer.set_iusec(interval_us % 1'000'000);
}

// Remaining time and interval in microseconds; a timer that is armed never reads as disarmed.
void FillTimer(bool armed, uint64_t remaining_ns, uint64_t interval_ns, criu::itimer_entry& timer) {
  const uint64_t left_us = armed ? std::max<uint64_t>(1, remaining_ns / 1000) : 0;
  SetInterval(armed ? interval_ns : 0, timer);
  timer.set_vsec(left_us / 1'000'000);
  timer.set_vusec(left_us % 1'000'000);
}

void FillCpuTimer(const kernel::CpuTimer& from, criu::itimer_entry& to) {
  const uint64_t left = from.expires > from.now ? from.expires - from.now : 0;
  FillTimer(from.expires != 0, left, from.interval, to);
}

// membarrier(2) registrations as MEMBARRIER_CMD_GET_REGISTRATIONS reports them, from the kernel's
// MEMBARRIER_STATE_* bits (include/linux/sched/mm.h).
uint64_t MembarrierRegistrations(uint32_t state) {
  uint64_t commands = 0;
  if ((state & 1u << 1) != 0) commands |= MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED;
  if ((state & 1u << 3) != 0) commands |= MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED;
  if ((state & 1u << 5) != 0) commands |= MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_SYNC_CORE;
  if ((state & 1u << 7) != 0) commands |= MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_RSEQ;
  return commands;
}

void FillClock(int64_t ns, criu::timespec& clock) {
  clock.set_tv_sec(static_cast<uint64_t>(ns) / kNanosecondsPerSecond);
  clock.set_tv_nsec(static_cast<uint64_t>(ns) % kNanosecondsPerSecond);
}

// The namespaces are the server's at the target, hence all equal to the "dumper's": small numbers
// that CRIU reads as "stay where you are".
void FillIds(uint32_t object_id, criu::task_kobj_ids_entry& ids) {
  ids.set_vm_id(object_id);
  ids.set_files_id(object_id);
  ids.set_fs_id(object_id);
  ids.set_sighand_id(object_id);
  ids.set_pid_ns_id(1);
  ids.set_net_ns_id(2);
  ids.set_ipc_ns_id(3);
  ids.set_uts_ns_id(4);
  ids.set_time_ns_id(5);
  ids.set_mnt_ns_id(6);
  ids.set_user_ns_id(7);
  ids.set_cgroup_ns_id(8);
}

}  // namespace

absl::StatusOr<LastingFacts> ReadLastingFacts(const kernel::ProcessHandle& process) {
  LastingFacts facts;
  PREDUMP_ASSIGN_OR_RETURN(facts.clock_offsets, kernel::ReadTimeOffsets(process.pid()));
  PREDUMP_ASSIGN_OR_RETURN(facts.our_clock_offsets, kernel::ReadTimeOffsets(::getpid()));
  const auto login = kernel::ReadLoginUid(process);
  if (login.ok()) {
    facts.login_uid = *login;
  } else if (base::IsTargetExited(login.status()) || !absl::IsNotFound(login.status())) {
    return login.status();
  }
  return facts;
}

void FillTimers(const kernel::ProcessRecord& record, const CaptureInstant& instant,
                criu::task_timers_entry& timers) {
  const bool armed = record.real_timer_armed != 0;
  const uint64_t then = static_cast<uint64_t>(*instant.HostClock(CLOCK_MONOTONIC));
  const uint64_t left = record.real_timer_expires > then ? record.real_timer_expires - then : 0;
  FillTimer(armed, left, record.real_timer_interval, *timers.mutable_real());
  FillCpuTimer(record.virtual_timer, *timers.mutable_virt());
  FillCpuTimer(record.profiling_timer, *timers.mutable_prof());
}

void FillWaitingTimer(const kernel::ProcessRecord& record, criu::task_timers_entry& timers) {
  if (record.real_timer_armed == 0) SetInterval(record.real_timer_interval, *timers.mutable_real());
}

void FillTask(const LastingFacts& facts, const kernel::TaskSnapshot& snapshot,
              criu::task_core_entry& task) {
  const kernel::ProcessRecord& record = snapshot.process;
  const kernel::ThreadRecord& leader = snapshot.threads.front();
  task.set_task_state(images::kTaskAlive);
  task.set_exit_code(0);
  // CRIU stores the hexadecimal digits of /proc/PID/personality as if they were decimal.
  uint32_t personality = 0;
  (void)absl::SimpleAtoi(absl::StrCat(absl::Hex(leader.personality)), &personality);
  task.set_personality(personality);
  task.set_flags(leader.flags);
  task.set_blk_sigset(leader.restore_sigmask != 0 ? leader.saved_mask : leader.blocked);
  task.set_comm(std::string(leader.comm, strnlen(leader.comm, sizeof leader.comm)));
  for (const auto& limit : record.resource_limits) {
    criu::rlimit_entry* entry = task.mutable_rlimits()->add_rlimits();
    entry->set_cur(limit[0]);
    entry->set_max(limit[1]);
  }
  for (int signal_number = 1; signal_number <= kernel::kSignals; ++signal_number) {
    if (signal_number == SIGKILL || signal_number == SIGSTOP) continue;
    const kernel::SignalAction& from = record.actions[signal_number - 1];
    criu::sa_entry* to = task.add_sigactions();
    to->set_sigaction(from.handler);
    to->set_flags(from.flags);
    to->set_restorer(from.restorer);
    to->set_mask(from.mask);
  }
  task.set_oom_score_adj(record.oom_score_adj);
  task.set_child_subreaper(record.is_child_subreaper != 0);
  task.set_loginuid(facts.login_uid);
  if (const uint64_t commands = MembarrierRegistrations(record.membarrier_state); commands != 0) {
    task.set_membarrier_registration_mask(static_cast<uint32_t>(commands));
  }
}

absl::Status FillMemoryAddresses(const kernel::ProcessHandle& process,
                                 const kernel::ProcessRecord& record, proto::ProcessState& state) {
  criu::mm_entry& mm = *state.mutable_mm();
  mm.set_mm_start_code(record.start_code);
  mm.set_mm_end_code(record.end_code);
  mm.set_mm_start_data(record.start_data);
  mm.set_mm_end_data(record.end_data);
  mm.set_mm_start_stack(record.start_stack);
  mm.set_mm_start_brk(record.start_brk);
  mm.set_mm_brk(record.brk);
  mm.set_mm_arg_start(record.arg_start);
  mm.set_mm_arg_end(record.arg_end);
  mm.set_mm_env_start(record.env_start);
  mm.set_mm_env_end(record.env_end);
  mm.set_dumpable(static_cast<int32_t>(record.dumpable));
  mm.set_thp_disabled(record.thp_disabled != 0);

  proto::ProcessExtra& extra = *state.mutable_extra();
  PREDUMP_ASSIGN_OR_RETURN(const auto auxv, kernel::ReadAuxv(process));
  for (const auto& [tag, value] : auxv) {
    extra.add_auxv(tag);
    extra.add_auxv(value);
  }
  extra.add_auxv(0);  // AT_NULL
  extra.add_auxv(0);
  const int saved = std::min(extra.auxv_size(), images::kMaxSavedAuxvWords);
  mm.mutable_mm_saved_auxv()->Assign(extra.auxv().begin(), extra.auxv().begin() + saved);
  extra.set_coredump_filter(record.mm_flags >> kDumpFilterShift & kDumpFilterMask);
  extra.set_mm_def_flags(record.default_vm_flags);
  extra.set_dumpable_is_suid(record.dumpable == 2);
  extra.set_mdwe_flags(record.mdwe);
  extra.set_thp_disabled(record.thp_disabled != 0);
  if (record.thp_disabled_but_advised != 0) extra.set_thp_disabled_but_advised(true);
  extra.set_membarrier_registrations(MembarrierRegistrations(record.membarrier_state));
  return absl::OkStatus();
}

void FillIdentity(const CaptureInstant& instant, const kernel::StatusFields& status,
                  const kernel::TaskSnapshot& snapshot, bool tcp_close,
                  proto::ProcessState& state) {
  const uint32_t pid = static_cast<uint32_t>(snapshot.process.tgid.own);
  state.set_pid(pid);
  criu::pstree_entry& tree = *state.mutable_pstree();
  tree.set_pid(pid);
  tree.set_ppid(0);
  tree.set_pgid(
      static_cast<uint32_t>(status.namespace_groups.empty() ? 0 : status.namespace_groups.back()));
  tree.set_sid(static_cast<uint32_t>(
      status.namespace_sessions.empty() ? 0 : status.namespace_sessions.back()));
  for (const kernel::ThreadRecord& thread : snapshot.threads) {
    tree.add_threads(static_cast<uint32_t>(thread.tid.own));
  }
  criu::inventory_entry& inventory = *state.mutable_inventory();
  inventory.set_img_version(images::kImageVersion);
  inventory.set_fdinfo_per_id(true);
  inventory.set_ns_per_id(true);
  inventory.set_lsmtype(criu::NO_LSM);
  if (tcp_close) inventory.set_tcp_close(true);
  FillIds(1, *inventory.mutable_root_ids());
  FillIds(2, *state.mutable_ids());

  const int64_t monotonic = *instant.ProcessClock(CLOCK_MONOTONIC);
  const int64_t boottime = *instant.ProcessClock(CLOCK_BOOTTIME);
  FillClock(monotonic, *state.mutable_timens()->mutable_monotonic());
  FillClock(boottime, *state.mutable_timens()->mutable_boottime());
  state.mutable_extra()->set_freeze_monotonic_ns(monotonic);
  state.mutable_extra()->set_freeze_boottime_ns(boottime);
  state.mutable_extra()->set_personality(snapshot.threads.front().personality);
}

}  // namespace predump::checkpoint
