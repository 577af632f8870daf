// The smallest process there can be, made by hand: one page that counts, and the vDSO.
//
// It counts in its own memory, so that whether it runs can be read from outside.
#ifndef PREDUMP_TESTS_PAGESERVER_HANDMADE_PROCESS_H_
#define PREDUMP_TESTS_PAGESERVER_HANDMADE_PROCESS_H_

#include <sys/types.h>

#include <cstdint>
#include <string>

#include "proto/state.pb.h"

namespace predump::pageserver {

inline constexpr uint64_t kCountingPage = 0x7e0000000000;

// What is in the page at kCountingPage: code at its start, the counter at its middle.
std::string CountingPage();

// A full state of process `pid` that is about to run that page.
proto::ProcessState HandmadeState(pid_t pid);

// Whether process `pid`, made so, makes a step within two seconds.
bool Counts(pid_t pid);

}  // namespace predump::pageserver

#endif  // PREDUMP_TESTS_PAGESERVER_HANDMADE_PROCESS_H_
