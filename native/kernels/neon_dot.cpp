// NEON with the dot-product extension (ARMv8.2-A and later: Cortex-A55/A76, Neoverse, Apple): table look-up
// by tbl, products by sdot, which adds 4 columns to each of 4 rows. Activations lie in two int8 planes, x_q =
// 128 high + low; weights are signed, so no offset is needed.
#if defined(__aarch64__) && defined(__ARM_FEATURE_DOTPROD)

#include "kernels/neon_vector.h"

namespace pomona {
namespace {

struct NeonDot : NeonOperations {
  // high = round(q / 128), low = q - 128 high in -64 .. 63.
  static std::int32_t store_quantized(F a, std::uint8_t* row, int cols, int k) {
    const int32x4_t q = vcvtnq_s32_f32(a);
    const int32x4_t high = vshrq_n_s32(vaddq_s32(q, vdupq_n_s32(64)), 7);
    const int32x4_t low = vsubq_s32(q, vshlq_n_s32(high, 7));
    const int8x8_t bytes = vmovn_s16(vcombine_s16(vmovn_s32(high), vmovn_s32(low)));
    const std::uint64_t both = vget_lane_u64(vreinterpret_u64_s8(bytes), 0);
    const auto first = static_cast<std::uint32_t>(both), second = static_cast<std::uint32_t>(both >> 32);
    std::memcpy(row + k, &first, 4);
    std::memcpy(row + cols + k, &second, 4);
    return vaddvq_s32(q);
  }
};

// 4 columns, those of lane L of x, added to 4 rows.
template <int L>
inline void dot(int32x4_t& acc, int8x16_t weights, int8x16_t x) {
  acc = vdotq_laneq_s32(acc, weights, x, L);
}

// 4 V rows of a group, from its row 4 v0 on, against M tokens.
template <bool Palette, int M, int V>
struct Part {
  int32x4_t high[M][V], low[M][V];
  int8x16_t x_high[M], x_low[M]; // 16 columns

  template <int L>
  void add(int v, int8x16_t weights) {
    for (int m = 0; m < M; ++m) {
      dot<L>(high[m][v], weights, x_high[m]);
      dot<L>(low[m][v], weights, x_low[m]);
    }
  }

  // A line of 8 columns, the first of which is in lane L.
  template <int L>
  void add_palette_line(const std::uint8_t* line, int8x16_t entries) {
    for (int v = 0; v < V; ++v) {
      const uint8x16_t bytes = vld1q_u8(line + 16 * v);
      add<L>(v, vqtbl1q_s8(entries, vandq_u8(bytes, vdupq_n_u8(15))));
      add<L + 1>(v, vqtbl1q_s8(entries, vshrq_n_u8(bytes, 4)));
    }
  }

  // A line of 4 columns.
  template <int L>
  void add_int8_line(const std::uint8_t* line) {
    for (int v = 0; v < V; ++v) add<L>(v, centred(vld1q_u8(line + 16 * v)));
  }

  static void multiply(const Matrix& w, int g, int v0, const QuantRows& x, int m0, float* y,
                       std::size_t y_stride) {
    const std::size_t row_bytes = 2 * static_cast<std::size_t>(x.cols);
    const std::uint8_t* line = w.data + g * w.group_bytes() + 16 * v0;
    const auto* q = reinterpret_cast<const std::int8_t*>(x.q) + m0 * row_bytes;
    const int blocks = x.blocks(), table_blocks = Palette ? w.table_cols / kBlock : blocks;
    const std::size_t first_table = Palette ? static_cast<std::size_t>(g) * (blocks / table_blocks) : 0;
    float32x4_t f[M][V];
    for (int m = 0; m < M; ++m)
      for (int v = 0; v < V; ++v) f[m][v] = vdupq_n_f32(0.0f);
    for (int b = 0; b < blocks; ++b) {
      int8x16_t entries = vdupq_n_s8(0);
      float t = 1.0f;
      if constexpr (Palette) {
        const std::size_t i = first_table + b / table_blocks;
        entries = vld1q_s8(w.tables + 16 * i);
        t = half(w.table_scales[i]);
      }
      Part part;
      for (int m = 0; m < M; ++m)
        for (int v = 0; v < V; ++v) part.high[m][v] = part.low[m][v] = vdupq_n_s32(0);
      for (int k = 0; k < kBlock; k += 16) {
        for (int m = 0; m < M; ++m) {
          const std::int8_t* p = q + m * row_bytes + b * kBlock + k;
          part.x_high[m] = vld1q_s8(p);
          part.x_low[m] = vld1q_s8(p + x.cols);
        }
        if constexpr (Palette) {
          part.template add_palette_line<0>(line, entries);
          part.template add_palette_line<2>(line + 64, entries);
          line += 2 * 64;
        } else {
          part.template add_int8_line<0>(line);
          part.template add_int8_line<1>(line + 64);
          part.template add_int8_line<2>(line + 2 * 64);
          part.template add_int8_line<3>(line + 3 * 64);
          line += 4 * 64;
        }
      }
      for (int m = 0; m < M; ++m) {
        const float32x4_t scale = vdupq_n_f32(x.scale[static_cast<std::size_t>(m0 + m) * blocks + b] * t);
        for (int v = 0; v < V; ++v) {
          const int32x4_t sum = vaddq_s32(vshlq_n_s32(part.high[m][v], 7), part.low[m][v]);
          f[m][v] = vfmaq_f32(f[m][v], vcvtq_f32_s32(sum), scale);
        }
      }
    }
    for (int v = 0; v < V; ++v) {
      const int row = g * kGroupRows + 4 * (v0 + v);
      for (int m = 0; m < M; ++m)
        vst1q_f32(y + m * y_stride + row, vmulq_f32(f[m][v], halves(w.row_scales + row)));
    }
  }
};

template <bool Palette>
void matmul(const Matrix& w, int g0, int g1, const QuantRows& x, float* y, std::size_t y_stride,
            std::uint8_t*) {
  for (int g = g0; g < g1; ++g) {
    int m = 0; // 16 accumulators, or 8 for the last token
    for (; m + 4 <= x.rows; m += 4)
      for (int v = 0; v < 4; v += 2) Part<Palette, 4, 2>::multiply(w, g, v, x, m, y + m * y_stride, y_stride);
    for (; m + 2 <= x.rows; m += 2) Part<Palette, 2, 4>::multiply(w, g, 0, x, m, y + m * y_stride, y_stride);
    for (; m < x.rows; ++m) Part<Palette, 1, 4>::multiply(w, g, 0, x, m, y + m * y_stride, y_stride);
  }
}

} // namespace

const Kernels* neon_dot_kernels() {
  static const Kernels kernels = [] {
    Kernels k = VectorKernels<NeonDot>::table("neon_dot");
    k.matmul_palette = matmul<true>;
    k.matmul_int8 = matmul<false>;
    return k;
  }();
  return &kernels;
}

} // namespace pomona

#else

#include "kernels/kernels.h"
namespace pomona {
const Kernels* neon_dot_kernels() { return nullptr; }
} // namespace pomona

#endif
