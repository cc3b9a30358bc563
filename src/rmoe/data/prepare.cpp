// rmoe data prepare: see prepare.h.
#include "rmoe/data/prepare.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <chrono>
#include <cmath>
#include <fstream>
#include <iomanip>
#include <memory>
#include <optional>
#include <system_error>

#include "rmoe/base/error.h"
#include "rmoe/base/files.h"
#include "rmoe/base/log.h"
#include "rmoe/base/nearest.h"
#include "rmoe/data/corpus.h"
#include "rmoe/data/digest.h"
#include "rmoe/data/download.h"
#include "rmoe/data/hash.h"
#include "rmoe/data/presets.h"
#include "rmoe/data/splits.h"
#include "rmoe/data/temp_folder.h"
#include "rmoe/data/token_file.h"
#include "rmoe/data/tokenizer.h"
#include "rmoe/data/vocabulary.h"
#include "rmoe/data/words.h"

namespace rmoe::data {
namespace {

namespace fs = std::filesystem;

// A text and where it goes.
struct Part {
  Corpus corpus;
  SplitRule rule;
  const Published* published = nullptr;
  // Found by the scan.
  int64_t text_bytes = 0, documents = 0;
};

// One pass over the text as a line: share done, speed, time left.
class Pass {
 public:
  Pass(const char* what, int64_t stored_bytes) : what_(what), all_(std::max<int64_t>(stored_bytes, 1)) {}

  // Progress of a corpus that comes after `before` stored bytes of others.
  ReadProgress after(int64_t before) {
    text_before_ = text_;
    return [this, before](int64_t stored, int64_t text) {
      text_ = text_before_ + text;
      update(before + stored);
    };
  }
  void show(int64_t done) {
    text_ = done;
    update(done);
  }
  void finish() {
    progress_.finish(str(what_, ": ", number(static_cast<double>(text_) / 1e6), " MB in ", number(seconds()), " s, ",
                         number(speed()), " MB/s"));
  }

 private:
  using Clock = std::chrono::steady_clock;

  double seconds() const { return std::chrono::duration<double>(Clock::now() - start_).count(); }
  double speed() const { return static_cast<double>(text_) / 1e6 / std::max(seconds(), 1e-3); }
  static std::string number(double value) {
    std::ostringstream out;
    out << std::fixed << std::setprecision(1) << value;
    return out.str();
  }

  // What is done at once needs no progress.
  void update(int64_t stored) {
    if (seconds() > 0.5 && progress_.due()) progress_.update(line(stored));
  }

  std::string line(int64_t stored) const {
    const double share = std::min(1.0, static_cast<double>(stored) / static_cast<double>(all_));
    const auto bar = static_cast<size_t>(share * 20);
    std::string text =
        str(what_, " [", std::string(bar, '#'), std::string(20 - bar, '-'), "] ", static_cast<int>(share * 100), " %  ",
            number(static_cast<double>(text_) / 1e6), " MB  ", number(speed()), " MB/s");
    if (share > 0) text += str("  ", std::llround(seconds() * (1 - share) / share), " s left");
    return text;
  }

