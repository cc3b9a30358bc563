// The byte tokenizer: the id is the byte. Takes any input.
#include "rmoe/base/error.h"
#include "rmoe/base/json.h"
#include "rmoe/data/huggingface_form.h"
#include "rmoe/data/tokenizer.h"

namespace rmoe::data {
namespace {

class ByteEncoder : public Encoder {
 public:
  void feed(std::string_view text, std::vector<int64_t>& out) override {
    const size_t at = out.size();
    out.resize(at + text.size());
    for (size_t i = 0; i < text.size(); ++i) out[at + i] = static_cast<unsigned char>(text[i]);
  }
  void finish(std::vector<int64_t>&, bool) override {}
};

class ByteDecoder : public Decoder {
 public:
  explicit ByteDecoder(int64_t vocab_size) : vocab_size_(vocab_size) {}

 private:
  void bytes_of(int64_t id, std::string& out) override {
    RMOE_CHECK(id >= 0 && id < vocab_size_, "byte tokenizer: id ", id, ", expected 0 to ", vocab_size_ - 1);
    if (id < 256) out.push_back(static_cast<char>(id));
  }

  int64_t vocab_size_;
};

class ByteTokenizer : public Tokenizer {
 public:
  explicit ByteTokenizer(bool separated) {
    vocab_size_ = separated ? 257 : 256;
    if (separated) separator_ = 256;
    seal();
  }
  std::unique_ptr<Encoder> encoder() const override { return std::make_unique<ByteEncoder>(); }
  std::unique_ptr<Decoder> decoder() const override { return std::make_unique<ByteDecoder>(vocab_size_); }
  std::string kind() const override { return "byte"; }
  Json huggingface_form() const override { return huggingface_bytes(separator_); }
  std::string describe() const override { return separator_ ? "byte: 256 bytes and a separator" : "byte: 256 bytes"; }

 private:
  Json contents() const override { return common_contents(); }
};

}  // namespace

std::unique_ptr<Tokenizer> make_byte_tokenizer(bool separated) { return std::make_unique<ByteTokenizer>(separated); }

}  // namespace rmoe::data
