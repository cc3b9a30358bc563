#include "rmoe/compare/comparison.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <map>
#include <set>

#include "rmoe/base/error.h"
#include "rmoe/plot/number.h"

namespace rmoe::compare {

using namespace plot;

namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr double kMillion = 1e6;
constexpr double kLevel = 0.05;         // of the tests
constexpr double kWorthFinding = 0.01;  // of the baseline's mean: what routers differ by

// Runs of a group usually carry the group's name; where they carry one of their own ("smoe-1", "smoe-2"), what those
// names share is the group's.
std::string common_name(const std::vector<Run>& runs) {
  std::string name = runs[0].name;
  for (const Run& run : runs) {
    auto differ = std::mismatch(name.begin(), name.end(), run.name.begin(), run.name.end());
    name.erase(differ.first, name.end());
  }
  if (name == runs[0].name) return name;
  size_t last = name.find_last_not_of("-_./ 0123456789");
  name.erase(last == std::string::npos ? 0 : last + 1);
  for (const char* word : {"seed", "-s", "_s"}) {
    std::string tail = word;
    if (name.size() > tail.size() && name.ends_with(tail)) name.erase(name.size() - tail.size());
  }
  last = name.find_last_not_of("-_./ ");
  name.erase(last == std::string::npos ? 0 : last + 1);
  return name.empty() ? runs[0].name : name;
}

// Keys whose value differs among `groups` (their first runs stand for them).
std::vector<ConfigDifference> config_differences(const std::vector<const Group*>& groups) {
  std::set<std::string> keys;
  for (const Group* group : groups) {
    for (const auto& [key, value] : group->runs[0].config) keys.insert(key);
  }
  std::vector<ConfigDifference> out;
  for (const std::string& key : keys) {
    std::string last = key.substr(key.rfind('.') + 1);
    if (last == "seed" || last == "out" || last == "name") continue;
    ConfigDifference d{key, {}};
    for (const Group* group : groups) {
      auto at = group->runs[0].config.find(key);
      d.values.push_back(at == group->runs[0].config.end() ? "" : at->second);
    }
    if (std::set<std::string>(d.values.begin(), d.values.end()).size() > 1) out.push_back(std::move(d));
  }
  return out;
}

// Groups of the same name are told apart by the first two keys in which they differ: "RMoE (top_k 4)"; where that does
// not help, by their number.
void make_names_unique(std::vector<Group>& groups) {
  std::map<std::string, std::vector<Group*>> by_name;
  for (Group& group : groups) by_name[group.name].push_back(&group);
  for (auto& [name, same] : by_name) {
    if (same.size() == 1) continue;
    std::vector<std::string> suffix(same.size());
    std::vector<ConfigDifference> keys = config_differences({same.begin(), same.end()});
    for (size_t k = 0; k < std::min<size_t>(keys.size(), 2); ++k) {
      std::string word = keys[k].key;
      if (word.ends_with(".kind")) word.resize(word.size() - 5);
      word = word.substr(word.rfind('.') + 1);
      for (size_t i = 0; i < same.size(); ++i) {
        if (!keys[k].values[i].empty()) suffix[i] += str(suffix[i].empty() ? "" : ", ", word, " ", keys[k].values[i]);
      }
    }
    bool unique = std::set<std::string>(suffix.begin(), suffix.end()).size() == suffix.size();
    for (size_t i = 0; i < same.size(); ++i) {
      if (!unique) suffix[i] = str(i + 1);
      if (!suffix[i].empty()) same[i]->name += str(" (", suffix[i], ")");
    }
  }
}

std::vector<Group> group_runs(std::vector<Run> runs) {
  std::vector<Group> groups;
  std::map<std::string, size_t> index;
  for (Run& run : runs) {
    auto [at, added] = index.try_emplace(run.group, groups.size());
    if (added) groups.emplace_back();
    groups[at->second].runs.push_back(std::move(run));
  }
  for (Group& group : groups) {
    std::stable_sort(group.runs.begin(), group.runs.end(), [](const Run& a, const Run& b) { return a.seed < b.seed; });
    for (size_t i = 1; i < group.runs.size(); ++i) {
      const Run &a = group.runs[i - 1], &b = group.runs[i];
      RMOE_CHECK(a.seed != b.seed, "compare: ", a.path, " and ", b.path,
                 " are the same configuration with the same seed (", a.seed, "), expected one run per seed");
    }
    group.name = common_name(group.runs);
    group.has_stage = group.runs[0].has_stage();
    group.causal = std::all_of(group.runs.begin(), group.runs.end(), [](const Run& run) { return run.causal; });
  }
  make_names_unique(groups);
  return groups;
}

template <class F>
void for_each_run(const std::vector<Group>& groups, F&& f) {
  for (const Group& group : groups) {
    for (const Run& run : group.runs) f(group, run);
  }
}

std::string choose_split(const std::vector<Group>& groups, std::string split) {
  const Run* without_test = nullptr;
  const Run* without_valid = nullptr;
  for_each_run(groups, [&](const Group&, const Run& run) {
    if (!run.test && !without_test) without_test = &run;
    if (!run.valid && !without_valid) without_valid = &run;
  });
  if (split.empty()) split = without_test && !without_valid ? "valid" : "test";
  RMOE_CHECK(split == "test" || split == "valid", "compare: metric is '", split, "', expected test or valid");
  if (const Run* missing = split == "test" ? without_test : without_valid) {
    throw Error(Exit::kBadInput, str("compare: ", missing->path, " has no eval/", split, ".json"),
                str("`rmoe eval ", missing->path, " --split ", split, "` writes it"));
  }
  return split;
}

Unit choose_unit(const std::vector<Group>& groups, const std::string& split) {
  bool word_level = true;
  bool characters = true;
  for_each_run(groups, [&](const Group&, const Run& run) {
    const Evaluation& e = *run.evaluation(split);
    word_level = word_level && e.word_level() && e.word_perplexity;
    characters = characters && e.bits_per_character;
  });
  if (word_level) return {"word_perplexity", "perplexity per word", "word ppl", 2};
  if (characters) return {"bits_per_character", "bits per character", "bpc", 3};
  return {"perplexity", "perplexity per token", "ppl", 2};
}

// One warning line: "not the same budget: SMoE 10.00 M tokens; RMoE 5.00 M tokens". `describe` gives the text that must
// be equal in all runs; a group whose own runs differ is named with its seeds.
std::string difference_line(const std::vector<Group>& groups, const std::string& what,
                            const std::function<std::string(const Run&)>& describe) {
  std::set<std::string> all;
  std::vector<std::string> parts;
  for (const Group& group : groups) {
    std::set<std::string> own;
    for (const Run& run : group.runs) own.insert(describe(run));
    all.insert(own.begin(), own.end());
    if (own.size() == 1) {
      parts.push_back(str(group.name, " ", *own.begin()));
    } else {
      for (const Run& run : group.runs) parts.push_back(str(group.name, " seed ", run.seed, " ", describe(run)));
    }
  }
  if (all.size() < 2) return "";
  constexpr size_t kNamed = 6;
  std::string line = what + ": ";
  for (size_t i = 0; i < std::min(parts.size(), kNamed); ++i) line += (i == 0 ? "" : "; ") + parts[i];
  if (parts.size() > kNamed) line += str("; and ", parts.size() - kNamed, " more");
  return line;
}

bool all_stopped_by_time(const std::vector<Group>& groups) {
  bool all = true;
  double low = std::numeric_limits<double>::infinity(), high = 0;
  for_each_run(groups, [&](const Group&, const Run& run) {
    all = all && run.stop == "minutes";
    low = std::min(low, run.seconds);
    high = std::max(high, run.seconds);
  });
  return all && high <= low * 1.05;
}

std::string data_of(const Run& run, const std::string& split) {
  const Evaluation& e = *run.evaluation(split);
  return str(run.data_path, " (tokenizer ", run.tokenizer_hash, ", ", run.train_tokens, " training tokens, ", split,
             " ", e.tokens, " tokens)");
}

void add_warnings(Comparison& c) {
  auto warn = [&](const std::string& line) {
    if (!line.empty()) c.warnings.push_back(line);
  };
  // The same text prepared in two places is the same data: the path alone does not matter.
  std::set<std::string> data;
  for_each_run(c.groups, [&](const Group&, const Run& run) {
    data.insert(str(run.tokenizer_hash, " ", run.train_tokens, " ", run.evaluation(c.split)->tokens));
  });
  c.same_data = data.size() == 1;
  if (!c.same_data) {
    warn(difference_line(c.groups, "not the same data", [&](const Run& run) { return data_of(run, c.split); }));
  }
  auto tokens = [](const Run& run) {
    return str(fixed(static_cast<double>(run.tokens) / kMillion, 2), " M tokens in ", run.steps, " steps");
  };
  if (all_stopped_by_time(c.groups)) {
    warn(difference_line(c.groups, "equal training time, not equal tokens", tokens));
  } else {
    std::string line = difference_line(c.groups, "not the same budget", tokens);
    c.same_budget = line.empty();
    warn(line);
  }
  warn(difference_line(c.groups, "not the same batch", [](const Run& r) { return str(r.batch_tokens, " tokens"); }));
  warn(difference_line(c.groups, "not the same number format", [](const Run& r) { return r.dtype; }));
  const std::string machines = difference_line(
      c.groups, "not the same machine, so speeds do not compare",
      [](const Run& r) { return str(r.threads, r.threads == 1 ? " thread of " : " threads of ", r.cpu); });
  c.same_machine = machines.empty();
  warn(machines);
  for_each_run(c.groups, [&](const Group&, const Run& run) {
    int64_t step = run.evaluation(c.split)->checkpoint_step;
    if (step != run.best_step && step != run.steps) {
      warn(str("not the newest weights: ", run.path, "/eval/", c.split, ".json is of step ", step,
               ", the run's best step is ", run.best_step, " and its last ", run.steps));
    }
  });
}

// first / second - 1 for every seed that both groups have.
Summary relative_cost(const Group& first, const Group& second, const std::function<double(const Run&)>& cost) {
  std::vector<double> ratios;
  for (const Run& a : first.runs) {
    for (const Run& b : second.runs) {
      if (a.seed == b.seed && cost(a) > 0 && cost(b) > 0) ratios.push_back(cost(a) / cost(b) - 1);
    }
  }
  return summarize(ratios);
}

// The group that `group` would be without its recurrent stage: of the same family and router, with the fewest other
// differences in the configuration. -1: none.
int64_t without_stage(const std::vector<Group>& groups, const Group& group) {
  int64_t found = -1;
  size_t fewest = std::numeric_limits<size_t>::max();
  for (size_t i = 0; i < groups.size(); ++i) {
    const Run &a = groups[i].runs[0], &b = group.runs[0];
    if (a.has_stage() || a.family != b.family || a.router != b.router) continue;
    size_t differences = config_differences({&groups[i], &group}).size();
    if (differences < fewest) {
      fewest = differences;
      found = static_cast<int64_t>(i);
    }
  }
  return found;
}

void add_measures(Comparison& c) {
  auto per_run = [&](Measure m, const std::function<double(const Run&)>& value) {
    bool any = false;
    for (const Group& group : c.groups) {
      std::vector<double> values;
      for (const Run& run : group.runs) {
        if (double v = value(run); std::isfinite(v)) values.push_back(v);
      }
      // A mean over some of the seeds beside a mean over all would mislead.
      if (values.size() != group.runs.size()) values.clear();
      any = any || !values.empty();
      m.groups.push_back(summarize(values));
    }
    if (any) c.measures.push_back(std::move(m));
  };
  auto largest = [&](const std::function<double(const Run&)>& value) {
    double most = 0;
    for_each_run(c.groups, [&](const Group&, const Run& run) { most = std::max(most, value(run)); });
    return most;
  };
  auto params = [](const Run& r) { return static_cast<double>(r.params); };
  auto active = [](const Run& r) { return static_cast<double>(r.active_params); };
  auto memory = [](const Run& r) { return static_cast<double>(r.peak_memory_bytes); };
  auto tokens = [](const Run& r) { return static_cast<double>(r.tokens); };
  auto time_per_token = [](const Run& r) { return r.tokens_per_s > 0 ? 1 / r.tokens_per_s : 0; };
  auto positive = [](double v) { return v > 0 ? v : kNaN; };

  bool small = largest(params) < kMillion;
  const char* count_unit = small ? " (K)" : " (M)";
  double count_scale = small ? 1e-3 : 1e-6;
  int count_decimals = small ? 1 : 2;
  per_run({"size",
           "params",
           str("parameters", count_unit),
           str("params", count_unit),
           count_decimals,
           false,
           false,
           count_scale,
           {}},
          params);
  per_run({"size",
           "active_params",
           str("active parameters", count_unit),
           str("active", count_unit),
           count_decimals,
           false,
           false,
           count_scale,
           {}},
          active);
  for (const char* split : {"valid", "test"}) {
    std::string label = str(split == std::string("valid") ? "validation " : "test ", c.unit.label);
    per_run({"quality",
             str(split, "_", c.unit.key),
             label,
             str(split, " ", c.unit.short_label),
             c.unit.decimals,
             false,
             true,
             1,
             {}},
            [&](const Run& run) {
              const auto& e = run.evaluation(split);
              return e ? c.unit.of(*e) : kNaN;
            });
  }
  per_run({"cost", "tokens", "training tokens (M)", "tokens (M)", 2, false, all_stopped_by_time(c.groups), 1e-6, {}},
          tokens);
  per_run({"cost", "tokens_per_s", "training tokens per second", "tokens/s", 0, false, true, 1, {}},
          [&](const Run& r) { return positive(r.tokens_per_s); });
  per_run({"cost", "seconds", "training time (s)", "time (s)", 0, false, true, 1, {}},
          [&](const Run& r) { return positive(r.seconds); });
  per_run({"cost", "flops_per_token", "training FLOPs per token (M)", "MFLOP/token", 2, false, false, 1e-6, {}},
          [&](const Run& r) { return positive(r.flops_per_token); });
  constexpr double kMiB = 1024.0 * 1024.0;
  bool large = largest(memory) >= 10 * 1024 * kMiB;
  per_run({"cost",
           "peak_memory_bytes",
           large ? "peak memory (GiB)" : "peak memory (MiB)",
           large ? "memory (GiB)" : "memory (MiB)",
           large ? 2 : 0,
           false,
           true,
           large ? 1 / (1024 * kMiB) : 1 / kMiB,
           {}},
          [&](const Run& r) { return positive(memory(r)); });

  Measure time{"cost", "stage_time_cost", "recurrent stage, cost in time (%)", "stage time %", 1, true, true, 100, {}};
  Measure space{"cost", "stage_memory_cost", "recurrent stage, cost in memory (%)", "stage mem %", 1, true, true, 100,
                {}};
  bool any = false;
  for (const Group& group : c.groups) {
    int64_t base = group.has_stage ? without_stage(c.groups, group) : -1;
    if (base < 0) {
      time.groups.push_back(summarize({}));
      space.groups.push_back(summarize({}));
      continue;
    }
    time.groups.push_back(relative_cost(group, c.groups[static_cast<size_t>(base)], time_per_token));
    space.groups.push_back(relative_cost(group, c.groups[static_cast<size_t>(base)], memory));
    any = any || time.groups.back().n > 0;
  }
  if (any) {
    c.measures.push_back(std::move(time));
    c.measures.push_back(std::move(space));
  }

  auto of_evaluation = [&](const std::optional<double> Evaluation::* field) {
    return [&c, field](const Run& run) { return ((*run.evaluation(c.split)).*field).value_or(kNaN); };
  };
  per_run({"routing", "load_imbalance", "load imbalance (max / mean)", "imbalance", 2, false, true, 1, {}},
          of_evaluation(&Evaluation::load_imbalance));
  per_run({"routing", "dead_experts", "dead experts", "dead", 1, false, true, 1, {}},
          of_evaluation(&Evaluation::dead_experts));
  per_run({"routing", "gate_entropy", "gate entropy (nats)", "entropy", 3, false, true, 1, {}},
          of_evaluation(&Evaluation::gate_entropy));
}

bool in_bits(const Comparison& c) { return c.unit.key == "bits_per_character"; }

// The validation of a run at a number of tokens between its first and last evaluation; NaN outside.
double quality_at(const Run& run, double tokens, bool bits) {
  const auto value = [&](const EvalPoint& p) { return bits ? p.bpc : p.perplexity; };
  const auto at = [](const EvalPoint& p) { return static_cast<double>(p.tokens); };
  const auto& points = run.validation;
  const auto next = std::find_if(points.begin(), points.end(), [&](const EvalPoint& p) { return at(p) >= tokens; });
  if (next == points.end()) return kNaN;
  if (at(*next) == tokens) return value(*next);
  if (next == points.begin() || std::prev(next)->tokens <= 0) return kNaN;
  const EvalPoint &a = *std::prev(next), &b = *next;
  return std::lerp(value(a), value(b), std::log(tokens / at(a)) / std::log(at(b) / at(a)));
}

void add_pair_at_equal_time(EqualTime& out, const Run& a, const Run& b, bool bits) {
  if (a.validation.empty() || b.validation.empty() || !(a.tokens_per_s > 0 && b.tokens_per_s > 0)) return;
  const auto end = [](const Run& run) { return static_cast<double>(run.validation.back().tokens) / run.tokens_per_s; };
  const double seconds = std::min(end(a), end(b));
  // The earlier of the two is read off at its last evaluation, without rounding.
  const auto tokens = [&](const Run& run) {
    return end(run) == seconds ? static_cast<double>(run.validation.back().tokens) : seconds * run.tokens_per_s;
  };
  const double value = quality_at(a, tokens(a), bits) - quality_at(b, tokens(b), bits);
  if (!std::isfinite(value)) return;
  out.seconds += (seconds - out.seconds) / static_cast<double>(out.values.size() + 1);
  out.values.push_back(value);
}

void add_differences(Comparison& c, const CompareOptions& options) {
  const bool comparable = options.anyway || (c.same_data && c.same_budget);
  std::vector<double> of_baseline;
  for (const Run& run : c.groups[static_cast<size_t>(c.baseline)].runs) {
    of_baseline.push_back(c.unit.of(*run.evaluation(c.split)));
  }
  const double level = std::abs(summarize(of_baseline).mean);
  for (size_t i = 0; i < c.groups.size(); ++i) {
    if (static_cast<int64_t>(i) == c.baseline) continue;
    Difference d;
    d.first = static_cast<int64_t>(i);
    d.second = c.baseline;
    for (const Run& a : c.groups[i].runs) {
      for (const Run& b : c.groups[static_cast<size_t>(c.baseline)].runs) {
        if (a.seed != b.seed) continue;
        double v = c.unit.of(*a.evaluation(c.split)) - c.unit.of(*b.evaluation(c.split));
        d.seeds.push_back(a.seed);
        d.values.push_back(v);
        d.first_better += v < 0;
        if (c.same_machine && (c.same_data || options.anyway)) add_pair_at_equal_time(d.equal_time, a, b, in_bits(c));
      }
    }
    d.interval = paired_interval(d.values);
    d.equal_time.interval = paired_interval(d.equal_time.values);
    d.signed_rank_p = d.values.size() < 2 ? kNaN : signed_rank_p_value(d.values);
    d.effect_size = effect_size(d.values);
    d.margin = c.margin * level;
    d.equivalence_p = d.margin > 0 ? equivalence_p_value(d.values, d.margin) : kNaN;
    if (d.values.size() >= 2 && level > 0) d.seeds_needed = pairs_needed(kWorthFinding * level, d.interval.deviation);
    if (!comparable) {
      d.verdict = Verdict::kNotComparable;
    } else if (d.values.empty()) {
      d.verdict = Verdict::kNoPairs;
    } else if (d.values.size() == 1) {
      d.verdict = Verdict::kOneSeed;
    } else {
      d.verdict = d.interval.excludes_zero() ? Verdict::kDifferent : Verdict::kNotShown;
    }
    c.differences.push_back(std::move(d));
  }
}

std::string margin_text(const Comparison& c) { return str(c.margin * 100, " %"); }

std::string p_text(double p) { return p < 0.0001 ? "p < 0.0001" : "p = " + fixed(p, 4); }

// What a reader of a verdict has to know that --anyway brought about.
std::string reservation(const Comparison& c) {
  if (!c.same_data) return ", but on different data";
  return c.same_budget ? "" : ", but not at the same budget";
}

}  // namespace

