#include "rmoe/reproduce/grid.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstring>
#include <deque>
#include <fstream>
#include <thread>

#include "rmoe/base/error.h"
#include "rmoe/base/files.h"
#include "rmoe/base/json.h"
#include "rmoe/base/log.h"

extern char** environ;

namespace rmoe::reproduce {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

// Starts the program in a process group of its own: a Ctrl-C of the terminal reaches us alone, and we pass it on once.
// (A second one would end a training without saving.)
pid_t start(const std::string& program, const std::vector<std::string>& arguments, const fs::path& out,
            const fs::path& err) {
  std::vector<std::string> words{program};
  words.insert(words.end(), arguments.begin(), arguments.end());
  std::vector<char*> pointers;
  for (std::string& word : words) pointers.push_back(word.data());
  pointers.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  ::posix_spawn_file_actions_init(&actions);
  ::posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  ::posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, out.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644);
  ::posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, err.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0644);
  posix_spawnattr_t attributes;
  ::posix_spawnattr_init(&attributes);
  ::posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP);
  ::posix_spawnattr_setpgroup(&attributes, 0);
  pid_t pid = -1;
  const int failed = ::posix_spawn(&pid, program.c_str(), &actions, &attributes, pointers.data(), environ);
  ::posix_spawnattr_destroy(&attributes);
  ::posix_spawn_file_actions_destroy(&actions);
  if (failed != 0) io_error("reproduce: cannot start ", program, ": ", errno_text(failed));
  return pid;
}

// As a shell has it: 128 + the signal where one ended the process.
int exit_code(int status) { return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status); }

std::string last_line(const fs::path& path) {
  std::ifstream in(path);
  std::string line, last;
  while (std::getline(in, line)) {
    if (!line.empty()) last = line;
  }
  return last;
}

[[noreturn]] void process_failed(const std::string& name, int code, const fs::path& log) {
  const bool known = code >= 1 && code <= 5;
  throw Error(known ? static_cast<Exit>(code) : Exit::kIo,
              str("reproduce: ", name, " ended with exit code ", code, ": ", last_line(log)),
              str("all that it said is in ", log.string()));
}

// The signal that asks to stop.
volatile std::sig_atomic_t g_signal = 0;
extern "C" void remember_signal(int signal) { g_signal = signal; }

class SignalGuard {
 public:
  SignalGuard() {
    g_signal = 0;
    struct sigaction action{};
    action.sa_handler = remember_signal;
    ::sigaction(SIGINT, &action, &old_int_);
    ::sigaction(SIGTERM, &action, &old_term_);
  }
  ~SignalGuard() {
    ::sigaction(SIGINT, &old_int_, nullptr);
    ::sigaction(SIGTERM, &old_term_, nullptr);
  }
  SignalGuard(const SignalGuard&) = delete;
  SignalGuard& operator=(const SignalGuard&) = delete;

 private:
  struct sigaction old_int_, old_term_;
};

bool training_finished(const Job& job) {
  const fs::path summary = job.folder / "summary.json";
  return fs::exists(summary) && json_bool(read_json_file(summary), "finished", summary.string());
}

bool evaluated(const Job& job, const std::string& split) {
  std::error_code error;
  const auto evaluation = fs::last_write_time(job.folder / "eval" / (split + ".json"), error);
  return !error && evaluation >= fs::last_write_time(job.folder / "summary.json", error) && !error;
}

// The command that brings a job on; empty when it is done.
std::vector<std::string> next_command(const Job& job, int64_t threads) {
  std::vector<std::string> words;
  if (!training_finished(job)) {
    words = {"train", job.config};
    words.insert(words.end(), job.flags.begin(), job.flags.end());
    words.insert(words.end(), {"--out", job.folder.string(), "--resume", "auto"});
  } else {
    for (const char* split : {"valid", "test"}) {
      if (words.empty() && !evaluated(job, split)) words = {"eval", job.folder.string(), "--split", split};
    }
  }
  if (!words.empty()) words.insert(words.end(), {"--quiet", "--threads", std::to_string(threads)});
  return words;
}

// How much of its training is done, by the last line of metrics.jsonl that names a step.
double progress_of(const Job& job) {
  if (is_done(job)) return 1;
  std::ifstream in(job.folder / "metrics.jsonl", std::ios::ate);
  if (!in) return 0;
  constexpr std::streamoff kTail = 8192;
  const std::streamoff size = in.tellg();
  in.seekg(std::max<std::streamoff>(0, size - kTail));
  std::string tail(static_cast<size_t>(std::min(size, kTail)), '\0');
  in.read(tail.data(), static_cast<std::streamsize>(tail.size()));
  const size_t at = tail.rfind("\"step\":");
  if (at == std::string::npos) return 0;
  const double step = std::strtod(tail.c_str() + at + std::strlen("\"step\":"), nullptr);
  return std::min(0.99, step / static_cast<double>(std::max<int64_t>(job.steps, 1)));
}

struct Running {
  size_t job;
  pid_t pid;
};

