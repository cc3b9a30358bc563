// Student's t through the regularized incomplete beta function: P(|T| > t) = I_x(df/2, 1/2) with x = df / (df + t^2).
#include "rmoe/compare/stats.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <vector>

#include "rmoe/base/error.h"

namespace rmoe::compare {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

// The continued fraction of the incomplete beta function by the modified Lentz method; converges quickly for
// x < (a + 1) / (a + b + 2).
double beta_fraction(double a, double b, double x) {
  constexpr double kTiny = 1e-300;
  constexpr int kMaxTerms = 10000;
  auto away_from_zero = [](double v) { return std::abs(v) < kTiny ? kTiny : v; };
  double c = 1;
  double d = 1 / away_from_zero(1 - (a + b) * x / (a + 1));
  double value = d;
  for (int m = 1; m <= kMaxTerms; ++m) {
    double even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m));
    d = 1 / away_from_zero(1 + even * d);
    c = away_from_zero(1 + even / c);
    value *= d * c;
    double odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1));
    d = 1 / away_from_zero(1 + odd * d);
    c = away_from_zero(1 + odd / c);
    double step = d * c;
    value *= step;
    if (std::abs(step - 1) < 1e-15) return value;
  }
  RMOE_ASSERT(false, "incomplete beta function did not converge for a = ", a, ", b = ", b, ", x = ", x);
  return kNaN;
}

// I_x(a, b) with y = 1 - x given by the caller, who knows it without cancellation.
double regularized_beta(double a, double b, double x, double y) {
  if (x <= 0) return 0;
  if (y <= 0) return 1;
  double front = std::exp(std::lgamma(a + b) - std::lgamma(a) - std::lgamma(b) + a * std::log(x) + b * std::log(y));
  if (x < (a + 1) / (a + b + 2)) return front * beta_fraction(a, b, x) / a;
  return 1 - front * beta_fraction(b, a, y) / b;
}

}  // namespace

Summary summarize(std::span<const double> values) {
  auto n = static_cast<int64_t>(values.size());
  if (n == 0) return {0, kNaN, kNaN};
  double sum = 0;
  for (double v : values) sum += v;
  double mean = sum / static_cast<double>(n);
  double squares = 0;  // two passes: the deviation over seeds is small beside the mean
  for (double v : values) squares += (v - mean) * (v - mean);
  return {n, mean, n < 2 ? kNaN : std::sqrt(squares / static_cast<double>(n - 1))};
}

double student_tail(double t, double df) {
  RMOE_CHECK(df > 0 && !std::isnan(t), "student_tail: t = ", t, ", degrees of freedom ", df, ", expected df > 0");
  if (std::isinf(t)) return t > 0 ? 0 : 1;
  double square = t * t;
  double half = 0.5 * regularized_beta(df / 2, 0.5, df / (df + square), square / (df + square));
  return t >= 0 ? half : 1 - half;
}

double student_quantile(double p, double df) {
  RMOE_CHECK(p > 0 && p < 1 && df > 0, "student_quantile: p = ", p, ", degrees of freedom ", df,
             ", expected 0 < p < 1 and df > 0");
  if (p == 0.5) return 0;
  double tail = p > 0.5 ? 1 - p : p;
  double high = 1;
  while (student_tail(high, df) > tail && high < 1e300) high *= 2;
  double low = high == 1 ? 0 : high / 2;
  while (true) {  // bisection down to neighbouring doubles: monotone, so nothing can go wrong
    double middle = low + (high - low) / 2;
    if (middle <= low || middle >= high) break;
    (student_tail(middle, df) > tail ? low : high) = middle;
  }
  return p > 0.5 ? high : -high;
}

bool PairedInterval::excludes_zero() const { return n >= 2 && (low > 0 || high < 0); }

PairedInterval paired_interval(std::span<const double> differences, double confidence) {
  RMOE_CHECK(confidence > 0 && confidence < 1, "paired_interval: confidence ", confidence, ", expected 0 to 1");
  Summary s = summarize(differences);
  PairedInterval out{s.n, s.mean, s.deviation, kNaN, kNaN, kNaN};
  if (s.n < 2) return out;
  auto df = static_cast<double>(s.n - 1);
  double error = s.deviation / std::sqrt(static_cast<double>(s.n));
  double half_width = student_quantile(0.5 + confidence / 2, df) * error;
  out.low = s.mean - half_width;
  out.high = s.mean + half_width;
  if (error > 0) {
    out.p_value = 2 * student_tail(std::abs(s.mean) / error, df);
  } else {
    out.p_value = s.mean == 0 ? 1 : 0;
  }
  return out;
}

