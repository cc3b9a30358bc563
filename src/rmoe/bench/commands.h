// `rmoe bench` as functions, free of torch. docs/performance.md says what the numbers mean.
#pragma once

#include <iosfwd>
#include <optional>
#include <string>
#include <vector>

#include "rmoe/base/json.h"
#include "rmoe/bench/stats.h"
#include "rmoe/config/run.h"

namespace rmoe::bench {

struct BenchOptions {
  int64_t threads = 0;  // 0: all
  int64_t rounds = 0;   // 0: 7, 3 when quick
  bool quick = false;   // shorter rounds: ratios hold, the last percents do not

  int64_t number_of_rounds() const { return rounds > 0 ? rounds : quick ? 3 : 7; }
};

// What the machine can do, as measured before and after everything else.
struct Machine {
  std::string cpu, isa;
  int64_t threads = 0;
  double fp32_flops = 0, bf16_flops = 0;  // per second
  double triad_bytes = 0, read_bytes = 0;

  double flops(Precision precision) const { return precision == Precision::kBf16 ? bf16_flops : fp32_flops; }
  Json json() const;
  std::string text() const;  // two lines
};

struct OpCommand {
  std::string op;      // or "all"
  std::string filter;  // of "OP CASE", those that contain it
  std::optional<Precision> dtype;
  bool check = false;  // whether a ratio below half of its op's floor is a failure
  BenchOptions options;
};

// One case of one op: our code and the plain formula on the same inputs.
struct OpRow {
  std::string op, name;
  Precision dtype{};
  bool backward = false;  // with the gradients of its inputs
  Times ours, plain;
  double flops = 0;
  double bytes = 0;        // inputs, results and gradients, each moved once
  double page_faults = 0;  // of one call of ours
  double peak_share = 0, floor = 0;

  double ratio() const { return plain.best / ours.best; }
  Json json() const;
};
struct OpReport {
  Machine machine;
  std::vector<OpRow> rows;
  std::vector<std::string> failures;  // with `check`

  Json json() const;
  std::string text() const;
};

// Throws kBadInput for an op that is not known and a filter that nothing fits.
OpReport bench_op(const OpCommand& command);

enum class WorkloadKind { kLayer, kStep, kDecode, kPrompt, kEval };

// What an evaluation records of its routers, in a file that nobody keeps: nothing, ids and weights, or every field that
// the model has.
enum class Tracing { kOff, kChoices, kAll };

struct WorkloadCommand {
  WorkloadKind kind = WorkloadKind::kStep;
  std::string config_name;  // for the report
  RunConfig config;
  bool plain = true;              // also without kernels
  Tracing trace = Tracing::kOff;  // kEval, of `serve`
  BenchOptions options;
};

// "step"; the inverse of the name of the subcommand.
std::string workload_name(WorkloadKind kind);

// The config that `rmoe bench layer` starts from where none is given, as TOML.
const char* default_layer_config();

// One variant of a workload, in a process of its own.
struct VariantRow {
  std::string name;  // ours, smoe (ours without the recurrent stage), plain (ours without kernels), traced, traced all
  Times times;       // of one iteration
  double first = 0;  // the first iteration after the start, with everything that is set up once
  double tokens = 0, flops = 0, bytes = 0;  // of one iteration; bytes of weights read, decode only
  double page_faults = 0;                   // of one iteration, in the median
  int64_t peak_memory = 0;                  // bytes, of the process, or on a device of tensors
};
struct WorkloadReport {
  Machine machine;
  WorkloadKind kind{};
  std::string config_name;
  Precision dtype{};
  int64_t params = 0;
  std::vector<VariantRow> variants;  // the first one is ours

  const VariantRow* find(std::string_view name) const;
  Json json() const;
  std::string text() const;
};

// Starts a process per variant (`program`, which is this command) and lets them take turns.
WorkloadReport bench_workload(const WorkloadCommand& command, const std::string& program);

// Is such a process: sets up, writes a line of JSON, and for every line of `in` runs one round and writes another.
//   {"ready": true, "workload", "isa", "threads", "setup_s", "first_s", "warmup_s", "params", "tokens", "flops",
//    "bytes", "peak_memory_bytes"}
//   {"best_s", "median_s", "seconds": [...], "page_faults", "tokens_per_s", "peak_memory_bytes"}
void serve(const WorkloadCommand& command, std::istream& in, std::ostream& out);

struct ProfileReport {
  Machine machine;
  std::string config_name;
  Times without;  // steps that nobody watches
  Json profile;
  std::string profile_text;

  Json json() const;
  std::string text() const;
};

// Where the time of a training step goes.
ProfileReport profile_step(const WorkloadCommand& command);

}  // namespace rmoe::bench
