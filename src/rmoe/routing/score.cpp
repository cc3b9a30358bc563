// The score functions: logits to scores, and the scores of the chosen experts to combine weights. Shares of scores are
// formed from the scores' logarithms, so that they stay exact where the scores themselves vanish.
#include "rmoe/routing/router.h"

namespace rmoe::routing {
namespace {

// x_TN at the chosen ids; 0 in unused slots.
Tensor at_chosen(const Tensor& x_TN, const Tensor& ids_TK, bool full) {
  if (full) return x_TN.gather(1, ids_TK);
  return x_TN.gather(1, ids_TK.clamp_min(0)).masked_fill(ids_TK.lt(0), 0);
}

// exp(x_TK) divided by its sum over a token's used slots.
Tensor shares_of_chosen(const Tensor& x_TK, const Tensor& ids_TK, bool full) {
  if (full) return x_TK.softmax(-1);
  constexpr double kFarBelow = -1e30;  // not infinity, for the tokens without any used slot
  const Tensor unused_TK = ids_TK.lt(0);
  return x_TK.masked_fill(unused_TK, kFarBelow).softmax(-1).masked_fill(unused_TK, 0);
}

class SoftmaxSelected : public ScoreFunction {
 public:
  Tensor scores(const Tensor& logits_TN) const override { return logits_TN.softmax(-1); }
  Tensor probs(const Tensor&, const Tensor& scores_TN) const override { return scores_TN; }
  Tensor weights(const Tensor& logits_TN, const Tensor&, const Tensor& ids_TK, bool full) const override {
    return shares_of_chosen(at_chosen(logits_TN, ids_TK, full), ids_TK, full);
  }
  bool normalized() const override { return true; }
  Softmax softmax() const override { return Softmax::kShares; }
  bool distribution() const override { return true; }
};

class SoftmaxOfAll : public ScoreFunction {
 public:
  Tensor scores(const Tensor& logits_TN) const override { return logits_TN.softmax(-1); }
  Tensor probs(const Tensor&, const Tensor& scores_TN) const override { return scores_TN; }
  Tensor weights(const Tensor&, const Tensor& scores_TN, const Tensor& ids_TK, bool full) const override {
    return at_chosen(scores_TN, ids_TK, full);
  }
  bool normalized() const override { return false; }
  Softmax softmax() const override { return Softmax::kWeights; }
  bool distribution() const override { return true; }
};

// Each expert's positive score on its own, s_n = exp(log_scores(logit_n)). Weights: s times scale, divided by the sum
// over the chosen when normalized.
class IndependentScore : public ScoreFunction {
 public:
  struct Options {
    bool normalize = true;
    double scale = 1;
    static constexpr auto fields() {
      using C = Options;
      return std::tuple{Field{"normalize", &C::normalize, "divide the weights by their sum over the chosen"},
                        Field{"scale", &C::scale, "what the weights are multiplied by", {.above = 0}}};
    }
  };

  explicit IndependentScore(const Options& options) : options_(options) {}

  Tensor scores(const Tensor& logits_TN) const override { return log_scores(logits_TN).exp(); }
  Tensor probs(const Tensor& logits_TN, const Tensor&) const override { return log_scores(logits_TN).softmax(-1); }
  Tensor weights(const Tensor& logits_TN, const Tensor& scores_TN, const Tensor& ids_TK, bool full) const override {
    const Tensor weights_TK = options_.normalize
                                  ? shares_of_chosen(log_scores(at_chosen(logits_TN, ids_TK, full)), ids_TK, full)
                                  : at_chosen(scores_TN, ids_TK, full);
    return options_.scale == 1 ? weights_TK : weights_TK * options_.scale;
  }
  bool normalized() const override { return options_.normalize && options_.scale == 1; }

 protected:
  virtual Tensor log_scores(const Tensor& logits) const = 0;

 private:
  Options options_;
};

class Sigmoid : public IndependentScore {
 public:
  using IndependentScore::IndependentScore;

 protected:
  Tensor log_scores(const Tensor& logits) const override { return at::log_sigmoid(logits); }
};

class SqrtSoftplus : public IndependentScore {
 public:
  using IndependentScore::IndependentScore;

 protected:
  Tensor log_scores(const Tensor& logits) const override {
    // Below, log(1 + e^x) is e^x to the last bit of fp64; at::softplus is not exact above its threshold.
    constexpr double kTail = -37;
    const Tensor softplus = -at::log_sigmoid(-logits.clamp_min(kTail));
    return at::where(logits < kTail, logits, softplus.log()) * 0.5;
  }
};

class Relu : public ScoreFunction {
 public:
  Tensor scores(const Tensor& logits_TN) const override { return logits_TN.relu(); }
  Tensor probs(const Tensor&, const Tensor& scores_TN) const override {
    const Tensor sum_T1 = scores_TN.sum(-1, /*keepdim=*/true);
    return scores_TN / sum_T1.masked_fill(sum_T1 == 0, 1);
  }
  Tensor weights(const Tensor&, const Tensor& scores_TN, const Tensor& ids_TK, bool full) const override {
    return at_chosen(scores_TN, ids_TK, full);
  }
  bool normalized() const override { return false; }
  bool sparse() const override { return true; }
};

}  // namespace

RMOE_REGISTER(ScoreRegistry, "softmax_selected", SoftmaxSelected,
              "softmax over all experts; weights: softmax over the chosen logits (Mixtral)");
RMOE_REGISTER(ScoreRegistry, "softmax", SoftmaxOfAll,
              "softmax over all experts; weights: the probabilities as they are (Switch; Fedus et al. 2021)");
RMOE_REGISTER(ScoreRegistry, "sigmoid", Sigmoid, "each expert's sigmoid; weights: their shares (DeepSeek-V3)");
RMOE_REGISTER(ScoreRegistry, "sqrt_softplus", SqrtSoftplus,
              "each expert's sqrt(log(1 + e^x)); weights: their shares (DeepSeek-V4)");
RMOE_REGISTER(ScoreRegistry, "relu", Relu,
              "max(x, 0), which is also the weight; with the positive selection (ReMoE; Wang et al. 2024)");

}  // namespace rmoe::routing
