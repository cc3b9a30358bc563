// rmoe generate: continues a prompt.
#include <unistd.h>

#include <iostream>
#include <iterator>
#include <memory>

#include <CLI/CLI.hpp>

#include "rmoe/base/files.h"
#include "rmoe/base/json.h"
#include "rmoe/base/log.h"
#include "rmoe/cli/command.h"
#include "rmoe/cli/trace_options.h"
#include "rmoe/eval/commands.h"

namespace rmoe::cli {
namespace {

struct Options {
  GenerateCommand command;
  std::string prompt, prompt_file, out;
  bool has_prompt = false, greedy = false;
};

// Text files and `echo` end with a line feed that nobody means as part of the prompt.
std::string without_last_line_feed(std::string text) {
  if (text.ends_with('\n')) text.pop_back();
  if (text.ends_with('\r')) text.pop_back();
  return text;
}

std::string read_prompt(const Options& options) {
  constexpr int64_t kLongest = int64_t{1} << 26;
  if (!options.prompt_file.empty() && options.prompt_file != "-") {
    return without_last_line_feed(read_file(options.prompt_file, kLongest));
  }
  if (options.has_prompt && options.prompt != "-") return options.prompt;
  if (is_terminal(STDIN_FILENO)) log_info("reading the prompt from the terminal; Ctrl-D ends it");
  return without_last_line_feed({std::istreambuf_iterator<char>(std::cin), std::istreambuf_iterator<char>()});
}

void run(Options& options, const Globals& globals) {
  if (!options.out.empty()) check_writable(options.out);
  options.command.threads = globals.threads;
  options.command.prompt = read_prompt(options);
  if (options.greedy) options.command.sampling.temperature = 0;
  const bool stream = !globals.json && options.out.empty();
  const auto report = run_generate(options.command, [&](std::string_view piece) {
    if (stream) std::cout << piece << std::flush;
    return std::cout.good();  // nobody reads any more
  });
  if (!options.out.empty()) write_file_atomic(options.out, report.text + "\n");
  if (stream) std::cout << "\n";
  if (globals.json) {
    std::cout << json_text(Json{{"prompt", options.command.prompt},
                                {"text", report.text},
                                {"prompt_tokens", report.prompt_tokens},
                                {"tokens", report.tokens},
                                {"ending", report.ending},
                                {"tokens_per_s", report.tokens_per_s},
                                {"checkpoint_step", report.checkpoint_step}})
              << "\n";
  } else if (!options.out.empty()) {
    log_info(report.tokens, " tokens written to ", options.out);
  }
}

void setup(CLI::App& app, Globals& globals) {
  auto options = std::make_shared<Options>();
  GenerateCommand& c = options->command;
  app.add_option("RUN", c.run, "run folder")->required();
  auto* prompt = app.add_option("-p,--prompt", options->prompt, "text to continue; - or nothing: standard input");
  app.add_option("--prompt-file", options->prompt_file, "file with the text to continue")->excludes(prompt);
  app.add_option("-n,--tokens", c.tokens, "tokens to generate at most")
      ->check(integer(1, int64_t{1} << 40))
      ->capture_default_str();
  auto* temperature = app.add_option("--temperature", c.sampling.temperature, "divides the logits; 0: greedy")
                          ->check(number())
                          ->capture_default_str();
  app.add_option("--top-k", c.sampling.top_k, "draw from the k likeliest tokens; 0: all")
      ->check(integer(0))
      ->capture_default_str();
  app.add_option("--top-p", c.sampling.top_p, "draw from the smallest set whose probability reaches p; 1: all")
      ->check(number())
      ->capture_default_str();
  app.add_flag("--greedy", options->greedy, "always the likeliest token")->excludes(temperature);
  app.add_option("--seed", c.seed, "same seed, same text")->check(integer(0))->capture_default_str();
  app.add_option("--stop", c.stops, "end before this text; may be given several times")->allow_extra_args(false);
  app.add_option("--checkpoint", c.checkpoint, "newest, best or a step")->capture_default_str();
  auto dtype = std::make_shared<std::string>();
  app.add_option("--dtype", *dtype, "fp32 or bf16 (default: the run's)")->check(CLI::IsMember({"fp32", "bf16"}));
  app.add_option("--out", options->out, "write the text to this file, not to standard output");
  add_device_option(app, c.device);
  add_trace_options(app, c.trace, /*steps=*/false);
  globals.may_be_empty.insert(prompt);
  app.callback([options, dtype, prompt, &globals] {
    if (!dtype->empty()) options->command.dtype = *dtype == "bf16" ? Precision::kBf16 : Precision::kFp32;
    options->has_prompt = prompt->count() > 0;
    run(*options, globals);
  });
}

RMOE_REGISTER_COMMAND("generate", "continue a prompt",
                      "rmoe generate runs/a -p \"In the beginning\" -n 300 --temperature 0.8", setup);

}  // namespace
}  // namespace rmoe::cli
