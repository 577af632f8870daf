// A CRIU client at the server's side of the page-server protocol: all it sends, from the first byte
// on. The store holds one directory that it may build on. What is published must be whole.
#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <optional>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/strip.h"
#include "spdlog/spdlog.h"
#include "src/images/image_store.h"
#include "src/images/page_chain.h"
#include "src/pageserver/criu_session.h"
#include "src/transport/page_server_protocol.h"
#include "src/transport/socket.h"
#include "tests/fuzz/scratch_directory.h"

namespace predump {
namespace {

constexpr size_t kFirstBytes = 8;

void Require(bool condition) {
  if (!condition) std::abort();
}

// Three pages at 0x10000 of task 7.
void PublishFirst(const images::ImageStore& store) {
  absl::StatusOr<images::PartialDirectory> partial = store.Begin(false);
  Require(partial.ok());
  const base::UniqueFd pages(
      ::openat(partial->fd(), "pages-1.img", O_WRONLY | O_CREAT | O_CLOEXEC, 0600));
  Require(::ftruncate(pages.get(), 3 * 4096) == 0);
  images::Pagemap pagemap;
  pagemap.pages_id = 1;
  pagemap.entries = {{0x10000, 3, images::kPagePresent}};
  Require(images::WritePagemap(partial->fd(), {images::PagesOf::Kind::kTask, 7}, pagemap).ok());
  Require(partial->Publish().ok());
}

class Store {
 public:
  Store() {
    spdlog::set_level(spdlog::level::off);
    absl::StatusOr<images::ImageStore> store = images::ImageStore::Open(scratch_.path());
    Require(store.ok());
    store_.emplace(*std::move(store));
    PublishFirst(*store_);
  }

  const images::ImageStore& store() const { return *store_; }

  // All that was published can be read; then it goes.
  void CheckAndRemove(const std::string& path) {
    const absl::StatusOr<base::UniqueFd> directory = store_->OpenLatest();
    Require(directory.ok());
    for (const auto& entry : std::filesystem::directory_iterator(path)) {
      const std::string name = entry.path().filename();
      absl::string_view id = name;
      if (!absl::ConsumePrefix(&id, "pagemap-")) {
        Require(absl::StartsWith(name, "pages-") || name == "parent");
        continue;
      }
      images::PagesOf of;
      if (absl::ConsumePrefix(&id, "shmem-")) of.kind = images::PagesOf::Kind::kSharedMemory;
      Require(absl::ConsumeSuffix(&id, ".img") && absl::SimpleAtoi(id, &of.id));
      Require(images::PageChain::Open(directory->get(), of).ok());
    }
    std::filesystem::remove_all(path);
    std::filesystem::remove(scratch_.path() + "/latest");
    std::filesystem::create_symlink("1", scratch_.path() + "/latest");
  }

  // Nothing but the first directory is there.
  void CheckClean() const {
    for (const auto& entry : std::filesystem::directory_iterator(scratch_.path())) {
      const std::string name = entry.path().filename();
      Require(name == "1" || name == "latest" || name == ".lock");
    }
  }

 private:
  ScratchDirectory scratch_;
  std::optional<images::ImageStore> store_;
};

}  // namespace
}  // namespace predump

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace predump;
  static Store store;
  if (size < kFirstBytes || !transport::page_server::IsFirstMessage(data)) return 0;
  int fds[2];
  Require(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds) == 0);
  base::UniqueFd socket(fds[0]);
  const base::UniqueFd client(fds[1]);
  const std::string first(reinterpret_cast<const char*>(data), kFirstBytes);
  const size_t rest = size - kFirstBytes;
  // More than the socket holds is not for this target.
  if (::send(client.get(), data + kFirstBytes, rest, MSG_NOSIGNAL) != static_cast<ssize_t>(rest)) {
    return 0;
  }
  Require(::shutdown(client.get(), SHUT_WR) == 0);
  pageserver::CriuClientOptions options;
  // Answers that nobody takes may fill the socket.
  options.patience = absl::Milliseconds(1);
  options.store_patience = absl::ZeroDuration();
  const auto result =
      pageserver::ServeCriuClient(std::move(socket), -1, first, store.store(), options);
  if (result.ok()) store.CheckAndRemove(result->path);
  store.CheckClean();
  return 0;
}
