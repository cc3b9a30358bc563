// A trained run as a class for Python, torch.classes.rmoe.Model: what lm-evaluation-harness and rmoe.Model read.
#include <torch/custom_class.h>

#include "rmoe/base/error.h"
#include "rmoe/eval/generate.h"
#include "rmoe/eval/run.h"
#include "rmoe/ops/torch.h"

namespace rmoe {
namespace {

at::ScalarType dtype_of(const std::string& name) {
  RMOE_CHECK(name == "fp32" || name == "bf16", "Model: dtype is '", name, "', expected fp32 or bf16");
  return name == "fp32" ? at::kFloat : at::kBFloat16;
}

class PythonModel : public torch::CustomClassHolder {
 public:
  // checkpoint: "newest", "best" or a step. dtype, of the hidden states: "fp32" or "bf16".
  PythonModel(const std::string& path, const std::string& checkpoint, const std::string& dtype)
      : dtype_(dtype_of(dtype)), run_(load_run(path, Which::parse(checkpoint))) {}

  int64_t vocab_size() const { return run_.config.model.vocab_size; }
  int64_t step() const { return run_.step; }
  // Tokens of the longest text that the model was made for.
  int64_t context() const { return run_.context; }
  // The id that ends a document and that a text starts from; -1: documents are not separated.
  int64_t separator() const { return run_.tokenizer->separator().value_or(-1); }
  // Where a text with nothing before it starts from.
  std::vector<int64_t> start_ids() const { return prompt_ids(*run_.tokenizer, ""); }
  std::vector<int64_t> encode(const std::string& text) const { return run_.tokenizer->encode(text); }
  // Text goes to Python as its bytes, uint8 [n]: what a model writes need not be UTF-8.
  Tensor decode(const std::vector<int64_t>& ids) const {
    check_ids(ids);
    return bytes_of(run_.tokenizer->decode(ids));
  }

  // tokens int64 [B, S], each row a text of its own; valid bool [B, S] or none, false behind a row's end. -> logits
  // [B, S, V] fp32, without gradients.
  Tensor logits(const Tensor& tokens, const std::optional<Tensor>& valid) const {
    RMOE_CHECK(tokens.dim() == 2 && tokens.scalar_type() == at::kLong && tokens.is_cpu(),
               "Model.logits: tokens must be int64 [B, S] on the CPU, got ", tokens.scalar_type(), " ", tokens.sizes());
    RMOE_CHECK(!valid || (valid->sizes() == tokens.sizes() && valid->scalar_type() == at::kBool),
               "Model.logits: valid must be bool ", tokens.sizes(), ", got ", valid->scalar_type(), " ",
               valid->sizes());
    const int64_t B = tokens.size(0), S = tokens.size(1), V = vocab_size();
    if (tokens.numel() == 0) return at::empty({B, S, V}, at::kFloat);
    const int64_t least = tokens.min().item<int64_t>(), most = tokens.max().item<int64_t>();
    RMOE_CHECK(least >= 0 && most < V, "Model.logits: tokens has the id ", least < 0 ? least : most, ", expected 0 to ",
               V - 1);
    const at::NoGradGuard no_grad;
    // Both families see the past alone; what is behind a row's end changes nothing before it.
    const auto result =
        run_.model->forward(tokens.contiguous(), {}, {.dtype = dtype_, .valid_BS = valid.value_or(Tensor())});
    return result.logits_TV.to(at::kFloat).view({B, S, V});
  }

  // Continues texts, given as ids, by up to max_new tokens each, with keys and values cached; a text ends before the
  // first of `stops` and at the ids that end one. temperature 0: greedy. -> the new texts, in order.
  std::vector<Tensor> generate(const std::vector<std::vector<int64_t>>& prompts, int64_t max_new, double temperature,
                               int64_t top_k, double top_p, int64_t seed, const std::vector<std::string>& stops) const {
    std::vector<Tensor> result;
    for (GeneratedText& generated : generate_texts(*run_.model, *run_.tokenizer, prompts,
                                                   {.max_new = max_new,
                                                    .temperature = temperature,
                                                    .top_k = top_k,
                                                    .top_p = top_p,
                                                    .seed = static_cast<uint64_t>(seed),
                                                    .dtype = dtype_,
                                                    .stops = stops,
                                                    .ends = run_.ends})) {
      result.push_back(bytes_of(std::move(generated.text)));
    }
    return result;
  }

 private:
  static Tensor bytes_of(std::string text) {
    return at::from_blob(text.data(), {static_cast<int64_t>(text.size())}, at::kByte).clone();
  }
  void check_ids(const std::vector<int64_t>& ids) const {
    for (const int64_t id : ids) {
      RMOE_CHECK(id >= 0 && id < run_.tokenizer->vocab_size(), "Model.decode: the id ", id, ", expected 0 to ",
                 run_.tokenizer->vocab_size() - 1);
    }
  }

  at::ScalarType dtype_;
  LoadedRun run_;
};

}  // namespace

TORCH_LIBRARY_FRAGMENT(rmoe, m) {
  m.class_<PythonModel>("Model")
      .def(torch::init<const std::string&, const std::string&, const std::string&>())
      .def("vocab_size", &PythonModel::vocab_size)
      .def("step", &PythonModel::step)
      .def("context", &PythonModel::context)
      .def("separator", &PythonModel::separator)
      .def("start_ids", &PythonModel::start_ids)
      .def("encode", &PythonModel::encode)
      .def("decode", &PythonModel::decode)
      .def("logits", &PythonModel::logits)
      .def("generate", &PythonModel::generate);
}

}  // namespace rmoe
