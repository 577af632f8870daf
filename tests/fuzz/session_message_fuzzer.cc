// Every message of a session as a peer may send it: parsed as its type says, and states checked
// before anything could act on them. The first byte of the input is the type.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>

#include "proto/session.pb.h"
#include "src/images/state_validation.h"
#include "src/transport/control_channel.h"

namespace predump {
namespace {

using transport::ControlChannel;
using transport::ControlFrame;

template <typename Message>
absl::StatusOr<Message> Take(const ControlFrame& frame) {
  return ControlChannel::Parse<Message>(frame, frame.type);
}

// What is valid once must be valid when it has been written and read again.
void CheckState(const proto::ProcessState& state, images::StateKind kind) {
  const absl::Status status = images::ValidateState(state, kind);
  if (!status.ok()) return;
  proto::ProcessState again;
  if (!again.ParseFromString(state.SerializeAsString())) std::abort();
  if (!images::ValidateState(again, kind).ok()) std::abort();
}

void Dispatch(const ControlFrame& frame) {
  switch (frame.type) {
    case proto::CONTROL_CLIENT_HELLO:
      Take<proto::ClientHello>(frame).status().IgnoreError();
      break;
    case proto::CONTROL_SERVER_HELLO:
      Take<proto::ServerHello>(frame).status().IgnoreError();
      break;
    case proto::CONTROL_BEGIN:
      if (const auto begin = Take<proto::Begin>(frame); begin.ok()) {
        CheckState(begin->preview(), images::StateKind::kPreview);
      }
      break;
    case proto::CONTROL_BEGIN_REPLY:
      Take<proto::BeginReply>(frame).status().IgnoreError();
      break;
    case proto::CONTROL_PREPARE:
      if (const auto prepare = Take<proto::Prepare>(frame); prepare.ok()) {
        CheckState(prepare->state(), images::StateKind::kFull);
      }
      break;
    case proto::CONTROL_FAILED:
      if (const auto failed = Take<proto::Failed>(frame); failed.ok()) {
        if (transport::StatusFromFailed(*failed).ok()) std::abort();
      }
      break;
    case proto::CONTROL_VERIFY:
      Take<proto::Verify>(frame).status().IgnoreError();
      break;
    case proto::CONTROL_COMMIT:
      Take<proto::Commit>(frame).status().IgnoreError();
      break;
    case proto::CONTROL_FATE:
      Take<proto::Fate>(frame).status().IgnoreError();
      break;
    default:
      // Any other type, expected or not, must end in a status.
      if (ControlChannel::Parse<proto::Ready>(frame, proto::CONTROL_READY).ok() &&
          frame.type != proto::CONTROL_READY) {
        std::abort();
      }
      break;
  }
}

}  // namespace
}  // namespace predump

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  predump::transport::ControlFrame frame;
  frame.type = static_cast<predump::proto::ControlType>(data[0]);
  frame.bytes.assign(reinterpret_cast<const char*>(data + 1), size - 1);
  predump::Dispatch(frame);
  return 0;
}
