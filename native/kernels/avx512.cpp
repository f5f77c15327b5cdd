// AVX-512 with VNNI and VBMI: table look-up by vpermb, products by vpdpbusd, 16 output rows in the 16 lanes.
#if defined(__AVX512VNNI__) && defined(__AVX512VBMI2__)

#include <immintrin.h>

#include <algorithm>
#include <bit>
#include <type_traits>
#include <utility>

#include "kernels/avx512_sums.h"
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
  static float reduce_add(F a) {
    const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    __m128 v = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    v = _mm_add_ps(v, _mm_movehl_ps(v, v));
    return _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)));
  }
  // Lane 4 t + r is the sum of sums[r][t].
  static F sums(const F (&sums)[4][4][1]) {
    F all[16];
    for (int i = 0; i < 16; ++i) all[i] = sums[i / 4][i % 4][0];
    return sums_of_lanes(all);
  }
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
  static std::int32_t store_fine(F a, std::uint8_t* row, int cols, int k) {
    const __m512i q = _mm512_cvtps_epi32(a);
    const __m512i high = _mm512_srai_epi32(_mm512_add_epi32(q, _mm512_set1_epi32(64)), 7);
    const __m512i low = _mm512_sub_epi32(q, _mm512_slli_epi32(high, 7));
    store_plane(row + k, high);
    store_plane(row + cols + k, low);
    return _mm512_reduce_add_epi32(q);
  }
  static void store_coarse(F a, std::uint8_t* row, int cols, int k, std::int32_t& sum,
                           std::int32_t& squares) {
    const __m512i q = _mm512_cvtps_epi32(a);
    store_plane(row + k, q);
    store_plane(row + cols + k, _mm512_setzero_si512());
    sum += _mm512_reduce_add_epi32(q);
    squares += _mm512_reduce_add_epi32(_mm512_mullo_epi32(q, q));
  }
  static void store_plane(std::uint8_t* to, __m512i q) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(q));
  }
};

constexpr int kPrefetch = 1536; // bytes ahead of the weight stream
constexpr int kGemmTokens = 3;  // with 4 groups of rows: 12 products and 12 sums
constexpr int kDirectTokens = 8;
// Unpacking a tile of weights once for all tokens pays from so many tokens on, where the packed weights do
// not stay in a core's own cache: else they are unpacked for eight tokens at a time.
constexpr int kGemmFrom = 33;
constexpr std::size_t kCachedBytes = std::size_t{1} << 19;

// The intrinsic makes gcc 12 copy and spill its tied accumulator; this keeps all of them in registers.
inline __m512i dot(__m512i acc, __m512i weights, const std::uint8_t* x) {
  asm("vpdpbusd %2%{1to16%}, %1, %0"
      : "+v"(acc)
      : "v"(weights), "m"(*reinterpret_cast<const std::int32_t*>(x)));
  return acc;
}

// f + a times one number in memory, which gcc would broadcast to a register first.
inline __m512 fma_once(__m512 a, const float* number, __m512 f) {
  asm("vfmadd231ps %2%{1to16%}, %1, %0" : "+v"(f) : "v"(a), "m"(*number));
  return f;
}

// A load that gcc does not repeat at every use.
inline __m512i load_once(const std::uint8_t* line) {
  __m512i v;
  asm("vmovdqa64 %1, %0" : "=v"(v) : "m"(*reinterpret_cast<const __m512i*>(line)));
  return v;
}

// The table as unsigned bytes (+128), repeated over the register: vpermb reads the low 6 bits of an index
// byte, so the neighbour's bits above the index select the same entry and need no mask.
template <int Bits>
__m512i load_table(const std::int8_t* table) {
  const __m512i flip = _mm512_set1_epi8(static_cast<char>(0x80));
  if constexpr (Bits == 4)
    return _mm512_xor_si512(flip,
                            _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table))));
  long long entries = 0;
  std::memcpy(&entries, table, std::size_t{1} << Bits);
  if constexpr (Bits == 2) entries |= entries << 32;
  return _mm512_xor_si512(flip, _mm512_set1_epi64(entries));
}

inline float half(std::uint16_t h) { return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(h))); }

inline __m512 row_scales(const Matrix& w, int g) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(w.row_scales + g * kGroupRows)));
}

