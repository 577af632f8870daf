// `predump show`.
#include <stdio.h>
#include <sys/mman.h>

#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/time.h"
#include "src/base/errors.h"
#include "src/cli/commands.h"
#include "src/cli/image_summary.h"
#include "src/cli/values.h"
#include "src/images/directory_names.h"
#include "src/images/image_constants.h"
#include "src/images/image_set.h"
#include "src/images/image_store.h"
#include "src/predump/report.h"

namespace predump::cli {
namespace {

using nlohmann::ordered_json;

constexpr double kPageBytes = 4096;

struct ShowText {
  std::string directory;
  std::string image;
  bool json = false;
};

const char* KindText(ImageSummary::Kind kind) {
  switch (kind) {
    case ImageSummary::Kind::kProcess:
      return "a whole process";
    case ImageSummary::Kind::kRounds:
      return "rounds only: memory, but no process to restore";
    case ImageSummary::Kind::kPagesOnly:
      return "pages only, as a page server keeps them: the other images of the last dump belong "
             "here";
  }
  return "";
}

const char* KindWord(ImageSummary::Kind kind) {
  switch (kind) {
    case ImageSummary::Kind::kProcess:
      return "process";
    case ImageSummary::Kind::kRounds:
      return "rounds";
    case ImageSummary::Kind::kPagesOnly:
      return "pages";
  }
  return "";
}

std::string StoredAtText(const ImageSummary& summary) {
  return absl::FormatTime("%Y-%m-%dT%H:%M:%SZ", absl::FromUnixSeconds(summary.stored_at),
                          absl::UTCTimeZone());
}

const char* MappingKind(const criu::vma_entry& vma) {
  const uint32_t status = vma.status();
  if ((status & (images::kVmaVdso | images::kVmaVvar | images::kVmaVsyscall)) != 0) return "kernel";
  if ((status & images::kVmaFilePrivate) != 0) return "file, private";
  if ((status & images::kVmaFileShared) != 0) return "file, shared";
  if ((status & images::kVmaAnonymousPrivate) != 0) return "anonymous";
  return "other";
}

struct MappingCount {
  int count = 0;
  uint64_t bytes = 0;
};

std::map<std::string, MappingCount> CountMappings(const criu::mm_entry& mm) {
  std::map<std::string, MappingCount> counts;
  for (const auto& vma : mm.vmas()) {
    MappingCount& count = counts[MappingKind(vma)];
    ++count.count;
    count.bytes += vma.end() - vma.start();
  }
  return counts;
}

std::string ThreadName(const proto::ThreadState& thread) {
  const criu::core_entry& core = thread.core();
  return core.thread_core().has_comm() ? core.thread_core().comm() : core.tc().comm();
}

ordered_json ProcessJson(const ImageSummary& summary) {
  const images::StoredState& stored = *summary.process;
  const proto::ProcessState& state = stored.state;
  ordered_json json = {{"pid", state.pid()},
                       {"pgid", state.pstree().pgid()},
                       {"sid", state.pstree().sid()},
                       {"command", state.threads(0).core().tc().comm()},
                       {"command-line", summary.command_line},
                       {"executable", state.extra().exe_path()},
                       {"working-directory", state.extra().working_directory()}};
  for (const auto& thread : state.threads()) {
    json["threads"].push_back({{"tid", thread.tid()}, {"name", ThreadName(thread)}});
  }
  const images::FileIndex files(state);
  json["descriptors"] = ordered_json::array();
  for (const auto& descriptor : state.descriptors()) {
    const criu::file_entry* file = files.Find(descriptor.id());
    json["descriptors"].push_back({{"fd", descriptor.fd()},
                                   {"kind", criu::fd_types_Name(descriptor.type())},
                                   {"is", file == nullptr ? "" : DescribeFile(state, *file)}});
  }
  for (const auto& [kind, count] : CountMappings(state.mm())) {
    json["mappings"][kind] = {{"count", count.count}, {"bytes", count.bytes}};
  }
  json["blockers"] = ordered_json::array();
  for (const auto& blocker : stored.blockers) {
    json["blockers"].push_back({{"what", blocker.what()}, {"reason", blocker.reason()}});
  }
  return json;
}

ordered_json SummaryJson(const ImageSummary& summary) {
  ordered_json json = {{"path", summary.path},
                       {"kind", KindWord(summary.kind)},
                       {"stored-at", StoredAtText(summary)}};
  if (summary.process.has_value()) {
    const auto& extra = summary.process->extra;
    json["captured-by"] = extra.has_value() ? "predump" : "criu";
    if (extra.has_value()) {
      json["predump-version"] = extra->program_version();
      json["kernel"] = extra->host().kernel_release();
      json["boot-id"] = extra->host().boot_id();
    }
    json["process"] = ProcessJson(summary);
  }
  json["memory"] = ordered_json::array();
  for (const MemorySummary& memory : summary.memory) {
    ordered_json chain = ordered_json::array();
    for (const ChainLink& link : memory.chain) {
      chain.push_back({{"path", link.path},
                       {"pages", link.pages_here},
                       {"pages-in-parent", link.pages_in_parent},
                       {"stored-bytes", link.stored_bytes}});
    }
    json["memory"].push_back({{"pid", memory.pid}, {"pages", memory.pages}, {"chain", chain}});
  }
  return json;
}

void PrintDescriptors(const proto::ProcessState& state) {
  const images::FileIndex files(state);
  std::map<std::string, int> kinds;
  for (const auto& descriptor : state.descriptors()) {
    ++kinds[criu::fd_types_Name(descriptor.type())];
  }
  std::string counts;
  for (const auto& [kind, count] : kinds) {
    absl::StrAppend(&counts, counts.empty() ? "" : ", ", count, " ", kind);
  }
  absl::PrintF("descriptors  %d%s%s\n", state.descriptors_size(), counts.empty() ? "" : ": ",
               counts);
  for (const auto& descriptor : state.descriptors()) {
    const criu::file_entry* file = files.Find(descriptor.id());
    absl::PrintF("  %5u  %s\n", descriptor.fd(),
                 file == nullptr ? "?" : DescribeFile(state, *file));
  }
}

void PrintProcess(const ImageSummary& summary) {
  const images::StoredState& stored = *summary.process;
  const proto::ProcessState& state = stored.state;
  const std::string& comm = state.threads(0).core().tc().comm();
  absl::PrintF("process      %u, group %u, session %u\n", state.pid(), state.pstree().pgid(),
               state.pstree().sid());
  absl::PrintF("command      %s\n",
               summary.command_line.empty() ? Printable(comm) : summary.command_line);
  absl::PrintF("executable   %s, in %s\n", Printable(state.extra().exe_path()),
               Printable(state.extra().working_directory()));
  absl::PrintF("threads      %d\n", state.threads_size());
  for (const auto& thread : state.threads()) {
    if (state.threads_size() == 1) break;
    absl::PrintF("  %5u  %s\n", thread.tid(), Printable(ThreadName(thread)));
  }
  PrintDescriptors(state);
  absl::PrintF("mappings     %d\n", state.mm().vmas_size());
  for (const auto& [kind, count] : CountMappings(state.mm())) {
    absl::PrintF("  %5d  %s, %s\n", count.count, kind,
                 FormatBytes(static_cast<double>(count.bytes)));
  }
  for (const auto& blocker : stored.blockers) {
    absl::PrintF("cannot be restored by predump: %s: %s\n", Printable(blocker.what()),
                 Printable(blocker.reason()));
  }
}

void PrintMemory(const MemorySummary& memory) {
  absl::PrintF("memory       %s in %u pages, of process %u\n",
               FormatBytes(static_cast<double>(memory.pages) * kPageBytes), memory.pages,
               memory.pid);
  for (const ChainLink& link : memory.chain) {
    absl::PrintF("  %s: %u pages here, %u in its parent, %s on disk\n", Printable(link.path),
                 link.pages_here, link.pages_in_parent,
                 FormatBytes(static_cast<double>(link.stored_bytes)));
  }
}

void PrintSummary(const ImageSummary& summary) {
  absl::PrintF("%s\n", summary.path);
  absl::PrintF("holds        %s\n", KindText(summary.kind));
  absl::PrintF("stored       %s\n", StoredAtText(summary));
  if (summary.process.has_value()) {
    const auto& extra = summary.process->extra;
    if (!extra.has_value()) {
      absl::PrintF("captured     by CRIU\n");
    } else {
      absl::PrintF("captured     by predump%s%s, on Linux %s (boot %s)\n",
                   extra->has_program_version() ? " " : "", Printable(extra->program_version()),
                   Printable(extra->host().kernel_release()), Printable(extra->host().boot_id()));
    }
    PrintProcess(summary);
  }
  for (const MemorySummary& memory : summary.memory) PrintMemory(memory);
}

absl::Status Show(const ShowText& text) {
  PREDUMP_ASSIGN_OR_RETURN(const base::UniqueFd directory,
                           images::OpenImageDirectory(text.directory));
  if (!text.image.empty()) {
    return base::Annotate(PrintImage(directory.get(), text.image), text.directory);
  }
  const auto read = ReadImageSummary(directory.get());
  if (!read.ok()) return base::Annotate(read.status(), images::PathOf(directory.get()));
  const ImageSummary& summary = *read;
  if (text.json) {
    absl::PrintF("%s\n",
                 SummaryJson(summary).dump(2, ' ', false, ordered_json::error_handler_t::replace));
  } else {
    PrintSummary(summary);
  }
  return absl::OkStatus();
}

int Run(const ShowText& text) {
  const absl::Status status = Show(text);
  if (!status.ok()) {
    absl::FPrintF(stderr, "predump: %s\n", std::string(status.message()));
    return static_cast<int>(MigrationStatus::kFailed);
  }
  return static_cast<int>(MigrationStatus::kCompleted);
}

}  // namespace

void AddShow(CLI::App& app, const CommonOptions&, Command& command) {
  auto text = std::make_shared<ShowText>();
  CLI::App* show = app.add_subcommand(
      "show", "Prints what an image directory holds: the process, its memory, its descriptors");
  show->add_option(
          "--images-dir,-D", text->directory,
          "The directory of the images, predump's or CRIU's, or a store of such (its latest)")
      ->type_name("DIR")
      ->required();
  auto* json = show->add_flag("--json", text->json, "Print one JSON object");
  show->add_option("--image", text->image,
                   "Print the entries of this image, such as mm-123.img, as protobuf text")
      ->type_name("NAME")
      ->excludes(json);
  show->callback([text, &command] { command = [text] { return Run(*text); }; });
}

}  // namespace predump::cli
