#include "src/restore/carried.h"

#include <sched.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include <string>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "src/images/image_constants.h"
#include "src/restore/blockers.h"
#include "src/restore/socket_address.h"
#include "src/restore/xstate.h"

namespace predump::restore {
namespace {

using internal::AddBlocker;
using internal::Blockers;

constexpr uint32_t kExternalPeer = 1;  // unix_sk_entry.uflags; named by images::ReadState

void CheckThread(const proto::ThreadState& thread, Blockers& blockers) {
  const std::string who = absl::StrCat("thread ", thread.tid());
  const criu::thread_core_entry& core = thread.core().thread_core();
  switch (core.sched_policy()) {
    case SCHED_OTHER:
    case SCHED_FIFO:
    case SCHED_RR:
    case SCHED_BATCH:
    case SCHED_IDLE:
      break;
    default:
      AddBlocker(blockers, who, absl::StrCat("has the scheduling policy ", core.sched_policy()));
  }
  if (core.rseq_entry().rseq_cs_pointer() != 0) {
    AddBlocker(blockers, who, "is in a restartable sequence that no signal aborts");
  }
  if (const uint64_t missing = internal::MissingComponents(thread); missing != 0) {
    AddBlocker(blockers, who,
               absl::StrFormat("uses processor state (components %#x of XCR0) that this processor "
                               "does not have, or that the images cannot tell whole",
                               missing),
               "restore it where it was captured, or on a processor like that one");
  }
}

const criu::fown_entry* OwnerOf(const criu::file_entry& file) {
  switch (file.type()) {
    case criu::REG:
      return &file.reg().fown();
    case criu::PIPE:
      return &file.pipe().fown();
    case criu::EVENTFD:
      return &file.efd().fown();
    case criu::EVENTPOLL:
      return &file.epfd().fown();
    case criu::TIMERFD:
      return &file.tfd().fown();
    case criu::SIGNALFD:
      return &file.sgfd().fown();
    case criu::INETSK:
      return &file.isk().fown();
    case criu::UNIXSK:
      return &file.usk().fown();
    case criu::TTY:
      return &file.tty().fown();
    default:
      return nullptr;
  }
}

// Of files that a descriptor leads to.
class FileCheck {
 public:
  FileCheck(const proto::ProcessState& state, Blockers& blockers)
      : state_(state), blockers_(blockers) {
    for (const auto& entry : state.descriptors()) names_.try_emplace(entry.id(), entry.fd());
    for (const auto& file : state.files()) {
      if (!file.has_usk()) continue;
      sockets_.try_emplace(file.usk().ino(), &file.usk());
      ids_.try_emplace(file.id(), &file.usk());
      inodes_.try_emplace(file.usk().ino(), file.id());
    }
  }

  void Run() {
    for (const criu::file_entry& file : state_.files()) {
      const auto name = names_.find(file.id());
      if (name == names_.end()) continue;
      name_ = absl::StrCat("fd ", name->second);
      const criu::fown_entry* owner = OwnerOf(file);
      if (owner != nullptr && (owner->pid() != 0 || owner->signum() != 0)) {
        AddBlocker(blockers_, name_, "its signals go to somebody (F_SETOWN, F_SETSIG)");
      }
      if (file.type() == criu::FIFO) {
        AddBlocker(blockers_, name_, "a named pipe");
      } else if (file.type() == criu::UNIXSK) {
        CheckUnix(file.usk());
      }
    }
    CheckQueues();
  }

 private:
  void CheckUnix(const criu::unix_sk_entry& socket) {
    if (socket.deleted()) {
      AddBlocker(blockers_, name_, "the name of a unix socket was removed");
    }
    if (socket.peer() == 0) return;
    const auto peer = sockets_.find(socket.peer());
    if (peer == sockets_.end()) {
      if ((socket.uflags() & kExternalPeer) == 0) {
        AddBlocker(blockers_, name_, "a unix socket connected to another process");
      }
      return;
    }
    if (socket.state() != images::kSocketEstablished) return;
    if (socket.type() == SOCK_DGRAM && peer->second->peer() != socket.ino()) {
      AddBlocker(blockers_, name_, "a datagram socket connected one way");
    } else if (!socket.name().empty() && !internal::IsAbstract(socket.name())) {
      AddBlocker(blockers_, name_,
                 absl::StrCat("a connected unix socket with the name ",
                              internal::UnixAddressText(socket.name())));
    }
  }

  // What is queued is sent again, by the peer.
  void CheckQueues() {
    for (const proto::SocketPacket& packet : state_.packets()) {
      const auto name = names_.find(packet.entry().id_for());
      const auto socket = ids_.find(packet.entry().id_for());
      if (name == names_.end() || socket == ids_.end()) continue;
      const auto peer = inodes_.find(socket->second->peer());
      if (peer == inodes_.end() || !names_.contains(peer->second)) {
        AddBlocker(blockers_, absl::StrCat("fd ", name->second),
                   "holds messages of a socket that is not in the process");
      }
    }
  }

  const proto::ProcessState& state_;
  Blockers& blockers_;
  std::string name_;
  absl::flat_hash_map<uint32_t, uint32_t> names_;                      // a descriptor of each file
  absl::flat_hash_map<uint32_t, const criu::unix_sk_entry*> sockets_;  // by inode
  absl::flat_hash_map<uint32_t, const criu::unix_sk_entry*> ids_;      // by file
  absl::flat_hash_map<uint32_t, uint32_t> inodes_;                     // the file of each
};

bool IsForeign(const criu::vma_entry& vma) {
  constexpr uint32_t kOurs = images::kVmaRegular | images::kVmaVsyscall | images::kVmaVdso |
                             images::kVmaHeap | images::kVmaFilePrivate | images::kVmaFileShared |
                             images::kVmaAnonymousPrivate | images::kVmaVvar;
  constexpr uint32_t kMapDroppable = 0x8;
  return (vma.status() & ~kOurs) != 0 || (vma.flags() & (MAP_HUGETLB | kMapDroppable)) != 0;
}

}  // namespace

std::vector<proto::Blocker> FindUncarried(const proto::ProcessState& state) {
  Blockers blockers;
  for (const proto::ThreadState& thread : state.threads()) CheckThread(thread, blockers);
  FileCheck(state, blockers).Run();
  return blockers;
}

void TakeOutUncarried(proto::ProcessState& state) {
  for (proto::ThreadState& thread : *state.mutable_threads()) {
    criu::core_entry& core = *thread.mutable_core();
    core.mutable_thread_core()->clear_seccomp_mode();
    if (!core.has_tc()) continue;
    core.mutable_tc()->set_task_state(images::kTaskAlive);
    core.mutable_tc()->mutable_timers()->clear_posix();
  }
  google::protobuf::RepeatedPtrField<criu::vma_entry> ours;
  for (criu::vma_entry& vma : *state.mutable_mm()->mutable_vmas()) {
    if (!IsForeign(vma)) *ours.Add() = std::move(vma);
  }
  state.mutable_mm()->mutable_vmas()->Swap(&ours);
  state.mutable_mm()->clear_aios();
  for (proto::SocketPacket& packet : *state.mutable_packets()) packet.mutable_entry()->clear_scm();
  for (criu::file_entry& file : *state.mutable_files()) {
    if (file.has_usk()) file.mutable_usk()->set_peer(0);
  }
}

}  // namespace predump::restore
