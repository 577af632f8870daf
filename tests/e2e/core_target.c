// A process to take core files of: threads in functions of known names, memory of every kind with
// known contents, and two counters far apart (or, without LARGE_MIB, on the stack) that one thread
// keeps in step.
//
//   core_target FILE LARGE_MIB [VICTIM_MIB]
//
// FILE gets made and mapped. Prints one line of JSON with the addresses, then obeys orders on its
// input: "unmap" the victim, "exec" itself anew, "exit"; each but the last is answered by a line.
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

enum { kPage = 4096, kGuardInstall = 102 };

int known_variable = 20261126;
volatile uint64_t* first_counter;
volatile uint64_t* second_counter;
static char** arguments;

static void Require(int condition, const char* what) {
  if (condition) return;
  perror(what);
  exit(1);
}

// Tells the kind and the number of the page in each of its words.
static void Fill(void* memory, size_t first, size_t pages, uint64_t kind) {
  for (size_t page = first; page < first + pages; ++page) {
    uint64_t* words = (uint64_t*)((char*)memory + page * kPage);
    for (size_t i = 0; i < kPage / sizeof *words; ++i) words[i] = kind << 32 | page;
  }
}

static void* Map(size_t pages, int prot, int flags, int fd) {
  void* memory = mmap(NULL, pages * kPage, prot, flags, fd, 0);
  Require(memory != MAP_FAILED, "mmap");
  return memory;
}

static void* MapAnonymous(size_t pages) {
  return Map(pages, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
}

static __attribute__((noinline)) void CountInStep(void) {
  for (;;) {
    ++*first_counter;
    ++*second_counter;
  }
}

static void* CountingThread(void* unused) {
  CountInStep();
  return unused;
}

// A register and a word of the stack (in the red zone) that are never more than one apart.
static __attribute__((noinline)) void* StackThread(void* unused) {
  __asm__ volatile(
      "1: incq %%rax\n"
      "movq %%rax, -8(%%rsp)\n"
      "jmp 1b"
      :
      : "a"(0)
      : "memory");
  return unused;
}

static pthread_mutex_t never_unlocked = PTHREAD_MUTEX_INITIALIZER;

static __attribute__((noinline)) int InnerOfThree(int depth) {
  pthread_mutex_lock(&never_unlocked);
  return depth;
}
static __attribute__((noinline)) int MiddleOfThree(int depth) {
  return InnerOfThree(depth + 1) + 1;
}
static __attribute__((noinline)) int OuterOfThree(int depth) {
  return MiddleOfThree(depth + 1) + 1;
}

static void* WaitingThread(void* unused) {
  OuterOfThree(1);
  return unused;
}

static void* MapPrivateFile(const char* path) {
  const int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  Require(fd >= 0, path);
  static char page[kPage];
  for (size_t i = 0; i < 16; ++i) {
    Fill(page, 0, 1, 0xf17e);
    Require(write(fd, page, kPage) == kPage, "write");
  }
  char* memory = Map(16, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd);
  close(fd);
  Fill(memory, 3, 1, 5);
  Fill(memory, 9, 2, 5);
  return memory;
}

// Written by somebody else: no page of it is in the page tables of this process.
static void* MapShared(void) {
  void* memory = Map(16, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1);
  const pid_t child = fork();
  Require(child >= 0, "fork");
  if (child == 0) {
    Fill(memory, 2, 3, 4);
    _exit(0);
  }
  Require(waitpid(child, NULL, 0) == child, "waitpid");
  return memory;
}

// `counters` is where they are if nothing large is wanted between them.
static void MakeMemory(const char* path, size_t large_mib, size_t victim_mib, uint64_t* counters,
                       void** victim) {
  char* sparse = MapAnonymous(64);
  for (size_t page = 0; page < 64; page += 2) Fill(sparse, page, 1, 1);
  char* hidden = MapAnonymous(4);
  Fill(hidden, 0, 4, 2);
  Require(mprotect(hidden, 4 * kPage, PROT_NONE) == 0, "mprotect");
  char* secret = MapAnonymous(4);
  Fill(secret, 0, 4, 3);
  Require(madvise(secret, 4 * kPage, MADV_DONTDUMP) == 0, "madvise");
  char* guarded = MapAnonymous(16);
  Fill(guarded, 0, 16, 6);
  const int has_guards = madvise(guarded + 4 * kPage, 4 * kPage, kGuardInstall) == 0;
  char* reserved = Map(1 << 18, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1);
  char* shared = MapShared();
  char* file = MapPrivateFile(path);
  const size_t large_pages = (large_mib << 8) + 2;
  char* large = MapAnonymous(large_pages);
  Fill(large, 1, large_pages - 2, 7);
  first_counter = large_mib > 0 ? (uint64_t*)large : counters;
  second_counter = large_mib > 0 ? (uint64_t*)(large + (large_pages - 1) * kPage)
                                 : counters + kPage / sizeof *counters;
  *victim = MapAnonymous((victim_mib << 8) + 1);
  Fill(*victim, 0, (victim_mib << 8) + 1, 8);
  printf(
      "{\"sparse\": %ld, \"hidden\": %ld, \"secret\": %ld, \"guarded\": %ld, \"has_guards\": %d, "
      "\"reserved\": %ld, \"shared\": %ld, \"file\": %ld, \"large\": %ld, \"large_pages\": %zu, "
      "\"victim\": %ld, \"victim_pages\": %zu, \"first_counter\": %ld, \"second_counter\": %ld}\n",
      (long)sparse, (long)hidden, (long)secret, (long)guarded, has_guards, (long)reserved,
      (long)shared, (long)file, (long)large, large_pages, (long)*victim, (victim_mib << 8) + 1,
      (long)first_counter, (long)second_counter);
  fflush(stdout);
}

static __attribute__((noinline)) void ObeyOrders(void* victim, size_t victim_pages) {
  char order[64];
  while (fgets(order, sizeof order, stdin) != NULL && strcmp(order, "exit\n") != 0) {
    if (strcmp(order, "unmap\n") == 0) Require(munmap(victim, victim_pages * kPage) == 0, "munmap");
    // It answers by its new line of addresses.
    if (strcmp(order, "exec\n") == 0) execv("/proc/self/exe", arguments);
    puts("done");
    fflush(stdout);
  }
}

int main(int argc, char** argv) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  arguments = argv;
  const size_t victim_mib = argc > 3 ? (size_t)atol(argv[3]) : 0;
  uint64_t counters[2 * kPage / sizeof(uint64_t)] = {0};
  void* victim;
  MakeMemory(argv[1], (size_t)atol(argv[2]), victim_mib, counters, &victim);
  pthread_mutex_lock(&never_unlocked);
  pthread_t thread;
  Require(pthread_create(&thread, NULL, CountingThread, NULL) == 0, "pthread_create");
  Require(pthread_create(&thread, NULL, WaitingThread, NULL) == 0, "pthread_create");
  Require(pthread_create(&thread, NULL, StackThread, NULL) == 0, "pthread_create");
  ObeyOrders(victim, (victim_mib << 8) + 1);
  return 0;
}
