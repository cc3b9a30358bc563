// The paper's small-scale transformer (reference, section 2), of the adaptive-span and CompeteSMoE line. Per layer
//   h <- LN1(h + Attn(h));  MoE: h <- LN2(h + LN_moe(h + dropout(Experts(h))));  dense: h <- LN3(h + FF(h))
// Attention has no biases, sees the S positions before each token and not the token itself, and shares one learned
// position key among layers and heads. Every layer owns all the norms, used or not, as the paper's counts do.
#include "rmoe/models/families.h"
#include "rmoe/nn/moe_block.h"
#include "rmoe/ops/affine.h"
#include "rmoe/ops/span_attention.h"

namespace rmoe {
namespace {

constexpr double kNormEps = 1e-5;

struct LayerNorm {
  LayerNorm() = default;
  LayerNorm(int64_t width, const ParamScope& scope)
      : weight_D(scope.add("weight", {width}, Init::ones(), {.matmul = false})),
        bias_D(scope.add("bias", {width}, Init::zeros(), {.matmul = false})) {}
  Tensor operator()(const Tensor& x) const {
    return at::layer_norm(x, {x.size(-1)}, weight_D.to(x.scalar_type()), bias_D.to(x.scalar_type()), kNormEps);
  }
  Tensor weight_D, bias_D;
};

struct Dense {
  Dense(int64_t in, int64_t out, double deviation, const ParamScope& scope)
      : weight(scope.add("weight", {out, in}, matrix_init(in, deviation))),
        bias(scope.add("bias", {out}, deviation > 0 ? Init::zeros() : matrix_init(in, 0))) {}
  Tensor operator()(const Tensor& x) const { return affine(x, weight, bias); }
  Tensor weight, bias;
};

struct Layer {
  Tensor q_DD, k_DD, v_DD, o_DD;
  LayerNorm norm1, norm_moe, norm2, norm3;
  std::optional<Dense> dense_in, dense_out;
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
        layer.dense_in.emplace(D, c.dense_inner(), c.init_std, scope / "mlp.fc1");
        layer.dense_out.emplace(c.dense_inner(), D, c.init_std, scope / "mlp.fc2");
      }
      layers_.push_back(std::move(layer));
    }
    head_VD_ = root.add("lm_head.weight", {V, D}, init);
    head_bias_V_ = root.add("lm_head.bias", {V}, c.init_std > 0 ? Init::zeros() : init);
  }

  ForwardResult forward(const Tensor& tokens_BS, Memory memory, const ForwardOptions& options) const override {
    const int64_t D = config_.width;
    ForwardResult result;
    result.memory = std::move(memory);
    result.memory.layers.resize(layers_.size());
    result.memory.position += tokens_BS.size(1);

    Tensor h = at::embedding(embedding_VD_, tokens_BS).to(options.dtype);
    routing::RouterCarry carry;
    for (size_t i = 0; i < layers_.size(); ++i) {
      const Layer& layer = layers_[i];
      const auto key = [&](Site site) { return options.dropout_key.at(i * kSites + site); };
      h = layer.norm1(h + attention(layer, h, result.memory.layers[i], options, key(kAttention)));
      if (layer.moe) {
        auto moe = layer.moe->forward(h.reshape({-1, D}), std::move(carry), options.training, key(kInner));
        const Tensor y = dropped(moe.y_TD.view(h.sizes()), options, key(kOutput));
        h = layer.norm2(h + layer.norm_moe(h + y));
        carry = std::move(moe.carry);
        result.trace.push_back(std::move(moe.routing));
      } else {
        h = layer.norm3(h + (*layer.dense_out)(dropped((*layer.dense_in)(h).relu(), options, key(kInner))));
      }
    }
    if (options.last_logits_only) h = h.narrow(1, h.size(1) - 1, 1);
    result.logits_TV = affine(h.reshape({-1, D}), head_VD_, head_bias_V_);
    return result;
  }

 private:
  Tensor dropped(const Tensor& x, const ForwardOptions& options, DropoutKey key) const {
    return options.training ? dropout(x, config_.dropout, key) : x;
  }

  Tensor attention(const Layer& layer, const Tensor& h_BMD, LayerMemory& memory, const ForwardOptions& options,
                   DropoutKey key) const {
    const int64_t B = h_BMD.size(0), M = h_BMD.size(1), D = config_.width, S = config_.span.span;
    const auto heads = [&](const Tensor& x) {
      return x.view({B, x.size(1), config_.heads, config_.head_width()}).transpose(1, 2);
    };
    Tensor k, v;
    if (options.remember == Remember::kKeysValues) {
      std::tie(k, v) = memory.kv.append_window(heads(affine(h_BMD, layer.k_DD)), heads(affine(h_BMD, layer.v_DD)), S);
    } else {
      // The past before the first block is zeros, and they take part in the softmax, as in the literature's code.
      const Tensor past = memory.hidden_BSD.defined() ? memory.hidden_BSD : at::zeros({B, S, D}, h_BMD.options());
      const Tensor context = at::cat({past, h_BMD}, 1);
      k = heads(affine(context, layer.k_DD));
      v = heads(affine(context, layer.v_DD));
      if (options.remember == Remember::kHidden) memory.hidden_BSD = context.detach().narrow(1, M, S);
    }
    const Tensor out =
        span_attention(heads(affine(h_BMD, layer.q_DD)), k, v, key_pe_1CS_.squeeze(0).to(h_BMD.scalar_type()),
                       options.training ? config_.dropout : 0.0, key);
    return affine(out.transpose(1, 2).reshape({B, M, D}), layer.o_DD);
  }

  std::vector<Layer> layers_;
  Tensor embedding_VD_, key_pe_1CS_, head_VD_, head_bias_V_;
};

}  // namespace

std::unique_ptr<Model> make_span_model(const ModelConfig& config, ParamTable& table) {
  return std::make_unique<SpanModel>(config, table);
}

}  // namespace rmoe
