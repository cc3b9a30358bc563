// Weights as kernels take them.
#pragma once

namespace rmoe::kernels {

// A weight as it is stored: fp32 (the master copy) or the type that the kernel computes in.
template <class T>
struct Weight {
  const float* master = nullptr;  // one of the two is null
  const T* narrow = nullptr;
};

// f(w) with w pointing to floats or Ts, whichever the weight has.
template <class T, class F>
void with_weight(Weight<T> w, F&& f) {
  w.master ? f(w.master) : f(w.narrow);
}

}  // namespace rmoe::kernels
