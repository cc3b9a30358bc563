#include "rmoe/config/model.h"

#include "rmoe/base/error.h"

namespace rmoe {

void MoeConfig::validate() const {
  RMOE_CHECK(top_k <= all_experts(), "top_k must be at most experts, got top_k = ", top_k,
             " and experts = ", all_experts());
}

void ModelConfig::validate() const {
  RMOE_CHECK(width % heads == 0, "width must be a multiple of heads, got width = ", width, " and heads = ", heads);
  RMOE_CHECK(dense_layers <= layers, "dense_layers must be at most layers, got ", dense_layers, " of ", layers);
  RMOE_CHECK(moe_layers() == layers || static_cast<double>(dense_inner()) <= kWidest,
             "dense blocks are top_k * expert_width = ", dense_inner(), " wide, expected at most ", kWidest,
             "; set dense_width");
  RMOE_CHECK(static_cast<double>(layers * moe.all_experts()) <= kMostExperts, "layers * moe.experts must be at most ",
             kMostExperts, ", got layers = ", layers, " and experts = ", moe.all_experts());
  if (family == Family::kLlama) {
    RMOE_CHECK(head_width() % 2 == 0, "rotary embeddings need an even head width, got width / heads = ", head_width());
    RMOE_CHECK(heads % kv_heads() == 0, "heads must be a multiple of llama.kv_heads, got heads = ", heads,
               " and kv_heads = ", kv_heads());
  } else {
    RMOE_CHECK(moe.shared_width == 0, "moe.shared_width is for the llama family, got ", moe.shared_width);
    RMOE_CHECK(llama.kv_heads == 0, "llama.kv_heads is for the llama family, got ", llama.kv_heads);
  }
}

int64_t ModelConfig::moe_layers() const {
  int64_t count = 0;
  for (int64_t layer = 0; layer < layers; ++layer) count += is_moe(layer);
  return count;
}

}  // namespace rmoe
