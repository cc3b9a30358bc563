#include "rmoe/base/child.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "rmoe/base/error.h"

extern char** environ;

namespace rmoe {
namespace {

std::vector<char*> pointers(std::vector<std::string>& texts) {
  std::vector<char*> out;
  for (std::string& text : texts) out.push_back(text.data());
  out.push_back(nullptr);
  return out;
}

// The environment with these settings in place of those of the same name.
std::vector<std::string> environment(const std::vector<std::string>& settings) {
  std::vector<std::string> all = settings;
  for (char** at = environ; *at; ++at) {
    const std::string entry = *at, name = entry.substr(0, entry.find('=') + 1);
    bool replaced = false;
    for (const std::string& setting : settings) replaced = replaced || setting.starts_with(name);
    if (!replaced) all.push_back(entry);
  }
  return all;
}

// Both ends are closed in programs started later, which would otherwise keep this pipe open.
std::pair<int, int> make_pipe() {
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) io_error("cannot make a pipe: ", errno_text(errno));
  return {ends[0], ends[1]};
}

}  // namespace

Child::Child(std::string what, const std::string& program, const std::vector<std::string>& arguments,
             const std::vector<std::string>& settings)
    : what_(std::move(what)) {
  const auto [in_read, in_write] = make_pipe();
  const auto [out_read, out_write] = make_pipe();
  to_ = in_write;
  from_ = out_read;
  posix_spawn_file_actions_t actions;
  ::posix_spawn_file_actions_init(&actions);
  ::posix_spawn_file_actions_adddup2(&actions, in_read, STDIN_FILENO);
  ::posix_spawn_file_actions_adddup2(&actions, out_write, STDOUT_FILENO);
  std::vector<std::string> words{program}, variables = environment(settings);
  words.insert(words.end(), arguments.begin(), arguments.end());
  const int failed =
      ::posix_spawnp(&pid_, program.c_str(), &actions, nullptr, pointers(words).data(), pointers(variables).data());
  ::posix_spawn_file_actions_destroy(&actions);
  ::close(in_read);
  ::close(out_write);
  if (failed != 0) {
    ::close(to_);
    ::close(from_);
    io_error(what_, ": cannot start ", program, ": ", errno_text(failed));
  }
}

Child::~Child() {
  ::close(to_);
  ::close(from_);
  wait();
}

int Child::wait() {
  if (pid_ < 0) return 0;
  int status = 0;
  while (::waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
  }
  pid_ = -1;
  return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

std::string Child::read_line() {
  size_t end = 0;
  while ((end = buffer_.find('\n')) == std::string::npos) {
    char piece[4096];
    const ssize_t count = ::read(from_, piece, sizeof piece);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) {
      const int code = wait();
      const bool ours = code >= static_cast<int>(Exit::kBug) && code <= static_cast<int>(Exit::kPeer);
      throw Error(ours ? static_cast<Exit>(code) : Exit::kPeer, str(what_, " ended early with exit code ", code));
    }
    buffer_.append(piece, static_cast<size_t>(count));
  }
  std::string line = buffer_.substr(0, end);
  buffer_.erase(0, end + 1);
  return line;
}

void Child::write_line(const std::string& line) {
  const std::string text = line + "\n";
  for (size_t done = 0; done < text.size();) {
    const ssize_t count = ::write(to_, text.data() + done, text.size() - done);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return;  // it has ended: read_line says so
    done += static_cast<size_t>(count);
  }
}

}  // namespace rmoe
