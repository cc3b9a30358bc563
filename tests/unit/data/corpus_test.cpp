// Documents: what counts as one, in which order they come, and what is refused.
#include "rmoe/data/corpus.h"

#include <sys/stat.h>

#include <gtest/gtest.h>

#include "tests/support/temp_dir.h"
#include "tests/unit/data/expect_error.h"
#include "tests/unit/data/pack.h"

namespace rmoe::data {
namespace {

namespace fs = std::filesystem;

struct Collected : DocumentSink {
  std::vector<std::string> documents;
  std::string open;
  void text(std::string_view piece) override {
    EXPECT_FALSE(piece.empty());
    open.append(piece);
  }
  void end_document() override {
    EXPECT_FALSE(open.empty());
    documents.push_back(std::exchange(open, {}));
  }
};

class CorpusTest : public testing::Test {
 protected:
  fs::path write(const std::string& name, const std::string& text) {
    fs::create_directories((dir_ / name).parent_path());
    write_file_atomic(dir_ / name, text);
    return dir_ / name;
  }
  static std::vector<std::string> read(const std::vector<fs::path>& inputs, const CorpusOptions& options = {}) {
    Collected collected;
    Corpus(inputs, options).read(collected);
    EXPECT_TRUE(collected.open.empty());
    return collected.documents;
  }

