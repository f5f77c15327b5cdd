// From logits to a token: greedy, or temperature, top-k, top-p, min-p, with a repetition penalty.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/kernels.h"

namespace pomona {

struct Sampling {
  float temperature = 0.0f; // 0: greedy
  int top_k = 0;            // 0: off
  float top_p = 1.0f;
  float min_p = 0.0f;
  float repetition_penalty = 1.0f;
  std::uint64_t seed = 0;
};

// Makes every token impossible whose bit is not set; an empty mask allows all.
void apply_mask(std::span<float> logits, std::span<const std::uint32_t> mask);

// Changes `logits` [V] in place. `history`: the tokens so far (for the penalty). `position`: the random
// number is a function of (seed, position) alone, so a sequence draws the same whatever shares its batch.
// Order of the filters as in transformers: penalty, temperature, top-k, top-p, min-p.
int sample(const Kernels& kernels, std::span<float> logits, const Sampling& sampling,
           std::span<const std::int32_t> history, std::int64_t position);

} // namespace pomona
