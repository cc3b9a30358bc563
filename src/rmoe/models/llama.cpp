// The llama family (reference, sections 3 and 5): pre-norm with RMSNorm, rotary positions, grouped-query attention and
// SwiGLU; the first layers dense, the others MoE with an optional shared expert,
//   x += Attn(RMSNorm(x));  x += moe_weight * Experts(n) + shared_weight * Shared(n),  n = RMSNorm(x)
// Parameter names are those of the public llama_moe_rnn layout.
#include "rmoe/models/families.h"
#include "rmoe/nn/moe_block.h"
#include "rmoe/ops/affine.h"
#include "rmoe/ops/causal_attention.h"

namespace rmoe {
namespace {

struct SwigluMlp {
  SwigluMlp(int64_t width, int64_t inner, double deviation, const ParamScope& scope)
      : gate_FD(scope.add("gate_proj.weight", {inner, width}, matrix_init(width, deviation))),
        up_FD(scope.add("up_proj.weight", {inner, width}, matrix_init(width, deviation))),
        down_DF(scope.add("down_proj.weight", {width, inner}, matrix_init(inner, deviation))) {}
  Tensor operator()(const Tensor& x) const { return affine(at::silu(affine(x, gate_FD)) * affine(x, up_FD), down_DF); }
  Tensor gate_FD, up_FD, down_DF;
};

struct Layer {
  Tensor input_norm_D, output_norm_D;
  Tensor q_proj, k_proj, v_proj, o_proj;
  std::optional<SwigluMlp> mlp, shared;
  std::unique_ptr<nn::MoeBlock> moe;
};

enum Site : uint64_t { kAttention, kOutput, kInner, kSites };

class LlamaModel : public Model {
 public:
  LlamaModel(const ModelConfig& c, ParamTable& table) : Model(c) {
    const ParamScope root(table), model = root / "model";
    const int64_t D = c.width, V = c.vocab_size, C = c.head_width(), KV = c.kv_heads() * C;
    const double std = c.init_std;
    embedding_VD_ =
        model.add("embed_tokens.weight", {V, D}, Init::normal(std > 0 ? std : 1), {.matmul = c.llama.tie_embeddings});
    auto moe = nn::make_moe_layers(c, nn::ExpertKind::kSwiglu, model);
    pipeline_ = moe.pipeline;
    const auto norm = [&](const ParamScope& scope) {
      return scope.add("weight", {D}, Init::ones(), {.matmul = false});
    };
    for (int64_t i = 0; i < c.layers; ++i) {
      const ParamScope scope = nn::layer_scope(model, i), attention = scope / "self_attn";
      Layer layer;
      layer.input_norm_D = norm(scope / "input_layernorm");
      layer.output_norm_D = norm(scope / "post_attention_layernorm");
      layer.q_proj = attention.add("q_proj.weight", {D, D}, matrix_init(D, std));
      layer.k_proj = attention.add("k_proj.weight", {KV, D}, matrix_init(D, std));
      layer.v_proj = attention.add("v_proj.weight", {KV, D}, matrix_init(D, std));
      layer.o_proj = attention.add("o_proj.weight", {D, D}, matrix_init(D, std));
      if (c.is_moe(i)) {
        layer.moe = std::move(moe.blocks[static_cast<size_t>(i)]);
        if (c.moe.shared_width > 0) layer.shared.emplace(D, c.moe.shared_width, std, scope / "mlp_share");
      } else {
        layer.mlp.emplace(D, c.dense_inner(), std, scope / "mlp");
      }
      layers_.push_back(std::move(layer));
    }
    norm_D_ = norm(model / "norm");
    head_VD_ = c.llama.tie_embeddings ? embedding_VD_ : root.add("lm_head.weight", {V, D}, matrix_init(D, std));
  }

