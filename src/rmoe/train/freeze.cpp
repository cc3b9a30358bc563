#include "rmoe/train/freeze.h"

#include <fnmatch.h>

#include <algorithm>
#include <unordered_map>

#include "rmoe/base/error.h"

namespace rmoe {
namespace {

std::vector<std::string> stored_names(const Param& param) {
  return param.traits.stored.names.empty() ? std::vector<std::string>{param.name} : param.traits.stored.names;
}

bool matches(const std::string& glob, const std::string& name) {
  return fnmatch(glob.c_str(), name.c_str(), FNM_EXTMATCH) == 0;
}

// Whether the glob means this parameter.
bool means(const std::string& glob, const Param& param) {
  if (matches(glob, param.name)) return true;
  const auto names = stored_names(param);
  const auto found = std::count_if(names.begin(), names.end(), [&](const auto& name) { return matches(glob, name); });
  if (found > 0 && found < std::ssize(names)) {
    throw Error(Exit::kBadInput,
                str("train.freeze: '", glob, "' matches ", found, " of the ", names.size(), " parts of ", param.name,
                    ", which are trained as one"),
                str("match all of them, such as by '", param.name, "'"));
  }
  return found > 0;
}

}  // namespace

Frozen freeze(ParamTable& table, const routing::Pipeline& routing, const std::vector<std::string>& globs) {
  std::vector<Param>& params = table.all();
  std::vector<bool> chosen(params.size(), false);
  for (const std::string& text : globs) {
    const bool back = text.starts_with('!');
    const std::string glob = text.substr(back ? 1 : 0);
    bool any = false;
    for (size_t i = 0; i < params.size(); ++i) {
      if (!means(glob, params[i])) continue;
      any = true;
      chosen[i] = !back;
    }
    if (!any) {
      const bool of_stage = glob.find("rnn_router") != glob.npos && !routing.combination().recurrent;
      throw Error(
          Exit::kBadInput, str("train.freeze: '", text, "' matches no tensor of the model"),
          of_stage ? str("a model of stage '", routing.combination().stage, "' keeps no state; leave the pattern out")
                   : str("names are those of a checkpoint, such as ", stored_names(params[params.size() / 2]).front()));
    }
  }
  Frozen frozen;
  std::unordered_map<std::string, std::pair<bool, bool>> state;  // name -> chosen here, still trained
  for (size_t i = 0; i < params.size(); ++i) {
    Param& param = params[i];
    if (chosen[i] && param.is_buffer()) frozen.buffers.push_back(param.value);
    if (chosen[i] && !param.is_buffer() && param.traits.trainable) {
      frozen.tensors += std::ssize(stored_names(param));
      frozen.params += param.count();
      param.traits.trainable = false;
      if (param.value.defined()) param.value.set_requires_grad(false);
    } else {
      chosen[i] = false;
    }
    state[param.name] = {chosen[i], param.traits.trainable};
  }
  RMOE_CHECK(trained_count(table) > 0, "train.freeze: nothing is left to train");
  for (int64_t layer = 0; layer < routing.layers(); ++layer) {
    bool any = false, trained = false;
    for (const std::string& name : routing.head_parameters(layer)) {
      any = any || state.at(name).first;
      trained = trained || state.at(name).second;
    }
    frozen.routers.push_back(any && !trained);
  }
  return frozen;
}

int64_t trained_count(const ParamTable& table) {
  int64_t count = 0;
  for (const Param& param : table.all()) count += param.traits.trainable ? param.count() : 0;
  return count;
}

}  // namespace rmoe
