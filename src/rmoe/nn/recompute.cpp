#include "rmoe/nn/recompute.h"

#include <algorithm>

#include <torch/csrc/autograd/autograd.h>

#include "rmoe/base/error.h"

namespace rmoe::nn {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Every tensor of a layer's inputs and outputs that autograd may pass through, in one order.
template <class F>
void for_each_tensor(routing::RouterCarry& carry, F&& f) {
  f(carry.state_TP);
  f(carry.cell_TP);
  for (Tensor& scores : carry.scores_TN) f(scores);
}
template <class F>
void for_each_tensor(LayerResult& result, F&& f) {
  f(result.x);
  for_each_tensor(result.carry, f);
  if (!result.routing) return;
  for (Tensor* t : {&result.routing->weights_TK, &result.routing->logits_TN, &result.routing->scores_TN,
                    &result.routing->probs_TN, &result.routing->state_TP, &result.routing->loss}) {
    f(*t);
  }
}

// f(tensor, i) for each tensor that the layer made, i being its number among the distinct ones; the same tensor in two
// places has one number. A carry that a layer hands on untouched is not the layer's.
template <class F>
void for_each_output(LayerResult& result, const variable_list& inputs, F&& f) {
  variable_list seen;
  const auto index_of = [](const variable_list& list, const Tensor& t) {
    return static_cast<size_t>(
        std::find_if(list.begin(), list.end(), [&](const Tensor& other) { return other.is_same(t); }) - list.begin());
  };
  for_each_tensor(result, [&](Tensor& t) {
    if (!t.defined() || index_of(inputs, t) < inputs.size()) return;
    const size_t i = index_of(seen, t);
    if (i == seen.size()) seen.push_back(t);
    f(t, i);
  });
}

// What one call shares between forward and backward.
struct Call {
  LayerFunction layer;
  routing::RouterCarry carry;  // the inputs' places; its tensors are those of the graph only in forward
  LayerResult result;          // of the forward pass

  // Runs the layer on these inputs (x, then the carry's defined tensors) and collects the outputs that need a gradient,
  // each tensor once.
  variable_list run(const variable_list& inputs) {
    size_t next = 1;
    routing::RouterCarry in = carry;
    for_each_tensor(in, [&](Tensor& t) {
      if (t.defined()) t = inputs[next++];
    });
    result = layer(inputs[0], std::move(in));
    variable_list outputs;
    for_each_output(result, inputs, [&](Tensor& t, size_t i) {
      if (i == outputs.size()) outputs.push_back(t);
    });
    return outputs;
  }
};

class Recompute : public torch::autograd::Function<Recompute> {
 public:
  static variable_list forward(AutogradContext* ctx, at::TensorList inputs, const std::shared_ptr<Call>& call) {
    ctx->save_for_backward(inputs.vec());
    ctx->set_materialize_grads(false);  // what nobody used gets no gradient, as without recomputation
    ctx->saved_data["call"] = at::IValue::make_capsule(c10::make_intrusive<Holder>(call));
    at::NoGradGuard no_grad;
    return call->run(inputs.vec());
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto call = static_cast<Holder&>(*ctx->saved_data["call"].toCapsule()).call;
    variable_list inputs = ctx->get_saved_variables();
    for (Tensor& input : inputs) input = input.detach().requires_grad_(input.requires_grad());
    Call again{call->layer, call->carry, {}};
    at::AutoGradMode with_grad(true);
    const variable_list outputs = again.run(inputs);
    RMOE_ASSERT(outputs.size() == grads.size(), "recomputation gave ", outputs.size(), " outputs, not ", grads.size());
    variable_list roots, root_grads;
    for (size_t i = 0; i < outputs.size(); ++i) {
      if (!grads[i].defined() || !outputs[i].requires_grad()) continue;
      roots.push_back(outputs[i]);
      root_grads.push_back(grads[i]);
    }
    if (!roots.empty()) torch::autograd::backward(roots, root_grads);
    variable_list result;
    for (const Tensor& input : inputs) result.push_back(input.grad());
    result.emplace_back();  // of `call`
    return result;
  }

 private:
  struct Holder : torch::CustomClassHolder {
    explicit Holder(std::shared_ptr<Call> c) : call(std::move(c)) {}
    std::shared_ptr<Call> call;
  };
};

}  // namespace

LayerResult recomputed(const LayerFunction& layer, const Tensor& x, routing::RouterCarry carry) {
  if (!at::GradMode::is_enabled()) return layer(x, std::move(carry));
  variable_list inputs{x};
  for_each_tensor(carry, [&](Tensor& t) {
    if (t.defined()) inputs.push_back(t);
  });
  if (std::none_of(inputs.begin(), inputs.end(), [](const Tensor& t) { return t.requires_grad(); })) {
    inputs[0] = x.detach().requires_grad_(true);  // for the parameters' sake
  }
  const auto call = std::make_shared<Call>(Call{layer, std::move(carry), {}});
  const variable_list outputs = Recompute::apply(at::TensorList(inputs), call);
  // The forward pass's result, with its tensors replaced by those of the graph.
  LayerResult result = std::move(call->result);
  call->result = {};
  for_each_output(result, inputs, [&](Tensor& t, size_t i) { t = outputs.at(i); });
  return result;
}

}  // namespace rmoe::nn
