/* SPDX-License-Identifier: GPL-2.0 */
/* System call entry and exit of one process: which thread is inside which read, into which memory.
 *
 * sys_enter runs for every call of every process, so the process is compared first, then the call,
 * then the file. State lives in task storage: it goes away with the thread and cannot run
 * full. Making storage can fail (it gives up where another user of task storage was preempted on
 * the same CPU), finding it cannot: hence it is made beforehand wherever possible.
 */
#include "src/kernel/bpf/observed.bpf.h"

char LICENSE[] SEC("license") = "GPL";

#define SYS_READ 0
#define SYS_PREAD64 17
#define SYS_READV 19
#define SYS_PREADV 295
#define SYS_PREADV2 327
#define O_DIRECT 040000
#define S_IFMT 0170000
#define S_IFCHR 0020000
#define MAX_FDS (1 << 30)

/* include/uapi/linux/magic.h: file systems whose reads copy through the page cache, or have none */
#define EXT4_SUPER_MAGIC 0xEF53
#define XFS_SUPER_MAGIC 0x58465342
#define BTRFS_SUPER_MAGIC 0x9123683E
#define TMPFS_MAGIC 0x01021994
#define RAMFS_MAGIC 0x858458f6
#define SQUASHFS_MAGIC 0x73717368
#define PROC_SUPER_MAGIC 0x9fa0
#define SYSFS_MAGIC 0x62656572
#define CGROUP2_SUPER_MAGIC 0x63677270
#define PIPEFS_MAGIC 0x50495045
#define SOCKFS_MAGIC 0x534F434B
#define ANON_INODE_FS_MAGIC 0x09041934
#define DEVPTS_SUPER_MAGIC 0x1cd1

struct {
  __uint(type, BPF_MAP_TYPE_TASK_STORAGE);
  __uint(map_flags, BPF_F_NO_PREALLOC);
  __type(key, int);
  __type(value, struct ReadRecord);
} current_reads SEC(".maps");

/* Kept apart from current_reads so that seeding cannot write over what a trace point has seen. */
struct {
  __uint(type, BPF_MAP_TYPE_TASK_STORAGE);
  __uint(map_flags, BPF_F_NO_PREALLOC);
  __type(key, int);
  __type(value, struct ReadRecord);
} seeded_reads SEC(".maps");

/* Reads that ended while a reset was under way. */
struct {
  __uint(type, BPF_MAP_TYPE_RINGBUF);
  __uint(max_entries, 1 << 20);
} finished_reads SEC(".maps");

__u32 reset_under_way = 0;
__u64 lost_reads = 0;
__s64 seeds_left = 0;

static __always_inline bool is_read(long nr) {
  return nr == SYS_READ || nr == SYS_PREAD64 || nr == SYS_READV || nr == SYS_PREADV ||
         nr == SYS_PREADV2;
}

static __always_inline bool is_vector_read(long nr) {
  return nr == SYS_READV || nr == SYS_PREADV || nr == SYS_PREADV2;
}

static __always_inline bool copies_through_page_cache(unsigned long magic) {
  return magic == EXT4_SUPER_MAGIC || magic == XFS_SUPER_MAGIC || magic == BTRFS_SUPER_MAGIC ||
         magic == TMPFS_MAGIC || magic == RAMFS_MAGIC || magic == SQUASHFS_MAGIC ||
         magic == PROC_SUPER_MAGIC || magic == SYSFS_MAGIC || magic == CGROUP2_SUPER_MAGIC ||
         magic == PIPEFS_MAGIC || magic == SOCKFS_MAGIC || magic == ANON_INODE_FS_MAGIC ||
         magic == DEVPTS_SUPER_MAGIC;
}

/* May a read of this descriptor reach pinned pages? Whatever cannot be told counts as yes. */
static __always_inline bool may_pin(struct task_struct* task, unsigned int fd) {
  struct fdtable* table = BPF_CORE_READ(task, files, fdt);
  struct file** files = BPF_CORE_READ(table, fd);
  struct file* file = 0;
  struct inode* inode;

  if (!table || !files) return true;
  if (fd >= BPF_CORE_READ(table, max_fds)) return false; /* EBADF */
  if (bpf_probe_read_kernel(&file, sizeof(file), files + fd)) return true;
  if (!file) return false; /* EBADF */
  if (BPF_CORE_READ(file, f_flags) & O_DIRECT) return true;
  inode = BPF_CORE_READ(file, f_inode);
  if (!inode) return true;
  if (!copies_through_page_cache(BPF_CORE_READ(inode, i_sb, s_magic))) return true;
  /* A driver may do as it likes; terminals are known to copy. */
  return (BPF_CORE_READ(inode, i_mode) & S_IFMT) == S_IFCHR &&
         BPF_CORE_READ(inode, i_sb, s_magic) != DEVPTS_SUPER_MAGIC;
}

/* Takes in as much of the iovec array as is present in memory and fits. */
static __always_inline void read_vectors(struct ReadRecord* read) {
  __u32 count = read->iov_count;

  /* In one register: the verifier of Linux 6.12 knows the bound only of that which was tested. */
  barrier_var(count);
  if (read->vector_count == count || count > kInlineVectors) return;
  if (!bpf_probe_read_user(read->vectors, count * sizeof(read->vectors[0]), (void*)read->iov))
    read->vector_count = count;
}

