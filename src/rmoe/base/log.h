// Messages and progress for the person who watches, on standard error. Results go to standard output, not here.
#pragma once

#include <chrono>
#include <string>
#include <string_view>

#include "rmoe/base/error.h"

namespace rmoe {

enum class Level { kQuiet, kNormal };  // quiet: warnings only
void set_log_level(Level level);
Level log_level();

// Write one line; a progress line on the terminal is cleared first. Safe from any thread.
void log_line(std::string_view line);
template <class... Parts>
void log_info(const Parts&... parts) {
  if (log_level() != Level::kQuiet) log_line(rmoe::str(parts...));
}
template <class... Parts>
void log_warn(const Parts&... parts) {
  log_line(rmoe::str("warning: ", parts...));
}

bool is_terminal(int fd);

// The state of long work in one line: rewritten in place on a terminal, a plain line at most once per `interval` in a
// file, nothing when quiet. One at a time.
class Progress {
 public:
  explicit Progress(std::chrono::duration<double> interval = std::chrono::seconds(10), int fd = 2);
  ~Progress();  // clears an unfinished terminal line
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  // True when the next update would be shown, so that nobody composes lines for nothing.
  bool due() const;
  void update(std::string_view line);
  // The last state: always shown (unless quiet), and kept.
  void finish(std::string_view line);

 private:
  using Clock = std::chrono::steady_clock;
  Clock::duration interval_;
  int fd_;
  bool terminal_;
  Clock::time_point shown_{};
  bool any_ = false;
};

}  // namespace rmoe
