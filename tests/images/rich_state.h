// A state by hand in which nearly everything is there that a state can hold.
#ifndef PREDUMP_TESTS_IMAGES_RICH_STATE_H_
#define PREDUMP_TESTS_IMAGES_RICH_STATE_H_

#include <string>

#include "proto/state.pb.h"

namespace predump::images::testing {

// siginfo_t of a signal, 128 bytes.
std::string Siginfo(int number);

// Of process 4321 with threads 4321, which is in a broken-off nanosleep(2), and 4322.
proto::ProcessState RichState();

}  // namespace predump::images::testing

#endif  // PREDUMP_TESTS_IMAGES_RICH_STATE_H_
