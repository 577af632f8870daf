// The landing executable: the process whose memory becomes the migrated process's memory.
//
// No libc, no allocation, no signal handlers. The server starts it under ptrace, moves the vDSO
// into the home block, unmaps the kernel's stack and maps the trampoline before the first
// instruction runs (landing_start.cc); so what is mapped here is the home block and nothing else,
// and everything the frames map goes straight to where the process will have it.
//
// The same executable is the reaper (rdi == 0 at entry): the parent of what was restored, which
// must outlive the server and should not be a copy of its memory.
#include <asm/unistd.h>
#include <linux/fcntl.h>
#include <linux/mman.h>
#include <linux/prctl.h>
#include <linux/signal.h>
#include <stddef.h>
#include <stdint.h>

#include "src/restore/landing/layout.h"
#include "src/restore/landing/staging.h"
#include "src/transport/data_check.h"
#include "src/transport/data_format.h"

namespace predump::restore {
namespace {

using transport::DataDefect;
using transport::DataHeader;
using transport::DataKind;
using transport::MapRecord;
using transport::WireExtent;

// From <sys/socket.h> and <sys/uio.h>, which drag in libc.
struct IoVector {
  void* base;
  uint64_t bytes;
};
struct MessageHeader {
  void* name;
  uint32_t name_bytes;
  IoVector* vectors;
  uint64_t vector_count;
  void* control;
  uint64_t control_bytes;
  int32_t flags;
};
constexpr int kMsgWaitAll = 0x100;
constexpr int kMsgNoSignal = 0x4000;
constexpr uint32_t kMaxVectors = 1024;  // UIO_MAXIOV
// A kernel without preemption lets nobody else run until a call is over, and each new page costs
// up to some microseconds: what is received at once keeps others waiting well below a millisecond.
constexpr uint64_t kReceiveAtOnceBytes = 128 << 10;
constexpr int kEintr = 4;
constexpr int kEnomem = 12;
constexpr int kEfault = 14;
constexpr int kWaitAll = 0x40000000;  // __WALL

int64_t Call(int64_t number, uint64_t a = 0, uint64_t b = 0, uint64_t c = 0, uint64_t d = 0,
             uint64_t e = 0, uint64_t f = 0) {
  int64_t result;
  register uint64_t r10 asm("r10") = d;
  register uint64_t r8 asm("r8") = e;
  register uint64_t r9 asm("r9") = f;
  asm volatile("syscall"
               : "=a"(result)
               : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
               : "rcx", "r11", "memory");
  return result;
}

bool Failed(int64_t result) { return result < 0 && result > -4096; }
uint64_t AddressOf(const void* p) { return reinterpret_cast<uint64_t>(p); }

// Constant-initialised and in .bss: the landing has one life and one job.
struct Buffers {
  WireExtent extents[transport::kMaxExtentsPerFrame];
  // A frame's extents, cut where they cross the home block: at most two cuts.
  IoVector vectors[transport::kMaxExtentsPerFrame + 4];
};
constinit Buffers g_buffers = {};

class LandingProgram {
 public:
  explicit LandingProgram(LandingShared* shared) : shared_(shared), pieces_(shared) {}

  [[noreturn]] void Run() {
    for (;;) {
      DataHeader header;
      Receive(&header, sizeof(header));
      CheckFrame(transport::CheckHeader(header), 0);
      round_ = header.round;
      const auto kind = static_cast<DataKind>(header.kind);
      // Of a map the table is its record, which Map() reads.
      const bool has_extents = kind != DataKind::kMap && transport::TableBytes(header) != 0;
      const uint32_t extents = has_extents ? header.count : 0;
      if (has_extents) {
        Receive(g_buffers.extents, transport::TableBytes(header));
        uint64_t where = 0;
        const DataDefect defect = transport::CheckExtents(header, g_buffers.extents, &where);
        CheckFrame(defect, where);
      }
      switch (kind) {
        case DataKind::kMap:
          Map();
          break;
        case DataKind::kUnmap:
          for (uint32_t i = 0; i < extents; ++i) Unmap(g_buffers.extents[i]);
          break;
        case DataKind::kDrop:
          for (uint32_t i = 0; i < extents; ++i) Drop(g_buffers.extents[i]);
          break;
        case DataKind::kPages:
          ReceivePages(extents);
          shared_->payload_bytes += header.arg;
          break;
        case DataKind::kRoundEnd:
          Acknowledge(header.arg);
          break;
        default:  // kFinal: CheckHeader has let nothing else through
          Finish(header.arg);
      }
    }
  }

