// The floating-point kernels, written once over a vector type V that each instruction set supplies:
// V::F, V::width, load, store, set1, fma(a, b, c) = a * b + c, add, sub, mul, div, max, abs, round,
// exp2i (2^n for whole n), zero_below, store_coarse, store_fine, reduce_add, reduce_max, bf16 (width values),
// bf16_pairs (low and high halves of 32-bit lanes), any_equal.
//
// Every output row and token is folded in one fixed order whatever the tile sizes: results do not depend on
// the batch. V lives in an unnamed namespace of its file, so that no instantiation is shared between
// instruction sets.
#pragma once

#include <cstring>

#include "kernels/kernels.h"

namespace pomona {

// Of internal linkage: a definition shared between files could be the one compiled for the wrong instruction
// set.
static inline std::uint16_t to_bf16(float x) {
  std::uint32_t u;
  std::memcpy(&u, &x, 4);
  if ((u & 0x7fffffffu) > 0x7f800000u) return static_cast<std::uint16_t>((u >> 16) | 0x40); // NaN stays NaN
  return static_cast<std::uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);                // nearest even
}

template <class V>
struct VectorKernels {
  using F = typename V::F;
  static constexpr int W = V::width;
  static constexpr int N = kPageTokens / W; // vectors of a page's 16 lanes
  static constexpr float kMasked = -1e30f;

  // exp(x), relative error below 2e-7; 0 below -87. Cephes-style split of ln 2 and a degree-6 polynomial.
  static F exp(F x) {
    const F clamped = V::max(x, V::set1(-87.0f));
    const F n = V::round(V::mul(clamped, V::set1(1.44269504088896341f)));
    F r = V::fma(n, V::set1(-0.693359375f), clamped);
    r = V::fma(n, V::set1(2.12194440e-4f), r);
    F p = V::set1(1.9875691500e-4f);
    p = V::fma(p, r, V::set1(1.3981999507e-3f));
    p = V::fma(p, r, V::set1(8.3334519073e-3f));
    p = V::fma(p, r, V::set1(4.1665795894e-2f));
    p = V::fma(p, r, V::set1(1.6666665459e-1f));
    p = V::fma(p, r, V::set1(5.0000001201e-1f));
    p = V::fma(V::mul(p, r), r, V::add(r, V::set1(1.0f)));
    return V::zero_below(x, V::set1(-87.0f), V::mul(p, V::exp2i(n)));
  }

  static void quantize(const float* x, const QuantRows& rows, int m) {
    const int blocks = rows.blocks();
    std::uint8_t* q = rows.q + static_cast<std::size_t>(m) * 2 * rows.cols;
    float* scale = rows.scale + static_cast<std::size_t>(m) * blocks;
    std::int32_t* offset = rows.offset + static_cast<std::size_t>(m) * blocks;
    std::uint8_t* fine = rows.fine + static_cast<std::size_t>(m) * blocks;
    // All blocks at 8 bits; the row's energy from whole numbers, so that every instruction set finds the
    // same.
    double energy = 0.0;
    for (int b = 0; b < blocks; ++b) {
      const float* p = x + b * kBlock;
      F largest_lanes = V::set1(0.0f), nothing = V::set1(0.0f);
      for (int i = 0; i < kBlock; i += W) {
        largest_lanes = V::max(largest_lanes, V::abs(V::load(p + i)));
        nothing = V::fma(V::load(p + i), V::set1(0.0f), nothing); // NaN if there is one
      }
      const float largest = V::reduce_max(largest_lanes);
      // Blocks of zeros, of infinities and of NaN say nothing.
      const bool usable = largest > 1e-25f && largest < 1e25f && V::reduce_add(nothing) == 0.0f;
      const F inverse = V::set1(usable ? 127.0f / largest : 0.0f);
      std::int32_t sum = 0, squares = 0;
      for (int i = 0; i < kBlock; i += W)
        V::store_coarse(usable ? V::mul(V::load(p + i), inverse) : inverse, q, rows.cols, b * kBlock + i, sum,
                        squares);
      scale[b] = usable ? largest / kQuantMax : 0.0f;
      offset[b] = -128 * sum;
      energy += static_cast<double>(scale[b]) * scale[b] * squares;
    }
    const double limit = energy * (static_cast<double>(kCoarseError) * 12.0 / kBlock);
    for (int b = 0; b < blocks; ++b) {
      fine[b] = static_cast<double>(scale[b]) * scale[b] > limit;
      if (!fine[b]) continue;
      const float* p = x + b * kBlock;
      const F inverse = V::set1(1.0f / scale[b]);
      std::int32_t sum = 0;
      for (int i = 0; i < kBlock; i += W)
        sum += V::store_fine(V::mul(V::load(p + i), inverse), q, rows.cols, b * kBlock + i);
      offset[b] = -sum;
    }
  }