static __always_inline void fill_read(struct ReadRecord* read, struct task_struct* task, long nr,
                                      struct pt_regs* regs) {
  __u64 buffer = BPF_CORE_READ(regs, si);
  __u64 size = BPF_CORE_READ(regs, dx);

  read->entered = bpf_ktime_get_ns();
  read->tid = observer_id(task);
  read->fd = (int)BPF_CORE_READ(regs, di);
  if (is_vector_read(nr)) {
    read->iov = buffer;
    read->iov_count = size > 1024 ? 0 : (__u32)size; /* above UIO_MAXIOV: EINVAL */
    read->vector_count = 0;
  } else {
    read->iov = 0;
    read->iov_count = 1;
    read->vector_count = 1;
    read->vectors[0].base = buffer;
    read->vectors[0].bytes = size;
  }
}

/* A record is a read from the moment `entered` is set until `nr` is negative. */
static __always_inline bool is_inside(const struct ReadRecord* read) {
  return read && read->entered && read->nr >= 0;
}

/* Kept for the snapshot first, forgotten after: a snapshot looks in the opposite order. */
static __always_inline void leave(struct ReadRecord* read) {
  __u32 count;

  if (reset_under_way) {
    if (read->iov) read_vectors(read); /* the call itself has brought the array into memory */
    count = read->vector_count;
    if (count > kInlineVectors) count = kInlineVectors;
    if (bpf_ringbuf_output(&finished_reads, read,
                           sizeof(*read) - (kInlineVectors - count) * sizeof(read->vectors[0]),
                           BPF_RB_NO_WAKEUP))
      __sync_fetch_and_add(&lost_reads, 1);
  }
  read->nr = -1;
}

/* Any entry or exit proves that a seeded thread is out of the call it was found in. */
static __always_inline void drop_seed(struct task_struct* task) {
  struct ReadRecord* seed;

  if (!seeds_left) return;
  seed = bpf_task_storage_get(&seeded_reads, task, 0, 0);
  if (!is_inside(seed)) return;
  leave(seed);
  __sync_fetch_and_add(&seeds_left, -1);
}

SEC("tp_btf/sys_enter")
int BPF_PROG(on_enter, struct pt_regs* regs, long nr) {
  struct task_struct* task;
  struct ReadRecord* read;

  if ((int)(bpf_get_current_pid_tgid() >> 32) != observed_tgid) return 0;
  task = bpf_get_current_task_btf();
  drop_seed(task);
  if (!is_read(nr) || !may_pin(task, (unsigned int)BPF_CORE_READ(regs, di))) return 0;
  read = bpf_task_storage_get(&current_reads, task, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
  if (!read) {
    __sync_fetch_and_add(&lost_reads, 1);
    return 0;
  }
  fill_read(read, task, nr, regs);
  if (read->iov) read_vectors(read);
  read->nr = nr;
  return 0;
}

SEC("tp_btf/sys_exit")
int BPF_PROG(on_sys_exit, struct pt_regs* regs, long result) {
  struct task_struct* task;
  struct ReadRecord* read;

  if ((int)(bpf_get_current_pid_tgid() >> 32) != observed_tgid) return 0;
  task = bpf_get_current_task_btf();
  drop_seed(task);
  read = bpf_task_storage_get(&current_reads, task, 0, 0);
  if (is_inside(read)) leave(read);
  return 0;
}

SEC("iter/task")
int find_process(struct bpf_iter__task* ctx) {
  struct task_struct* task = ctx->task;

  if (task) observe(task);
  return 0;
}

/* Threads without storage in the last pass of prepare_threads. */
__u32 unprepared_threads = 0;

SEC("iter/task")
int prepare_threads(struct bpf_iter__task* ctx) {
  struct task_struct* task = ctx->task;

  if (task && !bpf_task_storage_get(&current_reads, task, 0, BPF_LOCAL_STORAGE_GET_F_CREATE))
    unprepared_threads++;
  return 0;
}

/* A failure here is made good, or counted, at the thread's first read. */
SEC("tp_btf/sched_process_fork")
int BPF_PROG(on_fork, struct task_struct* parent, struct task_struct* child) {
  if (child->tgid == observed_tgid)
    bpf_task_storage_get(&current_reads, child, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
  return 0;
}

/* After the trace points are in place, and again after a loss: threads inside a read that no trace
 * point has noted. The registers of the last kernel entry stay on the stack, so a thread running in
 * user mode may look as if it were still inside its last call; its next call puts that right.
 */
SEC("iter/task")
int seed_reads(struct bpf_iter__task* ctx) {
  struct task_struct* task = ctx->task;
  struct ReadRecord* seed;
  struct pt_regs* regs;
  long nr;

  if (!task || !task->mm) return 0;
  if (is_inside(bpf_task_storage_get(&current_reads, task, 0, 0))) return 0;
  regs = (struct pt_regs*)bpf_task_pt_regs(task);
  nr = (long)BPF_CORE_READ(regs, orig_ax);
  if (!is_read(nr) || !may_pin(task, (unsigned int)BPF_CORE_READ(regs, di))) return 0;
  seed = bpf_task_storage_get(&seeded_reads, task, 0, BPF_LOCAL_STORAGE_GET_F_CREATE);
  if (!seed) {
    __sync_fetch_and_add(&lost_reads, 1);
    return 0;
  }
  if (is_inside(seed)) return 0; /* an element may be visited twice */
  seed->seeded = 1;
  fill_read(seed, task, nr, regs);
  seed->nr = nr;
  __sync_fetch_and_add(&seeds_left, 1);
  return 0;
}

SEC("iter/task")
int list_reads(struct bpf_iter__task* ctx) {
  struct task_struct* task = ctx->task;
  struct ReadRecord* read;

  if (!task) return 0;
  read = bpf_task_storage_get(&current_reads, task, 0, 0);
  if (!is_inside(read)) read = bpf_task_storage_get(&seeded_reads, task, 0, 0);
  if (is_inside(read)) bpf_seq_write(ctx->meta->seq, read, sizeof(*read));
  return 0;
}
