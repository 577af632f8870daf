# The program is copied to other hosts of the same distribution (scripts, ssh): whatever is not the
# C library goes into it, so that nothing has to be installed there. Included before the libraries
# are looked for; use_static_libraries() is called after.
set(Protobuf_USE_STATIC_LIBS ON)
set(OPENSSL_USE_STATIC_LIBS ON)
# A build directory from before remembers others.
foreach(variable Protobuf_LIBRARY_DEBUG Protobuf_LIBRARY_RELEASE Protobuf_LITE_LIBRARY_DEBUG
        Protobuf_LITE_LIBRARY_RELEASE Protobuf_PROTOC_LIBRARY_DEBUG Protobuf_PROTOC_LIBRARY_RELEASE
        OPENSSL_CRYPTO_LIBRARY OPENSSL_SSL_LIBRARY)
  if("${${variable}}" MATCHES "\\.so$")
    unset(${variable} CACHE)
  endif()
endforeach()

# Debian's abseil describes its shared libraries; the archives lie beside them. The libraries to link
# with are the same, for abseil names all of them for both.
function(predump_abseil_from_archives)
  get_property(targets DIRECTORY PROPERTY IMPORTED_TARGETS)
  foreach(target IN LISTS targets)
    if(NOT target MATCHES "^absl::")
      continue()
    endif()
    get_target_property(type ${target} TYPE)
    if(NOT type STREQUAL SHARED_LIBRARY)
      continue()
    endif()
    get_target_property(shared ${target} LOCATION)
    string(REGEX REPLACE "\\.so(\\.[0-9.]+)?$" ".a" archive "${shared}")
    if(NOT EXISTS "${archive}")
      message(FATAL_ERROR "${target}: there is no ${archive} beside ${shared}")
    endif()
    get_target_property(configurations ${target} IMPORTED_CONFIGURATIONS)
    foreach(configuration IN LISTS configurations)
      set_target_properties(${target} PROPERTIES IMPORTED_LOCATION_${configuration} "${archive}"
        IMPORTED_SONAME_${configuration} "" IMPORTED_NO_SONAME_${configuration} TRUE)
    endforeach()
  endforeach()
endfunction()

# predump_archive(TARGET NAME...): archives that need those behind them.
function(predump_archive target)
  add_library(${target} INTERFACE)
  foreach(name IN LISTS ARGN)
    find_library(predump_archive_${name} lib${name}.a REQUIRED)
    target_link_libraries(${target} INTERFACE ${predump_archive_${name}})
  endforeach()
endfunction()

function(use_static_libraries)
  predump_abseil_from_archives()
  # Debian has no archive of fmt.
  set_target_properties(spdlog::spdlog_header_only PROPERTIES
    INTERFACE_LINK_LIBRARIES "Threads::Threads;fmt::fmt-header-only")
endfunction()
