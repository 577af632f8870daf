#include "src/predump/survey.h"

#include <utility>

#include "absl/time/clock.h"
#include "src/base/errors.h"

namespace predump {
namespace {

constexpr int kMostLooks = 5;
// No event tells of a descriptor that is closed. Longer than one read of a file of /proc takes.
constexpr absl::Duration kPause = absl::Milliseconds(10);

}  // namespace

absl::StatusOr<Surveyed> LookAgainWhileBlocked(absl::FunctionRef<absl::StatusOr<Surveyed>()> look,
                                               absl::Duration pause) {
  for (int looks = 1;; ++looks) {
    PREDUMP_ASSIGN_OR_RETURN(Surveyed seen, look());
    if (seen.survey.blockers.empty() || looks == kMostLooks) return seen;
    absl::SleepFor(pause);
  }
}

absl::StatusOr<Surveyed> SurveyProcess(LayoutReader& layout, checkpoint::Capturer& capturer) {
  return LookAgainWhileBlocked(
      [&]() -> absl::StatusOr<Surveyed> {
        PREDUMP_ASSIGN_OR_RETURN(pagemap::VmaList vmas, layout.Read());
        PREDUMP_ASSIGN_OR_RETURN(checkpoint::Survey survey, capturer.Survey(vmas));
        return Surveyed{std::move(vmas), std::move(survey)};
      },
      kPause);
}

}  // namespace predump
