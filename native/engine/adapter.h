// A low-rank adapter in memory: per layer and projection, y += scale * B (A x).
//
// The A of projections that read the same input stand together, rank by rank, so that one pass over the
// input makes what all of them need. int8 halves the bytes: A is scaled by rank and then by unit (16 ranks x
// 64 columns), B by rank and then by group of 16 rows; what is said by rank is folded into `factors`.
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

// What the projections of a layer read: q, k and v the same; o; gate and up the same; down.
enum Source { kSourceQkv, kSourceO, kSourceGated, kSourceDown, kSources };
constexpr Source source_of(Projection p) {
  return p <= kV ? kSourceQkv : p == kO ? kSourceO : p == kDown ? kSourceDown : kSourceGated;
}

struct Lowering {
  LowerFactor a;
  const float* factors = nullptr; // [lanes]: alpha / rank, and for int8 what a rank of A and B is worth
};
// u[lanes] = the sum of the segments [segments][lanes] that Kernels::lower made of one row, times factors
void sum_segments(const Kernels& kernels, const Lowering& lowering, const float* partials, float* u);

struct Raising {
  RaiseFactor b;
  int lane = 0; // the first of its ranks among the lanes of its input
};

class Adapter {
 public:
  // tensors: "model.layers.L.self_attn.q_proj.lora_A.weight" [rank, K] and "...lora_B.weight" [N, rank],
  // BF16, F16 or F32; copied. scales: one per adapted module (name without ".lora_A.weight"). format: bf16 or
  // int8. Rank and modules may differ per layer. std::invalid_argument for a tensor that is missing,
  // unexpected, of another shape, or with a value that is not finite, and for sizes that make no model.
  Adapter(const ModelShape& shape, const TensorMap& tensors,
          const std::vector<std::pair<std::string, float>>& scales, Format format);

  const Lowering& lowering(int layer, Source source) const { return layers_[layer].lowerings[source]; }
  const Raising& raising(int layer, Projection projection) const {
    return layers_[layer].raisings[projection];
  }
  std::size_t bytes() const { return buffer_.size(); }
  int layers() const { return static_cast<int>(layers_.size()); }
  bool fits(const ModelShape& shape) const; // whether it was made for a model of these sizes
  int max_lanes() const { return max_lanes_; }
  int max_partials() const { return max_partials_; } // largest lanes * segments of an input
  std::uint64_t number() const {
    return number_;
  } // unlike that of any other adapter of this process, and not 0

 private:
  struct LayerFactors {
    std::array<Lowering, kSources> lowerings;
    std::array<Raising, kProjections> raisings;
  };

  ModelShape shape_;
  HugeArray<std::uint8_t>
      buffer_; // factors and scales of all layers, in the order in which a step reads them
  std::vector<LayerFactors> layers_;
  int max_lanes_ = 0, max_partials_ = 0;
  std::uint64_t number_;
};

} // namespace pomona