double Unit::of(const Evaluation& evaluation) const {
  if (key == "word_perplexity") return evaluation.word_perplexity.value_or(kNaN);
  if (key == "bits_per_character") return evaluation.bits_per_character.value_or(kNaN);
  return evaluation.perplexity.value_or(kNaN);
}

Comparison compare_runs(std::vector<Run> runs, const CompareOptions& options) {
  RMOE_CHECK(!runs.empty(), "compare: no run given");
  RMOE_CHECK(options.margin > 0 && options.margin < 1, "compare: margin is ", options.margin,
             ", expected a share of the baseline's mean between 0 and 1");
  Comparison c;
  c.margin = options.margin;
  c.groups = group_runs(std::move(runs));
  c.split = choose_split(c.groups, options.split);
  c.unit = choose_unit(c.groups, c.split);
  auto plain = std::find_if(c.groups.begin(), c.groups.end(), [](const Group& g) { return !g.has_stage; });
  c.baseline = plain == c.groups.end() ? 0 : plain - c.groups.begin();
  std::vector<const Group*> all;
  for (const Group& group : c.groups) all.push_back(&group);
  c.config = config_differences(all);
  add_warnings(c);
  add_measures(c);
  add_differences(c, options);
  return c;
}

std::string subject(const Comparison& c, const Difference& d) {
  return str(c.groups[static_cast<size_t>(d.first)].marked_name(), " - ",
             c.groups[static_cast<size_t>(d.second)].marked_name(), ", ", c.split == "valid" ? "validation" : "test");
}

