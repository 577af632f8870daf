#include "src/restore/call_plan.h"

#include "absl/strings/str_cat.h"
#include "src/base/errors.h"

namespace predump::restore::internal {

absl::StatusOr<CallPlan> CallPlan::Create(Trampoline& trampoline, const PlanRoom& room) {
  PREDUMP_ASSIGN_OR_RETURN(const Trampoline::Part part, trampoline.Slice(room.bytes()));
  PREDUMP_ASSIGN_OR_RETURN(kernel::RemoteBatch batch,
                           kernel::RemoteBatch::Create(part.remote, part.local, room.calls));
  return CallPlan(std::move(batch));
}

CallPlan::Id CallPlan::Call(uint64_t number, std::initializer_list<Argument> arguments,
                            std::string what, OnError on_error) {
  auto id = batch_.Add(number, arguments, std::move(what), on_error);
  if (id.ok()) return *id;
  status_.Update(id.status());
  return Id{};
}

uint64_t CallPlan::Keep(absl::StatusOr<base::RemoteAddress> address) {
  if (address.ok()) return address->value();
  status_.Update(address.status());
  return 0;
}

uint64_t CallPlan::String(absl::string_view text) { return Keep(batch_.AddString(text)); }

uint64_t CallPlan::Bytes(absl::string_view bytes, size_t alignment) {
  return Keep(batch_.AddBytes(std::as_bytes(std::span(bytes.data(), bytes.size())), alignment));
}

absl::Status CallPlan::Verify() const {
  for (const Expectation& expectation : expectations_) {
    const int64_t result = batch_.Result(expectation.call);
    if (result != expectation.result) {
      return absl::InternalError(absl::StrCat("call ", expectation.call.index,
                                              " of the restore gave ", result, " instead of ",
                                              expectation.result));
    }
  }
  return absl::OkStatus();
}

}  // namespace predump::restore::internal
