// A low-rank adapter in memory: per layer and projection, y += scale * B (A x).
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "engine/arena.h"
#include "engine/weights.h"

namespace pomona {

// The projections of a layer, in the order of Layer's matrices.
enum Projection { kQ, kK, kV, kO, kGate, kUp, kDown, kProjections };
inline constexpr std::array<const char*, kProjections> kProjectionNames = {
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "mlp.gate_proj",    "mlp.up_proj",      "mlp.down_proj"};

// a: bf16 [rank][K]; b: bf16 [N/16][rank/2][16 rows][2 ranks]. The rank is padded with zeros to an even
// number.
struct LowRank {
  int rank = 0; // 0: this projection is not adapted
  float scale = 0.0f;
  Matrix a;
  const std::uint16_t* b = nullptr;
};

class Adapter {
 public:
  // tensors: "model.layers.L.self_attn.q_proj.lora_A.weight" [rank, K] and "...lora_B.weight" [N, rank],
  // BF16, F16 or F32; copied. scales: one per adapted module (name without ".lora_A.weight"). Rank and
  // modules may differ per layer. std::invalid_argument for a tensor that is missing, unexpected, or of
  // another shape, and for sizes that make no model.
  Adapter(const ModelShape& shape, const TensorMap& tensors,
          const std::vector<std::pair<std::string, float>>& scales);

  const LowRank& at(int layer, Projection projection) const { return layers_[layer][projection]; }
  std::size_t bytes() const { return buffer_.size() * sizeof(std::uint16_t); }
  bool fits(const ModelShape& shape) const; // whether it was made for a model of these sizes
  int max_rank() const { return max_rank_; }
  std::uint64_t number() const {
    return number_;
  } // unlike that of any other adapter of this process, and not 0

 private:
  ModelShape shape_;
  HugeArray<std::uint16_t> buffer_;
  std::vector<std::array<LowRank, kProjections>> layers_;
  int max_rank_ = 0;
  std::uint64_t number_;
};

} // namespace pomona
