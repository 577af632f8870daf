#include "src/pageserver/criu_session.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>

#include <array>
#include <optional>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "spdlog/spdlog.h"
#include "src/base/errors.h"
#include "src/images/image_constants.h"
#include "src/pageserver/criu_object.h"
#include "src/pageserver/fate_store.h"
#include "src/pageserver/patient_reader.h"
#include "src/transport/deadline.h"
#include "src/transport/page_server_protocol.h"
#include "src/transport/socket.h"

namespace predump::pageserver {
namespace {

namespace protocol = transport::page_server;
using transport::Deadline;

constexpr size_t kFirstBytes = 8;
// Tasks and shared memory objects of one session.
constexpr size_t kMostObjects = 65536;
// After the last answer: a client closes at once.
constexpr absl::Duration kCloseTimeout = absl::Seconds(5);
// A lock has no event to wait for.
constexpr absl::Duration kStorePause = absl::Milliseconds(20);
// What kClose is answered where nothing was kept; any but zero makes the client fail.
constexpr int32_t kNotStored = 1;

class CriuClient {
 public:
  CriuClient(base::UniqueFd socket, PatientReader reader, const images::ImageStore& store,
             const CriuClientOptions& options)
      : socket_(std::move(socket)), reader_(reader), store_(store), options_(options) {}

  absl::StatusOr<CriuClientResult> Serve(const std::string& first_bytes) {
    PREDUMP_ASSIGN_OR_RETURN(protocol::Message message, ReadFirst(first_bytes));
    for (;;) {
      if (message.command == protocol::kClose || message.command == protocol::kForceClose) {
        return Close();
      }
      PREDUMP_RETURN_IF_ERROR(Handle(message));
      PREDUMP_ASSIGN_OR_RETURN(message, ReadNext());
    }
  }

 private:
  absl::StatusOr<protocol::Message> ReadFirst(const std::string& first_bytes) {
    std::array<unsigned char, protocol::kMostHeaderBytes> bytes = {};
    constexpr auto kOld = static_cast<size_t>(protocol::HeaderSize::kOld);
    ::memcpy(bytes.data(), first_bytes.data(), kFirstBytes);
    PREDUMP_RETURN_IF_ERROR(ReadPart(bytes.data() + kFirstBytes, kOld - kFirstBytes));
    size_ = protocol::DetectSize(bytes.data());
    protocol::Message message = protocol::Decode(bytes.data(), protocol::HeaderSize::kOld);
    // The two sizes of one that names no object can't be told apart, and there is no need to.
    if (message.command == protocol::kClose || message.command == protocol::kForceClose) {
      return message;
    }
    const size_t size = static_cast<size_t>(size_);
    if (size > kOld) PREDUMP_RETURN_IF_ERROR(ReadPart(bytes.data() + kOld, size - kOld));
    return protocol::Decode(bytes.data(), size_);
  }

  absl::StatusOr<protocol::Message> ReadNext() {
    std::array<unsigned char, protocol::kMostHeaderBytes> bytes;
    PREDUMP_RETURN_IF_ERROR(ReadPart(bytes.data(), static_cast<size_t>(size_)));
    return protocol::Decode(bytes.data(), size_);
  }

  absl::Status ReadPart(void* to, size_t size) {
    const absl::Status status = reader_.Read(to, size);
    if (!absl::IsOutOfRange(status)) return status;
    return absl::UnavailableError("it left without closing");
  }

  absl::Status Handle(const protocol::Message& message) {
    switch (message.code()) {
      case protocol::kParent:
        return AnswerParent(message);
      case protocol::kOpen:
        return Open(message);
      case protocol::kOpen2: {
        PREDUMP_RETURN_IF_ERROR(Open(message));
        const char has_parent = object_.has_value() && object_->has_parent() ? 1 : 0;
        return Answer(&has_parent, sizeof has_parent);
      }
      case protocol::kAdd:
        return TakeRun(message, images::kPagePresent);
      case protocol::kHole:
        return TakeRun(message, images::kPageParent);
      case protocol::kAddFlags:
        return TakeRun(message, message.flags());
      case protocol::kGet:
        return absl::UnimplementedError(
            "it asks for pages (criu lazy-pages), which are not served here");
      default:
        return absl::DataLossError(
            absl::StrFormat("it sent a command that is not known here (0x%x)", message.command));
    }
  }

  absl::StatusOr<images::PagesOf> ObjectOf(const protocol::Message& message) const {
    const std::optional<images::PagesOf> of = ParseObject(message.object);
    if (of.has_value()) return *of;
    return absl::DataLossError(absl::StrFormat(
        "it sent pages of something that is not known here (0x%x)", message.object));
  }

