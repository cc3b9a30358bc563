#include "rmoe/plot/gnuplot.h"

#include <cstdlib>
#include <string>

#include <gtest/gtest.h>

#include "rmoe/base/error.h"
#include "support/temp_dir.h"

namespace rmoe::plot {
namespace {

// The environment of a test, put back at its end.
class Environment {
 public:
  Environment(const char* name, const std::string& value) : name_(name) {
    if (const char* now = std::getenv(name)) before_ = now;
    setenv(name, value.c_str(), 1);
  }
  ~Environment() { setenv(name_, before_.c_str(), 1); }

 private:
  const char* name_;
  std::string before_;
};

Error error_of(const std::string& script) {
  try {
    run_gnuplot(script);
  } catch (const Error& e) {
    return e;
  }
  return Error(Exit::kDone, "nothing was thrown");
}

TEST(RunGnuplot, ReturnsWhatTheScriptPrints) { EXPECT_EQ(run_gnuplot("set print '-'\nprint 6*7\n"), "42\n"); }

TEST(RunGnuplot, TakesScriptsLargerThanAPipe) {
  std::string script = "set print '-'\n$D << EOD\n";
  for (int i = 0; i < 100000; ++i) script += "1 2\n";
  script += "EOD\nstats $D using 1 nooutput\nprint int(STATS_records)\n";
  EXPECT_EQ(run_gnuplot(script), "100000\n");
}

TEST(RunGnuplot, NamesTheReasonOfAFailureInOneLine) {
  Error e = error_of("set terminal svg\nplot foo(\n");
  EXPECT_EQ(e.code(), Exit::kIo);
  EXPECT_NE(e.message().find("invalid expression"), std::string::npos) << e.message();
  EXPECT_EQ(e.message().find('\n'), std::string::npos);
}

TEST(RunGnuplot, NamesThePackageWhenTheProgramIsMissing) {
  TempDir empty;
  Environment path("PATH", empty.path().string());
  Error e = error_of("print 1\n");
  EXPECT_EQ(e.code(), Exit::kIo);
  EXPECT_EQ(e.message(), "the report needs the program gnuplot, which is not installed");
  EXPECT_EQ(e.help(), "apt install gnuplot-nox");
}

}  // namespace
}  // namespace rmoe::plot
