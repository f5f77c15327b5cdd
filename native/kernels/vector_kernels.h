// The floating-point kernels, written once over a vector type V that each instruction set supplies:
// V::F, V::width, load, store, set1, fma(a, b, c) = a * b + c, add, sub, mul, div, max, abs, round,
// exp2i (2^n for whole n), zero_below, store_coarse, store_fine, reduce_add, reduce_max, bf16 and int8 (width
// values),
// bf16_pairs (low and high halves of 32-bit lanes), any_equal.
//
// Every output row and token is folded in one fixed order whatever the tile sizes: results do not depend on
// the batch. V lives in an unnamed namespace of its file, so that no instantiation is shared between
// instruction sets.
#pragma once

#include <cstring>

#include "kernels/dense_kernels.h"
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
  static constexpr int kFactorPrefetch = 3072;  // bytes ahead in a stream of adapter weights
  static constexpr int kTile = W == 16 ? 4 : 2; // rows and tokens of a bf16 tile, as the registers allow

  // Sums along a row are kept in 16 lanes, whatever the width of a vector, and end in one tree (lanes i and i
  // + 8, i + 4, i + 2, i + 1): every instruction set gets the same bits.
  static float fold_lanes(F (&sums)[N]) {
    for (int half = N / 2; half > 0; half /= 2)
      for (int n = 0; n < half; ++n) sums[n] = V::add(sums[n], sums[n + half]);
    return V::reduce_add(sums[0]);
  }

  static void clear_lanes(F (&sums)[N]) {
    for (F& sum : sums) sum = V::set1(0.0f);
  }

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
    F acc[R][T][N];
    for (int r = 0; r < R; ++r)
      for (int t = 0; t < T; ++t) clear_lanes(acc[r][t]);
    const auto* weights =
        reinterpret_cast<const std::uint16_t*>(w.data) + static_cast<std::size_t>(row) * w.cols;
    for (int k = 0; k < w.cols; k += N * W)
      for (int n = 0; n < N; ++n) {
        F xv[T];
        for (int t = 0; t < T; ++t) xv[t] = V::load(x + t * x_stride + k + n * W);
        for (int r = 0; r < R; ++r) {
          const F wv = V::bf16(weights + static_cast<std::size_t>(r) * w.cols + k + n * W);
          for (int t = 0; t < T; ++t) acc[r][t][n] = V::fma(wv, xv[t], acc[r][t][n]);
        }
      }
    if constexpr (W == 16 && R == 4 && T == 4) {
      float sums[16];
      V::store(sums, V::sums(acc));
      for (int t = 0; t < T; ++t)
        for (int r = 0; r < R; ++r) y[t * y_stride + row + r] = sums[4 * t + r];
    } else {
      for (int r = 0; r < R; ++r)
        for (int t = 0; t < T; ++t) y[t * y_stride + row + r] = fold_lanes(acc[r][t]);
    }
  }

  template <int T>
  static void bf16_rows(const Matrix& w, int r0, int r1, const float* x, std::size_t x_stride, float* y,
                        std::size_t y_stride) {
    int row = r0;
    for (; row + kTile <= r1; row += kTile) bf16_tile<kTile, T>(w, row, x, x_stride, y, y_stride);
    for (; row < r1; ++row) bf16_tile<1, T>(w, row, x, x_stride, y, y_stride);
  }

  static void matmul_bf16(const Matrix& w, int r0, int r1, const float* x, std::size_t x_stride, int m,
                          float* y, std::size_t y_stride) {
    constexpr int kRowTile = 32; // stays in the first-level cache while all tokens pass
    for (int row = r0; row < r1; row += kRowTile) {
      const int end = row + kRowTile < r1 ? row + kRowTile : r1;
      int t = 0;
      for (; t + kTile <= m; t += kTile)
        bf16_rows<kTile>(w, row, end, x + t * x_stride, x_stride, y + t * y_stride, y_stride);
      for (; t < m; ++t) bf16_rows<1>(w, row, end, x + t * x_stride, x_stride, y + t * y_stride, y_stride);
    }
  }

  // The factors of two steps (columns of A, ranks of B) for 16 lanes.
  template <Format P>
  static void factor_pair(const std::uint8_t* p, int n, F& low, F& high) {
    if constexpr (P == Format::bf16) {
      V::bf16_pairs(reinterpret_cast<const std::uint16_t*>(p) + 2 * n * W, low, high);
    } else {
      low = V::int8(reinterpret_cast<const std::int8_t*>(p) + n * W);
      high = V::int8(reinterpret_cast<const std::int8_t*>(p) + kGroupRows + n * W);
    }
  }
  template <Format P>
  static constexpr int pair_bytes = 2 * kGroupRows*(P == Format::bf16 ? 2 : 1);
  static constexpr int kFactorRows = N == 1 ? 4 : 2; // rows of a tile, as registers allow

  // One unit of A times T rows.
  template <Format P, int T>
  static void lower_tile(const std::uint8_t* a, int cols, F scale, const float* x, std::size_t x_stride,
                         float* out, std::size_t out_stride, bool more) {
    F even[T][N], odd[T][N];
    for (int t = 0; t < T; ++t)
      for (int n = 0; n < N; ++n) even[t][n] = odd[t][n] = V::set1(0.0f);
    for (int k = 0; k < cols; k += 2, a += pair_bytes<P>) {
      __builtin_prefetch(a + kFactorPrefetch);
      for (int n = 0; n < N; ++n) {
        F low, high;
        factor_pair<P>(a, n, low, high);
        for (int t = 0; t < T; ++t) {
          even[t][n] = V::fma(low, V::set1(x[t * x_stride + k]), even[t][n]);
          odd[t][n] = V::fma(high, V::set1(x[t * x_stride + k + 1]), odd[t][n]);
        }
      }
    }
    for (int t = 0; t < T; ++t)
      for (int n = 0; n < N; ++n) {
        F sum = V::add(even[t][n], odd[t][n]);
        if constexpr (P == Format::int8) sum = V::mul(sum, scale);
        float* to = out + t * out_stride + n * W;
        V::store(to, more ? V::add(V::load(to), sum) : sum);
      }
  }

  template <Format P>
  static void lower_units(const LowerFactor& a, int unit0, int unit1, const float* x, std::size_t x_stride,
                          int m, float* out, std::size_t out_stride, std::size_t segment_stride) {
    const int segments = a.segments();
    for (int unit = unit0; unit < unit1; ++unit) {
      const int block = unit / segments, segment = unit % segments, k = segment * kBlock;
      const int cols = a.cols - k < kBlock ? a.cols - k : kBlock;
      const std::uint8_t* data = a.data + (static_cast<std::size_t>(block) * a.cols + k) / 2 * pair_bytes<P>;
      const F scale = V::set1(P == Format::int8 ? a.scales[unit] : 1.0f);
      const bool more = segment_stride == 0 && segment > 0;
      float* to = out + segment * segment_stride + block * kGroupRows;
      int t = 0;
      for (; t + kFactorRows <= m; t += kFactorRows)
        lower_tile<P, kFactorRows>(data, cols, scale, x + t * x_stride + k, x_stride, to + t * out_stride,
                                   out_stride, more);
      for (; t < m; ++t)
        lower_tile<P, 1>(data, cols, scale, x + t * x_stride + k, x_stride, to + t * out_stride, out_stride,
                         more);
    }
  }

  static void lower(const LowerFactor& a, int unit0, int unit1, const float* x, std::size_t x_stride, int m,
                    float* out, std::size_t out_stride, std::size_t segment_stride) {
    if (a.format == Format::int8)
      lower_units<Format::int8>(a, unit0, unit1, x, x_stride, m, out, out_stride, segment_stride);
    else
      lower_units<Format::bf16>(a, unit0, unit1, x, x_stride, m, out, out_stride, segment_stride);
  }

  // One group of B times T rows.
  template <Format P, int T>
  static void raise_tile(const std::uint8_t* b, int rank, F scale, const float* u, std::size_t u_stride,
                         float* y, std::size_t y_stride) {
    F acc[T][N];
    for (int t = 0; t < T; ++t)
      for (int n = 0; n < N; ++n) acc[t][n] = V::set1(0.0f);
    for (int j = 0; j < rank; j += 2, b += pair_bytes<P>) {
      __builtin_prefetch(b + kFactorPrefetch);
      for (int n = 0; n < N; ++n) {
        F low, high;
        factor_pair<P>(b, n, low, high);
        for (int t = 0; t < T; ++t) {
          acc[t][n] = V::fma(low, V::set1(u[t * u_stride + j]), acc[t][n]);
          acc[t][n] = V::fma(high, V::set1(u[t * u_stride + j + 1]), acc[t][n]);
        }
      }
    }
    for (int t = 0; t < T; ++t)
      for (int n = 0; n < N; ++n) {
        float* to = y + t * y_stride + n * W;
        V::store(to, V::fma(scale, acc[t][n], V::load(to)));
      }
  }

  template <Format P>
  static void raise_groups(const RaiseFactor& b, int g0, int g1, const float* u, std::size_t u_stride, int m,
                           float* y, std::size_t y_stride) {
    for (int g = g0; g < g1; ++g) {
      const std::uint8_t* group = b.data + static_cast<std::size_t>(g) * (b.rank / 2) * pair_bytes<P>;
      const F scale = V::set1(P == Format::int8 ? b.scales[g] : 1.0f);
      float* to = y + g * kGroupRows;
      int t = 0;
      for (; t + 4 <= m; t += 4)
        raise_tile<P, 4>(group, b.rank, scale, u + t * u_stride, u_stride, to + t * y_stride, y_stride);
      for (; t < m; ++t)
        raise_tile<P, 1>(group, b.rank, scale, u + t * u_stride, u_stride, to + t * y_stride, y_stride);
    }
  }

  static void raise(const RaiseFactor& b, int g0, int g1, const float* u, std::size_t u_stride, int m,
                    float* y, std::size_t y_stride) {
    if (b.format == Format::int8)
      raise_groups<Format::int8>(b, g0, g1, u, u_stride, m, y, y_stride);
    else
      raise_groups<Format::bf16>(b, g0, g1, u, u_stride, m, y, y_stride);
  }

  static void rms_norm(const float* x, const float* weight, int n, float eps, float* y) {
    F squares[N];
    clear_lanes(squares);
    for (int i = 0; i < n; i += N * W)
      for (int l = 0; l < N; ++l) {
        const F v = V::load(x + i + l * W);
        squares[l] = V::fma(v, v, squares[l]);
      }
    const float mean = fold_lanes(squares) / static_cast<float>(n);
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

  static void store_kv(Format format, std::uint8_t* page, int slot, const float* k, const float* v,
                       int head_dim) {
    if (format == Format::int8) {
      for (int g = 0; g < head_dim / kKeyGroup; ++g) {
        std::uint8_t* group = page + g * (2 + kKeyGroup) * kPageTokens;
        store_int8(k + g * kKeyGroup, kKeyGroup, group + 2 * slot, group + 2 * kPageTokens + slot,
                   kPageTokens);
      }
      std::uint8_t* values = page + key_bytes(format, head_dim);
      store_int8(v, head_dim, values + 2 * slot, values + 2 * kPageTokens + slot * head_dim, 1);
      return;
    }
    auto* to = reinterpret_cast<std::uint16_t*>(page);
    for (int i = 0; i < head_dim; ++i) to[(i / 2) * 2 * kPageTokens + slot * 2 + (i & 1)] = to_bf16(k[i]);
    to += kPageTokens * head_dim + (slot / 2) * 2 * head_dim;
    for (int i = 0; i < head_dim; ++i) to[2 * i + (slot & 1)] = to_bf16(v[i]);
  }

  // n values under one bf16 scale, rounded up so that none is cut; what is not finite makes the scale NaN.
  static void store_int8(const float* x, int n, std::uint8_t* scale, std::uint8_t* q, int stride) {
    float largest = 0.0f, nothing = 0.0f;
    for (int i = 0; i < n; ++i) {
      const float size = x[i] < 0.0f ? -x[i] : x[i];
      largest = size > largest ? size : largest;
      nothing += x[i] * 0.0f; // NaN if there is one, or an infinity
    }
    const float step = largest / 127.0f;
    std::uint32_t bits = 0x7fc00000u;
    if (nothing == 0.0f) std::memcpy(&bits, &step, 4);
    const auto half =
        static_cast<std::uint16_t>(largest < 1e-30f && nothing == 0.0f ? 0 : (bits + 0xffffu) >> 16);
    std::memcpy(scale, &half, 2);
    bits = static_cast<std::uint32_t>(half) << 16;
    float rounded;
    std::memcpy(&rounded, &bits, 4);
    const float inverse = rounded > 0.0f ? 1.0f / rounded : 0.0f;
    for (int i = 0; i < n; ++i)
      q[i * stride] = static_cast<std::uint8_t>(
          static_cast<std::int8_t>(inverse > 0.0f ? __builtin_lrintf(x[i] * inverse) : 0));
  }

  // 16 channels of the keys of a page against R query rows.
  template <Format P, int R>
  static void score_group(const std::uint8_t* keys, const std::uint8_t* next, const float* q, int head_dim,
                          F (&acc)[R][N]) {
    for (int i = 0; i < kKeyGroup; i += 2) {
      __builtin_prefetch(next + i / 2 * pair_bytes<P>);
      for (int n = 0; n < N; ++n) {
        F low, high;
        factor_pair<P>(keys + i / 2 * pair_bytes<P>, n, low, high);
        for (int r = 0; r < R; ++r) {
          acc[r][n] = V::fma(low, V::set1(q[r * head_dim + i]), acc[r][n]);
          acc[r][n] = V::fma(high, V::set1(q[r * head_dim + i + 1]), acc[r][n]);
        }
      }
    }
  }

  // Scores, softmax and weighted values of R query rows over one chunk.
  template <Format P, int R>
  static void attend_tile(const AttendArgs& a, int row) {
    constexpr int kGroupBytes = kKeyGroup / 2 * pair_bytes<P> + (P == Format::int8 ? 2 * kPageTokens : 0);
    const std::size_t value_offset = key_bytes(P, a.head_dim);
    alignas(64) float s[R][kChunkTokens];
    const float* q = a.q + static_cast<std::size_t>(row) * a.head_dim;
    int seen = 0;
    for (int r = 0; r < R; ++r) seen = a.visible[row + r] > seen ? a.visible[row + r] : seen;
    const int pages = (seen + kPageTokens - 1) / kPageTokens, padded = pages * kPageTokens;

    for (int p = 0; p < pages; ++p) {
      F acc[R][N];
      for (int r = 0; r < R; ++r)
        for (int n = 0; n < N; ++n) acc[r][n] = V::set1(0.0f);
      const std::uint8_t* keys = a.pages[p];
      const std::uint8_t* next = p + 1 < pages ? a.pages[p + 1] : a.pages[0] + value_offset;
      for (int i = 0; i < a.head_dim; i += kKeyGroup, keys += kGroupBytes, next += kGroupBytes) {
        if constexpr (P == Format::bf16) {
          score_group<P, R>(keys, next, q + i, a.head_dim, acc);
        } else {
          F part[R][N];
          for (int r = 0; r < R; ++r)
            for (int n = 0; n < N; ++n) part[r][n] = V::set1(0.0f);
          score_group<P, R>(keys + 2 * kPageTokens, next, q + i, a.head_dim, part);
          for (int n = 0; n < N; ++n) {
            const F scale = V::bf16(reinterpret_cast<const std::uint16_t*>(keys) + n * W);
            for (int r = 0; r < R; ++r) acc[r][n] = V::fma(part[r][n], scale, acc[r][n]);
          }
        }
      }
      for (int r = 0; r < R; ++r)
        for (int n = 0; n < N; ++n) V::store(&s[r][p * kPageTokens + n * W], acc[r][n]);
    }

    for (int r = 0; r < R; ++r) {
      const int visible = a.visible[row + r];
      for (int j = visible; j < padded; ++j) s[r][j] = kMasked;
      F m = V::set1(kMasked), sum[N];
      clear_lanes(sum);
      for (int j = 0; j < padded; j += W) m = V::max(m, V::load(&s[r][j]));
      const float largest = V::reduce_max(m);
      const F shift = V::set1(visible > 0 ? largest : 0.0f); // a row that sees nothing gets exp(-1e30) = 0
      for (int j = 0; j < padded; j += kPageTokens)
        for (int n = 0; n < N; ++n) {
          const F e = exp(V::sub(V::load(&s[r][j + n * W]), shift));
          sum[n] = V::add(sum[n], e);
          V::store(&s[r][j + n * W], e);
        }
      a.max[row + r] = largest;
      a.sum[row + r] = fold_lanes(sum);
    }
    if constexpr (P == Format::int8) {
      for (int p = 0; p < pages; ++p)
        for (int n = 0; n < N; ++n) {
          const F scale = V::bf16(reinterpret_cast<const std::uint16_t*>(a.pages[p] + value_offset) + n * W);
          for (int r = 0; r < R; ++r) {
            float* weight = &s[r][p * kPageTokens + n * W];
            V::store(weight, V::mul(V::load(weight), scale));
          }
        }
    }

    constexpr int B = V::value_blocks; // 16-lane blocks of D held in registers at once
    for (int d0 = 0; d0 < a.head_dim; d0 += 16 * B) {
      const int blocks = (a.head_dim - d0) / 16 < B ? (a.head_dim - d0) / 16 : B;
      if (blocks == B)
        weigh_values<P, R, B>(a, row, s, seen, d0);
      else
        for (int b = 0; b < blocks; ++b) weigh_values<P, R, 1>(a, row, s, seen, d0 + 16 * b);
    }
  }

  template <Format P, int R, int B>
  static void weigh_values(const AttendArgs& a, int row, const float (*s)[kChunkTokens], int seen, int d0) {
    constexpr int kBytes = P == Format::bf16 ? 2 : 1; // of a value
    const std::size_t offset = key_bytes(P, a.head_dim) + (P == Format::int8 ? 2 * kPageTokens : 0) +
                               (P == Format::bf16 ? 4 : 1) * d0;
    const std::size_t pair = static_cast<std::size_t>(2 * kBytes) * a.head_dim; // bytes of two tokens
    F acc[R][B * N];
    for (int r = 0; r < R; ++r)
      for (int n = 0; n < B * N; ++n) acc[r][n] = V::set1(0.0f);
    for (int j = 0; 2 * j < seen; ++j) {
      const int page = j / (kPageTokens / 2), in_page = j % (kPageTokens / 2);
      const std::uint8_t* values = a.pages[page] + offset + in_page * pair;
      const bool more = (page + 1) * kPageTokens < seen;
      const std::uint8_t* next = a.pages[more ? page + 1 : page] + offset + in_page * pair;
      for (int n = 0; n < B * N; ++n) {
        F low, high;
        if constexpr (P == Format::bf16) {
          __builtin_prefetch(next + 4 * n * W);
          V::bf16_pairs(reinterpret_cast<const std::uint16_t*>(values) + 2 * n * W, low, high);
        } else {
          if (n * W % 32 == 0) __builtin_prefetch(next + 2 * n * W);
          low = V::int8(reinterpret_cast<const std::int8_t*>(values) + n * W);
          high = V::int8(reinterpret_cast<const std::int8_t*>(values) + a.head_dim + n * W);
        }
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

  template <Format P>
  static void attend_rows(const AttendArgs& a) {
    int row = 0;
    if constexpr (V::attend_rows >= 6)
      for (; row + 6 <= a.rows; row += 6) attend_tile<P, 6>(a, row);
    if constexpr (V::attend_rows >= 3)
      for (; row + 3 <= a.rows; row += 3) attend_tile<P, 3>(a, row);
    for (; row < a.rows; ++row) attend_tile<P, 1>(a, row);
  }

  static void attend(const AttendArgs& a) {
    if (a.format == Format::int8)
      attend_rows<Format::int8>(a);
    else
      attend_rows<Format::bf16>(a);
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
    constexpr int kLanes = N * W;
    const int whole = n / kLanes * kLanes;
    F m = V::set1(kMasked);
    for (int i = 0; i < whole; i += W) m = V::max(m, V::load(x + i));
    float largest = V::reduce_max(m);
    for (int i = whole; i < n; ++i) largest = x[i] > largest ? x[i] : largest;
    // Four partial sums, each short enough that float32 keeps the last digits.
    const F shift = V::set1(largest);
    F sums[4][N];
    for (auto& lanes : sums) clear_lanes(lanes);
    const auto add = [&](F(&lanes)[N], const float* from) {
      for (int l = 0; l < N; ++l) lanes[l] = V::add(lanes[l], exp(V::sub(V::load(from + l * W), shift)));
    };
    int i = 0;
    for (; i + 4 * kLanes <= whole; i += 4 * kLanes)
      for (int j = 0; j < 4; ++j) add(sums[j], x + i + j * kLanes);
    for (; i < whole; i += kLanes) add(sums[0], x + i);
    double sum = 0.0;
    for (auto& lanes : sums) sum += fold_lanes(lanes);
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
    k.lower = lower;
    k.raise = raise;
    k.rms_norm = rms_norm;
    k.swiglu = swiglu;
    k.add = add;
    k.rope = rope;
    k.attend = attend;
    k.fold = fold;
    k.store_kv = store_kv;
    k.log_sum_exp = log_sum_exp;
    k.argmax = argmax;
    k.multiply_add = DenseKernels<V>::multiply_add;
    k.nearest = DenseKernels<V>::nearest;
    k.cheapest_cut = DenseKernels<V>::cheapest_cut;
    return k;
  }
};

} // namespace pomona
