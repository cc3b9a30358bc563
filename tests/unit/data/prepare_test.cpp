// rmoe data prepare as a whole: text in, token files out, and nothing left behind when it fails.
#include "rmoe/data/prepare.h"

#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>

#include <gtest/gtest.h>

#include "rmoe/base/files.h"
#include "rmoe/base/log.h"
#include "rmoe/data/data_folder.h"
#include "rmoe/data/digest.h"
#include "rmoe/data/presets.h"
#include "rmoe/data/token_file.h"
#include "rmoe/data/tokenizer.h"
#include "tests/support/temp_dir.h"
#include "tests/unit/data/expect_error.h"
#include "tests/unit/data/pack.h"

namespace rmoe::data {
namespace {

namespace fs = std::filesystem;

class Prepare : public testing::Test {
 protected:
  Prepare() { set_log_level(Level::kQuiet); }
  ~Prepare() override { set_log_level(Level::kNormal); }

  std::string write(const std::string& name, const std::string& text) {
    write_file_atomic(dir_ / name, text);
    return (dir_ / name).string();
  }
  PrepareOptions options(std::vector<std::string> inputs) {
    PrepareOptions o;
    o.inputs = std::move(inputs);
    o.out = dir_ / "out";
    return o;
  }
  std::string decoded(const char* split) {
    const auto tokenizer = Tokenizer::load(dir_ / "out");
    const TokenFile file = TokenFile::open(dir_ / "out" / (std::string(split) + ".tok"));
    EXPECT_EQ(file.header().tokenizer_hash, tokenizer->hash());
    EXPECT_EQ(file.header().vocab_size, tokenizer->vocab_size());
    std::vector<int64_t> ids(static_cast<size_t>(file.size()));
    file.read(0, file.size(), ids.data());
    return tokenizer->decode(ids);
  }
  // The names in the test's folder besides those given.
  std::vector<std::string> others(std::vector<std::string> known) {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(dir_.path())) {
      const std::string name = entry.path().filename().string();
      if (std::ranges::find(known, name) == known.end()) names.push_back(name);
    }
    return names;
  }

