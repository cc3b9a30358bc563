#include "rmoe/reproduce/entries.h"

#include <algorithm>

#include "rmoe/base/error.h"
#include "rmoe/base/nearest.h"

namespace rmoe::reproduce {
namespace {

constexpr const char* kBpc = "bits per character";
constexpr const char* kPpl = "perplexity per word";

PaperNumbers quality(std::optional<double> valid, std::optional<double> test) { return {valid, test, {}, {}}; }
PaperNumbers balance(double inner, double outer) { return {{}, {}, inner, outer}; }

// "medium_np" of Enwik8.
std::string enwik8(const std::string& model) { return "enwik8_" + model + ".toml"; }
std::string wikitext(const std::string& model) { return "wikitext103_medium_" + model + ".toml"; }

std::vector<Entry> make_entries() {
  const std::string S = "SMoE";
  std::vector<Entry> all;
  all.push_back({"table1",
                 "routers on Enwik8",
                 kBpc,
                 "enwik8",
                 {{S, enwik8("medium_smoe"), "", quality(1.152, 1.128)},
                  {"HyperMoE", enwik8("medium_hyper"), S, quality(1.162, 1.139)},
                  {"SMoE-MLP", enwik8("medium_mlp"), S, quality(1.164, 1.137)},
                  {"RandomMoE", enwik8("medium_random"), S, quality(1.163, 1.135)},
                  {"CosineMoE", enwik8("medium_cosine"), S, quality(1.148, 1.122)},
                  {"XMoE", enwik8("medium_xmoe16"), S, quality(1.150, 1.125)},
                  {"RMoE", enwik8("medium_rmoe"), S, quality(1.141, 1.116)}}});
  all.push_back({"table1-wikitext",
                 "routers on WikiText-103",
                 kPpl,
                 "wikitext-103",
                 {{S, wikitext("smoe"), "", quality(31.279, 33.061)},
                  {"HyperMoE", wikitext("hyper"), S, quality(31.918, 33.374)},
                  {"SMoE-MLP", wikitext("mlp"), S, quality(31.430, 33.142)},
                  {"RandomMoE", wikitext("random"), S, quality(31.938, 33.410)},
                  {"CosineMoE", wikitext("cosine"), S, quality(31.367, 33.047)},
                  {"XMoE", wikitext("xmoe16"), S, quality(31.265, 32.926)},
                  {"RMoE", wikitext("rmoe"), S, quality(30.939, 32.867)}}});
  const auto xmoe_pairs = [](const auto& config, const std::vector<std::pair<double, double>>& tests) {
    std::vector<Row> rows;
    const char* widths[] = {"8", "16", "32"};
    for (size_t i = 0; i < tests.size(); ++i) {
      const std::string width = widths[i], plain = "XMoE (" + width + ")";
      rows.push_back({plain, config("xmoe" + width), "", quality({}, tests[i].first)});
      rows.push_back({plain + " + GRU", config("xmoe" + width + "_rmoe"), plain, quality({}, tests[i].second)});
    }
    return rows;
  };
  all.push_back({"table2", "the recurrent stage in front of XMoE, Enwik8", kBpc, "enwik8",
                 xmoe_pairs([](const std::string& model) { return enwik8("medium_" + model); },
                            {{1.132, 1.124}, {1.125, 1.119}, {1.114, 1.112}})});
  all.push_back({"table2-wikitext", "the recurrent stage in front of XMoE, WikiText-103", kPpl, "wikitext-103",
                 xmoe_pairs(wikitext, {{33.55, 32.99}, {32.93, 32.47}, {32.71, 32.55}})});
  all.push_back({"table3",
                 "the 0.91 B setting",
                 "perplexity per token",
                 "",
                 {{S, "llama_0.91b_smoe.toml", "", {}}, {"RMoE", "llama_0.91b_rmoe.toml", S, {}}},
                 "the paper reports task accuracies here: on average 54.26 for SMoE and 55.31 for RMoE after 40 B "
                 "tokens, 56.13 and 57.15 after fine-tuning (configs/sft_alpaca*.toml); lm-evaluation-harness computes "
                 "them of a trained run",
                 Look::kNone,
                 {"table7", "table12"}});
  all.push_back({"table4",
                 "more parameters in the router, with and without the recurrence",
                 kBpc,
                 "enwik8",
                 {{"small SMoE", enwik8("small_smoe"), "", quality({}, 1.184)},
                  {"small SMoE-MLP", enwik8("small_mlp"), "small SMoE", quality({}, 1.183)},
                  {"small RMoE-NP", enwik8("small_rmoe_np"), "small SMoE", quality({}, 1.196)},
                  {"small RMoE", enwik8("small_rmoe"), "small SMoE", quality({}, 1.183)},
                  {"medium SMoE", enwik8("medium_smoe"), "", quality({}, 1.128)},
                  {"medium SMoE-MLP", enwik8("medium_mlp"), "medium SMoE", quality({}, 1.137)},
                  {"medium RMoE-NP", enwik8("medium_rmoe_np"), "medium SMoE", quality({}, 1.123)},
                  {"medium RMoE", enwik8("medium_rmoe"), "medium SMoE", quality({}, 1.116)}}});
  all.push_back({"table5",
                 "what passes between the layers",
                 kBpc,
                 "enwik8",
                 {{S, enwik8("medium_smoe"), "", quality(1.152, 1.128)},
                  {"RMoE", enwik8("medium_rmoe"), S, quality(1.141, 1.116)},
                  {"NP", enwik8("medium_rmoe_np"), S, quality(1.150, 1.123)},
                  {"detach h", enwik8("medium_rmoe_detach"), S, quality(1.159, 1.133)},
                  {"NP + r-0.5", enwik8("medium_rmoe_np_r05"), S, quality(1.149, 1.124)},
                  {"NP + r-1.0", enwik8("medium_rmoe_np_r10"), S, quality(1.150, 1.124)},
                  {"NP + r-0.5 + detach-r", enwik8("medium_rmoe_np_r05_detach"), S, quality(1.157, 1.133)},
                  {"NP + r-1.0 + detach-r", enwik8("medium_rmoe_np_r10_detach"), S, quality(1.152, 1.126)}}});
  all.push_back({"table6",
                 "cells and projections",
                 kBpc,
                 "enwik8",
                 {{S, enwik8("medium_smoe"), "", quality({}, 1.128)},
                  {"GRU, L-proj", enwik8("medium_rmoe"), S, quality({}, 1.116)},
                  {"GRU, S-proj", enwik8("medium_rmoe_sproj"), S, quality({}, 1.123)},
                  {"RNN", enwik8("medium_rmoe_rnn"), S, quality({}, 1.119)},
                  {"LSTM", enwik8("medium_rmoe_lstm"), S, quality({}, 1.122)}}});
  all.push_back({"table6-wikitext",
                 "cells and projections, WikiText-103",
                 kPpl,
                 "wikitext-103",
                 {{S, wikitext("smoe"), "", quality({}, 33.061)},
                  {"GRU, L-proj", wikitext("rmoe"), S, quality({}, 32.86)},
                  {"GRU, S-proj", wikitext("rmoe_sproj"), S, quality({}, 33.02)},
                  {"RNN", wikitext("rmoe_rnn"), S, quality({}, 32.72)},
                  {"LSTM", wikitext("rmoe_lstm"), S, quality({}, 33.04)}}});
  all.push_back({"table8",
                 "inner and outer balance",
                 kBpc,
                 "enwik8",
                 {{S, enwik8("medium_smoe"), "", balance(34.68, 0.915)},
                  {"HyperMoE", enwik8("medium_hyper"), S, balance(34.60, 0.920)},
                  {"CosineMoE", enwik8("medium_cosine"), S, balance(7.611, 0.794)},
                  {"XMoE", enwik8("medium_xmoe16"), S, balance(19.93, 0.861)},
                  {"RandomMoE", enwik8("medium_random"), S, balance(2.000, 0.414)},
                  {"RMoE", enwik8("medium_rmoe"), S, balance(2.021, 0.573)},
                  {"NP", enwik8("medium_rmoe_np"), S, balance(16.58, 0.842)},
                  {"NP + r-0.5", enwik8("medium_rmoe_np_r05"), S, balance(2.792, 0.661)},
                  {"NP + r-1.0", enwik8("medium_rmoe_np_r10"), S, balance(1.147, 0.212)}},
                 "inner: top score over second, outer: sum of the chosen scores, medians over the validation tokens",
                 Look::kBalance});
  all.push_back({"table11",
                 "routers' gradients and dropped rows, 15 B setting",
                 "perplexity per token",
                 "",
                 {{S, "llama_15b_smoe.toml", "", {}}, {"RMoE", "llama_15b_rmoe.toml", S, {}}},
                 "gradients: norms over all routers, of the whole loss and its two parts; dropped: rows beyond an "
                 "expert's capacity; the paper's Tables 9 and 10 are accuracies of the same models",
                 Look::kGradients,
                 {"table9", "table10"}});
  std::vector<Row> depths;
  for (const char* layers : {"6", "12", "18", "24", "32"}) {
    const std::string plain = str("SMoE, ", layers, " layers");
    depths.push_back({plain, enwik8(str("depth", layers, "_smoe")), "", {}});
    depths.push_back({str("RMoE, ", layers, " layers"), enwik8(str("depth", layers, "_rmoe")), plain, {}});
  }
  all.push_back({"figure2", "loss against depth", kBpc, "enwik8", depths, "", Look::kNone, {"figure14"}});
  const auto analysis = [&](const char* name, const char* title, const std::vector<std::string>& covers) {
    all.push_back({name,
                   title,
                   kBpc,
                   "enwik8",
                   {{S, enwik8("medium_smoe"), "", {}},
                    {"HyperMoE", enwik8("medium_hyper"), S, {}},
                    {"XMoE", enwik8("medium_xmoe16"), S, {}},
                    {"RMoE", enwik8("medium_rmoe"), S, {}},
                    {"NP", enwik8("medium_rmoe_np"), S, {}},
                    {"NP + r-0.5", enwik8("medium_rmoe_np_r05"), S, {}}},
                   "the figure is in the page of the analysis",
                   Look::kBalance,
                   covers});
  };
  analysis("figure3", "mutual information between the layers' gate scores", {"figure6", "figure7"});
  analysis("figure4", "gate entropy", {"figure8", "figure9", "figure10"});
  analysis("figure5", "similarity of the experts", {"figure13"});
  analysis("figure11", "norm and deviation of the routers' weights", {});
  analysis("figure12", "how often each expert is chosen", {});
  return all;
}

}  // namespace

const std::vector<Entry>& entries() {
  static const std::vector<Entry> all = make_entries();
  return all;
}

const Entry& find_entry(const std::string& name) {
  std::vector<std::string> names;
  for (const Entry& entry : entries()) {
    const auto covered = std::find(entry.covers.begin(), entry.covers.end(), name);
    if (entry.name == name || covered != entry.covers.end()) return entry;
    names.push_back(entry.name);
    names.insert(names.end(), entry.covers.begin(), entry.covers.end());
  }
  throw Error(Exit::kBadInput, str("reproduce: unknown table or figure '", name, "'"), help_for_unknown(name, names));
}

}  // namespace rmoe::reproduce
