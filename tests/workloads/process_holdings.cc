// What belongs to the process as a whole: credentials, limits, names, scheduling, clocks.
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <sched.h>
#include <string.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <map>
#include <sstream>
#include <string>

#include "tests/workloads/holdings.h"

namespace predump::workloads {
namespace {

std::string ReadProcFile(const char* path) {
  std::string text;
  const int fd = open(path, O_RDONLY | O_CLOEXEC);
  std::array<char, 4096> buffer;
  ssize_t size;
  while ((size = read(fd, buffer.data(), buffer.size())) > 0) {
    text.append(buffer.data(), static_cast<size_t>(size));
  }
  close(fd);
  return text;
}

std::string ReadLink(const char* path) {
  std::array<char, 4096> buffer;
  const ssize_t size = readlink(path, buffer.data(), buffer.size());
  return size > 0 ? std::string(buffer.data(), static_cast<size_t>(size)) : "";
}

void WriteProcFile(const char* path, const char* text) {
  const int fd = Must(open(path, O_WRONLY | O_CLOEXEC), path);
  Require(write(fd, text, strlen(text)) == static_cast<ssize_t>(strlen(text)), path);
  close(fd);
}

// Gives up root for good. What is made afterwards belongs to the new user.
void BecomeUser(const HoldingSettings& settings) {
  if (settings.uid != 0) {
    const gid_t group = settings.uid;
    Must(chown(settings.directory.c_str(), settings.uid, group), "chown");
    const gid_t supplementary[] = {group + 1, group + 2, group + 500};
    Must(setgroups(std::size(supplementary), supplementary), "setgroups");
    Must(setresgid(group, group, group), "setresgid");
    Must(setresuid(settings.uid, settings.uid, settings.uid), "setresuid");
    // The change of user took it away, and with it the right to read our own /proc files.
    Must(prctl(PR_SET_DUMPABLE, 1), "PR_SET_DUMPABLE");
  }
  if (settings.no_new_privs) Must(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "PR_SET_NO_NEW_PRIVS");
}

// Sets each thing to a value that is not its default, notes all, compares for ever.
class Attributes : public Holding {
 public:
  explicit Attributes(const HoldingContext& context) : context_(context) {
    Must(setpriority(PRIO_PROCESS, 0, 5), "setpriority");
    if (context.Wants("timerslack")) Must(prctl(PR_SET_TIMERSLACK, 70'000), "PR_SET_TIMERSLACK");
    Must(prctl(PR_SET_CHILD_SUBREAPER, 1), "PR_SET_CHILD_SUBREAPER");
    Must(prctl(PR_SET_NAME, "held, (things)"), "PR_SET_NAME");
    WriteProcFile("/proc/self/oom_score_adj", "123");
    LowerSoftLimit(RLIMIT_NOFILE, 1900);
    LowerSoftLimit(RLIMIT_CORE, 0);
    LowerSoftLimit(RLIMIT_MEMLOCK, 1 << 20);
    LowerSoftLimit(RLIMIT_FSIZE, 1L << 40);
    cpu_set_t cpus;
    Must(sched_getaffinity(0, sizeof cpus, &cpus), "sched_getaffinity");
    if (CPU_COUNT(&cpus) > 1 && context.Wants("affinity")) {
      CPU_CLR(LastCpu(cpus), &cpus);
      Must(sched_setaffinity(0, sizeof cpus, &cpus), "sched_setaffinity");
    }
  }

  void Verify(uint64_t iteration) override {
    // The files of /proc cost more than the calls.
    std::map<std::string, std::string> found = ReadByCalls();
    if (iteration % 8 == 0) AddFromProc(found);
    // First looked at in the loop, when every other holding has been made.
    if (iteration == 0) expected_ = found;
    for (const auto& [key, value] : found) {
      context_.CheckEqual(value, expected_[key], key.c_str());
      expected_[key] = value;
    }
  }

 private:
  static void LowerSoftLimit(int resource, rlim_t value) {
    rlimit limit;
    Must(getrlimit(static_cast<__rlimit_resource>(resource), &limit), "getrlimit");
    limit.rlim_cur = std::min(value, limit.rlim_max);
    Must(setrlimit(static_cast<__rlimit_resource>(resource), &limit), "setrlimit");
  }

  static int LastCpu(const cpu_set_t& cpus) {
    int last = 0;
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
      if (CPU_ISSET(cpu, &cpus)) last = cpu;
    }
    return last;
  }

  static std::map<std::string, std::string> ReadByCalls() {
    std::map<std::string, std::string> found;
    const auto put = [&](const char* key, int64_t value) { found[key] = std::to_string(value); };
    put("getpid", getpid());
    put("gettid", gettid());
    uid_t uids[3];
    gid_t gids[3];
    getresuid(&uids[0], &uids[1], &uids[2]);
    getresgid(&gids[0], &gids[1], &gids[2]);
    for (int i = 0; i < 3; ++i) {
      found["uids"] += std::to_string(uids[i]) + " ";
      found["gids"] += std::to_string(gids[i]) + " ";
    }
    std::array<gid_t, 64> groups;
    const int count = getgroups(groups.size(), groups.data());
    for (int i = 0; i < count; ++i) {
      found["groups"] += std::to_string(groups[static_cast<size_t>(i)]) + " ";
    }
    put("nice", getpriority(PRIO_PROCESS, 0));
    put("scheduler", sched_getscheduler(0));
    cpu_set_t cpus;
    sched_getaffinity(0, sizeof cpus, &cpus);
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
      if (CPU_ISSET(cpu, &cpus)) found["affinity"] += std::to_string(cpu) + " ";
    }
    put("dumpable", prctl(PR_GET_DUMPABLE));
    put("timerslack", prctl(PR_GET_TIMERSLACK));
    put("no_new_privs", prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0));
    put("securebits", prctl(PR_GET_SECUREBITS));
    int subreaper = -1;
    prctl(PR_GET_CHILD_SUBREAPER, &subreaper);
    put("child_subreaper", subreaper);
    char comm[16] = {};
    prctl(PR_GET_NAME, comm);
    found["comm"] = comm;
    put("personality", personality(0xFFFFFFFF));
    for (int resource = 0; resource < RLIM_NLIMITS; ++resource) {
      rlimit limit;
      getrlimit(static_cast<__rlimit_resource>(resource), &limit);
      found["rlimit " + std::to_string(resource)] =
          std::to_string(limit.rlim_cur) + " " + std::to_string(limit.rlim_max);
    }
    return found;
  }

