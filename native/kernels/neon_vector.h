// The vector operations that both NEON tables share. The bytes of an activation row differ between them, so
// each adds its own store_quantized. Included inside `#if defined(__aarch64__)` only.
#pragma once

#include <arm_neon.h>

#include "kernels/vector_kernels.h"

namespace pomona {
namespace { // unnamed: the two files are compiled for different processors and may share no instantiation

struct NeonOperations {
  using F = float32x4_t;
  static constexpr int width = 4;
  static constexpr int attend_rows = 6; // 6 rows x 4 vectors: 24 of the 32 registers
  static constexpr int value_blocks = 1;

  static F load(const float* p) { return vld1q_f32(p); }
  static void store(float* p, F v) { vst1q_f32(p, v); }
  static F set1(float v) { return vdupq_n_f32(v); }
  static F fma(F a, F b, F c) { return vfmaq_f32(c, a, b); }
  static F add(F a, F b) { return vaddq_f32(a, b); }
  static F sub(F a, F b) { return vsubq_f32(a, b); }
  static F mul(F a, F b) { return vmulq_f32(a, b); }
  static F div(F a, F b) { return vdivq_f32(a, b); }
  // As scalar and x86 have it: the second operand where one is NaN. fmax and fmin of ARM give NaN.
  static F max(F a, F b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
  static F min(F a, F b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
  static F abs(F a) { return vabsq_f32(a); }
  static float sqrt(float a) { return vget_lane_f32(vsqrt_f32(vdup_n_f32(a)), 0); }
  static F round(F a) { return vrndnq_f32(a); }
  static F exp2i(F n) {
    return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtnq_s32_f32(n), vdupq_n_s32(127)), 23));
  }
  static F zero_below(F x, F limit, F v) {
    return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(v), vcltq_f32(x, limit)));
  }
  static float reduce_add(F a) { return vaddvq_f32(a); }
  static float reduce_max(F a) { return vmaxvq_f32(a); }
  static bool any_equal(F a, F b) { return vmaxvq_u32(vceqq_f32(a, b)) != 0; }

  static F bf16(const std::uint16_t* p) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16)); }
  static void bf16_pairs(const std::uint16_t* p, F& low, F& high) {
    const uint32x4_t v = vreinterpretq_u32_u16(vld1q_u16(p));
    low = vreinterpretq_f32_u32(vshlq_n_u32(v, 16));
    high = vreinterpretq_f32_u32(vandq_u32(v, vdupq_n_u32(0xffff0000u)));
  }
};

inline float32x4_t halves(const std::uint16_t* p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }

inline float half(std::uint16_t h) {
  return vgetq_lane_f32(vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(h))), 0);
}

// Weights of int8 are stored + 128.
inline int8x16_t centred(uint8x16_t v) { return vreinterpretq_s8_u8(veorq_u8(v, vdupq_n_u8(0x80))); }

} // namespace
} // namespace pomona
