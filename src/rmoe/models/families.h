// One function per model family; make_model chooses.
#pragma once

#include "rmoe/models/model.h"

namespace rmoe {
std::unique_ptr<Model> make_span_model(const ModelConfig& config, ParamTable& table);
std::unique_ptr<Model> make_llama_model(const ModelConfig& config, ParamTable& table);
}  // namespace rmoe
