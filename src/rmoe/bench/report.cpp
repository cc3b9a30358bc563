// The reports of commands.h as text and JSON.
#include <algorithm>
#include <cmath>

#include "rmoe/base/error.h"
#include "rmoe/base/files.h"
#include "rmoe/bench/commands.h"
#include "rmoe/bench/table.h"

namespace rmoe::bench {
namespace {

constexpr double kGiga = 1e9;

// Three digits for short times, as every place of longer ones is noise.
std::string milliseconds(double seconds) {
  const double ms = 1e3 * seconds;
  return fixed(ms, ms < 10 ? 3 : ms < 100 ? 2 : 1);
}

std::string percent(double share) { return fixed(100 * share, share < 0.1 ? 1 : 0); }

Json times_json(const Times& times) {
  return {{"best_s", times.best}, {"median_s", times.median}, {"count", times.count}};
}

}  // namespace

std::string workload_name(WorkloadKind kind) {
  constexpr const char* kNames[] = {"layer", "step", "decode", "prompt", "eval"};
  return kNames[static_cast<int>(kind)];
}

const char* default_layer_config() {
  return R"(name = "one MoE layer"
[model]
family = "llama"
width = 1280
heads = 20
[model.moe]
experts = 16
top_k = 4
expert_width = 448
stage = { kind = "gru", width = 128 }
[train]
batch = 4
block = 512
dtype = "bf16"
)";
}

Json Machine::json() const {
  return {{"cpu", cpu},
          {"isa", isa},
          {"threads", threads},
          {"fp32_flops", fp32_flops},
          {"bf16_flops", bf16_flops},
          {"triad_bytes_per_s", triad_bytes},
          {"read_bytes_per_s", read_bytes}};
}

std::string Machine::text() const {
  return str("machine: ", cpu, ", ", threads, threads == 1 ? " thread" : " threads", ", kernels for ", isa, "\n",
             "peaks: fp32 ", fixed(fp32_flops / kGiga, 0), " GFLOP/s, bf16 ", fixed(bf16_flops / kGiga, 0),
             " GFLOP/s, memory ", fixed(triad_bytes / kGiga, 1), " GB/s in a triad, ", fixed(read_bytes / kGiga, 1),
             " GB/s read\n");
}

Json OpRow::json() const {
  return {{"op", op},
          {"case", name},
          {"dtype", enum_name(dtype)},
          {"pass", backward ? "forward+backward" : "forward"},
          {"ours", times_json(ours)},
          {"plain", times_json(plain)},
          {"ratio", ratio()},
          {"ratio_of_medians", plain.median / ours.median},
          {"floor", floor},
          {"flops", flops},
          {"flops_per_s", flops / ours.best},
          {"peak_share", peak_share},
          {"bytes", bytes},
          {"bytes_per_s", bytes / ours.best},
          {"page_faults", page_faults}};
}

Json OpReport::json() const {
  Json list = Json::array();
  for (const OpRow& row : rows) list.push_back(row.json());
  return {{"machine", machine.json()}, {"rows", std::move(list)}, {"failures", failures}};
}

std::string OpReport::text() const {
  std::vector<std::vector<std::string>> cells{{"op", "case", "dtype", "pass", "best ms", "median", "GFLOP/s", "% peak",
                                               "MB", "GB/s", "faults", "plain ms", "ratio"}};
  for (const OpRow& row : rows) {
    const bool counted = row.flops > 0;
    cells.push_back({row.op, row.name, std::string(enum_name(row.dtype)), row.backward ? "fwd+bwd" : "fwd",
                     milliseconds(row.ours.best), milliseconds(row.ours.median),
                     counted ? fixed(row.flops / row.ours.best / kGiga, 0) : "-",
                     counted ? percent(row.peak_share) : "-", fixed(row.bytes / 1e6, 1),
                     fixed(row.bytes / row.ours.best / kGiga, 1), fixed(row.page_faults, 0),
                     milliseconds(row.plain.best), fixed(row.ratio(), 2)});
  }
  return machine.text() + "\n" + table_text(cells, 4);
}

const VariantRow* WorkloadReport::find(std::string_view name) const {
  const auto found = std::ranges::find(variants, name, &VariantRow::name);
  return found == variants.end() ? nullptr : &*found;
}

