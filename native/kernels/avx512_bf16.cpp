// AVX-512 with BF16: as avx512, but products with bf16 weights round their activations to bf16, too, and take
// two columns per lane and instruction (vdpbf16ps), half the instructions.
//
// Not of the other instruction sets' bits, so never chosen by itself. A token's result still does not depend
// on what else is in the batch: every sum is taken over 32 columns a step, in order, whatever the tile.
#if defined(__AVX512BF16__) && defined(__AVX512BW__)

#include <immintrin.h>

#include <bit>
#include <cstring>
#include <vector>

#include "kernels/kernels.h"

namespace pomona {
namespace {

constexpr int kColumns = 32; // of a step
constexpr int kTile = 4;     // rows, and tokens
constexpr int kRowTile = 16; // rows that stay in the first-level cache while all tokens pass

// Activations rounded to bf16, rows of a whole number of steps.
class RoundedRows {
 public:
  RoundedRows(const float* x, std::size_t stride, int rows, int cols)
      : stride_((cols + kColumns - 1) / kColumns * kColumns) {
    thread_local std::vector<std::uint16_t> buffer; // grows to the largest input of this thread
    buffer.resize(stride_ * rows);
    rows_ = buffer.data();
    for (int row = 0; row < rows; ++row)
      for (int k = 0; k < static_cast<int>(stride_); k += 16) {
        const int left = cols - k;
        const __mmask16 mask = left >= 16 ? 0xffff : left > 0 ? (1u << left) - 1 : 0;
        const __m256bh v = _mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(mask, x + row * stride + k));
        std::memcpy(rows_ + row * stride_ + k, &v, sizeof v);
      }
  }
  const std::uint16_t* row(int number) const { return rows_ + number * stride_; }

 private:
  std::size_t stride_;
  std::uint16_t* rows_;
};

inline __m512bh load(const std::uint16_t* p, __mmask32 mask) {
  return std::bit_cast<__m512bh>(_mm512_maskz_loadu_epi16(mask, p));
}

// R weight rows x T tokens, lanes along K.
template <int R, int T>
void tile(const Matrix& w, int row, const RoundedRows& x, int token, float* y, std::size_t y_stride) {
  __m512 acc[R][T];
  for (int r = 0; r < R; ++r)
    for (int t = 0; t < T; ++t) acc[r][t] = _mm512_setzero_ps();
  const auto* weights =
      reinterpret_cast<const std::uint16_t*>(w.data) + static_cast<std::size_t>(row) * w.cols;
  const auto step = [&](int k, __mmask32 mask) __attribute__((always_inline)) {
    __m512bh xv[T];
    for (int t = 0; t < T; ++t) xv[t] = load(x.row(token + t) + k, ~__mmask32{0});
    for (int r = 0; r < R; ++r) {
      const __m512bh wv = load(weights + static_cast<std::size_t>(r) * w.cols + k, mask);
      for (int t = 0; t < T; ++t) acc[r][t] = _mm512_dpbf16_ps(acc[r][t], wv, xv[t]);
    }
  };
  int k = 0;
  for (; k + kColumns <= w.cols; k += kColumns) step(k, ~__mmask32{0});
  if (k < w.cols) step(k, (__mmask32{1} << (w.cols - k)) - 1);
  for (int r = 0; r < R; ++r)
    for (int t = 0; t < T; ++t) y[(token + t) * y_stride + row + r] = _mm512_reduce_add_ps(acc[r][t]);
}

template <int T>
void rows(const Matrix& w, int r0, int r1, const RoundedRows& x, int token, float* y, std::size_t y_stride) {
  int row = r0;
  for (; row + kTile <= r1; row += kTile) tile<kTile, T>(w, row, x, token, y, y_stride);
  for (; row < r1; ++row) tile<1, T>(w, row, x, token, y, y_stride);
}

void matmul_bf16(const Matrix& w, int r0, int r1, const float* x, std::size_t x_stride, int m, float* y,
                 std::size_t y_stride) {
  const RoundedRows rounded(x, x_stride, m, w.cols);
  for (int row = r0; row < r1; row += kRowTile) {
    const int end = row + kRowTile < r1 ? row + kRowTile : r1;
    int token = 0;
    for (; token + kTile <= m; token += kTile) rows<kTile>(w, row, end, rounded, token, y, y_stride);
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
