#include "rmoe/plot/gnuplot.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "rmoe/base/error.h"

extern char** environ;

namespace rmoe::plot {
namespace {

// A file in memory: input and output of the child need no thread, no poll loop, and cannot block or raise SIGPIPE.
class MemoryFile {
 public:
  explicit MemoryFile(const char* name) : fd_(memfd_create(name, MFD_CLOEXEC)) {
    if (fd_ < 0) io_error("gnuplot: cannot make a file in memory: ", std::strerror(errno));
  }
  ~MemoryFile() { close(fd_); }
  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;

  int fd() const { return fd_; }

  void write_all(const std::string& text) {
    size_t done = 0;
    while (done < text.size()) {
      ssize_t n = write(fd_, text.data() + done, text.size() - done);
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) io_error("gnuplot: cannot pass on the script: ", std::strerror(errno));
      done += static_cast<size_t>(n);
    }
    rewind();
  }

  std::string read_all() {
    rewind();
    std::string text;
    char buffer[65536];
    while (true) {
      ssize_t n = read(fd_, buffer, sizeof buffer);
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) io_error("gnuplot: cannot read its output: ", std::strerror(errno));
      if (n == 0) return text;
      text.append(buffer, static_cast<size_t>(n));
    }
  }

 private:
  void rewind() {
    if (lseek(fd_, 0, SEEK_SET) < 0) io_error("gnuplot: cannot rewind a file in memory: ", std::strerror(errno));
  }
  int fd_;
};

// gnuplot repeats the line and points at the column; the reason follows after "line N: ".
std::string reason(const std::string& errors) {
  size_t at = errors.find("line ");
  size_t begin = at == std::string::npos ? errors.find_first_not_of(" \t\r\n") : at;
  if (begin == std::string::npos) return "no reason given";
  return errors.substr(begin, errors.find('\n', begin) - begin);
}

}  // namespace

std::string run_gnuplot(const std::string& script) {
  MemoryFile in("gnuplot-in");
  MemoryFile out("gnuplot-out");
  MemoryFile errors("gnuplot-errors");
  in.write_all(script);

  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, in.fd(), STDIN_FILENO);
  posix_spawn_file_actions_adddup2(&actions, out.fd(), STDOUT_FILENO);
  posix_spawn_file_actions_adddup2(&actions, errors.fd(), STDERR_FILENO);
  std::string program = "gnuplot";
  std::string no_user_settings = "-d";
  char* const arguments[] = {program.data(), no_user_settings.data(), nullptr};
  pid_t child = 0;
  int failed = posix_spawnp(&child, program.c_str(), &actions, nullptr, arguments, environ);
  posix_spawn_file_actions_destroy(&actions);
  if (failed == ENOENT) {
    throw Error(Exit::kIo, "the report needs the program gnuplot, which is not installed", "apt install gnuplot-nox");
  }
  if (failed != 0) io_error("gnuplot: cannot start it: ", std::strerror(failed));

  int status = 0;
  while (waitpid(child, &status, 0) < 0) {
    if (errno != EINTR) io_error("gnuplot: cannot wait for it: ", std::strerror(errno));
  }
  if (WIFSIGNALED(status)) io_error("gnuplot: ended by signal ", WTERMSIG(status));
  if (WEXITSTATUS(status) != 0) {
    io_error("gnuplot: failed with exit code ", WEXITSTATUS(status), ": ", reason(errors.read_all()));
  }
  return out.read_all();
}

}  // namespace rmoe::plot
