// A model from a config, a few steps of training on one batch, and what its routers choose: example CONFIG.toml
#include <cstdio>

#include <rmoe/base/config.h>
#include <rmoe/config/run.h>
#include <rmoe/models/model.h>
#include <rmoe/train/optimizer.h>

int main(int, char** argv) {
  auto config = rmoe::load_config<rmoe::RunConfig>(argv[1], {});
  rmoe::ParamTable params(/*seed=*/1, at::kFloat);
  const auto model = rmoe::make_model(config.model, params);
  rmoe::Optimizer optimizer(params, config.train.optimizer);

  const at::Tensor text_BS = at::randint(config.model.vocab_size, {4, 17}, at::kLong);
  const at::Tensor inputs = text_BS.narrow(1, 0, 16), targets = text_BS.narrow(1, 1, 16).flatten();
  for (int step = 0; step < 20; ++step) {
    const auto forward = model->forward(inputs, {}, {.training = true});
    const at::Tensor loss = at::cross_entropy_loss(forward.logits_TV, targets);
    loss.backward();
    optimizer.step(3e-3, optimizer.gradient_norm());
    optimizer.zero_gradients();
    std::printf("step %2d  loss %.4f\n", step + 1, loss.item<double>());
  }
  const auto routed = model->forward(inputs, {}, {}).trace;
  for (size_t layer = 0; layer < routed.size(); ++layer) {
    std::printf("MoE layer %zu, tokens per expert:", layer);
    for (int64_t n = 0; n < routed[layer].experts(); ++n) {
      std::printf(" %lld", static_cast<long long>(routed[layer].counts_N[n].item<int64_t>()));
    }
    std::puts("");
  }
}
