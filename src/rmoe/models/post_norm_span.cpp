// The paper's small-scale transformer (reference, section 2), of the adaptive-span and CompeteSMoE line. Per layer
//   h <- LN1(h + Attn(h));  MoE: h <- LN2(h + LN_moe(h + dropout(Experts(h))));  dense: h <- LN3(h + FF(h))
// Attention has no biases, sees the S positions before each token and not the token itself, and shares one learned
// position key among layers and heads. Every layer owns all the norms, used or not, as the paper's counts do.
#include "rmoe/models/families.h"
#include "rmoe/nn/moe_block.h"
#include "rmoe/ops/linear.h"
#include "rmoe/ops/norm.h"
#include "rmoe/ops/span_attention.h"

namespace rmoe {
namespace {

constexpr double kNormEps = 1e-5;

struct LayerNorm {
  LayerNorm() = default;
  LayerNorm(int64_t width, const ParamScope& scope)
      : weight_D(scope.add("weight", {width}, Init::ones(), {.matmul = false})),
        bias_D(scope.add("bias", {width}, Init::zeros(), {.matmul = false})) {}
  // Of x + dropout(branch).
  Tensor operator()(const Tensor& x, const Tensor& branch, double p = 0, DropoutKey key = {}) const {
    return add_layer_norm(x, branch, weight_D, bias_D, kNormEps, p, key).normed;
  }
  Tensor weight_D, bias_D;
};

struct Layer {
  Tensor q_DD, k_DD, v_DD, o_DD;
  LayerNorm norm1, norm_moe, norm2, norm3;
  Linear dense_in, dense_out;  // of dense layers
  std::unique_ptr<nn::MoeBlock> moe;
};

// Streams of random numbers within a layer.
enum Site : uint64_t { kAttention, kInner, kOutput, kSites };

class SpanModel : public Model {
 public:
  SpanModel(const ModelConfig& c, ParamTable& table) : Model(c) {
    const ParamScope root(table), model = root / "model";
    const int64_t D = c.width, V = c.vocab_size;
    embedding_VD_ =
        model.add("embed_tokens.weight", {V, D}, Init::normal(c.init_std > 0 ? c.init_std : 1), {.matmul = false});
    key_pe_1CS_ = model.add("key_pe", {1, c.head_width(), c.span.span}, Init::normal(c.init_std > 0 ? c.init_std : 1),
                            {.matmul = false});
    auto moe = nn::make_moe_layers(c, nn::ExpertKind::kRelu, model);
    pipeline_ = moe.pipeline;
    const Init init = matrix_init(D, c.init_std);
    for (int64_t i = 0; i < c.layers; ++i) {
      const ParamScope scope = nn::layer_scope(model, i), attention = scope / "self_attn";
      Layer layer;
      layer.q_DD = attention.add("q_proj.weight", {D, D}, init);
      layer.k_DD = attention.add("k_proj.weight", {D, D}, init);
      layer.v_DD = attention.add("v_proj.weight", {D, D}, init);
      layer.o_DD = attention.add("o_proj.weight", {D, D}, init);
      layer.norm1 = LayerNorm(D, scope / "norm1");
      layer.norm2 = LayerNorm(D, scope / "norm2");
      layer.norm3 = LayerNorm(D, scope / "norm3");
      if (c.is_moe(i)) {
        layer.norm_moe = LayerNorm(D, scope / "norm_moe");
        layer.moe = std::move(moe.blocks[static_cast<size_t>(i)]);
      } else {
        layer.dense_in = add_linear(scope, "mlp.fc1.weight", "mlp.fc1.bias", c.dense_inner(), D, c.init_std);
        layer.dense_out = add_linear(scope, "mlp.fc2.weight", "mlp.fc2.bias", D, c.dense_inner(), c.init_std);
      }
      layers_.push_back(std::move(layer));
    }
    head_ = add_linear(root, "lm_head.weight", "lm_head.bias", V, D, c.init_std);
  }

  Linear head() const override { return head_; }

