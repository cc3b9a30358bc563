// A folder for files that nobody is meant to see.
#pragma once

#include <cstdlib>
#include <filesystem>
#include <string>

#include "rmoe/base/error.h"

namespace rmoe::bench {

// Made in the system's folder for temporary files, removed at the end with what is in it. Throws kIo when it cannot be
// made.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "rmoe-bench-XXXXXX").string();
    if (!::mkdtemp(name.data())) io_error("bench: cannot make the folder ", name, ": ", errno_text(errno));
    path_ = name;
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;

  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

}  // namespace rmoe::bench
