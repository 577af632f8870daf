# What `cmake --install` puts where, and the .deb made of the same (`./run package`).
include(GNUInstallDirs)

set(_man ${CMAKE_INSTALL_DATADIR}/man/man1)
set(_doc ${CMAKE_INSTALL_DATADIR}/doc/predump)

install(TARGETS predump RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
install(FILES docs/predump.1 DESTINATION ${_man})
foreach(_script migrate migrate-criu pre-dump-loop)
  install(PROGRAMS scripts/${_script} DESTINATION ${CMAKE_INSTALL_BINDIR} RENAME predump-${_script})
  install(FILES docs/predump-${_script}.1 DESTINATION ${_man})
endforeach()
install(FILES README.md docs/from-criu.md DESTINATION ${_doc})
install(FILES cmake/package/copyright DESTINATION ${_doc})
install(FILES cmake/package/changelog DESTINATION ${_doc} RENAME changelog)
# As Debian has them. Twice is once: an earlier installation is written over.
foreach(_file ${_man}/predump.1 ${_man}/predump-migrate.1 ${_man}/predump-migrate-criu.1
        ${_man}/predump-pre-dump-loop.1 ${_doc}/changelog)
  install(CODE "execute_process(COMMAND gzip -9nf \"\$ENV{DESTDIR}\${CMAKE_INSTALL_PREFIX}/${_file}\"
    COMMAND_ERROR_IS_FATAL ANY)")
endforeach()

set(CPACK_GENERATOR DEB)
set(CPACK_PACKAGING_INSTALL_PREFIX /usr)
set(CPACK_PACKAGE_CONTACT "predump developers <predump@localhost>")
set(CPACK_STRIP_FILES ON)
set(CPACK_PRE_BUILD_SCRIPTS ${CMAKE_SOURCE_DIR}/cmake/package/permissions.cmake)
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_PACKAGE_SECTION admin)
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS ON)
set(CPACK_DEBIAN_PACKAGE_RECOMMENDS openssh-client)
set(CPACK_DEBIAN_PACKAGE_SUGGESTS criu)
set(CPACK_PACKAGE_DESCRIPTION
"predump copies the memory of a process in rounds while the process runs, each
round only the pages written since the one before. Then it freezes the process
for milliseconds, sends the rest of its state, and the process goes on at the
other host: same pid, same memory, same open files, same listening sockets. If
anything fails before that, it runs on where it was.
.
It stores and restores CRIU's images and speaks the protocol of CRIU's page
server, too.")
include(CPack)
