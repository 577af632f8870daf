#include "src/kernel/procfs.h"

#include <fcntl.h>
#include <linux/auxvec.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>

#include <algorithm>
#include <atomic>
#include <thread>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "src/base/errors.h"
#include "tests/kernel/child_process.h"

namespace predump::kernel {
namespace {

using testing::ElementsAre;

TEST(ParseMapsTest, FieldsOfEveryKind) {
  const auto maps = ParseMaps(
      "55d0c5a00000-55d0c5a02000 r-xp 00001000 fe:01 1234                       /usr/bin/a b (c)\n"
      "7f0000000000-7f0000001000 rw-s 00000000 00:01 77                         /dev/zero "
      "(deleted)\n"
      "7f1000000000-7f1000001000 ---p 00000000 00:00 0 \n"
      "7f2000000000-7f2000001000 rw-p 00000000 00:00 0                          [anon:my name]\n"
      "7f3000000000-7f3000002000 r--p 00000000 fe:01 9                          /tmp/new\\012line\n"
      "7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0                          [stack]\n"
      "7ffc00100000-7ffc00102000 r-xp 00000000 00:00 0                          [vdso]\n"
      "ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]\n");
  ASSERT_TRUE(maps.ok()) << maps.status();
  ASSERT_EQ(maps->size(), 8u);
  const MapsEntry& code = (*maps)[0];
  EXPECT_EQ(code.range, base::AddressRange::FromOrdered(0x55d0c5a00000, 0x55d0c5a02000));
  EXPECT_EQ(code.prot, PROT_READ | PROT_EXEC);
  EXPECT_FALSE(code.shared);
  EXPECT_EQ(code.file_offset, 0x1000u);
  EXPECT_EQ(code.device, makedev(0xfe, 1));
  EXPECT_EQ(code.inode, 1234u);
  EXPECT_EQ(code.path, "/usr/bin/a b (c)");
  EXPECT_FALSE(code.deleted);
  EXPECT_TRUE((*maps)[1].shared);
  EXPECT_TRUE((*maps)[1].deleted);
  EXPECT_EQ((*maps)[1].path, "/dev/zero");
  EXPECT_EQ((*maps)[2].prot, PROT_NONE);
  EXPECT_EQ((*maps)[2].path, "");
  EXPECT_EQ((*maps)[3].path, "[anon:my name]");
  EXPECT_FALSE((*maps)[3].IsKernelProvided());
  EXPECT_EQ((*maps)[4].path, "/tmp/new\nline");
  EXPECT_FALSE((*maps)[5].IsKernelProvided());
  EXPECT_TRUE((*maps)[6].IsKernelProvided());
  EXPECT_EQ((*maps)[7].range.end().value(), 0xffffffffff601000u);
}

TEST(ParseMapsTest, WhatIsNotALineIsDataLoss) {
  for (const char* text : {"7f00-7e00 rw-p 00000000 00:00 0\n", "7f00 rw-p 00000000 00:00 0\n",
                           "7f00-8f00 rw 00000000 00:00 0\n", "7f00-8f00 rw-p x 00:00 0\n",
                           "7f00-8f00 rw-p 00000000 00:00\n", "hello\n"}) {
    EXPECT_EQ(ParseMaps(text).status().code(), absl::StatusCode::kDataLoss) << text;
  }
  EXPECT_TRUE(ParseMaps("")->empty());
}

TEST(ParseSmapsTest, FlagsAndKeysOfEachMapping) {
  const auto flags = ParseSmapsFlags(
      "7f0000000000-7f0000001000 rw-p 00000000 00:00 0 \n"
      "Size:                  4 kB\n"
      "Pss_Dirty:             0 kB\n"
      "THPeligible:           0\n"
      "ProtectionKey:         3\n"
      "VmFlags: rd wr mr mw me ac sd uw \n"
      "7f1000000000-7f1000001000 r--s 00000000 00:01 5      /a: b\n"
      "VmFlags: rd sh zz \n");
  ASSERT_TRUE(flags.ok()) << flags.status();
  ASSERT_EQ(flags->size(), 2u);
  EXPECT_EQ((*flags)[0].protection_key, 3);
  EXPECT_TRUE((*flags)[0].Has(VmFlag::kUffdWriteProtect));
  EXPECT_TRUE((*flags)[0].Has(VmFlag::kSoftDirty));
  EXPECT_FALSE((*flags)[0].Has(VmFlag::kUnknown));
  EXPECT_TRUE((*flags)[1].Has(VmFlag::kShared));
  EXPECT_TRUE((*flags)[1].Has(VmFlag::kUnknown));
  EXPECT_EQ(ParseSmapsFlags("VmFlags: rd\n").status().code(), absl::StatusCode::kDataLoss);
}

constexpr char kStatTail[] =
    " S 41 42 43 34816 44 4194560 1 2 3 4 5 6 7 8 20 -5 3 0 987654 1000 100 18446744073709551615 "
    "4194304 4202496 140737488346000 0 0 0 65536 4096 2 0 0 0 17 1 50 2 0 0 0 6303248 6304000 "
    "30000000 140737488346500 140737488346600 140737488346600 140737488347000 256\n";

TEST(ParseStatTest, NamesWithParenthesesSpacesAndNewlines) {
  for (const std::string name : {"bash", "a) R 1", "((", "x\ny", ""}) {
    const auto stat = ParseStat("40 (" + name + ")" + kStatTail);
    ASSERT_TRUE(stat.ok()) << stat.status();
    EXPECT_EQ(stat->comm, name);
    EXPECT_EQ(stat->pid, 40);
    EXPECT_EQ(stat->state, 'S');
    EXPECT_EQ(stat->ppid, 41);
    EXPECT_EQ(stat->process_group, 42);
    EXPECT_EQ(stat->session, 43);
    EXPECT_EQ(stat->tty, 34816);
    EXPECT_EQ(stat->nice, -5);
    EXPECT_EQ(stat->thread_count, 3);
    EXPECT_EQ(stat->start_time_ticks, 987654u);
    EXPECT_EQ(stat->start_code, 4194304u);
    EXPECT_EQ(stat->start_stack, 140737488346000u);
    EXPECT_EQ(stat->exit_signal, 17);
    EXPECT_EQ(stat->last_cpu, 1);
    EXPECT_EQ(stat->realtime_priority, 50u);
    EXPECT_EQ(stat->policy, 2u);
    EXPECT_EQ(stat->start_data, 6303248u);
    EXPECT_EQ(stat->start_brk, 30000000u);
    EXPECT_EQ(stat->env_end, 140737488347000u);
    EXPECT_EQ(stat->exit_code, 256);
  }
}

TEST(ParseStatTest, TruncatedLinesAreDataLoss) {
  const std::string whole = std::string("40 (bash)") + kStatTail;
  // The last two bytes are the last digit and the newline.
  for (size_t length = 0; length + 5 < whole.size(); length += 7) {
    EXPECT_EQ(ParseStat(whole.substr(0, length)).status().code(), absl::StatusCode::kDataLoss)
        << length;
  }
}

TEST(ParseStatusTest, RecordedText) {
  const auto status = ParseStatus(
      "Name:\tmy prog\nUmask:\t0027\nState:\tT (stopped)\nTgid:\t12\nNgid:\t0\nPid:\t13\nPPid:\t1\n"
      "TracerPid:\t99\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nFDSize:\t64\nGroups:\t4 24 27 \n"
      "NStgid:\t12\t1\nNSpid:\t13\t2\nNSpgid:\t12\t0\nNSsid:\t12\t0\nVmSize:\t  100 kB\n"
      "CoreDumping:\t0\nTHP_enabled:\t1\nThreads:\t2\nSigQ:\t3/63448\nSigPnd:\t0000000000000200\n"
      "ShdPnd:\t8000000000000000\nSigBlk:\t0000000000010000\nSigIgn:\t0000000000001000\n"
      "SigCgt:\t0000000180004002\nCapInh:\t0\nCapPrm:\t000001ffffffffff\nCapEff:\t1\n"
      "CapBnd:\t2\nCapAmb:\t4\nNoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t3\nNewLine:\twhat\n");
  ASSERT_TRUE(status.ok()) << status.status();
  EXPECT_EQ(status->name, "my prog");
  EXPECT_EQ(status->umask, 027u);
  EXPECT_EQ(status->state, 'T');
  EXPECT_EQ(status->tracer_pid, 99);
  EXPECT_THAT(status->uids, ElementsAre(1, 2, 3, 4));
  EXPECT_THAT(status->gids, ElementsAre(5, 6, 7, 8));
  EXPECT_THAT(status->groups, ElementsAre(4, 24, 27));
  EXPECT_THAT(status->namespace_pids, ElementsAre(13, 2));
  EXPECT_TRUE(status->has_memory);
  EXPECT_EQ(status->queued_signals, 3u);
  EXPECT_EQ(status->queued_signals_limit, 63448u);
  EXPECT_EQ(status->pending_thread, 0x200u);
  EXPECT_EQ(status->pending_process, 1ull << 63);
  EXPECT_EQ(status->caught, 0x180004002u);
  EXPECT_EQ(status->cap_permitted, 0x1ffffffffffu);
  EXPECT_TRUE(status->no_new_privileges);
  EXPECT_EQ(status->seccomp_mode, 2);
  EXPECT_EQ(status->seccomp_filters, 3);
}

TEST(ParseStatusTest, NonsenseIsDataLoss) {
  for (const char* text : {"", "Name:\tx\n", "Pid:\tx\n", "Pid:\t1\nUid:\t1\t2\n",
                           "Pid:\t1\nSigBlk:\tzz\n", "Pid:\t1\nUmask:\t9\n"}) {
    EXPECT_EQ(ParseStatus(text).status().code(), absl::StatusCode::kDataLoss) << text;
  }
}

TEST(ParseSyscallTest, RunningBlockedAndOutside) {
  EXPECT_TRUE(ParseSyscall("running\n")->running);
  const auto blocked =
      ParseSyscall("202 0x7f00 0x80 0x0 0x0 0x0 0xffffffffffffffff 0x7ffd0 0x7f1\n");
  ASSERT_TRUE(blocked.ok()) << blocked.status();
  EXPECT_EQ(blocked->number, 202);
  EXPECT_EQ(blocked->arguments[0], 0x7f00u);
  EXPECT_EQ(blocked->arguments[5], ~0ull);
  EXPECT_EQ(blocked->instruction_pointer, 0x7f1u);
  EXPECT_EQ(ParseSyscall("-1 0x7ffd0 0x7f1\n")->number, -1);
  EXPECT_FALSE(ParseSyscall("202 0x1\n").ok());
}

TEST(ParseLimitsTest, NamesWithSpacesAndUnlimited) {
  const auto limits = ParseLimits(
      "Limit                     Soft Limit           Hard Limit           Units     \n"
      "Max cpu time              unlimited            unlimited            seconds   \n"
      "Max open files            1024                 524288               files     \n"
      "Max nice priority         0                    0                    \n"
      "Max something new         1                    2                    things    \n");
  ASSERT_TRUE(limits.ok()) << limits.status();
  ASSERT_EQ(limits->size(), 4u);
  EXPECT_EQ((*limits)[0].soft, RLIM_INFINITY);
  EXPECT_EQ((*limits)[1].resource, RLIMIT_NOFILE);
  EXPECT_EQ((*limits)[1].soft, 1024u);
  EXPECT_EQ((*limits)[1].hard, 524288u);
  EXPECT_EQ((*limits)[3].resource, -1);
}

TEST(ParseFdInfoTest, RepeatedKeysAndKeysWithoutColon) {
  const auto info = ParseFdInfo(
      "pos:\t10\nflags:\t02100002\nmnt_id:\t15\nino:\t99\n"
      "tfd:        5 events:       19 data:                5  pos:0 ino:1 sdev:2\n"
      "tfd:        6 events:       19 data:                6  pos:0 ino:1 sdev:2\n"
      "inotify wd:1 ino:2 sdev:3 mask:fff\n");
  ASSERT_TRUE(info.ok()) << info.status();
  EXPECT_EQ(info->position, 10);
  EXPECT_EQ(info->flags, 02100002u);
  EXPECT_EQ(info->mount_id, 15);
  EXPECT_EQ(info->inode, 99u);
  EXPECT_EQ(info->Find("tfd")->substr(0, 2), "5 ");
  EXPECT_EQ(*info->Find("inotify"), "wd:1 ino:2 sdev:3 mask:fff");
  EXPECT_FALSE(info->Find("nothing").has_value());
  EXPECT_EQ(info->lines.size(), 7u);
  EXPECT_FALSE(ParseFdInfo("flags:\t02\n").ok());
  EXPECT_FALSE(ParseFdInfo("pos:\tx\n").ok());
}

TEST(ParseTimersTest, AllFields) {
  const auto timers = ParseTimers(
      "ID: 0\nsignal: 34/0000000000abcdef\nnotify: signal/tid.77\nClockID: 1\n"
      "ID: 5\nsignal: 10/0\nnotify: none/pid.3\nClockID: -2\n");
  ASSERT_TRUE(timers.ok()) << timers.status();
  ASSERT_EQ(timers->size(), 2u);
  EXPECT_EQ((*timers)[0].signal_value, 0xabcdefu);
  EXPECT_TRUE((*timers)[0].notify_is_tid);
  EXPECT_EQ((*timers)[0].notify_pid, 77);
  EXPECT_EQ((*timers)[1].id, 5);
  EXPECT_EQ((*timers)[1].notify, "none");
  EXPECT_EQ((*timers)[1].clock, -2);
  EXPECT_FALSE(ParseTimers("signal: 1/0\n").ok());
}

TEST(ProcfsTest, OwnProcessAgreesWithSystemCalls) {
  const auto self = ProcessHandle::Open(::getpid());
  ASSERT_TRUE(self.ok()) << self.status();
  const auto stat = ReadStat(*self);
  ASSERT_TRUE(stat.ok()) << stat.status();
  EXPECT_EQ(stat->pid, ::getpid());
  EXPECT_EQ(stat->ppid, ::getppid());
  EXPECT_EQ(stat->process_group, ::getpgrp());
  EXPECT_EQ(stat->session, ::getsid(0));
  EXPECT_EQ(stat->start_time_ticks, self->start_time_ticks());
  const auto status = ReadStatus(*self);
  ASSERT_TRUE(status.ok()) << status.status();
  EXPECT_EQ(status->uids[0], ::getuid());
  const mode_t mask = ::umask(077);
  ::umask(mask);
  EXPECT_EQ(status->umask, mask);
  EXPECT_TRUE(status->has_memory);

  const auto maps = ReadMaps(*self);
  ASSERT_TRUE(maps.ok()) << maps.status();
  const base::RemoteAddress here(reinterpret_cast<uint64_t>(&kStatTail));
  EXPECT_TRUE(std::any_of(maps->begin(), maps->end(),
                          [&](const MapsEntry& entry) { return entry.range.Contains(here); }));
  const auto flags = ReadSmapsFlags(*self);
  ASSERT_TRUE(flags.ok()) << flags.status();
  EXPECT_GE(flags->size() + 2, maps->size());

  const int event = ::eventfd(7, EFD_CLOEXEC);
  EXPECT_THAT(*ListDescriptors(*self), testing::Contains(event));
  const auto info = ReadFdInfo(*self, event);
  ASSERT_TRUE(info.ok()) << info.status();
  EXPECT_EQ(*info->Find("eventfd-count"), "7");
  EXPECT_NE(info->flags & O_CLOEXEC, 0u);
  EXPECT_EQ(*ReadProcLink(*self, absl::StrCat("fd/", event)), "anon_inode:[eventfd]");
  ::close(event);

  EXPECT_THAT(*ListThreads(*self), testing::Contains(::getpid()));
  const auto auxv = ReadAuxv(*self);
  ASSERT_TRUE(auxv.ok()) << auxv.status();
  EXPECT_THAT(*auxv, testing::Contains(testing::Pair(AT_PAGESZ, base::PageSize())));
  EXPECT_GE(ListNamespaces(*self)->size(), 7u);
  EXPECT_EQ(ReadLimits(*self)->size(), 16u);
  EXPECT_TRUE(ReadOomScoreAdj(*self).ok());
  EXPECT_TRUE(ReadPersonality(*self).ok());
  EXPECT_TRUE(ReadTimers(*self).ok());
}

TEST(ProcfsTest, OddNameIsReadBack) {
  ChildProcess child([] {
    ::prctl(PR_SET_NAME, "a) b\n(c");
    for (;;) ::pause();
  });
  const auto process = ProcessHandle::Open(child.pid());
  ASSERT_TRUE(Eventually([&] { return ReadComm(*process).value_or("") == "a) b\n(c"; }));
  EXPECT_EQ(ReadStat(*process)->comm, "a) b\n(c");
  EXPECT_EQ(ReadStat(*process)->ppid, ::getpid());
  EXPECT_EQ(ReadThreadComm(*process, child.pid()).value_or(""), "a) b\n(c");
}

TEST(ProcfsTest, ExitedProcessIsTargetExitedEverywhere) {
  ChildProcess child([] {
    for (;;) ::pause();
  });
  const pid_t pid = child.pid();
  const auto process = ProcessHandle::Open(pid);
  ASSERT_TRUE(process.ok());
  child.Kill();
  EXPECT_TRUE(base::IsTargetExited(ReadStat(*process).status()));
  EXPECT_TRUE(base::IsTargetExited(ReadMaps(*process).status()));
  EXPECT_TRUE(base::IsTargetExited(ListThreads(*process).status()));
  EXPECT_TRUE(base::IsTargetExited(ReadThreadStatus(*process, pid).status()));
  EXPECT_TRUE(base::IsTargetExited(ReadProcLink(*process, "exe").status()));
  EXPECT_TRUE(base::IsTargetExited(process->SendSignal(0)));
  EXPECT_TRUE(base::IsTargetExited(process->GetDescriptor(0).status()));
  EXPECT_TRUE(base::IsTargetExited(ProcessHandle::Open(pid).status()));
  EXPECT_TRUE(*process->HasExited());
}

// Its memory is gone first, and unmapped, and only then is the pidfd readable.
TEST(ProcfsTest, ProcessOnItsWayOutIsTargetExited) {
  constexpr size_t kSize = size_t{256} << 20;
  SharedValue<std::atomic<bool>> ready;
  ChildProcess child([&] {
    void* memory =
        ::mmap(nullptr, kSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    ::madvise(memory, kSize, MADV_NOHUGEPAGE);
    ::memset(memory, 1, kSize);
    *ready = true;
    for (;;) ::pause();
  });
  ASSERT_TRUE(Eventually([&] { return ready->load(); }));
  const auto process = ProcessHandle::Open(child.pid());
  ASSERT_TRUE(process.ok()) << process.status();
  ASSERT_TRUE(process->SendSignal(SIGKILL).ok());
  absl::Status status;
  while (status.ok()) status = process->OpenProc("pagemap", O_RDONLY).status();
  EXPECT_TRUE(base::IsTargetExited(status)) << status;
}

// Its memory file cannot be opened by way of the leader any more, but it goes on.
TEST(ProcfsTest, ProcessWhoseLeaderEndedIsNotTargetExited) {
  ChildProcess child([] {
    std::thread([] {
      for (;;) ::pause();
    }).detach();
    ::syscall(SYS_exit, 0);
  });
  const auto process = ProcessHandle::Open(child.pid());
  ASSERT_TRUE(process.ok()) << process.status();
  ASSERT_TRUE(Eventually([&] { return !process->OpenProc("pagemap", O_RDONLY).ok(); }));
  const absl::Status status = process->OpenProc("pagemap", O_RDONLY).status();
  EXPECT_EQ(base::ErrnoOf(status), ESRCH) << status;
  EXPECT_FALSE(base::IsTargetExited(status)) << status;
}

TEST(ProcessHandleTest, KernelThreadsAndThreadsAreRefused) {
  const auto kthreadd = ProcessHandle::Open(2);
  EXPECT_EQ(kthreadd.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(kthreadd.status().message()), testing::HasSubstr("kernel thread"));
}

TEST(ProcessHandleTest, ThreadThatLeadsNoGroupIsRefused) {
  std::atomic<pid_t> tid = 0;
  std::atomic<bool> stop = false;
  std::thread thread([&] {
    tid = ::gettid();
    while (!stop) ::usleep(100);
  });
  ASSERT_TRUE(Eventually([&] { return tid != 0; }));
  EXPECT_EQ(ProcessHandle::Open(tid).status().code(), absl::StatusCode::kInvalidArgument);
  stop = true;
  thread.join();
}

TEST(ProcessHandleTest, DescriptorsAreTakenCloseOnExec) {
  ChildProcess child([] {
    ::dup2(::eventfd(42, 0), 50);
    for (;;) ::pause();
  });
  const auto process = ProcessHandle::Open(child.pid());
  ASSERT_TRUE(Eventually([&] { return process->GetDescriptor(50).ok(); }));
  const auto fd = process->GetDescriptor(50);
  EXPECT_NE(::fcntl(fd->get(), F_GETFD) & FD_CLOEXEC, 0);
  uint64_t value = 0;
  EXPECT_EQ(::read(fd->get(), &value, sizeof value), ssize_t{sizeof value});
  EXPECT_EQ(value, 42u);
  EXPECT_EQ(base::ErrnoOf(process->GetDescriptor(999).status()), EBADF);
}

}  // namespace
}  // namespace predump::kernel
