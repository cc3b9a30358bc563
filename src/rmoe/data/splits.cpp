// Dividing a corpus: see splits.h.
#include "rmoe/data/splits.h"

#include <algorithm>
#include <memory>

#include "rmoe/base/error.h"
#include "rmoe/base/rng.h"
#include "rmoe/data/hash.h"

namespace rmoe::data {
namespace {

class WholeRouter : public DocumentSink {
 public:
  WholeRouter(const SplitRule& rule, SplitSink& sink) : split_(rule.whole), sink_(sink) {}
  void text(std::string_view piece) override { sink_.text(split_, piece); }
  void end_document() override { sink_.end_document(split_); }

 private:
  Split split_;
  SplitSink& sink_;
};

class RangeRouter : public DocumentSink {
 public:
  RangeRouter(const SplitRule& rule, SplitSink& sink)
      : cuts_{rule.valid_at, rule.test_at}, cut_(rule.cut), sink_(sink) {
    RMOE_ASSERT(rule.valid_at >= 0 && rule.valid_at <= rule.test_at, "splits: cuts at ", rule.valid_at, " and ",
                rule.test_at);
  }

  void text(std::string_view piece) override {
    while (!piece.empty()) {
      const int64_t before_cut = split_ == kTest ? INT64_MAX : cuts_[split_] - position_;
      if (before_cut > 0) {
        pass(piece, std::min<int64_t>(before_cut, static_cast<int64_t>(piece.size())));
        continue;
      }
      if (cut_ == SplitRule::Cut::kByte) {
        advance();
        continue;
      }
      // How much of the piece still belongs to this side: up to a line feed, or a character that may begin the next.
      const int64_t longest = cut_ == SplitRule::Cut::kLine ? kLongestLine : 0;
      const size_t line_feed = piece.find('\n');
      const auto to_line = static_cast<int64_t>(line_feed == piece.npos ? piece.size() : line_feed + 1);
      int64_t to_limit = std::max<int64_t>(0, longest + before_cut);
      while (to_limit < to_line && is_inside(piece[static_cast<size_t>(to_limit)])) ++to_limit;
      const bool found = to_limit < to_line || line_feed != piece.npos;
      pass(piece, std::min(to_limit, to_line));
      if (found) advance();
    }
  }

  void end_document() override {
    if (in_document_) sink_.end_document(split_);
    in_document_ = false;
    while (split_ != kTest && position_ >= cuts_[split_]) advance();
  }

 private:
  static constexpr int64_t kLongestLine = 65536;

  static bool is_inside(char byte) { return (static_cast<unsigned char>(byte) & 0xC0) == 0x80; }

  void pass(std::string_view& piece, int64_t count) {
    if (count == 0) return;
    sink_.text(split_, piece.substr(0, static_cast<size_t>(count)));
    in_document_ = true;
    position_ += count;
    piece.remove_prefix(static_cast<size_t>(count));
  }

  // The present document goes on in the next split that is wanted, as a document of its own.
  void advance() {
    if (in_document_) sink_.end_document(split_);
    in_document_ = false;
    split_ = split_ == kTrain && cuts_[0] < cuts_[1] ? kValid : kTest;
  }

  std::array<int64_t, 2> cuts_;
  SplitRule::Cut cut_;
  SplitSink& sink_;
  Split split_ = kTrain;
  int64_t position_ = 0;
  bool in_document_ = false;
};

class DocumentRouter : public DocumentSink {
 public:
  DocumentRouter(const SplitRule& rule, SplitSink& sink) : rule_(rule), sink_(sink) {}

  void text(std::string_view piece) override {
    if (decided_) return sink_.text(split_, piece);
    const size_t more = std::min(piece.size(), kBeginning - beginning_.size());
    beginning_.append(piece.substr(0, more));
    if (beginning_.size() < kBeginning) return;
    decide();
    if (more < piece.size()) sink_.text(split_, piece.substr(more));
  }

  void end_document() override {
    if (!decided_) decide();
    sink_.end_document(split_);
    decided_ = false;
  }

 private:
  static constexpr size_t kBeginning = 65536;

  void decide() {
    const double u = uniform(mix(rule_.seed, kSplitStream, xxh3(beginning_)));
    split_ = u < rule_.test ? kTest : u < rule_.test + rule_.valid ? kValid : kTrain;
    decided_ = true;
    sink_.text(split_, beginning_);
    beginning_.clear();
  }

  const SplitRule& rule_;
  SplitSink& sink_;
  std::string beginning_;
  bool decided_ = false;
  Split split_ = kTrain;
};

}  // namespace

void read_split(const Corpus& corpus, const SplitRule& rule, SplitSink& sink, const ReadProgress& progress) {
  std::unique_ptr<DocumentSink> router;
  switch (rule.by) {
    case SplitRule::By::kWhole:
      router = std::make_unique<WholeRouter>(rule, sink);
      break;
    case SplitRule::By::kRanges:
      router = std::make_unique<RangeRouter>(rule, sink);
      break;
    case SplitRule::By::kDocuments:
      router = std::make_unique<DocumentRouter>(rule, sink);
      break;
  }
  corpus.read(*router, progress);
}

}  // namespace rmoe::data
