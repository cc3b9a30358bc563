// The options --trace and --replay, which several commands have.
#pragma once

#include <CLI/App.hpp>

#include "rmoe/eval/commands.h"

namespace rmoe::cli {

// Fills `trace` while the command line is parsed, which throws Error(kBadInput) for values that mean nothing. `trace`
// must live as long as the app's callbacks. `steps`: the command has steps, so --trace-every too.
void add_trace_options(CLI::App& app, TraceOptions& trace, bool steps);

}  // namespace rmoe::cli
