#include "rmoe/base/error.h"

#include <system_error>

namespace rmoe {

std::string errno_text(int error_number) { return std::generic_category().message(error_number); }

namespace detail {

void assert_failed(const char* condition, const std::string& message, std::source_location where) {
  // The path from "rmoe/" on: a message does not tell where the program was built.
  std::string_view file = where.file_name();
  if (size_t at = file.rfind("/rmoe/"); at != std::string_view::npos) file.remove_prefix(at + 1);
  throw Error(Exit::kBug, str(file, ":", where.line(), ": ", message.empty() ? condition : message));
}

}  // namespace detail

}  // namespace rmoe