  const char* what_;
  int64_t all_;
  Clock::time_point start_ = Clock::now();
  int64_t text_ = 0, text_before_ = 0;
  Progress progress_;
};

int64_t stored_bytes(const std::vector<Part>& parts) {
  int64_t sum = 0;
  for (const Part& part : parts) sum += part.corpus.stored_bytes();
  return sum;
}

// Reads all parts into a sink.
void read_all(const char* what, const std::vector<Part>& parts, SplitSink& sink) {
  Pass pass(what, stored_bytes(parts));
  int64_t before = 0;
  for (const Part& part : parts) {
    read_split(part.corpus, part.rule, sink, pass.after(before));
    before += part.corpus.stored_bytes();
  }
  pass.finish();
}

std::string sha256_of(const fs::path& path) {
  Digest digest(DigestKind::kSha256);
  std::ifstream file(path, std::ios::binary);
  std::vector<char> buffer(size_t{1} << 20);
  while (file) {
    file.read(buffer.data(), static_cast<std::streamsize>(buffer.size()));
    digest.feed({buffer.data(), static_cast<size_t>(file.gcount())});
  }
  if (!file.eof()) io_error("cannot read ", path.string(), ": ", errno_text(errno));
  return digest.hex();
}

// Counts documents and text, and compares with what was published.
class Scan : public DocumentSink {
 public:
  explicit Scan(bool digested) {
    if (digested) digest_.emplace(DigestKind::kSha1);
  }
  void text(std::string_view piece) override {
    bytes += static_cast<int64_t>(piece.size());
    if (digest_) digest_->feed(piece);
  }
  void end_document() override { ++documents; }
  void check(const Published& expected, const std::string& name) {
    RMOE_CHECK(expected.bytes == 0 || bytes == expected.bytes, name, ": ", expected.member, " has ", bytes,
               " bytes, expected ", expected.bytes);
    const std::string found = digest_->hex();
    RMOE_CHECK(found == expected.sha1, name, ": ", expected.member, " has SHA-1 ", found, ", expected ", expected.sha1);
  }

  int64_t bytes = 0, documents = 0;

 private:
  std::optional<Digest> digest_;
};

// Writes the token files.
class EncodeSink : public SplitSink {
 public:
  EncodeSink(const Tokenizer& tokenizer, const fs::path& folder, std::array<bool, kSplits> wanted, bool separated)
      : tokenizer_(tokenizer), separated_(separated) {
    for (size_t s = 0; s < kSplits; ++s) {
      if (!wanted[s]) continue;
      Lane& lane = lanes_[s];
      lane.writer =
          std::make_unique<TokenWriter>(folder / str(kSplitNames[s], ".tok"), tokenizer.vocab_size(), tokenizer.hash());
      lane.encoder = tokenizer.encoder();
    }
  }

  void text(Split split, std::string_view piece) override {
    Lane& lane = lane_of(split);
    lane.counter.feed(piece);
    lane.encoder->feed(piece, ids_);
    write(lane);
  }

  void end_document(Split split) override {
    Lane& lane = lane_of(split);
    lane.counter.end_document();
    lane.encoder->finish(ids_);
    if (separated_) ids_.push_back(*tokenizer_.separator());
    ++lane.documents;
    write(lane);
  }

  // Commits the files and gives their headers.
  std::array<std::optional<TokenHeader>, kSplits> finish(bool bytes_as_characters) {
    std::array<std::optional<TokenHeader>, kSplits> headers;
    for (size_t s = 0; s < kSplits; ++s) {
      Lane& lane = lanes_[s];
      if (!lane.writer) continue;
      const TextCounter& c = lane.counter;
      lane.writer->set_counts(lane.documents, c.bytes(), bytes_as_characters ? c.bytes() : c.characters(), c.words());
      headers[s] = lane.writer->commit();
    }
    return headers;
  }

 private:
  struct Lane {
    std::unique_ptr<TokenWriter> writer;
    std::unique_ptr<Encoder> encoder;
    TextCounter counter;
    int64_t documents = 0;
  };

  Lane& lane_of(Split split) {
    RMOE_ASSERT(lanes_[split].writer, "text for the ", kSplitNames[split], " split, which is not wanted");
    return lanes_[split];
  }

  void write(Lane& lane) {
    lane.writer->append(ids_);
    ids_.clear();
  }

