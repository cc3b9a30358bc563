// Stop strings: see stop_filter.h.
#include "rmoe/eval/stop_filter.h"

#include <algorithm>
#include <utility>

namespace rmoe {

StopFilter::StopFilter(std::vector<std::string> stops) : stops_(std::move(stops)) { std::erase(stops_, std::string()); }

std::string StopFilter::feed(std::string_view text) {
  if (stopped_) return "";
  held_ += text;
  size_t end = std::string::npos, begin = 0;
  for (const std::string& stop : stops_) {
    const size_t at = held_.find(stop);
    if (at == std::string::npos) continue;
    const size_t stop_end = at + stop.size();
    if (end == std::string::npos || stop_end < end || (stop_end == end && at < begin)) begin = at, end = stop_end;
  }
  if (end != std::string::npos) {
    stopped_ = true;
    std::string before = held_.substr(0, begin);
    held_.clear();
    return before;
  }
  size_t keep = 0;  // the longest end of the text that begins a stop string
  for (const std::string& stop : stops_) {
    for (size_t length = std::min(stop.size() - 1, held_.size()); length > keep; --length) {
      if (held_.ends_with(std::string_view(stop).substr(0, length))) keep = length;
    }
  }
  std::string ready = held_.substr(0, held_.size() - keep);
  held_.erase(0, ready.size());
  return ready;
}

std::string StopFilter::finish() { return std::exchange(held_, {}); }

}  // namespace rmoe
