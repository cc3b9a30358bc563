// rmoe eval: loss of a run on a split, by the paper's protocol.
#include <cmath>
#include <iomanip>
#include <iostream>
#include <memory>

#include <CLI/CLI.hpp>

#include "rmoe/base/json.h"
#include "rmoe/cli/command.h"
#include "rmoe/cli/trace_options.h"
#include "rmoe/eval/commands.h"

namespace rmoe::cli {
namespace {

void print(const EvalReport& r) {
  std::ostringstream out;
  const auto row = [&](const char* name, double value, int digits, const std::string& note = "") {
    out << "  " << std::left << std::setw(20) << name << std::fixed << std::setprecision(digits) << value << note
        << "\n";
  };
  out << r.run << ", step " << r.checkpoint_step << ", " << r.data << ": " << r.tokens << " tokens in " << std::fixed
      << std::setprecision(1) << r.seconds << " s (" << std::setprecision(0)
      << static_cast<double>(r.tokens) / r.seconds << " tokens/s)\n";
  if (r.bits_per_character) row("bits per character", *r.bits_per_character, 4);
  row("perplexity", r.perplexity, 3, " per token");
  if (r.word_perplexity) row("word perplexity", *r.word_perplexity, 3);
  if (r.load_imbalance) {
    row("load imbalance", *r.load_imbalance, 2, " (max over mean)");
    row("dead experts", static_cast<double>(r.dead_experts), 0, str(" of ", r.experts));
    const auto experts = static_cast<double>(r.expert_fraction.front().size());
    std::ostringstream most;
    most << std::fixed << std::setprecision(3) << " nats, at most " << std::log(experts);
    row("gate entropy", *r.gate_entropy, 3, most.str());
  }
  if (!r.written.empty()) out << "  written to " << r.written << "\n";
  std::cout << out.str();
}

void setup(CLI::App& app, Globals& globals) {
  auto command = std::make_shared<EvalCommand>();
  auto dtype = std::make_shared<std::string>();
  const CLI::Validator positive = integer(1, int64_t{1} << 40);
  app.add_option("RUN", command->run, "run folder")->required();
  app.add_option("--split", command->split, "valid, test or train")
      ->check(CLI::IsMember({"valid", "test", "train"}))
      ->capture_default_str();
  app.add_option("--data", command->data,
                 "data folder, token file or instructions as .jsonl (default: what the run was trained on)");
  app.add_option("--checkpoint", command->checkpoint, "newest, best or a step")->capture_default_str();
  app.add_option("--block", command->block, "tokens per block or window (default: the run's)")->check(positive);
  app.add_option("--batch", command->batch, "blocks or windows at a time (default: chosen for speed)")->check(positive);
  app.add_option("--tokens", command->tokens, "only this many tokens of the split's start")->check(positive);
  app.add_option("--logits", command->logits,
                 "write the logits of the tokens, what the routers did and the balance loss to this safetensors file; "
                 "with --tokens, for comparing implementations");
  app.add_option("--dtype", *dtype, "fp32 or bf16 (default: the run's)")->check(CLI::IsMember({"fp32", "bf16"}));
  add_device_option(app, command->device);
  add_trace_options(app, command->trace, /*steps=*/false);
  app.callback([command, dtype, &globals] {
    command->threads = globals.threads;
    if (!dtype->empty()) command->dtype = *dtype == "bf16" ? Precision::kBf16 : Precision::kFp32;
    const EvalReport report = run_eval(*command);
    if (globals.json) {
      std::cout << json_text(report.json()) << "\n";
    } else {
      print(report);
    }
  });
}

RMOE_REGISTER_COMMAND("eval", "bits per character and perplexity of a run",
                      "rmoe eval runs/a --split test --checkpoint best", setup);

}  // namespace
}  // namespace rmoe::cli
