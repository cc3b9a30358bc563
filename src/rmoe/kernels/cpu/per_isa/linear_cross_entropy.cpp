// A chunk of tokens at a time, and within it a block of the vocabulary at a time. The first pass keeps of each logit
// e^(logit - the target's logit) in T: unlike a logit, such a number loses nothing but relative precision in bf16. Of
// the softmax's gradient only one factor per token is then missing, which x takes on for dw and the finished sums for
// dx: the second pass multiplies the exponentials as they are, each block twice while it is in the cache. In the
// target's own place stands what the factor makes p - 1 of: minus the sum of the others, exact where the prediction is
// nearly sure.
#include "rmoe/kernels/cpu/linear_cross_entropy.h"

#include <cfloat>

#include "rmoe/kernels/cpu/per_isa/gemm.h"

namespace rmoe::kernels {
namespace RMOE_ISA {
namespace {

using T = RMOE_TYPE;

constexpr int64_t kRowBlock = 96;     // whole tiles of every product: of 12 and of 32 rows
constexpr int64_t kDepthBlock = 512;  // tokens that a product for dw sums at once
constexpr int64_t kFewBlocks = 16;    // for which threads share tokens and short strips of dw as well
constexpr int64_t kPieceRows = 480;
constexpr int64_t kChunkElements = 1 << 24;  // exponentials kept at a time, unless that were too few tokens
constexpr int64_t kFewestTokens = 512, kMostTokens = 4096;
constexpr int64_t kMostColumns = 6 * kRowBlock;          // of a block
constexpr int64_t kWeightElements = kMostColumns * 384;  // of w in a block: packed, they fit the second-level cache

// Memory of one thread, then what all of them share, which is the calling thread's.
enum Slot { kPackedBlock, kBlockOfC, kTransposed, kPaddedX, kExponentials, kLines, kPackedX, kPackedW, kSumsOfDx };

struct Sizes {
  int64_t V, D;
  int64_t columns;  // of the vocabulary in a block: an even number of strips of dw
  int64_t blocks;
  int64_t chunk;  // most tokens of a chunk
  int64_t lines;  // tokens of a chunk, rounded up to whole vectors
  int64_t piece;  // tokens of a block that a thread takes
  int64_t strip;  // rows of dw that a thread takes
  int64_t depth;  // D as the products read it

  static constexpr int64_t kTwoStrips = 2 * kRowBlock;