inline void store_rows(int g, float* y, __m512 v) { _mm512_storeu_ps(y + g * kGroupRows, v); }

// Calls use(step, weights) for the 16 steps of a block, weights being 64 unsigned bytes: 16 rows x 4 columns.
// Moves `line` behind the block.
template <int Bits, class Use>
[[gnu::always_inline]] inline void each_step(const std::uint8_t*& line, __m512i entries, Use&& use) {
  const auto next = [&]() __attribute__((always_inline)) {
    const __m512i v = _mm512_loadu_si512(line);
    _mm_prefetch(reinterpret_cast<const char*>(line) + kPrefetch, _MM_HINT_T0);
    line += 64;
    return v;
  };
  if constexpr (Bits == 8) {
#pragma GCC unroll 16
    for (int step = 0; step < 16; ++step) use(step, next());
  } else if constexpr (Bits == 3) {
    // Byte i of a result is the 8 bits from bit 3 i of the word on.
    const auto spread = [&](__m512i v, int bit) __attribute__((always_inline)) {
      const long long shifts = 0x15120f0c09060300 + 0x0101010101010101 * bit;
      return _mm512_permutexvar_epi8(_mm512_multishift_epi64_epi8(_mm512_set1_epi64(shifts), v), entries);
    };
#pragma GCC unroll 2
    for (int step = 0; step < 16; step += 8) {
      const __m512i a = next(), b = next(), c = next();
      use(step, spread(a, 0));
      use(step + 1, spread(a, 24));
      use(step + 2, spread(_mm512_shrdi_epi64(a, b, 48), 0));
      use(step + 3, spread(b, 8));
      use(step + 4, spread(b, 32));
      use(step + 5, spread(_mm512_shrdi_epi64(b, c, 56), 0));
      use(step + 6, spread(c, 16));
      use(step + 7, spread(c, 40));
    }
  } else {
#pragma GCC unroll 16
    for (int step = 0; step < 16; step += 8 / Bits) {
      __m512i v = next();
#pragma GCC unroll 4
      for (int i = 0; i < 8 / Bits; ++i, v = _mm512_srli_epi16(v, Bits))
        use(step + i, _mm512_permutexvar_epi8(v, entries));
    }
  }
}

// Tables of a group, block by block.
template <int Bits>
class TableCursor {
 public:
  TableCursor(const Matrix& w, int g) {
    if constexpr (Bits < 8) { // int8 rows have no tables
      const std::size_t first = static_cast<std::size_t>(g) * w.tables_of_group();
      table_blocks_ = w.table_cols / kBlock;
      table_ = w.tables + (first << Bits);
      scale_ = w.table_scales + first;
    }
  }

  // To be called once for every block, in order.
  void next() {
    if constexpr (Bits < 8) {
      if (left_ == 0) {
        entries = load_table<Bits>(table_);
        scale = half(*scale_++);
        table_ += 1 << Bits;
        left_ = table_blocks_;
      }
      --left_;
    }
  }

  __m512i entries{};
  float scale = 1.0f;

 private:
  int table_blocks_ = 1, left_ = 0;
  const std::int8_t* table_ = nullptr;
  const std::uint16_t* scale_ = nullptr;
};

// M quantised rows side by side, so that a kernel reads them at fixed distances from one pointer.
template <int M>
struct SideBySide {
  const std::int32_t* planes[2]; // [K/4][M], four columns in each
  const float* scales;           // [K/64][M], times 128 in coarse blocks: exact, and saves the shift
  const std::int32_t* offsets;   // [K/64][M]
  const std::uint8_t* fine;      // [K/64]: bit m: row m needs the low plane

