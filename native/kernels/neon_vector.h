// The vector operations that both NEON tables share. The bytes of an activation row differ between them, so
// each adds its own store_fine and store_coarse. Included inside `#if defined(__aarch64__)` only.
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
  static float reduce_add(F a) { // not vaddvq, which adds neighbours
    const float32x2_t two = vadd_f32(vget_low_f32(a), vget_high_f32(a));
    return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
  }
  static float reduce_max(F a) { return vmaxvq_f32(a); }
  static bool any_equal(F a, F b) { return vmaxvq_u32(vceqq_f32(a, b)) != 0; }

  static F bf16(const std::uint16_t* p) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16)); }
  static F int8(const std::int8_t* p) {
    std::int32_t four;
    std::memcpy(&four, p, 4);
    const int16x8_t wide = vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(four)));
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide)));
  }
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

// The table in the 16 bytes that tbl looks up; an index never leads behind its 2^Bits entries.
template <int Bits>
int8x16_t load_table(const std::int8_t* table) {
  if constexpr (Bits == 4) return vld1q_s8(table);
  std::int8_t entries[16] = {};
  std::memcpy(entries, table, std::size_t{1} << Bits);
  return vld1q_s8(entries);
}

// 24 bits at the bottom of each 64-bit word -> one 3-bit index in each byte. Index n begins at bit 3 n: its
// bits lie in one byte, or in that and the next.
inline uint8x16_t spread(uint64x2_t v) {
  static constexpr std::uint8_t kFirst[16] = {0, 0, 0, 1, 1, 1, 2, 2, 8, 8, 8, 9, 9, 9, 10, 10};
  static constexpr std::uint8_t kNext[16] = {1, 1, 1, 2, 2, 2, 3, 3, 9, 9, 9, 10, 10, 10, 11, 11};
  static constexpr std::int8_t kDown[16] = {0, -3, -6, -1, -4, -7, -2, -5, 0, -3, -6, -1, -4, -7, -2, -5};
  static constexpr std::int8_t kUp[16] = {8, 5, 2, 7, 4, 1, 6, 3, 8, 5, 2, 7, 4, 1, 6, 3};
  const uint8x16_t bytes = vreinterpretq_u8_u64(v);
  const uint8x16_t first = vshlq_u8(vqtbl1q_u8(bytes, vld1q_u8(kFirst)), vld1q_s8(kDown));
  const uint8x16_t next = vshlq_u8(vqtbl1q_u8(bytes, vld1q_u8(kNext)), vld1q_s8(kUp));
  return vandq_u8(vorrq_u8(first, next), vdupq_n_u8(7));
}

// Columns that are unpacked at a time, four to a step, and the bytes of a group that hold them. Bits is 8 for
// int8 weights.
template <int Bits>
constexpr int kColumns = Bits == 3 ? 32 : 16;
template <int Bits>
constexpr int kColumnBytes = kColumns<Bits>* kGroupRows* Bits / 8;

// Signed bytes of 4 rows x 4 columns per step. `line`: the 16 bytes of these rows in the first line.
template <int Bits>
inline void unpack(const std::uint8_t* line, int8x16_t entries, int8x16_t steps[kColumns<Bits> / 4]) {
  if constexpr (Bits == 8) { // stored + 128
    for (int i = 0; i < 4; ++i)
      steps[i] = vreinterpretq_s8_u8(veorq_u8(vld1q_u8(line + 64 * i), vdupq_n_u8(0x80)));
  } else if constexpr (Bits == 4) {
    for (int i = 0; i < 2; ++i) {
      const uint8x16_t v = vld1q_u8(line + 64 * i);
      steps[2 * i] = vqtbl1q_s8(entries, vandq_u8(v, vdupq_n_u8(15)));
      steps[2 * i + 1] = vqtbl1q_s8(entries, vshrq_n_u8(v, 4));
    }
  } else if constexpr (Bits == 2) {
    const uint8x16_t v = vld1q_u8(line), mask = vdupq_n_u8(3);
    steps[0] = vqtbl1q_s8(entries, vandq_u8(v, mask));
    steps[1] = vqtbl1q_s8(entries, vandq_u8(vshrq_n_u8(v, 2), mask));
    steps[2] = vqtbl1q_s8(entries, vandq_u8(vshrq_n_u8(v, 4), mask));
    steps[3] = vqtbl1q_s8(entries, vshrq_n_u8(v, 6));
  } else {
    const uint64x2_t a = vreinterpretq_u64_u8(vld1q_u8(line));
    const uint64x2_t b = vreinterpretq_u64_u8(vld1q_u8(line + 64));
    const uint64x2_t c = vreinterpretq_u64_u8(vld1q_u8(line + 128));
    const uint64x2_t parts[8] = {a,
                                 vshrq_n_u64(a, 24),
                                 vsliq_n_u64(vshrq_n_u64(a, 48), b, 16),
                                 vshrq_n_u64(b, 8),
                                 vshrq_n_u64(b, 32),
                                 vsliq_n_u64(vshrq_n_u64(b, 56), c, 8),
                                 vshrq_n_u64(c, 16),
                                 vshrq_n_u64(c, 40)};
    for (int i = 0; i < 8; ++i) steps[i] = vqtbl1q_s8(entries, spread(parts[i]));
  }
}

} // namespace
} // namespace pomona
