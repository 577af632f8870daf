#include "tests/pagemap/sources.h"

#include <utility>

#include "gtest/gtest.h"
#include "src/kernel/setup_injection.h"
#include "src/pagemap/helper_source.h"
#include "src/pagemap/process_vmsplice_source.h"
#include "src/pagemap/readv_source.h"
#include "tests/pagemap/needs.h"

namespace predump::pagemap {

std::unique_ptr<PageSource> MakeSource(const std::string& name, MemoryActor& actor) {
  if (name == "readv") {
    auto source = ReadvSource::Create(actor.process());
    EXPECT_TRUE(source.ok()) << source.status();
    return source.ok() ? *std::move(source) : nullptr;
  }
  if (name == "process_vmsplice") {
    auto source = ProcessVmspliceSource::Create(actor.process());
    EXPECT_TRUE(source.ok()) << source.status();
    return source.ok() ? *std::move(source) : nullptr;
  }
  kernel::SetupRequest request;
  request.userfaultfd = false;
  auto setup = kernel::InjectSetup(actor.process(), request);
  EXPECT_TRUE(setup.ok()) << setup.status();
  if (!setup.ok()) return nullptr;
  EXPECT_TRUE(setup->helper.has_value()) << setup->helper_status;
  if (!setup->helper.has_value()) return nullptr;
  auto source = HelperSource::Create(actor.process(), *std::move(setup->helper));
  EXPECT_TRUE(source.ok()) << source.status();
  return source.ok() ? *std::move(source) : nullptr;
}

std::string WhyNoSource(const std::string& name) {
  return name == "process_vmsplice" ? Lacking({kernel::Capability::kProcessVmsplice}) : "";
}

}  // namespace predump::pagemap
