#include "tests/workloads/compute_thread.h"

#include <asm/prctl.h>
#include <fenv.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <string>

#include "tests/workloads/rseq_counter.h"
#include "tests/workloads/vector_state.h"

namespace predump::workloads {
namespace {

constexpr size_t kAlternateStackBytes = 64 << 10;

int RaisedSignal() { return SIGRTMIN + 1; }
// Each thread blocks a signal the next one does not.
int BlockedSignal(size_t index) { return SIGRTMIN + 3 + static_cast<int>(index % 16); }

thread_local uint64_t t_magic = 0x1234567890;          // initialised image of the module
thread_local std::array<uint64_t, 512> t_zeroed = {};  // zeroed part
thread_local std::atomic<uintptr_t> t_handler_stack = 0;

void NoteStack(int) {
  int local = 0;
  t_handler_stack = reinterpret_cast<uintptr_t>(&local);
}

uint32_t ReadMxcsr() {
  uint32_t value;
  asm volatile("stmxcsr %0" : "=m"(value));
  return value;
}

uintptr_t GsBase() {
  uintptr_t base = 0;
  syscall(SYS_arch_prctl, ARCH_GET_GS, &base);
  return base;
}

std::string ThreadName(size_t index) { return "compute-" + std::to_string(index); }

}  // namespace

ComputeThread::ComputeThread(Workload& workload, TurnTable& table, const Settings& settings)
    : workload_(workload),
      table_(table),
      settings_(settings),
      pages_(workload, MapPages(settings.pages), settings.pages, workload.seed() + settings.index),
      random_(workload.seed() + settings.index),
      stack_(kAlternateStackBytes) {}

void ComputeThread::SetUp() {
  tid_ = gettid();
  t_magic += settings_.index;
  t_zeroed.fill(settings_.index);
  pthread_setname_np(pthread_self(), ThreadName(settings_.index).c_str());

  struct sigaction action = {};
  action.sa_handler = NoteStack;
  action.sa_flags = SA_ONSTACK | SA_RESTART;
  Must(sigaction(RaisedSignal(), &action, nullptr), "sigaction");
  const stack_t stack = {stack_.data(), 0, stack_.size()};
  Must(sigaltstack(&stack, nullptr), "sigaltstack");
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, BlockedSignal(settings_.index));
  pthread_sigmask(SIG_BLOCK, &set, nullptr);

  constexpr int kRoundings[] = {FE_TONEAREST, FE_DOWNWARD, FE_UPWARD, FE_TOWARDZERO};
  rounding_ = kRoundings[settings_.index % 4];
  fesetround(rounding_);
  mxcsr_ = ReadMxcsr() & 0xFFC0;  // the sticky exception flags below come and go
  Must(syscall(SYS_arch_prctl, ARCH_SET_GS, this), "ARCH_SET_GS");
}

void ComputeThread::CheckThreadState() {
  const auto index = settings_.index;
  if (gettid() != tid_) workload_.Error("compute %zu: tid %d became %d", index, tid_, gettid());
  if (t_magic != 0x1234567890 + index) workload_.Error("compute %zu: thread-local lost", index);
  for (const uint64_t value : t_zeroed) {
    if (value == index) continue;
    workload_.Error("compute %zu: thread-local array holds %#lx", index, value);
    t_zeroed.fill(index);
    break;
  }
  char name[16] = {};
  pthread_getname_np(pthread_self(), name, sizeof name);
  if (ThreadName(index) != name) workload_.Error("compute %zu is named %s", index, name);
  // x87 through fegetround, SSE through the register itself.
  if (fegetround() != rounding_) workload_.Error("compute %zu: x87 rounding changed", index);
  if ((ReadMxcsr() & 0xFFC0) != mxcsr_) workload_.Error("compute %zu: mxcsr changed", index);
  if (GsBase() != reinterpret_cast<uintptr_t>(this)) {
    workload_.Error("compute %zu: gs base is %#lx", index, GsBase());
  }
  if (!RseqIsRegistered()) workload_.Error("compute %zu: rseq is not registered", index);
}

void ComputeThread::CheckSignalsAndStack() {
  stack_t stack;
  sigaltstack(nullptr, &stack);
  if (stack.ss_sp != stack_.data() || stack.ss_size != stack_.size() || stack.ss_flags != 0) {
    workload_.Error("compute %zu: alternate stack is %p+%zu flags %d", settings_.index, stack.ss_sp,
                    stack.ss_size, stack.ss_flags);
  }
  sigset_t set;
  pthread_sigmask(SIG_BLOCK, nullptr, &set);
  for (int signal = SIGRTMIN + 3; signal < SIGRTMIN + 19; ++signal) {
    const bool expected = signal == BlockedSignal(settings_.index);
    if ((sigismember(&set, signal) == 1) != expected) {
      workload_.Error("compute %zu: signal %d blocked: %d", settings_.index, signal, !expected);
    }
  }
  RaiseOnAlternateStack();
}

void ComputeThread::RaiseOnAlternateStack() {
  t_handler_stack = 0;
  pthread_kill(pthread_self(), RaisedSignal());
  const auto start = reinterpret_cast<uintptr_t>(stack_.data());
  if (t_handler_stack < start || t_handler_stack >= start + stack_.size()) {
    workload_.Error("compute %zu: handler ran at %#lx, not on the alternate stack", settings_.index,
                    t_handler_stack.load());
  }
}

void ComputeThread::TakeTurn(std::atomic<bool>& stop) {
  std::unique_lock lock(table_.mutex);
  table_.changed.wait(lock, [&] { return stop || table_.turn == settings_.index; });
  if (table_.first != table_.second) {
    workload_.Error("the numbers under the mutex are %lu and %lu", table_.first, table_.second);
    table_.second = table_.first;
  }
  table_.first++;
  const uint64_t lost = FindLostRegister(table_.first, 100) != nullptr ? 1 : 0;
  if (lost != 0) workload_.Error("compute %zu: register lost under the mutex", settings_.index);
  table_.second++;
  table_.turn = (settings_.index + 1) % settings_.threads;
  table_.changed.notify_all();
}

void ComputeThread::Run(std::atomic<bool>& stop) {
  SetUp();
  Heartbeat heartbeat(workload_);
  for (uint64_t iteration = 0; !stop; ++iteration) {
    heartbeat.Beat();
    const uint64_t seed = iteration * settings_.threads + settings_.index;
    if (const char* lost = FindLostRegister(seed, settings_.spins)) {
      workload_.Error("compute %zu: a %s lost its value", settings_.index, lost);
    }
    for (int i = 0; i < 8; ++i) pages_.Write(random_.Below(pages_.pages()));
    for (int i = 0; i < 8; ++i) pages_.Verify(random_.Below(pages_.pages()));
    if (iteration % 16 == 0) {
      CheckThreadState();
      CheckSignalsAndStack();
    }
    TakeTurn(stop);
    if (settings_.pause_ns > 0) SleepNs(workload_, settings_.pause_ns);
  }
  table_.changed.notify_all();
  pages_.VerifyAll();
  CheckThreadState();
  CheckSignalsAndStack();
  // An alternate stack that outlives its memory would be used by exit handlers.
  const stack_t off = {nullptr, SS_DISABLE, 0};
  sigaltstack(&off, nullptr);
}

}  // namespace predump::workloads
