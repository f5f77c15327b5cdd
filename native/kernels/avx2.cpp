// AVX2 with FMA and F16C: table look-up by vpshufb, 15-bit activations as int16, products by vpmaddwd. A
// 64-byte line is two halves of 8 rows; widened to int16 a row takes two int32 lanes, which are added at the
// end of a block.
#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)

#include <immintrin.h>

#include "kernels/vector_kernels.h"

namespace pomona {
namespace {

struct Avx2 {
  using F = __m256;
  static constexpr int width = 8;
  static constexpr int attend_rows = 3;
  static constexpr int value_blocks = 1;

  static F load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, F v) { _mm256_storeu_ps(p, v); }
  static F set1(float v) { return _mm256_set1_ps(v); }
  static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static F add(F a, F b) { return _mm256_add_ps(a, b); }
  static F sub(F a, F b) { return _mm256_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F div(F a, F b) { return _mm256_div_ps(a, b); }
  static F max(F a, F b) { return _mm256_max_ps(a, b); }
  static F min(F a, F b) { return _mm256_min_ps(a, b); }
  static F abs(F a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
  static float sqrt(float a) { return _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(a))); }
  static F round(F a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static F exp2i(F n) {
    return _mm256_castsi256_ps(
        _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
  }
  static F zero_below(F x, F limit, F v) { return _mm256_and_ps(_mm256_cmp_ps(x, limit, _CMP_NLT_UQ), v); }
  static float reduce_add(F a) {
    __m128 v = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    v = _mm_add_ps(v, _mm_movehl_ps(v, v));
    return _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)));
  }
  static float reduce_max(F a) {
    __m128 v = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    v = _mm_max_ps(v, _mm_movehl_ps(v, v));
    return _mm_cvtss_f32(_mm_max_ss(v, _mm_movehdup_ps(v)));
  }
  static bool any_equal(F a, F b) { return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_EQ_OQ)) != 0; }

  static F bf16(const std::uint16_t* p) {
    const __m128i v = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(v), 16));
  }
  static F int8(const std::int8_t* p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
  }
  static void bf16_pairs(const std::uint16_t* p, F& low, F& high) {
    const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    low = _mm256_castsi256_ps(_mm256_slli_epi32(v, 16));
    high = _mm256_castsi256_ps(_mm256_and_si256(v, _mm256_set1_epi32(static_cast<int>(0xffff0000u))));
  }
  static std::int32_t store_fine(F a, std::uint8_t* row, int, int k) {
    const __m256i q = _mm256_cvtps_epi32(a);
    const __m128i low = _mm256_castsi256_si128(q), high = _mm256_extracti128_si256(q, 1);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(row + 2 * k), _mm_packs_epi32(low, high));
    return sum_lanes(q);
  }
  static void store_coarse(F a, std::uint8_t* row, int, int k, std::int32_t& sum, std::int32_t& squares) {
    const __m256i q = _mm256_cvtps_epi32(a), shifted = _mm256_slli_epi32(q, 7);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(row + 2 * k),
                     _mm_packs_epi32(_mm256_castsi256_si128(shifted), _mm256_extracti128_si256(shifted, 1)));
    sum += sum_lanes(q);
    squares += sum_lanes(_mm256_mullo_epi32(q, q));
  }
  static std::int32_t sum_lanes(__m256i v) {
    __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xb1)));
  }
};

inline float half(std::uint16_t h) { return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(h))); }

// acc[0] takes rows 0-3 of the eight, acc[1] rows 4-7; weights are 32 signed bytes, 4 columns of each row.
inline void dot(__m256i acc[2], __m256i weights, __m256i x) {
  const __m256i low = _mm256_cvtepi8_epi16(_mm256_castsi256_si128(weights));
  const __m256i high = _mm256_cvtepi8_epi16(_mm256_extracti128_si256(weights, 1));
  acc[0] = _mm256_add_epi32(acc[0], _mm256_madd_epi16(low, x));
  acc[1] = _mm256_add_epi32(acc[1], _mm256_madd_epi16(high, x));
}

// Pairs of lanes -> one int32 per row, in row order.
inline __m256i rows_of(const __m256i acc[2]) {
  return _mm256_permute4x64_epi64(_mm256_hadd_epi32(acc[0], acc[1]), _MM_SHUFFLE(3, 1, 2, 0));
}

inline __m256i broadcast(const std::uint8_t* four_columns) {
  long long v;
  std::memcpy(&v, four_columns, 8);
  return _mm256_set1_epi64x(v);
}

// The table four times over 64 bits or more: vpshufb reads the low 4 bits of an index byte, so a neighbour's
// bits above a 3- or 2-bit index select the same entry.
template <int Bits>
__m256i load_table(const std::int8_t* table) {
  if constexpr (Bits == 4)
    return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
  long long entries = 0;
  std::memcpy(&entries, table, std::size_t{1} << Bits);
  if constexpr (Bits == 2) entries |= entries << 32;
  return _mm256_set1_epi64x(entries);
}

// 24 bits of every 64-bit word -> one 3-bit index in the low bits of each byte, the highest bit clear.
inline __m256i spread(__m256i v) {
  const auto only = [](__m256i bits, long long mask) {
    return _mm256_and_si256(bits, _mm256_set1_epi64x(mask));
  };
  v = _mm256_or_si256(only(v, 0xfff), only(_mm256_slli_epi64(v, 20), 0xfff00000000));
  v = _mm256_or_si256(only(v, 0x3f0000003f), only(_mm256_slli_epi64(v, 10), 0x3f0000003f0000));
  return _mm256_or_si256(v, only(_mm256_slli_epi64(v, 5), 0x0700070007000700));
}

