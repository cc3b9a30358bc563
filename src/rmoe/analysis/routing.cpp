#include "rmoe/analysis/routing.h"

#include <cmath>
#include <functional>

namespace rmoe::analysis {
namespace {

constexpr int64_t kBars = 50;          // of a distribution in the file
constexpr double kMostShownRatio = 8;  // ln of the largest inner balance in its distribution

Json quantiles(const Histogram& h, const std::function<double(double)>& shown) {
  Json out = Json::object();
  for (const auto& [name, p] : {std::pair{"p05", 0.05}, {"p25", 0.25}, {"p50", 0.5}, {"p75", 0.75}, {"p95", 0.95}}) {
    out[name] = shown(h.quantile(p));
  }
  return out;
}

std::vector<double> medians(const std::vector<Histogram>& layers, const std::function<double(double)>& shown) {
  std::vector<double> out;
  for (const Histogram& h : layers) out.push_back(shown(h.quantile(0.5)));
  return out;
}

double same(double x) { return x; }
double ratio(double log) { return std::exp(log); }

}  // namespace

RoutingAnalysis::RoutingAnalysis(const Shape& shape, bool probs, std::optional<TokenKinds> kinds)
    : shape_(shape), selections_(shape), paths_(shape) {
  if (probs) {
    information_.emplace(shape);
    entropy_.emplace(shape);
    balance_.emplace(shape);
  }
  if (kinds) kinds_.emplace(shape, std::move(*kinds));
}

void RoutingAnalysis::add(const Chunk& chunk) {
  if (information_) {
    information_->add(chunk);
    entropy_->add(chunk);
    balance_->add(chunk);
  }
  selections_.add(chunk);
  paths_.add(chunk);
  if (kinds_) kinds_->add(chunk);
}

Json RoutingAnalysis::json() const {
  Json out = {{"mutual_information", Json()}, {"gate_entropy", Json()}, {"balance", Json()}};
  if (information_) {
    out["mutual_information"] = {
        {"bins", MutualInformation::kBins}, {"mean", information_->mean()}, {"matrix", information_->matrix()}};
    const Histogram all = entropy_->all();
    std::vector<double> means;
    Json shares = Json::array();
    for (const Histogram& h : entropy_->layers()) {
      means.push_back(h.mean());
      shares.push_back(h.shares(kBars));
    }
    out["gate_entropy"] = {
        {"most", std::log(static_cast<double>(shape_.experts))},
        {"mean", all.mean()},
        {"quantiles", quantiles(all, same)},
        {"layers", means},
        {"distribution", {{"low", 0}, {"high", all.high()}, {"all", all.shares(kBars)}, {"layers", shares}}}};
    const Histogram inner = balance_->all_log_inner(), outer = balance_->all_outer();
    Json inner_json, outer_json;
    if (shape_.experts > 1) {
      // Of 40000 bins up to e^40, those up to e^8, in 50 parts; the rest counts in the last.
      constexpr int64_t kParts = 250;
      std::vector<double> all_parts = inner.shares(kParts), shown(all_parts.begin(), all_parts.begin() + kBars);
      for (size_t i = static_cast<size_t>(kBars); i < all_parts.size(); ++i) shown.back() += all_parts[i];
      inner_json = {{"median", ratio(inner.quantile(0.5))},
                    {"quantiles", quantiles(inner, ratio)},
                    {"layers", medians(balance_->log_inner(), ratio)},
                    {"log_distribution", {{"low", 0}, {"high", kMostShownRatio}, {"all", shown}}}};
    }
    outer_json = {{"median", outer.quantile(0.5)},
                  {"quantiles", quantiles(outer, same)},
                  {"layers", medians(balance_->outer(), same)},
                  {"distribution", {{"low", 0}, {"high", 1}, {"all", outer.shares(kBars)}}}};
    out["balance"] = {{"inner", inner_json}, {"outer", outer_json}};
  }
  int64_t dead = 0;
  for (const int64_t n : selections_.dead()) dead += n;
  double imbalance = 0;
  for (const double x : selections_.imbalance()) imbalance += x / static_cast<double>(shape_.layers);
  out["selection"] = {{"fractions", selections_.fractions()},
                      {"dead", dead},
                      {"dead_by_layer", selections_.dead()},
                      {"imbalance", imbalance},
                      {"imbalance_by_layer", selections_.imbalance()}};
  Json links = Json::array();
  for (const Paths::Link& link : paths_.links()) {
    links.push_back({{"information", link.information},
                     {"entropy", link.entropy},
                     {"accuracy", link.accuracy},
                     {"guess", link.guess},
                     {"overlap", link.overlap},
                     {"chance", link.chance}});
  }
  out["paths"] = {{"tokens", paths_.tokens()},
                  {"distinct", paths_.distinct()},
                  {"complete", paths_.complete()},
                  {"entropy", paths_.entropy()},
                  {"independent_entropy", paths_.independent_entropy()},
                  {"links", links}};
  out["token_kinds"] = Json();
  if (kinds_) {
    Json kinds = Json::array();
    for (int64_t kind = 0; kind < KindRouting::kKinds; ++kind) {
      kinds.push_back({{"name", KindRouting::name(kind)},
                       {"tokens", kinds_->tokens(kind)},
                       {"fractions", kinds_->fractions(kind)}});
    }
    out["token_kinds"] = {
        {"information", kinds_->information(false)}, {"band_information", kinds_->information(true)}, {"kinds", kinds}};
  }
  return out;
}

}  // namespace rmoe::analysis
