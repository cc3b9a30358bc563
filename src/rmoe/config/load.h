// How a training's config is read.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "rmoe/config/run.h"

namespace rmoe {

// defaults < the model of the run to start from < file (none when the path is empty) < flags. That run is `init`, or
// what file or flags call train.init; it becomes train.init. `out` is the folder to train in: a run that goes on there
// brings its own model where the one that it started from is gone. Errors as load_config, and kBadInput where the run
// is none.
RunConfig load_run_config(const std::filesystem::path& file, const std::vector<std::string>& flags,
                          const std::string& init = "", const std::filesystem::path& out = "");

}  // namespace rmoe