  // R weight rows x T tokens, lanes along K.
  template <int R, int T>
  static void bf16_tile(const Matrix& w, int row, const float* x, std::size_t x_stride, float* y,
                        std::size_t y_stride) {
    F acc[R][T];
    for (int r = 0; r < R; ++r)
      for (int t = 0; t < T; ++t) acc[r][t] = V::set1(0.0f);
    const auto* weights =
        reinterpret_cast<const std::uint16_t*>(w.data) + static_cast<std::size_t>(row) * w.cols;
    for (int k = 0; k < w.cols; k += W) {
      F xv[T];
      for (int t = 0; t < T; ++t) xv[t] = V::load(x + t * x_stride + k);
      for (int r = 0; r < R; ++r) {
        const F wv = V::bf16(weights + static_cast<std::size_t>(r) * w.cols + k);
        for (int t = 0; t < T; ++t) acc[r][t] = V::fma(wv, xv[t], acc[r][t]);
      }
    }
    for (int r = 0; r < R; ++r)
      for (int t = 0; t < T; ++t) y[t * y_stride + row + r] = V::reduce_add(acc[r][t]);
  }

  template <int T>
  static void bf16_rows(const Matrix& w, int r0, int r1, const float* x, std::size_t x_stride, float* y,
                        std::size_t y_stride) {
    int row = r0;
    for (; row + 4 <= r1; row += 4) bf16_tile<4, T>(w, row, x, x_stride, y, y_stride);
    for (; row < r1; ++row) bf16_tile<1, T>(w, row, x, x_stride, y, y_stride);
  }

  static void matmul_bf16(const Matrix& w, int r0, int r1, const float* x, std::size_t x_stride, int m,
                          float* y, std::size_t y_stride) {
    constexpr int kRowTile = 32; // stays in the first-level cache while all tokens pass
    for (int row = r0; row < r1; row += kRowTile) {
      const int end = row + kRowTile < r1 ? row + kRowTile : r1;
      int t = 0;
      for (; t + 4 <= m; t += 4)
        bf16_rows<4>(w, row, end, x + t * x_stride, x_stride, y + t * y_stride, y_stride);
      for (; t < m; ++t) bf16_rows<1>(w, row, end, x + t * x_stride, x_stride, y + t * y_stride, y_stride);
    }
  }

  static void add_low_rank(const std::uint16_t* b, int rank, int g0, int g1, const float* u,
                           std::size_t u_stride, int m, float scale, float* y, std::size_t y_stride) {
    for (int g = g0; g < g1; ++g) {
      const std::uint16_t* group = b + static_cast<std::size_t>(g) * rank * kGroupRows;
      int t = 0;
      for (; t + 4 <= m; t += 4)
        low_rank_tile<4>(group, rank, u + t * u_stride, u_stride, scale, y + t * y_stride + g * kGroupRows,
                         y_stride);
      for (; t < m; ++t)
        low_rank_tile<1>(group, rank, u + t * u_stride, u_stride, scale, y + t * y_stride + g * kGroupRows,
                         y_stride);
    }
  }

  template <int T>
  static void low_rank_tile(const std::uint16_t* b, int rank, const float* u, std::size_t u_stride,
                            float scale, float* y, std::size_t y_stride) {
    F acc[T][N];
    for (int t = 0; t < T; ++t)
      for (int n = 0; n < N; ++n) acc[t][n] = V::set1(0.0f);
    for (int j = 0; j < rank; j += 2, b += 2 * kGroupRows)
      for (int n = 0; n < N; ++n) {
        F low, high;
        V::bf16_pairs(b + 2 * n * W, low, high);
        for (int t = 0; t < T; ++t) {
          acc[t][n] = V::fma(low, V::set1(u[t * u_stride + j]), acc[t][n]);
          acc[t][n] = V::fma(high, V::set1(u[t * u_stride + j + 1]), acc[t][n]);
        }
      }
    for (int t = 0; t < T; ++t)
      for (int n = 0; n < N; ++n) {
        float* to = y + t * y_stride + n * W;
        V::store(to, V::fma(V::set1(scale), acc[t][n], V::load(to)));
      }
  }

  static void rms_norm(const float* x, const float* weight, int n, float eps, float* y) {
    F squares = V::set1(0.0f);
    for (int i = 0; i < n; i += W) {
      const F v = V::load(x + i);
      squares = V::fma(v, v, squares);
    }
    const float mean = V::reduce_add(squares) / static_cast<float>(n);
    const F factor = V::set1(1.0f / V::sqrt(mean + eps));
    for (int i = 0; i < n; i += W)
      V::store(y + i, V::mul(V::mul(V::load(x + i), factor), V::load(weight + i)));
  }

