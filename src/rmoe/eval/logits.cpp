#include "rmoe/eval/logits.h"

#include "rmoe/base/error.h"
#include "rmoe/ops/tensor_file.h"

namespace rmoe {
namespace {

constexpr int64_t kMostTokens = int64_t{1} << 15;

}  // namespace

void write_logits(const Model& model, const data::TokenFile& tokens, const EvalOptions& options,
                  const std::filesystem::path& path) {
  const c10::InferenceMode inference;
  RMOE_CHECK(model.config().family == Family::kLlama,
             "eval: --logits is for the llama family, whose windows are texts "
             "of their own");
  int64_t total = tokens.size() - 1;
  if (options.max_tokens > 0) total = std::min(total, options.max_tokens);
  const int64_t S = options.block, B = S > 0 ? total / S : 0;
  RMOE_CHECK(B > 0, "eval: --logits needs a window of ", S, " tokens, but there are ", total,
             "; choose a smaller --block");
  RMOE_CHECK(B * S <= kMostTokens, "eval: --logits of ", B * S, " tokens, expected at most ", kMostTokens,
             "; choose fewer --tokens");
  Tensor ids_BS = at::empty({B, S}, at::kLong);
  tokens.read(0, B * S, ids_BS.mutable_data_ptr<int64_t>());
  const ForwardResult forward = model.forward(ids_BS, {}, {.dtype = options.dtype});
  NamedTensors named{{"tokens", ids_BS},
                     {"logits", forward.logits_TV.to(at::kFloat).view({B, S, -1})},
                     {"balance_loss", forward.trace.empty() ? at::zeros({}, at::kFloat)
                                                            : model.routing().loss(forward.trace).to(at::kFloat)}};
  for (size_t layer = 0; layer < forward.trace.size(); ++layer) {
    named.emplace_back(str("router_logits.", layer), forward.trace[layer].logits_TN.to(at::kFloat));
    named.emplace_back(str("experts.", layer), forward.trace[layer].ids_TK);
  }
  save_tensors(path, named);
}

}  // namespace rmoe
