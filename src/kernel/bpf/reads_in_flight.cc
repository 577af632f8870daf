#include "src/kernel/bpf/reads_in_flight.h"

#include <reads_in_flight.skel.h>
#include <sys/uio.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "src/base/errors.h"
#include "src/kernel/bpf/program.h"

namespace predump::kernel {
namespace {

constexpr size_t kHeaderBytes = offsetof(ReadRecord, vectors);

int AppendRecord(void* context, void* data, size_t bytes) {
  auto& records = *static_cast<std::vector<ReadRecord>*>(context);
  // The ring rounds sizes up to eight bytes, which all of ours are.
  if (bytes < kHeaderBytes || bytes > sizeof(ReadRecord)) return -EBADMSG;
  std::memcpy(&records.emplace_back(), data, bytes);
  return 0;
}

// MAX_RW_COUNT of include/linux/fs.h: no call transfers more, whatever it was asked for.
constexpr uint64_t kMaxTransfer = 0x7ffff000;

void AppendRange(const ReadVector& vector, std::vector<base::AddressRange>& ranges) {
  // Lengths that wrap around are refused by the call itself.
  if (vector.bytes == 0 || vector.base + vector.bytes < vector.base) return;
  const uint64_t bytes = std::min<uint64_t>(vector.bytes, kMaxTransfer);
  ranges.push_back(base::AddressRange::FromOrdered(vector.base, vector.base + bytes));
}

// Arrays too long for a record, or not present in memory when the call began.
bool ResolveVectors(pid_t tgid, const ReadRecord& record, std::vector<base::AddressRange>& ranges) {
  std::vector<ReadVector> vectors(record.iov_count);
  const size_t bytes = vectors.size() * sizeof(ReadVector);
  const iovec local = {vectors.data(), bytes};
  const iovec remote = {reinterpret_cast<void*>(record.iov), bytes};
  if (process_vm_readv(tgid, &local, 1, &remote, 1, 0) != static_cast<ssize_t>(bytes)) return false;
  for (const ReadVector& vector : vectors) AppendRange(vector, ranges);
  return true;
}

// Gives every thread its storage while nothing else competes for it.
absl::Status PrepareThreads(reads_in_flight_bpf& reads, pid_t tgid) {
  PREDUMP_ASSIGN_OR_RETURN(const internal::Iterator prepare,
                           internal::Iterator::Attach(reads.progs.prepare_threads, tgid));
  std::vector<char> nothing;
  constexpr int kAttempts = 10;
  for (int attempt = 0; attempt < kAttempts; ++attempt) {
    reads.bss->unprepared_threads = 0;
    PREDUMP_RETURN_IF_ERROR(prepare.Read(nothing));
    if (__atomic_load_n(&reads.bss->unprepared_threads, __ATOMIC_RELAXED) == 0) break;
  }
  // Whoever still has none is served, or counted as lost, at its first read.
  return absl::OkStatus();
}

}  // namespace

struct ReadsInFlight::Program {
  std::unique_ptr<reads_in_flight_bpf, void (*)(reads_in_flight_bpf*)> skeleton;
  std::unique_ptr<ring_buffer, void (*)(ring_buffer*)> finished_ring;
  internal::Iterator list;
  internal::Iterator seed;
  base::UniqueFd pidfd;
  pid_t tgid;
  std::vector<char> bytes;
  std::vector<ReadRecord> finished;

  // Notes reads that no trace point has noted; what was lost so far is made good by that.
  absl::Status Seed();
  absl::StatusOr<InFlightRead> Describe(const ReadRecord& record, bool is_finished) const;
};

absl::Status ReadsInFlight::Program::Seed() {
  // First the counter: a read lost from now on counts again.
  __atomic_store_n(&skeleton->bss->lost_reads, 0, __ATOMIC_SEQ_CST);
  return seed.Read(bytes);
}

absl::StatusOr<InFlightRead> ReadsInFlight::Program::Describe(const ReadRecord& record,
                                                              bool is_finished) const {
  InFlightRead read;
  read.tid = record.tid;
  read.nr = record.nr;
  read.fd = record.fd;
  read.entered_ns = record.entered;
  read.finished = is_finished;
  read.seeded = record.seeded != 0;
  if (record.vector_count == record.iov_count) {
    const uint32_t count = std::min<uint32_t>(record.vector_count, kInlineVectors);
    for (uint32_t i = 0; i < count; ++i) AppendRange(record.vectors[i], read.buffers);
    return read;
  }
  // Once the call is over its array may have been used for something else.
  if (is_finished || !ResolveVectors(tgid, record, read.buffers)) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the buffers of a read of thread ", record.tid, " cannot be told"));
  }
  return read;
}

ReadsInFlight::ReadsInFlight(std::unique_ptr<Program> program) : program_(std::move(program)) {}
ReadsInFlight::ReadsInFlight(ReadsInFlight&&) noexcept = default;
ReadsInFlight& ReadsInFlight::operator=(ReadsInFlight&&) noexcept = default;
ReadsInFlight::~ReadsInFlight() = default;

