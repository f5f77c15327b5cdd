// Plain NEON, which every ARMv8-A processor has: table look-up by tbl, 15-bit activations as int16, products
// by smlal. A 64-byte line is four vectors of 4 rows x 4 columns; widened to int16 a row fills half a
// register, so every row has an accumulator of its own, which is added up at the end of a block.
#if defined(__aarch64__)

#include "kernels/neon_vector.h"

namespace pomona {
namespace {

struct Neon : NeonOperations {
  static std::int32_t store_fine(F a, std::uint8_t* row, int, int k) {
    const int32x4_t q = vcvtnq_s32_f32(a);
    vst1_s16(reinterpret_cast<std::int16_t*>(row) + k, vmovn_s32(q));
    return vaddvq_s32(q);
  }
  static void store_coarse(F a, std::uint8_t* row, int, int k, std::int32_t& sum, std::int32_t& squares) {
    const int32x4_t q = vcvtnq_s32_f32(a);
    vst1_s16(reinterpret_cast<std::int16_t*>(row) + k, vmovn_s32(vshlq_n_s32(q, 7)));
    sum += vaddvq_s32(q);
    squares += vaddvq_s32(vmulq_s32(q, q));
  }
};

// Four rows: acc[r] takes the products of row r with 4 columns, which x holds twice.
inline void dot(int32x4_t acc[4], int16x8_t rows01, int16x8_t rows23, int16x8_t x) {
  acc[0] = vmlal_s16(acc[0], vget_low_s16(rows01), vget_low_s16(x));
  acc[1] = vmlal_high_s16(acc[1], rows01, x);
  acc[2] = vmlal_s16(acc[2], vget_low_s16(rows23), vget_low_s16(x));
  acc[3] = vmlal_high_s16(acc[3], rows23, x);
}

inline int32x4_t rows_of(const int32x4_t acc[4]) {
  return vpaddq_s32(vpaddq_s32(acc[0], acc[1]), vpaddq_s32(acc[2], acc[3]));
}

inline int16x8_t twice(const std::int16_t* four_columns) {
  const int16x4_t v = vld1_s16(four_columns);
  return vcombine_s16(v, v);
}

// 4 V rows of a group, from its row 4 v0 on, against M tokens.
template <int Bits, int M, int V>
void part_of_group(const Matrix& w, int g, int v0, const QuantRows& x, int m0, float* y,
                   std::size_t y_stride) {
  constexpr bool palette = Bits < 8;
  const std::size_t stride = x.cols; // of the int16 activations
  const std::uint8_t* line = w.data + g * w.group_bytes() + 16 * v0;
  const auto* q = reinterpret_cast<const std::int16_t*>(x.q) + m0 * stride;
  const int blocks = x.blocks(), table_blocks = palette ? w.table_cols / kBlock : blocks;
  const std::size_t first_table = static_cast<std::size_t>(g) * w.tables_of_group();
  float32x4_t f[M][V];
  for (int m = 0; m < M; ++m)
    for (int v = 0; v < V; ++v) f[m][v] = vdupq_n_f32(0.0f);
  for (int b = 0; b < blocks; ++b) {
    int8x16_t entries = vdupq_n_s8(0);
    float t = 1.0f;
    if constexpr (palette) {
      const std::size_t i = first_table + b / table_blocks;
      entries = load_table<Bits>(w.tables + (i << Bits));
      t = half(w.table_scales[i]);
    }
    int32x4_t acc[M][V][4];
    for (int m = 0; m < M; ++m)
      for (int v = 0; v < V; ++v)
        for (int r = 0; r < 4; ++r) acc[m][v][r] = vdupq_n_s32(0);
    for (int k = 0; k < kBlock; k += kColumns<Bits>, line += kColumnBytes<Bits>) {
      const std::int16_t* p = q + b * kBlock + k;
      for (int v = 0; v < V; ++v) {
        int8x16_t steps[kColumns<Bits> / 4];
        unpack<Bits>(line + 16 * v, entries, steps);
        for (int step = 0; step < kColumns<Bits> / 4; ++step) {
          const int16x8_t rows01 = vmovl_s8(vget_low_s8(steps[step])), rows23 = vmovl_high_s8(steps[step]);
          for (int m = 0; m < M; ++m) dot(acc[m][v], rows01, rows23, twice(p + m * stride + 4 * step));
        }
      }
    }
    for (int m = 0; m < M; ++m) {
      const float32x4_t scale = vdupq_n_f32(x.scale[static_cast<std::size_t>(m0 + m) * blocks + b] * t);
      for (int v = 0; v < V; ++v) f[m][v] = vfmaq_f32(f[m][v], vcvtq_f32_s32(rows_of(acc[m][v])), scale);
    }
  }
  for (int v = 0; v < V; ++v) {
    const int row = g * kGroupRows + 4 * (v0 + v);
    for (int m = 0; m < M; ++m)
      vst1q_f32(y + m * y_stride + row, vmulq_f32(f[m][v], halves(w.row_scales + row)));
  }
}

template <int Bits>
void matmul(const Matrix& w, int g0, int g1, const QuantRows& x, float* y, std::size_t y_stride,
            std::uint8_t*) {
  for (int g = g0; g < g1; ++g) {
    int m = 0; // 16 accumulators, or 8 for the last token
    for (; m + 4 <= x.rows; m += 4)
      for (int v = 0; v < 4; ++v) part_of_group<Bits, 4, 1>(w, g, v, x, m, y + m * y_stride, y_stride);
    for (; m + 2 <= x.rows; m += 2)
      for (int v = 0; v < 4; v += 2) part_of_group<Bits, 2, 2>(w, g, v, x, m, y + m * y_stride, y_stride);
    for (; m < x.rows; ++m)
      for (int v = 0; v < 4; v += 2) part_of_group<Bits, 1, 2>(w, g, v, x, m, y + m * y_stride, y_stride);
  }
}

void matmul_palette(const Matrix& w, int g0, int g1, const QuantRows& x, float* y, std::size_t y_stride,
                    std::uint8_t* scratch) {
  const auto work = w.bits == 4 ? matmul<4> : w.bits == 3 ? matmul<3> : matmul<2>;
  work(w, g0, g1, x, y, y_stride, scratch);
}

} // namespace

const Kernels* neon_kernels() {
  static const Kernels kernels = [] {
    Kernels k = VectorKernels<Neon>::table("neon");
    k.matmul_palette = matmul_palette;
    k.matmul_int8 = matmul<8>;
    return k;
  }();
  return &kernels;
}

} // namespace pomona

#else

#include "kernels/kernels.h"
namespace pomona {
const Kernels* neon_kernels() { return nullptr; }
} // namespace pomona

#endif
