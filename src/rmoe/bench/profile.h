// Where the time of a training step goes: nested intervals, reported as they begin and end, become times per part of
// the model and per op that add up to the whole. Free of torch; profile_step.cpp feeds it.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "rmoe/base/json.h"

namespace rmoe::bench {

class Profile {
 public:
  enum class Kind {
    kRegion,  // a part of the step by name: "forward", "layer 3", "backward", "optimizer"
    kOp,      // an op; what it calls belongs to it
    kNode,    // a node of the backward graph, whose ops are listed by themselves
  };

  // An interval begins. `sequence`: of a region the number that the next graph node will get, of a node its own; it
  // tells which layer's forward pass made the node. A negative one is unknown: the node belongs where the last one did.
  // Between two regions "forward" every "layer N" may come several times (recomputation).
  void enter(Kind kind, std::string_view name, int64_t sequence, int64_t now_ns);
  // The innermost interval ends.
  void leave(int64_t sequence, int64_t now_ns);

  // What the outermost intervals took.
  double seconds() const { return static_cast<double>(total_ns_) * 1e-9; }

  struct Row {
    std::string name;
    int64_t calls = 0;
    double forward = 0, backward = 0;  // seconds; the optimizer and the like count as forward
    double sum() const { return forward + backward; }
  };
  // In the order of the step: input (before the first layer), the layers, output (after the last one: head and loss),
  // then the other regions, then what lies outside of all. Their sums add up to seconds().
  std::vector<Row> parts() const;
  // By falling time; the last row is what belongs to no op. Their sums add up to seconds().
  std::vector<Row> ops() const;

  static constexpr const char* kOutside = "outside of all parts";
  static constexpr const char* kUnattributed = "between ops";

  // With all times divided by `steps`.
  Json json(int64_t steps) const;
  std::string text(int64_t steps) const;

 private:
  struct Spent {
    int64_t ns = 0, calls = 0;
  };
  struct Key {
    size_t part, op;
    bool backward;
    auto operator<=>(const Key&) const = default;
  };
  struct Frame {
    Kind kind;
    Key key;
    bool inside_op;
    int64_t start, inner = 0;
    int64_t range = -1;  // index into ranges_ of a layer's region
  };
  struct Range {
    int64_t begin, end;
    size_t part;
  };

  size_t part_of_node(int64_t sequence);
  void enter_region(Frame& frame, std::string_view name, int64_t sequence);

  std::vector<std::string> part_names_, op_names_;
  std::unordered_map<std::string, size_t> part_ids_, op_ids_;
  size_t id(std::vector<std::string>& names, std::unordered_map<std::string, size_t>& ids, std::string_view name);
  size_t part(std::string_view name) { return id(part_names_, part_ids_, name); }
  size_t op(std::string_view name) { return id(op_names_, op_ids_, name); }

  std::map<Key, Spent> spent_;
  std::vector<Frame> stack_;
  std::vector<Range> ranges_;  // of the current forward pass
  size_t node_part_ = 0;       // of the last node
  int64_t total_ns_ = 0;
};

}  // namespace rmoe::bench