std::string estimate(const Comparison& c, const Difference& d) {
  auto n = static_cast<int64_t>(d.values.size());
  if (d.verdict == Verdict::kNotComparable || n == 0) return "";
  int decimals = c.unit.decimals + 1;
  std::string mean = fixed(d.interval.mean, decimals, true) + " " + c.unit.label;
  if (n == 1) return str(mean, " with seed ", d.seeds[0], " alone");
  return str(mean, " over ", n, " seeds, 95 % interval ", fixed(d.interval.low, decimals, true), " to ",
             fixed(d.interval.high, decimals, true), " (", c.groups[static_cast<size_t>(d.first)].name, " better in ",
             d.first_better, " of ", n, ")");
}

std::string verdict(const Comparison& c, const Difference& d) {
  switch (d.verdict) {
    case Verdict::kNotComparable:
      return str(c.same_data ? "not trained on the same budget" : "measured on different data", ", so not tested");
    case Verdict::kNoPairs:
      return "no seed in common, nothing to pair";
    case Verdict::kOneSeed:
      return "one seed decides nothing";
    case Verdict::kNotShown:
      return "no difference shown" + (d.equivalence_p < kLevel ? str("; equal within ", margin_text(c)) : "") +
             reservation(c);
    case Verdict::kDifferent:
      break;
  }
  int64_t better = d.interval.mean < 0 ? d.first : d.second;
  return c.groups[static_cast<size_t>(better)].marked_name() + " is better" +
         (d.equivalence_p < kLevel ? str(", by less than ", margin_text(c)) : "") + reservation(c);
}

