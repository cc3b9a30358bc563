#include "rmoe/plot/number.h"

#include <cstdio>

namespace rmoe::plot {

std::string fixed(double value, int decimals, bool sign) {
  char text[400];  // the largest double has 309 digits before the point
  std::snprintf(text, sizeof text, sign ? "%+.*f" : "%.*f", decimals, value);
  return text;
}

}  // namespace rmoe::plot
