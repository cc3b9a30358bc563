// The `rmoe` command, as far as it comes before the libraries: the command itself is librmoe_command.so (entry.cpp).
//
// The OpenMP runtime reads its settings while it is loaded. Without one, a thread that waits for the others burns its
// CPU for milliseconds, and two programs that share CPUs wait for each other's waiting: a training beside another one
// was 20 to 50 times slower, not twice. So the setting is made here, and everything is loaded after it.
#include <dlfcn.h>
#include <stdlib.h>

#include <csignal>
#include <cstdio>

int main(int argc, char** argv) {
  // A closed pipe is an error of write(), not the end of a training run whose output nobody reads any more.
  std::signal(SIGPIPE, SIG_IGN);
  // Likewise a file that would grow beyond the limit of `ulimit -f`.
  std::signal(SIGXFSZ, SIG_IGN);
  // Long enough (a few hundred us) for what decoding does between two parallel regions, and a thirtieth of the default.
  if (!::getenv("OMP_WAIT_POLICY")) ::setenv("GOMP_SPINCOUNT", "10000", /*overwrite=*/0);
  void* command = ::dlopen("librmoe_command.so", RTLD_NOW | RTLD_GLOBAL);
  using Main = int(int, char**);
  auto* const run = command ? reinterpret_cast<Main*>(::dlsym(command, "rmoe_main")) : nullptr;
  if (run) return run(argc, argv);
  std::fprintf(stderr, "rmoe: %s\n", ::dlerror());
  return 4;
}
