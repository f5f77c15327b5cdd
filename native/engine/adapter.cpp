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

float value_at(const TensorView& t, std::size_t i) {
  if (t.dtype == DType::f32) {
    float value;
    std::memcpy(&value, t.data + 4 * i, 4);
    return value;
  }
  std::uint16_t half = 0;
  std::memcpy(&half, t.data + 2 * i, 2);
  if (t.dtype == DType::f16) return half_to_float(half);
  const std::uint32_t bits = static_cast<std::uint32_t>(half) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
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

// Hands out pieces of a buffer, 64-byte aligned; without one it only counts.
class Pieces {
 public:
  explicit Pieces(std::uint8_t* data) : data_(data) {}
  template <class T>
  T* take(std::size_t count) {
    T* piece = data_ == nullptr ? nullptr : reinterpret_cast<T*>(data_ + used_);
    used_ += (count * sizeof(T) + 63) / 64 * 64;
    return piece;
  }
  std::size_t used() const { return used_; }

 private:
  std::uint8_t* data_;
  std::size_t used_ = 0;
};

float largest(const std::vector<float>& values) {
  float result = 0.0f;
  for (const float v : values) result = std::max(result, std::fabs(v));
  return result;
}

std::int8_t nearest(float value, float step) {
  if (!(step > 0.0f)) return 0;
  return static_cast<std::int8_t>(std::lrintf(std::clamp(value / step, -127.0f, 127.0f)));
}

// One projection's factors, as they come, and its place.
struct Part {
  const TensorView *a = nullptr, *b = nullptr;
  int rank = 0;
  float scale = 0.0f;

  float a_at(int j, int k) const { return value_at(*a, static_cast<std::size_t>(j) * a->shape[1] + k); }
  float b_at(int r, int j) const { return value_at(*b, static_cast<std::size_t>(r) * b->shape[1] + j); }
};

// A rank of A of one of the projections that share an input.
struct Lane {
  const Part* part = nullptr; // nullptr: padding
  int j = 0;
};

float at(const Lane& lane, int k) { return lane.part == nullptr ? 0.0f : lane.part->a_at(lane.j, k); }

// The size of what one rank multiplies: the median of the largest values of its pieces that are not zero (a
// piece shares a scale with other ranks). The largest of all would let one outlier decide for every piece.
float size_of(std::vector<float> largest_of_pieces) {
  std::erase(largest_of_pieces, 0.0f);
  if (largest_of_pieces.empty()) return 0.0f;
  const auto middle = largest_of_pieces.begin() + static_cast<std::ptrdiff_t>(largest_of_pieces.size() / 2);
  std::nth_element(largest_of_pieces.begin(), middle, largest_of_pieces.end());
  return std::max(*middle, 1e-6f * largest(largest_of_pieces)); // so that no quotient overflows
}

// value(i) in pieces of `step`
template <class Value>
float size_of(int count, int step, Value&& value) {
  std::vector<float> pieces;
  for (int i = 0; i < count; ++i) {
    if (i % step == 0) pieces.push_back(0.0f);
    pieces.back() = std::max(pieces.back(), std::fabs(value(i)));
  }
  return size_of(std::move(pieces));
}

void pack_a_bf16(const std::vector<Lane>& lanes, int cols, std::uint16_t* to) {
  for (std::size_t l = 0; l < lanes.size(); ++l)
    for (int k = 0; k < cols; ++k)
      to[(l / kGroupRows * cols / 2 + k / 2) * 2 * kGroupRows + l % kGroupRows * 2 + k % 2] =
          to_bf16(at(lanes[l], k));
}

// worth[l] is multiplied by what is taken out of lane l.
void pack_a_int8(const std::vector<Lane>& lanes, int cols, std::int8_t* to, float* scales, float* worth) {
  std::vector<float> sizes;
  for (const Lane& lane : lanes) sizes.push_back(size_of(cols, kBlock, [&](int k) { return at(lane, k); }));
  const int segments = (cols + kBlock - 1) / kBlock;
  for (std::size_t l0 = 0; l0 < lanes.size(); l0 += kGroupRows) {
    for (int s = 0; s < segments; ++s) {
      const int end = std::min(cols, (s + 1) * kBlock);
      std::vector<float> unit;
      for (int k = s * kBlock; k < end; ++k)
        for (std::size_t l = l0; l < l0 + kGroupRows; ++l)
          unit.push_back(sizes[l] > 0.0f ? at(lanes[l], k) / sizes[l] : 0.0f);
      const float step = largest(unit) / 127.0f;
      *scales++ = step;
      for (const float v : unit) *to++ = nearest(v, step);
    }
  }
  for (std::size_t l = 0; l < lanes.size(); ++l) worth[l] *= sizes[l];
}

void pack_b_bf16(const Part& part, int rows, int padded, std::uint16_t* to) {
  for (int r = 0; r < rows; ++r)
    for (int j = 0; j < part.rank; ++j)
      to[(static_cast<std::size_t>(r / kGroupRows) * (padded / 2) + j / 2) * 2 * kGroupRows +
         r % kGroupRows * 2 + j % 2] = to_bf16(part.b_at(r, j));
}

void pack_b_int8(const Part& part, int rows, int padded, std::int8_t* to, float* scales, float* worth) {
  std::vector<float> sizes;
  for (int j = 0; j < part.rank; ++j)
    sizes.push_back(size_of(rows, kGroupRows, [&](int r) { return part.b_at(r, j); }));
  for (int r0 = 0; r0 < rows; r0 += kGroupRows) {
    std::vector<float> group(static_cast<std::size_t>(padded) * kGroupRows, 0.0f);
    for (int j = 0; j < part.rank; ++j)
      for (int r = 0; r < kGroupRows && sizes[j] > 0.0f; ++r)
        group[static_cast<std::size_t>(j) * kGroupRows + r] = part.b_at(r0 + r, j) / sizes[j];
    const float step = largest(group) / 127.0f;
    *scales++ = step;
    for (const float v : group) *to++ = nearest(v, step);
  }
  for (int j = 0; j < part.rank; ++j) worth[j] *= sizes[j];
}

} // namespace

