#include "rmoe/config/model.h"

#include <algorithm>

#include "rmoe/base/error.h"

namespace rmoe {

void MoeConfig::validate() const {
  RMOE_CHECK(top_k <= all_experts(), "top_k must be at most experts, got top_k = ", top_k,
             " and experts = ", all_experts());
}

void RopeScalingConfig::validate() const {
  RMOE_CHECK(kind != RopeScaling::kLlama3 || high_freq_factor > low_freq_factor,
             "high_freq_factor must be more than low_freq_factor, got ", high_freq_factor, " and ", low_freq_factor);
}

void ModelConfig::validate() const {
  RMOE_CHECK(llama.head_width > 0 || width % heads == 0, "width must be a multiple of heads, got width = ", width,
             " and heads = ", heads);
  RMOE_CHECK(dense_layers <= layers, "dense_layers must be at most layers, got ", dense_layers, " of ", layers);
  for (const int64_t layer : dense_at) {
    RMOE_CHECK(layer < layers, "dense_at names layer ", layer, ", but the last one is ", layers - 1);
  }
  RMOE_CHECK(moe_layers() == layers || static_cast<double>(dense_inner()) <= kWidest,
             "dense blocks are top_k * expert_width = ", dense_inner(), " wide, expected at most ", kWidest,
             "; set dense_width");
  RMOE_CHECK(static_cast<double>(moe_layers() * moe.all_experts()) <= kMostExperts,
             "MoE layers * moe.experts must be at most ", kMostExperts, ", got ", moe_layers(),
             " layers and experts = ", moe.all_experts());
  if (family == Family::kLlama) {
    RMOE_CHECK(head_width() % 2 == 0, "rotary embeddings need an even head width, got ", head_width());
    RMOE_CHECK(static_cast<double>(heads) * static_cast<double>(head_width()) <= kWidest,
               "heads * llama.head_width must be at most ", kWidest, ", got ", heads, " * ", head_width());
    RMOE_CHECK(heads % kv_heads() == 0, "heads must be a multiple of llama.kv_heads, got heads = ", heads,
               " and kv_heads = ", kv_heads());
  } else {
    RMOE_CHECK(moe.shared_width == 0, "moe.shared_width is for the llama family, got ", moe.shared_width);
    RMOE_CHECK(!moe.bias, "moe.bias is for the llama family");
    RMOE_CHECK(llama.head_width == 0, "llama.head_width is for the llama family, got ", llama.head_width);
    RMOE_CHECK(llama.kv_heads == 0, "llama.kv_heads is for the llama family, got ", llama.kv_heads);
  }
}

bool ModelConfig::is_moe(int64_t layer) const {
  return layer >= dense_layers && (layer - dense_layers) % moe.every == 0 &&
         std::find(dense_at.begin(), dense_at.end(), layer) == dense_at.end();
}

int64_t ModelConfig::moe_layers() const {
  int64_t count = 0;
  for (int64_t layer = 0; layer < layers; ++layer) count += is_moe(layer);
  return count;
}

}  // namespace rmoe
