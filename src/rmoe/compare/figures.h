// What the plots of the report show, computed from a comparison and the curves of its runs; plot.h draws it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "rmoe/compare/comparison.h"
#include "rmoe/plot/plot.h"

namespace rmoe::compare {

using namespace plot;

// Curves of every run: [group][run], in the order of Comparison::groups.
using AllCurves = std::vector<std::vector<Curves>>;
AllCurves read_all_curves(const Comparison& comparison);

// Validation quality during training: bits per character, or perplexity where the comparison is in perplexity.
LinePlot validation_by_tokens(const Comparison& comparison, const AllCurves& curves);
LinePlot validation_by_time(const Comparison& comparison, const AllCurves& curves);

// Every other group minus the baseline, seed by seed, at the evaluations that both made after the same number of
// tokens.
LinePlot validation_gap(const Comparison& comparison, const AllCurves& curves);

// Training batches, smoothed.
LinePlot training_loss(const Comparison& comparison, const AllCurves& curves);
LinePlot load_imbalance(const Comparison& comparison, const AllCurves& curves);
LinePlot gate_entropy(const Comparison& comparison, const AllCurves& curves);

// One row per difference that has pairs of comparable runs.
std::vector<IntervalRow> interval_rows(const Comparison& comparison);

// [layers][N] load relative to the equal share on the split of the comparison. Each layer is sorted from the most to
// the least used expert and then averaged over seeds: which expert is the busy one is a matter of the seed, how busy
// the busiest is, is not. Empty when the runs have no such numbers or differ in shape.
std::vector<std::vector<double>> ranked_load(const Group& group, const std::string& split);

// Experts per layer where all runs have the same number, else 0.
int64_t experts_per_layer(const Comparison& comparison);

}  // namespace rmoe::compare
