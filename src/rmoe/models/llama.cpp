// The llama family (reference, sections 3 and 5): pre-norm with RMSNorm, rotary positions, grouped-query attention and
// SwiGLU; the first layers dense, the others MoE with an optional shared expert,
//   x += Attn(RMSNorm(x));  x += moe_weight * (Experts(n) + bias) + shared_weight * Shared(n),  n = RMSNorm(x)
// Options make it dense Llama, Mixtral, OLMoE and Qwen3-MoE: norms of queries and keys, biases, wide heads.
// Parameter names are those of the public llama_moe_rnn layout.
#include "rmoe/models/families.h"
#include "rmoe/nn/moe_block.h"
#include "rmoe/ops/affine.h"
#include "rmoe/ops/causal_attention.h"
#include "rmoe/ops/norm.h"

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
  Linear q, k, v, o;
  Tensor q_norm, k_norm;  // [C] or [H C] and [Hkv C]; undefined: none
  Tensor moe_bias_D;      // undefined: none
  std::optional<SwigluMlp> mlp, shared;
  std::unique_ptr<nn::MoeBlock> moe;
};

enum Site : uint64_t { kAttention, kOutput, kInner, kSites };

class LlamaModel : public Model {
 public:
  LlamaModel(const ModelConfig& c, ParamTable& table) : Model(c) {
    const ParamScope root(table), model = root / "model";
    const int64_t D = c.width, V = c.vocab_size, C = c.head_width();
    const int64_t Q = c.heads * C, KV = c.kv_heads() * C;
    const double std = c.init_std;
    embedding_VD_ =
        model.add("embed_tokens.weight", {V, D}, Init::normal(std > 0 ? std : 1), {.matmul = c.llama.tie_embeddings});
    auto moe = nn::make_moe_layers(c, nn::ExpertKind::kSwiglu, model);
    pipeline_ = moe.pipeline;
    const auto norm = [](const ParamScope& scope, int64_t size) {
      return scope.add("weight", {size}, Init::ones(), {.matmul = false});
    };
    const auto linear = [&](const ParamScope& scope, int64_t out, int64_t in) {
      return add_linear(scope, "weight", c.llama.attention_bias ? "bias" : "", out, in, std);
    };
    for (int64_t i = 0; i < c.layers; ++i) {
      const ParamScope scope = nn::layer_scope(model, i), attention = scope / "self_attn";
      Layer layer;
      layer.input_norm_D = norm(scope / "input_layernorm", D);
      layer.output_norm_D = norm(scope / "post_attention_layernorm", D);
      layer.q = linear(attention / "q_proj", Q, D);
      layer.k = linear(attention / "k_proj", KV, D);
      layer.v = linear(attention / "v_proj", KV, D);
      layer.o = linear(attention / "o_proj", D, Q);
      if (c.llama.qk_norm != QkNorm::kNone) {
        const bool whole = c.llama.qk_norm == QkNorm::kWhole;
        layer.q_norm = norm(attention / "q_norm", whole ? Q : C);
        layer.k_norm = norm(attention / "k_norm", whole ? KV : C);
      }
      if (c.is_moe(i)) {
        layer.moe = std::move(moe.blocks[static_cast<size_t>(i)]);
        if (c.moe.bias)
          layer.moe_bias_D = (scope / "block_sparse_moe").add("bias", {D}, Init::zeros(), {.matmul = false});
        if (c.moe.shared_width > 0) layer.shared.emplace(D, c.moe.shared_width, std, scope / "mlp_share");
      } else {
        layer.mlp.emplace(D, c.dense_inner(), std, scope / "mlp");
      }
      layers_.push_back(std::move(layer));
    }
    norm_D_ = norm(model / "norm", D);
    head_VD_ = c.llama.tie_embeddings ? embedding_VD_ : root.add("lm_head.weight", {V, D}, matrix_init(D, std));
  }

  Linear head() const override { return {.weight_OI = head_VD_, .bias_O = {}}; }

