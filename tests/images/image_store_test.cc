#include "src/images/image_store.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstddef>
#include <cstring>
#include <filesystem>
#include <iterator>
#include <set>
#include <thread>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "src/base/clock.h"
#include "src/images/page_chain.h"
#include "tests/images/stored_pages.h"
#include "tests/support/child_process.h"
#include "tests/support/temp_dir.h"

namespace predump::images {
namespace {

using ::testing::HasSubstr;
using testing::kTask;
using ::testing::UnorderedElementsAre;

class ImageStoreTest : public ::testing::Test {
 protected:
  std::string Path(const std::string& name) const { return absl::StrCat(path_, "/", name); }

  std::string LinkAt(const std::string& name) const {
    std::error_code error;
    const std::string target = std::filesystem::read_symlink(Path(name), error).string();
    return error ? absl::StrCat("(", error.message(), ")") : target;
  }

  bool IsThere(const std::string& name) const {
    struct stat stat;
    return ::lstat(Path(name).c_str(), &stat) == 0;
  }

  std::multiset<std::string> Names() const {
    std::multiset<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(path_)) {
      names.insert(entry.path().filename().string());
    }
    return names;
  }

  ImageStore OpenStore() const {
    absl::StatusOr<ImageStore> store = ImageStore::Open(path_);
    EXPECT_TRUE(store.ok()) << store.status();
    return *std::move(store);
  }

  // Publishes a directory with one page of pid 7, present or in the parent.
  std::string PublishOne(const ImageStore& store, uint32_t flags = kPagePresent) {
    absl::StatusOr<PartialDirectory> partial = store.Begin(true);
    EXPECT_TRUE(partial.ok()) << partial.status();
    Fill(partial->fd(), flags);
    const absl::Status status = partial->Publish();
    EXPECT_TRUE(status.ok()) << status;
    return partial->number();
  }

  static void Fill(int directory_fd, uint32_t flags) {
    testing::WriteEntries(directory_fd, {{0x1000, 1, flags}});
    if (flags == kPagePresent) testing::WritePages(directory_fd, 1, 0);
  }

