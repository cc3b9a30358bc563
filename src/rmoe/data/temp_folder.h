// A folder under construction: made beside its final place, renamed when complete, removed when anything goes wrong.
#pragma once

#include <filesystem>

namespace rmoe::data {

class TempFolder {
 public:
  // Makes `target`.tmp-PID, and the folders above it that are missing. `target` may be an empty folder; with
  // `overwrite` also one that holds data.json. Throws kBadInput when something else is there, kIo when the folder
  // cannot be made.
  TempFolder(const std::filesystem::path& target, bool overwrite);
  // Without commit(), removes what was made. So does SIGINT, SIGTERM or SIGHUP, before it ends the process as ever.
  ~TempFolder();
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;

  const std::filesystem::path& path() const { return path_; }
  const std::filesystem::path& target() const { return target_; }

  // Makes the folder durable and puts it in the target's place.
  void commit();

 private:
  void watch_signals();
  void unwatch_signals();

  std::filesystem::path target_, path_;
  std::filesystem::path made_above_;  // the topmost folder that had to be made; empty when none
};

}  // namespace rmoe::data