class Grid {
 public:
  Grid(const std::vector<Job>& jobs, const GridOptions& options) : jobs_(jobs), options_(options) {
    for (size_t i = 0; i < jobs.size(); ++i) {
      if (!is_done(jobs[i])) waiting_.push_back(i);
      begun_ += progress_of(jobs[i]);
    }
  }

  GridResult run() {
    const SignalGuard guard;
    while (true) {
      if (g_signal != 0 || failed_) {
        stop();
      } else {
        start_more();
      }
      if (running_.empty()) break;
      reap();
      show();
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
    }
    if (failed_) process_failed(jobs_[failed_job_].name, failed_code_, log_of(jobs_[failed_job_]));
    if (g_signal == 0 && !jobs_.empty()) {
      progress_.finish(str("reproduce: ", jobs_.size(), " runs done in ", duration_text(seconds())));
    }
    result_.signal = g_signal;
    return result_;
  }

 private:
  fs::path log_of(const Job& job) const { return options_.logs / (job.name + ".log"); }

  void start_more() {
    while (!waiting_.empty() && std::ssize(running_) < options_.processes) {
      const size_t job = waiting_.front();
      waiting_.pop_front();
      launch(job);
    }
  }

  void launch(size_t job) {
    const std::vector<std::string> words = next_command(jobs_[job], options_.threads);
    if (words.empty()) return;
    running_.push_back({job, start(options_.program, words, "/dev/null", log_of(jobs_[job]))});
  }

  void reap() {
    for (size_t i = 0; i < running_.size();) {
      int status = 0;
      const pid_t ended = ::waitpid(running_[i].pid, &status, WNOHANG);
      if (ended == 0 || (ended < 0 && errno == EINTR)) {
        ++i;
        continue;
      }
      const size_t job = running_[i].job;
      running_.erase(running_.begin() + static_cast<std::ptrdiff_t>(i));
      const int code = exit_code(status);
      if (code == static_cast<int>(Exit::kDiverged)) {
        result_.diverged.push_back(jobs_[job].name);
      } else if (code == 0 && g_signal == 0 && !failed_) {
        launch(job);  // its next part
      } else if (code != 0 && !stopped_ && !failed_) {
        failed_ = true, failed_job_ = job, failed_code_ = code;
      }
    }
  }

  void stop() {
    if (stopped_) return;
    stopped_ = true;
    for (const Running& one : running_) ::kill(one.pid, SIGTERM);
    if (!running_.empty()) log_info("reproduce: stopping; the running trainings save first");
  }

  double seconds() const { return std::chrono::duration<double>(Clock::now() - start_).count(); }

  void show() {
    if (!progress_.due()) return;
    double done = 0;
    int64_t finished = 0;
    for (const Job& job : jobs_) {
      const double part = progress_of(job);
      done += part;
      finished += part == 1;
    }
    const double now = seconds(), total = static_cast<double>(jobs_.size());
    std::string line = str("reproduce: ", finished, " of ", jobs_.size(), " runs done");
    std::string names;
    for (const Running& one : running_) {
      const auto percent = static_cast<int>(100 * progress_of(jobs_[one.job]));
      names += str(names.empty() ? "; " : ", ", jobs_[one.job].name, " ", percent, " %");
    }
    line += names;
    // What a few seconds of work say about hours is not worth showing.
    if (done - begun_ > 0.02 * static_cast<double>(options_.processes)) {
      line += str("; ", duration_text(now / (done - begun_) * (total - done)), " left");
    }
    progress_.update(line);
  }

  const std::vector<Job>& jobs_;
  const GridOptions& options_;
  std::deque<size_t> waiting_;
  std::vector<Running> running_;
  double begun_ = 0;  // runs' worth of work that was done before
  Clock::time_point start_ = Clock::now();
  Progress progress_;
  GridResult result_;
  bool stopped_ = false, failed_ = false;
  size_t failed_job_ = 0;
  int failed_code_ = 0;
};

}  // namespace

bool is_done(const Job& job) { return training_finished(job) && evaluated(job, "valid") && evaluated(job, "test"); }

GridResult run_grid(const std::vector<Job>& jobs, const GridOptions& options) {
  fs::create_directories(options.logs);
  return Grid(jobs, options).run();
}

std::string output_of(const std::string& program, const std::vector<std::string>& arguments, const fs::path& log) {
  const fs::path out = log.string() + ".out";
  const pid_t pid = start(program, arguments, out, log);
  int status = 0;
  while (::waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  if (const int code = exit_code(status); code != 0) process_failed("`rmoe " + arguments.front() + "`", code, log);
  std::string text = read_file(out);
  fs::remove(out);
  return text;
}

void run_once(const std::string& program, const std::vector<std::string>& arguments, const fs::path& log) {
  output_of(program, arguments, log);
}

std::string duration_text(double seconds) {
  const auto whole = static_cast<int64_t>(std::max(0.0, seconds) + 0.5);
  if (whole >= 3600) return str(whole / 3600, " h ", whole % 3600 / 60, " min");
  if (whole >= 60) return str(whole / 60, " min ", whole % 60, " s");
  return str(whole, " s");
}

}  // namespace rmoe::reproduce
