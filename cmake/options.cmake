# Build options. Anything switched off is said aloud at configure time.
option(PREDUMP_BENCH "Build the benchmarks under bench/" ON)
option(PREDUMP_FUZZ "Build the libFuzzer targets (needs clang 14)" OFF)
option(PREDUMP_BPF "Build the BPF programs (needs clang and bpftool); without them the fallbacks serve" ON)
set(PREDUMP_SANITIZE "" CACHE STRING "Sanitizers for the whole build, for example address;undefined")

set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_C_STANDARD 11)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)

find_program(CCACHE_PROGRAM ccache)
if(CCACHE_PROGRAM)
  set(CMAKE_C_COMPILER_LAUNCHER ${CCACHE_PROGRAM})
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CCACHE_PROGRAM})
endif()