  // The image directory that this session writes; begun when it is first asked about, so that the
  // answers of kParent and kOpen2 agree whatever others publish. Null: `failure_` says why.
  images::PartialDirectory* Directory() {
    if (!directory_.has_value() && failure_.ok()) {
      const Deadline deadline = Deadline::After(options_.store_patience);
      const auto begin = [this] {
        return store_.Begin(!options_.no_parent, options_.before_tidying);
      };
      absl::StatusOr<images::PartialDirectory> begun = begin();
      while (absl::IsUnavailable(begun.status()) && !deadline.passed()) {
        absl::SleepFor(kStorePause);
        begun = begin();
      }
      failure_ = begun.status();
      if (begun.ok()) directory_.emplace(*std::move(begun));
    }
    return failure_.ok() ? &*directory_ : nullptr;
  }

  // What the parent directory holds of an object. One that can't be read is none: all pages come.
  std::optional<images::Pagemap> ParentOf(const images::PagesOf& of) {
    images::PartialDirectory* directory = Directory();
    if (directory == nullptr || !directory->has_parent()) return std::nullopt;
    const absl::StatusOr<base::UniqueFd> parent = images::OpenParent(directory->fd());
    absl::StatusOr<images::Pagemap> pagemap =
        parent.ok() ? images::ReadPagemap(parent->get(), of) : parent.status();
    if (pagemap.ok()) return *std::move(pagemap);
    if (!absl::IsNotFound(pagemap.status())) {
      spdlog::warn("{}: not built upon: {}", directory->final_path(),
                   std::string(pagemap.status().message()));
    }
    return std::nullopt;
  }

  absl::Status AnswerParent(const protocol::Message& message) {
    PREDUMP_ASSIGN_OR_RETURN(const images::PagesOf of, ObjectOf(message));
    const int32_t has_parent = ParentOf(of).has_value() ? 1 : 0;
    return Answer(&has_parent, sizeof has_parent);
  }

  absl::Status Open(const protocol::Message& message) {
    PREDUMP_ASSIGN_OR_RETURN(const images::PagesOf of, ObjectOf(message));
    FinishObject();
    current_ = message.object;
    if (!opened_.insert(of.PagemapName()).second) {
      return absl::DataLossError(absl::StrCat("it sent ", of.PagemapName(), " twice"));
    }
    if (opened_.size() > kMostObjects) {
      return absl::DataLossError(absl::StrCat("it sent more than ", kMostObjects, " objects"));
    }
    std::optional<images::Pagemap> parent = ParentOf(of);
    images::PartialDirectory* directory = Directory();
    if (directory == nullptr) return absl::OkStatus();
    absl::StatusOr<CriuObject> object = CriuObject::Create(
        directory->fd(), of, static_cast<uint32_t>(opened_.size()), std::move(parent));
    failure_ = object.status();
    if (object.ok()) object_.emplace(*std::move(object));
    return absl::OkStatus();
  }

  absl::Status TakeRun(const protocol::Message& message, uint32_t flags) {
    // Clients before kOpen2 open by sending.
    if (message.object != current_) PREDUMP_RETURN_IF_ERROR(Open(message));
    PREDUMP_ASSIGN_OR_RETURN(const images::PagesOf of, ObjectOf(message));
    const images::PagemapEntry entry{message.address, message.pages, flags};
    // Its count says where the next message begins: nothing after a wrong one can be trusted.
    PREDUMP_RETURN_IF_ERROR(
        base::Annotate(images::CheckPagemapEntry(entry, of.kind), of.PagemapName()));
    if (failure_.ok()) failure_ = object_->Add(entry);
    if ((flags & images::kPagePresent) == 0) return absl::OkStatus();
    return TakePages(entry.pages * images::kPageBytes);
  }

  // The peer is in the middle of a message: all of it is taken, whatever becomes of it.
  absl::Status TakePages(uint64_t bytes) {
    while (bytes > 0 && failure_.ok()) {
      PayloadFile& pages = object_->pages();
      const absl::StatusOr<uint64_t> taken = pages.TakeFrom(reader_.socket(), bytes);
      if (absl::IsAborted(taken.status())) {
        return absl::UnavailableError("it left in the middle of a message");
      }
      PREDUMP_RETURN_IF_ERROR(taken.status());
      bytes -= *taken;
      failure_ = pages.file_status();
      if (*taken == 0) PREDUMP_RETURN_IF_ERROR(reader_.Wait());
    }
    return reader_.Discard(bytes);
  }

  void FinishObject() {
    if (failure_.ok() && object_.has_value()) {
      const absl::StatusOr<CriuObject::Counts> counts = object_->Finish();
      failure_ = counts.status();
      if (counts.ok()) {
        ++result_.objects;
        result_.present += counts->present;
        result_.in_parent += counts->in_parent;
      }
    }
    object_.reset();
  }

