/* SPDX-License-Identifier: GPL-2.0 */
/* iter/task_vma over the mappings of one process: one record each, by ascending address. */
#include "src/kernel/bpf/types.bpf.h"

char LICENSE[] SEC("license") = "GPL";

SEC("iter/task_vma")
int capture_vma(struct bpf_iter__task_vma* ctx) {
  struct vm_area_struct* vma = ctx->vma;
  struct task_struct* task = ctx->task;
  struct VmaRecord record = {};
  struct file* file;

  /* A thread with a descriptor table of its own brings the same mappings once more. */
  if (!vma || !task || task->pid != task->tgid) return 0;
  record.start = vma->vm_start;
  record.end = vma->vm_end;
  record.vm_flags = vma->vm_flags;
  record.page_offset = vma->vm_pgoff;
  record.operations = (__u64)vma->vm_ops;
  record.has_anon_vma = vma->anon_vma != 0;
  if (bpf_core_field_exists(vma->anon_name)) record.has_anon_name = vma->anon_name != 0;
  if (bpf_core_field_exists(vma->vm_policy)) record.has_policy = vma->vm_policy != 0;
  if (bpf_core_field_exists(vma->vm_userfaultfd_ctx.ctx))
    record.uffd_context = (__u64)vma->vm_userfaultfd_ctx.ctx;
  file = vma->vm_file;
  if (file) {
    record.has_file = 1;
    record.inode = file->f_inode->i_ino;
    record.device = user_device(file->f_inode->i_sb->s_dev);
  }
  bpf_seq_write(ctx->meta->seq, &record, sizeof(record));
  return 0;
}
