# Target-level settings shared by every folder.

add_library(predump_settings INTERFACE)
target_include_directories(predump_settings INTERFACE ${CMAKE_SOURCE_DIR} ${CMAKE_BINARY_DIR})
target_compile_definitions(predump_settings INTERFACE _GNU_SOURCE)
target_compile_options(predump_settings INTERFACE
  -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wno-sign-conversion -Wnon-virtual-dtor -Werror
  -fno-omit-frame-pointer)

if(PREDUMP_SANITIZE)
  list(JOIN PREDUMP_SANITIZE "," _sanitizers)
  target_compile_options(predump_settings INTERFACE -fsanitize=${_sanitizers} -fno-sanitize-recover=all)
  target_link_options(predump_settings INTERFACE -fsanitize=${_sanitizers})
endif()

# predump_library(NAME SOURCES... [DEPS ...]): one library per folder.
function(predump_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS" ${ARGN})
  add_library(${name} STATIC ${ARG_SOURCES})
  target_link_libraries(${name} PUBLIC predump_settings ${ARG_DEPS})
endfunction()

# predump_test(NAME SOURCES ... DEPS ... [LABELS ...] [TIMEOUT seconds]): one GoogleTest binary, one ctest test.
function(predump_test name)
  cmake_parse_arguments(ARG "" "TIMEOUT" "SOURCES;DEPS;LABELS" ${ARGN})
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 120)
  endif()
  if(NOT ARG_LABELS)
    set(ARG_LABELS unit)
  endif()
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE predump_settings ${ARG_DEPS} GTest::gtest GTest::gmock GTest::gtest_main)
  # Tests are many and each runs for a moment: compiling them fast is worth more than fast tests.
  target_compile_options(${name} PRIVATE -O0)
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
  add_test(NAME ${name} COMMAND ${name})
  set_tests_properties(${name} PROPERTIES LABELS "${ARG_LABELS}" TIMEOUT ${ARG_TIMEOUT}
    SKIP_REGULAR_EXPRESSION "\\[  SKIPPED \\]")  # so that nobody overlooks it
endfunction()
