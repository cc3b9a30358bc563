// HyperRouter, HyperMoE in RMoE's paper (Do et al. 2023): a frozen random network turns a learned embedding into the
// gate, [W | b] = V2 relu(V1 e + c1) + c2, and logits = W f + b. Only e learns: the gate moves on a surface that the
// network spans.
#include "rmoe/routers/parts.h"

namespace rmoe::routing {
namespace {

class HyperRouter : public Router {
 public:
  struct Options {
    int64_t width = 256;
    bool unused_gate = false;

    static constexpr auto fields() {
      using C = Options;
      return std::tuple{
          Field{"width", &C::width, "width of the frozen network's hidden layer", {.min = 1, .max = 1e6}},
          Field{"unused_gate", &C::unused_gate, "keep SMoE's gate, which nothing reads, as the paper's counts do"}};
    }
  };

  HyperRouter(const Options& options, const RouterShape& s, const ParamScope& scope)
      : experts_(s.experts),
        embedding_R_(scope.add("gate.embedding", {s.feature_width}, Init::normal(1), {.matmul = false})) {
    const int64_t R = s.feature_width, H = options.width;
    hidden_ = add_layer(scope, "hypernet.0", H, R, s.init_deviation, {.matmul = false, .trainable = false});
    // A token multiplies with the gate that comes out, which has one element per H of this matrix.
    const ParamTraits traits{.uses = static_cast<double>(s.uses) / static_cast<double>(H), .trainable = false};
    out_ = add_layer(scope, "hypernet.2", s.experts * (R + 1), H, s.init_deviation, traits);
    if (options.unused_gate) add_unused_gate(s, scope);
  }

  Tensor score(const RouterInput& in) const override {
    const Tensor& f_TR = in.feature_TR;
    const Tensor embedding_R = embedding_R_.to(f_TR.scalar_type());
    const Tensor gate_NG = out_(hidden_(embedding_R).relu()).view({experts_, f_TR.size(-1) + 1});
    return affine(f_TR, gate_NG.narrow(1, 0, f_TR.size(-1)), gate_NG.select(1, -1));
  }

 private:
  int64_t experts_;
  Tensor embedding_R_;
  Linear hidden_, out_;
};

}  // namespace

RMOE_REGISTER(RouterRegistry, "hyper", HyperRouter,
              "a frozen network makes the gate from a learned embedding (HyperRouter, Do et al. 2023; HyperMoE)");

}  // namespace rmoe::routing
