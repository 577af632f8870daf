#include "src/kernel/remote_batch.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/ptrace.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "src/base/errors.h"

namespace predump::kernel {
namespace {

constexpr size_t kArguments = 6;
constexpr size_t kTableAlignment = 64;

// One table entry, as the loop below walks it. An argument with its bit in `indirect` is the
// address of the value instead: the result of an earlier entry.
struct Entry {
  uint64_t number;
  uint64_t arguments[kArguments];
  int64_t result;
  uint64_t indirect;    // bit i: arguments[i] is an address
  uint64_t keep_going;  // 1: go on after an error
  uint64_t padding[6];
};
static_assert(sizeof(Entry) == 128);
static_assert(offsetof(Entry, result) == 56 && offsetof(Entry, indirect) == 64 &&
              offsetof(Entry, keep_going) == 72);

// What a call not run has as its result: no call returns it.
constexpr int64_t kNotRun = -(1ll << 62);

// r12: next entry, r13: entries left, r14: tgid, r15: tid. Uses no stack: the task may have none.
asm(R"(
  .pushsection .rodata
  .balign 16
  .globl predump_batch_loop_begin, predump_batch_loop_end
predump_batch_loop_begin:
  test %r13, %r13
  jz 9f
1:
  mov 64(%r12), %rbx
  mov 8(%r12), %rdi
  mov 16(%r12), %rsi
  mov 24(%r12), %rdx
  mov 32(%r12), %r10
  mov 40(%r12), %r8
  mov 48(%r12), %r9
  test %rbx, %rbx
  jz 2f
  test $1, %bl
  jz 3f
  mov (%rdi), %rdi
3:
  test $2, %bl
  jz 3f
  mov (%rsi), %rsi
3:
  test $4, %bl
  jz 3f
  mov (%rdx), %rdx
3:
  test $8, %bl
  jz 3f
  mov (%r10), %r10
3:
  test $16, %bl
  jz 3f
  mov (%r8), %r8
3:
  test $32, %bl
  jz 2f
  mov (%r9), %r9
2:
  mov (%r12), %rax
  syscall
  mov %rax, 56(%r12)
  cmp $-4095, %rax
  jb 4f
  cmpq $0, 72(%r12)
  je 9f
4:
  add $128, %r12
  dec %r13
  jnz 1b
9:
  mov $234, %eax
  mov %r14, %rdi
  mov %r15, %rsi
  mov $19, %edx
  syscall
  jmp 9b
predump_batch_loop_end:
  .popsection
)");
extern "C" const std::byte predump_batch_loop_begin[];
extern "C" const std::byte predump_batch_loop_end[];

size_t LoopBytes() {
  const size_t bytes = static_cast<size_t>(predump_batch_loop_end - predump_batch_loop_begin);
  return (bytes + kTableAlignment - 1) / kTableAlignment * kTableAlignment;
}

size_t EntryOffset(size_t index) { return LoopBytes() + index * sizeof(Entry); }

Entry LoadEntry(std::span<const std::byte> local, size_t index) {
  Entry entry;
  memcpy(&entry, local.data() + EntryOffset(index), sizeof entry);
  return entry;
}

bool IsError(int64_t result) { return result >= -4095 && result < 0; }

}  // namespace

absl::StatusOr<RemoteBatch> RemoteBatch::Create(base::RemoteAddress remote,
                                                std::span<std::byte> local, size_t max_calls) {
  if (max_calls > local.size() / sizeof(Entry) || EntryOffset(max_calls) > local.size()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a batch of ", max_calls, " calls does not fit into ", local.size(), " bytes"));
  }
  RemoteBatch batch;
  batch.remote_ = remote;
  batch.local_ = local;
  batch.max_calls_ = max_calls;
  batch.data_start_ = EntryOffset(max_calls);
  memcpy(local.data(), predump_batch_loop_begin,
         static_cast<size_t>(predump_batch_loop_end - predump_batch_loop_begin));
  batch.Clear();
  return batch;
}

absl::StatusOr<RemoteBatch::CallId> RemoteBatch::Add(uint64_t number,
                                                     std::span<const Argument> arguments,
                                                     std::string description, OnError on_error) {
  if (arguments.size() > kArguments) {
    return absl::InvalidArgumentError(absl::StrCat(description, ": more than six arguments"));
  }
  if (size() == max_calls_) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the table of ", max_calls_, " calls is full at: ", description));
  }
  Entry entry = {};
  entry.number = number;
  entry.result = kNotRun;
  entry.keep_going = on_error == OnError::kContinue ? 1 : 0;
  for (size_t i = 0; i < arguments.size(); ++i) {
    entry.arguments[i] = arguments[i].value;
    if (!arguments[i].result_of.has_value()) continue;
    if (*arguments[i].result_of >= size()) {
      return absl::InvalidArgumentError(
          absl::StrCat(description, ": argument ", i, " is the result of a later call"));
    }
    entry.arguments[i] =
        remote_.value() + EntryOffset(*arguments[i].result_of) + offsetof(Entry, result);
    entry.indirect |= 1ull << i;
  }
  const CallId id{size()};
  memcpy(local_.data() + EntryOffset(id.index), &entry, sizeof entry);
  descriptions_.push_back(std::move(description));
  policies_.push_back(on_error);
  return id;
}

