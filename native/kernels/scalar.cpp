// The reference: plain C++, one lane. The other instruction sets are tested against it.
#include <cmath>

#include "kernels/palette_layout.h"
#include "kernels/vector_kernels.h"

namespace pomona {
namespace {

struct Scalar {
  using F = float;
  static constexpr int width = 1;
  static constexpr int attend_rows = 1;
  static constexpr int value_blocks = 1;

  static F load(const float* p) { return *p; }
  static void store(float* p, F v) { *p = v; }
  static F set1(float v) { return v; }
  static F fma(F a, F b, F c) { return std::fma(a, b, c); }
  static F add(F a, F b) { return a + b; }
  static F sub(F a, F b) { return a - b; }
  static F mul(F a, F b) { return a * b; }
  static F div(F a, F b) { return a / b; }
  static F max(F a, F b) { return a > b ? a : b; }
  static F min(F a, F b) { return a < b ? a : b; }
  static F abs(F a) { return std::fabs(a); }
  static float sqrt(float a) { return std::sqrt(a); }
  static F round(F a) { return std::nearbyint(a); }
  static F exp2i(F n) { return std::ldexp(1.0f, static_cast<int>(n)); }
  static F zero_below(F x, F limit, F value) { return x < limit ? 0.0f : value; }
  static float reduce_add(F a) { return a; }
  static float reduce_max(F a) { return a; }
  static bool any_equal(F a, F b) { return a == b; }

  static F bf16(const std::uint16_t* p) {
    const std::uint32_t u = static_cast<std::uint32_t>(*p) << 16;
    float f;
    std::memcpy(&f, &u, 4);
    return f;
  }
  static F int8(const std::int8_t* p) { return static_cast<float>(*p); }
  static void bf16_pairs(const std::uint16_t* p, F& low, F& high) {
    low = bf16(p);
    high = bf16(p + 1);
  }
  // Rounds to int16, stores it as column k of a row, returns the sum of the lanes.
  static std::int32_t store_fine(F a, std::uint8_t* row, int, int k) {
    const auto q = static_cast<std::int16_t>(std::lrintf(a));
    std::memcpy(row + 2 * k, &q, 2);
    return q;
  }
  // Rounds to int8 and stores 128 times that as column k; adds to the sum and to the sum of squares.
  static void store_coarse(F a, std::uint8_t* row, int, int k, std::int32_t& sum, std::int32_t& squares) {
    const auto q = static_cast<std::int16_t>(std::lrintf(a));
    const auto shifted = static_cast<std::int16_t>(q * 128);
    std::memcpy(row + 2 * k, &shifted, 2);
    sum += q;
    squares += q * q;
  }
};

int packed_value(const Matrix& w, const std::uint8_t* group, const std::int8_t* table, int r, int k) {
  if (w.format == Format::int8) return group[static_cast<std::size_t>(k / 4) * 64 + r * 4 + k % 4] - 128;
  return table[palette_index(w.bits, group, r, k)];
}

void matmul_packed(const Matrix& w, int g0, int g1, const QuantRows& x, float* y, std::size_t y_stride,
                   std::uint8_t* scratch) {
  const bool palette = w.format == Format::palette;
  const int tables = w.tables_of_group();
  auto* values = reinterpret_cast<std::int8_t*>(scratch); // of one row
  for (int row = g0 * kGroupRows; row < g1 * kGroupRows; ++row) {
    const int g = row / kGroupRows, r = row % kGroupRows;
    const std::uint8_t* group = w.data + g * w.group_bytes();
    for (int k = 0; k < w.cols; ++k) {
      const int t = palette ? g * tables + k / w.table_cols : 0;
      values[k] = static_cast<std::int8_t>(packed_value(
          w, group, palette ? w.tables + static_cast<std::size_t>(t) * w.colors() : nullptr, r, k));
    }
    for (int m = 0; m < x.rows; ++m) {
      const auto* q = reinterpret_cast<const std::int16_t*>(x.q + static_cast<std::size_t>(m) * 2 * x.cols);
      float f = 0.0f;
      for (int b = 0; b < x.blocks(); ++b) {
        std::int32_t dot = 0;
        for (int k = b * kBlock; k < (b + 1) * kBlock; ++k) dot += values[k] * q[k];
        float scale = x.scale[static_cast<std::size_t>(m) * x.blocks() + b];
        if (palette) scale *= half_to_float(w.table_scales[g * tables + b * kBlock / w.table_cols]);
        f = std::fma(static_cast<float>(dot), scale, f);
      }
      y[m * y_stride + row] = f * half_to_float(w.row_scales[row]);
    }
  }
}

} // namespace

float half_to_float(std::uint16_t h) {
  const std::uint32_t sign = static_cast<std::uint32_t>(h & 0x8000u) << 16;
  const int exponent = (h >> 10) & 31;
  const std::uint32_t mantissa = h & 0x3ffu;
  if (exponent == 0) { // zero and subnormals
    const float f = std::ldexp(static_cast<float>(mantissa), -24);
    return sign ? -f : f;
  }
  const std::uint32_t bits =
      sign | (exponent == 31 ? 0x7f800000u : static_cast<std::uint32_t>(exponent + 112) << 23) |
      mantissa << 13;
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}

float weight_value(const Matrix& w, int row, int col) {
  if (w.format == Format::bf16)
    return Scalar::bf16(reinterpret_cast<const std::uint16_t*>(w.data) +
                        static_cast<std::size_t>(row) * w.cols + col);
  const int g = row / kGroupRows, r = row % kGroupRows;
  const std::uint8_t* group = w.data + g * w.group_bytes();
  float scale = half_to_float(w.row_scales[row]);
  const std::int8_t* table = nullptr;
  if (w.format == Format::palette) {
    const int t = g * (w.cols / w.table_cols) + col / w.table_cols;
    table = w.tables + static_cast<std::size_t>(t) * w.colors();
    scale *= half_to_float(w.table_scales[t]);
  }
  return static_cast<float>(packed_value(w, group, table, r, col)) * scale;
}

void embedding_row(const Matrix& w, int row, float* out) {
  for (int k = 0; k < w.cols; ++k) out[k] = weight_value(w, row, k);
}

const Kernels& scalar_kernels() {
  static const Kernels kernels = [] {
    Kernels k = VectorKernels<Scalar>::table("scalar");
    k.matmul_palette = matmul_packed;
    k.matmul_int8 = matmul_packed;
    return k;
  }();
  return kernels;
}

} // namespace pomona