 private:
  // Tells the source and, through the shared page, the server; then ends.
  [[noreturn]] void GiveUp(LandingFault fault, int error_number, uint64_t address) {
    shared_->fault = static_cast<uint32_t>(fault);
    shared_->error_number = error_number;
    shared_->address = address;
    if (fault != LandingFault::kEndOfStream) {
      DataHeader header = {};
      header.kind = static_cast<uint32_t>(DataKind::kLandingError);
      header.count = static_cast<uint32_t>(error_number);
      header.arg = address;
      header.round = round_;
      Call(__NR_sendto, Socket(), AddressOf(&header), sizeof(header), kMsgNoSignal);
    }
    for (;;) Call(__NR_exit_group, 1);
  }

  void CheckFrame(DataDefect defect, uint64_t address) {
    if (defect == DataDefect::kNone) return;
    shared_->frame_defect = static_cast<uint32_t>(defect);
    constexpr int kEproto = 71;
    GiveUp(LandingFault::kFrame, kEproto, address);
  }

  uint64_t Socket() const { return static_cast<uint64_t>(shared_->data_socket); }

  void Receive(void* to, uint64_t bytes) {
    uint64_t done = 0;
    while (done < bytes) {
      const int64_t got =
          Call(__NR_recvfrom, Socket(), AddressOf(to) + done, bytes - done, kMsgWaitAll);
      if (got == -kEintr) continue;
      if (Failed(got)) GiveUp(LandingFault::kReceive, static_cast<int>(-got), 0);
      if (got == 0) GiveUp(LandingFault::kEndOfStream, 0, 0);
      done += static_cast<uint64_t>(got);
    }
  }

  void Map() {
    MapRecord record;
    Receive(&record, sizeof(record));
    CheckFrame(transport::CheckMapRecord(record), record.start);
    int64_t fd = -1;
    if (record.path_bytes != 0) {
      Receive(shared_->path, record.path_bytes);
      shared_->path[record.path_bytes] = '\0';
      CheckFrame(transport::CheckPath(shared_->path, record.path_bytes), record.start);
      const int mode = (record.flags & transport::kMapWritable) != 0 ? O_RDWR : O_RDONLY;
      fd = Call(__NR_open, AddressOf(shared_->path), static_cast<uint64_t>(mode | O_CLOEXEC));
      if (Failed(fd)) GiveUp(LandingFault::kOpen, static_cast<int>(-fd), record.start);
    }
    LeaveStagingArea(record.start, record.bytes);
    const HomeSplit split = SplitAtHome(record.start, record.bytes);
    for (uint32_t i = 0; i < split.count; ++i) MapPart(record, split.parts[i], fd);
    if (fd >= 0) Call(__NR_close, static_cast<uint64_t>(fd));
    shared_->path[0] = '\0';
  }