  test_support::TempDir directory_ = *test_support::TempDir::Create();
  std::string path_ = directory_.File("store");
};

TEST_F(ImageStoreTest, GivesNamesOnlyToWhatIsWhole) {
  const ImageStore store = OpenStore();
  struct stat stat;
  ASSERT_EQ(::stat(path_.c_str(), &stat), 0);
  EXPECT_EQ(stat.st_mode & 0777, 0700u) << "it holds memory of processes";
  EXPECT_TRUE(absl::IsNotFound(store.OpenLatest().status()));

  absl::StatusOr<PartialDirectory> partial = store.Begin(true);
  ASSERT_TRUE(partial.ok()) << partial.status();
  EXPECT_FALSE(partial->has_parent());
  EXPECT_EQ(partial->partial_path(), Path(".1.partial"));
  EXPECT_EQ(partial->final_path(), Path("1"));
  Fill(partial->fd(), kPagePresent);
  ASSERT_TRUE(partial->Sync().ok());
  EXPECT_THAT(Names(), UnorderedElementsAre(".lock", ".1.partial"));
  ASSERT_TRUE(partial->Publish().ok());
  EXPECT_THAT(Names(), UnorderedElementsAre(".lock", "1", "latest"));
  EXPECT_EQ(LinkAt("latest"), "1");
  EXPECT_TRUE(store.OpenLatest().ok());
}

TEST_F(ImageStoreTest, LinksEachToTheOneBefore) {
  const ImageStore store = OpenStore();
  EXPECT_EQ(PublishOne(store), "1");
  EXPECT_EQ(PublishOne(store, kPageParent), "2");
  EXPECT_EQ(PublishOne(OpenStore(), kPageParent), "3");
  EXPECT_EQ(LinkAt("3/parent"), "../2");
  EXPECT_EQ(LinkAt("2/parent"), "../1");
  EXPECT_EQ(LinkAt("latest"), "3");
  const auto latest = OpenImageDirectory(path_);
  ASSERT_TRUE(latest.ok()) << latest.status();
  const absl::StatusOr<PageChain> chain = PageChain::Open(latest->get(), kTask);
  ASSERT_TRUE(chain.ok()) << chain.status();
  EXPECT_EQ(chain->runs().size(), 1u);
}

TEST_F(ImageStoreTest, BuildsOnNothingWhereThatIsWanted) {
  const ImageStore store = OpenStore();
  PublishOne(store);
  absl::StatusOr<PartialDirectory> partial = store.Begin(false);
  ASSERT_TRUE(partial.ok()) << partial.status();
  EXPECT_FALSE(partial->has_parent());
  EXPECT_FALSE(IsThere(".2.partial/parent"));
}

TEST_F(ImageStoreTest, BuildsOnItsOwnWhateverOthersHavePublished) {
  const ImageStore store = OpenStore();
  PublishOne(store);
  PublishOne(store);
  absl::StatusOr<PartialDirectory> partial = store.BeginAfter("1");
  ASSERT_TRUE(partial.ok()) << partial.status();
  EXPECT_TRUE(partial->has_parent());
  EXPECT_EQ(LinkAt(".3.partial/parent"), "../1");
  partial = absl::UnavailableError("");
  EXPECT_TRUE(absl::IsNotFound(store.BeginAfter("9").status()));
  EXPECT_FALSE(IsThere(".3.partial"));
}

TEST_F(ImageStoreTest, RemovesWhatWasNotPublished) {
  const ImageStore store = OpenStore();
  {
    absl::StatusOr<PartialDirectory> partial = store.Begin(true);
    ASSERT_TRUE(partial.ok());
    Fill(partial->fd(), kPagePresent);
    PartialDirectory moved = *std::move(partial);
    ASSERT_EQ(::mkdirat(moved.fd(), "inner", 0700), 0);
    EXPECT_TRUE(IsThere(".1.partial/pages-1.img"));
  }
  EXPECT_THAT(Names(), UnorderedElementsAre(".lock"));
}

TEST_F(ImageStoreTest, LetsOneWriterInAtATime) {
  const ImageStore store = OpenStore();
  const ImageStore other = OpenStore();
  absl::StatusOr<PartialDirectory> partial = store.Begin(true);
  ASSERT_TRUE(partial.ok());
  const absl::Status refused = other.Begin(true).status();
  EXPECT_TRUE(absl::IsUnavailable(refused)) << refused;
  EXPECT_THAT(refused.message(), HasSubstr(path_));
  EXPECT_TRUE(IsThere(".1.partial")) << "the second writer removed what the first is writing";
  Fill(partial->fd(), kPagePresent);
  ASSERT_TRUE(partial->Publish().ok());
  // A client that was told of it sends the next round at once.
  const absl::StatusOr<PartialDirectory> next = other.Begin(true);
  EXPECT_TRUE(next.ok()) << next.status();
}

// What a writer leaves that was killed while it wrote.
TEST_F(ImageStoreTest, AKilledWriterLeavesNothingThatCountsAsWhole) {
  const ImageStore store = OpenStore();
  PublishOne(store);
  const pid_t pid = ::fork();
  if (pid == 0) {
    absl::StatusOr<PartialDirectory> partial = store.Begin(true);
    if (partial.ok()) Fill(partial->fd(), kPageParent);
    ::kill(::getpid(), SIGKILL);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(pid, &status, 0), pid);
  ASSERT_TRUE(WIFSIGNALED(status));
  EXPECT_THAT(Names(), UnorderedElementsAre(".lock", "1", "latest", ".2.partial"));
  EXPECT_EQ(LinkAt("latest"), "1");
  // A link of its own must not lead the removal out of the store.
  ASSERT_EQ(::symlink(Path("1").c_str(), Path(".2.partial/elsewhere").c_str()), 0);
  EXPECT_EQ(PublishOne(store, kPageParent), "2");
  EXPECT_THAT(Names(), UnorderedElementsAre(".lock", "1", "2", "latest"));
  EXPECT_TRUE(IsThere("1/pages-1.img"));
  EXPECT_FALSE(IsThere("2/elsewhere"));
}

// Between the two renames: the second directory is whole, `latest` knows nothing of it.
TEST_F(ImageStoreTest, GoesOnWhereAWriterWasKilledBeforeLatest) {
  const ImageStore store = OpenStore();
  PublishOne(store);
  PublishOne(store);
  ASSERT_EQ(::unlink(Path("latest").c_str()), 0);
  ASSERT_EQ(::symlink("1", Path("latest").c_str()), 0);
  ASSERT_EQ(::symlink("2", Path(".latest.new").c_str()), 0);
  EXPECT_EQ(PublishOne(store), "3");
  EXPECT_EQ(LinkAt("3/parent"), "../1");
  EXPECT_EQ(LinkAt("latest"), "3");
  EXPECT_FALSE(IsThere(".latest.new"));
}

TEST_F(ImageStoreTest, NeverGivesANumberTwice) {
  const ImageStore store = OpenStore();
  for (const char* name : {"3", "07", "notes", "99999999999999999999999"}) {
    testing::MakeDirectory(Path(name));
  }
  EXPECT_EQ(store.Begin(false)->number(), "4");
  ASSERT_EQ(::symlink("8", Path("latest").c_str()), 0);
  EXPECT_EQ(store.Begin(false)->number(), "9");
}

TEST_F(ImageStoreTest, SaysWhatIsWrongWithLatest) {
  const ImageStore store = OpenStore();
  ASSERT_EQ(::symlink("8", Path("latest").c_str()), 0);
  absl::Status status = store.Begin(true).status();
  EXPECT_TRUE(absl::IsDataLoss(status)) << status;
  EXPECT_THAT(status.message(), AllOf(HasSubstr("latest"), HasSubstr("not there")));
  EXPECT_TRUE(absl::IsDataLoss(OpenImageDirectory(path_).status()));
  EXPECT_FALSE(IsThere(".9.partial"));
  ASSERT_EQ(::unlink(Path("latest").c_str()), 0);
  ASSERT_EQ(::symlink("/etc", Path("latest").c_str()), 0);
  EXPECT_TRUE(absl::IsDataLoss(store.Begin(true).status()));
  EXPECT_TRUE(absl::IsDataLoss(OpenImageDirectory(path_).status()));
}

TEST_F(ImageStoreTest, DoesNotTakeANameThatSomebodyElseTook) {
  const ImageStore store = OpenStore();
  PublishOne(store);
  {
    absl::StatusOr<PartialDirectory> partial = store.Begin(true);
    ASSERT_TRUE(partial.ok());
    Fill(partial->fd(), kPageParent);
    testing::MakeDirectory(Path("2"));
    const absl::Status status = partial->Publish();
    EXPECT_TRUE(absl::IsAlreadyExists(status)) << status;
  }
  EXPECT_EQ(LinkAt("latest"), "1");
  EXPECT_FALSE(IsThere(".2.partial"));
  EXPECT_FALSE(IsThere("2/pagemap-7.img"));
}

// As on most network file systems, where rename takes no flags.
TEST_F(ImageStoreTest, PublishesWhereRenameKnowsNoFlags) {
  const ImageStore store = OpenStore();
  PublishOne(store);
  const auto publish = [&] {
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_renameat2, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EINVAL),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    const struct sock_fprog program = {std::size(filter), filter};
    if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) return 1;
    if (::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0) return 2;
    absl::StatusOr<PartialDirectory> taken = store.Begin(true);
    if (!taken.ok()) return 3;
    // Not over what somebody else made, which a plain rename would replace while it is empty.
    if (::mkdir(taken->final_path().c_str(), 0700) != 0) return 4;
    if (!absl::IsAlreadyExists(taken->Publish())) return 5;
    if (::rmdir(taken->final_path().c_str()) != 0) return 6;
    return taken->Publish().ok() ? 0 : 7;
  };
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) ::_exit(publish());
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0) << WEXITSTATUS(status);
  EXPECT_EQ(LinkAt("latest"), "2");
}