  absl::StatusOr<CriuClientResult> Close() {
    FinishObject();
    if (failure_.ok() && result_.objects > 0) {
      failure_ = directory_->Publish();
      result_.path = directory_->final_path();
    }
    const bool nothing = result_.objects == 0 && failure_.ok();
    directory_.reset();  // the next client may come as soon as this one has its answer
    const int32_t status = failure_.ok() ? 0 : kNotStored;
    const absl::Status answered = Answer(&status, sizeof status);
    if (!failure_.ok()) return failure_;
    if (nothing) return absl::UnavailableError("it closed without having sent anything");
    // What is stored is stored; a client that has not heard of it fails by itself.
    if (!answered.ok()) {
      spdlog::warn("{}: the client was not told that it is stored: {}", result_.path,
                   std::string(answered.message()));
    }
    AwaitEnd();
    return result_;
  }

  // In one segment: the client takes whatever its first recv(2) brings for the whole answer.
  absl::Status Answer(const void* bytes, size_t size) {
    const Deadline deadline = Deadline::After(options_.patience);
    for (;;) {
      const ssize_t n = ::send(socket_.get(), bytes, size, MSG_NOSIGNAL | MSG_DONTWAIT);
      if (n == static_cast<ssize_t>(size)) return absl::OkStatus();
      if (n >= 0) return absl::UnavailableError("it took only a part of an answer");
      if (errno == EINTR) continue;
      if (errno != EAGAIN) return base::ErrnoError(errno, "answer");
      PREDUMP_ASSIGN_OR_RETURN(const transport::WaitResult woken,
                               transport::WaitFor(socket_.get(), POLLOUT, deadline));
      if (woken == transport::WaitResult::kDeadline) {
        return absl::DeadlineExceededError("it took no answer");
      }
    }
  }

  // Closing before the client has may cost it the answer, if it still sends anything.
  void AwaitEnd() {
    const Deadline deadline = Deadline::After(kCloseTimeout);
    const absl::StatusOr<transport::WaitResult> woken =
        transport::WaitFor(socket_.get(), POLLIN, deadline);
    char byte;
    if (woken.ok() && *woken == transport::WaitResult::kReady &&
        ::recv(socket_.get(), &byte, 1, MSG_DONTWAIT) > 0) {
      spdlog::warn("{}: the client sent more after it had closed", result_.path);
    }
  }

  base::UniqueFd socket_;
  PatientReader reader_;
  const images::ImageStore& store_;
  const CriuClientOptions& options_;
  protocol::HeaderSize size_ = protocol::HeaderSize::kOld;
  std::optional<images::PartialDirectory> directory_;
  std::optional<CriuObject> object_;
  uint64_t current_ = 0;  // as messages name the object that is open
  absl::flat_hash_set<std::string> opened_;
  // Why this session will not be stored. The protocol goes on to its end.
  absl::Status failure_;
  CriuClientResult result_;
};

}  // namespace

absl::StatusOr<CriuClientResult> ServeCriuClient(base::UniqueFd socket, int stop_fd,
                                                 const std::string& first_bytes,
                                                 const images::ImageStore& store,
                                                 const CriuClientOptions& options) {
  if (first_bytes.size() != kFirstBytes) return absl::InternalError("not the first bytes");
  const PatientReader reader(socket.get(), stop_fd, options.patience);
  return CriuClient(std::move(socket), reader, store, options).Serve(first_bytes);
}

int RunCriuSession(const ServerOptions& options, SessionArguments arguments,
                   const std::string& first_bytes) {
  CriuClientOptions client;
  client.no_parent = options.no_parent;
  client.patience = options.silence_limit;
  // Of a native session that died here: what it left says what became of its process.
  absl::StatusOr<FateStore> fates = FateStore::Open(options.state_directory);
  if (!fates.ok()) {
    spdlog::error("CRIU client from {}: {}", arguments.peer, std::string(fates.status().message()));
    return kSessionFailed;
  }
  fates->SettleTheDead();
  client.before_tidying = [&fates](const images::LockedStore& locked) {
    fates->SettleTheDead(locked);
  };
  const absl::StatusOr<images::ImageStore> store =
      images::ImageStore::Open(options.images_directory);
  const absl::StatusOr<CriuClientResult> result =
      store.ok() ? ServeCriuClient(std::move(arguments.control), arguments.listener.get(),
                                   first_bytes, *store, client)
                 : store.status();
  if (!result.ok()) {
    spdlog::error("CRIU client from {}: nothing is stored: {}", arguments.peer,
                  std::string(result.status().message()));
    return kSessionFailed;
  }
  spdlog::info("CRIU client from {}: stored in {}: {} objects, {} pages, {} more in the parent",
               arguments.peer, result->path, result->objects, result->present, result->in_parent);
  return kSessionSucceeded;
}

}  // namespace predump::pageserver
