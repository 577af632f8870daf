// Loading BPF skeletons and reading iterators: what the classes of this folder share. Internal.
//
// Thread rule: free functions; an Iterator belongs to one thread at a time.
#ifndef PREDUMP_KERNEL_BPF_PROGRAM_H_
#define PREDUMP_KERNEL_BPF_PROGRAM_H_

#include <bpf/libbpf.h>
#include <sys/types.h>

#include <cerrno>
#include <initializer_list>
#include <memory>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "src/base/unique_fd.h"

namespace predump::kernel::internal {

// PermissionDenied for EPERM, TargetExited never: a refused program says nothing of the target.
// Everything else is Unimplemented, with the last words of the verifier.
absl::Status RefusedProgram(int error_number, absl::string_view operation, absl::string_view log);

// A pidfd of the process `tgid`. TargetExited where there is none.
absl::StatusOr<base::UniqueFd> OpenPidfd(pid_t tgid);
// TargetExited unless the process (a zombie counts) still exists.
absl::Status CheckAlive(const base::UniqueFd& pidfd);

// An attached iterator over one process: all its threads, the leader first.
class Iterator {
 public:
  static absl::StatusOr<Iterator> Attach(const bpf_program* program, pid_t tgid);

  Iterator() = default;

  // Runs the iterator and replaces `bytes` by what it wrote. ResourceExhausted above 1 GiB, which
  // only an iterator that never ends can write.
  absl::Status Read(std::vector<char>& bytes) const;

 private:
  struct Destroy {
    void operator()(bpf_link* link) const { bpf_link__destroy(link); }
  };
  explicit Iterator(bpf_link* link) : link_(link) {}
  std::unique_ptr<bpf_link, Destroy> link_;
};

// Runs `find_process` (see observed.bpf.h) on `tgid`. TargetExited where it found nobody.
absl::Status Observe(const bpf_program* find_process, pid_t tgid, const int& observed_tgid);

// Attaches each program and puts the link where the skeleton's destroy function finds it.
absl::Status AttachTracePoints(
    std::initializer_list<std::pair<const bpf_program*, bpf_link**>> programs);

// Opens a skeleton, lets `prepare` set sizes and constants, loads it. The functions are the ones
// bpftool generates (X__open_opts, X__load, X__destroy).
template <typename Skeleton>
absl::StatusOr<std::unique_ptr<Skeleton, void (*)(Skeleton*)>> LoadSkeleton(
    Skeleton* (*open)(const bpf_object_open_opts*), int (*load)(Skeleton*),
    void (*destroy)(Skeleton*), absl::FunctionRef<int(Skeleton&)> prepare) {
  // libbpf prints to stderr otherwise; the verifier's words go into the status instead.
  libbpf_set_print(nullptr);
  std::vector<char> log(64 * 1024);
  bpf_object_open_opts options = {};
  options.sz = sizeof(options);
  options.kernel_log_buf = log.data();
  options.kernel_log_size = log.size();
  std::unique_ptr<Skeleton, void (*)(Skeleton*)> skeleton(open(&options), destroy);
  if (skeleton == nullptr) return RefusedProgram(errno, "open BPF object", "");
  int error = prepare(*skeleton);
  if (error == 0) error = load(skeleton.get());
  if (error != 0) return RefusedProgram(-error, "load BPF object", log.data());
  return skeleton;
}

}  // namespace predump::kernel::internal

#endif  // PREDUMP_KERNEL_BPF_PROGRAM_H_