  TempDir dir_;
};

// "line 0 of the text", "line 1 of the text" ...
std::string lines(int count = 2000) {
  std::string text;
  for (int i = 0; i < count; ++i) text += "line " + std::to_string(i % 97) + " of the t\xC3\xA9xt\n";
  return text;
}

std::string json_lines(int count) {
  std::string text;
  for (int i = 0; i < count; ++i) text += "{\"text\": \"document number " + std::to_string(i) + "\"}\n";
  return text;
}

TEST_F(Prepare, EveryTokenizerGivesTheTextBack) {
  const std::string text = lines();
  const std::string path = write("a.txt", text);
  for (const char* tokenizer : {"byte", "char", "word", "sentencepiece"}) {
    SCOPED_TRACE(tokenizer);
    PrepareOptions o = options({path});
    o.tokenizer = tokenizer;
    o.vocab_size = std::string(tokenizer) == "sentencepiece" ? 280 : 0;
    o.valid = "0.1";
    o.test = "0.2";
    o.overwrite = true;
    const Json result = prepare(o);
    EXPECT_EQ(decoded("train") + decoded("valid") + decoded("test"), text);
    const auto size = static_cast<double>(text.size());
    EXPECT_NEAR(static_cast<double>(decoded("valid").size()), size * 0.1, 40);
    EXPECT_NEAR(static_cast<double>(decoded("test").size()), size * 0.2, 40);
    EXPECT_EQ(result, read_json_file(dir_ / "out" / "data.json"));
    EXPECT_EQ(result["tokenizer"]["kind"], tokenizer);
    const Json& train = result["splits"]["train"];
    EXPECT_EQ(train["bytes"], decoded("train").size());
    EXPECT_EQ(train["documents"], 1);
    const int64_t in_train = std::ranges::count(decoded("train"), '\n');
    EXPECT_EQ(train["words"], in_train * 6);  // five words and an end of line each
    EXPECT_EQ(train["characters"].get<int64_t>(), train["bytes"].get<int64_t>() - in_train);
    info(dir_ / "out", /*verify=*/true);
  }
  EXPECT_TRUE(others({"a.txt", "out"}).empty());
}

TEST_F(Prepare, TheSameTextAndOptionsGiveTheSameFiles) {
  const std::string path = write("a.txt", lines());
  for (const char* tokenizer : {"word", "sentencepiece"}) {
    PrepareOptions o = options({path});
    o.tokenizer = tokenizer;
    o.vocab_size = 280;
    o.sample_bytes = 20'000;
    o.out = dir_ / (std::string(tokenizer) + "1");
    prepare(o);
    const fs::path first = o.out;
    o.out = dir_ / (std::string(tokenizer) + "2");
    prepare(o);
    for (const auto& entry : fs::directory_iterator(first)) {
      EXPECT_EQ(read_file(entry.path()), read_file(o.out / entry.path().filename())) << entry.path();
    }
  }
}

TEST_F(Prepare, OneDocumentNeedsNoSeparatorAndSeveralDo) {
  PrepareOptions o = options({write("a.txt", lines())});
  EXPECT_EQ(prepare(o)["tokenizer"]["vocab_size"], 256);
  o = options({write("b.jsonl", json_lines(100))});
  o.overwrite = true;
  const Json result = prepare(o);
  EXPECT_EQ(result["tokenizer"]["vocab_size"], 257);
  EXPECT_EQ(result["split"]["by"], "ranges");
  int64_t documents = 0;
  for (const auto& [name, split] : result["splits"].items()) {
    documents += split["documents"].get<int64_t>();
    EXPECT_EQ(split["tokens"].get<int64_t>(), split["bytes"].get<int64_t>() + split["documents"].get<int64_t>());
  }
  EXPECT_EQ(documents, 100);
  const TokenFile file = TokenFile::open(dir_ / "out" / "valid.tok");
  int64_t last = 0;
  file.read(file.size() - 1, 1, &last);
  EXPECT_EQ(last, 256);  // every document ends with it
}

TEST_F(Prepare, ManyDocumentsAreSplitByDocument) {
  PrepareOptions o = options({write("a.jsonl", json_lines(3000))});
  const Json result = prepare(o);
  EXPECT_EQ(result["split"]["by"], "documents");
  EXPECT_NEAR(result["splits"]["valid"]["documents"].get<double>(), 150, 50);
  o.split = "ranges";
  o.overwrite = true;
  EXPECT_EQ(prepare(o)["split"]["by"], "ranges");
}

TEST_F(Prepare, SplitsMayBeFilesOfTheirOwn) {
  PrepareOptions o = options({write("a.txt", lines(50))});
  o.valid = write("v.txt", "fine hotel \xE2\x82\xAC\n");
  o.test = "0.2";
  o.tokenizer = "char";
  const Json result = prepare(o);
  EXPECT_EQ(decoded("valid"), "fine hotel \xEF\xBF\xBD\n");  // the vocabulary is that of the training split
  EXPECT_EQ(decoded("train") + decoded("test"), lines(50));
  EXPECT_EQ(result["sources"].size(), 2u);
}

TEST_F(Prepare, SplitsMayBeLeftOut) {
  PrepareOptions o = options({write("a.txt", lines(50))});
  o.valid = "0";
  o.test = "0";
  const Json result = prepare(o);
  EXPECT_EQ(decoded("train"), lines(50));
  EXPECT_FALSE(fs::exists(dir_ / "out" / "valid.tok"));
  EXPECT_EQ(result["splits"].size(), 1u);
  EXPECT_EQ(result["split"]["by"], "none");
}

TEST_F(Prepare, PackedInputsGiveTheSameTokens) {
  const std::string text = lines();
  prepare(options({write("a.txt", text)}));
  const std::string plain = read_file(dir_ / "out" / "train.tok");
  write_gz(dir_ / "a.txt.gz", text);
  write_archive(dir_ / "a.txt.zst", archive_write_set_format_raw, archive_write_add_filter_zstd, {{"d", text}});
  write_zip(dir_ / "a.zip", {{"a.txt", text}});
  for (const char* name : {"a.txt.gz", "a.txt.zst", "a.zip"}) {
    PrepareOptions o = options({(dir_ / name).string()});
    o.overwrite = true;
    prepare(o);
    EXPECT_EQ(read_file(dir_ / "out" / "train.tok"), plain) << name;
  }
}

TEST_F(Prepare, TheTokenizerOfPreparedDataServesOtherText) {
  PrepareOptions o = options({write("a.txt", lines())});
  o.tokenizer = "word";
  prepare(o);
  PrepareOptions other = options({write("b.txt", "line 5 of another\n")});
  other.model = (dir_ / "out").string();
  other.out = dir_ / "out2";
  other.valid = other.test = "0";
  const Json result = prepare(other);
  EXPECT_EQ(result["tokenizer"]["hash"], read_json_file(dir_ / "out" / "data.json")["tokenizer"]["hash"]);
  // A SentencePiece model file serves as well.
  o.tokenizer = "sentencepiece";
  o.vocab_size = 280;
  o.overwrite = true;
  const Json trained = prepare(o);
  other.model = (dir_ / "out" / "tokenizer.model").string();
  other.overwrite = true;
  EXPECT_EQ(prepare(other)["tokenizer"]["hash"], trained["tokenizer"]["hash"]);
}

TEST_F(Prepare, ByteUnitsCountBytesAsCharacters) {
  PrepareOptions o = options({write("a.txt", lines())});
  o.tokenizer = "char";
  o.unit = "byte";
  const Json result = prepare(o);
  EXPECT_EQ(result["splits"]["train"]["characters"], result["splits"]["train"]["bytes"]);
  EXPECT_EQ(result["splits"]["train"]["characters"], result["splits"]["train"]["tokens"]);
}

TEST_F(Prepare, InvalidUtf8IsRefusedReplacedOrTakenAsBytes) {
  const std::string path = write("a.txt", "bad \xFF byte\n" + lines());
  PrepareOptions o = options({path});
  o.tokenizer = "char";
  EXPECT_ERROR(prepare(o), Exit::kBadInput, "a.txt: not valid UTF-8: byte 0xff at offset 4");
  EXPECT_TRUE(others({"a.txt"}).empty());
  o.invalid_utf8 = "replace";
  prepare(o);
  EXPECT_TRUE(decoded("train").starts_with("bad \xEF\xBF\xBD byte\n"));
  o.tokenizer = "byte";
  o.invalid_utf8.clear();
  o.overwrite = true;
  prepare(o);
  EXPECT_TRUE(decoded("train").starts_with("bad \xFF byte\n"));
}

TEST_F(Prepare, FailuresNameTheFileAndLeaveNothing) {
  const auto fails = [&](PrepareOptions o, Exit code, const std::string& message) {
    EXPECT_ERROR(prepare(o), code, message.c_str());
    for (const std::string& name : others({})) EXPECT_FALSE(name.starts_with("out")) << name;
    EXPECT_FALSE(fs::exists(dir_ / "deep"));
  };
  const std::string good = write("good.txt", lines());
  fails(options({(dir_ / "none.txt").string()}), Exit::kIo, "none.txt");
  fails(options({write("empty.txt", "")}), Exit::kBadInput, "empty.txt: no text");
  fails(options({good, write("bad.jsonl", "{\"text\": \"x\"}\n{\"body\": 1}\n")}), Exit::kBadInput,
        "bad.jsonl:2: no key 'text'");
  write_gz(dir_ / "cut.txt.gz", lines());
  truncate_half(dir_ / "cut.txt.gz");
  fails(options({good, (dir_ / "cut.txt.gz").string()}), Exit::kBadInput, "cut.txt.gz: cannot be unpacked");
  fails(options({write("short.txt", "one line\n")}), Exit::kBadInput, "short.txt: too little text: the valid split");
  fails(options({}), Exit::kBadInput, "no input");
  auto o = options({good});
  o.out = dir_ / "deep" / "er" / "out";
  o.valid = (dir_ / "none.txt").string();
  fails(o, Exit::kIo, "none.txt");
  o = options({good});
  o.valid = "1.0";
  fails(o, Exit::kBadInput, "--valid is 1.0, expected a share from 0 to below 1, or a file");
  o.valid = o.test = "0.5";
  fails(o, Exit::kBadInput, "leave nothing for training");
  o = options({good});
  o.tokenizer = "bytes";
  fails(o, Exit::kBadInput, "did you mean 'byte'?");
  o = options({good});
  o.preset = "enwik9";
  fails(o, Exit::kBadInput, "did you mean 'enwik8'?");
  o = options({good});
  o.model = write("fake.model", "not a model");
  fails(o, Exit::kBadInput, "fake.model: not a SentencePiece model");
  o = options({good});
  o.sha256 = std::string(64, '0');
  fails(o, Exit::kBadInput, "good.txt: SHA-256 is ");
  o = options({"http://127.0.0.1:1/a.txt"});
  fails(o, Exit::kIo, "cannot download http://127.0.0.1:1/a.txt");
  o = options({good});
  o.vocab_size = -1;
  fails(o, Exit::kBadInput, "--vocab-size -1");
  o = options({good});
  o.model = good;
  o.tokenizer = "word";
  fails(o, Exit::kBadInput, "--model is for sentencepiece");
}

TEST_F(Prepare, TheSha256OfTheInputIsCompared) {
  PrepareOptions o = options({write("a.txt", lines())});
  Digest digest(DigestKind::kSha256);
  digest.feed(lines());
  o.sha256 = digest.hex();
  prepare(o);
  EXPECT_TRUE(fs::exists(dir_ / "out" / "train.tok"));
}

TEST_F(Prepare, ExistingFoldersAreReplacedOnlyWhenAskedFor) {
  PrepareOptions o = options({write("a.txt", lines())});
  fs::create_directory(dir_ / "out");  // an empty folder is fine
  prepare(o);
  EXPECT_ERROR(prepare(o), Exit::kBadInput, "exists", "--overwrite replaces it");
  o.overwrite = true;
  o.inputs = {write("b.txt", lines(1000))};
  prepare(o);
  EXPECT_EQ(decoded("train") + decoded("valid") + decoded("test"), lines(1000));
  EXPECT_TRUE(others({"a.txt", "b.txt", "out"}).empty());
  // A failure leaves the old folder as it was.
  o.inputs = {write("c.txt", "short\n")};
  EXPECT_ERROR(prepare(o), Exit::kBadInput, "c.txt");
  EXPECT_EQ(decoded("train") + decoded("valid") + decoded("test"), lines(1000));
  // What is not a data folder is never replaced.
  o.out = dir_ / "home";
  fs::create_directory(o.out);
  write("home/precious.txt", "x");
  EXPECT_ERROR(prepare(o), Exit::kBadInput, "exists", "not a data folder");
  o.out = dir_ / "a.txt";
  EXPECT_ERROR(prepare(o), Exit::kBadInput, "a.txt exists");
}

TEST_F(Prepare, AFullDiskIsAnIoErrorThatLeavesNothing) {
  PrepareOptions o = options({write("a.txt", lines())});
  rlimit old{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &old), 0);
  const auto old_handler = signal(SIGXFSZ, SIG_IGN);
  const rlimit small{4096, old.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  EXPECT_ERROR(prepare(o), Exit::kIo, "cannot write", "train.tok");
  setrlimit(RLIMIT_FSIZE, &old);
  signal(SIGXFSZ, old_handler);
  EXPECT_TRUE(others({"a.txt"}).empty());
}

TEST_F(Prepare, ASignalEndsItWithoutLeavingAnything) {
  // Large enough to be at work when the signal comes.
  PrepareOptions o = options({write("a.txt", lines(600'000))});
  o.tokenizer = "word";
  o.out = dir_ / "deep" / "er" / "out";
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    signal(SIGTERM, SIG_DFL);
    try {
      prepare(o);
    } catch (...) {
    }
    _exit(0);
  }
  while (!fs::exists(dir_ / "deep" / "er") || fs::is_empty(dir_ / "deep" / "er")) usleep(1000);
  usleep(100'000);
  kill(child, SIGTERM);
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFSIGNALED(status)) << "it was done before the signal";
  EXPECT_EQ(WTERMSIG(status), SIGTERM);
  EXPECT_TRUE(others({"a.txt"}).empty());
}

TEST_F(Prepare, PublishedTextsMustBeTheRealOnes) {
  PrepareOptions o = options({write("enwik8", lines())});
  o.preset = "enwik8";
  EXPECT_ERROR(prepare(o), Exit::kBadInput, "enwik8 has ", "bytes, expected 100000000");
  write_zip(dir_ / "w.zip", {{"wikitext-103/wiki.train.tokens", " a \n"},
                             {"wikitext-103/wiki.valid.tokens", " a \n"},
                             {"wikitext-103/wiki.test.tokens", " a \n"}});
  o = options({(dir_ / "w.zip").string()});
  o.preset = "wikitext-103";
  EXPECT_ERROR(prepare(o), Exit::kBadInput, "w.zip: wiki.train.tokens has SHA-1");
  o.valid = "0.1";
  o.inputs = {(dir_ / "w.zip").string(), "another"};
  EXPECT_ERROR(prepare(o), Exit::kBadInput, "2 inputs");
  o = options({write("a.txt", "x")});
  o.preset = "kjv";
  EXPECT_ERROR(prepare(o), Exit::kBadInput, "takes no input");
}

TEST_F(Prepare, TheKingJamesTextComesFromItsPackage) {
  if (access("/usr/bin/bible", X_OK) != 0) GTEST_SKIP() << "bible-kjv is not installed";
  PrepareOptions o = options({});
  o.preset = "kjv";
  const Json result = prepare(o);
  const std::string text = decoded("train") + decoded("valid") + decoded("test");
  EXPECT_TRUE(text.starts_with("Ge1:1 In the beginning God created the heaven and the earth.\n"));
  EXPECT_TRUE(text.ends_with("Amen.\n"));
  EXPECT_EQ(std::ranges::count(text, '\n'), 31102);
  EXPECT_EQ(result["preset"], "kjv");
  EXPECT_EQ(result["sources"][0]["path"], "bible -f gen1:1-rev22:21");
  EXPECT_TRUE(others({"out"}).empty());
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(dir_ / "out")) names.push_back(entry.path().filename().string());
  std::ranges::sort(names);
  EXPECT_EQ(names, (std::vector<std::string>{"data.json", "test.tok", "tokenizer.json", "train.tok", "valid.tok"}));
}

TEST(Presets, AreKnownByName) {
  EXPECT_STREQ(find_preset("enwik8").name, "enwik8");
  EXPECT_EQ(find_preset("wikitext-103").published.size(), 3u);
  EXPECT_ERROR(find_preset("wikitext103"), Exit::kBadInput, "did you mean 'wikitext-103'?");
}

}  // namespace
}  // namespace rmoe::data
