// AVX-512 with VNNI and VBMI: table look-up by vpermb, products by vpdpbusd, 16 output rows in the 16 lanes.
#if defined(__AVX512VNNI__) && defined(__AVX512VBMI__)

#include <immintrin.h>

#include "kernels/vector_kernels.h"

namespace pomona {
namespace {

struct Avx512 {
  using F = __m512;
  static constexpr int width = 16;
  static constexpr int attend_rows = 6; // 6 rows x 4 vectors of values fill the registers
  static constexpr int value_blocks = 4;

  static F load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, F v) { _mm512_storeu_ps(p, v); }
  static F set1(float v) { return _mm512_set1_ps(v); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F div(F a, F b) { return _mm512_div_ps(a, b); }
  static F max(F a, F b) { return _mm512_max_ps(a, b); }
  static F min(F a, F b) { return _mm512_min_ps(a, b); }
  static F abs(F a) { return _mm512_abs_ps(a); }
  static float sqrt(float a) { return _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(a))); }
  static F round(F a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static F exp2i(F n) { return _mm512_scalef_ps(_mm512_set1_ps(1.0f), n); }
  static F zero_below(F x, F limit, F v) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, limit, _CMP_NLT_UQ), v);
  }
  static float reduce_add(F a) { return _mm512_reduce_add_ps(a); }
  static float reduce_max(F a) { return _mm512_reduce_max_ps(a); }
  static bool any_equal(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ) != 0; }

  static F bf16(const std::uint16_t* p) {
    const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16));
  }
  static F int8(const std::int8_t* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  }
  static void bf16_pairs(const std::uint16_t* p, F& low, F& high) {
    const __m512i v = _mm512_loadu_si512(p);
    low = _mm512_castsi512_ps(_mm512_slli_epi32(v, 16));
    high = _mm512_castsi512_ps(_mm512_and_si512(v, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
  }
  // int8 planes: high = round(q / 128), low = q - 128 high in -64 .. 63.
  static std::int32_t store_quantized(F a, std::uint8_t* row, int cols, int k) {
    const __m512i q = _mm512_cvtps_epi32(a);
    const __m512i high = _mm512_srai_epi32(_mm512_add_epi32(q, _mm512_set1_epi32(64)), 7);
    const __m512i low = _mm512_sub_epi32(q, _mm512_slli_epi32(high, 7));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(row + k), _mm512_cvtepi32_epi8(high));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(row + cols + k), _mm512_cvtepi32_epi8(low));
    return _mm512_reduce_add_epi32(q);
  }
};

constexpr int kPrefetch = 1536; // bytes ahead of the weight stream
constexpr int kGemmTokens = 6;  // with 4 groups of rows: 24 accumulators
constexpr int kGemmFrom = 8;    // tokens from which unpacking a tile of weights pays

// The intrinsic makes gcc 12 copy and spill its tied accumulator; this keeps all of them in registers.
inline __m512i dot(__m512i acc, __m512i weights, const std::uint8_t* x) {
  asm("vpdpbusd %2%{1to16%}, %1, %0"
      : "+v"(acc)
      : "v"(weights), "m"(*reinterpret_cast<const std::int32_t*>(x)));
  return acc;
}

// The table as unsigned bytes (+128), four times over: vpermb reads the low 6 bits of an index byte, so the
// neighbour's bits above a 4-bit index select the same entry and need no mask.
inline __m512i load_table(const std::int8_t* table) {
  const __m128i t = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table));
  return _mm512_broadcast_i32x4(_mm_xor_si128(t, _mm_set1_epi8(static_cast<char>(0x80))));
}

inline float half(std::uint16_t h) { return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(h))); }

inline __m512 row_scales(const Matrix& w, int g) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(w.row_scales + g * kGroupRows)));
}

inline void store_rows(int g, float* y, __m512 v) { _mm512_storeu_ps(y + g * kGroupRows, v); }