  ForwardResult forward(const Tensor& tokens_BS, Memory memory, const ForwardOptions& options) const override {
    const int64_t D = config_.width, S = tokens_BS.size(1);
    RMOE_ASSERT(options.remember != Remember::kHidden, "the llama family has no block cache");
    ForwardResult result;
    result.memory = std::move(memory);
    result.memory.layers.resize(layers_.size());
    const auto precision = at_least_fp32(options.dtype);
    const RotaryAngles angles =
        rotary_angles(result.memory.position, S, config_.head_width(), config_.llama.rope_theta, precision);
    result.memory.position += S;

    Tensor x = at::embedding(embedding_VD_, tokens_BS).to(options.dtype);
    const bool remember = options.remember == Remember::kKeysValues;
    const auto memories = remember ? result.memory.layers.data() : nullptr;
    const auto step = [this, angles, memories](size_t i, const Tensor& h, routing::RouterCarry carry,
                                               const LayerInput& in) {
      return layer(i, h, std::move(carry), in, angles, memories ? &memories[i].kv : nullptr);
    };
    x = run_layers(std::move(x), tokens_BS, options, step, result.trace);
    if (options.last_logits_only) x = x.narrow(1, S - 1, 1);
    result.logits_TV = affine(norm(x, norm_D_).reshape({-1, D}), head_VD_);
    return result;
  }

 private:
  nn::LayerResult layer(size_t i, const Tensor& x_BSD, routing::RouterCarry carry, const LayerInput& in,
                        const RotaryAngles& angles, nn::KvCache* cache) const {
    const Layer& l = layers_[i];
    const auto key = [&](Site site) { return in.dropout_key.at(i * kSites + site); };
    const auto dropped = [&](const Tensor& y, Site site) {
      return in.context.training ? dropout(y, config_.dropout, key(site)) : y;
    };
    nn::LayerResult out;
    out.x = x_BSD + dropped(attention(l, norm(x_BSD, l.input_norm_D), angles, cache), kAttention);
    const Tensor n = norm(out.x, l.output_norm_D);
    Tensor y;
    if (l.moe) {
      auto moe = l.moe->forward(n.reshape({-1, n.size(-1)}), std::move(carry), in.context, key(kInner));
      y = moe.y_TD.view(n.sizes());
      if (l.shared) y = config_.moe.moe_weight * y + config_.moe.shared_weight * (*l.shared)(n);
      out.carry = std::move(moe.carry);
      out.routing = std::move(moe.routing);
    } else {
      y = (*l.mlp)(n);
      out.carry = std::move(carry);
    }
    out.x = out.x + dropped(y, kOutput);
    return out;
  }

  Tensor norm(const Tensor& x, const Tensor& weight_D) const {
    return at::rms_norm(x, {x.size(-1)}, weight_D.to(x.scalar_type()), config_.llama.norm_eps);
  }

  // `cache` is null where nothing is remembered.
  Tensor attention(const Layer& layer, const Tensor& x_BSD, const RotaryAngles& angles, nn::KvCache* cache) const {
    const int64_t B = x_BSD.size(0), S = x_BSD.size(1), C = config_.head_width();
    const auto heads = [&](const Tensor& t) { return t.view({B, S, -1, C}); };
    Tensor q = heads(affine(x_BSD, layer.q_proj)), k = heads(affine(x_BSD, layer.k_proj));
    Tensor v = heads(affine(x_BSD, layer.v_proj));
    RotaryAngles left = angles;  // to turn by
    if (cache) {
      // Keys are kept turned.
      q = rotate(q, angles);
      std::tie(k, v) = cache->append(rotate(k, angles).transpose(1, 2), v.transpose(1, 2));
      k = k.transpose(1, 2), v = v.transpose(1, 2);
      left = {};
    }
    return affine(causal_attention(q, k, v, left).view({B, S, -1}), layer.o_proj);
  }

  std::vector<Layer> layers_;
  Tensor embedding_VD_, norm_D_, head_VD_;
};

}  // namespace

std::unique_ptr<Model> make_llama_model(const ModelConfig& config, ParamTable& table) {
  return std::make_unique<LlamaModel>(config, table);
}

}  // namespace rmoe