  static void swiglu(float* gate, const float* up, int n) {
    const F one = V::set1(1.0f), zero = V::set1(0.0f);
    for (int i = 0; i < n; i += W) {
      const F g = V::load(gate + i);
      const F silu = V::div(g, V::add(one, exp(V::min(V::sub(zero, g), V::set1(88.0f)))));
      V::store(gate + i, V::mul(silu, V::load(up + i)));
    }
  }

  static void add(float* x, const float* y, int n) {
    for (int i = 0; i < n; i += W) V::store(x + i, V::add(V::load(x + i), V::load(y + i)));
  }

  static void rope(float* head, int head_dim, const float* cos, const float* sin) {
    const int half = head_dim / 2;
    int i = 0;
    for (; i + W <= half; i += W) {
      const F a = V::load(head + i), b = V::load(head + half + i), c = V::load(cos + i), s = V::load(sin + i);
      V::store(head + i, V::sub(V::mul(a, c), V::mul(b, s)));
      V::store(head + half + i, V::add(V::mul(b, c), V::mul(a, s)));
    }
    for (; i < half; ++i) {
      const float a = head[i], b = head[half + i];
      head[i] = a * cos[i] - b * sin[i];
      head[half + i] = b * cos[i] + a * sin[i];
    }
  }

  static void store_kv(std::uint16_t* page, int slot, const float* k, const float* v, int head_dim) {
    for (int i = 0; i < head_dim; ++i) page[(i / 2) * 2 * kPageTokens + slot * 2 + (i & 1)] = to_bf16(k[i]);
    std::uint16_t* values = page + kPageTokens * head_dim + (slot / 2) * 2 * head_dim;
    for (int i = 0; i < head_dim; ++i) values[2 * i + (slot & 1)] = to_bf16(v[i]);
  }

  // Scores, softmax and weighted values of R query rows over one chunk.
  template <int R>
  static void attend_tile(const AttendArgs& a, int row) {
    alignas(64) float s[R][kChunkTokens];
    const float* q = a.q + static_cast<std::size_t>(row) * a.head_dim;
    int seen = 0;
    for (int r = 0; r < R; ++r) seen = a.visible[row + r] > seen ? a.visible[row + r] : seen;
    const int pages = (seen + kPageTokens - 1) / kPageTokens, padded = pages * kPageTokens;

    for (int p = 0; p < pages; ++p) {
      F acc[R][N];
      for (int r = 0; r < R; ++r)
        for (int n = 0; n < N; ++n) acc[r][n] = V::set1(0.0f);
      const std::uint16_t* keys = a.pages[p];
      for (int i = 0; i < a.head_dim; i += 2, keys += 2 * kPageTokens) {
        for (int n = 0; n < N; ++n) {
          F low, high;
          V::bf16_pairs(keys + 2 * n * W, low, high);
          for (int r = 0; r < R; ++r) {
            acc[r][n] = V::fma(low, V::set1(q[r * a.head_dim + i]), acc[r][n]);
            acc[r][n] = V::fma(high, V::set1(q[r * a.head_dim + i + 1]), acc[r][n]);
          }
        }
      }
      for (int r = 0; r < R; ++r)
        for (int n = 0; n < N; ++n) V::store(&s[r][p * kPageTokens + n * W], acc[r][n]);
    }

    for (int r = 0; r < R; ++r) {
      const int visible = a.visible[row + r];
      for (int j = visible; j < padded; ++j) s[r][j] = kMasked;
      F m = V::set1(kMasked), sum = V::set1(0.0f);
      for (int j = 0; j < padded; j += W) m = V::max(m, V::load(&s[r][j]));
      const float largest = V::reduce_max(m);
      const F shift = V::set1(visible > 0 ? largest : 0.0f); // a row that sees nothing gets exp(-1e30) = 0
      for (int j = 0; j < padded; j += W) {
        const F e = exp(V::sub(V::load(&s[r][j]), shift));
        sum = V::add(sum, e);
        V::store(&s[r][j], e);
      }
      a.max[row + r] = largest;
      a.sum[row + r] = V::reduce_add(sum);
    }

    constexpr int B = V::value_blocks; // 16-lane blocks of D held in registers at once
    for (int d0 = 0; d0 < a.head_dim; d0 += 16 * B) {
      const int blocks = (a.head_dim - d0) / 16 < B ? (a.head_dim - d0) / 16 : B;
      if (blocks == B)
        weigh_values<R, B>(a, row, s, seen, d0);
      else
        for (int b = 0; b < blocks; ++b) weigh_values<R, 1>(a, row, s, seen, d0 + 16 * b);
    }
  }

