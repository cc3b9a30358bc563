// The comparison itself: runs grouped by configuration, measures with their deviation over seeds, and differences
// paired by seed. Pure functions on what run.h reads; table.h and report.h only show the result.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "rmoe/compare/run.h"
#include "rmoe/compare/stats.h"

namespace rmoe::compare {

// Runs of one configuration, sorted by seed.
struct Group {
  std::string name;  // unique among the groups
  bool has_stage = false;
  bool causal = true;  // as Run::causal of all its runs
  std::vector<Run> runs;

  // For a reader, where a note says what the mark means: see causal_note.
  std::string marked_name() const { return causal ? name : name + " †"; }
};

// What quality is measured in. Lower is better in both.
struct Unit {
  std::string key;          // field of eval/<split>.json: bits_per_character, word_perplexity or perplexity
  std::string label;        // "bits per character"
  std::string short_label;  // "bpc"
  int decimals = 0;         // of a mean in the table; a difference shows one more
  double of(const Evaluation& evaluation) const;  // NaN when the evaluation lacks it
};

// One line of the table: a number per group, with its deviation over seeds where it differs between seeds by nature.
struct Measure {
  std::string part;         // "size", "quality", "cost" or "routing"
  std::string key;          // in JSON and CSV
  std::string label;        // in text, with the unit
  std::string short_label;  // the same as a column heading
  int decimals = 0;
  bool sign = false;    // show "+"
  bool spread = false;  // show the deviation
  double scale = 1;     // shown number = stored number * scale
  std::vector<Summary> groups;
};

enum class Verdict {
  kDifferent,      // the interval excludes 0
  kNotShown,       // it does not
  kOneSeed,        // a single pair: no interval
  kNoPairs,        // no seed in common
  kNotComparable,  // different data, or not the same budget, and nobody asked to test it nonetheless
};

// `first` minus `second` by the validation during training, each pair at the time at which the earlier of the two
// ended. A run's time is its tokens over its median speed, which other work on the machine sways less than the clock.
// Between two evaluations the quality is taken as linear in the logarithm of time.
struct EqualTime {
  double seconds = 0;          // mean over the pairs
  std::vector<double> values;  // one per pair whose evaluations reach that time
  PairedInterval interval;     // 95 %
};

// `first` minus `second`, on the runs of both that have the same seed. NaN where the pairs do not give a number.
struct Difference {
  int64_t first = 0;
  int64_t second = 0;
  std::vector<int64_t> seeds;
  std::vector<double> values;  // one per seed
  PairedInterval interval;     // 95 %, with the p-value of the paired t-test
  double signed_rank_p = 0;    // Wilcoxon's test
  double effect_size = 0;      // mean over deviation of the differences
  double margin = 0;           // in the unit: what counts as equal
  double equivalence_p = 0;    // of TOST: below 0.05, first and second are equal within the margin
  int64_t seeds_needed = 0;    // for 80 % power to find a difference of 1 % of the second's mean; -1: over a million,
                               // 0: unknown
  EqualTime equal_time;        // without values where times do not compare
  int64_t first_better = 0;    // seeds in which `first` has the lower value
  Verdict verdict = Verdict::kNoPairs;
};

// A key of config.toml that is not the same in all groups, with its value in each ("" where a group lacks it). The keys
// that differ between runs by nature (seed, out, name) are left out.
struct ConfigDifference {
  std::string key;
  std::vector<std::string> values;
};

struct Comparison {
  std::string split;  // "test" or "valid": what the differences are of
  Unit unit;
  std::vector<Group> groups;  // in the order in which the runs were given
  int64_t baseline = 0;       // the group that the others are compared with: the first without a recurrent stage
  std::vector<Measure> measures;
  std::vector<Difference> differences;  // every other group minus the baseline
  std::vector<ConfigDifference> config;
  bool same_data = true;              // prepared alike, so that numbers of different groups compare
  bool same_budget = true;            // tokens, or training time where all runs were stopped by it
  bool same_machine = true;           // processor and threads, so that times compare
  double margin = 0;                  // CompareOptions::margin
  std::vector<std::string> warnings;  // one line each: what is not the same in all runs
};

struct CompareOptions {
  std::string split;      // "test", "valid", or "" for test where every run has it and validation otherwise
  double margin = 0.005;  // of the baseline's mean: smaller differences count as equal
  bool anyway = false;    // test what was measured on different data or trained on different budgets, too
};

// Throws Error(kBadInput) when there is no run, a run lacks the evaluation, the margin is not between 0 and 1, or one
// configuration has the same seed twice.
Comparison compare_runs(std::vector<Run> runs, const CompareOptions& options = {});

// The parts of a difference in words: "RMoE - SMoE, test", "+0.0031 bits per character over 3 seeds, 95 % interval
// -0.0069 to +0.0131 (RMoE better in 1 of 3)" (empty where there is nothing to estimate), and "no difference shown". A
// better group is named only when the interval excludes 0.
std::string subject(const Comparison& comparison, const Difference& difference);
std::string estimate(const Comparison& comparison, const Difference& difference);
std::string verdict(const Comparison& comparison, const Difference& difference);

// What the tests say, and the difference at equal training time, in a sentence each; empty with fewer than two pairs.
std::string tests(const Comparison& comparison, const Difference& difference);
std::string at_equal_time(const Comparison& comparison, const Difference& difference);

// What the mark of groups that are not causal means; empty where all are.
std::string causal_note(const Comparison& comparison);

// Subject, estimate and verdict in one line, however long.
std::string sentence(const Comparison& comparison, const Difference& difference);

}  // namespace rmoe::compare
