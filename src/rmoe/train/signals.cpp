#include "rmoe/train/signals.h"

#include <unistd.h>

#include <csignal>

namespace rmoe {
namespace {

volatile std::sig_atomic_t g_received = 0;

void on_signal(int signal) {
  if (g_received) _exit(128 + signal);
  g_received = signal;
}

}  // namespace

StopSignals::StopSignals() {
  g_received = 0;
  struct sigaction action{};
  action.sa_handler = on_signal;
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
}

StopSignals::~StopSignals() {
  std::signal(SIGINT, SIG_DFL);
  std::signal(SIGTERM, SIG_DFL);
}

int StopSignals::received() const { return g_received; }

}  // namespace rmoe