// Calls use(step, weights) for the 16 steps of a block, weights being 32 signed bytes: 8 rows x 4 columns.
// Moves `line` behind the block.
template <int Bits, class Use>
void each_step(const std::uint8_t*& line, __m256i entries, Use&& use) {
  const auto next = [&] {
    const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(line));
    line += 64;
    return v;
  };
  if constexpr (Bits == 8) {
    for (int step = 0; step < 16; ++step)
      use(step, _mm256_xor_si256(next(), _mm256_set1_epi8(static_cast<char>(0x80))));
  } else if constexpr (Bits == 3) {
    for (int step = 0; step < 16; step += 8) {
      const __m256i a = next(), b = next(), c = next();
      const __m256i parts[8] = {a,
                                _mm256_srli_epi64(a, 24),
                                _mm256_or_si256(_mm256_srli_epi64(a, 48), _mm256_slli_epi64(b, 16)),
                                _mm256_srli_epi64(b, 8),
                                _mm256_srli_epi64(b, 32),
                                _mm256_or_si256(_mm256_srli_epi64(b, 56), _mm256_slli_epi64(c, 8)),
                                _mm256_srli_epi64(c, 16),
                                _mm256_srli_epi64(c, 40)};
      for (int i = 0; i < 8; ++i) use(step + i, _mm256_shuffle_epi8(entries, spread(parts[i])));
    }
  } else {
    const __m256i mask = _mm256_set1_epi8((1 << Bits) - 1);
    for (int step = 0; step < 16; step += 8 / Bits) {
      __m256i v = next();
      for (int i = 0; i < 8 / Bits; ++i, v = _mm256_srli_epi16(v, Bits))
        use(step + i, _mm256_shuffle_epi8(entries, _mm256_and_si256(v, mask)));
    }
  }
}

// Half a group (8 rows) against M tokens.
template <int Bits, int M>
void half_group(const Matrix& w, int g, int h, const QuantRows& x, int m0, float* y, std::size_t y_stride) {
  constexpr bool palette = Bits < 8;
  const std::size_t row_bytes = 2 * static_cast<std::size_t>(x.cols);
  const std::uint8_t* line = w.data + g * w.group_bytes() + 32 * h;
  const std::uint8_t* q = x.q + m0 * row_bytes;
  const int blocks = x.blocks(), table_blocks = palette ? w.table_cols / kBlock : blocks;
  const std::size_t first_table = static_cast<std::size_t>(g) * w.tables_of_group();
  __m256 f[M];
  for (int m = 0; m < M; ++m) f[m] = _mm256_setzero_ps();
  for (int b = 0; b < blocks; ++b) {
    __m256i entries{};
    float t = 1.0f;
    if constexpr (palette) {
      const std::size_t i = first_table + b / table_blocks;
      entries = load_table<Bits>(w.tables + (i << Bits));
      t = half(w.table_scales[i]);
    }
    __m256i acc[M][2];
    for (int m = 0; m < M; ++m) acc[m][0] = acc[m][1] = _mm256_setzero_si256();
    each_step<Bits>(line, entries, [&](int step, __m256i weights) {
      const std::uint8_t* p = q + 2 * (b * kBlock + 4 * step);
      for (int m = 0; m < M; ++m) dot(acc[m], weights, broadcast(p + m * row_bytes));
    });
    for (int m = 0; m < M; ++m) {
      const float scale = x.scale[static_cast<std::size_t>(m0 + m) * blocks + b];
      f[m] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(rows_of(acc[m])), _mm256_set1_ps(scale * t), f[m]);
    }
  }
  const int row = g * kGroupRows + 8 * h;
  const __m256 scales =
      _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(w.row_scales + row)));
  for (int m = 0; m < M; ++m) _mm256_storeu_ps(y + m * y_stride + row, _mm256_mul_ps(f[m], scales));
}

template <int Bits>
void matmul(const Matrix& w, int g0, int g1, const QuantRows& x, float* y, std::size_t y_stride,
            std::uint8_t*) {
  for (int g = g0; g < g1; ++g) {
    for (int h = 0; h < 2; ++h) {
      int m = 0;
      for (; m + 4 <= x.rows; m += 4) half_group<Bits, 4>(w, g, h, x, m, y + m * y_stride, y_stride);
      for (; m < x.rows; ++m) half_group<Bits, 1>(w, g, h, x, m, y + m * y_stride, y_stride);
    }
  }
}

void matmul_palette(const Matrix& w, int g0, int g1, const QuantRows& x, float* y, std::size_t y_stride,
                    std::uint8_t* scratch) {
  const auto work = w.bits == 4 ? matmul<4> : w.bits == 3 ? matmul<3> : matmul<2>;
  work(w, g0, g1, x, y, y_stride, scratch);
}

} // namespace

const Kernels* avx2_kernels() {
  static const Kernels kernels = [] {
    Kernels k = VectorKernels<Avx2>::table("avx2");
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
const Kernels* avx2_kernels() { return nullptr; }
} // namespace pomona

#endif
