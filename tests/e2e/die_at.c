/* Preloaded into an engine or a server: kills it at one instant of the handover, too short for
 * anybody else.
 *
 * PREDUMP_DIE_AT: "before-journal" and "after-journal", around the rename(2) by which the journal's
 * entry begins to count, or "after-stop", right after the SIGSTOP for the process is queued. Of a
 * server: "before-publish-N" and "after-publish-N", around the renameat2(2) that gives image
 * directory N its name. Of a restore: "sendfile", before any page is sent, and "ptrace-N", before
 * its Nth ptrace(2).
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

static int now_is(const char* moment) {
  const char* wanted = getenv("PREDUMP_DIE_AT");
  return wanted != NULL && strcmp(wanted, moment) == 0;
}

static void die(void) {
  kill(getpid(), SIGKILL);
  for (;;) pause();
}

ssize_t sendfile(int to, int from, off_t* offset, size_t count) {
  if (now_is("sendfile")) die();
  return syscall(SYS_sendfile, to, from, offset, count);
}

long ptrace(int request, ...) {
  static long (*real)(int, ...);
  static long calls;
  if (real == NULL) real = (long (*)(int, ...))dlsym(RTLD_NEXT, "ptrace");
  const char* wanted = getenv("PREDUMP_DIE_AT");
  ++calls;
  if (wanted != NULL && strncmp(wanted, "ptrace-", 7) == 0 && atol(wanted + 7) == calls) die();
  va_list list;
  va_start(list, request);
  const pid_t pid = va_arg(list, pid_t);
  void* address = va_arg(list, void*);
  void* data = va_arg(list, void*);
  va_end(list);
  return real(request, pid, address, data);
}

static int is_journal_entry(const char* path) {
  const size_t length = strlen(path);
  return length > 5 && strcmp(path + length - 5, ".json") == 0;
}

int rename(const char* from, const char* to) {
  if (is_journal_entry(to) && now_is("before-journal")) die();
  const int result = renameat(AT_FDCWD, from, AT_FDCWD, to);
  if (is_journal_entry(to) && now_is("after-journal")) die();
  return result;
}

int renameat2(int from_at, const char* from, int to_at, const char* to, unsigned flags) {
  char moment[64];
  snprintf(moment, sizeof moment, "before-publish-%s", to);
  if (now_is(moment)) die();
  const int result = (int)syscall(SYS_renameat2, from_at, from, to_at, to, flags);
  const int error = errno;
  snprintf(moment, sizeof moment, "after-publish-%s", to);
  if (now_is(moment)) die();
  errno = error;
  return result;
}

long syscall(long number, ...) {
  static long (*real)(long, ...);
  if (real == NULL) real = (long (*)(long, ...))dlsym(RTLD_NEXT, "syscall");
  va_list list;
  va_start(list, number);
  long arguments[6];
  for (int i = 0; i < 6; ++i) arguments[i] = va_arg(list, long);
  va_end(list);
  const long result = real(number, arguments[0], arguments[1], arguments[2], arguments[3],
                           arguments[4], arguments[5]);
  const int error = errno;
  if (number == SYS_pidfd_send_signal && arguments[1] == SIGSTOP && now_is("after-stop")) die();
  errno = error;
  return result;
}
