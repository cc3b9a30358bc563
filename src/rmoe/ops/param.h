// Parameters of a model: one table declares every tensor's name, shape and start value. Counting, building, checkpoints
// and the optimizer all read it, so they cannot disagree.
#pragma once

#include <cstdint>
#include <functional>
#include <string_view>
#include <unordered_set>

#include "rmoe/ops/torch.h"

namespace rmoe {

using Shape = std::vector<int64_t>;

// Start values. Every parameter draws from its own stream, keyed by (seed, name): models that share a parameter's name
// start it equally, whatever else they contain.
struct Init {
  enum class Kind { kConstant, kNormal, kUniform };
  Kind kind = Kind::kConstant;
  double value = 0;  // constant; standard deviation; bound of U(-value, value)

  static Init constant(double v) { return {Kind::kConstant, v}; }
  static Init zeros() { return constant(0); }
  static Init ones() { return constant(1); }
  static Init normal(double deviation) { return {Kind::kNormal, deviation}; }
  static Init uniform(double bound) { return {Kind::kUniform, bound}; }
};

// The start of a matrix that reads `fan_in` features: N(0, deviation), or where that is 0 the uniform start of
// torch.nn.Linear and its cells, U(-1/sqrt(fan_in), 1/sqrt(fan_in)).
Init matrix_init(int64_t fan_in, double deviation);
// The start of its bias: as torch.nn.Linear's, or zero where matrices start from N(0, deviation).
Init bias_init(int64_t fan_in, double deviation);

// How a tensor appears in a checkpoint: as itself, or cut along its first dimension into tensors with names of their
// own (the experts of a layer, the gates of a cell), as the Hugging Face layout has them.
struct StoredParts {
  std::vector<std::string> names;  // empty: stored whole
  bool drop_dim = false;           // each part is one row of the first dimension, stored without that dimension
};

struct ParamTraits {
  double active = 1;   // share of the elements that one token uses (K/N for experts)
  double uses = 1;     // times that one token multiplies with it (a cell shared by L layers: L)
  bool matmul = true;  // multiplied with activations (for FLOPs), as against looked up or added
  StoredParts stored = {};
  bool trainable = true;  // false: frozen; counted and saved, never changed
  // Defined: not a parameter but a state of the training run, of this dtype, without a gradient and outside all counts.
  std::optional<at::ScalarType> buffer = {};
};

struct Param {
  std::string name;
  Shape shape;
  Init init;
  ParamTraits traits;
  Tensor value;  // undefined in a table that only counts

  int64_t count() const;  // elements
  bool is_buffer() const { return traits.buffer.has_value(); }
  // The checkpoint's view: (name, tensor sharing storage with value) for each stored part.
  std::vector<std::pair<std::string, Tensor>> stored() const;
};

class ParamTable {
 public:
  // Declares only: the tensors stay undefined. Used to count and to list.
  ParamTable() = default;
  // Allocates in `dtype` and fills from `seed`.
  ParamTable(uint64_t seed, at::ScalarType dtype, at::Device device = at::kCPU);

  // Throws when the name is taken or a dimension is not positive.
  Tensor add(std::string name, Shape shape, Init init, ParamTraits traits);

  const std::vector<Param>& all() const { return params_; }
  std::vector<Param>& all() { return params_; }
  // The checkpoint's view of all of them, parameters and buffers: see Param::stored.
  std::vector<std::pair<std::string, Tensor>> stored() const;
  int64_t count() const;  // of parameters; buffers do not count, here and below
  // Parameters that one token's forward pass uses.
  int64_t active_count() const;
  // 2 per multiply-add, forward pass of one token, matrices only (attention scores are the model's to add).
  double matmul_flops() const;

 private:
  std::vector<Param> params_;
  std::unordered_set<std::string> names_;
  std::function<Tensor(const Param&)> make_;
};

// A place in the name tree: `scope / "self_attn"` is the scope below, add() registers a parameter there.
class ParamScope {
 public:
  explicit ParamScope(ParamTable& table, std::string prefix = "") : table_(&table), prefix_(std::move(prefix)) {}
  ParamScope operator/(std::string_view child) const { return ParamScope(*table_, join(child)); }
  Tensor add(std::string_view name, Shape shape, Init init, ParamTraits traits = {}) const {
    return table_->add(join(name), std::move(shape), init, std::move(traits));
  }
  // A state of the training run: zeros, fp32 or int64 whatever the table's dtype, saved with the model.
  Tensor add_buffer(std::string_view name, Shape shape, at::ScalarType dtype) const {
    return add(name, std::move(shape), Init::zeros(), {.matmul = false, .trainable = false, .buffer = dtype});
  }
  const ParamTable& table() const { return *table_; }
  std::string join(std::string_view child) const {
    return prefix_.empty() ? std::string(child) : prefix_ + "." + std::string(child);
  }

 private:
  ParamTable* table_;
  std::string prefix_;
};

}  // namespace rmoe