  SideBySide(const QuantRows& x, int m0, std::uint8_t* memory) {
    const int steps = x.cols / 4, blocks = x.blocks();
    auto* high = reinterpret_cast<std::int32_t*>(memory);
    auto* low = high + static_cast<std::size_t>(steps) * M;
    auto* scale = reinterpret_cast<float*>(low + static_cast<std::size_t>(steps) * M);
    auto* offset = reinterpret_cast<std::int32_t*>(scale + static_cast<std::size_t>(blocks) * M);
    auto* any = reinterpret_cast<std::uint8_t*>(offset + static_cast<std::size_t>(blocks) * M);
    std::fill_n(any, blocks, std::uint8_t{0});
    for (int m = 0; m < M; ++m) {
      const auto* row =
          reinterpret_cast<const std::int32_t*>(x.q + (m0 + m) * 2 * static_cast<std::size_t>(x.cols));
      for (int i = 0; i < steps; ++i) high[i * M + m] = row[i];
      for (int i = 0; i < steps; ++i) low[i * M + m] = row[steps + i];
      const std::size_t first = static_cast<std::size_t>(m0 + m) * blocks;
      for (int b = 0; b < blocks; ++b) {
        scale[b * M + m] = x.scale[first + b] * (x.fine[first + b] != 0 ? 1.0f : 128.0f);
        offset[b * M + m] = x.offset[first + b];
        any[b] = static_cast<std::uint8_t>(any[b] | x.fine[first + b] << m);
      }
    }
    planes[0] = high;
    planes[1] = low;
    scales = scale;
    offsets = offset;
    fine = any;
  }
};

// One group of rows against M tokens. The unpacked weights of a block are kept for the rows that need the low
// plane, too; where most do, all get it in the same pass. Paths of their own are for many tokens: with few,
// gcc 12 spills the more registers the more paths there are.
template <int Bits, int M>
void group_direct(const Matrix& w, int g, const SideBySide<M>& x, float* y, std::size_t y_stride) {
  constexpr bool many = M > 5;
  const std::uint8_t* line = w.data + g * w.group_bytes();
  TableCursor<Bits> table(w, g);
  __m512 f[M];
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) f[m] = _mm512_setzero_ps();
  for (int b = 0; b < w.cols / kBlock; ++b) {
    table.next();
    const std::size_t first = static_cast<std::size_t>(b) * (kBlock / 4) * M;
    const auto* high = reinterpret_cast<const std::uint8_t*>(x.planes[0] + first);
    const auto* low = reinterpret_cast<const std::uint8_t*>(x.planes[1] + first);
    const unsigned fine = x.fine[b];
    __m512i acc[M];
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) acc[m] = _mm512_set1_epi32(x.offsets[b * M + m]);
    const auto fold = [&](int m, __m512i sum) __attribute__((always_inline)) {
      f[m] =
          _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), _mm512_set1_ps(x.scales[b * M + m] * table.scale), f[m]);
    };
    if (many && fine == 0) {
      each_step<Bits>(
          line, table.entries, [&](int step, __m512i v) __attribute__((always_inline)) {
#pragma GCC unroll 8
            for (int m = 0; m < M; ++m) acc[m] = dot(acc[m], v, high + 4 * (step * M + m));
          });
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) fold(m, acc[m]);
    } else if (many && 2 * std::popcount(fine) > M) {
      __m512i rest[M];
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) rest[m] = _mm512_setzero_si512();
      each_step<Bits>(
          line, table.entries, [&](int step, __m512i v) __attribute__((always_inline)) {
#pragma GCC unroll 8
            for (int m = 0; m < M; ++m) {
              acc[m] = dot(acc[m], v, high + 4 * (step * M + m));
              rest[m] = dot(rest[m], v, low + 4 * (step * M + m)); // zero for the others
            }
          });
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) {
        const __m128i shift = _mm_cvtsi32_si128((fine >> m & 1u) != 0 ? 7 : 0);
        fold(m, _mm512_add_epi32(_mm512_sll_epi32(acc[m], shift), rest[m]));
      }
    } else {
      alignas(64) __m512i kept[16];
      each_step<Bits>(
          line, table.entries, [&](int step, __m512i v) __attribute__((always_inline)) {
            kept[step] = v;
#pragma GCC unroll 8
            for (int m = 0; m < M; ++m) acc[m] = dot(acc[m], v, high + 4 * (step * M + m));
          });
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) {
        if ((fine >> m & 1u) == 0) continue;
        __m512i part[4] = {_mm512_slli_epi32(acc[m], 7)};
#pragma GCC unroll 16
        for (int step = 0; step < 16; ++step)
          part[step % 4] = dot(part[step % 4], kept[step], low + 4 * (step * M + m));
        acc[m] = _mm512_add_epi32(_mm512_add_epi32(part[0], part[1]), _mm512_add_epi32(part[2], part[3]));
      }
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) fold(m, acc[m]);
    }
  }
  for (int m = 0; m < M; ++m) store_rows(g, y + m * y_stride, _mm512_mul_ps(f[m], row_scales(w, g)));
}

