#include "src/pageserver/stored_extra.h"

#include "src/base/errors.h"
#include "src/images/image_file.h"
#include "src/images/state_images.h"

namespace predump::pageserver {

absl::StatusOr<proto::StoredExtra> ReadStoredExtra(int directory_fd) {
  PREDUMP_ASSIGN_OR_RETURN(images::ImageReader reader,
                           images::ImageReader::Open(directory_fd, images::kExtraName,
                                                     images::ImageMagic::kPredumpExtra));
  proto::StoredExtra extra;
  PREDUMP_RETURN_IF_ERROR(reader.Single(extra));
  return extra;
}

}  // namespace predump::pageserver
