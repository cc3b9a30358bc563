#include "rmoe/bench/recorder.h"

#include <chrono>

#include <ATen/SequenceNumber.h>

#include "rmoe/base/error.h"

namespace rmoe::bench {
namespace {

thread_local Profile* current = nullptr;

int64_t now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

Profile::Kind kind_of(const at::RecordFunction& f) {
  if (f.scope() == at::RecordScope::USER_SCOPE) return Profile::Kind::kRegion;
  const bool node = f.scope() == at::RecordScope::BACKWARD_FUNCTION ||
                    std::string_view(f.name()).starts_with("autograd::engine::evaluate_function");
  return node ? Profile::Kind::kNode : Profile::Kind::kOp;
}

int64_t next_sequence() { return static_cast<int64_t>(at::sequence_number::peek()); }

std::unique_ptr<at::ObserverContext> enter(const at::RecordFunction& f) {
  const Profile::Kind kind = kind_of(f);
  current->enter(kind, f.name(), kind == Profile::Kind::kRegion ? next_sequence() : f.seqNr(), now_ns());
  return nullptr;
}

void leave(const at::RecordFunction&, at::ObserverContext*) { current->leave(next_sequence(), now_ns()); }

}  // namespace

Recorder::Recorder(Profile& profile) {
  RMOE_ASSERT(!current, "one recorder at a time");
  current = &profile;
  handle_ = at::addThreadLocalCallback(
      at::RecordFunctionCallback(&enter, &leave)
          .scopes({at::RecordScope::FUNCTION, at::RecordScope::BACKWARD_FUNCTION, at::RecordScope::USER_SCOPE}));
}

Recorder::~Recorder() {
  at::removeCallback(handle_);
  current = nullptr;
}

}  // namespace rmoe::bench
