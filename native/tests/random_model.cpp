#include "tests/random_model.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <sstream>

#include "compression/kmeans.h"
#include "kernels/vector_kernels.h"

namespace pomona::testing {
namespace {

std::size_t size_of(DType dtype) {
  return dtype == DType::f32 ? 4 : dtype == DType::i8 || dtype == DType::u8 ? 1 : 2;
}

void put_half(std::uint8_t* to, std::size_t i, float value) {
  const std::uint16_t half = float_to_half(value);
  std::memcpy(to + 2 * i, &half, 2);
}

} // namespace

std::uint64_t Random::next() {
  std::uint64_t z = state_ += 0x9e3779b97f4a7c15ull;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}

int Random::integer(int low, int high) {
  return low +
         static_cast<int>(next() % static_cast<std::uint64_t>(static_cast<std::int64_t>(high) - low + 1));
}

double Random::uniform() { return static_cast<double>(next() >> 11) * 0x1.0p-53; }

float Random::normal() {
  const double radius = std::sqrt(-2.0 * std::log(1.0 - uniform()));
  return static_cast<float>(radius * std::cos(6.283185307179586 * uniform()));
}

std::vector<float> Random::normals(std::size_t count, float size) {
  std::vector<float> values(count);
  for (float& v : values) v = size * normal();
  return values;
}

std::uint8_t* Tensors::add(const std::string& name, DType dtype, std::vector<std::int64_t> shape) {
  std::size_t bytes = size_of(dtype);
  for (const std::int64_t n : shape) bytes *= static_cast<std::size_t>(std::max<std::int64_t>(n, 0));
  bytes_.push_back(std::make_unique<Aligned<std::uint8_t>>(bytes));
  map_[name] = TensorView{dtype, std::move(shape), bytes_.back()->data()};
  return bytes_.back()->data();
}

void Tensors::add_floats(const std::string& name, DType dtype, std::vector<std::int64_t> shape,
                         const std::vector<float>& values) {
  std::uint8_t* to = add(name, dtype, std::move(shape));
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (dtype == DType::f32) {
      std::memcpy(to + 4 * i, &values[i], 4);
    } else if (dtype == DType::f16) {
      put_half(to, i, values[i]);
    } else {
      const std::uint16_t v = to_bf16(values[i]);
      std::memcpy(to + 2 * i, &v, 2);
    }
  }
}

void add_matrix(Tensors& tensors, const std::string& module, Format format, int rows, int cols, int bits,
                int table_cols, Random& random) {
  const std::string weight = module + ".weight";
  const float size = 1.0f / std::sqrt(static_cast<float>(cols));
  if (format == Format::bf16) {
    tensors.add_floats(weight, DType::bf16, {rows, cols},
                       random.normals(static_cast<std::size_t>(rows) * cols, size));
    return;
  }
  const int groups = rows / kGroupRows;
  const bool palette = format == Format::palette;
  std::vector<std::int64_t> shape = {groups, cols / 4, 64};
  if (palette)
    shape = bits == 3 ? std::vector<std::int64_t>{groups, cols / 32, 3, 64}
                      : std::vector<std::int64_t>{groups, cols * bits / 32, 64};
  std::uint8_t* data = tensors.add(weight + (palette ? "_indices" : "_int8"), DType::u8, shape);
  const std::size_t bytes = static_cast<std::size_t>(rows) * cols * (palette ? bits : 8) / 8;
  for (std::size_t i = 0; i < bytes; ++i) data[i] = static_cast<std::uint8_t>(random.next());
  std::uint8_t* row_scales = tensors.add(weight + "_row_scales", DType::f16, {rows});
  // Bytes are uniform, of standard deviation 74; table scales lie around 1.
  for (int r = 0; r < rows; ++r)
    put_half(row_scales, r, size * static_cast<float>(0.5 + random.uniform()) / 74.0f);
  if (!palette) return;
  const int tables = cols / table_cols, colors = 1 << bits;
  std::uint8_t* entries = tensors.add(weight + "_tables", DType::i8, {groups, tables, colors});
  std::uint8_t* table_scales = tensors.add(weight + "_table_scales", DType::f16, {groups, tables});
  for (int t = 0; t < groups * tables; ++t) {
    for (int i = 0; i < colors; ++i) entries[colors * t + i] = static_cast<std::uint8_t>(random.next());
    put_half(table_scales, t, static_cast<float>(0.5 + random.uniform()));
  }
}

ModelShape small_shape() {
  ModelShape s;
  s.vocab = 160;
  s.hidden = 128;
  s.ffn = 192;
  s.layers = 2;
  s.heads = 4;
  s.kv_heads = 2;
  s.head_dim = 32;
  s.max_positions = 512;
  return s;
}

