#include "src/predump/native_destination.h"

#include <errno.h>
#include <sys/random.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "src/base/errors.h"
#include "src/checkpoint/host_facts.h"
#include "src/kernel/process_identity.h"
#include "src/kernel/time_offsets.h"
#include "src/predump/native_sink.h"
#include "src/predump/page_tracking.h"

namespace predump {
namespace {

constexpr size_t kSessionIdBytes = 16;

absl::StatusOr<std::string> NewSessionId() {
  std::string id(kSessionIdBytes, '\0');
  if (::getrandom(id.data(), id.size(), 0) != static_cast<ssize_t>(id.size())) {
    return base::ErrnoError(errno, "getrandom");
  }
  return id;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Destination>> NativeDestination::Connect(
    const MigrationOptions& options, Cancellation& cancellation) {
  PREDUMP_ASSIGN_OR_RETURN(std::string session_id, NewSessionId());
  PREDUMP_ASSIGN_OR_RETURN(proto::HostFacts facts, checkpoint::ReadHostFacts());
  PREDUMP_ASSIGN_OR_RETURN(
      const LinkOptions way,
      LinkOptions::To(options.to, options.socket, options.server_command, cancellation));
  PREDUMP_ASSIGN_OR_RETURN(TargetLink link, TargetLink::Connect(way, facts, cancellation));
  return std::unique_ptr<Destination>(
      new NativeDestination(options, std::move(facts), std::move(link), std::move(session_id)));
}

absl::Status NativeDestination::Ask(Question question, std::vector<std::string>& blockers) {
  // Images may be restored on any host; what they need is found out there.
  if (!stores_images()) {
    for (const proto::Blocker& blocker : checkpoint::CompareHosts(facts_, link_.server().host())) {
      blockers.push_back(Line(blocker));
    }
  }
  // A refused process needs no data connection, so that the server shall not wait for one.
  question.check_only |= !blockers.empty();
  PREDUMP_ASSIGN_OR_RETURN(const proto::Begin begin, MakeBegin(std::move(question)));
  const absl::StatusOr<proto::BeginReply> reply = link_.Begin(begin);
  // Of a process with blockers the target may understand nothing; they stand all the same.
  if (!reply.ok()) return blockers.empty() ? reply.status() : absl::OkStatus();
  for (const proto::Blocker& blocker : reply->blockers()) {
    blockers.push_back(absl::StrCat("target: ", Line(blocker)));
  }
  data_token_ = reply->data_token();
  return absl::OkStatus();
}

absl::StatusOr<proto::Begin> NativeDestination::MakeBegin(Question question) {
  checkpoint::Survey& survey = question.survey;
  proto::Begin begin;
  begin.set_session_id(session_id_);
  begin.set_pid(survey.preview.pid());
  for (const proto::ThreadState& thread : survey.preview.threads()) begin.add_tids(thread.tid());
  base::ByteCount memory;
  for (const pagemap::Vma& vma : question.vmas.vmas()) {
    if (vma.is_private_memory()) memory += vma.range.size();
  }
  PREDUMP_ASSIGN_OR_RETURN(const base::ByteCount resident, ResidentMemory(question.process));
  begin.set_memory_bytes(std::min(memory, resident).value());
  *begin.mutable_preview() = std::move(survey.preview);
  begin.set_rounds_only(options_.rounds_only());
  begin.set_verify(options_.verify);
  begin.set_shell_job(options_.shell_job);
  begin.set_tcp_close(options_.tcp_close);
  begin.set_check_only(question.check_only);
  PREDUMP_RETURN_IF_ERROR(SetClockOffsets(question.process, begin));
  return begin;
}

absl::Status NativeDestination::SetClockOffsets(const kernel::ProcessHandle& process,
                                                proto::Begin& begin) {
  PREDUMP_ASSIGN_OR_RETURN(const kernel::TimeOffsets own, kernel::ReadTimeOffsets(process.pid()));
  PREDUMP_ASSIGN_OR_RETURN(const std::string boot_id, kernel::ReadBootId());
  if (link_.server().host().boot_id() == boot_id) {
    if (own.monotonic_ns == 0 && own.boottime_ns == 0) return absl::OkStatus();
    begin.set_monotonic_offset_ns(own.monotonic_ns);
    begin.set_boottime_offset_ns(own.boottime_ns);
    return absl::OkStatus();
  }
  PREDUMP_ASSIGN_OR_RETURN(const ClockOffsets hosts, link_.MeasureClocks());
  begin.set_monotonic_offset_ns(hosts.monotonic_ns + own.monotonic_ns);
  begin.set_boottime_offset_ns(hosts.boottime_ns + own.boottime_ns);
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<PageSink>> NativeDestination::OpenSink() {
  PREDUMP_RETURN_IF_ERROR(link_.OpenData(data_token_));
  return std::unique_ptr<PageSink>(
      std::make_unique<NativeSink>(link_.data(), link_.control().fd()));
}

absl::Status NativeDestination::Explain(const absl::Status& failure) {
  return link_.Explain(failure);
}

absl::StatusOr<HandoverResult> NativeDestination::HandOver(Engine& engine, uint64_t final_round) {
  return predump::HandOver(engine, link_, session_id_, final_round);
}

}  // namespace predump
