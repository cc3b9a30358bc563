#include "rmoe/cli/trace_options.h"

#include "rmoe/cli/command.h"

namespace rmoe::cli {

void add_trace_options(CLI::App& app, TraceOptions& trace, bool steps) {
  CLI::Option* file = app.add_option("--trace", trace.file, "record what the routers do in this file (a NumPy array)");
  app.add_option_function<std::string>(
         "--trace-fields", [&trace](const std::string& text) { trace.fields = io::TraceFields::parse(text); },
         "besides ids and weights: tokens, logits, scores, probs, states, with commas between them, or all")
      ->needs(file);
  app.add_option_function<std::string>(
         "--trace-tokens", [&trace](const std::string& text) { trace.tokens = io::TokenSlice::parse(text); },
         "only tokens at these positions, BEGIN:END:STEP, each may be missing (default: every token)")
      ->needs(file);
  if (steps) {
    app.add_option("--trace-every", trace.every, "steps from one that is recorded to the next")
        ->check(integer(1, int64_t{1} << 40))
        ->needs(file);
  }
  app.add_option("--replay", trace.replay,
                 steps
                     ? "force the choices of this trace, which must hold every step from the first (--trace-every 1); "
                       "states and weights are computed anew"
                     : "force the choices of this trace; states and weights are computed anew");
}

}  // namespace rmoe::cli
