#include "tests/images/rich_state.h"

#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#include "src/images/image_constants.h"
#include "src/images/image_set.h"
#include "tests/images/valid_state.h"

namespace predump::images::testing {
namespace {

constexpr uint32_t kSecond = 4322;

void FillIds(uint32_t object, criu::task_kobj_ids_entry& ids) {
  ids.set_vm_id(object);
  ids.set_files_id(object);
  ids.set_fs_id(object);
  ids.set_sighand_id(object);
  ids.set_pid_ns_id(1);
  ids.set_net_ns_id(2);
}

void AddThreads(proto::ProcessState& state) {
  proto::ThreadState second = state.threads(0);
  second.set_tid(kSecond);
  second.mutable_core()->clear_tc();
  second.mutable_core()->mutable_thread_core()->set_blk_sigset(0x10000);
  second.mutable_core()->mutable_thread_core()->set_comm("second");
  *state.add_threads() = second;
  state.mutable_pstree()->add_threads(kSecond);

  proto::ThreadState& leader = *state.mutable_threads(0);
  criu::user_x86_regs_entry& registers =
      *leader.mutable_core()->mutable_thread_info()->mutable_gpregs();
  registers.set_ax(SYS_nanosleep);
  registers.set_orig_ax(~0ull);
  proto::ThreadExtra& extra = *leader.mutable_extra();
  extra.mutable_interrupted_call()->set_number(SYS_nanosleep);
  extra.mutable_interrupted_call()->set_result(-516);
  extra.mutable_interrupted_call()->set_remaining_ns(12345);
  extra.set_temporary_signal_mask(5);
  extra.set_cpu_affinity(std::string(8, '\1'));
  extra.set_timer_slack_ns(50000);
  criu::task_core_entry& task = *leader.mutable_core()->mutable_tc();
  task.set_personality(40000);  // ADDR_NO_RANDOMIZE, its hexadecimal digits
  task.set_membarrier_registration_mask(16 | 4);
}

void AddFiles(proto::ProcessState& state) {
  const auto add = [&](criu::file_entry file, uint32_t descriptor) {
    const uint32_t id = static_cast<uint32_t>(state.files_size()) + 1;
    file.set_id(id);
    if (file.has_efd()) file.mutable_efd()->set_id(id);
    if (file.has_usk()) file.mutable_usk()->set_id(id);
    if (file.has_isk()) file.mutable_isk()->set_id(id);
    criu::fdinfo_entry& entry = *state.add_descriptors();
    entry.set_id(id);
    entry.set_flags(0);
    entry.set_type(file.type());
    entry.set_fd(descriptor);
    *state.add_files() = std::move(file);
    return id;
  };
  criu::file_entry event;
  event.set_type(criu::EVENTFD);
  event.mutable_efd()->set_flags(2);
  event.mutable_efd()->set_counter(7);
  *event.mutable_efd()->mutable_fown() = NoFileOwner();
  proto::FileExtra& semaphore = *state.add_file_extras();
  semaphore.set_id(add(event, 5));
  semaphore.set_eventfd_semaphore(true);

  criu::file_entry socket;
  socket.set_type(criu::INETSK);
  criu::inet_sk_entry& inet = *socket.mutable_isk();
  inet.set_ino(900);
  inet.set_family(AF_INET);
  inet.set_type(SOCK_STREAM);
  inet.set_proto(6);
  inet.set_state(kSocketListening);
  inet.set_src_port(80);
  inet.set_dst_port(0);
  inet.set_flags(2);
  inet.set_backlog(10);
  inet.add_src_addr(0x0100007f);
  *inet.mutable_fown() = NoFileOwner();
  inet.mutable_tcp_opts()->set_keepidle(60);
  criu::sk_opts_entry& options = *inet.mutable_opts();
  options.set_so_sndbuf(1);
  options.set_so_rcvbuf(1);
  options.set_so_snd_tmo_sec(0);
  options.set_so_snd_tmo_usec(0);
  options.set_so_rcv_tmo_sec(0);
  options.set_so_rcv_tmo_usec(0);
  add(socket, 6);

  uint32_t ends[2];
  for (uint32_t i = 0; i < 2; ++i) {
    criu::file_entry end;
    end.set_type(criu::UNIXSK);
    criu::unix_sk_entry& pair = *end.mutable_usk();
    pair.set_ino(1000 + i);
    pair.set_type(SOCK_STREAM);
    pair.set_state(kSocketEstablished);
    pair.set_flags(2);
    pair.set_uflags(0);
    pair.set_backlog(0);
    pair.set_peer(1001 - i);
    *pair.mutable_fown() = NoFileOwner();
    *pair.mutable_opts() = options;
    pair.set_name("");
    ends[i] = add(end, 7 + i);
  }
  for (const char* text : {"first", ""}) {
    proto::SocketPacket& packet = *state.add_packets();
    packet.mutable_entry()->set_id_for(ends[1]);
    packet.mutable_entry()->set_length(static_cast<uint32_t>(std::string(text).size()));
    packet.set_data(text);
  }
  // The pipe of ValidState keeps packets apart.
  state.mutable_pipes(0)->add_packet_bytes(1);
  state.mutable_pipes(0)->add_packet_bytes(3);
}

void AddMemory(proto::ProcessState& state) {
  criu::mm_entry& mm = *state.mutable_mm();
  mm.set_dumpable(1);
  mm.set_thp_disabled(true);
  criu::vma_entry named = mm.vmas(1);
  named.set_start(0x600000);
  named.set_end(0x601000);
  criu::vma_entry stack = mm.vmas(1);
  *mm.mutable_vmas(1) = named;
  *mm.add_vmas() = stack;
  proto::ProcessExtra& extra = *state.mutable_extra();
  proto::VmaExtra& name = *extra.add_vmas();
  name.set_start(0x600000);
  name.set_anonymous_name("arena");
  for (uint64_t word = 0; word < 50; ++word) extra.add_auxv(word * 3);
  mm.mutable_mm_saved_auxv()->Assign(extra.auxv().begin(),
                                     extra.auxv().begin() + kMaxSavedAuxvWords);
  extra.set_exe_path("/bin/true");
  extra.set_working_directory("/");
  extra.set_root_directory("/");
  extra.set_coredump_filter(0x33);
  extra.set_personality(0x40000);
  extra.set_mm_def_flags(8);
  extra.set_dumpable_is_suid(false);
  extra.set_thp_disabled(true);
  extra.set_membarrier_registrations(16 | 4);
  extra.set_freeze_monotonic_ns(1'000'000'007);
  extra.set_freeze_boottime_ns(2'000'000'008);
  criu::timens_entry& clocks = *state.mutable_timens();
  clocks.mutable_monotonic()->set_tv_sec(1);
  clocks.mutable_monotonic()->set_tv_nsec(7);
  clocks.mutable_boottime()->set_tv_sec(2);
  clocks.mutable_boottime()->set_tv_nsec(8);
}

}  // namespace

std::string Siginfo(int number) {
  const int32_t value = number;
  std::string info(kSiginfoBytes, '\0');
  info.replace(0, sizeof value, reinterpret_cast<const char*>(&value), sizeof value);
  return info;
}

proto::ProcessState RichState() {
  proto::ProcessState state = ValidState();
  criu::inventory_entry& inventory = *state.mutable_inventory();
  inventory.set_img_version(kImageVersion);
  inventory.set_fdinfo_per_id(true);
  inventory.set_ns_per_id(true);
  FillIds(1, *inventory.mutable_root_ids());
  FillIds(2, *state.mutable_ids());
  AddThreads(state);
  AddFiles(state);
  AddMemory(state);
  return state;
}

}  // namespace predump::images::testing
