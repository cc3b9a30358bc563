// UTF-8 as Unicode defines it: shortest forms only, no surrogates, nothing above U+10FFFF.
#pragma once

#include <string_view>

namespace rmoe {

bool is_utf8(std::string_view text);

}  // namespace rmoe
