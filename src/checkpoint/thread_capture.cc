#include "src/checkpoint/thread_capture.h"

#include <asm/ldt.h>
#include <sched.h>
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/sysinfo.h>
#include <sys/user.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "src/base/errors.h"
#include "src/checkpoint/xstate.h"
#include "src/images/image_constants.h"
#include "src/kernel/process_memory.h"

namespace predump::checkpoint {
namespace {

constexpr uint64_t kUserCodeSegment = 0x33;
constexpr uint32_t kResetOnForkFlag = 0x01;  // SCHED_FLAG_RESET_ON_FORK
constexpr int kDefaultPriority = 120;        // of nice 0
constexpr uint64_t kLdtSelectorBit = 4;
// struct rseq_cs, linux/rseq.h
struct RestartableSequence {
  uint32_t version;
  uint32_t flags;
  uint64_t start;
  uint64_t length;
  uint64_t abort;
};
constexpr uint64_t kRseqCsOffset = 8;
// GDT_ENTRY_TLS_MIN of x86-64 and the two after it.
constexpr int kFirstTlsSlot = 12;
constexpr int kTlsSlots = 3;

void FillRegisters(const user_regs_struct& from, criu::user_x86_regs_entry& to) {
  to.set_r15(from.r15);
  to.set_r14(from.r14);
  to.set_r13(from.r13);
  to.set_r12(from.r12);
  to.set_bp(from.rbp);
  to.set_bx(from.rbx);
  to.set_r11(from.r11);
  to.set_r10(from.r10);
  to.set_r9(from.r9);
  to.set_r8(from.r8);
  to.set_ax(from.rax);
  to.set_cx(from.rcx);
  to.set_dx(from.rdx);
  to.set_si(from.rsi);
  to.set_di(from.rdi);
  to.set_orig_ax(from.orig_rax);
  to.set_ip(from.rip);
  to.set_cs(from.cs);
  to.set_flags(from.eflags);
  to.set_sp(from.rsp);
  to.set_ss(from.ss);
  to.set_fs_base(from.fs_base);
  to.set_gs_base(from.gs_base);
  to.set_ds(from.ds);
  to.set_es(from.es);
  to.set_fs(from.fs);
  to.set_gs(from.gs);
}

// CPUs the thread is confined to; nothing where it may use all there are, since "all" means
// something else at a host with more of them.
std::string Affinity(pid_t tid) {
  std::vector<uint64_t> mask(1024);
  const long bytes = ::syscall(SYS_sched_getaffinity, tid, mask.size() * 8, mask.data());
  if (bytes <= 0) return "";
  mask.resize((static_cast<size_t>(bytes) + 7) / 8);
  static const int online = ::get_nprocs();
  int allowed = 0;
  for (const uint64_t word : mask) allowed += __builtin_popcountll(word);
  if (allowed >= online) return "";
  return std::string(reinterpret_cast<const char*>(mask.data()), mask.size() * 8);
}

bool UsesSegmentDescriptors(pid_t tid, const user_regs_struct& r) {
  for (const uint64_t selector : {r.cs, r.ss, r.ds, r.es, r.fs, r.gs}) {
    if ((selector & kLdtSelectorBit) != 0) return true;
  }
  for (int slot = kFirstTlsSlot; slot < kFirstTlsSlot + kTlsSlots; ++slot) {
    struct user_desc descriptor = {};
    // An empty slot reads as "not present, read only" with no address (kernel/tls.c).
    if (::ptrace(static_cast<__ptrace_request>(PTRACE_GET_THREAD_AREA), tid,
                 reinterpret_cast<void*>(static_cast<uintptr_t>(slot)), &descriptor) == 0 &&
        descriptor.seg_not_present == 0) {
      return true;
    }
  }
  return false;
}

absl::Status FillRseq(const kernel::Tracee& tracee, criu::thread_core_entry& core) {
  const auto rseq = tracee.GetRseqConfiguration();
  // A kernel without the request (before 5.13) has no rseq worth carrying either.
  if (!rseq.ok()) return absl::IsUnimplemented(rseq.status()) ? absl::OkStatus() : rseq.status();
  if (rseq->address == base::RemoteAddress(0)) return absl::OkStatus();
  criu::rseq_entry& entry = *core.mutable_rseq_entry();
  entry.set_rseq_abi_pointer(rseq->address.value());
  entry.set_rseq_abi_size(rseq->size);
  entry.set_signature(rseq->signature);
  return absl::OkStatus();
}

bool IsIgnoredByDefault(int signal_number) {
  return signal_number == SIGCHLD || signal_number == SIGCONT || signal_number == SIGURG ||
         signal_number == SIGWINCH;
}

}  // namespace

void FillSignals(std::span<const siginfo_t> signals, criu::signal_queue_entry& queue) {
  static_assert(sizeof(siginfo_t) == images::kSiginfoBytes);
  for (const siginfo_t& info : signals) {
    queue.add_signals()->set_siginfo(&info, sizeof info);
  }
}

bool HasUnblockedSignal(const kernel::ProcessRecord& process, const kernel::ThreadRecord& thread) {
  const uint64_t waiting = (thread.pending | process.shared_pending) & ~thread.blocked;
  for (int i = 0; i < kernel::kSignals; ++i) {
    if ((waiting >> i & 1) == 0) continue;
    const auto handler =
        reinterpret_cast<__sighandler_t>(process.actions[static_cast<size_t>(i)].handler);
    if (handler == SIG_IGN || (handler == SIG_DFL && IsIgnoredByDefault(i + 1))) continue;
    return true;
  }
  return false;
}

absl::Status FillThreadAttributes(const kernel::ThreadRecord& record, pid_t tid,
                                  const criu::creds_entry& creds, proto::ThreadState& state) {
  state.set_tid(static_cast<uint32_t>(record.tid.own));
  criu::core_entry& core = *state.mutable_core();
  core.set_mtype(criu::core_entry::X86_64);
  criu::thread_core_entry& thread = *core.mutable_thread_core();
  thread.set_futex_rla(record.robust_list);
  thread.set_futex_rla_len(
      record.robust_list == 0 ? 0 : static_cast<uint32_t>(record.robust_list_bytes));
  thread.set_sched_nice(record.static_priority < 100 ? 0
                                                     : record.static_priority - kDefaultPriority);
  thread.set_sched_policy(record.policy);
  if (record.policy == SCHED_FIFO || record.policy == SCHED_RR) {
    thread.set_sched_prio(record.realtime_priority);
  }
  // Inside a call with a mask of its own the mask to come back to is the saved one.
  thread.set_blk_sigset(record.restore_sigmask != 0 ? record.saved_mask : record.blocked);
  if (record.restore_sigmask != 0) state.mutable_extra()->set_temporary_signal_mask(record.blocked);
  criu::thread_sas_entry& stack = *thread.mutable_sas();
  stack.set_ss_sp(record.alt_stack_address);
  stack.set_ss_size(record.alt_stack_bytes);
  stack.set_ss_flags(record.alt_stack_bytes == 0 ? static_cast<uint32_t>(SS_DISABLE)
                                                 : record.alt_stack_flags & ~uint32_t{SS_ONSTACK});
  thread.set_pdeath_sig(static_cast<uint32_t>(record.parent_death_signal));
  *thread.mutable_creds() = creds;
  thread.set_comm(std::string(record.comm, strnlen(record.comm, sizeof record.comm)));

  proto::ThreadExtra& extra = *state.mutable_extra();
  if (std::string affinity = Affinity(tid); !affinity.empty()) extra.set_cpu_affinity(affinity);
  if (record.io_priority != 0) extra.set_io_priority(record.io_priority);
  extra.set_timer_slack_ns(record.timer_slack);
  if (record.time_slice != 0) extra.set_time_slice_ns(record.time_slice);
  if (record.reset_on_fork != 0) extra.set_sched_flags(kResetOnForkFlag);
  return absl::OkStatus();
}

absl::Status FillThreadExecution(const kernel::ProcessHandle& process, const kernel::Tracee& tracee,
                                 const CallContext& context, proto::ThreadState& state,
                                 BlockerList& blockers) {
  PREDUMP_ASSIGN_OR_RETURN(const user_regs_struct stopped, tracee.GetRegisters());
  const std::string who = absl::StrCat("thread ", state.tid());
  if (stopped.cs != kUserCodeSegment) {
    blockers.Add(who, "runs 32-bit code");
    return absl::OkStatus();
  }
  if (UsesSegmentDescriptors(tracee.tid(), stopped)) {
    blockers.Add(who, "uses segment descriptors of its own (set_thread_area, modify_ldt)");
    return absl::OkStatus();
  }
  proto::ThreadExtra& extra = *state.mutable_extra();
  extra.set_raw_registers(&stopped, sizeof stopped);
  ResumePoint point = ResumeElsewhere(process, stopped, context);
  if (point.call.has_value()) *extra.mutable_interrupted_call() = *std::move(point.call);

  criu::thread_info_x86& info = *state.mutable_core()->mutable_thread_info();
  info.set_clear_tid_addr(context.record->clear_child_tid);
  FillRegisters(point.registers, *info.mutable_gpregs());
  PREDUMP_ASSIGN_OR_RETURN(const auto xstate, tracee.GetXstate());
  extra.set_xsave(xstate.data(), xstate.size());
  PREDUMP_RETURN_IF_ERROR(DecodeXstate(xstate, *info.mutable_fpregs()));
  criu::thread_core_entry& core = *state.mutable_core()->mutable_thread_core();
  PREDUMP_RETURN_IF_ERROR(FillRseq(tracee, core));
  core.mutable_signals_p();
  if (context.record->pending != 0) {
    PREDUMP_ASSIGN_OR_RETURN(const auto signals,
                             tracee.PeekPendingSignals(kernel::PendingQueue::kThread));
    FillSignals(signals, *core.mutable_signals_p());
  }
  return absl::OkStatus();
}

absl::Status AbortRestartableSequences(const kernel::ProcessHandle& process,
                                       proto::ProcessState& state) {
  std::vector<base::AddressRange> ranges;
  std::vector<proto::ThreadState*> threads;
  for (auto& thread : *state.mutable_threads()) {
    if (!thread.core().thread_core().has_rseq_entry()) continue;
    const uint64_t at = thread.core().thread_core().rseq_entry().rseq_abi_pointer() + kRseqCsOffset;
    ranges.push_back(base::AddressRange::FromOrdered(at, at + sizeof(uint64_t)));
    threads.push_back(&thread);
  }
  if (threads.empty()) return absl::OkStatus();
  std::vector<uint64_t> pointers(threads.size());
  PREDUMP_ASSIGN_OR_RETURN(
      const auto read,
      kernel::ReadProcessMemory(process, ranges, std::as_writable_bytes(std::span(pointers))));
  if (read.value() != pointers.size() * sizeof(uint64_t)) {
    return absl::InternalError("a registered rseq area cannot be read");
  }
  for (size_t i = 0; i < threads.size(); ++i) {
    if (pointers[i] == 0) continue;
    RestartableSequence sequence;
    PREDUMP_RETURN_IF_ERROR(
        kernel::ReadProcessMemoryExactly(process, base::RemoteAddress(pointers[i]),
                                         std::as_writable_bytes(std::span(&sequence, 1))));
    auto& registers = *threads[i]->mutable_core()->mutable_thread_info()->mutable_gpregs();
    if (registers.ip() - sequence.start < sequence.length) registers.set_ip(sequence.abort);
  }
  return absl::OkStatus();
}

}  // namespace predump::checkpoint