 private:
  ForwardResult run(const Tensor& tokens_BS, Memory memory, const ForwardOptions& options) const override {
    const int64_t D = config_.width;
    ForwardResult result;
    result.memory = std::move(memory);
    result.memory.layers.resize(layers_.size());
    result.memory.position += tokens_BS.size(1);

    Tensor h = at::embedding(embedding_VD_, tokens_BS).to(options.dtype);
    auto& memories = result.memory.layers;
    if (options.remember == Remember::kKeysValues) {
      const auto step = [&](size_t i, const Tensor& x, routing::RouterCarry carry, const LayerInput& in) {
        return layer(i, x, std::move(carry), in, {}, &memories[i].kv);
      };
      h = run_layers(std::move(h), tokens_BS, options, step, result.trace);
    } else {
      // By value: with recomputation the step lives until backward.
      std::vector<Tensor> pasts_BSD;
      for (const LayerMemory& memory_i : memories) pasts_BSD.push_back(memory_i.hidden_BSD);
      std::vector<Tensor> inputs;
      const auto step = [this, pasts_BSD](size_t i, const Tensor& x, routing::RouterCarry carry, const LayerInput& in) {
        return layer(i, x, std::move(carry), in, pasts_BSD[i], nullptr);
      };
      h = run_layers(std::move(h), tokens_BS, options, step, result.trace, &inputs);
      for (size_t i = 0; options.remember == Remember::kHidden && i < memories.size(); ++i) {
        memories[i].hidden_BSD = last_span(pasts_BSD[i], inputs[i].detach());
      }
    }
    if (options.last_logits_only) h = h.narrow(1, h.size(1) - 1, 1);
    put_output(result, h.reshape({-1, D}), options);
    return result;
  }

  nn::LayerResult layer(size_t i, const Tensor& h_BMD, routing::RouterCarry carry, const LayerInput& in,
                        const Tensor& past_BSD, nn::KvCache* cache) const {
    const Layer& l = layers_[i];
    const auto key = [&](Site site) { return in.dropout_key.at(i * kSites + site); };
    nn::LayerResult out;
    const double p = in.context.training ? config_.dropout : 0.0;
    const Tensor h = l.norm1(h_BMD, attention(l, h_BMD, past_BSD, cache, p, key(kAttention)));
    if (l.moe) {
      auto moe = l.moe->forward(h.reshape({-1, h.size(-1)}), std::move(carry), in.context, key(kInner));
      out.x = l.norm2(h, l.norm_moe(h, moe.y_TD.view(h.sizes()), p, key(kOutput)));
      out.carry = std::move(moe.carry);
      out.routing = std::move(moe.routing);
    } else {
      out.x = l.norm3(h, l.dense_out(dropout(l.dense_in(h).relu(), p, key(kInner))));
      out.carry = std::move(carry);
    }
    return out;
  }

  // The last S positions of what came before and what is new. The past before the first block is zeros.
  Tensor last_span(const Tensor& past_BSD, const Tensor& h_BMD) const {
    const int64_t S = config_.span.span, M = h_BMD.size(1);
    if (M >= S) return h_BMD.narrow(1, M - S, S).clone();
    return at::cat({past_or_zeros(past_BSD, h_BMD).narrow(1, M, S - M), h_BMD}, 1);
  }
  Tensor past_or_zeros(const Tensor& past_BSD, const Tensor& h_BMD) const {
    if (past_BSD.defined()) return past_BSD;
    return at::zeros({h_BMD.size(0), config_.span.span, h_BMD.size(2)}, h_BMD.options());
  }

  // The past is in `cache`, or in `past_BSD`, undefined before the first block.
  Tensor attention(const Layer& layer, const Tensor& h_BMD, const Tensor& past_BSD, nn::KvCache* cache, double p,
                   DropoutKey key) const {
    const int64_t B = h_BMD.size(0), M = h_BMD.size(1), D = config_.width;
    const auto heads = [&](const Tensor& x) {
      return x.view({B, x.size(1), config_.heads, config_.head_width()}).transpose(1, 2);
    };
    Tensor k, v;
    if (cache) {
      std::tie(k, v) =
          cache->append_window(heads(affine(h_BMD, layer.k_DD)), heads(affine(h_BMD, layer.v_DD)), config_.span.span);
    } else {
      // The zeros before the first block take part in the softmax, as in the literature's code.
      const Tensor context = at::cat({past_or_zeros(past_BSD, h_BMD), h_BMD}, 1);
      k = heads(affine(context, layer.k_DD));
      v = heads(affine(context, layer.v_DD));
    }
    const Tensor out = span_attention(heads(affine(h_BMD, layer.q_DD)), k, v, key_pe_1CS_.squeeze(0), p, key);
    return affine(out.transpose(1, 2).reshape({B, M, D}), layer.o_DD);
  }

  std::vector<Layer> layers_;
  Tensor embedding_VD_, key_pe_1CS_;
  Linear head_;  // [V, D]
};

}  // namespace

std::unique_ptr<Model> make_span_model(const ModelConfig& config, ParamTable& table) {
  return std::make_unique<SpanModel>(config, table);
}

}  // namespace rmoe
