// Runs a piece of a test in a child process, where it may be killed, limit its resources or mount a filesystem.
#pragma once

#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <exception>
#include <filesystem>
#include <functional>
#include <stdexcept>
#include <string>

namespace rmoe {

struct ChildResult {
  std::string text;  // what the function returned, or "threw: ..." for an exception
  int signal = 0;    // that ended the child, 0 for none
};

// Not for functions that need threads of the parent.
inline ChildResult run_in_child(const std::function<std::string()>& function) {
  int ends[2];
  if (::pipe(ends) != 0) throw std::runtime_error("pipe");
  ::fflush(nullptr);
  pid_t child = ::fork();
  if (child < 0) throw std::runtime_error("fork");
  if (child == 0) {
    std::string text;
    try {
      text = function();
    } catch (const std::exception& error) {
      text = std::string("threw: ") + error.what();
    }
    bool sent = ::write(ends[1], text.data(), text.size()) == static_cast<ssize_t>(text.size());
    ::_exit(sent ? 0 : 1);
  }
  ::close(ends[1]);
  ChildResult result;
  char buffer[4096];
  for (ssize_t n = 0; (n = ::read(ends[0], buffer, sizeof buffer)) > 0;) {
    result.text.append(buffer, static_cast<size_t>(n));
  }
  ::close(ends[0]);
  int status = 0;
  ::waitpid(child, &status, 0);
  if (WIFSIGNALED(status)) result.signal = WTERMSIG(status);
  return result;
}

// In a child: mounts an empty filesystem of `bytes` over `dir`, seen by this process alone. False without the right to.
inline bool mount_small_disk(const std::filesystem::path& dir, long bytes) {
  if (::unshare(CLONE_NEWNS) != 0) return false;
  if (::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0) return false;
  std::string size = "size=" + std::to_string(bytes);
  return ::mount("tmpfs", dir.c_str(), "tmpfs", 0, size.c_str()) == 0;
}

// In a child: no file may grow beyond `bytes`; writing more fails with EFBIG.
inline void limit_file_size(long bytes) {
  ::signal(SIGXFSZ, SIG_IGN);
  rlimit limit{static_cast<rlim_t>(bytes), static_cast<rlim_t>(bytes)};
  if (::setrlimit(RLIMIT_FSIZE, &limit) != 0) throw std::runtime_error("setrlimit");
}

}  // namespace rmoe