  static void AddFromProc(std::map<std::string, std::string>& found) {
    for (const char* path : {"/proc/self/auxv", "/proc/self/cmdline", "/proc/self/environ",
                             "/proc/self/oom_score_adj", "/proc/self/comm"}) {
      found[path] = ReadProcFile(path);
    }
    for (const char* path : {"/proc/self/exe", "/proc/self/cwd", "/proc/self/root"}) {
      found[path] = ReadLink(path);
    }
    std::istringstream status(ReadProcFile("/proc/self/status"));
    for (std::string line; std::getline(status, line);) {
      const std::string field = line.substr(0, line.find(':'));
      for (const char* kept :
           {"Name", "Umask", "Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd",
            "CapAmb", "NoNewPrivs", "Seccomp", "SigBlk", "SigIgn", "SigCgt", "Threads"}) {
        if (field == kept) found["status " + field] = line;
      }
    }
  }

  const HoldingContext context_;
  std::map<std::string, std::string> expected_;
};

// Clocks go forward, without a jump, and together.
class Clocks : public Holding {
 public:
  explicit Clocks(const HoldingContext& context) : context_(context), last_ns_(Read()) {
    longest_ = &context.workload().AddCounter("longest_clock_jump_ns");
  }

  void Verify(uint64_t) override {
    const std::array<int64_t, 2> now_ns = Read();
    for (size_t i = 0; i < now_ns.size(); ++i) {
      const int64_t jump_ns = now_ns[i] - last_ns_[i];
      context_.Check(jump_ns >= 0, kNames[i]);
      if (jump_ns > context_.settings().max_jump_ms * kNsPerMs) {
        context_.workload().Error("%s jumped by %ld ms", kNames[i], jump_ns / kNsPerMs);
      }
      if (jump_ns > static_cast<int64_t>(*longest_)) *longest_ = static_cast<uint64_t>(jump_ns);
    }
    last_ns_ = now_ns;
  }

 private:
  static constexpr const char* kNames[] = {"CLOCK_MONOTONIC", "CLOCK_BOOTTIME"};
  static std::array<int64_t, 2> Read() { return {NowNs(), NowNs(CLOCK_BOOTTIME)}; }

  const HoldingContext context_;
  std::array<int64_t, 2> last_ns_;
  Counter* longest_;
};

}  // namespace

Holdings MakeProcessHoldings(const HoldingContext& context) {
  BecomeUser(context.settings());
  Holdings holdings;
  if (context.Wants("attributes")) holdings.push_back(std::make_unique<Attributes>(context));
  if (context.Wants("clocks")) holdings.push_back(std::make_unique<Clocks>(context));
  return holdings;
}

}  // namespace predump::workloads
