// PrintImage (image_summary.h).
#include <stdio.h>

#include <functional>
#include <memory>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "google/protobuf/empty.pb.h"
#include "google/protobuf/text_format.h"
#include "src/base/errors.h"
#include "src/cli/image_summary.h"
#include "src/images/image_file.h"

namespace predump::cli {
namespace {

using google::protobuf::Message;
using images::ImageMagic;

template <typename Type>
std::unique_ptr<Message> Make() {
  return std::make_unique<Type>();
}

// Bytes behind an entry.
uint64_t NoBytes(const Message&) { return 0; }
uint64_t PipeBytes(const Message& entry) {
  return static_cast<const criu::pipe_data_entry&>(entry).bytes();
}
uint64_t PacketBytes(const Message& entry) {
  return static_cast<const criu::sk_packet_entry&>(entry).length();
}

struct ImageKind {
  absl::string_view name;  // begins the name where it ends in '-', else is all of it
  ImageMagic magic;
  std::unique_ptr<Message> (*make)();
  uint64_t (*bytes_behind)(const Message&) = &NoBytes;
  // Of the first entry, where it is another message than the rest.
  std::unique_ptr<Message> (*make_first)() = nullptr;
};

// Entries that predump has no use for are shown by the numbers of their fields.
constexpr auto kByNumber = &Make<google::protobuf::Empty>;

const ImageKind kKinds[] = {
    {"inventory", ImageMagic::kInventory, &Make<criu::inventory_entry>},
    {"pstree", ImageMagic::kPstree, &Make<criu::pstree_entry>},
    {"core-", ImageMagic::kCore, &Make<criu::core_entry>},
    {"ids-", ImageMagic::kIds, &Make<criu::task_kobj_ids_entry>},
    {"mm-", ImageMagic::kMm, &Make<criu::mm_entry>},
    {"fs-", ImageMagic::kFs, &Make<criu::fs_entry>},
    {"files", ImageMagic::kFiles, &Make<criu::file_entry>},
    {"fdinfo-", ImageMagic::kFdinfo, &Make<criu::fdinfo_entry>},
    {"pagemap-", ImageMagic::kPagemap, &Make<criu::pagemap_entry>, &NoBytes,
     &Make<criu::pagemap_head>},
    {"pipes-data", ImageMagic::kPipesData, &Make<criu::pipe_data_entry>, &PipeBytes},
    {"fifo-data", ImageMagic::kFifoData, &Make<criu::pipe_data_entry>, &PipeBytes},
    {"sk-queues", ImageMagic::kSkQueues, &Make<criu::sk_packet_entry>, &PacketBytes},
    {"seccomp", ImageMagic::kSeccomp, &Make<criu::seccomp_entry>},
    {"timens-", ImageMagic::kTimens, &Make<criu::timens_entry>},
    {"tty-info", ImageMagic::kTtyInfo, &Make<criu::tty_info_entry>},
    {"predump-extra", ImageMagic::kPredumpExtra, &Make<proto::StoredExtra>},
    {"remap-fpath", ImageMagic::kRemapFilePath, kByNumber},
    {"memfd", ImageMagic::kMemfdInode, kByNumber},
    {"cgroup", ImageMagic::kCgroup, kByNumber},
    {"filelocks", ImageMagic::kFileLocks, kByNumber},
    {"cpuinfo", ImageMagic::kCpuinfo, kByNumber},
    {"stats-", ImageMagic::kStats, kByNumber},
};

const ImageKind* FindKind(absl::string_view stem) {
  for (const ImageKind& kind : kKinds) {
    if (absl::EndsWith(kind.name, "-") ? absl::StartsWith(stem, kind.name) : stem == kind.name) {
      return &kind;
    }
  }
  return nullptr;
}

absl::Status PrintEntries(images::ImageReader& image, const ImageKind& kind) {
  auto make = kind.make_first != nullptr ? kind.make_first : kind.make;
  while (true) {
    const std::unique_ptr<Message> entry = make();
    make = kind.make;
    PREDUMP_ASSIGN_OR_RETURN(const bool found, image.Next(*entry));
    if (!found) return absl::OkStatus();
    std::string text;
    google::protobuf::TextFormat::PrintToString(*entry, &text);
    printf("# %s\n%s", entry->GetDescriptor()->name().c_str(), text.c_str());
    const uint64_t bytes = kind.bytes_behind(*entry);
    if (bytes != 0) {
      PREDUMP_RETURN_IF_ERROR(image.SkipRaw(bytes));
      printf("# and %llu bytes of data\n", static_cast<unsigned long long>(bytes));
    }
    printf("\n");
  }
}

}  // namespace

absl::Status PrintImage(int directory_fd, const std::string& name) {
  if (absl::StrContains(name, '/')) {
    return absl::InvalidArgumentError(
        absl::StrCat("--image takes the name of an image in that directory, not '", name, "'"));
  }
  const std::string stem(absl::StripSuffix(name, ".img"));
  const ImageKind* kind = FindKind(stem);
  if (kind == nullptr) {
    return absl::UnimplementedError(
        absl::StrCat(name, ": no image whose entries predump can print; crit show may"));
  }
  const bool plain = stem == "predump-extra" || absl::StartsWith(stem, "stats-");
  auto image = images::ImageReader::Open(directory_fd, plain ? stem : absl::StrCat(stem, ".img"),
                                         kind->magic);
  if (absl::IsNotFound(image.status())) {
    return absl::NotFoundError(absl::StrCat(name, ": there is no such image in the directory"));
  }
  PREDUMP_RETURN_IF_ERROR(image);
  return PrintEntries(*image, *kind);
}

}  // namespace predump::cli
