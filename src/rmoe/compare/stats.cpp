// Student's t through the regularized incomplete beta function: P(|T| > t) = I_x(df/2, 1/2) with x = df / (df + t^2).
#include "rmoe/compare/stats.h"

#include <cmath>
#include <limits>

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

}  // namespace rmoe::compare