// M tokens in as few and as equal tiles as `Most` allows, each by work<T>(m0).
template <int Most, class Work>
void tiles(int rows, Work&& work) {
  const int count = (rows + Most - 1) / Most;
  for (int i = 0; i < count; ++i) {
    const int m0 = rows * i / count, size = rows * (i + 1) / count - m0;
    [&]<int... T>(std::integer_sequence<int, T...>) {
      ((size == T + 1 ? work(std::integral_constant<int, T + 1>(), m0) : void()), ...);
    }
    (std::make_integer_sequence<int, Most>());
  }
}

template <int Bits>
void direct(const Matrix& w, int g0, int g1, const QuantRows& x, float* y, std::size_t y_stride,
            std::uint8_t* scratch) {
  tiles<kDirectTokens>(x.rows, [&](auto m, int m0) {
    const SideBySide<m> rows(x, m0, scratch);
    for (int g = g0; g < g1; ++g) group_direct<Bits, m>(w, g, rows, y + m0 * y_stride, y_stride);
  });
}

// G groups unpacked to unsigned bytes: tile [K/4][G][64]; behind the largest tile, their table scales as
// float [K/64][G].
template <int Bits>
void unpack(const Matrix& w, int g0, int groups, std::uint8_t* tile) {
  const std::size_t stride = 64 * static_cast<std::size_t>(groups);
  for (int i = 0; i < groups; ++i) {
    const std::uint8_t* line = w.data + (g0 + i) * w.group_bytes();
    std::uint8_t* out = tile + 64 * i;
    auto* scales = reinterpret_cast<float*>(tile + static_cast<std::size_t>(64) * w.cols) + i;
    TableCursor<Bits> table(w, g0 + i);
    for (int b = 0; b < w.cols / kBlock; ++b, out += 16 * stride, scales += groups) {
      table.next();
      *scales = table.scale;
      each_step<Bits>(
          line, table.entries, [&](int step, __m512i v) __attribute__((always_inline)) {
            _mm512_store_si512(out + step * stride, v);
          });
    }
  }
}

// The four floats of G groups; those beyond them are zero.
template <int G>
__m128 load_groups(const float* p) {
  static_assert(G == 4 || G == 2 || G == 1);
  if constexpr (G == 4) return _mm_loadu_ps(p);
  if constexpr (G == 2) return _mm_castpd_ps(_mm_load_sd(reinterpret_cast<const double*>(p)));
  return _mm_load_ss(p);
}

