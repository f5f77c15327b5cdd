// AVX-512 with BF16: as avx512, but products with bf16 weights round their activations to bf16, too, and take
// two columns per lane and instruction (vdpbf16ps), half the instructions.
//
// Not of the other instruction sets' bits, so never chosen by itself. A token's result still does not depend
// on what else is in the batch: every sum is taken over 32 columns a step, in order, whatever the tile.
#if defined(__AVX512BF16__) && defined(__AVX512BW__)

#include <immintrin.h>

#include <cstring>
#include <vector>

#include "kernels/avx512_sums.h"
#include "kernels/kernels.h"

namespace pomona {
namespace {

constexpr int kColumns = 32; // of a step
constexpr int kRows = 4;     // of a tile
constexpr int kTokens = 4;   // of a tile: 16 sums
constexpr int kRowTile = 16; // rows that stay in the first-level cache while all tokens pass

// Activations rounded to bf16, rows of a whole number of steps. Columns are a multiple of 16.
class RoundedRows {
 public:
  RoundedRows(const float* x, std::size_t stride, int rows, int cols)
      : stride_((cols + kColumns - 1) / kColumns * kColumns) {
    thread_local std::vector<std::uint16_t> buffer; // grows to the largest input of this thread
    buffer.resize(stride_ * rows);
    rows_ = buffer.data();
    for (int row = 0; row < rows; ++row)
      for (int k = 0; k < static_cast<int>(stride_); k += 16) {
        const __mmask16 there = k < cols ? 0xffff : 0;
        const __m256bh v = _mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(there, x + row * stride + k));
        std::memcpy(rows_ + row * stride_ + k, &v, sizeof v);
      }
  }
  const std::uint16_t* row(int number) const { return rows_ + number * stride_; }

 private:
  std::size_t stride_;
  std::uint16_t* rows_;
};

// Sums of pairs onto acc. The intrinsic makes gcc 12 copy and spill its tied accumulator.
inline __m512 dot(__m512 acc, __m512i weights, __m512i x) {
  asm("vdpbf16ps %2, %1, %0" : "+v"(acc) : "v"(weights), "v"(x));
  return acc;
}

// R weight rows x T tokens, lanes along K.
template <int R, int T>
void tile(const Matrix& w, int row, const RoundedRows& x, int token, float* y, std::size_t y_stride) {
  __m512 acc[16]; // of row r and token t: 4 r + t
  for (__m512& lanes : acc) lanes = _mm512_setzero_ps();
  const auto* weights =
      reinterpret_cast<const std::uint16_t*>(w.data) + static_cast<std::size_t>(row) * w.cols;
  int k = 0;
  for (; k + kColumns <= w.cols; k += kColumns) {
    __m512i xv[T];
    for (int t = 0; t < T; ++t) xv[t] = _mm512_loadu_si512(x.row(token + t) + k);
    for (int r = 0; r < R; ++r) {
      const __m512i wv = _mm512_loadu_si512(weights + static_cast<std::size_t>(r) * w.cols + k);
      for (int t = 0; t < T; ++t) acc[4 * r + t] = dot(acc[4 * r + t], wv, xv[t]);
    }
  }
  if (k < w.cols) // 16 columns are left
    for (int r = 0; r < R; ++r) {
      const __m512i wv = _mm512_maskz_loadu_epi16(0xffff, weights + static_cast<std::size_t>(r) * w.cols + k);
      for (int t = 0; t < T; ++t)
        acc[4 * r + t] = dot(acc[4 * r + t], wv, _mm512_loadu_si512(x.row(token + t) + k));
    }
  alignas(64) float sums[16];
  _mm512_store_ps(sums, sums_of_lanes(acc));
  for (int t = 0; t < T; ++t)
    for (int r = 0; r < R; ++r) y[(token + t) * y_stride + row + r] = sums[4 * t + r];
}

template <int T>
void rows(const Matrix& w, int r0, int r1, const RoundedRows& x, int token, float* y, std::size_t y_stride) {
  int row = r0;
  for (; row + kRows <= r1; row += kRows) tile<kRows, T>(w, row, x, token, y, y_stride);
  for (; row < r1; ++row) tile<1, T>(w, row, x, token, y, y_stride);
}

void matmul_bf16(const Matrix& w, int r0, int r1, const float* x, std::size_t x_stride, int m, float* y,
                 std::size_t y_stride) {
  const RoundedRows rounded(x, x_stride, m, w.cols);
  for (int row = r0; row < r1; row += kRowTile) {
    const int end = row + kRowTile < r1 ? row + kRowTile : r1;
    int token = 0;
    for (; token + kTokens <= m; token += kTokens) rows<kTokens>(w, row, end, rounded, token, y, y_stride);
    for (; token + 2 <= m; token += 2) rows<2>(w, row, end, rounded, token, y, y_stride);
    for (; token < m; ++token) rows<1>(w, row, end, rounded, token, y, y_stride);
  }
}

} // namespace

const Kernels* avx512_bf16_kernels() {
  const Kernels* const exact = avx512_kernels();
  if (exact == nullptr) return nullptr;
  static const Kernels kernels = [exact] {
    Kernels k = *exact;
    k.name = "avx512_bf16";
    k.matmul_bf16 = matmul_bf16;
    return k;
  }();
  return &kernels;
}

} // namespace pomona

#else

#include "kernels/kernels.h"
namespace pomona {
const Kernels* avx512_bf16_kernels() { return nullptr; }
} // namespace pomona

#endif
