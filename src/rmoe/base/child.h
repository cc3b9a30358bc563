// A program in another process that answers lines with lines.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

namespace rmoe {

class Child {
 public:
  // Starts `program` with these arguments and, on top of this process's environment, NAME=value settings. Its standard
  // error is ours. A program without a slash is looked for in the path. `what` is what errors call it, "bench: the
  // process of variant 'x'".
  Child(std::string what, const std::string& program, const std::vector<std::string>& arguments,
        const std::vector<std::string>& settings);
  // Closes its standard input, which ends it, and waits for it.
  ~Child();
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;

  // Its next line. Throws Error when it ended instead: with its own exit code where it failed.
  std::string read_line();
  void write_line(const std::string& line);

 private:
  int wait();

  std::string what_;
  pid_t pid_ = -1;
  int to_ = -1, from_ = -1;
  std::string buffer_;
};

}  // namespace rmoe
