// From logits to a token: greedy, or temperature, top-k, top-p, min-p, with penalties and a bias.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
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
  // Taken from the logits of the tokens that stand in the history from position `answer_start` on: once each,
  // and as often as they stand there.
  float presence_penalty = 0.0f;
  float frequency_penalty = 0.0f;
  std::int64_t answer_start = 0;
  std::vector<std::pair<std::int32_t, float>> bias = {}; // token, what is added to its logit
};

// Makes every token impossible whose bit is not set; an empty mask allows all.
void apply_mask(std::span<float> logits, std::span<const std::uint32_t> mask);

// Changes `logits` [V] in place. `history`: the tokens so far (for the penalties). `position`: the random
// number is a function of (seed, position) alone, so a sequence draws the same whatever shares its batch.
// Order: repetition penalty, presence and frequency penalties, bias; then transformers' filters: temperature,
// top-k, top-p, min-p.
int sample(const Kernels& kernels, std::span<float> logits, const Sampling& sampling,
           std::span<const std::int32_t> history, std::int64_t position);

} // namespace pomona
