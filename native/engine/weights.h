// From named tensors (views on a mapped safetensors file) to the matrices of a model. Shapes are checked
// against the configuration; anything missing, unexpected or of the wrong size throws std::invalid_argument
// that names it.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "engine/arena.h"
#include "kernels/kernels.h"

namespace pomona {

// The part of the configuration that the arithmetic needs; see models/config.py.
struct ModelShape {
  int vocab = 0, hidden = 0, ffn = 0, layers = 0, heads = 0, kv_heads = 0, head_dim = 0, max_positions = 0;
  float rms_norm_eps = 1e-5f;
  double rope_theta = 10000.0;
  double rope_factor = 0.0; // Llama 3 scaling when > 0
  double rope_low_freq = 1.0, rope_high_freq = 4.0, rope_original_positions = 8192;
  bool qk_norm = false, qkv_bias = false, tied = true;

  int q_rows() const { return heads * head_dim; }
  int kv_rows() const { return kv_heads * head_dim; }
  int qkv_rows() const { return q_rows() + 2 * kv_rows(); }
};

// Throws std::invalid_argument for sizes that make no model, or that the engine's arithmetic does not take.
const ModelShape& checked(const ModelShape& shape);

enum class DType { bf16, f16, f32, i8, u8 };

struct TensorView {
  DType dtype = DType::bf16;
  std::vector<std::int64_t> shape;
  const std::uint8_t* data = nullptr;
};
using TensorMap = std::unordered_map<std::string, TensorView>;

// One matrix by its name without ".weight", in whichever format its tensors are.
Matrix read_matrix(const TensorMap& tensors, const std::string& module, int rows, int cols);

struct Layer {
  Matrix q, k, v, o, gate, up, down;
  std::vector<float> input_norm, post_norm, q_norm, k_norm, qkv_bias; // bias: q, k, v in one row
};

class Weights {
 public:
  // huge_pages: copy the packed matrices into huge pages in the order in which a step reads them.
  Weights(const ModelShape& shape, const TensorMap& tensors, bool huge_pages);

  Matrix embedding, head; // the same bytes when tied
  std::vector<float> final_norm;
  std::vector<Layer> layers;

  std::size_t bytes_per_token() const { return bytes_per_token_; } // weights that one decoded token reads

 private:
  std::size_t bytes_per_token_ = 0;
  HugeBuffer arena_;
};

} // namespace pomona
