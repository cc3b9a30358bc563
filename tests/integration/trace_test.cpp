// Traces of real runs: what is recorded is what the routers did, and replay forces it.
#include "rmoe/eval/trace.h"

#include <cstring>

#include <gtest/gtest.h>

#include "rmoe/base/config.h"
#include "rmoe/base/error.h"
#include "rmoe/base/log.h"
#include "rmoe/data/token_file.h"
#include "rmoe/eval/evaluate.h"
#include "rmoe/eval/run.h"
#include "rmoe/io/metrics.h"
#include "rmoe/train/run.h"
#include "tests/support/temp_dir.h"
#include "tests/support/text_data.h"
#include "tests/support/tiny.h"

namespace rmoe {
namespace {

using testing::tiny_config;

template <class T>
T value(const io::TraceFile& file, int64_t record, const std::string& field, int64_t index = 0) {
  for (const auto& f : file.layout().record()) {
    if (f.name != field) continue;
    T out;
    std::memcpy(&out, file.record(record) + f.offset + index * static_cast<int64_t>(sizeof(T)), sizeof(T));
    return out;
  }
  ADD_FAILURE() << "no field " << field;
  return {};
}

class Traces : public ::testing::TestWithParam<std::tuple<Family, bool>> {
 protected:
  Traces() {
    set_log_level(Level::kQuiet);
    testing::write_text_data(dir_.path() / "data", 1200);
    run_ = train_run("run", 1);
  }
  bool recurrent() const { return std::get<1>(GetParam()); }
  RunConfig config(int64_t seed) const {
    RunConfig config = tiny_config(std::get<0>(GetParam()), recurrent());
    config.data.path = (dir_.path() / "data").string();
    config.model.vocab_size = 0;
    config.train.seed = seed;
    config.train.steps = 3;
    config.train.log_every = 1;
    config.train.eval.tokens = 50;
    config.train.sample.length = 0;
    return config;
  }
  std::string train_run(const std::string& name, int64_t seed, const TraceOptions& trace = {}) {
    const auto folder = dir_.path() / name;
    train(config(seed), folder, Resume::kNever, trace);
    return folder.string();
  }
  EvalReport eval(const std::string& run, const TraceOptions& trace) const {
    return run_eval({.run = run, .split = "valid", .tokens = 150, .threads = 1, .trace = trace});
  }
  std::string file(const std::string& name) const { return (dir_.path() / name).string(); }
  io::TraceFields all() const { return io::TraceFields::parse(recurrent() ? "all" : "tokens,logits,scores,probs"); }