  const Tokenizer& tokenizer_;
  bool separated_;
  std::array<Lane, kSplits> lanes_;
  std::vector<int64_t> ids_;
};

void check_word(const char* option, const std::string& value, const std::vector<std::string>& known) {
  if (std::ranges::find(known, value) != known.end()) return;
  throw Error(Exit::kBadInput, str(option, " is '", value, "'"), help_for_unknown(value, known));
}

// "0.05" as a share of the text; none for a file's name.
std::optional<double> parse_share(const char* option, const std::string& text) {
  double share = 0;
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, share);
  if (error != std::errc() || stop != end) return std::nullopt;
  RMOE_CHECK(share >= 0 && share < 1, option, " is ", text, ", expected a share from 0 to below 1, or a file");
  return share;
}

class Preparation {
 public:
  explicit Preparation(PrepareOptions options)
      : options_(std::move(options)), preset_(options_.preset.empty() ? nullptr : &find_preset(options_.preset)) {
    settle();
  }

  Json run() {
    temp_.emplace(options_.out, options_.overwrite);
    gather();
    scan();
    divide();
    std::unique_ptr<Tokenizer> tokenizer = make_tokenizer();
    check_fit(*tokenizer);
    tokenizer->save(temp_->path());
    const bool separated = separated_ && tokenizer->separator();
    if (separated_ && !separated)
      log_warn("the tokenizer has no separator: documents follow each other without a mark");
    EncodeSink sink(*tokenizer, temp_->path(), wanted_, separated);
    read_all("encode", parts_, sink);
    const auto headers = sink.finish(tokenizer->characters_are_bytes() || (preset_ && preset_->bytes_as_characters));
    check_result(*tokenizer, headers);
    Json result = describe(*tokenizer, headers);
    write_file_atomic(temp_->path() / "data.json", json_text(result, 2) + "\n");
    std::error_code ignored;
    for (const fs::path& file : fetched_) fs::remove(file, ignored);
    temp_->commit();
    return result;
  }

 private:
  // Fills in what was left open, and refuses what does not go together.
  void settle() {
    PrepareOptions& o = options_;
    RMOE_CHECK(!o.out.empty(), "data prepare: no output folder (--out DIR)");
    if (o.tokenizer.empty()) o.tokenizer = !o.model.empty() ? "" : preset_ ? preset_->tokenizer : "byte";
    if (!o.tokenizer.empty()) check_word("--tokenizer", o.tokenizer, {"byte", "char", "word", "sentencepiece"});
    RMOE_CHECK(o.model.empty() || o.tokenizer.empty() || o.tokenizer == "sentencepiece",
               "--model is for sentencepiece, but --tokenizer is ", o.tokenizer);
    if (o.unit.empty()) o.unit = preset_ && preset_->bytes_as_characters ? "byte" : "character";
    check_word("--unit", o.unit, {"character", "byte"});
    check_word("--algorithm", o.algorithm, {"unigram", "bpe"});
    check_word("--split", o.split, {"auto", "ranges", "documents"});
    if (o.invalid_utf8.empty()) o.invalid_utf8 = preset_ && preset_->replace_invalid ? "replace" : "refuse";
    check_word("--invalid-utf8", o.invalid_utf8, {"refuse", "replace"});
    RMOE_CHECK(o.vocab_size >= 0 && o.min_count >= 1 && o.sample_bytes >= 1, "data prepare: --vocab-size ",
               o.vocab_size, ", --min-count ", o.min_count, ", --sample-bytes ", o.sample_bytes,
               ": expected positive numbers");
    if (preset_ && !preset_->published.empty()) {
      RMOE_CHECK(o.inputs.size() <= 1, "preset ", preset_->name, ": ", o.inputs.size(),
                 " inputs, expected one file, folder or address");
      if (o.inputs.empty()) o.inputs = {preset_->url};
    } else if (preset_) {
      RMOE_CHECK(o.inputs.empty(), "preset ", preset_->name, " takes no input, but there is ", o.inputs.front());
    } else {
      RMOE_CHECK(!o.inputs.empty(), "data prepare: no input: name files or folders, or a --preset");
    }
    RMOE_CHECK(o.sha256.empty() || o.inputs.size() == 1, "--sha256 is for one input, but there are ", o.inputs.size());
    std::ranges::transform(o.sha256, o.sha256.begin(), [](char c) { return c >= 'A' && c <= 'F' ? char(c + 32) : c; });
    valid_ = parse_share("--valid", o.valid);
    test_ = parse_share("--test", o.test);
    RMOE_CHECK(valid_.value_or(0) + test_.value_or(0) < 1, "--valid ", o.valid, " and --test ", o.test,
               " leave nothing for training");
    bytes_kept_ = o.tokenizer == "byte" || (o.tokenizer == "char" && o.unit == "byte");
    if (!o.model.empty()) load_model();
  }

