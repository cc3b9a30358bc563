// Writes TensorBoard event files into the folder given as the argument; tests/python/tensorboard_test.py reads them
// back with the real tensorboard package. First a run of 100 steps, then the same run resumed at step 50.
#include <cstdint>
#include <cstdio>
#include <limits>
#include <string>

#include "rmoe/io/tensorboard.h"

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fputs("usage: write_events DIR\n", stderr);
    return 2;
  }
  {
    rmoe::io::EventWriter events(argv[1]);
    for (int64_t step = 0; step < 100; ++step) {
      events.add_scalar("train/loss", step, 10.0 / static_cast<double>(step + 1), 1000.0 + static_cast<double>(step));
    }
    events.add_scalar("eval/bpc", 60, 2.5);
    std::printf("%s\n", events.path().c_str());
  }
  rmoe::io::EventWriter events(argv[1], 50);
  for (int64_t step = 50; step < 60; ++step) {
    events.add_scalar("train/loss", step, -static_cast<double>(step), 2000.0 + static_cast<double>(step));
  }
  events.add_scalar("large step", int64_t{1} << 40, 1.0);
  events.add_scalar("not finite", 51, std::numeric_limits<double>::quiet_NaN());
  events.add_scalar("not finite", 52, std::numeric_limits<double>::infinity());
  events.add_text("samples", 55, "In the beginning | God \xe2\x80\x94 " + std::string(300, 'x'));
  events.add_text("samples", 57, "");
  std::printf("%s\n", events.path().c_str());
  return 0;
}
