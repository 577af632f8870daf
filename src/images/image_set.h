// Helpers over the captured state of a process: its files by id, and new files with new ids.
//
// Invariant of a state built through StateBuilder: file ids are 1, 2, 3 ... in order of addition,
// and the id in a file_entry equals the id in its body.
// Thread rule: const use of a const state from any thread; a builder belongs to one.
#ifndef PREDUMP_IMAGES_IMAGE_SET_H_
#define PREDUMP_IMAGES_IMAGE_SET_H_

#include <cstdint>
#include <optional>

#include "absl/container/flat_hash_map.h"
#include "proto/state.pb.h"

namespace predump::images {

// The id inside the body that belongs to the entry's type; nullopt when that body is absent, when
// another one is there too, or when the type has none here.
std::optional<uint32_t> BodyId(const criu::file_entry& file);

// The fown_entry every body needs when nobody owns the file's signals.
criu::fown_entry NoFileOwner();

// Files and their extras by id. Points into the state it was made from, which must outlive it and
// not change. Of several files with one id (only possible in an unvalidated state) the first wins.
class FileIndex {
 public:
  explicit FileIndex(const proto::ProcessState& state);

  // Null where there is none.
  const criu::file_entry* Find(uint32_t id) const;
  const proto::FileExtra* FindExtra(uint32_t id) const;
  // The entry's regular-file body, or null when `id` is unknown or something else.
  const criu::reg_file_entry* FindRegular(uint32_t id) const;
  // The file a descriptor refers to, or null.
  const criu::file_entry* FindByDescriptor(uint32_t fd) const;

 private:
  absl::flat_hash_map<uint32_t, const criu::file_entry*> files_;
  absl::flat_hash_map<uint32_t, const proto::FileExtra*> extras_;
  absl::flat_hash_map<uint32_t, uint32_t> descriptors_;
};

// Adds files and descriptors to a state.
class StateBuilder {
 public:
  // `state` is borrowed and must outlive the builder. It must hold no files yet.
  explicit StateBuilder(proto::ProcessState& state) : state_(&state) {}

  // Appends `file`, sets its id and its body's id, and returns that id. The body must be set.
  uint32_t AddFile(criu::file_entry file);
  // Appends a descriptor of a file added before.
  void AddDescriptor(uint32_t fd, uint32_t file_id, bool close_on_exec);
  // The extra of a file added before; made when there was none.
  proto::FileExtra& Extra(uint32_t file_id);

 private:
  proto::ProcessState* state_;
  uint32_t next_id_ = 1;
  absl::flat_hash_map<uint32_t, int> extra_index_;
};

}  // namespace predump::images

#endif  // PREDUMP_IMAGES_IMAGE_SET_H_