absl::StatusOr<ReadsInFlight> ReadsInFlight::Create(pid_t tgid) {
  PREDUMP_ASSIGN_OR_RETURN(base::UniqueFd pidfd, internal::OpenPidfd(tgid));
  PREDUMP_ASSIGN_OR_RETURN(
      auto skeleton, internal::LoadSkeleton<reads_in_flight_bpf>(
                         reads_in_flight_bpf__open_opts, reads_in_flight_bpf__load,
                         reads_in_flight_bpf__destroy, [](reads_in_flight_bpf&) { return 0; }));
  PREDUMP_RETURN_IF_ERROR(
      internal::Observe(skeleton->progs.find_process, tgid, skeleton->bss->observed_tgid));
  PREDUMP_ASSIGN_OR_RETURN(internal::Iterator list,
                           internal::Iterator::Attach(skeleton->progs.list_reads, tgid));
  PREDUMP_ASSIGN_OR_RETURN(internal::Iterator seed,
                           internal::Iterator::Attach(skeleton->progs.seed_reads, tgid));
  auto program = std::unique_ptr<Program>(new Program{std::move(skeleton),
                                                      {nullptr, ring_buffer__free},
                                                      std::move(list),
                                                      std::move(seed),
                                                      std::move(pidfd),
                                                      tgid,
                                                      {},
                                                      {}});
  reads_in_flight_bpf& reads = *program->skeleton;
  program->finished_ring.reset(ring_buffer__new(bpf_map__fd(reads.maps.finished_reads),
                                                AppendRecord, &program->finished, nullptr));
  if (program->finished_ring == nullptr) return base::ErrnoError(errno, "open BPF ring buffer");
  // Threads made after this walk and before the trace point get their storage at their first read.
  PREDUMP_RETURN_IF_ERROR(PrepareThreads(reads, tgid));
  PREDUMP_RETURN_IF_ERROR(
      internal::AttachTracePoints({{reads.progs.on_fork, &reads.links.on_fork},
                                   {reads.progs.on_enter, &reads.links.on_enter},
                                   {reads.progs.on_sys_exit, &reads.links.on_sys_exit}}));
  // Only now: a read that begins after this is seen by a trace point, one before by its registers.
  PREDUMP_RETURN_IF_ERROR(program->Seed());
  PREDUMP_RETURN_IF_ERROR(internal::CheckAlive(program->pidfd));
  return ReadsInFlight(std::move(program));
}

absl::Status ReadsInFlight::BeginReset() {
  // What an abandoned reset left behind is older than this one.
  const int consumed = ring_buffer__consume(program_->finished_ring.get());
  if (consumed < 0) return base::ErrnoError(-consumed, "read BPF ring buffer");
  program_->finished.clear();
  if (__atomic_load_n(&program_->skeleton->bss->lost_reads, __ATOMIC_SEQ_CST) != 0) {
    PREDUMP_RETURN_IF_ERROR(program_->Seed());
  }
  // A trace point on another CPU that still reads 0 belongs to a read whose data is in memory
  // already: the reset that follows is ordered after it.
  __atomic_store_n(&program_->skeleton->bss->reset_under_way, 1, __ATOMIC_SEQ_CST);
  return absl::OkStatus();
}

absl::StatusOr<std::vector<InFlightRead>> ReadsInFlight::Snapshot() {
  Program& program = *program_;
  // First those inside, then those that left: a read that ends in between is in the ring.
  const absl::Status listed = program.list.Read(program.bytes);
  const int consumed = ring_buffer__consume(program.finished_ring.get());
  __atomic_store_n(&program.skeleton->bss->reset_under_way, 0, __ATOMIC_SEQ_CST);
  const std::vector<ReadRecord> finished = std::exchange(program.finished, {});
  PREDUMP_RETURN_IF_ERROR(listed);
  if (consumed < 0) return base::ErrnoError(-consumed, "read BPF ring buffer");
  PREDUMP_RETURN_IF_ERROR(internal::CheckAlive(program.pidfd));
  // Stays so until BeginReset() has made the loss good: a read that could not be noted may go on.
  const uint64_t lost = __atomic_load_n(&program.skeleton->bss->lost_reads, __ATOMIC_RELAXED);
  if (lost != 0) return absl::ResourceExhaustedError(absl::StrCat(lost, " reads went unnoted"));
  if (program.bytes.size() % sizeof(ReadRecord) != 0) return absl::DataLossError("torn record");

  std::vector<InFlightRead> reads;
  for (size_t offset = 0; offset < program.bytes.size(); offset += sizeof(ReadRecord)) {
    ReadRecord record;
    std::memcpy(&record, program.bytes.data() + offset, sizeof(record));
    PREDUMP_ASSIGN_OR_RETURN(InFlightRead read, program.Describe(record, false));
    reads.push_back(std::move(read));
  }
  for (const ReadRecord& record : finished) {
    PREDUMP_ASSIGN_OR_RETURN(InFlightRead read, program.Describe(record, true));
    reads.push_back(std::move(read));
  }
  return reads;
}

}  // namespace predump::kernel
