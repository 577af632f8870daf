// ReadState (state_images.h).
#include <algorithm>
#include <string>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "src/base/errors.h"
#include "src/images/directory_names.h"
#include "src/images/foreign_parts.h"
#include "src/images/image_constants.h"
#include "src/images/image_file.h"
#include "src/images/state_extra.h"
#include "src/images/state_images.h"
#include "src/images/state_validation.h"

namespace predump::images {
namespace {

constexpr uint32_t kTaskDead = 2;

absl::Status IsMissing(absl::string_view name) {
  return absl::DataLossError(absl::StrCat(name, " is missing: the set of images is not whole"));
}

absl::Status ReadOne(int directory_fd, const std::string& name, ImageMagic magic,
                     google::protobuf::MessageLite& entry) {
  auto image = ImageReader::Open(directory_fd, name, magic);
  if (absl::IsNotFound(image.status())) {
    return IsMissing(name);
  }
  PREDUMP_RETURN_IF_ERROR(image);
  return image->Single(entry);
}

// All entries of an image that may be missing, which means none; `add` makes room for one more.
template <typename Entries>
absl::Status ReadAll(int directory_fd, const std::string& name, ImageMagic magic, int most,
                     Entries* entries) {
  auto image = ImageReader::Open(directory_fd, name, magic);
  if (absl::IsNotFound(image.status())) return absl::OkStatus();
  PREDUMP_RETURN_IF_ERROR(image);
  while (true) {
    if (entries->size() == most) return image->Error(absl::StrCat("more than ", most, " entries"));
    PREDUMP_ASSIGN_OR_RETURN(const bool found, image->Next(*entries->Add()));
    if (!found) break;
  }
  entries->RemoveLast();
  return absl::OkStatus();
}

// Entries with bytes behind them; `length` tells how many.
template <typename Contents, typename Length>
absl::Status ReadContents(int directory_fd, const std::string& name, ImageMagic magic, int most,
                          const Length& length, size_t& bytes_left, Contents* contents) {
  auto image = ImageReader::Open(directory_fd, name, magic);
  if (absl::IsNotFound(image.status())) return absl::OkStatus();
  PREDUMP_RETURN_IF_ERROR(image);
  while (true) {
    if (contents->size() == most) return image->Error(absl::StrCat("more than ", most, " entries"));
    auto& one = *contents->Add();
    PREDUMP_ASSIGN_OR_RETURN(const bool found, image->Next(*one.mutable_entry()));
    if (!found) break;
    const size_t bytes = length(one.entry());
    if (bytes > bytes_left) return image->Error("more data than pipes and queues can hold");
    bytes_left -= bytes;
    PREDUMP_ASSIGN_OR_RETURN(*one.mutable_data(), image->Raw(bytes));
  }
  contents->RemoveLast();
  return absl::OkStatus();
}

absl::Status CheckFormat(const criu::inventory_entry& inventory) {
  const uint32_t version = inventory.img_version();
  if (version == static_cast<uint32_t>(kRoundsImageVersion)) {
    return absl::NotFoundError(
        "holds rounds only: there is memory in it, but no process to restore. The last step "
        "(predump without --rounds, or criu dump) is missing, or is in an earlier directory of "
        "the store");
  }
  if (version != static_cast<uint32_t>(kImageVersion)) {
    return absl::UnimplementedError(
        absl::StrCat("inventory.img: the images are of format ", version, ", which is ",
                     version > static_cast<uint32_t>(kImageVersion) ? "newer" : "older",
                     " than what predump reads (", kImageVersion, ", CRIU 1.3 to 4.2)"));
  }
  if (!inventory.fdinfo_per_id() || !inventory.has_root_ids()) {
    return absl::UnimplementedError(
        "inventory.img: the images are of a CRIU that is too old (no ids of shared tables)");
  }
  return absl::OkStatus();
}

absl::Status ReadInventory(int directory_fd, const std::vector<std::string>& names,
                           criu::inventory_entry& inventory) {
  auto image = ImageReader::Open(directory_fd, "inventory.img", ImageMagic::kInventory);
  if (absl::IsNotFound(image.status())) {
    const bool pages = std::any_of(names.begin(), names.end(), [](const std::string& name) {
      return absl::StartsWith(name, "pagemap-");
    });
    return absl::NotFoundError(
        pages ? "inventory.img is missing: the directory holds memory only, as a page server "
                "stores it; the other images of the last dump, which are where criu dump ran, have "
                "to be copied beside it"
              : "inventory.img is missing: this is not a directory of images");
  }
  PREDUMP_RETURN_IF_ERROR(image);
  PREDUMP_RETURN_IF_ERROR(image->Single(inventory));
  return CheckFormat(inventory);
}

absl::Status ReadTree(int directory_fd, const StateLimits& limits, criu::pstree_entry& tree) {
  google::protobuf::RepeatedPtrField<criu::pstree_entry> processes;
  PREDUMP_RETURN_IF_ERROR(
      ReadAll(directory_fd, "pstree.img", ImageMagic::kPstree, limits.max_threads, &processes));
  if (processes.empty()) {
    return absl::DataLossError(
        "pstree.img is missing or empty: the set of images has no process in it");
  }
  if (processes.size() > 1) {
    return absl::UnimplementedError(absl::StrCat(
        "the images are of ", processes.size(),
        " processes, and predump restores single ones; criu restore can bring this tree to life"));
  }
  tree = processes.Get(0);
  if (tree.threads_size() == 0 || tree.threads_size() > limits.max_threads) {
    return absl::DataLossError(
        absl::StrCat("pstree.img: process ", tree.pid(), " has ", tree.threads_size(), " threads"));
  }
  // Each has an image, which shall not be read again and again.
  absl::flat_hash_set<uint32_t> tids;
  for (const uint32_t tid : tree.threads()) {
    if (!tids.insert(tid).second) {
      return absl::DataLossError(absl::StrCat("pstree.img lists thread ", tid, " twice"));
    }
  }
  return absl::OkStatus();
}

absl::Status ReadThreads(int directory_fd, proto::ProcessState& state) {
  for (const uint32_t tid : state.pstree().threads()) {
    // A process that has ended has one thread, 0, and its core under its pid.
    const uint32_t name = tid == 0 ? state.pid() : tid;
    const std::string image = absl::StrCat("core-", name, ".img");
    proto::ThreadState& thread = *state.add_threads();
    thread.set_tid(name);
    criu::core_entry& core = *thread.mutable_core();
    PREDUMP_RETURN_IF_ERROR(ReadOne(directory_fd, image, ImageMagic::kCore, core));
    if (core.mtype() != criu::core_entry::X86_64) {
      return absl::UnimplementedError(absl::StrCat(image, ": of another processor architecture (",
                                                   criu::core_entry::march_Name(core.mtype()),
                                                   ") than this one (X86_64)"));
    }
    if (core.has_tc() && core.tc().task_state() == kTaskDead) {
      return absl::UnimplementedError(
          absl::StrCat(image, ": the process had ended when it was dumped"));
    }
    if (!core.has_thread_info() || !core.has_thread_core()) {
      return absl::DataLossError(absl::StrCat(image, ": has no registers or no attributes"));
    }
    thread.mutable_extra();
  }
  return absl::OkStatus();
}

absl::Status ReadFiles(int directory_fd, const StateLimits& limits, proto::ProcessState& state) {
  PREDUMP_RETURN_IF_ERROR(ReadAll(directory_fd, "files.img", ImageMagic::kFiles, limits.max_files,
                                  state.mutable_files()));
  if (state.files_size() == 0) {
    return absl::DataLossError("files.img is missing or empty: the set of images is not whole");
  }
  PREDUMP_RETURN_IF_ERROR(
      ReadAll(directory_fd, absl::StrCat("fdinfo-", state.ids().files_id(), ".img"),
              ImageMagic::kFdinfo, limits.max_descriptors, state.mutable_descriptors()));
  PREDUMP_RETURN_IF_ERROR(ReadOne(directory_fd, absl::StrCat("fs-", state.pid(), ".img"),
                                  ImageMagic::kFs, *state.mutable_fs()));
  size_t bytes_left = limits.max_queued_bytes;
  PREDUMP_RETURN_IF_ERROR(ReadContents(
      directory_fd, "pipes-data.img", ImageMagic::kPipesData, limits.max_files,
      [](const criu::pipe_data_entry& entry) { return entry.bytes(); }, bytes_left,
      state.mutable_pipes()));
  return ReadContents(
      directory_fd, "sk-queues.img", ImageMagic::kSkQueues, limits.max_packets,
      [](const criu::sk_packet_entry& entry) { return entry.length(); }, bytes_left,
      state.mutable_packets());
}

absl::Status ReadClocks(int directory_fd, proto::ProcessState& state) {
  auto image = ImageReader::Open(directory_fd, "timens-0.img", ImageMagic::kTimens);
  if (absl::IsNotFound(image.status())) return absl::OkStatus();
  PREDUMP_RETURN_IF_ERROR(image);
  return image->Single(*state.mutable_timens());
}

absl::StatusOr<std::optional<proto::StoredExtra>> ReadExtra(int directory_fd, uint32_t pid) {
  auto image = ImageReader::Open(directory_fd, kExtraName, ImageMagic::kPredumpExtra);
  if (absl::IsNotFound(image.status())) return std::nullopt;
  PREDUMP_RETURN_IF_ERROR(image);
  proto::StoredExtra extra;
  PREDUMP_RETURN_IF_ERROR(image->Single(extra));
  if (extra.version() != kExtraVersion) {
    return absl::UnimplementedError(
        absl::StrCat(kExtraName, ": written by a newer predump (version ", extra.version(), " of ",
                     "the file; this one reads ", kExtraVersion, "); restore with that one"));
  }
  if (extra.state().pid() != pid) {
    return absl::DataLossError(absl::StrCat(kExtraName, ": belongs to process ",
                                            extra.state().pid(), ", the images to process ", pid));
  }
  return extra;
}

// Of images that CRIU leaves out where there is nothing to say, too.
absl::Status CheckIsWhole(const std::vector<std::string>& names, const proto::StoredExtra& extra) {
  for (const std::string& name : extra.images()) {
    if (std::find(names.begin(), names.end(), name) == names.end()) return IsMissing(name);
  }
  return absl::OkStatus();
}

// Connections that were dumped with `criu dump --tcp-close` are closed ones from then on.
void CloseConnections(proto::ProcessState& state) {
  if (!state.inventory().tcp_close()) return;
  for (const auto& file : state.files()) {
    if (!file.has_isk() || file.isk().state() != kSocketEstablished || file.isk().proto() != 6) {
      continue;
    }
    proto::FileExtra& extra = *state.add_file_extras();
    extra.set_id(file.id());
    extra.set_tcp_closed(true);
  }
}

}  // namespace

absl::StatusOr<StoredState> ReadState(int directory_fd) {
  const StateLimits limits;
  StoredState stored;
  proto::ProcessState& state = stored.state;
  PREDUMP_ASSIGN_OR_RETURN(const auto names, ListNames(directory_fd));
  PREDUMP_RETURN_IF_ERROR(ReadInventory(directory_fd, names, *state.mutable_inventory()));
  PREDUMP_RETURN_IF_ERROR(ReadTree(directory_fd, limits, *state.mutable_pstree()));
  state.set_pid(state.pstree().pid());
  PREDUMP_RETURN_IF_ERROR(ReadThreads(directory_fd, state));
  PREDUMP_RETURN_IF_ERROR(ReadOne(directory_fd, absl::StrCat("ids-", state.pid(), ".img"),
                                  ImageMagic::kIds, *state.mutable_ids()));
  PREDUMP_RETURN_IF_ERROR(ReadOne(directory_fd, absl::StrCat("mm-", state.pid(), ".img"),
                                  ImageMagic::kMm, *state.mutable_mm()));
  PREDUMP_RETURN_IF_ERROR(ReadFiles(directory_fd, limits, state));
  PREDUMP_RETURN_IF_ERROR(ReadClocks(directory_fd, state));
  PREDUMP_ASSIGN_OR_RETURN(stored.extra, ReadExtra(directory_fd, state.pid()));
  if (stored.extra.has_value()) {
    PREDUMP_RETURN_IF_ERROR(CheckIsWhole(names, *stored.extra));
    internal::AddPartsBesideImages(*stored.extra, state);
    for (auto& thread : *state.mutable_threads()) {
      internal::QueueLateSignals(*stored.extra, thread);
    }
    stored.extra->clear_late_signals();
  } else {
    CloseConnections(state);
  }
  internal::FillFromImages(state);
  internal::AddForeignEntries(state, stored.blockers);
  PREDUMP_RETURN_IF_ERROR(internal::AddForeignImages(directory_fd, names, stored.blockers));
  return stored;
}

}  // namespace predump::images
