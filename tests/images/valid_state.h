// A small state that passes validation: one thread, three files, two mappings.
#ifndef PREDUMP_TESTS_IMAGES_VALID_STATE_H_
#define PREDUMP_TESTS_IMAGES_VALID_STATE_H_

#include "proto/state.pb.h"

namespace predump::images::testing {

proto::ProcessState ValidState();

}  // namespace predump::images::testing

#endif  // PREDUMP_TESTS_IMAGES_VALID_STATE_H_