  TempDir dir_;
  std::string run_;
};

TEST_P(Traces, HoldWhatTheRoutersDid) {
  eval(run_, {.file = file("t.npy"), .fields = all(), .tokens = {}});
  const io::TraceFile trace = io::TraceFile::open(file("t.npy"));
  ASSERT_EQ(trace.records(), 150);
  const LoadedRun run = load_run(run_);
  const auto tokens = data::TokenFile::open(dir_.path() / "data" / "valid.tok");
  int64_t seen = 0;
  EvalOptions options{.block = run.config.train.block, .max_tokens = 150};
  options.watch = [&](const EvalPiece& piece) {
    const auto& layers = piece.forward.trace;
    for (int64_t t = 0; t < piece.tokens_T.numel(); ++t, ++seen) {
      ASSERT_EQ(value<uint32_t>(trace, seen, "step"), 3U);
      ASSERT_EQ(static_cast<int64_t>(value<uint64_t>(trace, seen, "position")), piece.positions_T[t].item<int64_t>());
      ASSERT_EQ(value<uint32_t>(trace, seen, "tokens"), piece.tokens_T[t].item<int64_t>());
      for (size_t l = 0; l < layers.size(); ++l) {
        const auto& r = layers[l];
        for (int64_t k = 0; k < 2; ++k) {
          const auto at = static_cast<int64_t>(l) * 2 + k;
          ASSERT_EQ(value<int16_t>(trace, seen, "ids", at), r.ids_TK[t][k].item<int64_t>());
          ASSERT_EQ(value<float>(trace, seen, "weights", at), r.weights_TK[t][k].item<float>());
        }
        for (int64_t n = 0; n < 5; ++n) {
          const auto at = static_cast<int64_t>(l) * 5 + n;
          ASSERT_EQ(value<float>(trace, seen, "logits", at), r.logits_TN[t][n].item<float>());
          ASSERT_EQ(value<float>(trace, seen, "scores", at), r.scores_TN[t][n].item<float>());
          ASSERT_EQ(value<float>(trace, seen, "probs", at), r.probs_TN[t][n].item<float>());
        }
        if (!recurrent()) continue;
        for (int64_t p = 0; p < 8; ++p) {
          ASSERT_EQ(value<float>(trace, seen, "states", static_cast<int64_t>(l) * 8 + p),
                    r.state_TP[t][p].item<float>());
        }
      }
    }
  };
  evaluate(*run.model, tokens, options);
  EXPECT_EQ(seen, 150);
}

TEST_P(Traces, HoldTheChosenTokensOnly) {
  eval(run_, {.file = file("t.npy"), .tokens = io::TokenSlice::parse("20:100:7")});
  const io::TraceFile trace = io::TraceFile::open(file("t.npy"));
  ASSERT_EQ(trace.records(), 12);
  for (int64_t i = 0; i < 12; ++i) EXPECT_EQ(value<uint64_t>(trace, i, "position"), static_cast<uint64_t>(20 + 7 * i));
}

TEST_P(Traces, ReplayForcesTheChoicesOnAnotherRun) {
  const EvalReport recorded = eval(run_, {.file = file("t.npy"), .fields = io::TraceFields::parse("tokens")});
  const EvalReport again = eval(run_, {.replay = file("t.npy")});
  EXPECT_NEAR(again.nats, recorded.nats, 1e-4 * recorded.nats);
  EXPECT_EQ(again.expert_fraction, recorded.expert_fraction);

  const std::string other = train_run("other", 2);
  const EvalReport own = eval(other, {}), forced = eval(other, {.replay = file("t.npy")});
  EXPECT_NE(own.expert_fraction, recorded.expert_fraction);
  EXPECT_EQ(forced.expert_fraction, recorded.expert_fraction);
  EXPECT_NE(forced.nats, own.nats);
}

TEST_P(Traces, TrainingCanBeRecordedAndReplayed) {
  const std::string a = train_run("a", 3, {.file = file("t.npy"), .fields = io::TraceFields::parse("tokens")});
  const io::TraceFile trace = io::TraceFile::open(file("t.npy"));
  ASSERT_EQ(trace.records(), 3 * 4 * 8);
  EXPECT_EQ(value<uint32_t>(trace, 32, "step"), 1U);
  EXPECT_EQ(value<uint64_t>(trace, 33, "position"), 1U);
  const std::string b = train_run("b", 3, {.replay = file("t.npy")});
  const auto of = [](const std::string& run) { return io::read_metrics(std::filesystem::path(run) / "metrics.jsonl"); };
  const auto first = of(a), second = of(b);
  ASSERT_EQ(first.size(), second.size());
  for (size_t i = 0; i < first.size(); ++i) {
    EXPECT_NEAR(first[i].at("loss").get<double>(), second[i].at("loss").get<double>(), 1e-4);
  }
  train_run("c", 3, {.file = file("c.npy"), .every = 2});
  EXPECT_EQ(io::TraceFile::open(file("c.npy")).records(), 2 * 4 * 8);  // steps 0 and 2
}

TEST_P(Traces, GenerationCanBeRecordedAndReplayed) {
  const auto text = [&](const TraceOptions& trace) {
    return run_generate({.run = run_, .prompt = "the router", .tokens = 20, .threads = 1, .trace = trace},
                        [](std::string_view) { return true; })
        .text;
  };
  const std::string written = text({.file = file("g.npy"), .fields = io::TraceFields::parse("tokens")});
  EXPECT_EQ(written, text({}));
  const io::TraceFile trace = io::TraceFile::open(file("g.npy"));
  EXPECT_EQ(trace.records(), 10 + 19);  // the last token is not read
  EXPECT_EQ(value<uint32_t>(trace, 0, "tokens"), static_cast<uint32_t>('t'));
  EXPECT_EQ(written, text({.replay = file("g.npy")}));
}

TEST_P(Traces, OfAnotherModelOrTextAreRefused) {
  eval(run_, {.file = file("t.npy"), .fields = io::TraceFields::parse("tokens")});
  const auto fails = [&](const std::string& run, const std::string& split, const char* part) {
    try {
      run_eval({.run = run, .split = split, .tokens = 150, .threads = 1, .trace = {.replay = file("t.npy")}});
      ADD_FAILURE() << part;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), Exit::kBadInput);
      EXPECT_NE(error.message().find(part), std::string::npos) << error.message();
    }
  };
  fails(run_, "test", "another text");
  RunConfig other = config(1);
  other.model.moe.experts = 6;
  train(other, dir_.path() / "six", Resume::kNever);
  fails((dir_.path() / "six").string(), "valid", "another model");
  try {  // more tokens than were recorded
    run_eval({.run = run_, .split = "valid", .tokens = 160, .threads = 1, .trace = {.replay = file("t.npy")}});
    ADD_FAILURE();
  } catch (const Error& error) {
    EXPECT_NE(error.message().find("position 150"), std::string::npos) << error.message();
  }
  if (!recurrent()) {
    EXPECT_THROW(eval(run_, {.file = file("s.npy"), .fields = io::TraceFields::parse("states")}), Error);
  }
}

INSTANTIATE_TEST_SUITE_P(All, Traces,
                         ::testing::Combine(::testing::Values(Family::kSpan, Family::kLlama), ::testing::Bool()),
                         [](const auto& param_info) {
                           return testing::tiny_name(std::get<0>(param_info.param), std::get<1>(param_info.param));
                         });

}  // namespace
}  // namespace rmoe
