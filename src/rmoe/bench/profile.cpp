#include "rmoe/bench/profile.h"

#include <algorithm>

#include "rmoe/base/error.h"
#include "rmoe/bench/table.h"

namespace rmoe::bench {
namespace {

constexpr std::string_view kLayer = "layer ";

// Where a part stands in the order of a step; layers by number.
std::pair<int64_t, int64_t> place(const std::string& part) {
  if (part == "input") return {0, 0};
  if (part.starts_with(kLayer)) return {1, std::stoll(part.substr(kLayer.size()))};
  if (part == "output") return {2, 0};
  if (part == Profile::kOutside) return {4, 0};
  return {3, 0};
}

}  // namespace

size_t Profile::id(std::vector<std::string>& names, std::unordered_map<std::string, size_t>& ids,
                   std::string_view name) {
  const auto [at, added] = ids.try_emplace(std::string(name), names.size());
  if (added) names.emplace_back(name);
  return at->second;
}

void Profile::enter_region(Frame& frame, std::string_view name, int64_t sequence) {
  if (name == "step") return;
  if (name == "forward") {
    ranges_.clear();
    frame.key.part = part("input");
  } else if (name == "loss") {
    frame.key.part = part("output");
  } else if (name == "backward") {
    frame.key.backward = true;
    node_part_ = part("output");
  } else {
    frame.key.part = part(name);
  }
  if (!name.starts_with(kLayer)) return;
  frame.range = std::ssize(ranges_);
  ranges_.push_back({.begin = sequence, .end = sequence, .part = frame.key.part});
}

size_t Profile::part_of_node(int64_t sequence) {
  if (sequence < 0 || ranges_.empty()) return node_part_;
  // The last one that has it: a recomputed layer's lie behind all of the forward pass.
  for (auto range = ranges_.rbegin(); range != ranges_.rend(); ++range) {
    if (sequence >= range->begin && sequence < range->end) return node_part_ = range->part;
  }
  if (sequence < ranges_.front().begin) return node_part_ = part("input");
  // The node of a recomputed layer is made before the layer begins.
  const auto next = std::ranges::find_if(ranges_, [&](const Range& range) { return sequence < range.begin; });
  return node_part_ = next == ranges_.end() ? part("output") : next->part;
}

void Profile::enter(Kind kind, std::string_view name, int64_t sequence, int64_t now_ns) {
  Frame frame{.kind = kind, .key = {part(kOutside), op(kUnattributed), false}, .inside_op = false, .start = now_ns};
  if (!stack_.empty()) {
    frame.key = stack_.back().key;
    frame.inside_op = stack_.back().inside_op;
  }
  switch (kind) {
    case Kind::kRegion:
      // What recomputation runs inside of a node is listed as what it is.
      enter_region(frame, name, sequence);
      break;
    case Kind::kNode:
      frame.key.part = part_of_node(sequence);
      frame.key.op = op(kUnattributed);
      frame.inside_op = false;
      break;
    case Kind::kOp:
      if (frame.inside_op) break;
      frame.key.op = op(name);
      frame.inside_op = true;
      ++spent_[frame.key].calls;
      break;
  }
  stack_.push_back(frame);
}

void Profile::leave(int64_t sequence, int64_t now_ns) {
  RMOE_ASSERT(!stack_.empty());
  const Frame frame = stack_.back();
  stack_.pop_back();
  const int64_t whole = now_ns - frame.start;
  spent_[frame.key].ns += whole - frame.inner;
  if (frame.range >= 0) {
    ranges_[static_cast<size_t>(frame.range)].end = sequence;
    // What follows the layers, until another begins, is the output's.
    if (!stack_.empty() && !stack_.back().key.backward) stack_.back().key.part = part("output");
  }
  if (stack_.empty()) {
    total_ns_ += whole;
  } else {
    stack_.back().inner += whole;
  }
}

std::vector<Profile::Row> Profile::parts() const {
  std::vector<Row> rows;
  for (const std::string& name : part_names_) rows.push_back({.name = name});
  for (const auto& [key, spent] : spent_) {
    Row& row = rows[key.part];
    (key.backward ? row.backward : row.forward) += static_cast<double>(spent.ns) * 1e-9;
    row.calls += spent.calls;
  }
  std::stable_sort(rows.begin(), rows.end(), [](const Row& a, const Row& b) { return place(a.name) < place(b.name); });
  return rows;
}

std::vector<Profile::Row> Profile::ops() const {
  std::vector<Row> rows;
  for (const std::string& name : op_names_) rows.push_back({.name = name});
  for (const auto& [key, spent] : spent_) {
    Row& row = rows[key.op];
    (key.backward ? row.backward : row.forward) += static_cast<double>(spent.ns) * 1e-9;
    row.calls += spent.calls;
  }
  std::stable_sort(rows.begin(), rows.end(), [](const Row& a, const Row& b) {
    const bool a_last = a.name == kUnattributed, b_last = b.name == kUnattributed;
    return a_last != b_last ? b_last : a.sum() > b.sum();
  });
  return rows;
}

Json Profile::json(int64_t steps) const {
  const auto n = static_cast<double>(steps);
  const auto list = [&](const std::vector<Row>& rows) {
    Json out = Json::array();
    for (const Row& row : rows) {
      out.push_back({{"name", row.name},
                     {"calls", static_cast<double>(row.calls) / n},
                     {"forward_s", row.forward / n},
                     {"backward_s", row.backward / n},
                     {"share", seconds() > 0 ? row.sum() / seconds() : 0}});
    }
    return out;
  };
  return {{"step_s", seconds() / n}, {"parts", list(parts())}, {"ops", list(ops())}};
}

std::string Profile::text(int64_t steps) const {
  const auto n = static_cast<double>(steps);
  const auto table = [&](const char* head, const std::vector<Row>& rows) {
    std::vector<std::vector<std::string>> cells{{head, "calls", "forward ms", "backward ms", "sum ms", "%"}};
    const auto add = [&](const Row& row) {
      cells.push_back({row.name, fixed(static_cast<double>(row.calls) / n, 0), fixed(1e3 * row.forward / n, 2),
                       fixed(1e3 * row.backward / n, 2), fixed(1e3 * row.sum() / n, 2),
                       fixed(100 * row.sum() / seconds(), 1)});
    };
    Row small{.name = "others, each below 0.1 %"}, whole{.name = "whole step"};
    for (const Row& row : rows) {
      const bool shown = row.sum() >= 1e-3 * seconds() || row.name == kUnattributed || row.name == kOutside;
      for (Row* sum : shown ? std::vector{&whole} : std::vector{&whole, &small}) {
        sum->calls += row.calls;
        sum->forward += row.forward;
        sum->backward += row.backward;
      }
      if (shown && row.name != kUnattributed) add(row);
    }
    if (small.calls > 0) add(small);
    if (!rows.empty() && rows.back().name == kUnattributed) add(rows.back());
    add(whole);
    return table_text(cells);
  };
  return table("part", parts()) + "\n" + table("op", ops());
}

}  // namespace rmoe::bench
