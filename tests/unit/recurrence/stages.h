// Stages as tests make them: by name, with options as a config has them, on a small table in fp64.
#pragma once

#include <string>

#include "rmoe/base/config.h"
#include "rmoe/config/registries.h"
#include "rmoe/routing/router.h"
#include "tests/support/gradcheck.h"

namespace rmoe::routing {

inline constexpr int64_t kD = 5, kP = 3, kT = 4;

struct StageConfig {
  Choice<StageRegistry> stage{"none"};
  static constexpr auto fields() { return std::tuple{Field{"stage", &StageConfig::stage, "the stage"}}; }
};

inline std::vector<ParamScope> layer_scopes(ParamTable& table, int64_t layers) {
  std::vector<ParamScope> scopes;
  for (int64_t i = 0; i < layers; ++i) scopes.emplace_back(table, "layers." + std::to_string(i));
  return scopes;
}

inline std::shared_ptr<Stage> make_stage(ParamTable& table, const std::string& kind, const std::string& options,
                                         int64_t layers, int64_t model_width) {
  StageConfig config;
  bind(config, parse_flags({"--stage={kind = " + kind + (options.empty() ? "" : ", ") + options + "}"}));
  return config.stage.create(StageShape{.model_width = model_width, .init_deviation = 0}, ParamScope(table, "shared"),
                             layer_scopes(table, layers));
}

struct TestStage {
  explicit TestStage(const std::string& kind, const std::string& options = "width = 3", int64_t layers = 3)
      : stage(make_stage(table, kind, options, layers, kD)) {}
  TestStage(const TestStage&) = delete;

  // By the name in a checkpoint; undefined where there is none.
  Tensor operator[](const std::string& name) const {
    for (const Param& param : table.all()) {
      for (const auto& [stored, value] : param.stored()) {
        if (stored == name) return value.detach();
      }
    }
    return {};
  }
  Tensor layer(int64_t i, const std::string& name) const { return (*this)["layers." + std::to_string(i) + "." + name]; }

  std::vector<Tensor> leaves() const {
    std::vector<Tensor> values;
    for (const Param& param : table.all()) values.push_back(param.value);
    return values;
  }

  // The features of all layers.
  std::vector<Tensor> features(const std::vector<Tensor>& xs) const {
    std::vector<Tensor> result;
    RouterCarry carry;
    for (size_t i = 0; i < xs.size(); ++i) {
      StageStep step = stage->step(static_cast<int64_t>(i), xs[i], std::move(carry));
      result.push_back(step.feature_TR);
      carry = std::move(step.carry);
    }
    return result;
  }

  ParamTable table{1, at::kDouble};
  std::shared_ptr<Stage> stage;
};

inline RouterCarry carry_of(const Tensor& h_TP, const Tensor& c_TP = {}, std::vector<Tensor> scores_TN = {}) {
  return {.state_TP = h_TP, .cell_TP = c_TP, .scores_TN = std::move(scores_TN)};
}

// x_TD of each layer.
inline std::vector<Tensor> inputs(int64_t layers = 3) {
  std::vector<Tensor> xs;
  for (int64_t i = 0; i < layers; ++i) xs.push_back(rmoe::testing::randn({kT, kD}, 10 + i));
  return xs;
}

inline double distance(const Tensor& a, const Tensor& b) { return (a - b).abs().max().item<double>(); }

}  // namespace rmoe::routing