  void load_model() {
    const fs::path path = options_.model;
    std::error_code error;
    if (fs::is_directory(path, error) || path.extension() == ".json") {
      given_ = load_foreign_tokenizer(path);
      RMOE_CHECK(given_, path.string(), ": has no tokenizer: neither tokenizer.json nor tokenizer.model is there");
      bytes_kept_ = !given_->needs_utf8();
    } else if (!fs::exists(path, error)) {  // it is read last
      io_error("cannot read ", path.string(), ": ", errno_text(ENOENT));
    }
  }

  // The files of one input; fetched first when it is an address.
  fs::path local(const std::string& input) {
    fs::path path = input;
    if (is_url(input)) {
      std::string name = input.substr(0, input.find_first_of("?#"));
      name = name.substr(name.find_last_of('/') + 1);
      path = temp_->path() / ("source-" + std::to_string(fetched_.size()) + "-" + (name.empty() ? "text" : name));
      fetched_.push_back(path);
      std::optional<Pass> pass;
      download(input, path, [&](int64_t done, int64_t all) {
        if (!pass && all > 0) pass.emplace("download", all);
        if (pass) pass->show(done);
      });
      if (pass) pass->finish();
      origins_.emplace_back(path, input);
    }
    if (!options_.sha256.empty()) {
      RMOE_CHECK(!fs::exists(path) || fs::is_regular_file(path), input, ": --sha256 is for a file");
      const std::string found = sha256_of(path);
      RMOE_CHECK(found == options_.sha256, input, ": SHA-256 is ", found, ", expected ", options_.sha256);
    }
    return path;
  }

  CorpusOptions corpus_options() const {
    return {.text_key = options_.text_key,
            .extensions = options_.extensions,
            .member = "",
            .document_end = options_.document_end,
            .invalid = bytes_kept_                          ? InvalidUtf8::kKeep
                       : options_.invalid_utf8 == "replace" ? InvalidUtf8::kReplace
                                                            : InvalidUtf8::kRefuse};
  }

  void gather() {
    if (preset_ && !preset_->published.empty()) return gather_published();
    std::vector<fs::path> paths;
    if (options_.preset == "kjv") {
      fetched_.push_back(temp_->path() / "kjv.txt");
      write_kjv(fetched_.back());
      origins_.emplace_back(fetched_.back(), "bible -f gen1:1-rev22:21");
      paths = fetched_;
    } else if (options_.preset == "gcide") {
      paths = {gcide_path()};
    } else {
      for (const std::string& input : options_.inputs) paths.push_back(local(input));
    }
    parts_.push_back({Corpus(paths, corpus_options()), {}});
    for (const auto& [split, text] : {std::pair{kValid, &options_.valid}, {kTest, &options_.test}}) {
      if (split == kValid ? valid_ : test_) continue;
      parts_.push_back({Corpus({local(*text)}, corpus_options()), {.by = SplitRule::By::kWhole, .whole = split}});
    }
  }

  void gather_published() {
    RMOE_CHECK(valid_ && test_, "preset ", preset_->name, " has its own splits; --valid and --test are not for it");
    const fs::path path = local(options_.inputs.front());
    std::error_code error;
    for (const Published& file : preset_->published) {
      CorpusOptions options = corpus_options();
      options.member = file.member;
      const fs::path source = fs::is_directory(path, error) ? path / file.member : path;
      parts_.push_back({Corpus({source}, options), {.by = SplitRule::By::kWhole, .whole = file.split}, &file});
    }
  }

