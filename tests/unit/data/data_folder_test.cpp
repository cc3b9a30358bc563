// rmoe data info: what it shows is what the files hold.
#include "rmoe/data/data_folder.h"

#include <gtest/gtest.h>

#include "rmoe/base/files.h"
#include "rmoe/base/log.h"
#include "rmoe/data/prepare.h"
#include "tests/support/temp_dir.h"
#include "tests/unit/data/expect_error.h"
#include "tests/unit/data/pack.h"

namespace rmoe::data {
namespace {

class Info : public testing::Test {
 protected:
  Info() {
    set_log_level(Level::kQuiet);
    std::string text;
    for (int i = 0; i < 5000; ++i) text += "some words in line " + std::to_string(i) + "\n";
    write_file_atomic(dir_ / "a.txt", text);
    make("out", "char");
    set_log_level(Level::kNormal);
  }
  void make(const char* name, const char* tokenizer) {
    PrepareOptions o;
    o.inputs = {(dir_ / "a.txt").string()};
    o.out = dir_ / name;
    o.tokenizer = tokenizer;
    prepare(o);
  }

  TempDir dir_;
};

TEST_F(Info, ShowsFoldersAndFiles) {
  const Json folder = info(dir_ / "out");
  EXPECT_EQ(folder, read_json_file(dir_ / "out" / "data.json"));
  const std::string text = info_text(folder);
  EXPECT_NE(text.find("char: "), text.npos) << text;
  EXPECT_NE(text.find("\ntrain  "), text.npos) << text;
  EXPECT_NE(text.find("tokens/word"), text.npos) << text;
  const Json file = info(dir_ / "out" / "valid.tok", /*verify=*/true);
  EXPECT_EQ(file["tokens"], folder["splits"]["valid"]["tokens"]);
  EXPECT_EQ(file["tokenizer_hash"], folder["tokenizer"]["hash"]);
  EXPECT_NE(info_text(file).find("valid.tok"), std::string::npos);
}

TEST_F(Info, RefusesWhatDoesNotFitTogether) {
  flip_bit(dir_ / "out" / "test.tok", 500);
  info(dir_ / "out");
  EXPECT_ERROR(info(dir_ / "out", /*verify=*/true), Exit::kBadInput, "test.tok: damaged");
  make("words", "word");
  std::filesystem::copy_file(dir_ / "words" / "test.tok", dir_ / "out" / "test.tok",
                             std::filesystem::copy_options::overwrite_existing);
  EXPECT_ERROR(info(dir_ / "out"), Exit::kBadInput, "test.tok: made with another tokenizer");
  std::filesystem::copy_file(dir_ / "out" / "valid.tok", dir_ / "out" / "test.tok",
                             std::filesystem::copy_options::overwrite_existing);
  EXPECT_ERROR(info(dir_ / "out"), Exit::kBadInput, "test.tok", "data.json says");
  std::filesystem::remove(dir_ / "out" / "test.tok");
  EXPECT_ERROR(info(dir_ / "out"), Exit::kIo, "test.tok");
  write_file_atomic(dir_ / "out" / "data.json", "{}");
  EXPECT_ERROR(info(dir_ / "out"), Exit::kBadInput, "data.json: not a data folder");
  EXPECT_ERROR(info(dir_ / "none"), Exit::kIo, "none");
}

}  // namespace
}  // namespace rmoe::data