std::string tests(const Comparison& c, const Difference& d) {
  const auto n = static_cast<int64_t>(d.values.size());
  if (d.verdict == Verdict::kNotComparable || n < 2) return "";
  std::string out = str("paired t-test ", p_text(d.interval.p_value));
  if (std::isfinite(d.signed_rank_p)) {
    out += str(", signed-rank test ", p_text(d.signed_rank_p));
    constexpr int64_t kFew = 5;  // up to here the test cannot reach 0.05
    if (n <= kFew) out += str(" (", n, " seeds give ", fixed(std::exp2(1.0 - static_cast<double>(n)), 4), " at least)");
  }
  out += str("; equal within ", margin_text(c), ": ", d.equivalence_p < kLevel ? "shown" : "not shown", " (TOST, ",
             p_text(d.equivalence_p), ")");
  if (std::isfinite(d.effect_size)) out += str("; effect size ", fixed(d.effect_size, 1, true));
  if (d.seeds_needed != 0) {
    out += str("; to find 1 % takes ", d.seeds_needed < 0 ? "over a million" : str(d.seeds_needed), " seeds");
  }
  return out;
}

std::string at_equal_time(const Comparison& c, const Difference& d) {
  const auto n = static_cast<int64_t>(d.equal_time.values.size());
  if (d.verdict == Verdict::kNotComparable || n == 0) return "";
  const PairedInterval& i = d.equal_time.interval;
  const int decimals = c.unit.decimals + 1;
  const std::string mean = str("at equal training time (", fixed(d.equal_time.seconds, 0),
                               " s, validation): ", fixed(i.mean, decimals, true),
                               in_bits(c) ? " bits per character" : " perplexity per token");
  if (n < 2) return mean + " with one seed";
  return str(mean, " over ", n, " seeds, 95 % interval ", fixed(i.low, decimals, true), " to ",
             fixed(i.high, decimals, true));
}

std::string causal_note(const Comparison& c) {
  if (std::all_of(c.groups.begin(), c.groups.end(), [](const Group& group) { return group.causal; })) return "";
  return "†: the choice of experts sees tokens to come, or their place in a batch; the quality says nothing about "
         "writing.";
}

std::string sentence(const Comparison& c, const Difference& d) {
  std::string numbers = estimate(c, d);
  return str(subject(c, d), ": ", numbers, numbers.empty() ? "" : ": ", verdict(c, d));
}

}  // namespace rmoe::compare