Json WorkloadReport::json() const {
  Json list = Json::array();
  for (const VariantRow& v : variants) {
    const double best = v.times.best;
    list.push_back({{"name", v.name},
                    {"times", times_json(v.times)},
                    {"first_s", v.first},
                    {"tokens_per_s", v.tokens / best},
                    {"flops", v.flops},
                    {"flops_per_s", v.flops / best},
                    {"peak_share", v.flops / best / machine.flops(dtype)},
                    {"weight_bytes", v.bytes},
                    {"weight_bytes_per_s", v.bytes / best},
                    {"memory_share", v.bytes / best / machine.read_bytes},
                    {"page_faults", v.page_faults},
                    {"peak_memory_bytes", v.peak_memory}});
  }
  Json out{
      {"workload", workload_name(kind)}, {"config", config_name},       {"dtype", enum_name(dtype)}, {"params", params},
      {"machine", machine.json()},       {"variants", std::move(list)}, {"ratios", Json::object()}};
  const VariantRow& ours = variants.front();
  if (const VariantRow* plain = find("plain")) {
    out["ratios"]["plain_over_ours"] = plain->times.best / ours.times.best;
    out["ratios"]["plain_over_ours_medians"] = plain->times.median / ours.times.median;
  }
  if (const VariantRow* smoe = find("smoe")) {
    out["ratios"]["ours_over_smoe"] = ours.times.best / smoe->times.best;
    out["ratios"]["ours_over_smoe_medians"] = ours.times.median / smoe->times.median;
    out["ratios"]["ours_over_smoe_flops"] = ours.flops / smoe->flops;
    out["ratios"]["ours_over_smoe_memory"] =
        static_cast<double>(ours.peak_memory) / static_cast<double>(smoe->peak_memory);
  }
  for (const char* name : {"traced", "traced all"}) {
    const VariantRow* traced = find(name);
    if (!traced) continue;
    std::string key = str(name, "_over_ours");
    std::replace(key.begin(), key.end(), ' ', '_');
    out["ratios"][key] = traced->times.best / ours.times.best;
  }
  return out;
}

std::string WorkloadReport::text() const {
  const bool decode = kind == WorkloadKind::kDecode;
  std::vector<std::vector<std::string>> cells{
      {"variant", "best ms", "median", "tokens/s", "GFLOP/s", "% peak", "first ms", "faults", "peak memory"}};
  if (decode) cells.front().insert(cells.front().begin() + 6, {"GB/s", "% memory"});
  for (const VariantRow& v : variants) {
    const double best = v.times.best, rate = v.flops / best;
    std::vector<std::string> row{v.name,
                                 milliseconds(best),
                                 milliseconds(v.times.median),
                                 fixed(v.tokens / best, 0),
                                 fixed(rate / kGiga, 0),
                                 percent(rate / machine.flops(dtype)),
                                 milliseconds(v.first),
                                 fixed(v.page_faults, 0),
                                 human_bytes(v.peak_memory)};
    if (decode) {
      const double bytes = v.bytes / best;
      row.insert(row.begin() + 6, {fixed(bytes / kGiga, 1), percent(bytes / machine.read_bytes)});
    }
    cells.push_back(std::move(row));
  }
  const VariantRow& ours = variants.front();
  std::string text = str(machine.text(), "\n", workload_name(kind), ": ", config_name, ", ", params, " parameters, ",
                         enum_name(dtype), ", ", fixed(ours.tokens, 0), " tokens per iteration\n", table_text(cells));
  if (const VariantRow* plain = find("plain")) {
    text += str("plain over ours: ", fixed(plain->times.best / ours.times.best, 2), "\n");
  }
  if (const VariantRow* smoe = find("smoe")) {
    text += str("ours over smoe: time ", fixed(ours.times.best / smoe->times.best, 3), " (FLOPs ",
                fixed(ours.flops / smoe->flops, 3), "), memory ",
                fixed(static_cast<double>(ours.peak_memory) / static_cast<double>(smoe->peak_memory), 3), "\n");
  }
  for (const char* name : {"traced", "traced all"}) {
    if (const VariantRow* traced = find(name)) {
      text += str(name, " over ours: time ", fixed(traced->times.best / ours.times.best, 3), "\n");
    }
  }
  return text;
}

Json ProfileReport::json() const {
  return {{"config", config_name},
          {"machine", machine.json()},
          {"without_profiler", times_json(without)},
          {"profile", profile}};
}

std::string ProfileReport::text() const {
  return str(machine.text(), "\nstep: ", config_name, ", in the median ", milliseconds(without.median),
             " ms without the profiler, on average ", milliseconds(profile.at("step_s").get<double>()),
             " ms with it\n\n", profile_text);
}

}  // namespace rmoe::bench