  void MapPart(const MapRecord& record, const HomeSplit::Part& part, int64_t fd) {
    if (part.staged) Stage(part.start, part.bytes);
    const bool shared = (record.flags & transport::kMapShared) != 0;
    const bool anonymous = (record.flags & transport::kMapFile) == 0;
    // A reservation nobody may touch stays one: writable, it would count against the overcommit
    // limit. Should pages come for it after all, ReceivePages opens just those.
    const bool reservation = anonymous && record.prot == 0;
    const uint64_t prot = shared ? record.prot : reservation ? 0 : PROT_READ | PROT_WRITE;
    uint64_t flags = MAP_FIXED | (shared ? MAP_SHARED : MAP_PRIVATE);
    if (anonymous) flags |= MAP_ANONYMOUS;
    if ((record.flags & transport::kMapGrowsDown) != 0) flags |= MAP_GROWSDOWN;
    if ((record.flags & transport::kMapNoReserve) != 0) flags |= MAP_NORESERVE;
    const uint64_t at = StagedAddress(*shared_, part.start);
    const uint64_t offset = record.file_offset + (part.start - record.start);
    int64_t mapped =
        Call(__NR_mmap, at, part.bytes, prot, flags, static_cast<uint64_t>(fd), offset);
    // What was never writable may be larger than memory: nobody had to account for it.
    if (mapped == -kEnomem && !shared && (record.prot & PROT_WRITE) == 0) {
      mapped =
          Call(__NR_mmap, at, part.bytes, record.prot, flags, static_cast<uint64_t>(fd), offset);
    }
    if (Failed(mapped)) GiveUp(LandingFault::kMap, static_cast<int>(-mapped), part.start);
    if ((record.flags & (transport::kMapHugePages | transport::kMapNoHugePages)) != 0) {
      const bool huge = (record.flags & transport::kMapHugePages) != 0;
      // Advice: a kernel without transparent huge pages refuses it, and memory is memory.
      Call(__NR_madvise, at, part.bytes, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
    }
  }

  // Notes that [start, start + bytes) of the home block is about to be mapped anew, staged.
  void Stage(uint64_t start, uint64_t bytes) {
    if (shared_->staging_base == 0) ChooseStagingArea(start, bytes);
    if (!pieces_.Remove(start, bytes) || !pieces_.Insert(start, bytes)) {
      GiveUp(LandingFault::kStagingFull, kEnomem, start);
    }
  }

  // Picks a staging area in which nothing is mapped and that [start, start + bytes) leaves alone.
  void ChooseStagingArea(uint64_t start, uint64_t bytes) {
    for (const uint64_t candidate : kStagingCandidates) {
      if (candidate == shared_->staging_base) continue;
      if (candidate < start + bytes && start < candidate + kHomeBytes) continue;
      const int64_t probe =
          Call(__NR_mmap, candidate, kHomeBytes, PROT_NONE,
               MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, ~0ull, 0);
      if (Failed(probe)) continue;
      Call(__NR_munmap, candidate, kHomeBytes);
      shared_->staging_base = candidate;
      return;
    }
    GiveUp(LandingFault::kStagingFull, kEnomem, start);
  }

  // If [start, start + bytes) belongs where something is staged, what is staged moves away first.
  void LeaveStagingArea(uint64_t start, uint64_t bytes) {
    const uint64_t old = shared_->staging_base;
    if (old == 0 || start >= old + kHomeBytes || start + bytes <= old) return;
    ChooseStagingArea(start, bytes);
    for (uint64_t i = 0; i < shared_->staged_count; ++i) {
      const StagedPiece& piece = shared_->staged[i];
      const uint64_t from = piece.start - kHome + old;
      const int64_t moved =
          Call(__NR_mremap, from, piece.bytes, piece.bytes, MREMAP_MAYMOVE | MREMAP_FIXED,
               StagedAddress(*shared_, piece.start));
      if (Failed(moved)) GiveUp(LandingFault::kMap, static_cast<int>(-moved), piece.start);
    }
  }

  void Unmap(const WireExtent& extent) {
    // Nothing of the process was ever mapped inside the staging area while it serves as one.
    const HomeSplit split = SplitAtHome(extent.start, extent.bytes);
    for (uint32_t i = 0; i < split.count; ++i) {
      const HomeSplit::Part& part = split.parts[i];
      if (part.staged) {
        if (shared_->staging_base == 0) continue;
        if (!pieces_.Remove(part.start, part.bytes)) {
          GiveUp(LandingFault::kStagingFull, kEnomem, part.start);
        }
      } else {
        LeaveStagingArea(part.start, part.bytes);
      }
      const int64_t result = Call(__NR_munmap, StagedAddress(*shared_, part.start), part.bytes);
      if (Failed(result)) GiveUp(LandingFault::kUnmap, static_cast<int>(-result), part.start);
    }
  }

  void Drop(const WireExtent& extent) {
    const HomeSplit split = SplitAtHome(extent.start, extent.bytes);
    for (uint32_t i = 0; i < split.count; ++i) {
      const HomeSplit::Part& part = split.parts[i];
      if (part.staged && shared_->staging_base == 0) continue;
      if (!part.staged) LeaveStagingArea(part.start, part.bytes);
      const int64_t result =
          Call(__NR_madvise, StagedAddress(*shared_, part.start), part.bytes, MADV_DONTNEED);
      // ENOMEM: a part of it is not mapped, and holds nothing already; the rest was dropped.
      if (Failed(result) && result != -kEnomem) {
        GiveUp(LandingFault::kDrop, static_cast<int>(-result), part.start);
      }
    }
  }

  // Receives what the extents announce into their final (or staged) places.
  void ReceivePages(uint32_t extents) {
    uint32_t count = 0;
    for (uint32_t i = 0; i < extents; ++i) {
      const WireExtent& extent = g_buffers.extents[i];
      LeaveStagingArea(extent.start, extent.bytes);
      const HomeSplit split = SplitAtHome(extent.start, extent.bytes);
      for (uint32_t j = 0; j < split.count; ++j) {
        const HomeSplit::Part& part = split.parts[j];
        if (part.staged && shared_->staging_base == 0) {
          GiveUp(LandingFault::kReceive, kEfault, part.start);
        }
        const uint64_t at = StagedAddress(*shared_, part.start);
        g_buffers.vectors[count++] = {reinterpret_cast<void*>(at), part.bytes};
      }
    }
    ReceiveVectors(count);
  }

  struct Portion {
    uint32_t vectors;
    uint64_t held_back;  // bytes taken off the last of them for the moment
  };

  // Vectors from `first` on for one call, cut to kReceiveAtOnceBytes.
  static Portion TakePortion(uint32_t first, uint32_t count) {
    Portion portion = {0, 0};
    uint64_t bytes = 0;
    while (first + portion.vectors < count && portion.vectors < kMaxVectors &&
           bytes < kReceiveAtOnceBytes) {
      bytes += g_buffers.vectors[first + portion.vectors++].bytes;
    }
    if (bytes > kReceiveAtOnceBytes) {
      portion.held_back = bytes - kReceiveAtOnceBytes;
      g_buffers.vectors[first + portion.vectors - 1].bytes -= portion.held_back;
    }
    return portion;
  }

  void ReceiveVectors(uint32_t count) {
    uint32_t first = 0;
    bool opened = false;  // what comes next was made writable already
    while (first < count) {
      const Portion portion = TakePortion(first, count);
      const uint32_t many = portion.vectors;
      MessageHeader message = {};
      message.vectors = &g_buffers.vectors[first];
      message.vector_count = many;
      int64_t got = Call(__NR_recvmsg, Socket(), AddressOf(&message), kMsgWaitAll);
      g_buffers.vectors[first + many - 1].bytes += portion.held_back;
      if (got == -kEintr) continue;
      IoVector& current = g_buffers.vectors[first];
      if (got == -kEfault && !opened) {
        // One packet's bytes go in whole or not at all, also where they span several vectors: the
        // one that could not be written need not be the first.
        opened = true;
        bool any = false;
        for (uint32_t i = first; i < first + many; ++i) any |= MakeWritable(g_buffers.vectors[i]);
        if (any) continue;
      }
      if (Failed(got)) {
        GiveUp(LandingFault::kReceive, static_cast<int>(-got), AddressOf(current.base));
      }
      if (got == 0) GiveUp(LandingFault::kEndOfStream, 0, 0);
      opened = false;
      while (got > 0) {
        IoVector& vector = g_buffers.vectors[first];
        if (static_cast<uint64_t>(got) < vector.bytes) {
          vector.base = static_cast<char*>(vector.base) + got;
          vector.bytes -= static_cast<uint64_t>(got);
          break;
        }
        got -= static_cast<int64_t>(vector.bytes);
        ++first;
      }
    }
  }

  // Opens a reservation for the pages that come after all. False: nothing (private) is there.
  bool MakeWritable(const IoVector& vector) {
    const uint64_t start = AddressOf(vector.base) & ~(transport::kWirePageBytes - 1);
    const uint64_t end = AddressOf(vector.base) + vector.bytes;
    return !Failed(Call(__NR_mprotect, start, end - start, PROT_READ | PROT_WRITE));
  }

  void Acknowledge(uint64_t round) {
    DataHeader header = {};
    header.kind = static_cast<uint32_t>(DataKind::kAcknowledge);
    header.arg = round;
    header.round = round;
    uint64_t done = 0;
    while (done < sizeof(header)) {
      const int64_t sent = Call(__NR_sendto, Socket(), AddressOf(&header) + done,
                                sizeof(header) - done, kMsgNoSignal);
      if (sent == -kEintr) continue;
      if (Failed(sent)) GiveUp(LandingFault::kSend, static_cast<int>(-sent), 0);
      done += static_cast<uint64_t>(sent);
    }
  }

  [[noreturn]] void Finish(uint64_t round) {
    Acknowledge(round);
    shared_->final_round = round;
    shared_->final_reached = 1;
    const char byte = 'F';
    Call(__NR_write, static_cast<uint64_t>(shared_->notify_fd), AddressOf(&byte), 1);
    const uint64_t self = static_cast<uint64_t>(Call(__NR_getpid));
    // SIGSTOP cannot be blocked: the tracer sees it, drops it and takes over from here.
    for (;;) Call(__NR_tgkill, self, static_cast<uint64_t>(Call(__NR_gettid)), SIGSTOP);
  }

  LandingShared* shared_;
  StagedPieces pieces_;
  uint64_t round_ = 0;
};

// The number in the reaper's first argument, from the stack as the kernel made it: argc, argv[0]
// ...
uint64_t ChildOf(const uint64_t* stack) {
  if (stack[0] < 2) return 0;
  uint64_t number = 0;
  for (const char* digit = reinterpret_cast<const char*>(stack[2]); *digit != '\0'; ++digit) {
    number = number * 10 + static_cast<uint64_t>(*digit - '0');
  }
  return number;
}

// The exit code that tells of a wait status: as shells do.
uint64_t ExitCode(uint32_t status) {
  const uint32_t signal = status & 0x7f;
  return signal == 0 ? status >> 8 & 0xff : 128 + signal;
}

// Collects the dead until there is nobody left to wait for, and ends as `child` did. Blocked
// signals stay blocked across exec, and to an init of a pid namespace nothing from inside is
// delivered anyway.
[[noreturn]] void ReapUntilAlone(uint64_t child) {
  constexpr char kName[] = "predump-reaper";
  Call(__NR_prctl, PR_SET_NAME, AddressOf(kName));
  uint64_t code = 0;
  for (;;) {
    uint32_t status = 0;
    const int64_t waited = Call(__NR_wait4, ~0ull, AddressOf(&status), kWaitAll, 0);
    if (Failed(waited) && waited != -kEintr) break;
    if (waited == static_cast<int64_t>(child)) code = ExitCode(status);
  }
  for (;;) Call(__NR_exit_group, code);
}

}  // namespace

// From _start, on the stack in .bss. `shared` is what the server put into rdi, or null; only then
// is the kernel's stack still there.
extern "C" [[noreturn]] void PredumpLandingMain(LandingShared* shared, const uint64_t* stack) {
  if (shared == nullptr) ReapUntilAlone(ChildOf(stack));
  LandingProgram program(shared);
  program.Run();
}

}  // namespace predump::restore

// The compiler may call these for structure copies even when freestanding.
extern "C" void* memcpy(void* to, const void* from, size_t bytes) {
  void* result = to;
  asm volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(bytes) : : "memory");
  return result;
}
extern "C" void* memset(void* to, int value, size_t bytes) {
  void* result = to;
  asm volatile("rep stosb" : "+D"(to), "+c"(bytes) : "a"(value) : "memory");
  return result;
}

// The first instruction after exec is a `syscall` that the server borrows for its calls while the
// process is still stopped there; _start itself lies behind it.
asm(R"(
  .pushsection .bss.stack, "aw", @nobits
  .balign 4096
  .skip 65536
predump_landing_stack_top:
  .popsection
  .pushsection .text.start, "ax", @progbits
  .globl predump_landing_gate
predump_landing_gate:
  syscall
  int3
  .globl _start
_start:
  mov %rsp, %rsi
  lea predump_landing_stack_top(%rip), %rsp
  xor %ebp, %ebp
  call PredumpLandingMain
  hlt
  .popsection
)");
