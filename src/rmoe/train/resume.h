// Which runs belong together, and what may change when one goes on.
#pragma once

#include <filesystem>
#include <optional>
#include <string>

#include "rmoe/io/checkpoint.h"
#include "rmoe/train/run.h"

namespace rmoe {

// Identifies runs that differ in their seed only: the name and a hash of everything that decides the outcome.
std::string run_group(const RunConfig& config);

// The checkpoint to go on from, or nothing for a fresh start. Errors (kBadInput): `never` and the folder holds a run;
// `must` and it has no valid checkpoint; there are checkpoints and all are broken (a fresh start would replace them);
// the folder's run was configured otherwise in anything that decides the outcome (lists the keys). Broken checkpoints
// are reported and skipped.
std::optional<io::Checkpoint> find_resume_point(const std::filesystem::path& out, Resume resume,
                                                const RunConfig& config);

}  // namespace rmoe