// A directory is whole once it has its name; that `latest` cannot be moved is no reason to keep
// others from it.
TEST_F(ImageStoreTest, LetsOthersFinishWhatItCannot) {
  const ImageStore store = OpenStore();
  absl::StatusOr<PartialDirectory> partial = store.Begin(true);
  ASSERT_TRUE(partial.ok()) << partial.status();
  Fill(partial->fd(), kPagePresent);
  ASSERT_TRUE(std::filesystem::create_directory(Path("latest")));
  EXPECT_THAT(std::string(partial->Publish().message()), HasSubstr("is whole, but"));
  EXPECT_TRUE(IsThere("1"));
  ASSERT_TRUE(std::filesystem::remove(Path("latest")));
  const absl::Status finished = store.FinishPublishing("1");
  EXPECT_TRUE(finished.ok()) << finished;
  EXPECT_EQ(LinkAt("latest"), "1");
}

// Somebody else may be able to write there, too.
TEST_F(ImageStoreTest, TidyingUpFollowsNoLinkThatIsSwappedIn) {
  const ImageStore store = OpenStore();
  const std::string victim = directory_.File("victim");
  ASSERT_TRUE(std::filesystem::create_directories(victim + "/precious"));
  std::atomic<bool> done = false;
  std::thread swapping([&] {
    while (!done) {
      ::renameat2(AT_FDCWD, Path(".7.partial").c_str(), AT_FDCWD, Path("link").c_str(),
                  RENAME_EXCHANGE);
    }
  });
  const base::Stopwatch watch;
  while (watch.Elapsed() < absl::Seconds(2) && std::filesystem::exists(victim + "/precious")) {
    for (const char* name : {".7.partial", "link"}) {
      std::error_code ignored;
      std::filesystem::remove_all(Path(name), ignored);
    }
    (void)::mkdir(Path(".7.partial").c_str(), 0700);
    (void)::symlink(victim.c_str(), Path("link").c_str());
    (void)store.Begin(false);
  }
  done = true;
  swapping.join();
  EXPECT_TRUE(std::filesystem::exists(victim + "/precious"));
}

