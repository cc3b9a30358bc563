// A folder that is made beside its place and moved there when it is whole. Free of torch.
#pragma once

#include <unistd.h>

#include <filesystem>
#include <system_error>

#include "rmoe/base/error.h"
#include "rmoe/base/files.h"

namespace rmoe::io {

// Error(kBadInput) when there is something at `place` already; an empty folder is nothing.
inline void check_free(const std::filesystem::path& place) {
  namespace fs = std::filesystem;
  std::error_code error;
  const bool empty = fs::is_directory(place, error) && fs::is_empty(place, error);
  RMOE_CHECK(empty || !fs::exists(fs::symlink_status(place, error)), place.string(),
             ": is there already; choose another folder");
}

class Staging {
 public:
  // As check_free.
  explicit Staging(const std::filesystem::path& place) : place_(std::filesystem::absolute(place).lexically_normal()) {
    namespace fs = std::filesystem;
    check_free(place);
    if (place_.filename().empty()) place_ = place_.parent_path();
    std::error_code error;
    dir_ = place_.parent_path() / str(".", place_.filename().string(), ".tmp-", ::getpid());
    fs::create_directories(dir_, error);
    if (error) io_error("cannot create ", dir_.string(), ": ", error.message());
  }
  ~Staging() {
    std::error_code ignored;
    if (!done_) std::filesystem::remove_all(dir_, ignored);
  }
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;

  const std::filesystem::path& dir() const { return dir_; }

  void commit() {
    std::error_code error;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(dir_)) fsync_path(entry.path());
    std::filesystem::rename(dir_, place_, error);
    if (error) io_error("cannot create ", place_.string(), ": ", error.message());
    done_ = true;
    fsync_path(place_.parent_path());
  }

 private:
  std::filesystem::path place_, dir_;
  bool done_ = false;
};

}  // namespace rmoe::io