// One group of rows against M tokens, straight from the packed weights.
template <bool Palette, int M>
void group_matvec(const Matrix& w, int g, const QuantRows& x, int m0, float* y, std::size_t y_stride) {
  constexpr int A = M == 1 ? 2 : 1; // independent accumulators of each plane
  const std::size_t row_bytes = 2 * static_cast<std::size_t>(x.cols), low_plane = x.cols;
  const std::uint8_t* line = w.data + g * w.group_bytes();
  const std::uint8_t* q = x.q + m0 * row_bytes;
  const float* scale = x.scale + static_cast<std::size_t>(m0) * x.blocks();
  const std::int32_t* offset = x.offset + static_cast<std::size_t>(m0) * x.blocks();
  const int blocks = x.blocks(), table_blocks = Palette ? w.table_cols / kBlock : blocks;
  const std::int8_t* table = w.tables;
  const std::uint16_t* table_scale = w.table_scales;
  if constexpr (Palette) {
    const std::size_t first = static_cast<std::size_t>(g) * (blocks / table_blocks);
    table += 16 * first;
    table_scale += first;
  }

  __m512 f[M];
  for (int m = 0; m < M; ++m) f[m] = _mm512_setzero_ps();
  for (int b = 0; b < blocks;) {
    __m512i entries{};
    float t = 1.0f;
    if constexpr (Palette) {
      entries = load_table(table);
      t = half(*table_scale++);
      table += 16;
    }
    for (const int end = b + table_blocks; b < end; ++b, q += kBlock) {
      __m512i high[M][A], low[M][A];
      for (int m = 0; m < M; ++m)
        for (int a = 0; a < A; ++a) high[m][a] = low[m][a] = _mm512_setzero_si512();
      if constexpr (Palette) {
#pragma GCC unroll 8
        for (int k = 0; k < kBlock; k += 8, line += 64) {
          const __m512i v = _mm512_loadu_si512(line);
          _mm_prefetch(reinterpret_cast<const char*>(line) + kPrefetch, _MM_HINT_T0);
          const __m512i first = _mm512_permutexvar_epi8(v, entries);
          const __m512i second = _mm512_permutexvar_epi8(_mm512_srli_epi16(v, 4), entries);
          for (int m = 0; m < M; ++m) {
            const std::uint8_t* p = q + m * row_bytes + k;
            high[m][0] = dot(high[m][0], first, p);
            low[m][0] = dot(low[m][0], first, p + low_plane);
            high[m][A - 1] = dot(high[m][A - 1], second, p + 4);
            low[m][A - 1] = dot(low[m][A - 1], second, p + 4 + low_plane);
          }
        }
      } else {
#pragma GCC unroll 16
        for (int k = 0; k < kBlock; k += 4, line += 64) {
          const __m512i v = _mm512_loadu_si512(line);
          _mm_prefetch(reinterpret_cast<const char*>(line) + kPrefetch, _MM_HINT_T0);
          for (int m = 0; m < M; ++m) {
            const std::uint8_t* p = q + m * row_bytes + k;
            high[m][k / 4 % A] = dot(high[m][k / 4 % A], v, p);
            low[m][k / 4 % A] = dot(low[m][k / 4 % A], v, p + low_plane);
          }
        }
      }
      for (int m = 0; m < M; ++m) {
        __m512i h = high[m][0], l = low[m][0];
        if constexpr (A == 2) {
          h = _mm512_add_epi32(h, high[m][1]);
          l = _mm512_add_epi32(l, low[m][1]);
        }
        l = _mm512_add_epi32(l, _mm512_set1_epi32(offset[m * blocks + b]));
        const __m512i sum = _mm512_add_epi32(_mm512_slli_epi32(h, 7), l);
        f[m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), _mm512_set1_ps(scale[m * blocks + b] * t), f[m]);
      }
    }
  }
  for (int m = 0; m < M; ++m) store_rows(g, y + m * y_stride, _mm512_mul_ps(f[m], row_scales(w, g)));
}

template <bool Palette>
void matvec(const Matrix& w, int g0, int g1, const QuantRows& x, int m0, int m1, float* y,
            std::size_t y_stride) {
  for (int g = g0; g < g1; ++g) {
    int m = m0;
    for (; m + 4 <= m1; m += 4) group_matvec<Palette, 4>(w, g, x, m, y + m * y_stride, y_stride);
    if (m + 2 <= m1) {
      group_matvec<Palette, 2>(w, g, x, m, y + m * y_stride, y_stride);
      m += 2;
    }
    if (m < m1) group_matvec<Palette, 1>(w, g, x, m, y + m * y_stride, y_stride);
  }
}

// G groups unpacked to unsigned bytes: tile [K/4][G][64].
template <bool Palette>
void unpack(const Matrix& w, int g0, int groups, std::uint8_t* tile) {
  for (int i = 0; i < groups; ++i) {
    const std::uint8_t* line = w.data + (g0 + i) * w.group_bytes();
    std::uint8_t* out = tile + 64 * i;
    const std::size_t step = 64 * static_cast<std::size_t>(groups);
    if constexpr (Palette) {
      const std::int8_t* table = w.tables + static_cast<std::size_t>(g0 + i) * (w.cols / w.table_cols) * 16;
      for (int c = 0; c < w.cols; c += w.table_cols, table += 16) {
        const __m512i entries = load_table(table);
        for (int k = 0; k < w.table_cols; k += 8, line += 64, out += 2 * step) {
          const __m512i v = _mm512_loadu_si512(line);
          _mm_prefetch(reinterpret_cast<const char*>(line) + kPrefetch, _MM_HINT_T0);
          _mm512_store_si512(out, _mm512_permutexvar_epi8(v, entries));
          _mm512_store_si512(out + step, _mm512_permutexvar_epi8(_mm512_srli_epi16(v, 4), entries));
        }
      }
    } else {
      for (int k = 0; k < w.cols; k += 4, line += 64, out += step)
        _mm512_store_si512(out, _mm512_loadu_si512(line));
    }
  }
}

