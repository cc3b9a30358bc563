// An MoE gets a recurrent stage beside its routers (adapt.h).
#include <algorithm>

#include "rmoe/adapt/run_folder.h"
#include "rmoe/base/config.h"
#include "rmoe/base/error.h"

namespace rmoe::adapt {
namespace {

// Globs for train.freeze: everything, and then back what routes, layer by layer under the same name.
std::vector<std::string> all_but_routers(const ParamTable& params) {
  constexpr std::string_view kBlock = ".block_sparse_moe.";
  std::set<std::string> back;
  for (const Param& param : params.all()) {
    if (!belongs_to_routing(param)) continue;
    const size_t at = param.name.find(kBlock);
    back.insert(at == param.name.npos ? "!model.rnn_router.*" : "!*" + param.name.substr(at));
  }
  std::vector<std::string> globs{"*"};
  globs.insert(globs.end(), back.begin(), back.end());
  return globs;
}

}  // namespace

Report retrofit(const RetrofitCommand& command) {
  const LoadedRun from = open_source(command.source);
  const std::string& run = command.source.run;
  const MoeConfig& moe = from.config.model.moe;
  RMOE_CHECK(from.config.model.moe_layers() > 0, run, ": has no MoE layer, whose router could get a stage");
  RMOE_CHECK(moe.stage.kind() == "none", run, ": has the stage '", moe.stage.kind(), "' already");
  RMOE_CHECK(command.stage != "none", "retrofit: stage 'none' has no state");
  RunConfig config = from.config;
  const Node flags =
      parse_flags({"--stage.kind=" + command.stage, str("--stage.width=", command.width), "--state_gate=true"});
  bind(config.model.moe, flags);
  if (!config.name.empty()) config.name += str(", with ", command.stage);
  const NewModel next(config.model, command.source.seed);
  const Unmatched left = copy_equal(from.params, next);
  // Everything that was there is still there, and what is new is the stage's and its gates'.
  RMOE_ASSERT(left.of_old.empty(), left.of_old.size(), " tensors of ", run, " have no place");
  config.train.freeze.clear();
  if (command.train_routers) config.train.freeze = all_but_routers(next.params);
  return write_run(from, config, next, command.source);
}

}  // namespace rmoe::adapt