absl::StatusOr<base::RemoteAddress> RemoteBatch::Allocate(size_t bytes, size_t alignment) {
  const uint64_t unaligned = remote_.value() + data_start_ + data_used_;
  const uint64_t address = (unaligned + alignment - 1) / alignment * alignment;
  const size_t offset = address - remote_.value();
  if (offset > local_.size() || bytes > local_.size() - offset) {
    return absl::ResourceExhaustedError(absl::StrCat("no room for ", bytes, " bytes in the batch"));
  }
  data_used_ = offset + bytes - data_start_;
  memset(local_.data() + offset, 0, bytes);
  return base::RemoteAddress(address);
}

absl::StatusOr<base::RemoteAddress> RemoteBatch::AddBytes(std::span<const std::byte> bytes,
                                                          size_t alignment) {
  PREDUMP_ASSIGN_OR_RETURN(const base::RemoteAddress address, Allocate(bytes.size(), alignment));
  if (!bytes.empty()) memcpy(View(address, bytes.size()).data(), bytes.data(), bytes.size());
  return address;
}

absl::StatusOr<base::RemoteAddress> RemoteBatch::AddString(absl::string_view text) {
  PREDUMP_ASSIGN_OR_RETURN(const base::RemoteAddress address, Allocate(text.size() + 1, 1));
  memcpy(View(address, text.size() + 1).data(), text.data(), text.size());
  return address;
}

std::span<std::byte> RemoteBatch::View(base::RemoteAddress address, size_t size) const {
  return local_.subspan((address - remote_).value(), size);
}

user_regs_struct RemoteBatch::StartRegisters(const user_regs_struct& base, pid_t tgid,
                                             pid_t tid) const {
  user_regs_struct registers = base;
  registers.rip = remote_.value();
  registers.r12 = remote_.value() + EntryOffset(0);
  registers.r13 = size();
  registers.r14 = static_cast<uint64_t>(tgid);
  registers.r15 = static_cast<uint64_t>(tid);
  registers.orig_rax = ~0ull;
  // A direction or trap flag of the interrupted code is not the loop's.
  constexpr uint64_t kTrapAndDirection = 0x100 | 0x400;
  registers.eflags &= ~kTrapAndDirection;
  return registers;
}

absl::Status RemoteBatch::Start(Tracee& thread, pid_t tgid, pid_t tid) const {
  PREDUMP_ASSIGN_OR_RETURN(const user_regs_struct base, thread.GetRegisters());
  PREDUMP_RETURN_IF_ERROR(thread.SetRegisters(StartRegisters(base, tgid, tid)));
  return thread.Continue();
}

absl::Status RemoteBatch::Finish(Tracee& thread, absl::Duration timeout) const {
  for (;;) {
    PREDUMP_ASSIGN_OR_RETURN(const WaitEvent event, thread.WaitForStop(timeout));
    if (event.kind == WaitEvent::Kind::kSignalStop && event.code == SIGSTOP) return FirstError();
    const bool is_fault = event.kind == WaitEvent::Kind::kSignalStop &&
                          (event.code == SIGSEGV || event.code == SIGBUS || event.code == SIGILL);
    if (is_fault) {
      return absl::InternalError(
          absl::StrCat("task ", thread.tid(), " faulted inside a batch (signal ", event.code, ")"));
    }
    PREDUMP_RETURN_IF_ERROR(
        thread.Continue(event.kind == WaitEvent::Kind::kSignalStop ? event.code : 0));
  }
}

absl::Status RemoteBatch::Run(Tracee& thread, pid_t tgid, pid_t tid, absl::Duration timeout) {
  PREDUMP_RETURN_IF_ERROR(Start(thread, tgid, tid));
  return Finish(thread, timeout);
}

int64_t RemoteBatch::Result(CallId call) const { return LoadEntry(local_, call.index).result; }

absl::Status RemoteBatch::FirstError() const {
  for (size_t i = 0; i < size(); ++i) {
    const int64_t result = LoadEntry(local_, i).result;
    if (result == kNotRun) {
      return absl::InternalError(absl::StrCat("not run: ", descriptions_[i]));
    }
    if (IsError(result) && policies_[i] == OnError::kStop) {
      return base::ErrnoError(static_cast<int>(-result), descriptions_[i]);
    }
  }
  return absl::OkStatus();
}

void RemoteBatch::Clear() {
  descriptions_.clear();
  policies_.clear();
  data_used_ = 0;
}

}  // namespace predump::kernel
