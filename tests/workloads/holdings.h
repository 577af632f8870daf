// What a process holds besides memory, as objects that set it up once and look at it for ever.
#ifndef PREDUMP_TESTS_WORKLOADS_HOLDINGS_H_
#define PREDUMP_TESTS_WORKLOADS_HOLDINGS_H_

#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "tests/workloads/workload.h"

namespace predump::workloads {

struct HoldingSettings {
  std::string directory;  // exists, ours
  uint16_t tcp_port = 0;  // 0: the kernel chooses
  int64_t late_ms = 300;
  int64_t max_jump_ms = 2000;
  int64_t cycle_iterations = 200;  // how long what is kept pending is kept
  std::string skip;                // holdings, or details of them, not to make, as ",one,two,"
  bool no_new_privs = false;
  uid_t uid = 0;  // not 0: become it, with supplementary groups
};

// One kind of thing held. Single-threaded.
class Holding {
 public:
  virtual ~Holding() = default;
  // Called every iteration, counted from 0. Must leave things so that the next call can check them.
  virtual void Verify(uint64_t iteration) = 0;
  // Once, at the end; may make use of what was only held so far.
  virtual void Final() {}
};

// For making and checking holdings.
class HoldingContext {
 public:
  HoldingContext(Workload& workload, const HoldingSettings& settings)
      : workload_(workload), settings_(settings) {}

  Workload& workload() const { return workload_; }
  const HoldingSettings& settings() const { return settings_; }
  std::string File(const char* name) const { return settings_.directory + "/" + name; }
  // Whether the holding of this name is to be made.
  bool Wants(const char* name) const {
    return settings_.skip.find(std::string(",") + name + ",") == std::string::npos;
  }
  // An error unless `ok`, with errno's text where `with_errno`. Returns `ok`.
  bool Check(bool ok, const char* what, bool with_errno = false) const;
  bool CheckEqual(int64_t value, int64_t expected, const char* what) const;
  bool CheckEqual(const std::string& value, const std::string& expected, const char* what) const;

 private:
  Workload& workload_;
  const HoldingSettings settings_;
};

using Holdings = std::vector<std::unique_ptr<Holding>>;
Holdings MakeFileHoldings(const HoldingContext& context);
Holdings MakePipeHoldings(const HoldingContext& context);
Holdings MakeEventHoldings(const HoldingContext& context);
Holdings MakeSocketHoldings(const HoldingContext& context);
Holdings MakeSignalHoldings(const HoldingContext& context);
Holdings MakeProcessHoldings(const HoldingContext& context);
// Every descriptor there is when it is called: its number, flags and kind. The last to be made.
std::unique_ptr<Holding> MakeDescriptorTable(const HoldingContext& context);

// Handlers of the workload's own that have run so far: EINTR is rightful if this has grown.
uint64_t HandlersRun();

}  // namespace predump::workloads

#endif  // PREDUMP_TESTS_WORKLOADS_HOLDINGS_H_
