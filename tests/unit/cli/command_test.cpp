// The command line as run_command_line sees it, with commands of the test's own beside `rmoe list`.
#include "rmoe/cli/command.h"

#include <iostream>
#include <memory>
#include <thread>

#include <CLI/App.hpp>
#include <gtest/gtest.h>

#include "rmoe/base/error.h"
#include "rmoe/base/files.h"
#include "rmoe/base/json.h"
#include "rmoe/base/log.h"
#include "tests/support/temp_dir.h"

namespace rmoe::cli {
namespace {

struct Result {
  int code;
  std::string out, err;
};
Result run(const std::vector<std::string>& args) {
  testing::internal::CaptureStdout();
  testing::internal::CaptureStderr();
  const int code = run_command_line(args);
  return {code, testing::internal::GetCapturedStdout(), testing::internal::GetCapturedStderr()};
}

struct Layers {
  int64_t layers = 1;
  static constexpr auto fields() { return std::tuple{Field{"layers", &Layers::layers, "layers"}}; }
};
struct ProbeConfig {
  std::string name;
  Layers model;
  static constexpr auto fields() {
    return std::tuple{Field{"name", &ProbeConfig::name, "a name"}, Field{"model", &ProbeConfig::model, "a model"}};
  }
};

// `probe FILE [--out DIR] [--a.b=c ...]`: prints what it got, or fails as FILE says.
void setup_probe(CLI::App& app, Globals& globals) {
  struct Options {
    std::string file, out;
  };
  auto options = std::make_shared<Options>();
  app.add_option("FILE", options->file, "what to do");
  app.add_option("--out", options->out, "output folder");
  take_config_flags<ProbeConfig>(app, globals);
  app.callback([options, &globals] {
    if (options->file == "bad") throw Error(Exit::kBadInput, "probe: it is bad", "make it good");
    if (options->file == "diverged") throw Error(Exit::kDiverged, "probe: loss is nan at step 3");
    if (options->file == "bug") throw std::out_of_range("index");
    if (options->file == "memory") std::thread([] { throw std::bad_alloc(); }).join();
    if (options->file == "signal") globals.exit_code = 130;
    if (options->file == "folder") std::filesystem::create_directories("/proc/self/stat/x");
    std::cout << options->file << "|" << options->out << "|" << globals.json << globals.quiet << globals.threads;
    for (const std::string& flag : globals.config_flags) std::cout << "|" << flag;
    std::cout << "\n";
    log_info("working");
  });
}
RMOE_REGISTER_COMMAND("probe", "a command for the tests", "rmoe probe a.toml --model.layers=4", setup_probe);

TEST(CommandLine, HelpShowsSummaryAndExample) {
  const Result all = run({"--help"});
  EXPECT_EQ(all.code, 0);
  EXPECT_NE(all.out.find("a command for the tests"), std::string::npos);
  EXPECT_EQ(all.err, "");
  const Result one = run({"probe", "--help"});
  EXPECT_EQ(one.code, 0);
  EXPECT_NE(one.out.find("rmoe probe a.toml --model.layers=4"), std::string::npos);
}

TEST(CommandLine, VersionIsOneLine) {
  const Result result = run({"--version"});
  EXPECT_EQ(result.code, 0);
  EXPECT_TRUE(result.out.starts_with("rmoe ")) << result.out;
}

TEST(CommandLine, ConfigFlagsDoNotEatPositionalArguments) {
  EXPECT_EQ(run({"probe", "a.toml", "--model.layers=4"}).out, "a.toml||000|--model.layers=4\n");
  EXPECT_EQ(run({"probe", "--model.layers", "4", "a.toml"}).out, "a.toml||000|--model.layers|4\n");
  EXPECT_EQ(run({"probe", "--x.y", "-1", "--out", "d", "--model={}", "a.toml"}).out,
            "a.toml|d|000|--x.y|-1|--model={}\n");
  EXPECT_EQ(run({"probe", "--out=d", "a.toml", "--x.y"}).out, "a.toml|d|000|--x.y\n");
  EXPECT_EQ(run({"probe", "--name", "b", "a.toml"}).out, "a.toml||000|--name|b\n");
}

TEST(CommandLine, AMistypedOptionIsNoConfigFlag) {
  const auto error = [](const std::vector<std::string>& args) {
    const Result result = run(args);
    EXPECT_EQ(result.code, 2);
    EXPECT_EQ(result.out, "");
    return result.err;
  };
  EXPECT_EQ(error({"probe", "a", "--ouy", "x"}), "rmoe: probe: unknown option --ouy\n  help: did you mean '--out'?\n");
  EXPECT_EQ(error({"probe", "--ouy=x.y", "a"}), "rmoe: probe: unknown option --ouy\n  help: did you mean '--out'?\n");
  EXPECT_EQ(error({"probe", "--nmae=x"}), "rmoe: probe: unknown option --nmae\n  help: did you mean '--name'?\n");
  EXPECT_EQ(error({"probe", "--layers=2"}),
            "rmoe: probe: unknown option --layers\n  help: did you mean '--model.layers'?\n");
  EXPECT_EQ(error({"probe", "--layer", "2"}),
            "rmoe: probe: unknown option --layer\n  help: did you mean '--model.layers'?\n");
  EXPECT_EQ(error({"probe", "--zzzzzz"}),
            "rmoe: probe: unknown option --zzzzzz\n  help: `rmoe probe --help` lists the options\n");
}

TEST(CommandLine, AFailureInAThreadIsALineToo) {
  EXPECT_EXIT(run_command_line({"probe", "memory"}), testing::ExitedWithCode(4), "rmoe: out of memory\n  help: ");
}

TEST(CommandLine, GlobalOptionsStandBeforeOrAfterTheCommand) {
  EXPECT_EQ(run({"--json", "probe", "a", "--threads", "2"}).out, "a||102\n");
  const Result quiet = run({"probe", "a", "--quiet"});
  EXPECT_EQ(quiet.out, "a||010\n");
  EXPECT_EQ(quiet.err, "");
  EXPECT_EQ(run({"probe", "a"}).err, "working\n");  // quiet does not stay on
}

TEST(CommandLine, ExitCodes) {
  EXPECT_EQ(run({"probe", "bad"}).code, 2);
  EXPECT_EQ(run({"probe", "diverged"}).code, 3);
  EXPECT_EQ(run({"probe", "bug"}).code, 1);
  EXPECT_EQ(run({"probe", "signal"}).code, 130);
}

TEST(CommandLine, ErrorsAreOneLineAndAHelpLine) {
  const Result bad = run({"probe", "bad"});
  EXPECT_EQ(bad.err, "rmoe: probe: it is bad\n  help: make it good\n");
  EXPECT_EQ(bad.out, "");
  EXPECT_EQ(run({"probe", "diverged", "--quiet"}).err, "rmoe: probe: loss is nan at step 3\n");
  EXPECT_EQ(run({"probe", "bug"}).err, "rmoe: internal error: index\n");
  EXPECT_EQ(run({"probe", "folder"}).code, 4);
  EXPECT_EQ(run({"probe", "folder"}).err, "rmoe: cannot use /proc/self/stat/x: Not a directory\n");
  EXPECT_TRUE(run({"probe", "a", "b\nc\t\x1b[31m\x7f"})
                  .err.starts_with("rmoe: probe: unexpected argument 'b\\nc\\t\\x1b[31m\\x7f'\n  help: "));
}

TEST(CommandLine, WithJsonAnErrorIsAlsoAnObject) {
  const Json object = parse_json(run({"probe", "bad", "--json"}).out, "stdout");
  EXPECT_EQ(json_text(object), R"({"error":{"code":2,"message":"probe: it is bad","help":"make it good"}})");
  EXPECT_EQ(json_int(parse_json(run({"lst", "--json"}).out, "stdout").at("error"), "code", "stdout"), 2);
}

TEST(CommandLine, UsageErrorsNameTheNearest) {
  const auto error = [](const std::vector<std::string>& args) {
    const Result result = run(args);
    EXPECT_EQ(result.code, 2);
    EXPECT_EQ(result.out, "");
    return result.err;
  };
  EXPECT_EQ(error({"prob"}), "rmoe: unknown command 'prob'\n  help: did you mean 'probe'?\n");
  EXPECT_EQ(error({}), "rmoe: a command is missing\n  help: `rmoe --help` lists them\n");
  EXPECT_EQ(error({"list", "routers", "--jsn"}), "rmoe: list: unknown option --jsn\n  help: did you mean '--json'?\n");
  EXPECT_EQ(error({"probe", "a", "b"}),
            "rmoe: probe: unexpected argument 'b'\n  help: `rmoe probe --help` shows what it takes\n");
  EXPECT_EQ(error({"probe", "-z"}), "rmoe: probe: unknown option -z\n  help: `rmoe probe --help` lists the options\n");
  EXPECT_EQ(error({"list"}), "rmoe: list: WHAT is required\n  help: `rmoe list --help` shows what it takes\n");
  EXPECT_EQ(error({"probe", "--threads", "x"}).substr(0, 23), "rmoe: probe: --threads:");
  EXPECT_EQ(error({"probe", "--threads", "0"}).substr(0, 23), "rmoe: probe: --threads:");
  EXPECT_EQ(error({"--threads", "2"}), "rmoe: a command is missing\n  help: `rmoe --help` lists them\n");
  EXPECT_EQ(error({"-x"}), "rmoe: unknown option -x\n  help: `rmoe --help` lists the options\n");
  EXPECT_EQ(error({"--", "probe"}), "rmoe: a command is missing\n  help: `rmoe --help` lists them\n");
  EXPECT_EQ(error({"probe", "--", "a", "--out", "b"}),
            "rmoe: probe: unexpected argument '--out'\n  help: what follows '--' is neither an option nor a command\n");
}

TEST(CommandLine, ValuesThatCannotBeMeantAreRefused) {
  const auto error = [](const std::vector<std::string>& args) {
    const Result result = run(args);
    EXPECT_EQ(result.code, 2);
    EXPECT_EQ(result.out, "");
    return result.err.substr(0, result.err.find('\n'));
  };
  for (const char* threads : {"0", "4097", "99999999999999999999", "-1", "1.5", "1e1", "0x10", " 2", "nan"}) {
    EXPECT_EQ(error({"probe", "--threads", threads}),
              str("rmoe: probe: --threads: expected an integer from 1 to 4096, got '", threads, "'"));
  }
  EXPECT_EQ(error({"probe", "--out", ""}), "rmoe: probe: --out: expected a value, got an empty text");
  EXPECT_EQ(error({"probe", ""}), "rmoe: probe: FILE: expected a value, got an empty text");
  EXPECT_EQ(error({"probe", "--out="}), "rmoe: probe: --out: no value given");
  EXPECT_EQ(error({"probe", "--out"}), "rmoe: probe: --out: no value given");
  EXPECT_EQ(error({"probe", "--out", "a", "--out", "b"}), "rmoe: probe: --out: given 2 times, expected once");
}

TEST(Validators, TakeNumbersThatFit) {
  for (const char* text : {"0", "-7", "9223372036854775807"}) EXPECT_EQ(integer(-7)(text), "") << text;
  for (const char* text : {"-8", "9223372036854775808", "", "+1", "1 ", "inf"})
    EXPECT_NE(integer(-7)(text), "") << text;
  for (const char* text : {"0", "-1.5", "1e-3", ".5", "nan", "inf"}) EXPECT_EQ(number()(text), "") << text;
  for (const char* text : {"", "x", "1,5", "1e999", "0.5x"}) EXPECT_NE(number()(text), "") << text;
}

TEST(List, UnknownThingGivesTheNearest) {
  EXPECT_EQ(run({"list", "config"}).err, "rmoe: list: unknown 'config'\n  help: did you mean 'configs'?\n");
}

TEST(List, ConfigsWithTheirFirstComment) {
  TempDir dir;
  std::filesystem::create_directory(dir / "sub");
  write_file_atomic(dir / "b.toml", "x = 1\n#   The second.  \n# not this\n");
  write_file_atomic(dir / "sub/a.toml", "x = 1\n");
  write_file_atomic(dir / "note.txt", "# no config\n");
  const std::string folder = dir.path().string();
  EXPECT_EQ(run({"list", "configs", "--dir", folder}).out,
            folder + "/b.toml      The second.\n" + folder + "/sub/a.toml  \n");
  EXPECT_EQ(parse_json(run({"list", "configs", "--dir", folder, "--json"}).out, "stdout").at(0).at("summary"),
            "The second.");
  const Result none = run({"list", "configs", "--dir", folder + "/none"});
  EXPECT_EQ(none.code, 4);
  EXPECT_EQ(none.err.substr(0, 20), "rmoe: list configs: ");
  EXPECT_EQ(run({"list", "configs", "--dir", folder + "/b.toml"}).code, 2);
}

}  // namespace
}  // namespace rmoe::cli
