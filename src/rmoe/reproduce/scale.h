// The two sizes of a reproduction: the paper's own setting, and a small one for two cores that keeps its ratios.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace rmoe::reproduce {

enum class Scale { kPaper, kCpu };

// The flags that bring a config of the paper's size to the scale; none for kPaper.
// kCpu divides the widths of the span family (model, experts, recurrent state) by 4, and those of the llama family such
// that the model's is 128 (by 10 and 16); layers of the span family, experts, experts per token and state over model
// width stay, and the paper's shape of the schedule. A llama has a third of its layers. A span is 128 characters, a
// block 256, a step has 16 blocks, and a run 1000 steps: 4.1 M characters. The arithmetic is bf16.
std::vector<std::string> scale_flags(Scale scale, const std::filesystem::path& config);

// Of the config with these flags.
struct Budget {
  int64_t steps = 0;
  int64_t step_tokens = 0;
};
Budget budget_of(const std::filesystem::path& config, const std::vector<std::string>& flags);

}  // namespace rmoe::reproduce