// G groups x T tokens of unpacked weights.
template <bool Palette, int G, int T>
void gemm_tile(const Matrix& w, int g0, const std::uint8_t* tile, const QuantRows& x, int m0, float* y,
               std::size_t y_stride) {
  const std::size_t row_bytes = 2 * static_cast<std::size_t>(x.cols);
  const int blocks = x.blocks(), table_blocks = Palette ? w.table_cols / kBlock : blocks;
  const int tables = blocks / table_blocks;
  const float* scale = x.scale + static_cast<std::size_t>(m0) * blocks;
  const std::int32_t* offset = x.offset + static_cast<std::size_t>(m0) * blocks;
  __m512 f[T][G];
  for (int t = 0; t < T; ++t)
    for (int g = 0; g < G; ++g) f[t][g] = _mm512_setzero_ps();
  for (int b = 0; b < blocks; ++b) {
    __m512i acc[T][G];
    for (int t = 0; t < T; ++t)
      for (int g = 0; g < G; ++g) acc[t][g] = _mm512_setzero_si512();
    for (int plane = 0; plane < 2; ++plane) {
      const std::uint8_t* lines = tile + static_cast<std::size_t>(b) * (kBlock / 4) * G * 64;
      const std::uint8_t* q = x.q + m0 * row_bytes + plane * x.cols + b * kBlock;
      for (int k = 0; k < kBlock; k += 4, lines += G * 64, q += 4) {
        __m512i v[G];
        for (int g = 0; g < G; ++g) v[g] = _mm512_load_si512(lines + 64 * g);
#pragma GCC unroll 12
        for (int t = 0; t < T; ++t)
#pragma GCC unroll 4
          for (int g = 0; g < G; ++g) acc[t][g] = dot(acc[t][g], v[g], q + t * row_bytes);
      }
      if (plane == 0)
        for (int t = 0; t < T; ++t)
          for (int g = 0; g < G; ++g) acc[t][g] = _mm512_slli_epi32(acc[t][g], 7);
    }
    for (int g = 0; g < G; ++g) {
      const float table =
          Palette ? half(w.table_scales[static_cast<std::size_t>(g0 + g) * tables + b / table_blocks]) : 1.0f;
      for (int t = 0; t < T; ++t) {
        const __m512i sum = _mm512_add_epi32(acc[t][g], _mm512_set1_epi32(offset[t * blocks + b]));
        f[t][g] =
            _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), _mm512_set1_ps(scale[t * blocks + b] * table), f[t][g]);
      }
    }
  }
  for (int g = 0; g < G; ++g)
    for (int t = 0; t < T; ++t)
      store_rows(g0 + g, y + (m0 + t) * y_stride, _mm512_mul_ps(f[t][g], row_scales(w, g0 + g)));
}

template <bool Palette, int G>
void gemm(const Matrix& w, int g0, const QuantRows& x, float* y, std::size_t y_stride, std::uint8_t* tile) {
  unpack<Palette>(w, g0, G, tile);
  int m = 0;
  for (; m + kGemmTokens <= x.rows; m += kGemmTokens)
    gemm_tile<Palette, G, kGemmTokens>(w, g0, tile, x, m, y, y_stride);
  for (; m + 2 <= x.rows; m += 2) gemm_tile<Palette, G, 2>(w, g0, tile, x, m, y, y_stride);
  for (; m < x.rows; ++m) gemm_tile<Palette, G, 1>(w, g0, tile, x, m, y, y_stride);
}

template <bool Palette>
void matmul(const Matrix& w, int g0, int g1, const QuantRows& x, float* y, std::size_t y_stride,
            std::uint8_t* scratch) {
  if (x.rows < kGemmFrom) {
    matvec<Palette>(w, g0, g1, x, 0, x.rows, y, y_stride);
    return;
  }
  int g = g0;
  for (; g + 4 <= g1; g += 4) gemm<Palette, 4>(w, g, x, y, y_stride, scratch);
  for (; g + 2 <= g1; g += 2) gemm<Palette, 2>(w, g, x, y, y_stride, scratch);
  for (; g < g1; ++g) gemm<Palette, 1>(w, g, x, y, y_stride, scratch);
}

} // namespace

const Kernels* avx512_kernels() {
  static const Kernels kernels = [] {
    Kernels k = VectorKernels<Avx512>::table("avx512");
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
const Kernels* avx512_kernels() { return nullptr; }
} // namespace pomona

#endif