void sum_segments(const Kernels& kernels, const Lowering& lowering, const float* partials, float* u) {
  const int lanes = lowering.a.lanes;
  std::copy_n(partials, lanes, u);
  for (int s = 1; s < lowering.a.segments(); ++s)
    kernels.add(u, partials + static_cast<std::size_t>(s) * lanes, lanes);
  for (int lane = 0; lane < lanes; ++lane) u[lane] *= lowering.factors[lane];
}

Adapter::Adapter(const ModelShape& shape, const TensorMap& tensors,
                 const std::vector<std::pair<std::string, float>>& scales, Format format)
    : shape_(checked(shape)), layers_(shape.layers), number_(next_number()) {
  if (format == Format::palette) throw std::invalid_argument("an adapter is kept in bf16 or int8");
  std::unordered_map<std::string, std::pair<int, Projection>> places;
  for (int l = 0; l < shape.layers; ++l)
    for (int p = 0; p < kProjections; ++p)
      places["model.layers." + std::to_string(l) + "." + kProjectionNames[p]] = {l,
                                                                                 static_cast<Projection>(p)};
  std::vector<std::array<Part, kProjections>> parts(shape.layers);
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
    Part& part = parts[layer][projection];
    if (part.rank != 0) throw std::invalid_argument("module '" + module + "' is named twice");
    part = {&a, &b, static_cast<int>(rank), scale};
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

  // Twice over the same road: first to count, then to write.
  const std::size_t element = format == Format::bf16 ? 2 : 1;
  for (const bool writing : {false, true}) {
    Pieces pieces(writing ? buffer_.data() : nullptr);
    for (int l = 0; l < shape.layers; ++l) {
      for (int i = 0; i < kSources; ++i) {
        std::vector<Lane> lanes;
        for (int p = 0; p < kProjections; ++p) {
          const Part& part = parts[l][p];
          if (source_of(static_cast<Projection>(p)) != i || part.rank == 0) continue;
          layers_[l].raisings[p].lane = static_cast<int>(lanes.size());
          for (int j = 0; j < part.rank; ++j) lanes.push_back({&part, j});
          if (part.rank % 2 != 0) lanes.emplace_back();
        }
        if (lanes.empty()) continue;
        lanes.resize((lanes.size() + kGroupRows - 1) / kGroupRows * kGroupRows);
        Lowering& lowering = layers_[l].lowerings[i];
        LowerFactor& a = lowering.a;
        a.format = format;
        a.lanes = static_cast<int>(lanes.size());
        a.cols = static_cast<int>(lanes[0].part->a->shape[1]);
        max_lanes_ = std::max(max_lanes_, a.lanes);
        max_partials_ = std::max(max_partials_, a.lanes * a.segments());
        float* factors = pieces.take<float>(lanes.size());
        auto* data = pieces.take<std::uint8_t>(lanes.size() * a.cols * element);
        float* unit_scales = format == Format::int8 ? pieces.take<float>(a.units()) : nullptr;
        if (writing) {
          for (std::size_t k = 0; k < lanes.size(); ++k)
            factors[k] = lanes[k].part != nullptr ? lanes[k].part->scale : 0.0f;
          if (format == Format::bf16)
            pack_a_bf16(lanes, a.cols, reinterpret_cast<std::uint16_t*>(data));
          else
            pack_a_int8(lanes, a.cols, reinterpret_cast<std::int8_t*>(data), unit_scales, factors);
        }
        lowering.factors = factors;
        a.data = data;
        a.scales = unit_scales;
        for (int p = 0; p < kProjections; ++p) {
          const Part& part = parts[l][p];
          if (source_of(static_cast<Projection>(p)) != i || part.rank == 0) continue;
          const int rows = static_cast<int>(part.b->shape[0]); // a multiple of 16, as are all of a model's
          Raising& raising = layers_[l].raisings[p];
          raising.b.format = format;
          raising.b.rows = rows;
          raising.b.rank = part.rank + part.rank % 2;
          auto* b = pieces.take<std::uint8_t>(static_cast<std::size_t>(rows) * raising.b.rank * element);
          float* group_scales = format == Format::int8 ? pieces.take<float>(rows / kGroupRows) : nullptr;
          if (writing && format == Format::bf16)
            pack_b_bf16(part, rows, raising.b.rank, reinterpret_cast<std::uint16_t*>(b));
          if (writing && format == Format::int8)
            pack_b_int8(part, rows, raising.b.rank, reinterpret_cast<std::int8_t*>(b), group_scales,
                        factors + raising.lane);
          raising.b.data = b;
          raising.b.scales = group_scales;
        }
      }
    }
    if (!writing) buffer_ = HugeArray<std::uint8_t>(pieces.used());
  }
}

bool Adapter::fits(const ModelShape& s) const {
  return shape_.layers == s.layers && shape_.hidden == s.hidden && shape_.ffn == s.ffn &&
         shape_.q_rows() == s.q_rows() && shape_.kv_rows() == s.kv_rows();
}

} // namespace pomona