  template <int R, int B>
  static void weigh_values(const AttendArgs& a, int row, const float (*s)[kChunkTokens], int seen, int d0) {
    F acc[R][B * N];
    for (int r = 0; r < R; ++r)
      for (int n = 0; n < B * N; ++n) acc[r][n] = V::set1(0.0f);
    for (int j = 0; 2 * j < seen; ++j) {
      const std::uint16_t* values = a.pages[j / (kPageTokens / 2)] + kPageTokens * a.head_dim +
                                    (j % (kPageTokens / 2)) * 2 * a.head_dim + 2 * d0;
      for (int n = 0; n < B * N; ++n) {
        F low, high;
        V::bf16_pairs(values + 2 * n * W, low, high);
        for (int r = 0; r < R; ++r) {
          acc[r][n] = V::fma(low, V::set1(s[r][2 * j]), acc[r][n]);
          // What an earlier owner of the page left in the second half of the last pair must not reach a
          // product.
          if (2 * j + 1 < seen) acc[r][n] = V::fma(high, V::set1(s[r][2 * j + 1]), acc[r][n]);
        }
      }
    }
    for (int r = 0; r < R; ++r)
      for (int n = 0; n < B * N; ++n)
        V::store(a.out + static_cast<std::size_t>(row + r) * a.head_dim + d0 + n * W, acc[r][n]);
  }

  static void attend(const AttendArgs& a) {
    int row = 0;
    if constexpr (V::attend_rows >= 6)
      for (; row + 6 <= a.rows; row += 6) attend_tile<6>(a, row);
    if constexpr (V::attend_rows >= 3)
      for (; row + 3 <= a.rows; row += 3) attend_tile<3>(a, row);
    for (; row < a.rows; ++row) attend_tile<1>(a, row);
  }

  static void fold(float* max, float* sum, float* out, float chunk_max, float chunk_sum,
                   const float* chunk_out, int n) {
    if (chunk_sum == 0.0f) return;
    const float largest = *max > chunk_max ? *max : chunk_max;
    alignas(64) float factors[16] = {*max - largest, chunk_max - largest};
    for (int i = 0; i < 2; i += W) V::store(factors + i, exp(V::load(factors + i)));
    const F old_factor = V::set1(factors[0]), new_factor = V::set1(factors[1]);
    for (int i = 0; i < n; i += W)
      V::store(out + i, V::fma(V::load(out + i), old_factor, V::mul(V::load(chunk_out + i), new_factor)));
    *sum = *sum * factors[0] + chunk_sum * factors[1];
    *max = largest;
  }

  static float log_sum_exp(const float* x, int n) {
    const int whole = n / W * W;
    F m = V::set1(kMasked);
    for (int i = 0; i < whole; i += W) m = V::max(m, V::load(x + i));
    float largest = V::reduce_max(m);
    for (int i = whole; i < n; ++i) largest = x[i] > largest ? x[i] : largest;
    // Four partial sums, each short enough that float32 keeps the last digits.
    const F shift = V::set1(largest);
    F sums[4] = {V::set1(0.0f), V::set1(0.0f), V::set1(0.0f), V::set1(0.0f)};
    int i = 0;
    for (; i + 4 * W <= whole; i += 4 * W)
      for (int j = 0; j < 4; ++j) sums[j] = V::add(sums[j], exp(V::sub(V::load(x + i + j * W), shift)));
    for (; i < whole; i += W) sums[0] = V::add(sums[0], exp(V::sub(V::load(x + i), shift)));
    double sum = 0.0;
    for (const F& s : sums) sum += V::reduce_add(s);
    for (; i < n; ++i) sum += __builtin_expf(x[i] - largest);
    return largest + static_cast<float>(__builtin_log(sum));
  }

  static int argmax(const float* x, int n) {
    const int whole = n / W * W;
    F m = V::set1(-3.4e38f);
    for (int i = 0; i < whole; i += W) m = V::max(V::load(x + i), m); // in this order max passes over NaN
    float largest = V::reduce_max(m);
    for (int i = whole; i < n; ++i) largest = x[i] > largest ? x[i] : largest;
    const F wanted = V::set1(largest);
    int i = 0;
    while (i < whole && !V::any_equal(V::load(x + i), wanted)) i += W;
    for (; i < n; ++i)
      if (x[i] == largest) return i;
    return 0; // no finite logit
  }

  static Kernels table(const char* name) {
    Kernels k{};
    k.name = name;
    k.quantize = quantize;
    k.matmul_bf16 = matmul_bf16;
    k.add_low_rank = add_low_rank;
    k.rms_norm = rms_norm;
    k.swiglu = swiglu;
    k.add = add;
    k.rope = rope;
    k.attend = attend;
    k.fold = fold;
    k.store_kv = store_kv;
    k.log_sum_exp = log_sum_exp;
    k.argmax = argmax;
    return k;
  }
};

} // namespace pomona
