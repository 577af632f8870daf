// A server with a store, and a source that sends it rounds of a few pages, letter by letter.
#ifndef PREDUMP_TESTS_PAGESERVER_IMAGE_SESSION_FIXTURE_H_
#define PREDUMP_TESTS_PAGESERVER_IMAGE_SESSION_FIXTURE_H_

#include <gtest/gtest.h>
#include <sys/types.h>
#include <unistd.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "proto/session.pb.h"
#include "src/base/unique_fd.h"
#include "src/images/pagemap_image.h"
#include "src/pageserver/server.h"
#include "src/transport/page_server_protocol.h"
#include "tests/pageserver/handmade_process.h"
#include "tests/pageserver/server_process.h"
#include "tests/support/temp_dir.h"

namespace predump::pageserver {

using transport::WireExtent;

inline constexpr uint64_t kPage = 4096;

inline WireExtent At(uint64_t page, uint64_t count) {
  return {kCountingPage + page * kPage, count * kPage};
}

class ImageSessionTest : public ::testing::Test {
 protected:
  void SetUp() override { server_ = ServerProcess::Start(Options()); }

  ServerOptions Options() const;
  std::string StorePath() const;

  // Begin and the data connection.
  void Open(FakeSource& source, bool rounds_only);
  static void Map(FakeSource& source, const WireExtent& range);
  static void Pages(FakeSource& source, const std::vector<WireExtent>& extents, char letter);
  static absl::Status EndRound(FakeSource& source, uint64_t round);

  // A round with pages 0 to 3, then the last one, which has page 1 anew, and the state.
  absl::StatusOr<proto::Ready> BringToReady(FakeSource& source);
  static absl::StatusOr<proto::Running> Commit(FakeSource& source, proto::Commit commit = {});

  // Waits for it.
  proto::Fate FinalFate(const std::string& session_id);

  // Names in the store, the lock left out.
  std::vector<std::string> Names() const;
  base::UniqueFd OpenNumber(const std::string& number) const;
  // Entries as "page+pages:flags".
  std::string Entries(const std::string& number) const;
  // What a restore would read: the letter of pages 0 to 7, '.' for one that is not stored.
  std::string Letters(const std::string& number) const;

  // The rounds before stay; of what was to be the last directory nothing is left.
  void ExpectOnlyTheFirstRound(const std::string& session_id);

  test_support::TempDir directory_ = *test_support::TempDir::Create();
  std::string store_path_;
  std::unique_ptr<ServerProcess> server_;
  // Taken, by this test: images have no need of it.
  const pid_t pid_ = ::getpid();

 private:
  absl::StatusOr<proto::Ready> SendPrepare(FakeSource& source);
  images::PagesOf Of() const { return {images::PagesOf::Kind::kTask, static_cast<uint64_t>(pid_)}; }
};

}  // namespace predump::pageserver

#endif  // PREDUMP_TESTS_PAGESERVER_IMAGE_SESSION_FIXTURE_H_
