#include "src/images/image_set.h"

#include <utility>

namespace predump::images {
namespace {

int BodyCount(const criu::file_entry& file) {
  return file.has_reg() + file.has_isk() + file.has_efd() + file.has_epfd() + file.has_sgfd() +
         file.has_tfd() + file.has_usk() + file.has_fifo() + file.has_pipe() + file.has_tty();
}

void SetBodyId(criu::file_entry& file, uint32_t id) {
  if (file.has_reg()) file.mutable_reg()->set_id(id);
  if (file.has_isk()) file.mutable_isk()->set_id(id);
  if (file.has_efd()) file.mutable_efd()->set_id(id);
  if (file.has_epfd()) file.mutable_epfd()->set_id(id);
  if (file.has_sgfd()) file.mutable_sgfd()->set_id(id);
  if (file.has_tfd()) file.mutable_tfd()->set_id(id);
  if (file.has_usk()) file.mutable_usk()->set_id(id);
  if (file.has_fifo()) file.mutable_fifo()->set_id(id);
  if (file.has_pipe()) file.mutable_pipe()->set_id(id);
  if (file.has_tty()) file.mutable_tty()->set_id(id);
}

}  // namespace

std::optional<uint32_t> BodyId(const criu::file_entry& file) {
  if (BodyCount(file) != 1) return std::nullopt;
  switch (file.type()) {
    case criu::REG:
      return file.has_reg() ? std::optional(file.reg().id()) : std::nullopt;
    case criu::INETSK:
      return file.has_isk() ? std::optional(file.isk().id()) : std::nullopt;
    case criu::EVENTFD:
      return file.has_efd() ? std::optional(file.efd().id()) : std::nullopt;
    case criu::EVENTPOLL:
      return file.has_epfd() ? std::optional(file.epfd().id()) : std::nullopt;
    case criu::SIGNALFD:
      return file.has_sgfd() ? std::optional(file.sgfd().id()) : std::nullopt;
    case criu::TIMERFD:
      return file.has_tfd() ? std::optional(file.tfd().id()) : std::nullopt;
    case criu::UNIXSK:
      return file.has_usk() ? std::optional(file.usk().id()) : std::nullopt;
    case criu::FIFO:
      return file.has_fifo() ? std::optional(file.fifo().id()) : std::nullopt;
    case criu::PIPE:
      return file.has_pipe() ? std::optional(file.pipe().id()) : std::nullopt;
    case criu::TTY:
      return file.has_tty() ? std::optional(file.tty().id()) : std::nullopt;
    default:
      return std::nullopt;
  }
}

criu::fown_entry NoFileOwner() {
  criu::fown_entry owner;
  owner.set_uid(0);
  owner.set_euid(0);
  owner.set_signum(0);
  owner.set_pid_type(0);
  owner.set_pid(0);
  return owner;
}

FileIndex::FileIndex(const proto::ProcessState& state) {
  for (const auto& file : state.files()) files_.try_emplace(file.id(), &file);
  for (const auto& extra : state.file_extras()) extras_.try_emplace(extra.id(), &extra);
  for (const auto& fd : state.descriptors()) descriptors_.try_emplace(fd.fd(), fd.id());
}

const criu::file_entry* FileIndex::Find(uint32_t id) const {
  const auto it = files_.find(id);
  return it == files_.end() ? nullptr : it->second;
}

const proto::FileExtra* FileIndex::FindExtra(uint32_t id) const {
  const auto it = extras_.find(id);
  return it == extras_.end() ? nullptr : it->second;
}

const criu::reg_file_entry* FileIndex::FindRegular(uint32_t id) const {
  const criu::file_entry* file = Find(id);
  return file != nullptr && file->type() == criu::REG && file->has_reg() ? &file->reg() : nullptr;
}

const criu::file_entry* FileIndex::FindByDescriptor(uint32_t fd) const {
  const auto it = descriptors_.find(fd);
  return it == descriptors_.end() ? nullptr : Find(it->second);
}

uint32_t StateBuilder::AddFile(criu::file_entry file) {
  const uint32_t id = next_id_++;
  file.set_id(id);
  SetBodyId(file, id);
  *state_->add_files() = std::move(file);
  return id;
}

void StateBuilder::AddDescriptor(uint32_t fd, uint32_t file_id, bool close_on_exec) {
  criu::fdinfo_entry* entry = state_->add_descriptors();
  entry->set_id(file_id);
  entry->set_flags(close_on_exec ? 1 : 0);
  entry->set_type(state_->files(static_cast<int>(file_id) - 1).type());
  entry->set_fd(fd);
}

proto::FileExtra& StateBuilder::Extra(uint32_t file_id) {
  const auto [it, added] = extra_index_.try_emplace(file_id, state_->file_extras_size());
  if (added) state_->add_file_extras()->set_id(file_id);
  return *state_->mutable_file_extras(it->second);
}

}  // namespace predump::images
