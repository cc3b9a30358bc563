// The `rmoe` command, as far as it comes before the libraries: the command itself is librmoe_command.so (entry.cpp).
//
// The OpenMP runtime reads its settings while it is loaded. By default a thread that waits for the others burns its CPU
// for milliseconds, and two programs that share CPUs wait for each other's waiting: two trainings at once on two CPUs
// were 12 times slower than one, not twice. So the setting is made here, and everything is loaded after it.
#include <dlfcn.h>
#include <stdlib.h>

#include <csignal>
#include <cstdio>

int main(int argc, char** argv) {
  // A closed pipe is an error of write(), not the end of a training run whose output nobody reads any more.
  std::signal(SIGPIPE, SIG_IGN);
  // Likewise a file that would grow beyond the limit of `ulimit -f`.
  std::signal(SIGXFSZ, SIG_IGN);
  // Up to a millisecond, so that a program alone on its CPUs loses nothing (with 1000 rounds a step takes 8 % longer).
  if (!::getenv("OMP_WAIT_POLICY")) ::setenv("GOMP_SPINCOUNT", "20000", /*overwrite=*/0);
  void* command = ::dlopen("librmoe_command.so", RTLD_NOW | RTLD_GLOBAL);
  using Main = int(int, char**);
  auto* const run = command ? reinterpret_cast<Main*>(::dlsym(command, "rmoe_main")) : nullptr;
  if (run) return run(argc, argv);
  std::fprintf(stderr, "rmoe: %s\n", ::dlerror());
  return 4;
}
