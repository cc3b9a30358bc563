// `rmoe compare` as a person runs it: standard output, standard error, exit code.
#include <sys/wait.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <string>

#include <gtest/gtest.h>

#include "rmoe/base/files.h"
#include "rmoe/base/json.h"
#include "support/temp_dir.h"
#include "unit/compare/run_folder.h"

namespace rmoe::compare {
namespace {

class CompareCommand : public testing::Test {
 protected:
  struct Result {
    int code = -1;
    std::string out, err;
  };

  void SetUp() override {
    for (int64_t seed : {1, 2, 3}) {
      std::string number = std::to_string(seed);
      double shift = seed == 2 ? 0.004 : 0.0;
      write_run(dir_ / ("smoe-" + number), {.name = "SMoE", .seed = seed, .test = 1.652 + shift});
      write_run(dir_ / ("rmoe-" + number), {.name = "RMoE", .seed = seed, .stage = "gru", .test = 1.655 - shift});
    }
  }

  // Runs in the folder of the runs; `environment` stands before the command.
  Result run(const std::string& arguments, const std::string& environment = "") {
    std::string errors = (dir_ / "errors").string();
    std::string line = "cd '" + dir_.path().string() + "' && " + environment + " " RMOE_COMMAND " compare " +
                       arguments + " 2>'" + errors + "'";
    FILE* pipe = popen(line.c_str(), "r");
    if (!pipe) return {};
    Result result;
    char buffer[4096];
    while (size_t n = fread(buffer, 1, sizeof buffer, pipe)) result.out.append(buffer, n);
    int status = pclose(pipe);
    result.code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    result.err = read_file(errors);
    return result;
  }

  TempDir dir_;
};

TEST_F(CompareCommand, PrintsTheTableAndWritesTheReport) {
  Result r = run("smoe-*/ rmoe-*/ --report report.html");
  EXPECT_EQ(r.code, 0) << r.err;
  EXPECT_NE(r.out.find("SMoE            RMoE\n"), std::string::npos) << r.out;
  EXPECT_NE(r.out.find("no difference shown"), std::string::npos);
  EXPECT_EQ(r.err, "report: report.html\n");
  std::string html = read_file(dir_ / "report.html");
  EXPECT_TRUE(html.ends_with("</html>\n"));
  EXPECT_NE(html.find(" --report report-again.html"), std::string::npos);
  EXPECT_NE(html.find("rmoe compare smoe-1-again smoe-2-again "), std::string::npos);
}

TEST_F(CompareCommand, SpeaksMarkdownCsvAndJson) {
  EXPECT_TRUE(run("smoe-1 rmoe-1 --format markdown").out.starts_with("| | SMoE | RMoE |\n"));
  EXPECT_TRUE(run("smoe-1 rmoe-1 --format csv").out.starts_with("group,seeds,"));
  Result r = run("smoe-1 rmoe-1 --metric valid --json");
  EXPECT_EQ(r.code, 0);
  EXPECT_EQ(parse_json(r.out, "output")["metric"]["split"], "valid");
  EXPECT_EQ(run("smoe-1 --format pdf").code, 2);
  EXPECT_EQ(run("smoe-1 --metric train").code, 2);
}

TEST_F(CompareCommand, ExitsWithOneLineForWhatIsNoFinishedRun) {
  write_run(dir_ / "short", {.finished = false});
  Result r = run("smoe-1 short");
  EXPECT_EQ(r.code, 2);
  EXPECT_EQ(r.out, "");
  EXPECT_TRUE(r.err.starts_with("rmoe: compare: short is unfinished: it ended at step 1000\n  help: ")) << r.err;

  r = run("smoe-1 nowhere --json");
  EXPECT_EQ(r.code, 4);
  EXPECT_EQ(parse_json(r.out, "output")["error"]["message"], "compare: nowhere does not exist");
  EXPECT_EQ(run("").code, 2);
}

TEST_F(CompareCommand, NamesThePackageOfAMissingGnuplotAfterTheTable) {
  std::filesystem::create_directory(dir_ / "empty");
  Result r = run("smoe-1 rmoe-1 --report report.html", "PATH=empty");
  EXPECT_EQ(r.code, 4);
  EXPECT_NE(r.out.find("one seed decides nothing"), std::string::npos);
  EXPECT_EQ(r.err,
            "rmoe: the report needs the program gnuplot, which is not installed\n  help: apt install gnuplot-nox\n");
  EXPECT_FALSE(std::filesystem::exists(dir_ / "report.html"));
}

TEST_F(CompareCommand, ExitsWith4WhenTheReportCannotBeWritten) {
  Result r = run("smoe-1 rmoe-1 --report nowhere/report.html");
  EXPECT_EQ(r.code, 4);
  EXPECT_NE(r.err.find("nowhere/report.html"), std::string::npos) << r.err;
}

}  // namespace
}  // namespace rmoe::compare
