// What torch.autocast does to the ops. Without this, each op would run with autocast still on inside, and a router's
// products would be narrowed.
//   narrow   the hidden states of matrix products go to autocast's dtype; weights stay as they are, since the ops read
//            fp32 masters in the dtype of the hidden states
//   widen    what is added is brought to one dtype, the wider one
//   fp32     everything in fp32
//   as is    routers and norms: they read any dtype and compute in fp32
// fp64 is never changed, as everywhere in autocast.
#include <map>
#include <set>

#include <ATen/autocast_mode.h>

#include "rmoe/ops/torch.h"

namespace rmoe {
namespace {

enum class Policy { kAsIs, kNarrow, kWiden, kFp32 };
struct Rule {
  Policy policy;
  std::set<std::string> arguments;  // that it is about
};

const std::map<std::string, Rule>& rules() {
  static const std::map<std::string, Rule> table = {
      {"linear", {Policy::kNarrow, {"x"}}},
      {"linear_backward", {Policy::kAsIs, {}}},
      {"recurrent_stage", {Policy::kAsIs, {}}},
      {"recurrent_stage_backward", {Policy::kAsIs, {}}},
      {"gate", {Policy::kAsIs, {}}},
      {"gate_backward", {Policy::kAsIs, {}}},
      {"added_gate", {Policy::kAsIs, {}}},
      {"added_gate_backward", {Policy::kAsIs, {}}},
      {"experts", {Policy::kNarrow, {"x"}}},
      {"experts_backward", {Policy::kAsIs, {}}},
      {"rms_norm", {Policy::kAsIs, {}}},
      {"layer_norm", {Policy::kAsIs, {}}},
      {"add_rms_norm", {Policy::kWiden, {"x", "branch"}}},
      {"add_layer_norm", {Policy::kWiden, {"x", "branch"}}},
      {"norm", {Policy::kAsIs, {}}},
      {"norm_backward", {Policy::kAsIs, {}}},
      {"rotate", {Policy::kAsIs, {}}},
      {"causal_attention", {Policy::kNarrow, {"q", "k", "v"}}},
      {"causal_attention_backward", {Policy::kAsIs, {}}},
      {"span_attention", {Policy::kNarrow, {"q", "k", "v"}}},
      {"span_attention_backward", {Policy::kAsIs, {}}},
      {"linear_cross_entropy", {Policy::kNarrow, {"x"}}},
      {"linear_cross_entropy_gradients", {Policy::kAsIs, {}}},
  };
  return table;
}

template <c10::DeviceType device>
void run(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const c10::impl::ExcludeDispatchKeyGuard without(
      c10::DispatchKeySet(at::autocast::get_autocast_dispatch_key_from_device_type(device)));
  const auto& schema = op.schema();
  const Rule& rule = rules().at(schema.name().substr(schema.name().find("::") + 2));
  const size_t first = stack->size() - schema.arguments().size();
  const auto each = [&](auto&& f) {
    for (size_t i = 0; i < schema.arguments().size(); ++i) {
      c10::IValue& value = (*stack)[first + i];
      if (rule.arguments.count(schema.arguments()[i].name()) == 0 || !value.isTensor()) continue;
      const Tensor t = value.toTensor();
      if (t.is_floating_point() && t.scalar_type() != at::kDouble) f(value, t);
    }
  };
  auto type = rule.policy == Policy::kNarrow ? at::autocast::get_autocast_dtype(device) : at::kFloat;
  if (rule.policy == Policy::kWiden) {
    std::optional<at::ScalarType> widest;
    each([&](const c10::IValue&, const Tensor& t) {
      widest = widest ? at::promote_types(*widest, t.scalar_type()) : t.scalar_type();
    });
    type = widest.value_or(at::kFloat);
  }
  if (rule.policy != Policy::kAsIs) {
    each([&](c10::IValue& value, const Tensor& t) { value = at::autocast::cached_cast(type, t, device); });
  }
  op.callBoxed(stack);
}

template <c10::DeviceType device>
void add_all(torch::Library& m) {
  for (const auto& rule : rules()) {
    m.impl(rule.first.c_str(), torch::CppFunction::makeFromBoxedFunction<&run<device>>());
  }
}

}  // namespace

TORCH_LIBRARY_IMPL(rmoe, AutocastCPU, m) { add_all<c10::DeviceType::CPU>(m); }
TORCH_LIBRARY_IMPL(rmoe, AutocastCUDA, m) { add_all<c10::DeviceType::CUDA>(m); }

}  // namespace rmoe