double signed_rank_p_value(std::span<const double> differences) {
  std::vector<double> sorted;
  for (double d : differences) {
    if (d != 0) sorted.push_back(d);
  }
  const size_t n = sorted.size();
  if (n == 0) return kNaN;
  std::sort(sorted.begin(), sorted.end(), [](double a, double b) { return std::abs(a) < std::abs(b); });
  // Twice the ranks: mean ranks of ties are halves.
  std::vector<size_t> ranks(n);
  for (size_t first = 0; first < n;) {
    size_t end = first;
    while (end < n && std::abs(sorted[end]) == std::abs(sorted[first])) ++end;
    for (size_t i = first; i < end; ++i) ranks[i] = first + 1 + end;
    first = end;
  }
  const size_t total = n * (n + 1);
  // share[w]: of all choices of signs, those whose positive ranks sum to w.
  std::vector<double> share(total + 1);
  share[0] = 1;
  size_t reached = 0;
  for (size_t rank : ranks) {
    reached += rank;
    for (size_t w = reached + 1; w-- > 0;) share[w] = 0.5 * (share[w] + (w >= rank ? share[w - rank] : 0));
  }
  size_t positive = 0;
  for (size_t i = 0; i < n; ++i) positive += sorted[i] > 0 ? ranks[i] : 0;
  const size_t low = std::min(positive, total - positive);
  double tail = 0;
  for (size_t w = 0; w <= low; ++w) tail += share[w];
  return std::min(1.0, 2 * tail);
}

double equivalence_p_value(std::span<const double> differences, double margin) {
  RMOE_CHECK(margin > 0, "equivalence_p_value: margin ", margin, ", expected more than 0");
  const Summary s = summarize(differences);
  if (s.n < 2) return kNaN;
  const double error = s.deviation / std::sqrt(static_cast<double>(s.n)), room = margin - std::abs(s.mean);
  if (error == 0) return room > 0 ? 0 : 1;
  return student_tail(room / error, static_cast<double>(s.n - 1));  // the larger of the two tests' values
}

double effect_size(std::span<const double> differences) {
  const Summary s = summarize(differences);
  return s.n < 2 || s.deviation == 0 ? kNaN : s.mean / s.deviation;
}

double paired_power(int64_t n, double effect, double level) {
  RMOE_CHECK(n >= 2 && level > 0 && level < 1, "paired_power: ", n, " pairs at level ", level,
             ", expected at least 2 and a level between 0 and 1");
  const auto df = static_cast<double>(n - 1);
  const double critical = student_quantile(1 - level / 2, df), shift = effect * std::sqrt(static_cast<double>(n));
  // T = (Z + shift) / S, where S^2 is a chi-square over its degrees of freedom: given S = s, |T| > critical is a matter
  // of the normal distribution. Simpson's rule over s, where its density is not nothing.
  const auto normal = [](double z) { return 0.5 * std::erfc(-z / std::numbers::sqrt2); };
  const double log_front = std::log(2.0) + df / 2 * std::log(df / 2) - std::lgamma(df / 2);
  const auto integrand = [&](double s) {
    const double density = s > 0     ? std::exp(log_front + (df - 1) * std::log(s) - df * s * s / 2)
                           : df == 1 ? std::exp(log_front)
                                     : 0;
    return density * (normal(shift - critical * s) + normal(-shift - critical * s));
  };
  constexpr int kIntervals = 4000;
  constexpr double kDeviations = 12;
  const double spread = kDeviations / std::sqrt(2 * df), low = std::max(0.0, 1 - spread);
  const double step = (1 + spread - low) / kIntervals;
  double sum = integrand(low) + integrand(1 + spread);
  for (int i = 1; i < kIntervals; ++i) sum += (i % 2 == 1 ? 4 : 2) * integrand(low + i * step);
  return std::min(1.0, sum * step / 3);
}

int64_t pairs_needed(double difference, double deviation, double power, double level) {
  RMOE_CHECK(difference > 0 && deviation >= 0 && power > 0 && power < 1, "pairs_needed: difference ", difference,
             ", deviation ", deviation, ", power ", power, ", expected difference > 0 and power between 0 and 1");
  constexpr int64_t kMost = 1'000'000;
  if (deviation == 0) return 2;
  const double effect = difference / deviation;
  if (paired_power(kMost, effect, level) < power) return -1;
  int64_t low = 1, high = 2;  // power grows with n: not enough at low, enough at high
  while (high < kMost && paired_power(high, effect, level) < power) {
    low = high;
    high = std::min(2 * high, kMost);
  }
  while (high - low > 1) {
    const int64_t middle = low + (high - low) / 2;
    (paired_power(middle, effect, level) < power ? low : high) = middle;
  }
  return high;
}

}  // namespace rmoe::compare
