#include "tests/images/valid_state.h"

#include <sys/mman.h>
#include <sys/user.h>

#include <string>

#include "src/images/image_constants.h"
#include "src/images/image_set.h"

namespace predump::images::testing {
namespace {

std::string Siginfo(int32_t number) {
  std::string info(kSiginfoBytes, '\0');
  info.replace(0, sizeof number, reinterpret_cast<const char*>(&number), sizeof number);
  return info;
}

void FillRegisters(criu::thread_info_x86& info) {
  info.set_clear_tid_addr(0x7f0000001000);
  criu::user_x86_regs_entry& regs = *info.mutable_gpregs();
  const auto* descriptor = criu::user_x86_regs_entry::descriptor();
  for (int i = 0; i < descriptor->field_count(); ++i) {
    if (descriptor->field(i)->is_required()) {
      regs.GetReflection()->SetUInt64(&regs, descriptor->field(i), 0);
    }
  }
  regs.set_ip(0x401000);
  regs.set_cs(0x33);
  regs.set_ss(0x2b);
  criu::user_x86_fpregs_entry& fpregs = *info.mutable_fpregs();
  fpregs.set_cwd(0x37f);
  fpregs.set_swd(0);
  fpregs.set_twd(0);
  fpregs.set_fop(0);
  fpregs.set_rip(0);
  fpregs.set_rdp(0);
  fpregs.set_mxcsr(0x1f80);
  fpregs.set_mxcsr_mask(0xffff);
  for (size_t i = 0; i < kFpuStackWords; ++i) fpregs.add_st_space(0);
  for (size_t i = 0; i < kXmmWords; ++i) fpregs.add_xmm_space(0);
  fpregs.mutable_xsave()->set_xstate_bv(3);
}

void FillCredentials(criu::creds_entry& creds) {
  creds.set_uid(0);
  creds.set_gid(0);
  creds.set_euid(0);
  creds.set_egid(0);
  creds.set_suid(0);
  creds.set_sgid(0);
  creds.set_fsuid(0);
  creds.set_fsgid(0);
  creds.set_secbits(0);
  for (int i = 0; i < 2; ++i) {
    creds.add_cap_prm(3);
    creds.add_cap_eff(1);
  }
}

void FillTimer(criu::itimer_entry& timer) {
  timer.set_isec(0);
  timer.set_iusec(0);
  timer.set_vsec(0);
  timer.set_vusec(0);
}

void FillTask(criu::task_core_entry& task) {
  task.set_task_state(kTaskAlive);
  task.set_exit_code(0);
  task.set_personality(0);
  task.set_flags(0);
  task.set_blk_sigset(0);
  task.set_comm("valid");
  FillTimer(*task.mutable_timers()->mutable_real());
  FillTimer(*task.mutable_timers()->mutable_virt());
  FillTimer(*task.mutable_timers()->mutable_prof());
  for (int i = 0; i < kRlimits; ++i) {
    criu::rlimit_entry* limit = task.mutable_rlimits()->add_rlimits();
    limit->set_cur(1);
    limit->set_max(2);
  }
  for (int i = 0; i < kSignalActions; ++i) {
    criu::sa_entry* action = task.add_sigactions();
    action->set_sigaction(0);
    action->set_flags(0);
    action->set_restorer(0);
    action->set_mask(0);
  }
  task.mutable_signals_s()->add_signals()->set_siginfo(Siginfo(10));
}

void FillThread(proto::ThreadState& thread, uint32_t tid) {
  thread.set_tid(tid);
  criu::core_entry& core = *thread.mutable_core();
  core.set_mtype(criu::core_entry::X86_64);
  FillRegisters(*core.mutable_thread_info());
  FillTask(*core.mutable_tc());
  core.mutable_thread_core()->set_futex_rla(0x7f0000002000);
  core.mutable_thread_core()->set_futex_rla_len(24);
  FillCredentials(*core.mutable_thread_core()->mutable_creds());
  thread.mutable_extra()->set_raw_registers(std::string(sizeof(struct user_regs_struct), '\0'));
  thread.mutable_extra()->set_xsave(std::string(832, '\0'));
}

criu::vma_entry* AddMapping(criu::mm_entry& mm, uint64_t start, uint64_t end) {
  criu::vma_entry* vma = mm.add_vmas();
  vma->set_start(start);
  vma->set_end(end);
  vma->set_pgoff(0);
  vma->set_shmid(0);
  vma->set_prot(PROT_READ);
  vma->set_fd(-1);
  vma->set_flags(MAP_PRIVATE | MAP_ANONYMOUS);
  vma->set_status(kVmaRegular | kVmaAnonymousPrivate);
  return vma;
}

void FillMemory(criu::mm_entry& mm, uint32_t executable) {
  mm.set_mm_start_code(0x401000);
  mm.set_mm_end_code(0x402000);
  mm.set_mm_start_data(0x403000);
  mm.set_mm_end_data(0x404000);
  mm.set_mm_start_stack(0x7ffd00001000);
  mm.set_mm_start_brk(0x500000);
  mm.set_mm_brk(0x521000);
  mm.set_mm_arg_start(0x7ffd00001100);
  mm.set_mm_arg_end(0x7ffd00001200);
  mm.set_mm_env_start(0x7ffd00001200);
  mm.set_mm_env_end(0x7ffd00001300);
  mm.set_exe_file_id(executable);
  criu::vma_entry* code = AddMapping(mm, 0x401000, 0x402000);
  code->set_flags(MAP_PRIVATE);
  code->set_status(kVmaRegular | kVmaFilePrivate);
  code->set_shmid(executable);
  AddMapping(mm, 0x7ffd00000000, 0x7ffd00022000);
}

criu::file_entry RegularFile(const std::string& path) {
  criu::file_entry file;
  file.set_type(criu::REG);
  criu::reg_file_entry& body = *file.mutable_reg();
  body.set_flags(0);
  body.set_pos(0);
  *body.mutable_fown() = NoFileOwner();
  body.set_name(path);
  return file;
}

}  // namespace

proto::ProcessState ValidState() {
  constexpr uint32_t kPid = 4321;
  proto::ProcessState state;
  state.set_pid(kPid);
  criu::pstree_entry& tree = *state.mutable_pstree();
  tree.set_pid(kPid);
  tree.set_ppid(0);
  tree.set_pgid(kPid);
  tree.set_sid(kPid);
  tree.add_threads(kPid);
  FillThread(*state.add_threads(), kPid);

  StateBuilder builder(state);
  const uint32_t executable = builder.AddFile(RegularFile("/bin/true"));
  const uint32_t directory = builder.AddFile(RegularFile("/"));
  criu::file_entry pipe;
  pipe.set_type(criu::PIPE);
  pipe.mutable_pipe()->set_pipe_id(77);
  pipe.mutable_pipe()->set_flags(0);
  *pipe.mutable_pipe()->mutable_fown() = NoFileOwner();
  builder.AddDescriptor(3, builder.AddFile(pipe), true);
  builder.Extra(3).set_inode(77);
  proto::PipeData& data = *state.add_pipes();
  data.mutable_entry()->set_pipe_id(77);
  data.mutable_entry()->set_bytes(4);
  data.mutable_entry()->set_size(65536);
  data.set_data("abcd");

  FillMemory(*state.mutable_mm(), executable);
  state.mutable_fs()->set_cwd_id(directory);
  state.mutable_fs()->set_root_id(directory);
  state.mutable_fs()->set_umask(022);
  return state;
}

}  // namespace predump::images::testing
