// TOML files and their bases.
#include <gtest/gtest.h>

#include "rmoe/base/config.h"
#include "rmoe/base/error.h"
#include "rmoe/base/files.h"
#include "tests/support/temp_dir.h"
#include "tests/unit/base/example_config.h"

namespace rmoe {
namespace {

class TomlFile : public ::testing::Test {
 protected:
  std::string write(const std::string& name, const std::string& text) {
    write_file_atomic(dir_ / name, text);
    return (dir_ / name).string();
  }
  // Exit code and message, with the folder's name left out.
  std::string error(const std::string& path) {
    try {
      parse_toml_file(path);
    } catch (const Error& e) {
      std::string message = e.message();
      const std::string folder = dir_.path().string() + "/";
      for (size_t at; (at = message.find(folder)) != std::string::npos;) message.erase(at, folder.size());
      return str(static_cast<int>(e.code()), " ", message);
    }
    return "nothing thrown";
  }
  TempDir dir_;
};

template <class T>
T value(const Node& tree, const char* key) {
  return std::get<T>(tree.find(key)->value);
}

TEST_F(TomlFile, KeepsTypesOrderAndPositions) {
  const Node tree = parse_toml("z = 1\na = 1.5\n[t]\n  s = \"x\"\n  b.c = true\nl = [1,\n 'y']", "f.toml");
  const auto& table = std::get<Node::Table>(tree.value);
  ASSERT_EQ(table.size(), 3u);
  EXPECT_EQ(table[0].key, "z");  // not sorted by name
  EXPECT_EQ(value<int64_t>(tree, "z"), 1);
  EXPECT_EQ(value<double>(tree, "a"), 1.5);
  const Node& t = *tree.find("t");
  EXPECT_EQ(t.source.prefix(), "f.toml:3:2: ");
  EXPECT_EQ(t.find("s")->source.prefix(), "f.toml:4:3: ");
  EXPECT_EQ(t.find("b")->source.prefix(), "f.toml:5:3: ");
  EXPECT_EQ(t.find("b")->find("c")->source.prefix(), "f.toml:5:5: ");
  const auto& list = std::get<Node::List>(t.find("l")->value);
  EXPECT_EQ(list[0].source.prefix(), "f.toml:6:6: ");
  EXPECT_EQ(list[1].source.prefix(), "f.toml:7:2: ");
  EXPECT_EQ(t.find("nothing"), nullptr);
}

TEST_F(TomlFile, SyntaxErrorsNameFileLineAndColumn) {
  EXPECT_TRUE(error(write("a.toml", "x = 1\ny = = 2\n")).starts_with("2 a.toml:2:5: "))
      << error((dir_ / "a.toml").string());
  EXPECT_TRUE(error(write("b.toml", "x = \"abc\n")).starts_with("2 b.toml:1:9: "));
  EXPECT_TRUE(error(write("c.toml", "[x\n")).starts_with("2 c.toml:1:3: "));
  EXPECT_TRUE(error(write("d.toml", "x = \"\xff\"\n")).starts_with("2 d.toml:1:"));
}

// toml++ 3.3 goes astray at each of these.
TEST_F(TomlFile, LettersThatAreNotAsciiStandInStringsAndCommentsOnly) {
  const std::string e = "\xc3\xa9";
  const Node tree = parse_toml("# " + e + "\na = \"\"\"\\\n " + e + "\"\"\"\n\"" + e + "\" = 1\n", "f");
  EXPECT_EQ(value<std::string>(tree, "a"), e);
  EXPECT_EQ(value<int64_t>(tree, e.c_str()), 1);
  for (const std::string& text : {e, e + " = 1", "a" + e + " = 1", "[" + e + "]", "a = " + e, "a = 1" + e, "a = [1" + e,
                                  "a = \"\\" + e + "\"", std::string("[="), std::string("[.")}) {
    EXPECT_TRUE(error(write("a.toml", text)).starts_with("2 a.toml:1:")) << text;
  }
}

TEST_F(TomlFile, DuplicateKeysAreRefused) {
  EXPECT_TRUE(error(write("a.toml", "x = 1\nx = 2\n")).starts_with("2 a.toml:2:")) << error((dir_ / "a.toml").string());
  EXPECT_TRUE(error(write("b.toml", "[t]\nx = 1\n[t]\ny = 2\n")).starts_with("2 b.toml:3:"));
  EXPECT_TRUE(error(write("c.toml", "t.x = 1\n[t]\ny = 2\n")).starts_with("2 c.toml:2:"));
}

TEST_F(TomlFile, IntegersThatDoNotFitAreRefused) {
  EXPECT_TRUE(error(write("a.toml", "x = 9223372036854775808\n")).starts_with("2 a.toml:1:"));
  EXPECT_EQ(value<int64_t>(parse_toml_file(write("b.toml", "x = -9223372036854775808")), "x"), INT64_MIN);
}

TEST_F(TomlFile, DatesAreRefused) {
  EXPECT_EQ(error(write("a.toml", "[t]\n when = 2024-01-01\n")), "2 a.toml:2:2: a date or time, which no key takes");
}

TEST_F(TomlFile, DeepNestingIsRefused) {
  const std::string expected = "nested deeper than 32";
  std::string dotted = "a";
  for (int i = 0; i < 100; ++i) dotted += ".a";
  EXPECT_NE(error(write("a.toml", dotted + " = 1")).find(expected), std::string::npos);
  EXPECT_NE(error(write("b.toml", "a = " + std::string(100, '[') + std::string(100, ']'))).find(expected),
            std::string::npos);
  // Far beyond any stack, if somebody recursed.
  EXPECT_TRUE(error(write("c.toml", "a = " + std::string(200000, '['))).starts_with("2 c.toml:1:"));
  for (int i = 0; i < 400000; ++i) dotted += ".a";
  EXPECT_EQ(error(write("d.toml", "x = 1\n" + dotted + " = 1")), "2 d.toml:2:1: more than 200 dots in one line");
}

TEST_F(TomlFile, UnreadableFilesAreIoErrors) {
  EXPECT_EQ(error((dir_ / "none.toml").string()), "4 cannot read none.toml: No such file or directory");
  EXPECT_TRUE(error(dir_.path().string()).starts_with("4 cannot read ")) << error(dir_.path().string());
  EXPECT_TRUE(error(write("big.toml", std::string(2 << 20, ' '))).starts_with("4 cannot read big.toml: 2.0 MiB"));
}

TEST_F(TomlFile, BaseIsLaidUnderTheFile) {
  write("base.toml", "x = 1\ny = 2\n[t]\na = 1\nb = 2\n");
  const Node tree = parse_toml_file(write("a.toml", "base = 'base.toml'\ny = 3\n[t]\nb = 4\n"));
  EXPECT_EQ(tree.find("base"), nullptr);
  EXPECT_EQ(value<int64_t>(tree, "x"), 1);
  EXPECT_EQ(value<int64_t>(tree, "y"), 3);
  EXPECT_EQ(value<int64_t>(*tree.find("t"), "a"), 1);
  EXPECT_EQ(value<int64_t>(*tree.find("t"), "b"), 4);
  EXPECT_EQ(tree.find("x")->source.name, (dir_ / "base.toml").string());
  EXPECT_EQ(tree.find("t")->source.name, (dir_ / "a.toml").string());
}

TEST_F(TomlFile, BasesAreRelativeToTheirFileAndLaterOnesWin) {
  std::filesystem::create_directory(dir_ / "sub");
  write("sub/grand.toml", "x = 0\nw = 0\n");
  write("sub/one.toml", "base = 'grand.toml'\nx = 1\ny = 1\n");
  write("two.toml", "base = 'sub/grand.toml'\nx = 2\n");  // a base may be reached twice
  const Node tree = parse_toml_file(write("a.toml", "base = ['sub/one.toml', 'two.toml']\n"));
  EXPECT_EQ(value<int64_t>(tree, "x"), 2);
  EXPECT_EQ(value<int64_t>(tree, "y"), 1);
  EXPECT_EQ(value<int64_t>(tree, "w"), 0);
}

TEST_F(TomlFile, MistakesWithBasesNameTheFileThatNamesThem) {
  EXPECT_EQ(error(write("a.toml", "# c\nbase = 'none.toml'\n")), "4 a.toml:2:1: base file none.toml does not exist");
  EXPECT_EQ(error(write("b.toml", "base = 3\n")), "2 b.toml:1:1: base: expected a file name or a list of file names");
  EXPECT_EQ(error(write("c.toml", "base = ['']\n")),
            "2 c.toml:1:9: base: expected a file name or a list of file names");
  EXPECT_EQ(error(write("d.toml", "base = 'd.toml'\n")), "2 d.toml:1:1: base files form a cycle: d.toml -> d.toml");
  write("e.toml", "base = './f.toml'\n");
  EXPECT_EQ(error(write("f.toml", "x = 1\nbase = 'e.toml'\n")),
            "2 e.toml:1:1: base files form a cycle: f.toml -> e.toml -> f.toml");
  write("g.toml", "x = = 1\n");
  EXPECT_TRUE(error(write("h.toml", "base = 'g.toml'\n")).starts_with("2 g.toml:1:5: "));
}

}  // namespace
}  // namespace rmoe