  TempDir dir_;
};

using Documents = std::vector<std::string>;

TEST_F(CorpusTest, AFileIsOneDocument) {
  EXPECT_EQ(read({write("b.txt", "b\nb\n"), write("a.unusual", "a")}), (Documents{"b\nb\n", "a"}));
  const std::string large(3'000'001, 'x');
  EXPECT_EQ(read({write("large.txt", large)}), Documents{large});
}

TEST_F(CorpusTest, FoldersAreWalkedInTheOrderOfNames) {
  write("d/z.txt", "z");
  write("d/a/late.md", "late");
  write("d/a/b.jsonl", "{\"text\":\"one\"}\n{\"text\":\"two\"}\n");
  write("d/.hidden.txt", "no");
  write("d/.git/c.txt", "no");
  write("d/skip.html", "<p>");
  write_gz(dir_ / "d/m.text.gz", "packed");
  EXPECT_EQ(read({dir_ / "d"}), (Documents{"one", "two", "late", "packed", "z"}));
  CorpusOptions options;
  options.extensions = {"html"};
  EXPECT_EQ(read({dir_ / "d"}, options), (Documents{"one", "two", "late", "packed", "<p>", "z"}));
}

TEST_F(CorpusTest, ArchivesAreReadLikeFolders) {
  write_zip(dir_ / "a.zip", {{"x/one.txt", "one"},
                             {"__MACOSX/x/one.txt", "no"},
                             {"x/.hidden.txt", "no"},
                             {"x/image.png", "no"},
                             {"x/two.jsonl", "{\"text\":\"two\"}"}});
  EXPECT_EQ(read({dir_ / "a.zip"}), (Documents{"one", "two"}));
  CorpusOptions options;
  options.member = "image.png";
  EXPECT_EQ(read({dir_ / "a.zip"}, options), Documents{"no"});
  options.member = "other";
  EXPECT_ERROR(read({dir_ / "a.zip"}, options), Exit::kBadInput, "a.zip: no other in this archive");
  write_zip(dir_ / "b.zip", {{"image.png", "no"}});
  EXPECT_ERROR(read({dir_ / "b.zip"}), Exit::kBadInput, "b.zip: no usable file in this archive", "--extension");
}

TEST_F(CorpusTest, DocumentsWithoutTextAreLeftOut) {
  EXPECT_EQ(read({write("a.txt", ""), write("b.jsonl", "{\"text\":\"\"}\n\n   \n{\"text\":\"x\"}")}), Documents{"x"});
}

TEST_F(CorpusTest, JsonLinesGiveTheStringUnderTheKey) {
  const auto path =
      write("a.jsonl",
            "{\"id\": 1, \"text\": \"caf\\u00e9\\n\\ud83d\\ude00\", \"meta\": {\"text\": \"no\", \"l\": [1, {}]}}\r\n"
            "{\"text\":\"\\\"q\\\"\"}\n");
  EXPECT_EQ(read({path}), (Documents{"caf\xC3\xA9\n\xF0\x9F\x98\x80", "\"q\""}));
  CorpusOptions options;
  options.text_key = "body";
  EXPECT_EQ(read({write("b.ndjson", "{\"text\": 5, \"body\": \"x\"}")}, options), Documents{"x"});
}

TEST_F(CorpusTest, JsonLinesAcrossChunksAreWhole) {
  std::string lines;
  Documents expected;
  for (int i = 0; i < 40; ++i) {
    expected.push_back(std::string(100'000, static_cast<char>('a' + i % 26)));
    lines += "{\"text\": \"" + expected.back() + "\"}\n";
  }
  EXPECT_EQ(read({write("a.jsonl", lines)}), expected);
}

TEST_F(CorpusTest, BadJsonLinesAreNamedByFileAndLine) {
  const auto refused = [&](const std::string& line, const char* message) {
    const auto path = write("a.jsonl", "{\"text\": \"good\"}\n\n" + line + "\n");
    EXPECT_ERROR(read({path}), Exit::kBadInput, "a.jsonl:3: ", message);
  };
  refused("{\"text\": \"x\"", "not valid JSON");
  refused("{\"text\": \"x\"} extra", "not valid JSON");
  refused("{\"text\": \"\xFF\"}", "not valid JSON");
  refused("{\"text\": \"\\ud800\"}", "not valid JSON");
  refused("not json", "not valid JSON");
  refused("{\"body\": \"x\", \"id\": 1}", "the keys are body, id; --text-key");
  refused("{\"text\": null}", "key 'text' holds null, expected a string");
  refused("{\"text\": [\"x\"]}", "holds a list");
  refused("{\"text\": {\"text\": \"x\"}}", "holds an object");
  refused("[\"text\", \"x\"]", "is a list, expected an object");
  refused("\"text\"", "is a string, expected an object");
  refused("{\"text\": \"x\", \"text\": \"y\"}", "stands there twice");
  refused("{\"a\":" + std::string(100, '[') + std::string(100, ']') + ", \"text\": \"x\"}", "nested more than 64");
}

TEST_F(CorpusTest, ALineMayEndADocument) {
  CorpusOptions options;
  options.document_end = "<|end|>";
  EXPECT_EQ(read({write("a.txt", "one\n<|end|>\n<|end|>\ntwo\n x<|end|>\nmore")}, options),
            (Documents{"one\n", "two\n x<|end|>\nmore"}));
  EXPECT_EQ(read({write("a.txt", "one\n<|end|>")}, options), Documents{"one\n"});
}

TEST_F(CorpusTest, InvalidUtf8IsKeptRefusedOrReplaced) {
  const auto path = write("a.txt", "ab\xFFz\xE4\xB8\xAD\xC3");
  EXPECT_EQ(read({path}), Documents{"ab\xFFz\xE4\xB8\xAD\xC3"});
  CorpusOptions options;
  options.invalid = InvalidUtf8::kReplace;
  EXPECT_EQ(read({path}, options), Documents{"ab\xEF\xBF\xBDz\xE4\xB8\xAD\xEF\xBF\xBD"});
  options.invalid = InvalidUtf8::kRefuse;
  EXPECT_ERROR(read({path}, options), Exit::kBadInput, "a.txt: not valid UTF-8: byte 0xff at offset 2",
               "--invalid-utf8");
  EXPECT_ERROR(read({write("b.txt", "tail\xE4\xB8")}, options), Exit::kBadInput, "byte 0xe4 at offset 4");
}

TEST_F(CorpusTest, CharactersAcrossChunksAreWhole) {
  // Two-byte characters at odd offsets: every chunk end of a power of two cuts one.
  std::string text = "x";
  for (int i = 0; i < 1'500'000; ++i) text += "\xC3\xA9";
  CorpusOptions options;
  options.invalid = InvalidUtf8::kRefuse;
  EXPECT_EQ(read({write("a.txt", text)}, options), Documents{text});
  options.invalid = InvalidUtf8::kReplace;
  EXPECT_EQ(read({write("a.txt", text)}, options), Documents{text});
  options.invalid = InvalidUtf8::kRefuse;
  EXPECT_ERROR(read({write("a.txt", text + "\xFF")}, options), Exit::kBadInput, "at offset 3000001");
}

TEST_F(CorpusTest, RefusesInputsThatCannotBeUsed) {
  EXPECT_ERROR(read({dir_ / "none.txt"}), Exit::kIo, "none.txt", "No such file");
  fs::create_directory(dir_ / "empty");
  EXPECT_ERROR(read({dir_ / "empty"}), Exit::kBadInput, "empty: no usable file in this folder", ".jsonl");
  ASSERT_EQ(mkfifo((dir_ / "pipe").c_str(), 0600), 0);
  EXPECT_ERROR(read({dir_ / "pipe"}), Exit::kBadInput, "pipe: is a pipe or device");
}

TEST_F(CorpusTest, ProgressEndsAtTheStoredSize) {
  const Corpus corpus({write("a.txt", std::string(2'500'000, 'a')), write("b.txt", "b")}, {});
  Collected collected;
  int64_t last_stored = -1, last_text = -1;
  corpus.read(collected, [&](int64_t stored, int64_t text) {
    EXPECT_GE(stored, last_stored);
    EXPECT_GT(text, last_text);
    last_stored = stored;
    last_text = text;
  });
  EXPECT_EQ(last_stored, 2'500'001);
  EXPECT_EQ(last_text, 2'500'001);
  EXPECT_EQ(corpus.stored_bytes(), 2'500'001);
}

TEST_F(CorpusTest, WhatTheSinkCannotTakeIsNamed) {
  struct Picky : DocumentSink {
    void text(std::string_view) override { throw Error(Exit::kBadInput, "no such letter", "take another"); }
    void end_document() override {}
  } picky;
  const Corpus corpus({write("a.txt", "x")}, {});
  EXPECT_ERROR(corpus.read(picky), Exit::kBadInput, "a.txt: no such letter", "take another");
}

}  // namespace
}  // namespace rmoe::data
