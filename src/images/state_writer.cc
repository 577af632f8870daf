// What state_images.h writes.
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "src/base/errors.h"
#include "src/images/directory_names.h"
#include "src/images/image_constants.h"
#include "src/images/image_file.h"
#include "src/images/image_registers.h"
#include "src/images/image_set.h"
#include "src/images/state_extra.h"
#include "src/images/state_images.h"

namespace predump::images {
namespace {

constexpr uint32_t kPreDumpByRead = 2;  // inventory_entry.pre_dump_mode: process_vm_readv(2)
constexpr uint32_t kUnixSlaveMajor = 136;
constexpr char kInventoryName[] = "inventory.img";
constexpr char kNextInventory[] = ".inventory.new";

absl::Status WriteOne(int directory_fd, const std::string& name, ImageMagic magic,
                      const google::protobuf::MessageLite& entry) {
  PREDUMP_ASSIGN_OR_RETURN(ImageWriter image, ImageWriter::Create(directory_fd, name, magic));
  PREDUMP_RETURN_IF_ERROR(image.Add(entry));
  return image.Finish();
}

template <typename Entries>
absl::Status WriteAll(int directory_fd, const std::string& name, ImageMagic magic,
                      const Entries& entries) {
  PREDUMP_ASSIGN_OR_RETURN(ImageWriter image, ImageWriter::Create(directory_fd, name, magic));
  for (const auto& entry : entries) PREDUMP_RETURN_IF_ERROR(image.Add(entry));
  return image.Finish();
}

// PipeData and SocketPacket: an entry with its bytes behind it.
template <typename Contents>
absl::Status WriteContents(int directory_fd, const std::string& name, ImageMagic magic,
                           const Contents& contents) {
  PREDUMP_ASSIGN_OR_RETURN(ImageWriter image, ImageWriter::Create(directory_fd, name, magic));
  for (const auto& one : contents) {
    PREDUMP_RETURN_IF_ERROR(image.Add(one.entry()));
    PREDUMP_RETURN_IF_ERROR(image.AddRaw(one.data()));
  }
  return image.Finish();
}

criu::inventory_entry Inventory(const proto::ProcessState& state) {
  criu::inventory_entry inventory = state.inventory();
  inventory.set_img_version(kImageVersion);
  inventory.set_fdinfo_per_id(true);
  // No cgroup set here and in no thread: "those of whoever restores" to every version of CRIU.
  inventory.clear_root_cg_set();
  return inventory;
}

absl::Status WriteThreads(int directory_fd, const proto::ProcessState& state,
                          proto::StoredExtra& stored) {
  criu::task_core_entry task;  // with all the signals that any thread may be told of
  for (const auto& captured : state.threads()) {
    proto::ThreadState thread = captured;
    internal::QueueLateSignals(stored, thread);
    criu::core_entry& core = *thread.mutable_core();
    if (core.has_tc()) task = core.tc();
    *core.mutable_thread_info()->mutable_gpregs() = ImageRegisters(thread, task);
    if (core.has_tc()) core.mutable_tc()->clear_cg_set();
    core.mutable_thread_core()->clear_cg_set();
    PREDUMP_RETURN_IF_ERROR(WriteOne(directory_fd, absl::StrCat("core-", thread.tid(), ".img"),
                                     ImageMagic::kCore, core));
    proto::StoredThread& written = *stored.add_threads();
    written.set_tid(thread.tid());
    *written.mutable_written() = core.thread_info();
    const auto& registers = captured.core().thread_info().gpregs();
    if (core.thread_info().gpregs().ip() != registers.ip()) {
      *written.mutable_registers() = registers;
    }
  }
  stored.clear_late_signals();  // the images have them now
  return absl::OkStatus();
}

absl::Status WriteMemory(int directory_fd, const proto::ProcessState& state) {
  criu::mm_entry mm = state.mm();
  if (mm.mm_saved_auxv_size() > kMaxSavedAuxvWords) {
    mm.mutable_mm_saved_auxv()->Truncate(kMaxSavedAuxvWords);
  }
  return WriteOne(directory_fd, absl::StrCat("mm-", state.pid(), ".img"), ImageMagic::kMm, mm);
}

// The terminal of a process that was captured with --shell-job: CRIU, told --shell-job, takes the
// restorer's instead, and asks only what kind it was. Numbers as CRIU makes them: 2 * index, for a
// slave.
criu::tty_info_entry TerminalInfo(const proto::ProcessState& state, absl::string_view path) {
  criu::tty_info_entry info;
  uint32_t index = 0;
  info.set_type(criu::CTTY);
  if (absl::ConsumePrefix(&path, "/dev/pts/") && absl::SimpleAtoi(path, &index)) {
    info.set_type(criu::PTY);
    info.mutable_pty()->set_index(index);
    info.set_rdev(kUnixSlaveMajor << 8 | index);
  } else {
    info.set_rdev(5 << 8);
  }
  info.set_id(2 * index);
  info.set_locked(false);
  info.set_exclusive(false);
  info.set_packet_mode(false);
  info.set_sid(state.pstree().sid());
  info.set_pgrp(state.pstree().pgid());
  return info;
}

// CRIU refuses a socket without an address of its family's size, where the state has none for what
// is not connected.
void FillAddresses(criu::inet_sk_entry& socket) {
  const int words = socket.family() == AF_INET6 ? 4 : 1;
  if (socket.src_addr().empty()) socket.mutable_src_addr()->Resize(words, 0);
  if (socket.dst_addr().empty()) socket.mutable_dst_addr()->Resize(words, 0);
}

// Before 4.0 CRIU had these among the options of all sockets.
void FillOldPlaces(criu::inet_sk_entry& socket) {
  const criu::tcp_opts_entry& tcp = socket.tcp_opts();
  criu::sk_opts_entry& options = *socket.mutable_opts();
  if (tcp.has_keepcnt()) options.set_tcp_keepcnt(tcp.keepcnt());
  if (tcp.has_keepidle()) options.set_tcp_keepidle(tcp.keepidle());
  if (tcp.has_keepintvl()) options.set_tcp_keepintvl(tcp.keepintvl());
}

absl::Status WriteFiles(int directory_fd, const proto::ProcessState& state) {
  const FileIndex files(state);
  absl::flat_hash_map<uint32_t, criu::tty_info_entry> terminals;
  PREDUMP_ASSIGN_OR_RETURN(ImageWriter image,
                           ImageWriter::Create(directory_fd, "files.img", ImageMagic::kFiles));
  for (const auto& file : state.files()) {
    if (file.has_isk()) {
      criu::file_entry socket = file;
      FillAddresses(*socket.mutable_isk());
      FillOldPlaces(*socket.mutable_isk());
      PREDUMP_RETURN_IF_ERROR(image.Add(socket));
      continue;
    }
    if (!file.has_tty()) {
      PREDUMP_RETURN_IF_ERROR(image.Add(file));
      continue;
    }
    const criu::reg_file_entry* device = files.FindRegular(file.tty().regf_id());
    const criu::tty_info_entry info = TerminalInfo(state, device == nullptr ? "" : device->name());
    criu::file_entry terminal = file;
    terminal.mutable_tty()->set_tty_info_id(info.id());
    terminals.try_emplace(info.id(), info);
    PREDUMP_RETURN_IF_ERROR(image.Add(terminal));
  }
  PREDUMP_RETURN_IF_ERROR(image.Finish());
  if (terminals.empty()) return absl::OkStatus();
  std::vector<criu::tty_info_entry> infos;
  for (const auto& [id, info] : terminals) infos.push_back(info);
  return WriteAll(directory_fd, "tty-info.img", ImageMagic::kTtyInfo, infos);
}

absl::Status WriteDescriptors(int directory_fd, const proto::ProcessState& state) {
  PREDUMP_RETURN_IF_ERROR(WriteFiles(directory_fd, state));
  PREDUMP_RETURN_IF_ERROR(WriteAll(directory_fd,
                                   absl::StrCat("fdinfo-", state.ids().files_id(), ".img"),
                                   ImageMagic::kFdinfo, state.descriptors()));
  PREDUMP_RETURN_IF_ERROR(WriteOne(directory_fd, absl::StrCat("fs-", state.pid(), ".img"),
                                   ImageMagic::kFs, state.fs()));
  if (state.pipes_size() != 0) {
    PREDUMP_RETURN_IF_ERROR(
        WriteContents(directory_fd, "pipes-data.img", ImageMagic::kPipesData, state.pipes()));
  }
  if (state.packets_size() != 0) {
    PREDUMP_RETURN_IF_ERROR(
        WriteContents(directory_fd, "sk-queues.img", ImageMagic::kSkQueues, state.packets()));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status WriteState(int directory_fd, const proto::ProcessState& state,
                        proto::StoredExtra stored) {
  if (!state.has_inventory() || !state.inventory().has_root_ids() || !state.has_ids()) {
    return absl::InvalidArgumentError("the state of the process lacks its inventory");
  }
  stored.set_version(kExtraVersion);
  *stored.mutable_state() = internal::PartsBesideImages(state);
  stored.clear_threads();
  const std::string pid = absl::StrCat(state.pid(), ".img");
  PREDUMP_RETURN_IF_ERROR(WriteThreads(directory_fd, state, stored));
  PREDUMP_RETURN_IF_ERROR(WriteMemory(directory_fd, state));
  PREDUMP_RETURN_IF_ERROR(WriteDescriptors(directory_fd, state));
  PREDUMP_RETURN_IF_ERROR(WriteOne(directory_fd, "ids-" + pid, ImageMagic::kIds, state.ids()));
  PREDUMP_RETURN_IF_ERROR(
      WriteOne(directory_fd, "pstree.img", ImageMagic::kPstree, state.pstree()));
  PREDUMP_RETURN_IF_ERROR(
      WriteOne(directory_fd, "seccomp.img", ImageMagic::kSeccomp, criu::seccomp_entry()));
  if (state.has_timens()) {
    PREDUMP_RETURN_IF_ERROR(
        WriteOne(directory_fd, "timens-0.img", ImageMagic::kTimens, state.timens()));
  }
  PREDUMP_ASSIGN_OR_RETURN(const std::vector<std::string> names, ListNames(directory_fd));
  stored.clear_images();
  for (const std::string& name : names) {
    const bool written_later = name == kExtraName || name == kInventoryName;
    // A set may be made to stand alone later.
    if (!written_later && name != "parent") stored.add_images(name);
  }
  PREDUMP_RETURN_IF_ERROR(WriteOne(directory_fd, kExtraName, ImageMagic::kPredumpExtra, stored));
  return WriteOne(directory_fd, kInventoryName, ImageMagic::kInventory, Inventory(state));
}

absl::Status AddLateSignals(int directory_fd,
                            const google::protobuf::RepeatedPtrField<proto::LateSignal>& signals) {
  if (signals.empty()) return absl::OkStatus();
  PREDUMP_ASSIGN_OR_RETURN(StoredState stored, ReadState(directory_fd));
  if (!stored.extra.has_value()) {
    return absl::FailedPreconditionError(absl::StrCat(kExtraName, " is missing"));
  }
  *stored.extra->mutable_late_signals() = signals;
  return WriteState(directory_fd, stored.state, *std::move(stored.extra));
}

absl::Status CheckTakesRoundInventory(int directory_fd) {
  // What stands for a store or for a whole process.
  for (const char* name : {".lock", "latest", "pstree.img", kExtraName}) {
    struct stat stat;
    if (::fstatat(directory_fd, name, &stat, AT_SYMLINK_NOFOLLOW) == 0) {
      return absl::FailedPreconditionError(absl::StrCat("holds ", name));
    }
    if (errno != ENOENT) return base::ErrnoError(errno, "stat ", name);
  }
  auto image = ImageReader::Open(directory_fd, kInventoryName, ImageMagic::kInventory);
  if (absl::IsNotFound(image.status())) return absl::OkStatus();
  PREDUMP_RETURN_IF_ERROR(image);
  criu::inventory_entry inventory;
  PREDUMP_RETURN_IF_ERROR(image->Single(inventory));
  if (inventory.img_version() == static_cast<uint32_t>(kRoundsImageVersion)) {
    return absl::OkStatus();
  }
  return absl::FailedPreconditionError("holds the inventory of a whole dump");
}

absl::Status WriteRoundInventory(int directory_fd, uint64_t uptime_us) {
  criu::inventory_entry inventory;
  inventory.set_img_version(kRoundsImageVersion);
  inventory.set_dump_uptime(uptime_us);
  inventory.set_pre_dump_mode(kPreDumpByRead);
  // Whole or not at all: one of an earlier round may be there.
  PREDUMP_RETURN_IF_ERROR(
      WriteOne(directory_fd, kNextInventory, ImageMagic::kInventory, inventory));
  if (::renameat(directory_fd, kNextInventory, directory_fd, kInventoryName) != 0) {
    return base::ErrnoError(errno, "rename ", kNextInventory, " to ", kInventoryName);
  }
  return absl::OkStatus();
}

}  // namespace predump::images
