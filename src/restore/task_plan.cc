#include "src/restore/task_plan.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/sched.h>
#include <linux/securebits.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "src/base/errors.h"
#include "src/kernel/uapi_sched_attr.h"
#include "src/restore/limit_names.h"
#include "src/restore/timer_value.h"

namespace predump::restore::internal {
namespace {

constexpr int kSetMdwe = 65;          // PR_SET_MDWE, Linux 6.3
constexpr int kThpExceptAdvised = 2;  // PR_THP_DISABLE_EXCEPT_ADVISED, Linux 6.18
constexpr size_t kSiginfoBytes = 128;

// CLONE_* of a thread as pthread_create makes it, attached to our tracer from birth.
constexpr uint64_t kThreadFlags = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD |
                                  CLONE_SYSVSEM | CLONE_SETTLS | CLONE_PTRACE;

uint64_t CapabilityMask(const google::protobuf::RepeatedField<uint32_t>& words) {
  uint64_t mask = words.empty() ? 0 : words.Get(0);
  if (words.size() > 1) mask |= uint64_t{words.Get(1)} << 32;
  return mask;
}

// Signal number in the siginfo of a queued signal.
int SignalNumber(const std::string& siginfo) {
  int number = 0;
  std::copy_n(siginfo.data(), std::min(siginfo.size(), sizeof(number)),
              reinterpret_cast<char*>(&number));
  return number;
}

std::string CapabilityText(uint64_t mask) {
  std::string text;
  for (int bit = 0; bit < 64; ++bit) {
    if ((mask & (1ull << bit)) == 0) continue;
    absl::StrAppend(&text, text.empty() ? "" : ", ", CapabilityName(bit));
  }
  return text;
}

}  // namespace

absl::Status TaskPlan::CheckPossible() const {
  const Baseline& baseline = process_.baseline;
  const auto& limits = task().rlimits().rlimits();
  const bool may_raise = (baseline.status.cap_effective & (1ull << CAP_SYS_RESOURCE)) != 0;
  for (int i = 0; i < limits.size() && i < static_cast<int>(RLIM_NLIMITS); ++i) {
    const uint64_t ours = baseline.limits[static_cast<size_t>(i)].rlim_max;
    if (limits.Get(i).max() > ours && !may_raise) {
      return absl::FailedPreconditionError(absl::StrCat(
          "the hard limit ", LimitName(i), " of ", LimitText(limits.Get(i).max()),
          " is above this host's ", LimitText(ours), "; raising it takes CAP_SYS_RESOURCE"));
    }
  }
  for (const auto& thread : state_.threads()) {
    const criu::creds_entry& creds = thread.core().thread_core().creds();
    const uint64_t missing = (CapabilityMask(creds.cap_prm()) | CapabilityMask(creds.cap_bnd())) &
                             ~(baseline.status.cap_permitted & baseline.status.cap_bounding);
    if (missing != 0) {
      return absl::FailedPreconditionError(
          absl::StrCat("thread ", thread.tid(),
                       " has capabilities that cannot be given here: ", CapabilityText(missing)));
    }
  }
  return absl::OkStatus();
}

void TaskPlan::AddDescriptorRoom(CallPlan& plan, int highest) const {
  const rlimit& ours = process_.baseline.limits[RLIMIT_NOFILE];
  if (static_cast<rlim_t>(highest) < ours.rlim_cur) return;
  rlimit room = {ours.rlim_max, ours.rlim_max};
  const auto& limits = task().rlimits().rlimits();
  if (limits.size() > RLIMIT_NOFILE) {
    // CheckPossible has seen that it may be raised.
    room.rlim_max = std::max<rlim_t>(room.rlim_max, limits.Get(RLIMIT_NOFILE).max());
    room.rlim_cur = room.rlim_max;
  }
  plan.Call(SYS_prlimit64, {0, RLIMIT_NOFILE, plan.Struct(room), 0},
            "raise the limit of open files for the restore");
}

void TaskPlan::AddEarly(CallPlan& plan) const {
  AddLoginId(plan);
  uint64_t registrations = state_.extra().membarrier_registrations();
  if (registrations == 0) registrations = task().membarrier_registration_mask();
  for (int bit = 0; bit < 31; ++bit) {
    if ((registrations & (1ull << bit)) == 0) continue;
    plan.Call(SYS_membarrier, {1 << bit, 0, 0}, absl::StrCat("membarrier registration ", bit));
  }
  // Of each thread: those that will be made have their maker's.
  const proto::ProcessExtra& extra = state_.extra();
  if (extra.has_personality() && extra.personality() != process_.baseline.personality) {
    plan.Call(SYS_personality, {uint64_t{extra.personality()}},
              absl::StrFormat("personality %x", extra.personality()));
  }
  // Sockets remember who made them and who listened; files, who opened them.
  const criu::thread_core_entry& leader = state_.threads(0).core().thread_core();
  if (leader.has_creds() && !SameCredentials(leader.creds())) AddIds(plan, leader.creds());
}

// A process can only give itself one; threads have their maker's.
void TaskPlan::AddLoginId(CallPlan& plan) const {
  if (!task().has_loginuid() || task().loginuid() == process_.baseline.login_uid) return;
  const std::string what = absl::StrCat("login uid ", task().loginuid());
  const std::string text = absl::StrCat(task().loginuid());
  // No descriptor is open yet.
  plan.Expect(plan.Call(SYS_open, {plan.String("/proc/self/loginuid"), O_WRONLY, 0}, what), 0);
  plan.Expect(plan.Call(SYS_write, {0, plan.Bytes(text), uint64_t{text.size()}}, what),
              static_cast<int64_t>(text.size()));
  plan.Call(SYS_close, {0}, what);
}

void TaskPlan::AddThreads(CallPlan& plan) const {
  for (int i = 1; i < state_.threads_size(); ++i) {
    const proto::ThreadState& thread = state_.threads(i);
    const criu::thread_info_x86& info = thread.core().thread_info();
    clone_args args = {};
    args.flags = kThreadFlags;
    if (info.clear_tid_addr() != 0) {
      args.flags |= CLONE_CHILD_CLEARTID;
      args.child_tid = info.clear_tid_addr();
    }
    args.tls = info.gpregs().fs_base();
    // Never used as a stack: the mark by which the tracer knows which thread it sees.
    args.stack = ThreadMark(static_cast<size_t>(i)) - 16;
    args.stack_size = 16;
    const pid_t tid = static_cast<pid_t>(thread.tid());
    args.set_tid = plan.Struct(tid);
    args.set_tid_size = 1;
    plan.Expect(plan.Call(SYS_clone3, {plan.Struct(args), uint64_t{sizeof(args)}},
                          absl::StrCat("create thread ", tid)),
                tid);
  }
}

void TaskPlan::AddProcess(CallPlan& plan) const {
  AddSignalActions(plan);
  const proto::ProcessExtra& extra = state_.extra();
  if (state_.fs().has_umask()) plan.Call(SYS_umask, {uint64_t{state_.fs().umask()}}, "umask");
  const criu::reg_file_entry* cwd = files_.FindRegular(state_.fs().cwd_id());
  const criu::reg_file_entry* root = files_.FindRegular(state_.fs().root_id());
  if (cwd != nullptr) {
    plan.Call(SYS_chdir, {plan.String(cwd->name())},
              absl::StrCat("working directory ", cwd->name()));
  }
  if (root != nullptr && root->name() != "/") {
    plan.Call(SYS_chroot, {plan.String(root->name())},
              absl::StrCat("root directory ", root->name()));
  }
  if (task().child_subreaper()) plan.Call(SYS_prctl, {PR_SET_CHILD_SUBREAPER, 1}, "subreaper");
  if (extra.thp_disabled_but_advised()) {
    plan.Call(SYS_prctl, {PR_SET_THP_DISABLE, 1, kThpExceptAdvised, 0, 0},
              "huge pages only where advised");
  } else if (extra.thp_disabled() || state_.mm().thp_disabled()) {
    plan.Call(SYS_prctl, {PR_SET_THP_DISABLE, 1, 0, 0, 0}, "no huge pages");
  }
  if (extra.mdwe_flags() != 0) {
    plan.Call(SYS_prctl, {kSetMdwe, uint64_t{extra.mdwe_flags()}, 0, 0, 0},
              "memory-deny-write-execute");
  }
  for (const auto& entry : task().signals_s().signals()) {
    const int number = SignalNumber(entry.siginfo());
    plan.Call(SYS_rt_sigqueueinfo, {process_.inner_pid, number, plan.Bytes(entry.siginfo())},
              absl::StrCat("pending signal ", number));
  }
  // Before the limits, which may be below what is queued.
  AddPendingSignals(plan, state_.threads(0));
  AddTimers(plan);
  AddLimits(plan);
}

void TaskPlan::AddSignalActions(CallPlan& plan) const {
  struct KernelAction {
    uint64_t handler;
    uint64_t flags;
    uint64_t restorer;
    uint64_t mask;
  };
  int number = 0;
  for (const auto& action : task().sigactions()) {
    do {
      ++number;
    } while (number == SIGKILL || number == SIGSTOP);
    // The landing has nothing but defaults.
    if (action.sigaction() == 0 && action.flags() == 0 && action.mask() == 0) continue;
    const KernelAction value = {action.sigaction(), action.flags(), action.restorer(),
                                action.mask()};
    plan.Call(SYS_rt_sigaction, {number, plan.Struct(value), 0, 8},
              absl::StrCat("action of signal ", number));
  }
}

void TaskPlan::AddTimers(CallPlan& plan) const {
  const criu::task_timers_entry& timers = task().timers();
  const auto add = [&](int which, const criu::itimer_entry& timer, int64_t elapsed_ns) {
    const int64_t remaining = ToNanoseconds(timer.vsec(), timer.vusec() * 1000);
    // An interval without time left: it has gone off, and taking its signal, which is pending here
    // by now, will arm it again. So it has to go off here, too; the signal only comes once.
    if (remaining == 0 && timer.isec() == 0 && timer.iusec() == 0) return;
    // Rounded up: a value of zero would disarm.
    const timespec left = ToTimespec(RemainingAfter(remaining, elapsed_ns) + 999);
    const itimerval value = {
        {static_cast<time_t>(timer.isec()), static_cast<suseconds_t>(timer.iusec())},
        {left.tv_sec, left.tv_nsec / 1000}};
    plan.Call(SYS_setitimer, {which, plan.Struct(value), 0},
              absl::StrCat("interval timer ", which));
  };
  add(ITIMER_REAL, timers.real(), elapsed_ns_);
  // CPU time stood still. setitimer(2) adds a tick to it, which is the coarse clock's resolution;
  // without taking that off, each move would put off the next signal.
  timespec tick = {};
  ::clock_getres(CLOCK_MONOTONIC_COARSE, &tick);
  add(ITIMER_VIRTUAL, timers.virt(), tick.tv_nsec);
  add(ITIMER_PROF, timers.prof(), tick.tv_nsec);
}

void TaskPlan::AddLimits(CallPlan& plan) const {
  const auto& limits = task().rlimits().rlimits();
  for (int i = 0; i < limits.size() && i < static_cast<int>(RLIM_NLIMITS); ++i) {
    const rlimit wanted = {std::min(limits.Get(i).cur(), limits.Get(i).max()), limits.Get(i).max()};
    const rlimit& ours = process_.baseline.limits[static_cast<size_t>(i)];
    if (i != RLIMIT_NOFILE && wanted.rlim_cur == ours.rlim_cur &&
        wanted.rlim_max == ours.rlim_max) {
      continue;
    }
    plan.Call(SYS_prlimit64, {0, i, plan.Struct(wanted), 0}, absl::StrCat("limit ", LimitName(i)));
  }
}

// From a thread to itself: only so may the siginfo say anything (rt_tgsigqueueinfo(2)).
void TaskPlan::AddPendingSignals(CallPlan& plan, const proto::ThreadState& thread) const {
  const int tid = static_cast<int>(thread.tid());
  for (const auto& entry : thread.core().thread_core().signals_p().signals()) {
    const int number = SignalNumber(entry.siginfo());
    plan.Call(SYS_rt_tgsigqueueinfo, {process_.inner_pid, tid, number, plan.Bytes(entry.siginfo())},
              absl::StrCat("pending signal ", number, " of thread ", tid));
  }
}

void TaskPlan::AddThread(CallPlan& plan, const proto::ThreadState& thread) const {
  const criu::thread_core_entry& core = thread.core().thread_core();
  const criu::thread_info_x86& info = thread.core().thread_info();
  const bool leader = thread.core().has_tc();
  const int tid = static_cast<int>(thread.tid());
  const std::string of_thread = absl::StrCat(" of thread ", tid);
  if (leader) plan.Call(SYS_set_tid_address, {info.clear_tid_addr()}, "clear_child_tid");
  if (core.futex_rla() != 0) {
    plan.Call(SYS_set_robust_list, {core.futex_rla(), uint64_t{core.futex_rla_len()}},
              "robust list" + of_thread);
  }
  if (core.has_sas() && (core.sas().ss_flags() & SS_DISABLE) == 0) {
    stack_t stack = {};
    stack.ss_sp = reinterpret_cast<void*>(core.sas().ss_sp());
    stack.ss_size = core.sas().ss_size();
    stack.ss_flags = static_cast<int>(core.sas().ss_flags() & ~uint32_t{SS_ONSTACK});
    plan.Call(SYS_sigaltstack, {plan.Struct(stack), 0}, "alternate stack" + of_thread);
  }
  if (core.has_rseq_entry() && core.rseq_entry().rseq_abi_pointer() != 0) {
    plan.Call(SYS_rseq,
              {core.rseq_entry().rseq_abi_pointer(), uint64_t{core.rseq_entry().rseq_abi_size()}, 0,
               uint64_t{core.rseq_entry().signature()}},
              "restartable sequences" + of_thread);
  }
  const std::string& name = core.has_comm() ? core.comm() : task().comm();
  plan.Call(SYS_prctl, {PR_SET_NAME, plan.String(name)}, "name" + of_thread);
  if (!leader) AddPendingSignals(plan, thread);
  AddScheduling(plan, thread);
  const proto::ThreadExtra& extra = thread.extra();
  if (extra.has_timer_slack_ns() && extra.timer_slack_ns() != process_.baseline.timer_slack_ns) {
    plan.Call(SYS_prctl, {PR_SET_TIMERSLACK, extra.timer_slack_ns()}, "timer slack" + of_thread);
  }
  // A thread has been made with the leader's ids.
  const bool changes =
      core.has_creds() && (!SameCredentials(core.creds()) ||
                           !SameCredentials(state_.threads(0).core().thread_core().creds()));
  if (changes) AddCredentials(plan, core.creds());
  // A change of credentials clears these two; every thread puts the process-wide one back, so
  // that whichever comes last leaves it right.
  if (core.pdeath_sig() != 0) {
    plan.Call(SYS_prctl, {PR_SET_PDEATHSIG, uint64_t{core.pdeath_sig()}},
              "parent-death signal" + of_thread);
  }
  const int dumpable = state_.mm().has_dumpable() ? state_.mm().dumpable() : 1;
  if (changes || dumpable != 1) {
    if (dumpable == 2) {
      // Not for prctl to set; fs.suid_dumpable may have made it so.
      plan.Expect(plan.Call(SYS_prctl, {PR_GET_DUMPABLE}, "dumpable"), 2);
    } else {
      plan.Call(SYS_prctl, {PR_SET_DUMPABLE, dumpable}, "dumpable");
    }
  }
  if (core.creds().no_new_privs() != 0) {
    plan.Call(SYS_prctl, {PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0}, "no_new_privs" + of_thread);
  }
}

void TaskPlan::AddScheduling(CallPlan& plan, const proto::ThreadState& thread) const {
  const criu::thread_core_entry& core = thread.core().thread_core();
  const proto::ThreadExtra& extra = thread.extra();
  const Baseline& baseline = process_.baseline;
  const std::string of_thread = absl::StrCat(" of thread ", thread.tid());
  if (core.has_sched_nice() && core.sched_nice() != baseline.nice) {
    plan.Call(SYS_setpriority, {PRIO_PROCESS, 0, int64_t{core.sched_nice()}},
              absl::StrCat("nice value ", core.sched_nice(), of_thread));
  }
  constexpr uint32_t kFlagResetOnFork = 1;  // SCHED_FLAG_RESET_ON_FORK
  const bool reset = (extra.sched_flags() & kFlagResetOnFork) != 0;
  if ((core.has_sched_policy() && core.sched_policy() != baseline.policy) ||
      core.sched_prio() != 0 || reset) {
    const sched_param parameters = {static_cast<int>(core.sched_prio())};
    const int policy = static_cast<int>(core.sched_policy()) | (reset ? SCHED_RESET_ON_FORK : 0);
    plan.Call(SYS_sched_setscheduler, {0, policy, plan.Struct(parameters)},
              absl::StrCat("scheduling policy ", core.sched_policy(), of_thread));
  }
  if (extra.time_slice_ns() != 0) {
    kernel::SchedAttributes attributes = {};
    attributes.size = sizeof attributes;
    attributes.policy = core.sched_policy();
    attributes.flags = reset ? kFlagResetOnFork : 0;
    attributes.nice = core.sched_nice();
    attributes.runtime = extra.time_slice_ns();
    plan.Call(SYS_sched_setattr, {0, plan.Struct(attributes), 0}, "time slice" + of_thread);
  }
  if (!extra.cpu_affinity().empty() && extra.cpu_affinity() != baseline.cpu_affinity) {
    plan.Call(SYS_sched_setaffinity,
              {0, uint64_t{extra.cpu_affinity().size()}, plan.Bytes(extra.cpu_affinity())},
              "CPU affinity" + of_thread);
  }
  if (extra.has_io_priority() && extra.io_priority() != 0) {
    constexpr int kIoprioWhoProcess = 1;
    plan.Call(SYS_ioprio_set, {kIoprioWhoProcess, 0, uint64_t{extra.io_priority()}},
              "I/O priority" + of_thread);
  }
}

bool TaskPlan::SameCredentials(const criu::creds_entry& creds) const {
  const kernel::StatusFields& ours = process_.baseline.status;
  const std::array<uid_t, 4> uids = {creds.uid(), creds.euid(), creds.suid(), creds.fsuid()};
  const std::array<gid_t, 4> gids = {creds.gid(), creds.egid(), creds.sgid(), creds.fsgid()};
  return uids == ours.uids && gids == ours.gids &&
         std::equal(creds.groups().begin(), creds.groups().end(), ours.groups.begin(),
                    ours.groups.end()) &&
         CapabilityMask(creds.cap_inh()) == ours.cap_inheritable &&
         CapabilityMask(creds.cap_prm()) == ours.cap_permitted &&
         CapabilityMask(creds.cap_eff()) == ours.cap_effective &&
         CapabilityMask(creds.cap_bnd()) == ours.cap_bounding &&
         CapabilityMask(creds.cap_amb()) == ours.cap_ambient &&
         creds.secbits() == process_.baseline.secure_bits;
}

// Capabilities stay while ids change.
void TaskPlan::AddIds(CallPlan& plan, const criu::creds_entry& creds) const {
  const std::string who = absl::StrCat("credentials (uid ", creds.uid(), ")");
  plan.Call(SYS_prctl, {PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP | SECBIT_KEEP_CAPS}, who);
  plan.Call(SYS_setgroups,
            {creds.groups_size(),
             plan.Bytes(absl::string_view(reinterpret_cast<const char*>(creds.groups().data()),
                                          static_cast<size_t>(creds.groups_size()) * 4))},
            "groups of the " + who);
  plan.Call(SYS_setresgid, {uint64_t{creds.gid()}, uint64_t{creds.egid()}, uint64_t{creds.sgid()}},
            who);
  plan.Call(SYS_setfsgid, {uint64_t{creds.fsgid()}}, who);
  plan.Call(SYS_setresuid, {uint64_t{creds.uid()}, uint64_t{creds.euid()}, uint64_t{creds.suid()}},
            who);
  plan.Call(SYS_setfsuid, {uint64_t{creds.fsuid()}}, who);
}

void TaskPlan::AddCredentials(CallPlan& plan, const criu::creds_entry& creds) const {
  const std::string who = absl::StrCat("credentials (uid ", creds.uid(), ")");
  AddIds(plan, creds);
  const kernel::StatusFields& ours = process_.baseline.status;
  plan.Call(SYS_prctl, {PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0}, who);
  // The final secure bits may forbid the ambient set; they go in between, while CAP_SETPCAP is
  // still there.
  const uint64_t ambient = CapabilityMask(creds.cap_amb());
  const uint64_t inheritable = CapabilityMask(creds.cap_inh());
  const uint64_t permitted = CapabilityMask(creds.cap_prm());
  const auto set_capabilities = [&](uint64_t effective, uint64_t permitted_now) {
    __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    __user_cap_data_struct data[2];
    for (int i = 0; i < 2; ++i) {
      data[i].effective = static_cast<uint32_t>(effective >> (32 * i));
      data[i].permitted = static_cast<uint32_t>(permitted_now >> (32 * i));
      data[i].inheritable = static_cast<uint32_t>(inheritable >> (32 * i));
    }
    plan.Call(SYS_capset, {plan.Struct(header), plan.Struct(data)},
              absl::StrCat("capabilities of the ", who));
  };
  // Before the bounding set shrinks: what is not in it cannot become inheritable.
  if ((ambient | inheritable) != 0) {
    set_capabilities(ours.cap_permitted, ours.cap_permitted);
    for (int bit = 0; bit < 64; ++bit) {
      if ((ambient & (1ull << bit)) == 0) continue;
      plan.Call(SYS_prctl, {PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, bit, 0, 0},
                "ambient set of the " + who);
    }
  }
  const uint64_t drop = ours.cap_bounding & ~CapabilityMask(creds.cap_bnd());
  for (int bit = 0; bit < 64; ++bit) {
    if ((drop & (1ull << bit)) == 0) continue;
    plan.Call(SYS_prctl, {PR_CAPBSET_DROP, bit, 0, 0, 0}, "bounding set of the " + who);
  }
  plan.Call(SYS_prctl, {PR_SET_SECUREBITS, uint64_t{creds.secbits()}}, "secure bits of the " + who);
  set_capabilities(CapabilityMask(creds.cap_eff()), permitted);
}

absl::Status TaskPlan::WriteProcFiles() const {
  const auto write = [&](absl::string_view name, const std::string& value) -> absl::Status {
    PREDUMP_ASSIGN_OR_RETURN(const base::UniqueFd file, process_.handle.OpenProc(name, O_WRONLY));
    if (::write(file.get(), value.data(), value.size()) != static_cast<ssize_t>(value.size())) {
      return base::ErrnoError(errno, "set ", name, " to ", value);
    }
    return absl::OkStatus();
  };
  if (task().has_oom_score_adj() && task().oom_score_adj() != process_.baseline.oom_score_adj) {
    PREDUMP_RETURN_IF_ERROR(write("oom_score_adj", absl::StrCat(task().oom_score_adj())));
  }
  if (state_.extra().has_coredump_filter()) {
    PREDUMP_RETURN_IF_ERROR(
        write("coredump_filter", absl::StrFormat("0x%x", state_.extra().coredump_filter())));
  }
  return absl::OkStatus();
}

}  // namespace predump::restore::internal