  void scan() {
    Pass pass("read", stored_bytes(parts_));
    int64_t before = 0;
    for (Part& part : parts_) {
      Scan sink(part.published != nullptr);
      // What was published is compared before anything in it is replaced.
      (part.published ? part.corpus.as_stored() : part.corpus).read(sink, pass.after(before));
      before += part.corpus.stored_bytes();
      const std::string first = name_of(part.corpus.sources().front().path);
      const size_t files = part.corpus.sources().size();
      RMOE_CHECK(sink.bytes > 0, first, files > 1 ? str(" and ", files - 1, " more files") : "", ": no text");
      if (part.published) sink.check(*part.published, first);
      part.text_bytes = sink.bytes;
      part.documents = sink.documents;
      separated_ |= sink.documents > 1;
    }
    pass.finish();
  }

  // Settles which text is for what.
  void divide() {
    Part& main = parts_.front();
    const bool one_published = preset_ && preset_->published.size() == 1;
    if (one_published) {
      main.rule = {.by = SplitRule::By::kRanges,
                   .valid_at = preset_->valid_at,
                   .test_at = preset_->test_at,
                   .cut = bytes_kept_ ? SplitRule::Cut::kByte : SplitRule::Cut::kCharacter};
      wanted_ = {true, true, true};
      by_ = "ranges";
      return;
    }
    if (main.published) {
      wanted_ = {true, true, true};
      by_ = "files";
      return;
    }
    const double valid = valid_.value_or(0), test = test_.value_or(0);
    wanted_ = {true, !valid_ || valid > 0, !test_ || test > 0};
    const bool by_documents =
        options_.split == "documents" || (options_.split == "auto" && main.documents >= kManyDocuments);
    by_ = valid == 0 && test == 0 ? (valid_ && test_ ? "none" : "files") : by_documents ? "documents" : "ranges";
    const auto bytes = static_cast<double>(main.text_bytes);
    main.rule = {.by = by_documents ? SplitRule::By::kDocuments : SplitRule::By::kRanges,
                 .valid_at = std::llround(bytes * (1 - valid - test)),
                 .test_at = test == 0 ? main.text_bytes : std::llround(bytes * (1 - test)),
                 .valid = valid,
                 .test = test,
                 .seed = options_.seed};
    if (valid == 0) main.rule.valid_at = main.rule.test_at;
  }

  std::unique_ptr<Tokenizer> make_tokenizer() {
    const PrepareOptions& o = options_;
    if (given_) return std::move(given_);
    if (!o.model.empty()) return make_sentencepiece_tokenizer(read_file(o.model), o.model, separated_);
    const VocabularyLimits limits{.vocab_size = o.vocab_size, .min_count = o.min_count};
    if (o.tokenizer == "byte") return make_byte_tokenizer(separated_);
    if (o.tokenizer == "char") {
      CharCensus census(o.unit == "byte");
      read_all("count characters", parts_, census);
      return census.make(limits, separated_);
    }
    if (o.tokenizer == "word") {
      WordCensus census;
      read_all("count words", parts_, census);
      return census.make(limits, separated_);
    }
    const Part& main = parts_.front();
    const double share = main.published ? 1 : 1 - valid_.value_or(0) - test_.value_or(0);
    LineSample sample(std::llround(static_cast<double>(main.text_bytes) * share), o.sample_bytes, o.seed);
    read_all("sample lines", parts_, sample);
    const SentencePieceOptions training{.bpe = o.algorithm == "bpe", .vocab_size = o.vocab_size ? o.vocab_size : 8000};
    log_info("training a SentencePiece model (", o.algorithm, ", ", training.vocab_size, " pieces) on ",
             human_bytes(sample.bytes()), " of text");
    return sample.make(training, separated_);
  }

  // The text was scanned with the tokenizer's needs in mind.
  void check_fit(const Tokenizer& tokenizer) const {
    RMOE_ASSERT(!tokenizer.needs_utf8() || !bytes_kept_, "data prepare: a ", tokenizer.kind(),
                " tokenizer for text that was not checked");
  }

