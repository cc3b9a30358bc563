// Ends a stream of text at a stop string. Free of torch.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace rmoe {

// Passes text on until one of the stop strings is complete, whatever pieces the text comes in; text that may be the
// beginning of a stop string is held back until that is decided. The result does not depend on the pieces: the string
// that is complete first counts, of several that end together the longest.
class StopFilter {
 public:
  // Empty strings never match.
  explicit StopFilter(std::vector<std::string> stops);

  // The text that is certain to come before any stop string. Empty once stopped().
  std::string feed(std::string_view text);
  // What is still held back, when the text ends without a stop string.
  std::string finish();
  bool stopped() const { return stopped_; }

 private:
  std::vector<std::string> stops_;
  std::string held_;
  bool stopped_ = false;
};

}  // namespace rmoe
