#include "src/checkpoint/credentials.h"

#include "src/base/errors.h"
#include "src/kernel/procfs.h"

namespace predump::checkpoint {
namespace {

template <typename Field>
void SetCapabilities(uint64_t mask, Field* words) {
  words->Add(static_cast<uint32_t>(mask));
  words->Add(static_cast<uint32_t>(mask >> 32));
}

}  // namespace

absl::StatusOr<const criu::creds_entry*> CredentialsReader::Read(
    pid_t tid, const kernel::ThreadRecord& record) {
  const bool no_new_privileges = (record.atomic_flags & 1) != 0;
  auto& slot = known_[{record.credentials, no_new_privileges}];
  if (slot != nullptr) return slot.get();
  PREDUMP_ASSIGN_OR_RETURN(const auto status, kernel::ReadThreadStatus(*process_, tid));
  slot = std::make_unique<criu::creds_entry>();
  slot->set_uid(status.uids[0]);
  slot->set_euid(status.uids[1]);
  slot->set_suid(status.uids[2]);
  slot->set_fsuid(status.uids[3]);
  slot->set_gid(status.gids[0]);
  slot->set_egid(status.gids[1]);
  slot->set_sgid(status.gids[2]);
  slot->set_fsgid(status.gids[3]);
  SetCapabilities(status.cap_inheritable, slot->mutable_cap_inh());
  SetCapabilities(status.cap_permitted, slot->mutable_cap_prm());
  SetCapabilities(status.cap_effective, slot->mutable_cap_eff());
  SetCapabilities(status.cap_bounding, slot->mutable_cap_bnd());
  // Newer than CRIU 3.17: only where they say something.
  if (status.cap_ambient != 0) SetCapabilities(status.cap_ambient, slot->mutable_cap_amb());
  if (no_new_privileges) slot->set_no_new_privs(1);
  slot->set_secbits(record.secure_bits);
  for (const gid_t group : status.groups) slot->add_groups(group);
  return slot.get();
}

}  // namespace predump::checkpoint
