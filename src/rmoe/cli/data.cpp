// rmoe data: prepare makes token files out of text, info says what is in them.
#include <iostream>
#include <memory>
#include <sstream>

#include <CLI/App.hpp>

#include "rmoe/base/error.h"
#include "rmoe/cli/command.h"
#include "rmoe/data/data_folder.h"
#include "rmoe/data/prepare.h"
#include "rmoe/data/presets.h"

namespace rmoe::cli {
namespace {

void print(const Json& result, const Globals& globals) {
  std::cout << (globals.json ? json_text(result, 2) + "\n" : data::info_text(result));
}

// The command as one could type it again, for data.json.
std::string command_of(const data::PrepareOptions& o) {
  const data::PrepareOptions defaults;
  std::ostringstream out;
  out << "rmoe data prepare";
  const auto word = [&](const std::string& text) {
    const bool plain = !text.empty() && text.find_first_of(" \t\n'\"\\$&;|<>*?()`#") == text.npos;
    std::string quoted = text;
    for (size_t at = 0; (at = quoted.find('\'', at)) != quoted.npos; at += 4) quoted.replace(at, 1, "'\\''");
    out << ' ' << (plain ? text : "'" + quoted + "'");
  };
  const auto option = [&](const char* name, const auto& value, const auto& usual) {
    if (value == usual) return;
    out << ' ' << name;
    word(str(value));
  };
  for (const std::string& input : o.inputs) word(input);
  option("--preset", o.preset, defaults.preset);
  option("--tokenizer", o.tokenizer, defaults.tokenizer);
  option("--unit", o.unit, defaults.unit);
  option("--algorithm", o.algorithm, defaults.algorithm);
  option("--model", o.model, defaults.model);
  option("--vocab-size", o.vocab_size, defaults.vocab_size);
  option("--min-count", o.min_count, defaults.min_count);
  option("--sample-bytes", o.sample_bytes, defaults.sample_bytes);
  option("--text-key", o.text_key, defaults.text_key);
  for (const std::string& extension : o.extensions) option("--extension", extension, std::string());
  option("--document-end", o.document_end, defaults.document_end);
  option("--valid", o.valid, defaults.valid);
  option("--test", o.test, defaults.test);
  option("--split", o.split, defaults.split);
  option("--seed", o.seed, defaults.seed);
  option("--invalid-utf8", o.invalid_utf8, defaults.invalid_utf8);
  option("--sha256", o.sha256, defaults.sha256);
  out << " --out";
  word(o.out.string());
  return out.str();
}

void setup_prepare(CLI::App& app, Globals& globals) {
  auto o = std::make_shared<data::PrepareOptions>();
  auto out = std::make_shared<std::string>();
  std::string names;
  for (const data::Preset& preset : data::presets()) names += str("\n  ", preset.name, ": ", preset.summary);
  app.add_option("INPUT", o->inputs, "files, folders or addresses: text or .jsonl, also .gz .zst .xz .bz2 .zip .tar");
  app.add_option("--out", *out, "the folder to make")->required();
  app.add_option("--preset", o->preset, "a text by its name:" + names);
  app.add_option("--tokenizer", o->tokenizer, "byte (default), char, word or sentencepiece");
  app.add_option("--unit", o->unit, "of the char tokenizer: character (default) or byte");
  app.add_option("--algorithm", o->algorithm, "of a SentencePiece model: unigram or bpe")->capture_default_str();
  app.add_option("--vocab-size", o->vocab_size, "ids at most (char, word), pieces (sentencepiece: 8000)")
      ->check(integer(0));
  app.add_option("--min-count", o->min_count, "rarer symbols become <unk> (char, word)")->check(integer(1));
  app.add_option("--model", o->model,
                 "a SentencePiece model, or a tokenizer.json or the data, run or Hugging Face folder that has one");
  app.add_option("--sample-bytes", o->sample_bytes, "text that a SentencePiece model is made from")
      ->check(integer(1))
      ->capture_default_str();
  app.add_option("--text-key", o->text_key, "key of the text in JSON lines")->capture_default_str();
  app.add_option("--extension", o->extensions, "file ending that counts as text in folders and archives, e.g. html")
      ->allow_extra_args(false);
  app.add_option("--document-end", o->document_end, "a text line that ends a document, e.g. '<|endoftext|>'");
  app.add_option("--valid", o->valid, "share of the text for validation, or a file")->capture_default_str();
  app.add_option("--test", o->test, "share of the text for the test, or a file")->capture_default_str();
  app.add_option(
         "--split", o->split,
         str("ranges of the text, documents by their hash, or auto: documents from ", data::kManyDocuments, " on"))
      ->capture_default_str();
  app.add_option("--seed", o->seed, "of the choice of documents")->check(integer(0))->capture_default_str();
  app.add_option("--invalid-utf8", o->invalid_utf8,
                 "refuse (default) or replace by U+FFFD; byte symbols take any bytes");
  app.add_option("--sha256", o->sha256, "what the input's SHA-256 must be");
  app.add_flag("--overwrite", o->overwrite, "replace a data folder that is there");
  app.footer(
      "Example:\n  rmoe data prepare --preset kjv --out data/kjv\n"
      "  rmoe data prepare texts/ more.jsonl.zst --tokenizer sentencepiece --vocab-size 8000 --out data/mine");
  app.callback([o, out, &globals] {
    o->out = *out;
    o->command = command_of(*o);
    print(data::prepare(*o), globals);
  });
}

void setup_info(CLI::App& app, Globals& globals) {
  struct Options {
    std::string path;
    bool verify = false;
  };
  auto options = std::make_shared<Options>();
  app.add_option("PATH", options->path, "a data folder or a .tok file")->required();
  app.add_flag("--verify", options->verify, "read every token and compare the check sums");
  app.footer("Example:\n  rmoe data info data/kjv");
  app.callback([options, &globals] { print(data::info(options->path, options->verify), globals); });
}

void setup(CLI::App& app, Globals& globals) {
  app.require_subcommand(1);
  setup_prepare(*app.add_subcommand("prepare", "text to token files"), globals);
  setup_info(*app.add_subcommand("info", "what a data folder or token file holds"), globals);
}

RMOE_REGISTER_COMMAND("data", "prepare text for training, and look at what was prepared",
                      "rmoe data prepare --preset kjv --out data/kjv", setup);

}  // namespace
}  // namespace rmoe::cli
