// Sums across lanes for the AVX-512 kernels. Include it where the compiler has AVX-512.
#pragma once

#include <immintrin.h>

namespace pomona {
namespace {

// Lane 4 j + i is the sum of the lanes of v[4 i + j], in the order of VectorKernels::fold_lanes. One tree for
// all 16 takes a third of what 16 sums take, which counts where rows are short.
inline __m512 sums_of_lanes(const __m512 (&v)[16]) {
  __m512 eights[8], fours[4], twos[2];
  for (int i = 0; i < 8; ++i) // lanes i and i + 8
    eights[i] = _mm512_add_ps(_mm512_shuffle_f32x4(v[2 * i], v[2 * i + 1], 0x44),
                              _mm512_shuffle_f32x4(v[2 * i], v[2 * i + 1], 0xee));
  for (int i = 0; i < 4; ++i) // i and i + 4
    fours[i] = _mm512_add_ps(_mm512_shuffle_f32x4(eights[2 * i], eights[2 * i + 1], 0x88),
                             _mm512_shuffle_f32x4(eights[2 * i], eights[2 * i + 1], 0xdd));
  for (int i = 0; i < 2; ++i) { // i and i + 2
    const __m512d a = _mm512_castps_pd(fours[2 * i]), b = _mm512_castps_pd(fours[2 * i + 1]);
    twos[i] =
        _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)), _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
  }
  return _mm512_add_ps(_mm512_shuffle_ps(twos[0], twos[1], 0x88), _mm512_shuffle_ps(twos[0], twos[1], 0xdd));
}

} // namespace
} // namespace pomona