TEST_F(ImageStoreTest, CountsNoFurtherThanNumbersGo) {
  const ImageStore store = OpenStore();
  ASSERT_TRUE(std::filesystem::create_directory(Path("18446744073709551615")));
  const absl::Status begun = store.Begin(false).status();
  EXPECT_TRUE(absl::IsResourceExhausted(begun)) << begun;
  EXPECT_THAT(Names(), UnorderedElementsAre(".lock", "18446744073709551615"));
}

TEST_F(ImageStoreTest, RefusesWhatIsNoStore) {
  testing::MakeImages(path_, {{0x1000, 1, 4}}, 1);
  absl::Status status = ImageStore::Open(path_).status();
  EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
  EXPECT_THAT(status.message(), HasSubstr("image directory itself"));
  EXPECT_FALSE(IsThere(".lock"));

  status = ImageStore::Open(directory_.path()).status();
  EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
  EXPECT_THAT(status.message(), HasSubstr("store"));

  EXPECT_TRUE(absl::IsNotFound(ImageStore::Open(directory_.File("a/b")).status()));
  EXPECT_FALSE(ImageStore::Open(absl::StrCat(path_, "/pages-1.img")).ok());

  const std::string disk = directory_.File("disk");
  testing::MakeDirectory(disk);
  testing::MakeDirectory(disk + "/lost+found");
  EXPECT_TRUE(ImageStore::Open(disk).ok());
}

TEST_F(ImageStoreTest, OpensImageDirectoriesAndStores) {
  EXPECT_TRUE(absl::IsNotFound(OpenImageDirectory(path_).status()));
  const ImageStore store = OpenStore();
  absl::Status status = OpenImageDirectory(path_).status();
  EXPECT_TRUE(absl::IsNotFound(status));
  EXPECT_THAT(status.message(), HasSubstr("no whole image directory yet"));
  PublishOne(store);
  EXPECT_TRUE(OpenImageDirectory(path_).ok());
  EXPECT_TRUE(OpenImageDirectory(Path("1")).ok());
  EXPECT_TRUE(OpenImageDirectory(Path("latest")).ok());
  status = OpenImageDirectory(directory_.path()).status();
  EXPECT_TRUE(absl::IsNotFound(status));
  EXPECT_THAT(status.message(), HasSubstr("inventory.img"));
}

