// Stopping on request: the first SIGINT or SIGTERM is remembered for the training loop to see, a second one ends the
// process at once.
#pragma once

namespace rmoe {

class StopSignals {
 public:
  StopSignals();   // installs the handlers
  ~StopSignals();  // restores the defaults
  StopSignals(const StopSignals&) = delete;
  StopSignals& operator=(const StopSignals&) = delete;

  int received() const;  // 0: none yet
};

}  // namespace rmoe
