// How many parameters the MoE layers have, against closed formulas written here from the definitions: every stage with
// its ablations, crossed with heads, their sharing, transforms and zero-computation experts.
#include "tests/conformance/net.h"

namespace rmoe {
namespace {

using Flags = std::vector<std::string>;

constexpr int64_t L = 5, D = testing::kWidth, V = testing::kVocab, P = 7;
constexpr int64_t kComputing = testing::kExperts, F = 5;

Flags joined(Flags a, const Flags& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

// Gates that read an input of width I and a state of width P, each with two biases (torch.nn's cells).
constexpr int64_t cell(int64_t gates, int64_t I) { return gates * (P * I + P * P + 2 * P); }
constexpr int64_t linear(int64_t out, int64_t in) { return out * in + out; }

struct StageCase {
  const char* name;
  Flags flags;
  int64_t feature;  // R
  int64_t count;
};

class Counts : public ::testing::TestWithParam<StageCase> {};

struct HeadCase {
  Flags flags;
  int64_t (*count)(int64_t N, int64_t R);
};
const HeadCase kHeads[] = {
    {{"--router.kind=linear"}, [](int64_t N, int64_t R) { return N * R; }},
    {{"--router.kind=linear", "--router.bias=true"}, [](int64_t N, int64_t R) { return linear(N, R); }},
    {{"--router.kind=random"}, [](int64_t N, int64_t R) { return N * R; }},
    {{"--router.kind=compete"}, [](int64_t N, int64_t R) { return N * R; }},
    {{"--router.kind=mlp", "--router.width=3"}, [](int64_t N, int64_t R) { return linear(3, R) + linear(N, 3); }},
    {{"--router.kind=cosine"}, [](int64_t N, int64_t R) { return N * R + 1; }},
    {{"--router.kind=xmoe", "--router.width=3"}, [](int64_t N, int64_t R) { return 3 * R + 3 * N + 1; }},
    {{"--router.kind=hyper", "--router.width=4"},
     [](int64_t N, int64_t R) { return R + linear(4, R) + linear(linear(N, R), 4); }},
    {{"--router.kind=stable", "--router.width=3"}, [](int64_t N, int64_t R) { return N * R + 3 * V + 3 * N; }},
};

struct TransformCase {
  const char* list;
  int64_t (*count)(int64_t N, int64_t R);
};
const TransformCase kTransforms[] = {
    {"[]", [](int64_t, int64_t) { return int64_t{0}; }},
    {"[{kind = \"residual\"}, {kind = \"jitter\"}]", [](int64_t, int64_t) { return int64_t{0}; }},
    {"[{kind = \"learned_residual\"}]", [](int64_t N, int64_t) { return (L - 1) * N * N; }},
    {"[{kind = \"noisy\"}]", [](int64_t N, int64_t R) { return L * N * R; }},
    {"[{kind = \"noisy\"}, {kind = \"learned_residual\"}]",
     [](int64_t N, int64_t R) { return L * N * R + (L - 1) * N * N; }},
};

struct GroupCase {
  const char* router_group;
  int64_t heads;
};
constexpr GroupCase kGroups[] = {{"1", L}, {"2", 3}, {"4", 2}, {"0", 1}};

struct ZeroCase {
  const char *null_experts, *copy_experts;
  int64_t both;
};
constexpr ZeroCase kZero[] = {{"0", "0", 0}, {"2", "1", 3}};

TEST_P(Counts, FollowTheFormulas) {
  const StageCase& stage = GetParam();
  for (const HeadCase& head : kHeads) {
    for (const TransformCase& transforms : kTransforms) {
      for (const GroupCase& group : kGroups) {
        for (const ZeroCase& zero : kZero) {
          const Flags flags = joined(
              joined(stage.flags, head.flags),
              {std::string("--transforms=") + transforms.list, std::string("--router_group=") + group.router_group,
               std::string("--null_experts=") + zero.null_experts, std::string("--copy_experts=") + zero.copy_experts});
          const ModelConfig config = testing::net_config(flags, L);
          const int64_t N = kComputing + zero.both, R = stage.feature;
          const int64_t routers = stage.count + group.heads * head.count(N, R) + transforms.count(N, R);
          for (const auto& [kind, experts] :
               {std::pair{nn::ExpertKind::kRelu, kComputing * (linear(F, D) + linear(D, F))},
                std::pair{nn::ExpertKind::kSwiglu, kComputing * 3 * D * F}}) {
            std::string text;
            for (const std::string& flag : flags) text += flag + " ";
            SCOPED_TRACE(text);
            ParamTable counted, built(1, at::kFloat);
            nn::make_moe_layers(config, kind, ParamScope(counted));
            nn::make_moe_layers(config, kind, ParamScope(built));
            EXPECT_EQ(counted.count(), L * experts + routers);
            int64_t elements = 0;
            for (const Param& param : built.all()) elements += param.is_buffer() ? 0 : param.value.numel();
            EXPECT_EQ(elements, L * experts + routers);
          }
        }
      }
    }
  }
}

Flags stage_flags(const std::string& kind, const Flags& more = {}) {
  return joined({"--stage.kind=" + kind, "--stage.width=7"}, more);
}

constexpr int64_t kProjections = L * P * D;
constexpr int64_t kAdditive = L * linear(P, D) + (L - 1) * P + L * P;  // down, scale behind the first layer, norm

INSTANTIATE_TEST_SUITE_P(
    All, Counts,
    ::testing::Values(StageCase{"none", {"--stage.kind=none"}, D, 0},
                      StageCase{"gru", stage_flags("gru"), P, kProjections + cell(3, P)},
                      StageCase{"rnn", stage_flags("rnn"), P, kProjections + cell(1, P)},
                      StageCase{"lstm", stage_flags("lstm"), P, kProjections + cell(4, P)},
                      StageCase{"gru_np", stage_flags("gru", {"--stage.pass=false"}), P, kProjections + cell(3, P)},
                      StageCase{"gru_s_proj", stage_flags("gru", {"--stage.project=false"}), P, cell(3, D)},
                      StageCase{"rnn_s_proj", stage_flags("rnn", {"--stage.project=false"}), P, cell(1, D)},
                      StageCase{"lstm_s_proj", stage_flags("lstm", {"--stage.project=false"}), P, cell(4, D)},
                      StageCase{"gru_a_cell_per_two_layers", stage_flags("gru", {"--stage.layers_per_cell=2"}), P,
                                kProjections + 3 * cell(3, P)},
                      StageCase{"lstm_a_cell_per_layer", stage_flags("lstm", {"--stage.layers_per_cell=1"}), P,
                                kProjections + L* cell(4, P)},
                      StageCase{"rnn_s_proj_a_cell_per_three_layers",
                                stage_flags("rnn", {"--stage.project=false", "--stage.layers_per_cell=3"}), P,
                                2 * cell(1, D)},
                      StageCase{"additive", stage_flags("additive"), P, kAdditive + 2 * L* linear(P, P)},
                      StageCase{"additive_plain", stage_flags("additive", {"--stage.mlp_layers=0"}), P, kAdditive}),
    [](const auto& param_info) { return param_info.param.name; });

}  // namespace
}  // namespace rmoe
