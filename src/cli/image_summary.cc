#include "src/cli/image_summary.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <set>
#include <span>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "src/base/errors.h"
#include "src/images/directory_names.h"
#include "src/images/image_set.h"
#include "src/images/image_store.h"
#include "src/images/page_chain.h"
#include "src/images/pagemap_image.h"

namespace predump::cli {
namespace {

using images::PagesOf;

constexpr uint64_t kPageBytes = 4096;
constexpr uint64_t kLongestCommandLine = 4096;

// The bytes of all pages files of a directory.
absl::StatusOr<uint64_t> StoredBytes(int directory_fd) {
  PREDUMP_ASSIGN_OR_RETURN(const auto names, images::ListNames(directory_fd));
  uint64_t bytes = 0;
  for (const std::string& name : names) {
    struct stat stat;
    if (!absl::StartsWith(name, "pages-")) continue;
    if (::fstatat(directory_fd, name.c_str(), &stat, 0) != 0) {
      return base::ErrnoError(errno, "stat ", name);
    }
    bytes += static_cast<uint64_t>(stat.st_blocks) * 512;  // what deduplication left
  }
  return bytes;
}

absl::StatusOr<ChainLink> ReadLink(int directory_fd, const PagesOf& of) {
  ChainLink link;
  link.path = images::PathOf(directory_fd);
  PREDUMP_ASSIGN_OR_RETURN(link.stored_bytes, StoredBytes(directory_fd));
  const auto pagemap = images::ReadPagemap(directory_fd, of);
  if (absl::IsNotFound(pagemap.status())) return link;
  PREDUMP_RETURN_IF_ERROR(pagemap);
  for (const images::PagemapEntry& entry : pagemap->entries) {
    uint64_t& pages =
        (entry.flags & images::kPageParent) != 0 ? link.pages_in_parent : link.pages_here;
    pages += entry.pages;
  }
  return link;
}

// `chain` has been opened, so that the links neither dangle nor go round where pages ask for them.
absl::StatusOr<std::vector<ChainLink>> ReadLinks(int directory_fd, const PagesOf& of) {
  std::vector<ChainLink> links;
  std::set<std::pair<dev_t, ino_t>> seen;
  base::UniqueFd directory(::fcntl(directory_fd, F_DUPFD_CLOEXEC, 0));
  while (directory.valid() && links.size() < images::PageChain::kMaxDepth) {
    struct stat stat;
    if (::fstat(directory.get(), &stat) != 0) return base::ErrnoError(errno, "fstat");
    if (!seen.emplace(stat.st_dev, stat.st_ino).second) break;
    PREDUMP_ASSIGN_OR_RETURN(ChainLink link, ReadLink(directory.get(), of));
    const bool asks_parent = link.pages_in_parent != 0;
    links.push_back(std::move(link));
    if (!asks_parent) break;
    PREDUMP_ASSIGN_OR_RETURN(directory, images::OpenParent(directory.get()));
  }
  return links;
}

absl::StatusOr<std::vector<MemorySummary>> ReadMemory(int directory_fd,
                                                      const std::vector<std::string>& names) {
  std::vector<MemorySummary> all;
  for (const std::string& name : names) {
    absl::string_view number = name;
    MemorySummary memory;
    if (!absl::ConsumePrefix(&number, "pagemap-") || !absl::ConsumeSuffix(&number, ".img") ||
        !absl::SimpleAtoi(number, &memory.pid)) {
      continue;
    }
    const PagesOf of{.kind = PagesOf::Kind::kTask, .id = memory.pid};
    PREDUMP_ASSIGN_OR_RETURN(const auto chain, images::PageChain::Open(directory_fd, of));
    for (const images::StoredRun& run : chain.runs()) memory.pages += run.pages;
    PREDUMP_ASSIGN_OR_RETURN(memory.chain, ReadLinks(directory_fd, of));
    all.push_back(std::move(memory));
  }
  return all;
}

// The arguments as they lie in the stored memory, with spaces between; empty where they are not.
std::string ReadCommandLine(int directory_fd, const proto::ProcessState& state) {
  const uint64_t start = state.mm().mm_arg_start();
  const uint64_t end = std::min(state.mm().mm_arg_end(), start + kLongestCommandLine);
  if (start >= end) return "";
  const auto chain =
      images::PageChain::Open(directory_fd, {.kind = PagesOf::Kind::kTask, .id = state.pid()});
  if (!chain.ok()) return "";
  const uint64_t first = start / kPageBytes * kPageBytes;
  std::string pages((end - first + kPageBytes - 1) / kPageBytes * kPageBytes, '\0');
  if (!chain->Read(first, std::as_writable_bytes(std::span(pages))).ok()) return "";
  const std::string arguments = pages.substr(start - first, end - start);
  std::vector<std::string> words = absl::StrSplit(arguments, '\0');
  while (!words.empty() && words.back().empty()) words.pop_back();
  return absl::CHexEscape(absl::StrJoin(words, " "));
}

int64_t StoredAt(int directory_fd, const std::vector<std::string>& names) {
  int64_t newest = 0;
  for (const std::string& name : names) {
    struct stat stat;
    if (name != "inventory.img" && !absl::StartsWith(name, "pagemap-")) continue;
    if (::fstatat(directory_fd, name.c_str(), &stat, 0) == 0) {
      newest = std::max<int64_t>(newest, stat.st_mtime);
    }
  }
  return newest;
}

std::string InetAddress(const google::protobuf::RepeatedField<uint32_t>& words, uint32_t port) {
  char text[INET6_ADDRSTRLEN] = "*";
  if (words.size() == 1) ::inet_ntop(AF_INET, words.data(), text, sizeof text);
  if (words.size() == 4) ::inet_ntop(AF_INET6, words.data(), text, sizeof text);
  return words.size() == 4 ? absl::StrCat("[", text, "]:", port) : absl::StrCat(text, ":", port);
}

const char* AccessName(uint32_t flags) {
  switch (flags & O_ACCMODE) {
    case O_RDONLY:
      return "read";
    case O_WRONLY:
      return "write";
    default:
      return "read and write";
  }
}

std::string DescribeInet(const criu::inet_sk_entry& socket) {
  constexpr uint32_t kTcp = 6;
  constexpr uint32_t kListening = 10;
  constexpr uint32_t kEstablished = 1;
  std::string text = absl::StrCat(socket.proto() == kTcp ? "TCP " : "UDP ",
                                  InetAddress(socket.src_addr(), socket.src_port()));
  if (socket.state() == kListening) absl::StrAppend(&text, " listening");
  if (socket.state() == kEstablished) {
    absl::StrAppend(&text, " to ", InetAddress(socket.dst_addr(), socket.dst_port()));
  }
  return text;
}

std::string DescribeUnix(const criu::unix_sk_entry& socket) {
  std::string name = socket.name();
  const bool abstract = !name.empty() && name[0] == '\0';
  if (abstract) name[0] = '@';
  name = absl::StrCat(absl::StripSuffix(name, absl::string_view("\0", 1)));
  std::string text = absl::StrCat("unix socket ", socket.ino());
  if (!name.empty()) absl::StrAppend(&text, " ", absl::CHexEscape(name));
  if (socket.peer() != 0) absl::StrAppend(&text, " to ", socket.peer());
  return text;
}

}  // namespace

std::string DescribeFile(const proto::ProcessState& state, const criu::file_entry& file) {
  const images::FileIndex files(state);
  const auto path_of = [&](uint32_t id) {
    const criu::reg_file_entry* regular = files.FindRegular(id);
    return regular == nullptr ? std::string("?") : absl::CHexEscape(regular->name());
  };
  switch (file.type()) {
    case criu::REG:
      return absl::CHexEscape(file.reg().name());
    case criu::PIPE:
      return absl::StrCat("pipe ", file.pipe().pipe_id(), " (", AccessName(file.pipe().flags()),
                          ")");
    case criu::FIFO:
      return absl::StrCat("named pipe ", path_of(file.fifo().regf_id()));
    case criu::TTY:
      return absl::StrCat("terminal ", path_of(file.tty().regf_id()));
    case criu::INETSK:
      return DescribeInet(file.isk());
    case criu::UNIXSK:
      return DescribeUnix(file.usk());
    case criu::EVENTFD:
      return absl::StrCat("eventfd (", file.efd().counter(), ")");
    case criu::EVENTPOLL:
      return absl::StrCat("epoll (", file.epfd().tfd_size(), " watched)");
    case criu::SIGNALFD:
      return "signalfd";
    case criu::TIMERFD:
      return "timerfd";
    default:
      return criu::fd_types_Name(file.type());
  }
}

absl::StatusOr<ImageSummary> ReadImageSummary(int directory_fd) {
  ImageSummary summary;
  summary.path = images::PathOf(directory_fd);
  PREDUMP_ASSIGN_OR_RETURN(const auto names, images::ListNames(directory_fd));
  summary.stored_at = StoredAt(directory_fd, names);
  PREDUMP_ASSIGN_OR_RETURN(summary.memory, ReadMemory(directory_fd, names));
  auto process = images::ReadState(directory_fd);
  if (process.ok()) {
    const std::string pagemap = absl::StrCat("pagemap-", process->state.pid(), ".img");
    if (!std::binary_search(names.begin(), names.end(), pagemap)) {
      return absl::DataLossError(
          absl::StrCat(pagemap, " is missing: the set of images is not whole"));
    }
    summary.command_line = ReadCommandLine(directory_fd, process->state);
    summary.process = *std::move(process);
    return summary;
  }
  // Rounds alone, or what a page server keeps, are worth showing, too.
  if (!absl::IsNotFound(process.status()) || summary.memory.empty()) return process.status();
  const bool has_inventory = std::binary_search(names.begin(), names.end(), "inventory.img");
  summary.kind = has_inventory ? ImageSummary::Kind::kRounds : ImageSummary::Kind::kPagesOnly;
  return summary;
}

}  // namespace predump::cli
