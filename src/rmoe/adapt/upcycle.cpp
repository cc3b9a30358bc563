// Sparse upcycling: a dense llama's feed-forward blocks become experts (adapt.h has the methods and their sources).
#include <ATen/CPUGeneratorImpl.h>

#include "rmoe/adapt/run_folder.h"
#include "rmoe/base/error.h"
#include "rmoe/base/rng.h"

namespace rmoe::adapt {
namespace {

struct DenseBlock {
  Tensor gate_FD, up_FD, down_DF;
};

struct Experts {
  Tensor w1_NFD, w3_NFD, w2_NDF;
};

void check(const UpcycleCommand& c, const ModelConfig& dense) {
  const std::string& run = c.source.run;
  RMOE_CHECK(dense.family == Family::kLlama, run, ": upcycling takes a dense model of the llama family, got one of ",
             enum_name(dense.family));
  RMOE_CHECK(dense.moe_layers() == 0, run, ": upcycling takes a dense model, got one with ", dense.moe_layers(),
             " MoE layers");
  RMOE_CHECK(c.top_k >= 1 && c.top_k <= c.experts, "upcycle: top-k must be 1 to experts = ", c.experts, ", got ",
             c.top_k);
  RMOE_CHECK(c.dense_layers < dense.layers, "upcycle: of ", dense.layers, " layers, ", c.dense_layers,
             " are to stay dense, so that none is left");
  RMOE_CHECK(c.drop_share >= 0 && c.drop_share <= 1, "upcycle: the share to draw anew must be 0 to 1, got ",
             c.drop_share);
  if (c.method != Method::kSplit) return;
  RMOE_CHECK(c.slices >= 1 && dense.dense_inner() % c.slices == 0, "upcycle: an inner width of ", dense.dense_inner(),
             " cannot be cut into ", c.slices, " equal slices");
  RMOE_CHECK(c.experts % c.slices == 0, "upcycle: experts must be a multiple of slices = ", c.slices,
             ", so that every slice is there as often, got ", c.experts);
  RMOE_CHECK(c.top_k % c.slices == 0, "upcycle: top-k must be a multiple of slices = ", c.slices,
             ", so that a token gets whole blocks, got ", c.top_k);
}

ModelConfig upcycled(const UpcycleCommand& c, const ModelConfig& dense) {
  ModelConfig config = dense;
  config.dense_width = dense.dense_inner();
  config.dense_layers = c.dense_layers;
  config.dense_at.clear();   // of a dense model it names what was dense anyway
  config.moe = MoeConfig{};  // softmax over the chosen, top-k: weights that sum to 1
  config.moe.experts = c.experts;
  config.moe.top_k = c.top_k;
  config.moe.every = c.every;
  config.moe.expert_width = config.dense_width / (c.method == Method::kSplit ? c.slices : 1);
  return config;
}

// Inner units of one matrix, anew: those of `units` along `dim`, N(mean, deviation) of what was there.
void draw_anew(const Tensor& matrix, int64_t dim, const Tensor& units, at::Generator& generator) {
  const Tensor old = matrix.index_select(dim, units);
  const Tensor fresh =
      at::empty_like(old).normal_(old.mean().item<double>(), old.std(/*unbiased=*/false).item<double>(), generator);
  matrix.index_copy_(dim, units, fresh);
}

void fill_copies(const UpcycleCommand& c, const Experts& experts, const DenseBlock& block, uint64_t layer) {
  for (int64_t n = 0; n < c.experts; ++n) {
    const Tensor w1 = experts.w1_NFD[n], w3 = experts.w3_NFD[n], w2 = experts.w2_NDF[n];
    w1.copy_(block.gate_FD), w3.copy_(block.up_FD), w2.copy_(block.down_DF);
    if (c.method != Method::kDrop) continue;
    const int64_t F = w1.size(0);
    const auto count = static_cast<int64_t>(c.drop_share * static_cast<double>(F));
    if (count == 0) continue;
    // Each expert draws its own units, the same in its three matrices.
    const uint64_t key = mix(static_cast<uint64_t>(c.source.seed), kInitStream,
                             layer * static_cast<uint64_t>(c.experts) + static_cast<uint64_t>(n));
    at::Generator generator = at::make_generator<at::CPUGeneratorImpl>(key);
    const Tensor units = at::randperm(F, generator, at::kLong).narrow(0, 0, count);
    draw_anew(w1, 0, units, generator);
    draw_anew(w3, 0, units, generator);
    draw_anew(w2, 1, units, generator);
  }
}

// Expert r * slices + s is slice s of copy r: of equal scores the lower ids win, so a tie goes to a whole copy.
void fill_slices(const UpcycleCommand& c, const Experts& experts, const DenseBlock& block, const Tensor& gate_ND) {
  const int64_t F = experts.w1_NFD.size(1);
  for (int64_t n = 0; n < c.experts; ++n) {
    const int64_t slice = n % c.slices;
    experts.w1_NFD[n].copy_(block.gate_FD.narrow(0, slice * F, F));
    experts.w3_NFD[n].copy_(block.up_FD.narrow(0, slice * F, F));
    // A copy's weights are `slices` equal parts of its share.
    experts.w2_NDF[n].copy_(block.down_DF.narrow(1, slice * F, F) * c.slices);
    gate_ND[n].copy_(gate_ND[n - slice]);
  }
}

}  // namespace

Report upcycle(const UpcycleCommand& command) {
  const at::NoGradGuard no_grad;
  const LoadedRun from = open_source(command.source);
  check(command, from.config.model);
  RunConfig config = from.config;
  config.model = upcycled(command, from.config.model);
  config.model.validate();
  config.model.moe.validate();
  config.train.freeze.clear();
  if (!config.name.empty()) config.name += ", upcycled";
  const NewModel next(config.model, command.source.seed);

  std::map<std::string, Tensor> old;
  for (const Param& param : from.params.all()) old[param.name] = param.value.detach();
  Unmatched left = copy_equal(from.params, next);
  for (int64_t i = 0; i < config.model.layers; ++i) {
    if (!config.model.is_moe(i)) continue;
    const std::string layer = str("model.layers.", i), moe = layer + ".block_sparse_moe";
    const DenseBlock block{.gate_FD = old.at(layer + ".mlp.gate_proj.weight"),
                           .up_FD = old.at(layer + ".mlp.up_proj.weight"),
                           .down_DF = old.at(layer + ".mlp.down_proj.weight")};
    const Experts experts{.w1_NFD = next.at(moe + ".experts.w1.weight"),
                          .w3_NFD = next.at(moe + ".experts.w3.weight"),
                          .w2_NDF = next.at(moe + ".experts.w2.weight")};
    if (command.method == Method::kSplit) {
      fill_slices(command, experts, block, next.at(moe + ".gate.weight"));
    } else {
      fill_copies(command, experts, block, static_cast<uint64_t>(i));
    }
    for (const char* name : {".mlp.gate_proj.weight", ".mlp.up_proj.weight", ".mlp.down_proj.weight"}) {
      left.of_old.erase(layer + name);
    }
    for (const char* name : {".experts.w1.weight", ".experts.w2.weight", ".experts.w3.weight", ".gate.weight"}) {
      left.of_new.erase(moe + name);
    }
  }
  RMOE_ASSERT(left.of_old.empty() && left.of_new.empty(), left.of_old.size(), " tensors were not used, ",
              left.of_new.size(), " not filled");
  return write_run(from, config, next, command.source);
}

}  // namespace rmoe::adapt