  Sizes(const LinearCrossEntropy<T>& in, bool gradients)
      : V(in.V),
        D(in.D),
        columns(std::clamp(kWeightElements / std::max<int64_t>(D, 1) / kTwoStrips * kTwoStrips, kTwoStrips,
                           kMostColumns)),
        blocks((V + columns - 1) / columns),
        chunk(std::min(
            in.M, gradients ? std::clamp(kChunkElements / V / kDepthBlock * kDepthBlock, kFewestTokens, kMostTokens)
                            : kMostTokens)),
        lines(round_up(chunk, Vec::kLanes)),
        piece(blocks < kFewBlocks ? kPieceRows : chunk),
        strip(blocks < kFewBlocks ? kPanel : kRowBlock),
        depth(padded_depth<T>(D)) {}
  int64_t width(int64_t block) const { return std::min(columns, V - block * columns); }
  int64_t padded_width(int64_t block) const { return round_up(width(block), kPanel); }
  // Where the chunk's exponentials of a block begin: [tokens, padded_width].
  int64_t offset(int64_t block) const { return block * columns * chunk; }
};

// Of a chunk of tokens.
struct Chunk {
  int64_t begin, count;
  const T* x;            // [count, Sizes::depth]
  T* exponentials;       // null where no gradient is wanted
  float* sums;           // [blocks, lines]: of the exponentials, or a block's largest logit
  float* base;           // [lines]: what is taken off a token's logits
  float* target_logits;  // [lines]
  float* factors;        // [lines]: of the exponentials in the gradient
};
constexpr int64_t kLineArrays = 3;

// The tokens' rows as a product reads them: in place, or copied with zeros behind.
const T* padded_rows(const T* x, int64_t rows, const Sizes& s) {
  if (s.depth == s.D) return x;
  T* copy = scratch<T>(kPaddedX, s.chunk * s.depth);
  for (int64_t i = 0; i < rows; ++i) {
    std::memcpy(copy + i * s.depth, x + i * s.D, static_cast<size_t>(s.D) * sizeof(T));
    std::memset(copy + i * s.depth + s.D, 0, static_cast<size_t>(s.depth - s.D) * sizeof(T));
  }
  return copy;
}

// The sum of e^(logit - base) over a row of n logits, but for that at `target`, where one is in the row; `out`, if not
// null, gets the exponentials, and zeros up to `padded`.
float exponentiate(const float* logits, const float* bias, float base, int64_t target, int64_t n, int64_t padded,
                   T* out) {
  const Vec off(base);
  Vec sums(0.0f);
  const auto exponential = [&](int64_t i, int64_t count) {
    const Vec logit = bias ? load(logits + i) + load(bias + i, count) : load(logits + i);
    return exp(logit - off);
  };
  const auto keep = [&](int64_t i, Vec e) {
    sums = sums + e;
    if (out) store(out + i, e);
  };
  int64_t i = 0;
  const auto up_to = [&](int64_t end) {
    for (; i + Vec::kLanes <= end; i += Vec::kLanes) keep(i, exponential(i, Vec::kLanes));
  };
  if (target >= 0 && target < n) {
    up_to(target);
    float lanes_of_target[Vec::kLanes];
    store(lanes_of_target, first(exponential(i, n - i), n - i, Vec(0.0f)));
    lanes_of_target[target - i] = 0;
    keep(i, load(lanes_of_target));
    i += Vec::kLanes;
  }
  up_to(n);
  for (; i < padded; i += Vec::kLanes) keep(i, first(exponential(i, n - i), n - i, Vec(0.0f)));
  return sum(sums);
}

float largest(const float* logits, const float* bias, int64_t n) {
  Vec most(-FLT_MAX);  // a row of minus infinities then gives zeros
  for_each_stretch(n, [&](int64_t i, int64_t count) {
    const Vec logit = bias ? load(logits + i, count) + load(bias + i, count) : load(logits + i, count);
    most = max(most, first(logit, count, most));
  });
  return max(most);
}

// f(block, r, logits): every row of every block of the chunk's logits, without the bias, in fp32.
template <class F>
void for_each_row(const Chunk& chunk, const LinearCrossEntropy<T>& in, const Sizes& s, F&& f) {
#pragma omp parallel for collapse(2) schedule(dynamic, 1)
  for (int64_t block = 0; block < s.blocks; ++block) {
    for (int64_t begin = 0; begin < chunk.count; begin += s.piece) {
      const int64_t j = block * s.columns, n = s.width(block), padded = s.padded_width(block);
      T* packed = scratch<T>(kPackedBlock, packed_size<T>(s.D, n));
      with_weight(in.w, [&](const auto* w) { pack_nk(packed, [&](int64_t i) { return w + (j + i) * s.D; }, n, s.D); });
      float* c = scratch<float>(kBlockOfC, kRowBlock * padded);
      const int64_t end = std::min(chunk.count, begin + s.piece);
      for (int64_t i = begin; i < end; i += kRowBlock) {
        const int64_t rows = std::min(kRowBlock, end - i);
        multiply(c, padded, chunk.x + i * s.depth, s.depth, packed, rows, n, s.D);
        for (int64_t r = 0; r < rows; ++r) f(block, i + r, c + r * padded);
      }
    }
  }
}

// Ignored tokens take part as if their target were the first id, with a factor of zero.
int64_t target_of(const LinearCrossEntropy<T>& in, int64_t t) {
  return in.targets[t] == in.ignore_index ? 0 : in.targets[t];
}

void make_target_logits(const Chunk& chunk, const LinearCrossEntropy<T>& in, const Sizes& s) {
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < chunk.count; ++i) {
    const int64_t target = target_of(in, chunk.begin + i);
    with_weight(in.w, [&](const auto* w) {
      Vec total(0.0f);
      for_each_stretch(s.D, [&](int64_t k, int64_t n) {
        const Vec weight = load(w + target * s.D + k, n);
        T rounded[Vec::kLanes];  // as the product sees it
        store(rounded, weight);
        total = fma(load(chunk.x + i * s.depth + k, n), load(rounded), total);
      });
      chunk.target_logits[i] = sum(total) + (in.b ? in.b[target] : 0.0f);
    });
    chunk.base[i] = chunk.target_logits[i];
  }
}

// Exponentials and their sums by block.
void exponentials(const Chunk& chunk, const LinearCrossEntropy<T>& in, const Sizes& s) {
  for_each_row(chunk, in, s, [&](int64_t block, int64_t r, const float* logits) {
    const int64_t j = block * s.columns, padded = s.padded_width(block);
    T* out = chunk.exponentials ? chunk.exponentials + s.offset(block) + r * padded : nullptr;
    chunk.sums[block * s.lines + r] = exponentiate(logits, in.b ? in.b + j : nullptr, chunk.base[r],
                                                   target_of(in, chunk.begin + r) - j, s.width(block), padded, out);
  });
}

// Where some logit is so far above its token's target that exponentials or what is made of them could overflow: takes
// the largest logit off instead.
void lower(const Chunk& chunk, const LinearCrossEntropy<T>& in, const Sizes& s) {
  for_each_row(chunk, in, s, [&](int64_t block, int64_t r, const float* logits) {
    const int64_t j = block * s.columns;
    chunk.sums[block * s.lines + r] = largest(logits, in.b ? in.b + j : nullptr, s.width(block));
  });
  for (int64_t i = 0; i < chunk.count; ++i) {
    float most = chunk.target_logits[i];
    for (int64_t block = 0; block < s.blocks; ++block) most = std::max(most, chunk.sums[block * s.lines + i]);
    chunk.base[i] = most;
  }
}

// Adds each token's sums into those of the first block; whether all are small enough.
bool add_sums(const Chunk& chunk, const Sizes& s) {
  bool small = true;
  for (int64_t block = 1; block < s.blocks; ++block) {
    for (int64_t i = 0; i < chunk.count; ++i) chunk.sums[i] += chunk.sums[block * s.lines + i];
  }
  constexpr float kMostSum = 0x1p40f;
  for (int64_t i = 0; i < chunk.count; ++i) small = small && chunk.sums[i] < kMostSum;
  return small;
}

// Losses and log-sum-exps, and with `gradients` the factors of the second pass.
void finish(float* losses, float* lse, const Chunk& chunk, const LinearCrossEntropyGradients<T>* gradients,
            const LinearCrossEntropy<T>& in, const Sizes& s) {
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < chunk.count; ++i) {
    const int64_t t = chunk.begin + i;
    const bool counts = in.targets[t] != in.ignore_index;
    const float others = chunk.sums[i], above = chunk.base[i] - chunk.target_logits[i];
    // Log1p keeps the digits of a loss near zero.
    losses[t] = !counts ? 0.0f : above == 0 ? std::log1p(others) : std::log(others + std::exp(-above)) + above;
    lse[t] = counts ? losses[t] + chunk.target_logits[i] : 0.0f;
    if (!gradients) continue;
    // The gradient of a logit is weight (q p - [target]), q = 1 + 2 z_loss lse. Not zero: what stands in the target's
    // place is divided by it.
    float q = 1 + 2 * gradients->z_loss * lse[t];
    if (std::abs(q) < 0x1p-20f) q = 0x1p-20f;
    const float of_target = std::exp(-above);
    chunk.factors[i] = counts ? gradients->weight * q / (others + of_target) : 0.0f;
    if (!counts) continue;
    const float at_target = ((q - 1) * of_target - others) / q;
    const int64_t block = in.targets[t] / s.columns;
    chunk.exponentials[s.offset(block) + i * s.padded_width(block) + in.targets[t] % s.columns] =
        from_float<T>(at_target);
  }
}

// Columns [c, c + n) of packed rows of w, [its block's width, D].
void pack_weight(T* packed, int64_t block, int64_t c, int64_t n, const LinearCrossEntropy<T>& in, const Sizes& s) {
  const int64_t width = s.width(block);
  with_weight(in.w, [&](const auto* w) {
    const auto* corner = w + block * s.columns * s.D + c;
    pack_kn(packed + packed_size<T>(width, c), [&](int64_t i) { return corner + i * s.D; }, n, width);
  });
}

// Packs tokens [m, m + n) of factor x for dw.
void pack_x(T* packed, const Chunk& chunk, int64_t m, int64_t n, const Sizes& s) {
  T* scaled = scratch<T>(kTransposed, n * s.D);
  for (int64_t i = 0; i < n; ++i) {
    const Vec factor(chunk.factors[m + i]);
    for_each_stretch(s.D, [&](int64_t k, int64_t count) {
      store(scaled + i * s.D + k, load(chunk.x + (m + i) * s.depth + k, count) * factor, count);
    });
  }
  pack_kn(packed, [&](int64_t i) { return scaled + i * s.D; }, s.D, n);
}

// Rows [i, i + rows) of the chunk's dx from the products of the exponentials.
void finish_dx(T* dx, const float* sums, int64_t ldx, const Chunk& chunk, int64_t i, int64_t rows, const Sizes& s) {
  for (int64_t r = i; r < i + rows; ++r) {
    const Vec factor(chunk.factors[r]);
    for_each_stretch(s.D, [&](int64_t k, int64_t n) {
      store(dx + (chunk.begin + r) * s.D + k, load(sums + r * ldx + k, n) * factor, n);
    });
  }
}

// db of `rows` ids from the exponentials of their block, `gradient` [tokens, padded], on top of the chunks before.
void sum_bias(float* db, const T* gradient, int64_t padded, int64_t rows, const Chunk& chunk) {
  for_each_stretch(rows, [&](int64_t k, int64_t n) {
    Vec total = chunk.begin > 0 ? load(db + k, n) : Vec(0.0f);
    // Sums of sums: one long chain would lose digits.
    constexpr int64_t kChain = 32;
    for (int64_t m = 0; m < chunk.count; m += kChain) {
      Vec part(0.0f);
      for (int64_t i = m; i < std::min(chunk.count, m + kChain); ++i) {
        part = fma(load(gradient + i * padded + k, n), Vec(chunk.factors[i]), part);
      }
      total = total + part;
    }
    store(db + k, total, n);
  });
}

void backward(const Chunk& chunk, const LinearCrossEntropyGradients<T>& g, const LinearCrossEntropy<T>& in,
              const Sizes& s) {
  const int64_t depth_blocks = (chunk.count + kDepthBlock - 1) / kDepthBlock;
  const int64_t block_of_x = packed_size<T>(kDepthBlock, s.D), packed_w = packed_size<T>(s.columns, s.D);
  const int64_t ldx = round_up(s.D, kPanel);
  T* x = scratch<T>(kPackedX, depth_blocks * block_of_x);
  T* w = scratch<T>(kPackedW, 2 * packed_w);  // of this block and the next
  float* dx = scratch<float>(kSumsOfDx, s.chunk * ldx);
  constexpr int64_t kColumnsOfW = 2 * kPanel;  // packed at a time

#pragma omp parallel
  {
#pragma omp for schedule(dynamic, 1) nowait
    for (int64_t part = 0; part < depth_blocks; ++part) {
      const int64_t m = part * kDepthBlock;
      pack_x(x + part * block_of_x, chunk, m, std::min(kDepthBlock, chunk.count - m), s);
    }
#pragma omp for schedule(dynamic, 1)
    for (int64_t c = 0; c < s.D; c += kColumnsOfW) pack_weight(w, 0, c, std::min(kColumnsOfW, s.D - c), in, s);

    for (int64_t block = 0; block < s.blocks; ++block) {
      const int64_t width = s.width(block), padded = s.padded_width(block), j = block * s.columns;
      const T* gradient = chunk.exponentials + s.offset(block);
#pragma omp for schedule(dynamic, 1) nowait
      for (int64_t i = 0; i < chunk.count; i += kRowBlock) {
        const int64_t rows = std::min(kRowBlock, chunk.count - i);
        multiply(dx + i * ldx, ldx, gradient + i * padded, padded, w + block % 2 * packed_w, rows, s.D, width,
                 block > 0);
        if (block + 1 == s.blocks) finish_dx(g.dx, dx, ldx, chunk, i, rows, s);
      }
#pragma omp for schedule(dynamic, 1) nowait
      for (int64_t c = 0; c < width; c += s.strip) {
        const int64_t rows = std::min(s.strip, width - c);
        float* dw = scratch<float>(kBlockOfC, s.strip * ldx);
        for (int64_t part = 0; part < depth_blocks; ++part) {
          const int64_t m = part * kDepthBlock, depth = std::min(kDepthBlock, chunk.count - m);
          T* a = scratch<T>(kTransposed, s.strip * padded_depth<T>(depth));
          transpose_rows(a, [&](int64_t i) { return gradient + (m + i) * padded + c; }, rows, depth);
          multiply(dw, ldx, a, padded_depth<T>(depth), x + part * block_of_x, rows, s.D, depth, part > 0);
        }
        // The sums stayed in the cache until here: tiles would wait for each line of dw.
        for (int64_t r = 0; r < rows; ++r) {
          write_gradient(g.dw + (j + c + r) * s.D, dw + r * ldx, s.D, chunk.begin > 0);
        }
        if (g.db) sum_bias(g.db + j + c, gradient + c, padded, rows, chunk);
      }
#pragma omp for schedule(dynamic, 1)
      for (int64_t c = 0; c < (block + 1 < s.blocks ? s.D : 0); c += kColumnsOfW) {
        pack_weight(w + (block + 1) % 2 * packed_w, block + 1, c, std::min(kColumnsOfW, s.D - c), in, s);
      }
    }
    stream_fence();
  }
}

void forward(float* losses, float* lse, const LinearCrossEntropyGradients<T>* gradients,
             const LinearCrossEntropy<T>& in) {
  if (gradients && in.M == 0) {
    std::memset(gradients->dw, 0, static_cast<size_t>(in.V * in.D) * sizeof(float));
    if (gradients->db) std::memset(gradients->db, 0, static_cast<size_t>(in.V) * sizeof(float));
  }
  if (in.M == 0) return;
  const Sizes s(in, gradients != nullptr);
  float* lines = scratch<float>(kLines, (s.blocks + kLineArrays) * s.lines);
  T* room = gradients ? scratch<T>(kExponentials, s.chunk * round_up(s.V, kPanel)) : nullptr;
  for (int64_t begin = 0; begin < in.M; begin += s.chunk) {
    const int64_t count = std::min(s.chunk, in.M - begin);
    const Chunk chunk{.begin = begin,
                      .count = count,
                      .x = padded_rows(in.x + begin * s.D, count, s),
                      .exponentials = room,
                      .sums = lines + kLineArrays * s.lines,
                      .base = lines,
                      .target_logits = lines + s.lines,
                      .factors = lines + 2 * s.lines};
    make_target_logits(chunk, in, s);
    exponentials(chunk, in, s);
    if (!add_sums(chunk, s)) {
      lower(chunk, in, s);
      exponentials(chunk, in, s);
      add_sums(chunk, s);
    }
    finish(losses, lse, chunk, gradients, in, s);
    if (gradients) backward(chunk, *gradients, in, s);
  }
}

}  // namespace

extern const LinearCrossEntropyKernels<T> linear_cross_entropy;
const LinearCrossEntropyKernels<T> linear_cross_entropy = {&forward};

}  // namespace RMOE_ISA
}  // namespace rmoe::kernels
