#include "tests/restore/snapshot.h"

#include <fcntl.h>
#include <linux/futex.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <map>
#include <span>

#include "absl/strings/str_cat.h"
#include "src/base/errors.h"
#include "src/images/image_constants.h"
#include "src/kernel/freezer.h"
#include "src/kernel/process_memory.h"
#include "src/kernel/procfs.h"
#include "src/kernel/restart.h"

namespace predump::restore {
namespace {

uint32_t NextId(const proto::ProcessState& state) {
  return static_cast<uint32_t>(state.files_size()) + 1;
}

uint32_t AddMappedFile(proto::ProcessState& state, const std::string& path) {
  for (const auto& file : state.files()) {
    if (file.has_reg() && file.reg().name() == path) return file.id();
  }
  criu::file_entry file = RegularFile(path, O_RDONLY);
  const uint32_t id = NextId(state);
  file.set_id(id);
  file.mutable_reg()->set_id(id);
  *state.add_files() = std::move(file);
  return id;
}

void FillMask(google::protobuf::RepeatedField<uint32_t>* words, uint64_t mask) {
  words->Add(static_cast<uint32_t>(mask));
  words->Add(static_cast<uint32_t>(mask >> 32));
}

void FillCredentials(const kernel::StatusFields& status, criu::creds_entry& creds) {
  creds.set_uid(status.uids[0]);
  creds.set_euid(status.uids[1]);
  creds.set_suid(status.uids[2]);
  creds.set_fsuid(status.uids[3]);
  creds.set_gid(status.gids[0]);
  creds.set_egid(status.gids[1]);
  creds.set_sgid(status.gids[2]);
  creds.set_fsgid(status.gids[3]);
  FillMask(creds.mutable_cap_inh(), status.cap_inheritable);
  FillMask(creds.mutable_cap_prm(), status.cap_permitted);
  FillMask(creds.mutable_cap_eff(), status.cap_effective);
  FillMask(creds.mutable_cap_bnd(), status.cap_bounding);
  creds.set_secbits(0);
  for (const gid_t group : status.groups) creds.add_groups(group);
}

void FillRegisters(const user_regs_struct& r, criu::user_x86_regs_entry& out) {
  out.set_r15(r.r15);
  out.set_r14(r.r14);
  out.set_r13(r.r13);
  out.set_r12(r.r12);
  out.set_bp(r.rbp);
  out.set_bx(r.rbx);
  out.set_r11(r.r11);
  out.set_r10(r.r10);
  out.set_r9(r.r9);
  out.set_r8(r.r8);
  out.set_ax(r.rax);
  out.set_cx(r.rcx);
  out.set_dx(r.rdx);
  out.set_si(r.rsi);
  out.set_di(r.rdi);
  out.set_orig_ax(r.orig_rax);
  out.set_ip(r.rip);
  out.set_cs(r.cs);
  out.set_flags(r.eflags);
  out.set_sp(r.rsp);
  out.set_ss(r.ss);
  out.set_fs_base(r.fs_base);
  out.set_gs_base(r.gs_base);
  out.set_ds(r.ds);
  out.set_es(r.es);
  out.set_fs(r.fs);
  out.set_gs(r.gs);
}

absl::Status FillThread(const kernel::Tracee& thread, const kernel::StatusFields& status,
                        const std::string& comm, proto::ThreadState& out) {
  PREDUMP_ASSIGN_OR_RETURN(const user_regs_struct raw, thread.GetRegisters());
  PREDUMP_ASSIGN_OR_RETURN(const std::vector<std::byte> xstate, thread.GetXstate());
  PREDUMP_ASSIGN_OR_RETURN(const kernel::RseqConfiguration rseq, thread.GetRseqConfiguration());
  PREDUMP_ASSIGN_OR_RETURN(const uint64_t mask, thread.GetSignalMask());
  const kernel::RestartPlan plan = kernel::RestartRegisters(raw, {.same_task = false});
  criu::core_entry& core = *out.mutable_core();
  core.set_mtype(criu::core_entry::X86_64);
  core.mutable_thread_info()->set_clear_tid_addr(0);
  FillRegisters(plan.registers, *core.mutable_thread_info()->mutable_gpregs());
  if (plan.repeats_call) {
    proto::InterruptedCall& call = *out.mutable_extra()->mutable_interrupted_call();
    call.set_number(static_cast<int64_t>(raw.orig_rax));
    call.set_result(static_cast<int64_t>(raw.rax));
  }
  criu::user_x86_fpregs_entry& fpu = *core.mutable_thread_info()->mutable_fpregs();
  const auto* words = reinterpret_cast<const uint32_t*>(xstate.data());
  fpu.set_cwd(words[0] & 0xffff);
  fpu.set_swd(words[0] >> 16);
  fpu.set_twd(words[1] & 0xffff);
  fpu.set_fop(words[1] >> 16);
  fpu.set_rip(0);
  fpu.set_rdp(0);
  fpu.set_mxcsr(words[6]);
  fpu.set_mxcsr_mask(words[7]);
  for (int i = 0; i < 32; ++i) fpu.add_st_space(words[8 + i]);
  for (int i = 0; i < 64; ++i) fpu.add_xmm_space(words[40 + i]);
  criu::thread_core_entry& thread_core = *core.mutable_thread_core();
  void* robust_list = nullptr;
  size_t robust_length = 0;
  if (::syscall(SYS_get_robust_list, thread.tid(), &robust_list, &robust_length) != 0) {
    return base::ErrnoError(errno, "get_robust_list");
  }
  thread_core.set_futex_rla(reinterpret_cast<uint64_t>(robust_list));
  thread_core.set_futex_rla_len(robust_list == nullptr ? 0 : static_cast<uint32_t>(robust_length));
  thread_core.set_blk_sigset(mask);
  thread_core.set_comm(comm);
  FillCredentials(status, *thread_core.mutable_creds());
  if (rseq.address.value() != 0) {
    thread_core.mutable_rseq_entry()->set_rseq_abi_pointer(rseq.address.value());
    thread_core.mutable_rseq_entry()->set_rseq_abi_size(rseq.size);
    thread_core.mutable_rseq_entry()->set_signature(rseq.signature);
  }
  proto::ThreadExtra& extra = *out.mutable_extra();
  extra.set_xsave(xstate.data(), xstate.size());
  extra.set_raw_registers(&raw, sizeof(raw));
  return absl::OkStatus();
}

void FillTask(const kernel::ProcessHandle& process, const std::string& comm, uint64_t mask,
              criu::task_core_entry& task) {
  task.set_task_state(images::kTaskAlive);
  task.set_exit_code(0);
  task.set_personality(0);
  task.set_flags(0);
  task.set_blk_sigset(mask);
  task.set_comm(comm);
  for (auto* timer : {task.mutable_timers()->mutable_real(), task.mutable_timers()->mutable_virt(),
                      task.mutable_timers()->mutable_prof()}) {
    timer->set_isec(0);
    timer->set_iusec(0);
    timer->set_vsec(0);
    timer->set_vusec(0);
  }
  for (int resource = 0; resource < images::kRlimits; ++resource) {
    rlimit limit = {};
    ::prlimit(process.pid(), static_cast<__rlimit_resource>(resource), nullptr, &limit);
    criu::rlimit_entry* entry = task.mutable_rlimits()->add_rlimits();
    entry->set_cur(limit.rlim_cur);
    entry->set_max(limit.rlim_max);
  }
  for (int i = 0; i < images::kSignalActions; ++i) {
    criu::sa_entry* action = task.add_sigactions();
    action->set_sigaction(0);
    action->set_flags(0);
    action->set_restorer(0);
    action->set_mask(0);
  }
}

absl::Status SendPages(int pagemap, const kernel::ProcessMemory& memory,
                       const kernel::MapsEntry& entry, FrameSource& source) {
  constexpr uint64_t kPage = 4096;
  constexpr uint64_t kPresentOrSwapped = 3ull << 62;
  constexpr uint64_t kFilePage = 1ull << 61;
  const uint64_t pages = entry.range.size().value() / kPage;
  if (pages > (1u << 20)) return absl::OkStatus();  // a sparse reservation of a sanitizer
  std::vector<uint64_t> bits(pages);
  const uint64_t first = entry.range.start().value() / kPage;
  if (::pread(pagemap, bits.data(), pages * 8, static_cast<off_t>(first * 8)) !=
      static_cast<ssize_t>(pages * 8)) {
    return base::ErrnoError(errno, "read pagemap");
  }
  const auto wanted = [&](uint64_t i) {
    return (bits[i] & kPresentOrSwapped) != 0 && (bits[i] & kFilePage) == 0;
  };
  for (uint64_t i = 0; i < pages;) {
    if (!wanted(i)) {
      ++i;
      continue;
    }
    uint64_t end = i;
    while (end < pages && wanted(end) && end - i < 1024) ++end;
    std::string bytes((end - i) * kPage, '\0');
    PREDUMP_RETURN_IF_ERROR(memory.ReadExactly(base::RemoteAddress((first + i) * kPage),
                                               std::as_writable_bytes(std::span(bytes))));
    if (!source.Pages((first + i) * kPage, bytes)) return absl::AbortedError("landing hung up");
    i = end;
  }
  return absl::OkStatus();
}

absl::Status AddMemory(const kernel::ProcessHandle& process, proto::ProcessState& state,
                       FrameSource& source) {
  PREDUMP_ASSIGN_OR_RETURN(const auto maps, kernel::ReadMaps(process));
  PREDUMP_ASSIGN_OR_RETURN(const base::UniqueFd pagemap, process.OpenProc("pagemap", O_RDONLY));
  PREDUMP_ASSIGN_OR_RETURN(const kernel::ProcessMemory memory,
                           kernel::ProcessMemory::Open(process, O_RDONLY));
  for (const kernel::MapsEntry& entry : maps) {
    if (entry.path == "[vsyscall]") continue;
    criu::vma_entry& vma = *state.mutable_mm()->add_vmas();
    vma.set_start(entry.range.start().value());
    vma.set_end(entry.range.end().value());
    vma.set_prot(static_cast<uint32_t>(entry.prot));
    vma.set_pgoff(entry.IsFile() ? entry.file_offset : 0);
    vma.set_shmid(0);
    vma.set_fd(-1);
    vma.set_flags(entry.shared ? MAP_SHARED : MAP_PRIVATE);
    if (entry.path == "[vdso]" || entry.path.starts_with("[vvar")) {
      vma.set_flags(MAP_PRIVATE | MAP_ANONYMOUS);
      vma.set_status(images::kVmaRegular | images::kVmaAnonymousPrivate |
                     (entry.path == "[vdso]" ? images::kVmaVdso : images::kVmaVvar));
      continue;
    }
    transport::MapRecord record = {};
    record.start = vma.start();
    record.bytes = vma.end() - vma.start();
    record.prot = vma.prot();
    std::string path;
    if (entry.IsFile()) {
      path = entry.path;
      vma.set_shmid(AddMappedFile(state, path));
      vma.set_status(images::kVmaRegular |
                     (entry.shared ? images::kVmaFileShared : images::kVmaFilePrivate));
      record.file_offset = entry.file_offset;
      record.flags = transport::kMapFile;
      if (entry.shared) record.flags |= transport::kMapShared | transport::kMapWritable;
    } else {
      vma.set_flags(MAP_PRIVATE | MAP_ANONYMOUS);
      vma.set_status(images::kVmaRegular | images::kVmaAnonymousPrivate);
      if (entry.path == "[stack]") record.flags = transport::kMapGrowsDown;
    }
    if (!source.Keeps(record.start) && !source.Map(record, path))
      return absl::AbortedError("the landing hung up");
    if (!entry.shared) PREDUMP_RETURN_IF_ERROR(SendPages(pagemap.get(), memory, entry, source));
  }
  return absl::OkStatus();
}

absl::Status AddMm(const kernel::ProcessHandle& process, proto::ProcessState& state) {
  PREDUMP_ASSIGN_OR_RETURN(const kernel::StatFields stat, kernel::ReadStat(process));
  criu::mm_entry& mm = *state.mutable_mm();
  mm.set_mm_start_code(stat.start_code);
  mm.set_mm_end_code(stat.end_code);
  mm.set_mm_start_data(stat.start_data);
  mm.set_mm_end_data(stat.end_data);
  mm.set_mm_start_stack(stat.start_stack);
  mm.set_mm_start_brk(stat.start_brk);
  mm.set_mm_brk(stat.start_brk);
  mm.set_mm_arg_start(stat.arg_start);
  mm.set_mm_arg_end(stat.arg_end);
  mm.set_mm_env_start(stat.env_start);
  mm.set_mm_env_end(stat.env_end);
  mm.set_dumpable(1);
  PREDUMP_ASSIGN_OR_RETURN(const std::string exe, kernel::ReadProcLink(process, "exe"));
  PREDUMP_ASSIGN_OR_RETURN(const std::string cwd, kernel::ReadProcLink(process, "cwd"));
  mm.set_exe_file_id(AddMappedFile(state, exe));
  state.mutable_fs()->set_cwd_id(AddMappedFile(state, cwd));
  state.mutable_fs()->set_root_id(AddMappedFile(state, "/"));
  state.mutable_fs()->set_umask(022);
  PREDUMP_ASSIGN_OR_RETURN(const auto auxv, kernel::ReadAuxv(process));
  for (const auto& [tag, value] : auxv) {
    state.mutable_extra()->add_auxv(tag);
    state.mutable_extra()->add_auxv(value);
  }
  state.mutable_extra()->add_auxv(0);
  state.mutable_extra()->add_auxv(0);
  return absl::OkStatus();
}

}  // namespace

criu::file_entry RegularFile(const std::string& path, uint32_t flags, uint64_t position) {
  criu::file_entry file;
  file.set_type(criu::REG);
  criu::reg_file_entry& reg = *file.mutable_reg();
  reg.set_flags(flags);
  reg.set_pos(position);
  reg.set_name(path);
  criu::fown_entry& owner = *reg.mutable_fown();
  owner.set_uid(0);
  owner.set_euid(0);
  owner.set_signum(0);
  owner.set_pid_type(0);
  owner.set_pid(0);
  return file;
}

void AddAnotherDescriptor(proto::ProcessState& state, uint32_t fd, uint32_t file_id) {
  criu::fdinfo_entry& entry = *state.add_descriptors();
  entry.set_id(file_id);
  entry.set_flags(0);
  entry.set_fd(fd);
  for (const auto& file : state.files()) {
    if (file.id() == file_id) entry.set_type(file.type());
  }
}

uint32_t AddDescriptor(proto::ProcessState& state, uint32_t fd, criu::file_entry file,
                       bool close_on_exec) {
  const uint32_t id = NextId(state);
  const criu::fown_entry none = RegularFile("/", 0).reg().fown();
  file.set_id(id);
  const auto finish = [&](auto* body) {
    body->set_id(id);
    *body->mutable_fown() = none;
  };
  if (file.has_reg()) finish(file.mutable_reg());
  if (file.has_pipe()) finish(file.mutable_pipe());
  if (file.has_efd()) finish(file.mutable_efd());
  if (file.has_epfd()) finish(file.mutable_epfd());
  if (file.has_tfd()) finish(file.mutable_tfd());
  if (file.has_sgfd()) finish(file.mutable_sgfd());
  if (file.has_isk()) finish(file.mutable_isk());
  if (file.has_usk()) finish(file.mutable_usk());
  *state.add_files() = std::move(file);
  AddAnotherDescriptor(state, fd, id);
  state.mutable_descriptors(state.descriptors_size() - 1)->set_flags(close_on_exec ? 1 : 0);
  return id;
}

absl::StatusOr<proto::ProcessState> TakeSnapshot(const kernel::ProcessHandle& process, uint32_t pid,
                                                 FrameSource& source) {
  proto::ProcessState state;
  state.set_pid(pid);
  PREDUMP_ASSIGN_OR_RETURN(kernel::FrozenProcess frozen,
                           kernel::FrozenProcess::Freeze(process, absl::Seconds(5)));
  PREDUMP_ASSIGN_OR_RETURN(const kernel::StatusFields status, kernel::ReadStatus(process));
  uint32_t tid = pid;
  for (kernel::Tracee& thread : frozen.threads()) {
    proto::ThreadState& out = *state.add_threads();
    PREDUMP_ASSIGN_OR_RETURN(const std::string comm, kernel::ReadThreadComm(process, thread.tid()));
    PREDUMP_RETURN_IF_ERROR(FillThread(thread, status, comm, out));
    if (tid == pid) {
      FillTask(process, comm, out.core().thread_core().blk_sigset(),
               *out.mutable_core()->mutable_tc());
    }
    out.set_tid(tid++);
  }
  criu::pstree_entry& tree = *state.mutable_pstree();
  tree.set_pid(pid);
  tree.set_ppid(0);
  tree.set_pgid(pid);
  tree.set_sid(pid);
  for (const auto& thread : state.threads()) tree.add_threads(thread.tid());
  PREDUMP_RETURN_IF_ERROR(AddMemory(process, state, source));
  PREDUMP_RETURN_IF_ERROR(AddMm(process, state));
  if (!source.Header(transport::DataKind::kFinal, 0, 1)) return absl::AbortedError("hung up");
  if (source.Answer().kind != static_cast<uint32_t>(transport::DataKind::kAcknowledge)) {
    return absl::AbortedError("the landing did not take the memory");
  }
  PREDUMP_RETURN_IF_ERROR(std::move(frozen).Thaw());
  return state;
}

}  // namespace predump::restore
