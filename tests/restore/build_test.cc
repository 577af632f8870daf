// Building a process from a landing: what it has afterwards, that it runs, that failures leave
// nothing.
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/mempolicy.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysinfo.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <optional>
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "src/base/errors.h"
#include "src/images/image_constants.h"
#include "src/kernel/freezer.h"
#include "src/kernel/procfs.h"
#include "src/restore/landing.h"
#include "src/restore/landing/layout.h"
#include "tests/restore/snapshot.h"
#include "tests/support/temp_dir.h"

namespace predump::restore {
namespace {

using ::testing::HasSubstr;

constexpr uint32_t kPid = 5000;
constexpr int kThreads = 8;

// What parent and child share, through a mapped file.
struct Report {
  std::atomic<uint64_t> beats[kThreads + 1];
  std::atomic<uint64_t> wrong;  // checks that failed
  std::atomic<int> signals[65];
  std::atomic<uint64_t> signal_value;
  std::atomic<pid_t> pid;
};

Report* g_report = nullptr;  // a signal handler can be told in no other way

void Handler(int number, siginfo_t* info, void*) {
  g_report->signals[number]++;
  g_report->signal_value = static_cast<uint64_t>(info->si_value.sival_int);
}

// Counts, with values in vector registers and thread-local storage that must stay what they are.
void Beat(Report* report, int index) {
  static thread_local uint64_t local = 0;
  double sum = 0;
  for (uint64_t i = 0;; ++i) {
    local += 1;
    sum += 0.5;
    asm volatile("" : "+x"(sum));
    if (sum != 0.5 * static_cast<double>(local)) report->wrong++;
    report->beats[index]++;
    if (i % 1024 == 0) ::sched_yield();
  }
}

class BuildTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto directory = test_support::TempDir::Create();
    ASSERT_TRUE(directory.ok()) << directory.status();
    directory_.emplace(*std::move(directory));
    const base::UniqueFd file(
        ::open(directory_->File("report").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
    ASSERT_EQ(::ftruncate(file.get(), sizeof(Report)), 0);
    void* mapped =
        ::mmap(nullptr, sizeof(Report), PROT_READ | PROT_WRITE, MAP_SHARED, file.get(), 0);
    ASSERT_NE(mapped, MAP_FAILED);
    report_ = new (mapped) Report{};
  }
  void TearDown() override {
    EndChild();
    landing_.reset();
    built_.reset();  // ends what was not released
    if (built_pid_ != 0) ::kill(built_pid_, SIGKILL);
    if (reaper_ != 0) ::waitpid(reaper_, nullptr, 0);
    ::munmap(report_, sizeof(Report));
  }

  // A child of this test without descriptors that runs `body`, and a landing with its memory.
  void Prepare(std::function<void(Report*)> body, LandingOptions options = {}) {
    child_ = ::fork();
    ASSERT_GE(child_, 0);
    if (child_ == 0) {
      ::syscall(SYS_close_range, 0u, ~0u, 0u);
      g_report = report_;
      body(report_);
      ::_exit(0);
    }
    const absl::Time limit = absl::Now() + absl::Seconds(10);
    while (report_->beats[0] == 0 && absl::Now() < limit) ::usleep(100);
    auto process = kernel::ProcessHandle::Open(child_);
    ASSERT_TRUE(process.ok());
    options.pid = kPid;
    options.new_pid_namespace = true;
    options.data_socket = source_.TakeLandingEnd();
    auto landing = Landing::Start(std::move(options));
    ASSERT_TRUE(landing.ok()) << landing.status();
    landing_.emplace(*std::move(landing));
    auto state = TakeSnapshot(*process, kPid, source_);
    ASSERT_TRUE(state.ok()) << state.status() << "; " << Fate();
    state_ = *std::move(state);
    ASSERT_TRUE(landing_->WaitForFinal(absl::Now() + absl::Seconds(10), -1).ok());
    EndChild();
  }
  std::string Fate() {
    return landing_->WaitForFinal(absl::Now() + absl::Seconds(1), -1).ToString();
  }
  void EndChild() {
    if (child_ <= 0) return;
    ::kill(child_, SIGKILL);
    ::waitpid(child_, nullptr, 0);
    child_ = 0;
  }

  absl::Status Build() {
    landing_pid_ = landing_->outer_pid();
    auto built = (*std::move(landing_)).Build(state_);
    landing_.reset();
    if (!built.ok()) return built.status();
    built_.emplace(*std::move(built));
    reaper_ = built_->reaper_pid();
    return absl::OkStatus();
  }
  absl::Status Release() {
    PREDUMP_RETURN_IF_ERROR(built_->QueueStop());
    PREDUMP_RETURN_IF_ERROR(built_->ClearExitKill());
    built_pid_ = built_->pid();
    return (*std::move(built_)).Release();
  }
  kernel::ProcessHandle Process() {
    auto process = kernel::ProcessHandle::Open(landing_pid_);
    EXPECT_TRUE(process.ok()) << process.status();
    return *std::move(process);
  }
  // A duplicate of a descriptor of what was built.
  base::UniqueFd Descriptor(int fd) {
    auto duplicate = Process().GetDescriptor(fd);
    EXPECT_TRUE(duplicate.ok()) << fd << ": " << duplicate.status();
    return duplicate.ok() ? *std::move(duplicate) : base::UniqueFd();
  }
  void ExpectNothingLeft() {
    EXPECT_FALSE(kernel::ProcessHandle::Open(landing_pid_).ok());
    EXPECT_EQ(::waitpid(-1, nullptr, WNOHANG), -1);
    EXPECT_EQ(errno, ECHILD);
  }
  bool Beats(int index) {
    const uint64_t before = report_->beats[index];
    const absl::Time limit = absl::Now() + absl::Seconds(10);
    while (report_->beats[index] < before + 1000) {
      if (absl::Now() > limit) return false;
      ::usleep(200);
    }
    return true;
  }

  FrameSource source_;
  std::optional<test_support::TempDir> directory_;
  Report* report_ = nullptr;
  pid_t child_ = 0;
  pid_t landing_pid_ = 0;
  pid_t built_pid_ = 0;
  pid_t reaper_ = 0;
  std::optional<Landing> landing_;
  std::optional<BuiltProcess> built_;
  proto::ProcessState state_;
};

void BeatAlone(Report* report) { Beat(report, 0); }

TEST_F(BuildTest, AProcessGoesOnWhereItWas) {
  ASSERT_NO_FATAL_FAILURE(Prepare(BeatAlone));
  const uint64_t before = report_->beats[0];
  ASSERT_TRUE(Build().ok()) << "see above";
  EXPECT_EQ(report_->beats[0], before) << "it ran before it was released";
  const absl::Status released = Release();
  ASSERT_TRUE(released.ok()) << released;
  EXPECT_TRUE(Beats(0));
  EXPECT_EQ(report_->wrong, 0u);
}

TEST_F(BuildTest, ThreadsGoOnWithTheirNumbers) {
  ASSERT_NO_FATAL_FAILURE(Prepare([](Report* report) {
    for (int i = 1; i <= kThreads; ++i) {
      std::thread([report, i] { Beat(report, i); }).detach();
    }
    for (int i = 1; i <= kThreads; ++i) {
      while (report->beats[i] == 0) ::sched_yield();
    }
    Beat(report, 0);
  }));
  const absl::Status built = Build();
  ASSERT_TRUE(built.ok()) << built;
  const absl::Status released = Release();
  ASSERT_TRUE(released.ok()) << released;
  for (int i = 0; i <= kThreads; ++i) EXPECT_TRUE(Beats(i)) << i;
  EXPECT_EQ(report_->wrong, 0u);
  const auto process = Process();
  auto threads = kernel::ListThreads(process);
  ASSERT_TRUE(threads.ok());
  std::vector<pid_t> inner;
  for (const pid_t tid : *threads) {
    auto status = kernel::ReadThreadStatus(process, tid);
    ASSERT_TRUE(status.ok());
    inner.push_back(status->namespace_pids.back());
  }
  std::sort(inner.begin(), inner.end());
  for (int i = 0; i <= kThreads; ++i) {
    EXPECT_EQ(inner[static_cast<size_t>(i)], static_cast<pid_t>(kPid) + i);
  }
}

// DESIGN 12.6: without its area a thread that is preempted inside a sequence is not aborted.
TEST_F(BuildTest, RestartableSequencesAreRegisteredForEachThread) {
  ASSERT_NO_FATAL_FAILURE(Prepare([](Report* report) {
    std::thread([report] { Beat(report, 1); }).detach();
    while (report->beats[1] == 0) ::sched_yield();
    Beat(report, 0);
  }));
  const absl::Status built = Build();
  ASSERT_TRUE(built.ok()) << built;
  const absl::Status released = Release();
  ASSERT_TRUE(released.ok()) << released;
  const auto process = Process();
  auto frozen = kernel::FrozenProcess::Freeze(process, absl::Seconds(5));
  ASSERT_TRUE(frozen.ok()) << frozen.status();
  ASSERT_EQ(frozen->threads().size(), 2u);
  for (size_t i = 0; i < 2; ++i) {
    const auto now = frozen->threads()[i].GetRseqConfiguration();
    ASSERT_TRUE(now.ok()) << now.status();
    const auto& before = state_.threads(static_cast<int>(i)).core().thread_core().rseq_entry();
    ASSERT_NE(before.rseq_abi_pointer(), 0u) << "this C library registers none";
    EXPECT_EQ(now->address.value(), before.rseq_abi_pointer());
    EXPECT_EQ(now->signature, before.signature());
  }
}

TEST_F(BuildTest, MappingsProtectionsAndExecutableAreAsBefore) {
  ASSERT_NO_FATAL_FAILURE(Prepare(BeatAlone));
  ASSERT_TRUE(Build().ok());
  ASSERT_TRUE(Release().ok());
  const auto process = Process();
  auto maps = kernel::ReadMaps(process);
  ASSERT_TRUE(maps.ok());
  std::vector<std::string> now;
  for (const auto& entry : *maps) {
    if (entry.path == "[vsyscall]") continue;
    now.push_back(entry.range.ToString() + " " + std::to_string(entry.prot));
  }
  std::vector<std::string> before;
  for (const auto& vma : state_.mm().vmas()) {
    before.push_back(base::AddressRange::FromOrdered(vma.start(), vma.end()).ToString() + " " +
                     std::to_string(vma.prot()));
  }
  EXPECT_EQ(now, before);
  auto exe = kernel::ReadProcLink(process, "exe");
  ASSERT_TRUE(exe.ok());
  EXPECT_EQ(*exe, *kernel::ReadProcLink(*kernel::ProcessHandle::Open(::getpid()), "exe"));
  auto descriptors = kernel::ListDescriptors(process);
  ASSERT_TRUE(descriptors.ok());
  EXPECT_TRUE(descriptors->empty());
}

TEST_F(BuildTest, MemoryThatBelongsWhereTheLandingLivesComesHome) {
  ASSERT_NO_FATAL_FAILURE(Prepare([](Report* report) {
    // Image, vDSO and trampoline of the landing all lie in this.
    auto* home = static_cast<uint64_t*>(
        ::mmap(reinterpret_cast<void*>(kHome - 8192), kHomeBytes + 16384, PROT_READ | PROT_WRITE,
               MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE | MAP_NORESERVE, -1, 0));
    const uint64_t words = (kHomeBytes + 16384) / 8;
    for (uint64_t i = 0; i < words; i += 4096) home[i] = i + 7;
    for (;;) {
      for (uint64_t i = 0; i < words; i += 4096) {
        if (home[i] != i + 7) report->wrong++;
      }
      report->beats[0]++;
    }
  }));
  const absl::Status built = Build();
  ASSERT_TRUE(built.ok()) << built;
  const absl::Status released = Release();
  ASSERT_TRUE(released.ok()) << released;
  const uint64_t before = report_->beats[0];
  const absl::Time limit = absl::Now() + absl::Seconds(10);
  while (report_->beats[0] < before + 3 && absl::Now() < limit) ::usleep(1000);
  EXPECT_GE(report_->beats[0], before + 3);
  EXPECT_EQ(report_->wrong, 0u);
}

// Gives the state's process our own handler: the child was forked from here with the same code.
void SetHandler(int number, criu::task_core_entry& task) {
  struct {
    uint64_t handler, flags, restorer, mask;
  } kernel_action;
  struct sigaction set = {};
  set.sa_sigaction = Handler;
  set.sa_flags = SA_SIGINFO;
  struct sigaction before;
  ASSERT_EQ(::sigaction(number, &set, &before), 0);
  ASSERT_EQ(::syscall(SYS_rt_sigaction, number, nullptr, &kernel_action, 8), 0);
  ASSERT_EQ(::sigaction(number, &before, nullptr), 0);
  criu::sa_entry& action =
      *task.mutable_sigactions(number - 1 - (number > SIGKILL) - (number > SIGSTOP));
  action.set_sigaction(kernel_action.handler);
  action.set_flags(kernel_action.flags);
  action.set_restorer(kernel_action.restorer);
  action.set_mask(kernel_action.mask);
}

// A periodic timer whose signal is pending is armed again by the kernel as the signal is taken.
TEST_F(BuildTest, APeriodicAlarmThatIsPendingComesAgainAndAgain) {
  ASSERT_NO_FATAL_FAILURE(Prepare(BeatAlone));
  criu::task_core_entry& task = *state_.mutable_threads(0)->mutable_core()->mutable_tc();
  ASSERT_NO_FATAL_FAILURE(SetHandler(SIGALRM, task));
  siginfo_t alarm = {};
  alarm.si_signo = SIGALRM;
  alarm.si_code = SI_KERNEL;
  task.mutable_signals_s()->add_signals()->set_siginfo(&alarm, sizeof alarm);
  task.mutable_timers()->mutable_real()->set_iusec(20'000);
  const absl::Status built = Build();
  ASSERT_TRUE(built.ok()) << built;
  const absl::Status released = Release();
  ASSERT_TRUE(released.ok()) << released;
  const absl::Time limit = absl::Now() + absl::Seconds(10);
  while (report_->signals[SIGALRM] < 4 && absl::Now() < limit) ::usleep(1000);
  EXPECT_GE(report_->signals[SIGALRM], 4);
}

TEST_F(BuildTest, PendingLateAndHandledSignalsArriveWithTheirValues) {
  ASSERT_NO_FATAL_FAILURE(Prepare([](Report* report) {
    struct sigaction action = {};
    action.sa_sigaction = Handler;
    action.sa_flags = SA_SIGINFO;
    ::sigaction(SIGUSR1, &action, nullptr);
    ::sigaction(SIGRTMIN + 3, &action, nullptr);
    ::sigaction(SIGALRM, &action, nullptr);
    Beat(report, 0);
  }));
  criu::task_core_entry& task = *state_.mutable_threads(0)->mutable_core()->mutable_tc();
  for (const int number : {SIGUSR1, SIGRTMIN + 3, SIGALRM}) SetHandler(number, task);
  const auto info = [](int number, int value) {
    siginfo_t signal = {};
    signal.si_signo = number;
    signal.si_code = SI_QUEUE;
    signal.si_value.sival_int = value;
    return std::string(reinterpret_cast<const char*>(&signal), sizeof(signal));
  };
  task.mutable_signals_s()->add_signals()->set_siginfo(info(SIGRTMIN + 3, 11));
  task.mutable_signals_s()->add_signals()->set_siginfo(info(SIGRTMIN + 3, 12));
  state_.mutable_threads(0)
      ->mutable_core()
      ->mutable_thread_core()
      ->mutable_signals_p()
      ->add_signals()
      ->set_siginfo(info(SIGUSR1, 13));
  task.mutable_timers()->mutable_real()->set_vusec(50'000);
  const absl::Status built = Build();
  ASSERT_TRUE(built.ok()) << built;
  proto::LateSignal late;
  late.set_siginfo(info(SIGRTMIN + 3, 99));
  const absl::Status queued = built_->QueueLateSignals(std::span(&late, 1));
  ASSERT_TRUE(queued.ok()) << queued;
  EXPECT_EQ(report_->signals[SIGUSR1], 0) << "a signal was delivered before the release";
  const absl::Status released = Release();
  ASSERT_TRUE(released.ok()) << released;
  const absl::Time limit = absl::Now() + absl::Seconds(10);
  while ((report_->signals[SIGALRM] == 0 || report_->signals[SIGRTMIN + 3] < 3) &&
         absl::Now() < limit) {
    ::usleep(1000);
  }
  EXPECT_EQ(report_->signals[SIGRTMIN + 3], 3);
  EXPECT_EQ(report_->signals[SIGUSR1], 1);
  EXPECT_EQ(report_->signals[SIGALRM], 1);
  EXPECT_TRUE(Beats(0));
  EXPECT_EQ(report_->wrong, 0u);
}

// A handler that runs ends the wait. Were the call simply repeated, it would wait for a signal that
// has been.
TEST_F(BuildTest, ASignalThatCameTooLateEndsTheCallItFindsTheThreadIn) {
  ASSERT_NO_FATAL_FAILURE(Prepare([](Report* report) {
    report->beats[0] = 1;
    sigset_t none;
    ::sigemptyset(&none);
    const int result = ::sigsuspend(&none);
    report->wrong = result == -1 && errno == EINTR ? 0 : 1;
    report->beats[1] = 1;
    Beat(report, 0);
  }));
  ASSERT_TRUE(state_.threads(0).extra().has_interrupted_call());
  criu::task_core_entry& task = *state_.mutable_threads(0)->mutable_core()->mutable_tc();
  struct sigaction set = {};
  set.sa_sigaction = Handler;
  set.sa_flags = SA_SIGINFO;
  struct sigaction before;
  struct {
    uint64_t handler, flags, restorer, mask;
  } kernel_action;
  ASSERT_EQ(::sigaction(SIGUSR1, &set, &before), 0);
  ASSERT_EQ(::syscall(SYS_rt_sigaction, SIGUSR1, nullptr, &kernel_action, 8), 0);
  ASSERT_EQ(::sigaction(SIGUSR1, &before, nullptr), 0);
  criu::sa_entry& action = *task.mutable_sigactions(SIGUSR1 - 2);
  action.set_sigaction(kernel_action.handler);
  action.set_flags(kernel_action.flags);
  action.set_restorer(kernel_action.restorer);
  ASSERT_TRUE(Build().ok());
  siginfo_t signal = {};
  signal.si_signo = SIGUSR1;
  signal.si_code = SI_QUEUE;
  proto::LateSignal late;
  late.set_siginfo(&signal, sizeof signal);
  ASSERT_TRUE(built_->QueueLateSignals(std::span(&late, 1)).ok());
  ASSERT_TRUE(Release().ok());
  const absl::Time limit = absl::Now() + absl::Seconds(5);
  while (report_->beats[1] == 0 && absl::Now() < limit) ::usleep(1000);
  EXPECT_EQ(report_->signals[SIGUSR1], 1);
  EXPECT_EQ(report_->beats[1], 1u) << "the wait goes on";
  EXPECT_EQ(report_->wrong, 0u);
}

TEST_F(BuildTest, ASleepGoesOnWithTheTimeThatIsLeft) {
  ASSERT_NO_FATAL_FAILURE(Prepare([](Report* report) {
    static const struct timespec hour = {3600, 0};
    report->beats[0] = 1;
    const long result = ::syscall(SYS_nanosleep, &hour, nullptr);
    // What was asked for stays what it was.
    report->wrong = result == 0 && hour.tv_sec == 3600 && hour.tv_nsec == 0 ? 0 : 1;
    report->beats[1] = 1;
    Beat(report, 0);
  }));
  ASSERT_TRUE(state_.threads(0).extra().has_interrupted_call());
  state_.mutable_threads(0)->mutable_extra()->mutable_interrupted_call()->set_remaining_ns(
      300'000'000);
  ASSERT_TRUE(Build().ok());
  const absl::Time released = absl::Now();
  ASSERT_TRUE(Release().ok());
  while (report_->beats[1] == 0 && absl::Now() < released + absl::Seconds(5)) ::usleep(1000);
  EXPECT_EQ(report_->beats[1], 1u) << "it sleeps for the whole time";
  EXPECT_GT(absl::Now() - released, absl::Milliseconds(100));
  EXPECT_EQ(report_->wrong, 0u);
}

TEST_F(BuildTest, AProcessParkedByADyingServerNeedsOnlyAWakeUp) {
  ASSERT_NO_FATAL_FAILURE(Prepare(BeatAlone));
  ASSERT_TRUE(Build().ok());
  ASSERT_TRUE(built_->QueueStop().ok());
  ASSERT_TRUE(built_->ClearExitKill().ok());
  built_pid_ = built_->pid();
  const uint64_t before = report_->beats[0];
  built_.reset();  // detaches, as a dying server does
  const auto process = Process();
  const absl::Time limit = absl::Now() + absl::Seconds(5);
  while (kernel::ReadStat(process)->state != 'T' && absl::Now() < limit) ::usleep(1000);
  EXPECT_EQ(kernel::ReadStat(process)->state, 'T');
  EXPECT_EQ(report_->beats[0], before);
  const absl::Status finished = BuiltProcess::FinishParked(process, absl::Seconds(5));
  ASSERT_TRUE(finished.ok()) << finished;
  EXPECT_TRUE(Beats(0));
}

// ---- attributes

struct SchedAttributes {  // sched_attr of sched_getattr(2), its first version
  uint32_t size, policy;
  uint64_t flags;
  int32_t nice;
  uint32_t priority;
  uint64_t runtime, deadline, period;
};

uint64_t TimeSlice(pid_t pid) {
  SchedAttributes attributes = {};
  EXPECT_EQ(::syscall(SYS_sched_getattr, pid, &attributes, sizeof attributes, 0), 0);
  return attributes.runtime;
}

void SetTimeSlice(uint64_t nanoseconds) {
  SchedAttributes attributes = {};
  EXPECT_EQ(::syscall(SYS_sched_getattr, 0, &attributes, sizeof attributes, 0), 0);
  attributes.runtime = nanoseconds;
  EXPECT_EQ(::syscall(SYS_sched_setattr, 0, &attributes, 0), 0);
}

// ---- descriptors

criu::sk_opts_entry SocketOptions() {
  criu::sk_opts_entry options;
  options.set_so_sndbuf(212992);
  options.set_so_rcvbuf(212992);
  options.set_so_snd_tmo_sec(0);
  options.set_so_snd_tmo_usec(0);
  options.set_so_rcv_tmo_sec(0);
  options.set_so_rcv_tmo_usec(0);
  options.set_so_buf_lock(0);
  return options;
}

criu::file_entry InetSocket(uint32_t type, uint32_t state, uint32_t port) {
  criu::file_entry file;
  file.set_type(criu::INETSK);
  criu::inet_sk_entry& socket = *file.mutable_isk();
  socket.set_ino(100 + port);
  socket.set_family(AF_INET);
  socket.set_type(type);
  socket.set_proto(type == SOCK_STREAM ? IPPROTO_TCP : IPPROTO_UDP);
  socket.set_state(state);
  socket.set_src_port(port);
  socket.set_dst_port(0);
  socket.set_flags(O_RDWR);
  socket.set_backlog(17);
  socket.add_src_addr(htonl(INADDR_LOOPBACK));
  socket.add_dst_addr(0);
  *socket.mutable_opts() = SocketOptions();
  return file;
}

criu::file_entry UnixSocket(uint32_t inode, uint32_t state, uint32_t peer,
                            const std::string& name = "") {
  criu::file_entry file;
  file.set_type(criu::UNIXSK);
  criu::unix_sk_entry& socket = *file.mutable_usk();
  socket.set_ino(inode);
  socket.set_type(SOCK_STREAM);
  socket.set_state(state);
  socket.set_flags(O_RDWR);
  socket.set_uflags(0);
  socket.set_backlog(5);
  socket.set_peer(peer);
  *socket.mutable_opts() = SocketOptions();
  socket.set_name(name);
  return file;
}

criu::file_entry PipeEnd(uint32_t pipe, uint32_t flags) {
  criu::file_entry file;
  file.set_type(criu::PIPE);
  file.mutable_pipe()->set_pipe_id(pipe);
  file.mutable_pipe()->set_flags(flags);
  return file;
}

uint32_t FreePort(int type) {
  const base::UniqueFd probe(::socket(AF_INET, type, 0));
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof(address);
  EXPECT_EQ(::bind(probe.get(), reinterpret_cast<sockaddr*>(&address), length), 0);
  EXPECT_EQ(::getsockname(probe.get(), reinterpret_cast<sockaddr*>(&address), &length), 0);
  return ntohs(address.sin_port);
}

std::string ReadSome(int fd) {
  char text[256];
  const ssize_t got = ::read(fd, text, sizeof(text));
  return got < 0 ? absl::StrCat("errno ", errno) : std::string(text, static_cast<size_t>(got));
}

TEST_F(BuildTest, FilesKeepOffsetFlagsSharingAndCloseOnExec) {
  ASSERT_NO_FATAL_FAILURE(Prepare(BeatAlone));
  const std::string path = directory_->File("data");
  {
    const base::UniqueFd file(::open(path.c_str(), O_CREAT | O_WRONLY, 0600));
    ASSERT_EQ(::write(file.get(), "0123456789", 10), 10);
  }
  AddDescriptor(state_, 0, RegularFile("/dev/null", O_RDWR));
  const uint32_t log = AddDescriptor(state_, 2, RegularFile(path, O_RDWR | O_APPEND, 4));
  AddAnotherDescriptor(state_, 1, log);
  AddDescriptor(state_, 700, RegularFile(path, O_RDONLY, 7), true);
  AddDescriptor(state_, 5, RegularFile(directory_->path(), O_RDONLY | O_DIRECTORY));
  const absl::Status built = Build();
  ASSERT_TRUE(built.ok()) << built;
  const auto process = Process();
  EXPECT_THAT(*kernel::ListDescriptors(process), ::testing::ElementsAre(0, 1, 2, 5, 700));
  EXPECT_EQ(*kernel::ReadProcLink(process, "fd/5"), directory_->path());
  EXPECT_EQ(ReadSome(Descriptor(700).get()), "789");
  // One description: what one descriptor reads the other has passed.
  EXPECT_EQ(ReadSome(Descriptor(1).get()), "456789");
  EXPECT_EQ(::lseek(Descriptor(2).get(), 0, SEEK_CUR), 10);
  EXPECT_NE(::fcntl(Descriptor(2).get(), F_GETFL) & O_APPEND, 0);
  EXPECT_NE(kernel::ReadFdInfo(process, 700)->flags & O_CLOEXEC, 0u);
  EXPECT_EQ(kernel::ReadFdInfo(process, 2)->flags & O_CLOEXEC, 0u);
}

TEST_F(BuildTest, PipesKeepWhatIsInThemAndTheirSize) {
  ASSERT_NO_FATAL_FAILURE(Prepare(BeatAlone));
  // Crossed on purpose: the numbers pipe2(2) gives are the other way round.
  AddDescriptor(state_, 1, PipeEnd(77, O_RDONLY | O_NONBLOCK));
  AddDescriptor(state_, 0, PipeEnd(77, O_WRONLY), true);
  AddDescriptor(state_, 4, PipeEnd(78, O_RDONLY));  // the writer is gone
  proto::PipeData& data = *state_.add_pipes();
  data.mutable_entry()->set_pipe_id(77);
  data.mutable_entry()->set_bytes(5);
  data.mutable_entry()->set_size(131072);
  data.set_data("hello");
  proto::PipeData& rest = *state_.add_pipes();
  rest.mutable_entry()->set_pipe_id(78);
  rest.mutable_entry()->set_bytes(4);
  rest.mutable_entry()->set_size(65536);
  rest.set_data("last");
  const absl::Status built = Build();
  ASSERT_TRUE(built.ok()) << built;
  const base::UniqueFd reader = Descriptor(1);
  EXPECT_EQ(::fcntl(reader.get(), F_GETPIPE_SZ), 131072);
  EXPECT_EQ(ReadSome(reader.get()), "hello");
  EXPECT_EQ(ReadSome(reader.get()), absl::StrCat("errno ", EAGAIN));
  EXPECT_EQ(::write(Descriptor(0).get(), "more", 4), 4);
  EXPECT_EQ(ReadSome(reader.get()), "more");
  EXPECT_EQ(ReadSome(Descriptor(4).get()), "last");
  EXPECT_EQ(ReadSome(Descriptor(4).get()), "");
  EXPECT_THAT(*kernel::ListDescriptors(Process()), ::testing::ElementsAre(0, 1, 4));
}

// Protections change while rounds go on, and only those of the freeze count.
TEST_F(BuildTest, SharedFilesGetTheProtectionOfTheFreeze) {
  ASSERT_NO_FATAL_FAILURE(Prepare(BeatAlone));
  uint64_t start = 0;
  for (auto& vma : *state_.mutable_mm()->mutable_vmas()) {
    if ((vma.flags() & MAP_SHARED) == 0 || vma.prot() != (PROT_READ | PROT_WRITE)) continue;
    start = vma.start();
    vma.set_prot(PROT_READ);
  }
  ASSERT_NE(start, 0u);
  const absl::Status built = Build();
  ASSERT_TRUE(built.ok()) << built;
  const auto maps = kernel::ReadMaps(Process());
  ASSERT_TRUE(maps.ok());
  for (const kernel::MapsEntry& entry : *maps) {
    if (entry.range.start().value() != start) continue;
    EXPECT_EQ(entry.prot, PROT_READ);
  }
}

TEST_F(BuildTest, ADirectoryLeftAtItsEndCanBeRewound) {
  ASSERT_NO_FATAL_FAILURE(Prepare(BeatAlone));
  const std::string path = directory_->File("listed");
  ASSERT_EQ(::mkdir(path.c_str(), 0700), 0);
  for (int i = 0; i < 300; ++i) {
    const base::UniqueFd entry(::open(absl::StrCat(path, "/entry-", i).c_str(), O_CREAT, 0600));
    ASSERT_TRUE(entry.valid());
  }
  const auto list = [](int fd) {
    alignas(8) char buffer[1024];
    long total = 0;
    for (long n; (n = ::syscall(SYS_getdents64, fd, buffer, sizeof buffer)) > 0;) total += n;
    return total;
  };
  const base::UniqueFd before(::open(path.c_str(), O_RDONLY | O_DIRECTORY));
  const long all = list(before.get());
  ASSERT_GT(all, 300 * 24);
  criu::file_entry file;
  file.set_type(criu::REG);
  file.mutable_reg()->set_flags(O_RDONLY | O_DIRECTORY);
  file.mutable_reg()->set_name(path);
  file.mutable_reg()->set_mode(S_IFDIR | 0700);
  file.mutable_reg()->set_pos(static_cast<uint64_t>(::lseek(before.get(), 0, SEEK_CUR)));
  AddDescriptor(state_, 3, file);
  const absl::Status built = Build();
  ASSERT_TRUE(built.ok()) << built;
  const base::UniqueFd directory = Descriptor(3);
  EXPECT_EQ(list(directory.get()), 0);
  ASSERT_EQ(::lseek(directory.get(), 0, SEEK_SET), 0);
  EXPECT_EQ(list(directory.get()), all);
}

TEST_F(BuildTest, EventTimerSignalAndPollDescriptorsComeBack) {
  ASSERT_NO_FATAL_FAILURE(Prepare(BeatAlone));
  criu::file_entry event;
  event.set_type(criu::EVENTFD);
  event.mutable_efd()->set_flags(O_RDWR | O_NONBLOCK);
  event.mutable_efd()->set_counter(3);
  const uint32_t event_id = AddDescriptor(state_, 3, event);
  proto::FileExtra& extra = *state_.add_file_extras();
  extra.set_id(event_id);
  extra.set_eventfd_semaphore(true);
  event.mutable_efd()->set_counter(0x1'0000'0005);
  AddDescriptor(state_, 4, event);
  criu::file_entry timer;
  timer.set_type(criu::TIMERFD);
  timer.mutable_tfd()->set_flags(O_RDWR);
  timer.mutable_tfd()->set_clockid(CLOCK_MONOTONIC);
  timer.mutable_tfd()->set_ticks(0);
  timer.mutable_tfd()->set_settime_flags(0);
  timer.mutable_tfd()->set_vsec(100);
  timer.mutable_tfd()->set_vnsec(0);
  timer.mutable_tfd()->set_isec(7);
  timer.mutable_tfd()->set_insec(0);
  AddDescriptor(state_, 5, timer);
  criu::file_entry signals;
  signals.set_type(criu::SIGNALFD);
  signals.mutable_sgfd()->set_flags(O_RDWR | O_NONBLOCK);
  signals.mutable_sgfd()->set_signal_mask(1ull << (SIGUSR2 - 1));
  AddDescriptor(state_, 6, signals);
  criu::file_entry poll;
  poll.set_type(criu::EVENTPOLL);
  poll.mutable_epfd()->set_flags(O_RDWR);
  for (const uint32_t watched : {3u, 5u}) {
    auto* entry = poll.mutable_epfd()->add_tfd();
    entry->set_id(0);
    entry->set_tfd(watched);
    entry->set_events(EPOLLIN | EPOLLET | (watched == 5 ? EPOLLONESHOT : 0u));
    entry->set_data(0xabcd0000u + watched);
  }
  AddDescriptor(state_, 7, poll);
  const absl::Status built = Build();
  ASSERT_TRUE(built.ok()) << built;
  uint64_t value = 0;
  ASSERT_EQ(::read(Descriptor(3).get(), &value, 8), 8);
  EXPECT_EQ(value, 1u) << "semaphore";
  ASSERT_EQ(::read(Descriptor(4).get(), &value, 8), 8);
  EXPECT_EQ(value, 0x1'0000'0005u);
  itimerspec left = {};
  ASSERT_EQ(::timerfd_gettime(Descriptor(5).get(), &left), 0);
  EXPECT_GE(left.it_value.tv_sec, 95);
  EXPECT_EQ(left.it_interval.tv_sec, 7);
  const auto process = Process();
  EXPECT_EQ(*kernel::ReadFdInfo(process, 6)->Find("sigmask"), "0000000000000800");
  epoll_event ready[4];
  ASSERT_EQ(::epoll_wait(Descriptor(7).get(), ready, 4, 0), 1);
  EXPECT_EQ(ready[0].data.u64, 0xabcd0003u);
  const auto info = kernel::ReadFdInfo(process, 7);
  int watched = 0;
  for (const auto& [key, text] : info->lines) watched += key == "tfd";
  EXPECT_EQ(watched, 2);
}

// What a thread took from epoll_wait(2) is its own until it asks for more: also when the other end
// hangs up meanwhile.
TEST_F(BuildTest, AOneShotEntryThatHasFiredStaysSilent) {
  ASSERT_NO_FATAL_FAILURE(Prepare(BeatAlone));
  criu::file_entry left = UnixSocket(300, images::kSocketEstablished, 301);
  criu::file_entry right = UnixSocket(301, images::kSocketEstablished, 300);
  right.mutable_usk()->set_shutdown(criu::BOTH);
  AddDescriptor(state_, 3, left);
  AddDescriptor(state_, 4, right);
  criu::file_entry event;
  event.set_type(criu::EVENTFD);
  event.mutable_efd()->set_flags(O_RDWR);
  event.mutable_efd()->set_counter(1);
  AddDescriptor(state_, 5, event);
  criu::file_entry poll;
  poll.set_type(criu::EVENTPOLL);
  poll.mutable_epfd()->set_flags(O_RDWR);
  for (const uint32_t watched : {5u, 3u, 4u}) {
    auto* entry = poll.mutable_epfd()->add_tfd();
    entry->set_id(0);
    entry->set_tfd(watched);
    entry->set_events(watched == 5 ? EPOLLIN | EPOLLERR | EPOLLHUP : EPOLLONESHOT);
    entry->set_data(watched);
  }
  AddDescriptor(state_, 6, poll);
  const absl::Status built = Build();
  ASSERT_TRUE(built.ok()) << built;
  epoll_event ready[4];
  ASSERT_EQ(::epoll_wait(Descriptor(6).get(), ready, 4, 0), 1);
  EXPECT_EQ(ready[0].data.u64, 5u);
  const auto info = kernel::ReadFdInfo(Process(), 6);
  int fired = 0;
  for (const auto& [key, text] : info->lines) {
    if (key == "tfd" && text.find("events: 40000000 data:") != std::string::npos) ++fired;
  }
  EXPECT_EQ(fired, 2);
}

TEST_F(BuildTest, SocketsListenAreBoundAndHoldWhatWasQueued) {
  ASSERT_NO_FATAL_FAILURE(Prepare(BeatAlone));
  const uint32_t tcp_port = FreePort(SOCK_STREAM);
  const uint32_t udp_port = FreePort(SOCK_DGRAM);
  const std::string path = directory_->File("listener");
  {
    // A socket file that its owner left behind is no obstacle.
    const base::UniqueFd dead(::socket(AF_UNIX, SOCK_STREAM, 0));
    sockaddr_un address = {};
    address.sun_family = AF_UNIX;
    strcpy(address.sun_path, path.c_str());
    ASSERT_EQ(::bind(dead.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  }
  AddDescriptor(state_, 3, InetSocket(SOCK_STREAM, images::kSocketListening, tcp_port));
  AddDescriptor(state_, 4, InetSocket(SOCK_DGRAM, images::kSocketClosed, udp_port));
  const uint32_t closed =
      AddDescriptor(state_, 5, InetSocket(SOCK_STREAM, images::kSocketEstablished, tcp_port));
  proto::FileExtra& extra = *state_.add_file_extras();
  extra.set_id(closed);
  extra.set_tcp_closed(true);
  criu::file_entry listener =
      UnixSocket(201, images::kSocketListening, 0, path + std::string(1, '\0'));
  listener.mutable_usk()->mutable_file_perms()->set_mode(0620);
  listener.mutable_usk()->mutable_file_perms()->set_uid(12);
  listener.mutable_usk()->mutable_file_perms()->set_gid(34);
  AddDescriptor(state_, 6, listener);
  const uint32_t left = AddDescriptor(state_, 7, UnixSocket(202, images::kSocketEstablished, 203));
  criu::file_entry right = UnixSocket(203, images::kSocketEstablished, 202);
  right.mutable_usk()->set_shutdown(criu::WRITE);
  AddDescriptor(state_, 8, right);
  proto::SocketPacket& packet = *state_.add_packets();
  packet.mutable_entry()->set_id_for(left);
  packet.mutable_entry()->set_length(6);
  packet.set_data("queued");
  const absl::Status built = Build();
  ASSERT_TRUE(built.ok()) << built;

  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  address.sin_port = htons(static_cast<uint16_t>(tcp_port));
  const base::UniqueFd client(::socket(AF_INET, SOCK_STREAM, 0));
  EXPECT_EQ(::connect(client.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  int reuse = -1;
  socklen_t length = sizeof(reuse);
  ::getsockopt(Descriptor(3).get(), SOL_SOCKET, SO_REUSEADDR, &reuse, &length);
  EXPECT_EQ(reuse, 0) << "borrowed for bind, and put back";
  address.sin_port = htons(static_cast<uint16_t>(udp_port));
  const base::UniqueFd sender(::socket(AF_INET, SOCK_DGRAM, 0));
  EXPECT_EQ(
      ::sendto(sender.get(), "udp", 3, 0, reinterpret_cast<sockaddr*>(&address), sizeof(address)),
      3);
  EXPECT_EQ(ReadSome(Descriptor(4).get()), "udp");
  EXPECT_EQ(ReadSome(Descriptor(5).get()), absl::StrCat("errno ", ENOTCONN));
  struct stat info;
  ASSERT_EQ(::stat(path.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 07777, 0620u);
  EXPECT_EQ(info.st_uid, 12u);
  const base::UniqueFd end = Descriptor(7);
  EXPECT_EQ(ReadSome(end.get()), "queued");
  EXPECT_EQ(ReadSome(end.get()), "") << "the other end was shut down for writing";
  EXPECT_EQ(::send(end.get(), "back", 4, MSG_NOSIGNAL), 4);
  EXPECT_EQ(ReadSome(Descriptor(8).get()), "back");
}

void AddOption(proto::FileExtra& extra, int level, int name, int value) {
  proto::SocketOption& option = *extra.add_socket_options();
  option.set_level(level);
  option.set_name(name);
  option.set_value(&value, sizeof value);
}

// An address that is none of this host's, and an option that a listener refuses.
TEST_F(BuildTest, OptionsComeBeforeWhatTheyAreFor) {
  ASSERT_NO_FATAL_FAILURE(Prepare(BeatAlone));
  criu::file_entry socket = InetSocket(SOCK_STREAM, images::kSocketListening, 7);
  socket.mutable_isk()->set_src_addr(0, ::inet_addr("192.0.2.1"));
  const uint32_t id = AddDescriptor(state_, 3, socket);
  proto::FileExtra& extra = *state_.add_file_extras();
  extra.set_id(id);
  AddOption(extra, IPPROTO_IP, IP_TRANSPARENT, 1);
  AddOption(extra, IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1);
  AddOption(extra, IPPROTO_TCP, TCP_MAXSEG, 1000);
  const absl::Status built = Build();
  ASSERT_TRUE(built.ok()) << built;
  const base::UniqueFd listener = Descriptor(3);
  int value = 0;
  socklen_t length = sizeof value;
  ASSERT_EQ(::getsockopt(listener.get(), IPPROTO_TCP, TCP_FASTOPEN_CONNECT, &value, &length), 0);
  EXPECT_EQ(value, 1);
  ASSERT_EQ(::getsockopt(listener.get(), IPPROTO_TCP, TCP_MAXSEG, &value, &length), 0);
  EXPECT_EQ(value, 1000);
  ASSERT_EQ(::getsockopt(listener.get(), SOL_SOCKET, SO_ACCEPTCONN, &value, &length), 0);
  EXPECT_EQ(value, 1);
}

TEST_F(BuildTest, AttributesOfTheProcessComeBack) {
  ASSERT_NO_FATAL_FAILURE(Prepare(BeatAlone));
  auto* leader = state_.mutable_threads(0);
  criu::thread_core_entry& core = *leader->mutable_core()->mutable_thread_core();
  criu::task_core_entry& task = *leader->mutable_core()->mutable_tc();
  core.set_sched_nice(7);
  core.set_comm("renamed");
  task.set_comm("renamed");
  task.set_oom_score_adj(321);
  task.mutable_rlimits()->mutable_rlimits(RLIMIT_NOFILE)->set_cur(123);
  task.mutable_rlimits()->mutable_rlimits(RLIMIT_CORE)->set_cur(0);
  criu::creds_entry& creds = *core.mutable_creds();
  creds.set_uid(1001);
  creds.set_euid(1001);
  creds.set_suid(1001);
  creds.set_fsuid(1001);
  creds.set_gid(1002);
  creds.set_egid(1002);
  creds.set_sgid(1002);
  creds.set_fsgid(1002);
  creds.clear_groups();
  creds.add_groups(1003);
  creds.add_groups(1004);
  for (auto* set : {creds.mutable_cap_prm(), creds.mutable_cap_eff()}) {
    set->Set(0, 0);
    set->Set(1, 0);
  }
  creds.set_no_new_privs(1);
  core.set_pdeath_sig(SIGUSR2);
  state_.mutable_fs()->set_umask(027);
  state_.mutable_extra()->set_coredump_filter(0x13);
  const std::string mask("\1\0\0\0\0\0\0\0", 8);
  leader->mutable_extra()->set_cpu_affinity(mask);
  leader->mutable_extra()->set_timer_slack_ns(77'000);
  AddDescriptor(state_, 200, RegularFile("/dev/null", O_RDWR));  // above the soft limit
  const absl::Status built = Build();
  ASSERT_TRUE(built.ok()) << built;
  const absl::Status released = Release();
  ASSERT_TRUE(released.ok()) << released;
  EXPECT_TRUE(Beats(0));
  const auto process = Process();
  const auto status = *kernel::ReadStatus(process);
  EXPECT_THAT(status.uids, ::testing::Each(1001u));
  EXPECT_THAT(status.gids, ::testing::Each(1002u));
  EXPECT_THAT(status.groups, ::testing::ElementsAre(1003u, 1004u));
  EXPECT_EQ(status.cap_permitted, 0u);
  EXPECT_EQ(status.cap_effective, 0u);
  EXPECT_TRUE(status.no_new_privileges);
  EXPECT_EQ(status.umask, 027u);
  EXPECT_EQ(status.name, "renamed");
  EXPECT_EQ(kernel::ReadStat(process)->nice, 7);
  EXPECT_EQ(*kernel::ReadOomScoreAdj(process), 321);
  EXPECT_EQ(*kernel::ReadProcFile(process, "coredump_filter"), "00000013\n");
  EXPECT_EQ(*kernel::ReadProcFile(process, "timerslack_ns"), "77000\n");
  const auto limits = *kernel::ReadLimits(process);
  for (const auto& limit : limits) {
    if (limit.resource == RLIMIT_NOFILE) {
      EXPECT_EQ(limit.soft, 123u);
    }
  }
  cpu_set_t cpus;
  ASSERT_EQ(::sched_getaffinity(built_pid_, sizeof(cpus), &cpus), 0);
  EXPECT_EQ(CPU_COUNT(&cpus), 1);
}

// A page server is started by whatever somebody thought good for it; what it makes has what it had.
TEST_F(BuildTest, NothingOfTheServerIsInherited) {
  // In a thread of its own: most of it belongs to one.
  absl::Status built;
  std::thread([&] {
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(0, &one);
    const unsigned long node = 1;
    ASSERT_EQ(::sched_setaffinity(0, sizeof one, &one), 0);
    ASSERT_EQ(::syscall(SYS_ioprio_set, 1, 0, 3 << 13), 0);
    ASSERT_EQ(::prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0), 0);
    (void)::syscall(SYS_set_mempolicy, MPOL_BIND, &node, 64);  // where there is NUMA
    SetTimeSlice(7'000'000);
    ASSERT_NO_FATAL_FAILURE(Prepare(BeatAlone));
    ::prctl(PR_SET_THP_DISABLE, 0, 0, 0, 0);
    for (auto& thread : *state_.mutable_threads()) thread.mutable_extra()->clear_cpu_affinity();
    state_.mutable_extra()->clear_thp_disabled();
    state_.mutable_mm()->clear_thp_disabled();
    built = Build();
    if (built.ok()) built = Release();
  }).join();
  if (HasFatalFailure()) return;
  ASSERT_TRUE(built.ok()) << built;
  cpu_set_t cpus;
  ASSERT_EQ(::sched_getaffinity(built_pid_, sizeof cpus, &cpus), 0);
  EXPECT_EQ(CPU_COUNT(&cpus), ::get_nprocs());
  EXPECT_EQ(::syscall(SYS_ioprio_get, 1, built_pid_) >> 13, 0);
  EXPECT_EQ(TimeSlice(built_pid_), TimeSlice(0));
  EXPECT_TRUE(kernel::ReadStatus(Process())->thp_enabled);
  const auto policies = kernel::ReadProcFile(Process(), "numa_maps");
  if (policies.ok()) {
    EXPECT_THAT(*policies, ::testing::Not(HasSubstr("bind")));
  }
}

TEST_F(BuildTest, TimeSliceLoginUidAndHugePagesComeBack) {
  ASSERT_NO_FATAL_FAILURE(Prepare(BeatAlone));
  state_.mutable_threads(0)->mutable_extra()->set_time_slice_ns(5'000'000);
  state_.mutable_extra()->set_thp_disabled(true);
  const auto login = kernel::ReadLoginUid(*kernel::ProcessHandle::Open(::getpid()));
  // Somebody who has logged in stays who he is; nobody can become somebody.
  const bool may_log_in = login.ok() && *login == ~0u;
  criu::task_core_entry& task = *state_.mutable_threads(0)->mutable_core()->mutable_tc();
  if (may_log_in) task.set_loginuid(4242);
  const absl::Status built = Build();
  ASSERT_TRUE(built.ok()) << built;
  EXPECT_EQ(TimeSlice(landing_pid_), 5'000'000u);
  EXPECT_FALSE(kernel::ReadStatus(Process())->thp_enabled);
  if (may_log_in) {
    EXPECT_EQ(*kernel::ReadLoginUid(Process()), 4242u);
  }
}

// ---- failures

struct Failure {
  const char* name;
  void (*arrange)(proto::ProcessState& state, uint32_t taken_port);
  const char* words;
};

class BuildFailureTest : public BuildTest, public ::testing::WithParamInterface<Failure> {};

TEST_P(BuildFailureTest, IsExplainedAndLeavesNothing) {
  const base::UniqueFd listener(::socket(AF_INET, SOCK_STREAM, 0));
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof(address);
  ASSERT_EQ(::bind(listener.get(), reinterpret_cast<sockaddr*>(&address), length), 0);
  ASSERT_EQ(::listen(listener.get(), 1), 0);
  ASSERT_EQ(::getsockname(listener.get(), reinterpret_cast<sockaddr*>(&address), &length), 0);
  ASSERT_NO_FATAL_FAILURE(Prepare([](Report* report) {
    std::thread([report] { Beat(report, 1); }).detach();
    while (report->beats[1] == 0) ::sched_yield();
    Beat(report, 0);
  }));
  const std::string path = directory_->File("bound");
  AddDescriptor(state_, 40, UnixSocket(900, images::kSocketListening, 0, path));
  GetParam().arrange(state_, ntohs(address.sin_port));
  const absl::Status built = Build();
  EXPECT_THAT(built.ToString(), HasSubstr(GetParam().words));
  ExpectNothingLeft();
  EXPECT_NE(::access(path.c_str(), F_OK), 0) << "a socket file is left";
}

INSTANTIATE_TEST_SUITE_P(
    EveryKind, BuildFailureTest,
    ::testing::Values(
        Failure{"MissingFile",
                [](proto::ProcessState& s, uint32_t) {
                  AddDescriptor(s, 9, RegularFile("/nowhere/x", O_RDONLY));
                },
                "open /nowhere/x (fd 9): No such file"},
        Failure{"PortTaken",
                [](proto::ProcessState& s, uint32_t port) {
                  AddDescriptor(s, 9, InetSocket(SOCK_STREAM, images::kSocketListening, port));
                },
                "Address already in use"},
        Failure{"MissingExecutable",
                [](proto::ProcessState& s, uint32_t) {
                  s.mutable_mm()->set_exe_file_id(
                      AddDescriptor(s, 9, RegularFile("/nowhere/exe", O_RDONLY)));
                },
                "open the executable /nowhere/exe"},
        Failure{"MissingDirectory",
                [](proto::ProcessState& s, uint32_t) {
                  s.mutable_fs()->set_cwd_id(AddDescriptor(s, 9, RegularFile("/tmp", O_RDONLY)));
                  s.mutable_files(s.files_size() - 1)->mutable_reg()->set_name("/nowhere");
                  s.clear_descriptors();
                },
                "working directory /nowhere"},
        Failure{"DescriptorBeyondTheLimit",
                [](proto::ProcessState& s, uint32_t) {
                  AddDescriptor(s, (1u << 20) * 15, RegularFile("/dev/null", O_RDONLY));
                },
                "fd 15728640"},
        Failure{"ThreadNumberTaken",
                [](proto::ProcessState& s, uint32_t) {
                  s.mutable_threads(1)->set_tid(1);  // the reaper
                  s.mutable_pstree()->set_threads(1, 1);
                },
                "create thread 1: File exists"},
        Failure{"PendingSignalNotAllowed",
                [](proto::ProcessState& s, uint32_t) {
                  s.mutable_threads(0)->mutable_core()->mutable_tc()->set_oom_score_adj(2000);
                },
                "oom_score_adj"},
        Failure{"Seccomp",
                [](proto::ProcessState& s, uint32_t) {
                  s.mutable_threads(0)->mutable_core()->mutable_thread_core()->set_seccomp_mode(
                      criu::filter);
                },
                "seccomp"},
        Failure{"AnotherVdso",
                [](proto::ProcessState& s, uint32_t) {
                  for (auto& vma : *s.mutable_mm()->mutable_vmas()) {
                    if ((vma.status() & images::kVmaVdso) != 0) vma.set_end(vma.end() - 4096);
                  }
                },
                "vDSO has"}),
    [](const auto& tested) { return std::string(tested.param.name); });

}  // namespace
}  // namespace predump::restore