TEST_F(ImageStoreTest, OpensParents) {
  const auto child = testing::MakeDirectory(directory_.File("child"));
  EXPECT_TRUE(absl::IsNotFound(OpenParent(child.get()).status()));
  testing::LinkParent(child.get(), "../nowhere");
  EXPECT_TRUE(absl::IsDataLoss(OpenParent(child.get()).status()));
  testing::MakeDirectory(directory_.File("nowhere"));
  EXPECT_TRUE(OpenParent(child.get()).ok());
  // CRIU takes a real directory as well.
  ASSERT_EQ(::unlinkat(child.get(), "parent", 0), 0);
  ASSERT_EQ(::mkdirat(child.get(), "parent", 0700), 0);
  EXPECT_TRUE(OpenParent(child.get()).ok());
  ASSERT_EQ(::unlinkat(child.get(), "parent", AT_REMOVEDIR), 0);
  testing::LinkParent(child.get(), "parent");
  EXPECT_TRUE(absl::IsDataLoss(OpenParent(child.get()).status()));
}

// A disk of its own, of a few pages.
class SmallDisk {
 public:
  SmallDisk(const std::string& path, const std::string& options) : path_(path) {
    testing::MakeDirectory(path);
    error_ = ::mount("predump-test", path.c_str(), "tmpfs", MS_NOSUID | MS_NODEV, options.c_str())
                 ? errno
                 : 0;
  }
  ~SmallDisk() {
    if (error_ == 0) ::umount2(path_.c_str(), MNT_DETACH);
  }
  SmallDisk(const SmallDisk&) = delete;
  SmallDisk& operator=(const SmallDisk&) = delete;
  int error() const { return error_; }

 private:
  std::string path_;
  int error_;
};

TEST_F(ImageStoreTest, AFullDiskIsSaidAndLeavesTheLastOne) {
  const SmallDisk disk(path_, "size=64k,nr_inodes=12");
  if (disk.error() != 0) GTEST_SKIP() << "cannot mount a tmpfs: " << ::strerror(disk.error());
  const ImageStore store = OpenStore();
  PublishOne(store);
  {
    absl::StatusOr<PartialDirectory> partial = store.Begin(true);
    ASSERT_TRUE(partial.ok()) << partial.status();
    const base::UniqueFd pages(
        ::openat(partial->fd(), "pages-1.img", O_WRONLY | O_CREAT | O_CLOEXEC, 0644));
    const std::string page(4096, 'x');
    while (::write(pages.get(), page.data(), page.size()) == 4096) {
    }
    ASSERT_EQ(errno, ENOSPC);
    Pagemap pagemap;
    for (uint64_t i = 1; i < 1000; ++i) pagemap.entries.push_back({i * 0x2000, 1, kPageParent});
    const absl::Status status = WritePagemap(partial->fd(), kTask, pagemap);
    EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
    EXPECT_THAT(status.message(), AllOf(HasSubstr("pagemap-7.img"), HasSubstr("No space left")));
  }
  EXPECT_THAT(Names(), UnorderedElementsAre(".lock", "1", "latest"));
  EXPECT_EQ(PublishOne(store, kPageParent), "2") << "there is room again";

  int made = 0;
  while (::mkdir(Path(absl::StrCat("filler", made)).c_str(), 0700) == 0) ++made;
  ASSERT_EQ(errno, ENOSPC);
  const absl::Status status = store.Begin(true).status();
  EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
  EXPECT_THAT(status.message(), AllOf(HasSubstr(path_), HasSubstr("No space left")));
  EXPECT_EQ(LinkAt("latest"), "2");
}

TEST_F(ImageStoreTest, AReadOnlyDiskIsSaid) {
  const SmallDisk disk(path_, "size=64k");
  if (disk.error() != 0) GTEST_SKIP() << "cannot mount a tmpfs: " << ::strerror(disk.error());
  const ImageStore store = OpenStore();
  PublishOne(store);
  ASSERT_EQ(::mount(nullptr, path_.c_str(), nullptr, MS_REMOUNT | MS_RDONLY, nullptr), 0);
  const absl::Status status = store.Begin(true).status();
  EXPECT_FALSE(status.ok());
  EXPECT_THAT(status.message(), AllOf(HasSubstr(path_), HasSubstr("Read-only")));
  EXPECT_TRUE(store.OpenLatest().ok());
}

}  // namespace
}  // namespace predump::images
