// source_throughput: how fast a page source gets memory of a running process into a TCP connection,
// and what that costs. Prints one JSON object per pass: seconds, bytes, CPU seconds of the source's
// side (this process, and the helper where there is one).
#include <fcntl.h>
#include <stdio.h>
#include <sys/resource.h>

#include <CLI/CLI.hpp>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "src/base/clock.h"
#include "src/base/errors.h"
#include "src/kernel/process.h"
#include "src/kernel/setup_injection.h"
#include "src/pagemap/helper_source.h"
#include "src/pagemap/readv_source.h"
#include "src/transport/address.h"
#include "src/transport/socket.h"

namespace predump {
namespace {

struct Settings {
  pid_t pid = 0;
  std::string start;  // hexadecimal
  uint64_t bytes = 0;
  std::string source = "helper";
  uint64_t buffer_bytes = 1 << 20;
  std::string to;
  std::string congestion;
  int passes = 1;
};

double Seconds(const timeval& time) {
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) * 1e-6;
}

// Of this process and of the helper, which is nobody's child that could be asked for.
double CpuSeconds(pid_t helper) {
  rusage usage;
  ::getrusage(RUSAGE_SELF, &usage);
  double seconds = Seconds(usage.ru_utime) + Seconds(usage.ru_stime);
  if (helper == 0) return seconds;
  if (FILE* file = fopen(absl::StrCat("/proc/", helper, "/schedstat").c_str(), "re")) {
    unsigned long long on_cpu_ns = 0;
    if (fscanf(file, "%llu", &on_cpu_ns) == 1) seconds += static_cast<double>(on_cpu_ns) * 1e-9;
    fclose(file);
  }
  return seconds;
}

absl::Status SendOnce(pagemap::PageSource& source, base::AddressRange memory, int out) {
  uint64_t at = memory.start().value();
  const uint64_t end = memory.end().value();
  while (at < end) {
    const pagemap::Extent wanted = pagemap::Extent::FromOrdered(at, end);
    PREDUMP_ASSIGN_OR_RETURN(const pagemap::FetchResult result, source.Fetch({&wanted, 1}));
    if (result.consumed == base::PageCount(0)) return absl::InternalError("no progress");
    PREDUMP_RETURN_IF_ERROR(source.PushTo(out));
    at += base::ToBytes(result.consumed).value();
  }
  return absl::OkStatus();
}

absl::Status Measure(const Settings& settings) {
  PREDUMP_ASSIGN_OR_RETURN(const transport::Address address,
                           transport::Address::Parse(settings.to));
  transport::SocketOptions options;
  options.congestion = settings.congestion;
  PREDUMP_ASSIGN_OR_RETURN(
      const base::UniqueFd connection,
      transport::Connect(address, options, transport::Deadline::After(absl::Seconds(10))));
  PREDUMP_ASSIGN_OR_RETURN(const kernel::ProcessHandle process,
                           kernel::ProcessHandle::Open(settings.pid));
  std::unique_ptr<pagemap::PageSource> source;
  pid_t helper = 0;
  if (settings.source == "helper") {
    kernel::SetupRequest request;
    request.userfaultfd = false;
    PREDUMP_ASSIGN_OR_RETURN(kernel::SetupResult setup, kernel::InjectSetup(process, request));
    PREDUMP_RETURN_IF_ERROR(setup.helper_status);
    helper = setup.helper->tid();
    PREDUMP_ASSIGN_OR_RETURN(source,
                             pagemap::HelperSource::Create(process, *std::move(setup.helper)));
  } else {
    PREDUMP_ASSIGN_OR_RETURN(
        source, pagemap::ReadvSource::Create(process, {base::ByteCount(settings.buffer_bytes)}));
  }
  const uint64_t start = std::stoull(settings.start, nullptr, 16);
  const auto memory = base::AddressRange::FromOrdered(start, start + settings.bytes);
  for (int pass = 0; pass < settings.passes; ++pass) {
    const double cpu = CpuSeconds(helper);
    const base::Stopwatch watch;
    PREDUMP_RETURN_IF_ERROR(SendOnce(*source, memory, connection.get()));
    absl::PrintF("{\"seconds\": %.6f, \"bytes\": %d, \"cpu-seconds\": %.6f}\n",
                 absl::ToDoubleSeconds(watch.Elapsed()), settings.bytes, CpuSeconds(helper) - cpu);
    fflush(stdout);
  }
  return source->Finish();
}

int Main(int argc, char** argv) {
  Settings settings;
  CLI::App app("Measures a page source against a receiver.", "source_throughput");
  app.add_option("--pid", settings.pid)->required();
  app.add_option("--start", settings.start, "Of the memory, hexadecimal")->required();
  app.add_option("--bytes", settings.bytes)->required();
  app.add_option("--source", settings.source)->check(CLI::IsMember({"helper", "readv"}));
  app.add_option("--buffer", settings.buffer_bytes, "Of readv, in bytes");
  app.add_option("--to", settings.to, "A receiver, HOST:PORT")->required();
  app.add_option("--congestion", settings.congestion);
  app.add_option("--passes", settings.passes);
  CLI11_PARSE(app, argc, argv);
  const absl::Status status = Measure(settings);
  if (status.ok()) return 0;
  absl::FPrintF(stderr, "source_throughput: %s\n", std::string(status.message()));
  return 1;
}

}  // namespace
}  // namespace predump

int main(int argc, char** argv) { return predump::Main(argc, argv); }
