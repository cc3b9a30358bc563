// See temp_folder.h. The signal handler uses system calls only: it lists the (flat) folder through a descriptor opened
// beforehand, unlinks, and raises the signal again.
#include "rmoe/data/temp_folder.h"

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <system_error>

#include "rmoe/base/error.h"
#include "rmoe/base/files.h"

namespace rmoe::data {
namespace {

namespace fs = std::filesystem;

constexpr std::array kSignals{SIGINT, SIGTERM, SIGHUP};

// What the handler needs, set before it is installed.
int watched_fd = -1;
char watched_path[4096];
size_t removable_from = 0;  // folders made above it have paths of at least this length; 0: none
std::atomic<bool> is_watching{false};
std::array<struct sigaction, kSignals.size()> old_actions;

// struct linux_dirent64 of getdents64(2).
struct Entry {
  uint64_t inode;
  int64_t offset;
  uint16_t length;
  uint8_t type;
  char name[1];
};

void clean_up_and_die(int signal_number) {
  alignas(Entry) char buffer[8192];
  ::lseek(watched_fd, 0, SEEK_SET);
  while (true) {
    const long bytes = ::syscall(SYS_getdents64, watched_fd, buffer, sizeof buffer);
    if (bytes <= 0) break;
    for (long at = 0; at < bytes;) {
      uint16_t length = 0;
      std::memcpy(&length, buffer + at + offsetof(Entry, length), sizeof length);
      ::unlinkat(watched_fd, buffer + at + offsetof(Entry, name), 0);
      at += length;
    }
  }
  // Then what was made above it, from the bottom up, while empty.
  while (::rmdir(watched_path) == 0 && removable_from > 0) {
    char* slash = std::strrchr(watched_path, '/');
    if (!slash || static_cast<size_t>(slash - watched_path) < removable_from) break;
    *slash = '\0';
  }
  ::signal(signal_number, SIG_DFL);
  ::raise(signal_number);
}

}  // namespace

TempFolder::TempFolder(const fs::path& target, bool overwrite) : target_(fs::absolute(target).lexically_normal()) {
  if (!target_.has_filename()) target_ = target_.parent_path();  // "out/"
  std::error_code error;
  if (fs::exists(fs::symlink_status(target_, error))) {
    const bool is_folder = fs::is_directory(target_, error);
    const bool is_empty = is_folder && fs::is_empty(target_, error);
    const bool is_data = is_folder && fs::exists(target_ / "data.json", error);
    if (!is_empty && !(overwrite && is_data)) {
      throw Error(Exit::kBadInput, str("the output folder ", target.string(), " exists"),
                  is_data     ? "--overwrite replaces it; --out names another folder"
                  : is_folder ? "it is not a data folder, so it is left alone; --out names another"
                              : "--out names the folder to make");
    }
  }
  // Remember what is made above, so that a failure leaves nothing.
  const fs::path above = target_.parent_path();
  for (fs::path p = above; !fs::exists(p, error) && p.has_relative_path(); p = p.parent_path()) made_above_ = p;
  fs::create_directories(above, error);
  if (error) io_error("cannot make ", above.string(), ": ", error.message());
  for (int attempt = 0;; ++attempt) {
    path_ = str(target_.string(), ".tmp-", ::getpid(), attempt ? str("-", attempt) : "");
    if (::mkdir(path_.c_str(), 0777) == 0) break;
    if (errno != EEXIST || attempt > 100) io_error("cannot make ", target.string(), ": ", errno_text(errno));
  }
  watch_signals();
}

TempFolder::~TempFolder() {
  if (path_.empty()) return;
  unwatch_signals();
  std::error_code ignored;
  fs::remove_all(path_, ignored);
  if (made_above_.empty()) return;
  // From the bottom up, only while empty.
  for (fs::path p = target_.parent_path(); fs::remove(p, ignored) && p != made_above_; p = p.parent_path()) {
  }
}

void TempFolder::watch_signals() {
  if (path_.string().size() >= sizeof watched_path || is_watching.exchange(true)) return;
  std::memcpy(watched_path, path_.c_str(), path_.string().size() + 1);
  removable_from = made_above_.string().size();
  watched_fd = ::open(path_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  struct sigaction action{};
  action.sa_handler = &clean_up_and_die;
  for (size_t i = 0; i < kSignals.size(); ++i) {
    ::sigaction(kSignals[i], nullptr, &old_actions[i]);
    // A signal that is ignored (nohup) stays ignored.
    if (old_actions[i].sa_handler != SIG_IGN) ::sigaction(kSignals[i], &action, nullptr);
  }
}

void TempFolder::unwatch_signals() {
  if (path_.string() != watched_path || !is_watching) return;
  for (size_t i = 0; i < kSignals.size(); ++i) ::sigaction(kSignals[i], &old_actions[i], nullptr);
  ::close(watched_fd);
  watched_path[0] = '\0';
  is_watching = false;
}

void TempFolder::commit() {
  fsync_path(path_);
  // rename(2) replaces an empty folder; a full one steps aside first.
  fs::path old;
  std::error_code error;
  if (fs::is_directory(target_, error) && !fs::is_empty(target_, error)) {
    old = target_.string() + str(".old-", ::getpid());
    fs::rename(target_, old, error);
    if (error) io_error("cannot replace ", target_.string(), ": ", error.message());
  }
  unwatch_signals();
  fs::rename(path_, target_, error);
  if (error) {
    std::error_code ignored;
    if (!old.empty()) fs::rename(old, target_, ignored);
    io_error("cannot make ", target_.string(), ": ", error.message());
  }
  path_.clear();
  fsync_path(target_.parent_path());
  if (!old.empty()) fs::remove_all(old, error);
}

}  // namespace rmoe::data