  void check_result(const Tokenizer& tokenizer, const std::array<std::optional<TokenHeader>, kSplits>& headers) const {
    for (size_t s = 0; s < kSplits; ++s) {
      if (!headers[s] || headers[s]->count > 0) continue;
      throw Error(Exit::kBadInput,
                  str(name_of(parts_.front().corpus.sources().front().path), ": too little text: the ", kSplitNames[s],
                      " split by ", by_, " is empty, with --valid ", options_.valid, " --test ", options_.test, " of ",
                      parts_.front().documents, " documents with ", human_bytes(parts_.front().text_bytes)),
                  "give larger shares, another --split, or a file for each split");
    }
    const bool by_protocol = preset_ && preset_->word_vocabulary && tokenizer.kind() == "word" &&
                             options_.model.empty() && options_.vocab_size == 0 && options_.min_count == 1;
    if (!by_protocol) return;
    for (const Published& file : preset_->published) {
      RMOE_ASSERT(headers[file.split]->count == file.tokens, preset_->name, ": ", headers[file.split]->count,
                  " tokens in ", file.member, ", published ", file.tokens);
    }
    RMOE_ASSERT(tokenizer.vocab_size() == preset_->word_vocabulary, preset_->name, ": a vocabulary of ",
                tokenizer.vocab_size(), ", published ", preset_->word_vocabulary);
  }

  // What a file was before it was fetched.
  std::string name_of(const fs::path& path) const {
    for (const auto& [file, origin] : origins_) {
      if (file == path) return origin;
    }
    return path.string();
  }

  Json describe(const Tokenizer& tokenizer, const std::array<std::optional<TokenHeader>, kSplits>& headers) const {
    Json result;
    result["format"] = "rmoe-data";
    result["version"] = 1;
    result["command"] = options_.command;
    result["preset"] = preset_ ? Json(preset_->name) : Json();
    result["sources"] = Json::array();
    std::vector<fs::path> listed;
    for (const Part& part : parts_) {
      for (const Corpus::Source& source : part.corpus.sources()) {
        if (std::ranges::find(listed, source.path) != listed.end()) continue;
        listed.push_back(source.path);
        result["sources"].push_back({{"path", name_of(source.path)}, {"stored_bytes", source.stored_bytes}});
      }
    }
    result["tokenizer"] = {{"kind", tokenizer.kind()},
                           {"vocab_size", tokenizer.vocab_size()},
                           {"hash", hex16(tokenizer.hash())},
                           {"description", tokenizer.describe()}};
    result["split"] = {{"by", by_}, {"valid", options_.valid}, {"test", options_.test}, {"seed", options_.seed}};
    Json& splits = result["splits"];
    for (size_t s = 0; s < kSplits; ++s) {
      if (!headers[s]) continue;
      const TokenHeader& h = *headers[s];
      splits[kSplitNames[s]] = {
          {"file", str(kSplitNames[s], ".tok")}, {"tokens", h.count}, {"documents", h.documents}, {"bytes", h.bytes},
          {"characters", h.characters},          {"words", h.words}};
    }
    return result;
  }

  PrepareOptions options_;
  const Preset* preset_;
  std::optional<double> valid_, test_;  // shares; none: a file
  bool bytes_kept_ = false;             // the tokenizer takes any bytes, so the text is left as it is
  std::unique_ptr<Tokenizer> given_;
  std::optional<TempFolder> temp_;
  std::vector<fs::path> fetched_;                          // files of ours, not of the result
  std::vector<std::pair<fs::path, std::string>> origins_;  // and where they came from
  std::vector<Part> parts_;                                // the first holds the training text
  bool separated_ = false;
  std::array<bool, kSplits> wanted_{};
  std::string by_;
};

}  // namespace

Json prepare(const PrepareOptions& options) { return Preparation(options).run(); }

}  // namespace rmoe::data
