#include "engine/adapter.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <unordered_map>

#include "kernels/vector_kernels.h"

namespace pomona {
namespace {

constexpr int kMaxRank = 1024;

std::pair<int, int> shape_of(const ModelShape& s, Projection p) {
  switch (p) {
    case kQ:
      return {s.q_rows(), s.hidden};
    case kK:
    case kV:
      return {s.kv_rows(), s.hidden};
    case kO:
      return {s.hidden, s.q_rows()};
    case kGate:
    case kUp:
      return {s.ffn, s.hidden};
    default:
      return {s.hidden, s.ffn};
  }
}

std::uint16_t bf16_at(const TensorView& t, std::size_t i) {
  std::uint16_t half = 0;
  if (t.dtype == DType::f32) {
    float value;
    std::memcpy(&value, t.data + 4 * i, 4);
    return to_bf16(value);
  }
  std::memcpy(&half, t.data + 2 * i, 2);
  return t.dtype == DType::f16 ? to_bf16(half_to_float(half)) : half;
}

const TensorView& find(const TensorMap& tensors, const std::string& name) {
  const auto it = tensors.find(name);
  if (it == tensors.end()) throw std::invalid_argument("tensor '" + name + "' is missing");
  const DType dtype = it->second.dtype;
  if (it->second.shape.size() != 2 || (dtype != DType::bf16 && dtype != DType::f16 && dtype != DType::f32))
    throw std::invalid_argument("tensor '" + name + "' must be a BF16, F16 or F32 matrix");
  return it->second;
}

std::uint64_t next_number() {
  static std::atomic<std::uint64_t> counter{0};
  return ++counter;
}

} // namespace

Adapter::Adapter(const ModelShape& shape, const TensorMap& tensors,
                 const std::vector<std::pair<std::string, float>>& scales)
    : shape_(checked(shape)), layers_(shape.layers), number_(next_number()) {
  std::unordered_map<std::string, std::pair<int, Projection>> places;
  for (int l = 0; l < shape.layers; ++l)
    for (int p = 0; p < kProjections; ++p)
      places["model.layers." + std::to_string(l) + "." + kProjectionNames[p]] = {l,
                                                                                 static_cast<Projection>(p)};

  struct Part {
    const TensorView *a, *b;
    LowRank* target;
    int rows, cols;
  };
  std::vector<Part> parts;
  std::size_t elements = 0;
  for (const auto& [module, scale] : scales) {
    const auto place = places.find(module);
    if (place == places.end())
      throw std::invalid_argument("module '" + module + "' is no projection of this model");
    const auto [layer, projection] = place->second;
    const auto [rows, cols] = shape_of(shape, projection);
    const TensorView& a = find(tensors, module + ".lora_A.weight");
    const TensorView& b = find(tensors, module + ".lora_B.weight");
    const std::int64_t rank = a.shape[0];
    if (rank < 1 || rank > kMaxRank || a.shape[1] != cols || b.shape[0] != rows || b.shape[1] != rank)
      throw std::invalid_argument("module '" + module + "': lora_A and lora_B do not fit a projection of [" +
                                  std::to_string(rows) + ", " + std::to_string(cols) + "]");
    if (!std::isfinite(scale))
      throw std::invalid_argument("module '" + module + "' has a scale that is not finite");
    LowRank& target = layers_[layer][projection];
    if (target.rank != 0) throw std::invalid_argument("module '" + module + "' is named twice");
    target.rank = static_cast<int>(rank + rank % 2);
    target.scale = scale;
    max_rank_ = std::max(max_rank_, target.rank);
    parts.push_back({&a, &b, &target, rows, cols});
    elements += (static_cast<std::size_t>(target.rank) * cols + 31) / 32 * 32 +
                static_cast<std::size_t>(target.rank) * rows;
  }
  if (tensors.size() != 2 * scales.size()) {
    for (const auto& [name, view] : tensors) {
      const std::string module = name.substr(0, name.find(".lora_"));
      const bool known =
          std::any_of(scales.begin(), scales.end(), [&](const auto& s) { return s.first == module; });
      if (!known || (name != module + ".lora_A.weight" && name != module + ".lora_B.weight"))
        throw std::invalid_argument("tensor '" + name + "' belongs to no adapted module");
    }
  }

  buffer_ = HugeArray<std::uint16_t>(elements);
  std::uint16_t* to = buffer_.data();
  for (const Part& part : parts) {
    const int rank = static_cast<int>(part.a->shape[0]), padded = part.target->rank;
    LowRank& low = *part.target;
    low.a.rows = padded;
    low.a.cols = part.cols;
    low.a.data = reinterpret_cast<const std::uint8_t*>(to);
    for (std::size_t i = 0; i < static_cast<std::size_t>(rank) * part.cols; ++i) to[i] = bf16_at(*part.a, i);
    to += (static_cast<std::size_t>(padded) * part.cols + 31) / 32 * 32;
    low.b = to;
    for (int row = 0; row < part.rows; ++row)
      for (int j = 0; j < rank; ++j)
        to[(static_cast<std::size_t>(row / 16) * (padded / 2) + j / 2) * 32 + (row % 16) * 2 + j % 2] =
            bf16_at(*part.b, static_cast<std::size_t>(row) * rank + j);
    to += static_cast<std::size_t>(part.rows) *
          padded; // rows are multiples of 16 in every model that the engine takes
  }
}

bool Adapter::fits(const ModelShape& s) const {
  return shape_.layers == s.layers && shape_.hidden == s.hidden && shape_.ffn == s.ffn &&
         shape_.q_rows() == s.q_rows() && shape_.kv_rows() == s.kv_rows();
}

} // namespace pomona
