// What upcycle and retrofit share: the new run's model, its folder, and the comparison of two models.
#pragma once

#include <filesystem>
#include <map>
#include <set>

#include "rmoe/adapt/adapt.h"
#include "rmoe/eval/run.h"

namespace rmoe::adapt {

// A model under way: start values of its own, to be replaced by what is given.
struct NewModel {
  NewModel(const ModelConfig& config, int64_t seed);

  // The table's tensor of this name.
  Tensor at(const std::string& name) const;

  ParamTable params;
  std::unique_ptr<Model> model;
};

// Copies what has the same name and shape in both tables, buffers included, and returns the names of the new table that
// are left, and those of the old one.
struct Unmatched {
  std::set<std::string> of_new, of_old;
};
Unmatched copy_equal(const ParamTable& from, const NewModel& to);

// The run that a command starts from. Error(kBadInput) when there is something at `out` already.
LoadedRun open_source(const Source& source);

// Writes the folder and compares the two models on random tokens.
// The config's train.init becomes the new folder: a training by its config.toml starts from these weights.
Report write_run(const LoadedRun& from, RunConfig config, const NewModel& model, const Source& source);

}  // namespace rmoe::adapt