 private:
  ForwardResult run(const Tensor& tokens_BS, Memory memory, const ForwardOptions& options) const override {
    const int64_t D = config_.width, S = tokens_BS.size(1);
    RMOE_ASSERT(options.remember != Remember::kHidden, "the llama family has no block cache");
    ForwardResult result;
    result.memory = std::move(memory);
    result.memory.layers.resize(layers_.size());
    const auto precision = at_least_fp32(options.dtype);
    const RotaryAngles angles = rotary_angles(result.memory.position, S, frequencies(precision).to(tokens_BS.device()));
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
    put_output(result, norm(x, norm_D_).reshape({-1, D}), options);
    return result;
  }

  nn::LayerResult layer(size_t i, const Tensor& x_BSD, routing::RouterCarry carry, const LayerInput& in,
                        const RotaryAngles& angles, nn::KvCache* cache) const {
    const Layer& l = layers_[i];
    const auto key = [&](Site site) { return in.dropout_key.at(i * kSites + site); };
    nn::LayerResult out;
    const double p = in.context.training ? config_.dropout : 0.0;
    const Tensor attended = attention(l, norm(x_BSD, l.input_norm_D), angles, cache);
    const auto [sum, n] = add_rms_norm(x_BSD, attended, l.output_norm_D, config_.llama.norm_eps, p, key(kAttention));
    Tensor y;
    if (l.moe) {
      auto moe = l.moe->forward(n.reshape({-1, n.size(-1)}), std::move(carry), in.context, key(kInner));
      y = moe.y_TD.view(n.sizes());
      if (l.moe_bias_D.defined()) y = y + l.moe_bias_D.to(y.scalar_type());
      if (l.shared) y = config_.moe.moe_weight * y + config_.moe.shared_weight * (*l.shared)(n);
      out.carry = std::move(moe.carry);
      out.routing = std::move(moe.routing);
    } else {
      y = (*l.mlp)(n);
      out.carry = std::move(carry);
    }
    out.x = sum + dropout(y, p, key(kOutput));
    return out;
  }

  Tensor norm(const Tensor& x, const Tensor& weight_D) const { return rms_norm(x, weight_D, config_.llama.norm_eps); }

  // Of the rotary positions, [C/2].
  Tensor frequencies(at::ScalarType type) const {
    const Tensor plain = rotary_frequencies(config_.head_width(), config_.llama.rope_theta, type);
    const RopeScalingConfig& s = config_.llama.rope_scaling;
    if (s.kind == RopeScaling::kNone) return plain;
    if (s.kind == RopeScaling::kLinear) return plain / s.factor;
    return llama3_frequencies(plain, s.factor, s.low_freq_factor, s.high_freq_factor, s.original_positions);
  }

  // `cache` is null where nothing is remembered.
  Tensor attention(const Layer& layer, const Tensor& x_BSD, const RotaryAngles& angles, nn::KvCache* cache) const {
    const int64_t B = x_BSD.size(0), S = x_BSD.size(1), C = config_.head_width();
    const bool whole = config_.llama.qk_norm == QkNorm::kWhole;
    const auto heads = [&](Tensor t, const Tensor& weight = {}) {
      if (weight.defined() && whole) t = norm(t, weight);
      t = t.view({B, S, -1, C});
      return weight.defined() && !whole ? norm(t, weight) : t;
    };
    Tensor q = heads(layer.q(x_BSD), layer.q_norm), k = heads(layer.k(x_BSD), layer.k_norm);
    Tensor v = heads(layer.v(x_BSD));
    RotaryAngles left = angles;  // to turn by
    if (cache) {
      // Keys are kept turned.
      q = rotate(q, angles);
      std::tie(k, v) = cache->append(rotate(k, angles).transpose(1, 2), v.transpose(1, 2));
      k = k.transpose(1, 2), v = v.transpose(1, 2);
      left = {};
    }
    return layer.o(causal_attention(q, k, v, left).view({B, S, -1}));
  }

  std::vector<Layer> layers_;
  Tensor embedding_VD_, norm_D_, head_VD_;
};

}  // namespace

std::unique_ptr<Model> make_llama_model(const ModelConfig& config, ParamTable& table) {
  return std::make_unique<LlamaModel>(config, table);
}

}  // namespace rmoe
