// A head with its parameters, made as a model makes it: by name, with options from flags.
#pragma once

#include <gtest/gtest.h>

#include "rmoe/base/config.h"
#include "rmoe/base/error.h"
#include "rmoe/routing/router.h"
#include "tests/support/gradcheck.h"

namespace rmoe::testing {

using Flags = std::vector<std::string>;

struct HeadConfig {
  Choice<routing::RouterRegistry> router{"linear"};
  static constexpr auto fields() { return std::tuple{Field{"router", &HeadConfig::router, "the head"}}; }
};

inline std::shared_ptr<routing::Router> make_head(const std::string& kind, const Flags& options,
                                                  const routing::RouterShape& shape, ParamTable& table) {
  Flags flags{"--router.kind=" + kind};
  for (const std::string& option : options) flags.push_back("--router." + option);
  HeadConfig config;
  bind(config, parse_flags(flags));
  return config.router.create(shape, ParamScope(table));
}

struct Head {
  Head(const std::string& kind, const Flags& options, const routing::RouterShape& shape)
      : router(make_head(kind, options, shape, table)) {}

  Tensor param(const std::string& name) const {
    for (const Param& p : table.all()) {
      if (p.name == name) return p.value;
    }
    ADD_FAILURE() << "no parameter " << name;
    return {};
  }
  // Logits of features without any context.
  Tensor logits(const Tensor& feature_TR) const { return router->score({.feature_TR = feature_TR}); }

  ParamTable table{1, at::kDouble};
  std::shared_ptr<routing::Router> router;
};

// Parameters of a head, counted without making it.
inline int64_t count(const std::string& kind, const Flags& options, const routing::RouterShape& shape) {
  ParamTable table;
  make_head(kind, options, shape, table);
  return table.count();
}

inline routing::Combination combination(const char* stage, const char* selection) {
  routing::Combination c;
  c.stage = stage;
  c.selection = selection;
  c.recurrent = c.stage != "none";
  c.ranks = c.selection == "top_k";
  return c;
}

// The gradients that `value`, a scalar, has for these leaves, against central differences. They are cleared afterwards.
inline void expect_leaf_gradients(const std::function<Tensor()>& value, const std::vector<Tensor>& leaves) {
  value().backward();
  for (const Tensor& leaf : leaves) {
    ASSERT_TRUE(leaf.grad().defined()) << leaf.sizes();
    expect_central_differences([&] { return value().item<double>(); }, leaf, leaf.grad(), "leaf", 1e-7, 1e-7);
  }
  for (const Tensor& leaf : leaves) leaf.mutable_grad() = Tensor();
}

}  // namespace rmoe::testing
