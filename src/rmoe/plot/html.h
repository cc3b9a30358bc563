// Text for HTML: what comes from a run (samples hold any bytes) is made valid and harmless.
#pragma once

#include <string>
#include <string_view>

namespace rmoe::plot {

// printable_utf8() with & < > " ' escaped: safe as text and inside quoted attributes.
std::string escape_html(std::string_view bytes);

// Number of characters (code points) of valid UTF-8, and the text cut to `most` of them with an ellipsis as the last.
size_t utf8_length(std::string_view text);
std::string shorten(std::string_view text, size_t most);

}  // namespace rmoe::plot
