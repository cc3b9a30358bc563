// Keys and values of one attention layer during inference.
#pragma once

#include "rmoe/ops/torch.h"

namespace rmoe::nn {

// Grows by appending. Move-only: two holders appending to one buffer would overwrite each other.
class KvCache {
 public:
  KvCache() = default;
  KvCache(KvCache&& other) noexcept { *this = std::move(other); }
  KvCache& operator=(KvCache&& other) noexcept;

  // Appends k, v [B, H, M, C] and returns views of everything kept plus the new positions.
  std::pair<Tensor, Tensor> append(const Tensor& k, const Tensor& v);

  // The same with a window: before the first append the past is `window` zero positions; afterwards exactly the last
  // `window` positions count as kept. Returns views of [B, H, window + M, C].
  std::pair<Tensor, Tensor> append_window(const Tensor& k, const Tensor& v, int64_t window);

  // Goes on with these sequences, int64 [B'], in this order.
  void keep(const Tensor& sequences);

  int64_t length() const { return length_; }

 private:
  void reserve(const Tensor& like, int64_t positions);
  void put(const Tensor& k, const Tensor& v);

  Tensor k_, v_;        // [B, H, capacity, C]
  int64_t length_ = 0;  // positions filled
};

}  // namespace rmoe::nn
