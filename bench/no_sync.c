// Loaded ahead of the C library (LD_PRELOAD): nothing waits for a disk. For comparing what a page
// server costs with one that never waits.
#include <unistd.h>

int fsync(int fd) {
  (void)fd;
  return 0;
}

int fdatasync(int fd) {
  (void)fd;
  return 0;
}

int syncfs(int fd) {
  (void)fd;
  return 0;
}
