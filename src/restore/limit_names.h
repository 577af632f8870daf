// Names people know for numbers the kernel uses, for messages.
#ifndef PREDUMP_RESTORE_LIMIT_NAMES_H_
#define PREDUMP_RESTORE_LIMIT_NAMES_H_

#include <cstdint>
#include <string>

namespace predump::restore::internal {

// "RLIMIT_NOFILE".
std::string LimitName(int resource);
// "1024" or "unlimited".
std::string LimitText(uint64_t value);
// "CAP_SYS_ADMIN".
std::string CapabilityName(int bit);

}  // namespace predump::restore::internal

#endif  // PREDUMP_RESTORE_LIMIT_NAMES_H_
