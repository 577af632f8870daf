// What lies in an image directory.
#ifndef PREDUMP_IMAGES_DIRECTORY_NAMES_H_
#define PREDUMP_IMAGES_DIRECTORY_NAMES_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace predump::images {

// The names in a directory, sorted. ResourceExhausted: far more than images ever are. Thread rule:
// a free function.
absl::StatusOr<std::vector<std::string>> ListNames(int directory_fd);

// Where an open directory is, for a message; "?" where that cannot be told.
std::string PathOf(int directory_fd);

}  // namespace predump::images

#endif  // PREDUMP_IMAGES_DIRECTORY_NAMES_H_