ModelShape tiny_shape() {
  ModelShape s = small_shape();
  s.vocab = 64;
  s.hidden = 64;
  s.ffn = 64;
  s.heads = 2;
  s.kv_heads = 1;
  s.max_positions = 96;
  return s;
}

Tensors random_model(const ModelShape& s, std::uint64_t seed, Format format, bool mixed) {
  Random random(seed);
  Tensors tensors;
  int turn = 0;
  const auto matrix = [&](const std::string& name, int rows, int cols) {
    constexpr Format kFormats[] = {Format::palette, Format::int8, Format::bf16};
    const Format f = mixed ? kFormats[turn++ % 3] : format;
    add_matrix(tensors, name, f, rows, cols, random.integer(2, 4), random.chance(0.5) ? kBlock : cols,
               random);
  };
  const auto ones = [&](const std::string& name, int size) {
    std::vector<float> values = random.normals(size, 0.1f);
    for (float& v : values) v += 1.0f;
    tensors.add_floats(name, DType::f32, {size}, values);
  };
  const bool palette = mixed && s.hidden % kBlock == 0;
  add_matrix(tensors, "model.embed_tokens", palette ? Format::palette : Format::int8, s.vocab, s.hidden,
             palette ? 3 : 0, palette ? kBlock : 0, random);
  for (int l = 0; l < s.layers; ++l) {
    const std::string prefix = "model.layers." + std::to_string(l) + ".", attention = prefix + "self_attn.";
    matrix(attention + "q_proj", s.q_rows(), s.hidden);
    matrix(attention + "k_proj", s.kv_rows(), s.hidden);
    matrix(attention + "v_proj", s.kv_rows(), s.hidden);
    matrix(attention + "o_proj", s.hidden, s.q_rows());
    matrix(prefix + "mlp.gate_proj", s.ffn, s.hidden);
    matrix(prefix + "mlp.up_proj", s.ffn, s.hidden);
    matrix(prefix + "mlp.down_proj", s.hidden, s.ffn);
    ones(prefix + "input_layernorm.weight", s.hidden);
    ones(prefix + "post_attention_layernorm.weight", s.hidden);
  }
  ones("model.norm.weight", s.hidden);
  return tensors;
}

AdapterParts random_adapter(const ModelShape& s, int rank, std::uint64_t seed) {
  Random random(seed);
  AdapterParts parts;
  const std::pair<int, int> sizes[kProjections] = {
      {s.q_rows(), s.hidden}, {s.kv_rows(), s.hidden}, {s.kv_rows(), s.hidden}, {s.hidden, s.q_rows()},
      {s.ffn, s.hidden},      {s.ffn, s.hidden},       {s.hidden, s.ffn}};
  for (int l = 0; l < s.layers; ++l)
    for (int p = 0; p < kProjections; ++p) {
      const auto [rows, cols] = sizes[p];
      const std::string module = "model.layers." + std::to_string(l) + "." + kProjectionNames[p];
      parts.tensors.add_floats(
          module + ".lora_A.weight", DType::f32, {rank, cols},
          random.normals(static_cast<std::size_t>(rank) * cols, 1.0f / std::sqrt(static_cast<float>(cols))));
      parts.tensors.add_floats(
          module + ".lora_B.weight", DType::bf16, {rows, rank},
          random.normals(static_cast<std::size_t>(rank) * rows, 1.0f / std::sqrt(static_cast<float>(rank))));
      parts.scales.emplace_back(module, 0.7f);
    }
  return parts;
}

std::shared_ptr<const Adapter> make_adapter(const ModelShape& shape, const AdapterParts& parts,
                                            Format format) {
  return std::make_shared<const Adapter>(shape, parts.tensors.map(), parts.scales, format);
}

std::vector<std::int32_t> random_tokens(const ModelShape& shape, int count, Random& random) {
  std::vector<std::int32_t> tokens(count);
  for (std::int32_t& t : tokens) t = random.integer(0, shape.vocab - 1);
  return tokens;
}

std::vector<int> greedy(Engine& engine, const std::vector<std::int32_t>& prompt, int count,
                        std::shared_ptr<const Adapter> adapter) {
  const int sequence = engine.new_sequence(std::move(adapter));
  std::vector<int> said;
  std::vector<std::int32_t> next = prompt;
  for (int i = 0; i < count; ++i) {
    said.push_back(engine.step({StepInput{sequence, next, {}, {}}}).at(0).at(0));
    next = {said.back()};
  }
  engine.free_sequence(sequence);
  return said;
}

std::vector<std::string> instruction_sets() {
  std::istringstream names(available_kernels());
  std::vector<std::string> list;
  for (std::string name; names >> name;) list.push_back(name);
  return list;
}

} // namespace pomona::testing
