// NEON with the dot-product extension (ARMv8.2-A and later: Cortex-A55/A76, Neoverse, Apple): table look-up
// by tbl, products by sdot, which adds 4 columns to each of 4 rows. Activations lie in two int8 planes, x_q =
// 128 high + low; weights are signed, so no offset is needed.
#if defined(__aarch64__) && defined(__ARM_FEATURE_DOTPROD)

#include "kernels/neon_vector.h"

namespace pomona {
namespace {

struct NeonDot : NeonOperations {
  // high = round(q / 128), low = q - 128 high in -64 .. 63.
  static std::int32_t store_fine(F a, std::uint8_t* row, int cols, int k) {
    const int32x4_t q = vcvtnq_s32_f32(a);
    const int32x4_t high = vshrq_n_s32(vaddq_s32(q, vdupq_n_s32(64)), 7);
    store_planes(row, cols, k, high, vsubq_s32(q, vshlq_n_s32(high, 7)));
    return vaddvq_s32(q);
  }
  static void store_coarse(F a, std::uint8_t* row, int cols, int k, std::int32_t& sum,
                           std::int32_t& squares) {
    const int32x4_t q = vcvtnq_s32_f32(a);
    store_planes(row, cols, k, q, vdupq_n_s32(0));
    sum += vaddvq_s32(q);
    squares += vaddvq_s32(vmulq_s32(q, q));
  }
  static void store_planes(std::uint8_t* row, int cols, int k, int32x4_t high, int32x4_t low) {
    const int8x8_t bytes = vmovn_s16(vcombine_s16(vmovn_s32(high), vmovn_s32(low)));
    const std::uint64_t both = vget_lane_u64(vreinterpret_u64_s8(bytes), 0);
    const auto first = static_cast<std::uint32_t>(both), second = static_cast<std::uint32_t>(both >> 32);
    std::memcpy(row + k, &first, 4);
    std::memcpy(row + cols + k, &second, 4);
  }
};

// 4 V rows of a group, from its row 4 v0 on, against M tokens.
template <int Bits, int M, int V>
struct Part {
  int32x4_t high[M][V], low[M][V];

  // 16 columns: the four steps against the four lanes of a plane.
  static void add(int32x4_t& acc, const int8x16_t steps[4], const std::int8_t* plane) {
    const int8x16_t x = vld1q_s8(plane);
    acc = vdotq_laneq_s32(acc, steps[0], x, 0);
    acc = vdotq_laneq_s32(acc, steps[1], x, 1);
    acc = vdotq_laneq_s32(acc, steps[2], x, 2);
    acc = vdotq_laneq_s32(acc, steps[3], x, 3);
  }

  // A block of 64 columns of tokens `stride` bytes apart; Fine: some of them have a low plane.
  template <bool Fine>
  void block(const std::uint8_t* line, int8x16_t entries, const std::int8_t* q, std::size_t stride,
             std::size_t low_plane) {
    for (int m = 0; m < M; ++m)
      for (int v = 0; v < V; ++v) high[m][v] = low[m][v] = vdupq_n_s32(0);
    for (int k = 0; k < kBlock; k += kColumns<Bits>, line += kColumnBytes<Bits>) {
      for (int v = 0; v < V; ++v) {
        int8x16_t steps[kColumns<Bits> / 4];
        unpack<Bits>(line + 16 * v, entries, steps);
        for (int c = 0; c < kColumns<Bits>; c += 16)
          for (int m = 0; m < M; ++m) {
            const std::int8_t* p = q + m * stride + k + c;
            add(high[m][v], steps + c / 4, p);
            if constexpr (Fine) add(low[m][v], steps + c / 4, p + low_plane);
          }
      }
    }
  }

  static void multiply(const Matrix& w, int g, int v0, const QuantRows& x, int m0, float* y,
                       std::size_t y_stride) {
    constexpr bool palette = Bits < 8;
    const std::size_t stride = 2 * static_cast<std::size_t>(x.cols), low_plane = x.cols;
    const std::uint8_t* line = w.data + g * w.group_bytes() + 16 * v0;
    const auto* q = reinterpret_cast<const std::int8_t*>(x.q) + m0 * stride;
    const int blocks = x.blocks(), table_blocks = palette ? w.table_cols / kBlock : blocks;
    const std::size_t first_table = static_cast<std::size_t>(g) * w.tables_of_group();
    float32x4_t f[M][V];
    for (int m = 0; m < M; ++m)
      for (int v = 0; v < V; ++v) f[m][v] = vdupq_n_f32(0.0f);
    for (int b = 0; b < blocks; ++b, line += kBlock / kColumns<Bits> * kColumnBytes<Bits>) {
      int8x16_t entries = vdupq_n_s8(0);
      float t = 1.0f;
      if constexpr (palette) {
        const std::size_t i = first_table + b / table_blocks;
        entries = load_table<Bits>(w.tables + (i << Bits));
        t = half(w.table_scales[i]);
      }
      bool fine = false;
      for (int m = 0; m < M; ++m) fine |= x.fine[static_cast<std::size_t>(m0 + m) * blocks + b] != 0;
      Part part;
      if (fine)
        part.template block<true>(line, entries, q + b * kBlock, stride, low_plane);
      else
        part.template block<false>(line, entries, q + b * kBlock, stride, low_plane);
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

template <int Bits>
void matmul(const Matrix& w, int g0, int g1, const QuantRows& x, float* y, std::size_t y_stride,
            std::uint8_t*) {
  for (int g = g0; g < g1; ++g) {
    int m = 0; // 16 accumulators, or 8 for the last token
    for (; m + 4 <= x.rows; m += 4)
      for (int v = 0; v < 4; v += 2) Part<Bits, 4, 2>::multiply(w, g, v, x, m, y + m * y_stride, y_stride);
    for (; m + 2 <= x.rows; m += 2) Part<Bits, 2, 4>::multiply(w, g, 0, x, m, y + m * y_stride, y_stride);
    for (; m < x.rows; ++m) Part<Bits, 1, 4>::multiply(w, g, 0, x, m, y + m * y_stride, y_stride);
  }
}

void matmul_palette(const Matrix& w, int g0, int g1, const QuantRows& x, float* y, std::size_t y_stride,
                    std::uint8_t* scratch) {
  const auto work = w.bits == 4 ? matmul<4> : w.bits == 3 ? matmul<3> : matmul<2>;
  work(w, g0, g1, x, y, y_stride, scratch);
}

} // namespace

const Kernels* neon_dot_kernels() {
  static const Kernels kernels = [] {
    Kernels k = VectorKernels<NeonDot>::table("neon_dot");
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
const Kernels* neon_dot_kernels() { return nullptr; }
} // namespace pomona

#endif
