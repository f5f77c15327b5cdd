#include "engine/adapter.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <unordered_map>

#include "engine/adapter_pack.h"

namespace pomona {
namespace {

constexpr int kMaxRank = 1024;
constexpr const char *kLowerSuffix = ".lora_A.weight", *kRaiseSuffix = ".lora_B.weight";

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

// The rows of a tensor as floats, at to[row * stride].
void copy_rows(const TensorView& t, const std::string& name, float* to, int stride) {
  std::size_t rows = t.shape[0], cols = t.shape[1];
  if (cols == static_cast<std::size_t>(stride)) {
    cols *= rows;
    rows = 1;
  }
  std::uint32_t strange = 0; // a value that is not finite has all bits of its exponent
  for (std::size_t row = 0; row < rows; ++row, to += stride) {
    const std::uint8_t* from = t.data + row * cols * (t.dtype == DType::f32 ? 4 : 2);
    if (t.dtype == DType::f32) {
      std::memcpy(to, from, 4 * cols);
    } else {
      const bool f16 = t.dtype == DType::f16;
      for (std::size_t i = 0; i < cols; ++i) {
        std::uint16_t half;
        std::memcpy(&half, from + 2 * i, 2);
        to[i] = f16 ? half_to_float(half) : std::bit_cast<float>(static_cast<std::uint32_t>(half) << 16);
      }
    }
    for (std::size_t i = 0; i < cols; ++i)
      strange |= (std::bit_cast<std::uint32_t>(to[i]) & 0x7f800000u) == 0x7f800000u;
  }
  if (strange != 0) throw std::invalid_argument("tensor '" + name + "' holds a value that is not finite");
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

// One projection's factors, as they come.
struct Part {
  const std::string* module = nullptr;
  const TensorView *a = nullptr, *b = nullptr;
  int rank = 0;
  float scale = 0.0f;

  int padded() const { return rank + rank % 2; }
};

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
    const TensorView& a = find(tensors, module + kLowerSuffix);
    const TensorView& b = find(tensors, module + kRaiseSuffix);
    const std::int64_t rank = a.shape[0];
    if (rank < 1 || rank > kMaxRank || a.shape[1] != cols || b.shape[0] != rows || b.shape[1] != rank)
      throw std::invalid_argument("module '" + module + "': lora_A and lora_B do not fit a projection of [" +
                                  std::to_string(rows) + ", " + std::to_string(cols) + "]");
    if (!std::isfinite(scale))
      throw std::invalid_argument("module '" + module + "' has a scale that is not finite");
    Part& part = parts[layer][projection];
    if (part.rank != 0) throw std::invalid_argument("module '" + module + "' is named twice");
    part = {&module, &a, &b, static_cast<int>(rank), scale};
  }
  if (tensors.size() != 2 * scales.size()) {
    for (const auto& [name, view] : tensors) {
      const std::string module = name.substr(0, name.find(".lora_"));
      const bool known =
          std::any_of(scales.begin(), scales.end(), [&](const auto& s) { return s.first == module; });
      if (!known || (name != module + kLowerSuffix && name != module + kRaiseSuffix))
        throw std::invalid_argument("tensor '" + name + "' belongs to no adapted module");
    }
  }

  // Twice over the same road: first to count, then to write.
  std::vector<float> values;
  const std::size_t element = format == Format::bf16 ? 2 : 1;
  for (const bool writing : {false, true}) {
    Pieces pieces(writing ? buffer_.data() : nullptr);
    for (int l = 0; l < shape.layers; ++l) {
      for (int i = 0; i < kSources; ++i) {
        int lanes = 0, cols = 0;
        for (int p = 0; p < kProjections; ++p) {
          const Part& part = parts[l][p];
          if (source_of(static_cast<Projection>(p)) != i || part.rank == 0) continue;
          layers_[l].raisings[p].lane = lanes;
          lanes += part.padded();
          cols = static_cast<int>(part.a->shape[1]);
        }
        if (lanes == 0) continue;
        Lowering& lowering = layers_[l].lowerings[i];
        LowerFactor& a = lowering.a;
        a.format = format;
        a.lanes = (lanes + kGroupRows - 1) / kGroupRows * kGroupRows;
        a.cols = cols;
        max_lanes_ = std::max(max_lanes_, a.lanes);
        max_partials_ = std::max(max_partials_, a.lanes * a.segments());
        const std::size_t elements = static_cast<std::size_t>(a.lanes) * cols;
        float* factors = pieces.take<float>(a.lanes);
        auto* data = pieces.take<std::uint8_t>(elements * element);
        float* unit_scales = format == Format::int8 ? pieces.take<float>(a.units()) : nullptr;
        lowering.factors = factors;
        a.data = data;
        a.scales = unit_scales;
        if (writing) {
          values.assign(elements, 0.0f);
          for (int p = 0; p < kProjections; ++p) {
            const Part& part = parts[l][p];
            if (source_of(static_cast<Projection>(p)) != i || part.rank == 0) continue;
            const int lane = layers_[l].raisings[p].lane;
            std::fill_n(factors + lane, part.rank, part.scale);
            copy_rows(*part.a, *part.module + kLowerSuffix,
                      values.data() + static_cast<std::size_t>(lane) * cols, cols);
          }
          pack_lower(format, values, a.lanes, cols, data, unit_scales, factors);
        }
        for (int p = 0; p < kProjections; ++p) {
          const Part& part = parts[l][p];
          if (source_of(static_cast<Projection>(p)) != i || part.rank == 0) continue;
          Raising& raising = layers_[l].raisings[p];
          RaiseFactor& b = raising.b;
          b.format = format;
          b.rows = static_cast<int>(part.b->shape[0]); // a multiple of 16, as are all of a model's
          b.rank = part.padded();
          auto* to = pieces.take<std::uint8_t>(static_cast<std::size_t>(b.rows) * b.rank * element);
          float* group_scales = format == Format::int8 ? pieces.take<float>(b.rows / kGroupRows) : nullptr;
          b.data = to;
          b.scales = group_scales;
          if (!writing) continue;
          values.assign(static_cast<std::size_t>(b.rows) * b.rank, 0.0f);
          copy_rows(*part.b, *part.module + kRaiseSuffix, values.data(), b.rank);
          pack_raise(format, values, b.rows, b.rank, to, group_scales, factors + raising.lane);
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
