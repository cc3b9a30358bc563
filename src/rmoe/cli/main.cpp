// The `rmoe` command.
#include <csignal>

#include "rmoe/cli/command.h"

int main(int argc, char** argv) {
  // A closed pipe is an error of write(), not the end of a training run whose output nobody reads any more.
  std::signal(SIGPIPE, SIG_IGN);
  // Likewise a file that would grow beyond the limit of `ulimit -f`.
  std::signal(SIGXFSZ, SIG_IGN);
  return rmoe::cli::run_command_line({argv + (argc > 0 ? 1 : 0), argv + argc});
}