// G groups x T tokens of unpacked weights. Products and sums all stay in registers: 2 G T + G of the 32.
template <int Bits, int G, int T>
void gemm_tile(const Matrix& w, int g0, const std::uint8_t* tile, const QuantRows& x, int m0, float* y,
               std::size_t y_stride) {
  const std::size_t row_bytes = 2 * static_cast<std::size_t>(x.cols);
  const int blocks = x.blocks();
  const float* scale = x.scale + static_cast<std::size_t>(m0) * blocks;
  const std::int32_t* offset = x.offset + static_cast<std::size_t>(m0) * blocks;
  const std::uint8_t* fine = x.fine + static_cast<std::size_t>(m0) * blocks;
  const auto* table_scales = reinterpret_cast<const float*>(tile + static_cast<std::size_t>(64) * x.cols);
  const std::uint8_t* lines = tile;
  const std::uint8_t* q = x.q + m0 * row_bytes;
  __m512 f[T][G];
#pragma GCC unroll 4
  for (int t = 0; t < T; ++t)
#pragma GCC unroll 4
    for (int g = 0; g < G; ++g) f[t][g] = _mm512_setzero_ps();
  for (int b = 0; b < blocks; ++b, lines += (kBlock / 4) * G * 64, q += kBlock) {
    // Each number of planes has code of its own: where paths with open sums meet, gcc 12 copies and spills
    // them.
    const auto multiply = [&]<int Planes>(std::integral_constant<int, Planes>)
        __attribute__((always_inline)) {
      __m512i acc[T][G];
#pragma GCC unroll 4
      for (int t = 0; t < T; ++t)
#pragma GCC unroll 4
        for (int g = 0; g < G; ++g) acc[t][g] = _mm512_set1_epi32(offset[t * blocks + b]);
#pragma GCC unroll 2
      for (int plane = 0; plane < Planes; ++plane) {
        if (plane == 1) {
#pragma GCC unroll 4
          for (int t = 0; t < T; ++t)
#pragma GCC unroll 4
            for (int g = 0; g < G; ++g) acc[t][g] = _mm512_slli_epi32(acc[t][g], 7);
        }
        const std::uint8_t* p = q + plane * static_cast<std::size_t>(x.cols);
        const std::uint8_t* line = lines;
#pragma GCC unroll 1
        for (int step = 0; step < kBlock / 4; ++step, p += 4, line += G * 64) {
          __m512i v[G];
#pragma GCC unroll 4
          for (int g = 0; g < G; ++g) v[g] = load_once(line + 64 * g);
#pragma GCC unroll 4
          for (int t = 0; t < T; ++t)
#pragma GCC unroll 4
            for (int g = 0; g < G; ++g) acc[t][g] = dot(acc[t][g], v[g], p + t * row_bytes);
        }
      }
      // 128 where the sums were not shifted: exact.
      const __m128 of_tables =
          _mm_mul_ps(_mm_set1_ps(Planes == 1 ? 128.0f : 1.0f),
                     Bits < 8 ? load_groups<G>(table_scales + b * G) : _mm_set1_ps(1.0f));
      alignas(16) float factors[T][4];
#pragma GCC unroll 4
      for (int t = 0; t < T; ++t)
        _mm_store_ps(factors[t], _mm_mul_ps(_mm_set1_ps(scale[t * blocks + b]), of_tables));
#pragma GCC unroll 4
      for (int t = 0; t < T; ++t)
#pragma GCC unroll 4
        for (int g = 0; g < G; ++g)
          f[t][g] = fma_once(_mm512_cvtepi32_ps(acc[t][g]), &factors[t][g], f[t][g]);
    };
    // What is fine for one token is for most: an outlier stays in its channel. The low plane of the others is
    // zero.
    unsigned any = 0;
    for (int t = 0; t < T; ++t) any |= fine[t * blocks + b];
    if (any == 0)
      multiply(std::integral_constant<int, 1>());
    else
      multiply(std::integral_constant<int, 2>());
  }
  for (int g = 0; g < G; ++g)
    for (int t = 0; t < T; ++t)
      store_rows(g0 + g, y + (m0 + t) * y_stride, _mm512_mul_ps(f[t][g], row_scales(w, g0 + g)));
}

template <int Bits, int G>
void gemm(const Matrix& w, int g0, const QuantRows& x, float* y, std::size_t y_stride, std::uint8_t* tile) {
  unpack<Bits>(w, g0, G, tile);
  tiles<kGemmTokens>(x.rows, [&](auto t, int m0) { gemm_tile<Bits, G, t>(w, g0, tile, x, m0, y, y_stride); });
}

template <int Bits>
void matmul(const Matrix& w, int g0, int g1, const QuantRows& x, float* y, std::size_t y_stride,
            std::uint8_t* scratch) {
  if (x.rows < kGemmFrom || (g1 - g0) * w.group_bytes() <= kCachedBytes)
    return direct<Bits>(w, g0, g1, x, y, y_stride, scratch);
  int g = g0;
  for (; g + 4 <= g1; g += 4) gemm<Bits, 4>(w, g, x, y, y_stride, scratch);
  for (; g + 2 <= g1; g += 2) gemm<Bits, 2>(w, g, x, y, y_stride, scratch);
  for (; g < g1; ++g) gemm<Bits, 1>(w, g, x, y, y_stride, scratch);
}

void matmul_palette(const Matrix& w, int g0, int g1, const QuantRows& x, float* y, std::size_t y_stride,
                    std::uint8_t* scratch) {
  const auto work = w.bits == 4 ? matmul<4> : w.bits == 3 ? matmul<3> : matmul<2>;
  work(w, g0, g1, x, y, y_stride, scratch);
}

} // namespace

const Kernels* avx512_kernels() {
  static const Kernels kernels = [] {
    Kernels k = VectorKernels<Avx512>::table("avx512");
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
const Kernels* avx512_kernels() { return nullptr; }
} // namespace pomona

#endif
