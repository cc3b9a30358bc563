// Checkpoints of a run that survive crashes, power cuts, full disks and flipped bits.
//
// Layout:
//   RUN/.lock                              held by flock() while a trainer runs; contains its process id
//   RUN/checkpoints/step_N/                one checkpoint; N in decimal without leading zeros
//       manifest.json                      names, sizes and hashes of all other files; written last
//       model.safetensors, optimizer.safetensors, state.json, ...   whatever the trainer saved; plain files, no folders
//   RUN/checkpoints/.tmp-*/                a save or a deletion that is not complete; never read, removed by the next
//   writer RUN/checkpoints/.old-step_N/           only on filesystems without an atomic exchange, while step_N is
//   replaced: the
//                                          former step_N, put back by remove_leftovers() if the new one did not arrive
//
// manifest.json, in exactly this form (one file a line, sorted by name; hashes are XXH3-64 in 16 hex digits):
//   {
//   "format": "rmoe-checkpoint",
//   "version": 1,
//   "step": 200,
//   "files": [
//   {"name": "model.safetensors", "size": 123456, "xxh3": "0123456789abcdef"},
//   {"name": "state.json", "size": 789, "xxh3": "fedcba9876543210"}
//   ],
//   "xxh3": "00112233445566aa"
//   }
// The last hash covers every byte of the manifest before the line that holds it, so any change of the manifest is
// found. Files that the manifest does not name are ignored.
//
// Save (CheckpointWriter): 1. all files into .tmp-step_N; 2. fsync each, hash it; 3. write and fsync manifest.json,
// fsync .tmp-step_N; 4. rename to step_N (exchanged atomically with an older step_N where there is one); 5. fsync
// RUN/checkpoints. Only then does the caller prune(), so at every moment the newest complete checkpoint before the save
// or the new one is whole on the disk.
//
// Load: newest_valid() walks from the newest step down and takes the first whose manifest and hashes agree. A trainer
// that resumes takes the RunLock and calls remove_leftovers() before.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "rmoe/io/descriptor.h"

namespace rmoe::io {

struct ManifestFile {
  std::string name;
  int64_t size = 0;
  uint64_t xxh3 = 0;
};

struct Manifest {
  int64_t step = 0;
  std::vector<ManifestFile> files;  // sorted by name
};

struct Checkpoint {
  int64_t step = 0;
  std::filesystem::path dir;
  Manifest manifest;
};

// RUN/checkpoints and RUN/checkpoints/step_N.
std::filesystem::path checkpoints_dir(const std::filesystem::path& run_dir);
std::filesystem::path checkpoint_dir(const std::filesystem::path& run_dir, int64_t step);

// Steps that have a folder, ascending, valid or not. Empty when there is no checkpoints folder.
std::vector<int64_t> list_checkpoints(const std::filesystem::path& run_dir);

// Reads the manifest and compares every file with it, sizes first, then hashes. Error(kBadInput) naming the first file
// that is missing, truncated or altered (the manifest itself included); Error(kIo) for what cannot be read.
Manifest verify(const std::filesystem::path& dir);

// Called with the folder and the reason (one line that names the file) for every checkpoint that was skipped.
using OnBroken = std::function<void(const std::filesystem::path& dir, const std::string& reason)>;

// The newest checkpoint that verify() accepts; nothing when there is none.
std::optional<Checkpoint> newest_valid(const std::filesystem::path& run_dir, const OnBroken& on_broken = {});

// Deletes checkpoints older than the newest `keep_last` (>= 1) complete ones, but never `best`. Complete means that the
// manifest is whole and every file has its size (hashes are not read again). Folders that are not complete are deleted
// when they are older than the kept ones and otherwise left for inspection; they never count as kept. Returns the
// deleted steps, ascending.
std::vector<int64_t> prune(const std::filesystem::path& run_dir, int64_t keep_last,
                           std::optional<int64_t> best = std::nullopt);

// Tests may observe or end a commit before each of its steps: "sync FILE" for each file, "write manifest",
// "sync folder", "rename", ("second rename" where there is no exchange,) "sync parent", "remove replaced" where there
// was an older step_N, and "done" at the end.
using CommitHook = std::function<void(std::string_view step)>;

// One save. The process must hold the RunLock: leftovers of earlier saves are removed at construction.
//   CheckpointWriter writer(run_dir, step);
//   save_tensors(writer.file("model.safetensors"), ...);
//   writer.commit();
//   prune(run_dir, keep_last, best_step);
// Every failure is Error(kIo) naming the file or folder and leaves all older checkpoints as they were.
class CheckpointWriter {
 public:
  CheckpointWriter(const std::filesystem::path& run_dir, int64_t step);
  // Removes the temporary folder unless commit() succeeded; never throws.
  ~CheckpointWriter();
  CheckpointWriter(const CheckpointWriter&) = delete;
  CheckpointWriter& operator=(const CheckpointWriter&) = delete;

  // Where to write the file called `name` (letters, digits, '.', '_' and '-', no leading dot, not
  // manifest.json).
  std::filesystem::path file(std::string_view name) const;
  // Makes everything in the temporary folder durable and visible as step_N. Afterwards the object is spent.
  void commit(const CommitHook& hook = {});

  // The temporary folder.
  const std::filesystem::path& dir() const { return temp_dir_; }

 private:
  std::filesystem::path run_dir_;
  std::filesystem::path temp_dir_;
  int64_t step_ = 0;
  bool renamed_ = false;
};

// state.json of a checkpoint that no training has made.
std::string untrained_state();

// Finishes or removes what a crashed save or prune left in RUN/checkpoints. The process must hold the RunLock.
void remove_leftovers(const std::filesystem::path& run_dir);

// Exclusive use of a run folder by one trainer, until destruction or the end of the process, however it ends.
class RunLock {
 public:
  // Creates the folder where it is missing. Error(kBadInput) naming the folder and the process that holds it.
  explicit RunLock(const std::filesystem::path& run_dir);
  // Removes the folder if the lock made it and nothing else was written there: a run that never began leaves no trace.
  ~RunLock();
  RunLock(const RunLock&) = delete;
  RunLock& operator=(const RunLock&) = delete;

 private:
  std::filesystem::path run_dir_;
  bool made_folder_ = false;
  Descriptor file_;
};

// Whether a trainer holds the folder's lock. False where there is none.
bool is_locked(const std::filesystem::path& run_dir);

}  // namespace rmoe::io
