#include "rmoe/adapt/run_folder.h"

#include <algorithm>

#include "rmoe/base/config.h"
#include "rmoe/base/error.h"
#include "rmoe/base/files.h"
#include "rmoe/base/rng.h"
#include "rmoe/hf/carried.h"
#include "rmoe/io/staging.h"
#include "rmoe/ops/runtime.h"
#include "rmoe/ops/tensor_file.h"

namespace rmoe::adapt {
namespace {

namespace fs = std::filesystem;

Tensor logits(const Model& model, int64_t vocabulary) {
  const c10::InferenceMode inference;
  constexpr int64_t kSequences = 2, kLength = 24;
  Tensor tokens = at::empty({kSequences, kLength}, at::kLong);
  auto* ids = tokens.mutable_data_ptr<int64_t>();
  for (uint64_t i = 0; i < kSequences * kLength; ++i) ids[i] = uniform_below(mix(1, kTestStream, i), vocabulary);
  return model.forward(tokens, {}, {}).logits_TV;
}

}  // namespace

NewModel::NewModel(const ModelConfig& config, int64_t seed)
    : params(mix(static_cast<uint64_t>(seed), kInitStream, 0), at::kFloat), model(make_model(config, params)) {}

Tensor NewModel::at(const std::string& name) const {
  const auto found =
      std::find_if(params.all().begin(), params.all().end(), [&](const Param& p) { return p.name == name; });
  RMOE_ASSERT(found != params.all().end(), "no parameter ", name);
  return found->value.detach();
}

Unmatched copy_equal(const ParamTable& from, const NewModel& to) {
  const at::NoGradGuard no_grad;
  std::map<std::string, Tensor> old;
  Unmatched left;
  for (const Param& param : from.all()) {
    old[param.name] = param.value;
    left.of_old.insert(param.name);
  }
  for (const Param& param : to.params.all()) {
    const auto found = old.find(param.name);
    if (found == old.end() || found->second.sizes() != param.value.sizes()) {
      left.of_new.insert(param.name);
      continue;
    }
    param.value.detach().copy_(found->second);
    left.of_old.erase(param.name);
  }
  return left;
}

LoadedRun open_source(const Source& source) {
  io::check_free(source.out);
  configure_runtime(source.threads);
  return load_run(source.run, Which::parse(source.checkpoint));
}

Report write_run(const LoadedRun& from, RunConfig config, const NewModel& model, const Source& source) {
  config.train.init = source.out;
  Report report;
  report.run = source.out;
  report.params = model.params.count();
  report.active_params = model.params.active_count();
  report.params_before = from.params.count();
  const Tensor before = logits(*from.model, config.model.vocab_size);
  const Tensor after = logits(*model.model, config.model.vocab_size);
  report.identical = before.equal(after);
  report.difference = ((before - after).abs().max() / before.abs().max()).item<double>();

  io::Staging staging(source.out);
  const fs::path out = staging.dir();
  from.tokenizer->save(out);
  hf::carry_on(from.dir, out);
  io::CheckpointWriter writer(out, 0);
  save_tensors(writer.file("model.safetensors"), model.params.stored(), {{"format", "pt"}});
  write_file_atomic(writer.file("state.json"), io::untrained_state());
  writer.commit();
  write_file_atomic(out / "config.toml", to_toml(config));
  staging.commit();
  return report;
}

}  // namespace rmoe::adapt
