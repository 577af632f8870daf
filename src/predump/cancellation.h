// Ending a migration from another thread (Ctrl-C, --timeout), up to the point of no return.
//
// The migrating thread blocks in sends, splices and receives. Request() shuts its sockets down, so
// every such call fails at once and the ordinary error path thaws the process. EnterCommit() is the
// point of no return: after it, Request() does nothing. Exactly one of the two wins.
// Thread rule: all calls from any thread.
#ifndef PREDUMP_PREDUMP_CANCELLATION_H_
#define PREDUMP_PREDUMP_CANCELLATION_H_

#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace predump {

class Cancellation {
 public:
  // Asks for the end. False: too late, the process is being handed over.
  bool Request(const std::string& reason);

  // Sockets to shut down on Request; a borrow, to be taken back before the socket is closed.
  void Watch(int socket);
  void Unwatch(int socket);

  // True: from now on nobody can cancel. False: already cancelled.
  bool EnterCommit();

  bool requested() const;
  std::string reason() const;
  // Waits for a request; false where none came within `timeout`.
  bool AwaitRequest(absl::Duration timeout) const;

 private:
  mutable absl::Mutex mutex_;
  bool requested_ ABSL_GUARDED_BY(mutex_) = false;
  bool committed_ ABSL_GUARDED_BY(mutex_) = false;
  std::string reason_ ABSL_GUARDED_BY(mutex_);
  std::vector<int> sockets_ ABSL_GUARDED_BY(mutex_);
};

// Watches a socket for as long as it lives.
class WatchedSocket {
 public:
  WatchedSocket(Cancellation& cancellation, int socket)
      : cancellation_(cancellation), socket_(socket) {
    cancellation_.Watch(socket_);
  }
  ~WatchedSocket() { cancellation_.Unwatch(socket_); }
  WatchedSocket(const WatchedSocket&) = delete;
  WatchedSocket& operator=(const WatchedSocket&) = delete;

 private:
  Cancellation& cancellation_;
  int socket_;
};

}  // namespace predump

#endif  // PREDUMP_PREDUMP_CANCELLATION_H_
