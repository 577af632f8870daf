// What keeps a process from moving, seen often enough to tell what stays from what passes.
#ifndef PREDUMP_PREDUMP_SURVEY_H_
#define PREDUMP_PREDUMP_SURVEY_H_

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "src/checkpoint/capture.h"
#include "src/pagemap/vma.h"
#include "src/predump/layout_reader.h"

namespace predump {

struct Surveyed {
  pagemap::VmaList vmas;
  checkpoint::Survey survey;
};

// Looks at the process by `look` until nothing but children keeps it from moving, a few times at
// most, `pause` apart: a file of /proc that it reads at this instant, or a pipe to a child that has
// just ended, is gone in a moment. Returns what the last look saw.
absl::StatusOr<Surveyed> LookAgainWhileBlocked(absl::FunctionRef<absl::StatusOr<Surveyed>()> look,
                                               absl::Duration pause);

// The same with a look through `layout` and `capturer`. Takes 40 ms more where it is blocked for
// good. Errors: TargetExited.
absl::StatusOr<Surveyed> SurveyProcess(LayoutReader& layout, checkpoint::Capturer& capturer);

}  // namespace predump

#endif  // PREDUMP_PREDUMP_SURVEY_H_
