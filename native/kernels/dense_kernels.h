// Dense float32 products for calibration and palettes, written once over a vector type V (vector_kernels.h).
// Lanes are columns of the result: no sum is cut across lanes, so every instruction set computes the same
// bits.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>

#include "kernels/kernels.h"

namespace pomona {

template <class V>
struct DenseKernels {
  using F = typename V::F;
  static constexpr int W = V::width;
  static constexpr int kRows = 6;                 // of a tile
  static constexpr int kVectors = W == 8 ? 2 : 4; // as 16 or 32 registers allow

  template <int R, int C>
  static void tile(const float* a, std::size_t a_row, std::size_t a_step, const float* b,
                   std::size_t b_stride, int k, float* c, std::size_t c_stride) {
    F acc[R][C];
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < C; ++v) acc[r][v] = V::load(c + r * c_stride + v * W);
    const float* next = a + R * a_row; // the rows of the next tile, which no hardware foresees
    for (int t = 0; t < k; ++t, a += a_step, b += b_stride) {
      if constexpr (R == kRows)
        if (a_step == 1 && t % 16 == 0)
          for (int r = 0; r < R; ++r) __builtin_prefetch(next + r * a_row + t);
      F bv[C];
      for (int v = 0; v < C; ++v) bv[v] = V::load(b + v * W);
      for (int r = 0; r < R; ++r) {
        const F av = V::set1(a[r * a_row]);
        for (int v = 0; v < C; ++v) acc[r][v] = V::fma(av, bv[v], acc[r][v]);
      }
    }
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < C; ++v) V::store(c + r * c_stride + v * W, acc[r][v]);
  }

  template <int C>
  static void strip(const float* a, std::size_t a_row, std::size_t a_step, const float* b,
                    std::size_t b_stride, int k, float* c, std::size_t c_stride, int m) {
    int i = 0;
    for (; i + kRows <= m; i += kRows)
      tile<kRows, C>(a + i * a_row, a_row, a_step, b, b_stride, k, c + i * c_stride, c_stride);
    for (; i + 2 <= m; i += 2)
      tile<2, C>(a + i * a_row, a_row, a_step, b, b_stride, k, c + i * c_stride, c_stride);
    for (; i < m; ++i) tile<1, C>(a + i * a_row, a_row, a_step, b, b_stride, k, c + i * c_stride, c_stride);
  }

  static void multiply_add(const float* a, std::size_t a_row, std::size_t a_step, const float* b,
                           std::size_t b_stride, int k, float* c, std::size_t c_stride, int m, int n) {
    int j = 0;
    for (; j + kVectors * W <= n; j += kVectors * W)
      strip<kVectors>(a, a_row, a_step, b + j, b_stride, k, c + j, c_stride, m);
    for (; j + W <= n; j += W) strip<1>(a, a_row, a_step, b + j, b_stride, k, c + j, c_stride, m);
    for (int i = 0; i < m; ++i)
      for (int l = j; l < n; ++l) {
        float sum = c[i * c_stride + l];
        for (int t = 0; t < k; ++t) sum = std::fma(a[i * a_row + t * a_step], b[t * b_stride + l], sum);
        c[i * c_stride + l] = sum;
      }
  }

  // The compiler makes vectors of these loops.
  static void nearest(const float* x, const float* middles, int count, std::uint8_t* index) {
    std::int32_t above[kGroupRows] = {};
    for (int c = 0; c < count; ++c)
      for (int r = 0; r < kGroupRows; ++r) above[r] += x[r] > middles[c] ? 1 : 0;
    for (int r = 0; r < kGroupRows; ++r) index[r] = static_cast<std::uint8_t>(above[r]);
  }

  // Every lane keeps the first of its own least; of these the least is taken, and of equals the first. The
  // compiler cuts these vectors into registers.
  using Doubles = double __attribute__((vector_size(kCutLanes * sizeof(double))));
  static Doubles eight(const double* from) {
    Doubles v;
    std::memcpy(&v, from, sizeof v);
    return v;
  }
  static Doubles lesser(const Doubles& a, const Doubles& b) { return a < b ? a : b; }
  static Doubles least_of_lanes(Doubles v) { // in every lane
    v = lesser(v, Doubles{v[4], v[5], v[6], v[7], v[0], v[1], v[2], v[3]});
    v = lesser(v, Doubles{v[2], v[3], v[0], v[1], v[6], v[7], v[4], v[5]});
    return lesser(v, Doubles{v[1], v[0], v[3], v[2], v[5], v[4], v[7], v[6]});
  }
  static int cheapest_cut(const double* previous, const double* weight, const double* value,
                          const double* square, int first, int last, int j, double* best) {
    constexpr double kNever = std::numeric_limits<double>::infinity();
    const Doubles none{}, never = none + kNever;
    Doubles least = never, at = none + first, here = at + Doubles{0, 1, 2, 3, 4, 5, 6, 7};
    const double w = weight[j], v = value[j], s = square[j];
    for (int i = first; i <= last; i += kCutLanes, here += kCutLanes) {
      const Doubles mass = w - eight(weight + i), sum = v - eight(value + i);
      const Doubles distance = (s - eight(square + i)) - sum * sum / mass;
      const Doubles cost = eight(previous + i) + ((none < distance) & (mass > none) ? distance : none);
      const auto better = (cost < least) & (here <= none + last);
      least = better ? cost : least;
      at = better ? here : at;
    }
    const Doubles found = least_of_lanes(least), place = least_of_lanes(least == found ? at : never);
    *best = found[0];
    return static_cast<int>(place[0]);
  }
};

} // namespace pomona
