// What `rmoe upcycle` and `rmoe retrofit` say at the end.
#pragma once

#include <iostream>

#include "rmoe/adapt/adapt.h"
#include "rmoe/base/error.h"
#include "rmoe/base/json.h"

namespace rmoe::cli {

inline void print_report(const adapt::Report& r, bool json) {
  if (json) {
    std::cout << json_text(Json{{"run", r.run},
                                {"params_before", r.params_before},
                                {"params", r.params},
                                {"active_params", r.active_params},
                                {"identical", r.identical},
                                {"difference", r.difference}})
              << "\n";
    return;
  }
  std::cout << r.run << ": " << r.params << " parameters (" << r.active_params << " active per token), "
            << r.params_before << " before; logits of random tokens "
            << (r.identical ? std::string("unchanged, bit for bit")
                            : str("changed by at most ", r.difference, " of the largest"))
            << "\n";
}

}  // namespace rmoe::cli
