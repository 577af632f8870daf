// An engine that dies at a chosen place: right before one of its system calls. A death at a random
// moment almost never falls into a window of a microsecond; this one does every time.
#ifndef PREDUMP_TESTS_KERNEL_DYING_ENGINE_H_
#define PREDUMP_TESTS_KERNEL_DYING_ENGINE_H_

#include <functional>

namespace predump::kernel {

// Runs `engine` in a child, which is killed as it enters its call number `call` (from 0) of those
// that do something to another process or wait for it. A wait counts once, however many calls it
// takes. The call is not made. False: the engine came to its end before that.
bool DiesBeforeCall(const std::function<void()>& engine, int call);

}  // namespace predump::kernel

#endif  // PREDUMP_TESTS_KERNEL_DYING_ENGINE_H_
