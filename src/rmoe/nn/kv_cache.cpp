#include "rmoe/nn/kv_cache.h"

#include <algorithm>

#include "rmoe/base/error.h"

namespace rmoe::nn {

KvCache& KvCache::operator=(KvCache&& other) noexcept {
  k_ = std::move(other.k_);
  v_ = std::move(other.v_);
  length_ = std::exchange(other.length_, 0);
  return *this;
}

void KvCache::reserve(const Tensor& like, int64_t positions) {
  const int64_t capacity = k_.defined() ? k_.size(2) : 0;
  if (positions <= capacity) return;
  const int64_t grown = std::max({positions, 2 * capacity, int64_t{64}});
  const auto grow = [&](Tensor& t) {
    Tensor larger = at::empty({like.size(0), like.size(1), grown, like.size(3)}, like.options());
    if (length_ > 0) larger.narrow(2, 0, length_).copy_(t.narrow(2, 0, length_));
    t = larger;
  };
  grow(k_);
  grow(v_);
}

void KvCache::put(const Tensor& k, const Tensor& v) {
  RMOE_ASSERT(k_.size(0) == k.size(0), "a KV cache of ", k_.size(0), " sequences got ", k.size(0));
  k_.narrow(2, length_, k.size(2)).copy_(k);
  v_.narrow(2, length_, v.size(2)).copy_(v);
  length_ += k.size(2);
}

std::pair<Tensor, Tensor> KvCache::append(const Tensor& k, const Tensor& v) {
  reserve(k, length_ + k.size(2));
  put(k, v);
  return {k_.narrow(2, 0, length_), v_.narrow(2, 0, length_)};
}

std::pair<Tensor, Tensor> KvCache::append_window(const Tensor& k, const Tensor& v, int64_t window) {
  const int64_t added = k.size(2);
  if (length_ == 0) {
    reserve(k, window + added + window);
    k_.narrow(2, 0, window).zero_();
    v_.narrow(2, 0, window).zero_();
    length_ = window;
  }
  if (length_ + added > k_.size(2)) {
    // Room for another window's worth of appends, so that moving the kept part is rare.
    k_ = at::cat({k_.narrow(2, length_ - window, window), at::empty_like(k_.narrow(2, 0, window)), at::empty_like(k)},
                 2);
    v_ = at::cat({v_.narrow(2, length_ - window, window), at::empty_like(v_.narrow(2, 0, window)), at::empty_like(v)},
                 2);
    length_ = window;
  }
  put(k, v);
  const int64_t begin = length_ - added - window;
  return {k_.narrow(2, begin, window + added), v_.narrow(2, begin, window + added)};
}

void KvCache::keep(const Tensor& sequences) {
  if (!k_.defined()) return;
  k_ = k_.index_select(0, sequences);
  v_ = v_.index_select(0, sequences);
}

}  // namespace rmoe::nn
