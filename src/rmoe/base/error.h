// Errors and checks. One class for everything that can go wrong: a line for the reader, a help line when there is one,
// and the exit code that the command ends with.
#pragma once

#include <cmath>
#include <cstdint>
#include <source_location>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace rmoe {

// How the command ends. A run stopped by a signal ends with 128 + the signal's number, after a good save.
enum class Exit : int { kDone = 0, kBug = 1, kBadInput = 2, kDiverged = 3, kIo = 4, kPeer = 5 };

// The message names the operation, the wrong thing, its value and what was expected, in one line without a full stop.
class Error : public std::runtime_error {
 public:
  Error(Exit code, const std::string& message, std::string help = "")
      : std::runtime_error(message), code_(code), help_(std::move(help)) {}

  Exit code() const { return code_; }
  std::string message() const { return what(); }
  const std::string& help() const { return help_; }

 private:
  Exit code_;
  std::string help_;
};

namespace detail {
template <class T>
void put(std::ostream& out, const T& part) {
  out << part;
}
inline void put(std::ostream& out, bool part) { out << (part ? "true" : "false"); }
// The sign of a NaN says nothing, and differs from machine to machine.
inline void put(std::ostream& out, double part) { std::isnan(part) ? out << "nan" : out << part; }
inline void put(std::ostream& out, float part) { put(out, static_cast<double>(part)); }
template <class T>
void put(std::ostream& out, const std::vector<T>& parts) {
  out << '[';
  for (size_t i = 0; i < parts.size(); ++i) {
    if (i > 0) out << ", ";
    put(out, parts[i]);
  }
  out << ']';
}
}  // namespace detail

// All arguments written one after the other; lists as [1, 2], bools as words, what is not finite as nan, inf or -inf.
template <class... Parts>
std::string str(const Parts&... parts) {
  std::ostringstream out;
  (detail::put(out, parts), ...);
  return std::move(out).str();
}

// The caller, or the person at the keyboard, gave something that cannot be used.
template <class... Parts>
[[noreturn]] void input_error(const Parts&... parts) {
  throw Error(Exit::kBadInput, rmoe::str(parts...));
}

// A file, a pipe or a device failed.
template <class... Parts>
[[noreturn]] void io_error(const Parts&... parts) {
  throw Error(Exit::kIo, rmoe::str(parts...));
}

// The text of an errno value, such as "No space left on device".
std::string errno_text(int error_number);

namespace detail {
[[noreturn]] void assert_failed(const char* condition, const std::string& message, std::source_location where);
}

}  // namespace rmoe

// RMOE_CHECK(heads > 0, "attention: heads is ", heads, ", expected at least 1"): a caller's mistake.
#define RMOE_CHECK(condition, ...)      \
  do {                                  \
    if (!(condition)) [[unlikely]]      \
      ::rmoe::input_error(__VA_ARGS__); \
  } while (false)

// RMOE_ASSERT(rows == 0 || data, "sort: no data for ", rows, " rows"): a mistake of ours; the message carries
// file:line.
#define RMOE_ASSERT(condition, ...)                                                                         \
  do {                                                                                                      \
    if (!(condition)) [[unlikely]]                                                                          \
      ::rmoe::detail::assert_failed(#condition, ::rmoe::str(__VA_ARGS__), std::source_location::current()); \
  } while (false)
