#include "rmoe/base/log.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <mutex>

namespace rmoe {
namespace {

std::atomic<Level> current_level{Level::kNormal};

// Standard error as all threads share it.
std::mutex output_mutex;
int live_fd = -1;  // the terminal whose last line is a progress line

constexpr std::string_view kClearLine = "\r\x1b[K";

// A message that cannot be written is lost: there is nowhere to say so.
void put(int fd, std::string_view text) {
  while (!text.empty()) {
    const ssize_t done = ::write(fd, text.data(), text.size());
    if (done < 0 && errno == EINTR) continue;
    if (done <= 0) return;
    text.remove_prefix(static_cast<size_t>(done));
  }
}

// Cut to the terminal's width, in characters: a line that wraps could not be rewritten in place.
std::string_view fit(std::string_view line, int fd) {
  winsize size{};
  if (::ioctl(fd, TIOCGWINSZ, &size) != 0 || size.ws_col == 0) return line;
  int columns = 0;
  for (size_t i = 0; i < line.size(); ++i) {
    if ((static_cast<unsigned char>(line[i]) & 0xc0) == 0x80) continue;  // inside a UTF-8 character
    if (++columns >= size.ws_col) return line.substr(0, i);
  }
  return line;
}

}  // namespace

void set_log_level(Level level) { current_level = level; }
Level log_level() { return current_level; }

void log_line(std::string_view line) {
  std::lock_guard lock(output_mutex);
  std::string text;
  if (live_fd >= 0) text = kClearLine;  // the next update draws it again
  text += line;
  text += '\n';
  put(STDERR_FILENO, text);
}

bool is_terminal(int fd) { return ::isatty(fd) == 1; }

Progress::Progress(std::chrono::duration<double> interval, int fd)
    : interval_(std::chrono::duration_cast<Clock::duration>(interval)), fd_(fd), terminal_(is_terminal(fd)) {}

Progress::~Progress() {
  std::lock_guard lock(output_mutex);
  if (live_fd != fd_ || !terminal_) return;
  put(fd_, kClearLine);
  live_fd = -1;
}

bool Progress::due() const {
  if (log_level() == Level::kQuiet) return false;
  constexpr auto kRedraw = std::chrono::milliseconds(100);
  return !any_ || Clock::now() - shown_ >= (terminal_ ? std::min<Clock::duration>(kRedraw, interval_) : interval_);
}

void Progress::update(std::string_view line) {
  if (!due()) return;
  shown_ = Clock::now();
  any_ = true;
  std::lock_guard lock(output_mutex);
  if (terminal_) {
    put(fd_, std::string(kClearLine).append(fit(line, fd_)));
    live_fd = fd_;
  } else {
    put(fd_, std::string(line) + "\n");
  }
}

void Progress::finish(std::string_view line) {
  if (log_level() == Level::kQuiet) return;
  std::lock_guard lock(output_mutex);
  put(fd_, std::string(terminal_ ? kClearLine : "").append(line).append("\n"));
  live_fd = -1;
}

}  // namespace rmoe
